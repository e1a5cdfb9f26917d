"""Patches out of volumes in one pass, and their gradient, as atomic sums in fixed point."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrfast.ops.extract_patches import given_or, given_volumes, needs_double
from cmrfast.ops.triton._fixed_point import FixedPointSums, atomic_add_fixed, units_per_one
from cmrfast.ops.triton._launch import accumulator, as_bytes, line_tiles, register, three_axes
from cmrfast.ops.volume_store import full_table

_LARGEST = tl.constexpr(2**63 - 1)


@triton.jit
def _axis(
    table_ptr, windows, patch, volume, valid, offset, size, axis: tl.constexpr, AXES: tl.constexpr
):
    """Where in the volume offsets in a patch are, whether inside, and the volume's size.

    Axes are counted from the last, 0; in 2-D, the third has size one. Without a valid volume
    nothing is inside.
    """
    start_ptr, _, flips_ptr = windows
    at = offset
    n = volume * 0 + 1
    if axis < AXES:
        column = AXES - 1 - axis
        if flips_ptr is not None:
            flip = tl.load(flips_ptr + patch * AXES + column) != 0
            at = tl.where(flip, size - 1 - offset, offset)
        at += tl.load(start_ptr + patch * AXES + column)
        n = tl.load(table_ptr + volume * (AXES + 1) + 1 + column, mask=valid, other=0)
    return at, (at >= 0) & (at < n), n


@triton.jit
def _locate(
    table_ptr, windows, counts, size, AXES: tl.constexpr, BL: tl.constexpr, BK: tl.constexpr
):
    """The tile of a program: BL lines x BK voxels of one channel of one patch.

    Returns offsets in the buffer and in the patches, which voxels are inside and which exist, the
    index of the volume's channel, and whether there is such a volume. Indices are int64, since
    starts may be as large as 2^62.
    """
    volumes, channels = counts
    size0, size1, size2, tiles = size
    program = tl.program_id(0).to(tl.int64)
    tile, row = program % tiles, program // tiles
    patch, channel = row // channels, row % channels
    tiles_per_line = (size2 + BK - 1) // BK
    line = tile // tiles_per_line * BL + tl.arange(0, BL)[:, None]
    k = tile % tiles_per_line * BK + tl.arange(0, BK)[None, :]
    volume = tl.load(windows[1] + patch)
    valid = (volume >= 0) & (volume < volumes)
    volume = tl.where(valid, volume, 0)
    at0, in0, _ = _axis(table_ptr, windows, patch, volume, valid, line // size1, size0, 2, AXES)
    at1, in1, n1 = _axis(table_ptr, windows, patch, volume, valid, line % size1, size1, 1, AXES)
    at2, in2, n2 = _axis(table_ptr, windows, patch, volume, valid, k, size2, 0, AXES)
    n0 = 1
    if AXES == 3:
        n0 = tl.load(table_ptr + volume * 4 + 1, mask=valid, other=0)
    base = tl.load(table_ptr + volume * (AXES + 1), mask=valid, other=0)
    source = base + ((channel * n0 + at0) * n1 + at1) * n2 + at2
    mask = (line < size0 * size1) & (k < size2)
    target = ((patch * channels + channel) * size0 * size1 + line) * size2 + k
    return source, target, mask & in0 & in1 & in2, mask, volume * channels + channel, valid


@triton.jit
def to_integer(x, LOW: tl.constexpr, HIGH: tl.constexpr, INTEGERS_FROM: tl.constexpr):
    """Round half to even and saturate; NaN becomes 0. Floats from INTEGERS_FROM on are integers.

    Those of uint64 are returned as the int64 of the same bits.
    """
    rounded = tl.abs(x)
    rounded = tl.where(rounded < INTEGERS_FROM, (rounded + INTEGERS_FROM) - INTEGERS_FROM, rounded)
    rounded = tl.where(x < 0, -rounded, rounded)
    high, low = rounded >= HIGH * 1.0, rounded <= LOW * 1.0
    rounded = tl.where(high | low | (x != x), 0, rounded)
    if HIGH > _LARGEST:
        upper = rounded >= 2.0**63
        integer = tl.where(upper, rounded - 2.0**63, rounded).to(tl.int64)
        return tl.where(high, -1, tl.where(upper, integer - _LARGEST - 1, integer))
    return tl.where(high, HIGH, tl.where(low, LOW, rounded.to(tl.int64)))


@triton.jit
def _extract(
    buffer_ptr, table_ptr, windows, normalise, out_ptr, counts, size, fill: tl.float64,
    AXES: tl.constexpr, ACC: tl.constexpr, SAME: tl.constexpr,
    LOW: tl.constexpr, HIGH: tl.constexpr, BL: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A program writes one tile of one channel of one patch and reads each source voxel once.

    LOW and HIGH are the limits of an integer output, None for a floating one; SAME is whether the
    output has the buffer's dtype.
    """
    source, target, inside, mask, channel, valid = _locate(
        table_ptr, windows, counts, size, AXES, BL, BK
    )
    shift_ptr, scale_ptr = normalise
    shift = tl.full((1, 1), tl.load(shift_ptr + channel, mask=valid, other=0), ACC)
    scale = tl.full((1, 1), tl.load(scale_ptr + channel, mask=valid, other=1), ACC)
    stored = tl.load(buffer_ptr + source, mask=inside, other=0)
    x = tl.where(inside, (stored.to(ACC) - shift) * scale, tl.full((1, 1), fill, ACC))
    if LOW is not None:
        x = to_integer(x, LOW, HIGH, 2.0**52 if tl.float64 == ACC else 2.0**23)
    x = x.to(out_ptr.dtype.element_ty)
    if SAME:  # a copy is exact, also for integers that no float represents
        x = tl.where(inside & (shift == 0) & (scale == 1), stored, x)
    tl.store(out_ptr + target, x, mask=mask)


