"""Differences over the same samples: coverage by enumeration and simulation, and agreement with what is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import gammaln

from audit import stats


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
