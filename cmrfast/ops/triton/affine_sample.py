"""Affine sampling and its gradients, without a grid in memory.

Positions are float64 and rounded as in the reference, without fused multiply-adds: on a tie or at
the border both then take the same voxel.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrfast.ops.affine_sample import CLAMP_HALF, EDGES, LINEAR, NEAREST_EVEN, VOXELS, ZEROS
from cmrfast.ops.triton._fixed_point import FixedPointSums, atomic_add_fixed, units_per_one
from cmrfast.ops.triton._launch import (
    NO_FMA,
    accumulator,
    block_sizes,
    cast_from_double,
    register,
    row_sums,
    three_axes,
)

_LINEAR, _NEAREST_EVEN = tl.constexpr(LINEAR), tl.constexpr(NEAREST_EVEN)
_ZEROS, _CLAMP_HALF = tl.constexpr(ZEROS), tl.constexpr(CLAMP_HALF)
_VOXELS, _EDGES = tl.constexpr(VOXELS), tl.constexpr(EDGES)
_INTEGERS_FROM = tl.constexpr(2.0**52)  # from here on every float64 is an integer


@triton.jit
def _frame(n, size, FRAME: tl.constexpr):
    """Along an axis, output voxel o is at start + step * o, and x is input voxel middle + half * x.

    Returns start, step, half, middle.
    """
    n, size = tl.full((1,), n, tl.float64), tl.full((1,), size, tl.float64)
    zero = n * 0
    start, step, half, middle = zero, zero + 1, zero + 1, zero
    if FRAME == _EDGES:
        start, step, half, middle = 1 / size - 1, 2 / size, n * 0.5, (n - 1) * 0.5
    elif FRAME != _VOXELS:  # the only voxel of an axis of size one is at its centre
        start = tl.where(size > 1, -1.0, zero)
        step = tl.where(size > 1, 2 / tl.maximum(size - 1, 1.0), zero)
        half = (n - 1) * 0.5
        middle = half
    return start, step, half, middle


@triton.jit
def _entry_index(axis: tl.constexpr, column: tl.constexpr, FRAME: tl.constexpr, AXES: tl.constexpr):
    """Where an entry of a matrix is, for an axis of three and one of them or 3, the offset."""
    row, across = axis - (3 - AXES), column - (3 - AXES)
    if FRAME != _VOXELS:
        row, across = 2 - axis, (2 - column if column < 3 else AXES)
    return row * (AXES + 1) + across


@triton.jit
def _entry(
    matrix_ptr, shape, size, axis: tl.constexpr, column: tl.constexpr,
    FRAME: tl.constexpr, AXES: tl.constexpr,
):  # fmt: skip
    """An entry of the matrix from output voxels to input voxels."""
    zero = tl.full((1,), 0, tl.float64)
    entry = zero + tl.load(matrix_ptr + _entry_index(axis, column, FRAME, AXES))
    if FRAME != _VOXELS:
        _, _, half, middle = _frame(shape[axis], size[axis], FRAME)
        if column < 3:
            _, step, _, _ = _frame(shape[column], size[column], FRAME)
            entry = entry * step * half
        else:
            base = zero
            for c in tl.static_range(3 - AXES, 3):
                start, _, _, _ = _frame(shape[c], size[c], FRAME)
                base += tl.load(matrix_ptr + _entry_index(axis, c, FRAME, AXES)) * start
            entry = (base + entry) * half + middle
    return entry


@triton.jit
def _position(
    matrix_ptr, shape, size, i, j, k, axis: tl.constexpr, FRAME: tl.constexpr, AXES: tl.constexpr
):
    """The input position of output voxels along one axis."""
    x = _entry(matrix_ptr, shape, size, axis, 3, FRAME, AXES)
    if AXES == 3:
        x = x + _entry(matrix_ptr, shape, size, axis, 0, FRAME, AXES) * i
    x = x + _entry(matrix_ptr, shape, size, axis, 1, FRAME, AXES) * j
    return x + _entry(matrix_ptr, shape, size, axis, 2, FRAME, AXES) * k


@triton.jit
def _cell(x, n, MODE: tl.constexpr, BORDER: tl.constexpr, INDEX: tl.constexpr):
    """The voxel below each position along one axis, and the fraction beyond it.

    Returns its index, whether it and the next voxel are inside, the fraction, whether the position
    was not clamped (then the sample has a slope along the axis), and whether it is sampled at all.
    """
    last = tl.full((1,), n - 1, tl.float64)
    valid = (x == x) | (x != x)
    unclamped = valid
    if BORDER == _CLAMP_HALF:
        valid = (x >= -0.5) & (x < last + 0.5)
    if BORDER != _ZEROS:
        unclamped = (x > 0) & (x < last)
        x = tl.where((x > 0) & (x < float("inf")), tl.minimum(x, last), 0)
    if MODE == _LINEAR:
        cell = tl.floor(x)
    elif MODE == _NEAREST_EVEN:
        rounded = tl.abs(x)
        rounded = tl.where(
            rounded < _INTEGERS_FROM, (rounded + _INTEGERS_FROM) - _INTEGERS_FROM, rounded
        )
        cell = tl.where(x < 0, -rounded, rounded)
    else:
        cell = tl.floor(x + 0.5)
    below, above = (cell >= 0) & (cell <= last), (cell >= -1) & (cell <= last - 1)
    fraction = tl.where(below | above, x - cell, 0)
    index = tl.where(below | above, cell, 0).to(INDEX)
    return index, below, above, fraction, unclamped, valid


@triton.jit
def cells(
    matrix_ptr, offsets, shape, size, FRAME: tl.constexpr,
    AXES: tl.constexpr, MODE: tl.constexpr, BORDER: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """The cells along all three axes (of two axes, the first is one voxel), and (i, j, k)."""
    line = offsets // size[2]
    k = (offsets % size[2]).to(tl.float64)
    j = (line % size[1]).to(tl.float64)
    i = (line // size[1]).to(tl.float64)
    i0, below0, above0, f0, unclamped0, valid = _cell(i * 0, shape[0], _LINEAR, _ZEROS, INDEX)
    if AXES == 3:
        i0, below0, above0, f0, unclamped0, valid = _cell(
            _position(matrix_ptr, shape, size, i, j, k, 0, FRAME, AXES),
            shape[0], MODE, BORDER, INDEX,
        )  # fmt: skip
    i1, below1, above1, f1, unclamped1, valid1 = _cell(
        _position(matrix_ptr, shape, size, i, j, k, 1, FRAME, AXES),
        shape[1], MODE, BORDER, INDEX,
    )  # fmt: skip
    i2, below2, above2, f2, unclamped2, valid2 = _cell(
        _position(matrix_ptr, shape, size, i, j, k, 2, FRAME, AXES),
        shape[2], MODE, BORDER, INDEX,
    )  # fmt: skip
    below = (below0, below1, below2)
    above = (above0, above1, above2)
    index = (i0 * shape[1] + i1) * shape[2] + i2
    valid = valid & valid1 & valid2
    return index, below, above, (f0, f1, f2), (unclamped0, unclamped1, unclamped2), valid, (i, j, k)


@triton.jit
def corner(
    index, below, above, fraction, valid, shape,
    a0: tl.constexpr, a1: tl.constexpr, a2: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Index of a corner of the cell, whether it is inside, and its weights along each axis."""
    inside = valid & (above[0] if a0 else below[0])
    inside = inside & (above[1] if a1 else below[1]) & (above[2] if a2 else below[2])
    w0 = fraction[0].to(ACC)
    w1 = fraction[1].to(ACC)
    w2 = fraction[2].to(ACC)
    w0 = w0 if a0 else 1 - w0
    w1 = w1 if a1 else 1 - w1
    w2 = w2 if a2 else 1 - w2
    return index + (a0 * shape[1] + a1) * shape[2] + a2, inside, w0, w1, w2


