"""Controls: is a data set fit for a question? Simple rules, scored as a study's networks are."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from cmrfast import metrics
from cmrfast.data.cache import Tensors
from cmrfast.methods.siamese_lesion.images import patch_centers
from cmrfast.methods.siamese_lesion.lesions import patch_labels
from cmrfast.models.siamese_lesion import Recipe

FOLDS = 5
_RIDGE = 1.0


@dataclass(frozen=True)
class Control:
    """What a control measured.

    Args:
        name: what was measured, with its unit.
        value: None if it was not run.
        accept: the condition on the value.
        passed: whether the value meets it; None if it is only reported.
    """

    name: str
    value: float | None
    accept: str
    passed: bool | None

    def as_json(self) -> dict[str, Any]:
        """The entry of the result file."""
        return asdict(self)


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
    lesion, fold = torch.cat(labels), torch.cat(subject) % FOLDS
    positive = _cross_validate(torch.cat(features), lesion, fold)
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


def _cross_validate(features: Tensor, labels: Tensor, fold: Tensor) -> Tensor:
    """Predictions (N,) bool of a quadratic logistic regression, fitted without each one's fold."""
    i, j = torch.triu_indices(features.shape[1], features.shape[1])
    terms = torch.cat((features, features[:, i] * features[:, j]), 1)
    predicted = torch.zeros_like(labels)
    for left_out in fold.unique():
        test = fold == left_out
        mean, sd = terms[~test].mean(0), terms[~test].std(0).clamp(min=1e-6)
        scaled = torch.cat(((terms - mean) / sd, torch.ones(len(terms), 1)), 1)
        weights = _fit_logistic(scaled[~test], labels[~test].double())
        predicted[test] = scaled[test] @ weights > 0
    return predicted


def _fit_logistic(terms: Tensor, labels: Tensor, steps: int = 30) -> Tensor:
    """Weights of a ridge logistic regression in which both classes count alike, by Newton steps."""
    positive = labels.mean().clamp(1e-6, 1 - 1e-6)
    importance = torch.where(labels == 1, 0.5 / positive, 0.5 / (1 - positive))
    weights = terms.new_zeros(terms.shape[1])
    ridge = _RIDGE * torch.eye(len(weights), dtype=terms.dtype)
    for _ in range(steps):
        probability = (terms @ weights).sigmoid()
        slope = terms.T @ (importance * (probability - labels)) + ridge @ weights
        curve = (terms * (importance * probability * (1 - probability))[:, None]).T @ terms
        weights = weights - torch.linalg.solve(curve + ridge, slope)
    return weights
