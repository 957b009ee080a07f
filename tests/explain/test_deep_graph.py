"""Which networks Deep SHAP is asked about, and that those it is kept from would have been explained wrongly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name that everybody uses

import audit
from audit import demo_nets
from audit.errors import UsageError
from audit.explain import explain
from audit.explain.deep_graph import why_not_deep


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.b(F.relu(self.a(x)))


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.act = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2), nn.ReLU()

    def forward(self, x):
        return self.c(self.act(self.b(self.act(self.a(x)))))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Linear(4, 4), nn.Linear(4, 2), nn.ReLU()
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x):
        return self.b((x + self.act(self.a(x / self.scale))).flatten(1) * 0.5)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Linear(4, 4), nn.Linear(4, 2), nn.Sigmoid()

    def forward(self, x):
        return self.b(x * self.act(self.a(x)))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 2)

    def forward(self, x):
        return self.a(x) if x.sum() > 0 else self.a(-x)


class MyReLU(nn.ReLU):
    def forward(self, x):
        return x.clamp_min(0.5)


def sequence(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), *layers, nn.Linear(8, 2))


SHARED = nn.Tanh()
REFUSED = [
    (Functional(), "its step relu"),
    (Reused(), "runs more than once"),
    (sequence(nn.ReLU(inplace=True)), "works in place"),
    (sequence(SHARED, nn.Linear(8, 8), SHARED), "runs more than once"),
    (sequence(nn.LayerNorm(8)), "does not know LayerNorm"),
    (sequence(nn.SiLU()), "does not know SiLU"),
    (sequence(nn.Softmax(dim=1)), "does not know Softmax"),
    (sequence(MyReLU()), "does not know MyReLU"),
    (Gated(), "its step mul"),
    (Branching(), "cannot be read"),
]
TAKEN = [sequence(nn.ReLU()), sequence(nn.Tanh(), nn.Linear(8, 8), nn.GELU()), Residual(), demo_nets.DigitsNet(),
         demo_nets.TableNet(4)]  # fmt: skip


def model_of(net: nn.Module) -> audit.Model:
    return audit.Model(net, output="logits")


@pytest.mark.parametrize(("net", "reason"), REFUSED, ids=lambda v: v if isinstance(v, str) else type(v).__name__)
def test_what_shap_gets_wrong_is_refused(net: nn.Module, reason: str):
    told = why_not_deep(model_of(net))
    assert told is not None
    assert reason in told
    with pytest.raises(UsageError, match=r"shap\.deep does not fit"):
        explain(model_of(net), torch.randn(2, 4), method="shap.deep", baseline=torch.randn(4, 4))


@pytest.mark.parametrize("net", TAKEN, ids=lambda net: type(net).__name__)
def test_what_shap_gets_right_is_taken_and_adds_up(net: nn.Module):
    torch.manual_seed(0)
    model = model_of(net)
    assert why_not_deep(model) is None
    shape = (1, 8, 8) if isinstance(net, demo_nets.DigitsNet) else (4,)
    told = explain(model, torch.randn(3, *shape), method="shap.deep", baseline=torch.randn(6, *shape))
    assert told.completeness_gap.mean() < 1e-4 * max(1.0, np.abs(told.change).mean())


def test_a_softmax_at_the_end_is_no_step_for_shap():
    net = nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=1))
    assert "softmax" in str(why_not_deep(audit.Model(net, output="probabilities")))


def test_hooks_are_seen():
    net = sequence(nn.ReLU())
    net[0].register_forward_hook(lambda module, inputs, output: output.abs())
    assert "hooks" in str(why_not_deep(model_of(net)))


def test_shap_is_wrong_without_a_word_on_a_function():
    """The reason for the whole file: on F.relu shap's values are plain gradients, and do not add up."""
    from shap import DeepExplainer

    torch.manual_seed(0)
    net, x, background = Functional().eval(), 3 * torch.randn(8, 4), 3 * torch.randn(6, 4)
    values = np.asarray(DeepExplainer(net, background).shap_values(x, check_additivity=False))
    change = (net(x) - net(background).mean(dim=0)).detach().numpy()
    assert np.abs(values.sum(axis=1) - change).mean() > 0.1 * np.abs(change).mean()
