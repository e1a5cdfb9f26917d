"""Extracting patches from volumes, and merging them."""

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import peers
from benchmarks.workloads.workload import Variant, Workload
from cmrfast import ops


def _with_compiled(variants: dict[str, Variant]) -> dict[str, Variant]:
    # Slicing in a loop would compile thousands of graphs; a single index compiles once.
    return {**variants, "torch.compile": torch.compile(variants["torch unfold"])}


def extract_3d(factor: float = 1, *, reuse: bool = False) -> Workload:
    """40 patches of 56³ from a FLAIR pair and five masks: cut, flipped, normalised, cast.

    With ``reuse``, each call writes into the memory of the last one, as far as a library can.
    """
    count, shape, s = max(1, int(40 * factor)), (225, 270, 225), 56
    pair = torch.randn(2, *shape)
    masks = torch.randint(0, 2, (5, *shape), dtype=torch.uint8)
    start = torch.stack([torch.randint(0, n - s, (count,)) for n in shape], 1)
    flips = torch.rand(count, 3) < 0.5

    def batch() -> list[Tensor]:
        return [pair.new_empty(count, channels, s, s, s) for channels in (2, 5)]

    kept_by_ours, kept_by_sliced = (batch(), batch()) if reuse else (None, None)

    def ours() -> list[Tensor]:
        images, labels = kept_by_ours or (None, None)
        size = (s,) * 3
        return [
            ops.extract_patches(pair, start, size, flips=flips, shift=0.3, scale=1.7, out=images),
            ops.extract_patches(masks, start, size, flips=flips, out=labels),
        ]

    def sliced() -> list[Tensor]:
        images, labels = kept_by_sliced or batch()
        for p, ((i, j, k), axes) in enumerate(zip(start.tolist(), flips.tolist(), strict=True)):
            dims = [a + 1 for a in range(3) if axes[a]]
            window = (slice(None), slice(i, i + s), slice(j, j + s), slice(k, k + s))
            images[p] = pair[window].flip(dims)
            labels[p] = masks[window].flip(dims)
        return [images.sub_(0.3).mul_(1.7), labels]

    def indexed() -> list[Tensor]:
        images = peers.torch_windows(pair[None], start, s, flips).sub_(0.3).mul_(1.7)
        return [images, peers.torch_windows(masks[None], start, s, flips).float()]

    voxels = count * s**3
    variants = _with_compiled({"cmrfast": ours, "torch slices": sliced, "torch unfold": indexed})
    fresh = 0 if reuse else voxels * 28
    return Workload(variants, moved=voxels * (2 * 8 + 5 * 5), fresh=fresh)


def extract_2d(factor: float = 1) -> Workload:
    """2560 pairs of 64² from 30 slice pairs, flipped, and the lesion fraction in each window."""
    count, s = max(1, int(2560 * factor)), 64
    slices = torch.randn(30, 2, 224, 224)
    lesions = torch.rand(30, 224, 224) < 0.02
    angle = torch.rand(count) * 6.2832
    start = (112 + 40 * torch.stack((angle.cos(), angle.sin()), 1)).long() - s // 2
    index, flips = torch.randint(0, 30, (count,)), torch.rand(count, 2) < 0.5

    def ours() -> list[Tensor]:
        pairs = ops.extract_patches(slices, start, (s, s), volume_index=index, flips=flips)
        counts = ops.window_counts(lesions, start, (s, s), volume_index=index)
        return [pairs, counts / lesions.sum((1, 2))[index]]

    def sliced() -> list[Tensor]:
        pairs, counts = slices.new_empty(count, 2, s, s), slices.new_empty(count)
        total = lesions.sum((1, 2))
        for p, (v, (i, j), axes) in enumerate(
            zip(index.tolist(), start.tolist(), flips.tolist(), strict=True)
        ):
            dims = [a + 1 for a in range(2) if axes[a]]
            pairs[p] = slices[v, :, i : i + s, j : j + s].flip(dims)
            counts[p] = lesions[v, i : i + s, j : j + s].sum() / total[v]
        return [pairs, counts]

    def indexed() -> list[Tensor]:
        pairs = peers.torch_windows(slices, start, s, flips, index)
        table = F.pad(lesions.int().cumsum(1).cumsum(2), (1, 0, 1, 0))
        (i, j), v = start.T, index
        counts = table[v, i + s, j + s] - table[v, i, j + s] - table[v, i + s, j] + table[v, i, j]
        return [pairs, counts / lesions.sum((1, 2))[index]]

    variants = _with_compiled({"cmrfast": ours, "torch slices": sliced, "torch unfold": indexed})
    return Workload(variants, moved=count * 2 * s * s * 8)


def merge_3d(factor: float = 1) -> Workload:
    """Patches of 56³, overlap 14, averaged into 225x270x225 (252 of them)."""
    shape, s = (max(56, int(225 * factor)), 270, 225), 56
    start = ops.cover_starts(shape, (s,) * 3, overlap=14)
    patches = torch.randn(len(start), 1, s, s, s)

    def added() -> list[Tensor]:
        total, count = patches.new_zeros(1, *shape), patches.new_zeros(1, *shape)
        for patch, (i, j, k) in zip(patches, start.tolist(), strict=True):
            window = (slice(None), slice(i, i + s), slice(j, j + s), slice(k, k + s))
            total[window] += patch
            count[window] += 1
        return [total / count]

    voxels = torch.Size(shape).numel()
    variants: dict[str, Variant] = {
        "cmrfast": lambda: [ops.merge_patches(patches, start, shape)],
        "torch +=": added,
        **peers.torchio_aggregate(patches, start, shape),
        **peers.monai_sliding_window(patches, shape),
    }
    return Workload(variants, moved=patches.nbytes + 4 * voxels, fresh=4 * voxels)
