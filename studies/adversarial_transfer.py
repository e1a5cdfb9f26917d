"""With LGE masks of only five patients, how much do an adversary and transferred masks help?

python -m studies.adversarial_transfer [table_1|code] [--scale tiny|small|paper] [--data ROOT]

Without a name it repeats tables 2 and 3: LGE of 40 patients is tested, of whom 30 lend masks of
bSSFP and T2 to training. ``table_1`` holds its test patients out altogether. ``code`` trains as the
authors' code does, on the patients of tables 2 and 3.
"""

import statistics
from dataclasses import replace
from functools import partial
from typing import Any

from cmrfast.data import open_dataset
from cmrfast.data.datasets import Split
from cmrfast.methods.adversarial_transfer import protocol_split
from cmrfast.methods.adversarial_transfer.protocols import lending_split
from cmrfast.methods.adversarial_transfer.recipes import RECIPES
from studies import controls
from studies.design import Arm, Names, Planned, Scale, Study
from studies.figures import draw
from studies.outcome import Outcome
from studies.page import section
from studies.rules import borrowed
from studies.study import run

_STRUCTURES = ("lv", "myocardium", "rv")
_SCORES = (
    "dice_percent",
    *(
        f"{structure}_{score}"
        for score in ("dice_percent", "jaccard", "assd_mm", "hausdorff_mm")
        for structure in _STRUCTURES
    ),
)
_ANNOTATED = 3  # training patients of table 1 whose LGE masks are used
_LENDING = 30 / 40  # of the tested patients of table 2


def _table_1(train: Names, validate: Names, test: Names) -> Split:
    return lending_split(train[:_ANNOTATED], train[_ANNOTATED:], test=test)


def _all_annotated(train: Names, validate: Names, test: Names) -> Split:
    """As in table 1, but with all LGE masks of the training patients."""
    return lending_split(train, (), test=test)


def _table_2(train: Names, validate: Names, test: Names) -> Split:
    return lending_split(train, test[: round(_LENDING * len(test))], test=test)


_TINY = {"pixel_mm": 5.0, "width": 4, "size": 32, "view_px": 32, "copies": 0, "pretrain_epochs": 0}
_SMALL: dict[str, Any] = {
    **{"width": 16, "pixel_mm": 3.0, "size": 64, "view_px": 80, "crop_shift_px": 6, "batch": 8},
    **{"epochs": 2, "pretrain_epochs": 1},
}
_TRANSFER = Planned(
    "transferred masks improve the adversarial network (tables 1 and 2)",
    *("u_a_t", "u_a", "dice_percent", "higher"),
)
TABLE_2 = Study(
    method="adversarial_transfer",
    arms={
        "u": Arm({"variant": "u"}),  # not in table 2
        "u_a": Arm({"variant": "u_a"}, "u_a"),
        "u_a_t": Arm({"variant": "u_a_t"}, "u_a_t"),
        **{  # added to find out why the adversary of equation 6 harms
            f"{name}, adversary 0.1": Arm({"variant": name, "adversarial_weight": 0.1})
            for name in ("u_a", "u_a_t")
        },
    },
    scores=_SCORES,
    comparisons=(
        _TRANSFER,
        Planned("does the adversary help?", "u_a", "u", "dice_percent"),
        Planned("do both of them help?", "u_a_t", "u", "dice_percent"),
        Planned(
            "does an adversary of a tenth of the weight help?",
            *("u_a, adversary 0.1", "u", "dice_percent"),
        ),
        Planned(
            "beside it, do transferred masks help?",
            *("u_a_t, adversary 0.1", "u_a, adversary 0.1", "dice_percent"),
        ),
    ),
    split=_table_2,
    own_split=partial(protocol_split, "table 2"),
    tiny=Scale((2, 0, 3), seeds=1, shrink=4, changes=_TINY, steps=2),
    small=Scale((5, 0, 40), shrink=2.5, changes=_SMALL),
    paper=Scale((5, 0, 40)),
)
TABLE_1 = replace(
    TABLE_2,
    experiment="table_1",
    arms={
        **{
            name: Arm({"variant": name}, f"{name}, patients 4 and 5")
            for name in ("u", "u_a", "u_a_t")
        },
        "u_a, all LGE masks": Arm({"variant": "u_a"}, split=_all_annotated),
    },
    comparisons=(
        _TRANSFER,
        Planned(
            "an adversary improves the myocardium (table 1)",
            *("u_a", "u", "myocardium_dice_percent", "higher"),
        ),
        Planned(
            "adversary and transferred masks improve the network (table 1)",
            *("u_a_t", "u", "dice_percent", "higher"),
        ),
        Planned(
            "how far are transferred masks from true ones?",
            *("u_a_t", "u_a, all LGE masks", "dice_percent"),
        ),
    ),
    split=_table_1,
    own_split=partial(protocol_split, "table 1"),
    tiny=Scale((4, 0, 2), seeds=1, shrink=4, changes=_TINY, steps=2),
    small=Scale((33, 0, 20), shrink=2.5, changes=_SMALL),
    paper=Scale((33, 0, 2)),
)
CODE = replace(
    TABLE_2,
    experiment="code",
    arms={
        "paper": Arm({"variant": "u_a_t", **RECIPES["paper"]}),
        "code": Arm({"variant": "u_a_t", **RECIPES["code"]}),
    },
    comparisons=(
        Planned("is the paper's training better than its code's?", "paper", "code", "dice_percent"),
    ),
)
STUDIES = (TABLE_2, TABLE_1, CODE)


def medians(outcome: Outcome, arm: str, score: str) -> list[float]:
    """Median of a score over the test patients, for each training, as in table 3."""
    return [
        statistics.median(row.scores[score] for row in evaluation.rows)
        for evaluation in outcome.evaluations[arm]
    ]


def main() -> None:
    """Run an experiment and keep its results."""
    outcome = run(*STUDIES)
    for arm in outcome.study.arms:
        for structure in _STRUCTURES:
            score = f"{structure}_dice_percent"
            outcome.facts[f"median {score} (table 3), {arm}"] = medians(outcome, arm, score)
    first = next(iter(outcome.runs.values()))[0]
    tested = open_dataset(first.plan.layout, first.data).subset(tuple(first.plan.split.test))
    outcome.peers += borrowed(tested, **outcome.scale.changes)
    if "u" in outcome.study.arms:
        outcome.controls += [controls.worth_borrowing(peer, outcome, "u") for peer in outcome.peers]
    print(section(outcome.save()))
    draw(outcome)


if __name__ == "__main__":
    main()
