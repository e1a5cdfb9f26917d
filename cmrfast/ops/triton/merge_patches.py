"""Overlapping patches into a volume: each voxel gathers the patches over it, in their order."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrfast.ops.triton._launch import accumulator, blocks, launches


@triton.jit
def _gather(
    PATCHES, WEIGHT, START, lines, ks, channel, count, channels, size0, size1, size2, n1, n2,
    AXES: tl.constexpr, HAS_WEIGHT: tl.constexpr, ACC: tl.constexpr, BP: tl.constexpr,
    BL: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Weighted sum and sum of weights over the patches at voxels (line, k), both (BL, BK).

    Patches are asked BP at a time whether they meet the tile at all; starts are anything in int64.
    """
    i, j = lines // n1, lines % n1
    low0, high0 = tl.min(i, 0), tl.max(i, 0)
    low2, high2 = tl.min(ks, 0), tl.max(ks, 0)
    low1 = tl.where(low0 == high0, tl.min(j, 0), 0)
    high1 = tl.where(low0 == high0, tl.max(j, 0), n1 - 1)
    total = tl.full((BL, BK), 0, ACC)
    weights = tl.full((BL, BK), 0, ACC)
    for first in range(0, count, BP):
        p = first + tl.arange(0, BP)
        there = p < count
        start = START + p.to(tl.int64) * AXES
        start2 = tl.load(start + AXES - 1, mask=there, other=0)
        start1 = tl.load(start + AXES - 2, mask=there, other=0)
        meets = there & (start2 <= high2) & (start2 > low2 - size2)
        meets = meets & (start1 <= high1) & (start1 > low1 - size1)
        if AXES == 3:
            start0 = tl.load(start, mask=there, other=0)
            meets = meets & (start0 <= high0) & (start0 > low0 - size0)
        if tl.max(meets.to(tl.int32), 0) > 0:
            for patch in range(first, tl.minimum(first + BP, count)):
                chosen = p == patch
                if tl.max((meets & chosen).to(tl.int32), 0) > 0:
                    a2 = ks - tl.sum(tl.where(chosen, start2, 0), 0).to(tl.int32)
                    a1 = j - tl.sum(tl.where(chosen, start1, 0), 0).to(tl.int32)
                    a0 = i * 0
                    if AXES == 3:
                        a0 = i - tl.sum(tl.where(chosen, start0, 0), 0).to(tl.int32)
                    inside = (a0 >= 0) & (a0 < size0) & (a1 >= 0) & (a1 < size1)
                    inside = inside[:, None] & ((a2 >= 0) & (a2 < size2))[None, :]
                    place = (a0.to(tl.int64) * size1 + a1)[:, None] * size2 + a2[None, :]
                    row = (patch * channels + channel) * size0
                    value = tl.load(
                        PATCHES + row * size1 * size2 + place,
                        mask=inside & (channel < channels), other=0,
                    ).to(ACC)  # fmt: skip
                    weight = inside.to(ACC)
                    if HAS_WEIGHT:
                        weight = tl.load(WEIGHT + place, mask=inside, other=0).to(ACC)
                    total += value * weight
                    weights += weight
    return total, weights


@triton.jit
def _tile(n1, n2, rows, BL: tl.constexpr, BK: tl.constexpr):
    """Lines and voxels of this program's tile, where they lie, and which exist."""
    along = (n2 + BK - 1) // BK
    lines = tl.program_id(0) // along * BL + tl.arange(0, BL)
    ks = tl.program_id(0) % along * BK + tl.arange(0, BK)
    at = lines.to(tl.int64)[:, None] * n2 + ks[None, :]
    return lines, ks, at, (lines < rows)[:, None] & (ks < n2)[None, :]


