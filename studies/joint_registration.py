"""Does segmentation as a second task improve the registration of cine and LGE? Do more patients?

python -m studies.joint_registration [--scale small|paper] [--data ROOT]
"""

from cmrfast.methods import Row
from cmrfast.runs.evaluate import Evaluation
from studies.design import Arm, Scale, Study
from studies.figures import draw
from studies.outcome import Outcome
from studies.page import section
from studies.study import run

DISTANCES = ("lv_cd_mm", "lv_asd_mm", "myocardium_asd_mm", "rv_cd_mm", "rv_asd_mm")
FEWER = 25 / 35  # of the training patients
STUDY = Study(
    method="joint_registration",
    arms={
        "stn, fewer": Arm({"variant": "stn"}, "stn, 25", FEWER),
        "stn": Arm({"variant": "stn"}, "stn, 35"),
        "joint, fewer": Arm({"variant": "joint"}, "joint, 25", FEWER),
        "joint": Arm({"variant": "joint"}, "joint, 35"),
        "joint, image": Arm({"variant": "joint", "fusion": "image"}, "joint, 35"),
    },
    scores=(*DISTANCES, "cine_dice_percent", "lge_dice_percent"),
    unit=("case", "cine_slice", "lge_slice"),
    tests=(
        ("stn", "before"),
        ("joint", "before"),
        ("joint", "stn"),
        ("joint", "joint, image"),
        ("joint", "joint, fewer"),
    ),
    small=Scale(
        cases=45,
        shrink=2.5,
        changes={
            **{"side": 80, "spacing_mm": 1.875, "shift_px": 8.0, "lge_shift_px": 2.0},
            **{"widths": (8, 16, 32, 64, 128), "batch": 8, "lr": 1e-3, "split": (35, 5, 5)},
        },
        steps=400,
    ),
    paper=Scale(cases=45),
)


def before(outcome: Outcome) -> Evaluation:
    """The distances before registration, which the rows of every evaluation contain."""
    first = outcome.evaluations["joint"][0]
    rows = [
        Row(
            row.ids,
            {
                name.removeprefix("before_"): value
                for name, value in row.scores.items()
                if name.startswith("before_")
            },
        )
        for row in first.rows
    ]
    return Evaluation(first.method, first.part, rows, {})


def main() -> None:
    """Run the study and keep its results."""
    outcome = run(STUDY)
    outcome.evaluations = {"before": [before(outcome)], **outcome.evaluations}
    print(section(outcome.save()))
    draw(outcome)


if __name__ == "__main__":
    main()
