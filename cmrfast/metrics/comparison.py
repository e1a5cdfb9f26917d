"""Two arms of a study compared over patients and seeds, both random, and Holm's correction.

Slices, pairs and patches of one patient resemble each other, and so do all results of one training.
Only patients and seeds are therefore units of the test; whatever is measured within a patient is
averaged first, or pooled by a function.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from cmrfast.metrics.student import student_p, student_quantile

PatientT = TypeVar("PatientT", bound=Hashable)
SeedT = TypeVar("SeedT", bound=Hashable)
#: {(patient, seed): measurements}; empty where the patient has no value.
Measurements = Mapping[tuple[PatientT, SeedT], Sequence[Any] | Tensor]
Statistic = Literal["mean"] | Callable[[list[Any]], float]


class MeanSquares(NamedTuple):
    """Mean squares of a two-way table of differences, one value per patient and seed."""

    patients: float
    seeds: float
    residual: float


class Comparison(NamedTuple):
    """The difference between two arms, with patients and seeds as random units.

    Attributes:
        difference: first minus second.
        low, high: its 95 % interval.
        p: two-sided p of a difference of 0.
        standard_error: of the difference.
        freedom: degrees of freedom by Satterthwaite's formula.
        patients: number of patients compared.
        left_out: number of patients without a value in at least one cell of either arm.
        seeds: number of seeds.
        mean_squares: of the differences.
    """

    difference: float
    low: float
    high: float
    p: float
    standard_error: float
    freedom: float
    patients: int
    left_out: int
    seeds: int
    mean_squares: MeanSquares

    def detectable(
        self,
        *,
        patients: int | None = None,
        seeds: int | None = None,
        power: float = 0.8,
        repeats: bool = False,
    ) -> float:
        """The true difference that a study finds, at p < .05, with the given power.

        It is the sum of two quantiles of t, .975 and ``power``, times the standard error. A pilot
        with few patients and seeds estimates it for a study with more. Where differences vary
        neither from patient to patient nor from seed to seed, the test is conservative, and the
        power lower.

        Args:
            patients: number of patients of the planned study; default as in this comparison.
            seeds: number of its seeds; default as in this comparison.
            power: probability to find the difference, in (0, 1).
            repeats: whether each seed has an equal part of the patients to itself, so that it
                repeats the whole experiment, and the planned test is a paired t-test over seeds.

        Returns:
            A difference, NaN if this comparison has no standard error.
        """
        planned = (
            self.patients if patients is None else patients,
            self.seeds if seeds is None else seeds,
        )
        if not 0 < power < 1:
            raise ValueError(f"detectable: power must lie in (0, 1); got {power}")
        if math.isnan(self.standard_error):
            return math.nan
        if min(planned) < 2:
            raise ValueError(
                "detectable: patients and seeds must be at least 2; "
                f"got {planned[0]} and {planned[1]}"
            )
        if repeats and planned[0] < planned[1]:
            raise ValueError(
                "detectable: with repeats, patients must be at least as many as seeds; "
                f"got {planned[0]} and {planned[1]}"
            )
        freedom: float
        if repeats:
            # A patient meets one seed, so patients and residual are averaged over patients alone.
            of_patients, of_seeds = _variances(self.mean_squares, self.patients, self.seeds)
            of_means = (of_patients + self.mean_squares.residual) / planned[0]
            error, freedom = math.sqrt(of_means + of_seeds / planned[1]), planned[1] - 1
        else:
            squares = _rescale(self.mean_squares, self.patients, self.seeds, *planned)
            error, freedom = _standard_error(squares, *planned)
        return error * sum(student_quantile(q, freedom) for q in (0.975, power))


def compare_arms(
    first: Measurements[PatientT, SeedT],
    second: Measurements[PatientT, SeedT],
    *,
    statistic: Statistic = "mean",
) -> Comparison:
    """Test whether two arms differ, with patients and seeds as random units.

    With d[i, s] the difference between the arms for patient i and seed s, the variance of the mean
    of d is max(MSp + MSs - MSe, MSe) / (P S), from the mean squares of P patients, S seeds and the
    residual; the mean divided by its standard error is compared with Student's t, with degrees of
    freedom by Satterthwaite's formula.

    A function as ``statistic`` gets the measurements of all patients of one arm and seed in one
    list; its values are averaged over the seeds. d is then the difference between jackknife
    pseudo-values: those of patient i are P f(all) - (P - 1) f(all but i).

    A patient without a value in any cell, of either arm, is excluded and counted.

    Args:
        first: {(patient, seed): measurements}. Every patient has an entry for every seed; one that
            is empty, or has only NaN, has no value.
        second: likewise, with the same keys.
        statistic: "mean", the mean over patients of each patient's mean measurement, in which NaN
            is excluded; or a function of a list of measurements, such as a balanced accuracy, whose
            measurements may be of any type. NaN beside other measurements is passed to it.

    Returns:
        Difference, 95 % interval and p. For fewer than two patients or two seeds, or where the
        function returns NaN, all but the counts (and the difference, where defined) are NaN. If all
        differences are equal, p is 0, or NaN if they are 0.

    Example:
        >>> first = {("a", 0): [0.8, 0.9], ("a", 1): [0.9], ("b", 0): [0.7], ("b", 1): [0.8]}
        >>> second = {("a", 0): [0.6, 0.6], ("a", 1): [0.6], ("b", 0): [0.5], ("b", 1): [0.6]}
        >>> result = compare_arms(first, second)
        >>> f"{result.difference:.4f} [{result.low:.3f}, {result.high:.3f}]"
        '0.2375 [-0.268, 0.743]'
    """
    if statistic != "mean" and not callable(statistic):
        raise ValueError(f'compare_arms: statistic must be "mean" or a function; got {statistic!r}')
    patients, seeds = _require_grid(first, second)
    cells = [
        {key: _values(key, values, statistic) for key, values in arm.items()}
        for arm in (first, second)
    ]
    kept = [p for p in patients if all(arm[p, s] for arm in cells for s in seeds)]
    (a, pseudo_a), (b, pseudo_b) = (_table(arm, kept, seeds, statistic) for arm in cells)
    d = pseudo_a - pseudo_b
    squares = _mean_squares(d)
    error, freedom = _standard_error(squares, *d.shape)
    difference = (a - b).item()
    if error == 0:
        margin, p = 0.0, 0.0 if difference else math.nan
    elif math.isnan(error):
        margin, p = math.nan, math.nan
    else:
        margin = error * student_quantile(0.975, freedom)
        p = student_p(difference / error, freedom)
    return Comparison(
        difference=difference,
        low=difference - margin,
        high=difference + margin,
        p=p,
        standard_error=error,
        freedom=freedom,
        patients=len(kept),
        left_out=len(patients) - len(kept),
        seeds=len(seeds),
        mean_squares=squares,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct the p of several tests, by Holm's method, in the order given.

    p_holm < .05 keeps the probability of even one false finding among them below 5 %.

    Args:
        p_values: in [0, 1]; NaN remains NaN but counts as a test.

    Example:
        >>> holm([0.01, 0.5, 0.02])
        [0.03, 0.5, 0.04]
    """
    for p in p_values:
        if not (0 <= p <= 1 or math.isnan(p)):
            raise ValueError(f"holm: p_values must lie in [0, 1] or be NaN; got {p}")
    corrected, largest, count = [math.nan] * len(p_values), 0.0, len(p_values)
    valid = [n for n, p in enumerate(p_values) if not math.isnan(p)]
    for rank, n in enumerate(sorted(valid, key=lambda n: p_values[n])):
        largest = max(largest, min(1.0, (count - rank) * p_values[n]))
        corrected[n] = largest
    return corrected


