"""Patches of prepared patients: where they lie is a function of (seed, epoch, sample)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmrfast.data.random import uniforms
from cmrfast.methods.task import Batch
from cmrfast.models.new_lesions import Recipe
from cmrfast.ops import VolumeStore, extract_patches


@dataclass(frozen=True)
class Windows:
    """Where patches are cut: arguments of ``extract_patches``.

    Args:
        volume_index: (P,) int64.
        start_vox: (P, d) int64; patches may stick out of the volume.
    """

    volume_index: Tensor
    start_vox: Tensor


class LesionSampler:
    """Samples patches around lesions and elsewhere in the brain.

    An epoch takes ``per_patient`` samples of every patient, the first patient's first; whoever
    draws from it shuffles. If the patient has target voxels, then with probability ``on_target``
    the patch contains one: it is centred on a random one and shifted by a random offset that keeps
    it inside. Otherwise it is centred on a random voxel of the region.

    Args:
        targets: (*S) mask of each patient, nonzero at target voxels.
        regions: (*S) mask of each patient, nonzero where patches may be centred.
        size: of a patch, one entry per space axis.
        on_target: probability of a patch with a target voxel.
        per_patient: samples of an epoch per patient.
        seed: of all draws.

    Example:
        >>> region = torch.ones(40, 40, 40, dtype=torch.bool)
        >>> lesion = torch.zeros_like(region)
        >>> lesion[10, 20, 30] = True
        >>> sampler = LesionSampler([lesion], [region], (16, 16, 16), on_target=1.0)
        >>> start = sampler.windows(epoch=0, samples=torch.arange(100)).start_vox
        >>> inside = (start <= torch.tensor([10, 20, 30])) & (start > torch.tensor([-6, 4, 14]))
        >>> bool(inside.all())
        True
    """

    def __init__(
        self,
        targets: Sequence[Tensor],
        regions: Sequence[Tensor],
        size: Sequence[int],
        *,
        on_target: float = 0.8,
        per_patient: int = 872,
        seed: int = 0,
    ) -> None:
        if not targets or len(targets) != len(regions):
            raise ValueError(
                "LesionSampler: targets and regions must be one of each per patient; "
                f"got {len(targets)} and {len(regions)}"
            )
        if not 0 <= on_target <= 1:
            raise ValueError(f"LesionSampler: on_target must be in [0, 1]; got {on_target}")
        self.size, self.on_target, self.seed = tuple(size), on_target, seed
        self.per_patient, self.count = per_patient, per_patient * len(targets)
        self._targets = _Voxels(targets)
        self._regions = _Voxels(regions)
        empty = (self._regions.counts == 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"LesionSampler: regions must not be empty; patients {empty} are")

    def __len__(self) -> int:
        """Samples of an epoch."""
        return self.count

    def windows(self, epoch: int, samples: Tensor) -> Windows:
        """Where the patches of some samples of an epoch lie.

        Args:
            epoch: from 0.
            samples: (P,) integer places in the epoch, from 0.
        """
        axes = len(self.size)
        draw = uniforms(self.seed, epoch, samples, 2 + axes, "windows")
        patient = samples.long() // self.per_patient
        on_target = (draw[:, 0] < self.on_target) & (self._targets.counts[patient] > 0)
        center = torch.where(
            on_target[:, None],
            self._targets.pick(patient, draw[:, 1]),
            self._regions.pick(patient, draw[:, 1]),
        )
        size = torch.tensor(self.size)
        # From -(size // 2), so that the target voxel stays in the patch.
        jitter = (draw[:, 2:] * size).long() - size // 2
        start = center - size // 2 - torch.where(on_target[:, None], jitter, 0)
        return Windows(patient, start)


class _Voxels:
    """The nonzero voxels of several masks in one table, to pick from in one step."""

    def __init__(self, masks: Sequence[Tensor]) -> None:
        each = [mask.nonzero().to(torch.int32) for mask in masks]
        self.counts = torch.tensor([len(voxels) for voxels in each])
        self.first = self.counts.cumsum(0) - self.counts
        # A spare row: an empty mask at the end has nothing else to index.
        self.table = torch.cat((*each, each[0].new_zeros(1, each[0].shape[1])))

    def pick(self, which: Tensor, draw: Tensor) -> Tensor:
        """One voxel of mask ``which`` by a number in [0, 1); anything for an empty mask."""
        at = self.first[which] + (draw * self.counts[which]).long()
        return self.table[at.clamp(max=len(self.table) - 1)].long()


class PatchFeed:
    """Patches of prepared patients, more of them where lesions are.

    Args:
        patients: of each patient ``images`` (2, I, J, K), ``masks`` (5, I, J, K) and ``brain``
            (I, J, K), masks uint8; all or none of them have ``lesions`` (2, I, J, K), too.
        recipe: sampling.
        seed: of every random choice.
        device: where batches are made, and patients are kept.
    """

    def __init__(
        self,
        patients: Sequence[Mapping[str, Tensor]],
        recipe: Recipe,
        *,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.recipe, self.seed, self.device = recipe, seed, torch.device(device)
        self.sampler = LesionSampler(
            [p["masks"][0] & p["brain"] for p in patients],
            [p["brain"] for p in patients],
            (recipe.patch,) * 3,
            on_target=recipe.on_lesion,
            per_patient=recipe.per_patient,
            seed=seed,
        )
        self.images = VolumeStore([p["images"] for p in patients], device)
        self.masks = {
            name: VolumeStore([p[name] for p in patients], device)
            for name in ("masks", "lesions")
            if name in patients[0]
        }

    def __len__(self) -> int:
        return len(self.sampler)

    def batch(self, epoch: int, samples: Tensor) -> Batch:
        """``earlier`` and ``later`` (B, 1, D, H, W), ``masks`` (B, 5, D, H, W) uint8.

        ``lesions`` (B, 2, D, H, W), where patients have them.
        """
        samples = samples.cpu()
        windows = self.sampler.windows(epoch, samples)
        start, which = (x.to(self.device) for x in (windows.start_vox, windows.volume_index))
        flips = None
        if self.recipe.flip:
            draws = uniforms(self.seed, epoch, samples, 3, "flips")
            flips = (draws < self.recipe.flip).to(self.device)
        size = self.sampler.size
        images = extract_patches(self.images, start, size, volume_index=which, flips=flips)
        masks = {
            name: extract_patches(
                store, start, size, volume_index=which, flips=flips, dtype=torch.uint8
            )
            for name, store in self.masks.items()
        }
        return {"earlier": images[:, :1], "later": images[:, 1:], **masks}
