"""Rows as NT-Xent reads them, and the gradients of the original rows.

Rows enter the products scaled by a power of two, which is exact in half precision; the products are
divided by the norms afterwards.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrfast.ops.triton._launch import accumulator, block_sizes, sum_dtype
from cmrfast.ops.triton._row_parts import load_rows, load_values, store_rows, to_parts

_PARTS = 3  # of a float32
_WHOLE_TILES = 128  # rows: a multiple of every block size


@triton.jit
def _load_some(x_ptr, rows, count, d, D):
    """Columns d of some rows of x, which is not padded: zeros outside."""
    offsets = rows.to(tl.int64)[:, None] * D + d[None, :]
    return tl.load(x_ptr + offsets, mask=(rows < count)[:, None] & (d < D)[None, :], other=0)


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
        parts = to_parts(value, y_ptr.dtype.element_ty, PARTS)
        for part in tl.static_range(PARTS):
            store_rows(y_ptr + part * stride.to(tl.int64) * D, rows, d, D, parts[part])
    is_zero = squares == 0
    inverse_norm = 1 / tl.sqrt(tl.where(is_zero, 1, squares))
    tl.store(inverse_norm_ptr + rows, inverse_norm)
    tl.store(grad_scale_ptr + rows, tl.where(is_zero, 0, inverse_norm * power))


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
        part = load_rows(partial_ptr, rows.to(tl.int64) + split * stride, d, D)
        if split_weight_ptr is not None:
            part *= tl.load(split_weight_ptr + split * stride + rows)[:, None]
        acc += part
    if own is not None:
        target = tl.maximum(own, 0)
        unit = load_values(y, target, d, D, ACC, PARTS)
        unit *= tl.load(y_inverse_norm_ptr + target)[:, None]
        acc -= tl.where((own >= 0)[:, None], unit * targets, float("nan"))
    unit = load_values(x, rows, d, D, ACC, PARTS)
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


class ScaledRows:
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

    def gradient(
        self,
        partial: Tensor,
        weights: Tensor | None,
        own: Tensor | None,
        targets: int,
        other: "ScaledRows",
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
