"""Normalisations: by statistics from training (batch norm), or of each sample, group, channel or layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from audit.model.onnx.operators import Node, Operation, Unsupported, operator
from audit.model.onnx.operators.values import axes_of, axis_of, check, check_padded, data, integer, integers, number

_EPSILON = 1e-5


@operator("BatchNormalization")
def batch_normalization(node: Node) -> Operation:
    """Y = (X - mean) / sqrt(var + epsilon) scale + B, with the mean and variance of the file."""
    older = (*(("spatial",) if node.opset < 9 else ()), *(("is_test",) if node.opset < 7 else ("training_mode",)))
    if len([name for name in node.outputs if name]) > 1 or integer(node, "training_mode", 0):
        raise Unsupported("BatchNormalization in training mode")
    if node.opset < 7 and not integer(node, "is_test", 0):
        raise Unsupported("BatchNormalization in training mode (is_test 0)")
    check(node, 5, 5, ("epsilon", "momentum", *older), outputs=5)
    epsilon, spatial = number(node, "epsilon", _EPSILON), bool(integer(node, "spatial", 1))

    def compute(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Any:
        x, scale, bias, mean, variance = data("BatchNormalization", x, scale, bias, mean, variance)
        shape = tuple(x.shape[1:2] if spatial else x.shape[1:])
        for name, tensor in (("scale", scale), ("B", bias), ("mean", mean), ("var", variance)):
            if x.ndim < 2 or tuple(tensor.shape) != shape:
                raise ValueError(f"BatchNormalization: {name} of shape {tuple(tensor.shape)} for an input of {tuple(x.shape)}")
        alike = x.dtype == scale.dtype == bias.dtype == mean.dtype == variance.dtype
        # torch's own takes no gradient of the mean and the variance, which a file may compute from its input.
        if spatial and alike and not (mean.requires_grad or variance.requires_grad):
            y = functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)
        else:
            fit = (-1, *(1,) * (x.ndim - 2)) if spatial else shape
            mean, variance, scale, bias = (part.reshape(fit) for part in (mean, variance, scale, bias))
            y = ((x - mean) * torch.rsqrt(variance + epsilon) * scale + bias).to(x.dtype)
        return (y, *(None,) * (len(node.outputs) - 1)) if len(node.outputs) > 1 else y

    return Operation("batch_norm", compute)


def _standardised(x: Tensor, axes: Sequence[int], epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return (x - mean) / sqrt(variance + epsilon), the mean and the reciprocal of the root."""
    variance, mean = torch.var_mean(x, dim=list(axes), correction=0, keepdim=True)
    reciprocal = torch.rsqrt(variance + epsilon)
    return (x - mean) * reciprocal, mean, reciprocal


def _per_channel(op: str, part: Tensor, x: Tensor) -> Tensor:
    if x.ndim < 2 or tuple(part.shape) != (x.shape[1],):
        raise ValueError(f"{op}: a scale or bias of shape {tuple(part.shape)} for an input of {tuple(x.shape)}")
    return part.reshape(-1, *(1,) * (x.ndim - 2))


