"""The constants of a file: which become parameters, which buffers, which plain numbers on the CPU, and under what names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from audit.model.onnx.beside import Part
from audit.model.onnx.messages import DEFAULT_DOMAINS, ModelProto, NodeProto, TensorProto
from audit.model.onnx.tensors import EXTERNAL, dims_of, read_tensor
from audit.model.onnx.wire import Malformed

# A shape, axes, indices: what may be read on the CPU. Longer lists of integers are tables, and go where the data are.
FEW = 4096
_LONGEST_NAME, _DEEPEST_NAME = 200, 16


@dataclass
class Constants:
    """The constants of one file by the name of their value, read when they are first asked for.

    Attributes
    ----------
    protos
        Where each stands: an initializer, or the attribute of a Constant node.
    same
        Another name for the same constant (an Identity of it): tied weights stay tied.
    in_nodes
        Names of those that stand in nodes.
    """

    beside: Mapping[str, bytes]
    protos: dict[str, TensorProto | Tensor] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)
    in_nodes: set[str] = field(default_factory=set)
    _read: dict[str, Tensor] = field(default_factory=dict)
    _parts: dict[tuple[Part, int, tuple[int, ...]], Tensor] = field(default_factory=dict)
    _taken: Counter[str] = field(default_factory=Counter)

    def __contains__(self, name: str) -> bool:
        return name in self.protos or name in self.same

    def first_name(self, name: str) -> str:
        """Return the name under which the file holds the constant's values."""
        return self.same.get(name, name)

    def tensor(self, name: str) -> Tensor:
        """Return the values of the constant of that name."""
        name = self.first_name(name)
        if name not in self._read:
            proto = self.protos[name]
            self._read[name] = proto if isinstance(proto, Tensor) else self._from_file(proto)
        return self._read[name]

    def _from_file(self, proto: TensorProto) -> Tensor:
        if proto.data_location != EXTERNAL:
            return read_tensor(proto, self.beside)
        # Tied weights may share their bytes; parts that merely overlap would be copied again and again.
        key = (Part.of(proto), proto.data_type, dims_of(proto))
        if key not in self._parts:
            self._parts[key] = tensor = read_tensor(proto, self.beside)
            location = key[0].location
            self._taken[location] += tensor.nbytes
            if self._taken[location] > 4 * len(self.beside.get(location, b"")):
                raise Malformed(f"tensors overlap in {location[:100]!r}, as in a file made to exhaust memory")
        return self._parts[key]


def collect(model: ModelProto, beside: Mapping[str, bytes]) -> tuple[Constants, list[NodeProto]]:
    """Return the constants of a file, and the nodes that are left.

    Raises
    ------
    Malformed
        Two constants have one name, or a Constant node has no value that is read.
    """
    constants = Constants(beside)
    for proto in model.graph.initializer:
        if not proto.name or proto.name in constants.protos:
            raise Malformed(f"two initializers are named {proto.name[:100]!r}")
        constants.protos[proto.name] = proto
    left: list[NodeProto] = []
    for node in model.graph.node:
        standard = node.domain in DEFAULT_DOMAINS
        if standard and node.op_type == "Constant":
            name = _only_output(node)
            if name in constants:
                raise Malformed(f"two values are named {name[:100]!r}")
            constants.protos[name] = _value_of(node)
            constants.in_nodes.add(name)
        elif standard and node.op_type == "Identity" and len(node.input) == 1 and node.input[0] in constants:
            name = _only_output(node)
            if name in constants:
                raise Malformed(f"two values are named {name[:100]!r}")
            constants.same[name] = constants.first_name(node.input[0])
        else:
            left.append(_with_shape_as_input(node, constants) if standard and node.op_type == "Reshape" else node)
    return constants, left


def _with_shape_as_input(node: NodeProto, constants: Constants) -> NodeProto:
    """Write a Reshape of opsets 1 to 4, whose shape is an attribute, as a later one: the numbers mean the same."""
    shape = next((attribute.ints for attribute in node.attribute if attribute.name == "shape"), None)
    if len(node.input) != 1 or shape is None:
        return node
    name = f"shape of {node.output[0] if node.output else ''}"
    if name in constants:
        raise Malformed(f"two values are named {name[:100]!r}")
    constants.protos[name] = torch.tensor(shape.list(), dtype=torch.int64)
    constants.in_nodes.add(name)
    return replace(node, input=(node.input[0], name), attribute=())


def _only_output(node: NodeProto) -> str:
    if len(node.output) != 1 or not node.output[0]:
        raise Malformed(f"a node {node.op_type} has {len(node.output)} outputs in the place of one")
    return node.output[0]


def _value_of(node: NodeProto) -> TensorProto | Tensor:
    if len(node.attribute) != 1 or node.input:
        raise Malformed("a Constant node should have one value")
    (attribute,) = node.attribute
    values = {
        "value": attribute.t,
        "value_int": attribute.i,
        "value_float": attribute.f,
        "value_ints": attribute.ints,
        "value_floats": attribute.floats,
    }
    value = values.get(attribute.name)
    if value is None:
        raise Malformed(f"a Constant node has the value {attribute.name[:100]!r}, which audit does not read")
    if isinstance(value, TensorProto):
        return value
    dtype = torch.int64 if attribute.name.startswith("value_int") else torch.float32
    return torch.tensor(value, dtype=dtype) if isinstance(value, int | float) else torch.tensor(value.array()).to(dtype)


class Names:
    """Gives each weight a name that a module can hold: its own where that is one, else a clean one like it."""

    def __init__(self) -> None:
        self.leaves: set[str] = set()
        self.modules: set[str] = set()
        self.tried: Counter[str] = Counter()

    def give(self, wanted: str) -> str:
        """Return a name that nothing else has."""
        base = _clean(wanted)
        if any(part in self.leaves for part in _above(base)):
            base = base.replace(".", "_")
        name = base
        while name in self.leaves or name in self.modules:
            self.tried[base] += 1
            name = f"{base}_{self.tried[base] + 1}"
        self.leaves.add(name)
        self.modules.update(_above(name))
        return name


def _above(name: str) -> list[str]:
    """Return the names of the modules that a weight of this name stands in."""
    parts = name.split(".")
    return [".".join(parts[:k]) for k in range(1, len(parts))]


_MODULE = nn.Module()
_PLAIN, _ODD = re.compile(r"[0-9A-Za-z_]+"), re.compile(r"[^0-9A-Za-z_]+")


def _clean(name: str) -> str:
    """Turn ``onnx::Conv_12`` into ``onnx_Conv_12`` and ``/fc/Constant`` into ``fc_Constant``; ``fc1.weight`` stays."""
    parts = [
        part if _PLAIN.fullmatch(part) else _ODD.sub("_", part).strip("_") for part in name[: 2 * _LONGEST_NAME].split(".")
    ]
    parts = [f"{part}_" if hasattr(_MODULE, part) else part for part in parts if part]
    if not parts or len(parts) > _DEEPEST_NAME or sum(map(len, parts)) > _LONGEST_NAME:
        return "weight"
    return ".".join(parts)
