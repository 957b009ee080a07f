"""Permutation tests: against brute force, against exact tests that they must equal, and the rate at which they err."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import permutation_test, ttest_ind

from audit import stats


def allowed(rate: float, trials: int) -> float:
    """Return the nominal error rate plus three Monte-Carlo standard errors."""
    return rate + 3 * math.sqrt(rate * (1 - rate) / trials)


SAMPLES = st.lists(st.integers(-3, 3), min_size=2, max_size=6)


@given(SAMPLES, SAMPLES, st.sampled_from(["two-sided", "greater", "less"]))
@settings(max_examples=30, deadline=None)
def test_all_relabellings_equal_brute_force(first, second, alternative):
    both, n = np.asarray([*first, *second], dtype=float), len(first)

    def welch(chosen) -> float:
        a, b = both[list(chosen)], np.delete(both, list(chosen))
        apart, error = a.mean() - b.mean(), math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
        t = 0.0 if abs(apart) < 1e-12 else math.copysign(math.inf, apart) if error < 1e-12 else apart / error
        return {"two-sided": abs(t), "greater": t, "less": -t}[alternative]

    seen = welch(range(n))
    as_far = [welch(chosen) >= seen - 1e-9 for chosen in itertools.combinations(range(len(both)), n)]
    assert stats.permutation_test(first, second, alternative) == pytest.approx(np.mean(as_far))


def test_relabellings_equal_those_of_scipy_with_the_same_statistic():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=6), rng.normal(0.5, 2, size=7)

    def statistic(x, y, axis):
        return ttest_ind(x, y, equal_var=False, axis=axis).statistic

    for side in ("greater", "less"):
        theirs = permutation_test((a, b), statistic, n_resamples=math.inf, vectorized=True, alternative=side)
        assert stats.permutation_test(a, b, side) == pytest.approx(theirs.pvalue)


@given(st.integers(0, 14), st.integers(0, 14), st.integers(0, 5), st.sampled_from(["two-sided", "greater", "less"]))
@settings(max_examples=60, deadline=None)
def test_flipping_signs_of_outcomes_is_the_test_of_mcnemar(better, worse, same, alternative):
    if better + worse <= 14:
        p = stats.sign_flip_test(np.repeat([1.0, -1.0, 0.0], [better, worse, same]), alternative)
        assert p == pytest.approx(stats.mcnemar(better, worse, alternative))


def test_drawn_flips_and_relabellings_come_near_the_exact_p_and_are_never_zero():
    d = np.repeat([1.0, -1.0], [30, 14])
    drawn, exact = stats.sign_flip_test(d), stats.mcnemar(30, 14)
    assert abs(drawn - exact) <= 3 * math.sqrt(exact / 9999) + 2e-4
    assert stats.sign_flip_test(np.ones(60), resamples=99) == 0.01
    assert stats.permutation_test(np.arange(20), np.arange(20) + 1000, resamples=99) == 0.01
    assert stats.permutation_test(np.zeros(20), np.ones(20), resamples=99) == 0.01
    assert stats.permutation_test(d, d + 0.2, seed=3) == stats.permutation_test(d, d + 0.2, seed=3)


def test_values_that_say_nothing():
    assert stats.sign_flip_test([0.0, 0.0]) == stats.sign_flip_test([]) == 1.0
    assert stats.permutation_test([2.0, 2.0], [2.0, 2.0, 2.0]) == 1.0
    with pytest.raises(ValueError, match="at least one value"):
        stats.permutation_test([], [1.0])
    with pytest.raises(ValueError, match="finite"):
        stats.sign_flip_test([math.nan])
    with pytest.raises(ValueError, match="resample"):
        stats.sign_flip_test(np.ones(30), resamples=0)


@pytest.mark.slow
@pytest.mark.parametrize("alternative", ["two-sided", "less"])
def test_they_err_at_most_as_often_as_stated(alternative):
    rng, runs = np.random.default_rng(0), 1000
    two = [
        stats.permutation_test(rng.exponential(size=8), rng.exponential(size=30), alternative, 99, seed) for seed in range(runs)
    ]
    flips = [stats.sign_flip_test(rng.standard_t(3, size=25), alternative, 99, seed) for seed in range(runs)]
    for found in (two, flips):
        assert np.mean(np.asarray(found) <= 0.05) <= allowed(0.05, runs)


@pytest.mark.slow
def test_unlike_spreads_are_not_taken_for_unlike_means():
    rng, runs = np.random.default_rng(0), 1000
    found = [stats.permutation_test(rng.normal(0, 4, 40), rng.normal(0, 1, 160), resamples=99, seed=i) for i in range(runs)]
    assert np.mean(np.asarray(found) <= 0.05) <= allowed(0.05, runs)
