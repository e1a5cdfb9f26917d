"""Patches out of volumes in one pass, and their gradient back by sums that have no order."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrfast.ops.triton._fixed_point import (
    add_fixed,
    bound_of,
    power_of_two,
    to_float,
    unit_exponent,
)
from cmrfast.ops.triton._launch import blocks, launches

_WIDE = (torch.float64, torch.int32, torch.int64)


@triton.jit
def _axis(
    TABLE, START, FLIPS, patch, volume, legal, offset, size,
    axis: tl.constexpr, AXES: tl.constexpr, FLIP: tl.constexpr,
):  # fmt: skip
    """Where on one axis of its volume a patch has these offsets, whether inside, and its length.

    Axes count from the last, 0; of two, the third has length one. No volume: nothing is inside.
    """
    at = offset
    n = volume * 0 + 1
    if axis < AXES:
        column = AXES - 1 - axis
        if FLIP:
            mirrored = tl.load(FLIPS + patch * AXES + column) != 0
            at = tl.where(mirrored, size - 1 - offset, offset)
        at += tl.load(START + patch * AXES + column)
        n = tl.load(TABLE + volume * (AXES + 1) + 1 + column, mask=legal, other=0)
    return at, (at >= 0) & (at < n), n


@triton.jit
def _place(
    TABLE, START, INDEX, FLIPS, patch, channel, tile, volumes, channels, size0, size1, size2,
    AXES: tl.constexpr, FLIP: tl.constexpr, BL: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A tile of BL lines x BK voxels of a patch: place in buffer and patches, inside, the volume.

    Index arithmetic is int64 throughout: starts may be anything up to 2^62.
    """
    along = (size2 + BK - 1) // BK
    line = tile // along * BL + tl.arange(0, BL)[:, None]
    k = tile % along * BK + tl.arange(0, BK)[None, :]
    volume = tl.load(INDEX + patch)
    legal = (volume >= 0) & (volume < volumes)
    volume = tl.where(legal, volume, 0)
    at0, in0, _ = _axis(
        TABLE, START, FLIPS, patch, volume, legal, line // size1, size0, 2, AXES, FLIP
    )
    at1, in1, n1 = _axis(
        TABLE, START, FLIPS, patch, volume, legal, line % size1, size1, 1, AXES, FLIP
    )
    at2, in2, n2 = _axis(TABLE, START, FLIPS, patch, volume, legal, k, size2, 0, AXES, FLIP)
    n0 = 1
    if AXES == 3:
        n0 = tl.load(TABLE + volume * 4 + 1, mask=legal, other=0)
    base = tl.load(TABLE + volume * (AXES + 1), mask=legal, other=0)
    source = base + ((channel * n0 + at0) * n1 + at1) * n2 + at2
    there = (line < size0 * size1) & (k < size2)
    target = ((patch * channels + channel) * size0 * size1 + line) * size2 + k
    return source, target, there & in0 & in1 & in2, there, volume, legal


@triton.jit
def _to_integer(values, LOW: tl.constexpr, HIGH: tl.constexpr, EXACT: tl.constexpr):
    """Round half to even and saturate; NaN becomes 0. From EXACT on, floats are whole."""
    size = tl.abs(values)
    size = tl.where(size < EXACT, (size + EXACT) - EXACT, size)
    rounded = tl.where(values < 0, -size, size)
    high, low = rounded >= HIGH, rounded <= LOW
    whole = tl.where(high | low | (values != values), 0, rounded).to(tl.int64)
    return tl.where(high, HIGH, tl.where(low, LOW, whole))


