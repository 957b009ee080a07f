"""Several tests at once: adjusted p-values by hand and against scipy, and the errors that they keep to, by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, norm

from audit import stats

ALPHA, SETS = 0.05, 2000


def allowed(rate: float, trials: int) -> float:
    """Return the nominal error rate plus three Monte-Carlo standard errors."""
    return rate + 3 * math.sqrt(rate * (1 - rate) / trials)


def test_holm_by_hand():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_keeps_order_and_never_helps(p):
    adjusted = stats.holm(p)
    assert all(a >= b and a <= 1 for a, b in zip(adjusted, p, strict=True))
    order = np.argsort(p, kind="stable")
    assert np.all(np.diff(np.asarray(adjusted)[order]) >= 0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_false_discovery_rates_equal_scipy(p):
    assert stats.benjamini_hochberg(p) == pytest.approx(false_discovery_control(p, method="bh"))
    assert stats.benjamini_hochberg(p, "any") == pytest.approx(false_discovery_control(p, method="by"))


def test_no_tests_and_values_that_are_no_p():
    assert stats.benjamini_hochberg([]) == []
    for adjust in (stats.holm, stats.benjamini_hochberg):
        with pytest.raises(ValueError, match="between 0 and 1"):
            adjust([0.2, math.nan])


def _figures(kind: str, tests: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    own, common = rng.normal(size=(SETS, tests)), rng.normal(size=(SETS, 1))
    return {
        "independent": own,
        "alike": math.sqrt(0.5) * (common + own),
        "opposed": np.where(np.arange(tests) % 2, -np.roll(own, 1, axis=1), own),
    }[kind]


@pytest.mark.parametrize("kind", ["independent", "alike", "opposed"])
@pytest.mark.parametrize("true", [0, 5])
def test_false_rejections_stay_at_their_rates_whatever_the_dependence(kind, true):
    z = _figures(kind, 10) + np.where(np.arange(10) < true, 3.0, 0.0)
    p, false = norm.sf(z), np.arange(10) >= true
    assert (p <= ALPHA)[:, false].any(axis=1).mean() > allowed(ALPHA, SETS), "without correction they do not"
    rejected = np.asarray([stats.holm(row) for row in p.tolist()]) <= ALPHA
    assert rejected[:, false].any(axis=1).mean() <= allowed(ALPHA, SETS)
    for dependence in ("positive", "any"):
        found = np.asarray([stats.benjamini_hochberg(row, dependence) for row in p.tolist()]) <= ALPHA
        assert ((found & false).sum(axis=1) / np.maximum(1, found.sum(axis=1))).mean() <= allowed(ALPHA, SETS)
        assert found.sum() >= rejected.sum() or dependence == "any"
