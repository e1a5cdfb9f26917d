"""Atomic sums that do not depend on the order of the additions: integers in a fixed unit.

The unit is a power of two, chosen such that the largest possible sum fits in 62 bits. For terms
within 2^-12 of the largest, the result is at least as accurate as a float32 sum.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrfast.ops.triton._launch import FMA, cast_from_double, sum_dtype

_BLOCK = 1024


@triton.jit
def unit_exponent(bound_ptr, terms_log2):
    """The exponent of the unit for sums of fewer than 2^terms_log2 terms of at most the bound."""
    bound = tl.load(bound_ptr)
    exponent = (bound.to(tl.int64, bitcast=True) >> 52) - 1022  # bound < 2^exponent
    return tl.maximum(tl.minimum(exponent + terms_log2 - 62, 1000), -1000)


@triton.jit
def power_of_two(exponent):
    """2^exponent as float64, for an int64 exponent of a normal number."""
    return ((exponent + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def units_per_one(sums):
    """The factor that turns values into units of ``sums``."""
    _, bound_ptr, terms_log2 = sums
    return power_of_two(-unit_exponent(bound_ptr, terms_log2))


@triton.jit
def atomic_add_fixed(sums, offsets, values, mask, per_one):
    """Add values, rounded to units, to the sums at the offsets."""
    units = tl.floor(values.to(tl.float64) * per_one + 0.5)
    tl.atomic_add(sums[0] + offsets, units.to(tl.int64), mask=mask & (units != 0), sem="relaxed")


@triton.jit
def _to_float(sums_ptr, bound_ptr, out_ptr, numel, terms_log2, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < numel
    unit = power_of_two(unit_exponent(bound_ptr, terms_log2))
    bound = tl.load(bound_ptr)
    unit = tl.where(bound - bound == 0, unit, float("nan"))
    sums = tl.load(sums_ptr + offsets, mask=mask, other=0).to(tl.float64) * unit
    tl.store(out_ptr + offsets, cast_from_double(sums, out_ptr.dtype.element_ty), mask=mask)


class FixedPointSums:
    """Sums of at most ``terms`` products of entries of the ``factors``.

    ``kernel_args`` is what ``atomic_add_fixed`` calls ``sums``.
    """

    def __init__(self, shape: tuple[int, ...], terms: int, *factors: Tensor) -> None:
        self._sums = torch.zeros(shape, dtype=torch.int64, device=factors[0].device)
        self._bound = _max_product(*factors)
        self._terms_log2 = terms.bit_length()

    @property
    def kernel_args(self) -> tuple[Any, ...]:
        """The sums, the bound of a term, and the logarithm of the number of terms."""
        return self._sums, self._bound, self._terms_log2

    def to(self, dtype: torch.dtype) -> Tensor:
        """The sums in a floating dtype; all NaN if the bound is not finite."""
        out = torch.empty(self._sums.shape, dtype=dtype, device=self._sums.device)
        if out.numel():
            grid = (triton.cdiv(out.numel(), _BLOCK),)
            _to_float[grid](
                self._sums, self._bound, out, out.numel(), self._terms_log2, BLOCK=_BLOCK, **FMA
            )
        return out


def _max_product(*factors: Tensor) -> Tensor:
    """The largest magnitude of a product of entries, as float64, without a synchronisation."""
    norms = [torch.linalg.vector_norm(x, torch.inf, dtype=sum_dtype(x.dtype)) for x in factors]
    return torch.stack([x.double() for x in norms]).prod()
