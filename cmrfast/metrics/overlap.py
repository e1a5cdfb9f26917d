"""Overlap of two masks, and accuracy over two classes; batched, on any device.

Two empty masks agree: every score is 1. A score is 0 if only its denominator is empty.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cmrfast.metrics.masks import require_masks


def dice(prediction: Tensor, reference: Tensor, *, batch_axes: int = 0) -> Tensor:
    """Dice score of masks, 2|A∩B| / (|A| + |B|).

    Args:
        prediction: bool or integer, nonzero inside.
        reference: same shape.
        batch_axes: number of leading axes to keep; (B, K, *S) with 2 gives (B, K).

    Returns:
        float64 scores with the kept axes; a scalar tensor by default.

    Example:
        >>> labels, truth = torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 2, 2])
        >>> classes = torch.tensor([[1], [2]])
        >>> dice(labels == classes, truth == classes, batch_axes=1)
        tensor([0.6667, 0.6667], dtype=torch.float64)
    """
    both, predicted, truth = _sizes("dice", prediction, reference, batch_axes)
    return _ratio(2 * both, predicted + truth, predicted + truth)


def jaccard(prediction: Tensor, reference: Tensor, *, batch_axes: int = 0) -> Tensor:
    """Jaccard index of masks, |A∩B| / |A∪B|; arguments and result as in ``dice``."""
    both, predicted, truth = _sizes("jaccard", prediction, reference, batch_axes)
    return _ratio(both, predicted + truth - both, predicted + truth)


def precision(prediction: Tensor, reference: Tensor, *, batch_axes: int = 0) -> Tensor:
    """Fraction of the prediction that is correct; arguments and result as in ``dice``."""
    both, predicted, truth = _sizes("precision", prediction, reference, batch_axes)
    return _ratio(both, predicted, predicted + truth)


def recall(prediction: Tensor, reference: Tensor, *, batch_axes: int = 0) -> Tensor:
    """Fraction of the reference that is predicted; arguments and result as in ``dice``."""
    both, predicted, truth = _sizes("recall", prediction, reference, batch_axes)
    return _ratio(both, truth, predicted + truth)


class ClassScores(NamedTuple):
    """Scores of a binary classification; NaN if a class has no case."""

    balanced: float
    sensitivity: float
    specificity: float


def balanced_accuracy(prediction: Tensor, reference: Tensor) -> ClassScores:
    """Mean of sensitivity (true positive rate) and specificity (true negative rate).

    Args:
        prediction: (N,) classes, bool or integer, nonzero is positive.
        reference: (N,) true classes.

    Example:
        >>> balanced_accuracy(torch.tensor([1, 1, 1, 1]), torch.tensor([1, 1, 0, 0]))
        ClassScores(balanced=0.5, sensitivity=1.0, specificity=0.0)
    """
    predicted, truth = require_masks("balanced_accuracy", prediction, reference)
    recalls = [
        (predicted[truth == label] == label).double().mean().item() for label in (True, False)
    ]
    return ClassScores(sum(recalls) / 2, *recalls)


def _sizes(who: str, prediction: Tensor, reference: Tensor, batch_axes: int) -> tuple[Tensor, ...]:
    """Voxel counts of the intersection and of each mask, int64."""
    masks = require_masks(who, prediction, reference, batch_axes)
    over = tuple(range(batch_axes, prediction.dim()))
    sets = (masks[0] & masks[1], *masks)
    return tuple(torch.count_nonzero(s, dim=over) if over else s.long() for s in sets)


def _ratio(part: Tensor, whole: Tensor, either: Tensor) -> Tensor:
    """part / whole; 1 if both masks are empty (``either`` is 0), 0 if only ``whole`` is 0."""
    return torch.where(either == 0, 1.0, part.double() / whole.clamp(min=1).double())