def _require_grid(
    first: Measurements[PatientT, SeedT], second: Measurements[PatientT, SeedT]
) -> tuple[list[PatientT], list[SeedT]]:
    """Patients and seeds, in an order that does not depend on that of the keys."""
    for name, arm in (("first", first), ("second", second)):
        for key in arm:
            if not isinstance(key, tuple) or len(key) != 2:
                raise ValueError(
                    f"compare_arms: keys of {name} must be pairs (patient, seed); got {key!r}"
                )
    if not first or not second:
        raise ValueError(
            "compare_arms: first and second must have at least one patient and seed; "
            f"got {len(first)} and {len(second)} entries"
        )
    if unmatched := sorted(first.keys() ^ second.keys(), key=str):
        raise ValueError(
            "compare_arms: first and second must have the same patients and seeds; "
            f"got {unmatched[0]} in one of them only"
        )
    patients = sorted({patient for patient, _ in first}, key=str)
    seeds = sorted({seed for _, seed in first}, key=str)
    for key in ((p, s) for p in patients for s in seeds):
        if key not in first:
            raise ValueError(
                "compare_arms: every patient must have an entry for every seed, an empty one if "
                f"it has no value; got none for {key}"
            )
    return patients, seeds


def _values(key: Hashable, values: Sequence[Any] | Tensor, statistic: Statistic) -> list[Any]:
    """The measurements of a cell, none if all are NaN; for a mean, the mean of the others."""
    listed = values.flatten().tolist() if isinstance(values, Tensor) else list(values)
    if statistic != "mean":
        return [] if all(isinstance(v, Real) and v != v for v in listed) else listed
    valid = [float(v) for v in listed if not math.isnan(v)]
    if any(math.isinf(v) for v in valid):
        raise ValueError(f"compare_arms: measurements must be finite or NaN; got inf for {key}")
    return [math.fsum(valid) / len(valid)] if valid else []


