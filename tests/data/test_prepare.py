"""Preparation of images: against TorchIO, MONAI and NumPy, the methods' anchors, messages."""

import math

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmrfast import metrics, ops
from cmrfast.data import prepare
from cmrfast.data.prepare.histogram import PERCENTILES

EYE = torch.eye(4, dtype=torch.float64)


def diagonal(*spacing):
    return torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))


def oblique(spacing, seed=0):
    generator = torch.Generator().manual_seed(seed)
    affine = EYE.clone()
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator).double()).Q
    affine[:3, :3] = turn * torch.tensor(spacing, dtype=torch.float64)
    affine[:3, 3] = 20 * torch.randn(3, generator=generator).double()
    return affine


def ellipse(shape, center, radius, turned=0.0, ratio=1.0):
    i, j = torch.meshgrid(*(torch.arange(n).double() for n in shape), indexing="ij")
    i, j = i - center[0], j - center[1]
    along, across = (
        i * math.cos(turned) + j * math.sin(turned),
        j * math.cos(turned) - i * math.sin(turned),
    )
    return along.square() + (across / ratio).square() < radius**2


def flairs(folder):
    """Two real FLAIR volumes with their brain masks, by path."""
    patients = folder / "open_ms_longitudinal" / "coregistered"
    return [
        (patients / p / "study1_FLAIR.nii.gz", patients / p / "brainmask.nii.gz")
        for p in ("patient01", "patient12")
    ]


def load(path):
    return torch.from_numpy(np.asarray(nibabel.load(path).dataobj))


# Intensities


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("over", ["volume", "slice"])
def test_intensities_equal_numpy(masked, over):
    volume = 50 + 20 * torch.randn(2, 9, 8, 5)
    mask = torch.rand(9, 8, 5) < 0.6 if masked else torch.ones(9, 8, 5, dtype=torch.bool)
    z = prepare.z_score(volume, mask=mask if masked else None, over=over)
    unit = prepare.min_max(volume, mask=mask if masked else None, over=over)
    clipped = prepare.clip_percentiles(volume, 5, 90, mask=mask if masked else None, over=over)
    for c in range(2):
        for k in range(5):
            part = (c, ..., k) if over == "slice" else (c,)
            inside = mask[part[1:]] if over == "slice" else mask
            values = volume[part][inside].double().numpy()
            expected = (volume[part] - values.mean()) / values.std()
            torch.testing.assert_close(z[part], expected, atol=1e-6, rtol=1e-5)
            expected = (volume[part] - values.min()) / (values.max() - values.min())
            torch.testing.assert_close(unit[part], expected, atol=1e-6, rtol=1e-5)
            low, high = np.percentile(values, (5, 90))
            torch.testing.assert_close(clipped[part], volume[part].clamp(low, high))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float16, torch.float64])
def test_constant_slices_become_zero_and_dtypes_are_kept_wide(dtype):
    volume = torch.stack((torch.full((4, 4), 7), torch.arange(16).view(4, 4)), -1)[None].to(dtype)
    for scale in (prepare.z_score, prepare.min_max):
        scaled = scale(volume, over="slice")
        assert scaled.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert (scaled[..., 0] == 0).all()
        assert scaled[..., 1].unique().numel() == 16
        assert not scale(volume, mask=torch.zeros(4, 4, 2)).any()


def test_min_max_of_clipped_slices_spans_zero_to_one():
    volume = torch.randn(1, 30, 30, 4).exp()
    unit = prepare.min_max(prepare.clip_percentiles(volume, over="slice"), over="slice")
    flat = unit.flatten(1, 2)
    assert (flat.amin(1) == 0).all()
    assert (flat.amax(1) == 1).all()
    assert ((flat == 1).sum(1) == 9).all()  # one in a hundred of 900


