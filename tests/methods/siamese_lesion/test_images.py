"""siamese_lesion on volumes: patches and their map lie where they should."""

import pytest
import torch
from torch import nn

from cmrfast.data import Volume, read_nifti, write_nifti
from cmrfast.infer.siamese_lesion import classify, patch_centers
from cmrfast.models.siamese_lesion import Config


class Middle(nn.Module):
    """The logit of lesion is the patch's middle pixel."""

    def __init__(self, patch):
        super().__init__()
        self.config = Config(patch=patch)
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, t1, lge=None):
        middle = t1[:, 0, self.config.patch // 2, self.config.patch // 2]
        return {"logits": torch.stack((torch.zeros_like(middle), middle), 1)}


def test_centres_move_with_the_heart():
    wall = torch.zeros(60, 70)
    wall[20:40, 25:50] = 1
    wall[26:34, 32:43] = 0
    centers = patch_centers(wall, 6)
    assert wall[tuple(centers.T)].all()
    assert ((centers - centers[0]) % 6 == 0).all()
    assert 0.6 < len(centers) * 36 / wall.sum() < 1.6
    moved = patch_centers(wall.roll((7, -5), (0, 1)), 6)
    assert torch.equal(moved, centers + torch.tensor([7, -5]))
    assert patch_centers(torch.zeros(9, 9), 6).shape == (0, 2)


def oblique_ramp():
    """A map that grows by 4 ms a mm along one direction of the scanner; and a ring on it."""
    turn = torch.linalg.qr(torch.tensor([[3.0, 1, 0], [-1, 3, 1], [0.5, -1, 4]]).double())[0]
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = turn @ torch.diag(torch.tensor([1.7, 1.3, 9.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([-40.0, 12.0, 300.0])
    way = 4 * (affine[:3, 0] / 1.7 + affine[:3, 1] / 1.3) / 2**0.5
    vox = torch.cartesian_prod(*(torch.arange(n).double() for n in (64, 80, 2)))
    world = vox @ affine[:3, :3].T + affine[:3, 3]
    middle = torch.tensor([32.0, 40, 0.5]).double() @ affine[:3, :3].T + affine[:3, 3]
    t1 = (1000 + (world - middle) @ way).view(1, 64, 80, 2)
    away = ((world - middle) @ affine[:3, :2] / torch.tensor([1.7, 1.3])).norm(dim=1)
    ring = ((away > 20) & (away < 31)).view(1, 64, 80, 2)
    ring[..., 1] &= torch.arange(64)[:, None] < 40
    return Volume(t1, affine), Volume(ring.byte(), affine), way, middle


def test_patches_and_map_lie_where_they_say():
    t1, ring, way, middle = oblique_ramp()
    scale = {"mean_ms": 1000.0, "sd_ms": 40.0}
    found = classify(Middle(64).eval(), t1, ring, **scale, batch=7)
    expected = ((found.center_mm - middle) @ way / 40.0).sigmoid().float()
    torch.testing.assert_close(found.probability, expected, rtol=1e-4, atol=1e-5)
    assert set(found.slices.tolist()) == {0, 1}
    assert ((found.center_mm - middle).norm(dim=1) < 34).all()

    assert found.map.shares_grid(t1)
    values, wall = found.map.data, ring.data > 0
    assert (values[~wall] == 0).all()
    assert (values[wall] > 0).all()
    vox = wall[0].nonzero()
    world = vox.double() @ t1.world_from_vox[:3, :3].T + t1.world_from_vox[:3, 3]
    weight = torch.exp(-torch.cdist(world, found.center_mm).square() / (2 * 6.0**2))
    weight *= vox[:, 2:] == found.slices
    expected = (weight * found.probability).sum(1) / weight.sum(1)
    torch.testing.assert_close(values[wall], expected.float(), rtol=0, atol=2e-3)

    halves = classify(Middle(64).eval(), t1, ring, **scale, batch=1000)
    assert torch.equal(halves.map.data, values)
    sparse = classify(Middle(64).eval(), t1, ring, **scale, stride=10, spacing_mm=1.5)
    assert len(sparse.probability) < len(found.probability) / 4


def test_a_map_without_myocardium_is_empty_and_messages():
    t1, ring, _, _ = oblique_ramp()
    nothing = classify(Middle(32), t1, ring.with_data(0 * ring.data), mean_ms=1.0, sd_ms=1.0)
    assert len(nothing.slices) == len(nothing.probability) == 0
    assert nothing.center_mm.shape == (0, 3)
    assert (nothing.map.data == 0).all()
    two = Volume(torch.cat((t1.data, t1.data)), t1.world_from_vox)
    with pytest.raises(ValueError, match=r"one channel each, on one grid; got \(2, 64, 80, 2\)"):
        classify(Middle(32), two, ring, mean_ms=1.0, sd_ms=1.0)
    moved = Volume(ring.data, torch.eye(4))
    with pytest.raises(ValueError, match="on one grid"):
        classify(Middle(32), t1, moved, mean_ms=1.0, sd_ms=1.0)


def test_a_real_map(real_images, tmp_path):
    path = real_images / "synthetic_lge_t1" / "molli_T1map_postGd.nii.gz"
    t1 = read_nifti(path)
    i, j = torch.meshgrid(torch.arange(204), torch.arange(256), indexing="ij")
    away = ((i - 100) ** 2 + (j - 120) ** 2).float().sqrt()
    wall = torch.zeros_like(t1.data, dtype=torch.uint8)
    wall[..., 5] = (away > 16) & (away < 24)
    found = classify(Middle(64).eval(), t1, t1.with_data(wall), mean_ms=500.0, sd_ms=60.0)
    assert set(found.slices.tolist()) == {5}
    assert ((found.map.data > 0) == (wall > 0)).all()
    write_nifti(tmp_path / "map.nii.gz", found.map, like=path)
    assert read_nifti(tmp_path / "map.nii.gz").shares_grid(t1)
