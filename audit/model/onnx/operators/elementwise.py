"""Arithmetic, comparisons and logic, number by number; of shapes on the CPU as of data."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from audit.model.onnx.operators import Node, Operation, Unsupported, operator
from audit.model.onnx.operators.values import TYPES, broadcast_shape, check, data, integer, read, text, together

_Binary = Callable[[Tensor, Tensor], Tensor]
# Names of types as opsets 1 to 5 spell them in Cast.
_NAMES = {
    "FLOAT": 1,
    "UINT8": 2,
    "INT8": 3,
    "INT16": 5,
    "INT32": 6,
    "INT64": 7,
    "BOOL": 9,
    "FLOAT16": 10,
    "DOUBLE": 11,
}
_KNOWN_TYPES = frozenset(TYPES.values())


def broadcast(op: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Bring operands to one device after a look at the shape of their result."""
    return together(op, *tensors, numbers=broadcast_shape(*tensors).numel())


def _sort(tensor: Tensor) -> str:
    if tensor.dtype not in _KNOWN_TYPES:
        raise Unsupported(f"arithmetic of {str(tensor.dtype).removeprefix('torch.')}")
    return "bool" if tensor.dtype == torch.bool else "float" if tensor.is_floating_point() else "int"


def _check_types(op: str, *tensors: Tensor) -> None:
    """Refuse operands of different sorts: torch would convert them, where the specification has them alike."""
    if len({_sort(tensor) for tensor in tensors}) > 1:
        raise ValueError(
            f"{op} of different types: {', '.join(str(tensor.dtype).removeprefix('torch.') for tensor in tensors)}"
        )


