"""Recurrent layers: RNN, LSTM, GRU and their cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from audit.model.pickled.layers.schema import Layer, Schema, Unfit, among, count, flag, number, several

_COMMON = {
    "input_size": count,
    "hidden_size": count,
    "num_layers": count,
    "bias": flag,
    "batch_first": flag,
    "dropout": number,
    "bidirectional": flag,
}
MOST_LAYERS = 256  # torch finds each weight by its place in a list


def _check(layer: Layer) -> dict[str, Any]:
    """Hold the number of layers, and the weights in the order in which they are used, against the parameters."""
    attributes, parameters = layer.attributes, layer.parameters
    if attributes["num_layers"] > MOST_LAYERS:
        raise Unfit(f"has num_layers = {attributes['num_layers']:,}, at most {MOST_LAYERS} are made")
    if attributes["num_layers"] * (2 if attributes["bidirectional"] else 1) > len(parameters):
        raise Unfit(f"has {len(parameters)} parameters, too few for num_layers = {attributes['num_layers']:,}")
    _check_order(attributes, parameters)
    mode = attributes.get("mode")
    if layer.name.name != "RNN":
        known = {"LSTM": "LSTM", "GRU": "GRU"}[layer.name.name]
        if mode != known:
            raise Unfit(f"is a {known} in another mode")
        return {"proj_size": _projection(attributes)} if known == "LSTM" else {}
    if mode not in ("RNN_TANH", "RNN_RELU"):
        raise Unfit("is an RNN in another mode")
    return {"nonlinearity": "tanh" if mode == "RNN_TANH" else "relu"}


def _check_order(attributes: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    """Hold the list of weights that the layer computes with against its parameters."""
    names, flat = attributes.get("_flat_weights_names"), attributes.get("_flat_weights")
    if names is None and flat is None:
        return
    if not isinstance(flat, list) or not isinstance(names, list) or len(flat) != len(names):
        raise Unfit("has something else than a list of weights and their names")
    if not all(isinstance(name, str) for name in names):
        raise Unfit("has a weight whose name is no text")
    if any(held is not parameters.get(name) for held, name in zip(flat, names, strict=True)):
        raise Unfit("computes with other weights than its parameters")


def _projection(attributes: Any) -> int:
    size = attributes.get("proj_size", 0)
    if not count(size):
        raise Unfit("has something else than a number as proj_size")
    return int(size)


def _flatten(module: nn.Module, _: Layer) -> None:
    """Let the layer find its weights again, since they were replaced."""
    module._init_flat_weights()  # type: ignore[operator]


_OLDER = {
    "proj_size": 0,
    "_all_weights": None,
    "_flat_weights": None,
    "_flat_weights_names": None,
    "_flat_weight_refs": None,
    "nonlinearity": None,
}
# Held against the parameters in `_check`; the tensors of torch 0.3 and their addresses are not read any more.
_GONE = {"_data_ptrs": several(count, 2**16), "data_ptrs": several(count, 2**16)}
_CELL = {"input_size": count, "hidden_size": count, "bias": flag}

SCHEMAS = (
    *(
        Schema(
            kind,
            _COMMON,
            _check,
            older=_OLDER,
            gone=_GONE,
            loose={"_flat_weights": lambda value: isinstance(value, list)},
            after=_flatten,
        )
        for kind in (nn.RNN, nn.LSTM, nn.GRU)
    ),
    Schema(nn.RNNCell, {**_CELL, "nonlinearity": among("tanh", "relu")}),
    Schema(nn.LSTMCell, _CELL),
    Schema(nn.GRUCell, _CELL),
)
