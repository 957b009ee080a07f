"""Tables of few columns: a ball in them has few corners, one of which the attack begins at; honest networks are not accused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import audit
from audit.result import CheckResult


class Negated(torch.autograd.Function):
    """The identity, with a gradient that leads down instead of up."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return -gradient


class Rows(nn.Module):
    """A smooth network over the columns, after a place for a defect."""

    def __init__(self, columns: int, before: type[torch.autograd.Function] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.before = nn.Sequential(nn.Linear(columns, 16), nn.Tanh(), nn.Linear(16, 2)), before

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x if self.before is None else self.before.apply(x))


class Categories(nn.Module):
    """Looks up a learnt vector for the second column, a whole number, which it cuts off first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.net = nn.Embedding(10, 4), nn.Sequential(nn.Linear(7, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.cat((x[:, [0, 2, 3]], self.table(x[:, 1].long().clamp(0, 9))), dim=1))


def checked(net: nn.Module, columns: int, *, settings: tuple[str, ...] = ()) -> CheckResult:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, columns)).astype(np.float32)
    if columns > 1:
        x[:, 1] = rng.integers(0, 10, 150)
    with torch.no_grad():
        z = net.eval()(torch.as_tensor(x))
    y = z.argmax(dim=1).numpy()
    return audit.run(
        net,
        audit.Dataset(x, y),
        checks=["robustness"],
        profile="quick",
        eps=0.1,
        device="cpu",
        settings=["robustness.certify=false", *settings],
    )["robustness"]


@pytest.mark.slow
@pytest.mark.parametrize("columns", [1, 2, 5])
def test_a_start_at_the_worst_corner_is_no_masked_gradient(columns: int):
    check = checked(Rows(columns), columns)
    assert "robustness.linf.loss_rises" not in [e.id for e in check.evidence if not e.ok]


@pytest.mark.slow
@pytest.mark.parametrize("columns", [1, 2, 5])
def test_a_gradient_that_leads_down_is_found_out(columns: int):
    check = checked(Rows(columns, Negated), columns)
    failed = [e.id for e in check.evidence if not e.ok]
    assert check.status == "incomplete"
    assert "robustness.linf.gradient_true" in failed


@pytest.mark.slow
def test_declared_whole_numbers_are_not_asked_between_them():
    check = checked(Categories(), 4, settings=('robustness.integer="auto"',))
    assert [e.id for e in check.evidence if not e.ok] == []
    assert check.status == "measured", check.reason
