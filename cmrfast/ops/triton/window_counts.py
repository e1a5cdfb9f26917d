"""Counts of windows from a summed-area table, made where the mask lies in a ragged buffer."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrfast.ops.triton._launch import FUSED, blocks, launches, processors


@triton.jit
def _scan(
    MASK, SUMS, TABLE, volumes, AXIS: tl.constexpr, AXES: tl.constexpr,
    BT: tl.constexpr, BQ: tl.constexpr,
):  # fmt: skip
    """Running sums along one axis of every volume, in place; the first axis reads the mask.

    The volumes' shapes are known on the device alone, so every program walks through all volumes
    and takes its share of the lines, BQ lines at a time, in tiles of BT voxels.
    """
    for volume in range(volumes):
        row = TABLE + volume * (AXES + 1)
        first, n2 = tl.load(row), tl.load(row + AXES)
        n1 = tl.load(row + AXES - 1)
        n0 = first * 0 + 1
        if AXES == 3:
            n0 = tl.load(row + 1)
        if AXIS == 2:
            n, inner = n2, first * 0 + 1
        elif AXIS == 1:
            n, inner = n1, n2
        else:
            n, inner = n0, n1 * n2
        lines = n0 * n1 * n2 // tl.maximum(n, 1)
        for at in range(tl.program_id(0) * BQ, lines, tl.num_programs(0) * BQ):
            line = at + tl.arange(0, BQ)[None, :]
            line_first = first + line // inner * n * inner + line % inner
            carried = tl.full((1, BQ), 0, tl.int64)
            for start in range(0, n, BT):
                t = start + tl.arange(0, BT)[:, None]
                here = (t < n) & (line < lines)
                place = line_first + t * inner
                if AXIS == 2:
                    values = tl.load(MASK + place, mask=here, other=0).to(tl.int64)
                else:
                    values = tl.load(SUMS + place, mask=here, other=0).to(tl.int64)
                sums = tl.cumsum(values, 0) + carried
                tl.store(SUMS + place, sums.to(SUMS.dtype.element_ty), mask=here)
                carried += tl.sum(values, 0)[None, :]


@triton.jit
def _bounds(START, row, size, n, there):
    """The window's first voxel on an axis, and the one past its last, within 0 to n."""
    start = tl.load(START + row, mask=there, other=0)
    low = tl.minimum(tl.maximum(start, 0), n)
    return low, tl.minimum(tl.maximum(start + size, 0), n)


@triton.jit
def _count(
    SUMS, TABLE, START, INDEX, OUT, count, volumes, size0, size1, size2,
    AXES: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """A program counts BP windows, from the corners of each in its volume's table."""
    p = tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP)
    volume = tl.load(INDEX + p, mask=p < count, other=-1)
    there = (volume >= 0) & (volume < volumes)
    row = TABLE + tl.where(there, volume, 0) * (AXES + 1)
    first = tl.load(row, mask=there, other=0)
    n1 = tl.load(row + AXES - 1, mask=there, other=0)
    n2 = tl.load(row + AXES, mask=there, other=0)
    low1, high1 = _bounds(START, p * AXES + AXES - 2, size1, n1, there)
    low2, high2 = _bounds(START, p * AXES + AXES - 1, size2, n2, there)
    low0, high0 = p * 0, p * 0 + 1
    if AXES == 3:
        n0 = tl.load(row + 1, mask=there, other=0)
        low0, high0 = _bounds(START, p * AXES, size0, n0, there)
    total = p * 0
    for corner in tl.static_range(8):  # a table entry sums all voxels up to its own
        end0 = high0 if corner & 4 else low0
        end1 = high1 if corner & 2 else low1
        end2 = high2 if corner & 1 else low2
        place = first + ((end0 - 1) * n1 + end1 - 1) * n2 + end2 - 1
        some = there & (end0 > 0) & (end1 > 0) & (end2 > 0)
        sums = tl.load(SUMS + place, mask=some, other=0).to(tl.int64)
        negative = (3 - (corner & 1) - (corner >> 1 & 1) - (corner >> 2)) & 1
        total += -sums if negative else sums
    tl.store(OUT + p, total, mask=p < count)


@launches("window_counts")
def window_counts(
    mask: Tensor, table: Tensor, start_vox: Tensor, volume_index: Tensor, size: Sequence[int]
) -> Tensor:
    """See the op; whole numbers, exact in any order."""
    axes, count = len(size), len(start_vox)
    out = torch.empty(count, dtype=torch.int64, device=mask.device)
    if not count or not mask.numel():
        return out.zero_()
    mask, table = mask.contiguous().view(torch.uint8), table.contiguous()
    size = [1] * (3 - axes) + list(size)
    kind = torch.int32 if mask.numel() < 2**31 else torch.int64
    sums = torch.empty(mask.numel(), dtype=kind, device=mask.device)
    chosen = dict(blocks("window_counts", mask))
    windows = chosen.pop("BP")
    for axis in range(2, 2 - axes, -1):
        _scan[(8 * processors(mask.device),)](
            mask, sums, table, len(table), AXIS=axis, AXES=axes, **chosen
        )
    _count[(triton.cdiv(count, windows),)](
        sums, table, start_vox.contiguous(), volume_index.contiguous(), out, count, len(table),
        *size, AXES=axes, BP=windows, **FUSED,
    )  # fmt: skip
    return out
