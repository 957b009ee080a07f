"""Planning: how many samples it takes to decide."""

from __future__ import annotations

import math

from scipy import stats

from audit.stats.base import tail_of, z_of


def plan_size(
    method: str,
    value: float | None,
    n: int,
    low: float | None,
    high: float | None,
    confidence: float,
    limit: float,
    power: float = 0.8,
) -> int | None:
    """Return the sample size at which an interval would clear `limit`, one way or the other, with chance `power`.

    It supposes that `value` is the truth: a size to plan a fresh test for, not a number of samples to add until it passes.
    Exact for a ``clopper-pearson`` proportion; otherwise the interval's width is taken to shrink as 1/√n. None where value
    and limit coincide, or where there is nothing to go by.
    """
    if value is None or low is None or high is None or n < 1 or value == limit:
        return None
    if method == "clopper-pearson" and 0 <= value <= 1:
        return _plan_proportion(value, confidence, limit, power)
    half = high - value if limit > value else value - low
    if half <= 0:
        return None
    z = z_of(confidence)
    return math.ceil(n * ((z + float(stats.norm.ppf(power))) / z * half / abs(limit - value)) ** 2)


def _plan_proportion(p: float, confidence: float, limit: float, power: float) -> int | None:
    if not 0 <= limit <= 1:
        return None

    def reached(n: int) -> bool:
        return _power(p, n, confidence, limit) >= power

    high = 1
    while not reached(high):
        high *= 2
        if high > 10**9:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def _power(p: float, n: int, confidence: float, limit: float) -> float:
    """Return the chance that n draws at truth `p` give a Clopper–Pearson interval that excludes `limit`."""
    tail = tail_of(confidence)
    if p > limit:  # the interval excludes the limit for all k from the smallest with P(X >= k | limit) < tail
        return float(stats.binom.sf(stats.binom.isf(tail, n, limit), n, p))
    smallest_kept = stats.binom.ppf(tail, n, limit)
    return float(stats.binom.cdf(smallest_kept - 1, n, p))
