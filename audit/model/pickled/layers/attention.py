"""Attention, and the transformer's encoder and decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from audit.model.pickled.layers.schema import Layer, Schema, Unfit, among, count, flag, number, optional

# Functions that a transformer's layer may hold as its activation, as pickles of this and of older versions name them.
FUNCTIONS: dict[str, Any] = {
    "torch._C._nn.gelu": functional.gelu,
    "torch.nn.functional.elu": functional.elu,
    "torch.nn.functional.gelu": functional.gelu,
    "torch.nn.functional.hardswish": functional.hardswish,
    "torch.nn.functional.leaky_relu": functional.leaky_relu,
    "torch.nn.functional.mish": functional.mish,
    "torch.nn.functional.relu": functional.relu,
    "torch.nn.functional.relu6": functional.relu6,
    "torch.nn.functional.selu": functional.selu,
    "torch.nn.functional.sigmoid": functional.sigmoid,
    "torch.nn.functional.silu": functional.silu,
    "torch.nn.functional.tanh": functional.tanh,
    "torch.relu": torch.relu,
    "torch.selu": torch.selu,
    "torch.sigmoid": torch.sigmoid,
    "torch.tanh": torch.tanh,
}


def _activation(value: Any) -> bool:
    return any(value is function for function in FUNCTIONS.values())


def _attention_biases(layer: Layer) -> dict[str, Any]:
    return {"bias": layer.has("in_proj_bias"), "add_bias_kv": layer.has("bias_k")}


def _transformer_layer(kind: type[nn.Module]) -> Any:
    def make(keywords: dict[str, Any], children: dict[str, nn.Module]) -> nn.Module:
        attention, first = children.get("self_attn"), children.get("linear1")
        if not isinstance(attention, nn.MultiheadAttention) or not isinstance(first, nn.Linear):
            raise Unfit("lacks its attention or its first linear layer")
        if "activation" in children:
            keywords = {**keywords, "activation": children["activation"]}
        made = kind(
            d_model=attention.embed_dim,
            nhead=attention.num_heads,
            dim_feedforward=first.out_features,
            batch_first=attention.batch_first,
            bias=first.bias is not None,
            **keywords,
        )
        _replace(made, children)
        return made

    return make


def _replace(made: nn.Module, children: dict[str, nn.Module]) -> None:
    """Put the layers of the file in the place of the constructor's, where they are of the same kind and shapes.

    The fast path of a transformer hands all weights to one function in C++, which takes their shapes to fit each other.
    """
    if set(children) != set(made._modules):
        raise Unfit(f"should have the layers {', '.join(made._modules)}")
    for name, theirs in children.items():
        ours = made._modules[name]
        if ours is not theirs and (_kind(ours) is not _kind(theirs) or _shapes(ours) != _shapes(theirs)):
            raise Unfit(f"has another layer as {name} than its sizes ask for")
        made._modules[name] = theirs


def _kind(module: nn.Module | None) -> type:
    # Equal but for how they are quantised; older versions used the one for the other.
    return nn.Linear if isinstance(module, NonDynamicallyQuantizableLinear) else type(module)


def _shapes(module: nn.Module | None) -> dict[str, Any]:
    return {} if module is None else {name: parameter.shape for name, parameter in module.named_parameters()}


def _attention(keywords: dict[str, Any], children: dict[str, nn.Module]) -> nn.Module:
    made = nn.MultiheadAttention(**keywords)
    _replace(made, children)
    return made


def _stack(kind: type[nn.Module], of: type[nn.Module]) -> Any:
    def make(keywords: dict[str, Any], children: dict[str, nn.Module]) -> nn.Module:
        layers = children.get("layers")
        if not isinstance(layers, nn.ModuleList) or not len(layers) or not all(type(layer) is of for layer in layers):
            raise Unfit(f"should have layers, each a {of.__name__}")
        made = kind(layers[0], 0, norm=children.get("norm"), **keywords)  # none are copied
        made.layers, made.num_layers = layers, len(layers)  # type: ignore[assignment]
        if set(children) != set(made._modules):
            raise Unfit("has other layers than layers and norm")
        return made

    return make


_LAYER = {"norm_first": flag}
_LAYER_OLDER = {"norm_first": False, "activation": functional.relu, "activation_relu_or_gelu": None}


def _function(layer: Layer) -> dict[str, Any]:
    """Return the activation where it is a function: a layer stands among the layers."""
    if "activation" in layer.modules:
        return {}
    function = layer.attributes.get("activation", functional.relu)
    if not _activation(function):
        raise Unfit("has an activation that is not known")
    return {"activation": function}


SCHEMAS = (
    Schema(
        nn.MultiheadAttention,
        {
            "embed_dim": count,
            "num_heads": count,
            "dropout": number,
            "add_zero_attn": flag,
            "kdim": optional(count),
            "vdim": optional(count),
            "batch_first": flag,
        },
        _attention_biases,
        older={"batch_first": False, "kdim": None, "vdim": None, "_qkv_same_embed_dim": True},
        children=True,
        make=_attention,
    ),
    *(
        Schema(kind, _LAYER, _function, older=_LAYER_OLDER, children=True, make=_transformer_layer(kind))
        for kind in (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
    ),
    Schema(
        nn.TransformerEncoder,
        {"enable_nested_tensor": flag, "mask_check": flag},
        older={"enable_nested_tensor": False, "mask_check": True, "use_nested_tensor": False, "norm": None},
        loose={"use_nested_tensor": among(True, False)},  # told from the first layer, and read with a mask of paddings alone
        children=True,
        make=_stack(nn.TransformerEncoder, nn.TransformerEncoderLayer),
    ),
    Schema(
        nn.TransformerDecoder,
        older={"norm": None},
        children=True,
        make=_stack(nn.TransformerDecoder, nn.TransformerDecoderLayer),
    ),
)
