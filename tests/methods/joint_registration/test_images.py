"""Registration of two stacks: a known motion is undone, its matrices in mm say the same."""

import pytest
import torch

from cmrfast.data import Volume, read_nifti
from cmrfast.methods.joint_registration.grid import label_view, network_view, shared_grid
from cmrfast.methods.joint_registration.images import register, warp_image, world_transforms
from cmrfast.models import build
from cmrfast.models.joint_registration import Recipe
from cmrfast.ops import affine_sample, resample
from tests.support.joint_registration_cases import IDENTITY, NARROW, SMALL, Knowing


def test_matrices_in_mm_say_what_theta_says(cases):
    cine, lge = cases[2].image("C0"), cases[2].image("LGE")
    grid = shared_grid(cine, lge, SMALL)
    # Turned, sheared and moved, and drawn in so far that nothing comes from outside the square.
    theta = 0.6 * IDENTITY + 0.1 * (2 * torch.rand(len(grid.pairs), 2, 3) - 1)
    seen = resample(lge.data.float(), lge.world_from_vox, grid.world_from_vox, grid.shape)
    expected = affine_sample(seen.movedim(-1, 0), theta)
    for p, transform in enumerate(world_transforms(grid, theta)):
        onto, source = grid.world_from_vox.clone(), lge.world_from_vox.clone()
        onto[:, 3] += p * onto[:, 2]
        source[:, 3] += grid.pairs[p].target * source[:, 2]
        found = resample(
            lge.data[..., grid.pairs[p].target].float(), source, transform @ onto, (56, 56)
        )
        torch.testing.assert_close(found, expected[p], rtol=1e-4, atol=0.02)  # of 700
        middle = torch.tensor([28.0, 28, 0, 1]).double()
        vox = source.inverse() @ transform @ onto @ middle
        assert vox[2].item() == pytest.approx(0, abs=1e-6)  # a slice stays in its plane


def test_images_and_labels_follow_a_known_motion(cases):
    """An LGE stack that is the cine stack moved by 6 mm along its rows comes back onto it."""
    cine, mask = cases[0].image("C0"), cases[0].label("C0")
    steps = round(6 / cine.spacing_mm[0])
    lge, lge_mask = (v.with_data(v.data.roll(steps, 1)) for v in (cine, mask))
    recipe = Recipe(side=64, spacing_mm=cine.spacing_mm[0])
    theta = torch.tensor([[1.0, 0, 0], [0, 1, 2 * steps / 64]])
    found = register(oracle_of(mask, lge_mask, recipe, theta), cine, lge, recipe)
    inner = (slice(None), slice(12, -12), slice(12, -12), slice(1, -1))
    torch.testing.assert_close(
        found.warped.data[inner], cine.data[inner].float(), rtol=0, atol=1e-2 * cine.data.max()
    )
    moved = warp_image(found.grid, found.lge_from_cine, lge_mask, cine, labels=True)
    assert moved.data.dtype == lge_mask.data.dtype
    assert torch.equal(moved.data[inner], mask.data[inner])
    shift = (
        found.lge_from_cine[0][:3, 3]
        + (found.lge_from_cine[0][:3, :3] - torch.eye(3)) @ (cine.world_from_vox[:3, 3])
    )
    assert shift.norm().item() == pytest.approx(steps * cine.spacing_mm[0], rel=1e-4)


def oracle_of(mask, lge_mask, recipe, theta):
    grid = shared_grid(mask, lge_mask, recipe)
    return Knowing(label_view(grid, mask, lge_mask), theta).eval()


def test_lge_slices_beside_no_cine_slice_are_named(cases):
    cine, lge = cases[0].image("C0"), cases[0].image("LGE")
    start = cine.world_from_vox.clone()
    start[:, 3] += 4 * start[:, 2]
    few = Volume(cine.data[..., 4:7], start)  # 24 mm
    model = build("joint_registration", **vars(NARROW)).eval()
    found = register(model, few, lge, SMALL)
    whole = shared_grid(cine, lge, SMALL)
    expected = [p.target for p in whole.pairs if 4 <= p.source < 7]
    assert [p.target for p in found.grid.pairs] == expected
    assert found.grid.unpaired == tuple(sorted(set(range(lge.shape[2])) - set(expected)))
    assert (found.lge_labels.data[..., list(found.grid.unpaired)] == 0).all()
    seen, part = (network_view(g, v, lge, SMALL) for g, v in ((whole, cine), (found.grid, few)))
    first = expected[0] - whole.pairs[0].target
    assert torch.equal(part.lge, seen.lge[first : first + len(expected)])


def test_real_oblique_stacks(real_images):
    folder = real_images / "sunnybrook_cine" / "SCD0000101"
    cine = read_nifti(folder / "SCD0000101_frame08.nii.gz")
    recipe = Recipe(side=96, spacing_mm=1.3)
    grid = shared_grid(cine, cine, recipe)
    assert [(p.source, p.target) for p in grid.pairs] == [(k, k) for k in range(cine.shape[2])]
    seen = network_view(grid, cine, cine, recipe)
    torch.testing.assert_close(seen.cine, seen.lge, rtol=0, atol=1e-4)
    model = build("joint_registration", **vars(NARROW)).eval()
    found = register(model, cine, cine, recipe)
    inner = (slice(None), slice(4, -4), slice(4, -4))
    error = (found.warped.data - cine.data.float())[inner].abs().max()
    assert error < 1e-2 * cine.data.max()  # theta is the identity before training
