"""The planned comparisons of a study, with patients and seeds as random units.

python -m studies.comparisons

computes those of all result files again, from the measurements that the files contain.
"""

import importlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from cmrfast import metrics
from cmrfast.methods import Row
from cmrfast.metrics.comparison import Comparison, MeanSquares
from cmrfast.metrics.student import student_quantile
from cmrfast.runs.evaluate import Evaluation
from studies.design import Study

RESULTS = Path(__file__).parent / "results"

#: {arm: {score: {patient: value for each seed}}}; None where a patient has no value, and lists of
#: counts where a score is pooled.
Measured = Mapping[str, Mapping[str, Mapping[str, Sequence[Any]]]]


def measure(
    study: Study, evaluations: Mapping[str, Sequence[Evaluation]], *, repeats: bool = False
) -> Measured:
    """Each patient's mean of each score, or what the patient contributes to a pooled one.

    An arm with a single evaluation, as of a baseline without training, has it for every seed. If
    the whole experiment was repeated, a repeat takes the place of a patient and has one value.
    """
    seeds = max(len(own) for own in evaluations.values())
    rows = {arm: [_rows_by_patient(e) for e in own] for arm, own in evaluations.items()}
    patients = sorted({patient for own in rows.values() for one in own for patient in one})
    measured: dict[str, dict[str, dict[str, list[Any]]]] = {}
    for arm, own in rows.items():
        by_seed = own * seeds if len(own) == 1 else own
        names = {name for e in evaluations[arm] for row in e.rows for name in row.scores}
        measured[arm] = {
            score: {f"repeat {n}": [_pool(study, score, one)] for n, one in enumerate(by_seed, 1)}
            if repeats
            else {p: [_value(study, score, one.get(p, [])) for one in by_seed] for p in patients}
            for score in study.scores
            if score in names or score in study.pooled
        }
    return measured


def compare(
    study: Study, measured: Measured, *, repeats: bool = False, resplit: bool = False
) -> list[dict[str, Any]]:
    """The planned comparisons, each with its verdict, as the result file has them.

    Args:
        study: with its comparisons.
        measured: of all arms.
        repeats: whether the whole experiment was repeated.
        resplit: whether the repeats split the same patients again. Then they are not independent,
            and there is neither a p nor an interval.
    """
    results = [
        _compare(study, measured, p.first, p.second, p.score, repeats=repeats, resplit=resplit)
        for p in study.comparisons
    ]
    corrected = metrics.holm([result.p for result in results])
    return [
        {
            "claim": planned.claim,
            "first": planned.first,
            "second": planned.second,
            "score": planned.score,
            **_interval(result),
            "p": result.p,
            "p_holm": p_holm,
            "verdict": choose_verdict(result.difference, p_holm, planned.expected),
            **_units(result),
        }
        for planned, result, p_holm in zip(study.comparisons, results, corrected, strict=True)
    ]


def other_scores(
    study: Study, measured: Measured, *, repeats: bool = False, resplit: bool = False
) -> list[dict[str, Any]]:
    """Intervals of all other scores of the arms that are compared; these have no verdict.

    Arguments as in ``compare``.
    """
    primary = {(p.first, p.second, p.score) for p in study.comparisons}
    others = [
        (first, second, score)
        for first, second in dict.fromkeys((p.first, p.second) for p in study.comparisons)
        for score in study.scores
        if score in measured[first] and score in measured[second]
    ]
    results = {
        key: _compare(study, measured, *key, repeats=repeats, resplit=resplit)
        for key in others
        if key not in primary
    }
    return [
        {
            "first": first,
            "second": second,
            "score": score,
            **_interval(result),
            **_units(result),
        }
        for (first, second, score), result in results.items()
    ]


def detectable(
    study: Study, pilot: Measured, *, patients: int, seeds: int, repeats: bool = False
) -> list[dict[str, Any]]:
    """The difference that each planned comparison finds with 80 % power, from a pilot.

    Args:
        study: with its comparisons.
        pilot: measurements of a few seeds, all on the same validation patients.
        patients: number of test patients, of all repeats together; at least 2.
        seeds: number of trainings of each arm, at least 2.
        repeats: whether each seed has test patients of its own.
    """
    results = []
    for p in study.comparisons:
        result = _compare(study, pilot, p.first, p.second, p.score)
        found = result.detectable(patients=patients, seeds=seeds, repeats=repeats)
        results.append(
            {
                "first": p.first,
                "second": p.second,
                "score": p.score,
                "detectable": found,
                "patients": patients,
                "seeds": seeds,
            }
        )
    return results


