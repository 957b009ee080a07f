"""Sums and differences of proportions: published examples, closed forms, and coverage by enumeration and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom

from audit import stats
from audit.stats import Interval
from audit.stats.differences import likeliest_second, mean_limits, miettinen_nurminen_limits, subtracted

ALPHA = 0.05
counts = st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def allowed(rate: float, trials: int) -> float:
    """Return the nominal error rate plus three Monte-Carlo standard errors."""
    return rate + 3 * math.sqrt(rate * (1 - rate) / trials)


def test_newcombe_equals_the_published_example():
    # Newcombe (1998), Table II, example (a): 56/70 − 48/80, method 10
    assert stats.newcombe_difference(56, 70, 48, 80) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert stats.newcombe_difference(10, 10, 0, 20) == pytest.approx((1.0, 0.6791, 1.0), abs=5e-5)


def test_mover_of_equal_and_symmetric_parts_is_the_root_of_squares():
    assert stats.mover([Interval(0.5, 0.4, 0.6)] * 4, [0.25] * 4) == pytest.approx((0.5, 0.45, 0.55))
    assert stats.mover([Interval(0.5, 0.1, 0.6), Interval(0.5, 0.4, 0.9)], [1, -1]) == pytest.approx(
        (0.0, -math.hypot(0.4, 0.4), math.hypot(0.1, 0.1))
    )


def test_mover_with_an_unknown_part_is_unknown():
    assert stats.mover([Interval(0.5, 0.4, 0.6), Interval(None, 0, 1)], [1, -1]) == Interval(None, None, None)


def _enumerated(n1: int, n2: int, method) -> tuple[np.ndarray, np.ndarray]:
    table = [[method(a, n1, b, n2)[1:] for b in range(n2 + 1)] for a in range(n1 + 1)]
    limits = np.asarray(table)
    return limits[..., 0], limits[..., 1]


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
@pytest.mark.parametrize(("n1", "n2"), [(5, 5), (10, 10), (9, 30), (30, 30), (20, 100), (30, 400)])
def test_each_limit_of_a_difference_errs_at_most_half_alpha_enumerated(n1, n2, confidence):
    """On both sides, that which accuses and that which acquits; 3.4 % was MOVER's own for a rare outcome in one part."""
    tail = (1 - confidence) / 2
    a, b = np.arange(n1 + 1)[:, None], np.arange(n2 + 1)[None, :]
    low, high = subtracted(a, np.asarray(n1), b, np.asarray(n2), confidence)
    grid = np.r_[0.001, 0.003, 0.01, 0.02, np.linspace(0.05, 0.95, 19), 0.98, 0.99, 0.997, 0.999]
    first, second = (binom.pmf(np.arange(n + 1)[:, None], n, grid) for n in (n1, n2))
    for (i, p), (j, q) in itertools.product(enumerate(grid), enumerate(grid)):
        for missed in (np.maximum(low, -1) > p - q + 1e-12, np.minimum(high, 1) < p - q - 1e-12):
            assert first[:, i] @ missed @ second[:, j] <= tail * (1.05 if confidence > 0.99 else 1) + 1e-12, (p, q)


@given(counts, counts, st.floats(0.5, 0.9999))
@settings(max_examples=25, deadline=None)
def test_intervals_of_a_difference_hold_their_value_and_turn_round(one, other, confidence):
    for method in (stats.difference, stats.newcombe_difference, stats.miettinen_nurminen):
        there, back = method(*one, *other, confidence), method(*other, *one, confidence)
        assert there == pytest.approx((-back.value, -back.high, -back.low), abs=1e-9)
        assert -1 <= there.low <= there.value + 1e-12
        assert there.value <= there.high + 1e-12 <= 1 + 2e-12


@pytest.mark.parametrize("counted", [(56, 70, 48, 80), (9, 10, 3, 10), (0, 30, 2, 9), (1, 400, 399, 400)])
def test_the_likeliest_shares_at_a_distance_are_the_likeliest(counted):
    """The closed form against a search of the likelihood itself."""
    k1, n1, k2, n2 = counted
    for d in (-0.6, -0.1, 1e-3, 0.2, 0.7):
        p2 = float(likeliest_second(*(np.asarray(float(v)) for v in counted), np.asarray(d)))

        def surprise(q, d=d):
            return -float(binom.logpmf(k1, n1, np.clip(q + d, 0, 1)) + binom.logpmf(k2, n2, q))

        lowest, highest = max(0.0, -d), min(1.0, 1 - d)
        found = minimize_scalar(surprise, bounds=(lowest, highest), method="bounded", options={"xatol": 1e-10})
        assert lowest <= p2 <= highest
        assert surprise(p2) <= found.fun + 1e-9


@pytest.mark.parametrize(
    ("counted", "low", "high"),
    [
        ((56, 70, 48, 80), 0.0528, 0.3382),
        ((9, 10, 3, 10), 0.1700, 0.8406),
        ((6, 7, 2, 7), 0.0342, 0.8534),
        ((5, 56, 0, 29), -0.0326, 0.1933),
        ((0, 10, 0, 20), -0.1658, 0.2844),
        ((0, 10, 0, 10), -0.2879, 0.2879),
        ((10, 10, 0, 20), 0.7156, 1.0000),
        ((10, 10, 0, 10), 0.6636, 1.0000),
    ],
)
def test_miettinen_and_nurminen_equal_the_published_examples(counted, low, high):
    # Newcombe (1998), Table II, examples (a) to (h), method 6
    assert stats.miettinen_nurminen(*counted)[1:] == pytest.approx((low, high), abs=5e-5)


