"""Sliding windows: the cover leaves nothing out, overlaps are means, MONAI agrees."""

import pytest
import torch
from torch.nn import functional as F

from cmrfast.infer import sliding_window


@pytest.mark.parametrize(
    ("shape", "size", "overlap"),
    [((23, 31), (8, 8), 3), ((5, 40), (8, 16), (0, 7)), ((9, 17, 11), (4, 8, 12), 2)],
)
def test_windows_cover_the_image(shape, size, overlap):
    images = torch.randn(2, 3, *shape)
    seen = []

    def model(windows):
        seen.append(len(windows))
        return windows.roll(1, 1)

    out = sliding_window(model, images, size, overlap, batch=4)
    torch.testing.assert_close(out, images.roll(1, 1))
    assert max(seen) <= 4


def test_overlaps_are_means():
    image = torch.zeros(1, 1, 6, 4)
    number = iter(range(10))

    def model(windows):
        return torch.stack([torch.full((1, 4, 4), float(next(number))) for _ in windows])

    out = sliding_window(model, image, (4, 4), overlap=2)
    assert out[0, 0, :, 0].tolist() == [0, 0, 0.5, 0.5, 1, 1]


def test_agrees_with_monai():
    monai = pytest.importorskip("monai.inferers")
    kernel = torch.randn(2, 1, 5, 5, 5)

    def model(windows):
        return F.conv3d(windows, kernel, padding=2)

    image = torch.randn(1, 1, 24, 31, 20)
    ours = sliding_window(model, image, (16, 16, 16), overlap=8, batch=3)
    theirs = monai.sliding_window_inference(image, (16, 16, 16), 3, model, overlap=0.5)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_messages():
    image = torch.zeros(1, 1, 8, 8)
    with pytest.raises(ValueError, match=r"images must be \(B, C, \*S\)"):
        sliding_window(lambda w: w, image[0], (4, 4), 0)
    with pytest.raises(ValueError, match=r"size must have one entry per space axis \(2\)"):
        sliding_window(lambda w: w, image, (4, 4, 4), 0)
    with pytest.raises(TypeError, match="size must be a sequence of integers; got 4"):
        sliding_window(lambda w: w, image, 4, 0)
    with pytest.raises(TypeError, match=r"overlap must be whole voxels; got 0\.25: for a fraction"):
        sliding_window(lambda w: w, image, (4, 4), 0.25)
    with pytest.raises(TypeError, match="images must be a floating tensor; got list"):
        sliding_window(lambda w: w, [image], (4, 4), 0)
    with pytest.raises(ValueError, match="batch must be >= 1; got 0"):
        sliding_window(lambda w: w, image, (4, 4), 0, batch=0)
    with pytest.raises(ValueError, match=r"model must return \(4, K, 4, 4\); got \(4, 1, 2, 2\)"):
        sliding_window(lambda w: w[..., ::2, ::2], image, (4, 4), 0)
    with pytest.raises(ValueError, match="overlap must be 0 to size - 1"):
        sliding_window(lambda w: w, image, (4, 4), 4)
