"""Random affine changes of a batch, image and labels together in one warp."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cmrfast.data.random import uniforms
from cmrfast.ops import warp_pair


@dataclass(frozen=True)
class Ranges:
    """How far samples may change; everything is drawn uniformly and independently.

    Args:
        rotate_deg: largest angle, either way, in each plane of rotation.
        scale: smallest and largest factor; one for all axes unless ``scale_each``.
        scale_each: a factor of its own for each axis.
        translate_vox: largest shift in voxels along each axis, either way.
        translate_share: the same as a share of the axis's length; the two add up.
        shear_deg: largest shear angle, either way, in the plane of the last two axes.
        flip: probability of a mirror image along each axis.
        gamma: smallest and largest exponent, drawn uniformly in its logarithm; for images in
            [0, 1].
        probability: of any change of geometry at all.
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
    """Warp a batch by random affine maps, images linearly and labels to the nearest.

    Args:
        images: (B, C, *S), floating, on any device.
        labels: (B, L, *S) or (B, *S), integer.
        ranges: what may change, and how far.
        seed, epoch, samples: what the draws are for; samples (B,) are places in the epoch.
        fill_label: label of what comes in from outside; images get zero there.

    Returns:
        Images and labels, of the shapes given.

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
    """The maps and exponents of some samples.

    Rotation, shear and scale are about the centre of the grid and in voxels, so that a grid of
    unequal sides is not sheared by turning it.

    Args:
        ranges: what may change, and how far.
        shape: of the grid, 2 or 3 axes.
        seed, epoch, samples: what the draws are for; samples (B,) are places in the epoch.

    Returns:
        (B, d, d + 1) float32 maps from output to input for ``affine_sample`` and ``warp_pair``,
        and (B,) exponents or None.
    """
    axes = len(shape)
    planes = [(1, 0)] if axes == 2 else [(2, 1), (2, 0), (1, 0)]
    widths = (1, len(planes), axes, axes, 1, axes, 1)
    draws = uniforms(seed, epoch, samples, sum(widths)).split(widths, 1)
    changes, turn, scale, shift, shear, flip, gamma = draws

    def both(draw: Tensor) -> Tensor:  # a share of a range that goes either way
        return 2 * draw - 1

    matrix = torch.eye(axes, dtype=torch.float64).repeat(len(samples), 1, 1)
    for column, (a, b) in enumerate(planes):
        angle = both(turn[:, column]) * math.radians(ranges.rotate_deg)
        plane = torch.eye(axes, dtype=torch.float64).repeat(len(samples), 1, 1)
        plane[:, a, a] = plane[:, b, b] = angle.cos()
        plane[:, a, b], plane[:, b, a] = angle.sin(), -angle.sin()
        matrix = plane @ matrix
    slant = torch.eye(axes, dtype=torch.float64).repeat(len(samples), 1, 1)
    slant[:, -1, -2] = (both(shear[:, 0]) * math.radians(ranges.shear_deg)).tan()
    low, high = ranges.scale
    factor = low + (high - low) * (scale if ranges.scale_each else scale[:, :1].expand(-1, axes))
    mirror = torch.where(flip < ranges.flip, -1.0, 1.0)
    # Output to input: the inverse of scaling by a factor divides.
    matrix = slant @ matrix @ torch.diag_embed(mirror / factor)
    size = torch.tensor(shape, dtype=torch.float64)
    offset = both(shift) * (ranges.translate_vox + ranges.translate_share * size)

    still = changes[:, 0] >= ranges.probability
    matrix[still], offset[still] = torch.eye(axes, dtype=torch.float64), 0.0
    # Normalised positions run over 2 for a whole axis, and name the last axis first.
    matrix = (matrix * size / size[:, None]).flip(1, 2)
    theta = torch.cat((matrix, (2 * offset / size).flip(1)[..., None]), 2)
    if ranges.gamma is None:
        return theta.float(), None
    low, high = (math.log(x) for x in ranges.gamma)
    return theta.float(), (low + (high - low) * gamma[:, 0]).exp().float()
