"""NT-Xent: the loss and its gradients from tiles of the similarity matrix, which is never stored.

Tiles, and the splits of a long row, are combined in a fixed order.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrfast.ops.nt_xent import nt_xent_op, symmetric_op
from cmrfast.ops.triton._launch import block_sizes, exp2, multiprocessors, register
from cmrfast.ops.triton._row_parts import (
    dot_parts,
    load_parts,
    load_values,
    row_products,
    store_rows,
    to_parts,
)
from cmrfast.ops.triton._scaled_rows import ScaledRows

_LOG2E = 1.4426950408889634
_LN2 = tl.constexpr(0.6931471805599453)
#: From here on, exp(cosine / temperature) lies within 2^-60 to 2^60, and so do the weights of
#: candidates, which float32 and bfloat16 hold; below, and in float16, they are taken relative to
#: the largest.
_MIN_TEMPERATURE = 0.024


@triton.jit
def _own_tile(x, D, PARTS: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr):
    """The rows, split and columns of a program, with the values and inverse norms of its rows."""
    inverse_norm_ptr = x[1]
    chunks = D // BD
    column = tl.program_id(0) % chunks * BD + tl.arange(0, BD)
    rows = tl.program_id(0) // chunks * BM + tl.arange(0, BM)
    x_tile = load_parts(x, rows, column, D, PARTS)
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
            x, c_tile = row_products(a_tile, a, rows, c, js, column, D, zero, BD, WHOLE, PARTS)
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
                weights = to_parts(p * c_inverse_norm, c_tile[0].dtype, PARTS)
                acc = dot_parts(weights, c_tile, acc, False, PARTS)
    stride = a[3]
    offsets = split.to(tl.int64) * stride + rows
    tl.store(sum_ptr + offsets, row_sum)
    if max_ptr is not None:
        tl.store(max_ptr + offsets, row_max)
    if grad_ptr is not None:
        store_rows(grad_ptr + split.to(tl.int64) * stride * D, rows, column, D, acc)


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
        a_tile = load_values(a, rows, d, D, ACC, PARTS)
        product += tl.sum(a_tile * load_values(c, target, d, D, ACC, PARTS), 1)
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
        x, a_tile = row_products(c_tile, c, rows, a, js, column, D, zero, BD, WHOLE, PARTS)
        x = x * a_inverse_norm * row_scale
        weight = exp2(x - lse)
        if first_own is not None:
            weight = tl.where((first_own + js)[None, :] == rows[:, None], 0, weight)
        if row_lse_ptr is not None:
            weight += exp2(x - row_lse[:, None]) * a_inverse_norm
        if own_ptr is not None:
            own = tl.load(own_ptr + js)[None, :]
            weight = tl.where(own == rows[:, None], weight - a_inverse_norm, weight)
        acc = dot_parts(to_parts(weight, a_tile[0].dtype, PARTS), a_tile, acc, False, PARTS)
    store_rows(grad_ptr + split.to(tl.int64) * c[3] * D, rows, column, D, acc)


@dataclass
class _LogSums:
    """The mean loss of some anchors, and what the gradients need."""

    loss: Tensor
    lse: Tensor  # base-2 log-sum-exp of each anchor, less the logarithm of its inverse norm
    own: Tensor  # its target, -1 for an invalid one
    sums: Tensor | None  # of the candidates, weighted by their exponentials, for each split
    weights: Tensor  # of the splits


def _tiles(
    rows: ScaledRows, columns: ScaledRows, name: str
) -> tuple[dict[str, Any], tuple[int, int], int]:
    """Block sizes, grid, and columns of each split, with enough programs to fill the device."""
    chosen = {key: rows.row_sizes[key] for key in ("ACC", "PARTS", "BD")}
    chosen |= block_sizes(name, rows.rows, d=rows.columns, rows=rows.count)
    chunks = rows.columns // chosen["BD"]
    chosen["WHOLE"] = chunks == 1
    programs = triton.cdiv(rows.count, chosen["BM"]) * chunks
    tiles = triton.cdiv(columns.count, chosen["BN"])
    splits = min(tiles, max(1, 2 * multiprocessors(rows.values.device) // programs))
    width = triton.cdiv(tiles, splits) * chosen["BN"]
    return chosen, (programs, triton.cdiv(columns.count, width)), width


def _log_sums(
    anchors: ScaledRows,
    candidates: ScaledRows,
    targets: Tensor,
    temperature: float,
    first: int | None = None,
    partial: bool = False,
) -> _LogSums:
    """The losses of the anchors; with ``partial``, what their gradient needs.

    With ``first``, anchor i is candidate ``first`` + i, which it skips.
    """
    scale = _LOG2E / temperature
    chosen, grid, columns = _tiles(anchors, candidates, "nt_xent")
    shape = grid[1], anchors.stride
    running_max = temperature < _MIN_TEMPERATURE or anchors.values.dtype == torch.float16
    split_max = anchors.new(*shape) if running_max else None
    split_sum, weights = anchors.new(*shape), anchors.new(*shape)
    sums = anchors.new(*shape, anchors.columns) if partial else None
    _anchor_tiles[grid](
        anchors.kernel_args, candidates.kernel_args, first, split_max, split_sum, sums,
        anchors.columns, scale, columns, **chosen,
    )  # fmt: skip
    losses, lse = anchors.new(anchors.count), anchors.new(anchors.stride)
    own = torch.empty_like(lse, dtype=torch.int32)
    _losses[anchors.grid()](
        anchors.kernel_args, candidates.kernel_args, targets, split_max, split_sum, weights, losses,
        lse, own, anchors.columns, scale, grid[1], **anchors.row_sizes,
    )  # fmt: skip
    return _LogSums(losses.mean(), lse, own, sums, weights)


def _candidate_gradient(
    candidates: ScaledRows,
    anchors: ScaledRows,
    of: _LogSums,
    row_lse: Tensor | None,
    temperature: float,
    first: int | None = None,
) -> Tensor:
    """The gradient of the candidates; with ``row_lse``, they are anchors too."""
    chosen, grid, columns = _tiles(candidates, anchors, "nt_xent_candidates")
    sums = candidates.new(grid[1], candidates.stride, candidates.columns)
    # As an anchor too, a row has one target, which is left to the end.
    own, later = (of.own, None) if row_lse is None else (None, of.own)
    _candidate_tiles[grid](
        candidates.kernel_args, anchors.kernel_args, first, own, of.lse, row_lse, sums,
        candidates.columns, _LOG2E / temperature, columns, **chosen,
    )  # fmt: skip
    factor = 1 / (temperature * anchors.count * (1 if later is None else 2))
    return candidates.gradient(sums, None, later, 2, anchors, factor)


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
    a, c = ScaledRows(anchors), ScaledRows(candidates)
    of = _log_sums(a, c, targets.contiguous(), temperature, first, gradients)
    if of.sums is None:
        return of.loss, a.new(0, a.length), a.new(0, a.length)
    factor = 1 / (temperature * a.count)
    grad_anchors = a.gradient(of.sums, of.weights, of.own, 1, c, factor)
    return of.loss, grad_anchors, _candidate_gradient(c, a, of, None, temperature, first)


@register("nt_xent_symmetric")
def nt_xent_symmetric(
    anchors: Tensor, candidates: Tensor, temperature: float, gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See the op; six products of the matrices instead of the eight of two calls."""
    if not len(anchors):
        loss, *grads = symmetric_op.reference(anchors, candidates, temperature, gradients)
        return loss, grads[0], grads[1]
    a, c = ScaledRows(anchors), ScaledRows(candidates)
    targets = torch.arange(a.count, device=anchors.device)
    of_a = _log_sums(a, c, targets, temperature)
    of_c = _log_sums(c, a, targets, temperature)
    loss = (of_a.loss + of_c.loss) / 2
    if not gradients:
        return loss, a.new(0, a.length), a.new(0, a.length)
    grad_anchors = _candidate_gradient(a, c, of_c, of_a.lse, temperature)
    return loss, grad_anchors, _candidate_gradient(c, a, of_a, of_c.lse, temperature)
