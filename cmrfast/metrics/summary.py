"""Mean, standard deviation and median of a score over cases."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Values = Tensor | Sequence[float]


class Summary(NamedTuple):
    """Statistics of a score over cases; NaN cases are excluded and counted."""

    mean: float
    sd: float
    median: float
    cases: int
    excluded: int


def summarise(values: Values) -> Summary:
    """Compute mean, sample standard deviation and median over cases.

    Args:
        values: (N,); NaN marks a case without a value.

    Example:
        >>> summarise([1.0, 2.0, 6.0, float("nan")]).mean
        3.0
    """
    scores = torch.as_tensor(values, dtype=torch.float64).flatten().cpu()
    valid = scores[~scores.isnan()]
    n = len(valid)
    return Summary(
        mean=valid.mean().item() if n else math.nan,
        sd=valid.std().item() if n > 1 else math.nan,
        median=valid.quantile(0.5).item() if n else math.nan,
        cases=n,
        excluded=len(scores) - n,
    )
