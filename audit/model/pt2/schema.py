"""What ``models/model.json`` may hold: the parts of ``torch/_export/serde/schema.py`` (version 8) that a network needs.

Every key and every type is checked; a key that is not known here refuses the file, for it may change what the program means.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from audit.model.pt2 import shapes, strict_json
from audit.model.pt2.problems import Executes, Problem, short

MAJOR = 8
# A recurrent network of 100 steps, two layers and two directions has 8,000 once it is decomposed.
MAX_NODES = 10_000
MAX_DIMENSIONS = 16
MAX_LIST = 4096
MAX_NAME = 500
# A condition on the shapes of the inputs, as torch writes it: arithmetic on L['x'].size()[0].
CONDITION = re.compile(
    r"(?:[\s()\[\]+\-*/%<>=!&|,]|\d++|\bL\b|'\w{1,100}'|\.(?:size|stride|storage_offset)\(\)|\b(?:and|or|not|Max|Min|True|False)\b)*+"
)
LARGEST = 2**63 - 1

DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    10: torch.complex64,
    11: torch.complex128,
    12: torch.bool,
    13: torch.bfloat16,
}
STRIDED = 7
MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
NOT_FINITE = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}


@dataclass(frozen=True)
class TensorMeta:
    """Type and shape of a tensor; sizes may depend on free sizes."""

    dtype: torch.dtype
    sizes: tuple[int | shapes.Expression, ...]
    strides: tuple[int | shapes.Expression, ...]
    offset: int | shapes.Expression
    requires_grad: bool


@dataclass(frozen=True)
class Name:
    """Stands for the value of that name: a tensor or a size."""

    name: str


@dataclass(frozen=True)
class Argument:
    """What is given to an operation: its kind as the file calls it (``as_ints``), and a plain value, `Name` or list of them."""

    kind: str
    value: Any


@dataclass(frozen=True)
class Node:
    """One operation: inputs as (name of the parameter, by position?, argument), and the names of what it returns.

    `outputs` has one entry for each thing returned: a name, or a tuple of names where that is a list.
    """

    target: str
    inputs: tuple[tuple[str, bool | None, Argument], ...]
    outputs: tuple[str | tuple[str, ...], ...]


@dataclass(frozen=True)
class InputSpec:
    """What goes in under a name: ``parameter``, ``buffer``, ``tensor_constant`` or ``user_input``, and what it is called."""

    kind: str
    value: str
    target: str
    persistent: bool = True


@dataclass(frozen=True)
class Program:
    """A program: what goes in, what is done, what comes out."""

    inputs: tuple[InputSpec, ...]
    nodes: tuple[Node, ...]
    output: str
    tensors: Mapping[str, TensorMeta]
    ranges: Mapping[str, tuple[int | None, int | None]]
    torch_version: str


def program(raw: bytes | bytearray) -> Program:
    """Read ``model.json``.

    Raises
    ------
    Problem
        It is damaged, of another version, or needs what cannot be audited.
    """
    said = strict_json.parse(raw, "program")
    found = fields(
        said,
        "program",
        "graph_module opset_version range_constraints schema_version",
        "verifiers torch_version guards_code dialect example_inputs",
    )
    _conditions(found.get("guards_code"))
    version = fields(found["schema_version"], "schema version", "major minor")
    if version["major"] != MAJOR:
        raise Problem(
            f"has the schema version {short(version['major'])}, and only version {MAJOR} (torch 2.6 and later) is known: "
            "load it with the torch that made it, and save it with a newer one"
        )
    module = fields(
        found["graph_module"], "graph module", "graph signature module_call_graph", "metadata treespec_namedtuple_fields"
    )
    graph = fields(
        module["graph"],
        "graph",
        "inputs outputs nodes tensor_values sym_int_values sym_bool_values",
        "is_single_tensor_return custom_obj_values sym_float_values",
    )
    _nothing(graph.get("custom_obj_values"), "objects of custom classes")
    nodes = listed(graph["nodes"], "nodes")
    if len(nodes) > MAX_NODES:
        raise Problem(f"has {len(nodes):,} operations; at most {MAX_NODES:,} are read")
    for kind in ("sym_int_values", "sym_bool_values"):
        for value in mapped(graph[kind], kind).values():
            _size(value, "a size")
    signature = fields(module["signature"], "signature", "input_specs output_specs")
    output = _output(listed(signature["output_specs"], "outputs"))
    _one_tensor_alone(module["module_call_graph"])
    specs = tuple(_input_spec(spec) for spec in listed(signature["input_specs"], "inputs"))
    return Program(
        inputs=tuple(spec for spec in specs if spec is not None),
        nodes=tuple(_node(node) for node in nodes),
        output=output,
        tensors={key: tensor_meta(value) for key, value in mapped(graph["tensor_values"], "tensor values").items()},
        ranges={key: _range(value) for key, value in mapped(found["range_constraints"], "ranges").items()},
        torch_version=text(found.get("torch_version", ""), "torch version"),
    )


def _conditions(value: Any) -> None:
    """Refuse conditions that are more than arithmetic: they are not used here, and torch evaluates them."""
    for condition in listed(value or [], "conditions"):
        if not isinstance(condition, str) or not CONDITION.fullmatch(condition):
            raise Executes(
                f"has a condition that is no arithmetic, and that torch would evaluate as Python: {short(condition)}"
            )


def tensor_meta(value: Any) -> TensorMeta:
    """Read type and shape of a tensor."""
    found = fields(value, "tensor", "dtype sizes requires_grad device strides storage_offset layout")
    if type(found["dtype"]) is not int or found["dtype"] not in DTYPES:
        raise Problem(f"has a tensor of type {short(found['dtype'])}, which is not known")
    if found["layout"] != STRIDED:
        raise Problem("has a sparse tensor: save it with dense tensors")
    sizes, strides = listed(found["sizes"], "sizes"), listed(found["strides"], "strides")
    if len(sizes) != len(strides) or len(sizes) > MAX_DIMENSIONS:
        raise Problem(
            f"has a tensor of {len(sizes)} sizes and {len(strides)} strides; at most {MAX_DIMENSIONS} of each are read"
        )
    return TensorMeta(
        DTYPES[found["dtype"]],
        tuple(_size(size, "a size") for size in sizes),
        tuple(_size(stride, "a stride") for stride in strides),
        _size(found["storage_offset"], "an offset"),
        found["requires_grad"] is True,
    )


def fields(value: Any, what: str, needed: str, possible: str = "") -> dict[str, Any]:
    """Check that `value` is an object with these keys; others may only say nothing (null, empty, false)."""
    if not isinstance(value, dict):
        raise Problem(f"has a {what} that should be an object, got {short(value)}")
    missing = [key for key in needed.split() if key not in value]
    if missing:
        raise Problem(f"has a {what} without {missing[0]!r}")
    known = {*needed.split(), *possible.split()}
    for key, content in value.items():
        if key not in known and content:
            raise Problem(
                f"has a {what} with {short(key)}, which is not known: written by a newer torch? Save it with an older one"
            )
    return value


def mapped(value: Any, what: str) -> dict[str, Any]:
    """Check that `value` is an object with names as keys."""
    if not isinstance(value, dict):
        raise Problem(f"has {what} that should be an object, got {short(value)}")
    for key in value:
        text(key, what)
    return value


def listed(value: Any, what: str) -> list[Any]:
    """Check that `value` is a list."""
    if not isinstance(value, list):
        raise Problem(f"has {what} that should be a list, got {short(value)}")
    return value


def text(value: Any, what: str) -> str:
    """Check that `value` is a text of a name's length."""
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise Problem(f"has a {what} that should be a short text, got {short(value)}")
    return value


