"""Many groups: the gap between the best and the worst of them, and the worst."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from audit.stats.base import Floats, Interval, counts_of
from audit.stats.differences import subtracted
from audit.stats.proportions import clopper_pearson_limits


def pairwise_differences(k: ArrayLike, n: ArrayLike, confidence: float = 0.95, families: int = 1) -> tuple[Floats, Floats]:
    """Return simultaneous lower and upper limits of p_i − p_j for all pairs of K proportions, each of shape (K, K).

    Bonferroni of `difference` over the K(K−1) ordered pairs of groups with n > 0, times `families` (how many such
    comparisons are read together). Ordered pairs, since which of two groups comes off better is not known beforehand: so
    each side of the gap errs with a chance of at most (1 − confidence)/2. NaN on the diagonal and for empty groups.
    """
    k, n = counts_of(k, n)
    full = n > 0
    pairs = max(1, int(full.sum() * (full.sum() - 1))) * families
    lower, upper = subtracted(k[:, None], n[:, None], k[None, :], n[None, :], 1 - (1 - confidence) / pairs)
    np.fill_diagonal(lower, np.nan)
    np.fill_diagonal(upper, np.nan)
    return lower, upper


def max_min_gap(k: ArrayLike, n: ArrayLike, confidence: float = 0.95, families: int = 1) -> Interval:
    """Return the gap between the largest and the smallest of K proportions, with a conservative simultaneous interval.

    The true gap lies between the largest lower limit and the largest upper limit of `pairwise_differences`. The point value
    is biased upward: among many small groups some pair lies apart by chance; the interval is not misled by that.

    Groups with n = 0 could lie anywhere: they do not move the value, but the upper limit is 1. With fewer than two groups
    that have n > 0 the value is None and the limits are 0 and 1.
    """
    k, n = counts_of(k, n)
    full = n > 0
    if full.sum() < 2:
        return Interval(None, 0.0, 1.0)
    p = k[full] / n[full]
    lower, upper = pairwise_differences(k, n, confidence, families)
    high = min(1.0, float(np.nanmax(upper))) if full.all() else 1.0
    return Interval(float(p.max() - p.min()), max(0.0, float(np.nanmax(lower))), high)


def worst_of(k: ArrayLike, n: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the smallest of K proportions with a simultaneous interval: Clopper–Pearson, Bonferroni over the K.

    The point value is biased downward: the smallest of several noisy estimates is noisy to the low side. A proportion with
    n = 0 could be anything, so the lower limit is then 0.
    """
    k, n = counts_of(k, n)
    full = n > 0
    if not full.any():
        return Interval(None, 0.0, 1.0)
    low, high = clopper_pearson_limits(k, n, 1 - (1 - confidence) / len(n))
    return Interval(float((k[full] / n[full]).min()), float(low.min()), float(high.min()))
