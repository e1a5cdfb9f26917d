"""With LGE masks of only five patients, how much do an adversary and transferred masks help?

python -m studies.adversarial_transfer [--scale small|paper] [--data ROOT]
"""

from studies.design import Arm, Scale, Study
from studies.figures import draw
from studies.page import section
from studies.study import run

STRUCTURES = ("lv", "myocardium", "rv")
STUDY = Study(
    method="adversarial_transfer",
    arms={
        "u": Arm({"variant": "u"}, "u, patients 4 and 5"),
        "u_a": Arm({"variant": "u_a"}, "u_a"),
        "u_a_t": Arm({"variant": "u_a_t"}, "u_a_t"),
    },
    scores=tuple(
        f"{structure}_{score}"
        for score in ("dice_percent", "hausdorff_mm")
        for structure in STRUCTURES
    ),
    unit=("case",),
    tests=(("u_a", "u"), ("u_a_t", "u_a"), ("u_a_t", "u")),
    small=Scale(
        cases=45,
        shrink=3,
        changes={
            **{"width": 16, "size": 64, "view_px": 80, "crop_shift_px": 6, "batch": 8},
            **{"copies": 0, "epochs": 5, "pretrain_epochs": 2},
        },
    ),
    paper=Scale(cases=45),
)


def main() -> None:
    """Run the study and keep its results."""
    outcome = run(STUDY)
    print(section(outcome.save()))
    draw(outcome)


if __name__ == "__main__":
    main()
