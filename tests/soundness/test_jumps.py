"""Networks that tell attacks from data: a robust face to whatever lies off the data's grid, the brittle network on it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import audit
from audit.attacks.geometry import NORMS, Norm, ThreatModel
from audit.attacks.jumps import continuous, jumps, levels
from tests.soundness.test_gradients import robustness, trained
from tests.soundness.test_maskings import failed, figure

__all__ = ["trained"]  # the fixture

SAMPLES = 60
LEVELS = 16  # of the digits' pixels


class TwoFaced(nn.Module):
    """Answers what lies off the grid by the nearest of the test samples, known by heart, with a true gradient."""

    def __init__(self, net: nn.Module, data: audit.Dataset, *, shares: float = 0.25) -> None:
        super().__init__()
        self.net, self.shares = net, shares
        self.known = torch.as_tensor(data.test.x).flatten(1)
        with torch.no_grad():
            self.labels = net(torch.as_tensor(data.test.x)).argmax(dim=1)

    def robust(self, x: Tensor) -> Tensor:
        near = -2 * (x.flatten(1)[:, None] - self.known).square().sum(dim=2)
        each = [near.masked_fill(self.labels != label, -1e4).logsumexp(dim=1) for label in range(10)]
        return torch.stack(each, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        off = ((x * LEVELS - (x * LEVELS).round()).abs() > 1e-3).flatten(1).float().mean(dim=1, keepdim=True)
        return torch.where(off > self.shares, self.robust(x), self.net(x))


class Robust(TwoFaced):
    """The robust face alone: what it says of itself is true."""

    def forward(self, x: Tensor) -> Tensor:
        return self.robust(x)


def rounded(net: nn.Module, bits: int) -> nn.Module:
    """Round each layer's outputs, straight through, as training for whole-number arithmetic does."""
    out, step = copy.deepcopy(net), 16.0 / 2**bits

    def straight_through(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + ((output / step).round() * step - output).detach()

    for layer in out.modules():
        if isinstance(layer, (nn.ReLU, nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(straight_through)
    return out


@pytest.fixture(scope="module")
def few(trained) -> tuple[nn.Module, audit.Dataset]:
    net, data = trained
    return net.eval(), audit.Dataset(data.test.x[:SAMPLES], data.test.y[:SAMPLES])


@pytest.mark.slow
@pytest.mark.parametrize("shares", [0.25, 0.0])
def test_a_network_that_tells_attacks_from_data_is_never_robust(few, shares: float):
    net, data = few
    check = robustness(TwoFaced(net, data, shares=shares), data)["robustness"]
    assert check.status == "incomplete", check.answer
    assert "robustness.linf.continuous" in failed(check)


@pytest.mark.slow
def test_a_network_that_is_robust_all_over_is_not_accused(few):
    net, data = few
    check = robustness(Robust(net, data), data)["robustness"]
    assert check.status == "measured", check.reason
    assert figure(check) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("eps", [0.1, 8 / 255])
def test_activations_rounded_to_eight_bits_are_not_accused(few, eps: float):
    net, data = few
    check = robustness(rounded(net, 8), data, eps=eps)["robustness"]
    assert failed(check) == []
    assert check.status == "measured", check.reason


@pytest.mark.slow
def test_examples_on_the_boundary_hold_alone(few):
    """In L1 the closest examples lie on the boundary itself, where a batch of one rounds to the other side."""
    net, data = few
    settings = {"norm": "l1", "eps": 3, "profile": "quick", "bounds": (0, 1), "device": "cpu"}
    check = audit.run(net, data, checks=["robustness"], **settings)["robustness"]
    evidence = {e.id: e for e in check.evidence}["robustness.l1.holds_alone"]
    assert evidence.ok, evidence.detail


@pytest.mark.parametrize("norm", NORMS)
def test_only_a_step_is_a_jump(norm: Norm):
    torch.manual_seed(0)
    x = (torch.rand(20, 1, 4, 4) * 8).round() / 8
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    grid = levels(x.numpy())
    assert grid is not None
    assert len(grid[0]) == 9

    class Off(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            off = ((x * 8 - (x * 8).round()).abs() > 1e-4).flatten(1).any(dim=1, keepdim=True)
            return torch.where(off, 3.0 - net(x), net(x))

    shares = []
    for each in (net, Off()):
        model = audit.Model(each, device="cpu", bounds=(0, 1), output="logits", task="classification")
        eps = {"linf": 0.2, "l2": 0.8, "l1": 2.0, "l0": 3.0}[norm]
        threat = ThreatModel(norm, eps, np.asarray(0.0), np.asarray(1.0))
        with torch.no_grad():
            spread = each(x).std(dim=0).numpy()
        found = jumps(model, x, torch.arange(20), threat, grid, spread, seed=0).numpy()
        shares.append(continuous("robustness.linf", found))
    assert [each.ok for each in shares] == [True, False]
    assert shares[0].value == 1.0
