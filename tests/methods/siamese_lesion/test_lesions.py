"""The lesion that brightness draws in LGE, and the patches that it makes positive."""

import math

import pytest
import torch

from cmrfast.methods.siamese_lesion.lesions import lesion_mask, patch_labels, reference_sector
from tests.support.masks import ellipse


def test_lesions_are_brighter_than_six_deviations():
    image = torch.zeros(20, 20)
    reference = torch.zeros(20, 20, dtype=torch.bool)
    reference[0, :10] = True
    image[0, :10] = torch.tensor([9.0, 11.0]).repeat(5)  # mean 10, sample SD sqrt(10 / 9)
    limit = 10 + 6 * math.sqrt(10 / 9)
    image[5, 5], image[5, 6], image[9, 9] = limit + 1e-4, limit - 1e-4, 100.0
    myocardium = torch.zeros(20, 20, dtype=torch.bool)
    myocardium[4:7] = True
    found = lesion_mask(image, myocardium, reference)
    assert found.nonzero().tolist() == [[5, 5]]
    image[0, :10] = 10.0
    image[5, 5] = 10.0
    assert not lesion_mask(image, reference, reference).any()  # strictly brighter


def test_the_border_counts_only_beside_a_bright_inner_pixel():
    wall = torch.zeros(24, 24, dtype=torch.bool)
    wall[4:14, 4:20] = True
    reference = torch.zeros_like(wall)
    reference[10:13, 6:18] = True
    image = torch.arange(24.0 * 24).view(24, 24) % 7
    image[4, 4:20] = 1000.0  # blood in part, all along the border
    assert lesion_mask(image, wall, reference).sum() == 16
    assert not lesion_mask(image, wall, reference, border_px=1).any()
    image[5, 8:10] = 1000.0  # a lesion that reaches the border
    found = lesion_mask(image, wall, reference, border_px=1)
    assert found.nonzero().tolist() == [[4, j] for j in range(7, 11)] + [[5, 8], [5, 9]]


def test_reference_sector_is_the_darkest_sixth():
    ring = ellipse((80, 80), (41, 38), 25) & ~ellipse((80, 80), (41, 38), 17)
    i, j = torch.meshgrid(torch.arange(80.0), torch.arange(80.0), indexing="ij")
    turn = torch.rad2deg(torch.atan2(j - 38, i - 41)) % 360
    image = 100 + (turn - 130).abs().clamp(max=50)
    sector = reference_sector(image, ring)
    assert (sector & ~ring).sum() == 0
    assert sector.sum() / ring.sum() == pytest.approx(1 / 6, abs=0.02)
    assert turn[sector].min().item() == pytest.approx(100, abs=3)
    assert turn[sector].max().item() == pytest.approx(160, abs=3)
    image[ring & (turn > 300)] = 1000
    lesions = lesion_mask(image, ring)
    assert torch.equal(lesions, ring & (turn > 300))
    # A ring seen with pixels of half the height is the same ring.
    squashed = reference_sector(image[:, ::2], ring[:, ::2], spacing_mm=(1.0, 2.0))
    assert (squashed != sector[:, ::2]).sum() <= 6


def test_patch_labels_ask_for_a_quarter_of_the_slice():
    lesions = torch.zeros(3, 16, 16, dtype=torch.uint8)
    lesions[0, 2:6, 2:6] = 1  # 16 pixels
    lesions[1, :3, 0] = 1
    start = torch.tensor([[2, 2], [5, 2], [5, 3], [0, 0], [0, 0]])
    index = torch.tensor([0, 0, 0, 1, 2])
    expected = [True, True, False, True, False]  # 16, exactly 4, 3, all, none of none
    masks = (lesions, list(lesions))
    for given_masks in masks:
        labels = patch_labels(given_masks, start, (4, 4), volume_index=index)
        assert labels.tolist() == expected


def test_a_patch_with_exactly_the_share_is_positive_whatever_the_share():
    totals = torch.arange(1, 400)
    lesions = torch.arange(400) < totals[:, None, None]  # (399, 1, 400), a run of each length
    slices = torch.arange(len(totals)).repeat(2)
    for percent in range(1, 100):
        least = -(-percent * totals // 100)
        held = torch.cat((least, least - 1))
        start = torch.stack((torch.zeros_like(held), held - 400), 1)
        labels = patch_labels(lesions, start, (1, 400), volume_index=slices, share=percent / 100)
        assert labels[:399].all()
        assert not labels[399:].any()


SLICE = torch.zeros(4, 4)
FEW = torch.zeros(8, 8)
FEW[0, :3] = 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: lesion_mask(FEW[None], SLICE, SLICE), ValueError, r"one slice \(I, J\)"),
        (lambda: lesion_mask(SLICE, FEW, SLICE), ValueError, r"myocardium must have .*4\)"),
        (lambda: lesion_mask(FEW, FEW, FEW), ValueError, "at least 10 pixels; got 3"),
        (lambda: lesion_mask(FEW, FEW), ValueError, "no sector .* the myocardium has 3"),
        (
            lambda: reference_sector(FEW, FEW, degrees=0),
            ValueError,
            "1 to 360 degrees; got 2 and 0",
        ),
        (
            lambda: patch_labels(SLICE, torch.zeros(1, 2).long(), (2, 2), share=0),
            ValueError,
            r"share must lie in \(0, 1\]; got 0",
        ),
    ],
)
def test_messages(call, error, message):
    with pytest.raises(error, match=message):
        call()
