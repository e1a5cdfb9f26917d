"""Patches on lesions and elsewhere, as often as asked."""

import pytest
import torch

from cmrfast import ops
from cmrfast.methods.new_lesions.sampling import LesionSampler


def masks():
    region = torch.zeros(30, 40, 20, dtype=torch.bool)
    region[5:25, 5:35, 3:17] = True
    lesion = torch.zeros_like(region)
    lesion[10:12, 30:33, 4] = True
    return [lesion, torch.zeros_like(region)], [region, region]


def test_lesion_patches_hold_lesions_as_often_as_asked():
    targets, regions = masks()
    sampler = LesionSampler(targets, regions, (7, 8, 5), on_target=0.8, per_patient=2000)
    windows = sampler.windows(0, torch.arange(len(sampler)))
    assert windows.volume_index.bincount().tolist() == [2000, 2000]  # of every patient exactly
    found = ops.window_counts(
        torch.stack(targets), windows.start_vox, (7, 8, 5), volume_index=windows.volume_index
    )
    held = (found > 0)[windows.volume_index == 0].float().mean().item()
    assert held == pytest.approx(0.8, abs=0.04)
    assert (found[windows.volume_index == 1] == 0).all()


def test_patches_elsewhere_are_centred_in_the_region():
    targets, regions = masks()
    sampler = LesionSampler(targets, regions, (7, 8, 5), on_target=0.0, per_patient=500)
    windows = sampler.windows(3, torch.arange(1000))
    center = windows.start_vox + torch.tensor([3, 4, 2])
    assert regions[0][tuple(center.T)].all()
    later = sampler.windows(3, torch.tensor([999, 5]))
    assert torch.equal(later.start_vox, windows.start_vox[[999, 5]])


def test_patients_without_any_target():
    _, regions = masks()
    empty = [torch.zeros_like(region) for region in regions]
    start = LesionSampler(empty, regions, (7, 8, 5)).windows(0, torch.arange(100)).start_vox
    center = start + torch.tensor([3, 4, 2])
    assert regions[0][tuple(center.T)].all()


def test_sampler_messages():
    targets, regions = masks()
    with pytest.raises(ValueError, match="one of each per patient; got 2 and 1"):
        LesionSampler(targets, regions[:1], (3, 3, 3))
    with pytest.raises(ValueError, match=r"on_target must be in \[0, 1\]"):
        LesionSampler(targets, regions, (3, 3, 3), on_target=2)
    with pytest.raises(ValueError, match=r"regions must not be empty; patients \[1\] are"):
        LesionSampler(targets, [regions[0], targets[1]], (3, 3, 3))
