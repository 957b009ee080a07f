"""Projections, distances and random points of the four balls, against brute force and each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from audit.attacks.geometry import NORMS, Ball, ThreatModel, l1_projection, random_in_ball, size_of
from audit.errors import UsageError

RADII = {"linf": 0.2, "l2": 0.7, "l1": 1.5, "l0": 3.0}


def ball_of(norm, *, scale=None):
    low, high = torch.zeros(6), torch.ones(6)
    return Ball(norm, RADII[norm], low, high, None if scale is None else torch.tensor(scale))


@pytest.mark.parametrize("norm", NORMS)
def test_a_fixed_input_may_not_change_by_a_rounding_either(norm):
    """The bounds of a certificate hold it where it is, and its distance is infinite."""
    ball, x = ball_of(norm, scale=[1.0, 0.5, 2.0, 0.0, 1.0, 0.1]), torch.full((1, 6), 0.5)
    moved = x.clone()
    moved[0, 3] = torch.nextafter(x[0, 3], torch.tensor(1.0))
    assert bool(ball.allows(x, x))
    assert not bool(ball.allows(x, moved))
    assert bool(ball.distance(x, moved).isinf())


@pytest.mark.parametrize("norm", NORMS)
@given(seed=st.integers(0, 10_000), spread=st.sampled_from([0.1, 1.0, 10.0]), scaled=st.booleans())
@settings(max_examples=40, deadline=None)
def test_projected_points_are_allowed_and_allowed_points_stay(norm, seed, spread, scaled):
    generator = torch.Generator().manual_seed(seed)
    ball = ball_of(norm, scale=[1.0, 0.5, 2.0, 0.0, 1.0, 0.1] if scaled else None)
    x = torch.rand(20, 6, generator=generator)
    region = ball.around(x)
    move = torch.randn(20, 6, generator=generator) * spread
    if scaled:
        move[:, 3] = 0.0
    point = region.project(x + move)
    assert bool(ball.allows(x, point).all())
    if norm != "l2":  # there the box comes after the radius, so that a second projection could still move a point
        assert torch.allclose(region.project(point), point, atol=1e-5)
    assert torch.equal(region.take(torch.tensor([3, 5])).project((x + move)[[3, 5]]), point[[3, 5]])


@pytest.mark.parametrize("norm", NORMS)
def test_random_points_are_allowed_and_belong_to_ids(norm):
    ball, ids = ball_of(norm), torch.arange(200)
    x = torch.rand(200, 6, generator=torch.Generator().manual_seed(0))
    point = ball.around(x).random(ids, seed=1, purpose="test")
    assert bool(ball.allows(x, point).all())
    assert torch.equal(ball.around(x[7:9]).random(ids[7:9], seed=1, purpose="test"), point[7:9])
    assert not torch.equal(ball.around(x).random(ids, seed=2, purpose="test"), point)


def test_random_points_of_l1_are_uniform_in_the_ball():
    """The share of a ball of 6 dimensions within half its radius is 2⁻⁶, and no axis is favoured."""
    ball = Ball("l1", 2.0, torch.full((6,), -10.0), torch.full((6,), 10.0), None)
    noise = random_in_ball(torch.arange(20_000), (6,), ball, seed=0, purpose="test", draw=0)
    inner = (size_of(noise, "l1") <= 1.0).double().mean()
    assert abs(float(inner) - 2**-6) < 3 * np.sqrt(2**-6 / 20_000)
    assert float(noise.abs().mean(dim=0).std()) < 0.01
    assert abs(float(noise.mean())) < 0.01


@given(seed=st.integers(0, 10_000), eps=st.sampled_from([0.0, 0.1, 1.0, 3.0, 100.0]))
@settings(max_examples=25, deadline=None)
def test_the_l1_projection_is_the_nearest_point(seed, eps):
    rng = np.random.default_rng(seed)
    z, most = rng.normal(size=4), rng.uniform(0, 1.5, 4)
    ours = l1_projection(torch.tensor(z)[None], torch.tensor(most)[None], eps)[0].numpy()
    assert np.abs(ours).sum() <= eps + 1e-9
    assert (np.abs(ours) <= most + 1e-12).all()
    # In terms of absolute values the problem is a small quadratic one.
    found = minimize(
        lambda v: ((v - np.abs(z)) ** 2).sum(),
        np.zeros(4),
        bounds=[(0, m) for m in most],
        constraints=[{"type": "ineq", "fun": lambda v: eps - v.sum()}],
    )
    assert ((ours - z) ** 2).sum() <= found.fun + 1e-6


def test_a_change_of_an_l0_ball_is_one_however_small():
    ball = ball_of("l0")
    x = torch.full((1, 6), 0.5)
    assert bool(ball.allows(x, x + torch.tensor([[1e-7, 0.4, 0.4, 0, 0, 0]])))
    assert not bool(ball.allows(x, x + torch.tensor([[1e-6, 0.4, 0.4, 0.1, 0, 0]])))


@pytest.mark.parametrize(("norm", "reach"), [("linf", 1.0), ("l2", 6**0.5), ("l1", 6.0), ("l0", 6.0)])
def test_the_radius_that_reaches_every_corner(norm, reach):
    threat = ThreatModel(norm, 1.0, np.zeros(6), np.ones(6))
    assert threat.reach((6,)) == pytest.approx(reach)
    with pytest.raises(UsageError, match="eps must be between 0 and"):
        ThreatModel(norm, reach * 1.01, np.zeros(6), np.ones(6)).check((6,))
