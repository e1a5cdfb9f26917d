"""Normalise intensities: z-score, range, percentiles.

Statistics are computed in float64, per channel (``over="volume"``) or per slice along the last
axis (``over="slice"``), over the voxels in ``mask`` if one is given. Results are float32 (float64
for float64).
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

Over = Literal["volume", "slice"]


def z_score(
    volume: Tensor, *, mask: Tensor | None = None, over: Over = "volume", min_sd: float = 1e-8
) -> Tensor:
    """Scale to zero mean and unit (population) standard deviation.

    Args:
        volume: (C, *S), real.
        mask: (*S), nonzero where the statistics are computed; all voxels are scaled.
        over: ``volume``, or ``slice`` along the last axis.
        min_sd: if the standard deviation is smaller, the result is 0.

    Returns:
        (C, *S).
    """
    groups, inside = _group_voxels("z_score", volume, mask, over)
    count = inside.sum(-1, keepdim=True).clamp(min=1)
    mean = (groups * inside).sum(-1, keepdim=True) / count
    sd = (((groups - mean) * inside).square().sum(-1, keepdim=True) / count).sqrt()
    scaled = torch.where(sd < min_sd, 0.0, (groups - mean) / sd)
    return _ungroup(scaled, volume, over)


def min_max(volume: Tensor, *, mask: Tensor | None = None, over: Over = "volume") -> Tensor:
    """Scale the smallest value to 0 and the largest to 1; constants become 0.

    Args:
        volume: (C, *S), real.
        mask: (*S), nonzero where the range is computed; values elsewhere may leave [0, 1].
        over: ``volume``, or ``slice`` along the last axis.

    Returns:
        (C, *S).

    Example:
        >>> min_max(torch.tensor([[[1.0, 5.0], [3.0, 5.0]]]), over="slice")
        tensor([[[0., 0.],
                 [1., 0.]]])
    """
    groups, inside = _group_voxels("min_max", volume, mask, over)
    low = torch.where(inside, groups, torch.inf).amin(-1, keepdim=True)
    high = torch.where(inside, groups, -torch.inf).amax(-1, keepdim=True)
    scaled = torch.where(high > low, (groups - low) / (high - low), 0.0)
    return _ungroup(scaled, volume, over)


def percentiles(values: Tensor, at: tuple[float, ...]) -> Tensor:
    """Percentiles of all values, interpolated linearly, (len(at),) float64."""
    # torch.quantile sorts, and refuses more than 16 million values; NumPy selects.
    result = np.percentile(values.detach().flatten().cpu().double().numpy(), at)
    return torch.from_numpy(result).to(values.device)


def _group_voxels(
    who: str, volume: Tensor, mask: Tensor | None, over: Over
) -> tuple[Tensor, Tensor]:
    """Rows of voxels that share statistics, (G, N) float64, and which of them are counted."""
    if not isinstance(volume, Tensor) or volume.is_complex() or volume.dtype == torch.bool:
        kind = volume.dtype if isinstance(volume, Tensor) else type(volume).__name__
        raise TypeError(f"{who}: volume must be a real tensor, not bool; got {kind}")
    if volume.dim() < 3:
        raise ValueError(f"{who}: volume must be (C, *S); got {tuple(volume.shape)}")
    if over not in ("volume", "slice"):
        raise ValueError(f"{who}: over must be one of volume, slice; got {over!r}")
    if mask is not None and mask.shape != volume.shape[1:]:
        raise ValueError(
            f"{who}: mask must be {tuple(volume.shape[1:])}, the space axes of volume; "
            f"got {tuple(mask.shape)}"
        )
    inside = torch.ones_like(volume, dtype=torch.bool)
    if mask is not None:
        inside &= mask != 0
    if over == "slice":
        volume, inside = volume.movedim(-1, 1), inside.movedim(-1, 1)
    rows = volume.shape[0] if over == "volume" else volume.shape[:2].numel()
    return volume.reshape(rows, -1).double(), inside.reshape(rows, -1)


def _ungroup(groups: Tensor, volume: Tensor, over: Over) -> Tensor:
    groups = groups.to(torch.float64 if volume.dtype == torch.float64 else torch.float32)
    if over == "volume":
        return groups.view(volume.shape)
    return groups.view(volume.movedim(-1, 1).shape).movedim(1, -1).contiguous()
