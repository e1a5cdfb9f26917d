"""A regular grid of windows that covers a volume."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from cmrfast.ops._check import integers, require_sizes


def cover_starts(shape: Sequence[int], size: Sequence[int], overlap: int | Sequence[int]) -> Tensor:
    """First voxels of windows that cover a volume; the last of each axis is aligned with its end.

    Args:
        shape: of the volume, one entry per axis.
        size: of the windows; no axis may exceed the shape.
        overlap: of neighbouring windows, in voxels, for all axes or per axis; less than size.

    Returns:
        (P, d) int64, the last axis changing fastest.

    Example:
        >>> cover_starts((10,), (4,), overlap=1).flatten().tolist()
        [0, 3, 6]
        >>> cover_starts((11,), (4,), overlap=1).flatten().tolist()
        [0, 3, 6, 7]
    """
    shape = require_sizes("cover_starts", "shape", shape)
    size = require_sizes("cover_starts", "size", size, axes=len(shape))
    per_axis: Any = (overlap,) * len(shape) if isinstance(overlap, Real) else overlap
    overlaps = integers("cover_starts", "overlap", per_axis)
    if len(overlaps) != len(shape):
        raise ValueError(
            f"cover_starts: overlap must be an int or one per axis ({len(shape)}); got {overlaps}"
        )
    for n, s, o in zip(shape, size, overlaps, strict=True):
        if s > n:
            raise ValueError(f"cover_starts: size must not exceed shape {shape}; got {size}")
        if not 0 <= o < s:
            raise ValueError(
                f"cover_starts: overlap must be 0 to size - 1 ({size}); got {overlaps}"
            )
    axes = [
        torch.tensor([*range(0, n - s, s - o), n - s])
        for n, s, o in zip(shape, size, overlaps, strict=True)
    ]
    return torch.cartesian_prod(*axes).reshape(-1, len(shape))
