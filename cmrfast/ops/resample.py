"""Resampling of a volume from one grid to another, through world coordinates."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cmrfast.ops._check import (
    FLOATS,
    HALF_DTYPES,
    require_fill,
    require_floating,
    require_real,
    require_sizes,
    upcast,
    values_readable,
)
from cmrfast.ops._op import define
from cmrfast.ops.affine_sample import CLAMP_HALF, LINEAR, NEAREST_UP, VOXELS, Mode, sample


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

    A voxel of the new grid is inside if its position x on the old one is -1/2 <= x < n - 1/2 on
    each axis; there positions are clamped to the border, further out the result is ``fill``.

    Args:
        volume: (C, *S), floating, or any real dtype with ``nearest``. A 2-D image is the slice
            k = 0, and the affines' k axis is ignored.
        world_from_vox: (4, 4), of the volume, in mm, voxel centres at integers (a NIfTI affine).
        to_world_from_vox: (4, 4), of the new grid.
        to_shape: of the new grid, one entry per space axis.
        mode: ``linear`` or ``nearest`` (ties half up).
        fill: value outside.
        antialias: smooth axes that get coarser first, with a Gaussian of sqrt(ratio² - 1) / 2
            voxels. A voxel that is not finite may then spoil all of its lines.

    Returns:
        (C, *to_shape), of the volume's dtype. Differentiable in the volume.

    Example:
        >>> volume = torch.arange(3.0).view(1, 1, 1, 3)
        >>> finer = torch.diag(torch.tensor([1.0, 1.0, 0.5, 1.0]))  # half the spacing
        >>> resample(volume, torch.eye(4), finer, (1, 1, 6))
        tensor([[[[0.0000, 0.5000, 1.0000, 1.5000, 2.0000, 0.0000]]]])
    """
    require_real("resample", "volume", volume)
    axes = volume.dim() - 1
    if axes not in (2, 3):
        raise ValueError(
            f"resample: volume must be (C, *S) with 2 or 3 space axes; got {tuple(volume.shape)}"
        )
    require_sizes("resample", "space axes of volume", volume.shape[1:])
    to_shape = require_sizes("resample", "to_shape", to_shape, axes=axes)
    if mode not in ("linear", "nearest"):
        raise ValueError(f"resample: mode must be one of linear, nearest; got {mode!r}")
    if volume.dtype not in FLOATS and (mode == "linear" or antialias):
        raise TypeError(
            f"resample: {volume.dtype} volumes need mode nearest without antialias; "
            "convert to a floating dtype first"
        )
    require_grids("resample", world_from_vox, to_world_from_vox)
    require_fill("resample", "fill", fill, volume.dtype)
    matrix = vox_from_vox("resample", volume, world_from_vox, to_world_from_vox)
    dtype = volume.dtype
    if antialias:
        volume = _smooth(volume.float() if dtype in HALF_DTYPES else volume, matrix)
    if dtype == torch.bool:
        volume, fill = volume.to(torch.uint8), float(bool(fill))
    option = LINEAR if mode == "linear" else NEAREST_UP
    sampled = sample(volume[None], matrix[None], to_shape, VOXELS, option, CLAMP_HALF, fill)
    return sampled[0].to(dtype)


def require_grids(op: str, world_from_vox: Tensor, to_world_from_vox: Tensor) -> None:
    """Raise unless both affines are floating (4, 4)."""
    for name, affine in (
        ("world_from_vox", world_from_vox),
        ("to_world_from_vox", to_world_from_vox),
    ):
        require_floating(op, name, affine)
        if tuple(affine.shape) != (4, 4):
            raise ValueError(f"{op}: {name} must be (4, 4); got {tuple(affine.shape)}")


def vox_from_vox(
    op: str, volume: Tensor, world_from_vox: Tensor, to_world_from_vox: Tensor
) -> Tensor:
    """The matrix from voxels of the new grid to voxels of the volume, (d, d + 1) float64."""
    source, target = upcast(world_from_vox.detach()), upcast(to_world_from_vox.detach())
    if source.device != target.device:
        source, target = source.to(volume.device), target.to(volume.device)
    if values_readable(source) and not (
        source.isfinite().all() and torch.linalg.inv_ex(source.double())[1] == 0
    ):
        raise ValueError(f"{op}: world_from_vox must be finite and invertible; it is not")
    matrix: Tensor = vox_from_vox_op(source, target, volume.dim() - 1)
    return matrix.to(volume.device)


