"""One affine warp of images and their labels, for augmentation."""

from torch import Tensor

from cmrfast.ops._check import (
    require_fill,
    require_floating,
    require_int,
    require_integer,
    require_one_device,
)
from cmrfast.ops.affine_sample import EDGES, LINEAR, NEAREST_EVEN, ZEROS, check_images, sample


def warp_pair(
    images: Tensor,
    labels: Tensor,
    theta: Tensor,
    gamma: Tensor | None = None,
    fill_label: int = 0,
) -> tuple[Tensor, Tensor]:
    """Warp images with linear and their labels with nearest interpolation, as ``affine_sample``.

    Args:
        images: (B, C, *S), floating; zero outside.
        labels: (B, L, *S) or (B, *S), any integer dtype.
        theta: (B, d, d + 1) or (1, d, d + 1), as in ``affine_sample``.
        gamma: (B,) or (1,), exponent of each warped image, for images in [0, 1]; default none.
            Where a warped pixel is 0, an exponent below 1 has no finite gradient.
        fill_label: label outside.

    Returns:
        Warped images and labels, with the shapes and dtypes of the inputs.

    Example:
        >>> import torch
        >>> images, labels = torch.rand(2, 1, 8, 8), torch.ones(2, 1, 8, 8, dtype=torch.uint8)
        >>> shift = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])  # half the width
        >>> image, label = warp_pair(images, labels, shift, gamma=torch.tensor([0.8, 1.2]))
        >>> label[0, 0, 0].tolist()
        [1, 1, 1, 1, 0, 0, 0, 0]
    """
    check_images("warp_pair", images, theta)
    require_integer("warp_pair", "labels", labels)
    per_class = labels.dim() == images.dim()
    if not (per_class or labels.dim() == images.dim() - 1) or len(labels) != len(images):
        raise ValueError(
            f"warp_pair: labels must be (B, L, *S) or (B, *S) for images {tuple(images.shape)}; "
            f"got {tuple(labels.shape)}"
        )
    space = labels.shape[2:] if per_class else labels.shape[1:]
    if space != images.shape[2:]:
        raise ValueError(
            f"warp_pair: images and labels must have one space; "
            f"got {tuple(images.shape[2:])} and {tuple(space)}"
        )
    require_one_device("warp_pair", images=images, labels=labels, gamma=gamma)
    fill_label = require_int("warp_pair", "fill_label", fill_label)
    require_fill("warp_pair", "fill_label", fill_label, labels.dtype)
    size = tuple(images.shape[2:])
    warped = sample(images, theta, size, EDGES, LINEAR, ZEROS)
    if gamma is not None:
        require_floating("warp_pair", "gamma", gamma)
        if gamma.dim() != 1 or (len(gamma) != 1 and len(gamma) != len(images)):
            raise ValueError(
                f"warp_pair: gamma must be ({images.shape[0]},) or (1,); got {tuple(gamma.shape)}"
            )
        exponent = gamma.view(-1, *[1] * (images.dim() - 1)).to(warped.dtype)
        warped = warped.clamp(min=0) ** exponent
    stack = labels if per_class else labels[:, None]
    nearest = sample(stack, theta.detach(), size, EDGES, NEAREST_EVEN, ZEROS, fill_label)
    return warped, nearest.view(labels.shape)