@triton.jit
def _add_gradient(
    grad_ptr, table_ptr, windows, scale_ptr, sums, counts, size,
    AXES: tl.constexpr, ACC: tl.constexpr, BL: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A program adds one tile of one channel of one patch to the volume that it was cut from."""
    source, target, inside, _, channel, valid = _locate(
        table_ptr, windows, counts, size, AXES, BL, BK
    )
    scale = tl.load(scale_ptr + channel, mask=valid, other=0).to(ACC)
    grad = tl.load(grad_ptr + target, mask=inside, other=0).to(ACC) * scale
    atomic_add_fixed(sums, source, grad, inside, units_per_one(sums))


def _grid(
    op: str, patches: Tensor, size: Sequence[int]
) -> tuple[tuple[int], tuple[int, ...], dict[str, Any]]:
    """Grid, the three sizes of a patch and its number of tiles, and block sizes."""
    size = three_axes(size)
    chosen, tiles = line_tiles(op, patches, size[0] * size[1], size[2])
    return (patches.shape[0] * patches.shape[1] * tiles,), (*size, tiles), chosen


def _windows(start_vox: Tensor, volume_index: Tensor, flips: Tensor) -> tuple[Any, ...]:
    """What ``_axis`` calls windows: starts, volumes, and flips or None."""
    flipped = as_bytes(flips) if flips.numel() else None
    return start_vox.contiguous(), given_volumes(volume_index, start_vox).contiguous(), flipped


def integer_limits(dtype: torch.dtype) -> tuple[int | None, int | None]:
    """The least and the greatest value of an integer dtype or bool, None for a floating one."""
    if dtype.is_floating_point:
        return None, None
    return (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)


@register("extract_patches")
def extract_patches(
    buffer: Tensor,
    table: Tensor,
    shape: Sequence[int],
    start_vox: Tensor,
    volume_index: Tensor,
    flips: Tensor,
    shift: Tensor,
    scale: Tensor,
    channels: int,
    size: Sequence[int],
    fill: float,
    dtype: torch.dtype,
) -> Tensor:
    """See the op; computes in float64 where float32 would lose digits of the source or result."""
    out = torch.empty(len(start_vox), channels, *size, dtype=dtype, device=buffer.device)
    windows = start_vox, volume_index, flips
    extract_patches_into(buffer, table, shape, *windows, shift, scale, fill, out)
    return out


@register("extract_patches_into")
def extract_patches_into(
    buffer: Tensor,
    table: Tensor,
    shape: Sequence[int],
    start_vox: Tensor,
    volume_index: Tensor,
    flips: Tensor,
    shift: Tensor,
    scale: Tensor,
    fill: float,
    out: Tensor,
) -> None:
    """See the op."""
    if not out.numel():
        return
    channels, size = out.shape[1], out.shape[2:]
    table = full_table(table, shape, channels, buffer.numel())
    shift, scale = given_or(0, shift, table, channels), given_or(1, scale, table, channels)
    grid, sizes, chosen = _grid("extract_patches", out, size)
    double = needs_double(buffer.dtype) or needs_double(out.dtype)
    low, high = integer_limits(out.dtype)
    _extract[grid](
        as_bytes(buffer), table.contiguous(), _windows(start_vox, volume_index, flips),
        (shift.contiguous(), scale.contiguous()), as_bytes(out), (len(table), channels), sizes,
        fill, AXES=len(size), ACC=tl.float64 if double else tl.float32,
        SAME=out.dtype == buffer.dtype, LOW=low, HIGH=high, **chosen,
    )  # fmt: skip


@register("extract_patches_backward")
def extract_patches_backward(
    grad: Tensor,
    table: Tensor,
    shape: Sequence[int],
    start_vox: Tensor,
    volume_index: Tensor,
    flips: Tensor,
    scale: Tensor,
    numel: int,
) -> Tensor:
    """See the op; fixed-point sums do not depend on the order of the patches."""
    channels, size = grad.shape[1], grad.shape[2:]
    table = full_table(table, shape, channels, numel)
    scale = given_or(1, scale, table, channels)
    if not grad.numel() or not scale.numel():
        return grad.new_zeros(numel)
    grad, scale = grad.contiguous(), scale.contiguous()
    sums = FixedPointSums((numel,), len(start_vox), grad, scale)
    grid, sizes, chosen = _grid("extract_patches_backward", grad, size)
    _add_gradient[grid](
        grad, table.contiguous(), _windows(start_vox, volume_index, flips), scale,
        sums.kernel_args, (len(table), channels), sizes, AXES=len(size),
        ACC=accumulator(grad.dtype), **chosen,
    )  # fmt: skip
    return sums.to(grad.dtype)
