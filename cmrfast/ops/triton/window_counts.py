"""Counts of windows from a summed-area table of the packed masks."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrfast.ops.extract_patches import given_volumes
from cmrfast.ops.triton._launch import (
    FMA,
    as_bytes,
    block_sizes,
    multiprocessors,
    register,
    three_axes,
)
from cmrfast.ops.volume_store import full_table


@triton.jit
def _scan(
    mask_ptr, sums_ptr, table_ptr, volumes, AXIS: tl.constexpr, AXES: tl.constexpr,
    BT: tl.constexpr, BQ: tl.constexpr,
):  # fmt: skip
    """Cumulative sums along one axis of every volume, in place; the last axis reads the mask.

    The volumes' shapes are in device memory, so every program walks through all volumes and takes
    some of their lines, BQ lines at a time, in tiles of BT voxels.
    """
    for volume in range(volumes):
        row_ptr = table_ptr + volume * (AXES + 1)
        first, n2 = tl.load(row_ptr), tl.load(row_ptr + AXES)
        n1 = tl.load(row_ptr + AXES - 1)
        n0 = first * 0 + 1
        if AXES == 3:
            n0 = tl.load(row_ptr + 1)
        if AXIS == 2:
            n, inner = n2, first * 0 + 1
        elif AXIS == 1:
            n, inner = n1, n2
        else:
            n, inner = n0, n1 * n2
        lines = n0 * n1 * n2 // tl.maximum(n, 1)
        for first_line in range(tl.program_id(0) * BQ, lines, tl.num_programs(0) * BQ):
            line = first_line + tl.arange(0, BQ)[None, :]
            line_start = first + line // inner * n * inner + line % inner
            carry = tl.full((1, BQ), 0, tl.int64)
            for start in range(0, n, BT):
                t = start + tl.arange(0, BT)[:, None]
                mask = (t < n) & (line < lines)
                offsets = line_start + t * inner
                if AXIS == 2:
                    x = tl.load(mask_ptr + offsets, mask=mask, other=0).to(tl.int64)
                else:
                    x = tl.load(sums_ptr + offsets, mask=mask, other=0).to(tl.int64)
                sums = tl.cumsum(x, 0) + carry
                tl.store(sums_ptr + offsets, sums.to(sums_ptr.dtype.element_ty), mask=mask)
                carry += tl.sum(x, 0)[None, :]


@triton.jit
def _bounds(start_ptr, offset, size, n, mask):
    """The first voxel of a window along an axis, and the end, clamped to 0 to n."""
    start = tl.load(start_ptr + offset, mask=mask, other=0)
    low = tl.minimum(tl.maximum(start, 0), n)
    return low, tl.minimum(tl.maximum(start + size, 0), n)


@triton.jit
def _count(
    sums_ptr, table_ptr, start_ptr, index_ptr, out_ptr, count, volumes, size,
    AXES: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """A program counts BP windows, from the corners of each in the table of its volume."""
    p = tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP)
    volume = tl.load(index_ptr + p, mask=p < count, other=-1)
    valid = (volume >= 0) & (volume < volumes)
    row_ptr = table_ptr + tl.where(valid, volume, 0) * (AXES + 1)
    first = tl.load(row_ptr, mask=valid, other=0)
    n1 = tl.load(row_ptr + AXES - 1, mask=valid, other=0)
    n2 = tl.load(row_ptr + AXES, mask=valid, other=0)
    low1, high1 = _bounds(start_ptr, p * AXES + AXES - 2, size[1], n1, valid)
    low2, high2 = _bounds(start_ptr, p * AXES + AXES - 1, size[2], n2, valid)
    low0, high0 = p * 0, p * 0 + 1
    if AXES == 3:
        n0 = tl.load(row_ptr + 1, mask=valid, other=0)
        low0, high0 = _bounds(start_ptr, p * AXES, size[0], n0, valid)
    total = p * 0
    for corner in tl.static_range(8):  # an entry of the table sums all voxels up to its own
        end0 = high0 if corner & 4 else low0
        end1 = high1 if corner & 2 else low1
        end2 = high2 if corner & 1 else low2
        offsets = first + ((end0 - 1) * n1 + end1 - 1) * n2 + end2 - 1
        mask = valid & (end0 > 0) & (end1 > 0) & (end2 > 0)
        sums = tl.load(sums_ptr + offsets, mask=mask, other=0).to(tl.int64)
        negative = (3 - (corner & 1) - (corner >> 1 & 1) - (corner >> 2)) & 1
        total += -sums if negative else sums
    tl.store(out_ptr + p, total, mask=p < count)


@register("window_counts")
def window_counts(
    mask: Tensor,
    table: Tensor,
    shape: Sequence[int],
    start_vox: Tensor,
    volume_index: Tensor,
    size: Sequence[int],
) -> Tensor:
    """See the op; sums of integers are exact in any order."""
    axes, count = len(size), len(start_vox)
    out = torch.empty(count, dtype=torch.int64, device=mask.device)
    if not count or not mask.numel():
        return out.zero_()
    table = full_table(table, shape, 1, mask.numel()).contiguous()
    mask, volume_index = as_bytes(mask), given_volumes(volume_index, start_vox)
    dtype = torch.int32 if mask.numel() < 2**31 else torch.int64
    sums = torch.empty(mask.numel(), dtype=dtype, device=mask.device)
    chosen = dict(block_sizes("window_counts", mask))
    windows = chosen.pop("BP")
    for axis in range(2, 2 - axes, -1):
        _scan[(8 * multiprocessors(mask.device),)](
            mask, sums, table, len(table), AXIS=axis, AXES=axes, **chosen
        )
    _count[(triton.cdiv(count, windows),)](
        sums, table, start_vox.contiguous(), volume_index.contiguous(), out, count, len(table),
        tuple(three_axes(size)), AXES=axes, BP=windows, **FMA,
    )  # fmt: skip
    return out
