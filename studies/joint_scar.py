"""Does a scar network improve when it is trained jointly with one that segments the myocardium?

python -m studies.joint_scar [batch_dice] [--scale tiny|small|paper] [--data ROOT]
    [--pretrained FILE]

The paper's networks start from ImageNet-21k weights, ``R50+ViT-B_16.npz``; without ``--pretrained``
they start from scratch, and the page says so.
"""

import math
import statistics
from typing import Any, cast

import torch

from cmrfast.data import Volume
from cmrfast.methods import joint_scar
from cmrfast.models.joint_scar import JointScar
from studies import controls
from studies.design import Arm, Planned, Scale, Study
from studies.figures import draw
from studies.outcome import Outcome
from studies.page import section
from studies.rules import six_deviations
from studies.study import run

VARIANTS = ("direct", "two_step", "mtl", "jdl")
#: The same networks with one Dice of all images of a batch, instead of one of each image.
OVER_BATCH = {f"{name}, batch Dice": name for name in ("mtl", "jdl")}
_COMMON: dict[str, Any] = {
    "method": "joint_scar",
    "scores": ("scar_dice", "scar_precision", "scar_recall", "myocardium_dice"),
    "tiny": Scale(
        (2, 0, 2),
        seeds=2,  # enough for a pilot and for intervals
        shrink=3,
        changes={
            **{"image": 32, "root": 32, "units": (1, 1, 1), "width": 8, "depth": 1, "batch": 4},
            **{"heads": 2, "hidden": 16, "decoder": (16, 8, 8, 8, 8)},
        },
        steps=2,
    ),
    "small": Scale(
        (28, 0, 20),
        changes={
            **{"image": 96, "root": 32, "units": (1, 1, 1), "width": 64, "depth": 2, "heads": 4},
            **{"hidden": 128, "decoder": (64, 48, 32, 16, 8), "dropout": 0.1, "batch": 8},
            "lr": 1e-3,
        },
        steps=1200,
    ),
    "paper": Scale((140, 0, 28)),
    "own_share": (140, 0, 28),  # nothing is chosen on validation patients
}
STUDY = Study(
    **_COMMON,
    arms={name: Arm({"variant": name}, published=name) for name in VARIANTS},
    comparisons=tuple(
        Planned(
            f"the joint networks segment scar better than {name} (figure 2)",
            *("jdl", other, "scar_dice", "higher"),
        )
        for other, name in (
            ("direct", "a direct network"),
            ("two_step", "two separate steps"),
            ("mtl", "multitask learning"),
        )
    ),
)
BATCH_DICE = Study(
    **_COMMON,
    experiment="batch_dice",
    arms={
        arm: Arm({"variant": variant, **changes})
        for name, variant in OVER_BATCH.items()
        for arm, changes in ((variant, {}), (name, {"dice_over": "batch"}))
    },
    comparisons=tuple(
        Planned(f"does one Dice of a whole batch help {variant}?", name, variant, "scar_dice")
        for name, variant in OVER_BATCH.items()
    ),
)
STUDIES = (STUDY, BATCH_DICE)


def dice_with_scar(outcome: Outcome, arm: str) -> list[float]:
    """Mean scar Dice of each training over the slices with scar."""
    return [
        statistics.fmean(
            [row.scores["scar_dice"] for row in evaluation.rows if row.ids["scar_pixels"]]
            or [math.nan]
        )
        for evaluation in outcome.evaluations[arm]
    ]


def percent_clean(outcome: Outcome, arm: str) -> list[float]:
    """Percent of the slices without scar in which each training predicts none."""
    return [
        100
        * statistics.fmean(
            [row.scores["scar_dice"] for row in evaluation.rows if not row.ids["scar_pixels"]]
            or [math.nan]
        )
        for evaluation in outcome.evaluations[arm]
    ]


def drawn_walls(outcome: Outcome, arm: str) -> dict[str, Volume]:
    """The wall, scar included, that the first training of an arm draws in each test patient."""
    trained = outcome.runs[arm][0]
    model = cast(JointScar, trained.model())
    with torch.inference_mode():
        return {
            case.name: joint_scar.images.segment(model, case.image("LGE", channels=1))["myocardium"]
            for case in trained.cases("test")
        }


def main() -> None:
    """Run the study and keep its results."""
    outcome = run(*STUDIES)
    for arm in outcome.study.arms:
        outcome.facts[f"scar Dice of slices with scar, {arm}"] = dice_with_scar(outcome, arm)
        outcome.facts[f"percent of slices without scar left clean, {arm}"] = percent_clean(
            outcome, arm
        )
    outcome.facts["initial weights"] = outcome.scale.changes.get("pretrained", "from scratch")
    test = outcome.runs["jdl"][0].cases("test")
    for walls in (None, drawn_walls(outcome, "jdl")):
        peer = six_deviations(test, walls, **outcome.scale.changes)
        outcome.peers.append(peer)
        outcome.controls.append(controls.beaten(peer, "scar_dice", outcome, "jdl"))
    print(section(outcome.save()))
    draw(outcome)


if __name__ == "__main__":
    main()
