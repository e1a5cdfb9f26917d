"""Affine sampling and its gradients, without a grid in memory.

Positions are in double and rounded as the reference rounds them (no fused multiply-add): on a tie
or at the border both take the same voxel.
"""

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
from cmrfast.ops.triton._launch import accumulator, blocks, launches, narrowed, row_sums

LINEAR, NEAREST_EVEN, HOLD_HALF = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_WHOLE = tl.constexpr(2.0**52)  # from here on every double is an integer
_AS_ROUNDED = {"enable_fp_fusion": False}


@triton.jit
def _position(MATRIX, i, j, k, axis: tl.constexpr, AXES: tl.constexpr):
    """Input position along one axis of output voxels."""
    row = MATRIX + (axis - (3 - AXES)) * (AXES + 1)
    where = tl.load(row + AXES)
    if AXES == 3:
        where = where + tl.load(row) * i
    return (where + tl.load(row + AXES - 2) * j) + tl.load(row + AXES - 1) * k


@triton.jit
def _cell(where, n, MODE: tl.constexpr, BORDER: tl.constexpr, INDEX: tl.constexpr):
    """Of positions on one axis: the voxel below, its and the next one's insideness, the fraction,
    whether it moves with the position, and whether the position counts at all."""
    last = tl.full((1,), n - 1, tl.float64)
    counts = (where == where) | (where != where)
    moves = counts
    if BORDER == HOLD_HALF:
        counts = (where >= -0.5) & (where < last + 0.5)
    if BORDER != 0:
        moves = (where > 0) & (where < last)
        where = tl.where((where > 0) & (where < float("inf")), tl.minimum(where, last), 0)
    if MODE == LINEAR:
        whole = tl.floor(where)
    elif MODE == NEAREST_EVEN:
        size = tl.abs(where)
        size = tl.where(size < _WHOLE, (size + _WHOLE) - _WHOLE, size)
        whole = tl.where(where < 0, -size, size)
    else:
        whole = tl.floor(where + 0.5)
    below, above = (whole >= 0) & (whole <= last), (whole >= -1) & (whole <= last - 1)
    fraction = tl.where(below | above, where - whole, 0)
    index = tl.where(below | above, whole, 0).to(INDEX)
    return index, below, above, fraction, moves, counts


