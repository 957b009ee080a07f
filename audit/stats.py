"""Intervals, tests and sample sizes behind every number of the audit: pure functions over counts and arrays.

Each interval is chosen to be conservative where an exact one is out of reach: it may be too wide, it should not be too narrow.
An interval that is too narrow would let a policy pass, or accuse a network, on noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Side = Literal["min", "max"]

MIN_BOOTSTRAP = 10  # below it a bootstrap resamples so few values that its interval means nothing
FAR_APART = 0.5  # a difference of proportions beyond it gets the wider of two intervals


class Interval(NamedTuple):
    """A value with its confidence limits; None where the data say nothing."""

    value: float | None
    low: float | None
    high: float | None


# --- one proportion ---------------------------------------------------------------------------------------------------


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
    tail = _tail(confidence)
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
    z, p = _z(confidence), k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Interval(p, 0.0 if k == 0 else max(0.0, centre - half), 1.0 if k == n else min(1.0, centre + half))


# --- sums and differences of independent proportions ------------------------------------------------------------------


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
    low, high = _subtracted(np.asarray(k1), np.asarray(n1), np.asarray(k2), np.asarray(n2), confidence)
    if n1 == 0 or n2 == 0:
        return Interval(None, -1.0, 1.0)
    return _clip(Interval(k1 / n1 - k2 / n2, float(low), float(high)), -1.0, 1.0)


def mean_of_proportions(k: ArrayLike, n: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the unweighted mean of proportions (balanced accuracy, where they are recalls) by MOVER over Clopper–Pearson.

    Each part enters with the larger of its two distances on both sides: a part of one sample that is wrong has no distance
    downward, and hundreds of them would make the sum of MOVER's own distances far too short (1,000 parts of one sample: 8 to
    13 % missed on one side; so 3 %). One part alone keeps its Clopper–Pearson limits. Proportions with n = 0 are left out, as
    scikit-learn does; where all are, the value is None and the limits 0 and 1.
    """
    k, n = _counts(k, n)
    k, n = k[n > 0], n[n > 0]
    if len(n) == 0:
        return Interval(None, 0.0, 1.0)
    if len(n) == 1:
        return clopper_pearson(int(k[0]), int(n[0]), confidence)
    p = k / n
    low, high = clopper_pearson_limits(k, n, confidence)
    value, half = float(p.mean()), float(np.linalg.norm(np.maximum(p - low, high - p))) / len(n)
    return _clip(Interval(value, value - half, value + half), 0.0, 1.0)


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
    return _clip(Interval(value, value - reach(p - low_p, high_q - q), value + reach(high_p - p, q - low_q)), -1.0, 1.0)


# --- many groups ------------------------------------------------------------------------------------------------------


def pairwise_differences(k: ArrayLike, n: ArrayLike, confidence: float = 0.95, families: int = 1) -> tuple[Floats, Floats]:
    """Return simultaneous lower and upper limits of p_i − p_j for all pairs of K proportions, each of shape (K, K).

    Bonferroni of `difference` over the K(K−1) ordered pairs of groups with n > 0, times `families` (how many such
    comparisons are read together). Ordered pairs, since which of two groups comes off better is not known beforehand: so
    each side of the gap errs with a chance of at most (1 − confidence)/2. NaN on the diagonal and for empty groups.
    """
    k, n = _counts(k, n)
    full = n > 0
    pairs = max(1, int(full.sum() * (full.sum() - 1))) * families
    lower, upper = _subtracted(k[:, None], n[:, None], k[None, :], n[None, :], 1 - (1 - confidence) / pairs)
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
    k, n = _counts(k, n)
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
    k, n = _counts(k, n)
    full = n > 0
    if not full.any():
        return Interval(None, 0.0, 1.0)
    low, high = clopper_pearson_limits(k, n, 1 - (1 - confidence) / len(n))
    return Interval(float((k[full] / n[full]).min()), float(low.min()), float(high.min()))


# --- calibration ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReliabilityBins:
    """Samples grouped by confidence: each array has one entry a bin, from the lowest confidence to the highest."""

    confidence: Floats
    accuracy: Floats
    low: Floats
    high: Floats
    n: Ints
    k: Ints


