"""The operators that a ``.pt2`` program may use, and how their arguments are checked: everything else is refused by name.

Names and functions stand in tables of ours; what is taken from torch is the schema of those names, to check arguments against.
"""

from __future__ import annotations

import math
import operator as python
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from audit.model.pt2.operators import functions as f
from audit.model.pt2.operators.names import AS_THEY_ARE, CHECKS, KINDS, LIKE, MAKING
from audit.model.pt2.problems import Problem, short
from audit.model.pt2.schema import Argument, Name, Node

# Sizes, strides, paddings, repeats; only the ends of slices are larger.
MOST = 2**40
# What says where a value lies, or how it is copied there: it lies where the input does.
ABOUT_PLACE = frozenset({"device", "pin_memory", "layout", "non_blocking"})


@dataclass(frozen=True)
class Parameter:
    """One parameter of an operator: its name, its type in torch's words, whether it must be given, and only by name."""

    name: str
    type: str
    needed: bool
    by_name: bool


@dataclass(frozen=True)
class Operator:
    """What computes an operation.

    Attributes
    ----------
    target
        Name as it stands in the file: ``torch.ops.aten.linear.default``.
    kind
        What the step is called: ``linear``.
    function
        Called with the arguments; those of `ABOUT_PLACE` are left out.
    by_keyword
        Whether all arguments but the first are handed over by name.
    makes
        Whether it makes values from nothing, so that it is handed the input first.
    lists
        Whether it returns a list.
    views
        Positions of arguments whose memory the result may share.
    writes
        Whether it writes into its first argument.
    """

    target: str
    kind: str
    function: Callable[..., Any]
    parameters: tuple[Parameter, ...]
    by_keyword: bool = False
    makes: bool = False
    lists: bool = False
    views: frozenset[str] = field(default=frozenset())
    writes: bool = False


@dataclass(frozen=True)
class Bound:
    """Arguments as they are handed to an operator's function, with `Name` where a value goes."""

    positional: tuple[Any, ...]
    keywords: dict[str, Any]


# Called with other functions than torch's own. Operators that take a device are handed the input first.
_SPECIAL: dict[str, Callable[..., Any]] = {
    "softmax.int": f.softmax,
    "_softmax.default": f.softmax_kernel,
    "sigmoid.default": f.sigmoid,
    "sigmoid_.default": f.sigmoid_in_place,
    "dropout.default": f.unchanged,
    "dropout_.default": f.unchanged,
    "feature_dropout.default": f.unchanged,
    "alpha_dropout.default": f.unchanged,
    "feature_alpha_dropout.default": f.unchanged,
    "rrelu.default": f.rrelu,
    "rrelu_.default": f.rrelu_in_place,
    "batch_norm.default": f.batch_norm,
    "native_batch_norm.default": f.batch_norm_kernel,
    "_native_batch_norm_legit.default": f.batch_norm_kernel,
    "_native_batch_norm_legit_no_training.default": f.batch_norm_kernel,
    "_native_batch_norm_legit.no_stats": f.batch_norm_of_one,
    "instance_norm.default": f.instance_norm,
    "_weight_norm.default": f.weight_norm,
    "native_group_norm.default": f.group_norm_kernel,
    "convolution.default": f.convolution,
    "div.Tensor_mode": f.divided,
    "div.Scalar_mode": f.divided,
    "floor_divide.default": f.divided_down,
    "floor_divide.Scalar": f.divided_down,
    "remainder.Tensor": f.rest,
    "remainder.Scalar": f.rest,
    "fmod.Tensor": f.rest_towards_zero,
    "fmod.Scalar": f.rest_towards_zero,
    "squeeze.default": f.squeeze,
    "copy.default": f.copied,
    "view.default": f.view,
    "_unsafe_view.default": f.view,
    "scaled_dot_product_attention.default": f.attention,
    "_scaled_dot_product_flash_attention_for_cpu.default": f.attention_kernel,
    "_scaled_dot_product_flash_attention.default": f.attention_kernel,
    "_scaled_dot_product_efficient_attention.default": f.attention_kernel,
    "_scaled_dot_product_cudnn_attention.default": f.attention_kernel,
    "lstm.input": f.recurrent(4, torch.ops.aten.lstm.input),
    "gru.input": f.recurrent(3, torch.ops.aten.gru.input),
    "rnn_tanh.input": f.recurrent(1, torch.ops.aten.rnn_tanh.input),
    "rnn_relu.input": f.recurrent(1, torch.ops.aten.rnn_relu.input),
    "split.Tensor": f.split,
    "split.sizes": f.split,
    "split_with_sizes.default": f.split_with_sizes,
    "chunk.default": f.chunk,
    "unbind.int": f.unbind,
    "repeat_interleave.self_int": f.repeat_interleave,
    "einsum.default": f.einsum,
    "to.dtype": f.converted,
    "to.device": f.converted,
    "to.dtype_layout": f.converted,
    "to.other": f.converted_as,
    "_to_copy.default": f.converted_copy,
    "type_as.default": f.converted_as,
    "lift_fresh.default": f.fresh,
}
_MAKING = tuple(MAKING.split())
_LIKE = tuple(LIKE.split())
# May hand back what they are given, though their schema does not say so.
_MAY_RETURN_INPUT = {
    "dropout",
    "dropout_",
    "feature_dropout",
    "alpha_dropout",
    "feature_alpha_dropout",
    "type_as",
    "einsum",
    "pad",
}
_IN_EVALUATION = {"train", "training"}
# Which operators take ends of slices, that may be as large as a number gets.
_ENDS = {"slice", "slice_scatter"}


