"""Activations: functions of each number, and the softmaxes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from audit.model.onnx.operators import Node, Operation, operator
from audit.model.onnx.operators.values import axis_of, broadcast_shape, check, data, integer, number, text, together


def _plain(name: str, kind: str, function: Callable[[Tensor], Tensor]) -> None:
    """Enter an activation that has no attributes."""

    def build(node: Node) -> Operation:
        check(node, 1, 1)

        def compute(x: Tensor) -> Tensor:
            return function(data(name, x)[0])

        return Operation(kind, compute)

    operator(name)(build)


for _name, _kind, _function in (
    ("Sigmoid", "sigmoid", torch.sigmoid),
    ("Tanh", "tanh", torch.tanh),
    ("HardSwish", "hardswish", functional.hardswish),
    ("Softplus", "softplus", functional.softplus),
    ("Softsign", "softsign", functional.softsign),
    ("Mish", "mish", functional.mish),
    ("Erf", "erf", torch.erf),
):
    _plain(_name, _kind, _function)


def _steered(name: str, kind: str, function: Callable[..., Tensor], **defaults: float) -> None:
    """Enter an activation with attributes that are numbers."""

    def build(node: Node) -> Operation:
        check(node, 1, 1, tuple(defaults))
        given = {key: number(node, key, default) for key, default in defaults.items()}

        def compute(x: Tensor) -> Tensor:
            return function(data(name, x)[0], **given)

        return Operation(kind, compute)

    operator(name)(build)


def _leaky_relu(x: Tensor, alpha: float) -> Tensor:
    return functional.leaky_relu(x, alpha)


def _elu(x: Tensor, alpha: float) -> Tensor:
    return functional.elu(x, alpha)


def _celu(x: Tensor, alpha: float) -> Tensor:
    return functional.celu(x, alpha)


def _hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    return (alpha * x + beta).clamp(0.0, 1.0)


def _thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x > alpha, x, 0.0)


def _shrink(x: Tensor, lambd: float, bias: float) -> Tensor:
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, 0.0))


def _swish(x: Tensor, alpha: float) -> Tensor:
    return functional.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


_steered("LeakyRelu", "leaky_relu", _leaky_relu, alpha=0.01)
_steered("Elu", "elu", _elu, alpha=1.0)
_steered("Celu", "celu", _celu, alpha=1.0)
_steered("HardSigmoid", "hardsigmoid", _hard_sigmoid, alpha=0.2, beta=0.5)
_steered("ThresholdedRelu", "threshold", _thresholded_relu, alpha=1.0)
_steered("Shrink", "softshrink", _shrink, lambd=0.5, bias=0.0)
_steered("Swish", "silu", _swish, alpha=1.0)


@operator("Relu")
def relu(node: Node) -> Operation:
    """max(0, x), of integers, too."""
    check(node, 1, 1)
    return Operation("relu", lambda x: torch.relu(together("Relu", x)[0]))


@operator("Selu")
def selu(node: Node) -> Operation:
    """Gamma times an Elu; its constants have more digits from opset 6 on."""
    check(node, 1, 1, ("alpha", "gamma"))
    alpha = number(node, "alpha", 1.67326319217681884765625 if node.opset >= 6 else 1.6732)
    gamma = number(node, "gamma", 1.05070102214813232421875 if node.opset >= 6 else 1.0507)
    return Operation("selu", lambda x: gamma * functional.elu(data("Selu", x)[0], alpha))


@operator("Gelu")
def gelu(node: Node) -> Operation:
    """Return x times the normal distribution's probability of less than x, exactly or by a tanh."""
    check(node, 1, 1, ("approximate",))
    approximate = text(node, "approximate", "none", ("none", "tanh"))
    return Operation("gelu", lambda x: functional.gelu(data("Gelu", x)[0], approximate=approximate))


@operator("PRelu")
def prelu(node: Node) -> Operation:
    """Return x where it is positive, slope times x elsewhere; before opset 7 the slope is one number, or one a channel."""
    check(node, 2, 2)

    def compute(x: Tensor, slope: Tensor) -> Tensor:
        x, slope = data("PRelu", x, slope)
        if node.opset < 7 and slope.numel() > 1:
            if x.ndim < 2 or tuple(slope.shape) != (x.shape[1],):
                raise ValueError(f"PRelu: a slope of shape {tuple(slope.shape)} for an input of {tuple(x.shape)}")
            slope = slope.reshape(-1, *(1,) * (x.ndim - 2))
        elif node.opset < 7:
            slope = slope.reshape(())
        if broadcast_shape(x, slope) != x.shape:
            raise ValueError(f"PRelu: a slope of shape {tuple(slope.shape)} for an input of {tuple(x.shape)}")
        return torch.where(x >= 0, x, slope * x)

    return Operation("prelu", compute)


@operator("Clip")
def clip(node: Node) -> Operation:
    """min(max(x, min), max), with the bounds as attributes (before opset 11) or as inputs."""
    if node.opset < 11:
        check(node, 1, 1, ("max", "min"))
        most = torch.finfo(torch.float32).max
        least, largest = number(node, "min", -most), number(node, "max", most)
        return Operation("clamp", lambda x: data("Clip", x)[0].clamp(least, largest))
    check(node, 1, 3)

    def compute_within(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        for name, bound in (("min", low), ("max", high)):
            if bound is not None and (bound.numel() != 1 or bound.dtype.is_floating_point != x.dtype.is_floating_point):
                raise ValueError(f"Clip: {name} should be one number of the input's type")
        # One after the other: torch agrees with the specification where min is above max.
        if low is not None:
            x, low = together("Clip", x, low.reshape(()))
            x = x.clamp(min=low)
        if high is not None:
            x, high = together("Clip", x, high.reshape(()))
            x = x.clamp(max=high)
        return x

    return Operation("clamp", compute_within)


@operator("Softmax")
def softmax(node: Node) -> Operation:
    """Probabilities along one axis; before opset 13 along all axes from `axis` on, taken together."""
    return _softmax(node, "softmax", torch.softmax)


@operator("LogSoftmax")
def log_softmax(node: Node) -> Operation:
    """Logarithms of what Softmax returns."""
    return _softmax(node, "log_softmax", torch.log_softmax)


def _softmax(node: Node, kind: str, function: Callable[..., Tensor]) -> Operation:
    check(node, 1, 1, ("axis",))
    axis = integer(node, "axis", -1 if node.opset >= 13 else 1)

    def compute(x: Tensor) -> Tensor:
        (x,) = data(node.op, x)
        first = axis_of(node.op, axis, max(x.ndim, 1))
        # Where one axis is left, the values are those of softmax itself: what undoes a last softmax knows them by their memory.
        if node.opset >= 13 or first == x.ndim - 1:
            return function(x, dim=first)
        rows = math.prod(x.shape[:first])
        return function(x.reshape(rows, math.prod(x.shape[first:])), dim=1).reshape(x.shape)

    return Operation(kind, compute)