def integer(value: Any, what: str) -> int:
    """Check that `value` is a whole number of at most 64 bits."""
    if type(value) is not int or abs(value) > LARGEST:
        raise Problem(f"has {what} that should be a whole number of 64 bits, got {short(value)}")
    return value


def choice(value: Any, what: str) -> tuple[str, Any]:
    """Check that `value` says one of several things, and return which and what."""
    if not isinstance(value, dict) or len(value) != 1:
        raise Problem(f"has a {what} that should be an object with one key, got {short(value)}")
    return next(iter(value.items()))


def _nothing(value: Any, what: str) -> None:
    if value:
        raise Problem(f"holds {what}, which are not read")


def _size(value: Any, what: str) -> int | shapes.Expression:
    kind, size = choice(value, what)
    if kind == "as_int":
        return integer(size, what)
    if kind == "as_bool" and isinstance(size, bool):
        return int(size)
    if kind != "as_expr":
        raise Problem(f"has {what} of the kind {short(kind)}")
    found = fields(size, what, "expr_str", "hint")
    if not isinstance(found["expr_str"], str):
        raise Problem(f"has {what} that should be a text, got {short(found['expr_str'])}")
    return shapes.parse(found["expr_str"])


def _range(value: Any) -> tuple[int | None, int | None]:
    found = fields(value, "range", "min_val max_val")
    low, high = (None if found[key] is None else integer(found[key], "a range") for key in ("min_val", "max_val"))
    return low, high


