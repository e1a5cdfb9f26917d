"""What a study compares: its arms, its scores, its tests, and how large it is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Arm:
    """A variant.

    Args:
        changes: of the method's config and recipe.
        published: its row of the paper's table.
        patients: share of the training patients that it learns from.
    """

    changes: Mapping[str, Any]
    published: str | None = None
    patients: float = 1.0


@dataclass(frozen=True)
class Scale:
    """How large a study is.

    Args:
        cases: phantoms, where no data set is given.
        shrink: of the phantoms' resolution.
        changes: of every arm; what makes a small study small.
        steps: optimiser steps; None is the recipe's epochs.
        seeds: trainings of each arm, on the same patients.
    """

    cases: int
    shrink: float = 1.0
    changes: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None
    seeds: int = 3


@dataclass(frozen=True)
class Study:
    """What is compared, by which scores.

    Args:
        method: a key of ``cmrfast.models.MODELS``.
        arms: variants by name.
        scores: of an evaluation; the paper's table has them under the same names.
        unit: keys of a row that name what paired tests pair.
        tests: pairs of arms held against one another.
        small, paper: the two scales.
    """

    method: str
    arms: Mapping[str, Arm]
    scores: tuple[str, ...]
    unit: tuple[str, ...]
    tests: tuple[tuple[str, str], ...]
    small: Scale
    paper: Scale
