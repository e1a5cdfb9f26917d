"""Affine sampling of images without a grid in memory."""

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

# What the kernels know beyond the public options: nearest ties half up, and a border that is held
# for half a voxel before fill begins, as resampling between grids needs them.
NEAREST_UP = 2
HOLD_HALF = 2


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

    Equal up to rounding to PyTorch's ``grid_sample(images, affine_grid(theta, size))``.

    Args:
        images: (B, C, *S), floating, two or three space axes.
        theta: (B, d, d + 1), or (1, d, d + 1) for all; maps normalised output positions to
            normalised input positions, coordinates in the order of the last axis first.
        size: of the output, d entries; default S.
        mode: ``linear`` or ``nearest`` (ties to even).
        padding: ``zeros`` outside, or the nearest ``border`` voxel.
        align_corners: whether -1 and 1 are the centres of the outer voxels (else their edges).

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
    matrix = vox_from_theta(theta, images.shape[2:], size, align_corners)
    return sample(images, matrix, size, _MODES.index(mode), _PADDINGS.index(padding))


def check_images(op: str, images: Tensor, theta: Tensor) -> int:
    """Raise unless images and theta fit each other; the number of space axes."""
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


def vox_from_theta(
    theta: Tensor, shape: Sequence[int], size: Sequence[int], align_corners: bool
) -> Tensor:
    """Input voxel from output voxel, (B, d, d + 1) float64, axes in order."""
    one = torch.ones((), dtype=torch.float64, device=theta.device)
    n_in, n_out = torch.stack([one * n for n in shape]), torch.stack([one * n for n in size])
    theta = theta.to(torch.float64).flip(1)
    linear, offset = theta[..., :-1].flip(2), theta[..., -1]
    if align_corners:  # an axis of one voxel lies in the middle
        start, step = torch.where(n_out > 1, -1.0, 0.0), 2 / (n_out - 1).clamp(min=1)
        step = torch.where(n_out > 1, step, 0.0)
        half, zero = (n_in - 1) / 2, (n_in - 1) / 2
    else:
        start, step = 1 / n_out - 1, 2 / n_out
        half, zero = n_in / 2, (n_in - 1) / 2
    base = ((linear * start).sum(-1) + offset) * half + zero
    return torch.cat((linear * step * half[:, None], base[..., None]), -1)


def sample(
    images: Tensor, matrix: Tensor, size: Sequence[int], mode: int, border: int, fill: float = 0.0
) -> Tensor:
    """Images at the voxel positions ``matrix @ (output voxel, 1)``, in the images' dtype."""
    matrix = matrix.expand(images.shape[0], -1, -1)
    dtype = images.dtype
    if mode == 0:
        images = affine_sample_op.upcast(images)
    sampled: Tensor = affine_sample_op(images, matrix, size, mode, border, fill)
    return sampled.to(dtype)


def _positions(matrix: Tensor, size: Sequence[int]) -> Tensor:
    """(B, d, *size) float64 input positions of every output voxel."""
    axes = len(size)
    where = torch.full(
        (matrix.shape[0], axes, *size), 0.0, dtype=matrix.dtype, device=matrix.device
    )
    where = where + matrix[..., -1].view(-1, axes, *[1] * axes)
    for a, s in enumerate(size):
        along = torch.arange(s, dtype=matrix.dtype, device=matrix.device)
        along = along.view(*(s if d == a else 1 for d in range(axes)))
        where = where + matrix[..., a].view(-1, axes, *[1] * axes) * along
    return where


def _corners(images: Tensor, matrix: Tensor, size: Sequence[int], mode: int, border: int) -> Any:
    """Corner by corner: flat index (B, *size), weight, slopes of the weight, whether it counts."""
    shape, axes = images.shape[2:], len(size)
    where = _positions(matrix, size)
    last = torch.tensor([n - 1 for n in shape], dtype=where.dtype, device=where.device)
    last = last.view(1, axes, *[1] * axes)
    counts = torch.ones_like(where[:, 0], dtype=torch.bool)
    moves = torch.ones_like(where, dtype=torch.bool)
    if border == HOLD_HALF:
        counts = ((where >= -0.5) & (where < last + 0.5)).all(1)
    if border:
        moves = (where > 0) & (where < last)
        where = torch.where((where > 0) & where.isfinite(), torch.minimum(where, last), 0)
    if mode:
        cell = where.round() if mode == 1 else (where + 0.5).floor()
        whole, fraction, corners = cell, torch.zeros_like(where), [(0,) * axes]
    else:
        whole = where.floor()
        fraction = torch.where(whole.isfinite(), where - whole, 0)
        corners = torch.cartesian_prod(*[torch.tensor([0, 1])] * axes).tolist()
    for corner in corners:
        flat, inside = torch.zeros_like(counts, dtype=torch.int64), counts
        weight = torch.ones_like(where[:, 0])
        slopes = [1.0 * moves[:, a] for a in range(axes)]
        for a, up in enumerate(corner):
            at = whole[:, a] + up
            inside = inside & (at >= 0) & (at <= shape[a] - 1)
            at = torch.where(inside, at, 0).long()
            flat = flat * shape[a] + at
            share = fraction[:, a] if up else 1 - fraction[:, a]
            weight = weight * share
            slopes = [s * ((1 if up else -1) if d == a else share) for d, s in enumerate(slopes)]
        yield torch.where(inside, flat, 0), weight, torch.stack(slopes, 1), inside, counts


