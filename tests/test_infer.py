"""Sliding windows: the cover leaves nothing out, overlaps are weighted means, MONAI agrees."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cmrfast.infer import gaussian_window, sliding_window


@pytest.mark.parametrize(
    ("shape", "size", "overlap"),
    [((23, 31), 8, 3), ((5, 40), (8, 16), (0, 0.4)), ((9, 17, 11), (4, 8, 12), 2)],
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


def test_a_gaussian_weights_windows_towards_their_centre():
    weight = gaussian_window((4, 4), 0.25)
    torch.testing.assert_close(weight, weight.flip(0, 1))
    number = iter(range(10))

    def model(windows):
        return torch.stack([torch.full((1, 4, 4), float(next(number))) for _ in windows])

    image = torch.zeros(1, 1, 6, 4)
    out = sliding_window(model, image, 4, 2, window="gaussian", sigma=0.25)
    second = weight[0, 0] / (weight[0, 0] + weight[2, 0])  # of the two windows' weights
    torch.testing.assert_close(out[0, 0, 2, 0], second)


OPTIONS = [
    {"overlap": 0.25},
    {"overlap": (0.5, 0.6, 0.0), "window": "gaussian"},
    {"overlap": 0.7, "window": "gaussian", "sigma": (0.2, 0.1, 0.3)},
    {"overlap": 0.0, "padding": "reflect"},
    {"overlap": 0.9, "padding": "replicate", "window": "gaussian"},
    {"overlap": 0.3, "padding": "circular"},
    {"overlap": 0.3, "value": -2.5},
]
THEIRS = {"window": "mode", "sigma": "sigma_scale", "padding": "padding_mode", "value": "cval"}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", [(24, 31, 20), (13, 40, 12), (11, 10, 9)])
def test_agrees_with_monai(options, shape):
    monai = pytest.importorskip("monai.inferers", reason="needs the extra monai")
    kernel = torch.randn(2, 1, 5, 5, 5)

    def model(windows):
        return F.conv3d(windows, kernel, padding=2)

    image = torch.randn(2, 1, *shape)
    size = (16, 16, 12)
    theirs = {THEIRS.get(name, name): value for name, value in options.items()}
    ours = sliding_window(model, image, size, batch=3, **options)
    expected = monai.sliding_window_inference(image, size, 3, model, **theirs)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_agrees_with_monai_in_2d_and_float64():
    monai = pytest.importorskip("monai.inferers", reason="needs the extra monai")
    image = torch.randn(1, 1, 33, 17, dtype=torch.float64)
    kernel = torch.randn(3, 1, 3, 3, dtype=torch.float64)

    def model(windows):
        return F.conv2d(windows, kernel, padding=1)

    for ours, theirs in (("constant", "constant"), ("gaussian", "gaussian")):
        out = sliding_window(model, image, 8, 0.5, window=ours)
        expected = monai.sliding_window_inference(image, 8, 4, model, 0.5, mode=theirs)
        # MONAI's Gaussian is float32 as ours, in another order
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    assert out.dtype == torch.float64


def test_outputs_keep_their_structure():
    images = torch.randn(2, 2, 9, 12)
    for model, kind in (
        (lambda w: (w, w[:, :1] + 1), tuple),
        (lambda w: [w, w[:, :1] + 1], list),
        (lambda w: {"a": w, "b": w[:, :1] + 1}, dict),
    ):
        out = sliding_window(model, images, 4, 1, batch=3)
        assert type(out) is kind
        same, plus_one = out.values() if kind is dict else out
        torch.testing.assert_close(same, images)
        torch.testing.assert_close(plus_one, images[:, :1] + 1)


def test_flips_are_averaged():
    images = torch.randn(1, 1, 10, 12)
    kernel = torch.randn(1, 1, 3, 3)  # not symmetric

    def model(windows):
        return F.conv2d(windows, kernel, padding=1)

    flips = [(), (2,), (3,), (2, 3)]
    expected = torch.stack([model(images.flip(f)).flip(f) for f in flips]).mean(0)
    out = sliding_window(model, images, (10, 12), 0, flip_axes=(0, 1))
    torch.testing.assert_close(out, expected)

    def averaged(windows):
        return torch.stack([model(windows.flip(f)).flip(f) for f in flips]).mean(0)

    out = sliding_window(model, images, 6, 2, window="gaussian", flip_axes=(0, 1))
    expected = sliding_window(averaged, images, 6, 2, window="gaussian")
    torch.testing.assert_close(out, expected)


class _OnMeta(nn.Module):
    """A network on a device of its own, which remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, device="meta"))
        self.seen = []

    def forward(self, windows):
        self.seen.append((windows.device.type, tuple(windows.shape)))
        return torch.ones(windows.shape)


