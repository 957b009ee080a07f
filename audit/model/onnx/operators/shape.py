"""Operators that arrange numbers anew (Reshape, Concat, Pad), and that make and tell shapes (Shape, Constant, Range)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from audit.model.onnx.operators import Node, Operation, Unsupported, operator
from audit.model.onnx.operators.values import (
    MOST,
    axes_of,
    axis_of,
    broadcast_shape,
    check,
    check_padded,
    integer,
    integers,
    made,
    number,
    read,
    read_numbers,
    read_one,
    text,
    together,
)


@operator("Reshape")
def reshape(node: Node) -> Operation:
    """Lay the numbers out in another shape, in which 0 keeps a length and -1 takes what is left."""
    if node.opset < 5:
        check(node, 1, 1, ("shape",))
        named = integers(node, "shape", least=-1)
        return Operation("reshape", lambda x: x.reshape(_resolved(x, named, zeros_count=False)))
    check(node, 2, 2, ("allowzero",) if node.opset >= 14 else ())
    zeros_count = bool(integer(node, "allowzero", 0))

    def compute(x: Tensor, shape: Tensor) -> Tensor:
        if shape.device.type == "meta":
            raise Unsupported("Reshape to a shape that depends on the input")
        return x.reshape(_resolved(x, read("Reshape", "a shape", shape), zeros_count=zeros_count))

    return Operation("reshape", compute)


def _resolved(x: Tensor, shape: Sequence[int], *, zeros_count: bool) -> list[int]:
    if any(not -1 <= length <= MOST for length in shape) or shape.count(-1) > 1:
        raise ValueError(f"Reshape: cannot read the shape {list(shape)[:8]}")
    if zeros_count and 0 in shape and -1 in shape:
        raise ValueError("Reshape: with allowzero, a shape cannot hold both 0 and -1")
    if not zeros_count:
        if any(length == 0 and axis >= x.ndim for axis, length in enumerate(shape)):
            raise ValueError(f"Reshape: a 0 keeps the length of an axis that {tuple(x.shape)} does not have")
        shape = [x.shape[axis] if length == 0 else length for axis, length in enumerate(shape)]
    known = math.prod(length for length in shape if length != -1)
    if (known == 0 or x.numel() % known) if -1 in shape else known != x.numel():
        raise ValueError(f"Reshape: {tuple(x.shape)} cannot take the shape {list(shape)[:8]}")
    return [x.numel() // known if length == -1 else length for length in shape]


@operator("Flatten")
def flatten(node: Node) -> Operation:
    """Return a matrix: the axes before `axis` taken together, and those from it on."""
    check(node, 1, 1, ("axis",))
    axis = integer(node, "axis", 1)

    def compute(x: Tensor) -> Tensor:
        first = x.ndim if axis == x.ndim else axis_of("Flatten", axis, x.ndim)
        return x.reshape(math.prod(x.shape[:first]), math.prod(x.shape[first:]))

    return Operation("flatten", compute)


@operator("Transpose")
def transpose(node: Node) -> Operation:
    """Return the axes in another order, by default from last to first."""
    check(node, 1, 1, ("perm",))
    order = integers(node, "perm") if "perm" in node.attributes else None

    def compute(x: Tensor) -> Tensor:
        wanted = tuple(reversed(range(x.ndim))) if order is None else order
        if sorted(wanted) != list(range(x.ndim)):
            raise ValueError(f"Transpose: {wanted[:8]} is no order of {x.ndim} axes")
        return x.permute(wanted)

    return Operation("permute", compute)


@operator("Squeeze")
def squeeze(node: Node) -> Operation:
    """Drop axes of length one: those named, or all."""
    check(node, 1, 2 if node.opset >= 13 else 1, () if node.opset >= 13 else ("axes",))
    named = integers(node, "axes") if "axes" in node.attributes else None

    def compute(x: Tensor, axes: Tensor | None = None) -> Tensor:
        asked = named if axes is None else read("Squeeze", "axes", axes)
        dropped = [axis for axis, n in enumerate(x.shape) if n == 1] if asked is None else axes_of("Squeeze", asked, x.ndim)
        if any(x.shape[axis] != 1 for axis in dropped):
            raise ValueError(f"Squeeze: axes {dropped} of {tuple(x.shape)} are not all of length one")
        return x.reshape([n for axis, n in enumerate(x.shape) if axis not in dropped])

    return Operation("squeeze", compute)


@operator("Unsqueeze")
def unsqueeze(node: Node) -> Operation:
    """Put in axes of length one, counted in the result."""
    check(node, 2 if node.opset >= 13 else 1, 2 if node.opset >= 13 else 1, () if node.opset >= 13 else ("axes",))
    named = integers(node, "axes") if node.opset < 13 else ()

    def compute(x: Tensor, axes: Tensor | None = None) -> Tensor:
        asked = named if axes is None else read("Unsqueeze", "axes", axes)
        rank = x.ndim + len(asked)
        new, lengths = axes_of("Unsqueeze", asked, rank), iter(x.shape)
        return x.reshape([1 if axis in new else next(lengths) for axis in range(rank)])

    return Operation("unsqueeze", compute)


@operator("Concat")
def concat(node: Node) -> Operation:
    """Join tensors along an axis."""
    check(node, 1, None, ("axis",))
    axis = integer(node, "axis", 1 if node.opset < 4 else None)

    def compute(*tensors: Tensor) -> Tensor:
        along = axis_of("Concat", axis, tensors[0].ndim)
        others = {tuple(n for place, n in enumerate(tensor.shape) if place != along) for tensor in tensors}
        if len(others) > 1 or len({(tensor.ndim, tensor.is_floating_point()) for tensor in tensors}) > 1:
            raise ValueError("Concat: the tensors differ in type, or in an axis other than the one they are joined along")
        return torch.cat(together("Concat", *tensors, numbers=sum(tensor.numel() for tensor in tensors)), dim=along)

    return Operation("cat", compute)


@operator("Expand")
def expand(node: Node) -> Operation:
    """Repeat along axes of length one until the shape is that of both."""
    check(node, 2, 2)

    def compute(x: Tensor, shape: Tensor) -> Tensor:
        wanted = read("Expand", "a shape", shape)
        if any(not 0 <= length <= MOST for length in wanted):
            raise ValueError(f"Expand: cannot read the shape {wanted[:8]}")
        return x.broadcast_to(broadcast_shape(x, wanted))

    return Operation("expand", compute)


@operator("Tile")
def tile(node: Node) -> Operation:
    """Repeat the whole tensor along each axis; in opset 1 along one axis."""
    check(node, 3 if node.opset < 6 else 2, 3 if node.opset < 6 else 2)

    def compute(x: Tensor, repeats: Tensor, axis: Tensor | None = None) -> Tensor:
        times = read("Tile", "a number of repeats", repeats.long())
        if axis is not None:
            along, count = axis_of("Tile", read_one("Tile", "an axis", axis.long()), x.ndim), times
            times = [count[0] if place == along and len(count) == 1 else 1 for place in range(x.ndim)]
        if len(times) != x.ndim or any(not 0 <= count <= MOST for count in times):
            raise ValueError(f"Tile: cannot repeat {tuple(x.shape)} {times[:8]} times")
        return together("Tile", x, numbers=x.numel() * math.prod(times))[0].repeat(times)

    return Operation("repeat", compute)


@operator("Pad")
def pad(node: Node) -> Operation:
    """Put a constant, the edge or a mirror image around a tensor; negative padding cuts off."""
    modes = ("constant", "reflect", "edge", *(("wrap",) if node.opset >= 19 else ()))
    mode = text(node, "mode", "constant", modes)
    if node.opset < 11:
        name = "paddings" if node.opset < 2 else "pads"
        check(node, 1, 1, ("mode", name, "value"))
        named, value = integers(node, name), number(node, "value", 0.0)
        return Operation("pad", lambda x: _padded(x, named, range(x.ndim), mode, value))
    check(node, 2, 4 if node.opset >= 18 else 3, ("mode",))

    def compute(x: Tensor, pads: Tensor, constant: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
        along = range(x.ndim) if axes is None else axes_of("Pad", read("Pad", "axes", axes), x.ndim)
        sides = read("Pad", "padding", pads)
        if constant is None or constant.numel() == 0 or mode != "constant":
            return _padded(x, sides, along, mode, 0.0)
        if constant.numel() != 1 or constant.is_floating_point() != x.is_floating_point():
            raise ValueError("Pad: the constant should be one number of the input's type")
        if constant.device.type == "cpu" and not constant.requires_grad:
            return _padded(x, sides, along, mode, constant.item())
        inside = _padded(torch.ones_like(x, dtype=torch.bool), sides, along, mode, False)
        return torch.where(inside, _padded(x, sides, along, mode, 0.0), constant.reshape(()).to(inside.device))

    return Operation("pad", compute)


def _padded(x: Tensor, pads: Sequence[int], axes: Sequence[int], mode: str, value: float) -> Tensor:
    if len(pads) != 2 * len(axes):
        raise ValueError(f"Pad: {len(pads)} numbers for {len(axes)} axes")
    pairs = {axis: (pads[place], pads[place + len(axes)]) for place, axis in enumerate(axes)}
    sides = [pairs.get(axis, (0, 0)) for axis in range(x.ndim)]
    lengths = [n + begin + end for n, (begin, end) in zip(x.shape, sides, strict=True)]
    if any(not 0 <= n <= MOST for n in lengths) or any(-min(pair) > n for pair, n in zip(sides, x.shape, strict=True)):
        raise ValueError(f"Pad: padding {list(pads)[:8]} for a tensor of {tuple(x.shape)}")
    (x,) = together("Pad", x, numbers=math.prod(lengths))
    if mode == "constant":
        return functional.pad(x, [side for pair in reversed(sides) for side in pair], value=value)
    x = functional.pad(x, [min(side, 0) for pair in reversed(sides) for side in pair])
    for axis, (begin, end) in enumerate(sides):
        if begin > 0 or end > 0:
            x = _continued(x, axis, max(begin, 0), max(end, 0), mode)
    return x


def _continued(x: Tensor, axis: int, begin: int, end: int, mode: str) -> Tensor:
    n = x.shape[axis]
    if n == 0 or (mode == "reflect" and max(begin, end) >= n):
        raise ValueError(f"Pad: {mode} by {max(begin, end)} along an axis of {n}")
    check_padded("Pad", (1, begin + n + end))
    places = torch.arange(-begin, n + end, device=x.device)
    if mode == "reflect":
        places = (n - 1) - ((n - 1) - places.abs()).abs()
    elif mode == "edge":
        places = places.clamp(0, n - 1)
    else:
        places = places.remainder(n)
    return x.index_select(axis, places)


@operator("Shape")
def shape(node: Node) -> Operation:
    """Return the lengths of the axes, from `start` to before `end`."""
    check(node, 1, 1, ("end", "start") if node.opset >= 15 else ())
    start, end = integer(node, "start", 0, -(2**63), 2**63), integer(node, "end", MOST, -(2**63), 2**63)
    return Operation("shape", lambda x: torch.tensor(tuple(x.shape)[start:end], dtype=torch.int64))


@operator("Size")
def size(node: Node) -> Operation:
    """Return how many numbers a tensor has."""
    check(node, 1, 1)
    return Operation("shape", lambda x: torch.tensor(x.numel(), dtype=torch.int64))


@operator("Constant")
def constant(node: Node) -> Operation:
    """Return the tensor or the numbers that the node holds."""
    check(node, 0, 0, ("value", "value_float", "value_floats", "value_int", "value_ints"))
    if len(node.attributes) != 1:
        raise ValueError(f"Constant: expected one value, got {len(node.attributes)}")
    ((name, value),) = node.attributes.items()
    if name == "value":
        if not isinstance(value, Tensor):
            raise ValueError("Constant: value should be a tensor")
        tensor = value
    elif name in ("value_int", "value_ints"):
        several = integers(node, name, least=-(2**63), most=2**63 - 1) if name == "value_ints" else None
        tensor = torch.tensor(integer(node, name, None, -(2**63), 2**63 - 1) if several is None else several, dtype=torch.int64)
    else:
        values = value if name == "value_floats" else [value]
        if not isinstance(values, list | tuple) or not all(isinstance(part, int | float) for part in values):
            raise ValueError(f"Constant: {name} should hold numbers")
        tensor = torch.tensor(list(values), dtype=torch.float32)
        tensor = tensor if name == "value_floats" else tensor.reshape(())
    return Operation("constant", lambda: tensor)


@operator("ConstantOfShape")
def constant_of_shape(node: Node) -> Operation:
    """Return a tensor of the told shape that holds one number throughout."""
    check(node, 1, 1, ("value",))
    value = node.attributes.get("value", torch.zeros(1))
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ValueError("ConstantOfShape: value should be a tensor of one number")

    def compute(shape: Tensor) -> Tensor:
        lengths = read("ConstantOfShape", "a shape", shape)
        # One number stands for all of them, so that a large shape needs no memory.
        return made("ConstantOfShape", lengths, value.dtype, lambda device: value.to(device).reshape(()).expand(lengths))

    return Operation("full", compute)


@operator("Range")
def range_(node: Node) -> Operation:
    """Return start, start + delta, … up to before the limit."""
    check(node, 3, 3, ("stash_type",) if node.opset >= 27 else ())

    def compute(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
        if (
            start.numel() != 1
            or limit.numel() != 1
            or delta.numel() != 1
            or len({part.is_floating_point() for part in (start, limit, delta)}) > 1
        ):
            raise ValueError("Range: start, limit and delta should be one number each, of one type")
        dtype = start.dtype
        if dtype.is_floating_point:
            first, last, step = (read_numbers("Range", "a bound", part)[0] for part in (start, limit, delta))
            if not all(math.isfinite(part) for part in (first, last, step)) or step == 0:
                raise ValueError(f"Range: from {first} to {last} by {step}")
            count = max(math.ceil(min((last - first) / step, 2.0**62)), 0)
            return made("Range", [count], dtype, lambda device: _ramp(count, first, step, device).to(dtype))
        begin, end, by = (read_one("Range", "a bound", part) for part in (start, limit, delta))
        if by == 0:
            raise ValueError("Range: a delta of zero")
        count = max(-((begin - end) // by), 0)
        return made("Range", [count], dtype, lambda device: (torch.arange(count, device=device) * by + begin).to(dtype))

    return Operation("arange", compute)


def _ramp(count: int, first: float, step: float, device: torch.device) -> Tensor:
    return torch.arange(count, dtype=torch.float64, device=device) * step + first


def _blocks(name: str, kind: str, move: Callable[[Tensor, int, str], Tensor], modes_from: int) -> None:
    """Enter DepthToSpace or SpaceToDepth, which move blocks of pixels to channels or back."""

    def build(node: Node) -> Operation:
        check(node, 1, 1, ("blocksize", *(("mode",) if node.opset >= modes_from else ())))
        block, mode = integer(node, "blocksize", least=1, most=2**16), text(node, "mode", "DCR", ("DCR", "CRD"))

        def compute(x: Tensor) -> Tensor:
            if x.ndim != 4:
                raise ValueError(f"{name}: expected 4 axes, got {x.ndim}")
            return move(together(name, x)[0], block, mode)

        return Operation(kind, compute)

    operator(name)(build)


def _to_space(x: Tensor, block: int, mode: str) -> Tensor:
    n, channels, height, width = x.shape
    if channels % block**2:
        raise ValueError(f"DepthToSpace: {channels} channels do not make blocks of {block} x {block}")
    depth = channels // block**2
    if mode == "DCR":
        split = x.reshape(n, block, block, depth, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        split = x.reshape(n, depth, block, block, height, width).permute(0, 1, 4, 2, 5, 3)
    return split.reshape(n, depth, height * block, width * block)


def _to_depth(x: Tensor, block: int, mode: str) -> Tensor:
    n, channels, height, width = x.shape
    if height % block or width % block:
        raise ValueError(f"SpaceToDepth: {height} x {width} does not fall into blocks of {block} x {block}")
    split = x.reshape(n, channels, height // block, block, width // block, block)
    moved = split.permute(0, 3, 5, 1, 2, 4) if mode == "DCR" else split.permute(0, 1, 3, 5, 2, 4)
    return moved.reshape(n, channels * block**2, height // block, width // block)


_blocks("DepthToSpace", "pixel_shuffle", _to_space, modes_from=11)
_blocks("SpaceToDepth", "pixel_unshuffle", _to_depth, modes_from=28)
