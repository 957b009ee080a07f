"""Convolutions, plain and transposed, of one to three dimensions."""

from __future__ import annotations

from typing import Any

from torch import nn

from audit.model.pickled.layers.schema import Layer, Schema, Unfit, among, bias, count, optional, several, step

_PADDINGS = among("zeros", "reflect", "replicate", "circular")


def _padding(value: Any) -> bool:
    return among("same", "valid")(value) or several(step, 3)(value)


def _arguments(layer: Layer) -> dict[str, Any]:
    """Tell the bias; before torch 1.5 other paddings than zeros were kept, and done, in another way."""
    if "_reversed_padding_repeated_twice" not in layer.attributes and layer.attributes.get("padding_mode", "zeros") != "zeros":
        raise Unfit("was saved by a torch before 1.5, which pads in another way")
    return bias(layer)


_COMMON = {
    "in_channels": count,
    "out_channels": count,
    "kernel_size": several(step, 3),
    "stride": several(step, 3),
    "dilation": several(step, 3),
    "groups": count,
    "padding_mode": _PADDINGS,
}
_OLDER = {"padding_mode": "zeros", "_reversed_padding_repeated_twice": None}
_GONE = {"_padding_repeated_twice": optional(several(step, 6))}

SCHEMAS = (
    *(
        Schema(
            kind,
            {**_COMMON, "padding": _padding},
            _arguments,
            older=_OLDER,
            gone=_GONE,
            loose={"output_padding": several(among(0), 3), "transposed": among(False)},
        )
        for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    ),
    *(
        Schema(
            kind,
            {**_COMMON, "padding": several(step, 3), "output_padding": several(step, 3)},
            _arguments,
            older=_OLDER,
            gone=_GONE,
            loose={"transposed": among(True)},
        )
        for kind in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    ),
)
