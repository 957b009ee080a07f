"""Operators that choose parts of a tensor: Slice, Split, Gather and its kin, OneHot, Trilu."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from audit.model.onnx.operators import Node, Operation, Unsupported, operator
from audit.model.onnx.operators.values import axes_of, axis_of, check, integer, integers, read, read_one, together

_FAR = 2**63


@operator("Slice")
def slice_(node: Node) -> Operation:
    """Return every step-th part from start to end along axes, backwards where the step is negative."""
    if node.opset < 10:
        check(node, 1, 1, ("axes", "ends", "starts"))
        starts, ends = (integers(node, name, least=-_FAR, most=_FAR) for name in ("starts", "ends"))
        axes = integers(node, "axes", tuple(range(len(starts))))
        return Operation("slice", lambda x: _sliced(x, starts, ends, axes, (1,) * len(starts)))
    check(node, 3, 5)

    def compute(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
        first, last = read("Slice", "starts", starts), read("Slice", "ends", ends)
        along = list(range(len(first))) if axes is None else read("Slice", "axes", axes)
        return _sliced(x, first, last, along, [1] * len(first) if steps is None else read("Slice", "steps", steps))

    return Operation("slice", compute)


def _sliced(x: Tensor, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int], steps: Sequence[int]) -> Tensor:
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise ValueError("Slice: starts, ends, axes and steps should be as many, and no step zero")
    for axis, start, end, step in zip(axes_of("Slice", axes, x.ndim), starts, ends, steps, strict=True):
        if step < 0 and start < -x.shape[axis]:
            raise ValueError(f"Slice: backwards from {start}, before the beginning of an axis of {x.shape[axis]}")
        chosen = range(*slice(start, end, step).indices(x.shape[axis]))
        if len(chosen) == 0:
            x = x.narrow(axis, 0, 0)
            continue
        low, high = min(chosen[0], chosen[-1]), max(chosen[0], chosen[-1])
        x = x.narrow(axis, low, high - low + 1)[(*(slice(None),) * axis, slice(None, None, abs(step)))]
        x = x.flip(axis) if step < 0 else x
    return x


@operator("Split")
def split(node: Node) -> Operation:
    """Cut a tensor into parts along an axis, of told lengths or as equal as can be."""
    told = node.opset >= 13
    attributes = ("axis", *(("split",) if not told else ()), *(("num_outputs",) if node.opset >= 18 else ()))
    check(node, 1, 2 if told or node.opset == 1 else 1, attributes, outputs=None)
    axis, parts = integer(node, "axis", 0), len(node.outputs)
    named = integers(node, "split", (), least=0)
    if "num_outputs" in node.attributes and integer(node, "num_outputs", least=1) != parts:
        raise ValueError(f"Split: num_outputs is {integer(node, 'num_outputs')}, but there are {parts} outputs")

    def compute(x: Tensor, lengths: Tensor | None = None) -> Any:
        along = axis_of("Split", axis, x.ndim)
        sizes = list(named) if lengths is None else read("Split", "split", lengths)
        if not sizes:
            size = -(-x.shape[along] // parts)
            sizes = [size] * (parts - 1) + [x.shape[along] - size * (parts - 1)]
            if min(sizes) < 0 or (node.opset < 18 and sizes[-1] != size):
                raise ValueError(f"Split: {x.shape[along]} cannot be cut into {parts} equal parts")
        if len(sizes) != parts or min(sizes) < 0 or sum(sizes) != x.shape[along]:
            raise ValueError(f"Split: {parts} parts of {sizes[:8]} from an axis of {x.shape[along]}")
        found = torch.split(x, sizes, dim=along)
        return found if parts > 1 else found[0]

    return Operation("split", compute)


def _indices(op: str, indices: Tensor, length: int) -> Tensor:
    """Return indices counted from the front; on the CPU, those that are out of bounds are a ValueError."""
    if indices.is_floating_point() or indices.dtype == torch.bool:
        raise ValueError(f"{op}: indices should be integers, got {indices.dtype}")
    indices = indices.long()
    if indices.device.type == "cpu" and indices.numel() and not -length <= int(indices.min()) <= int(indices.max()) < length:
        raise ValueError(f"{op}: an index is out of bounds for an axis of {length}")
    return torch.where(indices < 0, indices + length, indices)


@operator("Gather")
def gather(node: Node) -> Operation:
    """Return the parts of a tensor that indices name along an axis."""
    check(node, 2, 2, ("axis",))
    axis = integer(node, "axis", 0)

    def compute(x: Tensor, indices: Tensor) -> Tensor:
        along = axis_of("Gather", axis, x.ndim)
        shape = (*x.shape[:along], *indices.shape, *x.shape[along + 1 :])
        found = _indices("Gather", indices, x.shape[along])
        if found.device.type == "cpu" and found.numel() == 1:
            return x.narrow(along, int(found), 1).reshape(shape)
        x, found = together("Gather", x, found, numbers=math.prod(shape))
        return x.index_select(along, found.reshape(-1)).reshape(shape)

    return Operation("embedding" if axis == 0 else "gather", compute)


@operator("GatherElements")
def gather_elements(node: Node) -> Operation:
    """Return the numbers that indices name along an axis, one by one."""
    check(node, 2, 2, ("axis",))
    axis = integer(node, "axis", 0)

    def compute(x: Tensor, indices: Tensor) -> Tensor:
        along = axis_of("GatherElements", axis, x.ndim)
        x, found = together("GatherElements", x, _indices("GatherElements", indices, x.shape[along]))
        return torch.gather(x, along, found)

    return Operation("gather", compute)


@operator("GatherND")
def gather_nd(node: Node) -> Operation:
    """Return the parts of a tensor that tuples of indices name, batch by batch."""
    check(node, 2, 2, ("batch_dims",) if node.opset >= 12 else ())
    batch = integer(node, "batch_dims", 0, least=0)

    def compute(x: Tensor, indices: Tensor) -> Tensor:
        depth = indices.shape[-1] if indices.ndim else 0
        if batch >= min(x.ndim, indices.ndim) or depth > x.ndim - batch or x.shape[:batch] != indices.shape[:batch]:
            raise ValueError(f"GatherND: indices of {tuple(indices.shape)} in a tensor of {tuple(x.shape)}, batch_dims {batch}")
        groups, named, rest = math.prod(x.shape[:batch]), x.shape[batch : batch + depth], x.shape[batch + depth :]
        shape = (*indices.shape[:-1], *rest)
        place = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=indices.device)
        for part, length in enumerate(named):
            place = place * length + _indices("GatherND", indices[..., part], length)
        starts = torch.arange(groups, device=indices.device) * math.prod(named)
        place = (place.reshape(groups, -1) + starts.unsqueeze(1)).reshape(-1)
        x, place = together("GatherND", x, place, numbers=math.prod(shape))
        return x.reshape(groups * math.prod(named), math.prod(rest)).index_select(0, place).reshape(shape)

    return Operation("gather", compute)


@operator("OneHot")
def one_hot(node: Node) -> Operation:
    """Return one value where a class is named and another elsewhere, along a new axis."""
    check(node, 3, 3, ("axis",))
    axis = integer(node, "axis", -1)

    def compute(indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
        classes = read_one("OneHot", "depth", depth.long())
        if not 1 <= classes <= 2**20 or values.numel() != 2:
            raise ValueError(f"OneHot: a depth of {classes} and {values.numel()} values")
        along = axis_of("OneHot", axis, indices.ndim + 1)
        indices, values = together("OneHot", indices, values, numbers=indices.numel() * classes)
        indices = indices.long().unsqueeze(along)
        names = torch.arange(classes, device=indices.device).reshape(-1, *(1,) * (indices.ndim - 1 - along))
        hot = indices == names
        if node.opset >= 11:  # before, what is negative names no class
            hot = hot | (indices + classes == names)
        return torch.where(hot, values[1], values[0])

    return Operation("one_hot", compute)


@operator("Trilu")
def trilu(node: Node) -> Operation:
    """Return what lies on and above (or below) a diagonal, and zeros elsewhere."""
    check(node, 1, 2, ("upper",))
    upper = bool(integer(node, "upper", 1))

    def compute(x: Tensor, k: Tensor | None = None) -> Tensor:
        diagonal = 0 if k is None else max(-(2**31), min(read_one("Trilu", "k", k), 2**31))
        if x.ndim < 2:
            raise ValueError(f"Trilu: expected a matrix, got {x.ndim} axes")
        (x,) = together("Trilu", x)
        return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)

    return Operation("triu" if upper else "tril", compute)


@operator("CumSum")
def cum_sum(node: Node) -> Operation:
    """Return running sums along an axis: with or without the number itself, from either end."""
    check(node, 2, 2, ("exclusive", "reverse"))
    exclusive, reverse = bool(integer(node, "exclusive", 0)), bool(integer(node, "reverse", 0))

    def compute(x: Tensor, axis: Tensor) -> Tensor:
        along = axis_of("CumSum", read_one("CumSum", "axis", axis), x.ndim)
        (x,) = together("CumSum", x)
        if x.dtype == torch.bool:
            raise Unsupported("CumSum of bool")
        x = x.flip(along) if reverse else x
        sums = x.cumsum(along, dtype=x.dtype)
        if exclusive:
            zeros = torch.zeros_like(x.narrow(along, 0, min(1, x.shape[along])))
            sums = torch.cat((zeros, sums.narrow(along, 0, max(0, x.shape[along] - 1))), dim=along)
        return sums.flip(along) if reverse else sums

    return Operation("cumsum", compute)
