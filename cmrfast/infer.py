"""Prediction on whole images: overlapping windows merged, and a network over a batch at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from cmrfast.ops import PatchMerger, cover_starts, extract_patches
from cmrfast.ops._check import require_floating, require_sizes


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
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    size: Sequence[int],
    overlap: int | Sequence[int],
    *,
    batch: int = 8,
) -> Tensor:
    """Predict windows on a regular grid over each image and average them where they overlap.

    Memory holds one batch of windows and the merged sums, whatever the image's size. An image
    smaller than a window is centred in it, padded with zeros.

    Args:
        model: from windows (n, C, *size), n up to ``batch``, to predictions (n, K, *size). Call
            its ``eval()`` first; no gradient is kept.
        images: (B, C, *S), on the device where the model runs.
        size: of a window, one entry per space axis.
        overlap: of neighbouring windows in voxels, for all axes or one entry per axis.
        batch: windows in one forward pass.

    Returns:
        (B, K, *S) float32.

    Example:
        >>> images = torch.rand(1, 1, 20, 9, 20)
        >>> doubled = sliding_window(lambda w: 2 * w, images, (8, 12, 8), overlap=2)
        >>> torch.allclose(doubled, 2 * images)
        True
    """
    require_floating("sliding_window", "images", images)
    axes = images.dim() - 2
    if axes not in (2, 3):
        raise ValueError(
            "sliding_window: images must be (B, C, *S) with 2 or 3 space axes; "
            f"got {tuple(images.shape)}"
        )
    size = require_sizes("sliding_window", "size", size, axes)
    if isinstance(overlap, float):
        raise TypeError(
            f"sliding_window: overlap must be whole voxels; got {overlap}: for a fraction, "
            "multiply by size"
        )
    if batch < 1:
        raise ValueError(f"sliding_window: batch must be >= 1; got {batch}")
    shape = images.shape[2:]
    roomy = [max(n, s) for n, s in zip(shape, size, strict=True)]
    margin = torch.tensor([(r - n) // 2 for r, n in zip(roomy, shape, strict=True)])
    starts = (cover_starts(roomy, size, overlap) - margin).to(images.device)
    with torch.inference_mode():
        return torch.stack([_merged(model, image, starts, size, batch) for image in images])


def _merged(
    model: Callable[[Tensor], Tensor],
    image: Tensor,
    starts: Tensor,
    size: Sequence[int],
    batch: int,
) -> Tensor:
    merger = None
    for start in starts.split(batch):
        predicted = model(extract_patches(image, start, size, dtype=image.dtype))
        if tuple(predicted.shape[2:]) != tuple(size) or len(predicted) != len(start):
            raise ValueError(
                f"sliding_window: model must return ({len(start)}, K, "
                f"{', '.join(map(str, size))}); got {tuple(predicted.shape)}"
            )
        merger = merger or PatchMerger(
            image.shape[1:], predicted.shape[1], size, device=image.device
        )
        merger.add(predicted, start)
    assert merger is not None  # the grid has at least one window
    return merger.merged()
