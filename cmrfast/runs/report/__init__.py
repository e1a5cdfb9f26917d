"""A report: one HTML page of a run, with curves, tables, and pictures to scroll through."""

import math
from pathlib import Path

import torch

from cmrfast import viz
from cmrfast.atomic import atomic_write
from cmrfast.data.datasets.match import Values
from cmrfast.methods import Objective
from cmrfast.runs.evaluate import Evaluation, evaluate
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
        chosen = _choose_cases(run.method.objective, evaluation)
        with torch.inference_mode():
            pictures = {title: task.picture(model, cases[name]) for title, name in chosen.items()}
    log = read_log(run.path / "log.jsonl")
    curves = draw_curves(log)
    (run.path / "figures").mkdir(exist_ok=True)
    _write(run.path / "figures" / "curves.png", curves)
    for title, picture in pictures.items():
        place = run.path / "figures" / f"{title.split()[0]}.png"
        viz.overlay(picture.image, picture.predicted, place, names=run.method.structures)
    _write(page, render(run, evaluation, log, curves, pictures).encode())
    return page


def _choose_cases(objective: Objective, evaluation: Evaluation) -> dict[str, str]:
    """Titles and names of up to three cases, by the mean of the method's objective.

    Cases without a value, such as those whose masks are both empty, have no rank.
    """
    names = dict.fromkeys(row.case for row in evaluation.rows)
    means = {
        name: summary[objective.name].mean
        for name in names
        if objective.name in (summary := evaluation.summary(name))
    }
    means = {name: mean for name, mean in means.items() if not math.isnan(mean)}
    ranked = sorted(means, key=lambda name: means[name], reverse=objective.maximise)
    count = len(ranked)
    places = {"best": 0, "median": count // 2, "worst": count - 1}
    if count < 3:
        places = {"best": 0, "worst": 1} if count == 2 else {"only": 0} if count else {}
    chosen = {title: ranked[place] for title, place in places.items()}
    return {
        f"{title} of {count} scored ({name}, {objective.name} {means[name]:.3g})": name
        for title, name in chosen.items()
    }


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
