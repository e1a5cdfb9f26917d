"""The sliding window for MONAI: equal to MONAI's on random arguments, or refused by name."""

import warnings

import numpy as np
import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("monai", reason="needs the extra monai")

from monai import inferers
from monai.data import MetaTensor

from cmrfast.compat import monai as ours
from tests.support.monai_volumes import oblique_volume


@pytest.mark.parametrize("seed", range(12))
def test_inferer(seed):
    rng = np.random.default_rng(seed)
    axes = int(rng.integers(2, 4))
    shape = [int(n) for n in rng.integers(6, 28, axes)]
    options = {
        "roi_size": [int(n) for n in rng.choice([-1, 5, 8, 12], axes)],
        "sw_batch_size": int(rng.integers(1, 5)),
        "overlap": float(rng.choice([0, 0.25, 0.5, 0.77])),
        "mode": str(rng.choice(["constant", "gaussian"])),
        "sigma_scale": float(rng.choice([0.125, 0.3])),
        "padding_mode": str(rng.choice(["constant", "replicate"])),
        "cache_roi_weight_map": bool(rng.integers(2)),
    }
    if options["padding_mode"] == "constant":
        options["cval"] = float(rng.normal())
    images = torch.from_numpy(rng.normal(size=(2, 1, *shape))).float()
    kernel = torch.from_numpy(rng.normal(size=(3, 1, *[3] * axes))).float()
    convolve = F.conv2d if axes == 2 else F.conv3d

    def network(windows, offset, *, factor=1.0):
        y = factor * convolve(windows, kernel, padding=1) + offset
        return (
            {"one": y, "two": 2 * y[:, :2]} if seed % 3 == 0 else (y, y + 1) if seed % 3 == 1 else y
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a dynamic roi_size and cache_roi_weight_map
        a = ours.SlidingWindowInferer(**options)(images, network, 0.5, factor=2.0)
        b = inferers.SlidingWindowInferer(**options)(images, network, 0.5, factor=2.0)
    assert type(a) is type(b)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_inferer_keeps_metadata_dtype_and_device():
    image = oblique_volume((1, 20, 18, 9), torch.Generator())[None]
    for inputs in (image, image.double(), image.half().as_tensor()):
        options = {"overlap": 0.5, "mode": "gaussian", "cpu_thresh": 10}
        a = ours.SlidingWindowInferer((8, 8, 8), **options)(inputs, lambda w: (2 * w,))
        b = inferers.SlidingWindowInferer((8, 8, 8), **options)(inputs, lambda w: (2 * w,))
        assert (type(a), a.dtype) == (type(b), b.dtype)
        torch.testing.assert_close(a, b, rtol=1e-2 if a.dtype == torch.half else 1e-5, atol=1e-3)
        if isinstance(b, MetaTensor):
            assert torch.equal(a.affine, b.affine)
    a += 1  # not an inference tensor


def test_inferer_refuses():
    for name in ("progress", "with_coord"):
        with pytest.raises(ValueError, match=f"SlidingWindowInferer: {name} must be False"):
            ours.SlidingWindowInferer((8, 8), **{name: True})
    inferer, images = ours.SlidingWindowInferer((8, 8)), torch.zeros(1, 1, 9, 9)
    with pytest.raises(ValueError, match="condition must be None"):
        inferer(images, lambda w, condition: w, condition=images)
    with pytest.raises(ValueError, match=r"model must return \(1, K, 8, 8\); got \(1, 1, 4, 4\)"):
        inferer(images, lambda w: w[..., ::2, ::2])
