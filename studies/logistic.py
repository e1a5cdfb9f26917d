"""Logistic regression on a few numbers, cross-validated: what can be told without an image."""

import torch
from torch import Tensor

_RIDGE = 1.0
_STEPS = 30


def cross_validate(features: Tensor, labels: Tensor, fold: Tensor) -> Tensor:
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


def _fit_logistic(terms: Tensor, labels: Tensor) -> Tensor:
    """Weights of a ridge logistic regression in which both classes count alike, by Newton steps."""
    positive = labels.mean().clamp(1e-6, 1 - 1e-6)
    importance = torch.where(labels == 1, 0.5 / positive, 0.5 / (1 - positive))
    weights = terms.new_zeros(terms.shape[1])
    ridge = _RIDGE * torch.eye(len(weights), dtype=terms.dtype)
    for _ in range(_STEPS):
        probability = (terms @ weights).sigmoid()
        slope = terms.T @ (importance * (probability - labels)) + ridge @ weights
        curve = (terms * (importance * probability * (1 - probability))[:, None]).T @ terms
        weights = weights - torch.linalg.solve(curve + ridge, slope)
    return weights
