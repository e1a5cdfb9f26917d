"""Does a network trained with LGE detect lesions in T1 better than one trained on T1 alone?

python -m studies.siamese_lesion [--scale small|paper] [--data ROOT]
"""

import math
from collections.abc import Sequence

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


STUDY = Study(
    method="siamese_lesion",
    arms={name: Arm({"variant": name}, published=name) for name in VARIANTS},
    scores=("balanced", "sensitivity", "specificity", "classification_loss", "pairing_loss"),
    pooled={
        score.__name__: Pooled(count_patches, score)
        for score in (balanced, sensitivity, specificity)
    },
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
    small=Scale(
        cases=30,
        shrink=2,
        changes={
            **{"patch": 32, "spacing_mm": 2.0, "stride": 3, "split": (20, 4, 6)},
            **{"channels": (24, 48, 64, 48), "hidden": 256, "lr": 5e-4},
        },
        steps=1500,
    ),
    paper=Scale(cases=15),
)


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
    trained = outcome.runs["pure"][0]
    task = controls.cached_task(trained)
    cases = [case for part in ("train", "validate", "test") for case in trained.cases(part)]
    return controls.shape_alone(
        [task.prepared(PAIRS, case) for case in cases], task.config.patch, task.recipe
    )


def main() -> None:
    """Run the study and keep its results."""
    outcome = run(STUDY)
    outcome.facts["balanced accuracy of mean T1 alone, percent"] = t1_threshold_accuracy(outcome)
    outcome.facts["training pairing loss at the end, decoupled"] = final_pairing_loss(outcome)
    outcome.facts["the same of guessing, ln 32"] = math.log(32)
    outcome.controls += [shape_alone(outcome), controls.shuffled_lge(outcome)]
    outcome.controls += [controls.lge_itself(outcome)]
    if (outcome.runs["pure"][0].path.parents[1] / "patients.done").exists():  # phantoms
        outcome.controls.append(controls.null_t1(outcome))
    print(section(outcome.save()))
    draw(outcome)


if __name__ == "__main__":
    main()
