"""Intensities clipped at percentiles."""

import numpy as np
import pytest
import torch

from cmrfast.data.prepare import clip_percentiles, min_max


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("over", ["volume", "slice"])
def test_clipping_equals_numpy(masked, over):
    volume = 50 + 20 * torch.randn(2, 9, 8, 5)
    mask = torch.rand(9, 8, 5) < 0.6 if masked else torch.ones(9, 8, 5, dtype=torch.bool)
    clipped = clip_percentiles(volume, 5, 90, mask=mask if masked else None, over=over)
    for c in range(2):
        for k in range(5):
            part = (c, ..., k) if over == "slice" else (c,)
            inside = mask[part[1:]] if over == "slice" else mask
            low, high = np.percentile(volume[part][inside].double().numpy(), (5, 90))
            torch.testing.assert_close(clipped[part], volume[part].clamp(low, high))


def test_min_max_of_clipped_slices_spans_zero_to_one():
    volume = torch.randn(1, 30, 30, 4).exp()
    unit = min_max(clip_percentiles(volume, over="slice"), over="slice")
    flat = unit.flatten(1, 2)
    assert (flat.amin(1) == 0).all()
    assert (flat.amax(1) == 1).all()
    assert ((flat == 1).sum(1) == 9).all()  # one in a hundred of 900


def test_wrong_percentiles_are_named():
    with pytest.raises(ValueError, match="got low 9, high 1"):
        clip_percentiles(torch.zeros(1, 4, 4, 4), 9, 1)
