"""Intervals over samples whose outcomes belong together: they cover, and are never of width 0."""

from __future__ import annotations

import numpy as np
import pytest

from audit.corruptions.intervals import bounded_mean, mean

DRAWS = 2000


def right_or_wrong(rng, p, n):
    return (rng.random(n) < p).astype(float)


def mostly_right(rng, p, n):
    """Most samples right under everything, the others under some: what corruptions do."""
    return np.where(rng.random(n) < p, 1.0, rng.random(n))


@pytest.mark.parametrize("n", [10, 30, 200])
@pytest.mark.parametrize(
    ("draw", "p", "truth"),
    [(right_or_wrong, p, p) for p in (0.5, 0.9, 0.99)] + [(mostly_right, p, (1 + p) / 2) for p in (0.5, 0.97)],
)
def test_the_interval_of_a_bounded_mean_covers(draw, p, truth, n):
    rng = np.random.default_rng(0)
    found = [bounded_mean(draw(rng, p, n), 0.0, 1.0) for _ in range(DRAWS)]
    covered = np.mean([i.low <= truth <= i.high for i in found])
    assert covered >= 0.95 - 3 * (0.95 * 0.05 / DRAWS) ** 0.5
    assert all(0 <= i.low <= i.value <= i.high <= 1 and i.low < i.high for i in found)


@pytest.mark.parametrize("n", [100, 1000])
def test_values_close_to_an_end_are_covered_on_both_sides(n):
    """Nine samples of ten right under everything, the others under nearly everything: little spread, far from the middle."""
    rng = np.random.default_rng(0)
    found = [bounded_mean(np.where(rng.random(n) < 0.9, 1.0, 0.9), 0.0, 1.0) for _ in range(DRAWS)]
    most = 0.025 + 3 * (0.025 * 0.975 / DRAWS) ** 0.5
    assert np.mean([i.high < 0.99 for i in found]) <= most
    assert np.mean([i.low > 0.99 for i in found]) <= most


@pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
def test_equal_values_are_not_known_exactly(value):
    inside = bounded_mean(np.full(500, value), 0.0, 1.0)
    assert inside.value == pytest.approx(value)
    assert 0.004 < inside.high - inside.low < 0.05
    assert bounded_mean([], -1.0, 1.0) == (None, -1.0, 1.0)


def test_outcomes_of_one_sample_are_not_counted_as_draws_of_their_own():
    """A sample that is right under all of 65 corruptions or under none tells as much as one outcome."""
    rng = np.random.default_rng(0)
    one = right_or_wrong(rng, 0.8, 300)
    many = np.repeat(one[:, None], 65, axis=1)
    assert bounded_mean(many.mean(axis=1), 0.0, 1.0) == bounded_mean(one, 0.0, 1.0)


def test_a_mean_without_bounds_is_students():
    values = np.random.default_rng(0).normal(3, 2, size=50)
    low, high = mean(values)[1:]
    half = 2.0096 * values.std(ddof=1) / 50**0.5
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), rel=1e-4)
    assert mean(values[:9])[1:] == (None, None)
    assert mean([1.0, np.nan]) == (None, None, None)
