"""Controls: is a data set fit for a study's question? Simple rules, scored as its networks are."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cmrfast import metrics
from cmrfast.data.cache import Cache, Tensors
from cmrfast.methods import AnyTask
from cmrfast.methods.siamese_lesion.images import patch_centers
from cmrfast.methods.siamese_lesion.lesions import patch_labels
from cmrfast.models.siamese_lesion import Recipe
from cmrfast.train import Run, train
from studies import comparisons, patients
from studies.design import Arm, Control, Planned
from studies.logistic import cross_validate
from studies.outcome import Outcome, evaluate_whole
from studies.peer import Peer

_FOLDS = 5
REPORTED = "reported"


def shape_alone(subjects: Sequence[Tensors], patch: int, recipe: Recipe) -> Control:
    """Where a patch lies and how the wall is shaped must not tell whether it has a lesion.

    Quadratic logistic regression without any T1 value, cross-validated by subject.

    Args:
        subjects: ``myocardium`` and ``lesion`` (N, I, J) of each, from ``aligned_pairs``.
        patch: side in pixels.
        recipe: of the patches.
    """
    features, labels, subject = [], [], []
    for number, pairs in enumerate(subjects):
        own, positive = _shape_features(pairs, patch, recipe)
        features.append(own)
        labels.append(positive)
        subject.append(torch.full((len(own),), number))
    lesion, fold = torch.cat(labels), torch.cat(subject) % _FOLDS
    positive = cross_validate(torch.cat(features), lesion, fold)
    balanced = 100 * metrics.balanced_accuracy(positive, lesion).balanced
    return Control(
        "balanced accuracy, in percent, of patch position and wall shape without T1",
        balanced,
        "at most 60",
        balanced <= 60,
    )


def _shape_features(pairs: Tensors, patch: int, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Of each patch: position, slice, and area of the wall's quadrants; and whether it is positive.

    Returns:
        (P, 8) float64, lengths in cm, and (P,) bool.
    """
    features, labels = [], []
    for k, (wall, lesion) in enumerate(zip(pairs["myocardium"], pairs["lesion"], strict=True)):
        centers = patch_centers(wall, recipe.stride)
        where = wall.nonzero().double()
        middle = where.mean(0)
        away = (where - middle) * recipe.spacing_mm / 10
        quadrant = torch.bincount((away > 0).long() @ torch.tensor([2, 1]), minlength=4)
        shape = [*(quadrant * (recipe.spacing_mm / 10) ** 2).tolist(), away.norm(dim=1).mean(), k]
        at = (centers - middle) * recipe.spacing_mm / 10
        features.append(torch.cat((at, at.new_tensor(shape).expand(len(at), -1)), 1))
        labels.append(
            patch_labels(lesion, centers - patch // 2, (patch, patch), share=recipe.lesion_share)
        )
    return torch.cat(features), torch.cat(labels)


def shuffled_lge(outcome: Outcome) -> Control:
    """Trained with LGE of other patients, ``decoupled`` must not gain on ``pure``."""
    name = "decoupled, LGE shuffled"
    evaluations = []
    for trained in outcome.runs["decoupled"]:
        folder = _study_folder(trained) / "control_shuffled_lge" / f"seed{trained.plan.seed}"
        patients.shuffle_lge(trained, folder / "patients")
        evaluations.append(evaluate_whole(_retrain(trained, folder / "patients", folder / "run")))
    study = replace(
        outcome.study,
        arms={**outcome.study.arms, name: Arm({})},
        comparisons=(Planned("control", name, "pure", "balanced"),),
    )
    repeats = outcome.scale.repeats
    measured = comparisons.measure(
        study, {name: evaluations, "pure": outcome.evaluations["pure"]}, repeats=repeats
    )
    (gain,) = comparisons.compare(study, measured, repeats=repeats)
    difference, low, high = (gain[key] for key in ("difference", "low", "high"))
    return Control(
        f"gain of {name} over pure, in points of balanced accuracy",
        difference,
        "interval holds 0, and below 3",
        None if math.isnan(low) else low <= 0 <= high and difference < 3,
    )


def lge_itself(outcome: Outcome) -> Control:
    """``pure``, trained and tested on LGE in place of T1: what the labels allow at most."""
    balanced = []
    for trained in outcome.runs["pure"]:
        folder = _study_folder(trained) / "control_lge" / f"seed{trained.plan.seed}"
        patients.replace_t1_by_lge(trained, folder / "patients")
        run = _retrain(trained, folder / "patients", folder / "run")
        balanced.append(evaluate_whole(run).summary()["balanced"].mean)
    # A repeat whose test patients have no lesion has no balanced accuracy.
    known = [value for value in balanced if math.isfinite(value)] or [math.nan]
    return Control(
        "balanced accuracy, in percent, of pure on LGE", statistics.fmean(known), REPORTED, None
    )


def reported(peer: Peer, score: str) -> Control:
    """What a rule without training reaches."""
    return Control(f"{score} of {peer.name}", _mean(peer, score), REPORTED, None)


def beaten(peer: Peer, score: str, outcome: Outcome, arm: str) -> Control:
    """A rule without training, which an arm must be better than."""
    value, reached = _mean(peer, score), statistics.fmean(outcome.by_seed(arm)[score])
    name = f"{score} of {peer.name}"
    return Control(name, value, f"beaten by {arm}, {reached:.3g}", reached > value)


def worth_borrowing(peer: Peer, outcome: Outcome, arm: str) -> Control:
    """If the network without transfer is as good as the masks, they have nothing to teach it."""
    value, reached = (
        _mean(peer, "dice_percent"),
        statistics.fmean(outcome.by_seed(arm)["dice_percent"]),
    )
    return Control(
        f"dice_percent of {peer.name}; {arm} reached {reached:.3g}",
        value,
        f"{arm} at least 5 points below",
        reached <= value - 5,
    )


def cached_task(trained: Run) -> AnyTask:
    """The task of a run, with the images that its study has prepared."""
    return trained.task(cache=Cache(_study_folder(trained) / "cache"))


def _study_folder(trained: Run) -> Path:
    return trained.path.parents[1]


def _mean(peer: Peer, score: str) -> float:
    return peer.evaluation.summary()[score].mean


def _retrain(trained: Run, data: Path, folder: Path) -> Run:
    """The same training on other images."""
    plan = trained.plan
    fields = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in {**plan.config, **plan.recipe}.items()
    }
    return train(
        plan.method,
        data,
        folder,
        changes=fields,
        split=plan.split,
        steps=plan.steps,
        seed=plan.seed,
        resume=True,
        cache=Cache(_study_folder(trained) / "cache"),
    )
