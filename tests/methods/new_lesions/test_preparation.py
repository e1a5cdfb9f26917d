"""Preparation of two visits, as in the paper: their grid, brain and intensities; its cache."""

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from scipy import ndimage

from cmrfast.data import Volume
from cmrfast.data.cache import Cache
from cmrfast.data.prepare import spacing_grid
from cmrfast.methods.new_lesions.images import align, normalise
from cmrfast.methods.new_lesions.task import NORMALISED
from cmrfast.models.new_lesions import Config, Recipe
from tests.support.new_lesions_cases import METHOD, SMALL, TASK, changed, fitted, pair_of


def itk(volume):
    """SimpleITK's image of a volume; its axes are the other way round, its x and y too."""
    image = sitk.GetImageFromArray(volume.data[0].permute(2, 1, 0).contiguous().numpy())
    matrix = (torch.diag(torch.tensor([-1.0, -1, 1, 1])).double() @ volume.world_from_vox).numpy()
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((matrix[:3, :3] / spacing).flatten().tolist())
    image.SetOrigin(matrix[:3, 3].tolist())
    return image


def test_preparation_is_the_papers(ljubljana):
    """Against SimpleITK's resampling and numpy's percentiles, on a patient of thick slices."""
    spacing = 2.91  # at which no tie is left to rounding
    case, recipe = ljubljana[0], replace(SMALL, spacing_mm=spacing)
    prepared = fitted(ljubljana, recipe).prepared(NORMALISED, case)
    later, brain = case.image("later"), case.label("brain")
    shape, world_from_vox = spacing_grid(later.shape, later.world_from_vox, [spacing] * 3)
    grid = itk(Volume(torch.zeros(1, *shape), world_from_vox))

    def resampled(volume, interpolator):
        moved = sitk.Resample(itk(volume), grid, sitk.Transform(), interpolator)
        return sitk.GetArrayFromImage(moved).transpose(2, 1, 0)

    inside = resampled(brain, sitk.sitkNearestNeighbor) > 0
    box = ndimage.find_objects(inside.astype(int))[0]
    assert np.array_equal(prepared["brain"].numpy() > 0, inside[box])
    mask = resampled(case.label("consensus"), sitk.sitkNearestNeighbor)[box]
    for channel in prepared["masks"]:  # open_ms has no raters
        assert np.array_equal(channel.numpy(), mask)

    at = [1, 10, 20, 25, 30, 40, 50, 60, 70, 75, 80, 90, 99]
    images = [
        resampled(v.with_data(v.data.float()), sitk.sitkLinear).astype(np.float64)
        for v in (case.image("earlier"), later)
    ]
    own = np.array([np.percentile(image[inside], at) for image in images])
    landmarks = ((own - own[:, :1]) * 100 / (own[:, -1:] - own[:, :1])).mean(0)
    for image, percentiles, found in zip(images, own, prepared["images"], strict=True):
        values = image[inside]
        mapped = np.interp(values, percentiles, landmarks)
        for end, out in ((0, values < percentiles[0]), (-1, values > percentiles[-1])):
            two = slice(0, 2) if end == 0 else slice(-2, None)
            slope = np.diff(landmarks[two]) / np.diff(percentiles[two])
            mapped[out] = landmarks[end] + (values[out] - percentiles[end]) * slope
        wanted = np.zeros(shape)
        wanted[inside] = (mapped - mapped.mean()) / mapped.std()
        np.testing.assert_allclose(found.numpy(), wanted[box], rtol=0, atol=2e-3)


def test_raters_keep_their_channels(task, cases):
    prepared, pair = task.prepared(NORMALISED, cases[0]), align(*pair_of(cases[0]), recipe=SMALL)
    for name, mask in zip(
        ("consensus", "rater1", "rater2", "rater3", "rater4"), prepared["masks"], strict=True
    ):
        label = cases[0].label(name)
        there = torch.linalg.inv(label.world_from_vox) @ pair.world_from_vox
        at = mask.nonzero().double() @ there[:3, :3].T + there[:3, 3]
        near = (at + 0.5).floor().long().unbind(1)
        assert label.data[0][near].all()
        assert len(at) > 0


