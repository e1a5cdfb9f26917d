"""Counter-based random numbers: a function of seed, epoch, sample and index.

There is no generator state, so resuming needs no replay, and the numbers do not depend on the
number of workers or the order of samples.
"""

import torch
from torch import Tensor

# A stream of its own for the order: sorting samples by their first draw, which may also choose
# the patient, would fill each batch from one patient.
_ORDER = 0x5851F42D4C957F2D
# SplitMix64's step and mixing constants (Steele, Lea, Flood 2014), as signed 64-bit numbers.
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))


def uniforms(seed: int, epoch: int, samples: Tensor, count: int) -> Tensor:
    """Independent uniform random numbers for each sample.

    Args:
        seed, epoch: any 64-bit integers.
        samples: (n,) integer, positions of the samples in the epoch; on any device.
        count: numbers per sample.

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
        key = _splitmix(key + _STEP + part)
    return _shift_right(key, 11).double() * 2.0**-53


def order(seed: int, epoch: int, count: int) -> Tensor:
    """The samples of an epoch in random order, (count,) int64 on the CPU.

    The order is independent of the numbers that ``uniforms`` draws from the same seed.
    """
    return uniforms(seed ^ _ORDER, epoch, torch.arange(count), 1)[:, 0].argsort(stable=True)


def _splitmix(x: Tensor) -> Tensor:
    for bits, factor in _MIX:
        x = (x ^ _shift_right(x, bits)) * factor
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    # A logical shift: torch's >> on signed integers copies the sign bit.
    return (x >> bits) & ((1 << (64 - bits)) - 1)
