"""Sums and differences of proportions of independent samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from audit.stats.base import Floats, Interval, Ints, clip, counts_of, tail_of, z_of
from audit.stats.proportions import clopper_pearson_limits, wilson

FEW = 30  # parts of a mean with fewer samples call for a second interval, see `mean_of_proportions`
HALVINGS = 60  # of the interval from the estimate to an end of [-1, 1]: to the last digit of a float


def mover(parts: Sequence[Interval], weights: Sequence[float]) -> Interval:
    """Return a weighted sum of independent estimates, its interval recovered from theirs (MOVER).

    The distance from each estimate to the limit that faces the same way stands for its standard error; the distances are
    added in squares. With Clopper–Pearson parts the sum covers about `confidence` or more, but in one corner less at any
    number of samples: where one of two subtracted proportions is nearly 1 and the other nearly 0, such as 0.99 and 0.01 of
    30 each, the limit that faces away from 0 misses up to 7.3 % (95 % nominal; enumerated in tests/stats). Many parts of a few
    samples fare worse yet, and so does a confidence far above 95 %. `difference` and `mean_of_proportions` mend these.
    Anything None makes the whole None.

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

    Assumes two independent samples. Covers `confidence` on average over the two shares, for rare ones less: at 95 % and 20
    samples each it misses 12 % at 0.02 and 0.98, with 300 each up to 5.5 %. Verdicts rest on `difference`.

    Source: Newcombe (1998), Statistics in Medicine 17:873, method 10.
    """
    first, second = wilson(k1, n1, confidence), wilson(k2, n2, confidence)
    if first.value is None or second.value is None:
        return Interval(None, -1.0, 1.0)
    return clip(mover([first, second], [1.0, -1.0]), -1.0, 1.0)


def miettinen_nurminen(k1: int, n1: int, k2: int, n2: int, confidence: float = 0.95) -> Interval:
    """Return k1/n1 − k2/n2 with the score interval of Miettinen and Nurminen; limits −1 and 1 where an n is 0.

    Assumes two independent samples. Covers `confidence` on average over the two shares, for rare ones less: at 95 % it misses
    up to 7.9 % with 50 samples each and 6.2 % with 300, and one side more than its half. Verdicts rest on `difference`.

    Source: Miettinen & Nurminen (1985), Statistics in Medicine 4:213, equations 8 to 10 and appendix 1.
    """
    low, high = miettinen_nurminen_limits(np.asarray(k1), np.asarray(n1), np.asarray(k2), np.asarray(n2), confidence)
    if n1 == 0 or n2 == 0:
        return Interval(None, -1.0, 1.0)
    return Interval(k1 / n1 - k2 / n2, float(low), float(high))


def miettinen_nurminen_limits(
    k1: ArrayLike, n1: ArrayLike, k2: ArrayLike, n2: ArrayLike, confidence: float = 0.95
) -> tuple[Floats, Floats]:
    """Return the limits of `miettinen_nurminen` for arrays of counts that broadcast; −1 and 1 where an n is 0.

    A difference d lies inside where (p̂1 − p̂2 − d)² ≤ z² N/(N − 1) (p1(1 − p1)/n1 + p2(1 − p2)/n2), with N = n1 + n2 and
    with p1 and p2 the likeliest shares that lie d apart. The limits are found by bisection.

    Raises
    ------
    ValueError
        A count is negative or larger than its n, or the confidence is outside (0, 1).
    """
    k1, n1, k2, n2 = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in (k1, n1, k2, n2)))
    if ((k1 < 0) | (k1 > n1) | (k2 < 0) | (k2 > n2)).any():
        raise ValueError("expected 0 <= k <= n in both samples")
    empty = (n1 == 0) | (n2 == 0)
    n1, n2 = np.where(empty, 1, n1), np.where(empty, 1, n2)
    estimate, scale = k1 / n1 - k2 / n2, z_of(confidence) ** 2 * (n1 + n2) / (n1 + n2 - 1)

    def kept(d: Floats) -> NDArray[np.bool_]:
        p2 = likeliest_second(k1, n1, k2, n2, d)
        p1 = np.clip(p2 + d, 0, 1)
        inside: NDArray[np.bool_] = (estimate - d) ** 2 <= scale * (p1 * (1 - p1) / n1 + p2 * (1 - p2) / n2)
        return inside

    def limit(end: float) -> Floats:
        inside, outside = estimate.copy(), np.full(estimate.shape, end)
        for _ in range(HALVINGS):
            middle = (inside + outside) / 2
            inner = kept(middle)
            inside, outside = np.where(inner, middle, inside), np.where(inner, outside, middle)
        return np.where(empty, end, outside)

    return limit(-1.0), limit(1.0)


def likeliest_second(k1: Floats, n1: Floats, k2: Floats, n2: Floats, d: Floats) -> Floats:
    """Return the second of the two likeliest shares that lie `d` apart (first less second), in closed form.

    It is the root of a cubic, Σ l_i p^i = 0, that lies in [max(0, −d), min(1, 1 − d)].

    Source: Miettinen & Nurminen (1985), appendix 1.
    """
    n, k = n1 + n2, k1 + k2
    l2, l1, l0 = (n1 + 2 * n2) * d - n - k, (n2 * d - n - 2 * k2) * d + k, k2 * d * (1 - d)
    shift = l2 / (3 * n)
    q = shift**3 - l1 * l2 / (6 * n**2) + l0 / (2 * n)
    r = np.copysign(np.sqrt(np.maximum(shift**2 - l1 / (3 * n), 0)), q)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = np.where(r == 0, 0.0, np.clip(q / r**3, -1, 1))
    root = 2 * r * np.cos((math.pi + np.arccos(cosine)) / 3) - shift
    return np.asarray(np.clip(root, np.maximum(0, -d), np.minimum(1, 1 - d)), dtype=np.float64)


def difference(k1: int, n1: int, k2: int, n2: int, confidence: float = 0.95) -> Interval:
    """Return k1/n1 − k2/n2 with a conservative interval, whose limits each miss at most (1 − confidence)/2.

    Assumes two independent samples; limits −1 and 1 where an n is 0. On each side it is the nearer of two limits: those of
    two Clopper–Pearson intervals at half the error rate each, subtracted (Bonferroni), which hold whatever the counts; and
    MOVER's over Clopper–Pearson, where each part enters with the longer of its two distances. MOVER with its own distances
    is too short for a rare outcome in one of the parts (30 and 1,000 samples at 0.98 and 0.5: 3.4 % missed above, where 2.5 %
    is stated). The longer distances are so only for few samples at a high confidence, such as a comparison of many pairs
    asks for, and Bonferroni stands alone where a part has fewer than z³ (8 at 95 %, 36 at 99.9 %).

    Enumerated at 95 % for n = 5 to 10,000: each limit misses at most 2.5 % (1.9 % with 20 samples each: a known bias, it is
    then a quarter wider than `miettinen_nurminen`). At 80 to 99.9 % each misses at most what it states within a twentieth,
    at 99.997 % within a tenth.

    Source: Zou & Donner (2008), Statistics in Medicine 27:1693, with the limits of Clopper & Pearson (1934).
    """
    low, high = subtracted(np.asarray(k1), np.asarray(n1), np.asarray(k2), np.asarray(n2), confidence)
    if n1 == 0 or n2 == 0:
        return Interval(None, -1.0, 1.0)
    return clip(Interval(k1 / n1 - k2 / n2, float(low), float(high)), -1.0, 1.0)


def mean_of_proportions(k: ArrayLike, n: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the unweighted mean of proportions (balanced accuracy, where they are recalls) with a conservative interval.

    MOVER over Clopper–Pearson limits, each part with the larger of its two distances on both sides: a part of one sample that
    is wrong has no distance downward, and hundreds of them would make the sum of MOVER's own distances far too short (1,000
    parts of one sample: 8 to 13 % missed on one side). Where a part has fewer than 30 samples the interval is the wider, on
    either side, of that and of Clopper and Pearson's for the K²/Σ(1/n) draws of one proportion that the mean is worth: four
    parts of one sample each would else miss 6 % on one side. Proportions with n = 0 are left out, as scikit-learn does; where
    all are, the value is None and the limits 0 and 1. One part alone keeps its Clopper–Pearson limits.

    Simulated at 95 % for 2 to 40 parts of 1 to 1,000 samples, alike and mixed, and enumerated for up to 1,000 parts of one
    sample: each limit misses at most 2.5 %, beyond Monte-Carlo error.

    Source: Zou & Donner (2008), Statistics in Medicine 27:1693; Clopper & Pearson (1934). For parts of equal size the sum of
    successes strays from its mean, by more than one, no more often than that of one share does: Hoeffding (1956), Annals of
    Mathematical Statistics 27:713, theorem 4.
    """
    k, n = counts_of(k, n)
    k, n = k[n > 0], n[n > 0]
    if len(n) == 0:
        return Interval(None, 0.0, 1.0)
    low, high = mean_limits(k, n, confidence)
    return clip(Interval(float((k / n).mean()), float(low), float(high)), 0.0, 1.0)


