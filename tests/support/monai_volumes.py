"""Images with MONAI's metadata."""

import torch
from monai.data import MetaTensor


def oblique_volume(shape, generator, dtype=torch.float32):
    """A MetaTensor with an oblique affine."""
    values = torch.rand(shape, generator=generator).to(dtype)
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = torch.tensor([[0.9, 0.2, 0.0], [-0.3, 1.3, 0.1], [0.0, -0.1, 2.5]])
    affine[:3, 3] = torch.tensor([-20.0, 11.0, 5.0])
    return MetaTensor(values, affine=affine)