@triton.jit
def _extract(
    BUFFER, TABLE, START, INDEX, FLIPS, SHIFT, SCALE, OUT, volumes, channels, size0, size1, size2,
    tiles, fill: tl.float64, AXES: tl.constexpr, FLIP: tl.constexpr, REAL: tl.constexpr,
    SAME: tl.constexpr, INTEGER: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    EXACT: tl.constexpr, BL: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A program writes one tile of one channel of one patch; reads each source voxel once."""
    program = tl.program_id(0).to(tl.int64)
    row = program // tiles
    patch, channel = row // channels, row % channels
    source, target, inside, there, volume, legal = _place(
        TABLE, START, INDEX, FLIPS, patch, channel, program % tiles, volumes, channels,
        size0, size1, size2, AXES, FLIP, BL, BK,
    )  # fmt: skip
    at = volume * channels + channel
    minus = tl.full((1, 1), tl.load(SHIFT + at, mask=legal, other=0), REAL)
    times = tl.full((1, 1), tl.load(SCALE + at, mask=legal, other=1), REAL)
    stored = tl.load(BUFFER + source, mask=inside, other=0)
    values = tl.where(inside, (stored.to(REAL) - minus) * times, tl.full((1, 1), fill, REAL))
    if INTEGER:
        values = _to_integer(values, LOW, HIGH, EXACT)
    values = values.to(OUT.dtype.element_ty)
    if SAME:  # also integers that no float holds
        values = tl.where(inside & (minus == 0) & (times == 1), stored, values)
    tl.store(OUT + target, values, mask=there)


@triton.jit
def _add_back(
    GRAD, TABLE, START, INDEX, FLIPS, SCALE, BOUND, SUMS, volumes, channels, size0, size1, size2,
    tiles, terms_log2, AXES: tl.constexpr, FLIP: tl.constexpr, REAL: tl.constexpr,
    BL: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A program adds one tile of one channel of one patch to the volume it came from."""
    program = tl.program_id(0).to(tl.int64)
    row = program // tiles
    patch, channel = row // channels, row % channels
    source, target, inside, _, volume, legal = _place(
        TABLE, START, INDEX, FLIPS, patch, channel, program % tiles, volumes, channels,
        size0, size1, size2, AXES, FLIP, BL, BK,
    )  # fmt: skip
    times = tl.load(SCALE + volume * channels + channel, mask=legal, other=0).to(REAL)
    values = tl.load(GRAD + target, mask=inside, other=0).to(REAL) * times
    add_fixed(SUMS, source, values, inside, power_of_two(-unit_exponent(BOUND, terms_log2)))


def _grid(
    op: str, values: Tensor, start: Tensor, channels: int, size: Sequence[int]
) -> tuple[tuple[int], list[int], dict[str, Any]]:
    """Grid, sizes of the patch with three axes and its tiles, and block sizes."""
    chosen = dict(blocks(op, values))
    size = [1] * (3 - len(size)) + list(size)
    tile, lines = chosen.pop("tile"), size[0] * size[1]
    chosen["BK"] = min(triton.next_power_of_2(size[2]), tile)
    chosen["BL"] = tile // chosen["BK"]
    tiles = triton.cdiv(lines, chosen["BL"]) * triton.cdiv(size[2], chosen["BK"])
    return (len(start) * channels * tiles,), [*size, tiles], chosen


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8) if x.dtype == torch.bool else x.contiguous()


@launches("extract_patches")
def extract_patches(
    buffer: Tensor,
    table: Tensor,
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
    """See the op; computes in double where a float would lose digits of the source or result."""
    out = torch.empty(len(start_vox), channels, *size, dtype=dtype, device=buffer.device)
    if not out.numel():
        return out
    grid, sizes, chosen = _grid("extract_patches", out, start_vox, channels, size)
    double = buffer.dtype in _WIDE or dtype in _WIDE
    integer = not dtype.is_floating_point
    limits = torch.iinfo(dtype) if integer and dtype != torch.bool else None
    _extract[grid](
        _bytes(buffer), table.contiguous(), start_vox.contiguous(), volume_index.contiguous(),
        _bytes(flips), shift.contiguous(), scale.contiguous(), _bytes(out), len(table), channels,
        *sizes, fill, AXES=len(size), FLIP=flips.numel() > 0,
        REAL=tl.float64 if double else tl.float32, SAME=dtype == buffer.dtype, INTEGER=integer,
        LOW=limits.min if limits else 0, HIGH=limits.max if limits else 1,
        EXACT=2.0**52 if double else 2.0**23, **chosen,
    )  # fmt: skip
    return out


@launches("extract_patches_backward")
def extract_patches_backward(
    grad: Tensor,
    table: Tensor,
    start_vox: Tensor,
    volume_index: Tensor,
    flips: Tensor,
    scale: Tensor,
    numel: int,
) -> Tensor:
    """See the op; patches add up in whole units, so that their order does not matter."""
    channels, size = grad.shape[1], grad.shape[2:]
    sums = torch.zeros(numel, dtype=torch.int64, device=grad.device)
    if not grad.numel() or not scale.numel():
        return sums.to(grad.dtype)
    grad, scale = grad.contiguous(), scale.contiguous()
    bound, terms_log2 = bound_of(grad, scale), len(start_vox).bit_length()
    grid, sizes, chosen = _grid("extract_patches_backward", grad, start_vox, channels, size)
    _add_back[grid](
        grad, table.contiguous(), start_vox.contiguous(), volume_index.contiguous(),
        _bytes(flips), scale, bound, sums, len(table), channels, *sizes, terms_log2,
        AXES=len(size), FLIP=flips.numel() > 0,
        REAL=tl.float64 if grad.dtype == torch.float64 else tl.float32, **chosen,
    )  # fmt: skip
    return to_float(sums, bound, terms_log2, grad.dtype)
