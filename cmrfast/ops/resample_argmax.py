"""Labels on another grid: the class whose interpolated logit is largest, never all of them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cmrfast.ops._check import (
    require_fill,
    require_floating,
    require_int,
    require_sizes,
    upcast,
)
from cmrfast.ops._op import define
from cmrfast.ops.affine_sample import (
    CLAMP_HALF,
    LINEAR,
    SIGNED,
    VOXELS,
    affine_sample_op,
    signed_of_bits,
)
from cmrfast.ops.resample import require_grids, vox_from_vox

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, *SIGNED)


def resample_argmax(
    logits: Tensor,
    world_from_vox: Tensor,
    to_world_from_vox: Tensor,
    to_shape: Sequence[int],
    *,
    fill: int = 0,
    dtype: torch.dtype = torch.uint8,
) -> Tensor:
    """The class of largest logit at each voxel of another grid.

    Equals ``resample(logits.float(), ...).argmax(0)`` inside the old grid, without the resampled
    logits in memory. Half precision is interpolated in float32.

    Args:
        logits: (K, *S), floating, two or three space axes; or any values that classes are compared
            by, such as probabilities.
        world_from_vox: (4, 4), of the logits, as in ``resample``.
        to_world_from_vox: (4, 4), of the new grid.
        to_shape: of the new grid, one entry per space axis.
        fill: label outside.
        dtype: of the labels, an integer dtype that holds K - 1 and ``fill``.

    Returns:
        (*to_shape) labels. Ties go to the lowest class; NaN is the largest value, as in
        ``torch.argmax``. Not differentiable.

    Example:
        >>> logits = torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 2.0, 0.0]]])  # two classes, (1, 3)
        >>> finer = torch.diag(torch.tensor([1.0, 0.5, 1.0, 1.0]))  # half the spacing
        >>> resample_argmax(logits, torch.eye(4), finer, (1, 6), fill=9).tolist()
        [[0, 1, 1, 1, 0, 9]]
    """
    require_floating("resample_argmax", "logits", logits)
    axes = logits.dim() - 1
    if axes not in (2, 3):
        raise ValueError(
            "resample_argmax: logits must be (K, *S) with 2 or 3 space axes; "
            f"got {tuple(logits.shape)}"
        )
    require_sizes("resample_argmax", "shape of logits", logits.shape)
    to_shape = require_sizes("resample_argmax", "to_shape", to_shape, axes=axes)
    require_grids("resample_argmax", world_from_vox, to_world_from_vox)
    fill = require_labels("resample_argmax", logits.shape[0], fill, dtype)
    matrix = vox_from_vox("resample_argmax", logits, world_from_vox, to_world_from_vox)
    return sample_argmax(logits, matrix, to_shape, fill, dtype)


def require_labels(op: str, classes: int, fill: int, dtype: torch.dtype) -> int:
    """Return the fill label; raise unless ``dtype`` is an integer dtype that holds all labels."""
    if dtype not in _INTEGERS:
        raise TypeError(f"{op}: dtype must be an integer dtype; got {dtype}")
    fill = require_int(op, "fill", fill)
    require_fill(op, "fill", fill, dtype)
    require_fill(op, "the last class", classes - 1, dtype)
    return fill


def sample_argmax(
    logits: Tensor, matrix: Tensor, size: Sequence[int], fill: int, dtype: torch.dtype
) -> Tensor:
    """The labels at voxels ``matrix @ (output voxel, 1)`` of the logits."""
    op, signed = resample_argmax_op, SIGNED.get(dtype, dtype)
    labels: Tensor = op(logits.detach(), matrix, size, signed_of_bits(fill, signed), signed)
    return labels.view(dtype)


def _reference(
    logits: Tensor, matrix: Tensor, size: Sequence[int], fill: int, dtype: torch.dtype
) -> Tensor:
    def resampled(volume: Tensor, outside: float) -> Tensor:
        options = (VOXELS, LINEAR, CLAMP_HALF, outside)
        values: Tensor = affine_sample_op.reference(
            volume[None, None], matrix[None], size, *options
        )
        return values[0, 0]

    best = resampled(upcast(logits[0]), 0)
    labels = torch.zeros_like(best, dtype=torch.int64)
    for k in range(1, len(logits)):
        values = resampled(upcast(logits[k]), 0)
        better = (values > best) | (values.isnan() & ~best.isnan())
        labels, best = torch.where(better, k, labels), torch.where(better, values, best)
    inside = resampled(torch.ones(logits.shape[1:], device=logits.device), -1) > 0
    return torch.where(inside, labels, fill).to(dtype)


def _fake(logits: Tensor, matrix: Tensor, size: Sequence[int], fill: Any, dtype: Any) -> Tensor:
    return logits.new_empty(*size, dtype=dtype)


resample_argmax_op = define(
    "resample_argmax(Tensor logits, Tensor matrix, SymInt[] size, SymInt fill, ScalarType dtype)"
    " -> Tensor",
    reference=_reference,
    fake=_fake,
)
