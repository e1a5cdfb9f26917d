"""Metrics against SimpleITK, MONAI and SciPy, closed forms, and their rules for empty masks."""

import math

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from cmrfast import metrics
from cmrfast.metrics.paired import student_p

SPACINGS = [(1.0, 1.0, 1.0), (0.75, 0.75, 5.0), (3.0, 0.72, 0.72)]


def blobs(shape, share, seed, sigma=2.0):
    """Smooth random shapes that fill a share of the image."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    smooth = ndimage.gaussian_filter(noise, sigma)
    return torch.from_numpy(smooth > np.quantile(smooth, 1 - share))


def ball(shape, center, radius):
    axes = torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
    return sum((a - c) ** 2 for a, c in zip(axes, center, strict=True)) < radius**2


def masks(axes, side=9):
    """Pairs of masks of one shape, empty ones included."""
    shapes = st.tuples(*[st.integers(1, side)] * axes)
    return st.tuples(shapes, st.integers(0, 2**31), st.sampled_from([0.0, 0.05, 0.3, 1.0])).map(
        lambda given: [
            torch.rand(given[0], generator=torch.Generator().manual_seed(given[1] + i)) < given[2]
            for i in range(2)
        ]
    )


def same(a, b):
    return torch.testing.assert_close(
        torch.as_tensor(a, dtype=torch.float64),
        torch.as_tensor(b, dtype=torch.float64),
        equal_nan=True,
    )


def by_scipy(a, b, spacing):
    """ASSD, Hausdorff, HD95 and the pooled mean from SciPy's distance transform."""
    edges = [m.numpy() & ~ndimage.binary_erosion(m.numpy()) for m in (a, b)]
    to = [ndimage.distance_transform_edt(~e, sampling=spacing) for e in edges]
    directed = [to[1][edges[0]], to[0][edges[1]]]
    return (
        sum(d.mean() for d in directed) / 2,
        max(d.max() for d in directed),
        max(np.percentile(d, 95) for d in directed),
        np.concatenate(directed).mean(),
    )


# Overlap


@pytest.mark.parametrize("seed", range(3))
def test_overlap_equals_simpleitk(seed):
    sitk = pytest.importorskip("SimpleITK")
    a, b = blobs((20, 24, 9), 0.2, seed), blobs((20, 24, 9), 0.2, seed + 1)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*(sitk.GetImageFromArray(m.numpy().astype(np.uint8)) for m in (b, a)))
    same(metrics.dice(a, b), overlap.GetDiceCoefficient())
    same(metrics.jaccard(a, b), overlap.GetJaccardCoefficient())
    same(metrics.precision(a, b), 1 - overlap.GetFalseDiscoveryRate())
    same(metrics.recall(a, b), 1 - overlap.GetFalseNegativeError())


def test_overlap_equals_monai_by_class():
    monai = pytest.importorskip("monai.metrics")
    a, b = (torch.randint(0, 4, (3, 16, 16)) for _ in range(2))
    hot = [torch.nn.functional.one_hot(x).movedim(-1, 1) for x in (a, b)]
    expected = monai.compute_dice(*(h.float() for h in hot))
    same(metrics.dice(*hot, batch_axes=2), expected)
    assert metrics.dice(*hot, batch_axes=2).shape == (3, 4)


@given(masks(3), st.integers(0, 2))
def test_overlap_of_a_batch_is_that_of_its_parts_and_jaccard_is_dice(pair, batch_axes):
    a, b = pair
    for score in (metrics.dice, metrics.jaccard, metrics.precision, metrics.recall):
        whole = score(a, b, batch_axes=batch_axes)
        assert whole.shape == a.shape[:batch_axes]
        if batch_axes:
            parts = [score(x, y, batch_axes=batch_axes - 1) for x, y in zip(a, b, strict=True)]
            torch.testing.assert_close(whole, torch.stack(parts))
    score = metrics.dice(a, b)
    same(score, metrics.dice(b, a))
    same(metrics.jaccard(a, b), score / (2 - score))
    same(metrics.precision(a, b), metrics.recall(b, a))


def test_empty_masks():
    empty, full = torch.zeros(4, 4, dtype=torch.bool), torch.ones(4, 4, dtype=torch.bool)
    for score in (metrics.dice, metrics.jaccard, metrics.precision, metrics.recall):
        assert score(empty, empty) == 1
        assert score(empty, full) == score(full, empty) == 0
    for a, b in ((empty, empty), (empty, full), (full, empty)):
        assert all(math.isnan(d) for d in metrics.surface_distances(a, b, (1, 1)))
        assert math.isnan(metrics.average_surface_distance(a, b, (1, 1)))
        assert metrics.center_distance(a, b, (1, 1)).isnan()
        scores = metrics.lesion_scores(a, b, (1, 1))
        both = float(not (a.any() or b.any()))
        assert (scores.f1, scores.sensitivity, scores.precision) == (both, both, both)
    assert metrics.lesion_scores(full, empty, (1, 2)).false_volume_mm3 == 32


