"""A network over many slices, some at a time."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


def in_batches(
    who: str, model: nn.Module, inputs: Mapping[str, Tensor], batch: int
) -> Iterator[dict[str, Tensor]]:
    """Apply a network to slices, in order; no gradient is kept.

    Args:
        who: of the messages.
        model: in evaluation mode; its forward returns a dict.
        inputs: (N, 1, H, W) each, by the names of the forward's arguments; on any device.
        batch: slices at once.

    Yields:
        Its outputs of ``batch`` slices at a time, on the model's device.
    """
    if model.training:
        raise ValueError(f"{who}: model must be in evaluation mode; call its eval() first")
    if batch < 1:
        raise ValueError(f"{who}: batch must be at least 1; got {batch}")
    count = min(len(slices) for slices in inputs.values())
    for first in range(0, count, batch):
        given = {name: slices[first : first + batch] for name, slices in inputs.items()}
        for parameter in model.parameters():
            given = {name: part.to(parameter.device) for name, part in given.items()}
            break
        with torch.inference_mode():
            outputs: dict[str, Tensor] = model(**given)
        yield outputs