def _reference_matrix(source: Tensor, target: Tensor, axes: int) -> Tensor:
    source, target = source.double(), target.double()
    if source.device.type == "cpu":
        vox_from_world, _ = torch.linalg.inv_ex(source)
    else:  # libraries for linear algebra synchronise, or refuse to be captured in a graph
        vox_from_world = _inverse(source)
    product = (vox_from_world[:, :, None] * target).sum(1)
    # Below 2^-36 voxels there is only the rounding error of the inverse: without it, ties and
    # borders are where the grids have them, and axis-aligned matrices are recognised.
    product = (product * 2.0**36).round() / 2.0**36
    return torch.cat((product[:axes, :axes], product[:axes, 3:]), 1)


def _inverse(matrix: Tensor) -> Tensor:
    """The inverse of a (4, 4) matrix in closed form, by a few operations on its device.

    With the rows r0 to r3 and W(a, b) the dual of a b^T - b a^T, the columns of the inverse are
    W(r2, r3) r1, -W(r2, r3) r0, W(r0, r1) r3 and -W(r0, r1) r2, over the determinant. A singular
    matrix gives entries that are not finite.
    """
    r0, r1, r2, r3 = matrix.unbind()
    upper, lower = _dual(r0, r1), _dual(r2, r3)
    products = ((lower, r1), (lower, -r0), (upper, r3), (upper, -r2))
    columns = torch.stack([(dual * row).sum(1) for dual, row in products], 1)
    return columns / (r0 * columns[:, 0]).sum()


def _dual(a: Tensor, b: Tensor) -> Tensor:
    """The dual of the antisymmetric matrix a b^T - b a^T of two vectors of four entries."""
    product = a[:, None] * b
    (zero, xy, xz, xw), (yx, _, yz, yw), (zx, zy, _, zw), (wx, wy, wz, _) = (
        row.unbind() for row in (product - product.T).unbind()
    )
    entries = (zero, zw, wy, yz, wz, zero, xw, zx, yw, wx, zero, xy, zy, xz, yx, zero)
    return torch.stack(entries).view(4, 4)


def _smooth(volume: Tensor, matrix: Tensor) -> Tensor:
    """Gaussian smoothing along each axis of the volume that the new grid samples more coarsely.

    A product with a matrix of weights, since sigma is known only on the device.
    """
    for axis, n in enumerate(volume.shape[1:], 1):
        ratio = torch.linalg.vector_norm(matrix[axis - 1, :-1])
        sigma = (ratio.square() - 1).clamp(min=0).sqrt() / 2
        voxel = torch.arange(n, dtype=torch.float64, device=volume.device)
        reach = torch.arange(-n, 2 * n, dtype=torch.float64, device=volume.device)
        distance = (reach - voxel[:, None]) / sigma.clamp(min=1e-6)
        weights = torch.exp(-distance.square() / 2).where(distance.abs() <= 6, 0)
        weights = weights / weights.sum(1, keepdim=True)
        clamped = weights[:, n : 2 * n].clone()  # beyond the border, the outer voxels repeat
        clamped[:, 0] += weights[:, :n].sum(1)
        clamped[:, -1] += weights[:, 2 * n :].sum(1)
        lines = volume.reshape(volume.shape[:axis].numel(), n, -1)
        volume = contract_axis_op(lines, clamped).view(volume.shape)
    return volume


def _contract_backward(inputs: Any, outputs: None, grad: Tensor, needs_input_grad: Any) -> Any:
    return contract_axis_op(grad, inputs[1].T), None


vox_from_vox_op = define(
    "vox_from_vox(Tensor world_from_vox, Tensor to_world_from_vox, int axes) -> Tensor",
    reference=_reference_matrix,
    fake=lambda source, target, axes: source.new_empty(axes, axes + 1, dtype=torch.float64),
    of=(),  # one small matrix, whose reference is fast enough on a CPU
)

contract_axis_op = define(
    "contract_axis(Tensor values, Tensor weights) -> Tensor",  # (O, n, I), (M, n) -> (O, M, I)
    reference=lambda values, weights: torch.einsum(
        "oni,mn->omi", values, weights.to(values.dtype)
    ).contiguous(),
    fake=lambda values, weights: values.new_empty(
        values.shape[0], weights.shape[0], values.shape[2]
    ),
    backward=_contract_backward,
    of="resample",
)