def test_histogram_standardisation_equals_torchio_on_real_flair(real_images):
    torchio = pytest.importorskip("torchio")
    pairs = flairs(real_images)
    theirs = torchio.HistogramStandardization.train(
        [image for image, _ in pairs], mask_path=[mask for _, mask in pairs], progress=False
    )
    ours = prepare.histogram_landmarks(load(image)[load(mask) != 0] for image, mask in pairs)
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=1e-5, atol=1e-4)
    image, mask = load(pairs[0][0])[..., 10:30], load(pairs[0][1])[..., 10:30]
    subject = torchio.Subject(
        flair=torchio.ScalarImage(tensor=image[None].float()),
        brain=torchio.LabelMap(tensor=mask[None]),
    )
    expected = torchio.HistogramStandardization({"flair": theirs}, masking_method="brain")(subject)
    # TorchIO learns 13 landmarks and maps by 11 of them, without the 25th and 75th percentile.
    kept = [n for n, at in enumerate(PERCENTILES) if at not in (25, 75)]
    at = tuple(PERCENTILES[n] for n in kept)
    mapped = prepare.standardise_histogram(image, ours[kept], mask=mask, at=at)
    # It works in float32: errors of 1e-7 of the intensities, steepened by the slopes.
    torch.testing.assert_close(mapped, expected.flair.data[0], rtol=1e-4, atol=1e-3)
    all_landmarks = prepare.standardise_histogram(image, ours, mask=mask)
    assert 0.01 < (all_landmarks - mapped).abs().max() < 0.5  # of 100


@given(st.floats(0.1, 50), st.floats(-100, 1000))
def test_histogram_standardisation_undoes_gain_and_offset(gain, offset):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(401, generator=generator).double()  # each percentile is one of them
    landmarks = prepare.histogram_landmarks([image, image**3])
    assert landmarks[0] == 0
    assert landmarks[-1] == pytest.approx(100)
    plain = prepare.standardise_histogram(image, landmarks)
    scaled = prepare.standardise_histogram(gain * image + offset, landmarks)
    torch.testing.assert_close(scaled, plain, atol=1e-6, rtol=1e-6)
    assert (plain[image.argsort()].diff() >= 0).all()
    found = torch.from_numpy(np.percentile(plain, (1, 25, 50, 99)))
    torch.testing.assert_close(found, landmarks[[0, 3, 6, 12]], atol=1e-6, rtol=1e-6)


def test_n4_evens_a_shaded_phantom():
    pytest.importorskip("SimpleITK")
    at = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in (40, 36, 20)), indexing="ij")
    radius = sum(a.square() for a in at)
    tissue = torch.where(radius < 0.3, 100.0, 60.0) + torch.randn(radius.shape)
    shaded = tissue * torch.exp(0.4 * at[0] - 0.3 * at[1] * at[2])
    mask = radius < 0.9
    even = prepare.correct_bias(shaded, mask, (1.0, 1.0, 2.0), shrink=2, iterations=(20, 20))
    assert even[mask].mean().item() == pytest.approx(shaded[mask].mean().item(), rel=1e-4)
    white = radius < 0.3
    assert even[white].std() / even[white].mean() < 0.5 * shaded[white].std() / shaded[white].mean()


def test_brain_union():
    a, b = torch.tensor([[0, 2], [0, 0]]), torch.tensor([[False, False], [True, False]])
    assert prepare.brain_union(a, b).tolist() == [[False, True], [True, False]]


# Grids


@pytest.mark.parametrize("spacing", [(1.0, 2.0, 0.5), (3.0, 1.0, 6.0)])
def test_resample_to_spacing_equals_torchio(spacing):
    torchio = pytest.importorskip("torchio")
    affine = diagonal(1.5, 1.0, 3.0)
    volume = torch.rand(1, 12, 14, 8)
    expected = torchio.Resample(spacing)(torchio.ScalarImage(tensor=volume, affine=affine))
    ours, grid = prepare.resample_to_spacing(volume, affine, spacing)
    torch.testing.assert_close(grid, torch.from_numpy(expected.affine))
    torch.testing.assert_close(ours, expected.data, rtol=1e-5, atol=1e-5)


@given(
    st.tuples(*[st.integers(1, 40)] * 3),
    st.tuples(*[st.floats(0.3, 4)] * 3),
    st.tuples(*[st.floats(0.3, 4)] * 3),
)
def test_a_grid_of_another_spacing_keeps_box_and_centre(shape, spacing, wanted):
    affine = oblique(spacing)
    new_shape, grid = prepare.spacing_grid(shape, affine, wanted)
    for axis in range(3):
        length = shape[axis] * spacing[axis]
        assert abs(new_shape[axis] * wanted[axis] - length) <= max(0.501 * wanted[axis], 0) or (
            new_shape[axis] == 1
        )
    centres = [
        a @ torch.tensor([*((n - 1) / 2 for n in s), 1.0], dtype=torch.float64)
        for a, s in ((affine, shape), (grid, new_shape))
    ]
    torch.testing.assert_close(*centres)
    found = torch.linalg.vector_norm(grid[:3, :3], dim=0)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


