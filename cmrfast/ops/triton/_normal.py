"""Normal numbers of groups of four voxels, from the same random words as on a CPU."""

from math import factorial

import triton
import triton.language as tl
from triton.language.extra import libdevice

from cmrfast.ops.triton._launch import INTERPRETED

_TURN = tl.constexpr(6.283185307179586 / 2**32)
#: Taylor's coefficients of cos(x) and sin(x) / x by powers of x^2.
_COSINE = tl.constexpr(tuple((-1) ** k / factorial(2 * k) for k in range(10)))
_SINE = tl.constexpr(tuple((-1) ** k / factorial(2 * k + 1) for k in range(10)))


@triton.jit
def _sine_cosine(turn, ACC: tl.constexpr):
    """Sine and cosine of turn / 2^32 of a full circle, by Taylor's series in an eighth of it."""
    quarter = (turn + 0x20000000) >> 30
    angle = (turn - (quarter << 30)).to(tl.int32, bitcast=True).to(ACC) * tl.full((1,), _TURN, ACC)
    square = angle * angle
    TERMS: tl.constexpr = 9 if tl.float64 == ACC else 5
    sine, cosine = tl.full(angle.shape, 0, ACC), tl.full(angle.shape, _COSINE[TERMS], ACC)
    for k in tl.static_range(TERMS - 1, -1, -1):
        sine = sine * square + _SINE[k]
        cosine = cosine * square + _COSINE[k]
    sine = sine * angle
    swapped = (quarter & 1) != 0
    s, c = tl.where(swapped, cosine, sine), tl.where(swapped, sine, cosine)
    return tl.where((quarter & 2) != 0, -s, s), tl.where(((quarter + 1) & 2) != 0, -c, c)


@triton.jit
def _normal_pair(first, second, ACC: tl.constexpr):
    """Two standard normal numbers from two random words."""
    uniform = first.to(ACC) * 2.0**-32 + 2.0**-33  # above 0
    log = tl.log(uniform) if INTERPRETED or tl.float64 == ACC else libdevice.log(uniform)
    radius = tl.sqrt(-2 * log)
    sine, cosine = _sine_cosine(second, ACC)
    return radius * cosine, radius * sine


@triton.jit
def normal(seed, channel, sample, group, ACC: tl.constexpr):
    """Four standard normal numbers of each group, one after the other."""
    word = tl.zeros_like(group).to(tl.uint32)
    x0, x1, x2, x3 = tl.philox(
        seed, group.to(tl.uint32), word + channel.to(tl.uint32), word + sample.to(tl.uint32),
        word + (sample >> 32).to(tl.uint32),
    )  # fmt: skip
    n0, n1 = _normal_pair(x0, x1, ACC)
    n2, n3 = _normal_pair(x2, x3, ACC)
    return tl.join(tl.join(n0, n2), tl.join(n1, n3)).reshape(4 * group.shape[0])
