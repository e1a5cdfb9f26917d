"""NT-Xent: the loss and its gradients from tiles of the similarity matrix, which is never stored.

Rows enter the products scaled by a power of two, which is exact in half precision; the products are
divided by the norms afterwards. Tiles, and the splits of a long row, are combined in a fixed order.
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
    block_sizes,
    multiprocessors,
    register,
    sum_dtype,
)

_LOG2E = 1.4426950408889634
_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _load(x_ptr, rows, count, d, D):
    """Columns d of some rows of x, zeros outside."""
    offsets = rows.to(tl.int64)[:, None] * D + d[None, :]
    return tl.load(x_ptr + offsets, mask=(rows < count)[:, None] & (d < D)[None, :], other=0)


@triton.jit
def _store(x_ptr, rows, count, d, D, values):
    """Store columns d of some rows of x."""
    offsets = rows.to(tl.int64)[:, None] * D + d[None, :]
    mask = (rows < count)[:, None] & (d < D)[None, :]
    tl.store(x_ptr + offsets, values.to(x_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _dot(a, b, acc, PRECISION: tl.constexpr):
    if INTERPRETED and a.dtype == tl.bfloat16:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)


@triton.jit
def _products(
    x_tile, x_ptr, rows, n, y_ptr, columns, m, D, acc,
    BD: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Dot products of rows of x with rows of y. With WHOLE, ``x_tile`` holds the rows of x."""
    if WHOLE:
        y = _load(y_ptr, columns, m, tl.arange(0, BD), D)
        return _dot(x_tile, tl.trans(y), acc, PRECISION)
    for first in range(0, D, BD):
        d = first + tl.arange(0, BD)
        y = _load(y_ptr, columns, m, d, D)
        acc = _dot(_load(x_ptr, rows, n, d, D), tl.trans(y), acc, PRECISION)
    return acc


