"""Histogram standardisation (Nyúl and Udupa): landmarks of a training set, and images onto them."""

from collections.abc import Iterable

import torch
from torch import Tensor

from cmrfast.data.prepare import percentiles

#: Which percentiles of the brain's voxels are landmarks.
PERCENTILES = (1.0, 10.0, 20.0, 25.0, 30.0, 40.0, 50.0, 60.0, 70.0, 75.0, 80.0, 90.0, 99.0)


def histogram_landmarks(
    images: Iterable[Tensor], *, at: tuple[float, ...] = PERCENTILES, high: float = 100.0
) -> Tensor:
    """Landmarks of an average image on [0, high].

    Args:
        images: voxels of each training image that count (``volume[brain]``), any shape; taken one
            at a time, so that a generator never holds two.
        at: percentiles, increasing.
        high: upper end of the scale.

    Returns:
        (len(at),) float64: each image's percentiles, first to 0 and last to ``high``, averaged.
    """
    total, count = torch.zeros(len(at), dtype=torch.float64), 0
    for voxels in images:
        if not voxels.numel():
            raise ValueError(f"histogram_landmarks: image {count} has no voxel that counts")
        own = _percentiles(f"histogram_landmarks: image {count}", voxels, at).cpu()
        total += (own - own[0]) * (high / (own[-1] - own[0]))
        count += 1
    if not count:
        raise ValueError("histogram_landmarks: needs at least one image; got none")
    return total / count


def standardise_histogram(
    volume: Tensor,
    landmarks: Tensor,
    *,
    mask: Tensor | None = None,
    at: tuple[float, ...] = PERCENTILES,
) -> Tensor:
    """Map intensities so that the volume's percentiles fall on the landmarks.

    Linear between landmarks; extrapolated beyond the outer ones.

    Args:
        volume: (…), real.
        landmarks: from ``histogram_landmarks``.
        mask: same shape, nonzero where percentiles are taken; all voxels are mapped.
        at: percentiles the landmarks were learnt for.

    Returns:
        (…) float32 (float64 for float64).
    """
    if landmarks.shape != (len(at),):
        raise ValueError(
            f"standardise_histogram: landmarks must be ({len(at)},), one per percentile; "
            f"got {tuple(landmarks.shape)}"
        )
    if mask is not None and mask.shape != volume.shape:
        raise ValueError(
            f"standardise_histogram: mask must have the volume's shape {tuple(volume.shape)}; "
            f"got {tuple(mask.shape)}"
        )
    voxels = volume if mask is None else volume[mask != 0]
    if not voxels.numel():
        raise ValueError("standardise_histogram: the mask is empty")
    own = _percentiles("standardise_histogram: the volume", voxels, at)
    landmarks = landmarks.to(own)
    step = own.diff()
    # Percentiles that coincide make a piece without width, on which nothing lies but its start.
    slope = torch.where(step > 0, landmarks.diff() / step, 0.0)
    values = volume.double().contiguous()
    piece = torch.bucketize(values, own[1:-1].contiguous(), right=True)
    mapped = landmarks[piece] + (values - own[piece]) * slope[piece]
    return mapped.to(torch.float64 if volume.dtype == torch.float64 else torch.float32)


def _percentiles(who: str, voxels: Tensor, at: tuple[float, ...]) -> Tensor:
    """Percentiles of an image, which must have more than one intensity."""
    own = percentiles(voxels, at)
    if own[-1] <= own[0]:
        raise ValueError(
            f"{who} has one intensity from percentile {at[0]} to {at[-1]}; got {own[0].item()}"
        )
    return own
