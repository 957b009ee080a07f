"""Activations."""

from __future__ import annotations

from torch import nn

from audit.model.pickled.layers.schema import Schema, among, axis, count, flag, limit, number, optional

_INPLACE = {"inplace": flag}
# Before torch 1.2 these were a Threshold at 0.
_THRESHOLD = {"threshold": among(0, 0.0), "value": among(0, 0.0)}

SCHEMAS = (
    Schema(nn.ReLU, _INPLACE, gone=_THRESHOLD),
    # Its limits are arguments of its own to the class that it is made from.
    Schema(nn.ReLU6, _INPLACE),
    *(Schema(kind, _INPLACE, older={"inplace": False}) for kind in (nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.SELU)),
    *(Schema(kind) for kind in (nn.Sigmoid, nn.Tanh, nn.LogSigmoid, nn.Softsign, nn.Tanhshrink, nn.Softmax2d)),
    *(Schema(kind, {"alpha": number, **_INPLACE}) for kind in (nn.ELU, nn.CELU)),
    Schema(nn.LeakyReLU, {"negative_slope": number, **_INPLACE}),
    Schema(nn.RReLU, {"lower": number, "upper": number, **_INPLACE}),
    Schema(nn.Hardtanh, {"min_val": limit, "max_val": limit, **_INPLACE}),
    Schema(nn.Threshold, {"threshold": number, "value": number, **_INPLACE}),
    Schema(nn.GELU, {"approximate": among("none", "tanh")}, older={"approximate": "none"}),
    Schema(nn.Softplus, {"beta": number, "threshold": number}),
    *(Schema(kind, {"lambd": number}) for kind in (nn.Hardshrink, nn.Softshrink)),
    *(Schema(kind, {"dim": optional(axis)}, older={"dim": None}) for kind in (nn.Softmax, nn.Softmin, nn.LogSoftmax)),
    Schema(nn.GLU, {"dim": axis}),
    Schema(nn.PReLU, {"num_parameters": count, "init": number}, older={"init": 0.25}),
)
