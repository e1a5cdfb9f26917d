"""Does a scar network do better on the myocardium that another network finds, learning together?

python -m studies.joint_scar [--scale small|paper] [--data ROOT]
"""

import statistics

from studies.design import Arm, Scale, Study
from studies.figures import draw
from studies.outcome import Outcome
from studies.page import section
from studies.study import run

VARIANTS = ("direct", "two_step", "mtl", "jdl")
STUDY = Study(
    method="joint_scar",
    arms={name: Arm({"variant": name}, published=name) for name in VARIANTS},
    scores=("scar_dice", "scar_precision", "scar_recall", "myocardium_dice"),
    unit=("case", "slice"),
    tests=(("jdl", "direct"), ("jdl", "two_step"), ("jdl", "mtl")),
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


def where_scar_is(outcome: Outcome, arm: str) -> list[float]:
    """Mean scar Dice of each training over the slices that have scar."""
    return [
        statistics.fmean(row.scores["scar_dice"] for row in one.rows if row.ids["scar_pixels"])
        for one in outcome.evaluations[arm]
    ]


def healthy_and_clean(outcome: Outcome, arm: str) -> list[float]:
    """Percent of the slices without scar in which each training finds none."""
    return [
        100
        * statistics.fmean(
            row.scores["scar_dice"] for row in one.rows if not row.ids["scar_pixels"]
        )
        for one in outcome.evaluations[arm]
    ]


def main() -> None:
    """Run the study and keep its results."""
    outcome = run(STUDY)
    for arm in STUDY.arms:
        outcome.facts[f"scar Dice of slices with scar, {arm}"] = where_scar_is(outcome, arm)
        outcome.facts[f"percent of slices without scar left clean, {arm}"] = healthy_and_clean(
            outcome, arm
        )
    print(section(outcome.save()))
    draw(outcome)


if __name__ == "__main__":
    main()
