"""A matrix along one axis of a volume, as tiles of a product that skips blocks of zeros."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrfast.ops.triton._launch import accumulator, blocks, launches


@triton.jit
def _contract(
    VALUES, WEIGHTS, OUT, n, m, inner, lines, ACC: tl.constexpr,
    BM: tl.constexpr, BQ: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """A program makes BM entries of BQ lines along the axis; sums run along it in order."""
    rows = (tl.program_id(1) * BM + tl.arange(0, BM))[:, None]
    line = (tl.program_id(0).to(tl.int64) * BQ + tl.arange(0, BQ))[None, :]
    outer, along = line // inner, line % inner
    sums = tl.full((BM, BQ), 0, ACC)
    for first in range(0, n, BT):
        t = first + tl.arange(0, BT)
        w = tl.load(
            WEIGHTS + rows.to(tl.int64) * n + t[None, :],
            mask=(rows < m) & (t < n)[None, :], other=0,
        )  # fmt: skip
        if tl.max(tl.max((w != 0).to(tl.int32), 0), 0) > 0:  # a narrow Gaussian is mostly zeros
            values = tl.load(
                VALUES + (outer * n + t[:, None]) * inner + along,
                mask=(t < n)[:, None] & (line < lines), other=0,
            )  # fmt: skip
            sums = tl.dot(w.to(ACC), values.to(ACC), sums, input_precision="ieee", out_dtype=ACC)
    at = (outer * m + rows) * inner + along
    tl.store(OUT + at, sums.to(OUT.dtype.element_ty), mask=(rows < m) & (line < lines))


@launches("contract_axis")
def contract_axis(values: Tensor, weights: Tensor) -> Tensor:
    """See the op: (O, n, I) and (M, n) to (O, M, I)."""
    (outer, n, inner), count = values.shape, len(weights)
    out = torch.empty(outer, count, inner, dtype=values.dtype, device=values.device)
    if not out.numel():
        return out
    chosen: dict[str, Any] = blocks("contract_axis", values)
    grid = (triton.cdiv(outer * inner, chosen["BQ"]), triton.cdiv(count, chosen["BM"]))
    _contract[grid](
        values.contiguous(), weights.contiguous(), out, n, count, inner, outer * inner,
        ACC=accumulator(values.dtype), **chosen,
    )  # fmt: skip
    return out
