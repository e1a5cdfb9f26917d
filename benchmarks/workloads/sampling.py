"""Affine sampling of images and resampling of volumes."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import peers
from benchmarks.workloads.case import Case, Way
from cmrfast import ops


def affine_2d(factor: float = 1, *, backward: bool = False) -> Case:
    """Affine sampling of (16, 4, 224²), forward, or with gradients in images and theta."""
    batch = max(1, int(16 * factor))
    images = torch.randn(batch, 4, 224, 224, requires_grad=backward)
    theta = torch.tensor([[0.9, 0.2, 0.05], [-0.2, 0.9, -0.1]]) + 0.03 * torch.randn(batch, 2, 3)
    theta.requires_grad_(backward)

    def plain(images: Tensor, theta: Tensor) -> Tensor:
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)

    ways: dict[str, Callable[..., Tensor]] = {
        "cmrfast": ops.affine_sample,
        "torch": plain,
        "torch.compile": torch.compile(plain),
    }
    n = images.numel() * 4
    if not backward:
        ways |= peers.kornia_affine()
        timed = {k: lambda w=w: [w(images, theta)] for k, w in ways.items()}
        return Case(timed, moved=2 * n, fresh=n, tolerance=1e-3)
    pull = torch.randn(images.shape)

    def pulled(way: Callable[..., Tensor]) -> Way:
        return lambda: torch.autograd.grad(way(images, theta), (images, theta), pull)

    timed = {k: pulled(w) for k, w in ways.items()}
    return Case(timed, moved=6 * n, fresh=2 * n, tolerance=3e-2)


def resample_3d(factor: float = 1, *, rotated: bool = False) -> Case:
    """182x218x182 to 225x270x225, by a general matrix or by a change of spacing."""
    shape = tuple(max(4, int(n * factor ** (1 / 3))) for n in (182, 218, 182))
    wanted = (max(4, int(n * factor ** (1 / 3))) for n in (225, 270, 225))
    to_shape = tuple(min(m, 5 * n // 4) for m, n in zip(wanted, shape, strict=True))
    volume = torch.randn(1, *shape)
    finer = torch.diag(torch.tensor([0.8, 0.8, 0.8, 1.0], dtype=torch.float64))
    if rotated:
        turn = torch.tensor([0.05, -0.03, 0.08], dtype=torch.float64)
        skew = torch.zeros(3, 3, dtype=torch.float64)
        for a, b, t in zip((1, 0, 0), (2, 2, 1), turn, strict=True):
            skew[a, b], skew[b, a] = t, -t
        finer[:3, :3] = torch.linalg.matrix_exp(skew) @ finer[:3, :3]
    else:  # first voxels share an edge, as in torch's own upsampling, which is then a peer
        finer[:3, 3] = -0.1
    identity = torch.eye(4, dtype=torch.float64)

    def ours() -> list[Tensor]:
        return [ops.resample(volume, identity, finer, to_shape)]

    moved = 4 * (volume.numel() + torch.Size(to_shape).numel())
    ways: dict[str, Way] = {"cmrfast": ours, **peers.itk_resample(volume, finer, to_shape)}
    ways |= peers.torch_resample(volume, finer, to_shape)
    if not rotated:
        ways["torch upsample"] = lambda: [
            torch.ops.aten.upsample_trilinear3d(volume[None], to_shape, False, *[1.25] * 3)[0]
        ]
    return Case(ways, moved=moved, fresh=4 * torch.Size(to_shape).numel(), tolerance=1e-3)
