"""Confidence sequences: exact chances of an error at any look, closed forms of the capital, and what they are used for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from audit import stats
from audit.stats.sequences import STAKES

ALPHA = 0.05

counts = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def allowed(rate: float, trials: int) -> float:
    """Return the nominal error rate plus three Monte-Carlo standard errors."""
    return rate + 3 * math.sqrt(rate * (1 - rate) / trials)


def error_at_any_look(p: float, steps: int, misses) -> float:
    """Return the exact chance that a walk of bits meets a count k of n for which `misses(k, n)` holds, up to `steps` bits."""
    alive, found = np.ones(1), 0.0
    for n in range(1, steps + 1):
        alive = np.r_[alive * (1 - p), 0] + np.r_[0, alive * p]
        missed = misses(np.arange(n + 1), np.full(n + 1, n))
        found += alive[missed].sum()
        alive[missed] = 0
    return float(found)


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9])
def test_each_limit_errs_at_most_half_alpha_however_often_one_looks(p):
    low = error_at_any_look(p, 200, lambda k, n: stats.sequential_limits(k, n)[0] > p)
    high = error_at_any_look(p, 200, lambda k, n: stats.sequential_limits(k, n)[1] < p)
    assert 0 <= low <= ALPHA / 2
    assert 0 <= high <= ALPHA / 2
    assert low + high > 0.001, "it does err now and then: a sequence that never did would be needlessly wide"


def test_clopper_pearson_errs_far_more_when_looked_at_every_time():
    def misses(k, n):
        low, high = stats.clopper_pearson_limits(k, n)
        return (low > 0.5) | (high < 0.5)

    assert error_at_any_look(0.5, 250, misses) > 0.25


@pytest.mark.slow
@pytest.mark.parametrize("p", [0.01, 0.05, 0.5, 0.99])
def test_each_limit_errs_at_most_half_alpha_in_two_thousand_looks(p):
    """By p-values, which are small exactly where the limits miss, as another test says."""
    log_stakes, log_rest = np.log1p(STAKES * (1 / p - 1)), np.log1p(-STAKES)

    def misses(k, n):
        log_capital = k[:, None] * log_stakes + (n - k)[:, None] * log_rest
        return np.exp(np.minimum(log_capital, 600)).mean(axis=1) >= 2 / ALPHA

    assert error_at_any_look(p, 2000, misses) <= ALPHA / 2


@given(counts, st.floats(0.5, 0.999))
@settings(max_examples=100, deadline=None)
def test_the_capital_is_worth_its_limit_and_the_interval_is_wider_than_an_exact_one(count, confidence):
    k, n = count
    low, high = (float(limit) for limit in stats.sequential_limits(k, n, confidence))
    exact = stats.clopper_pearson(k, n, confidence)
    assert 0 <= low <= exact.low + 1e-9
    assert exact.high - 1e-9 <= high <= 1
    tail = (1 - confidence) / 2
    if low > 1e-6:
        won = np.mean((1 - STAKES + STAKES / low) ** k * (1 - STAKES) ** (n - k)) if n < 200 else 1 / tail
        assert won == pytest.approx(1 / tail, rel=1e-5)
        assert stats.sequential_p(k, n, low, "max") == pytest.approx(tail, rel=1e-4)
    if high < 1 - 1e-6:
        assert stats.sequential_p(k, n, high, "min") == pytest.approx(tail, rel=1e-4)


@pytest.mark.slow
@given(counts, st.floats(0.001, 0.999))
@settings(max_examples=100, deadline=None)
def test_p_is_small_exactly_where_the_limits_lie_beyond(count, limit):
    k, n = count
    low, high = stats.sequential_limits(k, n)
    if abs(low - limit) > 1e-6:
        assert (stats.sequential_p(k, n, limit, "max") <= ALPHA / 2) == (low > limit)
    if abs(high - limit) > 1e-6:
        assert (stats.sequential_p(k, n, limit, "min") <= ALPHA / 2) == (high < limit)


def test_p_of_limits_that_all_or_no_shares_keep():
    assert stats.sequential_p(3, 5, 1.0, "max") == stats.sequential_p(3, 5, 0.0, "min") == 1.0
    assert stats.sequential_p(3, 5, 0.0, "max") == stats.sequential_p(3, 5, 1.0, "min") == 0.0
    assert stats.sequential_p(0, 5, 0.0, "max") == stats.sequential_p(5, 5, 1.0, "min") == 1.0
    assert stats.sequential_p(0, 5, -0.5, "max") == stats.sequential_p(5, 5, 1.5, "min") == 0.0


def test_p_comes_back_as_limits_are_judged():
    p = stats.p_beyond("confidence-sequence", 0.97, 1000, *stats.sequential_limits(970, 1000), 0.95, 0.99, "min")
    assert p == stats.sequential_p(970, 1000, 0.99, "min") < ALPHA / 2


def test_the_order_of_bits_does_not_matter_and_none_say_nothing():
    bits = np.random.default_rng(0).random(500) < 0.9
    assert stats.sequential_interval(bits) == stats.sequential_interval(np.sort(bits))
    assert stats.sequential_interval(bits).value == bits.mean()
    assert stats.sequential_interval([]) == (None, 0.0, 1.0)
    for wrong in ([0.5], [[0, 1]], [math.nan]):
        with pytest.raises(ValueError, match="zeros and ones"):
            stats.sequential_interval(wrong)


@pytest.mark.parametrize(("k", "n"), [(1, 10**7), (5, 10**6), (500_000, 10**6), (10**6, 10**6)])
def test_large_counts_have_limits_near_their_share(k, n):
    low, high = stats.sequential_limits(k, n)
    exact = stats.clopper_pearson(k, n)
    assert 0 <= low < k / n <= high
    assert high - low <= 3 * (exact.high - exact.low)


@pytest.mark.parametrize("method", [stats.betting_sequence, stats.empirical_bernstein_sequence])
def test_sequences_close_in_on_the_mean_and_never_widen(method):
    values = np.random.default_rng(0).beta(2, 3, 3000)
    low, high = method(values)
    assert low.shape == high.shape == (3000,)
    assert (np.diff(low) >= 0).all()
    assert (np.diff(high) <= 0).all()
    assert low[-1] < 0.4 < high[-1]
    assert high[-1] - low[-1] < 0.05
    again = method(values[:700])  # what was said at a step does not depend on what comes after, but for the grid
    assert (low[:700], high[:700]) == (pytest.approx(again[0], abs=0.01), pytest.approx(again[1], abs=0.01))
    turned = method(1 - values)
    assert turned[0] == pytest.approx(1 - high, abs=0.005)


@pytest.mark.parametrize("method", [stats.betting_sequence, stats.empirical_bernstein_sequence])
def test_sequences_of_nothing_of_one_and_of_wrong_values(method):
    assert [len(limits) for limits in method([])] == [0, 0]
    low, high = method([1.0])
    assert 0 <= low[0] < 1 == high[0]
    for wrong in ([1.5], [math.nan], [[0.5]]):
        with pytest.raises(ValueError, match="between 0 and 1"):
            method(wrong)


def test_a_betting_limit_is_where_the_capital_reaches_its_price():
    """The stakes follow step by step from the values before, and the last limit from a search over the product."""
    values = np.random.default_rng(0).beta(3, 2, 60).tolist()
    total, squares, stakes = 0.5, 0.25, []
    for t, x in enumerate(values, 1):
        stakes.append(math.sqrt(2 * math.log(40) / (squares / t * t * math.log(1 + t))))
        total += x
        squares += (x - total / (t + 1)) ** 2

    def most(m):
        capital = np.cumsum([math.log1p(min(stake, 0.5 / m) * (x - m)) for stake, x in zip(stakes, values, strict=True)])
        return capital.max()

    found = brentq(lambda m: most(m) - math.log(40), 1e-6, 1)
    assert stats.betting_sequence(values)[0][-1] == pytest.approx(found, abs=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("method", [stats.betting_sequence, stats.empirical_bernstein_sequence])
@pytest.mark.parametrize(("a", "b"), [(1, 1), (0.2, 5), (8, 0.5)])
def test_each_limit_of_a_mean_errs_at_most_half_alpha_at_any_step(method, a, b):
    rng, trials = np.random.default_rng(0), 600
    ends = [[limits[-1] for limits in method(rng.beta(a, b, 300))] for _ in range(trials)]
    low, high = np.transpose(ends)
    assert np.mean(low > a / (a + b)) <= allowed(ALPHA / 2, trials)
    assert np.mean(high < a / (a + b)) <= allowed(ALPHA / 2, trials)


def test_fifty_thousand_bits_take_less_than_a_few_seconds():
    import time

    bits = np.random.default_rng(0).random(50_000) < 0.9
    started = time.process_time()
    stats.sequential_limits(np.cumsum(bits), np.arange(1, 50_001))
    stats.sequential_interval(bits)
    stats.betting_sequence(bits)
    assert time.process_time() - started < 10
