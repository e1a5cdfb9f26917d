"""The parts of cmrfast.compat.nnunet that need no nnU-Net; its ranges are stored below."""

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cmrfast.compat.nnunet import (
    Augmentation,
    Patches,
    PatchLoader,
    SegmentationLoss,
    Targets,
    resample_labels,
)

DRAWS = 4000
AUGMENTATION = Augmentation(rotation=math.pi / 6, mirror_axes=(0, 1, 2))
#: Parameter → probability per channel, smallest and largest value, mean; of nnU-Net 2.8.
STEPS = {
    "noise_sd": (0.1, 0.0, 0.1, 0.05),
    "blur_sd_vox": (0.2 * 0.5, 0.5, 1.0, 0.75),
    "gain": (0.15, 0.75, 1.25, 1.0),
    "contrast": (0.15, 0.75, 1.25, 1.0),
    "low_res": (0.25 * 0.5, 0.5, 1.0, 0.75),
    "gamma_inverted": (0.1, 0.7, 1.5, 1.05),
    "gamma": (0.3, 0.7, 1.5, 1.05),
}


def draw(augmentation=AUGMENTATION, count=DRAWS, channels=2, axes=3, seed=0):
    return augmentation.draw(seed, torch.arange(count), channels=channels, axes=axes)


@pytest.mark.parametrize("name", STEPS)
def test_intensity_has_nnunets_ranges_and_probabilities(name):
    probability, low, high, mean = STEPS[name]
    values = draw().intensity[name]
    given = values[~values.isnan()]
    deviation = math.sqrt(probability * (1 - probability) / DRAWS)
    share = float((~values.isnan()).double().mean())
    assert share == pytest.approx(probability, abs=5 * deviation)
    assert low <= given.min()
    assert given.max() <= high
    width = high - low
    assert given.min() < low + 0.05 * width
    assert given.max() > high - 0.05 * width
    assert float(given.mean()) == pytest.approx(
        mean, abs=5 * width / math.sqrt(12 * len(given) / 3)
    )


@pytest.mark.parametrize("name", ["gain", "contrast", "gamma"])
def test_factors_are_below_one_half_of_the_time(name):
    values = draw().intensity[name]
    given = values[~values.isnan()]
    share = float((given < 1).double().mean())
    assert share == pytest.approx(0.5, abs=2.5 / math.sqrt(len(given)))


def test_which_parameters_channels_and_axes_share():
    given = draw().intensity
    assert given["noise_sd"].shape == (DRAWS,)
    low_res, blur = given["low_res"], given["blur_sd_vox"]
    assert torch.equal(low_res[..., 0].nan_to_num(-1), low_res[..., 2].nan_to_num(-1))
    both = ~low_res[:, 0, 0].isnan() & ~low_res[:, 1, 0].isnan()
    assert (low_res[both, 0, 0] != low_res[both, 1, 0]).all()
    blurred = ~blur[:, 0, 0].isnan()
    assert torch.equal(blurred, ~blur[:, 0, 2].isnan())
    assert (blur[blurred, 0, 0] != blur[blurred, 0, 2]).all()


def test_matrices_rotate_scale_and_mirror_as_often_as_nnunet():
    drawn = draw()
    sizes = drawn.matrix.det().abs() ** (1 / 3)
    scaled = (sizes - 1).abs() > 1e-9
    assert float(scaled.double().mean()) == pytest.approx(0.2, abs=0.03)
    assert 0.7 <= sizes.min() < 0.75
    assert 1.35 < sizes.max() <= 1.4
    rotation = drawn.matrix / sizes[:, None, None]
    eye = torch.eye(3, dtype=torch.float64).expand(DRAWS, 3, 3)
    torch.testing.assert_close(rotation @ rotation.mT, eye)
    unmoved = rotation[~drawn.moved]
    assert torch.equal(unmoved.abs(), eye[: len(unmoved)])
    signs = unmoved.diagonal(dim1=1, dim2=2)
    assert (signs.mean(0).abs() < 0.1).all()
    assert len(signs.unique(dim=0)) == 8
    rotated = (drawn.matrix.abs() > 1e-9).sum((1, 2)) > 3
    assert float(rotated.double().mean()) == pytest.approx(0.2, abs=0.03)
    share = 1 - 0.8 * 0.8
    assert float(drawn.moved.double().mean()) == pytest.approx(share, abs=0.04)


def test_angles_are_uniform():
    augmentation = Augmentation(rotation=0.5, mirror_axes=(), p_rotation=1, p_scaling=0)
    matrix = draw(augmentation, axes=2).matrix
    angles = torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0])
    assert angles.abs().max() <= 0.5
    assert float(angles.mean()) == pytest.approx(0, abs=0.03)
    assert float(angles.var()) == pytest.approx(1 / 12, rel=0.1)


