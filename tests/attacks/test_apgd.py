"""APGD: closed forms for linear networks, checkpoints, targets, few classes, regression, batches, and what PGD finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from audit.attacks import APGD, PGD, ThreatModel
from audit.attacks.apgd import _Ascent, _Halving, ascend
from audit.attacks.goal import Goal
from audit.attacks.steps import step
from audit.errors import UsageError
from audit.model.wrapper import Model
from tests.attacks.test_attacks import model, samples, small_net
from tests.realdata import LeNet5, cnn_a, mnist, shared

DUAL = {"linf": 1, "l2": 2, "l1": float("inf")}


def linear(classes: int = 2, inputs: int = 20) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, classes).double()


def boundary(net: nn.Linear, x: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """Return labels, and distances to the boundary: the margin over the dual norm of the difference of the weights."""
    with torch.no_grad():
        z = net(x)
        y = z.argmax(dim=1)
        gap = net.weight[y][:, None] - net.weight[None]
        size = torch.linalg.vector_norm(gap, ord=DUAL[norm], dim=2)
        lead = (z.gather(1, y[:, None]) - z) / size
        return y, lead.scatter(1, y[:, None], torch.inf).amin(dim=1)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize(("loss", "targets", "classes"), [("ce", 0, 2), ("dlr", 9, 2), ("dlr", 9, 5), ("margin", 9, 3)])
def test_a_linear_network_breaks_exactly_beyond_its_margin(norm: str, loss: str, targets: int, classes: int):
    net = linear(classes)
    x = torch.randn((120, 20), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y, distance = boundary(net, x, norm)
    eps = float(distance.median())
    target = Model(net, bounds=(-1e3, 1e3), device="cpu")
    out = APGD(norm, eps, loss=loss, targets=targets, steps=60)(target, x, y)
    # In L1 the steps do not become as sparse as the one input that the closest example changes.
    clear = (distance - eps).abs() > (0.1 if norm == "l1" else 0.02) * eps
    assert torch.equal(out.success[clear], (distance < eps)[clear])


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@given(eps=st.floats(0.0, 1.0), targets=st.integers(0, 3))
@settings(max_examples=8, deadline=None)
def test_every_point_of_an_ascent_that_is_kept_lies_in_box_and_radius(norm: str, eps: float, targets: int):
    x, y = samples(20)
    network = model()
    network.resolve(x, y.numpy())
    ball = ThreatModel(norm, eps, 0.0, 1.0).on(x)
    found = APGD(norm, eps, steps=12, targets=targets).run(network, x, Goal("classification", y), ball, torch.arange(20))
    assert bool(ball.allows(x, found.x_adv).all())


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_results_do_not_depend_on_the_batch_size(norm: str):
    x, y = samples(25)
    eps = {"linf": 0.1, "l2": 0.3, "l1": 0.3}[norm]
    outs = [APGD(norm, eps, loss="dlr", targets=2, steps=8)(model(size), x, y) for size in (1, 7, 256)]
    for out in outs[1:]:
        assert torch.equal(out.success, outs[0].success)
        torch.testing.assert_close(out.x_adv, outs[0].x_adv, rtol=0, atol=1e-5)
    assert 0 < int(outs[0].success.sum()) < 25


def test_each_step_costs_one_pass_each_way():
    x, y = samples(50)
    out = APGD("linf", 0.0, steps=17)(model(), x, y)
    assert not bool(out.success.any())
    # A forward each for the check of the clean input, the 17 steps, the last point, and the re-check.
    assert (out.forwards, out.backwards) == (50 * 20, 50 * 17)


def test_regression_goes_up_and_down():
    net = nn.Linear(4, 1).double()
    with torch.no_grad():
        net.weight[:], net.bias[:] = 1.0, 0.0
    x = torch.tensor([[0.1] * 4, [0.9] * 4, [0.5] * 4], dtype=torch.float64)
    network = Model(net, task="regression", bounds=(0, 1), device="cpu")
    # The first can only go up by 0.6 (0.4 down), the second only down; the third 0.6 either way.
    out = APGD("linf", 0.15, steps=20)(network, x, x.sum(dim=1), tolerance=0.5)
    assert out.success.tolist() == [True, True, True]
    assert not bool(APGD("linf", 0.1, steps=20)(network, x, x.sum(dim=1), tolerance=0.5).success.any())


def test_a_step_halves_at_checkpoints_alone_and_only_where_the_loss_has_not_risen():
    x = torch.zeros((2, 3))
    ball = ThreatModel("linf", 1.0, -1.0, 1.0).on(x)
    state = _Ascent(ball.around(x), Goal("classification", torch.zeros(2, dtype=torch.int64)), x, "ce", 1.0, stop=True)
    pace = _Halving(state, 2.0, 100, 0.75)
    lengths = []
    for k in range(23):
        # The first sample's loss rises at each step, the second's at 2 of 3.
        state.losses = torch.tensor([float(k), k - 2.0 * (k % 3 == 2)])
        state.best_loss = torch.maximum(state.best_loss, state.losses)
        state.best = x + k
        pace.check(state, first=k == 0)
        lengths.append(pace.length.tolist())
    assert lengths[:22] == [[2.0, 2.0]] * 22
    assert lengths[22] == [2.0, 1.0]
    assert state.point[0].tolist() == [0.0] * 3
    assert state.point[1].tolist() == [22.0] * 3
    assert pace.period == 19


def test_an_ascent_from_given_points_towards_given_classes():
    net = linear(4)
    x = torch.randn((30, 20), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    network = Model(net, task="classification", classes=4, output="logits", bounds=(-1e3, 1e3), device="cpu")
    with torch.no_grad():
        y = net(x).argmax(dim=1)
    target = (y + 1) % 4
    region = ThreatModel("linf", 5.0, -1e3, 1e3).on(x).around(x)
    out = ascend(network, region, Goal("classification", y).towards(target), x, steps=30, kind="margin", stop=False)
    with torch.no_grad():
        reached = net(out.point)
        best = (net.weight[target] - net.weight[y]).abs().sum(dim=1) * 5.0 + (
            net(x).gather(1, target[:, None]) - net(x).gather(1, y[:, None])
        )[:, 0]
    lead = (reached.gather(1, target[:, None]) - reached.gather(1, y[:, None]))[:, 0]
    torch.testing.assert_close(lead, best)
    torch.testing.assert_close(out.loss_start, Goal("classification", y).margin(net(x).detach()))


def test_a_dead_gradient_is_told_and_the_attack_goes_on_elsewhere():
    class Dead(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            # Flat around the middle of the box, and steep where any input has gone far.
            score = (x - 0.9).relu().sum(dim=1)
            return torch.stack((0.01 - score, score), dim=1)

    x = torch.full((10, 6), 0.5)
    network = Model(Dead(), task="classification", classes=2, output="logits", bounds=(0, 1), device="cpu")
    narrow = APGD("linf", 0.1, steps=20)(network, x, torch.zeros(10, dtype=torch.int64))
    assert bool(narrow.grad_zero.all())
    wide = APGD("linf", 0.5, steps=40)(network, x, torch.zeros(10, dtype=torch.int64))
    assert bool(wide.success.all())


@pytest.mark.parametrize("bad", [{"steps": 0}, {"restarts": 0}, {"targets": -1}, {"loss": "nll"}])
def test_wrong_parameters_are_refused(bad: dict[str, object]):
    with pytest.raises(UsageError):
        APGD("linf", 0.1, **bad)


@pytest.mark.parametrize("classes", [2, 3])
def test_networks_of_few_classes(classes: int):
    net = small_net(classes=classes)
    x, _ = samples(40)
    with torch.no_grad():
        y = net(x).argmax(dim=1)
    network = Model(net, bounds=(0, 1), device="cpu")
    for loss in ("ce", "dlr", "margin"):
        assert int(APGD("linf", 0.4, loss=loss, targets=9, steps=20)(network, x, y).success.sum()) > 20


@pytest.mark.slow
def test_apgd_breaks_more_than_constant_steps_at_the_same_passes():
    """60 steps each at L∞ 0.35; 2.5 · eps / steps is the customary choice. It was 32 % against 45 % that stood."""
    x, y = mnist()
    target = Model.load(shared("models/mnist_lenet5_advtrained.pt"), arch=LeNet5, bounds=(0, 1), device="cpu")
    auto = APGD("linf", 0.35, steps=60)(target, x[:60], y[:60])
    plain = PGD("linf", 0.35, steps=60, step_size=2.5 * 0.35 / 60)(target, x[:60], y[:60])
    assert auto.backwards <= plain.backwards
    assert int(auto.success.sum()) >= int(plain.success.sum()) + 3


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_step_leaves_point_and_gradient_as_they_are(norm: str):
    """A network's own code may hand out a tensor that it keeps, or one number seen many times, as its gradient."""
    x = torch.rand((3, 4), generator=torch.Generator().manual_seed(0))
    region = ThreatModel(norm, 0.1, np.asarray(0.0), np.asarray(1.0)).on(x).around(x)
    point, gradient = x.clone(), torch.tensor(2.0).expand(3, 4)
    moved = step(point, gradient, region, 0.05)
    assert torch.equal(point, x)
    assert bool((gradient == 2.0).all())
    expected = 0.05 if norm == "linf" else 0.025
    torch.testing.assert_close(moved, (x + expected).clamp_max(1.0))


@pytest.mark.slow
def test_l1_on_a_real_network_starts_sparse():
    """The authors' APGD leaves 14 of these 50 images standing at L1 8 with 5 starts; dense starts leave 24 or so."""
    x, y = mnist()
    target = Model.load(shared("models/mnist_cnn_a_adv.pth"), arch=cnn_a, bounds=(0, 1), device="cpu")
    out = APGD("l1", 8.0, restarts=5)(target, x[:100:2], y[:100:2], ids=np.arange(0, 100, 2))
    assert int((~out.success).sum()) <= 16
