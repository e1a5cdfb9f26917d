"""Connected components against SciPy, and the lesions of a drawn case."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy import ndimage

from cmrfast import metrics
from tests.support.masks import masks


@settings(deadline=None)
@given(masks(2) | masks(3))
def test_components_equal_scipy(pair):
    labels, count = metrics.connected_components(pair[0])
    expected, number = ndimage.label(pair[0].numpy(), np.ones((3,) * pair[0].dim()))
    assert count == number
    assert (labels.numpy() == expected).all()
    assert labels.dtype == torch.int32


@pytest.mark.parametrize("share", [0.03, 0.1, 0.5])
def test_components_of_noise_and_of_a_spiral(share):
    noise = torch.rand(40, 37, 41) < share
    labels, count = metrics.connected_components(noise.int())
    expected, number = ndimage.label(noise.numpy(), np.ones((3, 3, 3)))
    assert count == number
    assert (labels.numpy() == expected).all()
    spiral = torch.zeros(41, 41, dtype=torch.bool)  # one long path through many rows
    for r in range(0, 20, 2):
        spiral[r, r : 41 - r] = spiral[r : 41 - r, 40 - r] = spiral[40 - r, r : 41 - r] = True
        spiral[r + 2 : 41 - r, r] = True
        spiral[r + 2, r : r + 3] = True
    assert metrics.connected_components(spiral)[1] == ndimage.label(spiral, np.ones((3, 3)))[1]


def test_lesion_scores_of_a_drawn_case():
    reference = torch.zeros(30, 30, 10, dtype=torch.uint8)
    reference[2:7, 2:4, 2] = 1  # 10 voxels, 1 covered: exactly a tenth
    reference[10:15, 10:15, 5] = 1  # 25 voxels, 2 covered: less than a tenth
    reference[20:24, 20:24, 3:5] = 1  # covered whole
    predicted = torch.zeros_like(reference)
    predicted[6, 3:9, 2] = 1  # 6 voxels, 1 right
    predicted[14, 13:15, 5] = 1  # 2 voxels, both right
    predicted[20:24, 20:24, 3:5] = 1
    predicted[28, 28, 8] = predicted[29, 29, 9] = 1  # joined by a corner: one false lesion
    scores = metrics.lesion_scores(predicted, reference, (0.5, 1.0, 2.0))
    assert scores == metrics.LesionScores(
        f1=2 * (2 / 3) * (3 / 4) / (2 / 3 + 3 / 4),
        sensitivity=2 / 3,
        precision=3 / 4,
        reference_count=3,
        found_count=2,
        predicted_count=4,
        false_count=1,
        reference_volume_mm3=67.0,
        predicted_volume_mm3=42.0,
        false_volume_mm3=2.0,
    )
    large = metrics.lesion_scores(predicted, reference, (0.5, 1.0, 2.0), min_volume_mm3=3.0)
    assert (large.predicted_count, large.false_count, large.found_count) == (2, 0, 2)
    assert metrics.lesion_scores(reference, reference, (1, 1, 1), overlap=1.0).f1 == 1
