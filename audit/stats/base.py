"""What the families of statistics share: the interval, the types, and checks of what goes in."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Side = Literal["min", "max"]

MIN_BOOTSTRAP = 10  # below it a bootstrap resamples so few values that its interval means nothing


class Interval(NamedTuple):
    """A value with its confidence limits; None where the data say nothing."""

    value: float | None
    low: float | None
    high: float | None


def tail_of(confidence: float) -> float:
    """Return the chance of missing on one side; a ValueError for a confidence outside (0, 1)."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence should lie between 0 and 1, got {confidence}")
    return (1 - confidence) / 2


def z_of(confidence: float) -> float:
    """Return the normal quantile of a two-sided interval."""
    return float(stats.norm.isf(tail_of(confidence)))


def clip(interval: Interval, lowest: float, highest: float) -> Interval:
    """Return the interval within its range."""
    value, low, high = (None if v is None else min(highest, max(lowest, v)) for v in interval)
    return Interval(value, low, high)


def counts_of(k: ArrayLike, n: ArrayLike) -> tuple[Ints, Ints]:
    """Return successes and totals as whole numbers of one shape (K,); a ValueError where they are not."""
    successes, totals = np.asarray(k, dtype=np.int64), np.asarray(n, dtype=np.int64)
    if successes.ndim != 1 or successes.shape != totals.shape:
        raise ValueError(f"expected two lists of one length, got shapes {successes.shape} and {totals.shape}")
    return successes, totals


def pair_of(y: ArrayLike, predicted: ArrayLike) -> tuple[Floats, Floats]:
    """Return labels and predictions as floats of one shape (n,); a ValueError where they are not, or not finite."""
    a, b = np.asarray(y, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"expected one prediction a sample, got shapes {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("expected finite values: count samples with NaN or infinity apart")
    return a, b
