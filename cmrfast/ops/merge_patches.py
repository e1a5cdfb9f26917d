"""Overlapping patches into a volume, as their weighted mean."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cmrfast.ops._check import (
    require_floating,
    require_number,
    require_one_device,
    require_real,
    require_sizes,
    require_starts,
    sum_dtype,
    upcast,
    values_readable,
)
from cmrfast.ops._op import define
from cmrfast.ops.extract_patches import extract_patches
from cmrfast.ops.resample import resample
from cmrfast.ops.resample_argmax import require_labels, resample_argmax


def merge_patches(
    patches: Tensor,
    start_vox: Tensor,
    shape: Sequence[int],
    *,
    weight: Tensor | None = None,
    fill: float = 0.0,
) -> Tensor:
    """The weighted mean, at each voxel, of all patches that cover it.

    Args:
        patches: (P, C, *size), floating; two or three space axes.
        start_vox: (P, d) integer, first voxel of each patch; what is outside the volume is ignored.
        shape: of the volume, d entries.
        weight: (*size), >= 0, without a gradient; default ones.
        fill: value of voxels whose total weight is 0.

    Returns:
        (C, *shape), of the patches' dtype.

    Example:
        >>> from cmrfast.ops import cover_starts, extract_patches
        >>> volume = torch.rand(1, 10, 12)
        >>> start = cover_starts((10, 12), (4, 4), overlap=2)
        >>> patches = extract_patches(volume, start, (4, 4))
        >>> torch.allclose(merge_patches(patches, start, (10, 12)), volume)
        True
    """
    start_vox, shape, weight = _checked("merge_patches", patches, start_vox, shape, weight)
    fill = require_number("merge_patches", "fill", fill)
    merged: Tensor = merge_patches_op(upcast(patches), start_vox, weight, shape, fill)
    return merged.to(patches.dtype)


class PatchMerger:
    """``merge_patches`` in batches; keeps the sums and total weights, not the patches.

    Args:
        shape: of the volume.
        channels: of the patches.
        size: of the patches.
        weight: (*size), >= 0; default ones. Sums are float64 if it is, else float32.
        device: of the sums; default the weight's, or the CPU.

    Example:
        >>> from cmrfast.ops import cover_starts
        >>> merger = PatchMerger((8, 8), 1, (4, 4))
        >>> for start in cover_starts((8, 8), (4, 4), overlap=0).split(2):
        ...     merger.add(torch.ones(2, 1, 4, 4), start)
        >>> merger.merged().sum().item()
        64.0
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: int,
        size: Sequence[int],
        *,
        weight: Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self._shape = require_sizes("PatchMerger", "shape", shape)
        self._size = require_sizes("PatchMerger", "size", size, axes=len(self._shape))
        if channels < 1:
            raise ValueError(f"PatchMerger: channels must be at least 1; got {channels}")
        if weight is not None:
            require_real("PatchMerger", "weight", weight)
        dtype = torch.float64 if weight is not None and weight.dtype == torch.float64 else None
        dtype = dtype or torch.float32
        if device is None and weight is not None:
            device = weight.device
        self._weight = None if weight is None else weight.to(device, dtype)
        self._sums = torch.zeros(channels, *self._shape, dtype=dtype, device=device)
        self._totals = torch.zeros(self._shape, dtype=dtype, device=device)
        self._reused = False

    def add(self, patches: Tensor, start_vox: Tensor) -> None:
        """Add a batch: patches (P, C, *size), start_vox (P, d). Not differentiable."""
        self._require_sums("add")
        start_vox, _, _ = _checked("PatchMerger.add", patches, start_vox, self._shape, self._weight)
        expected = (self._sums.shape[0], *self._size)
        if tuple(patches.shape[1:]) != expected:
            raise ValueError(
                f"PatchMerger.add: patches must be (P, {', '.join(map(str, expected))}); "
                f"got {tuple(patches.shape)}"
            )
        require_one_device("PatchMerger.add", patches=patches, sums=self._sums)
        values = patches.detach().to(self._sums.dtype)
        merge_add_op(self._sums, self._totals, values, start_vox, self._weight)

    def merged(self, fill: float = 0.0, *, reuse: bool = False) -> Tensor:
        """The mean of what was added, (C, *shape); ``fill`` where the total weight is 0.

        Args:
            fill: value where the total weight is 0.
            reuse: write the mean in place of the sums; this ends the use of the merger.
        """
        self._require_sums("merged")
        self._reused = reuse
        mean = torch.div(self._sums, self._totals, out=self._sums if reuse else None)
        uncovered = self._totals <= 0
        if not values_readable(uncovered) or bool(uncovered.any()):
            mean.masked_fill_(uncovered, fill)
        return mean

    def labels(
        self,
        world_from_vox: Tensor | None = None,
        to_world_from_vox: Tensor | None = None,
        to_shape: Sequence[int] | None = None,
        *,
        fill: int = 0,
        dtype: torch.dtype = torch.uint8,
    ) -> Tensor:
        """The class of largest mean at each voxel, on this grid or another.

        Args:
            world_from_vox: (4, 4), of this grid, as in ``resample_argmax``; default none, and then
                the labels are on this grid.
            to_world_from_vox: (4, 4), of the new grid.
            to_shape: of the new grid.
            fill: label outside, and where no patch covers the nearest voxel of this grid.
            dtype: of the labels, an integer dtype.

        Returns:
            (*shape) or (*to_shape) labels; of equal classes the lowest.

        Example:
            >>> merger = PatchMerger((1, 3), 2, (1, 2))
            >>> patches = torch.tensor([0.1, 0.7, 0.9, 0.3]).view(1, 2, 1, 2)
            >>> merger.add(patches, torch.tensor([[0, 0]]))
            >>> merger.labels(fill=255).tolist()
            [[1, 0, 255]]
        """
        self._require_sums("labels")
        fill = require_labels("PatchMerger.labels", self._sums.shape[0], fill, dtype)
        covered = self._totals > 0
        if world_from_vox is None and to_world_from_vox is None and to_shape is None:
            labels = self._sums.argmax(0).to(dtype)
        elif world_from_vox is None or to_world_from_vox is None or to_shape is None:
            raise ValueError(
                "PatchMerger.labels: give all of world_from_vox, to_world_from_vox and to_shape, "
                "or none; got only some"
            )
        else:
            grids = (world_from_vox, to_world_from_vox, to_shape)
            labels = resample_argmax(self.merged(), *grids, dtype=dtype)
            covered = resample(covered[None], *grids, mode="nearest")[0]
        return torch.where(covered, labels, torch.full_like(labels, fill))

    def _require_sums(self, method: str) -> None:
        if self._reused:
            raise ValueError(
                f"PatchMerger.{method}: merged(reuse=True) was called, which ends the use of the "
                "merger; leave out reuse"
            )


