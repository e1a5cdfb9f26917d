"""Sampling of one image as MONAI's resamplers do, on the op of ``affine_sample``."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cmrfast.compat.monai._check import refuse
from cmrfast.ops.affine_sample import CLAMP, LINEAR, NEAREST_EVEN, VOXELS, ZEROS, sample

_MODES = {"bilinear": LINEAR, "nearest": NEAREST_EVEN}
_BORDERS = {"zeros": ZEROS, "border": CLAMP, "reflection": CLAMP}
# Integers that float32 may not hold are interpolated in float64, as is float64 itself.
_DOUBLE = (torch.float64, torch.int32, torch.int64)


def require_modes(name: str, mode: Any, padding: Any) -> tuple[str, str]:
    """MONAI's names of interpolation and border, if both are kept; raises otherwise."""
    mode, padding = getattr(mode, "value", mode), getattr(padding, "value", padding)
    if mode not in _MODES:
        refuse(name, "mode", "bilinear or nearest", mode)
    if padding not in _BORDERS:
        refuse(name, "padding_mode", "zeros, border or reflection", padding)
    return mode, padding


def sample_image(
    image: Tensor,
    vox_from_vox: Tensor,
    size: tuple[int, ...],
    mode: str,
    padding: str,
    *,
    reflect_centers: bool = False,
) -> Tensor:
    """An image at affinely transformed positions.

    Args:
        image: (C, *S) of any real dtype, two or three space axes.
        vox_from_vox: (d, d + 1) or (d + 1, d + 1), from voxels of the result to those of the image.
        size: of the result.
        mode: bilinear or nearest.
        padding: zeros, border or reflection.
        reflect_centers: whether reflection is about the centres of the outer voxels, or their
            outer edges.

    Returns:
        (C, *size) float32.
    """
    axes = len(size)
    matrix = vox_from_vox[:axes].double().cpu()
    if padding == "reflection":
        image, matrix = _reflected(image, matrix, size, reflect_centers)
    if mode == "bilinear":
        image = image.to(torch.float64 if image.dtype in _DOUBLE else torch.float32)
    elif image.dtype == torch.bool:
        image = image.byte()
    matrix = matrix[None].to(image.device)
    sampled = sample(image[None], matrix, size, VOXELS, _MODES[mode], _BORDERS[padding])
    return sampled[0].float()


def _reflected(
    image: Tensor, matrix: Tensor, size: tuple[int, ...], about_centers: bool
) -> tuple[Tensor, Tensor]:
    """The image, extended by reflection to where it is sampled, and the matrix into it."""
    ends = torch.tensor([n - 1 for n in size], dtype=matrix.dtype)
    reach = matrix[:, :-1] * ends
    first = (matrix[:, -1] + reach.clamp(max=0).sum(1)).floor().tolist()
    last = (matrix[:, -1] + reach.clamp(min=0).sum(1)).ceil().tolist()
    shape = image.shape[1:]
    before = [max(0, -int(low)) for low in first]
    after = [max(0, int(high) + 1 - n) for high, n in zip(last, shape, strict=True)]
    if not any(before + after):
        return image, matrix
    lengths = [b + n + a for b, n, a in zip(before, shape, after, strict=True)]
    extended = image.new_empty(len(image), *lengths)
    _inner(extended, before, shape).copy_(image)
    for axis in reversed(range(len(shape))):  # the last first, whose slabs are then the smallest
        part = _inner(extended, before[:axis], shape[:axis])
        _reflect(part, axis + 1, before[axis], shape[axis], about_centers)
    offset = torch.zeros_like(matrix)
    offset[:, -1] = torch.tensor(before)
    return extended, matrix + offset


def _inner(image: Tensor, start: Sequence[int], shape: Sequence[int]) -> Tensor:
    """The part of an image (C, *S) at these starts, of this shape; all of the other axes."""
    for axis, (first, n) in enumerate(zip(start, shape, strict=True), 1):
        image = image.narrow(axis, first, n)
    return image


def _reflect(image: Tensor, axis: int, start: int, n: int, about_centers: bool) -> None:
    """Fill an axis whose n entries from ``start`` are given, a reflection at a time."""
    gap = int(about_centers and n > 1)
    first, last, length = start, start + n, image.shape[axis]
    while first > 0:
        step = min(first, n - gap)
        source = image.narrow(axis, first + gap, step).flip(axis)
        first -= step
        image.narrow(axis, first, step).copy_(source)
    while last < length:
        step = min(length - last, n - gap)
        source = image.narrow(axis, last - gap - step, step).flip(axis)
        image.narrow(axis, last, step).copy_(source)
        last += step