def test_labels_win_by_the_largest_share():
    labels = torch.randint(0, 4, (6, 7, 5)) * 200
    target = oblique((0.7, 0.8, 1.1))
    start, shape = oblique((1.0, 1.0, 1.5)), (9, 9, 9)
    hot = torch.stack([labels == v for v in (0, 200, 400, 600)]).double()
    shares = torch.cat(
        [ops.resample(h[None], start, target, shape, fill=float(i == 0)) for i, h in enumerate(hot)]
    )
    ours = prepare.resample_labels(labels, start, target, shape)
    clear = shares.topk(2, 0).values
    clear = clear[0] - clear[1] > 1e-5
    assert clear.sum() > 100
    assert torch.equal(ours[clear], 200 * shares.argmax(0)[clear])
    assert ours.dtype == labels.dtype
    assert torch.equal(prepare.resample_labels(labels, start, start, labels.shape), labels)


@given(
    st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 12)] * 3), st.integers(-9, 15)
)
def test_crop_or_pad_keeps_every_voxel_where_it_is(shape, box, center):
    volume = torch.arange(1, math.prod(shape) + 1).view(1, *shape)
    affine = oblique((1.0, 2.0, 3.0))
    boxed, grid = prepare.crop_or_pad(volume, affine, box, center_vox=(center, 2, 3), fill=-5)
    expected = ops.resample(volume, affine, grid, box, mode="nearest", fill=-5)
    assert torch.equal(boxed, expected)
    larger = tuple(n + 3 for n in shape)
    there = prepare.crop_or_pad(volume, affine, larger)
    back = prepare.crop_or_pad(*there, shape)
    assert torch.equal(back[0], volume)
    torch.testing.assert_close(back[1], affine)


# Scar


def test_lesions_are_brighter_than_six_deviations():
    image = torch.zeros(20, 20)
    reference = torch.zeros(20, 20, dtype=torch.bool)
    reference[0, :10] = True
    image[0, :10] = torch.tensor([9.0, 11.0]).repeat(5)  # mean 10, sample SD sqrt(10 / 9)
    limit = 10 + 6 * math.sqrt(10 / 9)
    image[5, 5], image[5, 6], image[9, 9] = limit + 1e-4, limit - 1e-4, 100.0
    myocardium = torch.zeros(20, 20, dtype=torch.bool)
    myocardium[4:7] = True
    found = prepare.lesion_mask(image, myocardium, reference)
    assert found.nonzero().tolist() == [[5, 5]]
    image[0, :10] = 10.0
    image[5, 5] = 10.0
    assert not prepare.lesion_mask(image, reference, reference).any()  # strictly brighter


def test_reference_sector_is_the_darkest_sixth():
    ring = ellipse((80, 80), (41, 38), 25) & ~ellipse((80, 80), (41, 38), 17)
    i, j = torch.meshgrid(torch.arange(80.0), torch.arange(80.0), indexing="ij")
    turn = torch.rad2deg(torch.atan2(j - 38, i - 41)) % 360
    image = 100 + (turn - 130).abs().clamp(max=50)
    sector = prepare.reference_sector(image, ring)
    assert (sector & ~ring).sum() == 0
    assert sector.sum() / ring.sum() == pytest.approx(1 / 6, abs=0.02)
    assert turn[sector].min().item() == pytest.approx(100, abs=3)
    assert turn[sector].max().item() == pytest.approx(160, abs=3)
    image[ring & (turn > 300)] = 1000
    lesions = prepare.lesion_mask(image, ring)
    assert torch.equal(lesions, ring & (turn > 300))
    # A ring seen with pixels of half the height is the same ring.
    squashed = prepare.reference_sector(image[:, ::2], ring[:, ::2], spacing_mm=(1.0, 2.0))
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
        labels = prepare.patch_labels(given_masks, start, (4, 4), volume_index=index)
        assert labels.tolist() == expected


