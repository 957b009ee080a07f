"""AutoAttack: its attacks, budgets and order, each on what the ones before left, at any number of classes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from audit.attacks import APGD, FAB, Square
from audit.attacks.base import Attack, Candidates
from audit.attacks.geometry import Ball
from audit.attacks.goal import Goal
from audit.errors import UsageError
from audit.evaluations.autoattack import AutoAttack, autoattack
from audit.model.wrapper import Model
from tests.attacks.test_apgd import boundary, linear
from tests.attacks.test_attacks import samples, small_net


def test_the_budgets_of_the_standard_version():
    first, second, third, fourth = (attack for _, attack in autoattack("linf", 0.1))
    assert [name for name, _ in autoattack("l2", 0.1)] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert isinstance(first, APGD)
    assert (first.loss, first.steps, first.restarts, first.targets) == ("ce", 100, 1, 0)
    assert isinstance(second, APGD)
    assert (second.loss, second.steps, second.restarts, second.targets) == ("dlr", 100, 1, 9)
    assert isinstance(third, FAB)
    assert (third.steps, third.targets, third.until_within) == (100, 9, True)
    assert isinstance(fourth, Square)
    assert fourth.queries == 5000


def test_l1_has_five_starts_and_targets_and_few_classes_fewer_targets():
    first, second, _ = (attack for _, attack in autoattack("l1", 1.0))
    assert isinstance(first, APGD)
    assert isinstance(second, APGD)
    assert (first.restarts, second.targets) == (5, 5)
    assert [getattr(attack, "targets", None) for _, attack in autoattack("linf", 0.1, classes=3)] == [0, 2, 2, None]
    with pytest.raises(UsageError, match="autoattack"):
        AutoAttack("l0", 3.0)


class Planted(Attack):
    """Claims the samples whose ids it was given, with points that it was given, and remembers which it saw."""

    name = "planted"

    def __init__(self, claimed: list[int], shift: float) -> None:
        super().__init__("linf", 0.1)
        self.claimed, self.shift = claimed, shift
        self.saw: list[int] = []

    def run(self, model: Model, x: Tensor, goal: Goal, ball: Ball, ids: Tensor) -> Candidates:
        self.saw = ids.tolist()
        found = Candidates.start(x)
        mask = torch.tensor([one in self.claimed for one in self.saw])
        found.broken[mask] = True
        found.x_adv[mask] = x[mask] + self.shift
        return found


def test_an_attack_sees_what_stands_and_an_unconfirmed_claim_spares_nobody():
    net = torch.nn.Linear(1, 2)
    with torch.no_grad():
        net.weight[:], net.bias[:] = torch.tensor([[-1.0], [1.0]]), torch.tensor([0.5, -0.5])
    model = Model(net, task="classification", classes=2, output="logits", bounds=(0, 1), device="cpu")
    x, y = torch.full((4, 1), 0.45), torch.zeros(4, dtype=torch.int64)
    whole = AutoAttack("linf", 0.1)
    # True, a lie (the point is not wrong), a break of the radius, and true again.
    whole.attacks = [Planted([0], 0.09), Planted([1], 0.01), Planted([2], 0.4), Planted([1, 3], 0.09)]
    out = whole(model, x, y)
    assert [attack.saw for attack in whole.attacks if isinstance(attack, Planted)] == [
        [0, 1, 2, 3],
        [1, 2, 3],
        [1, 2, 3],
        [1, 2, 3],
    ]
    assert out.success.tolist() == [True, True, False, True]
    assert not bool(out.rejected.any())


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_linear_network_breaks_exactly_beyond_its_margin(classes: int, norm: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("audit.evaluations.autoattack.STEPS", 30)
    monkeypatch.setattr("audit.evaluations.autoattack.QUERIES", 50)
    net = linear(classes)
    x = torch.randn((40, 20), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y, distance = boundary(net, x, norm)
    eps = float(distance.median())
    out = AutoAttack(norm, eps)(Model(net, bounds=(-1e3, 1e3), device="cpu"), x, y)
    clear = (distance - eps).abs() > 0.02 * eps
    assert torch.equal(out.success[clear], (distance < eps)[clear])
    assert bool((out.loss_end[out.success & torch.isfinite(out.loss_start)] > 0).all())


def test_results_do_not_depend_on_the_batch_size(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("audit.evaluations.autoattack.STEPS", 8)
    monkeypatch.setattr("audit.evaluations.autoattack.QUERIES", 20)
    x, y = samples(15)
    net = small_net().double()
    models = [Model(net, bounds=(0, 1), device="cpu", batch_size=size) for size in (1, 4, 256)]
    outs = [AutoAttack("linf", 0.06)(one, x.double(), y) for one in models]
    assert 0 < int(outs[0].success.sum()) < 15
    for out in outs[1:]:
        assert torch.equal(out.success, outs[0].success)
        assert (out.forwards, out.backwards) == (outs[0].forwards, outs[0].backwards)
