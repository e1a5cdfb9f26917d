"""A matrix along one axis of a volume, as a tiled product that skips blocks of zeros."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrfast.ops.triton._launch import accumulator, block_sizes, register


@triton.jit
def _contract(
    x_ptr, weight_ptr, out_ptr, n, m, inner, lines, ACC: tl.constexpr,
    BM: tl.constexpr, BQ: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """A program computes BM outputs of BQ lines; the sum runs along the axis in order."""
    rows = (tl.program_id(1) * BM + tl.arange(0, BM))[:, None]
    line = (tl.program_id(0).to(tl.int64) * BQ + tl.arange(0, BQ))[None, :]
    outer, column = line // inner, line % inner
    acc = tl.full((BM, BQ), 0, ACC)
    for first in range(0, n, BT):
        t = first + tl.arange(0, BT)
        w = tl.load(
            weight_ptr + rows.to(tl.int64) * n + t[None, :],
            mask=(rows < m) & (t < n)[None, :], other=0,
        )  # fmt: skip
        if tl.max(tl.max((w != 0).to(tl.int32), 0), 0) > 0:  # a narrow Gaussian is mostly zeros
            x = tl.load(
                x_ptr + (outer * n + t[:, None]) * inner + column,
                mask=(t < n)[:, None] & (line < lines), other=0,
            )  # fmt: skip
            acc = tl.dot(w.to(ACC), x.to(ACC), acc, input_precision="ieee", out_dtype=ACC)
    offsets = (outer * m + rows) * inner + column
    mask = (rows < m) & (line < lines)
    tl.store(out_ptr + offsets, acc.to(out_ptr.dtype.element_ty), mask=mask)


@register("contract_axis")
def contract_axis(values: Tensor, weights: Tensor) -> Tensor:
    """See the op: (O, n, I) and (M, n) to (O, M, I)."""
    (outer, n, inner), count = values.shape, len(weights)
    out = torch.empty(outer, count, inner, dtype=values.dtype, device=values.device)
    if not out.numel():
        return out
    chosen: dict[str, Any] = block_sizes("contract_axis", values)
    grid = (triton.cdiv(outer * inner, chosen["BQ"]), triton.cdiv(count, chosen["BM"]))
    _contract[grid](
        values.contiguous(), weights.contiguous(), out, n, count, inner, outer * inner,
        ACC=accumulator(values.dtype), **chosen,
    )  # fmt: skip
    return out
