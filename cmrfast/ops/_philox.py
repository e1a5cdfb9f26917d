"""Random numbers as a function of a key and a counter, so that no order of draws matters.

Philox4x32-10 of Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3
(doi.org/10.1145/2063384.2063405), and normal numbers from it by Box and Muller's transform.
"""

import math

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 0xFFFFFFFF


def words_of(value: int) -> tuple[int, int]:
    """The low and the high 32 bits of a 64-bit integer, signed or not."""
    return value & _WORD, value >> 32 & _WORD


def philox(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Four random words from four counter words, all int64 tensors of values below 2^32."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _product(x0, _MULTIPLIERS[0])
        high1, low1 = _product(x2, _MULTIPLIERS[1])
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0
        k0, k1 = k0 + _WEYL[0] & _WORD, k1 + _WEYL[1] & _WORD
    return x0, x1, x2, x3


def _product(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """The high and the low word of a product of words; int64 holds only half of it."""
    low, high = (x & 0xFFFF) * factor, (x >> 16) * factor
    return high + (low >> 16) >> 16, (high << 16) + low & _WORD


def normal(count: int, seed: int, channel: int, sample: int, like: Tensor) -> Tensor:
    """Standard normal numbers (count,) of one image, of the dtype and on the device of ``like``.

    The four words of the counter (group, channel, low and high word of the sample) give those of
    the four voxels of a group: cosine and sine of the first pair of words, then of the second.
    """
    group = torch.arange((count + 3) // 4, device=like.device)
    fixed = (torch.full_like(group, word) for word in (channel, *words_of(sample)))
    words = philox((group & _WORD, *fixed), words_of(seed))
    numbers = []
    for first, second in (words[:2], words[2:]):
        uniform = first.to(like.dtype) * 2.0**-32 + 2.0**-33  # above 0
        radius = (-2 * uniform.double().log()).sqrt()
        angle = second.double() * (2 * math.pi / 2**32)
        numbers += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(numbers, 1).view(-1)[:count].to(like.dtype)
