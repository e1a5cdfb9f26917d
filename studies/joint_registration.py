"""Does segmentation as a second task improve the registration of cine and LGE? Do more patients?

python -m studies.joint_registration [--scale small|paper] [--data ROOT]
"""

from cmrfast.methods import Row
from cmrfast.runs.evaluate import Evaluation
from studies import controls
from studies.design import Arm, PaperTest, Planned, Scale, Study
from studies.figures import draw
from studies.page import section
from studies.study import run

DISTANCES = ("lv_cd_mm", "lv_asd_mm", "myocardium_asd_mm", "rv_cd_mm", "rv_asd_mm")
FEWER = 25 / 35  # of the training patients


def before(evaluation: Evaluation) -> Evaluation:
    """The distances before registration, which the rows of every evaluation contain."""
    rows = [
        Row(
            row.ids,
            {
                name.removeprefix("before_"): value
                for name, value in row.scores.items()
                if name.startswith("before_")
            },
        )
        for row in evaluation.rows
    ]
    return Evaluation(evaluation.method, evaluation.part, rows, {})


STUDY = Study(
    method="joint_registration",
    arms={
        "stn, fewer": Arm({"variant": "stn"}, "stn, 25", FEWER),
        "stn": Arm({"variant": "stn"}, "stn, 35"),
        "joint, fewer": Arm({"variant": "joint"}, patients=FEWER),  # not the paper's fusion
        "joint": Arm({"variant": "joint"}),
        "joint, image": Arm({"variant": "joint", "fusion": "image"}, "joint, 35"),
    },
    scores=(*DISTANCES, "cine_dice_percent", "lge_dice_percent"),
    comparisons=(
        Planned("registration reduces distances (table 1)", "stn", "before", "lv_cd_mm", "lower"),
        Planned(
            "registration with segmentation reduces distances (table 1)",
            *("joint, image", "before", "lv_cd_mm", "lower"),
        ),
        Planned(
            "segmentation as a second task improves registration (table 1)",
            *("joint, image", "stn", "lv_cd_mm", "lower"),
        ),
        Planned("are features of each image better?", "joint", "joint, image", "lv_cd_mm"),
        Planned(
            "are joint networks better with features of each image and 25 patients "
            "than stn with 35?",
            *("joint, fewer", "stn", "lv_cd_mm"),
        ),
    ),
    paper_test=PaperTest(
        unit="pairs of slices",
        ids=("case", "cine_slice", "lge_slice"),
        pairs=(
            ("stn, fewer", "before"),
            ("stn", "before"),
            ("joint, fewer", "before"),
            ("joint, image", "before"),
            ("joint, fewer", "stn, fewer"),
            ("joint, image", "stn"),
        ),
        scores=DISTANCES,
    ),
    baselines={"before": before},
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


def main() -> None:
    """Run the study and keep its results."""
    outcome = run(STUDY)
    outcome.controls += controls.classical_registration(outcome, "stn")
    print(section(outcome.save()))
    draw(outcome)


if __name__ == "__main__":
    main()
