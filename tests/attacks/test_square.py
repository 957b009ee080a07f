"""Square: its cost, its schedule, what a proposal changes in each layout, and that it needs no gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from audit.attacks import Square, ThreatModel
from audit.attacks.square import _bump
from audit.errors import UsageError
from audit.model.wrapper import Model
from tests.attacks.test_attacks import model, samples, small_net


def test_passes_are_the_queries_and_no_gradient_is_asked_for():
    x, y = samples(30)
    out = Square("linf", 0.0, queries=25)(model(), x, y)  # radius 0: nothing breaks, so that every query is made
    assert out.backwards == 0
    assert out.forwards == 30 * (1 + 25 + 1)  # clean, queries, re-check
    assert not bool(out.success.any())


def test_more_queries_break_more_and_the_search_raises_its_loss():
    x, y = samples(200)
    few, many = (Square("linf", 0.08, queries=n)(model(), x, y) for n in (5, 300))
    assert int(many.success.sum()) > int(few.success.sum()) > 0
    stood = torch.isfinite(many.loss_end) & ~many.success
    assert bool((many.loss_end[stood] >= many.loss_start[stood]).all())
    assert float((many.loss_end[stood] > many.loss_start[stood]).float().mean()) > 0.9


def test_the_share_that_changes_is_halved_on_the_papers_schedule():
    attack = Square(queries=10_001, p_init=0.8)
    # Of 10,000 iterations: Andriushchenko et al. 2020, section 4.1.
    for query, halved in [(0, 0), (10, 0), (11, 1), (50, 1), (51, 2), (201, 3), (501, 4), (1001, 5), (2001, 6), (8001, 9)]:
        assert attack._share(query, 10_000) == pytest.approx(0.8 / 2**halved)
    assert attack._share(101, 200) == attack._share(5050, 10_000)


@pytest.mark.parametrize("shape", [(12,), (1,), (6, 2), (1, 12), (12, 1), (3, 2, 2), (1, 3, 4), (2, 3, 2, 1), (1, 1, 1)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_inputs_of_any_shape_are_moved_to_the_edge(shape: tuple[int, ...], norm: str):
    size = int(np.prod(shape))
    net = nn.Sequential(nn.Flatten(), nn.Linear(size, 2, bias=False))
    net[1].weight.data = torch.stack((torch.ones(size), -torch.ones(size)))
    x = torch.full((4, *shape), 0.05)
    eps = 0.1 if norm == "linf" else 0.1 * size**0.5
    out = Square(norm, eps, queries=400)(Model(net, bounds=(-1, 1), device="cpu"), x, torch.zeros(4, dtype=torch.long))
    assert bool(out.success.all())
    assert out.x_adv.shape == x.shape


def test_a_search_asks_for_changes_only_where_they_may_be():
    seen: list[Tensor] = []

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.clone())
            return torch.stack((x.sum(dim=1) + 100, x.sum(dim=1) * 0), dim=1)

    x = torch.rand(3, 5)
    free = np.array([True, False, True, False, True])
    threat = ThreatModel("linf", 0.5, np.zeros(5), np.ones(5), scale=np.array([0.2, 0.2, 0.4, 0.2, 0.0]), mutable=free)
    watched = Model(Watch(), device="cpu", output="logits", classes=2)
    Square("linf", 0.5, queries=40)(watched, x, torch.zeros(3, dtype=torch.long), threat=threat)
    points = torch.stack([point for point in seen if len(point) == 3])
    assert torch.equal(points[:, :, [1, 3, 4]], x[:, [1, 3, 4]].expand(len(points), -1, -1))
    low = torch.maximum(x[:, [0, 2]] - torch.tensor([0.1, 0.2]), torch.zeros(()))
    high = torch.minimum(x[:, [0, 2]] + torch.tensor([0.1, 0.2]), torch.ones(()))
    moved = points[1:-1][:, :, [0, 2]]
    assert bool((torch.isclose(moved, low) | torch.isclose(moved, high)).all()), "L∞: every proposal lies at the edge"


def test_regression_is_pushed_up_and_down():
    net = nn.Linear(3, 1)
    nn.init.constant_(net.weight, 1.0)
    x = torch.rand(40, 3)
    # The box stops half of the samples on one side, so both directions are needed.
    x[:20], x[20:] = 0.0, 1.0
    line = Model(net, task="regression", bounds=(0, 1), device="cpu")
    clean = torch.zeros(40)
    assert bool(Square("linf", 0.2, queries=20)(line, x, clean, tolerance=0.59).success.all())
    assert not bool(Square("linf", 0.2, queries=20)(line, x, clean, tolerance=0.61).success.any())


@pytest.mark.parametrize("sides", [(1, 1), (1, 5), (5, 1), (3, 3), (5, 5), (4, 7), (25, 25)])
def test_bumps_have_unit_length_and_two_signs(sides: tuple[int, int]):
    bump = _bump(*sides)
    assert bump.shape == sides
    assert float(bump.norm()) == pytest.approx(1.0, abs=1e-5)
    if sides[0] > 1:
        assert float(bump.max()) > 0 > float(bump.min())


def test_bad_parameters_are_errors():
    with pytest.raises(UsageError, match="queries"):
        Square(queries=1)
    with pytest.raises(UsageError, match="p_init"):
        Square(p_init=0.0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_network_without_any_gradient_breaks_all_the_same(norm: str):
    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()

        def forward(self, x: Tensor) -> Tensor:
            return self.net((x * 64).round() / 64)

    x, y = samples(100)
    out = Square(norm, 0.2 if norm == "linf" else 0.7, queries=200)(Model(Rounded(), bounds=(0, 1), device="cpu"), x, y)
    assert float(out.success.float().mean()) > 0.5
