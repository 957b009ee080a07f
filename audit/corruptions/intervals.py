"""Intervals for what several corruptions do to the same samples: outcomes of one sample belong together."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from audit import stats
from audit.stats import Floats, Interval

PSEUDO = 2  # samples that are added at each end of the range


def bounded_mean(values: ArrayLike, lowest: float, highest: float, confidence: float = 0.95) -> Interval:
    """Return the mean of independent values in [lowest, highest] with an interval that never has width 0.

    Each value may itself be a mean over dependent outcomes of one sample (its answers under many corruptions): the sample is
    the unit that is drawn. It is Student's interval of the values with two more at each end of the range, in the manner of
    Agresti and Coull: where all values are equal, plain Student would claim to know the mean exactly. On either side the limit
    is the wider of that and of plain Student's: for values close to an end the added ones draw the interval to the middle, and
    the limit towards that end would miss up to 7 %. The value itself is the plain mean. With no values it is None, and the
    limits are the range.

    Source: Agresti & Coull (1998), The American Statistician 52:119, with Student's t for values between the ends.
    """
    v = np.asarray(values, dtype=np.float64)
    if len(v) == 0:
        return Interval(None, lowest, highest)
    mean = float(v.mean())
    more = np.concatenate((v, [lowest] * PSEUDO, [highest] * PSEUDO))
    (centre, half), own = _student(more, confidence), _student(v, confidence)[1]
    return Interval(mean, max(lowest, min(mean - own, centre - half)), min(highest, max(mean + own, centre + half)))


def mean(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the mean of independent values without bounds, with Student's interval; no limits for fewer than 10 values.

    With heavy-tailed values and few samples it covers less than it states. None where a value is not finite.
    """
    v = np.asarray(values, dtype=np.float64)
    if len(v) == 0 or not np.isfinite(v).all():
        return Interval(None, None, None)
    centre, half = _student(v, confidence)
    if len(v) < stats.MIN_BOOTSTRAP or half == 0:
        return Interval(centre, None, None)
    return Interval(centre, centre - half, centre + half)


def paired_difference(lost: int, won: int, n: int, confidence: float = 0.95) -> Interval:
    """Return (lost − won) / n, the difference of two proportions of the same n samples, with a conservative interval.

    `lost` samples count in the first only, `won` in the second only. Clopper–Pearson limits of both shares, each at half the
    error rate (Bonferroni), so that coverage is at least `confidence`.
    """
    if n == 0:
        return Interval(None, -1.0, 1.0)
    half = (1 + confidence) / 2
    first, second = stats.clopper_pearson(lost, n, half), stats.clopper_pearson(won, n, half)
    low, high = (first.low or 0.0) - (second.high or 0.0), (first.high or 0.0) - (second.low or 0.0)
    return Interval((lost - won) / n, max(-1.0, low), min(1.0, high))


def _student(values: Floats, confidence: float) -> tuple[float, float]:
    """Return the mean and half the width of Student's interval; 0 for a single value."""
    n = len(values)
    if n < 2:
        return float(values.mean()), 0.0
    quantile = float(scipy_stats.t.ppf((1 + confidence) / 2, n - 1))
    return float(values.mean()), quantile * float(values.std(ddof=1)) / math.sqrt(n)
