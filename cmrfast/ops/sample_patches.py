"""Patches sampled from volumes at affinely transformed positions, normalised and cast, in one pass.

A patch is extracted and warped at once: no crop with a margin, no sampling grid, no converted copy.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor

from cmrfast.ops._check import integers, require_floating, require_one_device, require_sizes, upcast
from cmrfast.ops._op import define
from cmrfast.ops.affine_sample import CUBIC, LINEAR, NEAREST_UP
from cmrfast.ops.extract_patches import (
    cast,
    given_or,
    given_volumes,
    needs_double,
    per_channel,
    require_patch_dtype,
    window_volumes,
)
from cmrfast.ops.volume_store import Packed, VolumeStore, full_table

Mode = Literal["linear", "nearest", "cubic"]
_MODES = {"linear": LINEAR, "nearest": NEAREST_UP, "cubic": CUBIC}


def sample_patches(
    volumes: Tensor | Sequence[Tensor] | VolumeStore,
    center_vox: Tensor,
    matrix: Tensor,
    size: Sequence[int],
    *,
    volume_index: Tensor | None = None,
    mode: Mode = "linear",
    shift: float | Tensor | None = None,
    scale: float | Tensor | None = None,
    fill: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Sample patches around centers: patch voxel k is ``center + matrix @ (k - (size - 1) / 2)``.

    Interpolates between what ``extract_patches`` cuts: ``(volume - shift) * scale``, and ``fill``
    outside. With a diagonal matrix of 1 and -1 and an integral ``center - (size - 1) / 2``, the
    result is that of ``extract_patches`` to the bit, with flips where the matrix has -1.

    Args:
        volumes: (C, *S), (V, C, *S), a list of (C, *S_v), or a ``VolumeStore``; any real dtype,
            which is read as it is, two or three space axes.
        center_vox: (P, d) floating, the position of each patch's center in voxels of its volume.
            Positions that are not finite are outside.
        matrix: (P, d, d) floating, from steps in the patch to steps in the volume, in voxels.
        size: of the patches, d entries.
        volume_index: (P,) integer, the volume of each patch; default the first. Checked on the
            CPU; under compilation and on other devices an invalid index gives ``fill``.
        mode: ``linear``, ``nearest`` (ties half up) or ``cubic`` (convolution with a = -1/2, into
            floating dtypes only). Voxels of weight 0 are not read.
        shift: a number, (C,) or (V, C).
        scale: a number, (C,) or (V, C).
        fill: value outside the volume.
        dtype: of the patches; integers are rounded half to even and saturate.

    Returns:
        (P, C, *size). Differentiable in volumes, not in center_vox and matrix.

    Example:
        >>> volume = torch.arange(12.0).view(1, 3, 4)
        >>> half = 0.5 * torch.eye(2)[None]  # zooms in by a factor of two
        >>> sample_patches(volume, torch.tensor([[1.0, 1.5]]), half, (3, 4))
        tensor([[[[2.7500, 3.2500, 3.7500, 4.2500],
                  [4.7500, 5.2500, 5.7500, 6.2500],
                  [6.7500, 7.2500, 7.7500, 8.2500]]]])
    """
    size = integers("sample_patches", "size", size)
    axes = len(size)
    require_floating("sample_patches", "center_vox", center_vox)
    require_floating("sample_patches", "matrix", matrix)
    if center_vox.dim() == 2 and center_vox.shape[1] != axes:
        require_sizes("sample_patches", "size", size, axes=int(center_vox.shape[1]))
    if axes not in (2, 3):
        raise ValueError(f"sample_patches: size must have 2 or 3 entries; got {size}")
    size = require_sizes("sample_patches", "size", size)
    if center_vox.dim() != 2:
        raise ValueError(
            f"sample_patches: center_vox must be (P, {axes}); got {tuple(center_vox.shape)}"
        )
    if matrix.dim() != 3 or matrix.shape != (center_vox.shape[0], axes, axes):
        raise ValueError(
            f"sample_patches: matrix must be ({center_vox.shape[0]}, {axes}, {axes}), one for each "
            f"center; got {tuple(matrix.shape)}"
        )
    packed = Packed("sample_patches", volumes, axes, positions="center_vox")
    index = window_volumes("sample_patches", volume_index, center_vox, packed)
    if mode not in _MODES:
        raise ValueError(f"sample_patches: mode must be one of {', '.join(_MODES)}; got {mode!r}")
    require_patch_dtype("sample_patches", dtype)
    if mode == "cubic" and not dtype.is_floating_point:
        raise TypeError(f"sample_patches: dtype must be floating with mode cubic; got {dtype}")
    require_one_device(
        "sample_patches",
        volumes=packed.buffer,
        center_vox=center_vox,
        matrix=matrix,
        volume_index=index,
    )
    patches: Tensor = sample_patches_op(
        packed.buffer,
        packed.table,
        packed.shape,
        upcast(center_vox.detach()),
        upcast(matrix.detach()),
        index,
        per_channel("sample_patches", "shift", shift, packed),
        per_channel("sample_patches", "scale", scale, packed),
        packed.channels,
        size,
        _MODES[mode],
        float(fill),
        dtype,
    )
    return patches