def _whole(value: Any) -> Any:
    if not isinstance(value, int | float) or (isinstance(value, int) and abs(value) >= 2**63):
        raise ValueError("a size is no number of 64 bits")
    return value


def _power(a: Any, b: Any) -> Any:
    if abs(b) > 64:
        raise ValueError("a size has an exponent above 64")
    return a**b


def _either(condition: Any, a: Any, b: Any) -> Any:
    return a if condition else b


_PYTHON: dict[str, tuple[int, Callable[..., Any]]] = {
    "_operator.add": (2, python.add),
    "_operator.sub": (2, python.sub),
    "_operator.mul": (2, python.mul),
    "_operator.floordiv": (2, python.floordiv),
    "_operator.mod": (2, python.mod),
    "_operator.truediv": (2, python.truediv),
    "_operator.pow": (2, _power),
    "_operator.neg": (1, python.neg),
    "_operator.pos": (1, python.pos),
    "_operator.eq": (2, python.eq),
    "_operator.ne": (2, python.ne),
    "_operator.lt": (2, python.lt),
    "_operator.le": (2, python.le),
    "_operator.gt": (2, python.gt),
    "_operator.ge": (2, python.ge),
    "_operator.and_": (2, python.and_),
    "_operator.or_": (2, python.or_),
    "math.trunc": (1, math.trunc),
    "torch.sym_not": (1, python.not_),
    "torch.sym_int": (1, int),
    "torch.sym_float": (1, float),
    "torch.sym_max": (2, max),
    "torch.sym_min": (2, min),
    "torch.sym_ite": (3, _either),
}


