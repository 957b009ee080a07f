"""p-values against limits: they agree with the intervals that they stand for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from audit import stats
from audit.stats.differences import mean_limits
from audit.stats.groups import gap_limits

ALPHA = 0.05


def allowed(rate: float, trials: int) -> float:
    """Return the nominal error rate plus three Monte-Carlo standard errors."""
    return rate + 3 * math.sqrt(rate * (1 - rate) / trials)


counts = st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts, st.floats(0.01, 0.99), st.sampled_from(["min", "max"]), st.sampled_from(["clopper-pearson", "bonferroni"]))
@settings(max_examples=200, deadline=None)
def test_p_is_small_exactly_where_the_interval_lies_beyond(count, limit, side, method):
    k, n = count
    value, low, high = stats.clopper_pearson(k, n)
    p = stats.p_beyond(method, value, n, low, high, 0.95, limit, side)
    beyond = high < limit if side == "min" else low > limit
    near = min(abs(high - limit), abs(low - limit)) < 1e-9
    assert 0 <= p <= 1
    assert near or (p <= ALPHA / 2) == beyond


@pytest.mark.parametrize("limit", [0.1, 0.15, 0.3, 0.9])
def test_p_of_no_success_is_not_less_than_the_exact_one(limit):
    value, low, high = stats.clopper_pearson(0, 50)
    p = stats.p_beyond("bonferroni", value, 50, low, high, 0.95, limit, "min")
    assert p >= (1 - limit) ** 50  # the normal tail alone: 17 times less at 0.15


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limits_of", "value_of", "sizes", "rates"),
    [
        (mean_limits, np.mean, (300, 30), (0.99, 0.2)),
        (gap_limits, np.ptp, (40, 400), (0.8, 0.95)),
        (gap_limits, np.ptp, (40, 400), (0.8, 0.003)),
    ],
)
def test_of_fifty_limits_that_the_truth_just_keeps_few_are_failed(limits_of, value_of, sizes, rates):
    trials, many, n, p = 2000, 50, np.asarray(sizes), np.asarray(rates)
    k = np.random.default_rng(0).binomial(n, p, (trials * many, 2))
    values, (low, high), truth = value_of(k / n, axis=-1), limits_of(k, n), value_of(p, axis=-1)
    for side, beyond in (("min", high < truth), ("max", low > truth)):
        ps = np.ones(trials * many)
        for i in np.flatnonzero(beyond):
            ps[i] = stats.p_beyond("mover", values[i], int(n.sum()), low[i], high[i], 0.95, truth, side)
        failed = (ps.reshape(trials, many).min(axis=1) <= ALPHA / 2 / many).mean()  # Holm's first step is Bonferroni's
        assert failed <= allowed(ALPHA / 2, trials)


def test_p_equals_the_exact_binomial_test():
    interval = stats.clopper_pearson(70, 100)
    below = stats.p_beyond("clopper-pearson", 0.7, 100, *interval[1:], 0.95, 0.8, "min")
    above = stats.p_beyond("clopper-pearson", 0.7, 100, *interval[1:], 0.95, 0.6, "max")
    assert below == pytest.approx(binomtest(70, 100, 0.8, alternative="less").pvalue)
    assert above == pytest.approx(binomtest(70, 100, 0.6, alternative="greater").pvalue)


@pytest.mark.parametrize(("limit", "side", "p"), [(1.5, "min", 0.0), (-0.5, "min", 1.0), (-0.5, "max", 0.0), (1.5, "max", 1.0)])
def test_limits_outside_the_unit_interval(limit, side, p):
    assert stats.p_beyond("clopper-pearson", 0.7, 100, 0.6, 0.8, 0.95, limit, side) == p


def test_p_without_width_or_value():
    assert stats.p_beyond("other", 0.5, 10, 0.5, 0.5, 0.95, 0.6, "min") == 0.0
    assert stats.p_beyond("other", 0.5, 10, 0.5, 0.5, 0.95, 0.5, "min") == 1.0
    assert stats.p_beyond("other", 0.5, 10, 0.5, 0.5, 0.95, 0.4, "max") == 0.0
    assert stats.p_beyond("other", None, 10, 0.0, 1.0, 0.95, 0.4, "max") is None
    assert stats.p_beyond("other", 0.5, 10, None, None, 0.95, 0.4, "max") is None
