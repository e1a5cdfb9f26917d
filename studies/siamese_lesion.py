"""Does a network trained with LGE detect lesions in T1 better than one trained on T1 alone?

python -m studies.siamese_lesion [subjects|contrast] [--scale tiny|small|paper] [--data ROOT]

Without a name it repeats table 1, ten times. The other two are curves: ``pure`` and ``decoupled``
with more and more training subjects, and with stronger and stronger lesions in T1.
"""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch

from cmrfast import metrics
from cmrfast.methods import Row
from cmrfast.methods.siamese_lesion.task import PAIRS
from cmrfast.train.log import read_log
from studies import controls
from studies.design import Arm, Control, Planned, Pooled, Scale, Study
from studies.figures import draw
from studies.outcome import Outcome
from studies.page import section
from studies.study import run

VARIANTS = ("pure", "siamese", "partial", "decoupled")


def count_patches(rows: Sequence[Row]) -> list[float]:
    """Patches with lesion, those of them that are detected, and likewise of those without."""
    counts = [0.0] * 4
    for row in rows:
        lesion = bool(row.ids["lesion"])
        counts[0 if lesion else 2] += 1
        counts[1 if lesion else 3] += (row.scores["probability"] > 0.5) == lesion
    return counts


def sensitivity(counts: list[list[float]]) -> float:
    """Percent of the patches with lesion that are detected, NaN if there are none."""
    return _percent(counts, 0)


def specificity(counts: list[list[float]]) -> float:
    """Percent of the patches without lesion that are recognised, NaN if there are none."""
    return _percent(counts, 2)


def balanced(counts: list[list[float]]) -> float:
    """Mean of sensitivity and specificity, in percent."""
    return (sensitivity(counts) + specificity(counts)) / 2


def _percent(counts: list[list[float]], column: int) -> float:
    patches, right = (sum(patient[column + n] for patient in counts) for n in (0, 1))
    return 100 * right / patches if patches else math.nan


SMALL = {
    **{"patch": 32, "spacing_mm": 2.0, "stride": 3},
    **{"channels": (24, 48, 64, 48), "hidden": 256, "lr": 2e-4},
}
TINY = {"patch": 32, "spacing_mm": 3.0, "channels": (4, 4, 4, 4), "hidden": 8}
_COMMON: dict[str, Any] = {
    "method": "siamese_lesion",
    "scores": ("balanced", "sensitivity", "specificity", "classification_loss", "pairing_loss"),
    "pooled": {
        score.__name__: Pooled(count_patches, score)
        for score in (balanced, sensitivity, specificity)
    },
    "own_share": (13, 0, 2),  # nothing is chosen on validation patients
}

#: Table 1, repeated: each repeat has 15 subjects of its own.
TABLE_1 = Study(
    **_COMMON,
    arms={name: Arm({"variant": name}, published=name) for name in VARIANTS},
    comparisons=(
        Planned("training with LGE improves it (table 1)", "siamese", "pure", "balanced", "higher"),
        Planned(
            "sharing half of the weights is better than all (table 1)",
            *("partial", "siamese", "balanced", "higher"),
        ),
        Planned(
            "sharing no weights is better than half (table 1)",
            *("decoupled", "partial", "balanced", "higher"),
        ),
        Planned(
            "training with LGE improves it, no weights shared (table 1)",
            *("decoupled", "pure", "balanced", "higher"),
        ),
    ),
    tiny=Scale((3, 0, 2), seeds=1, repeats=True, shrink=3, changes=TINY, steps=2),
    small=Scale((13, 0, 2), seeds=10, repeats=True, changes=SMALL, steps=2000),
    paper=Scale((13, 0, 2), seeds=10, repeats=True),
)

SUBJECTS = (10, 20, 40, 160)
CONTRASTS_MS = (0, 100, 200, 300, 400)


def _curve(
    experiment: str, axis: str, arms: dict[str, Arm], points: Sequence[float], train: int
) -> Study:
    """``decoupled`` against ``pure``, at several points along one factor."""
    return Study(
        **_COMMON,
        experiment=experiment,
        axis=axis,
        arms=arms,
        comparisons=tuple(
            Planned(
                f"does LGE help with {point:g} {axis}?",
                *(f"decoupled, {point:g}", f"pure, {point:g}", "balanced"),
            )
            for point in points
        ),
        tiny=Scale((4, 0, 2), seeds=1, shrink=3, changes=TINY, steps=2),
        small=Scale((train, 0, 20), changes=SMALL, steps=3000),
        paper=Scale((train, 0, 20)),
    )


