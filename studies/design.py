"""The design of a study: its arms, scores, planned comparisons and scale."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cmrfast.data.datasets import Split
from cmrfast.methods import Row
from cmrfast.runs.evaluate import Evaluation

MOST_COMPARISONS = 5
Names = tuple[str, ...]
#: Makes a split from names of phantoms to train, validate and test on.
MakeSplit = Callable[[Names, Names, Names], Split]


@dataclass(frozen=True)
class Arm:
    """One variant of a study.

    Args:
        changes: changed fields of the method's config and recipe.
        published: its row in the paper's table.
        patients: fraction of the training patients to train on.
        others_validate: the rest of them are validation patients; otherwise they are not used.
        phantom: options of ``write_phantoms``, for an arm with phantoms of its own.
        split: in place of the study's.
    """

    changes: Mapping[str, Any]
    published: str | None = None
    patients: float = 1.0
    others_validate: bool = False
    phantom: Mapping[str, Any] = field(default_factory=dict)
    split: MakeSplit | None = None


@dataclass(frozen=True)
class Scale:
    """The size of a study.

    Args:
        patients: phantoms to train, validate and test on, if no data set is given.
        seeds: number of trainings of each arm. Each draws other phantoms to train and validate on;
            the test phantoms are the same.
        repeats: each seed draws its own test phantoms, too, so that it repeats the experiment.
        shrink: factor by which the phantoms' voxels are enlarged.
        changes: changed fields in every arm, which make a small study small.
        steps: optimiser steps; None for the recipe's epochs.
    """

    patients: tuple[int, int, int]
    seeds: int = 5
    repeats: bool = False
    shrink: float = 1.0
    changes: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None


@dataclass(frozen=True)
class Planned:
    """A comparison of two arms by one score, planned before the study runs.

    Args:
        claim: what the paper says, or the question if it makes no such comparison.
        first, second: names of the arms.
        score: the primary score.
        expected: what ``first`` is compared with ``second``, according to the paper; None if it
            makes no such comparison.
    """

    claim: str
    first: str
    second: str
    score: str
    expected: Literal["higher", "lower"] | None = None


@dataclass(frozen=True)
class Pooled:
    """A score that has no value per patient, such as a balanced accuracy.

    Args:
        counts: what one patient's rows contribute, as numbers.
        statistic: the score of a list of such contributions.
    """

    counts: Callable[[Sequence[Row]], list[float]]
    statistic: Callable[[list[list[float]]], float]


@dataclass(frozen=True)
class Control:
    """What a control measured.

    Args:
        name: what was measured, with its unit.
        value: None if it was not run.
        accept: the condition on the value.
        passed: whether the value meets it; None if it is only reported.
    """

    name: str
    value: float | None
    accept: str
    passed: bool | None


@dataclass(frozen=True)
class PaperTest:
    """The paper's own test, a paired t-test.

    Args:
        unit: what the paper counts as independent, in the plural.
        ids: ids of a row that identify a unit.
        pairs: arms that are tested.
        scores: scores that are tested.
    """

    unit: str
    ids: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    scores: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """Which arms are compared, and by which scores.

    Args:
        method: a key of ``cmrfast.models.MODELS``.
        arms: variants by name.
        scores: scores of an evaluation; the paper's table has the same names.
        comparisons: at most five; their p values are corrected by Holm's method.
        tiny, small, paper: the scales: of a test, of two CPU cores, as published.
        experiment: which of several of the method; empty for the main one.
        axis: of a curve, what the number at the end of each arm's name is; empty otherwise.
        pooled: those of the scores that have no value per patient.
        paper_test: the paper's own test; None if it reports none.
        baselines: arms without training, from an evaluation of the first arm.
        split: makes the split of phantoms; default whole patients.
        own_split: makes the split of a data set of one's own from the names of its patients, in
            their order; None splits at random, or as the data set says.
        own_share: proportions of a random split; None takes the recipe's.
    """

    method: str
    arms: Mapping[str, Arm]
    scores: tuple[str, ...]
    comparisons: tuple[Planned, ...]
    tiny: Scale
    small: Scale
    paper: Scale
    experiment: str = ""
    axis: str = ""
    pooled: Mapping[str, Pooled] = field(default_factory=dict)
    paper_test: PaperTest | None = None
    baselines: Mapping[str, Callable[[Evaluation], Evaluation]] = field(default_factory=dict)
    split: MakeSplit = Split
    own_split: Callable[[Sequence[str]], Split] | None = None
    own_share: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        """Refuse more comparisons than planned ones may be, and unknown names."""
        if len(self.comparisons) > MOST_COMPARISONS:
            raise ValueError(
                f"Study: comparisons must be at most {MOST_COMPARISONS}; "
                f"got {len(self.comparisons)}"
            )
        known = {*self.arms, *self.baselines}
        for planned in self.comparisons:
            unknown = {planned.first, planned.second} - known
            if unknown or planned.score not in self.scores:
                raise ValueError(
                    "Study: comparisons must name arms and scores of the study; "
                    f"got {planned.first}, {planned.second}, {planned.score}"
                )

    def scale(self, name: str) -> Scale:
        """The scale of that name."""
        return {"tiny": self.tiny, "small": self.small, "paper": self.paper}[name]

    def stem(self, scale: str) -> str:
        """The name of its result file and figures, without an ending."""
        return "-".join(part for part in (self.method, self.experiment, scale) if part)
