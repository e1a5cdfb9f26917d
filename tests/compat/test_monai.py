"""The drop-ins for MONAI: equal to the installed MONAI on random arguments, or refused by name."""

import pickle
import re
import warnings
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("monai", reason="needs the extra monai")

import monai
from monai import inferers, losses, transforms
from monai.data import MetaTensor, set_track_meta
from monai.utils import version_geq

from cmrfast.compat import monai as ours

SEEDS = range(12)


def _volume(shape, generator, dtype=torch.float32):
    """A MetaTensor with an oblique affine."""
    values = torch.rand(shape, generator=generator).to(dtype)
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = torch.tensor([[0.9, 0.2, 0.0], [-0.3, 1.3, 0.1], [0.0, -0.1, 2.5]])
    affine[:3, 3] = torch.tensor([-20.0, 11.0, 5.0])
    return MetaTensor(values, affine=affine)


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


# Sliding windows


@pytest.mark.parametrize("seed", SEEDS)
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
    image = _volume((1, 20, 18, 9), torch.Generator())[None]
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


# Losses


def _case(seed):
    """An input, a target and options, at random."""
    rng = np.random.default_rng(seed)
    classes = int(rng.choice([1, 2, 4]))
    shape = [int(n) for n in rng.integers(3, 9, rng.integers(2, 4))]
    act = str(rng.choice(["softmax", "sigmoid", "other_act", "none"]))
    options = {
        "include_background": bool(rng.integers(2)),
        "jaccard": bool(rng.integers(2)),
        "batch": bool(rng.integers(2)),
        "reduction": str(rng.choice(["mean", "sum"])),
        "smooth_nr": float(rng.choice([0.0, 1e-5, 0.3])),
        "smooth_dr": float(rng.choice([1e-5, 0.7])),
    }
    if act != "none":
        options[act] = torch.tanh if act == "other_act" else True
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3, classes, *shape, generator=generator)
    if act in ("none", "other_act"):  # where the sum of the prediction may be close to 0
        logits = logits.double()
    target = torch.randint(0, max(classes, 2), (3, 1, *shape), generator=generator).float()
    if classes > 1 and rng.integers(2):
        options["to_onehot_y"] = True
    elif classes > 1:
        target = torch.randint(0, 2, (3, classes, *shape), generator=generator).float()
    target = target.to(logits.dtype)
    if classes > 1 and rng.integers(2):
        options["weight"] = torch.rand(classes, generator=generator).to(logits.dtype) + 0.1
    return logits, target, options


def _same_loss(left, right, logits, target):
    values = []
    for loss in (left, right):
        x = logits.clone().requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = loss(x, target)
        value.sum().backward()
        values.append((value.detach(), x.grad))
    torch.testing.assert_close(*values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(40))
def test_dice_ce_loss(seed):
    logits, target, options = _case(seed)
    rng = np.random.default_rng(seed)
    options |= {"lambda_dice": float(rng.random()), "lambda_ce": float(rng.random())}
    if logits.shape[1] == 1:
        options.pop("weight", None)
    _same_loss(ours.DiceCELoss(**options), losses.DiceCELoss(**options), logits, target)


@pytest.mark.parametrize("seed", range(40))
def test_dice_loss(seed):
    logits, target, options = _case(seed)
    if "weight" in options and not options["include_background"]:
        options["weight"] = options["weight"][1:]
    options["reduction"] = ("mean", "sum", "none")[seed % 3]
    _same_loss(ours.DiceLoss(**options), losses.DiceLoss(**options), logits, target)


