"""Patches sampled at affinely transformed positions, and their gradient, by atomic sums.

Positions are integers in units of 2^-32 voxels, the sum of what a line and a step along it add, so
that nothing accumulates and voxels need no float64. Either part beyond 2^30 voxels is outside.
Where float64 is computed in anyway, positions are float64. Sums are in fixed point.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrfast.ops.affine_sample import CUBIC, LINEAR, NEAREST_UP
from cmrfast.ops.extract_patches import cast, given_or, given_volumes, needs_double
from cmrfast.ops.triton._fixed_point import FixedPointSums, atomic_add_fixed, units_per_one
from cmrfast.ops.triton._launch import (
    accumulator,
    as_bytes,
    cast_from_double,
    line_tiles,
    register,
    three_axes,
)
from cmrfast.ops.triton.extract_patches import integer_limits, to_integer
from cmrfast.ops.volume_store import full_table

_LINEAR, _NEAREST_UP, _CUBIC = tl.constexpr(LINEAR), tl.constexpr(NEAREST_UP), tl.constexpr(CUBIC)
_UNITS = tl.constexpr(2.0**32)  # in a voxel
_HALF = tl.constexpr(2**31)
_FAR = tl.constexpr(2.0**30)


@triton.jit
def _units(x):
    """Positions in units, and whether they are near enough for that."""
    near = tl.abs(x) < _FAR
    return tl.where(near, tl.floor(x * _UNITS + 0.5), 0).to(tl.int64), near


@triton.jit
def _entry(poses, patch, axis: tl.constexpr, column: tl.constexpr, AXES: tl.constexpr):
    """An entry of a patch's matrix, for axes of three; of two axes, the first has none."""
    row: tl.constexpr = axis - (3 - AXES)
    across: tl.constexpr = column - (3 - AXES)
    return tl.load(poses[1] + (patch * AXES + row) * AXES + across).to(tl.float64)


