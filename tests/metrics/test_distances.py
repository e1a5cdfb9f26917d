"""Distances of surfaces and centres against SciPy, MONAI and SimpleITK, and closed forms."""

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cmrfast import metrics
from cmrfast.metrics import distance
from tests.support.masks import ball, blobs, masks, same

SPACINGS = [(1.0, 1.0, 1.0), (0.75, 0.75, 5.0), (3.0, 0.72, 0.72)]


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


@pytest.fixture
def by_search(monkeypatch):
    """However small surfaces are, they are searched."""
    monkeypatch.setattr(distance, "_FEW", -1)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(3))
def test_surface_distances_equal_scipy(spacing, seed):
    a, b = blobs((30, 26, 17), 0.1, seed), blobs((30, 26, 17), 0.03, seed + 50, sigma=1.0)
    ours = metrics.surface_distances(a, b, spacing)
    same([*ours, metrics.average_surface_distance(a, b, spacing)], by_scipy(a, b, spacing))


@pytest.mark.usefixtures("by_search")
def test_surface_distances_of_masks_far_apart():
    # More rows around each voxel than the other mask has voxels: the search ends by those.
    a, b = ball((90, 80, 12), (8, 8, 6), 6), torch.zeros(90, 80, 12, dtype=torch.bool)
    b[88, 77, 1] = True
    same(metrics.surface_distances(a, b, (0.7, 1.1, 3))[:3], by_scipy(a, b, (0.7, 1.1, 3))[:3])


@settings(deadline=None)
@given(masks(3), st.sampled_from([(1.0, 1.0, 1.0), (0.5, 2.0, 7.0)]))
def test_all_pairs_and_a_search_give_the_same_bits(pair, spacing):
    a, b = pair
    if not b.any():
        return
    both = []
    for few in (-1, 1 << 40):
        with pytest.MonkeyPatch.context() as changed:
            changed.setattr(distance, "_FEW", few)
            both.append(distance.distances_to(b, a.nonzero(), spacing))
    assert torch.equal(*both)


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