def test_both_visits_see_one_brain(ljubljana):
    """Masks of both visits are united; what is outside is 0, as beyond the image."""
    earlier, later = pair_of(ljubljana[0])
    brain = ljubljana[0].label("brain")
    half = brain.data.clone()
    half[:, : half.shape[1] // 2] = 0
    parts = [brain.with_data(m) for m in (half, brain.data - half)]
    whole, union = (align(earlier, later, masks, recipe=SMALL) for masks in ([brain], parts))
    assert torch.equal(whole.brain, union.brain)
    assert torch.equal(whole.images, union.images)
    images = normalise(whole.images, whole.brain)
    assert not images[:, ~whole.brain].any()
    torch.testing.assert_close(images[:, whole.brain].mean(1), torch.zeros(2), rtol=0, atol=1e-5)
    assert whole.brain.any(dim=2).any(dim=1)[[0, -1]].all()  # the box is tight


@pytest.mark.parametrize("installed", [True, False])
def test_coil_shading_is_corrected_where_the_extra_is(cases, monkeypatch, caplog, installed):
    monkeypatch.setattr(
        "cmrfast.models.new_lesions.find_spec", lambda name: object() if installed else None
    )
    recipe = Recipe()
    assert recipe.bias_field is installed
    assert METHOD.configure({"bias_field": not installed})[1].bias_field is not installed
    TASK(Config(), replace(SMALL, histogram=False, bias_field=False)).fit(cases)
    assert ("coil shading is not corrected" in caplog.text) is not installed


def test_bias_field_is_taken_out(ljubljana):
    earlier, later = pair_of(ljubljana[0])
    brain = ljubljana[0].label("brain")
    inside, shape = brain.data[0] != 0, later.shape
    ramp = torch.linspace(0.6, 1.6, shape[0]).view(-1, 1, 1).expand(shape)
    flat = later.with_data((500 * inside.float() * (1 + 0.02 * torch.randn(shape)))[None])
    shaded = flat.with_data(flat.data * ramp)

    def spread(later, **changes):
        pair = align(earlier, later, [brain], recipe=replace(SMALL, **changes))
        return float(pair.images[1][pair.brain].std() / pair.images[1][pair.brain].mean())

    least = spread(flat)
    assert spread(shaded, bias_field=True) - least < 0.3 * (spread(shaded) - least)


def test_half_precision_keeps_a_thousandth(task, cases):
    half = changed(task, stored="float16")
    whole, stored = (t.prepared(NORMALISED, cases[0])["images"] for t in (task, half))
    assert stored.dtype == torch.float16
    torch.testing.assert_close(stored.float(), whole, rtol=1e-3, atol=1e-4)
    batch = half.feed(cases[:1], seed=0).batch(0, torch.arange(2))
    assert batch["later"].dtype == torch.float32


def test_the_cache_gives_the_same(task, cases, tmp_path):
    cache = Cache(tmp_path)
    cached = TASK(Config(), SMALL, cache=cache)
    assert cached.fit(cases[:2]) == TASK(Config(), SMALL).fit(cases[:2])
    entries = len(list(tmp_path.iterdir()))
    assert entries == 2
    again = TASK(Config(), SMALL, task.fitted, cache=cache)
    plain = TASK(Config(), SMALL, task.fitted).prepared(NORMALISED, cases[0])
    for _ in range(2):
        found = again.prepared(NORMALISED, cases[0])
        for name, x in plain.items():
            assert torch.equal(found[name], x)
    assert len(list(tmp_path.iterdir())) == entries + 1
    other = TASK(Config(), replace(SMALL, spacing_mm=5.0), cache=cache)
    assert other.fit(cases[:1]) != cached.fit(cases[:1])
