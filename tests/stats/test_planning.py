"""Power and sizes: stated power is the exact one, by enumeration of every outcome and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest, multinomial

from audit import stats

ALPHA = 0.05


@pytest.mark.parametrize(("value", "limit"), [(0.9, 0.85), (0.9, 0.93), (1.0, 0.95), (0.0, 0.02), (0.5, 0.49)])
def test_the_planned_size_decides_with_the_stated_power(value, limit):
    interval = stats.clopper_pearson(round(value * 40), 40)
    n = stats.plan_size("clopper-pearson", value, 40, *interval[1:], 0.95, limit)
    k = np.arange(n + 1)
    low, high = stats.clopper_pearson_limits(k, np.full(n + 1, n))
    decided = (low > limit) if value > limit else (high < limit)
    assert binom.pmf(k, n, value)[decided].sum() >= 0.8
    k = np.arange(n // 2 + 1)
    low, high = stats.clopper_pearson_limits(k, np.full(len(k), n // 2))
    decided = (low > limit) if value > limit else (high < limit)
    assert binom.pmf(k, n // 2, value)[decided].sum() < 0.8


def test_the_planned_size_of_other_methods_follows_the_width():
    # the half width 0.1 at n = 100 has to fall to 0.05 · 1.96 / (1.96 + 0.84)
    n = stats.plan_size("other", 0.5, 100, 0.4, 0.6, 0.95, 0.55)
    assert n == pytest.approx(100 * (2 * 2.8016 / 1.96) ** 2, abs=2)


@pytest.mark.parametrize("case", [(0.5, 0.4, 0.6, 0.5), (None, None, None, 0.5), (0.5, None, None, 0.4), (0.5, 0.5, 0.5, 0.4)])
def test_no_size_to_plan_where_there_is_nothing_to_go_by(case):
    value, low, high, limit = case
    assert stats.plan_size("other", value, 100, low, high, 0.95, limit) is None


def enumerated_pairs(better: float, worse: float, n: int, shown) -> float:
    """Return the chance of all (gained, lost) of n pairs for which `shown` holds."""
    gained, lost = np.meshgrid(np.arange(n + 1), np.arange(n + 1))
    gained, lost = gained[gained + lost <= n], lost[gained + lost <= n]
    chance = multinomial.pmf(np.stack((gained, lost, n - gained - lost), axis=-1), n, (better, worse, 1 - better - worse))
    return float(sum(c for g, w, c in zip(gained.tolist(), lost.tolist(), chance, strict=True) if c > 1e-14 and shown(g, w)))


@pytest.mark.parametrize(
    ("better", "worse", "n"), [(0.05, 0.2, 40), (0.3, 0.1, 60), (0.0, 0.2, 30), (0.7, 0.3, 20), (1.0, 0.0, 12)]
)
def test_power_of_pairs_is_that_of_mcnemars_test(better, worse, n):
    def shown(gained, lost):
        return (
            binomtest(gained, gained + lost, 0.5, "greater" if better > worse else "less").pvalue <= 0.025
            if gained + lost
            else False
        )

    assert stats.power_of_pairs(better, worse, n) == pytest.approx(enumerated_pairs(better, worse, n, shown), abs=1e-9)


@pytest.mark.parametrize(
    ("better", "worse", "limit"), [(0.05, 0.05, -0.2), (0.02, 0.3, -0.1), (0.3, 0.1, 0.05), (0.0, 0.0, -0.1)]
)
def test_power_of_pairs_with_a_margin_is_that_of_the_interval(better, worse, limit):
    def shown(gained, lost):
        interval = stats.paired_difference(gained, lost, 40)
        return interval.low > limit if better - worse > limit else interval.high < limit

    assert stats.power_of_pairs(better, worse, 40, limit) == pytest.approx(enumerated_pairs(better, worse, 40, shown), abs=1e-9)


@pytest.mark.parametrize(
    ("p", "n1", "q", "n2", "limit"), [(0.9, 30, 0.5, 25, 0.0), (0.2, 20, 0.4, 40, 0.1), (1.0, 15, 0.0, 9, 0.2)]
)
def test_power_of_a_difference_is_that_of_the_interval(p, n1, q, n2, limit):
    power = 0.0
    for a in range(n1 + 1):
        for b in range(n2 + 1):
            interval = stats.difference(a, n1, b, n2)
            if interval.low > limit if p - q > limit else interval.high < limit:
                power += binom.pmf(a, n1, p) * binom.pmf(b, n2, q)
    assert stats.power_of_difference(p, n1, q, n2, limit) == pytest.approx(power, abs=1e-9)


@pytest.mark.parametrize(("share", "limit"), [(0.9, 0.8), (0.7, 0.8), (1.0, 0.9), (0.0, 0.1)])
def test_power_of_a_share_is_that_of_the_interval(share, limit):
    for n in (5, 60, 200):
        k = np.arange(n + 1)
        low, high = stats.clopper_pearson_limits(k, n)
        shown = low > limit if share > limit else high < limit
        assert stats.power_of_share(share, n, limit) == pytest.approx(binom.pmf(k, n, share)[shown].sum(), abs=1e-12)


@pytest.mark.slow
def test_realised_power_equals_stated_power():
    """2,000 data sets, drawn and tested one by one."""
    rng, trials = np.random.default_rng(0), 2000
    stated = stats.power_of_pairs(0.01, 0.03, 843), stats.power_of_difference(0.9, 700, 0.85, 700)
    table = rng.multinomial(843, (0.01, 0.03, 0.96), size=trials)
    pairs = np.mean([stats.mcnemar(int(g), int(w), "less") <= ALPHA / 2 for g, w, _ in table])
    first, second = rng.binomial(700, 0.9, trials), rng.binomial(700, 0.85, trials)
    apart = np.mean([stats.difference(int(a), 700, int(b), 700).low > 0 for a, b in zip(first, second, strict=True)])
    for told, seen in zip(stated, (pairs, apart), strict=True):
        assert abs(told - seen) <= 3 * math.sqrt(told * (1 - told) / trials)


@pytest.mark.parametrize(
    "power_of",
    [
        lambda n: stats.power_of_share(0.9, n, 0.85),
        lambda n: stats.power_of_pairs(0.01, 0.03, n),
        lambda n: stats.power_of_pairs(0.02, 0.02, n, -0.02),
        lambda n: stats.power_of_difference(0.9, n, 0.8, n),
    ],
)
def test_a_size_has_its_power_and_the_one_before_it_not(power_of):
    n = stats.size_for(power_of, 0.9)
    assert power_of(n) >= 0.9 > power_of(n - 1)


def test_large_plans_keep_small_memory_and_tiny_differences_have_none():
    assert stats.power_of_difference(0.5, 40_000, 0.49, 40_000) == pytest.approx(0.8, abs=0.02)
    assert stats.size_for(lambda n: stats.power_of_share(0.9, n, 0.85), most=100) is None
    with pytest.raises(ValueError, match="between 0 and 1"):
        stats.size_for(lambda n: 0.5, 1.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.power_of_share(0.9, 10, 0.9),
        lambda: stats.power_of_pairs(0.1, 0.1, 10),
        lambda: stats.power_of_difference(0.5, 10, 0.5, 10),
    ],
)
def test_nothing_shows_a_truth_to_differ_from_itself(call):
    with pytest.raises(ValueError, match="either side of itself"):
        call()


def test_impossible_plans_are_errors():
    with pytest.raises(ValueError, match="at least one sample"):
        stats.power_of_share(0.9, 0, 0.8)
    with pytest.raises(ValueError, match="add up to at most 1"):
        stats.power_of_pairs(0.6, 0.6, 10)
    with pytest.raises(ValueError, match="between 0 and 1"):
        stats.power_of_share(0.9, 10, 1.2)
    with pytest.raises(ValueError, match="between 0 and 1"):
        stats.power_of_difference(1.2, 10, 0.5, 10)