def choose_verdict(
    difference: float, p_holm: float, expected: Literal["higher", "lower"] | None
) -> str:
    """What a comparison says about the paper's claim.

    Args:
        difference: first minus second.
        p_holm: its corrected p; NaN if there is none.
        expected: what the paper says that first is; None if it makes no such comparison.

    Returns:
        "ours" if the paper makes no such comparison; "not decided" unless p_holm < .05; otherwise
        "reproduced" or "contradicted", by the sign.
    """
    if expected is None:
        return "ours"
    if not p_holm < 0.05:
        return "not decided"
    return "reproduced" if (difference > 0) == (expected == "higher") else "contradicted"


def study_of(content: Mapping[str, Any]) -> Study:
    """The study that a result file is of."""
    studies: Sequence[Study] = importlib.import_module(f"studies.{content['method']}").STUDIES
    return next(study for study in studies if study.experiment == content["experiment"])


def recompute(content: dict[str, Any]) -> None:
    """Replace the comparisons of a result file, if it contains measurements."""
    if content.get("measurements"):
        study = study_of(content)
        measured = content["measurements"]
        how = {"repeats": content["repeats"], "resplit": content.get("resplit", False)}
        content["comparisons"] = compare(study, measured, **how)
        content["other_scores"] = other_scores(study, measured, **how)


def without_nan(value: Any) -> Any:
    """Replace non-finite numbers by None, as JSON has no NaN."""
    if isinstance(value, Mapping):
        return {key: without_nan(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _compare(
    study: Study,
    measured: Measured,
    first: str,
    second: str,
    score: str,
    *,
    repeats: bool = False,
    resplit: bool = False,
) -> Comparison:
    if repeats:
        arms = (measured[arm][score] for arm in (first, second))
        return _compare_repeats(*arms, resplit=resplit)
    pooled = study.pooled.get(score)
    cells = [
        {
            (patient, seed): [] if value is None else [value]
            for patient, values in measured[arm][score].items()
            for seed, value in enumerate(values)
        }
        for arm in (first, second)
    ]
    return metrics.compare_arms(*cells, statistic=pooled.statistic if pooled else "mean")


def _compare_repeats(
    first: Mapping[str, Sequence[Any]], second: Mapping[str, Sequence[Any]], *, resplit: bool
) -> Comparison:
    """Paired t-test over repeats, each with patients and a seed of its own; else no test."""
    pairs = [(first[name][0], second[name][0]) for name in first]
    kept = [(a, b) for a, b in pairs if a is not None and b is not None]
    differences = [a - b for a, b in kept]
    difference = fmean(differences) if kept else math.nan
    p, error, margin = math.nan, math.nan, math.nan
    if len(kept) > 1 and not resplit:
        p = metrics.paired_t_test([a for a, _ in kept], [b for _, b in kept]).p
        error = stdev(differences) / math.sqrt(len(kept))
        margin = error * student_quantile(0.975, len(kept) - 1)
    return Comparison(
        difference=difference,
        low=difference - margin,
        high=difference + margin,
        p=p,
        standard_error=error,
        freedom=len(kept) - 1,
        patients=len(kept),
        left_out=len(pairs) - len(kept),
        seeds=len(kept),
        mean_squares=MeanSquares(math.nan, math.nan, math.nan),
    )


def _interval(result: Comparison) -> dict[str, float]:
    return {"difference": result.difference, "low": result.low, "high": result.high}


def _units(result: Comparison) -> dict[str, int]:
    return {"patients": result.patients, "left_out": result.left_out, "seeds": result.seeds}


def _rows_by_patient(evaluation: Evaluation) -> dict[str, list[Row]]:
    patients: dict[str, list[Row]] = {}
    for row in evaluation.rows:
        patients.setdefault(str(row.ids["case"]), []).append(row)
    return patients


def _pool(study: Study, score: str, patients: Mapping[str, Sequence[Row]]) -> float | None:
    """The score of all patients of a repeat, None if they have none."""
    values = [_value(study, score, rows) for rows in patients.values()]
    values = [value for value in values if value is not None]
    if score in study.pooled:
        pooled = study.pooled[score].statistic(values)
        return None if math.isnan(pooled) else pooled
    return sum(values) / len(values) if values else None


def _value(study: Study, score: str, rows: Sequence[Row]) -> Any:
    """A patient's measurement, None if there is none."""
    if score in study.pooled:
        return study.pooled[score].counts(rows) if rows else None
    mean = metrics.summarise([row.scores.get(score, math.nan) for row in rows]).mean
    return None if math.isnan(mean) else mean


def main() -> None:
    """Compute the comparisons of all result files again."""
    for file in sorted(RESULTS.glob("*.json")):
        content = json.loads(file.read_text("utf-8"))
        recompute(content)
        file.write_text(json.dumps(without_nan(content), indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
