"""Photometric augmentation of a batch: noise, blur, gain, bias, contrast, low resolution, gamma."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cmrfast.ops._check import (
    require_floating,
    require_int,
    require_integer,
    require_one_device,
    require_sizes,
    upcast,
    values_readable,
)
from cmrfast.ops._op import define
from cmrfast.ops._philox import normal

#: The steps in their order; step i is bit i of the op's ``steps``.
STEPS = (
    "noise_sd",
    "blur_sd_vox",
    "gain",
    "bias",
    "contrast",
    "low_res",
    "gamma_inverted",
    "gamma",
)
#: Steps with a number per space axis.
PER_AXIS = ("blur_sd_vox", "low_res")
LARGEST_BLUR = 512.0  # SD in voxels
#: Number of standard deviations at which the Gaussian is cut.
TRUNCATE = 3.0


def augment_intensity(
    images: Tensor,
    seed: int,
    sample: Tensor,
    *,
    noise_sd: Tensor | None = None,
    blur_sd_vox: Tensor | None = None,
    gain: Tensor | None = None,
    bias: Tensor | None = None,
    contrast: Tensor | None = None,
    low_res: Tensor | None = None,
    gamma_inverted: Tensor | None = None,
    gamma: Tensor | None = None,
) -> Tensor:
    """Augment the intensities of each image of a batch, in the order of the arguments.

    Parameters are floating tensors (B,) or (B, C), or (B, C, d) where noted; NaN leaves a step out
    for its sample, channel or axis, and None for all. Mean, standard deviation (SD), minimum and
    maximum are those of one channel of one sample at the beginning of the step.

    Args:
        images: (B, C, *S), floating, two or three space axes.
        seed: of the noise, an int64.
        sample: (B,) int64, the number of each sample. The noise is a function of it, the seed,
            the channel and the voxel: the same in any batch, and on a GPU up to rounding.
        noise_sd: SD of the Gaussian noise to add.
        blur_sd_vox: SD of a Gaussian filter in voxels, up to 512; cut at 3 SD, with the border
            reflected. Also (B, C, d).
        gain: factor of the values.
        bias: added to the values.
        contrast: factor of the difference from the mean; values stay between minimum and maximum.
        low_res: zoom in (0, 1] to a coarser grid (nearest voxels) and back (linear). Also
            (B, C, d).
        gamma_inverted: as ``gamma``, of the negated values.
        gamma: exponent of the values scaled to [0, 1]; mean and SD stay the same.

    Returns:
        (B, C, *S), of the images' dtype; half precision is computed in float32. Not differentiable.

    Example:
        >>> images, sample = torch.rand(2, 1, 32, 32), torch.tensor([7, 8])
        >>> darker = augment_intensity(images, 0, sample, gain=torch.tensor([0.8, torch.nan]))
        >>> torch.equal(darker[1], images[1])
        True
        >>> noisy = augment_intensity(images, 0, sample, noise_sd=torch.tensor([0.1, 0.1]))
        >>> alone = augment_intensity(images[1:], 0, sample[1:], noise_sd=torch.tensor([0.1]))
        >>> torch.equal(noisy[1:], alone)
        True
    """
    given = (noise_sd, blur_sd_vox, gain, bias, contrast, low_res, gamma_inverted, gamma)
    parameters = dict(zip(STEPS, given, strict=True))
    seed = _check_images(images, seed, sample)
    for name, values in parameters.items():
        if values is not None:
            _check_parameter(name, values, images)
    require_one_device("augment_intensity", images=images, sample=sample, **parameters)
    steps = sum(1 << i for i, name in enumerate(STEPS) if parameters[name] is not None)
    packed = _pack(parameters, images)
    augmented: Tensor = augment_intensity_op(upcast(images), seed, sample, packed, steps)
    return augmented.to(images.dtype)


def _check_images(images: Tensor, seed: int, sample: Tensor) -> int:
    """Raise for wrong arguments; returns the seed."""
    require_floating("augment_intensity", "images", images)
    if images.dim() not in (4, 5):
        raise ValueError(
            "augment_intensity: images must be (B, C, *S) with 2 or 3 space axes; "
            f"got {tuple(images.shape)}"
        )
    require_sizes("augment_intensity", "space axes of images", images.shape[2:])
    if images.requires_grad:
        raise ValueError("augment_intensity: has no gradient; detach images, which require one")
    seed = require_int("augment_intensity", "seed", seed)
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"augment_intensity: seed must fit torch.int64; got {seed}")
    require_integer("augment_intensity", "sample", sample)
    if sample.dtype != torch.int64:
        raise TypeError(f"augment_intensity: sample must be int64; got {sample.dtype}")
    if tuple(sample.shape) != (images.shape[0],):
        raise ValueError(
            f"augment_intensity: sample must be ({images.shape[0]},); got {tuple(sample.shape)}"
        )
    return seed


def _check_parameter(name: str, values: Tensor, images: Tensor) -> None:
    require_floating("augment_intensity", name, values)
    batch, channels = images.shape[:2]
    shapes = [(batch,), (batch, channels)]
    if name in PER_AXIS:
        shapes.append((batch, channels, images.dim() - 2))
    if tuple(values.shape) not in shapes:
        raise ValueError(
            f"augment_intensity: {name} must be {' or '.join(map(str, shapes))}; "
            f"got {tuple(values.shape)}"
        )
    if not values_readable(values):
        return
    rule, valid = _range(name, values)
    wrong = values[~(valid | values.isnan())]
    if wrong.numel():
        raise ValueError(f"augment_intensity: {name} must be {rule} or NaN; got {wrong[0].item()}")


def _range(name: str, values: Tensor) -> tuple[str, Tensor]:
    """The values that a parameter may have, in words, and which ones are among them."""
    if name == "blur_sd_vox":
        return f"from 0 to {LARGEST_BLUR:.0f}", (values >= 0) & (values <= LARGEST_BLUR)
    if name == "low_res":
        return "above 0 and at most 1", (values > 0) & (values <= 1)
    if name == "noise_sd":
        return "finite and at least 0", (values >= 0) & values.isfinite()
    if name in ("gamma", "gamma_inverted"):
        return "finite and above 0", (values > 0) & values.isfinite()
    return "finite", values.isfinite()


def _pack(parameters: dict[str, Tensor | None], images: Tensor) -> Tensor:
    """All parameters as one tensor (B, C, 6 + 2 d), float64, in the order of the steps."""
    batch, channels, axes = *images.shape[:2], images.dim() - 2
    none = torch.full((1, 1, 1), torch.nan, dtype=torch.float64, device=images.device)
    columns = []
    for name, values in parameters.items():
        column = none if values is None else values.detach()
        column = column.view(*column.shape, *[1] * (3 - column.dim()))
        columns.append(column.expand(batch, channels, axes if name in PER_AXIS else 1))
    return torch.cat(columns, 2).double()


def _reference(images: Tensor, seed: int, sample: Tensor, parameters: Tensor, steps: int) -> Tensor:
    axes = images.dim() - 2
    out = images.clone(memory_format=torch.contiguous_format)
    for b, number in enumerate(sample.tolist()):
        for c in range(images.shape[1]):
            x, values = out[b, c], iter(parameters[b, c].tolist())
            for name in STEPS:
                given = [next(values) for _ in range(axes if name in PER_AXIS else 1)]
                if name in PER_AXIS:
                    x = (_blur if name == "blur_sd_vox" else _lower_resolution)(x, given)
                elif name == "noise_sd" and given[0] == given[0]:
                    noise = normal(x.numel(), seed, c, number, x)
                    x = x + given[0] * noise.view(x.shape)
                elif given[0] == given[0]:
                    x = _POINTWISE[name](x, given[0])
            out[b, c] = x
    return out


def _blur(x: Tensor, sds: Sequence[float]) -> Tensor:
    for axis, given in enumerate(sds):
        sd = min(given, LARGEST_BLUR) if given > 0 else 0.0  # also if NaN
        radius = int(TRUNCATE * sd + 0.5)
        if not radius:
            continue
        taps = torch.arange(-radius, radius + 1, device=x.device)
        weights = torch.exp(-((taps.double() / sd) ** 2) / 2)
        weights /= weights.sum()
        n = x.shape[axis]
        at = (torch.arange(n, device=x.device) + taps[:, None]) % (2 * n)
        at = torch.minimum(at, 2 * n - 1 - at)
        values = x.double().index_select(axis, at.flatten()).unflatten(axis, at.shape)
        x = torch.tensordot(values, weights, ([axis], [0])).to(x.dtype)
    return x


def _lower_resolution(x: Tensor, zooms: Sequence[float]) -> Tensor:
    for axis, (n, zoom) in enumerate(zip(x.shape, zooms, strict=True)):
        coarse = max(round(n * min(max(zoom, 0.0), 1.0)), 1) if zoom == zoom else n
        voxel = torch.arange(n, device=x.device)
        nearest = (2 * voxel[:coarse] + 1) * n // (2 * coarse)
        position = ((2 * voxel + 1) * coarse - n).clamp(min=0)  # in units of 1 / (2 n) voxel
        cell = position // (2 * n)
        fraction = (position % (2 * n)).double() / (2 * n)
        fraction = fraction.to(x.dtype).view(-1, *[1] * (x.dim() - axis - 1))
        left, right = (
            x.index_select(axis, nearest[(cell + up).clamp(max=coarse - 1)]) for up in (0, 1)
        )
        x = torch.where(fraction == 0, left, left + fraction * (right - left))
    return x


def _contrast(x: Tensor, factor: float) -> Tensor:
    mean = x.mean(dtype=torch.float64).to(x.dtype)
    return ((x - mean) * factor + mean).clamp(x.min(), x.max())


def _gamma(x: Tensor, exponent: float) -> Tensor:
    low, span = x.min(), x.max() - x.min()
    powers = torch.where(span > 0, (x - low) / span, x * 0).clamp(0, 1) ** exponent
    mean, sd = x.double().mean(), x.double().std(correction=0)
    power_mean, power_sd = powers.double().mean(), powers.double().std(correction=0)
    factor = torch.where(power_sd > 0, sd / power_sd, power_sd)
    return ((powers - power_mean) * factor + mean).to(x.dtype)


_POINTWISE: dict[str, Any] = {
    "gain": lambda x, factor: x * factor,
    "bias": lambda x, offset: x + offset,
    "contrast": _contrast,
    "gamma_inverted": lambda x, exponent: -_gamma(-x, exponent),
    "gamma": _gamma,
}

augment_intensity_op = define(
    "augment_intensity(Tensor images, SymInt seed, Tensor sample, Tensor parameters, int steps)"
    " -> Tensor",
    reference=_reference,
    fake=lambda images, *_: images.new_empty(images.shape),
)
