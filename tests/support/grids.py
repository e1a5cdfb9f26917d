"""Grids in the world."""

import torch

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
