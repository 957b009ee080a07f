"""Intervals of one proportion: equal to scipy's, to closed forms, and covering what they state, by enumeration."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from audit import stats
from audit.stats import Interval

ALPHA = 0.05


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 10), (3, 10), (10, 10), (57, 100), (999, 1000)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_proportions_equal_scipy(k, n, confidence):
    test = binomtest(k, n)
    for ours, method in ((stats.clopper_pearson, "exact"), (stats.wilson, "wilson")):
        interval = ours(k, n, confidence)
        assert interval.value == k / n
        assert interval[1:] == pytest.approx(tuple(test.proportion_ci(confidence, method=method)), abs=1e-12)


def test_clopper_pearson_closed_form_where_all_are_right():
    assert stats.clopper_pearson(20, 20).low == pytest.approx(0.025 ** (1 / 20))
    assert stats.clopper_pearson(20, 20).high == 1.0


def test_no_samples_say_nothing():
    for method in (stats.clopper_pearson, stats.wilson, stats.mid_p):
        assert method(0, 0) == Interval(None, 0.0, 1.0)


@pytest.mark.parametrize("call", [lambda: stats.clopper_pearson(3, 2), lambda: stats.wilson(-1, 2), lambda: stats.mid_p(5, 4)])
def test_impossible_counts_are_errors(call):
    with pytest.raises(ValueError, match="expected 0 <= k <= n"):
        call()


@pytest.mark.parametrize("n", [1, 2, 5, 9, 30])
def test_clopper_pearson_covers_exactly_enumerated(n):
    k = np.arange(n + 1)
    low, high = stats.clopper_pearson_limits(k, np.full(n + 1, n))
    for p in np.linspace(0.001, 0.999, 500):
        chance = binom.pmf(k, n, p)
        assert chance[low > p].sum() <= ALPHA / 2 + 1e-12
        assert chance[high < p].sum() <= ALPHA / 2 + 1e-12


counts = st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts, st.floats(0.5, 0.999))
@settings(max_examples=40, deadline=None)
def test_proportion_intervals_hold_their_value_and_widen_with_confidence(count, confidence):
    for method in (stats.clopper_pearson, stats.wilson, stats.mid_p):
        interval, wider = method(*count, confidence), method(*count, (1 + confidence) / 2)
        assert 0 <= wider.low <= interval.low <= interval.value <= interval.high <= wider.high <= 1


@given(counts)
def test_clopper_pearson_rises_with_every_success(count):
    k, n = count
    if k < n:
        less, more = stats.clopper_pearson(k, n), stats.clopper_pearson(k + 1, n)
        assert less.low < more.low
        assert less.high < more.high or less.high == more.high == 1.0


@pytest.mark.parametrize("n", [100, 1000, 10_000])
def test_clopper_pearson_covers_many_samples_too(n):
    k = np.arange(n + 1)
    low, high = stats.clopper_pearson_limits(k, n)
    for p in np.linspace(0.01, 0.99, 29):
        chance = binom.pmf(k, n, p)
        assert chance[low > p].sum() <= ALPHA / 2 + 1e-12
        assert chance[high < p].sum() <= ALPHA / 2 + 1e-12


@given(counts, st.floats(0.5, 0.999))
@settings(max_examples=40, deadline=None)
def test_mid_p_limits_leave_half_of_what_was_seen_in_each_tail(count, confidence):
    k, n = count
    _, low, high = stats.mid_p(k, n, confidence)
    tail = (1 - confidence) / 2
    if k > 0:
        assert binom.sf(k, n, low) + binom.pmf(k, n, low) / 2 == pytest.approx(tail, abs=1e-9)
    if k < n:
        assert binom.cdf(k - 1, n, high) + binom.pmf(k, n, high) / 2 == pytest.approx(tail, abs=1e-9)
    exact = stats.clopper_pearson(k, n, confidence)
    assert exact.low <= low + 1e-12
    assert high <= exact.high + 1e-12


def test_mid_p_where_all_or_none_succeed():
    assert stats.mid_p(0, 20) == pytest.approx((0.0, 0.0, 1 - 0.05 ** (1 / 20)))
    assert stats.mid_p(20, 20) == pytest.approx((1.0, 0.05 ** (1 / 20), 1.0))


@pytest.mark.parametrize(("limits", "least", "mean"), [(stats.mid_p_limits, 0.918, 0.95), (stats.wilson_limits, 0.91, 0.95)])
def test_approximate_intervals_cover_as_they_state(limits, least, mean):
    """On average what is asked, at some rates less: so no verdict rests on them."""
    for n in (20, 100, 300):
        k, covered = np.arange(n + 1), []
        low, high = limits(k, n)
        for p in np.linspace(0.01, 0.99, 197):
            chance = binom.pmf(k, n, p)
            covered.append(chance[(low <= p) & (p <= high)].sum())
        assert least <= min(covered) < 0.95
        assert np.mean(covered) >= mean - 1e-3


def test_importing_stats_imports_no_torch():
    import subprocess
    import sys

    code = "import sys, audit.stats; sys.exit(any(m in sys.modules for m in ('torch', 'sklearn', 'fairlearn', 'pandas')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
