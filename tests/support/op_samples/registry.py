"""The samples of each op by its name, in float32, float64 and half precision."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

Arguments = tuple[Any, ...]
Samples = Callable[[str, torch.dtype], Iterator[Arguments]]

SAMPLES: dict[str, Samples] = {}
#: Of the ops whose GPU kernels take halves as they are: the arguments that may be halves.
HALVED = {
    "dice_ce_sums": (0,),
    "dice_ce_sums_backward": (1,),
    "nt_xent": (0, 1),
    "nt_xent_symmetric": (0, 1),
    "affine_sample": (0,),
    "affine_sample_backward": (0, 1),
    "resample_argmax": (0,),
}


def samples_of(name: str) -> Callable[[Samples], Samples]:
    """Register the generator below as the samples of the op of that name."""

    def register(generator: Samples) -> Samples:
        SAMPLES[name] = generator
        return generator

    return register


def halved(name: str, device: str, dtype: torch.dtype) -> Iterator[Arguments]:
    """The samples of an op with halves where it may have them."""
    for args in SAMPLES[name](device, torch.float32):
        yield tuple(a.to(dtype) if i in HALVED[name] else a for i, a in enumerate(args))
