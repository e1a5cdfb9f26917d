"""The transforms for MONAI: equal to MONAI's on random arguments, or refused by name."""

import pickle
import warnings
from copy import deepcopy

import numpy as np
import pytest
import torch

pytest.importorskip("monai", reason="needs the extra monai")

import monai
from monai import transforms
from monai.data import MetaTensor, set_track_meta
from monai.utils import version_geq

from cmrfast.compat import monai as ours
from tests.support.monai_volumes import oblique_volume

SEEDS = range(12)


def _same_meta(left, right):
    torch.testing.assert_close(left.affine, right.affine)
    assert left.meta.keys() == right.meta.keys()
    assert [t["class"] for t in left.applied_operations] == [
        t["class"] for t in right.applied_operations
    ]


def _close_labels(left, right, ties=None):
    """Equal but for voxels at positions within rounding of a tie; few, where they are not given."""
    assert left.shape == right.shape
    differ = (left != right).as_tensor()
    if ties is None:
        assert differ.float().mean() < 2e-3
    else:
        assert not (differ & ~ties).any()


def _ties(spaced, affine):
    """Whether voxels of a resampled image lie half-way between voxels of one with this affine."""
    axes = spaced.dim() - 1
    rows = [*range(axes), 3]
    matrices = (m[rows][:, rows].double() for m in (affine, spaced.affine))
    vox_from_vox = torch.linalg.solve(*matrices)[:axes]
    voxels = torch.stack(torch.meshgrid(*map(torch.arange, spaced.shape[1:]), indexing="ij"), -1)
    at = voxels.double() @ vox_from_vox[:, :axes].T + vox_from_vox[:, axes]
    return ((at - at.floor() - 0.5).abs() < 1e-6).any(-1)


@pytest.mark.parametrize("seed", SEEDS)
def test_crop(seed):
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    axes = 3 if seed % 4 else 2
    shape = [int(n) for n in rng.integers(14, 70, axes)]
    channels = int(rng.choice([1, 3]))
    image = MetaTensor(torch.rand(2, *shape, generator=generator))
    label = MetaTensor((torch.rand(channels, *shape, generator=generator) > 0.97).float())
    data = {"image": image, "label": label, "name": "x"}
    options = {
        "spatial_size": [int(n) for n in rng.choice([-1, 5, 12, 20], axes)],
        "pos": float(rng.choice([0, 1, 3])),
        "num_samples": int(rng.integers(1, 5)),
        "image_key": "image" if seed % 2 else None,
        "image_threshold": 0.6,
        "allow_smaller": True,
    }
    made = []
    for module in (ours, transforms):
        crop = module.RandCropByPosNegLabeld(["image", "label"], "label", **options)
        crop.set_random_state(seed)
        made.append(crop(data) + crop(data))
    assert len(made[0]) == len(made[1]) == 2 * options["num_samples"]
    for left, right in zip(*made, strict=True):
        assert left.keys() == right.keys()
        for key in ("image", "label"):
            assert torch.equal(left[key], right[key])
            _same_meta(left[key], right[key])
            assert left[key].meta["crop_center"] == right[key].meta["crop_center"]


def test_crop_without_foreground_with_indices_and_from_arrays():
    label = np.zeros((1, 9, 9, 9), np.uint8)
    crop = ours.RandCropByPosNegLabeld(["l"], "l", (4, 4, 4), num_samples=2)
    with pytest.warns(UserWarning, match="unable to generate class balanced samples"):
        assert [sample["l"].shape for sample in crop({"l": label})] == [(1, 4, 4, 4)] * 2
    label[0, 5:, 5:, 5:] = 1
    made = []
    for module in (ours, transforms):
        given = {"fg_indices_key": "fg", "bg_indices_key": "bg", "num_samples": 3}
        crop = module.RandCropByPosNegLabeld(["l"], "l", (4, 4, 4), **given)
        indices = {"fg": np.array([728]), "bg": np.array([0, 1])}
        made.append(crop.set_random_state(3)({"l": label, **indices}))
    for left, right in zip(*made, strict=True):
        assert torch.equal(left["l"], right["l"])