def _aligned(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """Return `b` as opsets 1 to 6 lay it along `a`: from `axis` on, or along the last axes."""
    if not integer(node, "broadcast", 0):
        # The batch is free: what was saved for one sample meets any number of them.
        if a.ndim != b.ndim or a.shape[1:] != b.shape[1:] or (a.shape[:1] != b.shape[:1] and 1 not in (len(a), len(b))):
            raise ValueError(f"{node.op} without broadcast: shapes {tuple(a.shape)} and {tuple(b.shape)}")
        return b
    if b.numel() == 1:
        return b.reshape(())
    axis = integer(node, "axis", -1, least=-1)
    axis = a.ndim - b.ndim if axis == -1 else axis
    after = a.ndim - axis - b.ndim
    if axis < 0 or after < 0 or any(n not in (1, m) for m, n in zip(a.shape[axis : axis + b.ndim], b.shape, strict=True)):
        raise ValueError(f"{node.op}: shape {tuple(b.shape)} does not lie along {tuple(a.shape)} from axis {axis}")
    return b.reshape(*b.shape, *(1,) * after)


def _binary(name: str, kind: str, function: _Binary, *sorts: str) -> None:
    """Enter an operator of two operands of one type, with the old way to broadcast before opset 7."""

    def build(node: Node) -> Operation:
        older = node.opset < 7 and name in _BROADCAST_ONCE
        check(node, 2, 2, ("axis", "broadcast") if older else ())

        def compute(a: Tensor, b: Tensor) -> Tensor:
            _check_types(name, a, b)
            if sorts and _sort(a) not in sorts:
                raise ValueError(f"{name} of {_sort(a)}")
            a, b = broadcast(name, a, _aligned(node, a, b) if older else b)
            return function(a, b)

        return Operation(kind, compute)

    operator(name)(build)


def _divide(a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point():
        return a / b
    if a.dtype == torch.uint8 or b.dtype == torch.uint8:
        return torch.div(a, b, rounding_mode="trunc")
    # Not by -1: the smallest whole number over it would stop the process (SIGFPE).
    by_minus_one = b == -1
    found = torch.div(a, torch.where(by_minus_one, 1, b), rounding_mode="trunc")
    return torch.where(by_minus_one, -found, found)


_BROADCAST_ONCE = ("Add", "Sub", "Mul", "Div", "Equal", "Greater", "Less", "And", "Or", "Xor")
_NUMBERS = ("int", "float")
_binary("Add", "add", torch.add, *_NUMBERS)
_binary("Sub", "sub", torch.sub, *_NUMBERS)
_binary("Mul", "mul", torch.mul, *_NUMBERS)
_binary("Div", "div", _divide, *_NUMBERS)
_binary("Equal", "eq", torch.eq)
_binary("Greater", "gt", torch.gt, *_NUMBERS)
_binary("Less", "lt", torch.lt, *_NUMBERS)
_binary("GreaterOrEqual", "ge", torch.ge, *_NUMBERS)
_binary("LessOrEqual", "le", torch.le, *_NUMBERS)
_binary("And", "logical_and", torch.logical_and, "bool")
_binary("Or", "logical_or", torch.logical_or, "bool")
_binary("Xor", "logical_xor", torch.logical_xor, "bool")


@operator("Pow")
def power(node: Node) -> Operation:
    """Return A to the power of B, in A's type; from opset 12 on the exponent may be of another type."""
    check(node, 2, 2, ("axis", "broadcast") if node.opset < 7 else ())

    def compute(a: Tensor, b: Tensor) -> Tensor:
        if node.opset < 12:
            _check_types("Pow", a, b)
        a, b = broadcast("Pow", a, _aligned(node, a, b) if node.opset < 7 else b)
        if b.is_floating_point() and not a.is_floating_point():
            return torch.pow(a.double(), b.double()).to(a.dtype)
        return torch.pow(a, b).to(a.dtype)

    return Operation("pow", compute)


@operator("Mod")
def mod(node: Node) -> Operation:
    """Remainder with the sign of the divisor, or (``fmod``) of the dividend, as floats need before opset 28."""
    check(node, 2, 2, ("fmod",))
    of_dividend = bool(integer(node, "fmod", 0, least=0, most=1))

    def compute(a: Tensor, b: Tensor) -> Tensor:
        _check_types("Mod", a, b)
        if a.is_floating_point() and not of_dividend and node.opset < 28:
            raise ValueError("Mod of floating-point numbers needs fmod 1")
        a, b = broadcast("Mod", a, b)
        return torch.fmod(a, b) if of_dividend else torch.remainder(a, b)

    return Operation("fmod" if of_dividend else "remainder", compute)


def _variadic(name: str, kind: str, function: _Binary, *, mean: bool = False) -> None:
    """Enter an operator of any number of operands; before opset 8 they have one shape."""

    def build(node: Node) -> Operation:
        check(node, 1, None)

        def compute(*tensors: Tensor) -> Tensor:
            _check_types(name, *tensors)
            if node.opset < 8 and len({tuple(tensor.shape[1:]) for tensor in tensors}) > 1:
                raise ValueError(f"{name} of different shapes, in opset {node.opset}")
            found = reduce(function, broadcast(name, *tensors))
            return found / len(tensors) if mean else found

        return Operation(kind, compute)

    operator(name)(build)


_variadic("Min", "minimum", torch.minimum)
_variadic("Max", "maximum", torch.maximum)
_variadic("Sum", "add", torch.add)
_variadic("Mean", "mean", torch.add, mean=True)


def _unary(name: str, kind: str, function: Callable[[Tensor], Tensor], *sorts: str) -> None:
    def build(node: Node) -> Operation:
        check(node, 1, 1)

        def compute(x: Tensor) -> Tensor:
            if _sort(x) not in (sorts or ("float",)):
                raise Unsupported(f"{name} of {_sort(x)}")
            return function(*together(name, x))

        return Operation(kind, compute)

    operator(name)(build)


for _name, _kind, _function, _sorts in (
    ("Neg", "neg", torch.neg, _NUMBERS),
    ("Abs", "abs", torch.abs, _NUMBERS),
    ("Sign", "sign", torch.sign, _NUMBERS),
    ("Exp", "exp", torch.exp, ()),
    ("Log", "log", torch.log, ()),
    ("Sqrt", "sqrt", torch.sqrt, ()),
    ("Reciprocal", "reciprocal", torch.reciprocal, ()),
    ("Floor", "floor", torch.floor, ()),
    ("Ceil", "ceil", torch.ceil, ()),
    ("Round", "round", torch.round, ()),
    ("Sin", "sin", torch.sin, ()),
    ("Cos", "cos", torch.cos, ()),
    ("Tan", "tan", torch.tan, ()),
    ("Asin", "asin", torch.asin, ()),
    ("Acos", "acos", torch.acos, ()),
    ("Atan", "atan", torch.atan, ()),
    ("Sinh", "sinh", torch.sinh, ()),
    ("Cosh", "cosh", torch.cosh, ()),
    ("Asinh", "asinh", torch.asinh, ()),
    ("Acosh", "acosh", torch.acosh, ()),
    ("Atanh", "atanh", torch.atanh, ()),
    ("Not", "logical_not", torch.logical_not, ("bool",)),
    ("IsNaN", "isnan", torch.isnan, ()),
):
    _unary(_name, _kind, _function, *_sorts)


@operator("IsInf")
def is_inf(node: Node) -> Operation:
    """Whether a number is infinite, of either sign or of one."""
    check(node, 1, 1, ("detect_negative", "detect_positive"))
    negative, positive = bool(integer(node, "detect_negative", 1)), bool(integer(node, "detect_positive", 1))

    def compute(x: Tensor) -> Tensor:
        (x,) = data("IsInf", x)
        infinite = torch.isinf(x)
        return infinite & ((negative & (x < 0)) | (positive & (x > 0)))

    return Operation("isinf", compute)


@operator("Where")
def where(node: Node) -> Operation:
    """X where the condition holds, Y elsewhere."""
    check(node, 3, 3)

    def compute(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
        _check_types("Where", x, y)
        if condition.dtype != torch.bool:
            raise ValueError(f"Where: the condition should be bool, got {condition.dtype}")
        condition, x, y = broadcast("Where", condition, x, y)
        return torch.where(condition, x, y)

    return Operation("where", compute)


def type_of(op: str, code: int | str) -> torch.dtype:
    """Return torch's type for an element type of the standard; one that torch cannot compute with is Unsupported."""
    number = _NAMES.get(code, 0) if isinstance(code, str) else code
    if number not in TYPES:
        raise Unsupported(f"{op} to the element type {str(code)[:20]}")
    return TYPES[number]


@operator("Cast")
def cast(node: Node) -> Operation:
    """Return the numbers in another type; fractions are cut off towards zero."""
    # saturate and round_mode steer types of 8 bits and less alone, which are not read.
    check(node, 1, 1, ("to", *(("saturate",) if node.opset >= 19 else ()), *(("round_mode",) if node.opset >= 24 else ())))
    to = type_of("Cast", text(node, "to", "", list(_NAMES)) if node.opset < 6 else integer(node, "to"))
    return Operation("to", lambda x: together("Cast", x)[0].to(to))


@operator("CastLike")
def cast_like(node: Node) -> Operation:
    """Return the numbers in the type of another tensor."""
    check(node, 2, 2, ("saturate", "round_mode"))
    return Operation("to", lambda x, like: together("CastLike", x)[0].to(like.dtype))


@operator("Identity")
def identity(node: Node) -> Operation:
    """Return what comes in."""
    check(node, 1, 1)
    return Operation("identity", lambda x: x)


@operator("Dropout")
def dropout(node: Node) -> Operation:
    """Return what comes in, as a network does that is not being trained."""
    older = (("ratio", "is_test") if node.opset < 7 else ("ratio",)) if node.opset < 12 else ("seed",)
    check(node, 1, 3 if node.opset >= 12 else 1, older, outputs=2)
    if node.opset < 7 and not integer(node, "is_test", 0):
        raise Unsupported("Dropout in training mode (is_test 0)")

    def compute(x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None) -> Any:  # noqa: ARG001  (the operator's inputs)
        if training is not None and any(read("Dropout", "training_mode", training.to(torch.uint8))):
            raise Unsupported("Dropout in training mode")
        return (x, torch.ones_like(x, dtype=torch.bool)) if len(node.outputs) > 1 else x

    return Operation("dropout", compute)
