"""Linear layers and Identity."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from audit.model.pickled.layers.schema import Schema, bias, count

SCHEMAS = (
    Schema(nn.Identity),
    Schema(nn.Linear, {"in_features": count, "out_features": count}, bias),
    Schema(NonDynamicallyQuantizableLinear, {"in_features": count, "out_features": count}, bias),
    Schema(nn.Bilinear, {"in1_features": count, "in2_features": count, "out_features": count}, bias),
)
