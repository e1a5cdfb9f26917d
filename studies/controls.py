"""Controls: is a data set fit for a study's question? Simple rules, scored as its networks are."""

import math
import shutil
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from cmrfast import metrics
from cmrfast.data.cache import Cache, Tensors
from cmrfast.data.datasets import Case, Split
from cmrfast.data.phantom import write_phantoms
from cmrfast.methods import (
    AnyTask,
    adversarial_transfer,
    joint_registration,
    joint_scar,
    new_lesions,
)
from cmrfast.methods.siamese_lesion.images import patch_centers
from cmrfast.methods.siamese_lesion.lesions import lesion_mask, patch_labels
from cmrfast.models.joint_scar import JointScar
from cmrfast.models.siamese_lesion import Recipe
from cmrfast.runs.evaluate import evaluate
from cmrfast.train import Run, train
from studies import comparisons, patients
from studies.design import Arm, Control, Planned
from studies.logistic import cross_validate
from studies.outcome import Outcome

_FOLDS = 5
_UNSEEN = 30  # further subjects, so that a control's accuracy is precise
_REPORTED = "reported"


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


def null_t1(outcome: Outcome) -> Control:
    """``pure``, retrained where T1 of a lesion is that of healthy muscle, must be at chance.

    The training subjects are as many as in the study; all others are test subjects.
    """
    trained = outcome.runs["pure"][0]
    scale = getattr(outcome.study, outcome.scale)
    folder = _study_folder(trained) / "control_null_t1"
    data = folder / "patients"
    if not (folder / "patients.done").exists():
        shutil.rmtree(data, ignore_errors=True)
        write_phantoms(
            "t1_lge", data, cases=scale.cases + _UNSEEN, shrink=scale.shrink, lesion_t1_ms=0
        )
        (folder / "patients.done").touch()
    split = trained.plan.split
    known = {*split.train, *split.validate}
    others = tuple(sorted(p.name for p in data.iterdir() if p.name not in known))
    run = _retrain(trained, data, folder / "run", Split(split.train, split.validate, others))
    balanced = evaluate(run).summary()["balanced"].mean
    return Control(
        f"balanced accuracy, in percent, of pure without any lesion in T1, {len(others)} subjects",
        balanced,
        "45 to 55",
        45 <= balanced <= 55,
    )


def shuffled_lge(outcome: Outcome) -> Control:
    """Trained with LGE of other patients, ``decoupled`` must not gain on ``pure``."""
    name = "decoupled, LGE shuffled"
    folder = _study_folder(outcome.runs["decoupled"][0]) / "control_shuffled_lge"
    data = folder / "patients"
    patients.shuffle_lge(outcome.runs["decoupled"][0], data)
    evaluations = []
    for trained in outcome.runs["decoupled"]:
        run = _retrain(trained, data, folder / f"seed{trained.plan.seed}", trained.plan.split)
        evaluations.append(evaluate(run))
    study = replace(
        outcome.study,
        arms={**outcome.study.arms, name: Arm({})},
        comparisons=(Planned("control", name, "pure", "balanced"),),
    )
    measured = comparisons.measure(study, {name: evaluations, "pure": outcome.evaluations["pure"]})
    (gain,) = comparisons.compare(study, measured)
    difference, low, high = (gain[key] for key in ("difference", "low", "high"))
    return Control(
        f"gain of {name} over pure, in points of balanced accuracy",
        difference,
        "interval holds 0, and below 3",
        None if math.isnan(low) else low <= 0 <= high and difference < 3,
    )


def lge_itself(outcome: Outcome) -> Control:
    """``pure``, trained and tested on LGE in place of T1: what the labels allow at most."""
    trained = outcome.runs["pure"][0]
    folder = _study_folder(trained) / "control_lge"
    patients.replace_t1_by_lge(trained, folder / "patients")
    run = _retrain(trained, folder / "patients", folder / "run", trained.plan.split)
    balanced = evaluate(run).summary()["balanced"].mean
    return Control("balanced accuracy, in percent, of pure on LGE", balanced, _REPORTED, None)


def six_sd_rule(outcome: Outcome, arm: str) -> list[Control]:
    """Scar Dice of the 6-SD rule within the true wall, and within the wall that an arm draws."""
    trained = outcome.runs[arm][0]
    model = cast(JointScar, trained.model())
    dices: dict[str, list[float]] = {"true": [], "predicted": []}
    for case in trained.cases("test"):
        image, label = case.image("LGE", channels=1), case.label("LGE")
        wall, scar = (case.labelling["LGE"].mask(label, n).data[0] for n in ("myocardium", "scar"))
        with torch.inference_mode():
            drawn = joint_scar.images.segment(model, image)["myocardium"].data[0]
        for name, region in (("true", wall), ("predicted", drawn)):
            for k in range(image.shape[2]):
                found = _bright(image.data[0, ..., k], region[..., k], image.spacing_mm[:2])
                dices[name].append(metrics.dice(found, scar[..., k] != 0).item())
    reached = _mean(outcome.by_seed(arm)["scar_dice"])
    return [
        _beaten(f"scar Dice of the 6-SD rule within the {name} wall", _mean(values), reached, arm)
        for name, values in dices.items()
    ]