def test_in_plane_leaves_thick_slices_alone():
    augmentation = Augmentation(rotation=math.pi, mirror_axes=(1, 2), in_plane=True)
    drawn = draw(augmentation)
    first = torch.eye(3, dtype=torch.float64)[0].expand(DRAWS, 3)
    assert torch.equal(drawn.matrix[:, 0], first)
    assert torch.equal(drawn.matrix[:, :, 0], first)
    assert drawn.intensity["low_res"][..., 0].isnan().all()
    assert not drawn.intensity["blur_sd_vox"][..., 0].isnan().all()


def test_draws_depend_on_the_sample_alone():
    alone = AUGMENTATION.draw(3, torch.tensor([7]), channels=2, axes=3)
    many = draw(count=9, seed=3)
    assert torch.equal(alone.matrix[0], many.matrix[7])
    for name, values in alone.intensity.items():
        torch.testing.assert_close(
            values[0], many.intensity[name][7], rtol=0, atol=0, equal_nan=True
        )
    assert not torch.equal(draw(count=9, seed=4).matrix, many.matrix)


class Memory:
    """Cases in memory, as nnU-Net's dataset classes return them."""

    def __init__(self, shapes=((12, 20, 24), (9, 30, 18)), channels=2):
        rng = np.random.default_rng(0)
        self.identifiers, self.stored = [], {}
        for i, shape in enumerate(shapes):
            image = rng.standard_normal((channels, *shape), dtype=np.float32)
            label = rng.integers(-1, 3, (1, *shape)).astype(np.int16)
            voxels = {k: np.argwhere(label == k) for k in (1, 2)}
            voxels[-1, 0, 1, 2] = np.argwhere(label >= -1)
            self.identifiers.append(f"case{i}")
            self.stored[f"case{i}"] = image, label, None, {"class_locations": voxels}

    def load_case(self, name):
        return self.stored[name]


def patches(size=(6, 8, 10), margin=None, batch=3, **options):
    return Patches(batch, size, margin or tuple(n + 3 for n in size), (0, 1, 2), **options)


def loader(chosen=None, targets=None, **options):
    return PatchLoader(Memory(), chosen or patches(), targets or Targets(), **options)


def test_validation_patches_are_cut_from_the_images():
    size = (4, 5, 6)
    batch = loader(patches(size, size, 4)).batch(2)
    assert batch["data"].shape == (4, 2, *size)
    assert batch["data"].dtype == torch.float32
    assert batch["target"].shape == (4, 1, *size)
    assert batch["target"].dtype == torch.int16
    for image, label, name in zip(batch["data"], batch["target"], batch["keys"], strict=True):
        stored, labels, *_ = Memory().stored[name]
        windows = np.lib.stride_tricks.sliding_window_view(stored[0], size)
        found = np.argwhere((windows == image[0].numpy()).all((3, 4, 5)))
        assert len(found) == 1, "a patch inside of the image, voxel for voxel"
        at = tuple(slice(a, a + n) for a, n in zip(found[0], size, strict=True))
        np.testing.assert_array_equal(image[1], stored[1][at])
        np.testing.assert_array_equal(label[0], labels[0][at].clip(0))


class Mapped(Memory):
    """The same cases in files that are mapped, and how often each was opened."""

    def __init__(self, folder, count):
        super().__init__([(6, 7, 8)] * count)
        self.folder, self.opened = folder, []
        for name, (image, label, *_) in self.stored.items():
            np.save(folder / f"{name}.npy", image)
            np.save(folder / f"{name}_seg.npy", label)

    def load_case(self, name):
        self.opened.append(name)
        mapped = [np.load(self.folder / f"{name}{end}.npy", "r") for end in ("", "_seg")]
        return *mapped, None, self.stored[name][3]


def test_files_stay_open_and_not_too_many(tmp_path, monkeypatch):
    size = (2, 3, 4)
    cases = Mapped(tmp_path, 6)
    made = PatchLoader(cases, patches(size, batch=4), Targets())
    batches = [made.batch(step) for step in range(20)]
    assert sorted(cases.opened) == cases.identifiers
    monkeypatch.setattr("cmrfast.compat.nnunet.loading._HELD", 2)
    cases.opened.clear()
    few = PatchLoader(cases, patches(size, batch=4), Targets())
    for step, batch in enumerate(batches):
        assert torch.equal(few.batch(step)["data"], batch["data"])
    assert len(cases.opened) > 20


def test_what_is_in_memory_is_not_held():
    made = loader()
    made.batch(0)
    assert not made._opened.held


