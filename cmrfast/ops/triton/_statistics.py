"""Mean, SD, minimum and maximum of each row of values: of its tiles first, then of all in order."""

import triton
import triton.language as tl
from torch import Tensor

from cmrfast.ops.triton._launch import FMA

_MERGED = 256  # parts at a time


@triton.jit
def load_statistics(stats_ptr, row):
    """Mean, SD, minimum and maximum of a channel."""
    at = stats_ptr + row * 4
    return tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3)


@triton.jit
def measure(x, parts_ptr, mask, row, tile, tiles, rows, count):
    """Store mean, squares about it, minimum and maximum of a tile of ``count`` values."""
    at = parts_ptr + (row * tiles + tile)
    size = rows * tiles
    mean = tl.sum(tl.where(mask, x, 0), 0) / count
    away = tl.where(mask, x - mean, 0)
    tl.store(at, mean)
    tl.store(at + size, tl.sum(away * away, 0))
    tl.store(at + 2 * size, tl.min(tl.where(mask, x, float("inf")), 0))
    tl.store(at + 3 * size, tl.max(tl.where(mask, x, -float("inf")), 0))


@triton.jit
def _merge(
    parts_ptr, stats_ptr, numel, tiles, rows: tl.int64, TILE: tl.constexpr, BLOCK: tl.constexpr
):
    """The statistics of one channel from those of its tiles, in float64."""
    row = tl.program_id(0).to(tl.int64)
    size = rows * tiles
    total, squares = tl.full((BLOCK,), 0, tl.float64), tl.full((BLOCK,), 0, tl.float64)
    low = tl.full((BLOCK,), float("inf"), tl.float64)
    high = -low
    for first in range(0, tiles, BLOCK):
        tile = first + tl.arange(0, BLOCK)
        mask = tile < tiles
        count = tl.minimum(numel - tile.to(tl.int64) * TILE, TILE).to(tl.float64)
        at = parts_ptr + row * tiles + tile
        total += tl.load(at, mask=mask, other=0).to(tl.float64) * tl.where(mask, count, 0)
        low = tl.minimum(low, tl.load(at + 2 * size, mask=mask, other=float("inf")).to(tl.float64))
        high = tl.maximum(
            high, tl.load(at + 3 * size, mask=mask, other=-float("inf")).to(tl.float64)
        )
    mean = tl.sum(total, 0) / numel
    for first in range(0, tiles, BLOCK):
        tile = first + tl.arange(0, BLOCK)
        mask = tile < tiles
        count = tl.minimum(numel - tile.to(tl.int64) * TILE, TILE).to(tl.float64)
        at = parts_ptr + row * tiles + tile
        away = tl.load(at, mask=mask, other=0).to(tl.float64) - mean
        squares += tl.load(at + size, mask=mask, other=0).to(tl.float64)
        squares += tl.where(mask, count * away * away, 0)
    to = stats_ptr + row * 4
    tl.store(to, mean.to(stats_ptr.dtype.element_ty))
    tl.store(to + 1, tl.sqrt(tl.sum(squares, 0) / numel).to(stats_ptr.dtype.element_ty))
    tl.store(to + 2, tl.min(low, 0).to(stats_ptr.dtype.element_ty))
    tl.store(to + 3, tl.max(high, 0).to(stats_ptr.dtype.element_ty))


def merge(parts: Tensor, numel: int, tile: int) -> Tensor:
    """(R, 4) statistics of rows of ``numel`` values, from those of their tiles, (4, R, tiles)."""
    _, rows, tiles = parts.shape
    stats = parts.new_empty(rows, 4)
    _merge[(rows,)](parts, stats, numel, tiles, rows, TILE=tile, BLOCK=_MERGED, **FMA)
    return stats