#: How many subjects are needed?
BY_SUBJECTS = _curve(
    "subjects",
    "training subjects",
    {
        f"{variant}, {count}": Arm({"variant": variant}, patients=count / max(SUBJECTS))
        for count in SUBJECTS
        for variant in ("pure", "decoupled")
    },
    SUBJECTS,
    train=max(SUBJECTS),
)
#: How much must a lesion's T1 exceed that of the muscle around it?
BY_CONTRAST = _curve(
    "contrast",
    "ms more T1 in lesions",
    {
        f"{variant}, {contrast}": Arm({"variant": variant}, phantom={"lesion_t1_ms": contrast})
        for contrast in CONTRASTS_MS
        for variant in ("pure", "decoupled")
    },
    CONTRASTS_MS,
    train=40,
)
STUDIES = (TABLE_1, BY_SUBJECTS, BY_CONTRAST)


def orders(outcome: Outcome) -> dict[str, int]:
    """How many repeats have each order of the arms by balanced accuracy, the best first."""
    accuracies = {arm: outcome.by_seed(arm)["balanced"] for arm in outcome.runs}
    found = Counter(
        " > ".join(sorted(accuracies, key=lambda arm: -accuracies[arm][n]))
        for n in range(outcome.scale.seeds)
        if all(math.isfinite(values[n]) for values in accuracies.values())
    )
    return dict(found.most_common())


def t1_threshold_accuracy(outcome: Outcome) -> float:
    """Balanced accuracy, in percent, of a threshold on a patch's mean T1, fitted in training.

    It is the best that a classifier can reach if it uses only the mean of a patch.
    """
    trained = outcome.runs["pure"][0]
    task = trained.task()

    def means(part: str) -> tuple[torch.Tensor, torch.Tensor]:
        feed = task.feed(trained.cases(part), seed=0)
        batch = feed.batch(0, torch.arange(len(feed)))
        return batch["t1"].mean((1, 2, 3)), batch["labels"] == 1

    brightness, lesion = means("train")
    best, rule = 0.0, (0.0, False)
    for threshold in brightness.quantile(torch.linspace(0.01, 0.99, 99)).tolist():
        for above in (True, False):
            balanced = metrics.balanced_accuracy((brightness > threshold) == above, lesion).balanced
            best, rule = max((best, rule), (balanced, (threshold, above)))
    brightness, lesion = means("test")
    return 100 * metrics.balanced_accuracy((brightness > rule[0]) == rule[1], lesion).balanced


def final_pairing_loss(outcome: Outcome) -> list[float]:
    """Mean pairing loss over the last tenth of each decoupled training."""
    values = []
    for trained in outcome.runs["decoupled"]:
        losses = [x["pairing"] for x in read_log(trained.path / "log.jsonl") if "pairing" in x]
        last = losses[-len(losses) // 10 :]
        values.append(sum(last) / len(last))
    return values


def shape_alone(outcome: Outcome) -> Control:
    """The control of that name, on all subjects of the study."""
    task = controls.cached_task(outcome.runs["pure"][0])
    cases = [
        case
        for trained in outcome.runs["pure"]
        for part in ("train", "test")
        for case in trained.cases(part)
    ]
    return controls.shape_alone(
        [task.prepared(PAIRS, case) for case in cases], task.config.patch, task.recipe
    )


def null_contrast(outcome: Outcome) -> Control:
    """Where no lesion has a T1 of its own, ``pure`` must be at chance."""
    accuracy = fmean(outcome.by_seed("pure, 0")["balanced"])
    return Control(
        "balanced accuracy, in percent, of pure without any lesion in T1",
        accuracy,
        "45 to 55",
        45 <= accuracy <= 55,
    )


def main() -> None:
    """Run an experiment and keep its results."""
    outcome = run(*STUDIES)
    if outcome.study is TABLE_1:
        accuracy = t1_threshold_accuracy(outcome)
        outcome.facts["balanced accuracy of mean T1 alone, percent"] = accuracy
        outcome.facts["training pairing loss at the end, decoupled"] = final_pairing_loss(outcome)
        outcome.facts["the same of guessing, ln 32"] = math.log(32)
        for order, count in orders(outcome).items():
            outcome.facts[f"repeats with the order {order}"] = count
        outcome.controls += [shape_alone(outcome), controls.shuffled_lge(outcome)]
        outcome.controls += [controls.lge_itself(outcome)]
    elif outcome.study is BY_CONTRAST:
        outcome.controls.append(null_contrast(outcome))
    print(section(outcome.save()))
    draw(outcome)


if __name__ == "__main__":
    main()