@triton.jit
def _sample(
    images_ptr, matrix_ptr, out_ptr, channels, shape, size, tiling, fill: tl.float64,
    FRAME: tl.constexpr, AXES: tl.constexpr, MODE: tl.constexpr, BORDER: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program samples BLOCK voxels of all channels of one image at the same positions."""
    numel, tiles, sharing = tiling
    image = (tl.program_id(0) // tiles).to(tl.int64)
    offsets = (tl.program_id(0) % tiles).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < numel
    index, below, above, fraction, _, valid, _ = cells(
        matrix_ptr + image // sharing * AXES * (AXES + 1), offsets, shape, size,
        FRAME, AXES, MODE, BORDER, INDEX,
    )  # fmt: skip
    sampled = valid if BORDER == _CLAMP_HALF else valid & below[0] & below[1] & below[2]
    for channel in range(channels):
        row = image * channels + channel
        volume_ptr = images_ptr + row * shape[0] * shape[1] * shape[2]
        if MODE == _LINEAR:
            value = tl.full((BLOCK,), 0, ACC)
            for a0 in tl.static_range(AXES - 1):
                for a1 in tl.static_range(2):
                    for a2 in tl.static_range(2):
                        at, inside, w0, w1, w2 = corner(
                            index, below, above, fraction, valid, shape, a0, a1, a2, ACC
                        )
                        voxel = tl.load(volume_ptr + at, mask=inside & mask, other=0)
                        value += voxel.to(ACC) * (w0 * w1 * w2)
            if BORDER == _CLAMP_HALF:
                value = tl.where(sampled, value, tl.full((1,), fill, ACC))
        else:
            value = tl.load(volume_ptr + index, mask=sampled & mask, other=0)
            outside = cast_from_double(tl.full((1,), fill, tl.float64), value.dtype)
            value = tl.where(sampled, value, outside)
        tl.store(out_ptr + row * numel + offsets, value.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gradients(
    grad_ptr, images_ptr, matrix_ptr, sums, partial_ptr, channels, shape, size, tiling,
    FRAME: tl.constexpr, AXES: tl.constexpr, MODE: tl.constexpr, BORDER: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program takes BLOCK output voxels of all channels.

    It adds their gradients to the voxels that they were interpolated from, in fixed point, and
    stores the sums over the block of each slope times the output position, which ``row_sums`` adds
    up in order. ``sums`` is None without a gradient of the images, ``partial_ptr`` without one of
    the matrix.
    """
    numel, tiles, sharing = tiling
    image = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    offsets = tile.to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < numel
    index, below, above, fraction, unclamped, valid, voxel = cells(
        matrix_ptr + image // sharing * AXES * (AXES + 1), offsets, shape, size,
        FRAME, AXES, MODE, BORDER, INDEX,
    )  # fmt: skip
    if sums is not None:
        per_one = units_per_one(sums)
    slope0 = tl.full((BLOCK,), 0, ACC)
    slope1 = tl.full((BLOCK,), 0, ACC)
    slope2 = tl.full((BLOCK,), 0, ACC)
    for channel in range(channels):
        row = image * channels + channel
        first = row * shape[0] * shape[1] * shape[2]
        grad = tl.load(grad_ptr + row * numel + offsets, mask=mask, other=0).to(ACC)
        for a0 in tl.static_range(AXES - 1 if MODE == _LINEAR else 1):
            for a1 in tl.static_range(2 if MODE == _LINEAR else 1):
                for a2 in tl.static_range(2 if MODE == _LINEAR else 1):
                    at, inside, w0, w1, w2 = corner(
                        index, below, above, fraction, valid, shape, a0, a1, a2, ACC
                    )
                    inside = inside & mask
                    if sums is not None:
                        grad_voxel = grad * (w0 * w1 * w2) if MODE == _LINEAR else grad
                        atomic_add_fixed(sums, first + at, grad_voxel, inside, per_one)
                    if partial_ptr is not None:
                        value = tl.load(images_ptr + first + at, mask=inside, other=0).to(ACC)
                        product = value * grad
                        slope0 += product * w1 * w2 * (2 * a0 - 1)
                        slope1 += product * w0 * w2 * (2 * a1 - 1)
                        slope2 += product * w0 * w1 * (2 * a2 - 1)
    if partial_ptr is not None:
        slopes = (slope0, slope1, slope2)
        for axis in tl.static_range(3 - AXES, 3):
            _, _, half, _ = _frame(shape[axis], size[axis], FRAME)
            slope = tl.where(unclamped[axis] & mask, slopes[axis], 0).to(tl.float64) * half
            for column in tl.static_range(3 - AXES, 4):
                product = slope
                if column < 3:
                    start, step, _, _ = _frame(shape[column], size[column], FRAME)
                    product = slope * (start + step * voxel[column])
                entry = image // sharing * AXES * (AXES + 1)
                entry += _entry_index(axis, column, FRAME, AXES)
                row = entry * sharing + image % sharing
                tl.store(partial_ptr + row * tiles + tile, tl.sum(product, 0))


def _geometry(
    images: Tensor, matrix: Tensor, size: Sequence[int], block: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, int, int], Any]:
    """Sizes of the images and the output; voxels, tiles, images a matrix; and an index dtype."""
    shape, size = three_axes(images.shape[2:]), three_axes(size)
    numel = torch.Size(size).numel()
    index = tl.int64 if max(torch.Size(shape).numel(), numel) >= 2**30 else tl.int32
    tiling = numel, triton.cdiv(numel, block), len(images) // max(len(matrix), 1)
    return tuple(shape), tuple(size), tiling, index


