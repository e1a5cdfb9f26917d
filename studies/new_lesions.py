"""New lesions between two visits: are they found, old ones ignored? Does deep supervision help?

python -m studies.new_lesions [--scale tiny|small|paper] [--data ROOT]

Where CMRFAST_TEST_DATA names a folder with the open_ms_longitudinal set, the trained network is
also applied to its patients, and overlays are written to the folder of the training.
"""

import math
import os
import statistics
from pathlib import Path

import torch

from cmrfast import viz
from cmrfast.data import Volume
from cmrfast.data.datasets import open_dataset
from studies import called_new, controls
from studies.design import Arm, Planned, Scale, Study
from studies.figures import draw
from studies.outcome import Outcome
from studies.page import section
from studies.rules import difference_threshold
from studies.study import run

STUDY = Study(
    method="new_lesions",
    arms={
        "final maps": Arm({}),
        "inner maps, new lesions": Arm({"aux_weight": 0.5}),
        "inner maps, all lesions": Arm({"aux_weight": 0.5, "aux_on": "all"}),
        "preset b": Arm({"preset": "b"}),
    },
    scores=("dice", "f1", "sensitivity", "precision"),
    comparisons=(
        Planned(
            "does it help that the inner maps learn new lesions?",
            *("inner maps, new lesions", "final maps", "f1"),
        ),
        Planned(
            "does it help that the inner maps learn all lesions of their visit?",
            *("inner maps, all lesions", "final maps", "f1"),
        ),
        Planned("do the two reconstructions differ?", "preset b", "final maps", "f1"),
    ),
    tiny=Scale(
        (3, 0, 3),
        seeds=1,
        shrink=4,
        changes={
            **{"spacing_mm": 4.0, "patch": 16, "overlap": 4, "batch": 4, "per_patient": 4},
            "bias_field": False,
        },
        steps=2,
    ),
    small=Scale(
        (16, 0, 40),  # a quarter of them without new lesions
        shrink=2,
        changes={
            **{"spacing_mm": 2.0, "patch": 24, "overlap": 6, "batch": 8, "per_patient": 100},
            **{"dropout": 0.1, "bias_field": False},
        },
        steps=600,
    ),
    paper=Scale((70, 15, 40)),
)
STUDIES = (STUDY,)


def false_lesions(outcome: Outcome, arm: str) -> list[float]:
    """Mean number of lesions that each training predicts in a test patient without new lesions."""
    return [
        statistics.fmean(
            [float(row.ids["false"]) for row in evaluation.rows if not row.ids["lesions"]]
            or [math.nan]
        )
        for evaluation in outcome.evaluations[arm]
    ]


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
    outcome = run(*STUDIES)
    for arm in STUDY.arms:
        outcome.facts[f"false lesions in a patient with nothing new, {arm}"] = false_lesions(
            outcome, arm
        )
    outcome.facts.update(called_new.facts(called_new.findings(outcome.runs)))
    real = os.environ.get("CMRFAST_TEST_DATA")
    if real:
        evaluate_real_pairs(outcome, Path(real) / "open_ms_longitudinal" / "coregistered")
    first = outcome.runs["final maps"][0]
    peer = difference_threshold(first.cases("train"), first.cases("test"), **outcome.scale.changes)
    outcome.peers.append(peer)
    outcome.controls.append(controls.beaten(peer, "dice", outcome, "final maps"))
    print(section(outcome.save()))
    draw(outcome)


if __name__ == "__main__":
    main()
