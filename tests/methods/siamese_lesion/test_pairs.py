"""T1 and LGE on one grid, their lesion, and the pairs of patches cut out of them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from cmrfast.data import write_nifti
from cmrfast.data.prepare import spacing_grid
from cmrfast.data.slices import slice_plane
from cmrfast.errors import FileError
from cmrfast.methods.siamese_lesion.alignment import align_masks
from cmrfast.methods.siamese_lesion.lesions import lesion_mask
from cmrfast.methods.siamese_lesion.pairs import lge_lesion
from cmrfast.methods.siamese_lesion.task import PAIRS
from cmrfast.models.siamese_lesion import RECIPE
from cmrfast.train.ranks import Ranks
from cmrfast.train.trainer import Trainer
from tests.support.cases import phantoms, without


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    return phantoms("t1_lge", tmp_path_factory.mktemp("full"), cases=10)


def sampled(image, at, shape):
    """Linear values at positions (2, N) of an image (I, J)."""
    found = map_coordinates(image.double().numpy(), at, order=1, mode="nearest")
    return found.reshape(shape)


def test_preparation_is_the_plain_statement(task, cohort):
    case = cohort[0]
    pairs = task.prepared(PAIRS, case)
    t1, lge = case.image("t1"), case.image("lge")
    for n, k in enumerate(pairs["t1_slice"].tolist()):
        fixed = slice_plane(lge, int(pairs["lge_slice"][n]))
        shape, grid = spacing_grid(fixed.data.shape[1:], fixed.world_from_vox, (1.0, 1.0))
        i, j = np.indices(shape)
        pixels = np.stack([i, j, np.zeros(shape), np.ones(shape)]).reshape(4, -1)
        to_lge = (np.linalg.inv(fixed.world_from_vox.numpy()) @ grid.numpy() @ pixels)[:2]
        native = slice_plane(t1, k).world_from_vox.numpy()
        to_t1 = (np.linalg.inv(native) @ pairs["t1_from_lge"][n].numpy() @ grid.numpy() @ pixels)[
            :2
        ]

        expected = sampled(t1.data[0, ..., k], to_t1, shape)
        size = np.array(t1.shape[:2])[:, None]
        inside = ((to_t1 > -0.499) & (to_t1 < size - 0.501)).all(0).reshape(shape)
        outside = ((to_t1 < -0.501) | (to_t1 > size - 0.499)).any(0).reshape(shape)
        found = pairs["t1"][n, 0].numpy()
        np.testing.assert_allclose(found[inside], expected[inside], rtol=1e-4, atol=0.05)
        assert np.isnan(found[outside]).all()
        assert 0 < inside.sum() < inside.size

        pale = sampled(fixed.data[0], to_lge, shape)
        scaled = (pale - pale.mean()) / pale.std()
        np.testing.assert_allclose(pairs["lge"][n, 0].numpy(), scaled, atol=1e-3)
        for name, file in (("myocardium", "lge_myocardium"), ("lesion", "lge_lesion")):
            mask = slice_plane(case.label(file), int(pairs["lge_slice"][n])).data[0]
            share = sampled(mask, to_lge, shape)
            sure = abs(share - 0.5) > 1e-4
            assert np.array_equal(pairs[name][n].numpy()[sure], (share > 0.5)[sure])

        moving = slice_plane(case.label("t1_myocardium"), k)
        wall = slice_plane(case.label("lge_myocardium"), int(pairs["lge_slice"][n]))
        alignment = align_masks(
            moving.data[0], wall.data[0], moving.world_from_vox, wall.world_from_vox
        )
        assert torch.equal(alignment.moving_from_fixed, pairs["t1_from_lge"][n])
        brought = sampled(moving.data[0], to_t1, shape) > 0.5
        drawn = pairs["myocardium"][n].numpy() > 0
        assert 2 * (brought & drawn).sum() / (brought.sum() + drawn.sum()) > 0.8


def test_lesion_is_drawn_by_brightness_where_no_mask_is(cohort):
    case = without(cohort[0], labels=["lge_lesion"])
    lge, wall, lesion = lge_lesion(case, deviations=6.0)
    reference = case.label("lge_reference").data
    for k in range(lge.shape[2]):
        healthy = lge.data[..., k][reference[..., k] > 0].double()
        bright = lge.data[..., k] > healthy.mean() + 6 * healthy.std()
        assert torch.equal(lesion.data[..., k] > 0, bright & (wall.data[..., k] > 0))
    assert lesion.data.any()
    sector = lge_lesion(without(case, labels=["lge_reference"]), deviations=6.0)[2]
    expected = lesion_mask(lge.data[0, ..., 1], wall.data[0, ..., 1], spacing_mm=lge.spacing_mm[:2])
    assert torch.equal(sector.data[0, ..., 1] > 0, expected)


@pytest.mark.parametrize("labels", [["lge_lesion"], ["lge_lesion", "lge_reference"]])
def test_the_rule_finds_the_drawn_lesions_and_nothing_where_there_is_none(full_size, labels):
    overlaps = []
    for case in full_size:
        drawn = case.label("lge_lesion").data[0] > 0
        _, wall, found = lge_lesion(without(case, labels=labels), deviations=6.0)
        for k in wall.data[0].any(0).any(0).nonzero().flatten().tolist():
            one, other = drawn[..., k], found.data[0, ..., k] > 0
            if not one.any():
                assert other.sum() <= 1, f"{case.name}, slice {k}"
            else:
                overlaps.append(2 * (one & other).sum().item() / (one.sum() + other.sum()).item())
    assert len(overlaps) > 8
    assert sum(overlaps) / len(overlaps) >= 0.8


def test_a_small_reference_is_an_error_none_is_not(cohort, tmp_path):
    case = without(cohort[0], labels=["lge_lesion"])
    reference = case.label("lge_reference")
    reference.data[..., 0] = 0
    path = tmp_path / "lge_reference.nii.gz"
    write_nifti(path, reference)
    odd = replace(case, labels={**case.labels, "lge_reference": path})
    found = lge_lesion(odd, deviations=6.0)[2].data[..., 0]
    sector = lge_lesion(without(case, labels=["lge_reference"]), deviations=6.0)[2].data[..., 0]
    assert torch.equal(found, sector)
    reference.data[0, 5, 5:8, 0] = 1
    write_nifti(path, reference)
    with pytest.raises(FileError, match=r"LGE slice 0 of subject01: .* at least 10 pixels; got 3"):
        lge_lesion(odd, deviations=6.0)


def test_distinct_slices_are_distinct(task, cohort):
    task.recipe = replace(RECIPE, distinct_slices=True)
    feed = task.feed(cohort, seed=0)
    slices = feed.patches.volume
    for epoch in range(3):
        for samples in torch.arange(len(feed)).split(6):
            rows = feed.spread(epoch, samples)
            assert slices[rows].unique().numel() == len(samples)
            kept = slices[samples].unique()
            assert torch.isin(kept, slices[rows]).all()
    rows = feed.spread(1, samples)
    assert torch.equal(task.arrange(feed, 1, samples), rows)
    assert not torch.equal(rows, feed.spread(2, samples))
    more = feed.spread(0, torch.arange(20))  # six slices only
    assert slices[more].unique().numel() == 6
    few = torch.stack([feed.first[0], feed.first[3]])
    assert torch.equal(feed.spread(0, few), few)


def test_ranks_share_the_batch_of_one_process(task, cohort):
    task.recipe = replace(RECIPE, distinct_slices=True)
    feed, order = task.feed(cohort, seed=0), SimpleNamespace(samples=lambda step: (1, samples))
    samples = torch.arange(6)

    def batch(ranks):
        trainer = SimpleNamespace(task=task, feed=feed, order=order, ranks=ranks)
        return Trainer._batch(trainer, 0)

    parts = [batch(Ranks(rank, 2)) for rank in range(2)]
    for name, whole in batch(Ranks()).items():
        assert torch.equal(torch.cat([part[name] for part in parts]), whole)
