"""Argument checks that the models share, so that all report an error in the same words."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cmrfast.errors import NotFiniteError, did_you_mean
from cmrfast.ops._check import (
    kind,
    require_floating,
    require_one_device,
    value_range,
    values_readable,
)


def require_option(model: str, field: str, value: object, options: Sequence[object]) -> None:
    """Raise unless a field of a Config has one of the allowed values."""
    if value not in options:
        names = ", ".join(map(str, options))
        raise ValueError(
            f"{model}: {field} must be one of {names}; got {value!r}{did_you_mean(value, options)}"
        )


def require_images(
    model: str,
    images: Mapping[str, Tensor],
    *,
    axes: int = 2,
    multiple: int = 1,
    size: int | None = None,
) -> None:
    """Raise unless the images are finite floating tensors of one shape, which the model accepts.

    Args:
        model: name of the model, for the message.
        images: (B, 1, *S) each, by argument name.
        axes: number of space axes.
        multiple: every space axis must be divisible by it.
        size: required length of every space axis; None for any.
    """
    space = ", ".join(["S" if size is None else str(size)] * axes)
    first, *others = images
    for name, image in images.items():
        require_floating(model, name, image)
        shape = tuple(image.shape)
        fits = len(shape) == axes + 2 and shape[1] == 1
        if not fits or (size is not None and shape[2:] != (size,) * axes):
            raise ValueError(f"{model}: {name} must be (B, 1, {space}); got {shape}")
        if any(n < multiple or n % multiple for n in shape[2:]):
            raise ValueError(
                f"{model}: space axes of {name} must be multiples of {multiple}; got {shape[2:]}"
            )
        require_finite(model, name, image)
    for name in others:
        if images[name].shape != images[first].shape:
            raise ValueError(
                f"{model}: {first} and {name} must have one shape; "
                f"got {tuple(images[first].shape)} and {tuple(images[name].shape)}"
            )
    require_one_device(model, **images)


def require_finite(model: str, name: str, image: Tensor) -> None:
    """Raise if the values can be read and one of them is NaN or infinite."""
    # The sum is finite only if all its terms are: one pass unless there is an error to report.
    if values_readable(image) and not torch.isfinite(image.detach().sum(dtype=torch.float64)):
        count = int((~image.isfinite()).sum())
        raise NotFiniteError(f"{model}: {name} must be finite; got {count} NaN or infinite values")


def require_shares(model: str, **values: float) -> None:
    """Raise unless every value lies in [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{model}: {name} must lie in [0, 1]; got {value}")


def require_batch(model: str, batch: Mapping[str, Tensor], *names: str) -> None:
    """Raise unless the batch has the entries that the loss needs."""
    missing = [name for name in names if name not in batch]
    if missing:
        got = ", ".join(sorted(batch)) or "nothing"
        raise ValueError(f"{model}: batch must hold {', '.join(names)}; got {got}")


def require_labels(model: str, name: str, labels: Tensor, shape: Sequence[int], k: int) -> None:
    """Raise unless labels are integers from 0 to k - 1 and have the given shape."""
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"{model}: {name} must be integers; got {kind(labels)}")
    if tuple(labels.shape) != tuple(shape):
        raise ValueError(f"{model}: {name} must be {tuple(shape)}; got {tuple(labels.shape)}")
    if values_readable(labels) and labels.numel():
        low, high = value_range(labels)
        if low < 0 or high >= k:
            raise ValueError(
                f"{model}: {name} must be 0 to {k - 1}; got values from {low} to {high}"
            )
