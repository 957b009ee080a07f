"""Writes an ONNX file again with other weights in it: the graph stays as the file's maker wrote it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from audit.errors import ModelError
from audit.model.graph import Graph
from audit.model.onnx.wire import LENGTH, Budget, fields

GRAPH, INITIALIZER = 7, 5  # fields of a ModelProto and of its GraphProto
NAME, RAW = 8, 9  # of a TensorProto
NUMBERS = (4, 5, 7, RAW, 10, 11, 13, 14)  # fields of a TensorProto that hold its numbers, or say where they stand


def refilled(content: bytes, network: Graph) -> bytes:
    """Return the file with the weights of `network`, which was read from it; those that lay beside it now stand in it.

    Raises
    ------
    ModelError
        It holds several graphs. Whether all weights were found is for the caller to see, by reading what is returned.
    """
    parts = list(_parts(memoryview(content)))
    if [number for number, _, _ in parts].count(GRAPH) != 1:
        raise ModelError("the file holds several graphs")
    known = {name for name, _ in network.weights.named_parameters(remove_duplicate=False)}
    held: dict[str, Tensor] = {
        value: network.weights.get_parameter(name) for value, name in network.named.items() if name in known
    }
    return b"".join(
        _written(number, wire, _graph(piece, held) if number == GRAPH else bytes(piece)) for number, wire, piece in parts
    )


def _parts(message: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    return ((number, wire, piece) for number, wire, piece, _ in fields(message, Budget()))


def _graph(graph: memoryview, held: Mapping[str, Tensor]) -> bytes:
    return b"".join(
        _written(number, wire, _weight(piece, held) if number == INITIALIZER else bytes(piece))
        for number, wire, piece in _parts(graph)
    )


def _weight(proto: memoryview, held: Mapping[str, Tensor]) -> bytes:
    """Return a TensorProto with the numbers of its tensor among `held`, if it has one, in the place of its own."""
    parts = list(_parts(proto))
    name = next((str(piece, "utf-8") for number, _, piece in parts if number == NAME), "")
    if name not in held:
        return bytes(proto)
    kept = b"".join(_written(number, wire, bytes(piece)) for number, wire, piece in parts if number not in NUMBERS)
    raw = held[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return kept + _written(RAW, LENGTH, raw)


def _written(number: int, wire: int, piece: bytes) -> bytes:
    length = _varint(len(piece)) if wire == LENGTH else b""
    return _varint(number << 3 | wire) + length + piece


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
