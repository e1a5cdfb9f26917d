"""A report: one HTML page of a run, with curves, tables, and pictures to scroll through."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from cmrfast import viz
from cmrfast.atomic import atomic_write
from cmrfast.data.datasets.match import Values
from cmrfast.methods import Objective, Row
from cmrfast.runs.evaluate import evaluate
from cmrfast.runs.report.figures import draw_curves
from cmrfast.runs.report.page import render
from cmrfast.train.log import read_log
from cmrfast.train.ranks import process_group
from cmrfast.train.run import Run


def report(
    run: Run,
    *,
    part: str = "test",
    data: str | None = None,
    labels: Values | None = None,
    device: str = "cpu",
) -> Path:
    """Write ``report.html`` and its figures into the run's folder.

    Under torchrun the processes share the evaluation; the first one writes.

    Args:
        run: a trained one.
        part: of the split, whose patients are scored and shown.
        data: root of the data set; default where it was in training.
        labels: structure → its values in the masks; default those of the training.
        device: auto, cpu or cuda.

    Returns:
        The page.
    """
    with process_group(device) as ranks:
        evaluation = evaluate(run, data, part=part, labels=labels, device=device)
        page = run.path / "report.html"
        if not ranks.first:
            return page
        evaluation.save(run.path)
        task, model = run.task(device=ranks.device), run.model(device=ranks.device)
        cases = {case.name: case for case in run.cases(part, data, labels)}
        chosen = _best_median_worst(run.method.objective, evaluation.rows)
        with torch.inference_mode():
            pictures = {title: task.picture(model, cases[name]) for title, name in chosen.items()}
    curves = draw_curves(read_log(run.path / "log.jsonl"))
    (run.path / "figures").mkdir(exist_ok=True)
    _write(run.path / "figures" / "curves.png", curves)
    for title, picture in pictures.items():
        place = run.path / "figures" / f"{title.split()[0]}.png"
        viz.overlay(picture.image, picture.predicted, place, names=run.method.structures)
    _write(page, render(run, evaluation, curves, pictures).encode())
    return page


def _best_median_worst(objective: Objective, rows: Sequence[Row]) -> dict[str, str]:
    """Titles and names of three cases, by the mean of the method's objective."""
    by_case: dict[str, list[Row]] = {}
    for row in rows:
        by_case.setdefault(row.case, []).append(row)
    means = {name: objective.mean(of_case) for name, of_case in by_case.items()}
    means = {name: mean for name, mean in means.items() if not math.isnan(mean)}
    if not means:
        return {}
    ranked = sorted(means, key=lambda name: means[name], reverse=objective.maximise)
    places = {"best": 0, "median": len(ranked) // 2, "worst": len(ranked) - 1}
    titles: dict[str, str] = {}
    for title, place in places.items():
        name = ranked[place]
        if name not in titles.values():
            titles[f"{title} ({name}, {objective.name} {means[name]:.3g})"] = name
    return titles


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
