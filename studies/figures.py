"""Figures of a study: scores and losses of all trainings, and a grid of test patients."""

import io
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import torch
from matplotlib import pyplot
from matplotlib.image import imread

from cmrfast import methods, viz
from cmrfast.data import Volume
from cmrfast.data.datasets import Case
from cmrfast.data.prepare import crop_or_pad
from cmrfast.train import Run
from cmrfast.train.log import read_log
from studies.outcome import Outcome

mpl.use("Agg")


def draw(outcome: Outcome, *, cases: int = 3) -> None:
    """Write both figures of a study to its results folder."""
    stem = outcome.results / outcome.stem
    _scores(outcome).savefig(f"{stem}.png", dpi=90)
    _cases(outcome, cases).savefig(f"{stem}-cases.png", dpi=90)
    pyplot.close("all")


def _scores(outcome: Outcome) -> Any:
    """A panel for each score, and one with the training losses."""
    scores = [
        score
        for score in outcome.study.scores
        if any(outcome.by_seed(arm).get(score) for arm in outcome.evaluations)
    ]
    rows = -(-(len(scores) + 1) // 4)
    figure, grid = pyplot.subplots(rows, 4, figsize=(11, 3 * rows), layout="constrained")
    axes = list(grid.flat)
    for panel in axes[len(scores) + 1 :]:
        panel.remove()
    colours = {arm: f"C{n % 10}" for n, arm in enumerate(outcome.evaluations)}
    for panel, score in zip(axes, scores, strict=False):
        panel.set_title(score.replace("_", " "), fontsize=10)
        panel.grid(axis="y", alpha=0.3)
        if outcome.study.axis:
            _draw_curves(panel, outcome, score)
        else:
            _draw_boxes(panel, outcome, score, colours)
    panel = axes[len(scores)]
    for arm, runs in outcome.runs.items():
        curves = [
            [line["loss"] for line in read_log(run.path / "log.jsonl") if "loss" in line]
            for run in runs
        ]
        mean = mean_curve(curves)
        width = max(1, len(mean) // 40)
        smooth = mean[: len(mean) // width * width].view(-1, width).mean(1)
        step = (torch.arange(len(smooth)) + 0.5) * width
        panel.plot(step.numpy(), smooth.numpy(), color=colours[arm], label=arm)
    panel.set_title("training loss, mean over seeds", fontsize=10)
    panel.set_xlabel("step")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    return figure


def mean_curve(curves: Sequence[Sequence[float]]) -> torch.Tensor:
    """Mean of the seeds' curves, up to the end of the shortest.

    Each seed draws its patients, whose numbers of slices set the steps of an epoch.
    """
    shortest = min(map(len, curves))
    return torch.tensor([curve[:shortest] for curve in curves], dtype=torch.float64).mean(0)


def _draw_boxes(panel: Any, outcome: Outcome, score: str, colours: Mapping[str, str]) -> None:
    """A box over patients, or repeats, of each arm; a dot for each seed."""
    arms = list(outcome.evaluations)
    for x, arm in enumerate(arms):
        seeds = _finite(outcome.by_seed(arm).get(score, []))
        units = seeds
        if not outcome.scale.repeats and score not in outcome.study.pooled:
            units = list(outcome.by_unit(arm, score, ("case",)).values())
            panel.plot([x + 0.33] * len(seeds), seeds, ".", color=colours[arm], alpha=0.7)
        if units:
            panel.boxplot(
                units,
                positions=[x],
                widths=0.45,
                boxprops={"color": colours[arm]},
                medianprops={"color": colours[arm]},
                flierprops={"markersize": 3},
            )
    panel.set_xticks(range(len(arms)), arms, rotation=50, ha="right", fontsize=8)
    panel.set_xlim(-0.6, len(arms) - 0.4)


def _draw_curves(panel: Any, outcome: Outcome, score: str) -> None:
    """A line for each family of arms: mean and standard deviation of the seeds."""
    points: dict[str, list[tuple[float, list[float]]]] = {}
    for arm in outcome.evaluations:
        family, _, at = arm.rpartition(", ")
        values = _finite(outcome.by_seed(arm).get(score, []))
        if values:
            points.setdefault(family, []).append((float(at), values))
    for family, own in points.items():
        panel.errorbar(
            [at for at, _ in own],
            [statistics.fmean(values) for _, values in own],
            [statistics.stdev(values) if len(values) > 1 else 0 for _, values in own],
            marker="o",
            capsize=3,
            label=family,
        )
    panel.set_xlabel(outcome.study.axis)
    panel.legend(fontsize=8)


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _cases(outcome: Outcome, cases: int) -> Any:
    """One row per test patient: the labels, and the prediction of each arm's first training.

    The second column of a registration study shows the labels before registration.
    """
    first = {arm: runs[0] for arm, runs in outcome.runs.items()}
    run = next(iter(first.values()))  # the first runs of all arms have the same test patients
    names = methods.get(outcome.study.method).structures
    labelled = [case for case in run.cases("test") if case.labels]
    cases = min(cases, len(labelled))
    patients = [labelled[(2 * n + 1) * len(labelled) // (2 * cases)] for n in range(cases)]
    rows = [(case.name, _panels(case, first, names)) for case in patients]
    columns = len(rows[0][1])
    figure, axes = pyplot.subplots(
        len(rows), columns, figsize=(2.6 * columns, 2.8 * len(rows)),
        layout="constrained", squeeze=False,
    )  # fmt: skip
    for n, (case, panels) in enumerate(rows):
        for panel, (title, png) in zip(axes[n], panels.items(), strict=True):
            panel.imshow(imread(io.BytesIO(png)))
            panel.set_axis_off()
            panel.set_title(f"{case}: {title}" if panel is axes[n][0] else title, fontsize=9)
    return figure


def _panels(case: Case, runs: Mapping[str, Run], names: Mapping[int, str]) -> dict[str, bytes]:
    """A patient's pictures by title: labels, labels before registration, and each prediction."""
    pictures = {}
    for arm, run in runs.items():
        with torch.inference_mode():
            pictures[arm] = run.task().picture(run.model(), case)
    one = next(iter(pictures.values()))
    masks = {"labels": one.reference}
    if one.before is not None:
        masks["before"] = one.before
    masks |= {arm: picture.predicted for arm, picture in pictures.items()}
    crop = _crop_box(one.reference or one.predicted, one.image)
    image = _crop_square(one.image, *crop)
    return {
        title: viz.overlay(image, mask and _crop_square(mask, *crop), slices=[0], names=names)
        for title, mask in masks.items()
    }


def _crop_box(mask: Volume, image: Volume) -> tuple[list[int], int]:
    """Centre voxel and side in pixels of a square around the labels, in the slice to show.

    The slice shows all labels well: the least visible one has as many voxels as possible, compared
    with the slice that has the most of it. Without labels, it is the middle slice.
    """
    labels = mask.data[0]
    if not labels.any():
        return [n // 2 for n in image.shape], min(image.shape[:2])
    values = [value for value in labels.unique().tolist() if value]
    voxels = torch.stack([(labels == value).sum((0, 1)) for value in values])
    k = int((voxels / voxels.amax(1, keepdim=True)).amin(0).argmax())
    labelled = labels[:, :, k].nonzero()
    low, high = labelled.amin(0), labelled.amax(0)
    side = max(3 * int((high - low).max()), round(70 / min(image.spacing_mm[:2])))
    return [*((high + low) // 2).tolist(), k], min(side, *image.shape[:2])


def _crop_square(volume: Volume, center: list[int], side: int) -> Volume:
    data, matrix = crop_or_pad(
        volume.data, volume.world_from_vox, (side, side, 1), center_vox=tuple(center)
    )
    return Volume(data, matrix)
