"""Transfer: examples from a surrogate break a target that gives no gradient; a surrogate is the same every time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from audit.attacks import PGD
from audit.attacks.transfer import Transfer, fit_surrogate, refitted, weights
from audit.errors import UsageError
from audit.model.wrapper import Model
from tests.attacks.test_attacks import model, samples, small_net


class Rounded(nn.Module):
    """A small network whose inputs are rounded, and so without any gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x * 64).round() / 64)


def target(batch_size: int = 256) -> Model:
    return Model(Rounded(), bounds=(0, 1), device="cpu", output="logits", classes=4, batch_size=batch_size)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@given(eps=st.floats(0.0, 1.0), seed=st.integers(0, 3))
@settings(max_examples=10, deadline=None)
def test_box_radius_and_label_hold(norm: str, eps: float, seed: int):
    x, y = samples(20, seed)
    out = Transfer(norm, eps, surrogate=model(), steps=8)(target(), x, y)
    delta = (out.x_adv.double() - x.double()).flatten(1)
    distance = delta.abs().amax(dim=1) if norm == "linf" else delta.norm(dim=1)
    assert bool(((out.x_adv >= 0) & (out.x_adv <= 1)).all())
    assert bool((distance <= eps + 1e-6).all())
    assert bool((target().predict(out.x_adv[out.success]) != y[out.success]).all())


@pytest.mark.slow
def test_a_target_without_gradients_is_broken_through_its_surrogate():
    x, _ = samples(100)
    blind = target()
    y = blind.predict(x)
    reference, _ = samples(2000, seed=7)
    surrogate = fit_surrogate(blind, reference, steps=600)
    assert float((surrogate.predict(x) == y).float().mean()) > 0.75
    own = PGD("linf", 0.1, steps=20)(blind, x, y)
    before = (surrogate.forwards, surrogate.backwards)
    out = Transfer("linf", 0.1, surrogate=surrogate, steps=20)(blind, x, y)
    assert bool(own.grad_zero[~own.success].all()), "the trap is gone: this test shows nothing"
    assert int(out.success.sum()) > int(own.success.sum()) + 10
    assert out.backwards == 0
    assert out.forwards <= 100 * (1 + 4 + 1)
    assert surrogate.backwards > before[1]


def test_results_do_not_depend_on_the_batch_size():
    x, y = samples(60)
    outs = [Transfer("linf", 0.1, surrogate=model(), steps=10)(target(size), x, y) for size in (1, 7, 256)]
    assert 0 < int(outs[0].success.sum()) < 60
    for other in outs[1:]:
        assert torch.equal(outs[0].success, other.success)


def test_a_surrogate_is_the_same_every_time_and_leaves_the_generator_alone():
    x, _ = samples(100)
    blind = target()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, other = (fit_surrogate(blind, x, steps=20, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.logits(x), two.logits(x))
    assert not torch.equal(one.logits(x), other.logits(x))


@pytest.mark.slow
def test_tables_and_images_and_sequences_and_regression():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((300, 5), generator=generator) * torch.tensor([1.0, 10.0, 100.0, 1.0, 0.0])
    net = nn.Linear(5, 1)
    net.weight.data = torch.tensor([[1.0, 0.1, 0.01, 1.0, 0.0]])
    line = Model(net, task="regression", bounds=([0] * 5, [1, 10, 100, 1, 1]), device="cpu")
    surrogate = fit_surrogate(line, x, steps=800)
    assert float((surrogate.predict(x) - line.predict(x)).square().mean()) < 0.05 * float(line.predict(x).var())
    scaled = Transfer("linf", 0.4, surrogate=surrogate, steps=10)(line, x[:40], torch.zeros(40), tolerance=0.3)
    assert float(scaled.success.float().mean()) > 0.5
    for shape in [(3, 9, 9), (1, 4, 5), (6, 2)]:
        inputs = torch.rand((20, *shape), generator=generator)
        head = Model(nn.Sequential(nn.Flatten(), nn.Linear(inputs[0].numel(), 3)), bounds=(0, 1), device="cpu", output="logits")
        assert fit_surrogate(head, inputs, steps=3).logits(inputs).shape == (20, 3)


def test_what_does_not_fit_is_said():
    x, y = samples(4)
    blind, two = target(), Model(small_net(classes=2), bounds=(0, 1), device="cpu", output="logits", classes=2)
    alone, other = Transfer("linf", 0.1), Transfer("linf", 0.1, surrogate=two)
    with pytest.raises(UsageError, match="needs a surrogate"):
        alone(blind, x, y)
    with pytest.raises(UsageError, match="4 classes"):
        other(blind, x, y)
    with pytest.raises(UsageError, match="looks"):
        Transfer(steps=3, looks=4)
    with pytest.raises(UsageError, match="at least 2"):
        fit_surrogate(blind, x[:1])


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_surrogate_is_made_again_from_its_weights(task: str):
    x, _ = samples(60)

    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).sum(dim=1)

    blind = target() if task == "classification" else Model(Sum(), task=task, bounds=(0, 1), device="cpu")
    one = fit_surrogate(blind, x, steps=5)
    stored = {name: array.copy() for name, array in weights(one).items()}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = refitted(blind, tuple(x.shape[1:]), stored)
    assert torch.equal(torch.get_rng_state(), before)
    ask = (lambda m: m.values(x)) if task == "regression" else (lambda m: m.logits(x))
    assert torch.equal(ask(one), ask(again))
