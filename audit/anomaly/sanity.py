"""Tests of a detector itself: whether it learnt, whether it tells inputs apart, whether it would say the same again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from audit.result import Evidence

Floats = NDArray[np.float64]

LEAST_DISTINCT = 3  # the distance to a neighbour among rows of a few binary columns has no more
LARGEST_TIE = 0.9
ROUNDING = 1e-9  # of the size of the scores: a spread below it is none
LEAST_GAIN = 0.1  # share of the error that training must take off, of an untrained network's and of the mean's
SETTLED = 0.05  # share of the whole fall of the loss that the last tenth of the steps may still bring
SAME = 1e-6  # of the spread of the scores


def trained(prefix: str, own: Floats, untrained: Floats, mean: Floats, confidence: float = 0.99) -> Evidence:
    """Judge whether the network copies held-out samples better than it did untrained, and better than their mean does.

    Each array holds one error a held-out sample, shape (n,). A network that did not train still has a score, and an AUROC that
    may look good: far inputs give large errors under random weights, too. The loss tells.
    """
    over_untrained, over_mean = _gain(own, untrained, confidence), _gain(own, mean, confidence)
    ok = bool(np.isfinite(own).all()) and over_untrained > LEAST_GAIN and over_mean > LEAST_GAIN
    return Evidence(
        id=f"{prefix}.trained",
        ok=ok,
        detail=f"mean squared error on {len(own)} held-out samples {_mean(own)}; the same network before training "
        f"{_mean(untrained)}, the mean of the samples {_mean(mean)}"
        + ("" if ok else ": training took off too little, so the scores say nothing of what was learnt"),
        value=over_mean if np.isfinite(over_mean) else None,
    )


def settled(prefix: str, step: NDArray[np.int64], held_out: Floats, best_step: int) -> Evidence:
    """Judge whether training fell and came to rest, by its held-out losses at the steps that were looked at."""
    fall = float(held_out[0] - held_out.min())
    before = step <= 0.9 * step[-1]
    late = float(max(0.0, held_out[before].min() - held_out.min())) if before.any() else 0.0
    ok = bool(np.isfinite(held_out).all()) and fall > 0 and late <= SETTLED * fall
    share = late / fall if fall > 0 else 1.0
    return Evidence(
        id=f"{prefix}.settled",
        ok=ok,
        detail=f"the held-out loss went from {held_out[0]:.4g} to {held_out.min():.4g} at step {best_step} of {step[-1]}; the "
        f"last tenth of the steps brought {share:.1%} of that",
        value=share,
    )


def distinct_scores(prefix: str, scores: Floats, distinct_inputs: int) -> Evidence:
    """Judge whether scores differ where inputs do: a collapsed detector gives all the same."""
    finite = scores[np.isfinite(scores)]
    spread, size = (float(np.ptp(finite)), float(np.abs(finite).max())) if len(finite) else (0.0, 0.0)
    values, counts = (
        np.unique(finite, return_counts=True) if spread > ROUNDING * size else (finite[:1], np.asarray([len(scores)]))
    )
    tie = float(counts.max() / len(scores)) if len(finite) else 1.0
    repeated = 1 - distinct_inputs / len(scores)  # equal inputs must have equal scores
    enough = len(values) >= min(LEAST_DISTINCT, distinct_inputs)
    ok = len(finite) == len(scores) and enough and tie <= max(LARGEST_TIE, repeated + 1 / len(scores))
    return Evidence(
        id=f"{prefix}.distinct_scores",
        ok=ok,
        detail=f"{len(values)} different scores for {distinct_inputs} different inputs; the most frequent one has {tie:.1%}"
        + ("" if len(finite) == len(scores) else f"; {len(scores) - len(finite)} scores are not finite"),
        value=float(len(values)),
    )


def repeatable(prefix: str, first: Floats, second: Floats) -> Evidence:
    """Judge whether a detector that is fitted twice on the same samples with the same seed gives the same scores."""
    apart = float(np.abs(first - second).max())
    allowed = SAME * max(float(np.ptp(first)), float(np.abs(first).max()))
    return Evidence(
        id=f"{prefix}.repeatable",
        ok=bool(apart <= allowed),
        detail=f"fitted twice on the same samples, its scores of {len(first)} samples differ by at most {apart:.3g}",
        value=apart if np.isfinite(apart) else None,
    )


def numbers(prefix: str, lost: int) -> Evidence:
    """Judge whether every score is a number: one that is none is never an alarm, whatever the input."""
    return Evidence(
        id=f"{prefix}.scores_are_numbers",
        ok=lost == 0,
        detail=f"{lost} scores are no numbers" + (": such inputs would pass without an alarm" if lost else ""),
        value=float(lost),
    )


def false_alarm_p_value(alarms: int, n: int, calibration: int, alpha: float) -> float:
    """Return the chance of at least so many alarms among `n` samples of the source that the threshold was set on.

    The number of alarms is beta-binomial, since the threshold itself is one of `calibration` draws (no two scores equal).

    Source: Angelopoulos & Bates (2023), Foundations and Trends in Machine Learning 16:494, appendix C.
    """
    rank = _rank(calibration, alpha)
    return float(scipy_stats.betabinom.sf(alarms - 1, n, calibration + 1 - rank, rank)) if rank <= calibration else 1.0


def few_alarms_p_value(reached: int, n: int, calibration: int, alpha: float) -> float:
    """Return the chance that at most so many of `n` samples of that source reach the threshold, whatever scores are equal.

    Source: as `false_alarm_p_value`. With ties broken at random the alarms are beta-binomial, and at most those that reach it.
    """
    rank = _rank(calibration, alpha)
    return float(scipy_stats.betabinom.cdf(reached, n, calibration + 1 - rank, rank)) if rank <= calibration else 1.0


def _rank(calibration: int, alpha: float) -> int:
    """Return which of the calibration scores, in ascending order, is the threshold."""
    return int(np.ceil((calibration + 1) * (1 - alpha) - 1e-9))


def _gain(own: Floats, other: Floats, confidence: float) -> float:
    """Return a lower confidence limit of 1 − mean(own) / mean(other), by a normal interval of the paired difference.

    It is that of mean((1 − g)·other − own) > 0 at the largest g: solved by bisection, since both means are noisy (Fieller).
    """
    if not (np.isfinite(own).all() and np.isfinite(other).all()) or len(own) < 2 or other.mean() <= 0:
        return float("-inf")
    z = float(scipy_stats.norm.ppf(confidence))

    def surely(gain: float) -> bool:
        rest = (1 - gain) * other - own
        return bool(rest.mean() > z * rest.std(ddof=1) / np.sqrt(len(own)))

    low, high = -1.0, 1.0
    if not surely(low):
        return float("-inf")
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if surely(middle) else (low, middle)
    return low


def _mean(errors: Floats) -> str:
    return f"{errors.mean():.4g}" if np.isfinite(errors).all() else "not finite"
