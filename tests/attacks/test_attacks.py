"""What holds for every attack: box, radius, re-check, survivors, counts, and independence of the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from audit.attacks import (
    APGD,
    FAB,
    FGSM,
    PGD,
    Attack,
    AttackOutput,
    HopSkipJump,
    MinimumNormAttack,
    Square,
    ThreatModel,
    UniformNoise,
    registry,
    verify,
)
from audit.errors import UsageError
from audit.model.wrapper import Model

# A new attack is one row here.
ATTACKS = [
    pytest.param(lambda norm, eps: PGD(norm, eps, steps=10, restarts=2), id="pgd"),
    pytest.param(lambda norm, eps: APGD(norm, eps, steps=8, targets=2), id="apgd"),
    pytest.param(lambda norm, eps: FAB(norm, eps, steps=6, targets=2), id="fab"),
    pytest.param(FGSM, id="fgsm"),
    pytest.param(lambda norm, eps: Square(norm, eps, queries=30), id="square"),
    pytest.param(lambda norm, eps: UniformNoise(norm, eps, draws=5), id="noise"),
    pytest.param(lambda norm, eps: HopSkipJump(norm, eps, queries=90, directions=5), id="hop_skip_jump"),
]
NORMS = ["linf", "l2"]


def small_net(seed: int = 0, inputs: int = 12, classes: int = 4) -> nn.Module:
    """Return a network without biases on centred inputs, so that every class is predicted now and then."""
    torch.manual_seed(seed)
    first, second = nn.Linear(inputs, 16, bias=False), nn.Linear(16, classes, bias=False)

    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = first, second

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x.flatten(1) - 0.5).relu())

    return Centred()


def samples(n: int = 70, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand((n, 3, 2, 2), generator=generator)
    with torch.no_grad():
        return x, small_net()(x).argmax(dim=1)


def model(batch_size: int = 256) -> Model:
    return Model(small_net(), bounds=(0, 1), device="cpu", batch_size=batch_size)


def test_registry_and_this_table_name_the_same_attacks():
    elsewhere = {name for name, kind in registry().items() if issubclass(kind, MinimumNormAttack)}  # test_minimum_norm.py
    elsewhere.add("sparse_search")  # of other norms: test_sparse_search.py
    assert sorted(set(registry()) - elsewhere) == sorted(row.id for row in ATTACKS if row.id not in elsewhere)


@pytest.mark.parametrize("make", ATTACKS)
@pytest.mark.parametrize("norm", NORMS)
@given(eps=st.floats(0.0, 1.0), seed=st.integers(0, 3))
@settings(max_examples=15, deadline=None)
def test_box_radius_and_label_hold_for_every_success(make, norm: str, eps: float, seed: int):
    x, y = samples(20, seed)
    out: AttackOutput = make(norm, eps)(model(), x, y)
    delta = (out.x_adv.double() - x.double()).flatten(1)
    distance = delta.abs().amax(dim=1) if norm == "linf" else delta.norm(dim=1)
    assert bool((out.x_adv >= 0).all())
    assert bool((out.x_adv <= 1).all())
    assert bool((distance[out.success] <= eps + 1e-6).all())
    with torch.no_grad():
        predicted = small_net()(out.x_adv).argmax(dim=1)
    assert bool((predicted[out.success] != y[out.success]).all())
    # An attack of minimum norm keeps the closest example that it found, however far; any other finds none beyond the radius.
    none = ~out.success if not isinstance(make(norm, eps), MinimumNormAttack) else torch.isinf(out.distance)
    assert torch.equal(out.x_adv[none], x[none])
    assert bool(torch.isinf(out.distance[none]).all())
    assert bool((out.distance[~out.success] > eps * (1 - 1e-6)).all())


@pytest.mark.slow
@pytest.mark.parametrize("make", ATTACKS)
@pytest.mark.parametrize("norm", NORMS)
def test_results_do_not_depend_on_the_batch_size(make, norm: str):
    x, y = samples(200)
    outs = [make(norm, 0.1 if norm == "linf" else 0.3)(model(size), x, y) for size in (1, 7, 256)]
    assert 0 < int(outs[0].success.sum()) < 200, "the radius decides nothing here, so the comparison would be empty"
    for other in outs[1:]:
        assert int((outs[0].success != other.success).sum()) == 0


@pytest.mark.parametrize("make", ATTACKS)
def test_results_belong_to_ids_not_to_positions(make):
    x, y = samples(100)
    ids = torch.arange(100)
    whole = make("linf", 0.1)(model(), x, y, ids=ids)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    shuffled = make("linf", 0.1)(model(), x[order], y[order], ids=ids[order])
    assert torch.equal(whole.success[order], shuffled.success)
    half = make("linf", 0.1)(model(), x[50:], y[50:], ids=ids[50:])
    assert torch.equal(whole.success[50:], half.success)


@pytest.mark.parametrize("make", ATTACKS)
def test_samples_that_are_wrong_already_cost_one_forward(make):
    x, y = samples()
    wrong = (y + 1) % 4
    out = make("linf", 0.1)(model(), x, wrong)
    assert bool(out.success.all())
    assert torch.equal(out.x_adv, x)
    assert (out.forwards, out.backwards) == (len(x), 0)
    assert bool((out.distance == 0).all())


def test_passes_are_counted_exactly():
    x, y = samples(30)
    attack = PGD("linf", 0.0, steps=7, restarts=2)  # radius 0: nothing breaks, so that every pass is made
    out = attack(model(), x, y)
    assert out.backwards == 30 * 7 * 2
    assert out.forwards == 30 * (1 + (7 + 1) * 2 + 1)  # clean, steps and last look a restart, re-check


def test_broken_samples_are_not_attacked_again():
    x, y = samples(200)
    once = PGD("linf", 0.3, steps=20)(model(), x, y)
    assert float(once.success.float().mean()) > 0.9
    assert once.backwards < 0.6 * 200 * 20


@pytest.mark.parametrize("make", ATTACKS)
def test_immutable_columns_and_scale_are_respected(make):
    torch.manual_seed(0)
    net = nn.Linear(4, 2)
    x = torch.rand(50, 4) * torch.tensor([1.0, 10.0, 100.0, 1.0])
    with torch.no_grad():
        y = net(x).argmax(dim=1)
    scale = np.array([0.3, 3.0, 30.0, 0.0])
    for norm in NORMS:
        threat = ThreatModel(
            norm, 0.5, np.zeros(4), np.array([1, 10, 100, 1.0]), scale=scale, mutable=np.array([True, False, True, True])
        )
        out = make(norm, 0.5)(Model(net, device="cpu"), x, y, threat=threat)
        assert int(out.success.sum()) > 0
        assert torch.equal(out.x_adv[:, [1, 3]], x[:, [1, 3]])
        moved = ((out.x_adv - x).double() / torch.tensor([0.3, 1, 30.0, 1]))[:, [0, 2]]
        size = moved.abs().amax(dim=1) if norm == "linf" else moved.norm(dim=1)
        assert float(size[out.success].max()) <= 0.5 + 1e-5


class Cheat(Attack):
    """An attack that leaves the ball and the box and claims success."""

    name = "cheat"

    def run(self, model, x, goal, ball, ids):
        from audit.attacks.base import Candidates

        found = Candidates.start(x)
        found.x_adv.copy_(x + 5.0)
        found.broken.fill_(True)
        return found


def test_an_attack_that_leaves_the_ball_is_not_believed():
    x, _ = samples()
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    nn.init.ones_(net[1].weight)
    net[1].weight.data[1] *= -1
    net[1].bias.data = torch.tensor([-20.0, 20.0])
    out = Cheat("linf", 0.1)(Model(net, bounds=(0, 1), device="cpu"), x, torch.ones(len(x), dtype=torch.long))
    assert not bool(out.success.any())
    assert bool(out.rejected.all())
    assert torch.equal(out.x_adv, x)


class Coin(nn.Module):
    """A network whose answer is a matter of luck."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack((torch.full((len(x),), 0.2), torch.randn(len(x)) - 1.0), dim=1)


