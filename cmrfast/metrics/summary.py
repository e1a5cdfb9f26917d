"""Mean, standard deviation and median of a score over cases."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Values = Tensor | Sequence[float]


class Summary(NamedTuple):
    """What a table prints of a column of cases; NaN cases are left out and counted."""

    mean: float
    sd: float
    median: float
    cases: int
    excluded: int


def summarise(values: Values) -> Summary:
    """Mean, sample standard deviation and median of cases.

    Args:
        values: (N,); NaN marks a case without a value.

    Example:
        >>> summarise([1.0, 2.0, 6.0, float("nan")]).mean
        3.0
    """
    everything = torch.as_tensor(values, dtype=torch.float64).flatten().cpu()
    kept = everything[~everything.isnan()]
    n = len(kept)
    return Summary(
        mean=kept.mean().item() if n else math.nan,
        sd=kept.std().item() if n > 1 else math.nan,
        median=kept.quantile(0.5).item() if n else math.nan,
        cases=n,
        excluded=len(everything) - n,
    )