def test_approximate_differences_cover_on_average():
    """What is asked, on average; where shares are rare, less: so no verdict rests on them."""
    newcombe = _enumerated(20, 20, stats.newcombe_difference)
    score = miettinen_nurminen_limits(np.arange(21)[:, None], 20, np.arange(21)[None, :], 20)
    for (low, high), most in ((newcombe, 0.09), (score, 0.12)):
        missed = []
        for p, q in itertools.product(np.linspace(0.01, 0.99, 15), repeat=2):
            chance = np.outer(binom.pmf(range(21), 20, p), binom.pmf(range(21), 20, q))
            missed.append(chance[(low > p - q + 1e-12) | (high < p - q - 1e-12)].sum())
        assert np.mean(missed) <= ALPHA < max(missed) <= most


def test_no_samples_have_no_difference():
    for method in (stats.difference, stats.newcombe_difference, stats.miettinen_nurminen):
        assert method(0, 0, 3, 4) == method(3, 4, 0, 0) == Interval(None, -1.0, 1.0)
    assert stats.mean_of_proportions([0, 0], [0, 0]) == Interval(None, 0.0, 1.0)
    with pytest.raises(ValueError, match="0 <= k <= n"):
        stats.miettinen_nurminen(5, 4, 1, 2)


def test_plain_mover_covers_less_in_that_corner_as_its_docstring_says():
    _, high = _enumerated(
        30, 30, lambda a, n, b, m: stats.mover([stats.clopper_pearson(a, n), stats.clopper_pearson(b, m)], [1, -1])
    )
    chance = np.outer(binom.pmf(range(31), 30, 0.99), binom.pmf(range(31), 30, 0.01))
    assert chance[high < 0.98 - 1e-12].sum() == pytest.approx(0.0727, abs=1e-3)


@pytest.mark.parametrize("recalls", [(0.9, 0.9, 0.9), (0.99, 0.95, 0.6), (0.999, 0.999, 0.5)])
def test_balanced_accuracy_covers(recalls):
    rng = np.random.default_rng(0)
    n, trials = np.asarray([40, 15, 25]), 1500
    low, high = mean_limits(rng.binomial(n, recalls, size=(trials, 3)), n)
    assert np.mean(low > np.mean(recalls)) <= allowed(ALPHA / 2, trials)
    assert np.mean(high < np.mean(recalls)) <= allowed(ALPHA / 2, trials)


@pytest.mark.parametrize(
    ("classes", "n", "p"), [(1000, 1, 0.05), (1000, 1, 0.95), (100, 1, 0.1), (100, 3, 0.1), (10, 30, 0.05)]
)
def test_balanced_accuracy_of_many_small_classes_covers(classes, n, p):
    rng, trials = np.random.default_rng(0), min(2000, 200_000 // classes)
    low, high = mean_limits(rng.binomial(n, p, size=(trials, classes)), np.full(classes, n))
    assert np.mean(low > p) <= allowed(ALPHA / 2, trials)
    assert np.mean(high < p) <= allowed(ALPHA / 2, trials)


@pytest.mark.parametrize("parts", [2, 4, 16, 36, 100, 1000])
def test_balanced_accuracy_of_single_samples_covers_enumerated(parts):
    """MOVER alone missed 6 % on either side with four of them."""
    right = np.arange(parts + 1)
    low, high = mean_limits((np.arange(parts) < right[:, None]).astype(np.int64), np.ones(parts, dtype=np.int64))
    for p in np.linspace(0.02, 0.98, 49):
        chance = binom.pmf(right, parts, p)
        assert chance[low > p + 1e-9].sum() <= ALPHA / 2
        assert chance[high < p - 1e-9].sum() <= ALPHA / 2


@pytest.mark.slow
def test_balanced_accuracy_covers_for_parts_of_any_size_and_share():
    rng, trials = np.random.default_rng(0), 2000
    for setting in range(60):
        parts = rng.choice([2, 3, 5, 10, 40])
        n = rng.choice([1, 2, 5, 10, 30, 100, 1000], parts if setting % 3 else 1) * np.ones(parts, dtype=np.int64)
        p = rng.choice([0.01, 0.05, 0.3, 0.5, 0.9, 0.95, 0.99], parts if setting % 2 else 1) * np.ones(parts)
        low, high = mean_limits(rng.binomial(n, p, size=(trials, parts)), n)
        assert np.mean(low > p.mean() + 1e-9) <= allowed(ALPHA / 2, trials), (n, p)
        assert np.mean(high < p.mean() - 1e-9) <= allowed(ALPHA / 2, trials), (n, p)


def test_one_proportion_alone_keeps_its_exact_interval():
    assert stats.mean_of_proportions([0, 7], [0, 9]) == stats.clopper_pearson(7, 9)


def test_balanced_accuracy_equals_scikit_learn_and_leaves_out_absent_classes():
    from sklearn.metrics import balanced_accuracy_score

    rng = np.random.default_rng(1)
    y, predicted = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    hits = [int(((y == c) & (predicted == c)).sum()) for c in range(4)]
    total = [int((y == c).sum()) for c in range(4)]
    assert stats.mean_of_proportions(hits, total).value == pytest.approx(balanced_accuracy_score(y, predicted))
    assert stats.mean_of_proportions([7] * 7, [7] * 7).value == 1.0
