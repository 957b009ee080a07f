"""Backward-pass approximation: values stay bit for bit, gradients pass, and what was replaced is named and put back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from audit.attacks import PGD
from audit.attacks.straight_through import approximated
from audit.model.wrapper import Model
from tests.attacks.test_attacks import samples, small_net


class Dead(torch.autograd.Function):
    """Identity whose gradient is zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 0.0


class Poisoned(torch.autograd.Function):
    """Halves the side of an image, and has a gradient of NaN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return x[..., ::2] * 1.0

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.full(ctx.shape, torch.nan)


class Layer(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Before(nn.Module):
    """A small network with something before it that cuts the gradient."""

    def __init__(self, cut: Callable[[Tensor], Tensor], inputs: int = 12) -> None:
        super().__init__()
        self.cut, self.net = cut, small_net(inputs=inputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.cut(x))


def one_hot_levels(x: Tensor) -> Tensor:
    """Write each input as one of four levels, one-hot, and read it again."""
    levels = torch.linspace(0, 1, 4)
    near = -((x[..., None] - levels) ** 2)
    return (nn.functional.one_hot(near.argmax(dim=-1), 4).float() * levels).sum(dim=-1)


CUTS = {
    "round": lambda x: (x * 16).round() / 16,
    "round in place": lambda x: (x * 16).round_() / 16,
    "floor": lambda x: torch.floor(x * 16) / 16,
    "floor division": lambda x: x // 0.0625 * 0.0625,
    "floor division in place": lambda x: x.clone().floor_divide_(0.0625) * 0.0625,
    "rounded division": lambda x: torch.div(x, 0.0625, rounding_mode="floor") * 0.0625,
    "sign": lambda x: (x - 0.5).sign() / 2 + 0.5,
    "comparison": lambda x: (x > 0.5).float(),
    "comparison below": lambda x: 1 - (x < 0.5).to(x.dtype),
    "mask": lambda x: x.detach() * 0 + (x > 0.5) * 1.0,
    "where": lambda x: torch.where(x > 0.5, 1.0, 0.0),
    "both": lambda x: ((x > 0.3) & ~(x > 0.9)).float(),
    "bytes": lambda x: (x * 255).to(torch.uint8).float() / 255,
    "whole numbers": lambda x: ((x * 255).long() // 16).float() / 16,
    "divided": lambda x: (x * 255).int() / 255,
    "argmax": one_hot_levels,
    "detach": lambda x: x.detach(),
    "data": lambda x: x.data,
}


@pytest.mark.parametrize("name", CUTS)
def test_functions_let_the_gradient_through_and_keep_their_values(name: str):
    net = Before(CUTS[name])
    model = Model(net, bounds=(0, 1), device="cpu", output="logits", classes=4)
    x, _ = samples(60)
    y = model.predict(x)
    # The floor division of torch has no derivative at all: its gradient is NaN.
    plain = PGD("linf", 0.2, steps=20)(model, x, y)
    leaf = x.clone().requires_grad_(True)
    values = net(leaf).detach()
    with approximated(model) as names:
        assert torch.equal(model.logits(leaf), values)
        gradient, _ = model.gradient(lambda z: z[:, 0] - z[:, 1], x)
        out = PGD("linf", 0.2, steps=20)(model, x, y)
    assert names
    assert bool(gradient.isfinite().all())
    assert bool(gradient.flatten(1).any(dim=1).all())
    stuck = plain.grad_nan if "floor division" in name else plain.grad_zero
    assert bool(stuck[~plain.success].all()), "the trap is gone: this test shows nothing"
    assert int(out.success.sum()) > int(plain.success.sum())
    assert model.module is net
    assert not net._forward_hooks


def test_a_step_that_does_not_cut_is_left_alone():
    model = Model(small_net(), bounds=(0, 1), device="cpu")
    x, _ = samples(20)
    own, _ = model.gradient(lambda z: z[:, 0], x)
    with approximated(model, x) as names:
        again, _ = model.gradient(lambda z: z[:, 0], x)
    assert names == []
    assert torch.equal(own, again)


def test_rounding_has_the_gradient_of_the_network_without_it():
    x, _ = samples(20)
    rounded = Model(Before(lambda x: x.round()), bounds=(0, 1), device="cpu", output="logits")
    with approximated(rounded):
        gradient, _ = rounded.gradient(lambda z: z[:, 2], x)
    honest, _ = Model(small_net(), bounds=(0, 1), device="cpu", output="logits").gradient(lambda z: z[:, 2], x.round())
    assert torch.equal(gradient, honest)


@pytest.mark.parametrize(
    ("function", "inputs", "said"),
    [(Dead.apply, 12, "cut (Layer): identity"), (Poisoned.apply, 6, "cut (Layer): differences")],
)
def test_layers_with_a_broken_backward_are_found_and_mended(function: Any, inputs: int, said: str):
    net = Before(Layer(function), inputs)
    model = Model(net, bounds=(0, 1), device="cpu", output="logits", classes=4)
    x, _ = samples(60)
    y = model.predict(x)
    plain = PGD("linf", 0.2, steps=20)(model, x, y)
    with approximated(model, x) as names:
        forwards = model.forwards
        gradient, _ = model.gradient(lambda z: z[:, 0], x)
        counted = model.forwards - forwards
        out = PGD("linf", 0.2, steps=20)(model, x, y)
    assert names == [said]
    assert bool(gradient.isfinite().all())
    assert counted == (60 if "identity" in said else 60 * 65)
    assert int(out.success.sum()) > int(plain.success.sum()) + 10
    assert not net.cut._forward_hooks
    assert model.module is net


def test_differences_point_where_the_gradient_does():
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(Dead.apply(x))

    x, _ = samples(30)
    model = Model(Whole(), bounds=(0, 1), device="cpu", output="logits", classes=4)
    with approximated(model, x) as names:
        estimate, _ = model.gradient(lambda z: z[:, 0] - z[:, 1], x)
    with approximated(model, x):
        alone, _ = model.gradient(lambda z: z[:, 0] - z[:, 1], x[7:8])
    honest, _ = Model(small_net(), bounds=(0, 1), device="cpu").gradient(lambda z: z[:, 0] - z[:, 1], x)
    cosine = nn.functional.cosine_similarity(estimate.flatten(1), honest.flatten(1))
    assert names == ["the network (Whole): differences"]
    assert float(cosine.min()) > 0.5
    assert torch.allclose(alone[0], estimate[7], rtol=1e-4)


def test_all_is_put_back_after_an_error():
    net = Before(Layer(Dead.apply))
    model = Model(net, bounds=(0, 1), device="cpu", output="logits", classes=4)
    with pytest.raises(KeyError), approximated(model, samples(4)[0]):
        raise KeyError
    assert model.module is net
    assert not net.cut._forward_hooks


class Turned(torch.autograd.Function):
    """Identity whose gradient points the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


