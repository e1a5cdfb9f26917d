"""NT-Xent: the loss and its gradients from tiles of the similarity matrix, which is never stored.

Rows enter the products scaled by a power of two, which is exact in half precision; the products are
divided by the norms afterwards. Tiles, and the splits of a long row, are combined in a fixed order.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrfast.ops.nt_xent import nt_xent_op, symmetric_op
from cmrfast.ops.triton._launch import (
    INTERPRETED,
    accumulator,
    block_sizes,
    exp2,
    multiprocessors,
    register,
    sum_dtype,
)

_LOG2E = 1.4426950408889634
_LN2 = tl.constexpr(0.6931471805599453)
_PARTS = 3  # bfloat16 parts of a float32, which hold all of its 24 bits
_WHOLE_TILES = 128  # rows: a multiple of every block size
#: From here on, exp(cosine / temperature) lies within 2^-60 to 2^60, and so do the weights of
#: candidates, which float32 and bfloat16 hold; below, and in float16, they are taken relative to
#: the largest.
_MIN_TEMPERATURE = 0.024


@triton.jit
def _load(x_ptr, rows, d, D):
    """Columns d of some rows of x. Rows and columns are padded with zeros to whole tiles."""
    return tl.load(x_ptr + rows.to(tl.int64)[:, None] * D + d[None, :])


@triton.jit
def _load_some(x_ptr, rows, count, d, D):
    """The same of rows without padding, zeros outside."""
    offsets = rows.to(tl.int64)[:, None] * D + d[None, :]
    return tl.load(x_ptr + offsets, mask=(rows < count)[:, None] & (d < D)[None, :], other=0)


@triton.jit
def _store(x_ptr, rows, d, D, values):
    """Store columns d of some rows of x, padded as for ``_load``."""
    offsets = rows.to(tl.int64)[:, None] * D + d[None, :]
    tl.store(x_ptr + offsets, values.to(x_ptr.dtype.element_ty))


@triton.jit
def _load_parts(x, rows, d, D, PARTS: tl.constexpr):
    """The parts of columns d of some rows, whose sum is their value."""
    x_ptr, _, _, stride = x
    first = _load(x_ptr, rows, d, D)
    if PARTS == 1:
        return (first,)
    else:
        size = stride.to(tl.int64) * D
        return first, _load(x_ptr + size, rows, d, D), _load(x_ptr + 2 * size, rows, d, D)


@triton.jit
def _value(x, rows, d, D, ACC: tl.constexpr, PARTS: tl.constexpr):
    """Columns d of some rows of x."""
    parts = _load_parts(x, rows, d, D, PARTS)
    value = parts[0].to(ACC)
    for part in tl.static_range(1, PARTS):
        value += parts[part].to(ACC)
    return value


@triton.jit
def _split(x, dtype: tl.constexpr, PARTS: tl.constexpr):
    """x as a sum of parts in the dtype of the products."""
    first = x.to(dtype)
    if PARTS == 1:
        return (first,)
    else:
        rest = x - first.to(x.dtype)
        second = rest.to(dtype)
        return first, second, (rest - second.to(x.dtype)).to(dtype)


@triton.jit
def _dot_part(a, b, acc):
    if INTERPRETED and a.dtype == tl.bfloat16:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee", out_dtype=acc.dtype)


@triton.jit
def _dot(a, b, acc, TRANSPOSED: tl.constexpr, PARTS: tl.constexpr):
    """acc + a @ b (with TRANSPOSED, b^T), but for products of parts below float32's precision."""
    for i in tl.static_range(PARTS):
        for j in tl.static_range(PARTS - i):
            # The smallest products come first.
            left, right = a[PARTS - 1 - i - j], b[j]
            acc = _dot_part(left, tl.trans(right) if TRANSPOSED else right, acc)
    return acc


