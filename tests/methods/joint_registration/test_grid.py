"""The grid that cine and LGE slices share: which are paired, and what the network sees of them."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from cmrfast.data import Volume
from cmrfast.methods.joint_registration.grid import network_view, shared_grid
from tests.support.joint_registration_cases import SMALL


def test_the_networks_view_in_plain_torch(cases):
    case = cases[0]
    cine, lge = case.image("C0"), case.image("LGE")
    grid = shared_grid(cine, lge, SMALL)
    found = network_view(grid, cine, lge, SMALL)
    first = [n // 2 - 28 for n in lge.shape[:2]]  # LGE pixels are the network's
    start = grid.pairs[0].target
    window = lge.data[0, first[0] : first[0] + 56, first[1] : first[1] + 56].double()
    vox_from_vox = cine.world_from_vox.inverse() @ grid.world_from_vox
    at = torch.cartesian_prod(*(torch.arange(float(n)).double() for n in grid.shape))
    at = (at @ vox_from_vox[:3, :3].T + vox_from_vox[:3, 3]).view(*grid.shape, 3)
    size = torch.tensor(cine.shape)
    inside = ((at >= -0.5) & (at < size - 0.5)).all(-1)
    whole = nn.functional.grid_sample(
        cine.data.double()[None],
        ((2 * at + 1) / size - 1).flip(-1)[None],
        padding_mode="border",
        align_corners=False,
    )[0, 0]
    for p in range(len(grid.pairs)):
        for image, mask, seen in (
            (window[..., start + p], torch.ones(56, 56, dtype=torch.bool), found.lge),
            (whole[..., p], inside[..., p], found.cine),
        ):
            low, high = np.percentile(image[mask].numpy(), (1, 99))
            expected = torch.where(mask, (image.clamp(low, high) - low) / (high - low), 0)
            torch.testing.assert_close(seen[p, 0], expected.float(), rtol=0, atol=2e-4)


def test_pairs_by_index_where_headers_have_no_positions(cases):
    cine, lge = cases[0].image("C0"), cases[0].image("LGE")
    lost = Volume(lge.data, torch.diag(torch.tensor([*lge.spacing_mm, 1.0])))
    far = lost.world_from_vox.clone()
    far[:3, 3] = 5000
    assert not shared_grid(cine, Volume(lge.data, far), SMALL).pairs
    recipe = replace(SMALL, pairing="index")
    grid = shared_grid(cine, Volume(lge.data, far), recipe)
    few, many = cine.shape[2], lge.shape[2]
    assert [p.source for p in grid.pairs] == [i * few // many for i in range(many)]
    assert [p.target for p in grid.pairs] == list(range(many))
    seen = network_view(grid, cine, lost.with_data(lge.data), recipe)
    assert seen.cine.shape == (many, 1, 56, 56)
    # The middle of a cine slice lies in the middle of its partner.
    middle = grid.cine_world_from_vox @ torch.tensor(
        [(cine.shape[0] - 1) / 2, (cine.shape[1] - 1) / 2, 6, 1], dtype=torch.float64
    )
    partner = far @ torch.tensor([(lge.shape[0] - 1) / 2, (lge.shape[1] - 1) / 2, 6, 1]).double()
    torch.testing.assert_close(middle, partner)
    whole = torch.ones(1, *grid.shape)
    back = grid.onto_cine(whole, grid.world_from_vox, cine.shape[:2])
    assert back.shape == cine.data.shape
    assert (back.flatten(0, 2).amax(0) == 1).all()  # each cine slice has a partner
