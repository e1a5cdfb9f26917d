"""The brain of a pair of visits: the union of masks, a substitute for them, bias correction."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cmrfast.data.prepare import percentiles


def brain_union(*masks: Tensor) -> Tensor:
    """Voxels that are brain at any visit, bool.

    Args:
        masks: (*S) each, of one shape, nonzero inside.
    """
    if not masks or any(m.shape != masks[0].shape for m in masks):
        shapes = ", ".join(str(tuple(m.shape)) for m in masks) or "none"
        raise ValueError(f"brain_union: needs masks of one shape; got {shapes}")
    union = masks[0] != 0
    for mask in masks[1:]:
        union = union | (mask != 0)
    return union


def foreground(volume: Tensor, *, share: float = 0.1) -> Tensor:
    """The foreground of a volume, holes included, where no brain mask is available.

    A voxel is bright where the mean of 3³ voxels exceeds a fraction of the 99th percentile; along
    axes of fewer than 3 voxels no mean is taken. It is foreground if along every axis it is bright
    or has bright voxels on both sides. In a skull-stripped image that is the brain with its
    ventricles, otherwise the head.

    Args:
        volume: (I, J, K), real.
        share: fraction of the 99th percentile.

    Returns:
        (I, J, K) bool.
    """
    if volume.dim() != 3:
        raise ValueError(f"foreground: volume must be (I, J, K); got {tuple(volume.shape)}")
    values = volume.float()
    width = [3 if count >= 3 else 1 for count in volume.shape]  # a 2-D image is one slice
    padding = [n // 2 for n in width]
    smooth = F.avg_pool3d(values[None, None], width, 1, padding, count_include_pad=False)[0, 0]
    bright = smooth > share * percentiles(values, (99.0,)).float()
    inside = torch.ones_like(bright)
    for axis in range(3):
        before = bright.cumsum(axis, dtype=torch.int32)
        inside &= (before > 0) & (bright | (before < before.narrow(axis, -1, 1)))
    return inside


def correct_bias(
    volume: Tensor,
    mask: Tensor,
    spacing_mm: Sequence[float],
    *,
    shrink: int = 4,
    iterations: Sequence[int] = (50, 50, 50, 50),
) -> Tensor:
    """Correct the bias field (N4, by SimpleITK: ``pip install cmrfast[n4]``).

    The field is fitted on every ``shrink``-th voxel and evaluated on all of them.

    Args:
        volume: (I, J, K), real, positive inside the mask.
        mask: (I, J, K), nonzero where the field is fitted.
        spacing_mm: edges of a voxel.
        shrink: along every axis with at least 4 · shrink voxels.
        iterations: largest number on each level of the fit.

    Returns:
        (I, J, K) float32, with the volume's mean inside the mask.
    """
    if volume.dim() != 3 or volume.shape != mask.shape or len(spacing_mm) != 3:
        raise ValueError(
            "correct_bias: needs a volume (I, J, K), its mask and 3 spacings; got "
            f"{tuple(volume.shape)}, {tuple(mask.shape)} and {len(spacing_mm)}"
        )
    inside = mask != 0
    if not inside.any():
        raise ValueError("correct_bias: the mask is empty")
    try:
        sitk: Any = import_module("SimpleITK")
    except ImportError as error:
        raise ImportError("correct_bias: needs SimpleITK; pip install cmrfast[n4]") from error

    def image(tensor: Tensor, dtype: torch.dtype) -> Any:
        # SimpleITK's arrays are (K, J, I).
        made = sitk.GetImageFromArray(tensor.cpu().to(dtype).permute(2, 1, 0).contiguous().numpy())
        made.SetSpacing([float(s) for s in spacing_mm])
        return made

    whole = image(volume, torch.float32)
    factors = [shrink if n >= 4 * shrink else 1 for n in volume.shape]
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([int(n) for n in iterations])
    n4.Execute(sitk.Shrink(whole, factors), sitk.Shrink(image(inside, torch.uint8), factors))
    log_bias = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(whole))
    even = volume.float() / torch.from_numpy(log_bias).permute(2, 1, 0).exp().to(volume.device)
    return even * (volume[inside].float().mean() / even[inside].mean())
