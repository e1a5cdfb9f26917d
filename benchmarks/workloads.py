"""The workloads: what is computed, by whom, and the least that must move for it.

Each builder takes a size factor and returns a Case whose ways all compute the same; a way's result
is compared with ours before anything is timed. Peers that are not installed are left out.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import peers
from cmrfast import losses, ops

Way = Callable[[], object]


@dataclass
class Case:
    """One workload at one size."""

    ways: dict[str, Way]
    moved: int = 0  # bytes read and written at least
    fresh: int = 0  # bytes of them that are new memory
    flops: int = 0
    tolerance: float = 1e-4  # of the largest entry

    def floor_ms(self, rates: dict[str, float]) -> float:
        """The longest of moving the bytes, filling the new ones, and the operations."""
        return max(
            self.moved / rates["copy_gb_s"] / 1e6,
            self.fresh / rates["fresh_gb_s"] / 1e6,
            self.flops / rates["matmul_gflop_s"] / 1e6,
        )


def differentiated(loss: Callable[..., Tensor], *inputs: Tensor) -> Way:
    """Forward and backward, the gradients as the result."""

    def run() -> list[Tensor]:
        loss(*inputs).backward()
        gradients = [x.grad for x in inputs]
        for x in inputs:
            x.grad = None
        return gradients

    return run


def extract_3d(factor: float = 1) -> Case:
    """40 patches 56³ of a FLAIR pair and five masks: cut, flipped, normalised, cast."""
    count, shape, s = max(1, int(40 * factor)), (225, 270, 225), 56
    pair = torch.randn(2, *shape)
    masks = torch.randint(0, 2, (5, *shape), dtype=torch.uint8)
    start = torch.stack([torch.randint(0, n - s, (count,)) for n in shape], 1)
    flips = torch.rand(count, 3) < 0.5

    def ours() -> list[Tensor]:
        options = {"flips": flips, "dtype": torch.float32}
        images = ops.extract_patches(pair, start, (s,) * 3, shift=0.3, scale=1.7, **options)
        return [images, ops.extract_patches(masks, start, (s,) * 3, **options)]

    def sliced() -> list[Tensor]:
        images, labels = torch.empty(count, 2, s, s, s), torch.empty(count, 5, s, s, s)
        for p, ((i, j, k), axes) in enumerate(zip(start.tolist(), flips, strict=True)):
            dims = [a + 1 for a in range(3) if axes[a]]
            window = (slice(None), slice(i, i + s), slice(j, j + s), slice(k, k + s))
            images[p] = pair[window].flip(dims)
            labels[p] = masks[window].flip(dims)
        return [images.sub_(0.3).mul_(1.7), labels]

    def indexed() -> list[Tensor]:
        images = peers.torch_windows(pair[None], start, s, flips).sub_(0.3).mul_(1.7)
        return [images, peers.torch_windows(masks[None], start, s, flips).float()]

    voxels = count * s**3
    ways = {"cmrfast": ours, "torch slices": sliced, "torch unfold": indexed}
    return Case(ways, moved=voxels * (2 * 8 + 5 * 5), fresh=voxels * 28)


def extract_2d(factor: float = 1) -> Case:
    """2560 pairs of 64² from 30 slice pairs, flipped, and the lesion share of each window."""
    count, s = max(1, int(2560 * factor)), 64
    slices = torch.randn(30, 2, 224, 224)
    lesions = torch.rand(30, 224, 224) < 0.02
    angle = torch.rand(count) * 6.2832
    start = (112 + 40 * torch.stack((angle.cos(), angle.sin()), 1)).long() - s // 2
    index, flips = torch.randint(0, 30, (count,)), torch.rand(count, 2) < 0.5

    def ours() -> list[Tensor]:
        pairs = ops.extract_patches(slices, start, (s, s), volume_index=index, flips=flips)
        found = ops.window_counts(lesions, start, (s, s), volume_index=index)
        return [pairs, found / lesions.sum((1, 2))[index]]

    def sliced() -> list[Tensor]:
        pairs, found = torch.empty(count, 2, s, s), torch.empty(count)
        total = lesions.sum((1, 2))
        for p, (v, (i, j), axes) in enumerate(
            zip(index.tolist(), start.tolist(), flips, strict=True)
        ):
            dims = [a + 1 for a in range(2) if axes[a]]
            pairs[p] = slices[v, :, i : i + s, j : j + s].flip(dims)
            found[p] = lesions[v, i : i + s, j : j + s].sum() / total[v]
        return [pairs, found]

    def indexed() -> list[Tensor]:
        pairs = peers.torch_windows(slices, start, s, flips, index)
        table = F.pad(lesions.int().cumsum(1).cumsum(2), (1, 0, 1, 0))
        (i, j), v = start.T, index
        found = table[v, i + s, j + s] - table[v, i, j + s] - table[v, i + s, j] + table[v, i, j]
        return [pairs, found / lesions.sum((1, 2))[index]]

    ways = {"cmrfast": ours, "torch slices": sliced, "torch unfold": indexed}
    return Case(ways, moved=count * 2 * s * s * 8)


def pairing(count: int) -> Case:
    """NT-Xent of count x 128 features, forward and backward."""
    a, c = (torch.randn(count, 128, requires_grad=True) for _ in range(2))
    own = torch.arange(count)

    def plain(a: Tensor, c: Tensor) -> Tensor:
        return F.cross_entropy(F.normalize(a) @ F.normalize(c).T / 0.07, own)

    ways = {
        "cmrfast": differentiated(ops.nt_xent, a, c),
        "torch": differentiated(plain, a, c),
        "torch.compile": differentiated(torch.compile(plain), a, c),
        **{k: differentiated(v, a, c) for k, v in peers.metric_learning(count).items()},
    }
    return Case(ways, moved=count * 128 * 4 * 4, flops=6 * count * count * 128)


def dice_3d(factor: float = 1) -> Case:
    """Batch Dice of (40, 5, 56³) logits against uint8 masks, forward and backward."""
    shape = (max(1, int(40 * factor)), 5, 56, 56, 56)
    logits = torch.randn(shape, requires_grad=True)
    target = (torch.rand(shape) < 0.1).to(torch.uint8)

    def plain(logits: Tensor) -> Tensor:
        p, t = logits.sigmoid(), target.float()
        return -2 * (1e-5 + (p * t).sum()) / (1e-5 + (p + t).sum())

    ways = {
        "cmrfast": differentiated(lambda x: losses.batch_dice_loss(x, target), logits),
        "torch": differentiated(plain, logits),
        "torch.compile": differentiated(torch.compile(plain), logits),
        **{k: differentiated(v, logits) for k, v in peers.monai_batch_dice(target).items()},
    }
    n = logits.numel()
    return Case(ways, moved=n * (5 + 5 + 4), fresh=4 * n)


def dice_2d(factor: float = 1) -> Case:
    """Dice + cross entropy of (40, 4, 224²) logits against labels, forward and backward."""
    batch = max(1, int(40 * factor))
    logits = torch.randn(batch, 4, 224, 224, requires_grad=True)
    labels = torch.randint(0, 4, (batch, 224, 224))

    def plain(logits: Tensor) -> Tensor:
        p = logits.softmax(1)[:, 1:]
        t = F.one_hot(labels, 4).movedim(-1, 1)[:, 1:].float()
        dice = (2 * (p * t).sum((2, 3)) + 1e-6) / (p.sum((2, 3)) + t.sum((2, 3)) + 1e-6)
        return F.cross_entropy(logits, labels) + 1 - dice.mean()

    ways = {
        "cmrfast": differentiated(lambda x: losses.dice_ce_loss(x, labels), logits),
        "torch": differentiated(plain, logits),
        "torch.compile": differentiated(torch.compile(plain), logits),
        **{k: differentiated(v, logits) for k, v in peers.monai_dice_ce(labels).items()},
    }
    n = labels.numel()
    return Case(ways, moved=n * (16 + 8 + 16 + 8 + 16), fresh=16 * n)


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
    timed = {
        k: differentiated(lambda x, t, w=w: (w(x, t) * pull).sum(), images, theta)
        for k, w in ways.items()
    }
    return Case(timed, moved=6 * n, fresh=2 * n, tolerance=3e-2)


def resample_3d(factor: float = 1, *, rotated: bool = False) -> Case:
    """182x218x182 to 225x270x225, by a general matrix or by a change of spacing."""
    shape = tuple(max(4, int(n * factor ** (1 / 3))) for n in (182, 218, 182))
    to_shape = tuple(max(4, int(n * factor ** (1 / 3))) for n in (225, 270, 225))
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


def merge_3d(factor: float = 1) -> Case:
    """Patches of 56³, overlap 14, averaged into 225x270x225 (252 of them)."""
    shape, s = (max(56, int(225 * factor)), 270, 225), 56
    start = ops.cover_starts(shape, (s,) * 3, overlap=14)
    patches = torch.randn(len(start), 1, s, s, s)

    def added() -> list[Tensor]:
        total, count = torch.zeros(1, *shape), torch.zeros(1, *shape)
        for patch, (i, j, k) in zip(patches, start.tolist(), strict=True):
            window = (slice(None), slice(i, i + s), slice(j, j + s), slice(k, k + s))
            total[window] += patch
            count[window] += 1
        return [total / count]

    voxels = torch.Size(shape).numel()
    ways: dict[str, Way] = {
        "cmrfast": lambda: [ops.merge_patches(patches, start, shape)],
        "torch +=": added,
        **peers.torchio_aggregate(patches, start, shape),
        **peers.monai_sliding_window(patches, shape),
    }
    return Case(ways, moved=patches.nbytes + 4 * voxels, fresh=4 * voxels)


#: Name in the tables -> (what it is, builder).
WORKLOADS: dict[str, tuple[str, Callable[[], Case]]] = {
    "E3": ("`extract_patches`: 40 of 56³ from a FLAIR pair and 5 masks", extract_3d),
    "E2": ("`extract_patches` + `window_counts`: 2560 pairs of 64²", extract_2d),
    "N32": ("`nt_xent`: 32 x 128, forward + backward", lambda: pairing(32)),
    "N4k": ("`nt_xent`: 4096 x 128, forward + backward", lambda: pairing(4096)),
    "D3": ("`batch_dice_loss`: (40, 5, 56³), forward + backward", dice_3d),
    "D2": ("`dice_ce_loss`: (40, 4, 224²), forward + backward", dice_2d),
    "A2": ("`affine_sample`: (16, 4, 224²), forward", affine_2d),
    "A2b": ("`affine_sample`: the same, forward + backward", lambda: affine_2d(backward=True)),
    "A3": ("`resample`: to 225x270x225, rotated", lambda: resample_3d(rotated=True)),
    "R3": ("`resample`: to 225x270x225, spacing only", resample_3d),
    "M3": ("`merge_patches`: 252 of 56³ into 225x270x225", merge_3d),
}

#: Growth is measured over these: builder of a size, and the sizes.
GROWTH: dict[str, tuple[Callable[[float], Case], tuple[float, ...]]] = {
    "extract_patches": (extract_3d, (0.1, 0.25, 0.5, 1, 2)),
    "merge_patches": (merge_3d, (0.25, 0.5, 1, 2)),
    "affine_sample": (affine_2d, (0.0625, 0.25, 1, 4, 8)),
    "resample": (resample_3d, (0.05, 0.25, 0.5, 1, 2)),
    "dice_ce_sums": (dice_2d, (0.025, 0.25, 0.5, 1, 2)),
    "nt_xent": (lambda n: pairing(int(n)), (128, 256, 512, 1024, 2048, 4096)),
}
