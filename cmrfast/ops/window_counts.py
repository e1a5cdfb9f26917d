"""Nonzero voxels of windows, at a cost independent of their size."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cmrfast.ops._check import require_one_device, require_sizes, require_starts
from cmrfast.ops._op import define
from cmrfast.ops.extract_patches import given_volumes, window_volumes
from cmrfast.ops.volume_store import Packed, VolumeStore, full_table


def window_counts(
    mask: Tensor | Sequence[Tensor],
    start_vox: Tensor,
    size: Sequence[int],
    *,
    volume_index: Tensor | None = None,
) -> Tensor:
    """Count the nonzero voxels of a mask in each window, from a summed-area table.

    Args:
        mask: (*S), (V, *S) or a list of (*S_v); any real dtype.
        start_vox: (P, d) integer, first voxel of each window; voxels outside the mask count as 0.
        size: of the windows, d entries.
        volume_index: (P,) integer, the mask of each window; default the first. Checked on the CPU;
            under compilation and on other devices an invalid index counts 0.

    Returns:
        (P,) int64.

    Example:
        >>> mask = torch.ones(10, 10)
        >>> window_counts(mask, torch.tensor([[0, 0], [8, 8], [20, 0]]), (4, 4)).tolist()
        [16, 4, 0]
    """
    size = require_sizes("window_counts", "size", size)
    axes = len(size)
    if axes not in (2, 3):
        raise ValueError(f"window_counts: size must have 2 or 3 entries; got {size}")
    start_vox = require_starts("window_counts", start_vox, axes)
    if isinstance(mask, Tensor):
        if mask.dim() not in (axes, axes + 1):
            raise ValueError(
                f"window_counts: mask must be (*S) or (V, *S) with {axes} space axes; "
                f"got {tuple(mask.shape)}"
            )
        packed = Packed("window_counts", mask.unsqueeze(-axes - 1), axes)
    else:
        packed = Packed("window_counts", VolumeStore([m[None] for m in mask]), axes)
    index = window_volumes("window_counts", volume_index, start_vox, packed)
    require_one_device("window_counts", mask=packed.buffer, start_vox=start_vox, volume_index=index)
    bits = packed.buffer  # a bool is not compared with 0: that would make an int64 of it first
    bits = bits if bits.dtype == torch.bool else bits != 0
    counts: Tensor = window_counts_op(bits, packed.table, packed.shape, start_vox, index, size)
    return counts


def _reference(
    mask: Tensor,
    table: Tensor,
    shapes: Sequence[int],
    start_vox: Tensor,
    index: Tensor,
    size: Sequence[int],
) -> Tensor:
    table = full_table(table, shapes, 1, mask.numel())
    index = given_volumes(index, start_vox)
    counts = start_vox.new_zeros(len(start_vox))
    for v, (offset, *shape) in enumerate(table.tolist()):
        numel = torch.Size(shape).numel()
        sums = mask[offset : offset + numel].view(shape).long()
        for axis in range(len(shape)):
            sums = sums.cumsum(axis)
        sums = torch.nn.functional.pad(sums, (1, 0) * len(shape))
        count = torch.zeros_like(counts)
        for corner in torch.cartesian_prod(*[torch.tensor([0, 1])] * len(shape)).tolist():
            at = [
                (start_vox[:, a] + upper * size[a]).clamp(0, shape[a])
                for a, upper in enumerate(corner)
            ]
            count += (-1) ** (len(shape) - sum(corner)) * sums[tuple(at)]
        counts = torch.where(index == v, count, counts)
    return counts


window_counts_op = define(
    "window_counts(Tensor mask, Tensor table, SymInt[] shape, Tensor start_vox,"
    " Tensor volume_index, SymInt[] size) -> Tensor",
    reference=_reference,
    fake=lambda mask, table, shape, start_vox, *_: start_vox.new_empty(start_vox.shape[0]),
)