def test_unmoved_training_patches_are_not_interpolated():
    steps = ("noise", "blur", "gain", "contrast", "low_res", "gamma", "gamma_inverted")
    never = {f"p_{step}": 0.0 for step in ("rotation", "scaling", *steps)}
    only_mirrored = Augmentation(0.5, (0, 1, 2), **never)
    images = loader(augmentation=only_mirrored).batch(0)["data"]
    stored = np.concatenate([case[0].ravel() for case in Memory().stored.values()])
    assert np.isin(images.numpy(), np.append(stored, 0)).all()


def test_oversampled_patches_hold_foreground():
    cases = Memory(((30, 40, 40),))
    _image, label, _, properties = cases.stored["case0"]
    label[:] = 0
    label[0, 20, 30, 33] = 2
    for name in (1, 2):
        properties["class_locations"][name] = np.argwhere(label == name)
    chosen = patches((3, 3, 3), (5, 5, 5), batch=6, oversample=0.33)
    made = PatchLoader(cases, chosen, Targets())
    labels = torch.stack([made.batch(step)["target"] for step in range(3)])
    assert (labels[:, 4:] == 2).flatten(2).any(-1).all(), "the last third of each batch"
    assert not (labels[:, :4] == 2).any()
    chosen = patches((3, 3, 3), (5, 5, 5), batch=200, oversample=0.33, probabilistic=True)
    found = (PatchLoader(cases, chosen, Targets()).batch(0)["target"] == 2).flatten(1).any(1)
    assert float(found.double().mean()) == pytest.approx(0.33, abs=0.15)


def test_cases_without_foreground_and_ignored_voxels():
    cases = Memory(((8, 8, 8),))
    voxels = cases.stored["case0"][3]["class_locations"]
    voxels[1] = voxels[2] = []
    voxels[-1, 0, 1, 2] = [(0, 7, 7, 7)]
    for oversample in (0.0, 1.0):
        chosen = patches((1, 1, 1), (1, 1, 1), oversample=oversample, has_ignore_label=True)
        image = PatchLoader(cases, chosen, Targets()).batch(0)["data"]
        assert (image[:, 0, 0, 0, 0] == float(cases.stored["case0"][0][0, 7, 7, 7])).all()
    voxels[-1, 0, 1, 2] = []
    assert PatchLoader(cases, chosen, Targets()).batch(0)["data"].shape[0] == 3


def test_slices():
    size = (8, 10)
    batch = loader(patches(size), augmentation=Augmentation(math.pi, (0, 1))).batch(0)
    assert batch["data"].shape == (3, 2, *size)
    assert batch["target"].shape == (3, 1, *size)
    plain = loader(patches(size, size)).batch(1)
    stored = np.concatenate([case[0].ravel() for case in Memory().stored.values()])
    assert np.isin(plain["data"].numpy(), np.append(stored, 0)).all()


def test_patches_larger_than_the_image_are_padded():
    size = (20, 36, 40)
    assert loader(patches(size, size), augmentation=AUGMENTATION).batch(0)["data"].isfinite().all()
    batch = loader(patches(size, size, oversample=0.0)).batch(0)
    assert (batch["data"][:, :, 0] == 0).all()
    assert (batch["data"][:, :, 10, 18] != 0).any()


def test_batches_are_a_function_of_seed_and_step():
    made = loader(augmentation=AUGMENTATION, seed=5)
    expected = [made.batch(step) for step in range(4)]
    threaded = loader(augmentation=AUGMENTATION, seed=5, first=1, threads=3)
    for step, batch in zip(range(1, 4), threaded, strict=False):
        assert torch.equal(batch["data"], expected[step]["data"])
        assert torch.equal(batch["target"], expected[step]["target"])
        assert batch["keys"] == expected[step]["keys"]
    threaded.close()
    assert torch.equal(next(iter(made))["data"], expected[0]["data"])
    other = loader(augmentation=AUGMENTATION, seed=6).batch(0)
    assert not torch.equal(other["data"], expected[0]["data"])
    made.close()


@pytest.mark.parametrize("n", [7, 8, 12, 15])
def test_targets_are_nearest_exact(n):
    labels = torch.randint(0, 4, (2, 1, n, 2 * n, 9), dtype=torch.int16)
    scales = [(1, 1, 1), (1, 0.5, 0.5), (0.5, 0.25, 1 / 3)]
    for target, scale in zip(Targets(scales)(labels), scales, strict=True):
        shape = [round(a * b) for a, b in zip(labels.shape[2:], scale, strict=True)]
        assert torch.equal(
            target, F.interpolate(labels.float(), shape, mode="nearest-exact").short()
        )


