"""A workload at one size: its variants, and the minimum of data to move."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Variant = Callable[[], Any]


@dataclass
class Workload:
    """One workload at one size."""

    variants: dict[str, Variant]
    moved: int = 0  # least number of bytes read and written
    fresh: int = 0  # how many of them are in newly allocated memory
    flops: int = 0
    matrix_rate: str = "matmul_gflop_s"  # name of the measured rate that bounds the flops
    tolerance: float = 1e-4  # relative to the largest entry
    outliers: float = 0.0  # share of the entries that may differ by more
    #: Replaces the comparison of results where variants draw at random; raises if one is wrong.
    verify: Variant | None = None
    #: The part of each variant that only makes its data, timed separately.
    data: dict[str, Variant] = field(default_factory=dict)

    def check(self) -> None:
        """Assert that all variants agree with ours, relative to the largest entry.

        There is no absolute tolerance: the gradient of a mean over millions of voxels is about
        1e-7, and zeros would pass.
        """
        if self.verify:
            self.verify()
            return
        ours = self.variants["cmrfast"]()
        for name in self.variants:
            if name != "cmrfast":
                self._compare(name, ours)

    def drop_failing(self) -> dict[str, str]:
        """Remove the peers that fail or differ from ours; returns the reason for each.

        Ours must run. Results that are drawn at random are verified as a whole.
        """
        if self.verify:
            self.verify()
            return {}
        ours, reasons = self.variants["cmrfast"](), {}
        for name in [name for name in self.variants if name != "cmrfast"]:
            try:
                self._compare(name, ours)
            except Exception as error:
                reasons[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                del self.variants[name]
        if reasons and torch.cuda.is_available():
            torch.cuda.empty_cache()  # what a peer held that ran out of memory
        return reasons

    def _compare(self, name: str, ours: Iterable[Tensor]) -> None:
        for a, b in zip(self.variants[name](), ours, strict=True):
            assert a.shape == b.shape, (name, a.shape, b.shape)
            error = (a - b).abs() / b.abs().max()
            outliers = error.numel() - int((error <= self.tolerance).sum())  # NaN is one
            assert outliers <= self.outliers * error.numel(), (name, outliers, error.max().item())

    def floor_ms(self, rates: dict[str, float]) -> float:
        """Lower bound of the time in ms: moving the bytes, filling new memory, or the flops."""
        return max(
            self.moved / rates["copy_gb_s"] / 1e6,
            self.fresh / rates["fresh_gb_s"] / 1e6,
            self.flops / rates[self.matrix_rate] / 1e6,
        )


def with_gradients(loss: Callable[..., Tensor], *inputs: Tensor) -> Variant:
    """A variant that runs forward and backward and returns the gradients."""

    def run() -> list[Tensor]:
        loss(*inputs).backward()
        gradients = [x.grad for x in inputs]
        for x in inputs:
            x.grad = None
        return gradients

    return run
