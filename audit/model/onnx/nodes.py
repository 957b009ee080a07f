"""The nodes of a file: those that its output needs, in order, each with the operation that it becomes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from audit.model.onnx.constants import Constants
from audit.model.onnx.messages import DEFAULT_DOMAINS, AttributeProto, ModelProto, NodeProto, TensorProto
from audit.model.onnx.operators import OPERATORS, Node, Operation, Unsupported
from audit.model.onnx.tensors import read_tensor
from audit.model.onnx.wire import Malformed, Numbers

WAYS_ON = (
    "export the network with torch.export.save to a .pt2 file, "
    "or save its weights (torch.save(model.state_dict(), 'weights.pt')) and give --arch FILE.py:FACTORY"
)

# ONNX's number of each type of attribute, and the field that holds its value.
_HELD = {1: "f", 2: "i", 3: "s", 4: "t", 6: "floats", 7: "ints", 8: "strings"}
_OMITTED = {1: 0.0, 2: 0, 3: "", 6: [], 7: [], 8: []}
_GRAPHS = (5, 10)


def needed(nodes: Sequence[NodeProto], made: Collection[str], output: str) -> list[NodeProto]:
    """Return the nodes that the output is computed from.

    Parameters
    ----------
    made
        Names of the values that are there before the first node runs.

    Raises
    ------
    Malformed
        A value is read before it is made, made twice, or never made.
    """
    known = set(made)
    for node in nodes:
        for name in node.input:
            if name and name not in known:
                raise Malformed(f"a node {node.word[:100]} reads {name[:100]!r}, which nothing before it makes")
        for name in node.output:
            if name and name in known:
                raise Malformed(f"two values are named {name[:100]!r}")
            if name:
                known.add(name)
    if output not in known:
        raise Malformed(f"the output {output[:100]!r} is made by no node")
    wanted = {output}
    kept: list[NodeProto] = []
    for node in reversed(nodes):
        if any(name in wanted for name in node.output if name):
            wanted.update(name for name in node.input if name)
            kept.append(node)
    return kept[::-1]


def operations(model: ModelProto, nodes: Sequence[NodeProto], constants: Constants) -> list[Operation]:
    """Return what each node becomes.

    Raises
    ------
    Unsupported
        One or more operators are not read: all of them are named, with their counts.
    Malformed
        A node contradicts the specification.
    """
    found: list[Operation] = []
    missing: Counter[str] = Counter()
    for proto in nodes:
        try:
            found.append(_operation(proto, model.opset, constants))
        except Unsupported as problem:
            missing[str(problem)[:100]] += 1
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, RuntimeError) as problem:
            raise Malformed(f"the node {proto.name[:100]!r} ({proto.word[:100]}) is not as it should be: {problem}") from None
    if missing:
        listed = [f"{word} ×{count}" for word, count in sorted(missing.items())]
        more = f" and {len(listed) - 20} others" if len(listed) > 20 else ""
        raise Unsupported(f"uses operators that audit does not read: {', '.join(listed[:20])}{more}; {WAYS_ON}")
    return found


def as_node(proto: NodeProto, opset: int, constants: Constants) -> Node:
    """Return the node as the table of operators takes it.

    Raises
    ------
    Unsupported
        It holds a graph of its own, as If, Loop and Scan do.
    Malformed
        An attribute is there twice, or is not of the type that it says.
    """
    attributes: dict[str, Any] = {}
    for attribute in proto.attribute:
        if not attribute.name or attribute.name in attributes:
            raise Malformed(f"a node {proto.word[:100]} has two attributes {attribute.name[:100]!r}")
        if attribute.type in _GRAPHS or attribute.g is not None or attribute.graphs:
            raise Unsupported(f"{proto.word[:60]} (a graph within the graph)")
        attributes[attribute.name] = _attribute(attribute, constants)
    if proto.op_type == "Reshape" and len(proto.input) == 2:
        opset = max(opset, 5)  # constants.collect wrote it as a later one
    return Node(proto.op_type, proto.input, proto.output, attributes, opset, proto.name)


def _operation(proto: NodeProto, opset: int, constants: Constants) -> Operation:
    if proto.domain not in DEFAULT_DOMAINS or proto.overload or proto.op_type not in OPERATORS:
        raise Unsupported(proto.word)
    return OPERATORS[proto.op_type](as_node(proto, opset, constants))


def _attribute(attribute: AttributeProto, constants: Constants) -> Any:
    held = {number: getattr(attribute, field) for number, field in _HELD.items()}
    there = [number for number, value in held.items() if value is not None]
    called = f"the attribute {attribute.name[:100]!r}"
    if len(there) > 1:
        raise Malformed(f"{called} holds two values, so that readers would see different content")
    # Files of the first IR versions do not say the type; a value that is zero or empty may be left out.
    number = attribute.type or (there[0] if there else 0)
    if number not in _HELD or (there and there[0] != number):
        raise Malformed(f"{called} holds no value of the type that it says ({number})")
    if not there:
        if number not in _OMITTED:
            raise Malformed(f"{called} holds no value")
        return _OMITTED[number]
    value = held[number]
    if isinstance(value, TensorProto):
        return read_tensor(value, constants.beside)
    if isinstance(value, Numbers):
        return value.list()
    return list(value) if isinstance(value, tuple) else value
