"""Several tests at once: p-values adjusted so that testing many of them does not find what is not there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values adjusted for testing several hypotheses at once, in the order given.

    Rejecting where they are at most alpha, the chance of any false rejection is at most alpha (family-wise error), whatever
    the tests have to do with each other.

    Source: Holm (1979), Scandinavian Journal of Statistics 6:65.
    """
    adjusted = [0.0] * len(p)
    running = 0.0
    for rank, index in enumerate(_ascending(p)):
        running = max(running, min(1.0, p[index] * (len(p) - rank)))
        adjusted[index] = running
    return adjusted


def benjamini_hochberg(p: Sequence[float], dependence: Literal["positive", "any"] = "positive") -> list[float]:
    """Return p-values adjusted for the false discovery rate, in the order given.

    Rejecting where they are at most alpha, the share of false ones among the rejections is at most alpha on average. That is
    weaker than what `holm` gives: with a thousand true effects and alpha of 5 %, some fifty false ones may stand among them.
    It is for lists that a person goes through, not for a verdict.

    Parameters
    ----------
    p
        P-values in [0, 1].
    dependence
        ``"positive"`` holds for independent tests and for those that depend on each other positively (each on the true
        hypotheses, PRDS: one-sided tests of figures that rise together); simulated two-sided tests of figures with negative
        correlation hold, too. ``"any"`` holds for all, at the price of a factor 1 + 1/2 + … + 1/m.

    Source: Benjamini & Hochberg (1995), Journal of the Royal Statistical Society B 57:289; dependence: Benjamini & Yekutieli
    (2001), Annals of Statistics 29:1165, theorems 1.2 and 1.3.
    """
    m = len(p)
    factor = sum(1 / i for i in range(1, m + 1)) if dependence == "any" else 1.0
    adjusted = [0.0] * m
    running = 1.0
    for rank, index in reversed(list(enumerate(_ascending(p), start=1))):
        running = min(running, p[index] * m * factor / rank)
        adjusted[index] = running
    return adjusted


def _ascending(p: Sequence[float]) -> list[int]:
    if not all(0 <= value <= 1 for value in p):
        raise ValueError(f"expected p-values between 0 and 1, got {list(p)}")
    return sorted(range(len(p)), key=lambda i: p[i])
