"""Alignment of masks: they come together, a known affine is found."""

import pytest
import torch

from cmrfast import metrics, ops
from cmrfast.data.prepare import align_masks
from tests.support.grids import EYE, diagonal, oblique
from tests.support.masks import ellipse


@pytest.mark.parametrize(("turned", "ratio"), [(0.0, 1.0), (0.4, 0.7), (-0.5, 0.65)])
def test_alignment_brings_the_masks_together(turned, ratio):
    fixed = ellipse((120, 120), (62, 55), 26, turned, ratio)
    fixed &= ~ellipse((120, 120), (62, 55), 17, turned, ratio)
    moving = ellipse((96, 80), (40, 33), 14, 0.1, 0.9) & ~ellipse((96, 80), (40, 33), 9, 0.1, 0.9)
    to_moving, to_fixed = oblique((1.37, 1.37, 8.0)), oblique((0.75, 0.75, 5.0))
    to_moving[:3, 3] += 11.0
    found = align_masks(moving, fixed, to_moving, to_fixed)
    assert found.dice >= found.initial_dice
    assert found.dice > 0.94
    grid = found.moving_from_fixed @ to_fixed
    moved = ops.resample(moving[None].double(), to_moving, grid, fixed.shape, mode="nearest")[0]
    assert metrics.dice(moved > 0.5, fixed).item() == found.dice


def test_alignment_finds_a_known_affine():
    # One shape under two grids: the world matrix between them is known.
    to_fixed, to_moving = diagonal(1.0, 1.0, 5.0), diagonal(1.3, 1.3, 5.0)
    truth = EYE.clone()
    truth[:2, :2] = torch.tensor([[1.05, -0.2], [0.15, 0.9]], dtype=torch.float64)
    truth[:2, 3] = torch.tensor([9.0, -4.0], dtype=torch.float64)
    i, j = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")

    def shape(points):
        x, y = points[..., 0] - 60, points[..., 1] - 66
        away = (x.square() + 1.5 * y.square()).sqrt()
        return (away < 30 + 0.25 * x) & (away > 18)

    points = torch.stack((i, j, torch.zeros_like(i), torch.ones_like(i)), -1).double()
    fixed = shape(points @ to_fixed.T)
    moving = shape(points @ to_moving.T @ torch.linalg.inv(truth).T)
    found = align_masks(moving, fixed, to_moving, to_fixed)
    at_truth = ops.resample(
        moving[None].double(), to_moving, truth @ to_fixed, fixed.shape, mode="nearest"
    )[0]
    assert found.dice >= metrics.dice(at_truth > 0.5, fixed).item()  # pixels allow no more
    assert found.dice > 0.97
    rim = (points @ to_fixed.T)[fixed]
    error = ((found.moving_from_fixed - truth) @ rim.T)[:2].norm(dim=0)
    assert error.max() < 1.0  # less than a pixel, in mm
    torch.testing.assert_close(found.moving_from_fixed[2:], EYE[2:])


def test_alignment_starts_with_centroid_and_area():
    a, b = ellipse((60, 60), (20, 22), 7), ellipse((60, 60), (35, 30), 14)
    found = align_masks(a, b, EYE, EYE)
    assert found.initial_dice > 0.95
    middle = found.moving_from_fixed @ torch.tensor([35.0, 30, 0, 1], dtype=torch.float64)
    torch.testing.assert_close(middle[:2], torch.tensor([20.0, 22]).double(), atol=0.2, rtol=0)


def test_alignment_works_where_gradients_are_switched_off():
    mask = torch.zeros(24, 24)
    mask[6:15, 8:16] = 1
    grid = torch.eye(4)
    wanted = align_masks(mask, mask.roll(2, 0), grid, grid)
    with torch.inference_mode():
        found = align_masks(mask.clone(), mask.roll(2, 0), grid, grid)
    assert torch.equal(found.moving_from_fixed, wanted.moving_from_fixed)


def test_an_empty_mask_is_named():
    with pytest.raises(ValueError, match=r"moving must be .* empty"):
        align_masks(torch.zeros(4, 4), torch.ones(8, 8), EYE, EYE)
