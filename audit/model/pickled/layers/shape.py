"""Layers that pad, reshape, move or resize."""

from __future__ import annotations

from typing import Any

from torch import nn

from audit.model.pickled.layers.schema import (
    Layer,
    Schema,
    Unfit,
    among,
    axis,
    edges,
    flag,
    limit,
    number,
    one_or_several,
    optional,
    several,
    step,
    steps,
)

MOST_SCALE = 64


def _scale(value: Any) -> bool:
    return number(value) and 0 < value <= MOST_SCALE


def _size(value: Any) -> bool:
    """Accept the lengths that a dimension is split into, or names with lengths."""
    return several(_length, 16)(value)


def _length(value: Any) -> bool:
    return step(value) or (type(value) is int and value == -1)


def _upsample(layer: Layer) -> dict[str, Any]:
    """Leave out that the two old names fix how they interpolate, and hold the name that the layer goes by against its class."""
    if layer.attributes.get("name") != layer.name.name:
        raise Unfit("goes by the name of another class")
    return {}


_UPSAMPLE = {"size": optional(steps), "scale_factor": optional(one_or_several(_scale))}
_MODES = among("nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear", "area")
_BLOCKS = {"kernel_size": steps, "dilation": steps, "padding": steps, "stride": steps}

SCHEMAS = (
    Schema(nn.Flatten, {"start_dim": axis, "end_dim": axis}),
    Schema(nn.Unflatten, {"dim": axis, "unflattened_size": _size}),
    Schema(nn.PixelShuffle, {"upscale_factor": step}),
    Schema(nn.PixelUnshuffle, {"downscale_factor": step}),
    Schema(nn.ChannelShuffle, {"groups": step}),
    Schema(nn.Unfold, _BLOCKS),
    Schema(nn.Fold, {"output_size": steps, **_BLOCKS}),
    *(
        Schema(kind, {"padding": edges})
        for kind in (
            nn.ReflectionPad1d,
            nn.ReflectionPad2d,
            nn.ReflectionPad3d,
            nn.ReplicationPad1d,
            nn.ReplicationPad2d,
            nn.ReplicationPad3d,
            nn.CircularPad1d,
            nn.CircularPad2d,
            nn.CircularPad3d,
            nn.ZeroPad1d,
            nn.ZeroPad2d,
            nn.ZeroPad3d,
        )
    ),
    *(Schema(kind, {"padding": edges, "value": limit}) for kind in (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)),
    Schema(
        nn.Upsample,
        {**_UPSAMPLE, "mode": _MODES, "align_corners": optional(flag), "recompute_scale_factor": optional(flag)},
        _upsample,
        older={"recompute_scale_factor": True},
    ),
    *(
        Schema(kind, _UPSAMPLE, _upsample, older={"recompute_scale_factor": None})
        for kind in (nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
    ),
)
