"""Random numbers as a function of what they are for: seed, epoch, sample, and which number.

Nothing is carried from one draw to the next, so resuming needs no replay, and neither the number
of workers nor the order of samples changes anything.
"""

import torch
from torch import Tensor

# The order's own stream: sorted by a sample's first draw, batches would be of one patient each.
_ORDER = 0x5851F42D4C957F2D
# SplitMix64's step and mixing constants (Steele, Lea, Flood 2014), as signed 64-bit numbers.
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))


def uniforms(seed: int, epoch: int, samples: Tensor, count: int) -> Tensor:
    """Independent uniform numbers of each sample.

    Args:
        seed, epoch: any integers of 64 bits.
        samples: (n,) integer, the samples' places in the epoch; on any device.
        count: numbers a sample.

    Returns:
        (n, count) float64 in [0, 1), the same on every device.

    Example:
        >>> few = uniforms(0, epoch=3, samples=torch.tensor([7]), count=2)
        >>> many = uniforms(0, epoch=3, samples=torch.arange(10), count=2)
        >>> torch.equal(few[0], many[7])
        True
    """
    key = torch.tensor(seed, dtype=torch.int64, device=samples.device)
    for part in (epoch, samples.long()[:, None], torch.arange(count, device=samples.device)):
        key = _mixed(key + _STEP + part)
    return _shifted(key, 11).double() * 2.0**-53


def order(seed: int, epoch: int, count: int) -> Tensor:
    """The samples of an epoch in random order, (count,) int64 on the CPU.

    It is independent of what else is drawn for the samples from the same seed.
    """
    return uniforms(seed ^ _ORDER, epoch, torch.arange(count), 1)[:, 0].argsort(stable=True)


def _mixed(x: Tensor) -> Tensor:
    for bits, factor in _MIX:
        x = (x ^ _shifted(x, bits)) * factor
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    # Torch's shift of signed numbers drags the sign along.
    return (x >> bits) & ((1 << (64 - bits)) - 1)
