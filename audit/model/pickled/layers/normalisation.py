"""Normalisations: over batches, instances, layers, groups and neighbours."""

from __future__ import annotations

from torch import nn

from audit.model.pickled.layers.schema import Schema, affine_bias, among, count, flag, number, optional, several, step

_BATCH = {
    "num_features": count,
    "eps": number,
    "momentum": optional(number),
    "affine": flag,
    "track_running_stats": flag,
}
_LAYER = {"normalized_shape": several(count, 16), "eps": number, "elementwise_affine": flag}
_NEIGHBOURS = {"size": step, "alpha": number, "beta": number, "k": number}

SCHEMAS = (
    *(
        Schema(kind, _BATCH, affine_bias)
        for kind in (
            nn.BatchNorm1d,
            nn.BatchNorm2d,
            nn.BatchNorm3d,
            nn.InstanceNorm1d,
            nn.InstanceNorm2d,
            nn.InstanceNorm3d,
        )
    ),
    # Alone, as it is here, it normalises as the plain one does; with a group of processes it would wait for the others.
    Schema(nn.SyncBatchNorm, {**_BATCH, "process_group": among(None)}, affine_bias),
    Schema(nn.LayerNorm, _LAYER, affine_bias),
    Schema(nn.RMSNorm, {**_LAYER, "eps": optional(number)}),
    Schema(nn.GroupNorm, {"num_groups": count, "num_channels": count, "eps": number, "affine": flag}, affine_bias),
    Schema(nn.LocalResponseNorm, _NEIGHBOURS),
    Schema(nn.CrossMapLRN2d, _NEIGHBOURS),
)