def test_balanced_accuracy_of_the_published_counts():
    reference = torch.tensor([1] * 117 + [0] * 105)
    for positives, negatives, balanced in ((49, 102, 69.51), (70, 103, 78.96), (84, 96, 81.61)):
        predicted = torch.zeros(222, dtype=torch.bool)
        predicted[:positives] = True
        predicted[117 + negatives :] = True
        scores = metrics.balanced_accuracy(predicted, reference)
        assert 100 * scores.balanced == pytest.approx(balanced, abs=0.01)
        assert scores.sensitivity == positives / 117
        assert scores.specificity == negatives / 105
    assert metrics.balanced_accuracy(torch.ones(222, dtype=torch.int64), reference).balanced == 0.5
    assert math.isnan(metrics.balanced_accuracy(predicted[:9], reference[:9]).balanced)


# Surfaces and centres


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(3))
def test_surface_distances_equal_scipy(spacing, seed):
    a, b = blobs((30, 26, 17), 0.1, seed), blobs((30, 26, 17), 0.03, seed + 50, sigma=1.0)
    ours = metrics.surface_distances(a, b, spacing)
    same([*ours, metrics.average_surface_distance(a, b, spacing)], by_scipy(a, b, spacing))


def test_surface_distances_of_masks_far_apart():
    # More rows around each voxel than the other mask has voxels: the search ends by those.
    a, b = ball((90, 80, 12), (8, 8, 6), 6), torch.zeros(90, 80, 12, dtype=torch.bool)
    b[88, 77, 1] = True
    same(metrics.surface_distances(a, b, (0.7, 1.1, 3))[:3], by_scipy(a, b, (0.7, 1.1, 3))[:3])


@settings(deadline=None)
@given(masks(2) | masks(3), st.sampled_from([(1.0, 1.0, 1.0), (0.5, 2.0, 7.0)]))
def test_surface_distances_equal_scipy_and_are_symmetric(pair, spacing):
    a, b = pair
    spacing = spacing[: a.dim()]
    ours = metrics.surface_distances(a, b, spacing)
    same(ours, metrics.surface_distances(b, a, spacing))
    same(metrics.center_distance(a, b, spacing), metrics.center_distance(b, a, spacing))
    if a.any() and b.any():
        same(ours, by_scipy(a, b, spacing)[:3])
        assert ours.hd95_mm <= ours.hausdorff_mm
        assert ours.assd_mm <= ours.hausdorff_mm
    if a.any():
        assert metrics.surface_distances(a, a, spacing) == (0, 0, 0)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_surface_distances_equal_monai(spacing):
    monai = pytest.importorskip("monai.metrics")
    a, b = blobs((24, 26, 17), 0.1, 1), blobs((24, 26, 17), 0.1, 2)
    hot = [m[None, None].float() for m in (a, b)]
    ours = metrics.surface_distances(a, b, spacing)
    hausdorff = monai.compute_hausdorff_distance(*hot, spacing=spacing)
    hd95 = monai.compute_hausdorff_distance(*hot, percentile=95, spacing=spacing)
    pooled = monai.compute_average_surface_distance(*hot, symmetric=True, spacing=spacing)
    # MONAI measures in float32.
    assert ours.hausdorff_mm == pytest.approx(hausdorff.item(), rel=1e-5)
    assert ours.hd95_mm == pytest.approx(hd95.item(), rel=1e-5)
    mean = metrics.average_surface_distance(a, b, spacing)
    assert mean == pytest.approx(pooled.item(), rel=1e-5)


def real_pair(folder):
    """A follow-up's lesion change against what a threshold of the difference makes of it."""
    case = folder / "open_ms_longitudinal" / "coregistered" / "patient12"
    names = ("gt", "study1_FLAIR", "study2_FLAIR", "brainmask")
    images = [nibabel.load(case / f"{name}.nii.gz") for name in names]
    truth, earlier, later, brain = (torch.from_numpy(np.asarray(i.dataobj)) for i in images)
    guess = ((later.float() - earlier.float()).abs() > 60) & (brain != 0)
    middle = (slice(None), slice(None), slice(20, 40))
    return guess[middle], (truth != 0)[middle], tuple(map(float, images[0].header.get_zooms()))


