"""Prediction on whole images: overlapping windows merged, and a network over a batch at a time."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmrfast.models._check import require_option
from cmrfast.ops import PatchMerger, cover_starts, extract_patches
from cmrfast.ops._check import integers, require_floating, require_sizes

Outputs = TypeVar("Outputs")  # a tensor, or a tuple, list or dict of tensors
Overlap = int | float
Window = Literal["constant", "gaussian"]
Padding = Literal["constant", "reflect", "replicate", "circular"]
WINDOWS, PADDINGS = get_args(Window), get_args(Padding)


def predict_batches(
    who: str, model: nn.Module, inputs: Mapping[str, Tensor], batch: int
) -> Iterator[dict[str, Tensor]]:
    """Apply a network to samples in order, a batch at a time; no gradient is kept.

    Args:
        who: starts the messages.
        model: in evaluation mode; its forward returns a dict.
        inputs: (N, …) each, by the names of the forward's arguments; on any device.
        batch: samples at a time.

    Yields:
        The outputs of each batch, on the model's device.
    """
    if model.training:
        raise ValueError(f"{who}: model must be in evaluation mode; call its eval() first")
    if batch < 1:
        raise ValueError(f"{who}: batch must be at least 1; got {batch}")
    device = next((parameter.device for parameter in model.parameters()), None)
    count = min(len(tensor) for tensor in inputs.values())
    for first in range(0, count, batch):
        given = {n: tensor[first : first + batch].to(device=device) for n, tensor in inputs.items()}
        with torch.inference_mode():
            outputs: dict[str, Tensor] = model(**given)
        yield outputs


def sliding_window(
    model: Callable[[Tensor], Outputs],
    images: Tensor,
    size: int | Sequence[int],
    overlap: Overlap | Sequence[Overlap],
    *,
    batch: int = 8,
    window: Window = "constant",
    sigma: float | Sequence[float] = 0.125,
    padding: Padding = "constant",
    value: float = 0.0,
    flip_axes: Sequence[int] = (),
    merge_device: torch.device | str | None = None,
) -> Outputs:
    """Predict windows on a regular grid over each image and average them where they overlap.

    The model's device holds one batch of windows at a time and ``merge_device`` the merged sums,
    whatever the images' size. An image smaller than a window is centred in it.

    Args:
        model: from windows (n, C, *size), n up to ``batch``, to predictions (n, K, *size), or a
            tuple, list or dict of such. A module gets windows on the device of its parameters, any
            other function on that of the images. Call its ``eval()`` first; no gradient is kept.
        images: (B, C, *S).
        size: of a window, for all axes or one entry per space axis.
        overlap: of neighbouring windows, for all axes or one entry per axis: whole voxels, or a
            share of size as a float in [0, 1), which places windows int(size · (1 - share)) voxels
            apart, at least 1.
        batch: windows in one forward pass.
        window: weights of a window's voxels: ``constant``, or ``gaussian`` with its maximum in the
            centre and no weight below 0.001.
        sigma: standard deviation of the Gaussian as a share of size, for all axes or one per axis.
        padding: around an image smaller than a window: ``constant``, ``reflect``, ``replicate`` or
            ``circular``, as in ``torch.nn.functional.pad``.
        value: of the constant padding.
        flip_axes: space axes, from 0; predictions are averaged over the flips along all their
            subsets, which takes 2 to the power of their number as long.
        merge_device: where predictions are summed and returned; default that of the images.

    Returns:
        (B, K, *S), in the structure that the model returns; float32, or float64 where the model
        returns float64.

    Example:
        >>> images = torch.rand(1, 1, 20, 9, 20)
        >>> doubled = sliding_window(lambda w: 2 * w, images, (8, 12, 8), overlap=2)
        >>> torch.allclose(doubled, 2 * images)
        True
    """
    require_floating("sliding_window", "images", images)
    axes = images.dim() - 2
    if axes not in (2, 3) or not len(images):
        raise ValueError(
            "sliding_window: images must be (B, C, *S) with B >= 1 and 2 or 3 space axes; "
            f"got {tuple(images.shape)}"
        )
    size = (size,) * axes if isinstance(size, int) else size
    size = require_sizes("sliding_window", "size", size, axes)
    if batch < 1:
        raise ValueError(f"sliding_window: batch must be >= 1; got {batch}")
    for name, given, options in (("window", window, WINDOWS), ("padding", padding, PADDINGS)):
        require_option("sliding_window", name, given, options)
    shape = images.shape[2:]
    roomy = [max(n, s) for n, s in zip(shape, size, strict=True)]
    starts = cover_starts(roomy, size, _overlap_vox(size, overlap))
    margin = [(r - n) // 2 for r, n in zip(roomy, shape, strict=True)]
    if padding != "constant" and any(roomy[a] > n for a, n in enumerate(shape)):
        images = _padded(images, roomy, margin, padding)
    else:  # without a padded copy: what is outside the image gets the value
        starts = starts - torch.tensor(margin)
        margin = [0] * axes
    windows = _Windows(
        size,
        starts.split(batch),
        value,
        _flips(axes, flip_axes),
        gaussian_window(size, sigma) if window == "gaussian" else None,
        torch.device(merge_device or images.device),
    )
    inner = tuple(slice(m, m + n) for m, n in zip(margin, shape, strict=True))
    with torch.no_grad():  # its results may be changed in place, those of inference_mode may not
        merged = [windows.merge(model, image) for image in images]
        parts = [_stack([image[k] for image, _ in merged]) for k in range(len(merged[0][0]))]
        outputs: Outputs = merged[0][1]([part[:, :, *inner] for part in parts])
    return outputs


def gaussian_window(size: Sequence[int], sigma: float | Sequence[float] = 0.125) -> Tensor:
    """Gaussian weights of a window's voxels, 1 in its centre.

    Args:
        size: of the window.
        sigma: standard deviation as a share of size, for all axes or one entry per axis.

    Returns:
        (*size) float32, at least 0.001, or the smallest weight before where that is more.

    Example:
        >>> gaussian_window((1, 3), sigma=0.5)
        tensor([[0.8007, 1.0000, 0.8007]])
    """
    size = require_sizes("gaussian_window", "size", size)
    sigmas = (sigma,) * len(size) if isinstance(sigma, int | float) else tuple(sigma)
    if len(sigmas) != len(size) or not all(0 < s < math.inf for s in sigmas):
        raise ValueError(
            "gaussian_window: sigma must be a positive share of size, or one per space axis "
            f"({len(size)}); got {sigma}"
        )
    weight = torch.ones(())
    for n, s in zip(size, sigmas, strict=True):
        distance = torch.arange(n) - (n - 1) / 2
        weight = weight[..., None] * torch.exp(distance.square() / (-2 * (n * s) ** 2))
    return weight.clamp(min=max(float(weight.min()), 1e-3))


@dataclass(frozen=True)
class _Windows:
    """Windows of an image, and how their predictions are merged."""

    size: tuple[int, ...]
    starts: Sequence[Tensor]  # (n, d) each, of the windows of one forward pass
    value: float  # outside the image
    flips: Sequence[tuple[int, ...]]  # the axes of each flip
    weight: Tensor | None  # (*size)
    device: torch.device  # of the sums

    def merge(
        self, model: Callable[[Tensor], Outputs], image: Tensor
    ) -> tuple[list[Tensor], Callable[[list[Tensor]], Outputs]]:
        """The merged predictions (K, *S) of an image, and what gives them the model's structure."""
        parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        device = image.device if parameter is None else parameter.device
        mergers: list[PatchMerger] = []
        for start in self.starts:
            for axes in self.flips:
                predicted, pack = _parts(model(self._extract(image, start, axes).to(device)))
                for part in predicted:
                    self._require_windows(part, len(start))
                mergers = mergers or [self._merger(part, image.shape[1:]) for part in predicted]
                for merger, part in zip(mergers, predicted, strict=True):
                    unflipped = part.flip([axis + 2 for axis in axes]) if axes else part
                    merger.add(unflipped.to(self.device), start.to(self.device))
        return [merger.merged(reuse=True) for merger in mergers], pack

    def _extract(self, image: Tensor, start: Tensor, axes: tuple[int, ...]) -> Tensor:
        flips = torch.zeros(start.shape, dtype=torch.bool)
        flips[:, list(axes)] = True
        at = {"start_vox": start.to(image.device), "flips": flips.to(image.device)}
        return extract_patches(image, size=self.size, fill=self.value, dtype=image.dtype, **at)

    def _merger(self, predicted: Tensor, shape: Sequence[int]) -> PatchMerger:
        weight = self.weight
        if predicted.dtype == torch.float64:  # the sums are of the weight's dtype
            weight = torch.ones(self.size) if weight is None else weight
            weight = weight.double()
        return PatchMerger(shape, predicted.shape[1], self.size, weight=weight, device=self.device)

    def _require_windows(self, predicted: Tensor, count: int) -> None:
        if (
            predicted.dim() < 2
            or tuple(predicted.shape[2:]) != self.size
            or len(predicted) != count
        ):
            raise ValueError(
                f"sliding_window: model must return ({count}, K, "
                f"{', '.join(map(str, self.size))}); got {tuple(predicted.shape)}"
            )


