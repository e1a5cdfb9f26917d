"""Crops around what is annotated, and their warped copies."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrfast.methods.adversarial_transfer.crops import Crops, five_windows, random_warps
from cmrfast.models.adversarial_transfer import RECIPE, Recipe

SMALL = Recipe(view_px=0, crop_shift_px=3)


def test_constant_slices_become_zero():
    stack = {
        "images": torch.full((2, 1, 20, 20), 7, dtype=torch.int16),
        "labels": torch.ones(2, 1, 20, 20, dtype=torch.uint8),
    }
    crops = Crops([stack], 16, replace(SMALL, copies=0), seed=0, device="cpu")
    assert (crops.batch(0, torch.arange(10))[0] == 0).all()


def test_files_of_two_dtypes_are_learned_from_together():
    stacks = [
        {
            "images": torch.rand(1, 1, 20, 20).to(dtype) * 9,
            "labels": torch.ones(1, 1, 20, 20).byte(),
        }
        for dtype in (torch.float64, torch.float32)
    ]
    images, _ = Crops(stacks, 16, SMALL, seed=0, device="cpu").batch(0, torch.arange(20))
    assert images.dtype == torch.float32


boxes = st.tuples(st.integers(0, 60), st.integers(1, 40), st.integers(0, 60), st.integers(1, 40))


@settings(max_examples=60, deadline=None)
@given(boxes, st.integers(40, 80), st.integers(0, 20))
def test_crops_hold_what_is_annotated(box, size, shift):
    i, height, j, width = box
    mask = torch.zeros(100, 110, dtype=torch.uint8)
    mask[i : i + height, j : j + width] = 1
    starts = five_windows(mask, size, shift)
    low, high = torch.tensor([i, j]), torch.tensor([i + height, j + width])
    assert (starts <= low).all()
    assert (starts + size >= high).all()
    assert (starts >= 0).all()
    assert (starts + size <= torch.tensor([100, 110])).all()
    if shift and low.min() > size and (high + size < 100).all():
        apart = (starts[1:] - starts[0]).abs()
        assert (apart == min(shift, (size - max(height, width)) // 2)).all()


def test_a_narrow_slice_lies_in_the_middle_of_its_crops():
    mask = torch.zeros(30, 100, dtype=torch.uint8)
    mask[5:10, 40:60] = 1
    starts = five_windows(mask, 50, 8)
    assert (starts[:, 0] == -10).all()
    assert starts[:, 1].tolist() == [25, 17, 33, 17, 33]


def test_copies_move_images_with_their_labels():
    mask = torch.zeros(1, 1, 80, 80, dtype=torch.uint8)
    mask[..., 30:50, 25:55] = 2
    recipe = replace(SMALL, copies=2)
    crops = Crops([{"images": mask, "labels": mask}], 48, recipe, seed=3, device="cpu")
    assert len(crops) == 15
    images, labels = crops.batch(0, torch.arange(15))
    middle = (images.flatten(1).amax(1) + images.flatten(1).amin(1)).view(-1, 1, 1) / 2
    agree = ((images[:, 0] > middle) == (labels == 2)).float().mean((1, 2))
    assert (agree[::3] == 1).all()  # as they are
    assert (agree > 0.99).all()
    assert not torch.equal(labels[0], labels[1])
    assert not torch.equal(labels[1], labels[2])
    assert not torch.equal(labels[1], crops.batch(1, torch.tensor([1]))[1][0])


def test_copies_show_what_surrounds_the_crop():
    image = 100 * torch.rand(1, 1, 60, 60)
    image[..., 20:40, 20:40] += 1000
    mask = torch.zeros(1, 1, 60, 60, dtype=torch.uint8)
    mask[..., 25:35, 25:35] = 1
    wide = replace(SMALL, zoom=(1.2, 1.2), rotate_deg=0, shear_rad=0, copies=1, crop_shift_px=0)
    crops = Crops([{"images": image, "labels": mask}], 24, wide, seed=0, device="cpu")
    images, labels = crops.batch(0, torch.arange(2))
    shown = (images > images.mean()).flatten(1).double().mean(1)
    # 20 of 24 pixels are bright; with pixels 1.2 times as large, 20 / 1.2, and the rest around it.
    assert shown[0] == pytest.approx((20 / 24) ** 2)
    assert 15**2 <= shown[1] * 24**2 <= 18**2
    assert labels[0].sum() == 100
    assert 7**2 <= labels[1].sum() <= 9**2


def test_warps_are_rotation_shear_and_zoom():
    still = replace(RECIPE, rotate_deg=0, shear_rad=0, zoom=(1, 1))
    samples = torch.arange(500)
    assert torch.equal(random_warps(still, 0, 0, samples), torch.eye(2).expand(500, 2, 2))
    matrix = random_warps(RECIPE, 0, 0, samples).double()
    # R · S · Z with S = [[1, -sin s], [0, cos s]]: the first column is zoom by the rotation's.
    turn = torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0])
    cosine, sine = turn.cos(), turn.sin()
    back = torch.stack((cosine, sine, -sine, cosine), 1).view(-1, 2, 2) @ matrix
    slant = torch.atan2(-back[:, 0, 1], back[:, 1, 1])
    zoom = torch.stack((back[:, 0, 0], back[:, 1, 1] / slant.cos()), 1)
    for found, low, high in (
        (turn.rad2deg(), -15, 15),
        (slant, -0.1, 0.1),
        (zoom[:, 0], 0.8, 1.2),
        (zoom[:, 1], 0.8, 1.2),
    ):
        reach = high - low
        assert low - 1e-5 <= found.min() < low + 0.05 * reach
        assert high - 0.05 * reach < found.max() <= high + 1e-5