def test_distances_and_components_of_real_masks_equal_simpleitk(real_images):
    sitk = pytest.importorskip("SimpleITK")
    guess, truth, spacing = real_pair(real_images)
    images = [sitk.GetImageFromArray(m.numpy().astype(np.uint8)) for m in (guess, truth)]
    for image in images:
        image.SetSpacing(spacing[::-1])
    # Its Hausdorff distance is one between sets of voxels: ours are the surfaces.
    edges = [sitk.LabelContour(image, False) for image in images]
    hausdorff = sitk.HausdorffDistanceImageFilter()
    hausdorff.Execute(*edges)
    ours = metrics.surface_distances(guess, truth, spacing)
    assert ours.hausdorff_mm == pytest.approx(hausdorff.GetHausdorffDistance(), rel=1e-5)
    same([*ours], by_scipy(guess, truth, spacing)[:3])
    labels, count = metrics.connected_components(truth)
    found = sitk.ConnectedComponentImageFilter()
    found.SetFullyConnected(True)
    expected = sitk.GetArrayFromImage(found.Execute(images[1]))
    assert count == found.GetObjectCount()
    assert (labels.numpy() == expected).all()


def test_two_lines_and_a_shifted_disc():
    for d in (1, 4, 11):
        line = torch.zeros(32, 40, dtype=torch.bool)
        line[5] = True
        distances = metrics.surface_distances(line, line.roll(d, 0), (0.75, 0.75))
        same([*distances], [0.75 * d] * 3)
        same(metrics.average_surface_distance(line, line.roll(d, 0), (0.75, 0.75)), 0.75 * d)
    disc = ball((64, 64), (30, 30), 12)
    same(metrics.center_distance(disc, disc.roll(4, 1), (0.75, 0.75)), 3.0)
    same(metrics.center_distance(disc, disc.roll((3, 4), (0, 1)), (1.0, 1.0)), 5.0)


def test_center_distance_keeps_the_batch():
    a, b = torch.rand(2, 3, 8, 9, 5) < 0.2, torch.rand(2, 3, 8, 9, 5) < 0.2
    a[1, 2] = False
    spacing = (0.75, 1.5, 8.0)
    ours = metrics.center_distance(a, b, spacing, batch_axes=2)
    assert ours.shape == (2, 3)
    assert ours[1, 2].isnan()
    centres = [ndimage.center_of_mass(m[0, 1].numpy()) for m in (a, b)]
    same(ours[0, 1], np.linalg.norm(np.subtract(*centres) * spacing))


# Lesions


@settings(deadline=None)
@given(masks(2) | masks(3))
def test_components_equal_scipy(pair):
    labels, count = metrics.connected_components(pair[0])
    expected, number = ndimage.label(pair[0].numpy(), np.ones((3,) * pair[0].dim()))
    assert count == number
    assert (labels.numpy() == expected).all()
    assert labels.dtype == torch.int32


@pytest.mark.parametrize("share", [0.03, 0.1, 0.5])
def test_components_of_noise_and_of_a_spiral(share):
    noise = torch.rand(40, 37, 41) < share
    labels, count = metrics.connected_components(noise.int())
    expected, number = ndimage.label(noise.numpy(), np.ones((3, 3, 3)))
    assert count == number
    assert (labels.numpy() == expected).all()
    spiral = torch.zeros(41, 41, dtype=torch.bool)  # one long path through many rows
    for r in range(0, 20, 2):
        spiral[r, r : 41 - r] = spiral[r : 41 - r, 40 - r] = spiral[40 - r, r : 41 - r] = True
        spiral[r + 2 : 41 - r, r] = True
        spiral[r + 2, r : r + 3] = True
    assert metrics.connected_components(spiral)[1] == ndimage.label(spiral, np.ones((3, 3)))[1]


def test_lesion_scores_of_a_drawn_case():
    reference = torch.zeros(30, 30, 10, dtype=torch.uint8)
    reference[2:7, 2:4, 2] = 1  # 10 voxels, 1 covered: exactly a tenth
    reference[10:15, 10:15, 5] = 1  # 25 voxels, 2 covered: less than a tenth
    reference[20:24, 20:24, 3:5] = 1  # covered whole
    predicted = torch.zeros_like(reference)
    predicted[6, 3:9, 2] = 1  # 6 voxels, 1 right
    predicted[14, 13:15, 5] = 1  # 2 voxels, both right
    predicted[20:24, 20:24, 3:5] = 1
    predicted[28, 28, 8] = predicted[29, 29, 9] = 1  # joined by a corner: one false lesion
    scores = metrics.lesion_scores(predicted, reference, (0.5, 1.0, 2.0))
    assert scores == metrics.LesionScores(
        f1=2 * (2 / 3) * (3 / 4) / (2 / 3 + 3 / 4),
        sensitivity=2 / 3,
        precision=3 / 4,
        reference_count=3,
        found_count=2,
        predicted_count=4,
        false_count=1,
        reference_volume_mm3=67.0,
        predicted_volume_mm3=42.0,
        false_volume_mm3=2.0,
    )
    large = metrics.lesion_scores(predicted, reference, (0.5, 1.0, 2.0), min_volume_mm3=3.0)
    assert (large.predicted_count, large.false_count, large.found_count) == (2, 0, 2)
    assert metrics.lesion_scores(reference, reference, (1, 1, 1), overlap=1.0).f1 == 1


