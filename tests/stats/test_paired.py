"""Differences over the same samples: coverage by enumeration and simulation, and agreement with what is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import gammaln
from scipy.stats import binom, binomtest

from audit import stats
from audit.stats.paired import paired_limits


@pytest.mark.parametrize("n", [5, 12, 30])
def test_the_paired_interval_covers_for_every_truth(n):
    """Every outcome of n pairs, weighed by its chance: exact coverage, on a grid of truths."""
    worse, better = (a.ravel() for a in np.meshgrid(np.arange(n + 1), np.arange(n + 1)))
    worse, better = worse[worse + better <= n], better[worse + better <= n]
    limits = [stats.paired_difference(int(c), int(b), n) for c, b in zip(better, worse, strict=True)]
    low, high = np.asarray([i.low for i in limits]), np.asarray([i.high for i in limits])
    log = gammaln(n + 1) - gammaln(better + 1) - gammaln(worse + 1) - gammaln(n - better - worse + 1)
    grid = [0.002, *np.linspace(0.01, 0.98, 25)]
    for p in grid:
        for q in (v for v in grid if v + p < 1):
            chance = np.exp(log + better * np.log(p) + worse * np.log(q) + (n - better - worse) * np.log(1 - p - q))
            covered = chance[(low <= p - q + 1e-12) & (p - q <= high + 1e-12)].sum()
            assert covered >= 0.95, (p, q, covered)


@given(n=st.integers(1, 400), data=st.data())
def test_swapping_the_two_turns_the_interval_round(n, data):
    better = data.draw(st.integers(0, n))
    worse = data.draw(st.integers(0, n - better))
    one, other = stats.paired_difference(better, worse, n), stats.paired_difference(worse, better, n)
    assert one.value == pytest.approx(-other.value)
    assert one.low == pytest.approx(-other.high)
    assert one.high == pytest.approx(-other.low)
    assert -1 <= one.low <= one.value <= one.high <= 1


def test_pairs_that_agree_make_the_interval_narrower_than_two_separate_samples():
    paired = stats.paired_difference(30, 10, 1000)
    apart = stats.difference(930, 1000, 910, 1000)
    assert paired.value == pytest.approx(apart.value)
    assert paired.high - paired.low < 0.7 * (apart.high - apart.low)
    assert paired.low > 0 > apart.low


def test_no_pairs_say_nothing():
    assert stats.paired_difference(0, 0, 0) == (None, -1.0, 1.0)
    with pytest.raises(ValueError, match="at most 3"):
        stats.paired_difference(2, 2, 3)


def test_the_mean_of_differences_covers():
    rng = np.random.default_rng(0)
    runs, missed = 300, 0
    for seed in range(runs):
        d = rng.gamma(2.0, 1.0, 60) - 2.0  # skewed, with mean 0
        interval = stats.paired_mean(d, seed=seed)
        missed += not interval.low <= 0 <= interval.high
    assert missed / runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
    assert missed / runs >= 0.05 - 3 * np.sqrt(0.05 * 0.95 / runs)


def test_differences_without_spread_have_no_limits():
    assert stats.paired_mean(np.zeros(50)) == (0.0, None, None)
    assert stats.paired_mean(np.full(50, 2.0)) == (2.0, None, None)
    assert stats.paired_mean([1.0, 2.0]) == (1.5, None, None)
    assert stats.paired_mean([]) == (None, None, None)


@pytest.mark.parametrize("n", [1000, 10_000])
def test_each_limit_of_the_paired_interval_errs_at_most_half_alpha_for_many_samples(n):
    rng, runs = np.random.default_rng(0), 20_000
    slack = 3 * np.sqrt(0.025 * 0.975 / runs)
    for p, q in [(0.3, 0.0005), (0.05, 0.05), (0.45, 0.45), (0.001, 0.0002), (0.035, 0.015)]:
        drawn = rng.multinomial(n, [p, q, 1 - p - q], runs)
        low, high = paired_limits(drawn[:, 0], drawn[:, 1], n)
        assert (low > p - q + 1e-12).mean() <= 0.025 + slack, (p, q)
        assert (high < p - q - 1e-12).mean() <= 0.025 + slack, (p, q)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_equals_the_binomial_test(better, worse):
    if better + worse:
        for alternative in ("two-sided", "greater", "less"):
            expected = binomtest(better, better + worse, 0.5, alternative=alternative).pvalue
            assert stats.mcnemar(better, worse, alternative) == pytest.approx(expected)


def test_mcnemar_by_hand():
    # 2 of 6 one way: P(X <= 2) = 22/64, P(X = 2) = 15/64
    assert stats.mcnemar(2, 4, "less") == pytest.approx(22 / 64)
    assert stats.mcnemar(2, 4) == pytest.approx(44 / 64)
    assert stats.mcnemar(2, 4, "less", mid_p=True) == pytest.approx(14.5 / 64)
    assert stats.mcnemar(2, 4, mid_p=True) == pytest.approx(29 / 64)
    assert stats.mcnemar(3, 3) == stats.mcnemar(3, 3, mid_p=True) == stats.mcnemar(0, 0) == 1
    with pytest.raises(ValueError, match="at least 0"):
        stats.mcnemar(-1, 2)


@pytest.mark.parametrize("n", [20, 50])
def test_mcnemar_errs_as_it_states_enumerated(n):
    """The exact test never more than 5 %, the mid-p one up to 6.5 %."""
    sizes = {}
    for mid_p in (False, True):
        rejected = [
            sum(binom.pmf(b, m, 0.5) for b in range(m + 1) if stats.mcnemar(b, m - b, mid_p=mid_p) <= 0.05)
            for m in range(n + 1)
        ]
        sizes[mid_p] = max(float(binom.pmf(range(n + 1), n, d) @ np.asarray(rejected)) for d in (0.02, 0.1, 0.3, 0.6, 1.0))
    assert sizes[False] <= 0.05
    assert sizes[False] < sizes[True] <= 0.065


def test_few_differences_that_are_not_0_have_no_limits():
    few = np.repeat([1.0, -1.0, 0.0], [6, 3, 191])
    assert stats.paired_mean(few) == (0.015, None, None)
    assert None not in stats.paired_mean(np.repeat([1.0, -1.0, 0.0], [7, 3, 190]))
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        stats.paired_mean([[1, 2], [1, 2]])