def test_windows_run_on_the_devices_of_the_model_a_batch_at_a_time():
    model = _OnMeta().eval()
    out = sliding_window(model, torch.zeros(1, 1, 40, 40), 8, 0, batch=5, merge_device="cpu")
    assert model.seen == [("meta", (5, 1, 8, 8))] * 5
    assert out.device.type == "cpu"
    assert out.eq(1).all()


def test_messages():
    image = torch.zeros(1, 1, 8, 8)

    def same(windows):
        return windows

    with pytest.raises(ValueError, match=r"images must be \(B, C, \*S\)"):
        sliding_window(same, image[0], (4, 4), 0)
    with pytest.raises(ValueError, match=r"images must be \(B, C, \*S\) with B >= 1"):
        sliding_window(same, image[:0], (4, 4), 0)
    with pytest.raises(ValueError, match=r"size must have one entry per space axis \(2\)"):
        sliding_window(same, image, (4, 4, 4), 0)
    with pytest.raises(TypeError, match="size must be a sequence of integers; got None"):
        sliding_window(same, image, None, 0)
    for overlap in (1.0, -0.5, (0.5,), "half", None):
        with pytest.raises(ValueError, match=r"overlap must be whole voxels or a share of size"):
            sliding_window(same, image, 4, overlap)
    with pytest.raises(TypeError, match="images must be a floating tensor; got list"):
        sliding_window(same, [image], (4, 4), 0)
    with pytest.raises(ValueError, match="batch must be >= 1; got 0"):
        sliding_window(same, image, (4, 4), 0, batch=0)
    with pytest.raises(ValueError, match=r"model must return \(4, K, 4, 4\); got \(4, 1, 2, 2\)"):
        sliding_window(lambda w: w[..., ::2, ::2], image, (4, 4), 0)
    with pytest.raises(ValueError, match="overlap must be 0 to size - 1"):
        sliding_window(same, image, (4, 4), 4)
    with pytest.raises(ValueError, match="window must be one of constant, gaussian; got 'gauss'"):
        sliding_window(same, image, 4, 0, window="gauss")
    with pytest.raises(ValueError, match="padding must be one of constant, reflect, replicate"):
        sliding_window(same, image, 4, 0, padding="zeros")
    with pytest.raises(ValueError, match=r"'reflect' cannot extend \(8, 8\) to \(8, 24\)"):
        sliding_window(same, image, (4, 24), 0, padding="reflect")
    with pytest.raises(ValueError, match="gaussian_window: sigma must be a positive share of size"):
        sliding_window(same, image, 4, 0, window="gaussian", sigma=0)
    for axes in ((2,), (0, 0), (-1,)):
        with pytest.raises(ValueError, match="flip_axes must be different axes from 0 to 1"):
            sliding_window(same, image, 4, 0, flip_axes=axes)
    with pytest.raises(TypeError, match=r"model must return a tensor, or a tuple.*got NoneType"):
        sliding_window(lambda w: None, image, 4, 0)
    with pytest.raises(TypeError, match=r"got tuple of Tensor, int"):
        sliding_window(lambda w: (w, 3), image, 4, 0)
