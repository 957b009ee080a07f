"""Embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from audit.model.pickled.layers.schema import Layer, Schema, among, count, flag, meta, number, optional


def _index(value: Any) -> bool:
    return type(value) is int and -(2**31) < value < 2**31


def _weight(layer: Layer) -> dict[str, Any]:
    """Hand over a weight without numbers, so that none are drawn."""
    sizes = (layer.attributes["num_embeddings"], layer.attributes["embedding_dim"])
    return {"_weight": torch.empty(sizes, device=meta())}


_COMMON = {
    "num_embeddings": count,
    "embedding_dim": count,
    "padding_idx": optional(_index),
    "max_norm": optional(number),
    "norm_type": number,
    "scale_grad_by_freq": flag,
    "sparse": flag,
}

SCHEMAS = (
    Schema(nn.Embedding, _COMMON, _weight),
    Schema(
        nn.EmbeddingBag,
        {**_COMMON, "mode": among("sum", "mean", "max"), "include_last_offset": flag},
        _weight,
        older={"padding_idx": None},
    ),
)
