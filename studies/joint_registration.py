"""Does segmentation as a second task improve the registration of cine and LGE? Do more patients?

python -m studies.joint_registration [--scale tiny|small|paper] [--data ROOT]
"""

import statistics
from typing import Any

from cmrfast.methods import Row
from cmrfast.runs.evaluate import Evaluation
from cmrfast.train.log import read_log
from studies import controls
from studies.design import Arm, PaperTest, Planned, Scale, Study
from studies.figures import draw
from studies.outcome import Outcome
from studies.page import section
from studies.rules import registrations
from studies.study import run

DISTANCES = ("lv_cd_mm", "lv_asd_mm", "myocardium_asd_mm", "rv_cd_mm", "rv_asd_mm")


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


_FEWER: dict[str, Any] = {"patients": 25 / 35, "others_validate": True}
_IMAGE = {"variant": "joint", "fusion": "image"}
STUDY = Study(
    method="joint_registration",
    arms={
        "stn, 25": Arm({"variant": "stn"}, "stn, 25", **_FEWER),
        "stn, 35": Arm({"variant": "stn"}, "stn, 35"),
        "joint, 25": Arm(_IMAGE, "joint, 25", **_FEWER),
        "joint, 35": Arm(_IMAGE, "joint, 35"),
        "joint, features": Arm({"variant": "joint", "fusion": "feature"}),
        "joint, no segmentation": Arm({**_IMAGE, "cine_weight": 0.0, "lge_weight": 0.0}),
    },
    scores=(*DISTANCES, "cine_dice_percent", "lge_dice_percent"),
    comparisons=(
        Planned(
            "registration reduces distances (table 1)", "stn, 35", "before", "lv_cd_mm", "lower"
        ),
        Planned(
            "with 25 patients, segmentation improves registration (table 1)",
            *("joint, 25", "stn, 25", "lv_cd_mm", "lower"),
        ),
        Planned(
            "with segmentation, 25 patients do better than 35 without (table 1)",
            *("joint, 25", "stn, 35", "lv_cd_mm", "lower"),
        ),
        Planned(
            "with 35 patients, segmentation improves registration (table 1)",
            *("joint, 35", "stn, 35", "lv_cd_mm", "lower"),
        ),
        Planned(
            "is it the task, or only the larger network?",
            *("joint, 35", "joint, no segmentation", "lv_cd_mm"),
        ),
    ),
    paper_test=PaperTest(
        unit="pairs of slices",
        ids=("case", "cine_slice", "lge_slice"),
        pairs=(
            ("stn, 25", "before"),
            ("stn, 35", "before"),
            ("joint, 25", "before"),
            ("joint, 35", "before"),
            ("joint, 25", "stn, 25"),
            ("joint, 35", "stn, 35"),
        ),
        scores=DISTANCES,
    ),
    baselines={"before": before},
    tiny=Scale(
        (2, 1, 2),
        seeds=1,
        shrink=3,
        changes={"widths": (4, 8), "side": 64, "spacing_mm": 2.6, "epochs": 1},
    ),
    small=Scale(
        (35, 5, 20),
        shrink=2.5,
        changes={
            **{"side": 80, "spacing_mm": 1.875, "shift_px": 8.0, "lge_shift_px": 2.0},
            **{"widths": (8, 16, 32, 64, 128), "batch": 8, "lr": 1e-3},
        },
        steps=1000,
    ),
    paper=Scale((35, 5, 5)),
)
STUDIES = (STUDY,)


def seconds_per_epoch(outcome: Outcome, arm: str) -> list[float]:
    """Duration of an epoch's steps in each training, validation excluded."""
    seconds = []
    for trained in outcome.runs[arm]:
        steps = [x for x in read_log(trained.path / "log.jsonl") if "samples_per_s" in x]
        rate = statistics.median(x["samples_per_s"] for x in steps)
        per_epoch = sum(x["epoch"] == 0 for x in steps)
        seconds.append(per_epoch * trained.recipe.batch / rate)
    return seconds


def main() -> None:
    """Run the study and keep its results."""
    outcome = run(*STUDIES)
    for arm in STUDY.arms:
        outcome.facts[f"seconds per epoch, {arm}"] = seconds_per_epoch(outcome, arm)
    test = outcome.runs["stn, 35"][0].cases("test")
    outcome.peers += registrations(test, **outcome.scale.changes)
    outcome.controls += [controls.reported(peer, "lv_cd_mm") for peer in outcome.peers]
    print(section(outcome.save()))
    draw(outcome)


if __name__ == "__main__":
    main()
