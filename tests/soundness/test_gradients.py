"""Networks whose gradients lie, each with a clean twin: robustness is *incomplete* for the one and *measured* for the other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import audit
from audit.result import CheckResult

pytestmark = pytest.mark.slow


class Digits(nn.Module):
    """A linear network over the pixels, good enough to be right, with a place for a defect on either side."""

    def __init__(self, net: nn.Module, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.net(self.before(x)))


def same(x: Tensor) -> Tensor:
    return x


def quantised(x: Tensor) -> Tensor:
    """Input rounded to 64 levels: the gradient is zero everywhere, the network is as brittle as before."""
    return (x * 64).round() / 64


def thermometer(x: Tensor) -> Tensor:
    """Quantised, with a gradient that is detached on top."""
    return x.detach()


def shattered(x: Tensor) -> Tensor:
    """Add a fine saw-tooth whose slope points anywhere but to the boundary."""
    return x + 0.01 * torch.sin(6000 * x)


def noisy(x: Tensor) -> Tensor:
    """Fresh noise in each forward: the attack aims at yesterday's network."""
    return x + 0.3 * torch.randn_like(x)


def saturated(z: Tensor) -> Tensor:
    """Probabilities in place of logits, rounded to 0 and 1 by a temperature of 1/500, by a path that cannot be undone."""
    e = torch.exp((z - z.amax(dim=1, keepdim=True)) * 500)
    return e / e.sum(dim=1, keepdim=True)


def rooted(x: Tensor) -> Tensor:
    """Return the same pixels by way of a root, whose slope at 0 is infinite and becomes NaN."""
    return x.sqrt() ** 2


class WrongBackward(torch.autograd.Function):
    """The identity, with the gradient shifted by two columns on its way back."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient.roll(2, dims=-1)


class NoisyBackward(torch.autograd.Function):
    """The identity, with noise in place of the gradient."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return torch.randn_like(gradient)


def half_detached(x: Tensor) -> Tensor:
    """Let the gradient through the left half of the picture only."""
    return torch.cat((x[..., :4], x[..., 4:].detach()), dim=-1)


def hard(z: Tensor) -> Tensor:
    """Labels in place of logits."""
    return torch.nn.functional.one_hot(z.argmax(dim=1), z.shape[1]).to(z.dtype)


DEFECTS = [
    pytest.param(rooted, same, "gradients_nonzero", id="gradient NaN"),
    pytest.param(same, hard, "gradient_found", id="hard labels"),
    pytest.param(quantised, lambda z: z * 1e-8, "gradients_nonzero", id="input rounded and outputs tiny"),
    pytest.param(quantised, same, "gradients_nonzero", id="input rounded"),
    pytest.param(thermometer, same, "gradients_nonzero", id="gradient cut"),
    pytest.param(noisy, same, "verified", id="random noise in the forward"),
    pytest.param(shattered, same, "gradient_true", id="gradient shattered"),
    pytest.param(WrongBackward.apply, same, "gradient_true", id="gradient shifted"),
    pytest.param(NoisyBackward.apply, same, "gradient_true", id="gradient replaced by noise"),
    pytest.param(half_detached, same, "gradient_true", id="gradient through half of the input"),
    pytest.param(same, saturated, "gradients_nonzero", id="probabilities saturated"),
]


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, audit.Dataset]:
    from sklearn.datasets import load_digits

    from audit.demo_nets import DigitsNet, fit

    bunch = load_digits()
    x = torch.tensor((bunch.images[:, None] / 16).astype(np.float32))
    y = torch.tensor(bunch.target)
    torch.manual_seed(0)
    net = DigitsNet()
    fit(net, x[:1200], y[:1200], epochs=15)
    return net, audit.Dataset(x[1200:1500], y[1200:1500])


