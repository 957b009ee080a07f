"""Sums and differences of proportions: of independent samples, and of the same samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from audit.stats.base import Floats, Interval, Ints, clip, counts_of
from audit.stats.proportions import clopper_pearson, clopper_pearson_limits, wilson

FAR_APART = 0.5  # a difference of proportions beyond it gets the wider of two intervals


def mover(parts: Sequence[Interval], weights: Sequence[float]) -> Interval:
    """Return a weighted sum of independent estimates, its interval recovered from theirs (MOVER).

    The distance from each estimate to the limit that faces the same way stands for its standard error; the distances are
    added in squares. With Clopper–Pearson parts the sum covers about `confidence` or more, but in one corner less at any
    number of samples: where one of two subtracted proportions is nearly 1 and the other nearly 0, such as 0.99 and 0.01 of
    30 each, the limit that faces away from 0 misses up to 7.3 % (95 % nominal; enumerated in tests/test_stats.py). Many parts
    of a few samples fare worse yet. `difference` and `mean_of_proportions` mend both. Anything None makes the whole None.

    Source: Zou & Donner (2008), Statistics in Medicine 27:1693, equation 2, for any weights.
    """
    if len(parts) != len(weights):
        raise ValueError(f"expected one weight for each of {len(parts)} parts, got {len(weights)}")
    value = below = above = 0.0
    for part, weight in zip(parts, weights, strict=True):
        if part.value is None or part.low is None or part.high is None:
            return Interval(None, None, None)
        down, up = part.value - part.low, part.high - part.value
        value += weight * part.value
        below += (weight * (down if weight > 0 else up)) ** 2
        above += (weight * (up if weight > 0 else down)) ** 2
    return Interval(value, value - math.sqrt(below), value + math.sqrt(above))


def newcombe_difference(k1: int, n1: int, k2: int, n2: int, confidence: float = 0.95) -> Interval:
    """Return k1/n1 − k2/n2 with Newcombe's hybrid score interval; limits −1 and 1 where an n is 0.

    Assumes two independent samples. Covers `confidence` on average; `difference` is the conservative one.

    Source: Newcombe (1998), Statistics in Medicine 17:873, method 10.
    """
    return _difference(wilson(k1, n1, confidence), wilson(k2, n2, confidence))


def difference(k1: int, n1: int, k2: int, n2: int, confidence: float = 0.95) -> Interval:
    """Return k1/n1 − k2/n2 with a conservative interval: MOVER over Clopper–Pearson limits.

    Assumes two independent samples; limits −1 and 1 where an n is 0. Where the two lie 0.5 apart or more, MOVER alone
    covers less than it states, and the limit that faces away from 0 is the wider of MOVER's and Bonferroni's, which subtracts
    Clopper–Pearson limits at half the error rate each. Enumerated at 95 %: at least 94.6 % with five samples a part, 95 %
    from ten on.

    Source: Zou & Donner (2008) with the limits of Clopper & Pearson (1934).
    """
    low, high = subtracted(np.asarray(k1), np.asarray(n1), np.asarray(k2), np.asarray(n2), confidence)
    if n1 == 0 or n2 == 0:
        return Interval(None, -1.0, 1.0)
    return clip(Interval(k1 / n1 - k2 / n2, float(low), float(high)), -1.0, 1.0)


def mean_of_proportions(k: ArrayLike, n: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the unweighted mean of proportions (balanced accuracy, where they are recalls) by MOVER over Clopper–Pearson.

    Each part enters with the larger of its two distances on both sides: a part of one sample that is wrong has no distance
    downward, and hundreds of them would make the sum of MOVER's own distances far too short (1,000 parts of one sample: 8 to
    13 % missed on one side; so 3 %). One part alone keeps its Clopper–Pearson limits. Proportions with n = 0 are left out, as
    scikit-learn does; where all are, the value is None and the limits 0 and 1.
    """
    k, n = counts_of(k, n)
    k, n = k[n > 0], n[n > 0]
    if len(n) == 0:
        return Interval(None, 0.0, 1.0)
    if len(n) == 1:
        return clopper_pearson(int(k[0]), int(n[0]), confidence)
    p = k / n
    low, high = clopper_pearson_limits(k, n, confidence)
    value, half = float(p.mean()), float(np.linalg.norm(np.maximum(p - low, high - p))) / len(n)
    return clip(Interval(value, value - half, value + half), 0.0, 1.0)


def paired_difference(better: int, worse: int, n: int, confidence: float = 0.95) -> Interval:
    """Return (better − worse)/n, the difference of two proportions over the same `n` samples, with a conservative interval.

    `better` samples are a success in the first alone, `worse` in the second alone; those that agree say nothing. Limits are
    those of MOVER over the Clopper–Pearson limits of the two shares. The shares are cells of one multinomial, so their
    correlation is −sqrt(pq/((1−p)(1−q))); it is taken at the upper limits p and q, where it is strongest. (At the estimates,
    as Newcombe 1998, method 10, has it, ten samples of which nearly all disagree miss 8.5 %.) Enumerated at 95 % for n = 5 to
    40: at least 96 % covered. With n = 0 the value is None and the limits are −1 and 1.

    Source: Zou & Donner (2008), Statistics in Medicine 27:1693, equation 4, with the limits of Clopper & Pearson (1934).
    """
    if min(better, worse) < 0 or better + worse > n:
        raise ValueError(f"expected counts that add up to at most {n}, got {better} and {worse}")
    if n == 0:
        return Interval(None, -1.0, 1.0)
    p, q = better / n, worse / n
    (low_p, low_q), (high_p, high_q) = clopper_pearson_limits([better, worse], [n, n], confidence)
    apart = (1 - high_p) * (1 - high_q)
    r = -min(1.0, math.sqrt(high_p * high_q / apart)) if apart > 0 else -1.0

    def reach(a: float, b: float) -> float:
        return math.sqrt(a * a + b * b - 2 * r * a * b)

    value = p - q
    return clip(Interval(value, value - reach(p - low_p, high_q - q), value + reach(high_p - p, q - low_q)), -1.0, 1.0)


def subtracted(k1: Ints, n1: Ints, k2: Ints, n2: Ints, confidence: float) -> tuple[Floats, Floats]:
    """Return the limits of `difference` for arrays of counts that broadcast; NaN where an n is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        p, q = k1 / n1, k2 / n2
    (low1, high1), (low2, high2) = clopper_pearson_limits(k1, n1, confidence), clopper_pearson_limits(k2, n2, confidence)
    lower = p - q - np.hypot(p - low1, high2 - q)
    upper = p - q + np.hypot(high1 - p, q - low2)
    half = (1 + confidence) / 2
    (low1, high1), (low2, high2) = clopper_pearson_limits(k1, n1, half), clopper_pearson_limits(k2, n2, half)
    return (
        np.where(p - q <= -FAR_APART, np.fmin(lower, low1 - high2), lower),
        np.where(p - q >= FAR_APART, np.fmax(upper, high1 - low2), upper),
    )


def _difference(first: Interval, second: Interval) -> Interval:
    if first.value is None or second.value is None:
        return Interval(None, -1.0, 1.0)
    return clip(mover([first, second], [1.0, -1.0]), -1.0, 1.0)
