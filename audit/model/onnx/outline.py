"""What an ONNX file says of itself: its nodes as layers, its ports, its producer, and why it would be refused."""

from __future__ import annotations

import math
from collections.abc import Mapping

from audit.model.description import Description, Layer, Port
from audit.model.onnx import layout
from audit.model.onnx.build import only_input, only_output
from audit.model.onnx.constants import Constants, collect
from audit.model.onnx.messages import ModelProto, NodeProto, TensorProto, ValueInfoProto
from audit.model.onnx.nodes import needed, operations
from audit.model.onnx.operators import Unsupported
from audit.model.onnx.tensors import FLOATS, dims_of, type_name
from audit.model.onnx.wire import Malformed

_MOST_LAYERS = 5000


def outline(model: ModelProto, beside: Mapping[str, bytes]) -> Description:
    """Describe a file that was read.

    Raises
    ------
    Malformed
        It contradicts itself.
    """
    constants, nodes = collect(model, beside)
    refused, channels_last = _why_refused(model, constants, nodes)
    counted: set[str] = set()
    layers = [_layer(node, constants, counted) for node in nodes]
    notes = [f"opset {model.opset}, IR version {model.ir_version}"]
    if model.producer_name:
        notes.append(f"made by {model.producer_name[:100]} {model.producer_version[:100]}".strip())
    if beside:
        notes.append(f"weights in {', '.join(name[:100] for name in sorted(beside)[:10])}")
    if channels_last:
        notes.append("images go in with channels last (NHWC); images with channels first are permuted")
    if len(layers) > _MOST_LAYERS:
        notes.append(f"{len(layers) - _MOST_LAYERS:,} further nodes")
    return Description(
        format="ONNX",
        layers=tuple(layers[:_MOST_LAYERS]),
        parameters=sum(layer.parameters for layer in layers),
        inputs=tuple(_port(value) for value in model.graph.input if value.name not in constants),
        outputs=tuple(_port(value) for value in model.graph.output),
        refused=refused,
        notes=tuple(notes),
    )


def _why_refused(model: ModelProto, constants: Constants, nodes: list[NodeProto]) -> tuple[str, bool]:
    try:
        port, output = only_input(model, constants), only_output(model)
        kept = needed(nodes, {port.name, *constants.protos, *constants.same}, output)
        operations(model, kept, constants)
        return "", layout.reads_channels_last(port, kept, constants)
    except (Unsupported, Malformed) as problem:
        return str(problem), False


def _layer(node: NodeProto, constants: Constants, counted: set[str]) -> Layer:
    shapes: list[str] = []
    parameters = 0
    for name in node.input:
        proto = constants.protos.get(constants.first_name(name))
        if not isinstance(proto, TensorProto) or proto.data_type not in FLOATS:
            continue
        dims = dims_of(proto)
        shapes.append("×".join(map(str, dims)) or "1")
        if constants.first_name(name) not in counted:
            counted.add(constants.first_name(name))
            parameters += math.prod(dims)
    return Layer(
        name=node.name or (node.output[0] if node.output else ""),
        kind=node.word,
        detail=", ".join(shapes),
        parameters=parameters,
    )


def _port(value: ValueInfoProto) -> Port:
    port = layout.port_of(value)
    return Port(port.name, port.dims if port.dims is not None else ("…",), type_name(port.type))