@triton.jit
def _merge(
    PATCHES, WEIGHT, START, OUT, count, channels, size0, size1, size2, n1, n2, rows,
    fill: tl.float64, AXES: tl.constexpr, HAS_WEIGHT: tl.constexpr, ACC: tl.constexpr,
    BP: tl.constexpr, BL: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A program writes one tile of one channel of the volume; patches are read once, no atomics."""
    lines, ks, at, here = _tile(n1, n2, rows, BL, BK)
    channel = tl.full((1, 1), tl.program_id(1), tl.int64)
    total, weights = _gather(
        PATCHES, WEIGHT, START, lines, ks, channel, count, channels, size0, size1, size2, n1, n2,
        AXES, HAS_WEIGHT, ACC, BP, BL, BK,
    )  # fmt: skip
    empty = tl.full((1, 1), fill, ACC)
    mean = tl.where(weights > 0, total / tl.where(weights > 0, weights, 1), empty)
    tl.store(OUT + channel * rows * n2 + at, mean.to(OUT.dtype.element_ty), mask=here)


@triton.jit
def _add(
    PATCHES, WEIGHT, START, SUMS, TOTALS, count, channels, size0, size1, size2, n1, n2, rows,
    AXES: tl.constexpr, HAS_WEIGHT: tl.constexpr, ACC: tl.constexpr,
    BP: tl.constexpr, BL: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """As ``_merge``, added to running sums; the programs of the first channel add the weights."""
    lines, ks, at, here = _tile(n1, n2, rows, BL, BK)
    channel = tl.full((1, 1), tl.program_id(1), tl.int64)
    total, weights = _gather(
        PATCHES, WEIGHT, START, lines, ks, channel, count, channels, size0, size1, size2, n1, n2,
        AXES, HAS_WEIGHT, ACC, BP, BL, BK,
    )  # fmt: skip
    sums = SUMS + channel * rows * n2 + at
    own = here & (channel < channels)
    tl.store(sums, tl.load(sums, mask=own, other=0) + total, mask=own)
    own = here & (channel == 0)
    tl.store(TOTALS + at, tl.load(TOTALS + at, mask=own, other=0) + weights, mask=own)


def _arguments(
    op: str, patches: Tensor, start_vox: Tensor, weight: Tensor | None, shape: Sequence[int]
) -> tuple[tuple[int, int], list[Any], list[int], dict[str, Any]]:
    """Grid, tensors, sizes and block sizes of either kernel."""
    size = [1] * (5 - patches.dim()) + list(patches.shape[2:])
    n0, n1, n2 = [1] * (3 - len(shape)) + list(shape)
    chosen = dict(blocks(op, patches))
    tile = chosen.pop("tile")
    chosen["BK"] = min(triton.next_power_of_2(n2), tile)
    chosen["BL"] = tile // chosen["BK"]
    tiles = triton.cdiv(n0 * n1, chosen["BL"]) * triton.cdiv(n2, chosen["BK"])
    chosen |= {"AXES": len(shape), "HAS_WEIGHT": weight is not None}
    patches = patches.contiguous()
    tensors = [patches, patches if weight is None else weight.contiguous(), start_vox.contiguous()]
    sizes = [len(patches), patches.shape[1], *size, n1, n2, n0 * n1]
    return (tiles, max(patches.shape[1], 1)), tensors, sizes, chosen


@launches("merge_patches")
def merge_patches(
    patches: Tensor, start_vox: Tensor, weight: Tensor | None, shape: Sequence[int], fill: float
) -> Tensor:
    """See the op."""
    out = torch.empty(patches.shape[1], *shape, dtype=patches.dtype, device=patches.device)
    if out.numel():
        grid, tensors, sizes, chosen = _arguments(
            "merge_patches", patches, start_vox, weight, shape
        )
        _merge[grid](*tensors, out, *sizes, fill, ACC=accumulator(patches.dtype), **chosen)
    return out


@launches("merge_add")
def merge_add(
    sums: Tensor, totals: Tensor, patches: Tensor, start_vox: Tensor, weight: Tensor | None
) -> None:
    """See the op; each voxel is one program's, so that the volumes change in place."""
    if totals.numel():
        grid, tensors, sizes, chosen = _arguments(
            "merge_patches", patches, start_vox, weight, totals.shape
        )
        _add[grid](*tensors, sums, totals, *sizes, ACC=accumulator(totals.dtype), **chosen)