@operator("InstanceNormalization")
def instance_normalization(node: Node) -> Operation:
    """Bring each channel of each sample to mean 0 and variance 1, then scale and shift it."""
    check(node, 3, 3, ("epsilon",))
    epsilon = number(node, "epsilon", _EPSILON)

    def compute(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        x, scale, bias = data("InstanceNormalization", x, scale, bias)
        if x.ndim < 3:
            raise ValueError(f"InstanceNormalization: expected at least 3 axes, got {x.ndim}")
        y, _, _ = _standardised(x, range(2, x.ndim), epsilon)
        return y * _per_channel("InstanceNormalization", scale, x) + _per_channel("InstanceNormalization", bias, x)

    return Operation("instance_norm", compute)


@operator("LayerNormalization")
def layer_normalization(node: Node) -> Operation:
    """Bring what lies along the last axes, from `axis` on, to mean 0 and variance 1, then scale and shift it."""
    check(node, 2, 3, ("axis", "epsilon", "stash_type"), outputs=3)
    axis, epsilon = integer(node, "axis", -1), number(node, "epsilon", _EPSILON)
    _check_stash(node)

    def compute(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:
        x, scale, bias = data("LayerNormalization", x, scale, bias)
        first = axis_of("LayerNormalization", axis, x.ndim)
        shape = x.shape[first:]
        if len(node.outputs) == 1 and scale.shape == shape and (bias is None or bias.shape == shape):
            return functional.layer_norm(x, shape, scale, bias, epsilon)
        y, mean, reciprocal = _standardised(x, range(first, x.ndim), epsilon)
        y = _fitted("LayerNormalization", y * scale, x)
        y = y if bias is None else _fitted("LayerNormalization", y + bias, x)
        return y if len(node.outputs) == 1 else (y, mean, reciprocal)[: len(node.outputs)]

    return Operation("layer_norm", compute)


@operator("RMSNormalization")
def rms_normalization(node: Node) -> Operation:
    """Divide by the root of the mean square along the last axes, from `axis` on, then scale."""
    check(node, 2, 2, ("axis", "epsilon", "stash_type"))
    axis, epsilon = integer(node, "axis", -1), number(node, "epsilon", _EPSILON)
    _check_stash(node)

    def compute(x: Tensor, scale: Tensor) -> Tensor:
        x, scale = data("RMSNormalization", x, scale)
        first = axis_of("RMSNormalization", axis, x.ndim)
        square = (x * x).mean(tuple(range(first, x.ndim)), keepdim=True)
        return _fitted("RMSNormalization", x * torch.rsqrt(square + epsilon) * scale, x)

    return Operation("rms_norm", compute)


def _fitted(op: str, y: Tensor, x: Tensor) -> Tensor:
    if y.shape != x.shape:
        raise ValueError(f"{op}: a scale or bias is larger than the input of {tuple(x.shape)}")
    return y


def _check_stash(node: Node) -> None:
    # 1 and 11 stand for float32 and float64; anything narrower would lose what the weights have.
    if integer(node, "stash_type", 1) not in (1, 11):
        raise Unsupported(f"{node.op} with stash_type {integer(node, 'stash_type', 1)}")


@operator("GroupNormalization")
def group_normalization(node: Node) -> Operation:
    """Bring each group of channels to mean 0 and variance 1; scale and bias are a group's (opset 18) or a channel's (21)."""
    check(node, 3, 3, ("epsilon", "num_groups", *(("stash_type",) if node.opset >= 21 else ())))
    epsilon, groups = number(node, "epsilon", _EPSILON), integer(node, "num_groups", least=1)
    _check_stash(node)

    def compute(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        x, scale, bias = data("GroupNormalization", x, scale, bias)
        if x.ndim < 3 or x.shape[1] % groups:
            raise ValueError(f"GroupNormalization: an input of {tuple(x.shape)} does not fall into {groups} groups of channels")
        if node.opset < 21:
            if scale.shape != (groups,) or bias.shape != (groups,):
                raise ValueError(
                    f"GroupNormalization: before opset 21, scale and bias should be one number for each of {groups} groups"
                )
            each = x.shape[1] // groups
            scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
        y, _, _ = _standardised(x.reshape(len(x), groups, -1), [2], epsilon)
        scale, bias = (_per_channel("GroupNormalization", part, x) for part in (scale, bias))
        return y.reshape(x.shape) * scale + bias

    return Operation("group_norm", compute)


@operator("LRN")
def lrn(node: Node) -> Operation:
    """X / (bias + alpha / size times the sum of squares of the neighbouring channels) ** beta."""
    check(node, 1, 1, ("alpha", "beta", "bias", "size"))
    alpha, beta, bias = number(node, "alpha", 1e-4), number(node, "beta", 0.75), number(node, "bias", 1.0)
    size = integer(node, "size", least=1, most=2**20)

    def compute(x: Tensor) -> Tensor:
        (x,) = data("LRN", x)
        if x.ndim < 3:
            raise ValueError(f"LRN: expected at least 3 axes, got {x.ndim}")
        check_padded("LRN", (len(x), x.shape[1] + size, *x.shape[2:]))
        # The window reaches (size - 1) // 2 channels down, and one more up where size is even.
        squares = functional.pad((x * x).reshape(len(x), 1, x.shape[1], -1), (0, 0, (size - 1) // 2, size // 2))
        return x / (bias + alpha * functional.avg_pool2d(squares, (size, 1), 1).reshape(x.shape)) ** beta

    return Operation("local_response_norm", compute)


@operator("LpNormalization")
def lp_normalization(node: Node) -> Operation:
    """Divide by the L1 or L2 norm along one axis; where that is zero, so is the result."""
    check(node, 1, 1, ("axis", "p"))
    axis, p = integer(node, "axis", -1), integer(node, "p", 2, least=1, most=2)

    def compute(x: Tensor) -> Tensor:
        (x,) = data("LpNormalization", x)
        norm = torch.linalg.vector_norm(x, p, axis_of("LpNormalization", axis, x.ndim), keepdim=True)
        return x / torch.where(norm == 0, 1.0, norm)

    return Operation("normalize", compute)


@operator("MeanVarianceNormalization")
def mean_variance_normalization(node: Node) -> Operation:
    """(X - mean) / (standard deviation + 1e-9), by default with one mean a channel over all samples."""
    check(node, 1, 1, ("axes",))
    axes = integers(node, "axes", (0, 2, 3))

    def compute(x: Tensor) -> Tensor:
        (x,) = data("MeanVarianceNormalization", x)
        variance, mean = torch.var_mean(x, dim=axes_of("MeanVarianceNormalization", axes, x.ndim), correction=0, keepdim=True)
        return (x - mean) / (variance.sqrt() + 1e-9)

    return Operation("normalize", compute)
