"""Many groups: the gap between the best and the worst of them, and the worst."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from audit.stats.base import Floats, Interval, Ints, counts_of
from audit.stats.differences import subtracted
from audit.stats.proportions import clopper_pearson_limits


def pairwise_differences(k: ArrayLike, n: ArrayLike, confidence: float = 0.95, families: int = 1) -> tuple[Floats, Floats]:
    """Return simultaneous lower and upper limits of p_i − p_j for all pairs of K proportions, each of shape (K, K).

    Bonferroni of `difference` over the K(K−1) ordered pairs of groups with n > 0, times `families` (how many such
    comparisons are read together). Ordered pairs, since which of two groups comes off better is not known beforehand: so
    all lower limits hold together but for a chance of (1 − confidence)/2, and so do all upper ones. NaN on the diagonal and
    for empty groups.
    """
    k, n = counts_of(k, n)
    full = n > 0
    pairs = max(1, int(full.sum() * (full.sum() - 1))) * families
    return _pairs(k, n, 1 - (1 - confidence) / pairs)


def max_min_gap(k: ArrayLike, n: ArrayLike, confidence: float = 0.95, families: int = 1) -> Interval:
    """Return the gap between the largest and the smallest of K proportions, with a conservative interval.

    Each limit misses at most (1 − confidence)/2, divided by `families`, the number of such gaps that are read together:

    - the lower one is the largest lower limit of `pairwise_differences`. It errs only where one of these does;
    - the upper one is the largest upper limit of `difference` over all pairs, with no correction for their number. Two of
      the groups, whichever they are, lie as far apart as the gap is; the largest limit is at least theirs, and so misses
      only where theirs does.

    Groups with n = 0 could lie anywhere: they do not move the value, but the upper limit is 1. With fewer than two groups
    that have n > 0 the value is None and the limits are 0 and 1.

    The point value is biased upward: among many small groups some pair lies apart by chance; the interval is not misled by
    that, where a percentile bootstrap is: with a true gap of 0 it misses in 45 of 100 data sets of 2 groups, in 82 of 8 and in
    nearly all of 40. Simulated at 95 % (2 to 8 groups and 40 of them, 30 to 5,000 samples each, gaps of 0, 0.05 and 0.2, rates
    near 0, in the middle and near 1): each limit misses at most 2.5 %, and mostly far less, as groups next to the extremes
    push the upper limit up. Constants of the studentised range would bring the lower limit nearer by 2 % or less, and hold
    for large groups only.

    Source: Bonferroni for the lower limit; Berger (1982), Technometrics 24:295 (intersection–union) for the upper one.
    """
    k, n = counts_of(k, n)
    full = n > 0
    if full.sum() < 2:
        return Interval(None, 0.0, 1.0)
    p = k[full] / n[full]
    low, high = gap_limits(k[full], n[full], confidence, families)
    return Interval(float(p.max() - p.min()), float(low), float(high) if full.all() else 1.0)


def gap_limits(k: Ints, n: Ints, confidence: float = 0.95, families: int = 1) -> tuple[Floats, Floats]:
    """Return the limits of `max_min_gap` for `k` of shape (…, K) and `n` of shape (K,), all > 0, K at least 2."""
    pairs = len(n) * (len(n) - 1) * families
    lower, _ = _pairs(k, n, 1 - (1 - confidence) / pairs)
    _, upper = _pairs(k, n, 1 - (1 - confidence) / families)
    low, high = np.nanmax(lower, axis=(-2, -1)), np.nanmax(upper, axis=(-2, -1))
    return np.clip(low, 0, 1), np.clip(high, 0, 1)


def worst_of(k: ArrayLike, n: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the smallest of K proportions with an interval whose limits each miss at most (1 − confidence)/2.

    Both come from the Clopper–Pearson intervals of the K. The lower limit is the smallest of their lower limits, with no
    correction for their number: it is at most that of the group that is truly worst, and so misses only where that one does.
    The upper limit is the smallest of their upper limits with Bonferroni's correction, since any of them could be too low.

    The point value is biased downward: the smallest of several noisy estimates is noisy to the low side. A proportion with
    n = 0 could be anything, so the lower limit is then 0.

    Source: Berger (1982), Technometrics 24:295 (intersection–union); Clopper & Pearson (1934), Biometrika 26:404.
    """
    k, n = counts_of(k, n)
    full = n > 0
    if not full.any():
        return Interval(None, 0.0, 1.0)
    low, high = worst_limits(k[full], n[full], confidence)
    return Interval(float((k[full] / n[full]).min()), float(low) if full.all() else 0.0, float(high))


def worst_limits(k: Ints, n: Ints, confidence: float = 0.95) -> tuple[Floats, Floats]:
    """Return the limits of `worst_of` for `k` of shape (…, K) and `n` of shape (K,), all > 0."""
    low, _ = clopper_pearson_limits(k, n, confidence)
    _, high = clopper_pearson_limits(k, n, 1 - (1 - confidence) / len(n))
    return np.asarray(low.min(axis=-1)), np.asarray(high.min(axis=-1))


def _pairs(k: Ints, n: Ints, confidence: float) -> tuple[Floats, Floats]:
    """Return the limits of p_i − p_j, shape (…, K, K), NaN on the diagonal and where an n is 0."""
    lower, upper = subtracted(k[..., :, None], n[:, None], k[..., None, :], n[None, :], confidence)
    own = np.eye(len(n), dtype=np.bool_)
    return np.where(own, np.nan, lower), np.where(own, np.nan, upper)