def _reference(
    images: Tensor, matrix: Tensor, size: Sequence[int], mode: int, border: int, fill: float
) -> Tensor:
    batch, channels = images.shape[:2]
    flat_images = (images if mode else upcast(images)).flatten(2)
    out: Any = 0
    for flat, weight, _, inside, counts in _corners(images, matrix, size, mode, border):
        index = flat.flatten(1)[:, None].expand(-1, channels, -1)
        values = flat_images.gather(2, index).view(batch, channels, *size)
        if not mode:
            values = values * weight[:, None].to(values.dtype)
        out = out + torch.where(inside[:, None], values, 0)
        held = counts if border == HOLD_HALF else inside if mode else None
    return (out if held is None else torch.where(held[:, None], out, fill)).to(images.dtype)


def _reference_backward(
    grad: Tensor,
    images: Tensor,
    matrix: Tensor,
    mode: int,
    border: int,
    for_images: bool,
    for_matrix: bool,
) -> tuple[Tensor, Tensor]:
    (batch, channels), size, dtype = images.shape[:2], grad.shape[2:], images.dtype
    grad, images = upcast(grad), upcast(images)
    to_images = torch.zeros_like(images.flatten(2))
    along = torch.zeros(batch, len(size), *size, dtype=torch.float64, device=grad.device)
    for flat, weight, slopes, inside, _ in _corners(images, matrix, size, mode, border):
        index = flat.flatten(1)[:, None].expand(-1, channels, -1)
        share = grad if mode else grad * weight[:, None].to(grad.dtype)
        share = torch.where(inside[:, None], share, 0)
        to_images.scatter_add_(2, index, share.flatten(2))
        values = images.flatten(2).gather(2, index).view(grad.shape)
        pull = torch.where(inside[:, None], values * grad, 0).sum(1, keepdim=True)
        along += pull * slopes
    to_matrix = torch.zeros_like(matrix)
    if for_matrix and not mode:
        to_matrix[..., -1] = along.flatten(2).sum(-1)
        for a, s in enumerate(size):
            k = torch.arange(s, dtype=along.dtype, device=along.device)
            k = k.view(*(s if d == a else 1 for d in range(len(size))))
            to_matrix[..., a] = (along * k).flatten(2).sum(-1)
    to_images = to_images.view(images.shape) if for_images else images.new_empty(0)
    return to_images.to(dtype), to_matrix


def _backward(inputs: Any, outputs: None, grad: Tensor, needed: Any) -> Any:
    images, matrix, _, mode, border, _ = inputs
    op = affine_sample_backward
    to_images, to_matrix = op(
        op.upcast(grad), op.upcast(images), matrix, mode, border, needed[0], needed[1]
    )
    return (
        to_images.to(images.dtype) if needed[0] else None,
        to_matrix if needed[1] else None,
        *(None,) * 4,
    )


#: The functions that sample with these ops.
_PUBLIC = ("affine_sample", "warp_pair", "resample")

affine_sample_op = define(
    "affine_sample(Tensor images, Tensor matrix, SymInt[] size, int mode, int border, float fill)"
    " -> Tensor",
    reference=_reference,
    fake=lambda images, matrix, size, *_: images.new_empty(*images.shape[:2], *size),
    backward=_backward,
    gradients=(0, 1),
    of=_PUBLIC,
)

affine_sample_backward = define(
    "affine_sample_backward(Tensor grad, Tensor images, Tensor matrix, int mode, int border,"
    " bool for_images, bool for_matrix) -> (Tensor, Tensor)",
    reference=_reference_backward,
    fake=lambda grad, images, matrix, mode, border, for_images, for_matrix: (
        images.new_empty(images.shape if for_images else (0,)),
        matrix.new_empty(matrix.shape),
    ),
    of=_PUBLIC,
)