def test_regions_and_masked_channels():
    labels = torch.tensor([-1, 0, 1, 2, 3]).view(1, 1, 1, 5)
    masks = Targets(regions=[(1, 2), 2, 3])(labels)
    assert masks.dtype == torch.bool
    expected = [[0, 0, 1, 1, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]
    assert masks[0, :, 0].int().tolist() == expected
    images = torch.ones(1, 2, 1, 5)
    Targets(masked_channels=(1,)).mask(images, labels)
    assert images[0, :, 0].tolist() == [[1] * 5, [0, 1, 1, 1, 1]]


@pytest.mark.parametrize("nearest_axis", [None, 0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_labels_of_interpolated_logits(nearest_axis, dtype):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, 7, 6, generator=generator).to(dtype)
    shape = (11, 9, 13)
    expected = logits.float()
    if nearest_axis is not None:
        coarse = list(logits.shape[1:])
        coarse[nearest_axis] = shape[nearest_axis]
        expected = F.interpolate(expected[None], coarse, mode="nearest-exact")[0]
        slices = expected.unbind(1 + nearest_axis)
        plane = [n for axis, n in enumerate(shape) if axis != nearest_axis]
        linear = [F.interpolate(s[None], plane, mode="bilinear")[0] for s in slices]
        expected = torch.stack(linear, 1 + nearest_axis)
    else:
        expected = F.interpolate(expected[None], shape, mode="trilinear")[0]
    labels = resample_labels(logits, shape, nearest_axis=nearest_axis, dtype=torch.int16)
    assert torch.equal(labels, expected.argmax(0).short())


def test_same_size_is_the_argmax():
    logits = torch.randn(3, 4, 5, 6)
    for axis in (None, 1):
        assert torch.equal(
            resample_labels(logits, (4, 5, 6), nearest_axis=axis), logits.argmax(0).byte()
        )


@pytest.mark.parametrize("batch_dice", [False, True])
def test_loss_is_cross_entropy_minus_dice(batch_dice):
    logits = torch.randn(2, 3, 6, 5, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 3, (2, 1, 6, 5, 4), dtype=torch.int16)
    p = logits.softmax(1)[:, 1:]
    t = F.one_hot(target[:, 0].long(), 3).movedim(-1, 1)[:, 1:].double()
    axes = (0, 2, 3, 4) if batch_dice else (2, 3, 4)
    dice = (2 * (p * t).sum(axes) + 1e-5) / (p.sum(axes) + t.sum(axes) + 1e-5)
    expected = F.cross_entropy(logits, target[:, 0].long()) - dice.mean()
    loss = SegmentationLoss(batch_dice=batch_dice)(logits, target)
    torch.testing.assert_close(loss, expected)
    grads = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (loss, expected))
    torch.testing.assert_close(*grads)


def test_command_prints_a_folder_with_nothing_but_the_trainer():
    command = [sys.executable, "-m", "cmrfast.compat.nnunet"]
    folder = Path(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    )
    assert [path.name for path in folder.glob("*.py")] == ["cmrfast_trainer.py"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Augmentation(0.5, (3,)), "mirror_axes must be of 0, 1, 2; got (3,)"),
        (lambda: Augmentation(0.5, (), gain=(1.1, 1.2)), "gain must contain 1; got (1.1, 1.2)"),
        (lambda: draw(axes=4), "axes must be 2 or 3; got 4"),
        (lambda: draw(axes=2), "mirror_axes (0, 1, 2) must be among 2 axes"),
        (lambda: patches((3,), (3,)), "both have 2 or 3 entries; got (3,) and (3,)"),
        (lambda: patches((3, 3), (3, 3, 3)), "both have 2 or 3 entries"),
        (lambda: patches(batch=0), "batch must be >= 1; got 0"),
        (lambda: resample_labels(torch.zeros(2, 3, 3), (3, 3)), "logits must be (K, I, J, K')"),
        (
            lambda: resample_labels(torch.zeros(2, 3, 3, 3), (3, 3, 3), nearest_axis=3),
            "nearest_axis must be 0, 1 or 2; got 3",
        ),
    ],
)  # fmt: skip
def test_messages(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_missing_nnunet_is_named(monkeypatch):
    for name in {"nnunetv2", *(n for n in sys.modules if n.startswith("nnunetv2."))}:
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("trainer", "export"):
        monkeypatch.delitem(sys.modules, f"cmrfast.compat.nnunet.{name}", raising=False)
        with pytest.raises(ImportError, match="pip install 'cmrfast\\[nnunet\\]'"):
            __import__(f"cmrfast.compat.nnunet.{name}")
