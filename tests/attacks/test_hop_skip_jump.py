"""HopSkipJump: the distance to a plane, its queries, its walk by decisions alone, and that noise belongs to ids."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from audit.attacks import ThreatModel
from audit.attacks.hop_skip_jump import HopSkipJump
from audit.errors import UsageError
from audit.model.wrapper import Model
from tests.attacks.test_attacks import model, samples, small_net


def plane(weights: Tensor, bias: float) -> nn.Linear:
    """Return a network whose two classes are split by the plane weights · x + bias = 0; class 1 lies above."""
    net = nn.Linear(len(weights), 2)
    net.weight.data = torch.stack((torch.zeros_like(weights), weights))
    net.bias.data = torch.tensor([0.0, bias])
    return net


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_comes_near_the_known_distance_to_a_plane(norm: str):
    weights = torch.tensor([1.0, -2.0, 0.5, 1.5, -1.0, 0.7])
    net, x = plane(weights, 0.3), 0.2 * torch.rand((40, 6), generator=torch.Generator().manual_seed(0)) - 0.1
    height = (x @ weights + 0.3).double()
    known = height.abs() / (weights.norm() if norm == "l2" else weights.abs().sum())
    wide = Model(net, bounds=(-1, 1), device="cpu", output="logits")
    out = HopSkipJump(norm, queries=3000)(wide, x, (height > 0).long())
    assert bool((out.distance >= known * (1 - 1e-5)).all()), "nearer than the plane itself"
    assert float((out.distance / known).median()) < 1.03
    assert float((out.distance / known).max()) < 1.25


def test_hard_labels_are_enough():
    class Hard(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.one_hot(self.net(x).argmax(dim=1), 4).float()

    x, y = samples(40)
    soft = HopSkipJump("l2", queries=400)(model(), x, y)
    hard = HopSkipJump("l2", queries=400)(Model(Hard(), bounds=(0, 1), device="cpu", output="logits", classes=4), x, y)
    assert torch.equal(soft.x_adv, hard.x_adv)
    assert hard.backwards == 0
    assert bool(torch.isfinite(hard.distance).all())


def test_more_queries_come_nearer_and_none_are_made_beyond_the_budget():
    x, y = samples(60)
    few, many = (HopSkipJump("l2", queries=n)(model(), x, y) for n in (150, 2000))
    assert float(many.distance.median()) < 0.9 * float(few.distance.median())
    assert many.forwards <= 60 * (1 + 2000 + 1)
    assert few.forwards <= 60 * (1 + 150 + 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_results_do_not_depend_on_batch_or_order(norm: str):
    x, y = samples(20)
    ids = torch.arange(20)
    outs = [HopSkipJump(norm, queries=150)(model(size), x, y) for size in (1, 7, 256)]
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    turned = HopSkipJump(norm, queries=150)(model(), x[order], y[order], ids=ids[order])
    for other in (*outs[1:], outs[2]):
        # A decision on the very boundary may go either way with the rounding of another batch size.
        assert float(torch.isclose(outs[0].distance, other.distance, rtol=1e-4).float().mean()) >= 0.9
    assert float(torch.isclose(outs[2].distance[order], turned.distance, rtol=1e-4).float().mean()) >= 0.9


def test_a_sample_leaves_within_the_radius_unless_it_is_to_go_on():
    x, y = samples(60)
    early = HopSkipJump("l2", 0.6, queries=2000)(model(), x, y)
    late = HopSkipJump("l2", 0.6, queries=2000, to_the_end=True)(model(), x, y)
    assert torch.equal(early.success, late.success)
    assert bool(early.success.any())
    assert early.forwards < 0.5 * late.forwards
    assert bool((late.distance <= early.distance + 1e-6).all())
    assert bool(torch.isfinite(late.distance).all()), "the closest example is kept beyond the radius, too"


def test_starting_points_of_the_user_are_taken_where_noise_finds_none():
    class Island(nn.Module):
        """Answers 1 in a small ball around a far point alone."""

        def forward(self, x: Tensor) -> Tensor:
            inside = 0.2 - (x - 0.9).flatten(1).norm(dim=1)
            return torch.stack((torch.zeros_like(inside), inside), dim=1)

    x, y = torch.full((5, 1, 6, 6), 0.2), torch.zeros(5, dtype=torch.long)
    island = Model(Island(), bounds=(0, 1), device="cpu", output="logits")
    alone = HopSkipJump("l2", queries=500)(island, x, y)
    helped = HopSkipJump("l2", queries=500, starts=torch.full((1, 1, 6, 6), 0.9))(island, x, y)
    assert not bool(torch.isfinite(alone.distance).any())
    assert bool((helped.distance < 0.7 * 6).all())


def test_tables_with_fixed_columns_and_units():
    net = plane(torch.tensor([1.0, 0.1, 5.0]), -1.0)
    x = torch.tensor([[0.2, 3.0, 0.01]]).repeat(20, 1)
    threat = ThreatModel(
        "l2", 1.0, np.zeros(3), np.array([2, 20, 1.0]), scale=np.array([0.5, 5.0, 0.2]), mutable=np.array([True, True, False])
    )
    out = HopSkipJump("l2", 1.0, queries=1500, to_the_end=True)(
        Model(net, device="cpu", output="logits"), x, torch.zeros(20).long(), threat=threat
    )
    assert torch.equal(out.x_adv[:, 2], x[:, 2])
    # In units: slope (0.5, 0.5), height 1 - 0.2 - 0.3 - 0.05.
    known = 0.45 / np.hypot(0.5, 0.5)
    assert float(out.distance.min()) >= known * (1 - 1e-4)
    assert float(out.distance.max()) < known * 1.05
    assert bool(out.success.all())


def test_regression_is_moved_either_way():
    net = nn.Linear(3, 1)
    nn.init.constant_(net.weight, 1.0)
    x = torch.cat((torch.zeros(10, 3), torch.ones(10, 3)))
    line = Model(net, task="regression", bounds=(0, 1), device="cpu")
    out = HopSkipJump("linf", queries=1000)(line, x, torch.zeros(20), tolerance=0.6)
    assert bool((out.distance > 0.2 - 1e-6).all())
    assert float(out.distance.max()) < 0.215


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes(classes: int):
    net = small_net(classes=classes)
    x, _ = samples(30)
    small = Model(net, bounds=(0, 1), device="cpu", output="logits")
    assert float(HopSkipJump("linf", queries=300)(small, x, small.predict(x)).distance.isfinite().float().mean()) > 0.9


def test_bad_parameters_are_errors():
    with pytest.raises(UsageError, match="queries"):
        HopSkipJump(queries=0)
    with pytest.raises(UsageError, match="hop_skip_jump is for linf, l2"):
        HopSkipJump("l1")
