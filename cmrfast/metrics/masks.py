"""Checks of masks and spacings that all metrics share."""

from collections.abc import Sequence

import torch
from torch import Tensor


def require_masks(
    who: str, prediction: Tensor, reference: Tensor, batch_axes: int = 0
) -> tuple[Tensor, Tensor]:
    """Return both masks as bool, nonzero inside; raise unless they can be compared.

    Probabilities are refused: the threshold that makes them a mask is the caller's choice.
    """
    for name, mask in (("prediction", prediction), ("reference", reference)):
        if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.is_complex():
            kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"{who}: {name} must be a bool or integer tensor; got {kind}")
    if prediction.shape != reference.shape:
        raise ValueError(
            f"{who}: prediction and reference must have one shape; "
            f"got {tuple(prediction.shape)} and {tuple(reference.shape)}"
        )
    if prediction.device != reference.device:
        raise ValueError(
            f"{who}: prediction and reference must lie on one device; "
            f"got {prediction.device} and {reference.device}"
        )
    if not 0 <= batch_axes < max(prediction.dim(), 1):
        raise ValueError(
            f"{who}: batch_axes must leave at least one axis of {tuple(prediction.shape)}; "
            f"got {batch_axes}"
        )
    masks = [m if m.dtype == torch.bool else m != 0 for m in (prediction, reference)]
    return masks[0], masks[1]


def require_spacing(who: str, spacing_mm: Sequence[float], axes: int) -> tuple[float, ...]:
    """Return the voxel edges in mm; raise unless there is one positive length per space axis."""
    spacing = tuple(float(s) for s in spacing_mm)
    if len(spacing) != axes:
        raise ValueError(
            f"{who}: spacing_mm must have one entry per space axis ({axes}); got {spacing}"
        )
    if not all(0 < s < float("inf") for s in spacing):
        raise ValueError(f"{who}: spacing_mm must be positive and finite; got {spacing}")
    return spacing
