"""Affine sampling of images, without a sampling grid in memory."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from cmrfast.ops._check import require_floating, require_one_device, require_sizes, upcast
from cmrfast.ops._op import define

Mode = Literal["linear", "nearest"]
Padding = Literal["zeros", "border"]
_MODES = ("linear", "nearest")
_PADDINGS = ("zeros", "border")

# Numbered as in csrc/enums.h. Beyond the public options, resampling between grids needs ties that
# go half up, and a border that is clamped for half a voxel before the fill value begins. Only
# sample_patches is cubic.
LINEAR, NEAREST_EVEN, NEAREST_UP, CUBIC = range(4)
ZEROS, CLAMP, CLAMP_HALF = range(3)
# What a matrix maps to input positions: voxels, or coordinates from -1 to 1 between the outer edges
# (``align_corners=False``) or the centres of the outer voxels, the last axis first.
VOXELS, EDGES, CENTRES = range(3)


def affine_sample(
    images: Tensor,
    theta: Tensor,
    size: Sequence[int] | None = None,
    *,
    mode: Mode = "linear",
    padding: Padding = "zeros",
    align_corners: bool = False,
) -> Tensor:
    """Sample images at affinely transformed positions.

    Equals PyTorch's ``grid_sample(images, affine_grid(theta, size))`` up to rounding.

    Args:
        images: (B, C, *S), floating, two or three space axes.
        theta: (B, d, d + 1), or (1, d, d + 1) for all; maps normalised output coordinates to
            normalised input coordinates, the last axis first, as in PyTorch.
        size: of the output, d entries; default S.
        mode: ``linear`` or ``nearest`` (ties to even).
        padding: ``zeros`` outside, or the nearest ``border`` voxel.
        align_corners: whether -1 and 1 are the centres of the outer voxels or their outer edges.

    Returns:
        (B, C, *size). Differentiable in images and, for ``linear``, in theta.

    Example:
        >>> image = torch.arange(4.0).view(1, 1, 1, 4)
        >>> mirror = torch.tensor([[[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
        >>> affine_sample(image, mirror)
        tensor([[[[3., 2., 1., 0.]]]])
    """
    axes = check_images("affine_sample", images, theta)
    size = tuple(images.shape[2:]) if size is None else size
    size = require_sizes("affine_sample", "size", size, axes=axes)
    for name, value, options in (("mode", mode, _MODES), ("padding", padding, _PADDINGS)):
        if value not in options:
            raise ValueError(
                f"affine_sample: {name} must be one of {', '.join(options)}; got {value!r}"
            )
    frame = CENTRES if align_corners else EDGES
    return sample(images, theta, size, frame, _MODES.index(mode), _PADDINGS.index(padding))


def check_images(op: str, images: Tensor, theta: Tensor) -> int:
    """Raise unless images and theta match; returns the number of space axes."""
    require_floating(op, "images", images)
    require_floating(op, "theta", theta)
    axes = images.dim() - 2
    if axes not in (2, 3):
        raise ValueError(
            f"{op}: images must be (B, C, *S) with 2 or 3 space axes; got {tuple(images.shape)}"
        )
    require_sizes(op, "space axes of images", images.shape[2:])
    require_one_device(op, images=images, theta=theta)
    if theta.dim() != 3 or tuple(theta.shape[1:]) != (axes, axes + 1):
        raise ValueError(f"{op}: theta must be (B, {axes}, {axes + 1}); got {tuple(theta.shape)}")
    if theta.shape[0] != 1 and theta.shape[0] != images.shape[0]:
        raise ValueError(
            f"{op}: theta must have 1 or {images.shape[0]} matrices, as many as images; "
            f"got {theta.shape[0]}"
        )
    return axes


def sample(
    images: Tensor,
    matrix: Tensor,
    size: Sequence[int],
    frame: int,
    mode: int,
    border: int,
    fill: float = 0,
) -> Tensor:
    """Images at the positions ``matrix @ (output position, 1)``, in the images' dtype.

    The matrix, (B or 1, d, d + 1), maps coordinates of ``frame``.
    """
    matrix, dtype = upcast(matrix), images.dtype
    if not dtype.is_floating_point:
        return _sample_integers(images, matrix, size, frame, mode, border, int(fill))
    if mode == LINEAR:
        images = affine_sample_op.upcast(images)
    sampled: Tensor = affine_sample_op(images, matrix, size, frame, mode, border, fill)
    return sampled.to(dtype)


#: The signed dtypes of the same size.
SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


def _sample_integers(
    images: Tensor,
    matrix: Tensor,
    size: Sequence[int],
    frame: int,
    mode: int,
    border: int,
    fill: int,
) -> Tensor:
    """Nearest voxels, bit by bit: PyTorch does little in unsigned dtypes beside uint8."""
    dtype = images.dtype
    images = images.view(SIGNED.get(dtype, dtype))
    fill = signed_of_bits(fill, images.dtype)
    offset = fill if abs(fill) > 2**53 else 0  # the op's fill is a double; sums wrap around
    shifted = images - offset if offset else images
    sampled: Tensor = affine_sample_op(
        shifted, matrix, size, frame, mode, border, float(fill - offset)
    )
    return (sampled + offset if offset else sampled).view(dtype)


def signed_of_bits(value: int, dtype: torch.dtype) -> int:
    """The integer of a signed dtype with the same bits as one of its unsigned dtype."""
    limits = torch.iinfo(dtype)
    signed: int = (value - limits.min) % 2**limits.bits + limits.min
    return signed


def _frame_axes(shape: Sequence[int], size: Sequence[int], frame: int) -> list[tuple[Any, ...]]:
    """For each axis: start, step, half, middle.

    Output voxel o is at the coordinate start + step * o, and the coordinate x of the input is voxel
    middle + half * x.
    """
    axes: list[tuple[Any, ...]] = []
    for n, voxels in zip(shape, size, strict=True):
        middle = (n - 1) / 2
        if frame == VOXELS:
            axes.append((0, 1, 1, 0))
        elif frame == EDGES:
            axes.append((1 / voxels - 1, 2 / voxels, n / 2, middle))
        elif voxels > 1:
            axes.append((-1, 2 / (voxels - 1), middle, middle))
        else:  # the only voxel of an axis of size one is at its centre
            axes.append((0, 0, middle, middle))
    return axes


def _reversed(matrix: Tensor) -> Tensor:
    """Matrices (B, d, d + 1) with their axes in the opposite order."""
    return torch.cat((matrix[..., :-1].flip(2), matrix[..., -1:]), -1).flip(1)


def vox_from_frame(matrix: Tensor, shape: Sequence[int], size: Sequence[int], frame: int) -> Tensor:
    """The matrices from output voxels to input voxels, (B, d, d + 1) float64, axes in order.

    ``matrix`` maps coordinates of ``frame``.
    """
    matrix = matrix.to(torch.float64)
    if frame == VOXELS:
        return matrix
    matrix, rows = _reversed(matrix), []
    axes = _frame_axes(shape, size, frame)
    for a, (_, _, half, middle) in enumerate(axes):
        base = torch.zeros_like(matrix[:, 0, 0])
        for d, (start, _, _, _) in enumerate(axes):
            base = base + matrix[:, a, d] * start
        row = [matrix[:, a, d] * step * half for d, (_, step, _, _) in enumerate(axes)]
        rows.append(torch.stack((*row, (base + matrix[:, a, -1]) * half + middle), -1))
    return torch.stack(rows, 1)


def _positions(matrix: Tensor, size: Sequence[int]) -> Tensor:
    """Input positions of all output voxels, (B, d, *size) float64."""
    axes = len(size)
    shape = (matrix.shape[0], axes, *size)
    x = torch.full(shape, 0.0, dtype=matrix.dtype, device=matrix.device)
    x = x + matrix[..., -1].view(-1, axes, *[1] * axes)
    for a, s in enumerate(size):
        voxel = torch.arange(s, dtype=matrix.dtype, device=matrix.device)
        voxel = voxel.view(*(s if d == a else 1 for d in range(axes)))
        x = x + matrix[..., a].view(-1, axes, *[1] * axes) * voxel
    return x


def _corners(images: Tensor, matrix: Tensor, size: Sequence[int], mode: int, border: int) -> Any:
    """For each corner of the cells: flat index (B, *size), weight, its slopes, inside, valid.

    ``valid`` is whether a voxel is sampled at all, ``inside`` whether this corner is in the image.
    """
    shape, axes = images.shape[2:], len(size)
    x = _positions(matrix, size)
    last = torch.tensor([n - 1 for n in shape], dtype=x.dtype, device=x.device)
    last = last.view(1, axes, *[1] * axes)
    valid = torch.ones_like(x[:, 0], dtype=torch.bool)
    unclamped = torch.ones_like(x, dtype=torch.bool)
    if border == CLAMP_HALF:
        valid = ((x >= -0.5) & (x < last + 0.5)).all(1)
    if border != ZEROS:
        unclamped = (x > 0) & (x < last)
        x = torch.where((x > 0) & x.isfinite(), torch.minimum(x, last), 0)
    if mode == LINEAR:
        cell = x.floor()
        fraction = torch.where(cell.isfinite(), x - cell, 0)
        corners = torch.cartesian_prod(*[torch.tensor([0, 1])] * axes).tolist()
    else:
        cell = x.round() if mode == NEAREST_EVEN else (x + 0.5).floor()
        fraction, corners = torch.zeros_like(x), [(0,) * axes]
    for corner in corners:
        flat, inside = torch.zeros_like(valid, dtype=torch.int64), valid
        weight = torch.ones_like(x[:, 0])
        slopes = [1.0 * unclamped[:, a] for a in range(axes)]
        for a, up in enumerate(corner):
            at = cell[:, a] + up
            inside = inside & (at >= 0) & (at <= shape[a] - 1)
            at = torch.where(inside, at, 0).long()
            flat = flat * shape[a] + at
            w = fraction[:, a] if up else 1 - fraction[:, a]
            weight = weight * w
            slopes = [s * ((1 if up else -1) if d == a else w) for d, s in enumerate(slopes)]
        yield torch.where(inside, flat, 0), weight, torch.stack(slopes, 1), inside, valid


def _reference(
    images: Tensor,
    matrix: Tensor,
    size: Sequence[int],
    frame: int,
    mode: int,
    border: int,
    fill: float,
) -> Tensor:
    batch, channels = images.shape[:2]
    matrix = vox_from_frame(matrix, images.shape[2:], size, frame).expand(batch, -1, -1)
    linear = mode == LINEAR
    flat_images = (upcast(images) if linear else images).flatten(2)
    out: Any = 0
    for flat, weight, _, inside, valid in _corners(images, matrix, size, mode, border):
        index = flat.flatten(1)[:, None].expand(-1, channels, -1)
        values = flat_images.gather(2, index).view(batch, channels, *size)
        if linear:
            values = values * weight[:, None].to(values.dtype)
        out = out + torch.where(inside[:, None], values, 0)
        sampled = valid if border == CLAMP_HALF else None if linear else inside
    if not images.is_floating_point():
        fill = int(fill)  # a float would turn all values into float32
    return (out if sampled is None else torch.where(sampled[:, None], out, fill)).to(images.dtype)


def _reference_backward(
    grad: Tensor,
    images: Tensor,
    matrix: Tensor,
    frame: int,
    mode: int,
    border: int,
    for_images: bool,
    for_matrix: bool,
) -> tuple[Tensor, Tensor]:
    (batch, channels), size, dtype = images.shape[:2], grad.shape[2:], images.dtype
    grad, images = upcast(grad), upcast(images)
    voxel_matrix = vox_from_frame(matrix, images.shape[2:], size, frame).expand(batch, -1, -1)
    linear = mode == LINEAR
    grad_images = torch.zeros_like(images.flatten(2))
    grad_x = torch.zeros(batch, len(size), *size, dtype=torch.float64, device=grad.device)
    for flat, weight, slopes, inside, _ in _corners(images, voxel_matrix, size, mode, border):
        index = flat.flatten(1)[:, None].expand(-1, channels, -1)
        grad_corner = grad * weight[:, None].to(grad.dtype) if linear else grad
        grad_corner = torch.where(inside[:, None], grad_corner, 0)
        grad_images.scatter_add_(2, index, grad_corner.flatten(2))
        values = images.flatten(2).gather(2, index).view(grad.shape)
        grad_x += torch.where(inside[:, None], values * grad, 0).sum(1, keepdim=True) * slopes
    grad_matrix = torch.zeros(batch, *matrix.shape[1:], dtype=grad_x.dtype, device=grad.device)
    if for_matrix and linear:
        axes = _frame_axes(images.shape[2:], size, frame)
        for a, (_, _, half, _) in enumerate(axes):
            grad_matrix[:, a, -1] = half * grad_x[:, a].flatten(1).sum(-1)
            for d, (start, step, _, _) in enumerate(axes):
                at = torch.arange(size[d], dtype=grad_x.dtype, device=grad_x.device) * step + start
                at = at.view(*(-1 if axis == d else 1 for axis in range(len(size))))
                grad_matrix[:, a, d] = half * (grad_x[:, a] * at).flatten(1).sum(-1)
    grad_matrix = grad_matrix if frame == VOXELS else _reversed(grad_matrix)
    if matrix.shape[0] != batch:
        grad_matrix = grad_matrix.sum(0, keepdim=True)
    grad_images = grad_images.view(images.shape) if for_images else images.new_empty(0)
    return grad_images.to(dtype), grad_matrix.to(matrix.dtype)


def _backward(inputs: Any, outputs: None, grad: Tensor, needs_input_grad: Any) -> Any:
    images, matrix, _, frame, mode, border, _ = inputs
    op = affine_sample_backward
    grad_images, grad_matrix = op(
        op.upcast(grad), op.upcast(images), matrix, frame, mode, border, *needs_input_grad[:2]
    )
    return (
        grad_images.to(images.dtype) if needs_input_grad[0] else None,
        grad_matrix if needs_input_grad[1] else None,
        *(None,) * 5,
    )


#: The functions that sample with these ops.
_PUBLIC = ("affine_sample", "warp_pair", "resample")

affine_sample_op = define(
    "affine_sample(Tensor images, Tensor matrix, SymInt[] size, int frame, int mode, int border,"
    " float fill) -> Tensor",
    reference=_reference,
    fake=lambda images, matrix, size, *_: images.new_empty(*images.shape[:2], *size),
    backward=_backward,
    gradients=(0, 1),
    of=_PUBLIC,
)

affine_sample_backward = define(
    "affine_sample_backward(Tensor grad, Tensor images, Tensor matrix, int frame, int mode,"
    " int border, bool for_images, bool for_matrix) -> (Tensor, Tensor)",
    reference=_reference_backward,
    fake=lambda grad, images, matrix, frame, mode, border, for_images, for_matrix: (
        images.new_empty(images.shape if for_images else (0,)),
        matrix.new_empty(matrix.shape),
    ),
    of=_PUBLIC,
)
