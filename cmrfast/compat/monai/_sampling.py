"""Sampling of one image as MONAI's resamplers do, on the op of ``affine_sample``."""

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
    """The image's part that is sampled, extended by reflection, and the matrix into it."""
    ends = torch.tensor([n - 1 for n in size], dtype=matrix.dtype)
    reach = matrix[:, :-1] * ends
    first = (matrix[:, -1] + reach.clamp(max=0).sum(1)).floor()
    last = (matrix[:, -1] + reach.clamp(min=0).sum(1)).ceil()
    matrix = matrix.clone()
    for axis, n in enumerate(image.shape[1:]):
        low, high = int(first[axis]), int(last[axis])
        if low >= 0 and high < n:
            continue
        period = max(2 * (n - about_centers), 1)
        at = torch.arange(low, high + 1, device=image.device) % period
        at = torch.minimum(at, period - (not about_centers) - at).clamp(0, n - 1)
        image = image.index_select(axis + 1, at)
        matrix[axis, -1] -= low
    return image, matrix