@pytest.mark.parametrize(("turned", "ratio"), [(0.0, 1.0), (0.4, 0.7), (-0.5, 0.65)])
def test_alignment_brings_the_masks_together(turned, ratio):
    fixed = ellipse((120, 120), (62, 55), 26, turned, ratio)
    fixed &= ~ellipse((120, 120), (62, 55), 17, turned, ratio)
    moving = ellipse((96, 80), (40, 33), 14, 0.1, 0.9) & ~ellipse((96, 80), (40, 33), 9, 0.1, 0.9)
    to_moving, to_fixed = oblique((1.37, 1.37, 8.0)), oblique((0.75, 0.75, 5.0))
    to_moving[:3, 3] += 11.0
    found = prepare.align_masks(moving, fixed, to_moving, to_fixed)
    assert found.dice >= found.initial_dice
    assert found.dice > 0.94
    grid = found.moving_from_fixed @ to_fixed
    moved = ops.resample(moving[None].double(), to_moving, grid, fixed.shape, mode="nearest")[0]
    assert metrics.dice(moved > 0.5, fixed).item() == found.dice


def test_alignment_finds_a_known_affine():
    # One shape under two grids: the world matrix between them is known.
    to_fixed, to_moving = diagonal(1.0, 1.0, 5.0), diagonal(1.3, 1.3, 5.0)
    truth = EYE.clone()
    truth[:2, :2] = torch.tensor([[1.05, -0.2], [0.15, 0.9]], dtype=torch.float64)
    truth[:2, 3] = torch.tensor([9.0, -4.0], dtype=torch.float64)
    i, j = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")

    def shape(points):
        x, y = points[..., 0] - 60, points[..., 1] - 66
        away = (x.square() + 1.5 * y.square()).sqrt()
        return (away < 30 + 0.25 * x) & (away > 18)

    points = torch.stack((i, j, torch.zeros_like(i), torch.ones_like(i)), -1).double()
    fixed = shape(points @ to_fixed.T)
    moving = shape(points @ to_moving.T @ torch.linalg.inv(truth).T)
    found = prepare.align_masks(moving, fixed, to_moving, to_fixed)
    at_truth = ops.resample(
        moving[None].double(), to_moving, truth @ to_fixed, fixed.shape, mode="nearest"
    )[0]
    assert found.dice >= metrics.dice(at_truth > 0.5, fixed).item()  # pixels allow no more
    assert found.dice > 0.97
    rim = (points @ to_fixed.T)[fixed]
    error = ((found.moving_from_fixed - truth) @ rim.T)[:2].norm(dim=0)
    assert error.max() < 1.0  # less than a pixel, in mm
    torch.testing.assert_close(found.moving_from_fixed[2:], EYE[2:])


def test_alignment_starts_with_centroid_and_area():
    a, b = ellipse((60, 60), (20, 22), 7), ellipse((60, 60), (35, 30), 14)
    found = prepare.align_masks(a, b, EYE, EYE)
    assert found.initial_dice > 0.95
    middle = found.moving_from_fixed @ torch.tensor([35.0, 30, 0, 1], dtype=torch.float64)
    torch.testing.assert_close(middle[:2], torch.tensor([20.0, 22]).double(), atol=0.2, rtol=0)


# Labels and slices


def test_slice_maps_of_paper_and_code():
    assert prepare.transfer_slices(9, 15) == [0, 1, 3, 5, 6, 8, 10, 11, 13]
    assert prepare.transfer_slices(9, 15, form="code") == [1, 2, 4, 6, 7, 9, 11, 12, 14]


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["paper", "code"]))
def test_slice_maps_stay_inside_and_in_order(source, target, form):
    slices = prepare.transfer_slices(source, target, form=form)
    assert len(slices) == source
    assert slices == sorted(slices)
    assert 0 <= slices[0] <= slices[-1] < target


def test_remap_labels():
    labels = torch.tensor([[0.0, 500.0], [200.0, 600.0]])
    for given_labels in (labels, labels.short(), labels.long()):
        renamed = prepare.remap_labels(given_labels, {500: 1, 200: 2, 600: 3})
        assert renamed.tolist() == [[0, 1], [2, 3]]
        assert renamed.dtype == torch.uint8
    swapped = prepare.remap_labels(torch.tensor([1, 3, 2]), {1: 3, 2: 2, 3: 1}, dtype=torch.int16)
    assert swapped.tolist() == [3, 1, 2]


# Messages

