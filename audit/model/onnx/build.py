"""From the messages of an ONNX file to a network: which values are constants, which tell shapes, and the steps in order."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from audit.model.graph import Ref, Step
from audit.model.onnx.constants import FEW, Constants, Names, collect
from audit.model.onnx.free_batch import FreeBatch
from audit.model.onnx.layout import Port, port_of, reads_channels_last
from audit.model.onnx.messages import ModelProto, NodeProto, TensorProto, ValueInfoProto
from audit.model.onnx.network import Network, NodeCall
from audit.model.onnx.nodes import needed, operations
from audit.model.onnx.operators import Operation
from audit.model.onnx.tensors import FLOATS, type_name
from audit.model.onnx.wire import Malformed

# Inputs that tell a shape, axes, counts or settings, and are computed on the CPU: for each operator, their positions.
_SETTINGS: dict[str, tuple[int, ...]] = {
    "Clip": (1, 2), "ConstantOfShape": (0,), "CumSum": (1,), "Dropout": (1, 2), "Expand": (1,), "Gather": (1,),
    "GRU": (4,), "LSTM": (4,), "OneHot": (1,), "Pad": (1, 2, 3), "Range": (0, 1, 2), "Reshape": (1,), "Resize": (1, 2, 3),
    "RNN": (4,), "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,), "Tile": (1, 2), "TopK": (1,), "Trilu": (1,),
    "Unsqueeze": (1,), "Upsample": (1,), "ReduceL1": (1,), "ReduceL2": (1,), "ReduceLogSum": (1,), "ReduceLogSumExp": (1,),
    "ReduceMax": (1,), "ReduceMean": (1,), "ReduceMin": (1,), "ReduceProd": (1,), "ReduceSum": (1,), "ReduceSumSquare": (1,),
}  # fmt: skip
_TELL_SHAPES = ("Shape", "Size")
_BUFFERS = {"BatchNormalization": (3, 4)}


def build(model: ModelProto, beside: Mapping[str, bytes]) -> Network:
    """Return the network of an ONNX file, not yet tried on anything.

    Raises
    ------
    Malformed
        The file contradicts itself or the specification.
    Unsupported
        It uses operators that are not read.
    """
    constants, nodes = collect(model, beside)
    port, output = only_input(model, constants), only_output(model)
    nodes = needed(nodes, {port.name, *constants.protos, *constants.same}, output)
    if not any(port.name in node.input for node in nodes):
        raise Malformed(f"the output {output[:100]!r} does not depend on the input {port.name[:100]!r}")
    work = operations(model, nodes, constants)
    port = port.with_channels_last(reads_channels_last(port, nodes, constants))
    on_cpu = _settings(nodes, constants)
    weights = _Weights(constants, nodes)
    first = port.dims[0] if port.dims else None
    batch = FreeBatch(first if isinstance(first, int) else None)
    steps = [_step(node, operation, on_cpu, weights, port, batch) for node, operation in zip(nodes, work, strict=True)]
    tensors, named = weights.tensors, weights.named
    try:
        return Network(port, output, steps, tensors, named, batch)
    except Malformed:
        raise
    except ValueError as problem:
        raise Malformed(f"its network does not fit together: {str(problem)[:200]}") from None


def only_input(model: ModelProto, constants: Collection[str] | Constants) -> Port:
    """Return the one input of the graph; those that are initializers, too, as older files list them, do not count.

    Raises
    ------
    Malformed
        There are none or several, or it does not take floating-point numbers.
    """
    free = [value for value in model.graph.input if value.name not in constants]
    if len(free) != 1:
        names = ", ".join(repr(value.name[:40]) for value in free[:10]) or "none"
        raise Malformed(f"it has {len(free)} inputs ({names}); audit needs a network with one input")
    port = port_of(free[0])
    if port.type not in FLOATS:
        raise Malformed(
            f"its input {port.name[:100]!r} is of type {type_name(port.type)}: what an attack changes must be floating-point "
            "numbers; export the network with a float32 input"
        )
    return port


def only_output(model: ModelProto) -> str:
    """Return the name of the one output; several are a Malformed that names them."""
    outputs: Sequence[ValueInfoProto] = model.graph.output
    if len(outputs) != 1:
        names = ", ".join(repr(value.name[:40]) for value in outputs[:10])
        raise Malformed(f"it has {len(outputs)} outputs ({names}); audit needs one: export the network with the logits alone")
    return outputs[0].name


def _settings(nodes: Sequence[NodeProto], constants: Constants) -> set[str]:
    """Return the names of the values that tell shapes, counts or settings, and that no sample changes.

    Forwards: what is computed from constants and shapes alone. Backwards from where settings are read: which of these are asked
    for. A weight that happens to be computed from constants (a transposed one) is not among them, and stays on the device.
    """
    fixed: set[str] = set()
    for node in nodes:
        sources = [name for name in node.input if name]
        if node.op_type in _TELL_SHAPES or all(name in fixed or _is_small(constants, name) for name in sources):
            fixed.update(name for name in node.output if name)
    asked: set[str] = set()
    for node in reversed(nodes):
        whole = node.op_type not in _TELL_SHAPES and any(name in asked for name in node.output)
        positions = range(len(node.input)) if whole else _SETTINGS.get(node.op_type, ())
        for position in positions:
            name = node.input[position] if position < len(node.input) else ""
            if name in fixed or (name and _is_small(constants, name)):
                asked.add(name)
    return asked


def _is_small(constants: Constants, name: str) -> bool:
    return name in constants and constants.tensor(name).numel() <= FEW


class _Weights:
    """The tensors of the network, each registered when a step first reads it."""

    def __init__(self, constants: Constants, nodes: Sequence[NodeProto]) -> None:
        self.constants = constants
        self.tensors: dict[str, Tensor] = {}
        self.named: dict[str, str] = {}
        self._names = Names()
        self._by_first: dict[str, str] = {}
        self._buffers = {
            constants.first_name(node.input[position])
            for node in nodes
            for position in _BUFFERS.get(node.op_type, ())
            if position < len(node.input)
        }
        # The first files kept their weights in Constant nodes; later ones keep there what is not trained.
        self._nodes_are_weights = not any(
            isinstance(proto, TensorProto) and proto.data_type in FLOATS
            for name, proto in constants.protos.items()
            if name not in constants.in_nodes
        )

    def ref(self, name: str) -> Ref:
        """Return the reference to a constant, under the name that the file first gives it."""
        first = self.constants.first_name(name)
        if first not in self._by_first:
            tensor = self.constants.tensor(first)
            in_node = first in self.constants.in_nodes
            given = self._names.give(f"constants.{first}" if in_node and not self._nodes_are_weights else first)
            trained = tensor.is_floating_point() and first not in self._buffers
            if in_node:
                trained = trained and self._nodes_are_weights and tensor.numel() > 1
            self.tensors[given] = nn.Parameter(tensor) if trained else tensor
            self._by_first[first] = given
            self.named[first] = given
        return Ref(first)


def _step(node: NodeProto, operation: Operation, on_cpu: set[str], weights: _Weights, port: Port, batch: FreeBatch) -> Step:
    settings = _SETTINGS.get(node.op_type, ())
    whole = any(name in on_cpu for name in node.output)
    arguments: list[Any] = []
    for position, name in enumerate(node.input):
        if not name:
            arguments.append(None)
        elif name not in weights.constants:
            arguments.append(Ref(name))
        else:
            tensor = weights.constants.tensor(name)
            few_integers = not tensor.is_floating_point() and tensor.numel() <= FEW
            setting = name in on_cpu and (whole or position in settings)
            arguments.append(_plain(tensor) if few_integers or setting else weights.ref(name))
    place = batch.place(node.op_type, arguments)
    if place is not None:
        arguments.append(Ref(port.name))
    return Step(operation.kind, NodeCall(operation.compute, node, batch, place), arguments, outputs=node.output)


def _plain(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_floating_point() or tensor.dtype == torch.bool else tensor.to(torch.int64)
