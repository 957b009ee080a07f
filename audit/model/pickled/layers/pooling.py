"""Pooling, plain and adaptive, of one to three dimensions. Fractional pooling draws at random and is left out."""

from __future__ import annotations

from torch import nn

from audit.model.pickled.layers.schema import Schema, flag, number, one_or_several, optional, step, steps

_MAX = {
    "kernel_size": steps,
    "stride": optional(steps),
    "padding": steps,
    "dilation": steps,
    "return_indices": flag,
    "ceil_mode": flag,
}
_AVERAGE = {
    "kernel_size": steps,
    "stride": optional(steps),
    "padding": steps,
    "ceil_mode": flag,
    "count_include_pad": flag,
}
_AVERAGE_OLDER = {"padding": 0, "ceil_mode": False, "count_include_pad": True}
_POWER = {"norm_type": number, "kernel_size": steps, "stride": optional(steps), "ceil_mode": flag}
_ADAPTIVE = {"output_size": one_or_several(optional(step))}

SCHEMAS = (
    *(Schema(kind, _MAX) for kind in (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)),
    Schema(nn.AvgPool1d, _AVERAGE),
    *(
        Schema(
            kind,
            {**_AVERAGE, "divisor_override": optional(step)},
            older={"divisor_override": None, **(_AVERAGE_OLDER if kind is nn.AvgPool3d else {})},
        )
        for kind in (nn.AvgPool2d, nn.AvgPool3d)
    ),
    *(Schema(kind, _POWER) for kind in (nn.LPPool1d, nn.LPPool2d, nn.LPPool3d)),
    *(Schema(kind, _ADAPTIVE) for kind in (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)),
    *(
        Schema(kind, {**_ADAPTIVE, "return_indices": flag})
        for kind in (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
    ),
)
