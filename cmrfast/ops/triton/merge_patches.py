"""Overlapping patches into a volume: each voxel gathers the patches that cover it, in order."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrfast.ops.triton._launch import accumulator, line_tiles, register, three_axes


@triton.jit
def _gather(
    patches_ptr, weight_ptr, start_ptr, lines, ks, channel, counts, size, shape,
    AXES: tl.constexpr, ACC: tl.constexpr, BP: tl.constexpr, BL: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Weighted sum, and sum of weights, of the patches over voxels (line, k), both (BL, BK).

    BP patches at a time are tested for overlap with the tile; starts may be any int64.
    """
    count, channels = counts
    size0, size1, size2 = size
    n1 = shape[0]
    i, j = lines // n1, lines % n1
    low0, high0 = tl.min(i, 0), tl.max(i, 0)
    low2, high2 = tl.min(ks, 0), tl.max(ks, 0)
    low1 = tl.where(low0 == high0, tl.min(j, 0), 0)
    high1 = tl.where(low0 == high0, tl.max(j, 0), n1 - 1)
    total = tl.full((BL, BK), 0, ACC)
    weights = tl.full((BL, BK), 0, ACC)
    for first in range(0, count, BP):
        p = first + tl.arange(0, BP)
        mask = p < count
        row_ptr = start_ptr + p.to(tl.int64) * AXES
        start2 = tl.load(row_ptr + AXES - 1, mask=mask, other=0)
        start1 = tl.load(row_ptr + AXES - 2, mask=mask, other=0)
        overlaps = mask & (start2 <= high2) & (start2 > low2 - size2)
        overlaps = overlaps & (start1 <= high1) & (start1 > low1 - size1)
        if AXES == 3:
            start0 = tl.load(row_ptr, mask=mask, other=0)
            overlaps = overlaps & (start0 <= high0) & (start0 > low0 - size0)
        if tl.max(overlaps.to(tl.int32), 0) > 0:
            for patch in range(first, tl.minimum(first + BP, count)):
                this = p == patch
                if tl.max((overlaps & this).to(tl.int32), 0) > 0:
                    o2 = ks - tl.sum(tl.where(this, start2, 0), 0).to(tl.int32)
                    o1 = j - tl.sum(tl.where(this, start1, 0), 0).to(tl.int32)
                    o0 = i * 0
                    if AXES == 3:
                        o0 = i - tl.sum(tl.where(this, start0, 0), 0).to(tl.int32)
                    inside = (o0 >= 0) & (o0 < size0) & (o1 >= 0) & (o1 < size1)
                    inside = inside[:, None] & ((o2 >= 0) & (o2 < size2))[None, :]
                    offsets = (o0.to(tl.int64) * size1 + o1)[:, None] * size2 + o2[None, :]
                    row = (patch * channels + channel) * size0
                    value = tl.load(
                        patches_ptr + row * size1 * size2 + offsets,
                        mask=inside & (channel < channels), other=0,
                    ).to(ACC)  # fmt: skip
                    weight = inside.to(ACC)
                    if weight_ptr is not None:
                        weight = tl.load(weight_ptr + offsets, mask=inside, other=0).to(ACC)
                    total += value * weight
                    weights += weight
    return total, weights


@triton.jit
def _merge(
    patches_ptr, weight_ptr, start_ptr, out_ptr, totals_ptr, counts, size, shape,
    fill: tl.float64,
    AXES: tl.constexpr, ACC: tl.constexpr, BP: tl.constexpr, BL: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A program owns one tile of one channel of the volume; patches are read once, no atomics.

    It writes the mean or, with ``totals_ptr``, adds to running sums; the programs of the first
    channel then add the weights.
    """
    _, n2, rows = shape
    tiles_per_line = (n2 + BK - 1) // BK
    lines = tl.program_id(0) // tiles_per_line * BL + tl.arange(0, BL)
    ks = tl.program_id(0) % tiles_per_line * BK + tl.arange(0, BK)
    offsets = lines.to(tl.int64)[:, None] * n2 + ks[None, :]
    mask = (lines < rows)[:, None] & (ks < n2)[None, :]
    channel = tl.full((1, 1), tl.program_id(1), tl.int64)
    total, weights = _gather(
        patches_ptr, weight_ptr, start_ptr, lines, ks, channel, counts, size, shape,
        AXES, ACC, BP, BL, BK,
    )  # fmt: skip
    out_ptr = out_ptr + channel * rows * n2 + offsets
    if totals_ptr is None:
        empty = tl.full((1, 1), fill, ACC)
        mean = tl.where(weights > 0, total / tl.where(weights > 0, weights, 1), empty)
        tl.store(out_ptr, mean.to(out_ptr.dtype.element_ty), mask=mask)
    else:
        own = mask & (channel < counts[1])
        tl.store(out_ptr, tl.load(out_ptr, mask=own, other=0) + total, mask=own)
        totals_ptr = totals_ptr + offsets
        own = mask & (channel == 0)
        tl.store(totals_ptr, tl.load(totals_ptr, mask=own, other=0) + weights, mask=own)


def _launch(
    patches: Tensor,
    start_vox: Tensor,
    weight: Tensor | None,
    out: Tensor,
    totals: Tensor | None,
    shape: Sequence[int],
    fill: float,
) -> None:
    n0, n1, n2 = three_axes(shape)
    channels = patches.shape[1]
    chosen: dict[str, Any]
    chosen, tiles = line_tiles("merge_patches", patches, n0 * n1, n2)
    _merge[(tiles, max(channels, 1))](
        patches.contiguous(), None if weight is None else weight.contiguous(),
        start_vox.contiguous(), out, totals, (len(patches), channels),
        tuple(three_axes(patches.shape[2:])), (n1, n2, n0 * n1), fill, AXES=len(shape),
        ACC=accumulator(patches.dtype), **chosen,
    )  # fmt: skip


@register("merge_patches")
def merge_patches(
    patches: Tensor, start_vox: Tensor, weight: Tensor | None, shape: Sequence[int], fill: float
) -> Tensor:
    """See the op."""
    out = torch.empty(patches.shape[1], *shape, dtype=patches.dtype, device=patches.device)
    if out.numel():
        _launch(patches, start_vox, weight, out, None, shape, fill)
    return out


@register("merge_add")
def merge_add(
    sums: Tensor, totals: Tensor, patches: Tensor, start_vox: Tensor, weight: Tensor | None
) -> None:
    """See the op; each voxel belongs to one program, so adding in place needs no atomics."""
    if totals.numel():
        _launch(patches, start_vox, weight, sums, totals, totals.shape, 0.0)
