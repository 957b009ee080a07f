"""Dropout: nothing in evaluation mode, but its attributes are checked all the same."""

from __future__ import annotations

from torch import nn

from audit.model.pickled.layers.schema import Schema, flag, number

SCHEMAS = tuple(
    Schema(kind, {"p": number, "inplace": flag})
    for kind in (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
)