def _bright(image: Tensor, wall: Tensor, spacing_mm: Sequence[float]) -> Tensor:
    """What the 6-SD rule finds; nothing where the wall has too few pixels for a reference."""
    try:
        return lesion_mask(image.float(), wall, spacing_mm=spacing_mm)
    except ValueError:
        return torch.zeros_like(wall, dtype=torch.bool)


def classical_registration(outcome: Outcome, arm: str) -> list[Control]:
    """Distance of LV centres after registration of the images by SimpleITK, without any label."""
    names = {"affine": "affine, mutual information", "center": "centres of mass aligned"}
    try:
        import SimpleITK  # noqa: F401
    except ImportError:
        missing = "not run, needs SimpleITK of the extra [bench]"
        return [Control(f"LV CD, {name}", None, missing, None) for name in names.values()]
    from studies.classical import moved_labels

    trained = outcome.runs[arm][0]
    task = cached_task(trained)
    spacing = (trained.plan.recipe["spacing_mm"],) * 2
    distances: dict[str, list[float]] = {name: [] for name in names}
    for case in trained.cases("test"):
        pairs = task.prepared(joint_registration.task.PAIRS, case)
        for name, own in distances.items():
            moved = moved_labels(pairs, affine=name == "affine")
            ventricles = moved == 1, pairs["cine_labels"] == 1
            distance = metrics.center_distance(*ventricles, spacing, batch_axes=1)
            own.append(distance.nanmean().item())
    return [
        Control(f"LV CD in mm, {text}", _mean(distances[name]), _REPORTED, None)
        for name, text in names.items()
    ]


def difference_threshold(outcome: Outcome, arm: str) -> Control:
    """Dice of a threshold on the difference of both visits, the best on training patients."""
    trained = outcome.runs[arm][0]
    thresholds = torch.linspace(0.25, 6, 24).tolist()
    train_dices = [_threshold_dices(trained, case, thresholds) for case in trained.cases("train")]
    best = int(torch.tensor(train_dices).mean(0).argmax())
    test = [_threshold_dices(trained, case, thresholds)[best] for case in trained.cases("test")]
    reached = _mean(outcome.by_seed(arm)["dice"])
    return _beaten("Dice of the best threshold on the difference image", _mean(test), reached, arm)


def _threshold_dices(trained: Run, case: Case, thresholds: Sequence[float]) -> list[float]:
    prepared = cached_task(trained).prepared(new_lesions.task.NORMALISED, case)
    earlier, later = prepared["images"].float()
    change, truth = later - earlier, prepared["masks"][0] != 0
    return [metrics.dice(change > threshold, truth).item() for threshold in thresholds]


def borrowed_masks_alone(outcome: Outcome, arm: str) -> Control:
    """Dice of masks of cine and T2 on the LGE slices that they are transferred to.

    If the network without transfer is better than these masks, they have nothing to teach it.
    """
    trained = outcome.runs[arm][0]
    values = []
    for case in trained.cases("test"):
        image, truth = case.image("LGE", channels=1), case.label("LGE").data
        for lender in [name for name in ("C0", "T2") if name in case.labels]:
            slices, masks = adversarial_transfer.transfer.borrowed_masks(
                case.label(lender), image, trained.plan.recipe["slice_map"]
            )
            values.append(
                _mean(
                    metrics.dice(masks == value, truth[..., slices] == value).item()
                    for value in adversarial_transfer.images.STRUCTURES.values()
                )
            )
    alone = 100 * _mean(values)
    reached = _mean(outcome.by_seed(arm)["dice_percent"])
    return Control(
        f"Dice, in percent, of borrowed masks on LGE; {arm} reached {reached:.3g}",
        alone,
        f"{arm} at least 5 points below",
        reached <= alone - 5,
    )


def cached_task(trained: Run) -> AnyTask:
    """The task of a run, with the images that its study has prepared."""
    return trained.task(cache=Cache(_study_folder(trained) / "cache"))


def _study_folder(trained: Run) -> Path:
    return trained.path.parents[1]


def _retrain(trained: Run, data: Path, folder: Path, split: Split) -> Run:
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
        split=split,
        steps=plan.steps,
        seed=plan.seed,
        resume=True,
        cache=Cache(_study_folder(trained) / "cache"),
    )


def _beaten(name: str, value: float, reached: float, arm: str) -> Control:
    return Control(name, value, f"beaten by {arm}, {reached:.3g}", reached > value)


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)