def _positions(center: Tensor, matrix: Tensor, size: Sequence[int]) -> Iterator[Tensor]:
    """The positions of all patch voxels along each axis, (P, *size) float64."""
    axes = len(size)
    center, matrix = center.double(), matrix.double()
    for a in range(axes):
        x = center[:, a].view(-1, *[1] * axes)
        for d, s in enumerate(size):
            offset = torch.arange(s, dtype=x.dtype, device=x.device) - (s - 1) / 2
            offset = offset.view(*(s if axis == d else 1 for axis in range(axes)))
            x = x + matrix[:, a, d].view(-1, *[1] * axes) * offset
        yield x


def _axis_taps(x: Tensor, mode: int) -> list[tuple[Tensor, Tensor]]:
    """The voxels along one axis that positions are interpolated from, and their weights."""
    if mode == NEAREST_UP:
        return [((x + 0.5).floor(), torch.ones_like(x))]
    cell = x.floor()
    f = x - cell
    if mode == LINEAR:
        return [(cell, 1 - f), (cell + 1, f)]
    return [
        (cell - 1, ((2 - f) * f - 1) * f / 2),
        (cell, ((3 * f - 5) * f * f + 2) / 2),
        (cell + 1, ((4 - 3 * f) * f + 1) * f / 2),
        (cell + 2, (f - 1) * f * f / 2),
    ]


