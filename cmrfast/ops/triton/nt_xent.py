"""NT-Xent: the loss and its gradients from tiles of the similarity matrix, none of them kept.

Rows enter the products as given but for a power of two, so that halves lose nothing; their lengths
divide afterwards. Tiles run in fixed order, splits of a long row are joined in fixed order.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrfast.ops.nt_xent import nt_xent_op
from cmrfast.ops.triton._launch import (
    INTERPRETED,
    accumulator,
    blocks,
    launches,
    processors,
    wide,
)

_LOG2E = 1.4426950408889634
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _load(X, rows, count, d, D):
    """Rows of X from its columns d, zeros beyond its ends."""
    at = rows.to(tl.int64)[:, None] * D + d[None, :]
    return tl.load(X + at, mask=(rows < count)[:, None] & (d < D)[None, :], other=0)


@triton.jit
def _dot(a, b, sums, PRECISION: tl.constexpr):
    if INTERPRETED and a.dtype == tl.bfloat16:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision=PRECISION, out_dtype=sums.dtype)


@triton.jit
def _products(
    own, X, rows, n, Y, others, m, D, zero,
    BD: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Dot products of rows of X with rows of Y; ``own`` are X's, where one chunk holds them."""
    sums = zero
    if WHOLE:
        y = _load(Y, others, m, tl.arange(0, BD), D)
        return _dot(own, tl.trans(y), zero, PRECISION)
    sums = zero
    for first in range(0, D, BD):
        d = first + tl.arange(0, BD)
        y = _load(Y, others, m, d, D)
        sums = _dot(_load(X, rows, n, d, D), tl.trans(y), sums, PRECISION)
    return sums


@triton.jit
def _scale(X, Y, INVERSE, BACK, count, D, ACC: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr):
    """Rows times the power of two that brings their largest entry near 1; one over their length.

    BACK leads a gradient back from the unit row: 1 / length of the row as given, 0 for zero rows.
    """
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    largest = tl.full((BR,), 0, ACC)
    for first in range(0, D, BD):
        x = _load(X, rows, count, first + tl.arange(0, BD), D).to(ACC)
        largest = tl.maximum(largest, tl.max(tl.abs(x), 1))
    if tl.float64 == ACC:
        exponent = largest.to(tl.int64, bitcast=True) >> 52
        power = (tl.maximum(2046 - exponent, 1) << 52).to(ACC, bitcast=True)
    else:
        exponent = largest.to(tl.int32, bitcast=True) >> 23
        power = (tl.maximum(254 - exponent, 1) << 23).to(ACC, bitcast=True)
    squares = tl.full((BR,), 0, ACC)
    for first in range(0, D, BD):
        d = first + tl.arange(0, BD)
        y = _load(X, rows, count, d, D).to(ACC) * power[:, None]
        squares += tl.sum(y * y, 1)
        at = rows.to(tl.int64)[:, None] * D + d[None, :]
        there = (rows < count)[:, None] & (d < D)[None, :]
        tl.store(Y + at, y.to(Y.dtype.element_ty), mask=there)
    empty = squares == 0
    inverse = 1 / tl.sqrt(tl.where(empty, 1, squares))
    tl.store(INVERSE + rows, inverse, mask=rows < count)
    tl.store(BACK + rows, tl.where(empty, 0, inverse * power), mask=rows < count)