class Undivided(torch.autograd.Function):
    """Identity whose backward asks torch for a derivative that it has not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        with torch.enable_grad():
            (x,) = ctx.saved_tensors
            leaf = x.detach().requires_grad_(True)
            return torch.autograd.grad((leaf // 0.1).sum(), leaf)[0]


@pytest.mark.parametrize("function", [Turned.apply, Undivided.apply], ids=["false gradient", "no derivative"])
def test_layers_whose_gradient_is_false_or_an_error_are_mended(function: Any):
    net = Before(Layer(function))
    model = Model(net, bounds=(0, 1), device="cpu", output="logits", classes=4)
    x, _ = samples(30)
    with approximated(model, x) as names:
        gradient, _ = model.gradient(lambda z: z[:, 0], x)
    honest, _ = Model(small_net(), bounds=(0, 1), device="cpu", output="logits").gradient(lambda z: z[:, 0], x)
    assert names == ["cut (Layer): identity"]
    assert torch.equal(gradient, honest)


def test_a_function_without_a_derivative_has_a_gradient_of_nan():
    model = Model(Before(lambda x: x // 0.1), bounds=(0, 1), device="cpu", output="logits", classes=4)
    gradient, losses = model.gradient(lambda z: z[:, 0], samples(5)[0])
    assert bool(gradient.isnan().all())
    assert bool(losses.isfinite().all())


@pytest.mark.parametrize(
    "squash", [lambda z: (30000 * z).softmax(dim=1), lambda z: (30000 * z).sigmoid(), lambda z: (30000 * z).exp()]
)
def test_what_is_saturated_gets_a_slope(squash: Callable[[Tensor], Tensor]):
    class Squashed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()

        def forward(self, x: Tensor) -> Tensor:
            z = self.net(x)
            return squash(z - z.amax(dim=1, keepdim=True) - 1)

    x, _ = samples(40)
    model = Model(Squashed(), bounds=(0, 1), device="cpu", output="logits", classes=4)
    values = model.logits(x)
    plain, _ = model.gradient(lambda z: z[:, 0] - z[:, 1], x)
    with approximated(model):
        assert torch.equal(model.logits(x), values)
        soft, _ = model.gradient(lambda z: z[:, 0] - z[:, 1], x)
    assert not bool(plain.flatten(1).any(dim=1).all()), "the trap is gone: this test shows nothing"
    assert bool(soft.flatten(1).any(dim=1).all())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_network_of_torchscript_is_mended_as_a_whole():
    net = torch.jit.trace(Before(lambda x: (x * 16).round() / 16), samples(4)[0])
    model = Model(net, bounds=(0, 1), device="cpu", output="logits", classes=4)
    x, _ = samples(20)
    with approximated(model, x) as names:
        gradient, _ = model.gradient(lambda z: z[:, 0], x)
    assert len(names) == 1
    assert names[0].endswith("differences")
    assert bool(gradient.flatten(1).any(dim=1).all())
    assert model.module is net


def test_a_layer_that_refuses_to_be_asked_is_left_alone():
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert float(x.detach().max()) <= 1, "expected values up to 1"
            return x

    model = Model(Before(Picky()), bounds=(0, 1), device="cpu", output="logits", classes=4)
    x, _ = samples(20)
    own, _ = model.gradient(lambda z: z[:, 0], x)
    with approximated(model, x):
        again, _ = model.gradient(lambda z: z[:, 0], x)
    assert torch.equal(own, again)
