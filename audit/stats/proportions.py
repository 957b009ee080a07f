"""One proportion: successes among independent draws."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from audit.stats.base import Floats, Interval, tail_of, z_of


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> Interval:
    """Return k/n with the exact interval of Clopper and Pearson.

    Assumes `n` independent draws with one chance of success. Coverage is at least `confidence` for every true proportion,
    mostly more (a known bias: for small n the interval is wider than it need be). With n = 0 the value is None and the
    limits are 0 and 1.

    Source: Clopper & Pearson (1934), Biometrika 26:404, as quantiles of the beta distribution.
    """
    low, high = clopper_pearson_limits(np.asarray(k), np.asarray(n), confidence)
    return Interval(k / n if n else None, float(low), float(high))


def clopper_pearson_limits(k: ArrayLike, n: ArrayLike, confidence: float = 0.95) -> tuple[Floats, Floats]:
    """Return the limits of `clopper_pearson` for arrays of counts that broadcast; 0 and 1 where n is 0.

    Raises
    ------
    ValueError
        A count is negative or larger than its n, or the confidence is outside (0, 1).
    """
    k, n = np.broadcast_arrays(np.asarray(k, dtype=np.float64), np.asarray(n, dtype=np.float64))
    if ((k < 0) | (k > n)).any():
        raise ValueError(f"expected 0 <= k <= n, got k = {k.tolist()}, n = {n.tolist()}")
    tail = tail_of(confidence)
    # The quantiles below have no meaning at k = 0 and k = n: any shape serves there, and np.where drops it.
    low = np.where(k == 0, 0.0, stats.beta.ppf(tail, np.maximum(k, 1), n - k + 1))
    high = np.where(k == n, 1.0, stats.beta.ppf(1 - tail, k + 1, np.maximum(n - k, 1)))
    return np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)


def wilson(k: int, n: int, confidence: float = 0.95) -> Interval:
    """Return k/n with Wilson's score interval.

    Covers `confidence` on average over the true proportion; for some proportions less (near 0 and 1 down to about 0.83 at
    95 %), so verdicts rest on `clopper_pearson`.

    Source: Wilson (1927), JASA 22:209.
    """
    if not 0 <= k <= n:
        raise ValueError(f"expected 0 <= k <= n, got k = {k}, n = {n}")
    if n == 0:
        return Interval(None, 0.0, 1.0)
    z, p = z_of(confidence), k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Interval(p, 0.0 if k == 0 else max(0.0, centre - half), 1.0 if k == n else min(1.0, centre + half))