@triton.jit
def _anchor_tiles(
    A, C, INVERSE_A, INVERSE_C, PEAK, TOTAL, PULL, n, m, D, sharpness: tl.float64, columns,
    GRADIENTS: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """A program takes BM anchors along one split of the candidates.

    It keeps the running maximum and sum of their softmax (to base 2) and, with GRADIENTS, the
    softmax-weighted sum of candidates in one chunk of columns.
    """
    chunks = (D + BD - 1) // BD
    block, split = tl.program_id(0) // chunks, tl.program_id(1)
    column = tl.program_id(0) % chunks * BD + tl.arange(0, BD)
    rows = block * BM + tl.arange(0, BM)
    own = _load(A, rows, n, column, D)
    inverse = tl.load(INVERSE_A + rows, mask=rows < n, other=1)
    steep = tl.maximum(inverse * tl.full((1,), sharpness, ACC), 1e-30)[:, None]
    peak = tl.full((BM,), float("-inf"), ACC)
    total = tl.full((BM,), 0, ACC)
    pull = tl.full((BM, BD), 0, ACC)
    for first in range(split * columns, tl.minimum(split * columns + columns, m), BN):
        others = first + tl.arange(0, BN)
        shrink = tl.load(INVERSE_C + others, mask=others < m, other=0)[None, :]
        beyond = tl.where(others < m, 0, float("-inf"))[None, :]
        zero = tl.full((BM, BN), 0, ACC)
        x = _products(own, A, rows, n, C, others, m, D, zero, BD, WHOLE, PRECISION)
        x = (x * shrink + beyond) * steep
        top = tl.maximum(peak, tl.max(x, 1))
        p = tl.exp2(x - top[:, None])
        fade = tl.exp2(peak - top)
        total = total * fade + tl.sum(p, 1)
        if GRADIENTS:
            c = _load(C, others, m, column, D)
            pull = _dot((p * shrink).to(c.dtype), c, pull * fade[:, None], PRECISION)
        peak = top
    at = split.to(tl.int64) * n + rows
    tl.store(PEAK + at, peak, mask=rows < n)
    tl.store(TOTAL + at, total, mask=rows < n)
    if GRADIENTS:
        there = (rows < n)[:, None] & (column < D)[None, :]
        tl.store(PULL + at[:, None] * D + column[None, :], pull, mask=there)


@triton.jit
def _losses(
    A, C, INVERSE_A, INVERSE_C, TARGET, PEAK, TOTAL, SHARE, LOSS, LOG_SUM, n, m, D,
    sharpness: tl.float64, splits, ACC: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Joins the splits of BR anchors: log-sum-exp to base 2, loss, and each split's share."""
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    here = rows < n
    peak = tl.full((BR,), float("-inf"), ACC)
    for split in range(splits):
        peak = tl.maximum(peak, tl.load(PEAK + split * n + rows, mask=here, other=0))
    total = tl.full((BR,), 0, ACC)
    for split in range(splits):
        own = tl.load(PEAK + split * n + rows, mask=here, other=0)
        total += tl.load(TOTAL + split * n + rows, mask=here, other=1) * tl.exp2(own - peak)
    for split in range(splits):
        own = tl.load(PEAK + split * n + rows, mask=here, other=0)
        tl.store(SHARE + split * n + rows, tl.exp2(own - peak) / total, mask=here)
    target = tl.load(TARGET + rows, mask=here, other=0)
    legal = (target >= 0) & (target < m)
    target = tl.where(legal, target, 0)
    product = tl.full((BR,), 0, ACC)
    for first in range(0, D, BD):
        d = first + tl.arange(0, BD)
        a, c = _load(A, rows, n, d, D).to(ACC), _load(C, target, m, d, D).to(ACC)
        product += tl.sum(a * c, 1)
    x = product * tl.load(INVERSE_C + target) * tl.full((1,), sharpness, ACC)
    x = x * tl.load(INVERSE_A + rows, mask=here, other=1)
    log_sum = tl.where(legal, peak + tl.log2(total), float("nan"))
    tl.store(LOSS + rows, (log_sum - x) * LN2, mask=here)
    tl.store(LOG_SUM + rows, log_sum, mask=here)


@triton.jit
def _candidate_tiles(
    C, A, INVERSE_C, INVERSE_A, TARGET, LOG_SUM, PULL, m, n, D, sharpness: tl.float64, columns,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """A program sums, for BM candidates, (softmax - own) x anchor over one split of the anchors."""
    chunks = (D + BD - 1) // BD
    block, split = tl.program_id(0) // chunks, tl.program_id(1)
    column = tl.program_id(0) % chunks * BD + tl.arange(0, BD)
    rows = block * BM + tl.arange(0, BM)
    own = _load(C, rows, m, column, D)
    inverse = tl.load(INVERSE_C + rows, mask=rows < m, other=1)
    steep = (inverse * tl.full((1,), sharpness, ACC))[:, None]
    pull = tl.full((BM, BD), 0, ACC)
    for first in range(split * columns, tl.minimum(split * columns + columns, n), BN):
        others = first + tl.arange(0, BN)
        shrink = tl.load(INVERSE_A + others, mask=others < n, other=0)[None, :]
        log_sum = tl.load(LOG_SUM + others, mask=others < n, other=float("inf"))[None, :]
        target = tl.load(TARGET + others, mask=others < n, other=-1)
        zero = tl.full((BM, BN), 0, ACC)
        x = _products(own, C, rows, m, A, others, n, D, zero, BD, WHOLE, PRECISION)
        p = tl.exp2(x * shrink * steep - log_sum)
        p = tl.where(target[None, :] == rows[:, None], p - 1, p)
        a = _load(A, others, n, column, D)
        pull = _dot((p * shrink).to(a.dtype), a, pull, PRECISION)
    at = (split.to(tl.int64) * m + rows)[:, None] * D + column[None, :]
    tl.store(PULL + at, pull, mask=(rows < m)[:, None] & (column < D)[None, :])


@triton.jit
def _pulled(
    PULL, SHARE, Y, INVERSE_Y, target, X, INVERSE_X, rows, count, others, d, D, splits, pull,
    OWN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """All splits of the gradient in unit rows, less each row's own target; and the unit rows."""
    here = rows < count
    for split in range(splits):
        at = rows.to(tl.int64) + split * count
        part = tl.load(
            PULL + at[:, None] * D + d[None, :], mask=here[:, None] & (d < D)[None, :], other=0
        )
        if OWN:
            part *= tl.load(SHARE + at, mask=here, other=0)[:, None]
        pull += part
    if OWN:
        legal = (target >= 0) & (target < others)
        at = tl.where(legal, target, 0)
        y = _load(Y, at, others, d, D).to(ACC) * tl.load(INVERSE_Y + at)[:, None]
        pull -= tl.where(legal[:, None], y, float("nan"))
    unit = _load(X, rows, count, d, D).to(ACC)
    return pull, unit * tl.load(INVERSE_X + rows, mask=here, other=0)[:, None]


@triton.jit
def _project(
    PULL, SHARE, Y, INVERSE_Y, TARGET, X, INVERSE_X, BACK, GRAD, count, others, D, splits,
    factor: tl.float64, OWN: tl.constexpr, ACC: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Gradients from unit rows back to rows as given: their part across the row, over its length.

    OWN: anchors, whose splits weigh by SHARE and whose own candidate pulls the other way.
    """
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    target = tl.load(TARGET + rows, mask=rows < count, other=0) if OWN else rows
    zero = tl.full((BR, BD), 0, ACC)
    along = tl.full((BR,), 0, ACC)
    for first in range(0, D, BD):
        pull, unit = _pulled(
            PULL, SHARE, Y, INVERSE_Y, target, X, INVERSE_X, rows, count, others,
            first + tl.arange(0, BD), D, splits, zero, OWN, ACC,
        )  # fmt: skip
        along += tl.sum(pull * unit, 1)
    back = tl.load(BACK + rows, mask=rows < count, other=0) * tl.full((1,), factor, ACC)
    for first in range(0, D, BD):
        d = first + tl.arange(0, BD)
        pull, unit = _pulled(
            PULL, SHARE, Y, INVERSE_Y, target, X, INVERSE_X, rows, count, others,
            d, D, splits, zero, OWN, ACC,
        )  # fmt: skip
        grad = (pull - unit * along[:, None]) * back[:, None]
        at = rows.to(tl.int64)[:, None] * D + d[None, :]
        tl.store(GRAD + at, grad, mask=(rows < count)[:, None] & (d < D)[None, :])


class _Rows:
    """Scaled rows, one over their length, and what leads their gradient back."""

    def __init__(self, rows: Tensor):
        self.count, self.length = rows.shape
        self.dtype = wide(rows.dtype)
        self.values = torch.empty_like(rows, memory_format=torch.contiguous_format)
        self.inverse = self.new(self.count)
        self.back = self.new(self.count)
        self.plain = {"ACC": accumulator(rows.dtype), **blocks("nt_xent_rows", rows, d=self.length)}
        _scale[self.grid()](
            rows.contiguous(), self.values, self.inverse, self.back, self.count, self.length,
            **self.plain,
        )  # fmt: skip

    def new(self, *shape: int) -> Tensor:
        """Scratch or a result beside the rows, in the type of their sums."""
        return torch.empty(shape, dtype=self.dtype, device=self.values.device)

    def grid(self) -> tuple[int]:
        """Of the kernels that take a few whole rows a program."""
        return (triton.cdiv(self.count, self.plain["BR"]),)

    def tiles(self, other: "_Rows", name: str) -> tuple[dict[str, Any], tuple[int, int], int]:
        """Block sizes, grid, and columns of each split: enough programs to fill the device."""
        chosen = {"ACC": self.plain["ACC"]}
        chosen |= blocks(name, self.values, d=self.length, rows=self.count)
        chunks = triton.cdiv(self.length, chosen["BD"])
        chosen["WHOLE"] = chunks == 1
        programs = triton.cdiv(self.count, chosen["BM"]) * chunks
        tiles = triton.cdiv(other.count, chosen["BN"])
        splits = min(tiles, max(1, 2 * processors(self.values.device) // programs))
        columns = triton.cdiv(tiles, splits) * chosen["BN"]
        return chosen, (programs, triton.cdiv(other.count, columns)), columns

    def project(
        self, pull: Tensor, share: Tensor, targets: Tensor, other: "_Rows", factor: float, own: bool
    ) -> Tensor:
        """The gradient in the rows as given, from its splits in unit rows."""
        grad = self.new(self.count, self.length)
        _project[self.grid()](
            pull, share, other.values, other.inverse, targets, self.values, self.inverse,
            self.back, grad, self.count, other.count, self.length, len(pull), factor,
            OWN=own, **self.plain,
        )  # fmt: skip
        return grad


@launches("nt_xent")
def nt_xent(
    anchors: Tensor, candidates: Tensor, targets: Tensor, temperature: float, gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See the op; without gradients, one pass over the similarity matrix, else two."""
    if not len(anchors):
        loss, *grads = nt_xent_op.reference(anchors, candidates, targets, temperature, gradients)
        return loss, grads[0], grads[1]
    a, c, targets = _Rows(anchors), _Rows(candidates), targets.contiguous()
    n, m, length = a.count, c.count, a.length
    sharpness = _LOG2E / temperature
    chosen, grid, columns = a.tiles(c, "nt_xent")
    splits = grid[1]
    peak, total, share = a.new(splits, n), a.new(splits, n), a.new(splits, n)
    pull = a.new(splits, n, length) if gradients else a.new(0)
    _anchor_tiles[grid](
        a.values, c.values, a.inverse, c.inverse, peak, total, pull, n, m, length, sharpness,
        columns, GRADIENTS=gradients, **chosen,
    )  # fmt: skip
    losses, log_sum = a.new(n), a.new(n)
    _losses[a.grid()](
        a.values, c.values, a.inverse, c.inverse, targets, peak, total, share, losses, log_sum,
        n, m, length, sharpness, splits, **a.plain,
    )  # fmt: skip
    loss = losses.mean()
    if not gradients:
        return loss, a.new(0, length), a.new(0, length)
    factor = 1 / (temperature * n)
    grad_anchors = a.project(pull, share, targets, c, factor, own=True)
    chosen, grid, columns = c.tiles(a, "nt_xent_candidates")
    pull = c.new(grid[1], m, length)
    _candidate_tiles[grid](
        c.values, a.values, c.inverse, a.inverse, targets, log_sum, pull, m, n, length, sharpness,
        columns, **chosen,
    )  # fmt: skip
    return loss, grad_anchors, c.project(pull, share, targets, a, factor, own=False)