def _overlap_vox(size: Sequence[int], overlap: Overlap | Sequence[Overlap]) -> tuple[int, ...]:
    """The overlap of each axis in voxels."""
    per_axis = (overlap,) * len(size) if isinstance(overlap, int | float) else overlap
    try:
        given = tuple(per_axis)
    except TypeError:
        given = ()
    wrong_share = any(isinstance(o, float) and not 0 <= o < 1 for o in given)
    if len(given) != len(size) or wrong_share:
        raise ValueError(
            "sliding_window: overlap must be whole voxels or a share of size, a float in [0, 1), "
            f"for all axes or one entry per axis ({len(size)}); got {overlap!r}"
        )
    return tuple(
        s - max(int(s * (1 - o)), 1) if isinstance(o, float) else o
        for s, o in zip(size, given, strict=True)
    )


def _padded(
    images: Tensor, roomy: Sequence[int], margin: Sequence[int], padding: Padding
) -> Tensor:
    """Images as large as a window on all axes, with ``margin`` voxels before the first."""
    shape = images.shape[2:]
    after = [r - n - m for r, n, m in zip(roomy, shape, margin, strict=True)]
    most = [n - (padding == "reflect") if padding != "replicate" else math.inf for n in shape]
    if any(a > m for a, m in zip(after, most, strict=True)):
        raise ValueError(
            f"sliding_window: padding {padding!r} cannot extend {tuple(shape)} to {tuple(roomy)}; "
            "use constant or replicate, or a smaller size"
        )
    widths = [w for pair in zip(margin, after, strict=True) for w in pair[::-1]][::-1]
    return F.pad(images, widths, mode=padding)


