"""A volume from one grid onto another, through world coordinates."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cmrfast.ops._check import FLOATS, kind, require_sizes, values_readable
from cmrfast.ops.affine_sample import HOLD_HALF, NEAREST_UP, Mode, sample


def resample(
    volume: Tensor,
    world_from_vox: Tensor,
    to_world_from_vox: Tensor,
    to_shape: Sequence[int],
    *,
    mode: Mode = "linear",
    fill: float = 0.0,
    antialias: bool = False,
) -> Tensor:
    """Resample a volume as SimpleITK's linear and nearest-neighbour interpolators do.

    A voxel of the new grid is inside where its centre lies at most half a voxel beyond the outer
    centres of the old one; there the border is held, further out it is ``fill``.

    Args:
        volume: (C, I, J, K), real; integer volumes with ``nearest`` only.
        world_from_vox: (4, 4), of the volume, in mm, voxel centres at integers (a NIfTI affine).
        to_world_from_vox: (4, 4), of the new grid.
        to_shape: of the new grid, three entries.
        mode: ``linear`` or ``nearest`` (ties half up).
        fill: value outside.
        antialias: smooth first along axes that get coarser: a Gaussian of
            sqrt(ratio² - 1) / 2 voxels.

    Returns:
        (C, *to_shape), of the volume's dtype.

    Example:
        >>> volume = torch.arange(3.0).view(1, 1, 1, 3)
        >>> finer = torch.diag(torch.tensor([1.0, 1.0, 0.5, 1.0]))  # half the spacing
        >>> resample(volume, torch.eye(4), finer, (1, 1, 6))
        tensor([[[[0.0000, 0.5000, 1.0000, 1.5000, 2.0000, 0.0000]]]])
    """
    if not isinstance(volume, Tensor) or volume.is_complex() or volume.dtype == torch.bool:
        raise TypeError(f"resample: volume must be a real tensor, not bool; got {kind(volume)}")
    if volume.dim() != 4:
        raise ValueError(f"resample: volume must be (C, I, J, K); got {tuple(volume.shape)}")
    require_sizes("resample", "space axes of volume", volume.shape[1:])
    to_shape = require_sizes("resample", "to_shape", to_shape, axes=3)
    if mode not in ("linear", "nearest"):
        raise ValueError(f"resample: mode must be one of linear, nearest; got {mode!r}")
    if volume.dtype not in FLOATS and (mode == "linear" or antialias):
        raise TypeError(
            f"resample: {volume.dtype} volumes need mode nearest without antialias; "
            "convert to a floating dtype first"
        )
    for name, affine in (
        ("world_from_vox", world_from_vox),
        ("to_world_from_vox", to_world_from_vox),
    ):
        if not isinstance(affine, Tensor) or tuple(affine.shape) != (4, 4):
            raise ValueError(f"resample: {name} must be a (4, 4) tensor")
    source = world_from_vox.to(volume.device, torch.float64)
    if values_readable(source) and not torch.linalg.det(source).abs() > 0:
        raise ValueError("resample: world_from_vox must be finite and invertible")
    # vox_from_vox = vox_from_world @ world_from_vox
    matrix = torch.linalg.solve(source, to_world_from_vox.to(volume.device, torch.float64))[:3]
    matrix = torch.where(matrix.abs() < 1e-12, 0, matrix)  # what solving leaves of exact zeros
    if antialias:
        volume = _smooth(volume, matrix)
    option = 0 if mode == "linear" else NEAREST_UP
    return sample(volume[None], matrix[None], to_shape, option, HOLD_HALF, fill)[0]


def _smooth(volume: Tensor, matrix: Tensor) -> Tensor:
    """Gaussian along each axis that one step of the new grid crosses more than one voxel of."""
    for axis, ratio in enumerate(torch.linalg.vector_norm(matrix[:, :3], dim=1).tolist()):
        if not 1 < ratio < math.inf:
            continue
        sigma = math.sqrt(ratio**2 - 1) / 2
        radius = math.ceil(4 * sigma)
        x = torch.arange(-radius, radius + 1, dtype=torch.float64, device=volume.device)
        kernel = torch.exp(-0.5 * (x / sigma) ** 2)
        kernel = (kernel / kernel.sum()).to(volume.dtype)
        rows = volume.movedim(axis + 1, -1)
        padded = F.pad(rows.reshape(-1, 1, rows.shape[-1]), (radius, radius), mode="replicate")
        smooth = F.conv1d(padded, kernel.view(1, 1, -1)).reshape(rows.shape)
        volume = smooth.movedim(-1, axis + 1)
    return volume