def _table(
    cells: Mapping[tuple[PatientT, SeedT], list[Any]],
    patients: Sequence[PatientT],
    seeds: Sequence[SeedT],
    statistic: Statistic,
) -> tuple[Tensor, Tensor]:
    """The arm's value, (), and its (P, S) values or pseudo-values."""
    if statistic == "mean":
        means = [[cells[p, s][0] for s in seeds] for p in patients]
        table = torch.tensor(means, dtype=torch.float64).view(len(patients), len(seeds))
        return table.mean(), table
    if not patients:
        return torch.tensor(math.nan), torch.empty(0, len(seeds), dtype=torch.float64)

    def pooled(kept: Sequence[PatientT], seed: SeedT) -> float:
        return float(statistic([value for p in kept for value in cells[p, seed]]))

    whole = torch.tensor([pooled(patients, s) for s in seeds], dtype=torch.float64)
    n = len(patients)
    if n < 2:
        return whole.mean(), whole[None]
    others = [[*patients[:i], *patients[i + 1 :]] for i in range(n)]
    parts = [[pooled(kept, s) for s in seeds] for kept in others]
    return whole.mean(), n * whole - (n - 1) * torch.tensor(parts, dtype=torch.float64)


def _mean_squares(d: Tensor) -> MeanSquares:
    """Mean squares of a (P, S) table; NaN for fewer than two patients or seeds."""
    p, s = d.shape
    if min(p, s) < 2:
        return MeanSquares(math.nan, math.nan, math.nan)
    patients, seeds = d.mean(1, keepdim=True), d.mean(0, keepdim=True)
    mean = d.mean()
    return MeanSquares(
        (s * (patients - mean).square().sum() / (p - 1)).item(),
        (p * (seeds - mean).square().sum() / (s - 1)).item(),
        ((d - patients - seeds + mean).square().sum() / ((p - 1) * (s - 1))).item(),
    )


def _standard_error(squares: MeanSquares, patients: int, seeds: int) -> tuple[float, float]:
    """Standard error of the mean difference, and its degrees of freedom."""
    total = squares.patients + squares.seeds - squares.residual
    if math.isnan(total):
        return math.nan, math.nan
    freedoms = patients - 1, seeds - 1, (patients - 1) * (seeds - 1)
    if total <= squares.residual:
        return math.sqrt(squares.residual / (patients * seeds)), freedoms[2]
    spread = sum(square**2 / n for square, n in zip(squares, freedoms, strict=True))
    return math.sqrt(total / (patients * seeds)), total**2 / spread


def _rescale(
    squares: MeanSquares, patients: int, seeds: int, planned_patients: int, planned_seeds: int
) -> MeanSquares:
    """The mean squares to expect of another number of patients and seeds."""
    of_patients, of_seeds = _variances(squares, patients, seeds)
    return MeanSquares(
        squares.residual + planned_seeds * of_patients,
        squares.residual + planned_patients * of_seeds,
        squares.residual,
    )


def _variances(squares: MeanSquares, patients: int, seeds: int) -> tuple[float, float]:
    """Variance between patients and between seeds, without that of the residual."""
    return (
        max(0.0, squares.patients - squares.residual) / seeds,
        max(0.0, squares.seeds - squares.residual) / patients,
    )
