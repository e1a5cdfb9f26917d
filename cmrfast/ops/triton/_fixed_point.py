"""Sums that many programs add to at once, the same bits in any order: integers of a fixed unit.

The unit is a power of two, small enough for 62 bits to hold the largest sum there can be. Against
float32 sums that is at least as fine for terms within 2^-12 of the largest.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrfast.ops.triton._launch import FUSED, narrowed

_BLOCK = 1024


@triton.jit
def unit_exponent(BOUND, terms_log2):
    """The exponent of the unit for sums of fewer than 2^terms_log2 terms up to BOUND."""
    largest = tl.load(BOUND)
    exponent = (largest.to(tl.int64, bitcast=True) >> 52) - 1022  # largest < 2^exponent
    return tl.maximum(tl.minimum(exponent + terms_log2 - 62, 1000), -1000)


@triton.jit
def power_of_two(exponent):
    """2^exponent in double, of an int64 within its normal range."""
    return ((exponent + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def add_fixed(SUMS, at, values, there, per_unit):
    """Add values, as whole units, to the sums at these places."""
    units = tl.floor(values.to(tl.float64) * per_unit + 0.5)
    tl.atomic_add(SUMS + at, units.to(tl.int64), mask=there & (units != 0), sem="relaxed")


@triton.jit
def _to_float(SUMS, BOUND, OUT, numel, terms_log2, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    unit = power_of_two(unit_exponent(BOUND, terms_log2))
    largest = tl.load(BOUND)
    unit = tl.where(largest - largest == 0, unit, float("nan"))
    sums = tl.load(SUMS + at, mask=at < numel, other=0).to(tl.float64) * unit
    tl.store(OUT + at, narrowed(sums, OUT.dtype.element_ty), mask=at < numel)


def bound_of(*factors: Tensor) -> Tensor:
    """The largest magnitude of a product of entries, as a double on the device."""
    largest = [torch.linalg.vector_norm(x, torch.inf, dtype=_norm_type(x)) for x in factors]
    return torch.stack([x.double() for x in largest]).prod()


def _norm_type(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def to_float(sums: Tensor, bound: Tensor, terms_log2: int, dtype: torch.dtype) -> Tensor:
    """The sums in a float type; all NaN where the bound is not finite."""
    out = torch.empty(sums.shape, dtype=dtype, device=sums.device)
    if out.numel():
        grid = (triton.cdiv(out.numel(), _BLOCK),)
        _to_float[grid](sums, bound, out, out.numel(), terms_log2, BLOCK=_BLOCK, **FUSED)
    return out