def _input_spec(value: Any) -> InputSpec | None:
    kind, spec = choice(value, "input")
    if kind == "constant_input":
        return None  # an argument that had a fixed value, such as mask=None: what was done with it is in the nodes
    if kind == "user_input":
        argument_kind, argument = choice(fields(spec, kind, "arg")["arg"], "input")
        if argument_kind == "as_none":
            return None
        if argument_kind != "as_tensor":
            raise Problem(f"takes an input of the kind {short(argument_kind)}; audit gives a network one tensor")
        return InputSpec(kind, _name(argument), "")
    called = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}
    if kind not in called:
        raise Problem(f"takes an input of the kind {short(kind)}: objects of custom classes and tokens are not read")
    found = fields(spec, kind, f"arg {called[kind]}", "persistent")
    target = text(found[called[kind]], "name of a weight")
    return InputSpec(
        kind, _name(found["arg"]), target, found.get("persistent", True) is not False and kind != "tensor_constant"
    )


CHANGES = {
    "buffer_mutation": "changes its own buffers as it runs (was it exported in training mode? call model.eval() before)",
    "parameter_mutation": "changes its own parameters as it runs",
    "user_input_mutation": "changes its input as it runs: leave inplace=True out of its first layers, or save it without "
    "run_decompositions()",
    "loss_output": "returns a loss: export the network alone",
    "gradient_to_parameter": "returns gradients: export the network alone",
    "gradient_to_user_input": "returns gradients: export the network alone",
}


def _output(specs: list[Any]) -> str:
    found = []
    for spec in specs:
        kind, value = choice(spec, "output")
        if kind != "user_output":
            raise Problem(CHANGES.get(kind, f"has an output of the kind {short(kind)}"))
        found.append(choice(fields(value, kind, "arg")["arg"], "output"))
    if len(found) != 1 or found[0][0] != "as_tensor":
        raise Problem(
            f"should return one tensor, but returns {len(found)} values: export a module that returns the logits alone"
        )
    return _name(found[0][1])


def _one_tensor_alone(calls: Any) -> None:
    """Check how the output is packed: a tuple or dict would have been refused of the live network, too."""
    for call in listed(calls, "calls"):
        found = fields(call, "call", "fqn", "signature")
        if found["fqn"] == "" and found.get("signature"):
            spec = fields(found["signature"], "call", "inputs outputs in_spec out_spec", "forward_arg_names")["out_spec"]
            said = strict_json.parse(spec.encode("utf-8", "replace"), "output") if isinstance(spec, str) else None
            leaf = said[1] if isinstance(said, list) and len(said) == 2 else None
            if not isinstance(leaf, dict) or leaf.get("type") is not None:
                raise Problem("returns its tensor inside a tuple, list or dict: export a module that returns the logits alone")


def _node(value: Any) -> Node:
    found = fields(value, "node", "target inputs outputs", "metadata is_hop_single_tensor_return name")
    inputs = []
    for given in listed(found["inputs"], "inputs of a node"):
        part = fields(given, "argument", "name arg", "kind")
        if part.get("kind") not in (None, 0, 1, 2):
            raise Problem(f"has an argument of the kind {short(part.get('kind'))}")
        by_position = {1: True, 2: False}.get(part.get("kind") or 0)
        inputs.append((text(part["name"], "argument"), by_position, _argument(part["arg"])))
    outputs = tuple(_node_output(output) for output in listed(found["outputs"], "outputs of a node"))
    return Node(text(found["target"], "operation"), tuple(inputs), outputs)


