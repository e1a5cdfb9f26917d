"""One call of a public op, and what is known of its results."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Call:
    """One call of a public op.

    Args:
        run: the call, of the tensors that may have a gradient.
        inputs: those tensors.
        equal: what PyTorch makes of them, None where it has no equal.
        size: of the numbers that results are sums of, where those can cancel.
        gradient: of the numbers that gradients are sums of.
        zero_weights: whether voxels that are not finite, times a weight of 0, may count or not.
        finite: whether results are compared where the reference's overflow.
    """

    run: Callable[..., Any]
    inputs: list[Tensor] = field(default_factory=list)
    equal: Callable[..., Any] | None = None
    size: float = 0.0
    gradient: float = 0.0
    zero_weights: bool = False
    finite: bool = False


def largest(x: Tensor) -> float:
    """The largest finite magnitude."""
    if not x.numel():
        return 0.0
    return float(x.double().abs().nan_to_num(0.0, 0.0, 0.0).amax())
