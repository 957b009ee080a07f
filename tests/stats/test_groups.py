"""Gaps between groups and the worst of them: each limit errs at most half of what is allowed, whatever the groups."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit import stats
from audit.stats import Interval
from audit.stats.groups import gap_limits, worst_limits

ALPHA = 0.05
counts = st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def allowed(rate: float, trials: int) -> float:
    """Return the nominal error rate plus three Monte-Carlo standard errors."""
    return rate + 3 * math.sqrt(rate * (1 - rate) / trials)


@given(st.lists(counts, min_size=2, max_size=6), st.floats(0.8, 0.99))
@settings(max_examples=60, deadline=None)
def test_gap_and_worst_hold_their_value(groups, confidence):
    k, n = zip(*groups, strict=True)
    p = np.asarray(k) / np.asarray(n)
    gap, worst = stats.max_min_gap(k, n, confidence), stats.worst_of(k, n, confidence)
    assert gap.value == pytest.approx(p.max() - p.min())
    assert 0 <= gap.low <= gap.value + 1e-12
    assert gap.value <= gap.high + 1e-12 <= 1 + 2e-12
    assert worst.value == p.min()
    assert 0 <= worst.low <= worst.value <= worst.high <= 1
    more = stats.max_min_gap(k, n, confidence, families=4)
    assert more.low <= gap.low
    assert more.high >= gap.high


def test_a_gap_of_two_groups_is_their_difference_corrected_on_the_near_side_only():
    """The lower limit must not know which of the two comes off better: half the error rate. The upper one need not."""
    gap = stats.max_min_gap([80, 30], [100, 120])
    assert gap.low == pytest.approx(stats.difference(80, 100, 30, 120, 0.975).low)
    assert gap.high == pytest.approx(stats.difference(80, 100, 30, 120, 0.95).high)


def test_more_groups_alike_do_not_widen_the_limit_that_a_pass_rests_on():
    two, many = stats.max_min_gap([50, 50], [100, 100]), stats.max_min_gap([50] * 40, [100] * 40)
    assert two.high == pytest.approx(many.high)
    assert stats.worst_of([50] * 40, [100] * 40).low == pytest.approx(stats.clopper_pearson(50, 100).low)


def test_an_empty_group_could_lie_anywhere():
    assert stats.max_min_gap([5, 5, 0], [10, 10, 0]) == Interval(0.0, 0.0, 1.0)
    assert stats.max_min_gap([5], [10]) == Interval(None, 0.0, 1.0)
    assert stats.worst_of([5, 0], [10, 0]).low == 0.0


GROUPS = [
    ((30, 1000), (0.2, 0.2)),
    ((30, 1000), (0.003, 0.6)),
    ((9, 100), (0.015, 0.12)),
    ((30, 30, 30), (0.7, 0.7, 0.7)),
    ((30, 300, 300, 300), (0.45, 0.45, 0.45, 0.45)),
    ((9, 30, 100, 300), (0.3, 0.3, 0.3, 0.3)),
    ((50, 50, 50, 50, 50, 50), (0.02, 0.1, 0.2, 0.3, 0.4, 0.95)),
]


@pytest.mark.parametrize(("n", "p"), GROUPS)
def test_each_side_of_the_gap_errs_at_most_half_alpha(n, p):
    rng, trials = np.random.default_rng(0), 5000
    n = np.asarray(n)
    k = rng.binomial(n, p, size=(trials, len(n)))
    lower, upper = gap_limits(k, n)
    for row in range(3):
        assert stats.max_min_gap(k[row], n)[1:] == pytest.approx((lower[row], upper[row]))
    truth = max(p) - min(p)
    assert (lower > truth + 1e-9).mean() <= allowed(ALPHA / 2, trials)
    assert (upper < truth - 1e-9).mean() <= allowed(ALPHA / 2, trials)


def test_a_percentile_bootstrap_of_the_gap_does_not_cover():
    """The contrast: with a true gap of 0 its lower limit is nearly always above 0."""
    rng, trials = np.random.default_rng(0), 200
    n = np.full(6, 100)
    k = rng.binomial(n, 0.3, size=(trials, 6))
    drawn = rng.binomial(n, k / n, size=(400, trials, 6)) / n
    naive = np.quantile(drawn.max(axis=-1) - drawn.min(axis=-1), ALPHA / 2, axis=0)
    assert (naive > 0).mean() > 0.95
    assert (gap_limits(k, n)[0] > 0).mean() <= allowed(ALPHA / 2, trials)


@pytest.mark.parametrize(("n", "p"), GROUPS)
def test_worst_group_covers(n, p):
    rng, trials = np.random.default_rng(0), 2000
    k = rng.binomial(n, p, size=(trials, len(n)))
    low, high = worst_limits(k, np.asarray(n))
    assert stats.worst_of(k[0], n)[1:] == pytest.approx((low[0], high[0]))
    assert np.mean(low > min(p)) <= allowed(ALPHA / 2, trials)
    assert np.mean(high < min(p)) <= allowed(ALPHA / 2, trials)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_gap_errs_at_most_half_alpha_wherever_the_truth_lies(seed):
    rng, trials = np.random.default_rng(seed), 2000
    for _ in range(30):
        n = rng.choice([9, 30, 100, 1000], size=rng.integers(2, 6))
        p = (
            rng.beta(0.5, 0.5, len(n))
            if rng.random() < 0.5
            else np.clip(rng.uniform(0, 0.9) + rng.uniform(0, 0.15, len(n)), 0, 1)
        )
        lower, upper = gap_limits(rng.binomial(n, p, size=(trials, len(n))), n)
        truth = p.max() - p.min()
        assert (lower > truth + 1e-9).mean() <= allowed(ALPHA / 2, trials), (n, p)
        assert (upper < truth - 1e-9).mean() <= allowed(ALPHA / 2, trials), (n, p)


@pytest.mark.slow
@pytest.mark.parametrize("gap", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("groups", [2, 8, 40])
def test_gap_and_worst_of_many_groups_cover(gap, groups):
    rng, trials = np.random.default_rng(0), 8000 // (groups + 8)
    for n in (np.full(groups, 30), np.geomspace(30, 5000, groups).astype(np.int64)):
        for start in (0.01, 0.5 - gap / 2, 0.99 - gap):
            p = start + gap * (np.arange(groups) % 2)
            k = rng.binomial(n, p, size=(trials, groups))
            for (lower, upper), truth in ((gap_limits(k, n), p.max() - p.min()), (worst_limits(k, n), p.min())):
                assert (lower > truth + 1e-9).mean() <= allowed(ALPHA / 2, trials), (n, p)
                assert (upper < truth - 1e-9).mean() <= allowed(ALPHA / 2, trials), (n, p)
