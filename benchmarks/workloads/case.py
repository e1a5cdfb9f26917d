"""A workload at one size: the ways to do it, and the least that must move for it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

Way = Callable[[], object]


@dataclass
class Case:
    """One workload at one size."""

    ways: dict[str, Way]
    moved: int = 0  # bytes read and written at least
    fresh: int = 0  # bytes of them that are new memory
    flops: int = 0
    matrix_rate: str = "matmul_gflop_s"  # the rate, by name, that bounds the operations
    tolerance: float = 1e-4  # of the largest entry
    #: Raises unless all ways are right, where they draw at random and results cannot be compared.
    proof: Way | None = None
    #: Of each way, the part that only makes its data, timed beside it.
    data: dict[str, Way] = field(default_factory=dict)

    def check(self) -> None:
        """All ways give what ours gives, to a share of its largest entry.

        No absolute part: the gradient of a mean over millions of voxels is about 1e-7, and zeros
        would pass. Ways that draw at random bring a proof of their own.
        """
        if self.proof:
            self.proof()
            return
        ours = self.ways["cmrfast"]()
        for name, way in self.ways.items():
            if name != "cmrfast":
                for a, b in zip(way(), ours, strict=True):
                    assert a.shape == b.shape, (name, a.shape, b.shape)
                    error = ((a - b).abs().max() / b.abs().max()).item()
                    assert error <= self.tolerance, (name, error)

    def floor_ms(self, rates: dict[str, float]) -> float:
        """The longest of moving the bytes, filling the new ones, and the operations."""
        return max(
            self.moved / rates["copy_gb_s"] / 1e6,
            self.fresh / rates["fresh_gb_s"] / 1e6,
            self.flops / rates[self.matrix_rate] / 1e6,
        )


def differentiated(loss: Callable[..., Tensor], *inputs: Tensor) -> Way:
    """Forward and backward, the gradients as the result."""

    def run() -> list[Tensor]:
        loss(*inputs).backward()
        gradients = [x.grad for x in inputs]
        for x in inputs:
            x.grad = None
        return gradients

    return run
