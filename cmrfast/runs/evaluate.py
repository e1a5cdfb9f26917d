"""A run evaluated on reference labels: rows, and the paper's table beside its published rows."""

import csv
import io
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cmrfast import metrics
from cmrfast.atomic import atomic_write
from cmrfast.data.datasets import Case
from cmrfast.data.datasets.match import Values
from cmrfast.errors import FileError
from cmrfast.files import read_json, take
from cmrfast.methods import AnyMethod, AnyTask, Published, Row
from cmrfast.methods.task import PRESENCES
from cmrfast.runs.notes import notes_on
from cmrfast.runs.text import (
    align_columns,
    finite_or_none,
    format_numbers,
    in_one_line,
    in_words,
    wrap,
)
from cmrfast.train.allocator import keep_freed_memory
from cmrfast.train.ranks import process_group
from cmrfast.train.run import Run


@dataclass(frozen=True)
class Evaluation:
    """Scores of a run on patients.

    Args:
        method: of the run.
        part: of the split.
        rows: of every unit.
        pooled: scores of all units together.
        record: of the method, for its published rows and the words of the table.
        notes: what a reader has to know before the scores.
        failed: patient → why there are no rows of it, in one line.
    """

    method: str
    part: str
    rows: Sequence[Row]
    pooled: Mapping[str, float]
    record: AnyMethod | None = None
    notes: Sequence[str] = ()
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def scores(self) -> dict[str, list[float]]:
        """{metric: value of each unit}, NaN where a unit has none."""
        names = dict.fromkeys(name for row in self.rows for name in row.scores)
        return {name: [row.scores.get(name, math.nan) for row in self.rows] for name in names}

    @property
    def published(self) -> Mapping[str, Published]:
        """Rows of the paper's table, by name."""
        return self.record.published if self.record else {}

    def summary(self, case: str | None = None) -> dict[str, metrics.Summary]:
        """Mean, standard deviation and median of every metric.

        Units whose two masks are both empty are excluded: their overlap is perfect by definition.

        Args:
            case: the patient whose units count; default all, with the pooled scores.
        """
        rows = [row for row in self.rows if case in (None, row.case)]
        values = {name: [self._real_score(row, name) for row in rows] for name in self.scores}
        pooled = {} if case else {name: [value] for name, value in self.pooled.items()}
        return {name: metrics.summarise(scores) for name, scores in {**values, **pooled}.items()}

    def case_means(self, name: str) -> dict[str, float]:
        """{patient: mean of a metric over its units}, of the patients that have one.

        As in ``summary``, units whose two masks are both empty do not count.
        """
        values: dict[str, list[float]] = {}
        for row in self.rows:
            score = self._real_score(row, name)
            if not math.isnan(score):
                values.setdefault(row.case, []).append(score)
        return {case: sum(scores) / len(scores) for case, scores in values.items()}

    def both_empty(self, name: str) -> int | None:
        """Units whose two masks are both empty; None for a score that is not of two masks."""
        if not self.record or name not in self.record.overlaps:
            return None
        return sum(self._is_empty(row, name) for row in self.rows)

    def beside_published(self) -> dict[str, tuple[metrics.Summary | None, list[str]]]:
        """{metric: its summary, and what each published row has for it}, ours first."""
        summary, published = self.summary(), [row.cells for row in self.published.values()]
        names = dict.fromkeys([*summary, *(name for cells in published for name in cells)])
        return {n: (summary.get(n), [cells.get(n, "-") for cells in published]) for n in names}

    @property
    def protocols(self) -> dict[str, list[str]]:
        """Titles of the published rows that were measured in one way, by that protocol."""
        titles: dict[str, list[str]] = {}
        for row in self.published.values():
            titles.setdefault(row.protocol, []).append(row.title)
        return titles

    @property
    def size(self) -> str:
        """How many patients and units were scored, in words."""
        patients = len({row.case for row in self.rows})
        text = f"{patients} patient{'' if patients == 1 else 's'}"
        return text if patients == len(self.rows) else f"{text}, {len(self.rows)} {self.units}"

    def structures(self) -> list[str]:
        """How many units have each structure, and in how many it is predicted, in words."""
        counts: dict[str, Counter[str]] = {}
        for row in self.rows:
            for name, which in row.present.items():
                counts.setdefault(name, Counter())[which] += 1
        return [self._in_words(name, which) for name, which in counts.items()]

    def table(self) -> str:
        """Metrics down; across, this run and the rows of the paper's table; notes below."""
        lines = [["", "this run", "n", "both empty"]]
        numbers = {row.title: f"[{n}]" for n, row in enumerate(self.published.values(), 1)}
        lines[0] += numbers.values()
        for name, (ours, theirs) in self.beside_published().items():
            empty = self.both_empty(name)
            count = "-" if ours is None else "all" if name in self.pooled else str(ours.cases)
            own = [name, _mean_sd(ours), count, "-" if empty is None else str(empty)]
            lines.append([*own, *theirs])
        return "\n".join(
            [
                f"{self.method}, {self.part}: {self.size}; mean (SD)",
                align_columns(lines, heads=8),
                *self.structures(),
                *(
                    wrap(f"published, {'; '.join(f'{numbers[t]} {t}' for t in titles)}: {protocol}")
                    for protocol, titles in self.protocols.items()
                ),
                *(wrap(f"note: {note}") for note in self.notes),
            ]
        )

    def as_json(self) -> dict[str, Any]:
        """Rows and summary, NaN as null; ``ids`` and ``present`` name what is no score."""
        return {
            "method": self.method,
            "part": self.part,
            "size": self.size,
            "notes": list(self.notes),
            "failed": dict(self.failed),
            "ids": list(dict.fromkeys(name for row in self.rows for name in row.ids)),
            "present": self._present,
            "summary": {
                name: {
                    **finite_or_none(summary._asdict()),
                    "both_empty": self.both_empty(name),
                }
                for name, summary in self.summary().items()
            },
            "rows": [finite_or_none(flat) for flat in self._flat()],
        }

    @classmethod
    def load(cls, folder: str | os.PathLike[str], part: str) -> "Evaluation":
        """Read what ``save`` wrote into a run's folder; a missing value is NaN."""
        file = Path(folder) / f"evaluation-{part}.json"
        try:
            stored = read_json(file)
            ids, present, notes = (_texts(stored, key) for key in ("ids", "present", "notes"))
            rows = [_row(flat, ids, present) for flat in take(stored, "rows", list)]
            failed = _failed(take(stored, "failed", dict) if "failed" in stored else {})
        except (OSError, ValueError) as error:
            raise FileError(
                f"load_evaluation: {file} is damaged or of an older version: {error}"
            ) from error
        return _evaluation(Run.open(folder), part, rows, notes, failed)

    def save(self, folder: Path) -> None:
        """Write ``evaluation-<part>.json`` and ``.csv``."""
        table = io.StringIO()
        ids = dict.fromkeys(name for row in self.rows for name in row.ids)
        names = [*ids, *map(_present_column, self._present), *self.scores]
        writer = csv.DictWriter(table, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._flat())
        content = json.dumps(self.as_json(), indent=1) + "\n"
        for ending, text in (("json", content), ("csv", table.getvalue())):
            with atomic_write(folder / f"evaluation-{self.part}.{ending}") as temporary:
                temporary.write_text(text, "utf-8")

    @property
    def units(self) -> str:
        """What the rows are, in the plural."""
        return self.record.units if self.record else "rows"

    @property
    def _present(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row.present))

    def _flat(self) -> list[dict[str, Any]]:
        return [
            {
                **row.ids,
                **{_present_column(name): which for name, which in row.present.items()},
                **row.scores,
            }
            for row in self.rows
        ]

    def _is_empty(self, row: Row, name: str) -> bool:
        structure = self.record.overlaps.get(name) if self.record else None
        return structure is not None and row.present.get(structure) == "neither"

    def _real_score(self, row: Row, name: str) -> float:
        return math.nan if self._is_empty(row, name) else row.scores.get(name, math.nan)

    def _in_words(self, structure: str, which: Mapping[str, int]) -> str:
        found, missed, false = (which[key] for key in ("both", "reference", "prediction"))
        having, count, without = found + missed, len(self.rows), false + which["neither"]
        patients = {row.case for row in self.rows}
        units = "patients" if len(patients) == count else self.units
        parts = [f"{in_words(structure)}: in {having} of {count} {units}"]
        parts += [f"predicted in {found} of these"] if having else []
        parts += [f"predicted in {false} of the {without} without"] if without else []
        return ", ".join(parts)


