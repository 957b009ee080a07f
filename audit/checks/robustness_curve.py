"""The smallest known change of each sample: the stage that looks for it, the median of it, and the curve of all radii."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from audit.attacks.base import MinimumNormAttack
from audit.attacks.fmn import FMN
from audit.attacks.tabu import Tabu
from audit.checks.base import Found, Stage
from audit.checks.robustness_state import CURVE, Attacked, right_at_first
from audit.result import Metric, finite

STEPS = {"quick": 20, "standard": 50, "thorough": 100, "exhaustive": 300}

Floats = NDArray[np.float64]


def closest(one: Attacked) -> MinimumNormAttack:
    """Return the attack of minimum norm that did best in the norm at hand: see benchmarks/minimum_norm.py."""
    steps, seed = STEPS[one.profile], one.task.seed
    if one.norm == "l0":
        return Tabu("l0", steps=steps, seed=seed)
    return FMN(one.norm, steps=steps, seed=seed)


def everyone(one: Attacked, planned: Stage) -> Stage:
    """Return the stage for all samples that are right, also those that are broken or certified: each has a smallest change."""

    def select(found: Found) -> NDArray[np.int64]:
        return np.flatnonzero(right_at_first(one.task, found))

    return replace(planned, select=select, cost_of=one.id("median_distance"), after=("predictions.test",))


def distances(one: Attacked, found: Found) -> Floats:
    """Return each sample's smallest known change, (n,): 0 where it is wrong already, infinity where none is known."""
    n = len(one.task.data.test)
    smallest = np.where(right_at_first(one.task, found), np.inf, 0.0)
    for part in one.finders():
        rows = one.rows(found, part)
        if rows is not None:
            smallest = np.minimum(smallest, rows.spread("distance", n, np.inf).astype(np.float64))
    return smallest


def median(one: Attacked, known: Floats, confidence: float) -> Metric:
    """Return the median of the smallest known changes of the samples that are right, with its interval by order statistics.

    Conover 1999, "Practical Nonparametric Statistics", section 3.2: the number of values below the median is binomial. It is an
    upper bound, since a closer example may exist; where no more than half have one it is not known, but larger than all.
    """
    values = np.sort(known[known > 0])
    n = len(values)
    middle = float(np.median(values)) if n and np.isfinite(values[n // 2]) else None
    low, high = _ranks(n, confidence)
    reached = values[np.isfinite(values)]
    detail = "an attack's smallest changes, which bound the true ones from above"
    if middle is None and n:
        detail = (
            f"more than {reached[-1]:.4g}: no more than half of the samples were broken at any distance"
            if len(reached)
            else ("no sample was broken at any distance")
        )
    return Metric(
        id=one.id("median_distance"),
        value=middle,
        low=None if low is None else finite(float(values[low])),
        high=None if high is None else finite(float(values[high])),
        confidence=confidence,
        n=n,
        method="order-statistics",
        kind="upper",
        direction="higher",
        unit="distance",
        params={"norm": one.norm, "attack": closest(one).name, "steps": STEPS[one.profile]},
        detail=detail,
    )


def _ranks(n: int, confidence: float) -> tuple[int | None, int | None]:
    """Return the places, from 0, of the values that bound the median; None where n is too small for a bound."""
    tail = (1 - confidence) / 2
    low = int(binom.ppf(tail, n, 0.5)) - 1 if n else -1
    while low >= 0 and binom.cdf(low, n, 0.5) > tail:
        low -= 1
    return (low, n - 1 - low) if low >= 0 else (None, None)


CURVE_STAGE = CURVE
