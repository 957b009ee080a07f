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
    limits are the range. Enumerated at 95 % for values of 0 and 1 (n from 2 to 400): each limit misses at most 3.1 %, where
    2.5 % is stated.

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


def _student(values: Floats, confidence: float) -> tuple[float, float]:
    """Return the mean and half the width of Student's interval; 0 for a single value."""
    n = len(values)
    if n < 2:
        return float(values.mean()), 0.0
    quantile = float(scipy_stats.t.ppf((1 + confidence) / 2, n - 1))
    return float(values.mean()), quantile * float(values.std(ddof=1)) / math.sqrt(n)
