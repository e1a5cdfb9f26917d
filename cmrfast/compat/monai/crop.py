"""MONAI's RandCropByPosNegLabeld without lists of all voxels."""

from typing import Any

import numpy as np
from monai import transforms
from monai.data import MetaTensor
from torch import Tensor

_BLOCK = 1 << 16  # voxels that are counted together


class RandCropByPosNegLabeld(transforms.RandCropByPosNegLabeld):
    """``monai.transforms.RandCropByPosNegLabeld``; the same arguments and, for a seed, crops.

    MONAI lists the positions of all foreground and background voxels and draws from the lists; here
    voxels are counted and only those that are drawn are located. The crops are MONAI's own, views
    of the images.

    Example:
        >>> import torch
        >>> label = torch.zeros(1, 32, 32, 32)
        >>> label[:, 8:12, 8:12, 8:12] = 1
        >>> crop = RandCropByPosNegLabeld(["label"], "label", (16, 16, 16), num_samples=2, neg=0)
        >>> [bool(sample["label"].any()) for sample in crop({"label": label})]
        [True, True]
    """

    def randomize(
        self,
        label: Any = None,
        fg_indices: Any = None,
        bg_indices: Any = None,
        image: Any = None,
    ) -> None:
        """Draw the centres, from MONAI's random state and in its order."""
        if label is not None and (fg_indices is None or bg_indices is None):
            foreground = _any_channel(label[1:] if len(label) > 1 else label, 0)
            background = ~foreground
            if image is not None:
                background &= _any_channel(image, self.cropper.image_threshold, above=True)
            fg_indices, bg_indices = _Positions(foreground), _Positions(background)
        super().randomize(label, fg_indices, bg_indices, image)


def _any_channel(
    volume: Tensor | np.ndarray[Any, Any], threshold: float, *, above: bool = False
) -> np.ndarray[Any, Any]:
    """Whether any channel of each voxel is above the threshold, or other than it, flat."""
    volume = volume.as_tensor() if isinstance(volume, MetaTensor) else volume
    mask = volume > threshold if above else volume != threshold
    mask = mask[0] if len(mask) == 1 else mask.any(0)
    return (mask.cpu().numpy() if isinstance(mask, Tensor) else mask).ravel()


class _Positions:
    """The positions of the voxels of a mask, as a list of which only entries are computed."""

    def __init__(self, mask: np.ndarray[Any, Any]) -> None:
        self._blocks = [mask[n : n + _BLOCK] for n in range(0, mask.size, _BLOCK)]
        counts = [np.count_nonzero(block) for block in self._blocks]
        self._ends = np.cumsum(counts, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, n: int) -> int:
        block = int(np.searchsorted(self._ends, n, side="right"))
        before = int(self._ends[block - 1]) if block else 0
        return block * _BLOCK + int(np.flatnonzero(self._blocks[block])[n - before])
