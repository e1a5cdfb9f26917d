"""Does a scar network improve when it is trained jointly with one that segments the myocardium?

python -m studies.joint_scar [--scale small|paper] [--data ROOT]
"""

import statistics

from studies import controls
from studies.design import Arm, Planned, Scale, Study
from studies.figures import draw
from studies.outcome import Outcome
from studies.page import section
from studies.study import run

VARIANTS = ("direct", "two_step", "mtl", "jdl")
STUDY = Study(
    method="joint_scar",
    arms={name: Arm({"variant": name}, published=name) for name in VARIANTS},
    scores=("scar_dice", "scar_precision", "scar_recall", "myocardium_dice"),
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
    small=Scale(
        cases=40,
        shrink=2,
        changes={
            **{"image": 64, "root": 32, "units": (1, 1, 1), "width": 96, "depth": 2, "heads": 4},
            **{"hidden": 192, "decoder": (96, 64, 32, 16, 8), "dropout": 0.1, "batch": 8},
            **{"lr": 2e-3, "split": (28, 4, 8)},
        },
        steps=600,
    ),
    paper=Scale(cases=168),
)


def dice_with_scar(outcome: Outcome, arm: str) -> list[float]:
    """Mean scar Dice of each training over the slices with scar."""
    return [
        statistics.fmean(
            row.scores["scar_dice"] for row in evaluation.rows if row.ids["scar_pixels"]
        )
        for evaluation in outcome.evaluations[arm]
    ]


def percent_clean(outcome: Outcome, arm: str) -> list[float]:
    """Percent of the slices without scar in which each training predicts none."""
    return [
        100
        * statistics.fmean(
            row.scores["scar_dice"] for row in evaluation.rows if not row.ids["scar_pixels"]
        )
        for evaluation in outcome.evaluations[arm]
    ]


def main() -> None:
    """Run the study and keep its results."""
    outcome = run(STUDY)
    for arm in STUDY.arms:
        outcome.facts[f"scar Dice of slices with scar, {arm}"] = dice_with_scar(outcome, arm)
        outcome.facts[f"percent of slices without scar left clean, {arm}"] = percent_clean(
            outcome, arm
        )
    outcome.controls += controls.six_sd_rule(outcome, "jdl")
    print(section(outcome.save()))
    draw(outcome)


if __name__ == "__main__":
    main()