@triton.jit
def _cell(
    poses, patch, i, j, k, axis: tl.constexpr,
    AXES: tl.constexpr, MODE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Along one axis, the voxel at or below positions, the fraction beyond, and whether near."""
    center = tl.load(poses[0] + patch * AXES + axis - (3 - AXES)).to(tl.float64)
    line = center + _entry(poses, patch, axis, 1, AXES) * j
    if AXES == 3:
        line += _entry(poses, patch, axis, 0, AXES) * i
    step = _entry(poses, patch, axis, 2, AXES) * k
    if tl.float64 == ACC:
        x = line + step
        near = tl.abs(x) < _FAR
        x = tl.where(near, x, 0)
        cell = tl.floor(x + 0.5 if MODE == _NEAREST_UP else x)
        return cell.to(tl.int32), x - cell, near
    line_units, near_line = _units(line)
    step_units, near_step = _units(step)
    x = line_units + step_units
    if MODE == _NEAREST_UP:
        x += _HALF
    fraction = x.to(tl.uint32).to(tl.float32) * (1 / _UNITS)
    return (x >> 32).to(tl.int32), fraction, near_line & near_step


@triton.jit
def _cells(
    table_ptr, poses, counts, size, AXES: tl.constexpr, MODE: tl.constexpr, ACC: tl.constexpr,
    INDEX: tl.constexpr, BL: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The tile of a program, BL lines x BK voxels of all channels of one patch.

    Returns the patch; its volume, the volume's offset in the buffer and shape; the cells and
    fractions of the voxels along each axis, and which cells there are; where the voxels are in a
    channel of the patch, and which exist.
    """
    size0, size1, size2, tiles = size
    patch = tl.program_id(0) // tiles
    tile = tl.program_id(0) - patch * tiles
    tiles_per_line = (size2 + BK - 1) // BK
    tile_line = tile // tiles_per_line
    line = tile_line * BL + tl.arange(0, BL)[:, None]
    column = (tile - tile_line * tiles_per_line) * BK + tl.arange(0, BK)[None, :]
    patch = patch.to(tl.int64)
    line0 = line // size1
    volume = tl.load(poses[2] + patch)
    valid = (volume >= 0) & (volume < counts[0])
    volume = tl.where(valid, volume, 0)
    row_ptr = table_ptr + volume * (AXES + 1)
    n0 = 1
    if AXES == 3:
        n0 = tl.load(row_ptr + 1, mask=valid, other=0).to(INDEX)
    n1 = tl.load(row_ptr + AXES - 1, mask=valid, other=0).to(INDEX)
    n2 = tl.load(row_ptr + AXES, mask=valid, other=0).to(INDEX)
    i = line0.to(tl.float64) - (size0 - 1) * 0.5
    j = (line - line0 * size1).to(tl.float64) - (size1 - 1) * 0.5
    k = column.to(tl.float64) - (size2 - 1) * 0.5
    cell1, f1, near = _cell(poses, patch, i, j, k, 1, AXES, MODE, ACC)
    cell2, f2, near2 = _cell(poses, patch, i, j, k, 2, AXES, MODE, ACC)
    cell0, f0, near0 = cell1 * 0, f1 * 0, near
    if AXES == 3:
        cell0, f0, near0 = _cell(poses, patch, i, j, k, 0, AXES, MODE, ACC)
    offset = tl.load(row_ptr, mask=valid, other=0)
    return (
        patch, (volume, offset, (n0, n1, n2)), (cell0, cell1, cell2), (f0, f1, f2),
        near & near2 & near0, line.to(tl.int64) * size2 + column,
        (line < size0 * size1) & (column < size2),
    )  # fmt: skip


@triton.jit
def _weight(f, tap, MODE: tl.constexpr):
    """The weight of a tap along one axis, for positions a fraction beyond their cell."""
    if MODE == _NEAREST_UP:
        return f * 0 + 1
    if MODE == _LINEAR:
        return tl.where(tap == 0, 1 - f, f)
    distance = tl.abs(f - (tap - 1))
    within = (1.5 * distance - 2.5) * distance * distance + 1
    beyond = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    return tl.where(distance < 1, within, beyond)


@triton.jit
def _tap(cell, f, tap, n, MODE: tl.constexpr):
    """The voxel of a tap along one axis, whether it is inside, and its weight."""
    at = cell + tap - (1 if MODE == _CUBIC else 0)
    return at, (at >= 0) & (at < n), _weight(f, tap, MODE)


@triton.jit
def _mix(below, above, f, FINITE: tl.constexpr):
    """Interpolate; the voxel above is not read where its weight is 0, since it may be NaN."""
    mixed = (1 - f) * below + f * above
    return mixed if FINITE else tl.where(f == 0, below, mixed)


@triton.jit
def _row(ptr, f, shift, mask, FINITE: tl.constexpr, ACC: tl.constexpr):
    """Interpolate between two neighbours."""
    below = tl.load(ptr, mask=mask, other=0).to(ACC) - shift
    above = tl.load(ptr + 1, mask=mask, other=0).to(ACC) - shift
    return _mix(below, above, f, FINITE)


@triton.jit
def _linear(ptr, f, shape, shift, mask, AXES: tl.constexpr, ACC: tl.constexpr):
    """Interpolate linearly where all taps are inside; ``ptr`` points to the cells."""
    FINITE: tl.constexpr = not ptr.dtype.element_ty.is_floating()
    low_ptr = ptr + shape[2]
    value = _mix(
        _row(ptr, f[2], shift, mask, FINITE, ACC), _row(low_ptr, f[2], shift, mask, FINITE, ACC),
        f[1], FINITE,
    )  # fmt: skip
    if AXES == 3:
        back = shape[1] * shape[2]
        behind = _mix(
            _row(ptr + back, f[2], shift, mask, FINITE, ACC),
            _row(low_ptr + back, f[2], shift, mask, FINITE, ACC),
            f[1], FINITE,
        )  # fmt: skip
        value = _mix(value, behind, f[0], FINITE)
    return value


@triton.jit
def _checked(
    ptr, cell, f, near, shape, numbers, mask,
    AXES: tl.constexpr, MODE: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Interpolate with a check of every tap; ``ptr`` points to the first voxel of the channel."""
    TAPS: tl.constexpr = 4 if MODE == _CUBIC else 2 if MODE == _LINEAR else 1
    shift, scale, fill = numbers
    total = tl.full(mask.shape, -0.0, ACC)  # to which -0.0 can be added
    reached = mask != mask  # of no voxel yet
    for t0 in range(TAPS if AXES == 3 else 1):
        at0, in0, w0 = _tap(cell[0], f[0], t0, shape[0], MODE)
        if AXES == 2:
            at0, in0, w0 = cell[0], near, f[0] * 0 + 1
        for t1 in range(TAPS):
            at1, in1, w1 = _tap(cell[1], f[1], t1, shape[1], MODE)
            line_ptr = ptr + (at0.to(INDEX) * shape[1] + at1) * shape[2]
            for t2 in tl.static_range(TAPS):
                at2, in2, w2 = _tap(cell[2], f[2], t2, shape[2], MODE)
                weight = w0 * w1 * w2
                inside = near & in0 & in1 & in2 & (weight != 0)
                voxel = tl.load(line_ptr + at2, mask=inside & mask, other=0).to(ACC)
                value = tl.where(inside, (voxel - shift) * scale, fill)
                total = tl.where(weight != 0, total + weight * value, total)
                reached |= inside
    return tl.where(reached, total, fill)


@triton.jit
def _channel(buffer_ptr, normalise, counts, tile, channel, ACC: tl.constexpr):
    """The first voxel of a channel of a tile's volume, its shift and its scale."""
    _, volume, offset, shape, _, _, _, _, _ = tile
    row = volume * counts[1] + channel
    shift = tl.full((1, 1), tl.load(normalise[0] + row), ACC)
    scale = tl.full((1, 1), tl.load(normalise[1] + row), ACC)
    return buffer_ptr + offset + channel * shape[0] * shape[1] * shape[2], shift, scale


@triton.jit
def _store(
    out_ptr, value, first_ptr, shift, scale, counts, size, tile, channel,
    AXES: tl.constexpr, MODE: tl.constexpr, COPIES: tl.constexpr,
    LOW: tl.constexpr, HIGH: tl.constexpr,
):  # fmt: skip
    """Cast the values of a tile and write them; ``first_ptr`` points to the cells."""
    patch, _, _, shape, cell, f, near, target, mask = tile
    if LOW is not None:
        value = to_integer(value, LOW, HIGH, 2.0**52 if value.dtype == tl.float64 else 2.0**23)
        value = value.to(out_ptr.dtype.element_ty)
    elif value.dtype == tl.float64:
        value = cast_from_double(value, out_ptr.dtype.element_ty)
    else:
        value = value.to(out_ptr.dtype.element_ty)
    if COPIES:
        copied = near & (shift == 0) & (scale == 1)
        for axis in tl.static_range(3 - AXES, 3):
            copied = copied & (cell[axis] >= 0) & (cell[axis] < shape[axis])
            if MODE != _NEAREST_UP:
                copied = copied & (f[axis] == 0)
        value = tl.where(copied, tl.load(first_ptr, mask=copied & mask, other=0), value)
    row = (patch * counts[1] + channel) * size[0] * size[1] * size[2]
    tl.store(out_ptr + row + target, value, mask=mask)


@triton.jit
def _sample(
    buffer_ptr, table_ptr, poses, normalise, out_ptr, counts, size, fill: tl.float64,
    AXES: tl.constexpr, MODE: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    COPIES: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    BL: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A program samples one tile of all channels of one patch, unchecked if all taps are inside.

    LOW and HIGH are the limits of an integer output, None for a floating one. COPIES is whether
    voxels that samples fall on are copied, as is exact for integers that no float represents.
    """
    channels = counts[1]
    patch, source, cell, f, near, target, mask = _cells(
        table_ptr, poses, counts, size, AXES, MODE, ACC, INDEX, BL, BK
    )
    volume, offset, shape = source
    filling = tl.full((1, 1), fill, ACC)
    first = (cell[0].to(INDEX) * shape[1] + cell[1]) * shape[2] + cell[2]
    inside = near
    for axis in tl.static_range(3 - AXES, 3):
        last = shape[axis] - (1 if MODE == _LINEAR else 0)
        inside = inside & (cell[axis] >= 0) & (cell[axis] < last)
    tile = (patch, volume, offset, shape, cell, f, near, target, mask)
    if MODE == _LINEAR:
        unchecked = tl.min(tl.min(tl.where(mask, inside.to(tl.int32), 1), 1), 0) != 0
    else:
        unchecked = False
    if unchecked:
        for channel in range(channels):
            ptr, shift, scale = _channel(buffer_ptr, normalise, counts, tile, channel, ACC)
            value = _linear(ptr + first, f, shape, shift, mask, AXES, ACC) * scale
            _store(
                out_ptr, value, ptr + first, shift, scale, counts, size, tile, channel,
                AXES, MODE, COPIES, LOW, HIGH,
            )  # fmt: skip
    else:
        for channel in range(channels):
            ptr, shift, scale = _channel(buffer_ptr, normalise, counts, tile, channel, ACC)
            value = _checked(
                ptr, cell, f, near, shape, (shift, scale, filling), mask, AXES, MODE, ACC, INDEX
            )
            _store(
                out_ptr, value, ptr + first, shift, scale, counts, size, tile, channel,
                AXES, MODE, COPIES, LOW, HIGH,
            )  # fmt: skip


@triton.jit
def _scatter(
    grad_ptr, table_ptr, poses, scale_ptr, sums, counts, size,
    AXES: tl.constexpr, MODE: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BL: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A program adds one tile of all channels of one patch to the voxels it was sampled from."""
    TAPS: tl.constexpr = 4 if MODE == _CUBIC else 2 if MODE == _LINEAR else 1
    channels = counts[1]
    patch, source, cell, f, near, target, mask = _cells(
        table_ptr, poses, counts, size, AXES, MODE, ACC, INDEX, BL, BK
    )
    volume, offset, shape = source
    per_one = units_per_one(sums)
    for channel in range(channels):
        row = (patch * channels + channel) * size[0] * size[1] * size[2]
        grad = tl.load(grad_ptr + row + target, mask=mask & near, other=0).to(ACC)
        grad *= tl.load(scale_ptr + volume * channels + channel).to(ACC)
        first = offset + channel * shape[0] * shape[1] * shape[2]
        for t0 in range(TAPS if AXES == 3 else 1):
            at0, in0, w0 = _tap(cell[0], f[0], t0, shape[0], MODE)
            if AXES == 2:
                at0, in0, w0 = cell[0], near, f[0] * 0 + 1
            for t1 in range(TAPS):
                at1, in1, w1 = _tap(cell[1], f[1], t1, shape[1], MODE)
                line = first + (at0.to(INDEX) * shape[1] + at1) * shape[2]
                for t2 in range(TAPS):
                    at2, in2, w2 = _tap(cell[2], f[2], t2, shape[2], MODE)
                    weight = w0 * w1 * w2
                    inside = mask & near & in0 & in1 & in2 & (weight != 0)
                    atomic_add_fixed(sums, line + at2, grad * weight, inside, per_one)


def _index_dtype(numel: int) -> Any:
    return tl.int32 if numel < 2**31 else tl.int64


def _grid(
    op: str, patches: Tensor, size: Sequence[int]
) -> tuple[tuple[int], tuple[int, ...], dict[str, Any]]:
    """Grid, the three sizes of a patch and its number of tiles, and block sizes."""
    size = three_axes(size)
    chosen, tiles = line_tiles(op, patches, size[0] * size[1], size[2])
    return (patches.shape[0] * tiles,), (*size, tiles), chosen


def _poses(center: Tensor, matrix: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the kernels call poses: where patches are, and in which volume."""
    return center.contiguous(), matrix.contiguous(), given_volumes(index, center).contiguous()


@register("sample_patches")
def sample_patches(
    buffer: Tensor,
    table: Tensor,
    shape: Sequence[int],
    center_vox: Tensor,
    matrix: Tensor,
    volume_index: Tensor,
    shift: Tensor,
    scale: Tensor,
    channels: int,
    size: Sequence[int],
    mode: int,
    fill: float,
    dtype: torch.dtype,
) -> Tensor:
    """See the op; computes in float64 where float32 would lose digits of the source or result."""
    out = torch.empty(len(center_vox), channels, *size, dtype=dtype, device=buffer.device)
    table = full_table(table, shape, channels, buffer.numel())
    if not out.numel() or not len(table):
        return cast(torch.full_like(out, fill, dtype=torch.float64), dtype)
    shift, scale = given_or(0, shift, table, channels), given_or(1, scale, table, channels)
    grid, sizes, chosen = _grid("sample_patches", out, size)
    double = needs_double(buffer.dtype) or needs_double(dtype)
    low, high = integer_limits(dtype)
    _sample[grid](
        as_bytes(buffer), table.contiguous(), _poses(center_vox, matrix, volume_index),
        (shift.contiguous(), scale.contiguous()), as_bytes(out), (len(table), channels), sizes,
        fill, AXES=len(size), MODE=mode, ACC=tl.float64 if double else tl.float32,
        INDEX=_index_dtype(buffer.numel()), COPIES=dtype == buffer.dtype and dtype.itemsize == 8,
        LOW=low, HIGH=high, **chosen,
    )  # fmt: skip
    return out


@register("sample_patches_backward")
def sample_patches_backward(
    grad: Tensor,
    table: Tensor,
    shape: Sequence[int],
    center_vox: Tensor,
    matrix: Tensor,
    volume_index: Tensor,
    scale: Tensor,
    numel: int,
    mode: int,
) -> Tensor:
    """See the op; fixed-point sums do not depend on the order of the patches."""
    channels, size = grad.shape[1], grad.shape[2:]
    table = full_table(table, shape, channels, numel)
    scale = given_or(1, scale, table, channels)
    if not grad.numel() or not scale.numel():
        return grad.new_zeros(numel)
    grad, scale = grad.contiguous(), scale.contiguous()
    sums = FixedPointSums((numel,), len(grad) * size.numel(), grad, scale)
    grid, sizes, chosen = _grid("sample_patches_backward", grad, size)
    _scatter[grid](
        grad, table.contiguous(), _poses(center_vox, matrix, volume_index), scale,
        sums.kernel_args, (len(table), channels), sizes, AXES=len(size), MODE=mode,
        ACC=accumulator(grad.dtype), INDEX=_index_dtype(numel), **chosen,
    )  # fmt: skip
    return sums.to(grad.dtype)