def test_successes_that_a_fresh_forward_does_not_confirm_are_rejected():
    torch.manual_seed(0)
    x = torch.rand(400, 3, 1, 1)
    out = PGD("linf", 0.1, steps=10)(Model(Coin(), bounds=(0, 1), device="cpu"), x, torch.zeros(400, dtype=torch.long))
    assert int(out.rejected.sum()) > 50


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e4, 1e8])
def test_the_loss_does_not_underflow_where_the_network_is_sure(scale: float):
    """Cross-entropy's gradient is exactly zero in float32 once a network is sure enough: a figure that lies."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) * scale

    x, y = samples(200)
    plain = PGD("linf", 0.1, steps=20)(model(), x, y)
    scaled = PGD("linf", 0.1, steps=20)(Model(Scaled(), bounds=(0, 1), device="cpu", output="logits"), x, y)
    assert not bool(scaled.grad_zero.any())
    # Scaling sharpens the soft maximum over the other classes, so a few samples may go either way, but not a share of them.
    assert int(scaled.success.sum()) >= 0.9 * int(plain.success.sum())
    if scale == 1e8:
        leaf = x.clone().requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(Scaled()(leaf), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
        assert float((gradient == 0).flatten(1).all(dim=1).float().mean()) > 0.9, "the trap is gone: this test shows nothing"


def test_regression_is_attacked_up_and_down():
    net = nn.Linear(3, 1)
    nn.init.constant_(net.weight, 1.0)
    x = torch.rand(40, 3)
    # The box stops half of the samples on one side, so both directions are needed.
    x[:20], x[20:] = 0.0, 1.0
    with torch.no_grad():
        y = net(x)[:, 0]
    net_model = Model(net, task="regression", bounds=(0, 1), device="cpu")
    reached = PGD("linf", 0.2, steps=10, restarts=2)(net_model, x, y, tolerance=0.59)
    beyond = PGD("linf", 0.2, steps=10, restarts=2)(net_model, x, y, tolerance=0.61)
    assert bool(reached.success.all())
    assert not bool(beyond.success.any())


def test_stored_examples_are_verified_again():
    x, y = samples()
    out = PGD("linf", 0.2, steps=20)(model(), x, y)
    threat = ThreatModel("linf", 0.2, np.asarray(0.0), np.asarray(1.0))
    hit = out.success
    assert bool(verify(model(), x[hit], y[hit], out.x_adv[hit], threat).all())
    assert not bool(verify(model(), x[hit], y[hit], x[hit], threat).any())
    tight = ThreatModel("linf", 0.01, np.asarray(0.0), np.asarray(1.0))
    assert not bool(verify(model(), x[hit], y[hit], out.x_adv[hit], tight).any())


@pytest.mark.parametrize(
    ("eps", "message"), [(8.0, "did you mean 8/255"), (300.0, r"got 300$"), (-0.1, "between 0"), (float("nan"), "between 0")]
)
def test_a_radius_that_does_not_fit_the_box_is_an_error(eps: float, message: str):
    x, y = samples(4)
    with pytest.raises(UsageError, match=message):
        PGD("linf", eps)(model(), x, y)


def test_bad_parameters_are_errors():
    x, y = samples(4)
    with pytest.raises(UsageError, match="steps"):
        PGD(steps=0)
    for length in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="step_size"):
            PGD(step_size=length)
    with pytest.raises(UsageError, match="loss"):
        PGD(loss="cw")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="pgd is for linf, l2"):
        PGD("l7", 0.1)(model(), x, y)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="bounds"):
        PGD("linf", 0.1)(Model(small_net(), device="cpu"), x, y)
    with pytest.raises(UsageError, match="tolerance"):
        PGD("linf", 0.1)(Model(nn.Linear(3, 1), task="regression", bounds=(0, 1)), torch.rand(4, 3), torch.rand(4))


def test_a_wide_column_lends_no_slack_to_a_narrow_one():
    """Rounding of a column near 1e6 must not let a column of width 1e-3 leave its radius."""
    from audit.attacks.geometry import Ball

    ball = Ball("linf", 0.1, torch.tensor([0.0, -1.0]), torch.tensor([2e6, 1.0]), torch.tensor([1e5, 1e-3]))
    x = torch.tensor([[1e6, 0.0]])
    for norm in ("linf", "l2"):
        ball = Ball(norm, 0.1, ball.low, ball.high, ball.scale)
        assert bool(ball.allows(x, x + torch.tensor([[0.0, 0.99e-4]])))
        assert not bool(ball.allows(x, x + torch.tensor([[0.0, 1.01e-4]])))
        assert not bool(ball.allows(x, torch.tensor([[2.1e6, 0.0]])))