@pytest.mark.parametrize("ignored", [0, 2, 255])
@pytest.mark.parametrize("classes", [1, 3])
def test_dice_loss_ignores_an_index(ignored, classes):
    if "ignore_index" not in losses.DiceLoss.__init__.__annotations__:
        pytest.skip("this MONAI has no ignore_index")
    logits, target = torch.randn(2, classes, 8, 8), torch.randint(0, max(classes, 2), (2, 1, 8, 8))
    target[:, :, 2:4] = ignored
    options = {"softmax": classes > 1, "sigmoid": classes == 1, "to_onehot_y": classes > 1}
    options["ignore_index"] = ignored
    left, right = ours.DiceLoss(**options), losses.DiceLoss(**options)
    _same_loss(left, right, logits, target)
    if classes > 1:
        options["to_onehot_y"] = False
        with pytest.raises(ValueError, match="DiceLoss: ignore_index must be None with a target"):
            ours.DiceLoss(**options)(logits, logits)


def test_losses_warn_as_monai_does():
    loss = ours.DiceLoss(softmax=True, to_onehot_y=True, include_background=False)
    with pytest.warns(UserWarning, match="single channel prediction") as caught:
        loss(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4))
    assert {"softmax=True", "to_onehot_y=True", "include_background=False"} == {
        re.search("`(.*)`", str(warning.message))[1] for warning in caught
    }


def test_losses_keep_their_state():
    weight = torch.tensor([1.0, 2.0])
    left, right = ours.DiceCELoss(weight=weight), losses.DiceCELoss(weight=weight)
    assert left.state_dict().keys() == right.state_dict().keys()
    assert isinstance(left, losses.DiceCELoss)


def test_losses_refuse():
    for loss in (ours.DiceLoss, ours.DiceCELoss):
        with pytest.raises(ValueError, match=f"{loss.__name__}: squared_pred must be False"):
            loss(squared_pred=True)
    with pytest.raises(ValueError, match="DiceLoss: soft_label must be False"):
        ours.DiceLoss(soft_label=True)
    with pytest.raises(ValueError, match=r"DiceCELoss: label_smoothing must be 0; got 0\.1"):
        ours.DiceCELoss(label_smoothing=0.1)
    one, two = torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 4, 4)
    with pytest.raises(ValueError, match="weight must be None for a single class"):
        ours.DiceCELoss(sigmoid=True, weight=torch.ones(1))(one, one)
    with pytest.raises(ValueError, match=r"DiceCELoss: target must be \(B, 1, \*S\)"):
        ours.DiceCELoss(softmax=True)(two, one[0])
    with pytest.raises(ValueError, match=r"DiceLoss: target must be \(1, 2, \*S\), a mask for"):
        ours.DiceLoss(softmax=True)(two, one)
    with pytest.raises(ValueError, match=r"DiceLoss: target must be \(1, 1, \*S\), labels"):
        ours.DiceLoss(softmax=True, to_onehot_y=True)(two, two)
    with pytest.raises(ValueError, match="DiceLoss: weight must have one entry per class"):
        ours.DiceLoss(softmax=True, weight=torch.ones(3))(two, two)
    with pytest.raises(ValueError, match="DiceLoss: weight must be >= 0"):
        ours.DiceLoss(softmax=True, weight=[1, -1])(two, two)


# Crops


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


# Affines


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
    image = _volume((2, *shape), generator)
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
    image = _volume((1, 20, 22, 18), torch.Generator())
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


# Spacing


@pytest.mark.parametrize("seed", SEEDS)
def test_spacing(seed):
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    axes = 3 if seed % 4 else 2
    shape = [int(n) for n in rng.integers(6, 30, axes)]
    image = _volume((2, *shape), generator, torch.int16 if seed == 3 else torch.float32)
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


def test_they_compose():
    image = _volume((1, 30, 32, 28), torch.Generator())
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


def test_spacing_with_aligned_corners_needs_a_monai_that_has_them_right(monkeypatch):
    monkeypatch.setattr(monai, "__version__", "1.5.2")
    with pytest.raises(
        ValueError, match=r"Spacingd: align_corners must be False before MONAI 1\.6"
    ):
        ours.Spacingd(["i"], 2.0, align_corners=True)


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
