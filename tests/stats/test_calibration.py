"""Calibration error: its value, and limits that hold whether a network is calibrated, too sure or not sure enough."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit import stats

ALPHA = 0.05


def allowed(rate: float, trials: int) -> float:
    """Return the nominal error rate plus three Monte-Carlo standard errors."""
    return rate + 3 * math.sqrt(rate * (1 - rate) / trials)


def test_ece_by_hand():
    scores = np.repeat([0.6, 0.9], 50)
    correct = np.r_[np.arange(50) < 20, np.arange(50) < 45]  # 0.4 right at 0.6; 0.9 right at 0.9
    assert stats.ece(scores, correct, bins=2).value == pytest.approx(0.5 * 0.2)
    bins = stats.reliability_bins(scores, correct, bins=2)
    assert bins.n.tolist() == [50, 50]
    assert bins.accuracy == pytest.approx([0.4, 0.9])


def test_equal_scores_share_a_bin_whatever_the_order():
    scores = np.r_[np.full(90, 1.0), np.linspace(0.5, 0.9, 60)]
    correct = np.arange(150) % 3 > 0
    shuffled = np.random.default_rng(0).permutation(150)
    bins = stats.reliability_bins(scores, correct)
    assert bins.n[-1] == 90
    assert stats.ece(scores, correct) == pytest.approx(stats.ece(scores[shuffled], correct[shuffled]))


@pytest.mark.parametrize("bad", [([0.5, math.nan], [1, 0]), ([0.5], [1, 0])])
def test_scores_that_cannot_be_binned_are_errors(bad):
    with pytest.raises(ValueError, match="expected"):
        stats.ece(*bad)


@given(st.lists(st.tuples(st.floats(0.1, 1.0), st.booleans()), min_size=1, max_size=80))
@settings(max_examples=50, deadline=None)
def test_ece_holds_its_value(samples):
    scores, correct = zip(*samples, strict=True)
    interval = stats.ece(scores, correct)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1


CALIBRATED = {
    "calibrated": (lambda rng, n: rng.beta(5, 1, n) / 2 + 0.5, lambda c: c),
    "over-confident": (lambda rng, n: rng.beta(8, 1, n) / 2 + 0.5, lambda c: c - 0.1),
    "saturated": (lambda rng, n: np.ones(n), lambda c: c - 0.004),
    "one bad half": (lambda rng, n: rng.uniform(0.5, 1, n), lambda c: 0.5 + 0.4 * (c > 0.75)),
    "under-confident": (lambda rng, n: rng.uniform(0.8, 0.9, n), lambda c: 0 * c + 0.97),
    "very under-confident": (lambda rng, n: rng.uniform(0.5, 0.7, n), lambda c: 0 * c + 0.95),
}


@pytest.mark.parametrize("name", CALIBRATED)
@pytest.mark.parametrize("n", [60, 300, *(pytest.param(n, marks=pytest.mark.slow) for n in (40, 100, 2000))])
def test_ece_covers_the_error_of_its_bins(name, n):
    draw, chance = CALIBRATED[name]
    rng, trials = np.random.default_rng(0), 300
    missed_low = missed_high = 0
    for _ in range(trials):
        scores = draw(rng, n)
        p = chance(scores)
        interval = stats.ece(scores, rng.random(n) < p)
        edges = np.unique(np.quantile(scores, np.arange(1, min(15, n // 10)) / min(15, n // 10), method="higher"))
        bins = np.searchsorted(edges, scores, side="right")
        truth = sum(abs((p - scores)[bins == b].sum()) for b in np.unique(bins)) / n
        missed_low += interval.low > truth + 1e-9
        missed_high += interval.high < truth - 1e-9
    assert missed_low <= allowed(ALPHA / 2, trials) * trials
    assert missed_high <= allowed(ALPHA / 2, trials) * trials


def test_the_upper_limit_of_ece_covers_where_a_network_is_under_confident():
    """Confidence 0.6 and 0.95 right: with a bin's shorter side as its distance upward, too many limits lay below the truth."""
    rng, trials = np.random.default_rng(0), 600
    missed = 0
    for _ in range(trials):
        scores = rng.uniform(0.5, 0.7, 100)
        missed += stats.ece(scores, rng.random(100) < 0.95).high < 0.95 - scores.mean() - 1e-9
    assert missed <= allowed(ALPHA / 2, trials) * trials


def test_the_lower_limit_is_that_of_all_samples_where_a_network_is_too_sure_throughout():
    """900 samples, each 0.1 too sure: bin by bin the bias bound eats the error, all together it is beyond doubt."""
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.75, 0.95, 900)
    correct = rng.random(900) < scores - 0.1
    interval = stats.ece(scores, correct)
    accuracy = stats.clopper_pearson(int(correct.sum()), 900, 1 - ALPHA / 4)
    assert interval.low == pytest.approx(scores.mean() - accuracy.high)
    assert interval.low > 0.03
    assert stats.ece(1 - scores, ~correct).low == pytest.approx(interval.low), "too unsure by as much"


def test_the_lower_limit_is_that_of_the_bins_where_errors_cancel():
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.5, 1, 4000)
    correct = rng.random(4000) < np.where(scores > 0.75, scores - 0.2, scores + 0.2)
    interval = stats.ece(scores, correct)
    assert abs(correct.mean() - scores.mean()) < 0.02
    assert 0.1 < interval.low < 0.2 < interval.high


def test_no_samples_say_nothing():
    assert stats.ece([], []) == (None, 0.0, 1.0)
    assert stats.difference(0, 0, 3, 4) == (None, -1.0, 1.0)
    assert stats.mean_of_proportions([0, 0], [0, 0]) == (None, 0.0, 1.0)
