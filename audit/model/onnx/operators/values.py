"""What the families of operators share: attributes checked, shapes read off tensors, operands brought to one device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from audit.model.graph import MOST_NUMBERS, TooLarge, only_shapes
from audit.model.onnx.operators import Node, Unsupported

# No kernel, stride, padding, axis length or count of an honest network is larger.
MOST = 2**31
# Numbers of a shape, of axes, of pads: as many as a tensor can have axes, and room to spare.
MOST_READ = 4096
# Integers of one tensor that is made from the file's numbers alone.
MOST_INTEGERS = 2**24
# Numbers of one tensor on the CPU while the network runs, where constants and a batch of data look alike.
MOST_INTEGERS_RUNNING = 2**27
MOST_NUMBERS_RUNNING = 2**31
# Up to here a tensor made from the file's numbers is computed even where only shapes are asked for.
SMALL = 4096

# The element types of the standard (TensorProto.DataType) that torch computes with in full.
TYPES: dict[int, torch.dtype] = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}


def check(node: Node, least: int, most: int | None, attributes: Sequence[str] = (), outputs: int | None = 1) -> None:
    """Check how many inputs and outputs a node has, and that nothing is asked of it that is not read here.

    Parameters
    ----------
    least, most
        How many inputs are needed, and how many there may be (any number where None).
    attributes
        Those that are read. Attributes that only steered memory in opsets 1 to 5 are let pass.
    outputs
        How many outputs there may be; any number where None.

    Raises
    ------
    ValueError
        There are too few or too many inputs.
    Unsupported
        There is an attribute or an output that is not read.
    """
    inputs = _without_trailing(node.inputs)
    needed = inputs if most is None else inputs[:least]
    if len(inputs) < least or not all(needed) or (most is not None and len(inputs) > most):
        raise ValueError(f"{node.op} has {len(inputs)} inputs, expected {_between(least, most)}")
    if outputs is not None and len(_without_trailing(node.outputs)) > outputs:
        raise Unsupported(f"{node.op} with {len(node.outputs)} outputs")
    for name in node.attributes:
        if name not in attributes and not (name == "consumed_inputs" and node.opset < 6):
            raise Unsupported(f"{node.op} with the attribute {name[:40]!r} in opset {node.opset}")


def _without_trailing(names: Sequence[str]) -> list[str]:
    kept = list(names)
    while kept and not kept[-1]:
        kept.pop()
    return kept


def _between(least: int, most: int | None) -> str:
    if least == most:
        return str(least)
    return f"{least} or more" if most is None else f"{least} to {most}"


def integer(node: Node, name: str, default: int | None = None, least: int = -MOST, most: int = MOST) -> int:
    """Return an attribute that is one integer; where it is missing and has no default, a ValueError says so."""
    value = _attribute(node, name, default)
    if not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{node.op}: {name} should be an integer from {least} to {most}, got {_short(value)}")
    return int(value)


def integers(
    node: Node, name: str, default: Sequence[int] | None = None, least: int = -MOST, most: int = MOST
) -> tuple[int, ...]:
    """Return an attribute that is a list of integers; where it is missing and has no default, a ValueError says so."""
    value = _attribute(node, name, default)
    right = isinstance(value, list | tuple) and len(value) <= MOST_READ
    if not right or not all(isinstance(part, int) and least <= part <= most for part in value):
        raise ValueError(f"{node.op}: {name} should be a list of integers from {least} to {most}, got {_short(value)}")
    return tuple(value)


def number(node: Node, name: str, default: float | None = None) -> float:
    """Return an attribute that is one number."""
    value = _attribute(node, name, default)
    if not isinstance(value, int | float):
        raise ValueError(f"{node.op}: {name} should be a number, got {_short(value)}")  # noqa: TRY004  (the contract of operators)
    return float(value)


def text(node: Node, name: str, default: str, known: Sequence[str]) -> str:
    """Return an attribute that is one of the known words; another word is Unsupported by name."""
    value = _attribute(node, name, default)
    if value not in known:
        raise Unsupported(f"{node.op} with {name} {_short(value)}")
    return str(value)


def _attribute(node: Node, name: str, default: Any) -> Any:
    value = node.attributes.get(name, default)
    if value is None:
        raise ValueError(f"{node.op} needs the attribute {name}")
    return value


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return "a tensor"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, int) and abs(value) > 10**20:
        return "a very large integer"
    return repr(value)[:60]


def read(op: str, what: str, value: Tensor) -> list[int]:
    """Return the integers of a tensor that tells a shape, axes or counts.

    Raises
    ------
    Unsupported
        They are computed from the network's input, so that they are not known before it runs.
    ValueError
        They are no integers, or more than `MOST_READ`.
    """
    if value.device.type == "meta":
        raise Unsupported(f"{op} with {what} that depends on the input")
    if value.is_floating_point() or value.dtype == torch.bool or value.numel() > MOST_READ:
        raise ValueError(f"{op}: {what} should be at most {MOST_READ} integers, got {value.numel()} of {value.dtype}")
    return [int(part) for part in value.reshape(-1).tolist()]


def read_numbers(op: str, what: str, value: Tensor) -> list[float]:
    """Return the floating-point numbers of a small tensor, as `read` does for integers."""
    if value.device.type == "meta":
        raise Unsupported(f"{op} with {what} that depends on the input")
    if value.numel() > MOST_READ:
        raise ValueError(f"{op}: {what} should be at most {MOST_READ} numbers, got {value.numel()}")
    return [float(part) for part in value.reshape(-1).tolist()]


def read_one(op: str, what: str, value: Tensor) -> int:
    """Return the one integer of a tensor that tells an axis or a count."""
    found = read(op, what, value)
    if len(found) != 1:
        raise ValueError(f"{op}: {what} should be one integer, got {len(found)}")
    return found[0]


def axis_of(op: str, axis: int, rank: int) -> int:
    """Return an axis counted from the front; one outside ``[-rank, rank)`` is a ValueError."""
    if not -rank <= axis < rank:
        raise ValueError(f"{op}: axis {axis} of a tensor with {rank} axes")
    return axis % rank


def axes_of(op: str, axes: Sequence[int], rank: int) -> list[int]:
    """Return different axes counted from the front."""
    found = [axis_of(op, axis, rank) for axis in axes]
    if len(set(found)) != len(found):
        raise ValueError(f"{op}: an axis is named twice")
    return found


def floating(op: str, *tensors: Tensor | None) -> None:
    """Check that tensors of data hold floating-point numbers: integers are not computed with in this operator."""
    for tensor in tensors:
        if tensor is not None and not tensor.is_floating_point():
            raise Unsupported(f"{op} of {str(tensor.dtype).removeprefix('torch.')}")


def data(op: str, first: Tensor, *others: Tensor | None) -> list[Any]:
    """Bring floating-point operands to one device; where only shapes are asked for, that is the meta device in any case.

    Raises
    ------
    Unsupported
        One holds no floating-point numbers.
    """
    floating(op, first, *others)
    given = [tensor for tensor in (first, *others) if tensor is not None]
    elsewhere = next((tensor.device for tensor in given if tensor.device.type != "cpu"), None)
    if elsewhere is None and only_shapes.get():
        elsewhere = torch.device("meta")
    if elsewhere is None:
        return [first, *others]
    return [tensor if tensor is None or tensor.device == elsewhere else tensor.to(elsewhere) for tensor in (first, *others)]


def together(op: str, *tensors: Tensor, numbers: int | None = None) -> tuple[Tensor, ...]:
    """Bring operands to one device, and refuse a result that is made from the file's numbers alone and far too large.

    Shapes and constants are on the CPU; they follow data to the network's device, or to the meta device. Where only shapes are
    asked for, large floating-point constants go to the meta device, too, so that no memory and no time is spent on them.

    Parameters
    ----------
    numbers
        How many numbers the result has; where None, as many as the largest operand.

    Raises
    ------
    TooLarge
        The result would have more numbers than any honest network's has.
    """
    numbers = max((tensor.numel() for tensor in tensors), default=0) if numbers is None else numbers
    elsewhere = next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), None)
    if elsewhere is None and numbers > SMALL:
        if only_shapes.get() and any(tensor.is_floating_point() for tensor in tensors):
            elsewhere = torch.device("meta")
        elif numbers > _most(tensors):
            raise TooLarge(f"the step {op} makes {numbers:,} numbers")
    if elsewhere is None:
        return tensors
    return tuple(tensor if tensor.device.type == elsewhere.type else tensor.to(elsewhere) for tensor in tensors)


def _most(tensors: Sequence[Tensor]) -> int:
    if only_shapes.get():
        return MOST_INTEGERS
    # A truth takes a byte, and comparing data makes as many of them as there are data.
    light = any(tensor.is_floating_point() or tensor.dtype == torch.bool for tensor in tensors)
    return MOST_NUMBERS_RUNNING if light else MOST_INTEGERS_RUNNING


def broadcast_shape(*operands: Tensor | Sequence[int]) -> torch.Size:
    """Return the shape that tensors, or shapes, have together."""
    shapes = [tuple(operand.shape) if isinstance(operand, Tensor) else tuple(operand) for operand in operands]
    return torch.Size(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]


def made(op: str, shape: Sequence[int], dtype: torch.dtype, make: Callable[[torch.device], Tensor]) -> Tensor:
    """Make a constant of a shape that the file tells: on the CPU, or on the meta device where `together` would send it.

    Raises
    ------
    TooLarge
        It would have more numbers than any honest network's has.
    """
    if any(not 0 <= length <= MOST for length in shape):
        raise ValueError(f"{op}: lengths of axes should be from 0 to {MOST}")
    numbers = math.prod(shape)
    if numbers > (MOST_NUMBERS if dtype.is_floating_point else MOST_INTEGERS):
        raise TooLarge(f"the step {op} makes {numbers:,} numbers from constants")
    away = only_shapes.get() and dtype.is_floating_point and numbers > SMALL
    return make(torch.device("meta" if away else "cpu"))


def check_padded(op: str, shape: Sequence[int]) -> None:
    """Refuse padding that makes a value of this shape larger, sample by sample, than any honest network's."""
    if math.prod(shape[1:]) > MOST_NUMBERS:
        raise TooLarge(
            f"the step {op} makes {math.prod(shape[1:]):,} numbers from one sample, at most {MOST_NUMBERS:,} are computed"
        )
