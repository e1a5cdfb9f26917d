"""Counter-based random numbers: a function of seed, stream, epoch, sample and index.

There is no generator state, so resuming needs no replay, and the numbers do not depend on the
number of workers or the order of samples.
"""

import zlib

import torch
from torch import Tensor

# SplitMix64's step and mixing constants (Steele, Lea, Flood 2014), as signed 64-bit numbers.
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))


def uniforms(seed: int, epoch: int, samples: Tensor, count: int, stream: str = "") -> Tensor:
    """Independent uniform random numbers for each sample.

    Args:
        seed, epoch: any 64-bit integers, signed or not.
        samples: (n,) integer, positions of the samples in the epoch; on any device.
        count: numbers per sample.
        stream: what the numbers are for; those of two streams are independent.

    Returns:
        (n, count) float64 in [0, 1), the same on every device.

    Example:
        >>> few = uniforms(0, epoch=3, samples=torch.tensor([7]), count=2)
        >>> many = uniforms(0, epoch=3, samples=torch.arange(10), count=2)
        >>> torch.equal(few[0], many[7])
        True
    """
    indices = torch.arange(count, device=samples.device)
    key = torch.zeros((), dtype=torch.int64, device=samples.device)
    # Mixed one by one: a sum of seed and epoch would give the next seed the next epoch's numbers.
    chosen = (_signed(seed), zlib.crc32(stream.encode()), _signed(epoch))
    for part in (*chosen, samples.long()[:, None], indices):
        key = _splitmix(key + _STEP + part)
    return _shift_right(key, 11).double() * 2.0**-53


def order(seed: int, epoch: int, count: int) -> Tensor:
    """The samples of an epoch in random order, (count,) int64 on the CPU."""
    # Of the stream that chooses patients, each batch would be filled from one patient.
    return uniforms(seed, epoch, torch.arange(count), 1, "order")[:, 0].argsort(stable=True)


def _signed(number: int) -> int:
    """The 64-bit integer with the same bits, as torch's are signed."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def _splitmix(x: Tensor) -> Tensor:
    for bits, factor in _MIX:
        x = (x ^ _shift_right(x, bits)) * factor
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    # A logical shift: torch's >> on signed integers copies the sign bit.
    return (x >> bits) & ((1 << (64 - bits)) - 1)
