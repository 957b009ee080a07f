"""AUROC and average precision: equal to scikit-learn's, and their intervals cover what they say, by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from audit import stats
from audit.stats.ranking import _areas, _drawn, _precisions, _ranked

SCORES = st.lists(st.integers(-5, 5), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(SCORES, SCORES)
def test_values_are_those_of_scikit_learn_with_ties_too(normal, anomalous):
    labels, scores = np.repeat([0, 1], [len(normal), len(anomalous)]), np.asarray([*normal, *anomalous])
    area, precision = stats.auroc(normal, anomalous), stats.average_precision(normal, anomalous)
    assert area.value == pytest.approx(roc_auc_score(labels, scores))
    assert precision.value == pytest.approx(average_precision_score(labels, scores))
    for interval in (area, precision):
        assert 0 <= interval.low <= interval.value <= interval.high <= 1
        assert interval.high > interval.low, "no interval has a width of zero"


@settings(max_examples=40, deadline=None)
@given(SCORES, SCORES)
def test_turning_the_scores_round_turns_the_interval_round(normal, anomalous):
    there, back = stats.auroc(normal, anomalous), stats.auroc(anomalous, normal)
    assert (there.value, there.low, there.high) == pytest.approx((1 - back.value, 1 - back.high, 1 - back.low), abs=1e-9)


def test_a_perfect_separation_of_few_is_not_certain():
    few, many = stats.auroc(np.zeros(20), np.ones(20)), stats.auroc(np.zeros(2000), np.ones(2000))
    assert few.value == many.value == few.high == 1
    assert few.low < 0.85 < 0.99 < many.low < 1
    assert stats.average_precision(np.zeros(20), np.ones(20)).low < 0.9


@pytest.mark.parametrize("n", [1, 3, 8, 40])
def test_anomalies_that_all_or_none_stand_out_are_worth_their_number(n):
    """Each is above all normal samples or below: then an AUROC is a proportion of `n` draws, and its limits are exact."""
    for k in range(n + 1):
        exact = stats.clopper_pearson(k, n)
        area = stats.auroc(np.zeros(20_000), np.repeat([1.0, -1.0], [k, n - k]))
        assert (area.low, area.high) == pytest.approx(exact[1:], abs=2e-3)


def test_an_empty_part_says_nothing():
    assert stats.auroc([], [1.0]) == stats.average_precision([1.0], []) == (None, 0.0, 1.0)
    assert stats.auroc_difference([], [1.0], [], [1.0]) == (None, -1.0, 1.0)


@settings(max_examples=40, deadline=None)
@given(SCORES, SCORES, st.integers(0, 5))
def test_the_bootstrap_counts_as_if_it_drew_scores(normal, anomalous, seed):
    """Resamples are counts of distinct scores: for any such counts, the areas and precisions are those of the scores."""
    ranks = _ranked(np.asarray(normal, dtype=float), np.asarray(anomalous, dtype=float))
    rng = np.random.default_rng(seed)
    drawn = [_drawn(counts, 3, rng) for counts in (ranks.normal, ranks.anomalous)]
    assert [d.sum(axis=1).tolist() for d in drawn] == [[len(normal)] * 3, [len(anomalous)] * 3]
    areas, precisions = _areas(ranks, *drawn), _precisions(ranks, *drawn)
    for row in range(3):
        scores = [np.repeat(np.unique(part), d[row]) for part, d in zip((normal, anomalous), drawn, strict=True)]
        labels = np.repeat([0, 1], [len(normal), len(anomalous)])
        assert areas[row] == pytest.approx(roc_auc_score(labels, np.concatenate(scores)))
        assert precisions[row] == pytest.approx(average_precision_score(labels, np.concatenate(scores)))


@pytest.mark.parametrize("digits", [8, 1])
def test_the_bootstrap_agrees_with_delong(digits):
    """Scores that all differ are drawn by samples, rounded ones by cells: the same area, and nearly the same limits."""
    rng = np.random.default_rng(0)
    normal, anomalous = rng.normal(size=2000).round(digits), rng.normal(1.2, 1, 600).round(digits)
    drawn, delong = stats.auroc_bootstrap(normal, anomalous), stats.auroc(normal, anomalous)
    assert drawn.value == pytest.approx(delong.value)
    width = delong.high - delong.low
    assert drawn[1:] == pytest.approx(delong[1:], abs=0.12 * width)
    assert drawn == stats.auroc_bootstrap(normal, anomalous)
    assert drawn != stats.auroc_bootstrap(normal, anomalous, seed=1)


def test_counts_are_drawn_as_often_as_their_share():
    rng = np.random.default_rng(0)
    for counts in (np.asarray([1, 2, 7]), np.asarray([100, 200, 700])):  # by samples, by cells
        n, rows = int(counts.sum()), 4000
        drawn = _drawn(counts, rows, rng)
        share = counts / n
        assert drawn.mean(axis=0) / n == pytest.approx(share, abs=3 * 0.5 / np.sqrt(n * rows))
        assert drawn.var(axis=0) == pytest.approx(n * share * (1 - share), rel=0.1)


def test_the_bootstrap_of_an_area_says_nothing_of_few():
    assert stats.auroc_bootstrap([], [1.0]) == (None, None, None)
    assert stats.auroc_bootstrap(np.zeros(9), np.ones(20)) == (1.0, None, None)


def test_nan_scores_are_refused():
    with pytest.raises(ValueError, match="no NaN"):
        stats.auroc([np.nan], [1.0])


def _normal(shift, spread=1.0):
    return lambda rng, m, n: (rng.normal(size=m), rng.normal(shift, spread, n))


def _mixed(hidden):
    def draw(rng, m, n):
        return rng.normal(size=m), np.where(rng.random(n) < hidden, rng.normal(size=n), rng.normal(20, 1, n))

    return draw


@pytest.mark.slow
@pytest.mark.parametrize(("m", "n"), [(200, 3), (200, 7), (200, 20), (50, 50)])
@pytest.mark.parametrize("draw", [_normal(0), _normal(2), _normal(8, 4.0), _normal(3, 0.25), _mixed(0.1)])
def test_each_limit_of_an_auroc_misses_at_most_a_fortieth(draw, m, n):
    rng, runs = np.random.default_rng(0), 1000
    truth = stats.auroc(*draw(rng, 200_000, 200_000)).value
    found = [stats.auroc(*draw(rng, m, n)) for _ in range(runs)]
    slack = 0.025 + 3 * np.sqrt(0.025 * 0.975 / runs)
    assert np.mean([truth < i.low for i in found]) <= slack
    assert np.mean([truth > i.high for i in found]) <= slack


@pytest.mark.slow
def test_a_paired_difference_covers_and_is_narrower_than_an_unpaired_one():
    rng, runs = np.random.default_rng(0), 600
    missed, narrower = 0, 0
    truth = norm.cdf(1.5 / np.sqrt(2)) - norm.cdf(1.5 / np.sqrt(2 + 2 * 0.3**2))  # a normal and a noisier copy
    for _ in range(runs):
        (a, b), noise = _normal(1.5)(rng, 100, 60), rng.normal(size=160) * 0.3
        interval = stats.auroc_difference(a, b, a + noise[:100], b + noise[100:])
        missed += not interval.low <= truth <= interval.high
        own = stats.auroc(a, b)
        narrower += interval.high - interval.low < own.high - own.low
    assert missed / runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
    assert narrower == runs


@pytest.mark.slow
@pytest.mark.parametrize("draw", [_normal(1), _normal(2), _mixed(0.1)])
def test_the_limits_of_average_precision_hold(draw):
    rng, runs, m, n = np.random.default_rng(0), 300, 200, 30
    truth = stats.average_precision(*draw(rng, 40_000, 6_000)).value
    found = [stats.average_precision(*draw(rng, m, n)) for _ in range(runs)]
    slack = 0.025 + 3 * np.sqrt(0.025 * 0.975 / runs)
    assert np.mean([truth < i.low for i in found]) <= slack
    assert np.mean([truth > i.high for i in found]) <= slack