@register("affine_sample")
def affine_sample(
    images: Tensor,
    matrix: Tensor,
    size: Sequence[int],
    frame: int,
    mode: int,
    border: int,
    fill: float,
) -> Tensor:
    """See the op."""
    images, matrix = images.contiguous(), matrix.contiguous()
    (batch, channels), axes = images.shape[:2], len(size)
    out = torch.empty(batch, channels, *size, dtype=images.dtype, device=images.device)
    if not out.numel():
        return out
    chosen = block_sizes("affine_sample", images) | NO_FMA
    shape, size, tiling, index = _geometry(images, matrix, size, chosen["BLOCK"])
    _sample[(batch * tiling[1],)](
        images, matrix, out, channels, shape, size, tiling, fill, FRAME=frame, AXES=axes, MODE=mode,
        BORDER=border, ACC=accumulator(images.dtype), INDEX=index, **chosen,
    )  # fmt: skip
    return out


@register("affine_sample_backward")
def affine_sample_backward(
    grad: Tensor,
    images: Tensor,
    matrix: Tensor,
    frame: int,
    mode: int,
    border: int,
    for_images: bool,
    for_matrix: bool,
) -> tuple[Tensor, Tensor]:
    """See the op; both gradients in one pass over the output."""
    grad, images, matrix = grad.contiguous(), images.contiguous(), matrix.contiguous()
    (batch, channels), axes = images.shape[:2], images.dim() - 2
    grad_images = images.new_zeros(images.shape if for_images else (0,))
    if not grad.numel():
        return grad_images, torch.zeros_like(matrix)
    chosen = block_sizes("affine_sample_backward", images) | NO_FMA
    shape, size, tiling, index = _geometry(images, matrix, grad.shape[2:], chosen["BLOCK"])
    numel, tiles, sharing = tiling
    sums = FixedPointSums(images.shape, numel, grad) if for_images else None
    partial = None
    if for_matrix and mode == LINEAR:
        rows = (matrix.numel(), sharing * tiles)
        partial = torch.empty(rows, dtype=torch.float64, device=images.device)
    _gradients[(batch * tiles,)](
        grad, images, matrix, sums and sums.kernel_args, partial, channels, shape, size, tiling,
        FRAME=frame, AXES=axes, MODE=mode, BORDER=border, ACC=accumulator(images.dtype),
        INDEX=index, **chosen,
    )  # fmt: skip
    grad_images = grad_images if sums is None else sums.to(images.dtype)
    if partial is None:
        return grad_images, torch.zeros_like(matrix)
    return grad_images, row_sums(partial, matrix.dtype).view(matrix.shape)
