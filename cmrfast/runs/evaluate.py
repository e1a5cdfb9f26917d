"""A run evaluated on reference labels: rows, and the paper's table beside its published rows."""

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cmrfast import metrics
from cmrfast.atomic import atomic_write
from cmrfast.data.datasets.match import Values
from cmrfast.errors import FileError
from cmrfast.files import read_json, take
from cmrfast.methods import Published, Row
from cmrfast.runs.text import align_columns
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
        published: rows of the paper's table, by name.
    """

    method: str
    part: str
    rows: Sequence[Row]
    pooled: Mapping[str, float]
    published: Mapping[str, Published] = field(default_factory=dict)

    @property
    def scores(self) -> dict[str, list[float]]:
        """{metric: value of each unit}, NaN where a unit has none."""
        names = dict.fromkeys(name for row in self.rows for name in row.scores)
        return {name: [row.scores.get(name, math.nan) for row in self.rows] for name in names}

    def summary(self) -> dict[str, metrics.Summary]:
        """Mean, standard deviation and median of every metric."""
        scores = {**self.scores, **{name: [value] for name, value in self.pooled.items()}}
        return {name: metrics.summarise(values) for name, values in scores.items()}

    def beside_published(self) -> dict[str, tuple[metrics.Summary | None, list[str]]]:
        """{metric: its summary, and what each published row has for it}, ours first."""
        summary, published = self.summary(), [row.cells for row in self.published.values()]
        names = dict.fromkeys([*summary, *(name for cells in published for name in cells)])
        return {n: (summary.get(n), [cells.get(n, "-") for cells in published]) for n in names}

    def table(self) -> str:
        """Metrics down; across, this run and the rows of the paper's table."""
        metric_lines = self.beside_published()
        lines = [["", "this run", *self.published]]
        lines += [[n, _mean_sd(ours), *theirs] for n, (ours, theirs) in metric_lines.items()]
        left_out = [
            f"{name}: {ours.excluded} of {ours.cases + ours.excluded} have no value"
            for name, (ours, _) in metric_lines.items()
            if ours and ours.excluded
        ]
        title = f"{self.method}, {self.part}: mean (SD)"
        title += ", beside the rows that were published" if self.published else ""
        return "\n".join([title, align_columns(lines, heads=8), *left_out])

    def as_json(self) -> dict[str, Any]:
        """Rows and summary, NaN as null; ``ids`` names the entries of a row that are no scores."""
        return {
            "method": self.method,
            "part": self.part,
            "ids": list(dict.fromkeys(name for row in self.rows for name in row.ids)),
            "summary": {
                name: {key: _json(value) for key, value in summary._asdict().items()}
                for name, summary in self.summary().items()
            },
            "rows": [{key: _json(value) for key, value in flat.items()} for flat in self._flat()],
        }

    @classmethod
    def load(cls, folder: Path, part: str) -> "Evaluation":
        """Read what ``save`` wrote into a run's folder; a missing value is NaN."""
        file = folder / f"evaluation-{part}.json"
        try:
            stored = read_json(file)
            ids = take(stored, "ids", list)
            rows = [_row(flat, ids) for flat in take(stored, "rows", list)]
        except (OSError, ValueError) as error:
            raise FileError(
                f"load_evaluation: {file} is damaged or of an older version: {error}"
            ) from error
        return _evaluation(Run.open(folder), part, rows)

    def save(self, folder: Path) -> None:
        """Write ``evaluation-<part>.json`` and ``.csv``."""
        table = io.StringIO()
        names = [*dict.fromkeys(name for row in self.rows for name in row.ids), *self.scores]
        writer = csv.DictWriter(table, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._flat())
        content = json.dumps(self.as_json(), indent=1) + "\n"
        for ending, text in (("json", content), ("csv", table.getvalue())):
            with atomic_write(folder / f"evaluation-{self.part}.{ending}") as temporary:
                temporary.write_text(text, "utf-8")

    def _flat(self) -> list[dict[str, Any]]:
        return [{**row.ids, **row.scores} for row in self.rows]


def evaluate(
    run: Run,
    data: str | os.PathLike[str] | None = None,
    *,
    part: str = "test",
    labels: Values | None = None,
    device: str = "cpu",
) -> Evaluation:
    """Predict the patients of one part of a run's split and score them against their labels.

    Under torchrun the processes share the patients, unless their scores depend on each other; all
    of them return the scores of all.

    Args:
        run: a trained one.
        data: root of the data set; default where it was in training.
        part: train, validate, test, or all patients of another folder.
        labels: structure → its values in the masks; default those of the training.
        device: auto, cpu or cuda.

    Raises:
        FileError: a patient is not there, or none of them has reference labels.
    """
    with process_group(device) as ranks:
        model, task = run.model(device=ranks.device), run.task(device=ranks.device)
        every = run.cases(part, data, labels)
        if not task.mixes_cases:
            cases = every[ranks.rank :: ranks.count]
        else:
            cases = every if ranks.first else []
        with torch.inference_mode():
            own = task.evaluate_all(model, cases)
        rows = [row for rank_rows in ranks.gather(own) for row in rank_rows]
    if every and not rows:
        needs = run.method.needs
        missing = dict.fromkeys(m for case in every for m in needs.missing(case, needs.train))
        raise FileError(
            f"evaluate: no case of {data or run.data} can be scored; missing: {', '.join(missing)}"
        )
    return _evaluation(run, part, rows)


def _row(flat: dict[str, Any], ids: Sequence[str]) -> Row:
    """A row from one JSON object."""
    if not isinstance(flat, dict):
        raise ValueError("rows must be objects")
    scores = {name: take(flat, name, float, type(None)) for name in flat if name not in ids}
    return Row(
        {name: take(flat, name, str, int) for name in ids if name in flat},
        {name: math.nan if value is None else value for name, value in scores.items()},
    )


def _evaluation(run: Run, part: str, rows: Sequence[Row]) -> Evaluation:
    pooled = run.task().pooled(rows)
    return Evaluation(run.plan.method, part, rows, pooled, run.method.published)


def _mean_sd(summary: metrics.Summary | None) -> str:
    if not summary or not summary.cases:
        return "-"
    return f"{summary.mean:.2f}" + ("" if math.isnan(summary.sd) else f" ({summary.sd:.2f})")


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
