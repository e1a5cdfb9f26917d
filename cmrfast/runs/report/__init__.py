"""A report: one HTML page of a run, with its scores, curves, and pictures to scroll through."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cmrfast import viz
from cmrfast.atomic import atomic_write
from cmrfast.data.datasets.match import Values
from cmrfast.runs.evaluate import Evaluation, evaluate
from cmrfast.runs.report.cases import choose_cases
from cmrfast.runs.report.figures import as_png, box_figure, loss_figure, validation_figure
from cmrfast.runs.report.page import Contents, render
from cmrfast.runs.report.tables import by_unit
from cmrfast.runs.text import in_words
from cmrfast.train.log import read_log
from cmrfast.train.ranks import process_group
from cmrfast.train.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def report(
    run: Run,
    *,
    part: str = "test",
    data: str | None = None,
    labels: Values | None = None,
    device: str = "cpu",
    viewer: bool = True,
) -> Path:
    """Write ``report.html`` and its figures into the run's folder.

    Under torchrun the processes share the evaluation; the first one writes.

    Args:
        run: a trained one.
        part: of the split, whose patients are scored and shown.
        data: root of the data set; default where it was in training.
        labels: structure → its values in the masks; default those of the training.
        device: auto, cpu, or a GPU: cuda, cuda:1.
        viewer: put the images of the patients that are shown into the page, to be opened in a
            viewer; larger ones are cropped to their labels, and at most 12 MB each.

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
        chosen = choose_cases(run.method.objective, evaluation)
        with torch.inference_mode():
            pictures = [(shown, task.picture(model, cases[shown.case])) for shown in chosen]
    figures = _draw(read_log(run.path / "log.jsonl"), evaluation)
    folder = run.path / "figures"
    folder.mkdir(exist_ok=True)
    for name, figure in figures.items():
        _write(folder / f"{name}.png", as_png(figure))
    for shown, picture in pictures:
        place = folder / f"patient-{shown.place}.png"
        viz.overlay(picture.image, picture.predicted, place, names=run.method.structures)
    _write(page, render(run, evaluation, Contents(figures, pictures, viewer)).encode())
    return page


def _draw(log: Sequence[Mapping[str, Any]], evaluation: Evaluation) -> "dict[str, Figure]":
    """The figures by name: box plots of scores of one unit each, losses and validation."""
    figures: dict[str, Figure] = {}
    for unit, names in by_unit(evaluation.scores).items():
        means = {in_words(name): list(evaluation.case_means(name).values()) for name in names}
        means = {words: values for words, values in means.items() if values}
        if means:
            figures[f"scores-{len(figures) + 1}"] = box_figure(means, unit)
    figures["loss"] = loss_figure(log)
    validation = validation_figure(log)
    return {**figures, **({"validation": validation} if validation else {})}


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