def robustness(net: nn.Module, data: audit.Dataset, **options: object) -> audit.Result:
    settings = {"checks": ["robustness"], "profile": "quick", "eps": 0.1, "bounds": (0, 1), "device": "cpu"}
    policy = {"limit": [{"metric": "robustness.linf.accuracy", "min": 0.01}]}
    return audit.run(net, data, policy=policy, **{**settings, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(("before", "after", "evidence"), DEFECTS)
def test_a_gradient_that_lies_is_never_a_pass(trained, before, after, evidence: str):
    net, data = trained
    torch.manual_seed(0)
    result = robustness(Digits(net, before, after), data)
    check = result["robustness"]
    failed = [e.id for e in check.evidence if not e.ok]
    assert check.status == "incomplete", f"{check.answer} {[(e.id, e.value) for e in check.evidence]}"
    assert result.verdict == "incomplete"
    assert result.exit_code == 4
    assert not evidence or f"robustness.linf.{evidence}" in failed


def test_the_clean_twin_is_not_accused(trained):
    net, data = trained
    result = robustness(Digits(net, same, same), data)
    check = result["robustness"]
    assert check.status == "measured", check.reason
    assert result.policy[0].outcome in ("pass", "fail")


def test_dead_units_are_not_taken_for_a_masked_gradient():
    """Where a network is flat, because its units are off, the gradient is zero and tells the truth."""
    torch.manual_seed(0)
    x = torch.rand(300, 2)
    net = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 2))
    net[0].weight.data, net[0].bias.data = torch.tensor([[4.0, 0.0]]), torch.tensor([-2.0])
    net[2].weight.data, net[2].bias.data = torch.tensor([[-3.0], [3.0]]), torch.tensor([1.0, -1.0])
    with torch.no_grad():
        y = net(x).argmax(dim=1)
        flat = float((net[1](net[0](x)) == 0).float().mean())
    assert 0.3 < flat < 0.7
    result = robustness(net, audit.Dataset(x, y), eps=0.05)
    evidence = {e.id: e for e in result["robustness"].evidence}
    assert evidence["robustness.linf.gradients_nonzero"].ok, evidence["robustness.linf.gradients_nonzero"].detail


def test_a_proper_softmax_at_the_end_is_undone_and_not_accused(trained):
    net, data = trained
    plain = robustness(net, data)
    softmax = robustness(nn.Sequential(net, nn.Softmax(dim=1)), data)
    assert softmax["robustness"].status == "measured", softmax["robustness"].reason
    assert softmax["robustness"].metrics[0].value == plain["robustness"].metrics[0].value


def test_a_network_that_gets_nothing_right_is_not_robust():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    x = torch.rand(40, 1, 2, 2)
    with torch.no_grad():
        y = (net(x).argmax(dim=1) + 1) % 3
    result = robustness(net, audit.Dataset(x, y))
    assert result["robustness"].status == "incomplete"
    assert "no sample was right" in (result["robustness"].reason or "")


def test_a_weak_attack_is_found_out(trained):
    """One short step breaks nothing, and a limit on what it left standing would pass."""
    net, data = trained
    weak = {"settings": ["robustness.steps=1", "robustness.restarts=1", "robustness.step_size=0.001"]}
    result = robustness(net, data, **weak)
    assert result["robustness"].metric("robustness.linf.accuracy").low > 0.01
    assert result.verdict == "incomplete"
    assert "converged" in (result["robustness"].reason or "")


def test_a_radius_of_nothing_is_not_robustness(trained):
    net, data = trained
    result = robustness(net, data, eps=0.0)
    assert result.verdict == "incomplete"
    assert "next to nothing" in (result["robustness"].reason or "")


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1e4])
def test_the_scale_of_the_logits_does_not_make_a_network_look_robust(trained, scale: float):
    """With small logits a softmax is nearly even, and its loss pulls towards all classes at once, that is nowhere."""
    net, data = trained
    plain = robustness(net, data)["robustness"].metric("robustness.linf.accuracy")
    scaled = robustness(Digits(net, same, lambda z: z * scale), data)["robustness"]
    assert scaled.status == "measured", scaled.reason
    assert abs(scaled.metric("robustness.linf.accuracy").value - plain.value) <= 0.02


def test_luck_does_not_fail_a_network_that_nothing_breaks(trained):
    """One answer in twenty is thrown away at random: each forward breaks samples, though no change of the input does."""
    net, data = trained

    def unlucky(z: Tensor) -> Tensor:
        return torch.where(torch.rand(len(z), 1) < 0.05, -z, z)

    torch.manual_seed(0)
    policy = {"limit": [{"metric": "robustness.linf.accuracy", "min": 0.97}]}
    result = audit.run(Digits(net, same, unlucky), data, checks=["robustness"], eps=0.0001, bounds=(0, 1), policy=policy)
    assert result.verdict == "incomplete"