def _taps(
    table: Tensor,
    center: Tensor,
    matrix: Tensor,
    index: Tensor,
    channels: int,
    size: Sequence[int],
    mode: int,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each tap: its buffer index (P, C, *size); whether it is inside and its weight (P, 1, …).

    The index is 0 where the tap is outside.
    """
    ones = [1] * len(size)
    index = given_volumes(index, center)
    valid = (index >= 0) & (index < len(table))
    entry = table[torch.where(valid, index, 0)]
    channel = torch.arange(channels, device=table.device).view(1, -1, *ones)
    along = [_axis_taps(x, mode) for x in _positions(center, matrix, size)]
    for taps in product(*along):
        flat, inside = channel, valid.view(-1, 1, *ones)
        weight = torch.ones(1, dtype=torch.float64, device=table.device)
        for a, (at, along_axis) in enumerate(taps):
            n = entry[:, 1 + a].view(-1, 1, *ones)
            at = at[:, None]
            inside = inside & (at >= 0) & (at < n)
            flat = flat * n + torch.where(inside, at, 0).long()
            weight = weight * along_axis[:, None]
        flat = flat + entry[:, 0].view(-1, 1, *ones)
        yield torch.where(inside, flat, 0), inside, weight


def _reference(
    buffer: Tensor,
    table: Tensor,
    shape: Sequence[int],
    center: Tensor,
    matrix: Tensor,
    index: Tensor,
    shift: Tensor,
    scale: Tensor,
    channels: int,
    size: Sequence[int],
    mode: int,
    fill: float,
    dtype: torch.dtype,
) -> Tensor:
    table = full_table(table, shape, channels, buffer.numel())
    real = torch.float64 if needs_double(buffer.dtype) or needs_double(dtype) else torch.float32
    out_shape = (len(center), channels, *size)
    filled = torch.full(out_shape, fill, dtype=real, device=buffer.device)
    if not buffer.numel() or not len(table):
        return cast(filled, dtype)
    volume = given_volumes(index, center).clamp(0, len(table) - 1)
    view = (-1, channels, *[1] * len(size))
    minus = given_or(0, shift, table, channels)[volume].to(real).view(view)
    times = given_or(1, scale, table, channels)[volume].to(real).view(view)
    total = torch.full_like(filled, -0.0)  # to which -0.0 can be added
    reached = torch.zeros(out_shape, dtype=torch.bool, device=buffer.device)
    voxel, copied = torch.zeros(out_shape, dtype=buffer.dtype, device=buffer.device), reached
    for flat, inside, weight in _taps(table, center, matrix, index, channels, size, mode):
        stored, used = buffer[flat], weight.to(real) != 0
        value = torch.where(inside, (stored.to(real) - minus) * times, fill)
        total = torch.where(used, total + value * weight.to(real), total)
        reached = reached | (inside & used)
        copied = copied | (inside & (weight == 1))
        voxel = torch.where(inside & (weight == 1), stored, voxel)
    patches = cast(torch.where(reached, total, filled), dtype)
    if dtype != buffer.dtype:
        return patches
    unchanged = copied & (minus == 0) & (times == 1)  # exact for integers that no float represents
    return torch.where(unchanged, voxel, patches)


def _reference_backward(
    grad: Tensor,
    table: Tensor,
    shape: Sequence[int],
    center: Tensor,
    matrix: Tensor,
    index: Tensor,
    scale: Tensor,
    numel: int,
    mode: int,
) -> Tensor:
    channels, size = grad.shape[1], grad.shape[2:]
    table = full_table(table, shape, channels, numel)
    grad_buffer = grad.new_zeros(numel)
    if not numel or not len(table):
        return grad_buffer
    volume = given_volumes(index, center).clamp(0, len(table) - 1)
    times = given_or(1, scale, table, channels)[volume].to(grad.dtype)
    grad = grad * times.view(-1, channels, *[1] * len(size))
    for flat, inside, weight in _taps(table, center, matrix, index, channels, size, mode):
        values = torch.where(inside & (weight != 0), grad * weight.to(grad.dtype), 0)
        grad_buffer.index_add_(0, flat.flatten(), values.flatten())
    return grad_buffer


def _backward(inputs: Any, outputs: None, grad: Tensor, needs_input_grad: Any) -> Any:
    buffer, table, shape, center, matrix, index, _, scale, _, _, mode, *_ = inputs
    grad = grad.to(torch.float64 if buffer.dtype == torch.float64 else torch.float32)
    grad_buffer = sample_patches_backward(
        grad, table, shape, center, matrix, index, scale, buffer.shape[0], mode
    )
    return grad_buffer.to(buffer.dtype), *(None,) * 12


def _fake(
    buffer: Tensor, table: Tensor, shape: Sequence[int], center: Tensor, *others: Any
) -> Tensor:
    channels, size, _, _, dtype = others[-5:]
    return buffer.new_empty(center.shape[0], channels, *size, dtype=dtype)


sample_patches_op = define(
    "sample_patches(Tensor buffer, Tensor table, SymInt[] shape, Tensor center_vox, Tensor matrix,"
    " Tensor volume_index, Tensor shift, Tensor scale, SymInt channels, SymInt[] size, int mode,"
    " float fill, ScalarType dtype) -> Tensor",
    reference=_reference,
    fake=_fake,
    backward=_backward,
)

sample_patches_backward = define(
    "sample_patches_backward(Tensor grad, Tensor table, SymInt[] shape, Tensor center_vox,"
    " Tensor matrix, Tensor volume_index, Tensor scale, SymInt numel, int mode) -> Tensor",
    reference=_reference_backward,
    fake=lambda grad, *others: grad.new_empty(others[-2]),
    of="sample_patches",
)
