"""A workload at one size: its variants, and the minimum of data to move."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

Variant = Callable[[], object]


@dataclass
class Workload:
    """One workload at one size."""

    variants: dict[str, Variant]
    moved: int = 0  # least number of bytes read and written
    fresh: int = 0  # how many of them are in newly allocated memory
    flops: int = 0
    matrix_rate: str = "matmul_gflop_s"  # name of the measured rate that bounds the flops
    tolerance: float = 1e-4  # relative to the largest entry
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
        for name, variant in self.variants.items():
            if name != "cmrfast":
                for a, b in zip(variant(), ours, strict=True):
                    assert a.shape == b.shape, (name, a.shape, b.shape)
                    error = ((a - b).abs().max() / b.abs().max()).item()
                    assert error <= self.tolerance, (name, error)

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
