"""Does a network trained with LGE detect lesions in T1 better than one trained on T1 alone?

python -m studies.siamese_lesion [--scale small|paper] [--data ROOT]
"""

import math

import torch

from cmrfast import metrics
from cmrfast.train.log import read_log
from studies.design import Arm, Scale, Study
from studies.figures import draw
from studies.outcome import Outcome
from studies.page import section
from studies.study import run

VARIANTS = ("pure", "siamese", "partial", "decoupled")
STUDY = Study(
    method="siamese_lesion",
    arms={name: Arm({"variant": name}, published=name) for name in VARIANTS},
    scores=("balanced", "sensitivity", "specificity", "classification_loss", "pairing_loss"),
    unit=("case", "slice", "patch"),
    tests=(("siamese", "pure"), ("partial", "siamese"), ("decoupled", "partial")),
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


def main() -> None:
    """Run the study and keep its results."""
    outcome = run(STUDY)
    outcome.facts["balanced accuracy of mean T1 alone, percent"] = t1_threshold_accuracy(outcome)
    outcome.facts["training pairing loss at the end, decoupled"] = final_pairing_loss(outcome)
    outcome.facts["the same of guessing, ln 32"] = math.log(32)
    print(section(outcome.save()))
    draw(outcome)


if __name__ == "__main__":
    main()
