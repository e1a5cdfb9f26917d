"""Random affine augmentation of a batch: images and labels in one warp."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cmrfast.data.random import uniforms
from cmrfast.ops import warp_pair


@dataclass(frozen=True)
class Ranges:
    """Ranges of the random parameters, each drawn uniformly and independently.

    Args:
        rotate_deg: largest angle, in either direction, in each plane of rotation.
        scale: smallest and largest factor; one factor for all axes unless ``scale_each``.
        scale_each: draw a separate factor for each axis.
        translate_vox: largest shift in voxels along each axis, in either direction.
        translate_share: largest shift as a fraction of the axis's length; added to
            ``translate_vox``.
        shear_deg: largest shear angle, in either direction, in the plane of the last two axes.
        flip: probability of a flip along each axis.
        gamma: smallest and largest exponent, drawn log-uniformly; for images in [0, 1].
        probability: probability that a sample's geometry changes at all.
    """

    rotate_deg: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    scale_each: bool = False
    translate_vox: float = 0.0
    translate_share: float = 0.0
    shear_deg: float = 0.0
    flip: float = 0.0
    gamma: tuple[float, float] | None = None
    probability: float = 1.0

    def __post_init__(self) -> None:
        for name in ("scale", "gamma"):
            low_high = getattr(self, name)
            if low_high is not None and not 0 < low_high[0] <= low_high[1]:
                raise ValueError(f"Ranges: {name} must be 0 < low <= high; got {low_high}")
        for name in ("flip", "probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Ranges: {name} must be in [0, 1]; got {getattr(self, name)}")


def augment(
    images: Tensor,
    labels: Tensor,
    ranges: Ranges,
    *,
    seed: int,
    epoch: int,
    samples: Tensor,
    fill_label: int = 0,
) -> tuple[Tensor, Tensor]:
    """Warp a batch by random affine maps: images linearly, labels by nearest neighbour.

    Args:
        images: (B, C, *S), floating point, on any device.
        labels: (B, L, *S) or (B, *S), integer.
        ranges: ranges of the random parameters.
        seed, epoch, samples: select the random numbers; samples (B,) are positions in the epoch.
        fill_label: label of voxels sampled outside the image; images are zero there.

    Returns:
        Images and labels, with the shapes of the inputs.

    Example:
        >>> images, labels = torch.rand(4, 1, 32, 32), torch.ones(4, 32, 32, dtype=torch.uint8)
        >>> turned = Ranges(rotate_deg=20, scale=(0.9, 1.1), translate_share=0.1)
        >>> image, label = augment(
        ...     images, labels, turned, seed=0, epoch=0, samples=torch.arange(4)
        ... )
        >>> image.shape, label.shape
        (torch.Size([4, 1, 32, 32]), torch.Size([4, 32, 32]))
    """
    theta, gamma = random_thetas(ranges, tuple(images.shape[2:]), seed, epoch, samples)
    theta = theta.to(images.device)
    gamma = None if gamma is None else gamma.to(images.device)
    return warp_pair(images, labels, theta, gamma, fill_label)


def random_thetas(
    ranges: Ranges, shape: tuple[int, ...], seed: int, epoch: int, samples: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Draw the affine maps and gamma exponents of samples.

    Rotation, shear and scale act about the centre of the grid and in voxels, so that rotating a
    grid of unequal sides does not shear it.

    Args:
        ranges: ranges of the random parameters.
        shape: shape of the grid, 2 or 3 axes.
        seed, epoch, samples: select the random numbers; samples (B,) are positions in the epoch.

    Returns:
        (B, d, d + 1) float32 maps from output to input for ``affine_sample`` and ``warp_pair``,
        and (B,) exponents or None.
    """
    axes = len(shape)
    planes = [(1, 0)] if axes == 2 else [(2, 1), (2, 0), (1, 0)]
    widths = (1, len(planes), axes, axes, 1, axes, 1)
    draws = uniforms(seed, epoch, samples, sum(widths), "augment").split(widths, 1)
    apply, rotate, scale, shift, shear, flip, gamma = draws

    def signed(draw: Tensor) -> Tensor:  # [0, 1) to [-1, 1)
        return 2 * draw - 1

    matrix = torch.eye(axes, dtype=torch.float64).repeat(len(samples), 1, 1)
    for column, (a, b) in enumerate(planes):
        angle = signed(rotate[:, column]) * math.radians(ranges.rotate_deg)
        plane = torch.eye(axes, dtype=torch.float64).repeat(len(samples), 1, 1)
        plane[:, a, a] = plane[:, b, b] = angle.cos()
        plane[:, a, b], plane[:, b, a] = angle.sin(), -angle.sin()
        matrix = plane @ matrix
    shear_matrix = torch.eye(axes, dtype=torch.float64).repeat(len(samples), 1, 1)
    shear_matrix[:, -1, -2] = (signed(shear[:, 0]) * math.radians(ranges.shear_deg)).tan()
    low, high = ranges.scale
    factor = low + (high - low) * (scale if ranges.scale_each else scale[:, :1].expand(-1, axes))
    sign = torch.where(flip < ranges.flip, -1.0, 1.0)
    # The map goes from output to input, so the scale factor divides.
    matrix = shear_matrix @ matrix @ torch.diag_embed(sign / factor)
    size = torch.tensor(shape, dtype=torch.float64)
    offset = signed(shift) * (ranges.translate_vox + ranges.translate_share * size)

    unchanged = apply[:, 0] >= ranges.probability
    matrix[unchanged], offset[unchanged] = torch.eye(axes, dtype=torch.float64), 0.0
    # affine_sample's normalised coordinates span 2 per axis and start with the last axis.
    matrix = (matrix * size / size[:, None]).flip(1, 2)
    theta = torch.cat((matrix, (2 * offset / size).flip(1)[..., None]), 2)
    if ranges.gamma is None:
        return theta.float(), None
    low, high = (math.log(x) for x in ranges.gamma)
    return theta.float(), (low + (high - low) * gamma[:, 0]).exp().float()
