"""The bootstrap: equal to its definitions computed another way, steady under the seed, and as good as its docstrings say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, norm

from audit import stats
from audit.stats import Interval

METHODS = (stats.percentile_bootstrap, stats.bca_bootstrap)


def mean(rows):
    return rows.mean(axis=1)


def mean_and_error(rows):
    return rows.mean(axis=1), rows.std(axis=1) / math.sqrt(rows.shape[1])


def correlation(rows):
    x, y = rows[..., 0] - rows[..., 0].mean(axis=1, keepdims=True), rows[..., 1] - rows[..., 1].mean(axis=1, keepdims=True)
    return (x * y).mean(axis=1) / np.sqrt((x**2).mean(axis=1) * (y**2).mean(axis=1))


@pytest.mark.parametrize(("method", "theirs"), [(stats.percentile_bootstrap, "percentile"), (stats.bca_bootstrap, "BCa")])
def test_limits_are_those_of_scipy_but_for_the_drawing(method, theirs):
    rows = np.random.default_rng(0).exponential(size=40)
    other = bootstrap((rows,), np.mean, n_resamples=20_000, method=theirs, rng=np.random.default_rng(1)).confidence_interval
    interval = method(rows, mean, resamples=20_000)
    assert interval.value == pytest.approx(rows.mean())
    assert interval[1:] == pytest.approx(tuple(other), abs=0.015)


def test_bca_levels_by_hand():
    """A quarter of the resamples below: a bias of −0.674; two values left out of three by equal steps: no acceleration."""
    drawn = np.r_[np.full(25, 0.0), np.full(75, 2.0)]
    bias, z = norm.ppf(0.25), norm.isf(0.025)
    lower, upper = stats.bca_levels(1.0, drawn, np.asarray([0.0, 1.0, 2.0]))
    assert (lower, upper) == pytest.approx((norm.cdf(2 * bias - z), norm.cdf(2 * bias + z)))
    skewed = np.asarray([0.0, 0.0, 3.0])  # deviations from the mean 1, −2: 2·1³ − 2³ = −6 over 6·6^1.5
    a = -6 / (6 * 6**1.5)
    lower, upper = stats.bca_levels(1.0, np.r_[np.zeros(50), np.full(50, 2.0)], skewed)
    assert (lower, upper) == pytest.approx((norm.cdf(-z / (1 + a * z)), norm.cdf(z / (1 - a * z))))
    assert all(math.isnan(level) for level in stats.bca_levels(1.0, np.full(50, 2.0), skewed))


def test_the_studentised_limits_of_a_mean_are_nearly_students():
    rows = np.random.default_rng(2).normal(size=400)
    interval = stats.studentised_bootstrap(rows, mean_and_error)
    half = 1.966 * rows.std(ddof=1) / 20
    assert interval == pytest.approx((rows.mean(), rows.mean() - half, rows.mean() + half), abs=0.012)


@pytest.mark.parametrize("method", METHODS)
def test_rows_may_have_columns_and_many_rows_are_left_out_in_groups(method):
    rng = np.random.default_rng(0)
    x = rng.normal(size=3001)
    rows = np.stack((x, x + rng.normal(size=3001)), axis=-1)
    interval = method(rows, correlation)
    r = float(np.corrcoef(rows.T)[0, 1])
    assert interval.value == pytest.approx(r)
    # Fisher's z, which is exact enough for normal rows
    fisher = np.tanh(np.arctanh(r) + np.asarray([-1, 1]) * norm.isf(0.025) / math.sqrt(2998))
    assert interval[1:] == pytest.approx(tuple(fisher), abs=0.004)


@given(st.lists(st.floats(-100, 100), min_size=10, max_size=40), st.floats(0.1, 10), st.floats(-50, 50))
@settings(max_examples=25, deadline=None)
def test_limits_follow_a_change_of_units(values, scale, shift):
    rows = np.asarray(values)
    for method, statistic in ((METHODS[0], mean), (stats.studentised_bootstrap, mean_and_error)):
        before = method(rows, statistic, resamples=200)
        after = method(scale * rows + shift, statistic, resamples=200)
        if rows.std() > 1e-6 and before.low is not None:
            assert after[1:] == pytest.approx([scale * v + shift for v in before[1:]], rel=1e-6, abs=1e-4)


@pytest.mark.parametrize("method", [*METHODS, stats.studentised_bootstrap])
def test_little_or_odd_data_has_no_limits(method):
    statistic = mean_and_error if method is stats.studentised_bootstrap else mean
    assert method([], statistic) == Interval(None, None, None)
    assert method(np.arange(9.0), statistic) == Interval(4.0, None, None)
    assert method(np.arange(10.0), statistic).low is not None


@pytest.mark.parametrize("method", METHODS)
def test_resamples_without_a_value_could_lie_on_either_side(method):
    """A ratio that is 0 / 0 in about a third of the resamples: dropped, or counted as 0, they would leave narrow limits."""
    rows = np.r_[1.0, np.zeros(29)]

    def ratio(resamples):
        ones = resamples.sum(axis=1)
        return ones**2 / ones

    assert method(rows, ratio) == Interval(1.0, None, None)


def test_the_studentised_limits_of_skewed_values_reach_further_up():
    """Few large values are missing from most samples, so the mean is rather too small than too large."""
    interval = stats.studentised_bootstrap(np.random.default_rng(0).exponential(size=30), mean_and_error)
    assert interval.high - interval.value > 1.2 * (interval.value - interval.low)


@pytest.mark.parametrize("method", [*METHODS, stats.studentised_bootstrap])
def test_equal_rows_are_no_sign_of_certainty(method):
    statistic = mean_and_error if method is stats.studentised_bootstrap else mean
    assert method(np.full(20, 3.0), statistic) == Interval(3.0, None, None)


def test_the_same_seed_draws_the_same_and_memory_stays_small():
    rows = np.random.default_rng(0).normal(size=300_000)
    shapes = []

    def watched(resamples):
        shapes.append(resamples.shape)
        return mean(resamples)

    first = stats.percentile_bootstrap(rows, watched, seed=3, resamples=40)
    assert max(np.prod(shape) for shape in shapes) <= 1_000_000
    assert first == stats.percentile_bootstrap(rows, mean, seed=3, resamples=40)
    assert first != stats.percentile_bootstrap(rows, mean, seed=4, resamples=40)


@pytest.mark.slow
def test_the_studentised_one_misses_least_for_skewed_values():
    """20 exponential values: the shares missed that the docstrings tell, give or take three Monte-Carlo standard errors."""
    rng, trials = np.random.default_rng(0), 1000
    missed = np.zeros(3)
    for seed in range(trials):
        rows = rng.exponential(size=20)
        found = [stats.studentised_bootstrap(rows, mean_and_error, 0.95, seed, 500)]
        found += [method(rows, mean, 0.95, seed, 500) for method in METHODS]
        missed += [not i.low <= 1 <= i.high for i in found]
    for share, told in zip(missed / trials, TOLD, strict=True):
        assert abs(share - told) <= 3 * math.sqrt(told * (1 - told) / trials)
    assert missed[0] < missed[1] + 3 * math.sqrt(trials * 0.1)


TOLD = (0.051, 0.087, 0.082)  # studentised, percentile, BCa


@pytest.mark.parametrize("method", [stats.percentile_bootstrap, stats.studentised_bootstrap])
def test_a_confidence_beyond_the_resamples_has_no_limits(method):
    rows = np.random.default_rng(0).normal(size=60)
    statistic = mean_and_error if method is stats.studentised_bootstrap else mean
    near, far = method(rows, statistic, 0.999), method(rows, statistic, 0.9999)
    assert None not in near
    assert (far.value, far.low, far.high) == (near.value, None, None)
