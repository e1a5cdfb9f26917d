"""Slices of two stacks paired in the world, or by index."""

import numpy as np
import pytest
import torch

from cmrfast.data import Volume, read_nifti
from cmrfast.data.datasets import slice_pairs, slice_pairs_by_index
from cmrfast.data.datasets.slices import world_from_slice


def stack(matrix, slices):
    return Volume(torch.zeros(1, 6, 4, slices), torch.from_numpy(matrix))


def test_slices_pair_in_the_world_whatever_the_axes():
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    thick, thin = np.eye(4), np.eye(4)
    thick[:3, :3], thin[:3, :3] = rotation * [1, 1, 12], rotation * [0.7, 0.7, 5]
    thin[:3, 3] = rotation[:, 2] * 6.5  # 5 mm slices at 6.5, 11.5, ... mm along the normal
    pairs = slice_pairs(stack(thick, 3), stack(thin, 8))
    assert [(p.source, p.target) for p in pairs] == [(1, 0), (1, 1), (1, 2), (2, 3), (2, 4)]
    assert [round(p.apart_mm, 6) for p in pairs] == [5.5, 0.5, 4.5, 2.5, 2.5]
    backwards = thin @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 7], [0, 0, 0, 1]])
    mirrored = slice_pairs(stack(thick, 3), stack(backwards, 8))
    assert {(p.source, 7 - p.target) for p in mirrored} == {(p.source, p.target) for p in pairs}


def test_a_slice_alone_lies_where_it_lay_in_its_stack():
    matrix = np.eye(4)
    matrix[:3] = np.random.default_rng(0).normal(size=(3, 4))
    volume = stack(matrix, 5)
    alone = world_from_slice(volume, 3) @ torch.tensor([2.0, 1, 0, 1]).double()
    torch.testing.assert_close(alone, volume.world_from_vox @ torch.tensor([2, 1, 3, 1]).double())
    assert torch.equal(volume.world_from_vox, torch.from_numpy(matrix))


def test_slices_pair_by_index_as_the_paper_says():
    targets = [pair.target for pair in slice_pairs_by_index(9, 15)]
    assert targets == [0, 1, 3, 5, 6, 8, 10, 11, 13]
    with pytest.raises(ValueError, match="slice_pairs_by_index: both counts must be positive"):
        slice_pairs_by_index(0, 3)


def test_real_t1_and_lge_slices_pair(real_images):
    t1 = read_nifti(real_images / "synthetic_lge_t1/molli_T1map_postGd.nii.gz")
    lge = read_nifti(real_images / "synthetic_lge_t1/lge_psir.nii.gz")
    pairs = slice_pairs(t1, lge)
    assert len(pairs) >= 15
    assert all(pair.apart_mm <= 5.01 for pair in pairs)
