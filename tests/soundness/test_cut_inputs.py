"""A gradient that is cut off for some of the inputs only: what the loss's moves along these say, and whom it accuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from audit.attacks import sanity
from audit.attacks.geometry import Norm, ThreatModel
from audit.model.wrapper import Model
from tests.soundness.test_gradients import Digits, robustness, same, trained  # noqa: F401  (a fixture)


def some_cut(x: Tensor) -> Tensor:
    """Let no gradient through to a fifth of the pixels, spread over the picture."""
    kept = (torch.rand(8, 8, generator=torch.Generator().manual_seed(1)) > 0.2).to(x)
    return x * kept + (x * (1 - kept)).detach()


def columns_cut(x: Tensor) -> Tensor:
    """Let no gradient through to two of the eight columns."""
    return torch.cat((x[..., :6], x[..., 6:].detach()), dim=-1)


def pooled(x: Tensor) -> Tensor:
    """Hand on the larger of the pixels around each: at most others the gradient is 0, and so is what they do."""
    return nn.functional.max_pool2d(x, 3, stride=1, padding=1)


def clamped(x: Tensor) -> Tensor:
    return x.clamp(0.25, 0.75)


def left_out(x: Tensor) -> Tensor:
    """Leave the right half of the picture out, forwards as well as backwards."""
    return torch.cat((x[..., :4], torch.zeros_like(x[..., 4:])), dim=-1)


def asked(net: nn.Module, data, norm: Norm = "linf", eps: float = 0.1):
    model = Model(net, bounds=(0, 1), device="cpu", output="logits", task="classification", classes=10)
    x, y = data.test.x[:100], torch.as_tensor(data.test.y[:100])
    threat = ThreatModel(norm, eps, np.array(0.0), np.array(1.0))
    unseen = sanity.moves_unseen(model, model.to_input(x), y, torch.arange(100), threat, seed=0).numpy()
    return sanity.gradient_whole("robustness.linf", unseen[np.isfinite(unseen)])


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 1.0), ("l1", 4.0)])
@pytest.mark.parametrize("before", [some_cut, columns_cut])
def test_inputs_that_move_the_loss_unseen_are_found(trained, before, norm: Norm, eps: float):  # noqa: F811
    net, data = trained
    assert not asked(Digits(net, before, same), data, norm, eps).ok


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.03), ("linf", 0.3), ("l2", 1.0), ("l1", 4.0)])
@pytest.mark.parametrize("before", [same, pooled, clamped, left_out])
def test_honest_networks_with_inputs_that_have_no_gradient_are_not_accused(trained, before, norm: Norm, eps: float):  # noqa: F811
    net, data = trained
    assert asked(Digits(net, before, same), data, norm, eps).ok


@pytest.mark.slow
@pytest.mark.parametrize("before", [some_cut, columns_cut])
def test_the_check_is_incomplete_and_its_figure_that_of_the_network(trained, before):  # noqa: F811
    net, data = trained
    masked, honest = (robustness(Digits(net, each, same), data)["robustness"] for each in (before, same))
    assert masked.status == "incomplete"
    assert "robustness.linf.gradient_whole" in [e.id for e in masked.evidence if not e.ok]
    figure, true = (check.metric("robustness.linf.accuracy").value for check in (masked, honest))
    assert figure <= true + 0.02


def test_the_ratio_is_known_for_a_linear_network():
    """A loss that is linear in two inputs of equal weight, one of them cut: in L∞ the ratio is the root of a half."""

    class Line(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack((x[:, 0] + x[:, 1].detach(), torch.zeros(len(x))), dim=1)

    model = Model(Line(), bounds=(-9, 9), device="cpu", output="logits", task="classification", classes=2)
    threat = ThreatModel("linf", 0.01, np.array(-9.0), np.array(9.0))
    y = torch.zeros(2000, dtype=torch.long)
    ratio = sanity.moves_unseen(model, torch.zeros(2000, 2), y, torch.arange(2000), threat, seed=0)
    assert float((ratio.square() ** -1).nanmean()) == pytest.approx(2.0, abs=0.1)  # by_all² is 0 or 4 times by_unseen²
