"""The table of layers that a pickled network may be made of: one file a family, one `Schema` a class."""

from __future__ import annotations

from audit.model.pickled.layers import (
    activation,
    attention,
    containers,
    convolution,
    dropout,
    embedding,
    linear,
    normalisation,
    pooling,
    recurrent,
    shape,
)
from audit.model.pickled.layers.schema import Schema

_FAMILIES = (
    activation,
    attention,
    containers,
    convolution,
    dropout,
    embedding,
    linear,
    normalisation,
    pooling,
    recurrent,
    shape,
)

SCHEMAS: dict[str, Schema] = {schema.name: schema for family in _FAMILIES for schema in family.SCHEMAS}
# Its name from torch 1.4 to 1.8.
SCHEMAS["torch.nn.modules.linear._LinearWithBias"] = SCHEMAS["torch.nn.modules.linear.NonDynamicallyQuantizableLinear"]
