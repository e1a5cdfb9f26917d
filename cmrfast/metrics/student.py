"""Student's t distribution, for any positive number of degrees of freedom, in float64."""

import math


def student_p(t: float, freedom: float) -> float:
    """Two-sided p of Student's t: I_x(freedom/2, 1/2) at x = freedom / (freedom + t²).

    I is the regularised incomplete beta function, by its continued fraction.

    Args:
        t: any number, infinite ones included.
        freedom: degrees of freedom, positive, not necessarily whole.

    Example:
        >>> round(student_p(2.228138852, 10), 6)
        0.05
    """
    if math.isnan(t) or t == 0:
        return 1.0 if t == 0 else math.nan
    ratio = t * t / freedom
    if math.isinf(ratio):
        return 0.0
    a, b = freedom / 2, 0.5
    x, rest = 1 / (1 + ratio), ratio / (1 + ratio)
    # Logarithms of ratio rather than of x and rest, which are rounded where they are near 1.
    log_x = -math.log1p(ratio)
    scale = math.exp(_log_beta_scale(a) + a * log_x + b * (math.log(ratio) + log_x))
    if x < (a + 1) / (a + b + 2):  # where the continued fraction converges fast
        return scale / a * _beta_fraction(a, b, x)
    return 1 - scale / b * _beta_fraction(b, a, rest)


def student_quantile(probability: float, freedom: float) -> float:
    """The t below which Student's distribution has the given probability.

    Args:
        probability: in (0, 1).
        freedom: degrees of freedom, positive, not necessarily whole.

    Example:
        >>> round(student_quantile(0.975, 10), 6)
        2.228139
    """
    if not 0 < probability < 1:
        raise ValueError(f"student_quantile: probability must lie in (0, 1); got {probability}")
    if probability < 0.5:
        return -student_quantile(1 - probability, freedom)
    tail, t = 2 * (1 - probability), 0.0
    # The two-sided p is convex in t, so Newton's steps from 0 approach the root from below.
    while (above := student_p(t, freedom) - tail) > 0:
        step = above / (2 * _density(t, freedom))
        t += step
        if step <= 1e-15 * t:
            break
    return t


def _density(t: float, freedom: float) -> float:
    log_power = (freedom + 1) / 2 * math.log1p(t * t / freedom)
    return math.exp(_log_beta_scale(freedom / 2) - math.log(freedom) / 2 - log_power)


def _log_beta_scale(a: float) -> float:
    """log(1 / B(a, 1/2)) = log(Γ(a + 1/2) / (Γ(a) Γ(1/2)))."""
    if a < 50:
        return math.lgamma(a + 0.5) - math.lgamma(a) - math.log(math.pi) / 2
    # The difference of two large logarithms would cancel; its series in 1 / a does not.
    series = -1 / (8 * a) + 1 / (192 * a**3) - 1 / (640 * a**5)
    return (math.log(a) - math.log(math.pi)) / 2 + series


def _beta_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function, by Lentz's method."""
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    value, m = d, 1
    while True:
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d, c = 1 / (1 + term * d), 1 + term / c
            value *= c * d
        if abs(c * d - 1) < 1e-15 or m > 10_000:
            return value
        m += 1