@triton.jit
def _products(
    x_tile, x, rows, y, columns, d, D, acc,
    BD: tl.constexpr, WHOLE: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Dot products of rows of x with rows of y, and columns d of the latter.

    With WHOLE, the columns are all there are, and ``x_tile`` holds the rows of x.
    """
    y_tile = _load_parts(y, columns, d, D, PARTS)
    if WHOLE:
        return _dot(x_tile, y_tile, acc, True, PARTS), y_tile
    for first in range(0, D, BD):
        chunk = first + tl.arange(0, BD)
        x_chunk = _load_parts(x, rows, chunk, D, PARTS)
        acc = _dot(x_chunk, _load_parts(y, columns, chunk, D, PARTS), acc, True, PARTS)
    return acc, y_tile


@triton.jit
def _normalise(
    x_ptr, y, grad_scale_ptr, length, D,
    ACC: tl.constexpr, PARTS: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Scale rows by the power of two that brings their largest entry near 1; their inverse norms.

    ``grad_scale`` is 1 / norm of the original row, 0 for a zero row: the factor of its gradient.
    """
    y_ptr, inverse_norm_ptr, count, stride = y
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    largest = tl.full((BR,), 0, ACC)
    for first in range(0, D, BD):
        x = _load_some(x_ptr, rows, count, first + tl.arange(0, BD), length).to(ACC)
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
        value = _load_some(x_ptr, rows, count, d, length).to(ACC) * power[:, None]
        squares += tl.sum(value * value, 1)
        parts = _split(value, y_ptr.dtype.element_ty, PARTS)
        for part in tl.static_range(PARTS):
            _store(y_ptr + part * stride.to(tl.int64) * D, rows, d, D, parts[part])
    is_zero = squares == 0
    inverse_norm = 1 / tl.sqrt(tl.where(is_zero, 1, squares))
    tl.store(inverse_norm_ptr + rows, inverse_norm)
    tl.store(grad_scale_ptr + rows, tl.where(is_zero, 0, inverse_norm * power))


@triton.jit
def _own_tile(x, D, PARTS: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr):
    """The rows, split and columns of a program, with the values and inverse norms of its rows."""
    inverse_norm_ptr = x[1]
    chunks = D // BD
    column = tl.program_id(0) % chunks * BD + tl.arange(0, BD)
    rows = tl.program_id(0) // chunks * BM + tl.arange(0, BM)
    x_tile = _load_parts(x, rows, column, D, PARTS)
    return rows, tl.program_id(1), column, x_tile, inverse_norm_ptr + rows


@triton.jit
def _anchor_tiles(
    a, c, first_own, max_ptr, sum_ptr, grad_ptr, D, scale: tl.float64, columns,
    ACC: tl.constexpr, PARTS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """A program takes BM anchors and one split of the candidates.

    It sums their exponentials (in base 2), with ``max_ptr`` relative to the largest so far, and,
    with ``grad_ptr``, the candidates with these weights in one chunk of columns. With
    ``first_own``, anchor i is candidate ``first_own`` + i, which it skips. ``a`` and ``c`` are
    pointers to the rows and to their inverse norms, and the number of rows.
    """
    _, c_inverse_norm_ptr, m, _ = c
    rows, split, column, a_tile, inverse_norm_ptr = _own_tile(a, D, PARTS, BM, BD)
    row_scale = (tl.load(inverse_norm_ptr) * tl.full((1,), scale, ACC))[:, None]
    row_max = tl.full((BM,), float("-inf"), ACC)
    row_sum = tl.full((BM,), 0, ACC)
    acc = tl.full((BM, BD), 0, ACC)
    begin, end = split * columns, tl.minimum(split * columns + columns, m)
    whole = begin + (end - begin) // BN * BN
    for ragged in tl.static_range(2):  # whole tiles, then what is left
        for first in range(whole if ragged else begin, end if ragged else whole, BN):
            js = first + tl.arange(0, BN)
            c_inverse_norm = tl.load(c_inverse_norm_ptr + js)[None, :]
            zero = tl.full((BM, BN), 0, ACC)
            x, c_tile = _products(a_tile, a, rows, c, js, column, D, zero, BD, WHOLE, PARTS)
            x = x * c_inverse_norm * row_scale
            if ragged:
                x = tl.where(js[None, :] < m, x, float("-inf"))
            if first_own is not None:
                x = tl.where(js[None, :] == (first_own + rows)[:, None], float("-inf"), x)
            if max_ptr is not None:
                new_max = tl.maximum(row_max, tl.max(x, 1))
                if first_own is not None:  # a tile may hold the anchor alone
                    new_max = tl.maximum(new_max, -1e30)
                rescale = exp2(row_max - new_max)
                x -= new_max[:, None]
                row_sum *= rescale
                acc *= rescale[:, None]
                row_max = new_max
            p = exp2(x)
            row_sum += tl.sum(p, 1)
            if grad_ptr is not None:
                weights = _split(p * c_inverse_norm, c_tile[0].dtype, PARTS)
                acc = _dot(weights, c_tile, acc, False, PARTS)
    stride = a[3]
    offsets = split.to(tl.int64) * stride + rows
    tl.store(sum_ptr + offsets, row_sum)
    if max_ptr is not None:
        tl.store(max_ptr + offsets, row_max)
    if grad_ptr is not None:
        _store(grad_ptr + split.to(tl.int64) * stride * D, rows, column, D, acc)


@triton.jit
def _losses(
    a, c, target_ptr, max_ptr, sum_ptr, split_weight_ptr, loss_ptr, lse_ptr, own_ptr, D,
    scale: tl.float64, splits,
    ACC: tl.constexpr, PARTS: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Combine the splits of BR anchors: base-2 log-sum-exp, loss, and the weight of each split.

    The inverse norm that anchors are multiplied by as rows of a gradient is part of the log-sum-exp
    that is stored. Padded anchors get an infinite one, so that they have no weight for candidates,
    and targets are stored as int32, -1 where they are invalid.
    """
    _, a_inverse_norm_ptr, n, stride = a
    _, c_inverse_norm_ptr, m, _ = c
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    row_max = tl.full((BR,), 0, ACC)
    if max_ptr is not None:
        row_max = tl.full((BR,), float("-inf"), ACC)
        for split in range(splits):
            row_max = tl.maximum(row_max, tl.load(max_ptr + split * stride + rows))
    row_sum = tl.full((BR,), 0, ACC)
    for split in range(splits):
        part = tl.load(sum_ptr + split * stride + rows)
        if max_ptr is not None:
            part *= exp2(tl.load(max_ptr + split * stride + rows) - row_max)
        row_sum += part
    for split in range(splits):
        weight = 1 / row_sum
        if max_ptr is not None:
            weight *= exp2(tl.load(max_ptr + split * stride + rows) - row_max)
        tl.store(split_weight_ptr + split * stride + rows, weight)
    target = tl.load(target_ptr + rows, mask=rows < n, other=-1)
    valid = (target >= 0) & (target < m)
    tl.store(own_ptr + rows, tl.where(valid, target, -1).to(tl.int32))
    target = tl.where(valid, target, 0)
    product = tl.full((BR,), 0, ACC)
    for first in range(0, D, BD):
        d = first + tl.arange(0, BD)
        a_tile = _value(a, rows, d, D, ACC, PARTS)
        product += tl.sum(a_tile * _value(c, target, d, D, ACC, PARTS), 1)
    x = product * tl.load(c_inverse_norm_ptr + target) * tl.full((1,), scale, ACC)
    inverse_norm = tl.load(a_inverse_norm_ptr + rows)
    lse = tl.where(valid, row_max + tl.log2(row_sum), float("nan"))
    tl.store(loss_ptr + rows, (lse - x * inverse_norm) * _LN2, mask=rows < n)
    tl.store(lse_ptr + rows, tl.where(rows < n, lse - tl.log2(inverse_norm), float("inf")))


@triton.jit
def _candidate_tiles(
    c, a, first_own, own_ptr, lse_ptr, row_lse_ptr, grad_ptr, D, scale: tl.float64, columns,
    ACC: tl.constexpr, PARTS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """A program sums (softmax - target) x anchor for BM candidates over a split of the anchors.

    With ``row_lse_ptr``, the candidates are anchors too, and their softmax is added; without
    ``own_ptr``, targets are left out.
    """
    _, a_inverse_norm_ptr, n, _ = a
    rows, split, column, c_tile, inverse_norm_ptr = _own_tile(c, D, PARTS, BM, BD)
    row_scale = (tl.load(inverse_norm_ptr) * tl.full((1,), scale, ACC))[:, None]
    if row_lse_ptr is not None:
        row_lse = tl.load(row_lse_ptr + rows) + tl.log2(tl.load(inverse_norm_ptr))
    acc = tl.full((BM, BD), 0, ACC)
    for first in range(split * columns, tl.minimum(split * columns + columns, n), BN):
        js = first + tl.arange(0, BN)
        a_inverse_norm = tl.load(a_inverse_norm_ptr + js)[None, :]
        lse = tl.load(lse_ptr + js)[None, :]
        zero = tl.full((BM, BN), 0, ACC)
        x, a_tile = _products(c_tile, c, rows, a, js, column, D, zero, BD, WHOLE, PARTS)
        x = x * a_inverse_norm * row_scale
        weight = exp2(x - lse)
        if first_own is not None:
            weight = tl.where((first_own + js)[None, :] == rows[:, None], 0, weight)
        if row_lse_ptr is not None:
            weight += exp2(x - row_lse[:, None]) * a_inverse_norm
        if own_ptr is not None:
            own = tl.load(own_ptr + js)[None, :]
            weight = tl.where(own == rows[:, None], weight - a_inverse_norm, weight)
        acc = _dot(_split(weight, a_tile[0].dtype, PARTS), a_tile, acc, False, PARTS)
    _store(grad_ptr + split.to(tl.int64) * c[3] * D, rows, column, D, acc)


@triton.jit
def _unit_gradient(
    partial, splits, x, y, own, targets, rows, d, D, acc, ACC: tl.constexpr, PARTS: tl.constexpr
):
    """The gradient of the unit rows in columns d, from all splits, and the unit rows.

    For anchors, the splits have weights. With ``own``, the unit row of the target is subtracted
    ``targets`` times.
    """
    partial_ptr, split_weight_ptr = partial
    _, inverse_norm_ptr, _, stride = x
    y_inverse_norm_ptr = y[1]
    for split in range(splits):
        part = _load(partial_ptr, rows.to(tl.int64) + split * stride, d, D)
        if split_weight_ptr is not None:
            part *= tl.load(split_weight_ptr + split * stride + rows)[:, None]
        acc += part
    if own is not None:
        target = tl.maximum(own, 0)
        unit = _value(y, target, d, D, ACC, PARTS)
        unit *= tl.load(y_inverse_norm_ptr + target)[:, None]
        acc -= tl.where((own >= 0)[:, None], unit * targets, float("nan"))
    unit = _value(x, rows, d, D, ACC, PARTS)
    return acc, unit * tl.load(inverse_norm_ptr + rows)[:, None]


@triton.jit
def _normalise_backward(
    partial, splits, x, y, own_ptr, targets, grad_scale_ptr, grad_ptr, length, D,
    factor: tl.float64,
    ACC: tl.constexpr, PARTS: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Gradients of the rows from those of the unit rows: the part orthogonal to the row, / norm."""
    n = x[2]
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    own = None
    if own_ptr is not None:
        own = tl.load(own_ptr + rows)
    zero = tl.full((BR, BD), 0, ACC)
    projection = tl.full((BR,), 0, ACC)
    for first in range(0, D, BD):
        d = first + tl.arange(0, BD)
        grad, unit = _unit_gradient(
            partial, splits, x, y, own, targets, rows, d, D, zero, ACC, PARTS
        )
        projection += tl.sum(grad * unit, 1)
    # Of a subnormal row it would be infinite, and make NaN of a gradient that is 0.
    scale = tl.load(grad_scale_ptr + rows) * tl.full((1,), factor, ACC)
    scale = tl.minimum(scale, 1e308 if tl.float64 == ACC else 3e38)
    for first in range(0, D, BD):
        d = first + tl.arange(0, BD)
        grad, unit = _unit_gradient(
            partial, splits, x, y, own, targets, rows, d, D, zero, ACC, PARTS
        )
        offsets = rows.to(tl.int64)[:, None] * length + d[None, :]
        mask = (rows < n)[:, None] & (d < length)[None, :]
        tl.store(grad_ptr + offsets, (grad - unit * projection[:, None]) * scale[:, None], mask)


class _Rows:
    """Scaled rows, padded to whole tiles, their inverse norms, and the factors of gradients."""

    def __init__(self, rows: Tensor):
        self.rows = rows.contiguous()
        self.count, self.length = rows.shape
        self.dtype = sum_dtype(rows.dtype)
        sizes = dict(block_sizes("nt_xent_rows", rows, d=self.length))
        sizes["BD"] = min(sizes["BD"], max(16, triton.next_power_of_2(self.length)))
        parts = _PARTS if rows.dtype == torch.float32 else 1
        self.row_sizes = {"ACC": accumulator(rows.dtype), "PARTS": parts, **sizes}
        self.stride = triton.cdiv(self.count, _WHOLE_TILES) * _WHOLE_TILES
        self.columns = triton.cdiv(self.length, sizes["BD"]) * sizes["BD"]
        product_dtype = torch.bfloat16 if parts > 1 else rows.dtype
        self.values = rows.new_empty(parts, self.stride, self.columns, dtype=product_dtype)
        self.inverse_norm = self.new(self.stride)
        self.grad_scale = self.new(self.stride)
        _normalise[self.grid()](
            self.rows, self.kernel_args, self.grad_scale, self.length, self.columns,
            **self.row_sizes,
        )  # fmt: skip

    @property
    def kernel_args(self) -> tuple[Any, ...]:
        """What the kernels read of the rows."""
        return self.values, self.inverse_norm, self.count, self.stride

    def new(self, *shape: int) -> Tensor:
        """An empty tensor on the rows' device, in the dtype of their sums."""
        return torch.empty(shape, dtype=self.dtype, device=self.values.device)

    def grid(self) -> tuple[int]:
        """The grid of kernels whose programs take a few whole rows."""
        return (triton.cdiv(self.stride, self.row_sizes["BR"]),)

    def tiles(self, other: "_Rows", name: str) -> tuple[dict[str, Any], tuple[int, int], int]:
        """Block sizes, grid, and columns of each split, with enough programs to fill the device."""
        chosen = {key: self.row_sizes[key] for key in ("ACC", "PARTS", "BD")}
        chosen |= block_sizes(name, self.rows, d=self.columns, rows=self.count)
        chunks = self.columns // chosen["BD"]
        chosen["WHOLE"] = chunks == 1
        programs = triton.cdiv(self.count, chosen["BM"]) * chunks
        tiles = triton.cdiv(other.count, chosen["BN"])
        splits = min(tiles, max(1, 2 * multiprocessors(self.values.device) // programs))
        columns = triton.cdiv(tiles, splits) * chosen["BN"]
        return chosen, (programs, triton.cdiv(other.count, columns)), columns

    def log_sums(
        self,
        other: "_Rows",
        targets: Tensor,
        temperature: float,
        first: int | None = None,
        partial: bool = False,
    ) -> "_LogSums":
        """The losses of these rows as anchors; with ``partial``, what their gradient needs.

        With ``first``, row i is candidate ``first`` + i, which it skips.
        """
        scale = _LOG2E / temperature
        chosen, grid, columns = self.tiles(other, "nt_xent")
        shape = grid[1], self.stride
        running_max = temperature < _MIN_TEMPERATURE or self.values.dtype == torch.float16
        split_max = self.new(*shape) if running_max else None
        split_sum, weights = self.new(*shape), self.new(*shape)
        sums = self.new(*shape, self.columns) if partial else None
        _anchor_tiles[grid](
            self.kernel_args, other.kernel_args, first, split_max, split_sum, sums, self.columns,
            scale, columns, **chosen,
        )  # fmt: skip
        losses, lse = self.new(self.count), self.new(self.stride)
        own = torch.empty_like(lse, dtype=torch.int32)
        _losses[self.grid()](
            self.kernel_args, other.kernel_args, targets, split_max, split_sum, weights, losses,
            lse, own, self.columns, scale, grid[1], **self.row_sizes,
        )  # fmt: skip
        return _LogSums(losses.mean(), lse, own, sums, weights)

    def candidate_gradient(
        self,
        anchors: "_Rows",
        of: "_LogSums",
        row_lse: Tensor | None,
        temperature: float,
        first: int | None = None,
    ) -> Tensor:
        """The gradient of these rows as candidates; with ``row_lse``, as anchors too."""
        chosen, grid, columns = self.tiles(anchors, "nt_xent_candidates")
        sums = self.new(grid[1], self.stride, self.columns)
        # As an anchor too, a row has one target, which is left to the end.
        own, later = (of.own, None) if row_lse is None else (None, of.own)
        _candidate_tiles[grid](
            self.kernel_args, anchors.kernel_args, first, own, of.lse, row_lse, sums,
            self.columns, _LOG2E / temperature, columns, **chosen,
        )  # fmt: skip
        factor = 1 / (temperature * anchors.count * (1 if later is None else 2))
        return self.gradient(sums, None, later, 2, anchors, factor)

    def gradient(
        self,
        partial: Tensor,
        weights: Tensor | None,
        own: Tensor | None,
        targets: int,
        other: "_Rows",
        factor: float,
    ) -> Tensor:
        """The gradient of the original rows, from its splits for the unit rows.

        With ``own``, their targets are still to be subtracted, ``targets`` times.
        """
        grad = self.new(self.count, self.length)
        _normalise_backward[self.grid()](
            (partial, weights), len(partial), self.kernel_args, other.kernel_args, own, targets,
            self.grad_scale, grad, self.length, self.columns, factor, **self.row_sizes,
        )  # fmt: skip
        return grad


@dataclass
class _LogSums:
    """The mean loss of some anchors, and what the gradients need."""

    loss: Tensor
    lse: Tensor  # base-2 log-sum-exp of each anchor, less the logarithm of its inverse norm
    own: Tensor  # its target, -1 for an invalid one
    sums: Tensor | None  # of the candidates, weighted by their exponentials, for each split
    weights: Tensor  # of the splits


@register("nt_xent")
def nt_xent(
    anchors: Tensor,
    candidates: Tensor,
    targets: Tensor,
    temperature: float,
    first: int | None,
    gradients: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See the op; one pass over the similarity matrix without gradients, else two."""
    if not len(anchors):
        given = (anchors, candidates, targets, temperature, first, gradients)
        loss, *grads = nt_xent_op.reference(*given)
        return loss, grads[0], grads[1]
    a, c = _Rows(anchors), _Rows(candidates)
    of = a.log_sums(c, targets.contiguous(), temperature, first, gradients)
    if of.sums is None:
        return of.loss, a.new(0, a.length), a.new(0, a.length)
    factor = 1 / (temperature * a.count)
    grad_anchors = a.gradient(of.sums, of.weights, of.own, 1, c, factor)
    return of.loss, grad_anchors, c.candidate_gradient(a, of, None, temperature, first)


@register("nt_xent_symmetric")
def nt_xent_symmetric(
    anchors: Tensor, candidates: Tensor, temperature: float, gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See the op; six products of the matrices instead of the eight of two calls."""
    if not len(anchors):
        loss, *grads = symmetric_op.reference(anchors, candidates, temperature, gradients)
        return loss, grads[0], grads[1]
    a, c = _Rows(anchors), _Rows(candidates)
    targets = torch.arange(a.count, device=anchors.device)
    of_a, of_c = a.log_sums(c, targets, temperature), c.log_sums(a, targets, temperature)
    loss = (of_a.loss + of_c.loss) / 2
    if not gradients:
        return loss, a.new(0, a.length), a.new(0, a.length)
    grad_anchors = a.candidate_gradient(c, of_c, of_a.lse, temperature)
    return loss, grad_anchors, c.candidate_gradient(a, of_a, of_c.lse, temperature)
