"""The losses: scale-free where they say so, targeted where they are asked to be, and of a use at any number of classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from audit.attacks import APGD
from audit.attacks.goal import Goal
from audit.errors import UsageError
from audit.model.wrapper import Model


def logits(classes: int, n: int = 40, seed: int = 0) -> Tensor:
    return torch.randn((n, classes), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(goal: Goal, z: Tensor, kind: str) -> Tensor:
    leaf = z.clone().requires_grad_(True)
    (out,) = torch.autograd.grad(goal.loss(leaf, 1.0, kind).sum(), leaf)
    return out


def test_dlr_is_equation_6_and_its_targeted_form_equation_8():
    z = torch.tensor([[5.0, 1.0, 3.0, 2.0, 0.0]], dtype=torch.float64)
    goal = Goal("classification", torch.tensor([0]))
    assert float(goal.loss(z, 1.0, "dlr")) == pytest.approx(-(5 - 3) / (5 - 2))
    assert float(goal.towards(torch.tensor([4])).loss(z, 1.0, "dlr")) == pytest.approx(-(5 - 0) / (5 - (2 + 1) / 2))


@pytest.mark.parametrize("classes", [2, 3, 4, 7])
@pytest.mark.parametrize("kind", ["ce", "dlr", "margin"])
@pytest.mark.parametrize("targeted", [False, True])
def test_gradients_point_the_same_way_at_every_scale(classes: int, kind: str, targeted: bool):
    z = logits(classes)
    goal = Goal("classification", z.argmax(dim=1))
    if targeted:
        goal = goal.towards(z.argmin(dim=1))
    directions = [gradient(goal, z * scale, kind) for scale in (1.0, 1e4, 1e-6)]
    for direction in directions:
        length = direction.norm(dim=1, keepdim=True)
        assert bool((length > 0).all())
        torch.testing.assert_close(direction / length, directions[0] / directions[0].norm(dim=1, keepdim=True))


@pytest.mark.parametrize("classes", [2, 3, 4, 7])
@pytest.mark.parametrize("kind", ["ce", "dlr", "margin"])
def test_a_targeted_loss_rises_with_its_target_and_falls_with_the_label(classes: int, kind: str):
    z = logits(classes)
    y, target = z.argmax(dim=1), z.argmin(dim=1)
    slope = gradient(Goal("classification", y).towards(target), z, kind)
    assert bool((slope.gather(1, target[:, None]) > 0).all())
    if kind != "dlr" or classes == 2:  # the label's logit is in the gap that DLR divides by, too
        assert bool((slope.gather(1, y[:, None]) < 0).all())


def test_a_target_does_not_change_what_is_broken_nor_the_margin():
    z = logits(5)
    goal = Goal("classification", torch.zeros(len(z), dtype=torch.int64))
    aimed = goal.towards(torch.full((len(z),), 3))
    assert torch.equal(goal.broken(z), aimed.broken(z))
    assert torch.equal(goal.margin(z), aimed.margin(z))
    assert torch.equal(aimed.take(torch.arange(7)).loss(z[:7]), aimed.loss(z)[:7])


def test_nearest_classes_leave_the_label_out_and_come_in_order():
    z = torch.tensor([[1.0, 5.0, 3.0, 2.0]])
    goal = Goal("classification", torch.tensor([1]))
    assert goal.nearest(z, 9).tolist() == [[2, 3, 0]]
    assert goal.nearest(z, 1).tolist() == [[2]]


def test_a_targeted_loss_without_a_target_says_so():
    goal = Goal("classification", torch.tensor([0]))
    with pytest.raises(UsageError, match="towards"):
        goal._lead(torch.zeros(1, 3))


@given(
    flips=st.lists(st.floats(-5, -0.1), min_size=2, max_size=5),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
)
@settings(max_examples=30, deadline=None)
def test_multilabel_dlr_is_free_of_scale(flips: list[float], scale: float):
    z = torch.tensor([flips], dtype=torch.float64)
    goal = Goal("multilabel", torch.zeros_like(z))
    assert float(goal.loss(z * scale, 1.0, "dlr")) == pytest.approx(float(goal.loss(z, 1.0, "dlr")))


class Scaled(nn.Module):
    """Two layers whose logits are multiplied by a factor."""

    def __init__(self, classes: int, factor: float) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second, self.factor = nn.Linear(10, 30), nn.Linear(30, classes), factor

    def forward(self, x: Tensor) -> Tensor:
        return self.second((self.first(x - 0.5) * 3).relu()) * self.factor


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize(("loss", "targets"), [("ce", 0), ("dlr", 0), ("dlr", 9), ("margin", 2), ("ce", 2)])
def test_the_scale_of_the_logits_does_not_change_what_breaks(classes: int, loss: str, targets: int):
    x = torch.rand((60, 10), generator=torch.Generator().manual_seed(1))
    found = []
    for factor in (1.0, 1e4, 1e-6):
        net = Scaled(classes, factor)
        with torch.no_grad():
            y = net(x).argmax(dim=1)
        model = Model(net, task="classification", classes=classes, output="logits", bounds=(0, 1), device="cpu")
        out = APGD("linf", 0.05, loss=loss, targets=targets, steps=20)(model, x, y)
        assert not bool(out.grad_zero[torch.isfinite(out.loss_start)].any())
        found.append(out.success.numpy())
    assert 0 < found[0].sum() < len(x)
    for other in found[1:]:
        assert np.mean(other != found[0]) <= 1 / 60
