"""Intensities clipped at percentiles."""

import numpy as np
import pytest
import torch

from cmrfast.data.prepare import min_max
from cmrfast.methods.joint_registration.grid import clip_percentiles


@pytest.mark.parametrize("masked", [False, True])
def test_clipping_equals_numpy(masked):
    slices = 50 + 20 * torch.randn(2, 9, 8, 5)
    mask = torch.rand(9, 8, 5) < 0.6 if masked else torch.ones(9, 8, 5, dtype=torch.bool)
    clipped = clip_percentiles(slices, 5, 90, mask)
    assert clipped.dtype == torch.float32
    for c in range(2):
        for k in range(5):
            part = (c, ..., k)
            inside = mask[..., k]
            low, high = np.percentile(slices[part][inside].double().numpy(), (5, 90))
            torch.testing.assert_close(clipped[part], slices[part].clamp(low, high))


def test_a_slice_without_any_mask_stays_as_it_is():
    slices = torch.randn(1, 9, 8, 3, dtype=torch.float64)
    kept = slices.clone()
    mask = torch.ones(9, 8, 3)
    mask[..., 1] = 0
    clipped = clip_percentiles(slices, 5, 90, mask)
    assert clipped.dtype == torch.float64
    assert torch.equal(slices, kept)
    same = (clipped == slices).flatten(0, 2).all(0)
    assert same.tolist() == [False, True, False]


def test_min_max_of_clipped_slices_spans_zero_to_one():
    slices = torch.randn(1, 30, 30, 4).exp()
    unit = min_max(clip_percentiles(slices, 1, 99, torch.ones(30, 30, 4)), over="slice")
    flat = unit.flatten(1, 2)
    assert (flat.amin(1) == 0).all()
    assert (flat.amax(1) == 1).all()
    assert ((flat == 1).sum(1) == 9).all()  # one in a hundred of 900


def test_wrong_percentiles_are_named():
    with pytest.raises(ValueError, match="got low 9, high 1"):
        clip_percentiles(torch.zeros(1, 4, 4, 4), 9, 1, torch.ones(4, 4, 4))
