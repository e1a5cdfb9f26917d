"""Affine sampling of images and patches, and resampling of volumes and of labels."""

import math
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


def sample_3d(factor: float = 1) -> Workload:
    """8 patches of 128³ of a volume and its labels, turned by up to 30°, scaled by 0.7 to 1.4."""
    count, shape, size = max(1, int(8 * factor)), (200, 200, 180), (128, 128, 128)
    volume, labels = torch.randn(1, *shape), torch.randint(0, 4, (1, *shape), dtype=torch.uint8)
    angles = (2 * torch.rand(count, 3) - 1) * math.pi / 6
    zooms = 0.7 + 0.7 * torch.rand(count, 3)
    generators = torch.zeros(3, 3, 3, dtype=torch.float64)  # of rotations about each axis
    for axis in range(3):
        a, b = sorted({0, 1, 2} - {axis})
        sign = -1 if axis == 1 else 1
        generators[axis, a, b], generators[axis, b, a] = -sign, sign
    turns = torch.linalg.matrix_exp(angles[..., None, None].double() * generators)
    matrix = turns[:, 2] @ turns[:, 1] @ turns[:, 0] @ torch.diag_embed(zooms).double()
    last = torch.tensor(shape).double() - 1
    center = (last / 2).expand(count, 3).contiguous()

    def ours() -> list[Tensor]:
        return [
            ops.sample_patches(volume, center, matrix, size),
            ops.sample_patches(labels, center, matrix, size, mode="nearest", dtype=torch.uint8),
        ]

    steps = (torch.tensor(size).double() - 1) / last[:, None]  # between the outer centres, to 2
    linear = (matrix * steps).flip(1, 2)
    theta = torch.cat((linear, (2 * center / last - 1).flip(1)[..., None]), 2).float()

    def sampled() -> list[Tensor]:
        images, masks = volume.new_empty(count, 1, *size), labels.new_empty(count, 1, *size)
        for p in range(count):
            grid = F.affine_grid(theta[p : p + 1], [1, 1, *size], align_corners=True)
            images[p] = F.grid_sample(volume[None], grid, align_corners=True)[0]
            masks[p] = F.grid_sample(
                labels[None].float(), grid, mode="nearest", align_corners=True
            )[0]
        return [images, masks]

    variants: dict[str, Variant] = {"cmrfast": ours, "torch": sampled}
    variants |= peers.batchgenerators_spatial(volume, labels, angles, zooms, size)
    voxels = count * torch.Size(size).numel()
    # Peers place samples in float32: next to a tie, labels may differ.
    return Workload(
        variants,
        moved=5 * (voxels + volume.numel()),
        fresh=5 * voxels,
        tolerance=1e-3,
        outliers=1e-4,
    )
