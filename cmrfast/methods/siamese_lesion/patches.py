"""Pairs of T1 and LGE patches: cut out of slices in memory, batch by batch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cmrfast.data.cache import Tensors
from cmrfast.data.random import uniforms
from cmrfast.methods.siamese_lesion.images import patch_centers, standardise
from cmrfast.methods.siamese_lesion.lesions import patch_labels
from cmrfast.methods.task import Batch
from cmrfast.ops import VolumeStore, extract_patches

_ALL_EPOCHS = -1  # the epoch of draws that are made once for all epochs


@dataclass(frozen=True)
class PairPatches:
    """Positions and labels of the patches of some slice pairs, slice after slice.

    Args:
        store: (2, I, J) float32 of each slice pair: T1 and LGE as the network sees them.
        size: side of a patch, in pixels.
        volume: (P,) int64, the slice pair of each patch.
        start_vox: (P, 2) int64, its first pixel; parts outside the slice are 0.
        flips: (P, 2) bool, axes along which the pair is mirrored.
        labels: (P,) int64, 1 for a lesion.
    """

    store: VolumeStore
    size: int
    volume: Tensor
    start_vox: Tensor
    flips: Tensor
    labels: Tensor

    @classmethod
    def of(
        cls,
        subjects: Sequence[Tensors],
        *,
        size: int,
        stride: int,
        lesion_share: float,
        mean_ms: float,
        sd_ms: float,
        clip_sd: float,
        device: torch.device,
    ) -> "PairPatches":
        """Patches all over the myocardium of each slice that ``aligned_pairs`` returned.

        Args:
            subjects: what it returned for each.
            size, stride: side of a patch, and from centre to centre, in pixels.
            lesion_share: of a slice's lesion makes a patch positive.
            mean_ms, sd_ms, clip_sd: T1 of the training patients' myocardium; see ``standardise``.
            device: where the slices are kept.
        """
        images: list[Tensor] = []
        lesions: list[Tensor] = []
        starts: list[Tensor] = []
        for pairs in subjects:
            t1 = standardise(pairs["t1"], mean_ms, sd_ms, clip_sd)
            images += torch.cat((t1, pairs["lge"]), 1).unbind()
            lesions += pairs["lesion"].unbind()
            starts += [patch_centers(m, stride) - size // 2 for m in pairs["myocardium"]]
        counts = torch.tensor([len(start) for start in starts])
        volume, start_vox = torch.arange(len(counts)).repeat_interleave(counts), torch.cat(starts)
        labels = patch_labels(
            lesions, start_vox, (size, size), volume_index=volume, share=lesion_share
        )
        return cls(
            store=VolumeStore(images, device),
            size=size,
            volume=volume,
            start_vox=start_vox,
            flips=torch.zeros_like(start_vox, dtype=torch.bool),
            labels=labels.long(),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def with_mirrored(self, share: float, seed: int) -> "PairPatches":
        """Add mirrored copies of a fraction of the patches, along one axis, the other, or both."""
        draw = uniforms(seed, _ALL_EPOCHS, torch.arange(len(self)), 2, "mirrored")
        copied = (draw[:, 0] < share).nonzero().flatten()
        # Copies stay beside their originals: PairFeed needs each slice's patches consecutive.
        rows, back = torch.cat((torch.arange(len(self)), copied)).sort(stable=True)
        which = (draw[copied, 1] * 3).long()
        mirrored = torch.stack((which != 1, which != 0), 1)
        return replace(
            self,
            volume=self.volume[rows],
            start_vox=self.start_vox[rows],
            flips=torch.cat((self.flips, mirrored))[back],
            labels=self.labels[rows],
        )

    def cut(self, rows: Tensor) -> Batch:
        """``t1`` and ``lge`` (B, 1, size, size) and ``labels`` (B,) of some patches."""
        device = self.store.buffer.device
        pairs = extract_patches(
            self.store,
            self.start_vox[rows].to(device),
            (self.size, self.size),
            volume_index=self.volume[rows].to(device),
            flips=self.flips[rows].to(device),
        )
        return {"t1": pairs[:, :1], "lge": pairs[:, 1:], "labels": self.labels[rows].to(device)}


class PairFeed:
    """Every patch once an epoch."""

    def __init__(self, patches: PairPatches, *, seed: int) -> None:
        self.patches, self.seed = patches, seed
        self.slices, self.counts = patches.volume.unique_consecutive(return_counts=True)
        self.first = self.counts.cumsum(0) - self.counts

    def __len__(self) -> int:
        return len(self.patches)

    def batch(self, epoch: int, samples: Tensor) -> Batch:
        """``t1`` and ``lge`` (B, 1, patch, patch) and ``labels`` (B,)."""
        return self.patches.cut(samples)

    def spread(self, epoch: int, samples: Tensor) -> Tensor:
        """A batch in which patches of a slice that has one already are replaced by others.

        If there are enough slices, no two patches of the result come from the same one: overlapping
        patches are nearly equal, which makes them poor negatives of each other.
        """
        slices = self.patches.volume[samples]
        again = (slices[:, None] == slices).tril(-1).any(1).nonzero().flatten()
        free = (~torch.isin(self.slices, slices)).nonzero().flatten()
        again = again[: len(free)]
        if not len(again):
            return samples
        # The slices are drawn once a batch, their patches one by one.
        turns = uniforms(self.seed, epoch, samples[again[:1]], len(self.slices), "slices")
        chosen = free[turns[0, free].argsort()][: len(again)]
        draw = uniforms(self.seed, epoch, samples[again], 1, "patches")[:, 0]
        rows = samples.clone()
        rows[again] = self.first[chosen] + (draw * self.counts[chosen]).long()
        return rows
