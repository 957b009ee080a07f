"""The bootstrap from counts: moments and closed forms as oracles, edges where a bootstrap fails, coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from audit import stats

TABLES = st.lists(st.lists(st.integers(0, 60), min_size=3, max_size=3), min_size=1, max_size=4)


def share(counts):
    return counts[..., 0] / counts.sum(axis=-1)


def within(misses, nominal, sets):
    """Whether a share of misses is no larger than stated, but for three Monte-Carlo standard errors."""
    return misses <= nominal + 3 * np.sqrt(nominal * (1 - nominal) / sets)


# --- draws ------------------------------------------------------------------------------------------------------------


def test_draws_have_the_moments_of_a_multinomial():
    counts, n = np.asarray([30, 60, 10]), 100
    drawn = stats.draw_counts(counts, 40_000, 0)
    p = counts / n
    error = np.sqrt(n * p * (1 - p) / 40_000)
    assert (np.abs(drawn.mean(axis=0) - counts) < 4 * error).all()
    expected = n * (np.diag(p) - np.outer(p, p))
    assert np.abs(np.cov(drawn.T) - expected).max() < 0.6


@given(TABLES, st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_draws_keep_the_totals_of_strata_and_leave_empty_cells_empty(table, seed):
    counts = np.asarray(table)
    drawn = stats.draw_counts(counts, 20, seed)
    assert drawn.shape == (20, *counts.shape)
    assert (drawn.sum(axis=-1) == counts.sum(axis=-1)).all()
    assert not drawn[:, counts == 0].any()
    flat = stats.draw_counts(counts.reshape(-1), 20, seed)
    assert (flat.sum(axis=-1) == counts.sum()).all()
    smooth = stats.smooth_counts(counts, 1.0, 20, seed)
    assert np.allclose(smooth.sum(axis=-1), counts.sum(axis=-1))
    assert (smooth[:, counts.sum(axis=-1) > 0] > 0).all()


def test_totals_of_strata_vary_where_they_are_not_kept():
    counts = np.asarray([[30, 30], [30, 30]])
    assert stats.draw_counts(counts, 500, 0).sum(axis=-1).std() == 0
    assert stats.draw_counts(counts.reshape(-1), 500, 0).reshape(500, 2, 2).sum(axis=-1).std() > 3


def test_smoothed_shares_are_beta():
    drawn = stats.smooth_counts([3, 7], 1.0, 20_000, 0)[:, 0] / 10
    assert scipy_stats.kstest(drawn, scipy_stats.beta(4, 8).cdf).pvalue > 1e-3
    assert not stats.smooth_counts([0, 7], 0.0, 100, 0)[:, 0].any()


def test_the_cost_does_not_grow_with_the_rows():
    few, many = (stats.bootstrap_counts(share, np.asarray([3, 7]) * scale) for scale in (10, 10**11))
    assert many.high - many.low < 1e-4 < few.high - few.low


@pytest.mark.parametrize("counts", [[], [[[1]]], [1.5, 2], [-1, 2]])
def test_what_is_no_table_of_counts_is_an_error(counts):
    with pytest.raises(ValueError, match="whole numbers"):
        stats.draw_counts(counts)


# --- intervals --------------------------------------------------------------------------------------------------------


def test_the_percentile_interval_of_a_share_is_the_binomial_one():
    k, n = 40, 100
    got = stats.bootstrap_counts(share, [k, n - k], n_boot=20_000, method="percentile")
    assert got.value == k / n
    for limit, level in ((got.low, 0.025), (got.high, 0.975)):
        assert abs(limit - scipy_stats.binom.ppf(level, n, k / n) / n) <= 0.01 + 1e-9


def test_the_acceleration_is_the_jackknife_over_rows():
    """Of a mean it is a sixth of the skewness over the root of n (Efron 1987): here of rows that are 0, 1 and 5."""
    from audit.stats.counts import _acceleration

    points, counts = np.asarray([0.0, 1.0, 5.0]), np.asarray([50, 30, 9])

    def mean(tables):
        return (tables * points).sum(axis=-1) / tables.sum(axis=-1)

    rows = np.repeat(points, counts)
    expected = scipy_stats.skew(rows) / (6 * np.sqrt(len(rows)))
    assert _acceleration(mean, counts) == pytest.approx(expected, rel=1e-9)


def test_bca_equals_the_bootstrap_of_rows():
    points, counts = np.asarray([0.0, 1.0, 5.0]), np.asarray([50, 30, 9])
    rows = np.repeat(points, counts)

    def mean(tables):
        return (tables * points).sum(axis=-1) / tables.sum(axis=-1)

    own = stats.bootstrap_counts(mean, counts, n_boot=20_000, method="bca")
    other = scipy_stats.bootstrap((rows,), np.mean, method="BCa", n_resamples=20_000, random_state=1).confidence_interval
    assert own.low == pytest.approx(other.low, abs=0.02)
    assert own.high == pytest.approx(other.high, abs=0.02)
    plain = stats.bootstrap_counts(mean, counts, n_boot=20_000, method="percentile")
    assert own.high > plain.high + 0.01


@pytest.mark.parametrize("counts", [[0, 30], [30, 0]])
def test_a_share_of_none_or_all_has_an_interval_all_the_same(counts):
    plain = stats.bootstrap_counts(share, counts, method="bca", bounds=(0, 1))
    assert plain.low == plain.high
    got = stats.bootstrap_counts(share, counts, bounds=(0, 1))
    exact = stats.clopper_pearson(counts[0], 30)
    assert got.low <= got.value <= got.high
    assert got.high - got.low == pytest.approx(exact.high - exact.low, rel=0.12)


@given(st.integers(0, 40), st.integers(1, 40), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_the_widest_interval_holds_the_value_and_the_other_intervals(k, rest, seed):
    got = {m: stats.bootstrap_counts(share, [k, rest], n_boot=200, method=m, seed=seed) for m in ("bca", "widest")}
    assert got["widest"].low <= min(got["bca"].low, got["widest"].value)
    assert got["widest"].high >= max(got["bca"].high, got["widest"].value)


def test_what_has_no_value_has_the_bounds_and_what_often_has_none_is_not_known():
    nothing = stats.bootstrap_counts(share, [0, 0], bounds=(0, 1))
    assert np.isnan(nothing.value)
    assert (nothing.low, nothing.high) == (0, 1)

    def precision(tables):  # of the one person who is selected; a third of the resamples select nobody
        return tables[..., 0] / (tables[..., 0] + tables[..., 1])

    one = stats.bootstrap_counts(precision, [1, 0, 30], bounds=(0, 1), method="bca")
    assert (one.low, one.high) == (0, 1)


def test_a_confidence_that_the_resamples_cannot_tell_is_an_error():
    with pytest.raises(ValueError, match="at least 2000 resamples"):
        stats.bootstrap_counts(share, [3, 4], confidence=0.999, n_boot=1000)


# --- gaps and ratios --------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_the_gap_of_shares_by_their_limits_is_that_of_max_min_gap(pairs):
    k, rest = np.asarray(pairs).T
    n = k + rest
    with np.errstate(invalid="ignore"):
        got = stats.gap_by_limits(k / n, n, lambda c: stats.clopper_pearson_limits(k, n, c))
    expected = stats.max_min_gap(k, n)
    assert got.value == expected.value
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_a_ratio_lies_between_its_limits_and_those_between_0_and_1(pairs):
    k, rest = np.asarray(pairs).T
    n = k + rest
    with np.errstate(invalid="ignore"):
        got = stats.ratio_by_limits(k / n, lambda c: stats.clopper_pearson_limits(k, n, c))
    assert 0 <= got.low <= got.high <= 1
    assert got.value is None or got.low <= got.value <= got.high
    if not n.all() or (k == 0).any():
        assert got.low == 0


def test_the_ratio_of_two_shares_in_closed_form():
    k, n = np.asarray([10, 40]), np.asarray([100, 100])
    (low, _), (_, high) = stats.clopper_pearson_limits(k, n, 0.975)
    _, top = stats.clopper_pearson_limits(10, 100, 0.9875)
    bottom, _ = stats.clopper_pearson_limits(40, 100, 0.9875)
    got = stats.ratio_by_limits(k / n, lambda c: stats.clopper_pearson_limits(k, n, c))
    assert got == pytest.approx((0.25, low / high, top / bottom))


def test_max_t_of_two_groups_is_the_studentised_difference():
    counts = np.asarray([[60, 140], [90, 110]])
    got = stats.gap_by_bootstrap(share(counts), share(stats.smooth_counts(counts, 1.0, 20_000)), [200, 200])
    reach = scipy_stats.norm.isf(0.0125) * np.sqrt((0.3 * 0.7 + 0.45 * 0.55) / 200)
    assert got.value == pytest.approx(0.15)
    assert got.low == pytest.approx(0.15 - reach, abs=0.006)
    assert got.high == pytest.approx(0.15 + reach, abs=0.006)


def test_max_t_without_draws_that_can_be_told_says_that_nothing_is_known():
    drawn = np.full((100, 2), np.nan)
    assert stats.gap_by_bootstrap([0.2, 0.5], drawn, [200, 200]) == (0.3, 0.0, 1.0)
    assert stats.gap_by_bootstrap([np.nan, 0.5], drawn, [200, 200], widest=2.0) == (None, 0.0, 2.0)
    with pytest.raises(ValueError, match=r"\(n_boot, 2\)"):
        stats.gap_by_bootstrap([0.2, 0.5], np.zeros((100, 3)), [200, 200])


def test_max_t_says_nothing_of_groups_that_are_too_small_for_it():
    drawn = share(stats.smooth_counts([[60, 39], [90, 110]], 1.0, 100))
    assert stats.gap_by_bootstrap([60 / 99, 0.45], drawn, [99, 200])[1:] == (0.0, 1.0)


# --- coverage ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("n", "p"), [(20, 0.05), (20, 0.5), (200, 0.01)])
def test_the_widest_interval_of_a_share_covers(n, p):
    sets, random = 600, np.random.default_rng(0)
    misses = 0
    for i in range(sets):
        k = int(random.binomial(n, p))
        _, low, high = stats.bootstrap_counts(share, [k, n - k], n_boot=400, seed=i)
        misses += not low <= p <= high
    assert within(misses / sets, 0.05, sets)


def test_equal_groups_have_no_gap_by_either_method_where_the_percentile_interval_of_the_maximum_finds_one():
    sets, random = 150, np.random.default_rng(0)
    missed = {"limits": 0, "max-t": 0, "percentile": 0}
    for i in range(sets):
        k = random.binomial(100, 0.5, size=6)
        counts = np.stack([k, 100 - k], axis=-1)
        n = counts.sum(axis=-1)
        missed["limits"] += stats.gap_by_limits(k / n, n, lambda c, k=k, n=n: stats.clopper_pearson_limits(k, n, c)).low > 0
        missed["max-t"] += stats.gap_by_bootstrap(k / n, share(stats.smooth_counts(counts, 1.0, 400, i)), n).low > 0
        missed["percentile"] += np.quantile(np.ptp(share(stats.draw_counts(counts, 400, i)), axis=1), 0.025) > 0
    assert within(missed["limits"] / sets, 0.025, sets)
    assert within(missed["max-t"] / sets, 0.025, sets)
    assert missed["percentile"] > 0.9 * sets