# Statistics


@pytest.mark.parametrize("count", [2, 3, 10, 45, 1000])
@pytest.mark.parametrize("shift", [0.0, 0.2, 3.0])
def test_paired_t_test_equals_scipy(count, shift):
    first, second = torch.randn(count).double(), torch.randn(count).double() + shift
    expected = stats.ttest_rel(first, second)
    ours = metrics.paired_t_test(first, second)
    same([ours.t, ours.p], [expected.statistic, expected.pvalue])
    assert ours.cases == count
    with_gap = metrics.paired_t_test([*first, math.nan], [*second, 1.0])
    assert with_gap == ours


@given(st.integers(1, 5000), st.floats(1e-6, 1e3))
def test_students_tail_equals_scipy(freedom, t):
    expected = 2 * stats.t.sf(t, freedom)
    assert student_p(t, freedom) == pytest.approx(expected, rel=1e-8, abs=1e-300)


def test_t_test_without_an_answer():
    assert math.isnan(metrics.paired_t_test([1.0], [2.0]).p)
    assert math.isnan(metrics.paired_t_test([1.0, 2.0], [1.0, 2.0]).p)
    assert metrics.paired_t_test([1.0, 2.0], [3.0, 4.0]) == (-math.inf, 0.0, 2)


def test_table_prints_means_stars_and_what_it_left_out():
    before, after = torch.tensor([3.0, 4.0, 6.0, 5.0]), torch.tensor([1.0, 2.0, 3.5, 3.0])
    rows = {
        "before": {"LV CD": before, "RV CD": before},
        "joint, 25": {"LV CD": after, "RV CD": before + torch.tensor([1.0, -1, 2, math.nan])},
        "STN": {"RV CD": [math.nan] * 4},
    }
    assert metrics.table(rows, title="mm", baseline="before").splitlines() == [
        "mm         LV CD          RV CD",
        "before     4.50 (1.29)    4.50 (1.29)",
        "joint, 25  2.38 (1.11)**  5.00 (2.65)",
        "STN        -              -",
        "* p < .05, ** p < .005, paired t-test against before",
        "joint, 25, RV CD: 1 of 4 cases have no value",
        "STN, RV CD: 4 of 4 cases have no value",
    ]
    assert metrics.summarise([2.0, math.nan, 4.0, 9.0]) == (5.0, math.sqrt(13), 4.0, 3, 1)


# Messages

MASK = torch.zeros(4, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: metrics.dice(MASK.float(), MASK), TypeError, "prediction must be a bool or int"),
        (lambda: metrics.dice(MASK, [1]), TypeError, "reference must be a bool .* got list"),
        (lambda: metrics.dice(MASK, MASK[:2]), ValueError, r"one shape; got \(4, 4\) and \(2, 4"),
        (lambda: metrics.dice(MASK, MASK, batch_axes=2), ValueError, "leave at least one .* got 2"),
        (
            lambda: metrics.surface_distances(MASK, MASK, (1.0,)),
            ValueError,
            r"surface_distances: spacing_mm must have one entry per space axis \(2\)",
        ),
        (lambda: metrics.surface_distances(MASK, MASK, (1, 0)), ValueError, "positive and finite"),
        (lambda: metrics.surface_distances(MASK[0], MASK[0], (1,)), ValueError, "2 or 3 axes"),
        (lambda: metrics.connected_components(MASK[0]), ValueError, "2 or 3 axes"),
        (lambda: metrics.lesion_scores(MASK[0], MASK[0], (1,)), ValueError, "2 or 3 axes"),
        (
            lambda: metrics.lesion_scores(MASK, MASK, (1, 1), overlap=0),
            ValueError,
            r"overlap must lie in \(0, 1\]; got 0",
        ),
        (
            lambda: metrics.paired_t_test([1.0], [1.0, 2.0]),
            ValueError,
            r"values of the same cases; got \(1,\) and \(2,\)",
        ),
        (lambda: metrics.table({"a": {}}, baseline="b"), ValueError, "one of a; got 'b'"),
    ],
)
def test_messages(call, error, message):
    with pytest.raises(error, match=message):
        call()