def evaluate(
    run: Run,
    data: str | os.PathLike[str] | None = None,
    *,
    part: str = "test",
    labels: Values | None = None,
    device: str = "cpu",
) -> Evaluation:
    """Predict the patients of one part of a run's split and score them against their labels.

    A patient that cannot be scored, such as one whose image is damaged, does not stop the others:
    it is in ``failed``, and a note names it.

    Under torchrun the processes share the patients, unless their scores depend on each other; all
    of them return the scores of all.

    Args:
        run: a trained one.
        data: root of the data set; default where it was in training.
        part: train, validate, test, or all patients of another folder.
        labels: structure → its values in the masks; default those of the training.
        device: auto, cpu, or a GPU: cuda, cuda:1.

    Raises:
        FileError: a patient is not there, or none of them can be scored.
    """
    with process_group(device) as ranks, keep_freed_memory():
        model, task = run.model(device=ranks.device), run.task(device=ranks.device)
        cases = run.cases(part, data, labels)
        own_cases = cases
        if not task.mixes_cases:
            own_cases = cases[ranks.rank :: ranks.count]
        elif not ranks.first:
            own_cases = []
        with torch.inference_mode():
            own, errors = _score(task, model, own_cases)
        reasons = {name: in_one_line(error) for name, error in errors.items()}
        parts = ranks.gather((own, reasons))
    rows = [row for rank_rows, _ in parts for row in rank_rows]
    failed = {name: reason for _, rank_failed in parts for name, reason in rank_failed.items()}
    if cases and not rows:
        needs = run.method.needs
        others = (case for case in cases if case.name not in failed)
        missing = dict.fromkeys(m for case in others for m in needs.missing(case, needs.train))
        why = [f"missing: {', '.join(missing)}"] if missing else []
        why += [f"{name}: {reason}" for name, reason in failed.items()][:5]
        raise FileError(
            f"evaluate: no case of {data or run.data} can be scored; {'; '.join(why)}"
        ) from next(iter(errors.values()), None)
    return _evaluation(run, part, rows, notes_on(run, part, cases, rows, failed), failed)


