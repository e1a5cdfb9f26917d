"""Overlap against SimpleITK and MONAI; the counts that papers print."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmrfast import metrics
from tests.support.masks import blobs, masks, same


@pytest.mark.parametrize("seed", range(3))
def test_overlap_equals_simpleitk(seed):
    sitk = pytest.importorskip("SimpleITK")
    a, b = blobs((20, 24, 9), 0.2, seed), blobs((20, 24, 9), 0.2, seed + 1)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*(sitk.GetImageFromArray(m.numpy().astype(np.uint8)) for m in (b, a)))
    same(metrics.dice(a, b), overlap.GetDiceCoefficient())
    same(metrics.jaccard(a, b), overlap.GetJaccardCoefficient())
    same(metrics.precision(a, b), 1 - overlap.GetFalseDiscoveryRate())
    same(metrics.recall(a, b), 1 - overlap.GetFalseNegativeError())


def test_overlap_equals_monai_by_class():
    monai = pytest.importorskip("monai.metrics")
    a, b = (torch.randint(0, 4, (3, 16, 16)) for _ in range(2))
    hot = [torch.nn.functional.one_hot(x).movedim(-1, 1) for x in (a, b)]
    expected = monai.compute_dice(*(h.float() for h in hot))
    same(metrics.dice(*hot, batch_axes=2), expected)
    assert metrics.dice(*hot, batch_axes=2).shape == (3, 4)


@given(masks(3), st.integers(0, 2))
def test_overlap_of_a_batch_is_that_of_its_parts_and_jaccard_is_dice(pair, batch_axes):
    a, b = pair
    for score in (metrics.dice, metrics.jaccard, metrics.precision, metrics.recall):
        whole = score(a, b, batch_axes=batch_axes)
        assert whole.shape == a.shape[:batch_axes]
        if batch_axes:
            parts = [score(x, y, batch_axes=batch_axes - 1) for x, y in zip(a, b, strict=True)]
            torch.testing.assert_close(whole, torch.stack(parts))
    score = metrics.dice(a, b)
    same(score, metrics.dice(b, a))
    same(metrics.jaccard(a, b), score / (2 - score))
    same(metrics.precision(a, b), metrics.recall(b, a))


def test_balanced_accuracy_of_the_published_counts():
    reference = torch.tensor([1] * 117 + [0] * 105)
    for positives, negatives, balanced in ((49, 102, 69.51), (70, 103, 78.96), (84, 96, 81.61)):
        predicted = torch.zeros(222, dtype=torch.bool)
        predicted[:positives] = True
        predicted[117 + negatives :] = True
        scores = metrics.balanced_accuracy(predicted, reference)
        assert 100 * scores.balanced == pytest.approx(balanced, abs=0.01)
        assert scores.sensitivity == positives / 117
        assert scores.specificity == negatives / 105
    assert metrics.balanced_accuracy(torch.ones(222, dtype=torch.int64), reference).balanced == 0.5
    assert math.isnan(metrics.balanced_accuracy(predicted[:9], reference[:9]).balanced)