def _affine_options(rng, axes):
    return {
        "prob": 0.8,
        "rotate_range": [float(v) for v in rng.uniform(0, 0.6, 3 if axes == 3 else 1)],
        "shear_range": [(-0.1, 0.2)] * axes,
        "translate_range": [float(v) for v in rng.uniform(0, 9, axes)],
        "scale_range": [0.2] * axes,
        "mode": ("bilinear", "nearest"),
        "padding_mode": str(rng.choice(["zeros", "border", "reflection"])),
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_affine(seed):
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    axes = 3 if seed % 3 else 2
    shape = [int(n) for n in rng.integers(10, 40, axes)]
    if seed == 1:
        shape[2] = 1
    image = oblique_volume((2, *shape), generator)
    label = MetaTensor(torch.randint(0, 4, (1, *shape), generator=generator), affine=image.affine)
    options = _affine_options(rng, axes)
    if seed % 2:
        options["spatial_size"] = [int(n) for n in rng.choice([-1, 16, 50], axes)]
    data, made = {"image": image, "label": label}, []
    for module in (ours, transforms):
        transform = module.RandAffined(["image", "label"], **options).set_random_state(seed)
        made.append([transform(deepcopy(data)) for _ in range(3)])  # MONAI notes them in place
    for left, right in zip(*made, strict=True):
        assert left["image"].dtype == left["label"].dtype == torch.float32
        # MONAI's positions are float32: 1e-5 voxels at these sizes, times differences of up to 1
        torch.testing.assert_close(left["image"], right["image"], rtol=0, atol=5e-4)
        _close_labels(left["label"], right["label"])
        for key in data:
            _same_meta(left[key], right[key])


def test_affine_inverts_as_monai_does():
    image = oblique_volume((1, 20, 22, 18), torch.Generator())
    inverted = []
    for module in (ours, transforms):
        affine = module.RandAffined(["image"], prob=1.0, rotate_range=0.4, translate_range=3.0)
        affine.set_random_state(5)
        inverted.append(affine.inverse(affine({"image": image}))["image"])
    torch.testing.assert_close(*inverted, rtol=0, atol=5e-4)
    _same_meta(*inverted)


def test_affine_refuses():
    for name in ("bicubic", 3):
        with pytest.raises(ValueError, match="RandAffined: mode must be bilinear or nearest"):
            ours.RandAffined(["i"], mode=name)
    with pytest.raises(ValueError, match="RandAffined: padding_mode must be zeros, border or"):
        ours.RandAffined(["i"], padding_mode="wrap")
    with pytest.raises(ValueError, match="RandAffined: lazy must be False"):
        ours.RandAffined(["i"], lazy=True)
    transform = ours.RandAffined(["i", "j"], prob=1.0)
    data = {"i": torch.zeros(1, 8, 8), "j": torch.zeros(1, 8, 8, 8)}
    with pytest.raises(ValueError, match="RandAffined: lazy must be False"):
        transform(data, lazy=True)
    with pytest.raises(ValueError, match="RandAffined: images must have 2 space axes"):
        transform(data)


@pytest.mark.parametrize("seed", SEEDS)
def test_spacing(seed):
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    axes = 3 if seed % 4 else 2
    shape = [int(n) for n in rng.integers(6, 30, axes)]
    image = oblique_volume((2, *shape), generator, torch.int16 if seed == 3 else torch.float32)
    label = MetaTensor(torch.randint(0, 4, (1, *shape), generator=generator), affine=image.affine)
    options = {
        "pixdim": [float(v) for v in rng.uniform(0.6, 3.0, axes)],
        "diagonal": bool(rng.integers(2)),
        "mode": ("bilinear", "nearest"),
        "padding_mode": str(rng.choice(["zeros", "border", "reflection"])),
        "align_corners": bool(rng.integers(2)) and version_geq(monai.__version__, "1.6"),
        "recompute_affine": bool(rng.integers(2)),
    }
    if seed == 5:
        options["min_pixdim"], options["max_pixdim"] = 0.1, 9.0  # nothing to do
    spacings = [module.Spacingd(["image", "label"], **options) for module in (ours, transforms)]
    left, right = (spacing({"image": image, "label": label}) for spacing in spacings)
    assert left["image"].dtype == torch.float32
    torch.testing.assert_close(left["image"], right["image"], rtol=0, atol=1e-5)
    exact = transforms.Spacingd(
        ["label"], **options | {"mode": "nearest", "recompute_affine": False}
    )
    ties = _ties(exact({"label": label})["label"], label.affine)
    _close_labels(left["label"], right["label"], ties)
    for key in left:
        _same_meta(left[key], right[key])
    if not options["recompute_affine"]:
        inverses = [s.inverse(d)["image"] for s, d in zip(spacings, (left, right), strict=True)]
        torch.testing.assert_close(*inverses, rtol=0, atol=1e-5)
        _same_meta(*inverses)


def test_spacing_of_plain_tensors():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no affine
        a = ours.Spacingd(["i"], (2.0, 0.5))({"i": torch.arange(64.0).view(1, 8, 8)})["i"]
        b = transforms.Spacingd(["i"], (2.0, 0.5))({"i": torch.arange(64.0).view(1, 8, 8)})["i"]
    torch.testing.assert_close(a, b)


def test_spacing_refuses():
    with pytest.raises(ValueError, match="Spacingd: mode must be bilinear or nearest; got 3"):
        ours.Spacingd(["i"], 1.0, mode=3)
    with pytest.raises(ValueError, match="Spacingd: padding_mode must be zeros, border or"):
        ours.Spacingd(["i"], 1.0, padding_mode="mirror")
    with pytest.raises(ValueError, match="Spacingd: lazy must be False"):
        ours.Spacingd(["i"], 1.0, lazy=True)
    with pytest.raises(ValueError, match="Spacingd: lazy must be False"):
        ours.Spacingd(["i"], 1.0)({"i": torch.zeros(1, 4, 4)}, lazy=True)
    with pytest.raises(ValueError, match="Spacingd: images must be"):
        ours.Spacingd(["i"], 2.0)({"i": MetaTensor(torch.zeros(1, 4, 4, 4, 4))})


def test_spacing_with_aligned_corners_needs_a_monai_that_has_them_right(monkeypatch):
    monkeypatch.setattr(monai, "__version__", "1.5.2")
    with pytest.raises(
        ValueError, match=r"Spacingd: align_corners must be False before MONAI 1\.6"
    ):
        ours.Spacingd(["i"], 2.0, align_corners=True)


def test_they_compose():
    image = oblique_volume((1, 30, 32, 28), torch.Generator())
    label = MetaTensor((image > 0.9).float(), affine=image.affine)
    made = []
    for module in (ours, transforms):
        keys = ["image", "label"]
        modes = {"mode": ("bilinear", "nearest")}
        compose = transforms.Compose(
            [
                module.Spacingd(keys, (1.3, 1.1, 2.0), **modes),
                module.RandCropByPosNegLabeld(keys, "label", (16, 16, 16), num_samples=2),
                module.RandAffined(keys, prob=1.0, rotate_range=0.3, **modes),
            ]
        )
        compose.set_random_state(2)
        made.append(compose({"image": image, "label": label}))
    for left, right in zip(*made, strict=True):
        torch.testing.assert_close(left["image"], right["image"], rtol=0, atol=1e-4)
        _close_labels(left["label"], right["label"])
        _same_meta(left["image"], right["image"])


def test_without_metadata_and_after_pickling():
    image, label = torch.rand(1, 20, 18, 16), (torch.rand(1, 20, 18, 16) > 0.9).float()
    data, made = {"image": image, "label": label.numpy()}, []
    set_track_meta(False)
    try:
        for module in (ours, transforms):
            keys = ["image", "label"]
            compose = transforms.Compose(
                [
                    module.Spacingd(keys, (0.7, 1.1, 2.0), mode=("bilinear", "nearest")),
                    module.RandCropByPosNegLabeld(keys, "label", (8, 8, 4), num_samples=2),
                    module.RandAffined(keys, prob=1.0, translate_range=2.0, padding_mode="border"),
                ]
            )
            compose = pickle.loads(pickle.dumps(compose)).set_random_state(4)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # no affine
                made.append(compose(data))
    finally:
        set_track_meta(True)
    for left, right in zip(*made, strict=True):
        for key in data:
            assert type(left[key]) is type(right[key]) is torch.Tensor
            torch.testing.assert_close(left[key], right[key], rtol=0, atol=1e-4)