def _score(
    task: AnyTask, model: nn.Module, cases: Sequence[Case]
) -> tuple[list[Row], dict[str, Exception]]:
    """The rows of all cases that can be scored, and what is wrong with the others."""
    if not task.mixes_cases:
        return _score_each(task, model, cases)
    try:
        return task.evaluate_all(model, cases), {}
    except Exception:
        _, errors = _score_each(task, model, cases)
        if not errors:  # whatever is wrong, it is not a case
            raise
    return task.evaluate_all(model, [case for case in cases if case.name not in errors]), errors


def _score_each(
    task: AnyTask, model: nn.Module, cases: Sequence[Case]
) -> tuple[list[Row], dict[str, Exception]]:
    rows: list[Row] = []
    errors: dict[str, Exception] = {}
    for case in cases:
        try:
            rows += task.evaluate_all(model, [case])
        except Exception as error:  # whatever is wrong with one case, the others continue
            errors[case.name] = error
    return rows, errors


def _failed(stored: dict[str, Any]) -> dict[str, str]:
    """Reasons by patient in a JSON object."""
    return {name: take(stored, name, str) for name in stored}


def _texts(stored: dict[str, Any], name: str) -> list[str]:
    """A list of text in a JSON object."""
    values: list[str] = take(stored, name, list)
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"{name} must be a list of text")
    return values


def _row(flat: dict[str, Any], ids: Sequence[str], present: Sequence[str]) -> Row:
    """A row from one JSON object."""
    if not isinstance(flat, dict):
        raise ValueError("rows must be objects")
    columns = {_present_column(name): name for name in present}
    no_scores = {*ids, *columns}
    scores = {name: take(flat, name, float, type(None)) for name in flat if name not in no_scores}
    which = {name: take(flat, column, str) for column, name in columns.items() if column in flat}
    if not {*which.values()} <= {*PRESENCES}:
        raise ValueError(f"{', '.join(columns)} must be some of {', '.join(PRESENCES)}")
    return Row(
        {name: take(flat, name, str, int) for name in ids if name in flat},
        {name: math.nan if value is None else value for name, value in scores.items()},
        which,
    )


def _present_column(structure: str) -> str:
    return f"{structure}_in"


def _evaluation(
    run: Run, part: str, rows: Sequence[Row], notes: Sequence[str], failed: Mapping[str, str]
) -> Evaluation:
    pooled = run.task().pooled(rows)
    return Evaluation(run.plan.method, part, rows, pooled, run.method, notes, failed)


def _mean_sd(summary: metrics.Summary | None) -> str:
    if not summary or not summary.cases:
        return "-"
    mean, sd = format_numbers([summary.mean, summary.sd])
    return mean + ("" if math.isnan(summary.sd) else f" ({sd})")
