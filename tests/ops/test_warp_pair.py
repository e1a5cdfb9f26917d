"""An image and its labels warped alike."""

import pytest
import torch

from cmrfast import ops

IMAGES, THETA = torch.ones(2, 1, 4, 4), torch.eye(2, 3)[None]


def test_warp_pair_is_two_samplings():
    images, theta = torch.rand(2, 1, 9, 8), torch.eye(2, 3) + 0.3 * torch.randn(2, 2, 3)
    labels = torch.randint(0, 300, (2, 2, 9, 8), dtype=torch.int16)
    gamma = torch.tensor([0.7, 1.4])
    image, label = ops.warp_pair(images, labels, theta, gamma, fill_label=-1)
    expected = ops.affine_sample(images, theta) ** gamma.view(2, 1, 1, 1)
    torch.testing.assert_close(image, expected)
    ones = torch.ones(2, 2, 9, 8)
    inside = ops.affine_sample(ones, theta, mode="nearest") > 0
    nearest = ops.affine_sample(labels.float(), theta, mode="nearest")
    assert torch.equal(label, torch.where(inside, nearest, -1).to(torch.int16))


def test_warp_pair_takes_labels_without_a_channel():
    images, labels = torch.rand(2, 1, 7, 9), torch.randint(0, 4, (2, 7, 9))
    theta = torch.tensor([[[0.9, 0.2, 0.1], [-0.2, 1.1, 0.0]]])
    _, flat = ops.warp_pair(images, labels, theta)
    _, stacked = ops.warp_pair(images, labels[:, None], theta)
    assert flat.shape == labels.shape
    assert torch.equal(flat, stacked[:, 0])


@pytest.mark.parametrize(
    ("labels", "options", "error", "message"),
    [
        (IMAGES, {}, TypeError, "labels must be an integer tensor"),
        (IMAGES.long()[:1], {}, ValueError, r"labels must be \(B, L, \*S\)"),
        (IMAGES.long()[..., 1:], {}, ValueError, "images and labels must have one space"),
        (IMAGES.byte(), {"fill_label": 256}, ValueError, "fill_label must fit torch.uint8"),
        (IMAGES.byte(), {"gamma": torch.ones(3)}, ValueError, r"gamma must be \(2,\) or \(1,\)"),
    ],
)
def test_warp_pair_messages(labels, options, error, message):
    with pytest.raises(error, match=message):
        ops.warp_pair(IMAGES, labels, THETA, **options)


@pytest.mark.parametrize("fill", [2**53 + 1, 2**63 - 1, -(2**63), -(2**53) - 1])
def test_labels_beyond_2_to_53_stay_exact(fill):
    labels = torch.tensor([2**53 + 3, -(2**63), 2**63 - 1, 5]).view(1, 1, 4)
    shift = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])  # by half the width
    _, warped = ops.warp_pair(torch.rand(1, 1, 1, 4), labels, shift, fill_label=fill)
    assert warped.flatten().tolist() == [2**63 - 1, 5, fill, fill]


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_unsigned_labels(dtype):
    most = torch.iinfo(dtype).max
    labels = torch.tensor([1, 2, most, most - 1], dtype=dtype).view(1, 1, 4)
    shift = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])
    _, warped = ops.warp_pair(torch.rand(1, 1, 1, 4), labels, shift, fill_label=most)
    assert warped.dtype == dtype
    assert warped.flatten().tolist() == [most, most - 1, most, most]
