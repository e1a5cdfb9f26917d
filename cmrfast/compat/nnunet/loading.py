"""Batches of augmented patches from nnU-Net's preprocessed files, in threads of one process.

A patch is sampled straight out of the stored volume: only the voxels that it needs are read, and
nothing is cropped with a margin first. A batch is a function of its step, so that a resumed
training goes through the same batches.
"""

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cmrfast.compat.nnunet.augmentation import Augmentation, Stream
from cmrfast.compat.nnunet.targets import Targets
from cmrfast.data.loading import Prefetch
from cmrfast.ops import augment_intensity, sample_patches

_PLACES = 1 << 20  # first of the streams that choose cases and places
_OUTSIDE = -1  # label of voxels outside of the image
_HELD = 256  # cases that stay open in all threads together; each holds up to three files


class Cases(Protocol):
    """What is needed of nnU-Net's dataset classes."""

    identifiers: Sequence[str]

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, Mapping[str, Any]]:
        """Image (C, I, J, K), labels (1, I, J, K), previous stage, properties."""


@dataclass(frozen=True)
class Patches:
    """How patches are chosen.

    Args:
        batch: patches per batch.
        size: of the patches; two entries for slices of the first axis.
        margin_size: of the box that nnU-Net would crop first; it determines where patches lie.
        labels: all label values, without the ignore label.
        oversample: fraction of each batch, at its end, that is centred on a foreground voxel.
        probabilistic: choose these at random, each with probability ``oversample``.
        has_ignore_label: centre all other patches on annotated voxels.
    """

    batch: int
    size: tuple[int, ...]
    margin_size: tuple[int, ...]
    labels: tuple[int, ...]
    oversample: float = 0.33
    probabilistic: bool = False
    has_ignore_label: bool = False

    def __post_init__(self) -> None:
        if len(self.size) not in (2, 3) or len(self.margin_size) != len(self.size):
            raise ValueError(
                "Patches: size and margin_size must both have 2 or 3 entries; "
                f"got {self.size} and {self.margin_size}"
            )
        if self.batch < 1:
            raise ValueError(f"Patches: batch must be >= 1; got {self.batch}")


class _Opened(threading.local):
    """Cases as a thread has opened them, which takes longer than to read a small patch.

    Only arrays on disk are held: nnU-Net reads some kinds of files into memory as a whole.
    """

    def __init__(self, cases: Cases, most: int) -> None:
        self.cases, self.most = cases, most
        self.held: dict[str, Any] = {}  # the latest used is the last

    def __call__(self, name: str) -> Any:
        case = self.held.pop(name, None) or self.cases.load_case(name)
        if any(isinstance(x, np.ndarray) and not isinstance(x, np.memmap) for x in case[:2]):
            return case
        self.held[name] = case
        if len(self.held) > self.most:
            del self.held[next(iter(self.held))]
        return case


