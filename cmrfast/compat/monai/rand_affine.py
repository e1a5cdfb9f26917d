"""MONAI's RandAffined without sampling grids."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai import transforms
from monai.data import MetaTensor, get_track_meta
from monai.transforms.spatial import array
from monai.utils import convert_to_dst_type, convert_to_tensor
from torch import Tensor

from cmrfast.compat.monai._check import refuse
from cmrfast.compat.monai._sampling import require_modes, sample_image


class RandAffined(transforms.RandAffined):
    """``monai.transforms.RandAffined``; the same arguments and, for a seed, transforms.

    Samples without a grid in memory, and in float32 where MONAI takes float64 for the
    interpolation and float32 for the positions. The default padding, reflection, copies the image
    with the margin that is sampled. ``cache_grid`` has no effect; ``inverse`` is MONAI's. Raises
    for spline orders and other names of ``mode``, ``padding_mode`` other than zeros, border and
    reflection, and ``lazy=True``.

    Example:
        >>> import torch
        >>> affine = RandAffined(["image"], prob=1.0, rotate_range=[0.3], padding_mode="zeros")
        >>> affine({"image": torch.ones(1, 24, 24)})["image"].shape[1:]
        torch.Size([24, 24])
    """

    def __init__(
        self,
        keys: Any,
        spatial_size: Sequence[int] | int | None = None,
        prob: float = 0.1,
        rotate_range: Any = None,
        shear_range: Any = None,
        translate_range: Any = None,
        scale_range: Any = None,
        mode: Any = "bilinear",
        padding_mode: Any = "reflection",
        cache_grid: bool = False,
        device: torch.device | None = None,
        allow_missing_keys: bool = False,
        lazy: bool = False,
    ) -> None:
        super().__init__(
            keys,
            prob=prob,
            mode=mode,
            padding_mode=padding_mode,
            allow_missing_keys=allow_missing_keys,
            lazy=lazy,
        )
        self.rand_affine = RandAffine(
            prob=1.0,
            rotate_range=rotate_range,
            shear_range=shear_range,
            translate_range=translate_range,
            scale_range=scale_range,
            spatial_size=spatial_size,
            device=device,
        )
        for one_mode, one_padding in zip(self.mode, self.padding_mode, strict=True):
            require_modes("RandAffined", one_mode, one_padding)
        if lazy:
            refuse("RandAffined", "lazy", "False", True)

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> Any:
        """The data with the images of the keys transformed, each float32."""
        if self.lazy if lazy is None else lazy:
            refuse("RandAffined", "lazy", "False", True)
        return super().__call__(data, lazy=lazy)


class _Placed(NamedTuple):
    """What takes the place of a grid."""

    affine: Tensor  # (d + 1, d + 1), from positions of the result to those of the image, centred
    size: tuple[int, ...]


class RandAffine(transforms.RandAffine):
    """``monai.transforms.RandAffine`` whose grids are matrices; used by ``RandAffined``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        names = ("rotate_range", "shear_range", "translate_range", "scale_range", "device")
        self.rand_affine_grid = RandAffineGrid(**{name: options[name] for name in names})
        self.resampler = Resample(device=options["device"])

    def _init_identity_cache(self, lazy: bool) -> None:
        return None

    def get_identity_grid(self, spatial_size: Sequence[int], lazy: bool) -> Any:
        """The identity, in place of a grid of this size."""
        return _Placed(torch.eye(len(spatial_size) + 1), tuple(spatial_size))


class RandAffineGrid(transforms.RandAffineGrid):
    """``monai.transforms.RandAffineGrid`` that returns matrices."""

    def __call__(
        self, spatial_size: Any = None, grid: Any = None, randomize: bool = True, lazy: Any = None
    ) -> Any:
        """The random matrix, with the size of the grid."""
        super().__call__(grid.size, randomize=randomize, lazy=True)  # makes the matrix alone
        affine = torch.as_tensor(self.get_transformation_matrix(), dtype=torch.float32)
        self.affine = affine
        return _Placed(affine, grid.size)


class Resample(array.Resample):
    """``monai.transforms.Resample`` that samples at the positions of a matrix."""

    def __call__(
        self,
        img: Tensor,
        grid: Any = None,
        mode: Any = None,
        padding_mode: Any = None,
        dtype: Any = None,
        align_corners: bool | None = None,
    ) -> Tensor:
        """The image, float32; at the positions of a true grid as in MONAI, for inverses."""
        if not isinstance(grid, _Placed):
            return super().__call__(img, grid, mode, padding_mode, dtype, align_corners)
        mode, padding = require_modes("RandAffined", mode, padding_mode)
        img = convert_to_tensor(img, track_meta=get_track_meta())
        shape = img.shape[1:]
        if len(shape) != len(grid.size):
            raise ValueError(
                f"compat.monai.RandAffined: images must have {len(grid.size)} space axes, as the "
                f"first of the keys; got {tuple(img.shape)}"
            )
        image = img.as_tensor() if isinstance(img, MetaTensor) else img
        sampled = sample_image(image, _from_corner(grid, shape), grid.size, mode, padding)
        return convert_to_dst_type(sampled, dst=img, dtype=np.float32)[0]


def _from_corner(placed: _Placed, shape: Sequence[int]) -> Tensor:
    """The matrix (d, d + 1) from voxels of the result to those of an image of this shape."""
    axes = len(shape)
    matrix = placed.affine[:axes].double().cpu()
    # MONAI normalises positions by at least two voxels
    matrix = matrix * torch.tensor([[n / max(n, 2)] for n in shape], dtype=matrix.dtype)
    center = torch.tensor([(n - 1) / 2 for n in shape], dtype=matrix.dtype)
    center_of_result = torch.tensor([(n - 1) / 2 for n in placed.size], dtype=matrix.dtype)
    linear = matrix[:, :axes]
    shift = matrix[:, axes] + center - linear @ center_of_result
    return torch.cat((linear, shift[:, None]), 1)