def _of_sizes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of sizes that refuses what is no size."""

    def run(*sizes: Any) -> Any:
        return _whole(function(*(_whole(size) for size in sizes)))

    return run


def _size_of(x: Any, dim: int) -> int:
    return int(x.shape[dim])


def _numel_of(x: Any) -> int:
    return int(x.numel())


@cache
def table() -> dict[str, Operator]:
    """Return the operators by the name that stands in a file."""
    found = {}
    for name in (*AS_THEY_ARE, *_SPECIAL, *_MAKING, *_LIKE):
        packet, overload = name.split(".")
        # Older torch lacks a few of these names: a file that it reads cannot have them.
        own = getattr(getattr(torch.ops.aten, packet, None), overload, None)
        if own is not None:
            found[f"torch.ops.aten.{name}"] = _from_schema(name, packet, own)
    for name, (count, function) in _PYTHON.items():
        parameters = tuple(Parameter(f"size {i}", "number", True, False) for i in range(count))
        found[name] = Operator(name, "size", _of_sizes(function), parameters)
    dim = Parameter("dim", "int", True, False)
    tensor = Parameter("self", "Tensor", True, False)
    found["torch.ops.aten.sym_size.int"] = Operator("torch.ops.aten.sym_size.int", "size", _size_of, (tensor, dim))
    found["torch.ops.aten.sym_numel.default"] = Operator("torch.ops.aten.sym_numel.default", "size", _numel_of, (tensor,))
    return found


def _from_schema(name: str, packet: str, own: Any) -> Operator:
    schema = own._schema
    parameters = tuple(
        Parameter(argument.name, str(argument.real_type), not argument.has_default_value(), argument.kwarg_only)
        for argument in schema.arguments
    )
    writes = any(argument.alias_info is not None and argument.alias_info.is_write for argument in schema.arguments)
    shares = packet in _MAY_RETURN_INPUT or any(returned.alias_info is not None for returned in schema.returns)
    viewed = {a.name for a in schema.arguments if a.alias_info is not None}
    if packet in _MAY_RETURN_INPUT:
        viewed |= {a.name for a in schema.arguments if "Tensor" in str(a.type)}
    makes = name in _MAKING
    kind = KINDS.get(packet, packet.strip("_"))
    return Operator(
        f"torch.ops.aten.{name}",
        kind,
        _SPECIAL.get(name, f.made(own) if makes else own),
        parameters,
        by_keyword=name in _SPECIAL,
        makes=makes,
        lists=any(str(returned.type) == "List[Tensor]" for returned in schema.returns),
        views=frozenset(viewed) if shares and name != "lift_fresh.default" else frozenset(),
        writes=writes and packet not in ("dropout_",),
    )


def bind(operator: Operator, node: Node) -> Bound:
    """Check a node's arguments against an operator's parameters.

    Raises
    ------
    Problem
        One is missing, unknown, given twice, of another type, too large, or asks for training.
    """
    given = _by_name(operator, node)
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    gap = False
    for position, parameter in enumerate(operator.parameters):
        if parameter.name not in given:
            if parameter.needed:
                raise Problem(f"has {operator.target} without its argument {parameter.name!r}")
            gap = True
            continue
        value = _checked(operator, parameter, given[parameter.name])
        if parameter.name in ABOUT_PLACE:
            gap = True
        elif parameter.by_name or gap or (operator.by_keyword and position > 0):
            keywords[parameter.name] = value
            gap = True
        else:
            positional.append(value)
    _check_evaluation(operator, keywords | dict(zip((p.name for p in operator.parameters), positional, strict=False)))
    return Bound(tuple(positional), keywords)


def _by_name(operator: Operator, node: Node) -> dict[str, Argument]:
    known = [parameter.name for parameter in operator.parameters]
    given: dict[str, Argument] = {}
    for position, (name, by_position, argument) in enumerate(node.inputs):
        if operator.kind == "size" and not operator.target.startswith("torch.ops"):
            name = f"size {position}"  # torch names them after the parameters of Python's functions  # noqa: PLW2901
        # torch's own reader goes by the position where there is one, by the name else: both must say the same.
        if name not in known or name in given or (by_position and (position >= len(known) or known[position] != name)):
            raise Problem(
                f"has {operator.target} with an argument {short(name)} in place {position}; its own are {', '.join(known)}"
            )
        given[name] = argument
    return given


def _check_evaluation(operator: Operator, values: dict[str, Any]) -> None:
    dropped = any(values.get(name, 0) != 0 for name in ("p", "dropout_p", "dropout") if not isinstance(values.get(name), Name))
    training = any(values.get(name) is True for name in _IN_EVALUATION)
    if "dropout_p" in values and dropped:
        raise Problem(f"holds {operator.target} with dropout: export it after model.eval()")
    if not training:
        return
    if operator.kind == "batch_norm" and operator.target.endswith(".no_stats"):
        return  # instance norm, as torch decomposes it
    if "dropout" in operator.target or operator.kind in ("batch_norm", "rrelu") or dropped:
        raise Problem(f"was exported in training mode ({operator.target}): export it after model.eval()")


def _checked(operator: Operator, parameter: Parameter, argument: Argument) -> Any:
    """Return an argument as the operator takes it."""
    optional, wanted = parameter.type.startswith("Optional["), parameter.type.removeprefix("Optional[")
    wanted = wanted[:-1] if optional else wanted
    if argument.kind == "as_none" or argument.value is None:
        if not optional:
            raise Problem(f"has {operator.target} with none for its argument {parameter.name!r}")
        return None
    kinds, several = _KINDS.get(wanted, ((), False))
    if argument.kind not in kinds:
        # A single number stands for a list of one, and an empty list is of any kind.
        if several and argument.value == []:
            return []
        raise Problem(f"has {operator.target} with {argument.kind} for its argument {parameter.name!r}, a {wanted}")
    value = argument.value
    limit = MOST if operator.kind not in _ENDS else 2**63
    for part in value if isinstance(value, list) else (value,):
        if isinstance(part, int) and abs(part) > limit and wanted != "number":
            raise Problem(f"has {operator.target} with {part} for its argument {parameter.name!r}")
    return [value] if several and not isinstance(value, list) else value


_NUMBERS = ("as_int", "as_float", "as_bool", "as_sym_int", "as_sym_float")
_TENSORS = ("as_tensor", "as_optional_tensor")
_KINDS: dict[str, tuple[tuple[str, ...], bool]] = {
    "Tensor": ((*_TENSORS, *_NUMBERS), False),
    "List[Tensor]": (("as_tensors",), True),
    "List[Optional[Tensor]]": (("as_optional_tensors", "as_tensors"), True),
    "int": (("as_int", "as_sym_int"), False),
    "SymInt": (("as_int", "as_sym_int"), False),
    "List[int]": (("as_ints", "as_sym_ints", "as_int", "as_sym_int"), True),
    "List[SymInt]": (("as_ints", "as_sym_ints", "as_int", "as_sym_int"), True),
    "float": (("as_float", "as_int", "as_sym_float"), False),
    "List[float]": (("as_floats", "as_ints", "as_float"), True),
    "bool": (("as_bool",), False),
    "List[bool]": (("as_bools",), True),
    "number": (_NUMBERS, False),
    "str": (("as_string",), False),
    "ScalarType": (("as_scalar_type",), False),
    "Layout": (("as_layout",), False),
    "MemoryFormat": (("as_memory_format",), False),
    "Device": (("as_device",), False),
}

__all__ = ["CHECKS", "Bound", "Operator", "Parameter", "bind", "table"]