class PatchLoader:
    """An iterator over batches as nnU-Net's trainer takes them.

    Args:
        cases: one of nnU-Net's datasets; cases are drawn with replacement.
        patches: how patches are chosen.
        targets: what is made of their labels.
        augmentation: None for validation.
        seed: all random numbers depend on it and the number of the sample.
        first: step of the first batch.
        threads: that make batches ahead; 0 makes each batch when it is asked for.
        pin_memory: put batches in pinned memory.

    A batch has ``data`` (B, C, *size) float32, ``target``, and ``keys``, the names of the cases.
    """

    def __init__(
        self,
        cases: Cases,
        patches: Patches,
        targets: Targets,
        *,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        first: int = 0,
        threads: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.cases, self.patches, self.targets = cases, patches, targets
        self._opened = _Opened(cases, _HELD // max(threads, 1))
        self.augmentation, self.seed, self.pin_memory = augmentation, seed, pin_memory
        steps = itertools.count(first)
        self._batches: Iterator[dict[str, Any]]
        if threads:
            ahead = max(2, threads)
            self._batches = iter(Prefetch(self.batch, steps, ahead=ahead, threads=threads))
        else:
            self._batches = map(self.batch, steps)

    def __iter__(self) -> "PatchLoader":
        return self

    def __next__(self) -> dict[str, Any]:
        return next(self._batches)

    def close(self) -> None:
        """Stop the threads."""
        close = getattr(self._batches, "close", None)
        if close:
            close()

    def batch(self, step: int) -> dict[str, Any]:
        """The batch of a step."""
        patches, axes = self.patches, len(self.patches.size)
        samples = torch.arange(patches.batch) + step * patches.batch
        stream = Stream(self.seed, samples, _PLACES)
        chosen, forced = stream(), self._forced(stream())
        draws = torch.cat((stream(2), stream(3)), 1).tolist()
        names = [self.cases.identifiers[int(u * len(self.cases.identifiers))] for u in chosen]
        loaded = [self._opened(name) for name in names]
        channels = int(loaded[0][0].shape[0])
        drawn = None
        matrix, moved = torch.eye(axes, dtype=torch.float64).expand(len(samples), -1, -1), None
        if self.augmentation:
            drawn = self.augmentation.draw(self.seed, samples, channels=channels, axes=axes)
            matrix, moved = drawn.matrix, drawn.moved
        images = torch.empty(patches.batch, channels, *patches.size)
        labels = torch.empty(patches.batch, 1, *patches.size, dtype=torch.int16)
        for j, (image, label, _, properties) in enumerate(loaded):
            place = self._place(image.shape[1:], properties, forced[j], draws[j])
            planes, center = self._center(place, bool(moved is not None and moved[j]))
            images[j] = _sample(image, planes, center, matrix[j], patches.size, "linear", 0)
            labels[j] = _sample(label, planes, center, matrix[j], patches.size, "nearest", _OUTSIDE)
        if drawn:
            images = augment_intensity(images, self.seed, samples, **drawn.intensity)
        self.targets.mask(images, labels)
        return self._finish(images, self.targets(labels), names)

    def _forced(self, draws: Tensor) -> list[bool]:
        """Which samples are centred on a foreground voxel."""
        patches = self.patches
        if patches.probabilistic:
            return [u < patches.oversample for u in draws.tolist()]
        first = round(patches.batch * (1 - patches.oversample))
        return [j >= first for j in range(patches.batch)]

    def _place(
        self,
        shape: Sequence[int],
        properties: Mapping[str, Any],
        forced: bool,
        draws: Sequence[float],
    ) -> list[int]:
        """The lowest corner of the box of ``margin_size`` in an image (I, J, K), along nnU-Net's
        rules."""
        patches = self.patches
        box, final = ((*[1] * (3 - len(s)), *s) for s in (patches.margin_size, patches.size))
        voxel = None
        if forced or patches.has_ignore_label:
            voxel = _focus(properties["class_locations"], forced, patches.labels, draws)
        corner = []
        for axis, (n, b, f, u) in enumerate(zip(shape, box, final, draws[2:], strict=True)):
            pad = max(b - f, b - n)
            low, high = -pad // 2, n + pad // 2 + pad % 2 - b
            if voxel is None:
                corner.append(low + int(u * (high - low + 1)))
            else:
                corner.append(max(low, int(voxel[axis + 1]) - b // 2))
        return corner

    def _center(self, corner: Sequence[int], moved: bool) -> tuple[list[int], list[float]]:
        """The chosen slice, if patches are slices; the position of the patch's centre.

        An unmoved patch starts on a voxel, so that it is not interpolated.
        """
        patches, axes = self.patches, len(self.patches.size)
        planes, corner = list(corner[: 3 - axes]), corner[3 - axes :]
        if moved:
            return planes, [
                c + (b - 1) / 2 for c, b in zip(corner, patches.margin_size, strict=True)
            ]
        sizes = zip(corner, patches.margin_size, patches.size, strict=True)
        return planes, [c + b // 2 - s // 2 + (s - 1) / 2 for c, b, s in sizes]

    def _finish(self, images: Tensor, target: Any, names: list[str]) -> dict[str, Any]:
        if self.pin_memory:
            images = images.pin_memory()
            many = isinstance(target, list)
            target = [t.pin_memory() for t in target] if many else target.pin_memory()
        return {"data": images, "target": target, "keys": names}


def _focus(
    locations: Mapping[Any, Any], forced: bool, labels: tuple[int, ...], draws: Sequence[float]
) -> Any:
    """A voxel (channel, i, j, k) of a foreground class, or an annotated one; None if none is."""
    annotated = (-1, *labels)
    if forced:
        present = [key for key in locations if len(locations[key])]
        if annotated in present and len(present) > 1:
            present.remove(annotated)
        if not present:
            return None
        voxels = locations[present[int(draws[0] * len(present))]]
    else:
        voxels = locations[annotated]
    return voxels[int(draws[1] * len(voxels))] if len(voxels) else None


def _sample(
    stored: Any,
    planes: Sequence[int],
    center: Sequence[float],
    matrix: Tensor,
    size: tuple[int, ...],
    mode: Any,
    fill: float,
) -> Tensor:
    """A patch (C, *size) of an image that is stored as (C, I, J, K), of which a box is read."""
    box = []
    for n, c, row in zip(stored.shape[1 + len(planes) :], center, matrix.tolist(), strict=True):
        reach = sum(abs(m) * (s - 1) / 2 for m, s in zip(row, size, strict=True)) + 1
        low = min(max(int(np.floor(c - reach)), 0), n - 1)
        box.append(slice(low, max(min(int(np.ceil(c + reach)) + 1, n), low + 1)))
    values = np.require(stored[(slice(None), *planes, *box)], requirements=["C", "W"])
    inside = torch.tensor(
        [[c - along.start for c, along in zip(center, box, strict=True)]], dtype=torch.float64
    )
    return sample_patches(
        torch.from_numpy(values),
        inside,
        matrix[None],
        size,
        mode=mode,
        fill=fill,
        dtype=torch.float32 if mode == "linear" else torch.int16,
    )[0]
