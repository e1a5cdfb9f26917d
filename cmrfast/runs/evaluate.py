"""A trained network held against labels: rows, the paper's table, and two masks compared."""

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
from cmrfast.atomic import replacing
from cmrfast.data.nifti import read_nifti
from cmrfast.errors import FileError
from cmrfast.metrics.table import aligned
from cmrfast.tasks import Row
from cmrfast.train.run import Run


@dataclass(frozen=True)
class Evaluation:
    """Scores of a run on patients.

    Args:
        method: of the run.
        part: of the split.
        rows: of every unit, as the task names them.
        pooled: scores of all units together.
        published: rows of the paper's table, {model: {metric: as printed}}.
    """

    method: str
    part: str
    rows: Sequence[Row]
    pooled: Mapping[str, float]
    published: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def scores(self) -> dict[str, list[float]]:
        """{metric: value of each unit}, NaN where a unit has none."""
        names = dict.fromkeys(
            name for row in self.rows for name, value in row.items() if isinstance(value, float)
        )
        return {name: [float(row.get(name, math.nan)) for row in self.rows] for name in names}

    def summary(self) -> dict[str, metrics.Summary]:
        """Mean, standard deviation and median of every metric."""
        scores = {**self.scores, **{name: [value] for name, value in self.pooled.items()}}
        return {name: metrics.summarise(values) for name, values in scores.items()}

    def beside_published(self) -> dict[str, tuple[metrics.Summary | None, list[str]]]:
        """Of every metric, ours or the paper's: what was measured, and what each row printed."""
        summary, published = self.summary(), self.published.values()
        names = dict.fromkeys([*summary, *(name for cells in published for name in cells)])
        return {n: (summary.get(n), [cells.get(n, "-") for cells in published]) for n in names}

    def table(self) -> str:
        """Metrics down; across, this run and the rows of the paper's table."""
        metric_lines = self.beside_published()
        lines = [["", "this run", *self.published]]
        lines += [[n, _mean_sd(ours), *theirs] for n, (ours, theirs) in metric_lines.items()]
        left_out = [
            f"{name}: {found.excluded} of {found.cases + found.excluded} have no value"
            for name, (found, _) in metric_lines.items()
            if found and found.excluded
        ]
        title = f"{self.method}, {self.part}: mean (SD)"
        title += ", beside the rows that were published" if self.published else ""
        return "\n".join([title, aligned(lines, heads=8), *left_out])

    def as_json(self) -> dict[str, Any]:
        """Rows and summary, NaN as null."""
        return {
            "method": self.method,
            "part": self.part,
            "summary": {
                name: {key: _json(value) for key, value in summary._asdict().items()}
                for name, summary in self.summary().items()
            },
            "rows": [{key: _json(value) for key, value in row.items()} for row in self.rows],
        }

    def save(self, folder: Path) -> None:
        """Write ``evaluation-<part>.json`` and ``.csv``."""
        table = io.StringIO()
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        writer = csv.DictWriter(table, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        content = json.dumps(self.as_json(), indent=1) + "\n"
        for ending, text in (("json", content), ("csv", table.getvalue())):
            with replacing(folder / f"evaluation-{self.part}.{ending}") as temporary:
                temporary.write_text(text, "utf-8")


def evaluate(
    run: Run,
    data: str | os.PathLike[str] | None = None,
    *,
    part: str = "test",
    device: torch.device | str = "cpu",
    rank: int = 0,
    ranks: int = 1,
) -> Evaluation:
    """Predict the patients of one part of a run's split and hold them against their labels.

    Args:
        run: a trained one.
        data: root of the data set; default where it lay in training.
        part: train, validate, test, or all patients of another folder.
        device: where the network runs.
        rank, ranks: this process takes every ``ranks``-th patient, from ``rank`` on.
    """
    model, task = run.model(device=device), run.task(device=device)
    rows: list[Row] = []
    with torch.inference_mode():
        for case in run.cases(part, data)[rank::ranks]:
            rows.extend(task.evaluate(model, case))
    return evaluation(run, part, rows)


def evaluation(run: Run, part: str, rows: Sequence[Row]) -> Evaluation:
    """Rows, of this process or gathered from many, with what they say together."""
    task = run.task()
    return Evaluation(run.plan.method, part, rows, task.pooled(rows), task.published)


def compare(
    predicted: str | os.PathLike[str], reference: str | os.PathLike[str]
) -> dict[str, dict[str, float]]:
    """All mask metrics between two NIfTI masks on one grid.

    Returns:
        {label: {metric: value}}, for every label above 0 in either mask.
    """
    p, r = read_nifti(predicted), read_nifti(reference)
    if not p.shares_grid(r) or p.channels != r.channels:
        raise FileError(
            f"compare: {predicted} and {reference} must lie on one grid; they have "
            f"{p.shape} voxels of {_mm(p.spacing_mm)} and {r.shape} of {_mm(r.spacing_mm)}"
        )
    labels = sorted({*p.data.unique().tolist(), *r.data.unique().tolist()} - {0})
    found: dict[str, dict[str, float]] = {}
    for label in labels:
        a, b = p.data[0] == label, r.data[0] == label
        distances = metrics.surface_distances(a, b, r.spacing_mm)
        found[f"{label:g}"] = {
            "dice": float(metrics.dice(a, b)),
            "jaccard": float(metrics.jaccard(a, b)),
            "precision": float(metrics.precision(a, b)),
            "recall": float(metrics.recall(a, b)),
            **distances._asdict(),
            "center_distance_mm": float(metrics.center_distance(a, b, r.spacing_mm)),
        }
    return found


def as_table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Labels down, metrics across."""
    columns = list(next(iter(scores.values()), {}))
    lines = [["label", *columns]]
    lines += [[label, *(f"{cells[c]:.4f}" for c in columns)] for label, cells in scores.items()]
    return aligned(lines, right=True)


def _mean_sd(found: metrics.Summary | None) -> str:
    if not found or not found.cases:
        return "-"
    return f"{found.mean:.2f}" + ("" if math.isnan(found.sd) else f" ({found.sd:.2f})")


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _mm(spacing: Sequence[float]) -> str:
    return " x ".join(f"{s:.3g}" for s in spacing) + " mm"