def reliability_bins(
    scores: ArrayLike, correct: ArrayLike, bins: int = 15, confidence: float = 0.95, min_bin: int = 10
) -> ReliabilityBins:
    """Group samples into at most `bins` bins of about equal size by confidence score; equal scores share a bin.

    There are fewer bins where they would hold fewer than `min_bin` samples. Limits are Clopper–Pearson, one bin at a time.
    """
    scores, correct = np.asarray(scores, dtype=np.float64), np.asarray(correct, dtype=np.bool_)
    if scores.shape != correct.shape or scores.ndim != 1:
        raise ValueError(f"expected one score and one outcome a sample, got shapes {scores.shape} and {correct.shape}")
    if not np.isfinite(scores).all() or bins < 1:
        raise ValueError("expected finite scores and at least one bin")
    if len(scores) == 0:
        empty = np.zeros(0)
        return ReliabilityBins(empty, empty, empty, empty, empty.astype(np.int64), empty.astype(np.int64))
    bins = max(1, min(bins, len(scores) // min_bin))
    edges = np.unique(np.quantile(scores, np.arange(1, bins) / bins, method="higher"))
    _, index = np.unique(np.searchsorted(edges, scores, side="right"), return_inverse=True)
    n = np.bincount(index)
    k = np.bincount(index, weights=correct).astype(np.int64)
    low, high = clopper_pearson_limits(k, n, confidence)
    return ReliabilityBins(np.bincount(index, weights=scores) / n, k / n, low, high, n, k)


def ece(scores: ArrayLike, correct: ArrayLike, bins: int = 15, confidence: float = 0.95) -> Interval:
    """Return the expected calibration error over equal-mass bins, Σ w_b |accuracy_b − confidence_b|.

    The target of the interval is the error over these bins for the confidences that were seen: how far, bin by bin, the
    chance of being right lies from the stated confidence. It is at most the error without bins.

    Known bias: noise in a bin's accuracy adds to the absolute value, never subtracts, so the estimate is biased upward. The
    upper limit leaves the bias in (that is conservative); the lower limit subtracts a bound on it, Σ w_b sqrt(v_b / n_b)
    with the variance v_b smoothed by two successes and two failures, since E|X| ≤ |E X| + sd(X). Deviations of the bins are
    combined by MOVER over Clopper–Pearson limits, upward by the longer of a bin's two, so that a bin where all are right does
    not claim to be certain.

    Source: Guo, Pleiss, Sun & Weinberger (2017), ICML (confidence of the predicted class); equal-mass bins: Nixon et al.
    (2019), CVPR workshops.
    """
    b = reliability_bins(scores, correct, bins, confidence)
    if len(b.n) == 0:
        return Interval(None, 0.0, 1.0)
    weight = b.n / b.n.sum()
    gap = b.accuracy - b.confidence
    value = float(weight @ np.abs(gap))
    away = np.maximum(b.high - b.accuracy, b.accuracy - b.low)
    toward = np.where(gap >= 0, b.accuracy - b.low, b.high - b.accuracy)
    variance = (b.k + 2) * (b.n - b.k + 2) / (b.n + 4) ** 2
    bias = float(weight @ np.sqrt(variance / b.n))
    low = value - bias - float(np.linalg.norm(weight * toward))
    return Interval(value, max(0.0, low), min(1.0, value + float(np.linalg.norm(weight * away))))


# --- regression -------------------------------------------------------------------------------------------------------


def mean_absolute_error(y: ArrayLike, predicted: ArrayLike, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Return the mean absolute error with a studentised bootstrap interval of its logarithm.

    The same `seed` gives the same interval. Assumes independent samples and errors with a finite variance; with skewed or
    heavy-tailed errors and few samples it covers less than it states (n = 20: about 90 to 93 % at 95 %): `effective_size`
    tells. Limits are None with fewer than 10 samples, where all errors are equal, since a bootstrap then shows no spread,
    and where so few errors differ from 0 (up to three) that too many resamples hold none: no upper limit can be stated then.

    Source: Davison & Hinkley (1997), Bootstrap Methods and their Application, section 5.2.1.
    """
    y, predicted = _pair(y, predicted)
    return _log_bootstrap(np.abs(y - predicted), _log_mean, confidence, seed)


def r_squared(y: ArrayLike, predicted: ArrayLike, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Return R² = 1 − mean squared error / variance of `y`, with a studentised bootstrap interval of log(1 − R²).

    The same `seed` gives the same interval. Assumes independent samples and errors with a finite fourth moment; where that
    is in doubt (heavy tails, skewed `y`) it misses 12 to 19 %, not 5: `effective_size` tells. R² of a finite sample is biased
    a little downward, since the mean of `y` is fitted to it. None where `y` has no spread; limits None with fewer than 10
    samples, no residual at all, or residuals at so few samples that resamples hold none.

    Source: as `mean_absolute_error`; the standard error is that of the influence function of log(mean e²) − log var(y).
    """
    y, predicted = _pair(y, predicted)
    if len(y) < 2 or float(np.ptp(y)) == 0.0:
        return Interval(None, None, None)
    inside = _log_bootstrap(np.stack(((y - predicted) ** 2, y), axis=-1), _log_unexplained, confidence, seed)
    value, low, high = (None if v is None else 1 - v for v in inside)
    return Interval(value, high, low)


def paired_mean(differences: ArrayLike, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Return the mean of paired differences with a studentised bootstrap interval.

    The same `seed` gives the same interval. Assumes independent samples and a finite variance. Limits are None with fewer
    than 10 samples, and where all differences are equal, since a bootstrap then shows no spread.

    Source: Davison & Hinkley (1997), Bootstrap Methods and their Application, section 5.2.1.
    """
    d = np.asarray(differences, dtype=np.float64)
    if d.ndim != 1 or not np.isfinite(d).all():
        raise ValueError(f"expected one finite difference a sample, got shape {d.shape}")
    if len(d) == 0:
        return Interval(None, None, None)
    centre, error = float(d.mean()), float(d.std()) / math.sqrt(len(d))
    if len(d) < MIN_BOOTSTRAP or error == 0:
        return Interval(centre, None, None)
    with np.errstate(divide="ignore", invalid="ignore"):
        pivots = _pivots(d, _mean, centre, seed)
    upper = np.quantile(np.where(np.isnan(pivots), np.inf, pivots), 1 - _tail(confidence), method="higher")
    lower = np.quantile(np.where(np.isnan(pivots), -np.inf, pivots), _tail(confidence), method="lower")
    low, high = centre - float(upper) * error, centre - float(lower) * error
    if not (math.isfinite(low) and math.isfinite(high)):
        return Interval(centre, None, None)
    return Interval(centre, min(low, centre), max(high, centre))


def effective_size(weights: ArrayLike) -> float:
    """Return how many equal values would share a sum as these do, (Σw)² / Σw²; 0 where all are 0.

    Where it is small, few values rule the sum, and a bootstrap of it that happens to miss their like is far too narrow.

    Source: Kish (1965), Survey Sampling, section 11.7.
    """
    w = np.asarray(weights, dtype=np.float64)
    largest = float(w.max(initial=0.0))
    return float((w / largest).sum() ** 2 / ((w / largest) ** 2).sum()) if largest > 0 else 0.0


def enough_of(n: int) -> float:
    """Return the effective size that squared errors, and squared deviations of the labels, should have among `n` samples.

    It is 2·√n, found by simulation of `r_squared` at 95 %. Normal errors have about n/3 and clear it in 99.3 % of samples of
    100, always from 120 on. With log-normal labels (σ = 1) the upper limit misses 10 to 16 % (n = 50 to 300), of which 1 to
    2.4 % clear it; with log-normal errors the lower one 9 to 10 %, of which 3 to 7 % do; with errors of Student's t with 3
    degrees of freedom, which have no fourth moment, 12 to 15 %, and from 100 samples on nearly all of those clear it. A higher
    one would turn away Laplace errors, which do no harm.
    """
    return 2 * math.sqrt(n)


Statistic = Callable[[Floats], tuple[Floats, Floats]]


def _log_bootstrap(data: Floats, statistic: Statistic, confidence: float, seed: int) -> Interval:
    """Return exp of a statistic with its studentised bootstrap interval.

    `statistic` takes data of shape (resamples, n, …) and returns the logarithm and its standard error, each (resamples,).
    """
    n = len(data)
    if n == 0:
        return Interval(None, None, None)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        (centre,), (error,) = statistic(data[None])
        value = float(np.exp(centre))
        if n < MIN_BOOTSTRAP or not np.isfinite(centre) or not error > 0:
            return Interval(value, None, None)
        pivots = _pivots(data, statistic, float(centre), seed)
        # A pivot that does not exist (0 / 0) could lie on either side.
        upper = np.quantile(np.where(np.isnan(pivots), np.inf, pivots), 1 - _tail(confidence), method="higher")
        lower = np.quantile(np.where(np.isnan(pivots), -np.inf, pivots), _tail(confidence), method="lower")
        low, high = float(np.exp(centre - upper * error)), float(np.exp(centre - lower * error))
    if not (math.isfinite(low) and math.isfinite(high)):
        return Interval(value, None, None)
    return Interval(value, min(low, value), max(high, value))


def _pivots(data: Floats, statistic: Statistic, centre: float, seed: int) -> Floats:
    n = len(data)
    generator = np.random.default_rng(seed)
    # 2,000 resamples fix the quantiles to about 0.4 % of the level; large samples need fewer, as their pivot is near normal.
    resamples = int(np.clip(50_000_000 // n, 500, 2000))
    at_once = max(1, 1_000_000 // n)  # keeps memory at a few megabytes for any n
    pivots = []
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        log, error = statistic(data[generator.integers(0, n, size=(rows, n))])
        # A resample of errors that are all 0, or of equal labels, has an infinite logarithm and no standard error. It counts,
        # with its sign: to drop it would hide how little is known.
        pivots.append(np.where(np.isinf(log), log, (log - centre) / error))
    return np.concatenate(pivots)


def _mean(values: Floats) -> tuple[Floats, Floats]:
    return values.mean(axis=1), values.std(axis=1) / math.sqrt(values.shape[1])


def _log_mean(errors: Floats) -> tuple[Floats, Floats]:
    mean = errors.mean(axis=1)
    return np.log(mean), errors.std(axis=1) / mean / math.sqrt(errors.shape[1])


def _log_unexplained(data: Floats) -> tuple[Floats, Floats]:
    squared, y = data[..., 0], data[..., 1]
    spread = (y - y.mean(axis=1, keepdims=True)) ** 2
    mse, variance = squared.mean(axis=1), spread.mean(axis=1)
    influence = squared / mse[:, None] - spread / variance[:, None]
    return np.log(mse) - np.log(variance), influence.std(axis=1) / math.sqrt(y.shape[1])


# --- ranking: AUROC and average precision ------------------------------------------------------------------------------


def auroc(normal: ArrayLike, anomalous: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the chance that an anomaly scores higher than a normal sample, ties counting half, with its interval.

    DeLong's variance says how many independent draws of a proportion the two samples are worth, and the interval is Clopper
    and Pearson's for that number: it has a width at 0 and at 1, too, where DeLong's own collapses. Before that each sample
    gets half a pseudo-observation at either end of its range, so that a variance of 0 is never believed. Simulated at 95 %
    (normal, mixed and two-valued scores; 1 to 2,000 anomalies, 5 to 2,000 normal samples): each limit misses at most 2.5 %,
    beyond Monte-Carlo error; for an AUROC above 0.95 and few samples mostly less, the interval is then wider than it need be.

    Parameters
    ----------
    normal, anomalous
        Scores of independent samples, shapes (m,) and (n,); higher means more anomalous. Where one is empty, the value is
        None and the limits are 0 and 1.

    Source: DeLong, DeLong & Clarke-Pearson (1988), Biometrics 44:837, equations 2 to 5; Clopper & Pearson (1934); the
    effective number of draws as in Korn & Graubard (1998), Survey Methodology 24:193.
    """
    of_normal, of_anomalous = _placements(normal, anomalous)
    if len(of_normal) == 0 or len(of_anomalous) == 0:
        return Interval(None, 0.0, 1.0)
    value = float(of_anomalous.mean())
    fewest = min(len(of_normal), len(of_anomalous))
    shrunk = (value * fewest + 0.5) / (fewest + 1)
    draws = shrunk * (1 - shrunk) / (_smoothed_variance(of_normal, 0.0) + _smoothed_variance(of_anomalous, 0.0))
    # The pseudo-observation was never drawn: anomalies that lie below or above all normal samples are so worth their number.
    draws *= fewest / (fewest + 1)
    low, high = _beta_limits(value, draws, _tail(confidence))
    return Interval(value, low, high)


def auroc_difference(
    normal: ArrayLike, anomalous: ArrayLike, other_normal: ArrayLike, other_anomalous: ArrayLike, confidence: float = 0.95
) -> Interval:
    """Return the AUROC of one detector less that of another on the same samples, with a paired interval.

    DeLong's variance of the difference, smoothed as in `auroc`, and a normal quantile. Limits are −1 and 1 where a sample is
    empty.

    Source: DeLong, DeLong & Clarke-Pearson (1988), Biometrics 44:837, equation 6.
    """
    first, second = _placements(normal, anomalous), _placements(other_normal, other_anomalous)
    if len(first[0]) == 0 or len(first[1]) == 0:
        return Interval(None, -1.0, 1.0)
    value = float(first[1].mean() - second[1].mean())
    variance = sum(_smoothed_variance(a - b, -1.0) for a, b in zip(first, second, strict=True))
    half = _z(confidence) * math.sqrt(variance)
    return _clip(Interval(value, value - half, value + half), -1.0, 1.0)


def average_precision(normal: ArrayLike, anomalous: ArrayLike, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Return the precision averaged over the recall of each anomaly (as scikit-learn does), with its interval.

    The interval is the wider, on each side, of a percentile bootstrap that draws normal samples and anomalies apart, and of
    Clopper and Pearson's for as many draws as there are anomalies: near 1 a bootstrap sees no spread. Simulated at 95 % (5 to
    300 anomalies, normal and mixed scores), each limit misses at most 2.5 %, beyond Monte-Carlo error. The same `seed` gives
    the same interval.

    Average precision depends on the share of anomalies among the samples, which is therefore part of what it says; with no
    skill at all it is that share. Where one part is empty, the value is None and the limits are 0 and 1.

    Source: Boyd, Eng & Page (2013), ECML, sections 3 and 4.
    """
    normal, anomalous = _scores(normal), _scores(anomalous)
    if len(normal) == 0 or len(anomalous) == 0:
        return Interval(None, 0.0, 1.0)
    _, rank = np.unique(-np.concatenate((normal, anomalous)), return_inverse=True)
    of_normal, of_anomalous = rank[: len(normal)], rank[len(normal) :]
    value = _precision_over_recall(of_normal, of_anomalous)
    generator = np.random.default_rng(seed)
    drawn = [
        _precision_over_recall(
            of_normal[generator.integers(0, len(normal), len(normal))],
            of_anomalous[generator.integers(0, len(anomalous), len(anomalous))],
        )
        for _ in range(int(np.clip(1_000_000 // len(rank), 400, 1000)))
    ]
    tail = _tail(confidence)
    low, high = _beta_limits(value, len(anomalous), tail)
    return Interval(value, min(low, float(np.quantile(drawn, tail))), max(high, float(np.quantile(drawn, 1 - tail))))


def _scores(values: ArrayLike) -> Floats:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or np.isnan(scores).any():
        raise ValueError(f"expected one score a sample and no NaN, got shape {scores.shape}")
    return scores


def _placements(normal: ArrayLike, anomalous: ArrayLike) -> tuple[Floats, Floats]:
    """Return for each normal sample the share of anomalies above it, for each anomaly the share of normal ones below it."""
    normal, anomalous = _scores(normal), _scores(anomalous)

    def below(scores: Floats, others: Floats) -> Floats:
        ordered = np.sort(others)
        places = np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")
        return np.asarray(places / (2 * max(1, len(others))), dtype=np.float64)

    return 1 - below(normal, anomalous), below(anomalous, normal)


def _smoothed_variance(values: Floats, lowest: float) -> float:
    """Return the variance of the mean of values in [lowest, 1], with half a pseudo-observation at either end."""
    n = len(values) + 1
    mean = (values.sum() + 0.5 * (lowest + 1)) / n
    around = ((values - mean) ** 2).sum() + 0.5 * ((lowest - mean) ** 2 + (1 - mean) ** 2)
    return float(around / n / n)


def _beta_limits(p: float, draws: float, tail: float) -> tuple[float, float]:
    """Return Clopper and Pearson's limits for a proportion `p` of a number of draws that need not be whole."""
    k = p * draws
    low = 0.0 if p <= 0 else min(p, float(stats.beta.ppf(tail, k, draws - k + 1)))
    high = 1.0 if p >= 1 else max(p, float(stats.beta.ppf(1 - tail, k + 1, draws - k)))
    return low, high


def _precision_over_recall(normal: Ints, anomalous: Ints) -> float:
    """Return average precision from the ranks of the scores, 0 for the highest; equal scores share a rank."""
    size = int(max(normal.max(), anomalous.max())) + 1
    found = np.bincount(anomalous, minlength=size)
    hits, alarms = np.cumsum(found), np.cumsum(np.bincount(normal, minlength=size) + found)
    return float((found * (hits / np.maximum(alarms, 1))).sum() / hits[-1])


# --- limits: p-values and sample sizes --------------------------------------------------------------------------------


def p_beyond(
    method: str,
    value: float | None,
    n: int,
    low: float | None,
    high: float | None,
    confidence: float,
    limit: float,
    side: Side,
) -> float | None:
    """Return the one-sided p-value against the claim that the truth keeps `limit`: small where it is surely broken.

    For ``side="min"`` the claim (null hypothesis) is truth ≥ limit, for ``"max"`` truth ≤ limit. For a ``clopper-pearson``
    proportion the test is the exact binomial one; otherwise a normal one whose standard error is read from the distance
    between `value` and the interval's end that faces the limit. Either way p is at most (1 − confidence)/2 exactly where
    the whole interval lies beyond the limit. None where there is no value or no interval.
    """
    if value is None or low is None or high is None:
        return None
    if method == "clopper-pearson" and n > 0:
        return _exact_p(round(value * n), n, limit, side)
    if side == "max":
        value, low, high, limit = -value, -high, -low, -limit
    facing = high - value if value < limit else value - low
    if facing <= 0:
        return 0.0 if value < limit else 1.0
    return float(stats.norm.sf(_z(confidence) * (limit - value) / facing))


def _exact_p(k: int, n: int, limit: float, side: Side) -> float:
    if not 0 <= limit <= 1:  # a limit that no proportion, or every proportion, keeps
        return 0.0 if (limit > 1) == (side == "min") else 1.0
    return float(stats.binom.cdf(k, n, limit) if side == "min" else stats.binom.sf(k - 1, n, limit))


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values adjusted for testing several hypotheses at once, in the order given.

    Source: Holm (1979), Scandinavian Journal of Statistics 6:65. Valid whatever the tests have to do with each other.
    """
    adjusted = [0.0] * len(p)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        running = max(running, min(1.0, p[index] * (len(p) - rank)))
        adjusted[index] = running
    return adjusted


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
    z = _z(confidence)
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
    tail = _tail(confidence)
    if p > limit:  # the interval excludes the limit for all k from the smallest with P(X >= k | limit) < tail
        return float(stats.binom.sf(stats.binom.isf(tail, n, limit), n, p))
    smallest_kept = stats.binom.ppf(tail, n, limit)
    return float(stats.binom.cdf(smallest_kept - 1, n, p))


# --- small helpers ----------------------------------------------------------------------------------------------------


def _tail(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence should lie between 0 and 1, got {confidence}")
    return (1 - confidence) / 2


def _z(confidence: float) -> float:
    return float(stats.norm.isf(_tail(confidence)))


def _subtracted(k1: Ints, n1: Ints, k2: Ints, n2: Ints, confidence: float) -> tuple[Floats, Floats]:
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
    return _clip(mover([first, second], [1.0, -1.0]), -1.0, 1.0)


def _clip(interval: Interval, lowest: float, highest: float) -> Interval:
    value, low, high = (None if v is None else min(highest, max(lowest, v)) for v in interval)
    return Interval(value, low, high)


def _counts(k: ArrayLike, n: ArrayLike) -> tuple[Ints, Ints]:
    successes, totals = np.asarray(k, dtype=np.int64), np.asarray(n, dtype=np.int64)
    if successes.ndim != 1 or successes.shape != totals.shape:
        raise ValueError(f"expected two lists of one length, got shapes {successes.shape} and {totals.shape}")
    return successes, totals


def _pair(y: ArrayLike, predicted: ArrayLike) -> tuple[Floats, Floats]:
    a, b = np.asarray(y, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"expected one prediction a sample, got shapes {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("expected finite values: count samples with NaN or infinity apart")
    return a, b