def _node_output(value: Any) -> str | tuple[str, ...]:
    kind, found = choice(value, "output of a node")
    if kind == "as_tensor":
        return _name(found)
    if kind == "as_tensors":
        return tuple(_name(part) for part in listed(found, "outputs of a node"))
    if kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):
        return text(fields(found, "size", "as_name")["as_name"], "name of a size")
    if kind == "as_none":
        return ""
    raise Problem(f"has a node that returns something of the kind {short(kind)}")


def _name(value: Any) -> str:
    return text(fields(value, "tensor", "name")["name"], "name of a value")


def _argument(value: Any) -> Argument:
    kind, found = choice(value, "argument")
    if kind in _ONE:
        return Argument(kind, _ONE[kind](found))
    if kind in _SEVERAL:
        if len(listed(found, "argument")) > MAX_LIST:
            raise Problem(f"has an argument of {len(found):,} values; at most {MAX_LIST:,} are read")
        return Argument(kind, [_SEVERAL[kind](part) for part in found])
    raise Problem(f"has an argument of the kind {short(kind)}, which no operation that audit knows takes")


def _tensor(value: Any) -> Name:
    return Name(_name(value))


def _none(value: Any) -> None:
    if value is not True:
        raise Problem(f"has an argument that should be none, got {short(value)}")


def _optional_tensor(value: Any) -> Name | None:
    kind, found = choice(value, "argument")
    if kind == "as_none":
        return None
    if kind != "as_tensor":
        raise Problem(f"has an argument of the kind {short(kind)} among tensors")
    return _tensor(found)


def _int(value: Any) -> int:
    return integer(value, "an argument")


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Problem(f"has an argument that should be true or false, got {short(value)}")
    return value


def _float(value: Any) -> float:
    if isinstance(value, str) and value in NOT_FINITE:
        return NOT_FINITE[value]
    if type(value) not in (int, float) or abs(value) > 1e308:
        raise Problem(f"has an argument that should be a number, got {short(value)}")
    return float(value)


def _string(value: Any) -> str:
    return text(value, "argument")


def _sym_int(value: Any) -> Name | int:
    kind, found = choice(value, "size")
    return Name(text(found, "name of a size")) if kind == "as_name" else integer(found if kind == "as_int" else None, "a size")


def _sym_float(value: Any) -> Name | float:
    kind, found = choice(value, "size")
    return Name(text(found, "name of a size")) if kind == "as_name" else _float(found if kind == "as_float" else None)


def _sym_bool(value: Any) -> Name | bool:
    kind, found = choice(value, "size")
    return Name(text(found, "name of a size")) if kind == "as_name" else _bool(found if kind == "as_bool" else None)


def _scalar_type(value: Any) -> torch.dtype:
    if type(value) is not int or value not in DTYPES:
        raise Problem(f"has an argument of type {short(value)}, which is not known")
    return DTYPES[value]


def _memory_format(value: Any) -> torch.memory_format:
    if type(value) is not int or value not in MEMORY_FORMATS:
        raise Problem(f"has a memory format {short(value)}, which is not known")
    return MEMORY_FORMATS[value]


def _layout(value: Any) -> torch.layout:
    if value != STRIDED:
        raise Problem("makes a sparse tensor: only dense ones are computed")
    return torch.strided


def _device(value: Any) -> str:
    return text(fields(value, "device", "type", "index")["type"], "device")


_ONE: dict[str, Any] = {
    "as_none": _none,
    "as_tensor": _tensor,
    "as_optional_tensor": _optional_tensor,
    "as_int": _int,
    "as_float": _float,
    "as_bool": _bool,
    "as_string": _string,
    "as_sym_int": _sym_int,
    "as_sym_float": _sym_float,
    "as_sym_bool": _sym_bool,
    "as_scalar_type": _scalar_type,
    "as_memory_format": _memory_format,
    "as_layout": _layout,
    "as_device": _device,
}
_SEVERAL: dict[str, Any] = {
    "as_tensors": _tensor,
    "as_optional_tensors": _optional_tensor,
    "as_ints": _int,
    "as_floats": _float,
    "as_bools": _bool,
    "as_sym_ints": _sym_int,
    "as_sym_floats": _sym_float,
}
