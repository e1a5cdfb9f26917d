"""The design of a study: its arms, scores, tests and scale."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Arm:
    """One variant of a study.

    Args:
        changes: changed fields of the method's config and recipe.
        published: its row in the paper's table.
        patients: fraction of the training patients to train on.
    """

    changes: Mapping[str, Any]
    published: str | None = None
    patients: float = 1.0


@dataclass(frozen=True)
class Scale:
    """The size of a study.

    Args:
        cases: number of phantoms, if no data set is given.
        shrink: factor by which the phantoms' voxels are enlarged.
        changes: changed fields in every arm, which make a small study small.
        steps: optimiser steps; None for the recipe's epochs.
        seeds: number of trainings per arm, on the same patients.
    """

    cases: int
    shrink: float = 1.0
    changes: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None
    seeds: int = 3


@dataclass(frozen=True)
class Study:
    """Which arms are compared, and by which scores.

    Args:
        method: a key of ``cmrfast.models.MODELS``.
        arms: variants by name.
        scores: scores of an evaluation; the paper's table has the same names.
        unit: ids of a row that identify a unit in the paired tests.
        tests: pairs of arms to compare with each other.
        small, paper: the two scales.
    """

    method: str
    arms: Mapping[str, Arm]
    scores: tuple[str, ...]
    unit: tuple[str, ...]
    tests: tuple[tuple[str, str], ...]
    small: Scale
    paper: Scale
