"""The paired t-test, to compare two methods on the same cases."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cmrfast.metrics.student import student_p


class PairedTest(NamedTuple):
    """Result of Student's paired two-sided t-test; NaN where undefined."""

    t: float
    p: float
    cases: int


def paired_t_test(first: Tensor | Sequence[float], second: Tensor | Sequence[float]) -> PairedTest:
    """Test whether two measurements of the same cases differ in their mean.

    Args:
        first: (N,) values; a case with NaN in either is excluded.
        second: (N,) values of the same cases.

    Returns:
        t of first - second, two-sided p, and the number of cases used. t and p are NaN for fewer
        than two cases, or if all differences are 0.

    Example:
        >>> paired_t_test([3.0, 4.0, 6.0, 5.0], [1.0, 3.0, 3.0, 4.0]).cases
        4
    """
    a, b = (torch.as_tensor(x, dtype=torch.float64).cpu() for x in (first, second))
    if a.dim() != 1 or a.shape != b.shape:
        raise ValueError(
            "paired_t_test: first and second must be (N,) values of the same cases; "
            f"got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    difference = (a - b)[~(a.isnan() | b.isnan())]
    n = len(difference)
    if n < 2:
        return PairedTest(math.nan, math.nan, n)
    mean, error = difference.mean().item(), difference.std().item() / math.sqrt(n)
    if error == 0:
        t = math.copysign(math.inf, mean) if mean else math.nan
        return PairedTest(t, 0.0 if mean else math.nan, n)
    t = mean / error
    return PairedTest(t, student_p(t, n - 1), n)
