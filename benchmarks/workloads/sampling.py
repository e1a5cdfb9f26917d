"""Affine sampling of images, and resampling of volumes and of labels."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import peers
from benchmarks.workloads.workload import Variant, Workload
from cmrfast import ops


def affine_2d(factor: float = 1, *, backward: bool = False) -> Workload:
    """Affine sampling of (16, 4, 224²), forward only, or with gradients of images and theta."""
    batch = max(1, int(16 * factor))
    images = torch.randn(batch, 4, 224, 224, requires_grad=backward)
    theta = torch.tensor([[0.9, 0.2, 0.05], [-0.2, 0.9, -0.1]]) + 0.03 * torch.randn(batch, 2, 3)
    theta.requires_grad_(backward)

    def plain(images: Tensor, theta: Tensor) -> Tensor:
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)

    variants: dict[str, Callable[..., Tensor]] = {
        "cmrfast": ops.affine_sample,
        "torch": plain,
        "torch.compile": torch.compile(plain),
    }
    n = images.numel() * 4
    if not backward:
        variants |= peers.kornia_affine()
        timed = {k: lambda w=w: [w(images, theta)] for k, w in variants.items()}
        return Workload(timed, moved=2 * n, fresh=n, tolerance=1e-3)
    grad_output = torch.randn(images.shape)

    def with_gradients(variant: Callable[..., Tensor]) -> Variant:
        return lambda: torch.autograd.grad(variant(images, theta), (images, theta), grad_output)

    timed = {k: with_gradients(w) for k, w in variants.items()}
    return Workload(timed, moved=6 * n, fresh=2 * n, tolerance=3e-2)


def resample_3d(factor: float = 1, *, rotated: bool = False) -> Workload:
    """182x218x182 to 225x270x225, with a general matrix or a change of spacing."""
    shape = tuple(max(4, int(n * factor ** (1 / 3))) for n in (182, 218, 182))
    target = (max(4, int(n * factor ** (1 / 3))) for n in (225, 270, 225))
    to_shape = tuple(min(m, 5 * n // 4) for m, n in zip(target, shape, strict=True))
    volume = torch.randn(1, *shape)
    finer = torch.diag(torch.tensor([0.8, 0.8, 0.8, 1.0], dtype=torch.float64))
    if rotated:
        angles = torch.tensor([0.05, -0.03, 0.08], dtype=torch.float64)
        skew = torch.zeros(3, 3, dtype=torch.float64)
        for a, b, t in zip((1, 0, 0), (2, 2, 1), angles, strict=True):
            skew[a, b], skew[b, a] = t, -t
        finer[:3, :3] = torch.linalg.matrix_exp(skew) @ finer[:3, :3]
    else:  # align the outer edges as torch's upsampling does, so that it can be a peer
        finer[:3, 3] = -0.1
    identity = torch.eye(4, dtype=torch.float64)

    def ours() -> list[Tensor]:
        return [ops.resample(volume, identity, finer, to_shape)]

    moved = 4 * (volume.numel() + torch.Size(to_shape).numel())
    variants: dict[str, Variant] = {"cmrfast": ours, **peers.itk_resample(volume, finer, to_shape)}
    variants |= peers.torch_resample(volume, finer, to_shape)
    variants |= peers.scipy_resample(volume, finer, to_shape)
    if not rotated:
        variants["torch upsample"] = lambda: [
            torch.ops.aten.upsample_trilinear3d(volume[None], to_shape, False, *[1.25] * 3)[0]
        ]
    # torch places samples in float32: the few voxels on the border may be inside for one alone.
    return Workload(
        variants,
        moved=moved,
        fresh=4 * torch.Size(to_shape).numel(),
        tolerance=1e-3,
        outliers=1e-6 if rotated else 0.0,
    )


def labels_3d(factor: float = 1) -> Workload:
    """Labels of 14 classes from 96x128x128 logits on 128x256x256, the outer edges aligned."""
    shape = tuple(max(4, int(n * factor ** (1 / 3))) for n in (96, 128, 128))
    to_shape = tuple(m * n // k for n, m, k in zip(shape, (4, 2, 2), (3, 1, 1), strict=True))
    logits = torch.randn(14, *shape)
    scale = torch.tensor(shape, dtype=torch.float64) / torch.tensor(to_shape)
    finer = torch.diag(torch.cat((scale, torch.ones(1, dtype=torch.float64))))
    finer[:3, 3] = (scale - 1) / 2
    identity = torch.eye(4, dtype=torch.float64)

    def ours() -> list[Tensor]:
        return [ops.resample_argmax(logits, identity, finer, to_shape, dtype=torch.int16)]

    def plain(logits: Tensor) -> list[Tensor]:
        return [F.interpolate(logits[None], to_shape, mode="trilinear")[0].argmax(0).short()]

    compiled = torch.compile(plain)
    variants: dict[str, Variant] = {
        "cmrfast": ours,
        "torch": lambda: plain(logits),
        "torch.compile": lambda: compiled(logits),
        **peers.scipy_zoom_argmax(logits, to_shape),
    }
    labels = 2 * torch.Size(to_shape).numel()
    # Two classes may be equal but for rounding.
    return Workload(variants, moved=4 * logits.numel() + labels, fresh=labels, outliers=1e-5)
