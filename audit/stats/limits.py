"""Limits: p-values against them, and what testing several at once does to these."""

from __future__ import annotations

from collections.abc import Sequence

from scipy import stats

from audit.stats.base import Side, z_of


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
    return float(stats.norm.sf(z_of(confidence) * (limit - value) / facing))


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
