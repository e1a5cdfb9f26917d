"""New lesions between two visits: are they found, old ones ignored? Does deep supervision help?

python -m studies.new_lesions [--scale small|paper] [--data ROOT]

Where CMRFAST_TEST_DATA names a folder with the open_ms_longitudinal set, the trained network is
also applied to its patients, and overlays are written to the folder of the training.
"""

import os
import statistics
from pathlib import Path

import torch

from cmrfast import metrics, viz
from cmrfast.data import Volume
from cmrfast.data.datasets import open_dataset
from cmrfast.data.nifti import read_nifti
from cmrfast.data.phantom.lesions import HISTORIES
from studies import controls
from studies.design import Arm, Planned, Scale, Study
from studies.figures import draw
from studies.outcome import Outcome
from studies.page import section
from studies.study import run

STUDY = Study(
    method="new_lesions",
    arms={
        "final maps": Arm({}),
        "inner maps too": Arm({"aux_weight": 0.5}),
    },
    scores=("dice", "f1", "sensitivity", "precision"),
    comparisons=(
        Planned("does supervising the inner maps help?", "inner maps too", "final maps", "f1"),
    ),
    small=Scale(
        cases=24,
        shrink=2,
        changes={
            **{"spacing_mm": 1.6, "patch": 24, "overlap": 6, "batch": 8, "per_patient": 100},
            **{"split": (16, 2, 6), "dropout": 0.1, "bias_field": False},
        },
        steps=600,
    ),
    paper=Scale(cases=100),
)


def false_lesions(outcome: Outcome, arm: str) -> list[float]:
    """Mean number of lesions that each training predicts in a test patient without new lesions."""
    return [
        statistics.fmean(
            [float(row.ids["false"]) for row in evaluation.rows if not row.ids["lesions"]]
            or [float("nan")]
        )
        for evaluation in outcome.evaluations[arm]
    ]


def percent_called_new(outcome: Outcome, arm: str) -> dict[str, list[float]]:
    """Percent of the phantoms' lesions that each training predicts as new, by their history."""
    percent: dict[str, list[float]] = {history: [] for history in HISTORIES}
    for trained in outcome.runs[arm]:
        task, model = trained.task(), trained.model()
        hits: dict[str, list[bool]] = {history: [] for history in HISTORIES}
        for case in trained.cases("test"):
            path = case.images["later"].with_name("lesions.nii.gz")
            if not path.exists():  # only phantoms have this file
                continue
            histories = read_nifti(path).data[0]
            with torch.inference_mode():
                predicted = task.picture(model, case).predicted.data[0] != 0
            for history, value in HISTORIES.items():
                lesions, count = metrics.connected_components(histories == value)
                touched = lesions[predicted].unique().tolist()
                hits[history] += [number in touched for number in range(1, count + 1)]
        for history, called_new in hits.items():
            if called_new:
                percent[history].append(100 * sum(called_new) / len(called_new))
    return percent


def evaluate_real_pairs(outcome: Outcome, root: Path) -> None:
    """Compute Dice with the change masks of real patients, and write an overlay of each."""
    trained = outcome.runs["final maps"][0]
    task, model = trained.task(), trained.model()
    for case in open_dataset("open_ms", root):
        with torch.inference_mode():
            rows = task.evaluate(model, case)
            picture = task.picture(model, case)
        for row in rows:
            outcome.facts[f"real {case.name}, Dice"] = row.scores["dice"]
        slices = _largest_slices(picture.reference or picture.predicted)
        path = trained.path / f"{case.name}.png"
        viz.overlay(picture.image, picture.predicted, path, slices=slices, names={1: "predicted"})


def _largest_slices(mask: Volume, count: int = 3) -> list[int]:
    voxels = (mask.data[0] != 0).sum((0, 1))
    return sorted(voxels.argsort(descending=True)[:count].tolist())


def main() -> None:
    """Run the study and keep its results."""
    outcome = run(STUDY)
    for arm in STUDY.arms:
        outcome.facts[f"false lesions in a patient with nothing new, {arm}"] = false_lesions(
            outcome, arm
        )
        for history, percent in percent_called_new(outcome, arm).items():
            if percent:
                outcome.facts[f"percent called new of lesions that {history}, {arm}"] = percent
    real = os.environ.get("CMRFAST_TEST_DATA")
    if real:
        evaluate_real_pairs(outcome, Path(real) / "open_ms_longitudinal" / "coregistered")
    outcome.controls.append(controls.difference_threshold(outcome, "final maps"))
    print(section(outcome.save()))
    draw(outcome)


if __name__ == "__main__":
    main()
