"""Sample arguments of every registered op, edge cases included: all that a new op must add.

A sample is the argument tuple of one call. The contract in test_ops.py runs over each of them.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

Arguments = tuple[Any, ...]
Samples = Callable[[str, torch.dtype], Iterator[Arguments]]

SAMPLES: dict[str, Samples] = {}


def samples_of(name: str) -> Callable[[Samples], Samples]:
    """Register the generator below as the samples of the op of that name."""

    def register(generator: Samples) -> Samples:
        SAMPLES[name] = generator
        return generator

    return register


def normal(*shape: int, device: str, dtype: torch.dtype) -> torch.Tensor:
    """Random numbers made on the CPU, so that all devices see one input."""
    return torch.randn(*shape, dtype=torch.float64).to(dtype).to(device)