def mean_limits(k: Ints, n: Ints, confidence: float = 0.95) -> tuple[Floats, Floats]:
    """Return the limits of `mean_of_proportions` over the last axis, for `k` of shape (…, K) and `n` of shape (K,), all > 0."""
    p = k / n
    value = p.mean(axis=-1)
    half = np.linalg.norm(_longer_distance(k, n, confidence), axis=-1) / len(n)
    low, high = value - half, value + half
    if n.min() >= FEW and len(n) > 1:
        return low, high
    tail, draws = tail_of(confidence), len(n) ** 2 / (1 / n).sum()
    # The quantiles have no meaning at 0 and 1: any shape serves there, and np.where drops it.
    inside = np.clip(value * draws, 1e-9, draws - 1e-9)
    exact_low = np.where(value == 0, 0.0, stats.beta.ppf(tail, inside, draws - inside + 1))
    exact_high = np.where(value == 1, 1.0, stats.beta.ppf(1 - tail, inside + 1, draws - inside))
    if len(n) == 1:
        return exact_low, exact_high
    return np.minimum(low, exact_low), np.maximum(high, exact_high)


def subtracted(k1: Ints, n1: Ints, k2: Ints, n2: Ints, confidence: float) -> tuple[Floats, Floats]:
    """Return the limits of `difference` for arrays of counts that broadcast, not clipped; NaN where an n is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = k1 / n1 - k2 / n2
    half = (1 + confidence) / 2
    (low1, high1), (low2, high2) = clopper_pearson_limits(k1, n1, half), clopper_pearson_limits(k2, n2, half)
    reach = np.hypot(_longer_distance(k1, n1, confidence), _longer_distance(k2, n2, confidence))
    reach = np.where(np.minimum(n1, n2) >= z_of(confidence) ** 3, reach, np.inf)
    lower, upper = np.maximum(low1 - high2, apart - reach), np.minimum(high1 - low2, apart + reach)
    return lower, upper  # the estimate is NaN where an n is 0, and so are these


def _longer_distance(k: Ints, n: Ints, confidence: float) -> Floats:
    """Return the distance from k/n to the farther of its Clopper–Pearson limits; NaN where n is 0."""
    low, high = clopper_pearson_limits(k, n, confidence)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = k / n
    return np.maximum(p - low, high - p)