SLICE, VOLUME = torch.zeros(4, 4), torch.zeros(1, 4, 4, 4)
FEW = torch.zeros(8, 8)
FEW[0, :3] = 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: prepare.z_score(VOLUME > 0), TypeError, "real tensor, not bool; got torch.bool"),
        (lambda: prepare.z_score(SLICE), ValueError, r"must be \(C, \*S\); got \(4, 4\)"),
        (lambda: prepare.min_max(VOLUME, over="row"), ValueError, "volume, slice; got 'row'"),
        (lambda: prepare.min_max(VOLUME, mask=SLICE), ValueError, r"mask must be \(4, 4, 4\)"),
        (lambda: prepare.clip_percentiles(VOLUME, 9, 1), ValueError, "got low 9, high 1"),
        (lambda: prepare.histogram_landmarks([]), ValueError, "at least one image; got none"),
        (lambda: prepare.histogram_landmarks([SLICE[:0]]), ValueError, "image 0 has no voxel"),
        (lambda: prepare.histogram_landmarks([SLICE]), ValueError, "image 0 has one intensity"),
        (lambda: prepare.standardise_histogram(SLICE, SLICE[0]), ValueError, r"must be \(13,\)"),
        (
            lambda: prepare.standardise_histogram(SLICE, torch.zeros(13), mask=VOLUME),
            ValueError,
            "the volume's shape",
        ),
        (
            lambda: prepare.standardise_histogram(SLICE, torch.zeros(13), mask=SLICE),
            ValueError,
            "the mask is empty",
        ),
        (lambda: prepare.brain_union(SLICE, FEW), ValueError, r"one shape; got \(4, 4\), \(8, 8\)"),
        (lambda: prepare.correct_bias(SLICE, SLICE, (1, 1)), ValueError, r"volume \(I, J, K\)"),
        (
            lambda: prepare.correct_bias(VOLUME[0], VOLUME[0], (1, 1, 1)),
            ValueError,
            "the mask is empty",
        ),
        (
            lambda: prepare.resample_to_spacing(VOLUME, EYE, (1, 0, 1)),
            ValueError,
            r"one positive entry per space axis \(3\); got",
        ),
        (lambda: prepare.resample_labels(SLICE, EYE, EYE, (4, 4)), TypeError, "bool or integer"),
        (lambda: prepare.crop_or_pad(VOLUME, EYE, (4, 4)), ValueError, r"axis \(3\), .* \(4, 4\)"),
        (lambda: prepare.lesion_mask(VOLUME, SLICE, SLICE), ValueError, r"one slice \(I, J\)"),
        (lambda: prepare.lesion_mask(SLICE, FEW, SLICE), ValueError, r"myocardium must have .*4\)"),
        (lambda: prepare.lesion_mask(FEW, FEW, FEW), ValueError, "at least 10 pixels; got 3"),
        (lambda: prepare.lesion_mask(FEW, FEW), ValueError, "no sector .* the myocardium has 3"),
        (
            lambda: prepare.reference_sector(FEW, FEW, degrees=0),
            ValueError,
            "1 to 360 degrees; got 2 and 0",
        ),
        (
            lambda: prepare.patch_labels(SLICE, torch.zeros(1, 2).long(), (2, 2), share=0),
            ValueError,
            r"share must lie in \(0, 1\]; got 0",
        ),
        (lambda: prepare.align_masks(SLICE, FEW, EYE, EYE), ValueError, "moving must be .* empty"),
        (lambda: prepare.remap_labels(FEW, {2: 1}), ValueError, r"names \[0, 2\]; got also 1.0"),
        (lambda: prepare.remap_labels(FEW, {1: 500}), ValueError, r"fit torch.uint8; got \[500\]"),
        (lambda: prepare.transfer_slices(0, 3), ValueError, "must have slices; got 0 and 3"),
        (lambda: prepare.transfer_slices(3, 3, form="x"), ValueError, "paper, code; got 'x'"),
    ],
)
def test_messages(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_missing_simpleitk_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "SimpleITK", None)
    with pytest.raises(ImportError, match=r"pip install cmrfast\[n4\]"):
        prepare.correct_bias(torch.ones(4, 4, 4), torch.ones(4, 4, 4), (1, 1, 1))


def test_alignment_works_where_gradients_are_switched_off():
    mask = torch.zeros(24, 24)
    mask[6:15, 8:16] = 1
    grid = torch.eye(4)
    wanted = prepare.align_masks(mask, mask.roll(2, 0), grid, grid)
    with torch.inference_mode():
        found = prepare.align_masks(mask.clone(), mask.roll(2, 0), grid, grid)
    assert torch.equal(found.moving_from_fixed, wanted.moving_from_fixed)
