"""Augmentation: what it says it does, within its ranges."""

import pytest
import torch

from cmrfast.data.augment import Ranges, augment, random_thetas


def disc(rows, columns):
    i, j = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return (((i - 20) ** 2 + (j - 42) ** 2) < 64).float()[None, None]


def test_turning_a_long_image_keeps_a_disc_a_disc():
    image = disc(48, 96)
    samples = torch.arange(40)
    turned, label = augment(
        image.expand(40, -1, -1, -1),
        image.long().expand(40, -1, -1, -1),
        Ranges(rotate_deg=30),
        seed=0,
        epoch=0,
        samples=samples,
    )
    area = turned.sum((1, 2, 3))
    torch.testing.assert_close(area, image.sum().expand(40), rtol=0.02, atol=0)
    rows = (turned[:, 0].amax(2) > 0.5).sum(1)
    columns = (turned[:, 0].amax(1) > 0.5).sum(1)
    assert ((rows - columns).abs() <= 1).all()
    assert ((turned > 0.5).long() - label).abs().float().mean() < 0.01


def test_scale_shift_and_flip_do_what_they_say():
    image = disc(48, 96)
    area = image.sum()

    def one(**ranges):
        out, _ = augment(
            image, image.long(), Ranges(**ranges), seed=3, epoch=0, samples=torch.tensor([4])
        )
        return out

    torch.testing.assert_close(one(scale=(1.2, 1.2)).sum(), area * 1.44, rtol=0.02, atol=0)
    assert torch.equal(one(flip=1.0), image.flip(2, 3))
    assert torch.equal(one(), image)
    assert torch.equal(one(rotate_deg=90, translate_vox=9, probability=0.0), image)
    moved = one(translate_vox=9.0)
    torch.testing.assert_close(moved.sum(), area, rtol=1e-3, atol=0)
    assert not torch.equal(moved, image)


@pytest.mark.parametrize("shape", [(24, 40), (12, 20, 16)])
def test_thetas_stay_in_range(shape):
    ranges = Ranges(rotate_deg=15, scale=(0.8, 1.2), translate_share=0.1, gamma=(0.7, 1.5))
    theta, gamma = random_thetas(ranges, shape, 0, 0, torch.arange(500))
    size = torch.tensor(shape[::-1], dtype=torch.float32)
    vox = theta[..., :-1] * size[:, None] / size  # back to voxels: a rotation over a scale
    factor = 1 / torch.linalg.det(vox).abs() ** (1 / len(shape))
    assert 0.8 <= factor.min() < 0.82
    assert 1.18 < factor.max() <= 1.2 + 1e-6
    assert 0.19 < theta[..., -1].abs().max() <= 0.2
    assert gamma.min() >= 0.7
    assert gamma.max() <= 1.5
    again, _ = random_thetas(ranges, shape, 0, 0, torch.tensor([123]))
    assert torch.equal(again[0], theta[123])


def test_ranges_messages():
    with pytest.raises(ValueError, match="scale must be 0 < low <= high"):
        Ranges(scale=(1.2, 0.8))
    with pytest.raises(ValueError, match="gamma must be 0 < low <= high"):
        Ranges(gamma=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"flip must be in \[0, 1\]"):
        Ranges(flip=1.5)
