"""Labels from logits at another size, along nnU-Net's rules, without the resampled logits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cmrfast.ops import resample_argmax


def resample_labels(
    logits: Tensor,
    shape: Sequence[int],
    *,
    nearest_axis: int | None = None,
    dtype: torch.dtype = torch.uint8,
) -> Tensor:
    """The class of the largest logit at each voxel of a grid of the same extent.

    Equals ``torch.nn.functional.interpolate(logits, shape).argmax(0)`` with linear interpolation
    of voxel centres.

    Args:
        logits: (K, I, J, K'), floating.
        shape: of the labels, three entries.
        nearest_axis: axis with thick slices, along which the nearest slice is taken instead.
        dtype: of the labels.

    Returns:
        (*shape) labels.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).view(2, 1, 1, 2)
        >>> resample_labels(logits, (1, 1, 4)).tolist()
        [[[0, 0, 1, 1]]]
    """
    if logits.dim() != 4 or len(shape) != 3:
        raise ValueError(
            "resample_labels: logits must be (K, I, J, K') and shape have 3 entries; "
            f"got {tuple(logits.shape)} and {tuple(shape)}"
        )
    if nearest_axis is None:
        return _linear(logits, shape, dtype)
    if nearest_axis not in (0, 1, 2):
        raise ValueError(f"resample_labels: nearest_axis must be 0, 1 or 2; got {nearest_axis}")
    plane = [n for axis, n in enumerate(shape) if axis != nearest_axis]
    n, old = int(shape[nearest_axis]), logits.shape[1 + nearest_axis]
    position = (torch.arange(n, dtype=torch.float64) + 0.5) * (old / n) - 0.5
    slices = (position + 0.5).floor().long().clamp(0, old - 1)
    needed, at = slices.unique(return_inverse=True)
    labels = [_linear(logits.select(1 + nearest_axis, int(i)), plane, dtype) for i in needed]
    return torch.stack(labels, nearest_axis).index_select(nearest_axis, at)


def _linear(logits: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Voxel i of the labels lies at (i + 1/2) * old / new - 1/2 of the logits."""
    to_world = torch.eye(4, dtype=torch.float64)
    for axis, (old, new) in enumerate(zip(logits.shape[1:], shape, strict=True)):
        to_world[axis, axis] = old / new
        to_world[axis, 3] = (old / new - 1) / 2
    world = torch.eye(4, dtype=torch.float64)
    return resample_argmax(logits, world, to_world, [int(n) for n in shape], dtype=dtype)