def _flips(axes: int, flip_axes: Sequence[int]) -> list[tuple[int, ...]]:
    """All subsets of the axes."""
    given = integers("sliding_window", "flip_axes", flip_axes)
    if len({*given}) != len(given) or not all(0 <= axis < axes for axis in given):
        raise ValueError(
            f"sliding_window: flip_axes must be different axes from 0 to {axes - 1}; got {given}"
        )
    return [chosen for n in range(len(given) + 1) for chosen in combinations(given, n)]


def _parts(outputs: Any) -> tuple[list[Tensor], Callable[[list[Tensor]], Any]]:
    """The tensors of a model's output, and a function that puts others in their place."""
    if isinstance(outputs, Tensor):
        return [outputs], lambda parts: parts[0]
    kind = type(outputs).__name__
    keys = list(outputs) if isinstance(outputs, Mapping) else None
    given = outputs.values() if isinstance(outputs, Mapping) else outputs
    parts = list(given) if keys or isinstance(outputs, list | tuple) else []
    if not parts or not all(isinstance(part, Tensor) for part in parts):
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise TypeError(
            "sliding_window: model must return a tensor, or a tuple, list or dict of tensors; "
            f"got {kind}{' of ' if parts else ''}{kinds}"
        )
    if keys:
        return parts, lambda parts: dict(zip(keys, parts, strict=True))
    return parts, list if isinstance(outputs, list) else tuple


def _stack(tensors: list[Tensor]) -> Tensor:
    """Tensors as a batch; a single one is not copied."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)
