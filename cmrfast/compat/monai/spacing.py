"""MONAI's Spacingd without sampling grids."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import monai
import numpy as np
import torch
from monai import transforms
from monai.data import MetaTensor, get_track_meta
from monai.data.utils import AFFINE_TOL, to_affine_nd
from monai.transforms.inverse import TraceableTransform
from monai.utils import TraceKeys, convert_to_tensor, get_equivalent_dtype, version_geq
from torch import Tensor

from cmrfast.compat.monai._check import refuse
from cmrfast.compat.monai._sampling import require_modes, sample_image


class Spacingd(transforms.Spacingd):
    """``monai.transforms.Spacingd``; the same arguments, results and affines.

    Samples without a grid in memory, along one axis after the other. ``dtype`` is stored for the
    inverse, which is MONAI's; interpolation takes float32, or float64 for images whose values
    float32 cannot hold. Raises for spline orders and other names of ``mode``, ``padding_mode``
    other than zeros, border and reflection, ``lazy=True``, images with more than three space axes,
    and ``align_corners=True`` before MONAI 1.6, which had it wrong.

    Example:
        >>> import torch
        >>> from monai.data import MetaTensor
        >>> image = MetaTensor(torch.rand(1, 12, 12, 6), affine=torch.eye(4))
        >>> Spacingd(["image"], (2.0, 2.0, 1.0))({"image": image})["image"].shape[1:]
        torch.Size([6, 6, 6])
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for mode, padding_mode in zip(self.mode, self.padding_mode, strict=True):
            require_modes("Spacingd", mode, padding_mode)
        if self.lazy:
            refuse("Spacingd", "lazy", "False", True)
        if any(self.align_corners) and not version_geq(monai.__version__, "1.6"):
            # whose matrices are those of align_corners=False, sampled as if they were not
            refuse("Spacingd", "align_corners", "False before MONAI 1.6", True)
        self.spacing_transform.sp_resample = SpatialResample()

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> Any:
        """The data with the images of the keys resampled, each float32."""
        if self.lazy if lazy is None else lazy:
            refuse("Spacingd", "lazy", "False", True)
        return super().__call__(data, lazy=lazy)


class SpatialResample(transforms.SpatialResample):
    """``monai.transforms.SpatialResample`` as ``Spacingd`` calls it."""

    def __call__(
        self,
        img: Tensor,
        dst_affine: Tensor,
        spatial_size: Sequence[int],
        mode: Any,
        padding_mode: Any,
        align_corners: bool,
        dtype: Any,
        lazy: bool,
    ) -> Tensor:
        """The image on the grid of the affine, float32."""
        mode, padding = require_modes("Spacingd", mode, padding_mode)
        source_affine = img.affine if isinstance(img, MetaTensor) else torch.eye(4)
        img = convert_to_tensor(img, track_meta=get_track_meta())
        shape, size = tuple(img.shape[1:]), tuple(int(n) for n in spatial_size)
        axes = len(shape)
        if axes not in (2, 3):
            refuse("Spacingd", "images", "(C, *S) with 2 or 3 space axes", tuple(img.shape))
        source = to_affine_nd(axes, source_affine).to(torch.float64).cpu()
        target = torch.as_tensor(to_affine_nd(axes, dst_affine)).to(source)
        vox_from_vox = torch.as_tensor(np.linalg.solve(source.numpy(), target.numpy()))
        unchanged = shape == size and (
            torch.allclose(source, target, atol=AFFINE_TOL)
            or torch.allclose(vox_from_vox, torch.eye(axes + 1).double(), atol=AFFINE_TOL)
        )
        meta = TraceableTransform.track_transform_meta(
            img,
            sp_size=torch.tensor(size),
            affine=None if unchanged else vox_from_vox,
            extra_info={
                "dtype": str(get_equivalent_dtype(dtype or img.dtype, Tensor))[6:],
                "mode": mode,
                "padding_mode": padding,
                "align_corners": TraceKeys.NONE if align_corners is None else align_corners,
                "src_affine": source,
            },
            orig_size=shape,
            transform_info=self.get_transform_info(),
            lazy=False,
        )
        image = img.as_tensor() if isinstance(img, MetaTensor) else img
        sampled = (
            image.float()
            if unchanged
            else sample_image(
                image, vox_from_vox, size, mode, padding, reflect_centers=bool(align_corners)
            )
        )
        out = convert_to_tensor(sampled, track_meta=get_track_meta())
        return out.copy_meta_from(meta) if isinstance(out, MetaTensor) else out
