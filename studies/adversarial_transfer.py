"""With LGE masks of only five patients, how much do an adversary and transferred masks help?

python -m studies.adversarial_transfer [--scale small|paper] [--data ROOT]
"""

from studies import controls
from studies.design import Arm, Planned, Scale, Study
from studies.figures import draw
from studies.page import section
from studies.study import run

STRUCTURES = ("lv", "myocardium", "rv")
STUDY = Study(
    method="adversarial_transfer",
    arms={
        "u": Arm({"variant": "u"}),  # published on patients 4 and 5 only
        "u_a": Arm({"variant": "u_a"}, "u_a"),
        "u_a_t": Arm({"variant": "u_a_t"}, "u_a_t"),
    },
    scores=(
        "dice_percent",
        *(
            f"{structure}_{score}"
            for score in ("dice_percent", "hausdorff_mm")
            for structure in STRUCTURES
        ),
    ),
    comparisons=(
        Planned(
            "transferred masks improve the adversarial network (tables 1 and 2)",
            *("u_a_t", "u_a", "dice_percent", "higher"),
        ),
        Planned(
            "an adversary improves the myocardium (table 1)",
            *("u_a", "u", "myocardium_dice_percent", "higher"),
        ),
        Planned(
            "adversary and transferred masks improve the network (table 1)",
            *("u_a_t", "u", "dice_percent", "higher"),
        ),
    ),
    small=Scale(
        cases=45,
        shrink=3,
        changes={
            **{"width": 16, "pixel_mm": 3.75, "size": 64, "view_px": 80, "crop_shift_px": 6},
            "batch": 8,
            **{"copies": 0, "epochs": 5, "pretrain_epochs": 2},
        },
    ),
    paper=Scale(cases=45),
)


def main() -> None:
    """Run the study and keep its results."""
    outcome = run(STUDY)
    outcome.controls.append(controls.borrowed_masks_alone(outcome, "u"))
    print(section(outcome.save()))
    draw(outcome)


if __name__ == "__main__":
    main()
