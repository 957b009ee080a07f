"""Planning: how likely a test of a given size is to decide, and what size it takes.

Power is the chance that an interval (or test) of this package shows the truth to lie on its own side of a limit. It is
enumerated from the binomial or trinomial distribution, not approximated, and leaves out outcomes with a chance below 1e-12
together. As whole numbers of successes step over a limit, power is no smooth function of the size: a few samples more can
have a little less of it. Sizes found here have the power asked for; some larger ones may miss it by a few per cent.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import stats

from audit.stats.base import Ints, tail_of, z_of
from audit.stats.differences import subtracted
from audit.stats.paired import paired_limits

LEFT_OUT = 1e-13  # the chance of the outcomes on either side that are not enumerated
AT_ONCE = 1_000_000  # pairs of outcomes that are held in memory
MOST = 10**9  # larger sizes are no plan


def power_of_share(share: float, n: int, limit: float, confidence: float = 0.95) -> float:
    """Return the chance that n draws show a share to lie on its side of `limit`, by the Clopper–Pearson interval.

    Parameters
    ----------
    share
        The true share, in [0, 1] and not equal to `limit`.
    n
        Independent draws.
    limit
        What the share is held against, such as the ``min`` of a policy, in [0, 1].
    confidence
        Of the interval.
    """
    _check(share, limit, n)
    if not (0 <= share <= 1 and 0 <= limit <= 1):
        raise ValueError(f"expected a share and a limit between 0 and 1, got {share} and {limit}")
    tail = tail_of(confidence)
    if share > limit:  # the interval excludes the limit for all k from the smallest with P(X >= k | limit) < tail
        return float(stats.binom.sf(stats.binom.isf(tail, n, limit), n, share))
    smallest_kept = stats.binom.ppf(tail, n, limit)
    return float(stats.binom.cdf(smallest_kept - 1, n, share))


def power_of_pairs(better: float, worse: float, n: int, limit: float = 0.0, confidence: float = 0.95) -> float:
    """Return the chance that n pairs show the change ``better − worse`` to lie on its side of `limit`.

    With a limit of 0 it is the power of McNemar's exact test, one-sided at (1 − confidence)/2, as `audit diff` uses it for its
    primary comparison. With another one it is that of the interval of `paired_difference`: for ``max_drop = 0.01`` say −0.01.

    Parameters
    ----------
    better, worse
        True shares of the samples on which the second network alone, and the first alone, succeeds; they add up to at most 1,
        and their difference is not the limit.
    n
        Independent samples, each put to both networks.

    Source: McNemar (1947), Psychometrika 12:153; power by enumeration as in Duffy (1984), Biometrics 40:1005.
    """
    if min(better, worse) < 0 or better + worse > 1:
        raise ValueError(f"expected two shares that add up to at most 1, got {better} and {worse}")
    _check(better - worse, limit, n)
    if better - worse < limit:
        better, worse, limit = worse, better, -limit
    return _mcnemar_power(better, worse, n, confidence) if limit == 0 else _paired_power(better, worse, n, limit, confidence)


def power_of_difference(first: float, n1: int, second: float, n2: int, limit: float = 0.0, confidence: float = 0.95) -> float:
    """Return the chance that n1 and n2 draws show ``first − second`` to lie on its side of `limit`, by `difference`.

    Assumes two independent samples with true shares `first` and `second`, whose difference is not the limit.
    """
    if not (0 <= first <= 1 and 0 <= second <= 1):
        raise ValueError(f"expected two shares between 0 and 1, got {first} and {second}")
    _check(first - second, limit, min(n1, n2))
    k1, k2 = _likely(first, n1), _likely(second, n2)
    of_second = stats.binom.pmf(k2, n2, second)
    total = 0.0
    for part in np.array_split(k1, -(-len(k1) * len(k2) // AT_ONCE)):
        low, high = subtracted(part[:, None], np.asarray(n1), k2[None, :], np.asarray(n2), confidence)
        decided = low > limit if first - second > limit else high < limit
        total += float(stats.binom.pmf(part, n1, first) @ (decided @ of_second))
    return min(1.0, total)


def size_for(power_of: Callable[[int], float], power: float = 0.8, most: int = MOST) -> int | None:
    """Return a size at which `power_of` it reaches `power`; None where none up to `most` does.

    It doubles the size until it is enough, then halves the interval in which it became so: the size before the one returned is
    not enough, but, since power goes up in steps, a still smaller one can be.

    >>> size_for(lambda n: power_of_share(0.9, n, 0.85))
    371
    """
    if not 0 < power < 1:
        raise ValueError(f"power should lie between 0 and 1, got {power}")
    high = 1
    while power_of(high) < power:
        high *= 2
        if high > most:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(middle) >= power else (middle, high)
    return high


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
        return size_for(lambda size: power_of_share(value, size, limit, confidence), power) if 0 <= limit <= 1 else None
    half = high - value if limit > value else value - low
    if half <= 0:
        return None
    z = z_of(confidence)
    return math.ceil(n * ((z + float(stats.norm.ppf(power))) / z * half / abs(limit - value)) ** 2)


def _check(value: float, limit: float, n: int) -> None:
    if n < 1:
        raise ValueError(f"expected at least one sample, got {n}")
    if value == limit:
        raise ValueError(f"nothing can show {value} to lie on either side of itself: take another limit, or another truth")


def _likely(share: float, n: int) -> Ints:
    """Return the numbers of successes that together have all but 2e-13 of the chance."""
    return np.arange(int(stats.binom.ppf(LEFT_OUT, n, share)), int(stats.binom.isf(LEFT_OUT, n, share)) + 1)


def _mcnemar_power(better: float, worse: float, n: int, confidence: float) -> float:
    """Sum over how many pairs disagree, and how many of these must be better for the test to say so."""
    tail = tail_of(confidence)
    disagree = _likely(better + worse, n)
    needed = stats.binom.isf(tail, disagree, 0.5)  # the largest number whose own p-value is still above the tail
    shown = stats.binom.sf(needed, disagree, better / (better + worse))
    return min(1.0, float(stats.binom.pmf(disagree, n, better + worse) @ shown))


def _paired_power(better: float, worse: float, n: int, limit: float, confidence: float) -> float:
    """Sum over how many are worse; how many must be better for the interval to clear the limit is found by halving."""
    lost = _likely(worse, n)
    short, enough = np.full(len(lost), -1), n - lost + 1
    while (enough - short > 1).any():
        middle = np.maximum((short + enough) // 2, 0)
        clears = (paired_limits(middle, lost, n, confidence)[0] > limit) & (short < middle)
        short, enough = np.where(clears, short, np.maximum(short, middle)), np.where(clears, middle, enough)
    shown = stats.binom.sf(enough - 1, n - lost, better / (1 - worse) if worse < 1 else 0.0)
    return min(1.0, float(stats.binom.pmf(lost, n, worse) @ shown))