def _checked(
    op: str, patches: Tensor, start_vox: Tensor, shape: Sequence[int], weight: Tensor | None
) -> tuple[Tensor, tuple[int, ...], Tensor | None]:
    require_floating(op, "patches", patches)
    axes = patches.dim() - 2
    if axes not in (2, 3):
        raise ValueError(
            f"{op}: patches must be (P, C, *size) with 2 or 3 space axes; "
            f"got {tuple(patches.shape)}"
        )
    require_sizes(op, "size of the patches", patches.shape[2:])
    shape = require_sizes(op, "shape", shape, axes=axes)
    start_vox = require_starts(op, start_vox, axes)
    if weight is not None:
        require_real(op, "weight", weight)
    require_one_device(op, patches=patches, start_vox=start_vox, weight=weight)
    if start_vox.shape[0] != patches.shape[0]:
        raise ValueError(
            f"{op}: start_vox must have one row per patch ({patches.shape[0]}); "
            f"got {start_vox.shape[0]}"
        )
    if weight is None:
        return start_vox, shape, None
    if weight.shape != patches.shape[2:]:
        raise ValueError(
            f"{op}: weight must have the patches' size {tuple(patches.shape[2:])}; "
            f"got {tuple(weight.shape)}"
        )
    return start_vox, shape, weight.detach().to(sum_dtype(patches))


def _reference_add(
    sums: Tensor, totals: Tensor, patches: Tensor, start_vox: Tensor, weight: Tensor | None
) -> None:
    size, shape = patches.shape[2:], totals.shape
    ones = torch.ones(size, dtype=patches.dtype, device=patches.device)
    weight = ones if weight is None else weight
    inside = torch.ones((len(patches), *size), dtype=torch.bool, device=patches.device)
    index = torch.zeros((len(patches), *size), dtype=torch.int64, device=patches.device)
    for axis, (s, n) in enumerate(zip(size, shape, strict=True)):
        at = start_vox[:, axis, None] + torch.arange(s, device=patches.device)
        view = [len(patches), *(s if a == axis else 1 for a in range(len(size)))]
        inside = inside & ((at >= 0) & (at < n)).view(view)
        index = index * n + at.clamp(0, n - 1).view(view)
    weights = torch.where(inside, weight, 0)
    totals.view(-1).index_add_(0, index.flatten(), weights.flatten())
    values = torch.where(inside[:, None], patches * weight, 0).movedim(1, 0)
    sums.flatten(1).index_add_(1, index.flatten(), values.flatten(1))


def _reference(
    patches: Tensor, start_vox: Tensor, weight: Tensor | None, shape: Sequence[int], fill: float
) -> Tensor:
    sums, totals = patches.new_zeros(patches.shape[1], *shape), patches.new_zeros(*shape)
    _reference_add(sums, totals, patches, start_vox, weight)
    return torch.where(totals > 0, sums / totals, fill)


def _backward(inputs: Any, outputs: None, grad: Tensor, needs_input_grad: Any) -> Any:
    patches, start_vox, weight, shape, _ = inputs
    totals = grad.new_zeros(*shape)
    merge_add_op(grad.new_zeros(0, *shape), totals, patches[:, :0], start_vox, weight)
    grad_sums = torch.where(totals > 0, grad / totals, 0)
    grad_patches = extract_patches(grad_sums, start_vox, patches.shape[2:], dtype=grad.dtype)
    return grad_patches if weight is None else grad_patches * weight, *(None,) * 4


merge_add_op = define(
    "merge_add(Tensor(a!) sums, Tensor(b!) totals, Tensor patches, Tensor start_vox,"
    " Tensor? weight) -> ()",
    reference=_reference_add,
    fake=lambda *_: None,
    of="merge_patches",
)

merge_patches_op = define(
    "merge_patches(Tensor patches, Tensor start_vox, Tensor? weight, SymInt[] shape, float fill)"
    " -> Tensor",
    reference=_reference,
    fake=lambda patches, start_vox, weight, shape, fill: patches.new_empty(
        patches.shape[1], *shape
    ),
    backward=_backward,
)
