"""Trains the small networks that come with the package, and writes them with their cards.

There is none for siamese_lesion: small networks did not exceed chance on other phantoms.

Run it with ``python packaging/demo_weights.py [METHOD …]``; twenty minutes on two cores. They
are trained on synthetic patients only.
"""

import math
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import cmrfast
from cmrfast import methods
from cmrfast.data.phantom import write_phantoms
from cmrfast.runs.evaluate import Evaluation, evaluate
from cmrfast.runs.weights import FOLDER
from cmrfast.train import Run, train
from cmrfast.train.checkpoint import Checkpoint

CARD = """\
# {method}

**Trained on synthetic patients only. Not for use on patients.**

| | |
|---|---|
| network | `{method}`, {parameters:,} parameters; changed fields: {changes} |
| training | {steps} steps on {trained} phantoms, `{layout}` (seed {seed}, voxels x {shrink}) |
| tested on | {tested} other phantoms (seed {test_seed}) |
{scores}
| made by | `python packaging/demo_weights.py {method}`, cmrfast {version}, torch {torch} |
| licence | Apache-2.0 |
"""


class Spec(NamedTuple):
    """How the network of a method is trained.

    Attributes:
        changes: changed fields of config and recipe.
        steps: optimiser steps.
        shrink: factor by which the phantoms' voxels are enlarged.
        scores: of the evaluation that the card lists.
        cases: phantoms to train on.
    """

    changes: dict[str, Any]
    steps: int
    shrink: float
    scores: tuple[str, ...]
    cases: int = 30


SEED, TEST_SEED, TESTED = 100, 200, 10
SPECS = {
    "adversarial_transfer": Spec(
        {"variant": "u", "width": 16, "lr": 2e-3, "batch": 8, "pixel_mm": 3.75, "size": 80}
        | {"view_px": 80},
        600,
        3,
        ("lv_dice_percent", "myocardium_dice_percent", "rv_dice_percent"),
    ),
    "joint_registration": Spec(
        {"side": 80, "spacing_mm": 1.875, "shift_px": 8.0, "lge_shift_px": 2.0, "batch": 8}
        | {"widths": (8, 16, 32, 64), "lr": 1e-3},
        800,
        2.5,
        ("before_lv_cd_mm", "lv_cd_mm", "cine_dice_percent", "lge_dice_percent"),
    ),
    "joint_scar": Spec(
        {"image": 96, "root": 32, "units": (1, 1, 1), "width": 32, "depth": 2, "heads": 4}
        | {"hidden": 64, "decoder": (32, 24, 16, 16, 8), "dropout": 0.1, "batch": 8, "lr": 1e-3},
        1000,
        2,
        ("myocardium_dice", "scar_dice"),
    ),
    "new_lesions": Spec(
        {"spacing_mm": 2.0, "patch": 24, "overlap": 6, "batch": 8, "per_patient": 100}
        | {"dropout": 0.1, "bias_field": False},
        600,
        2,
        ("dice", "f1"),
        12,
    ),
}


def make(method: str, spec: Spec, work: Path) -> None:
    """Train a network on phantoms, test it on others, and keep its weights and card."""
    for name, seed, cases in (("train", SEED, spec.cases), ("test", TEST_SEED, TESTED)):
        write_phantoms(_layout(method), work / name, cases=cases, seed=seed, shrink=spec.shrink)
    run = train(
        method,
        work / "train",
        work / "run",
        changes=spec.changes,
        steps=spec.steps,
        device="cpu",
        stream=sys.stderr,
    )
    kept = keep(run, FOLDER / method)
    evaluation = evaluate(kept, work / "test", part="all")
    (FOLDER / method / "card.md").write_text(card(method, spec, kept, evaluation), "utf-8")


def keep(run: Run, folder: Path) -> Run:
    """Write a run in half precision, without optimiser, log and what it says of this machine."""
    kept = Run(folder, run.plan, "phantoms", run.fitted)
    kept.save()
    checkpoint = run.checkpoint()
    weights = {n: w.half() if w.is_floating_point() else w for n, w in _weights(checkpoint).items()}
    state = {"model": weights}
    kept.checkpoints.save(Checkpoint(checkpoint.step, checkpoint.made_for, state, checkpoint.score))
    return kept


def _weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return dict(checkpoint.state["model"])


def card(method: str, spec: Spec, run: Run, evaluation: Evaluation) -> str:
    """What a reader must know of the weights."""
    summary = evaluation.summary()
    scores = "\n".join(
        f"| {name.replace('_', ' ')} | {summary[name].mean:.3g}{_spread(summary[name].sd)} |"
        for name in spec.scores
    )
    return CARD.format(
        method=method,
        parameters=sum(p.numel() for p in run.model().parameters()),
        changes=", ".join(f"`{name}={value}`" for name, value in spec.changes.items()),
        steps=spec.steps,
        trained=len(run.plan.split.train),
        layout=_layout(method),
        seed=SEED,
        shrink=spec.shrink,
        tested=TESTED,
        test_seed=TEST_SEED,
        scores=scores,
        version=cmrfast.__version__,
        torch=torch.__version__,
    )


def _spread(sd: float) -> str:
    return "" if math.isnan(sd) else f" (SD {sd:.2g})"


def _layout(method: str) -> str:
    return methods.get(method).datasets[0]


def main() -> None:
    """Make all of them, or those that are named."""
    for method in sys.argv[1:] or SPECS:
        with tempfile.TemporaryDirectory() as folder:
            make(method, SPECS[method], Path(folder))
        print(FOLDER / method)


if __name__ == "__main__":
    main()