@triton.jit
def _normalise(
    x_ptr, y_ptr, inverse_norm_ptr, grad_scale_ptr, count, D,
    ACC: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Scale rows by the power of two that brings their largest entry near 1; their inverse norms.

    ``grad_scale`` is 1 / norm of the original row, 0 for a zero row: the factor of its gradient.
    """
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    largest = tl.full((BR,), 0, ACC)
    for first in range(0, D, BD):
        x = _load(x_ptr, rows, count, first + tl.arange(0, BD), D).to(ACC)
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
        y = _load(x_ptr, rows, count, d, D).to(ACC) * power[:, None]
        squares += tl.sum(y * y, 1)
        _store(y_ptr, rows, count, d, D, y)
    is_zero = squares == 0
    inverse_norm = 1 / tl.sqrt(tl.where(is_zero, 1, squares))
    tl.store(inverse_norm_ptr + rows, inverse_norm, mask=rows < count)
    tl.store(grad_scale_ptr + rows, tl.where(is_zero, 0, inverse_norm * power), mask=rows < count)


@triton.jit
def _own_tile(x, D, BM: tl.constexpr, BD: tl.constexpr):
    """The rows, split and columns of a program, with the values and inverse norms of its rows."""
    x_ptr, inverse_norm_ptr, n = x
    chunks = (D + BD - 1) // BD
    column = tl.program_id(0) % chunks * BD + tl.arange(0, BD)
    rows = tl.program_id(0) // chunks * BM + tl.arange(0, BM)
    inverse_norm = tl.load(inverse_norm_ptr + rows, mask=rows < n, other=1)
    return rows, tl.program_id(1), column, _load(x_ptr, rows, n, column, D), inverse_norm


@triton.jit
def _anchor_tiles(
    a, c, max_ptr, sum_ptr, grad_ptr, D, scale: tl.float64, columns,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """A program takes BM anchors and one split of the candidates.

    It keeps the running maximum and sum of their softmax (in base 2) and, with ``grad_ptr``, the
    softmax-weighted sum of the candidates in one chunk of columns. ``a`` and ``c`` are pointers to
    the rows and to their inverse norms, and the number of rows.
    """
    a_ptr, _, n = a
    c_ptr, c_inverse_norm_ptr, m = c
    rows, split, column, a_tile, inverse_norm = _own_tile(a, D, BM, BD)
    row_scale = tl.maximum(inverse_norm * tl.full((1,), scale, ACC), 1e-30)[:, None]
    row_max = tl.full((BM,), float("-inf"), ACC)
    row_sum = tl.full((BM,), 0, ACC)
    acc = tl.full((BM, BD), 0, ACC)
    for first in range(split * columns, tl.minimum(split * columns + columns, m), BN):
        js = first + tl.arange(0, BN)
        c_inverse_norm = tl.load(c_inverse_norm_ptr + js, mask=js < m, other=0)[None, :]
        bias = tl.where(js < m, 0, float("-inf"))[None, :]
        zero = tl.full((BM, BN), 0, ACC)
        x = _products(a_tile, a_ptr, rows, n, c_ptr, js, m, D, zero, BD, WHOLE, PRECISION)
        x = (x * c_inverse_norm + bias) * row_scale
        new_max = tl.maximum(row_max, tl.max(x, 1))
        p = tl.exp2(x - new_max[:, None])
        rescale = tl.exp2(row_max - new_max)
        row_sum = row_sum * rescale + tl.sum(p, 1)
        if grad_ptr is not None:
            c_tile = _load(c_ptr, js, m, column, D)
            weights = (p * c_inverse_norm).to(c_tile.dtype)
            acc = _dot(weights, c_tile, acc * rescale[:, None], PRECISION)
        row_max = new_max
    offsets = split.to(tl.int64) * n + rows
    tl.store(max_ptr + offsets, row_max, mask=rows < n)
    tl.store(sum_ptr + offsets, row_sum, mask=rows < n)
    if grad_ptr is not None:
        _store(grad_ptr + split.to(tl.int64) * n * D, rows, n, column, D, acc)


@triton.jit
def _losses(
    a, c, target_ptr, max_ptr, sum_ptr, split_weight_ptr, loss_ptr, lse_ptr, D,
    scale: tl.float64, splits, ACC: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Combine the splits of BR anchors: base-2 log-sum-exp, loss, and the weight of each split."""
    a_ptr, a_inverse_norm_ptr, n = a
    c_ptr, c_inverse_norm_ptr, m = c
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    mask = rows < n
    row_max = tl.full((BR,), float("-inf"), ACC)
    for split in range(splits):
        row_max = tl.maximum(row_max, tl.load(max_ptr + split * n + rows, mask=mask, other=0))
    row_sum = tl.full((BR,), 0, ACC)
    for split in range(splits):
        split_max = tl.load(max_ptr + split * n + rows, mask=mask, other=0)
        split_sum = tl.load(sum_ptr + split * n + rows, mask=mask, other=1)
        row_sum += split_sum * tl.exp2(split_max - row_max)
    for split in range(splits):
        split_max = tl.load(max_ptr + split * n + rows, mask=mask, other=0)
        weight = tl.exp2(split_max - row_max) / row_sum
        tl.store(split_weight_ptr + split * n + rows, weight, mask=mask)
    target = tl.load(target_ptr + rows, mask=mask, other=0)
    valid = (target >= 0) & (target < m)
    target = tl.where(valid, target, 0)
    product = tl.full((BR,), 0, ACC)
    for first in range(0, D, BD):
        d = first + tl.arange(0, BD)
        a_tile, c_tile = _load(a_ptr, rows, n, d, D).to(ACC), _load(c_ptr, target, m, d, D).to(ACC)
        product += tl.sum(a_tile * c_tile, 1)
    x = product * tl.load(c_inverse_norm_ptr + target) * tl.full((1,), scale, ACC)
    x = x * tl.load(a_inverse_norm_ptr + rows, mask=mask, other=1)
    lse = tl.where(valid, row_max + tl.log2(row_sum), float("nan"))
    tl.store(loss_ptr + rows, (lse - x) * _LN2, mask=mask)
    tl.store(lse_ptr + rows, lse, mask=mask)


@triton.jit
def _candidate_tiles(
    c, a, target_ptr, lse_ptr, grad_ptr, D, scale: tl.float64, columns,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """A program sums (softmax - target) x anchor for BM candidates over a split of the anchors."""
    c_ptr, _, m = c
    a_ptr, a_inverse_norm_ptr, n = a
    rows, split, column, c_tile, inverse_norm = _own_tile(c, D, BM, BD)
    row_scale = (inverse_norm * tl.full((1,), scale, ACC))[:, None]
    acc = tl.full((BM, BD), 0, ACC)
    for first in range(split * columns, tl.minimum(split * columns + columns, n), BN):
        js = first + tl.arange(0, BN)
        a_inverse_norm = tl.load(a_inverse_norm_ptr + js, mask=js < n, other=0)[None, :]
        lse = tl.load(lse_ptr + js, mask=js < n, other=float("inf"))[None, :]
        target = tl.load(target_ptr + js, mask=js < n, other=-1)
        zero = tl.full((BM, BN), 0, ACC)
        x = _products(c_tile, c_ptr, rows, m, a_ptr, js, n, D, zero, BD, WHOLE, PRECISION)
        p = tl.exp2(x * a_inverse_norm * row_scale - lse)
        p = tl.where(target[None, :] == rows[:, None], p - 1, p)
        a_tile = _load(a_ptr, js, n, column, D)
        acc = _dot((p * a_inverse_norm).to(a_tile.dtype), a_tile, acc, PRECISION)
    _store(grad_ptr + split.to(tl.int64) * m * D, rows, m, column, D, acc)


@triton.jit
def _unit_gradient(partial, splits, x, y, target, rows, d, D, acc, ACC: tl.constexpr):
    """The gradient of the unit rows in columns d, from all splits, and the unit rows.

    For anchors, the splits have weights and the unit row of the target is subtracted.
    """
    partial_ptr, split_weight_ptr = partial
    x_ptr, inverse_norm_ptr, n = x
    y_ptr, y_inverse_norm_ptr, m = y
    for split in range(splits):
        part = _load(partial_ptr, rows.to(tl.int64) + split * n, splits * n, d, D)
        part = tl.where((rows < n)[:, None], part, 0)
        if split_weight_ptr is not None:
            weight = tl.load(split_weight_ptr + split * n + rows, mask=rows < n, other=0)
            part *= weight[:, None]
        acc += part
    if split_weight_ptr is not None:
        valid = (target >= 0) & (target < m)
        target = tl.where(valid, target, 0)
        unit = _load(y_ptr, target, m, d, D).to(ACC)
        unit = unit * tl.load(y_inverse_norm_ptr + target)[:, None]
        acc -= tl.where(valid[:, None], unit, float("nan"))
    unit = _load(x_ptr, rows, n, d, D).to(ACC)
    return acc, unit * tl.load(inverse_norm_ptr + rows, mask=rows < n, other=0)[:, None]


@triton.jit
def _normalise_backward(
    partial, splits, x, y, target_ptr, grad_scale_ptr, grad_ptr, D, factor: tl.float64,
    ACC: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Gradients of the rows from those of the unit rows: the part orthogonal to the row, / norm."""
    n = x[2]
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    target = rows
    if partial[1] is not None:
        target = tl.load(target_ptr + rows, mask=rows < n, other=0)
    zero = tl.full((BR, BD), 0, ACC)
    projection = tl.full((BR,), 0, ACC)
    for first in range(0, D, BD):
        d = first + tl.arange(0, BD)
        grad, unit = _unit_gradient(partial, splits, x, y, target, rows, d, D, zero, ACC)
        projection += tl.sum(grad * unit, 1)
    scale = tl.load(grad_scale_ptr + rows, mask=rows < n, other=0) * tl.full((1,), factor, ACC)
    for first in range(0, D, BD):
        d = first + tl.arange(0, BD)
        grad, unit = _unit_gradient(partial, splits, x, y, target, rows, d, D, zero, ACC)
        _store(grad_ptr, rows, n, d, D, (grad - unit * projection[:, None]) * scale[:, None])


class _Rows:
    """Scaled rows, their inverse norms, and the factors of their gradients."""

    def __init__(self, rows: Tensor):
        self.count, self.length = rows.shape
        self.dtype = sum_dtype(rows.dtype)
        self.values = torch.empty_like(rows, memory_format=torch.contiguous_format)
        self.inverse_norm = self.new(self.count)
        self.grad_scale = self.new(self.count)
        sizes = block_sizes("nt_xent_rows", rows, d=self.length)
        self.row_sizes = {"ACC": accumulator(rows.dtype), **sizes}
        _normalise[self.grid()](
            rows.contiguous(), self.values, self.inverse_norm, self.grad_scale, self.count,
            self.length, **self.row_sizes,
        )  # fmt: skip

    @property
    def kernel_args(self) -> tuple[Any, ...]:
        """What the kernels read of the rows."""
        return self.values, self.inverse_norm, self.count

    def new(self, *shape: int) -> Tensor:
        """An empty tensor on the rows' device, in the dtype of their sums."""
        return torch.empty(shape, dtype=self.dtype, device=self.values.device)

    def grid(self) -> tuple[int]:
        """The grid of kernels whose programs take a few whole rows."""
        return (triton.cdiv(self.count, self.row_sizes["BR"]),)

    def tiles(self, other: "_Rows", name: str) -> tuple[dict[str, Any], tuple[int, int], int]:
        """Block sizes, grid, and columns of each split, with enough programs to fill the device."""
        chosen = {"ACC": self.row_sizes["ACC"]}
        chosen |= block_sizes(name, self.values, d=self.length, rows=self.count)
        chunks = triton.cdiv(self.length, chosen["BD"])
        chosen["WHOLE"] = chunks == 1
        programs = triton.cdiv(self.count, chosen["BM"]) * chunks
        tiles = triton.cdiv(other.count, chosen["BN"])
        splits = min(tiles, max(1, 2 * multiprocessors(self.values.device) // programs))
        columns = triton.cdiv(tiles, splits) * chosen["BN"]
        return chosen, (programs, triton.cdiv(other.count, columns)), columns

    def gradient(
        self,
        partial: Tensor,
        weights: Tensor | None,
        targets: Tensor,
        other: "_Rows",
        factor: float,
    ) -> Tensor:
        """The gradient of the original rows, from its splits for the unit rows."""
        grad = self.new(self.count, self.length)
        _normalise_backward[self.grid()](
            (partial, weights), len(partial), self.kernel_args, other.kernel_args, targets,
            self.grad_scale, grad, self.length, factor, **self.row_sizes,
        )  # fmt: skip
        return grad


@register("nt_xent")
def nt_xent(
    anchors: Tensor, candidates: Tensor, targets: Tensor, temperature: float, gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See the op; one pass over the similarity matrix without gradients, else two."""
    if not len(anchors):
        loss, *grads = nt_xent_op.reference(anchors, candidates, targets, temperature, gradients)
        return loss, grads[0], grads[1]
    a, c, targets = _Rows(anchors), _Rows(candidates), targets.contiguous()
    n, m, length = a.count, c.count, a.length
    scale = _LOG2E / temperature
    chosen, grid, columns = a.tiles(c, "nt_xent")
    splits = grid[1]
    split_max, split_sum, split_weight = a.new(splits, n), a.new(splits, n), a.new(splits, n)
    partial = a.new(splits, n, length) if gradients else None
    _anchor_tiles[grid](
        a.kernel_args, c.kernel_args, split_max, split_sum, partial, length, scale, columns,
        **chosen,
    )  # fmt: skip
    losses, lse = a.new(n), a.new(n)
    _losses[a.grid()](
        a.kernel_args, c.kernel_args, targets, split_max, split_sum, split_weight, losses, lse,
        length, scale, splits, **a.row_sizes,
    )  # fmt: skip
    loss = losses.mean()
    if partial is None:
        return loss, a.new(0, length), a.new(0, length)
    factor = 1 / (temperature * n)
    grad_anchors = a.gradient(partial, split_weight, targets, c, factor)
    chosen, grid, columns = c.tiles(a, "nt_xent_candidates")
    partial = c.new(grid[1], m, length)
    _candidate_tiles[grid](
        c.kernel_args, a.kernel_args, targets, lse, partial, length, scale, columns, **chosen
    )
    return loss, grad_anchors, c.gradient(partial, None, targets, a, factor)