@triton.jit
def _cells(
    MATRIX, image, at, n0, n1, n2, size1, size2,
    AXES: tl.constexpr, MODE: tl.constexpr, BORDER: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """The cells of all three axes (the first of two axes is one voxel thick), and (i, j, k)."""
    matrix = MATRIX + image * AXES * (AXES + 1)
    line = at // size2
    k = (at % size2).to(tl.float64)
    j = (line % size1).to(tl.float64)
    i = (line // size1).to(tl.float64)
    i0, below0, above0, f0, moves0, counts = _cell(i * 0, n0, LINEAR, 0, INDEX)
    if AXES == 3:
        i0, below0, above0, f0, moves0, counts = _cell(
            _position(matrix, i, j, k, 0, AXES), n0, MODE, BORDER, INDEX
        )
    i1, below1, above1, f1, moves1, counts1 = _cell(
        _position(matrix, i, j, k, 1, AXES), n1, MODE, BORDER, INDEX
    )
    i2, below2, above2, f2, moves2, counts2 = _cell(
        _position(matrix, i, j, k, 2, AXES), n2, MODE, BORDER, INDEX
    )
    below = (below0, below1, below2)
    above = (above0, above1, above2)
    flat = (i0 * n1 + i1) * n2 + i2
    counts = counts & counts1 & counts2
    return flat, below, above, (f0, f1, f2), (moves0, moves1, moves2), counts, (i, j, k)


@triton.jit
def _corner(
    flat, below, above, fraction, counts, n1, n2,
    a0: tl.constexpr, a1: tl.constexpr, a2: tl.constexpr, MODE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Place in the volume, whether inside, and the shares of a corner along each axis."""
    inside = counts & (above[0] if a0 else below[0])
    inside = inside & (above[1] if a1 else below[1]) & (above[2] if a2 else below[2])
    share0 = fraction[0].to(ACC)
    share1 = fraction[1].to(ACC)
    share2 = fraction[2].to(ACC)
    share0 = share0 if a0 else 1 - share0
    share1 = share1 if a1 else 1 - share1
    share2 = share2 if a2 else 1 - share2
    return flat + (a0 * n1 + a1) * n2 + a2, inside, share0, share1, share2


@triton.jit
def _sample(
    IMAGES, MATRIX, OUT, channels, n0, n1, n2, size1, size2, numel, tiles,
    fill: tl.float64,
    AXES: tl.constexpr, MODE: tl.constexpr, BORDER: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program samples BLOCK voxels of all channels of one image; positions are found once."""
    image = (tl.program_id(0) // tiles).to(tl.int64)
    at = (tl.program_id(0) % tiles).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    flat, below, above, fraction, _, counts, _ = _cells(
        MATRIX, image, at, n0, n1, n2, size1, size2, AXES, MODE, BORDER, INDEX
    )
    held = counts if BORDER == HOLD_HALF else counts & below[0] & below[1] & below[2]
    for channel in range(channels):
        row = image * channels + channel
        volume = IMAGES + row * n0 * n1 * n2
        if MODE == LINEAR:
            value = tl.full((BLOCK,), 0, ACC)
            for a0 in tl.static_range(AXES - 1):
                for a1 in tl.static_range(2):
                    for a2 in tl.static_range(2):
                        place, inside, s0, s1, s2 = _corner(
                            flat, below, above, fraction, counts, n1, n2, a0, a1, a2, MODE, ACC
                        )
                        corner = tl.load(volume + place, mask=inside & (at < numel), other=0)
                        value += corner.to(ACC) * (s0 * s1 * s2)
            if BORDER == HOLD_HALF:
                value = tl.where(held, value, tl.full((1,), fill, ACC))
        else:
            value = tl.load(volume + flat, mask=held & (at < numel), other=0)
            beyond = narrowed(tl.full((1,), fill, tl.float64), value.dtype)
            value = tl.where(held, value, beyond)
        out = OUT + row * numel + at
        tl.store(out, value.to(OUT.dtype.element_ty), mask=at < numel)


@triton.jit
def _gradients(
    GRAD, IMAGES, MATRIX, BOUND, SUMS, PARTS, channels, n0, n1, n2, size1, size2, numel, tiles,
    terms_log2, AXES: tl.constexpr, MODE: tl.constexpr, BORDER: tl.constexpr,
    FOR_IMAGES: tl.constexpr, FOR_MATRIX: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program takes BLOCK output voxels, all channels.

    It adds their share to the voxels they came from, in whole units, and stores the sums over the
    block of each slope times (i, j, k, 1), to be added up in order by a second kernel.
    """
    image = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    at = tile.to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    here = at < numel
    flat, below, above, fraction, moves, counts, output = _cells(
        MATRIX, image, at, n0, n1, n2, size1, size2, AXES, MODE, BORDER, INDEX
    )
    if FOR_IMAGES:
        per_unit = power_of_two(-unit_exponent(BOUND, terms_log2))
    slope0 = tl.full((BLOCK,), 0, ACC)
    slope1 = tl.full((BLOCK,), 0, ACC)
    slope2 = tl.full((BLOCK,), 0, ACC)
    for channel in range(channels):
        row = image * channels + channel
        first = row * n0 * n1 * n2
        grad = tl.load(GRAD + row * numel + at, mask=here, other=0).to(ACC)
        for a0 in tl.static_range(AXES - 1 if MODE == LINEAR else 1):
            for a1 in tl.static_range(2 if MODE == LINEAR else 1):
                for a2 in tl.static_range(2 if MODE == LINEAR else 1):
                    place, inside, s0, s1, s2 = _corner(
                        flat, below, above, fraction, counts, n1, n2, a0, a1, a2, MODE, ACC
                    )
                    inside = inside & here
                    if FOR_IMAGES:
                        share = grad * (s0 * s1 * s2) if MODE == LINEAR else grad
                        add_fixed(SUMS, first + place, share, inside, per_unit)
                    if FOR_MATRIX and MODE == LINEAR:
                        value = tl.load(IMAGES + first + place, mask=inside, other=0).to(ACC)
                        pull = value * grad
                        slope0 += pull * s1 * s2 * (2 * a0 - 1)
                        slope1 += pull * s0 * s2 * (2 * a1 - 1)
                        slope2 += pull * s0 * s1 * (2 * a2 - 1)
    if FOR_MATRIX and MODE == LINEAR:
        slopes = (slope0, slope1, slope2)
        for axis in tl.static_range(3 - AXES, 3):
            slope = tl.where(moves[axis] & here, slopes[axis], 0).to(tl.float64)
            entry = PARTS + (image * AXES + axis - (3 - AXES)) * (AXES + 1) * tiles + tile
            for column in tl.static_range(3 - AXES, 3):
                total = tl.sum(slope * output[column], 0)
                tl.store(entry + (column - (3 - AXES)) * tiles, total)
            tl.store(entry + AXES * tiles, tl.sum(slope, 0))


def _space(values: Tensor, size: Sequence[int]) -> tuple[list[int], list[int], Any]:
    """Three axes of the images and of the output, and Triton's type for places within them."""
    shape = [1] * (5 - values.dim()) + list(values.shape[2:])
    size = [1] * (3 - len(size)) + list(size)
    largest = max(torch.Size(shape).numel(), torch.Size(size).numel())
    return shape, size, tl.int64 if largest >= 2**30 else tl.int32


@launches("affine_sample")
def affine_sample(
    images: Tensor, matrix: Tensor, size: Sequence[int], mode: int, border: int, fill: float
) -> Tensor:
    """See the op."""
    images, matrix = images.contiguous(), matrix.contiguous()
    (batch, channels), axes = images.shape[:2], len(size)
    out = torch.empty(batch, channels, *size, dtype=images.dtype, device=images.device)
    if not out.numel():
        return out
    shape, size, index = _space(images, size)
    numel, chosen = torch.Size(size).numel(), blocks("affine_sample", images) | _AS_ROUNDED
    tiles = triton.cdiv(numel, chosen["BLOCK"])
    _sample[(batch * tiles,)](
        images, matrix, out, channels, *shape, *size[1:], numel, tiles, fill, AXES=axes, MODE=mode,
        BORDER=border, ACC=accumulator(images.dtype), INDEX=index, **chosen,
    )  # fmt: skip
    return out


@launches("affine_sample_backward")
def affine_sample_backward(
    grad: Tensor,
    images: Tensor,
    matrix: Tensor,
    mode: int,
    border: int,
    for_images: bool,
    for_matrix: bool,
) -> tuple[Tensor, Tensor]:
    """See the op; one pass over the output for both gradients."""
    grad, images, matrix = grad.contiguous(), images.contiguous(), matrix.contiguous()
    (batch, channels), axes = images.shape[:2], images.dim() - 2
    device = images.device
    sums = torch.zeros(images.shape if for_images else (0,), dtype=torch.int64, device=device)
    if not grad.numel():
        return sums.to(images.dtype), torch.zeros_like(matrix)
    shape, size, index = _space(images, grad.shape[2:])
    numel = torch.Size(size).numel()
    chosen = blocks("affine_sample_backward", images) | _AS_ROUNDED
    tiles, terms_log2 = triton.cdiv(numel, chosen["BLOCK"]), numel.bit_length()
    bound = bound_of(grad)
    sloped = for_matrix and mode == 0
    parts = torch.empty(matrix.numel() if sloped else 0, tiles, dtype=torch.float64, device=device)
    _gradients[(batch * tiles,)](
        grad, images, matrix, bound, sums, parts, channels, *shape, *size[1:], numel, tiles,
        terms_log2, AXES=axes, MODE=mode, BORDER=border, FOR_IMAGES=for_images, FOR_MATRIX=sloped,
        ACC=accumulator(images.dtype), INDEX=index, **chosen,
    )  # fmt: skip
    to_images = to_float(sums, bound, terms_log2, images.dtype)
    if not sloped:
        return to_images, torch.zeros_like(matrix)
    return to_images, row_sums(parts, matrix.dtype).view(matrix.shape)