def test_a_radius_in_the_wrong_units_is_not_robustness():
    """Bytes from 0 to 255 with a radius of 8/255: no byte could change by so little."""
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (60, 1, 4, 4)).astype(np.uint8)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        y = net(torch.tensor(x, dtype=torch.float32)).argmax(dim=1)
    result = robustness(net, audit.Dataset(x, y), eps="8/255", bounds=None)
    assert result.verdict == "incomplete"
    assert "did you mean 8?" in (result["robustness"].reason or "")
    assert "whole-number" not in (robustness(net, audit.Dataset(x, y), eps=8, bounds=None)["robustness"].reason or "")


def test_a_tolerance_that_grows_with_the_errors_asks_nothing():
    """By default a regression output must move by one standard deviation of the residuals: a bad network is never broken."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(200, 4, generator=generator)
    y = x.sum(dim=1) + 0.2 * torch.randn(200, generator=generator)
    net = nn.Linear(4, 1)
    nn.init.constant_(net.weight, 1.0)
    nn.init.zeros_(net.bias)
    good = robustness(net, audit.Dataset(x, y), bounds=(0, 1))
    assert "no tolerance was stated" not in (good["robustness"].reason or "")
    bad = robustness(nn.Sequential(net, Times(-9.0)), audit.Dataset(x, y), bounds=(0, 1))
    assert bad.verdict == "incomplete"
    assert "--set robustness.tolerance" in (bad["robustness"].reason or "")


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def test_a_gradient_that_is_an_expanded_view_is_followed():
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(dim=1)

    x = torch.rand(50, 4)
    result = robustness(Sum(), audit.Dataset(x, x.sum(dim=1) + 0.01 * torch.randn(50)), bounds=(0, 1), task="regression")
    assert result["robustness"].status == "measured", result["robustness"].reason


# --- all that stands is of one class ----------------------------------------------------------------------------------


def of_one_class(check: CheckResult) -> list[str]:
    return [finding.severity for finding in check.findings if "is of class" in finding.title]


def always_three(logits: Tensor) -> Tensor:
    return logits + 1e3 * nn.functional.one_hot(torch.tensor(3), 10)


def test_a_constant_answer_is_not_taken_for_robustness(trained):
    """Each sample of the class that it always gives is right, and nothing breaks it."""
    net, data = trained
    check = robustness(Digits(net, same, always_three), data)["robustness"]
    assert check.metric("robustness.linf.accuracy").value > 0.05
    assert of_one_class(check) == ["high"]


@pytest.mark.parametrize("eps", [0.02, 0.15])
def test_a_network_of_which_several_classes_stand_is_not_accused(trained, eps: float):
    net, data = trained
    assert of_one_class(robustness(Digits(net, same, same), data, eps=eps)["robustness"]) == []


# --- units at rest ----------------------------------------------------------------------------------------------------


def test_units_that_wake_at_the_edge_of_the_ball_hide_nothing():
    """Where all units are at rest the gradient is zero and true; the output moves where they wake, and there it has one."""
    generator = np.random.default_rng(0)
    y = np.arange(200) % 2
    x = (np.where(y == 1, 0.7, 0.3)[:, None] + generator.normal(0, 0.02, (200, 16))).astype(np.float32)
    net = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.ones(4, 16) + 0.1 * torch.randn(4, 16, generator=torch.Generator().manual_seed(0)))
        net[0].bias.fill_(-6.0)  # at rest around 0.3 (a sum of 4.8), awake from 0.375 on
        net[2].weight.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4]))
        net[2].bias.copy_(torch.tensor([2.0, -2.0]))
    check = robustness(net.eval(), audit.Dataset(x, y), bounds=(0, 1), eps=0.1)["robustness"]
    evidence = {e.id: e for e in check.evidence}["robustness.linf.gradients_nonzero"]
    assert evidence.ok, evidence.detail
