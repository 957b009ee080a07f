"""What goes in and comes out: the shape that a file states, and how samples of another layout are brought to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from audit.errors import ModelError
from audit.model.onnx.constants import Constants
from audit.model.onnx.messages import NodeProto, ValueInfoProto
from audit.model.onnx.tensors import FLOATS, MOST_DIMS
from audit.model.onnx.wire import Malformed

_TO_CHANNELS_FIRST = [0, 3, 1, 2]
_VALUE_BY_VALUE = ("Add", "Sub", "Mul", "Div", "Cast", "Identity", "Neg", "Clip", "Abs", "Sqrt", "Pow")


@dataclass(frozen=True)
class Port:
    """The input of a network.

    Attributes
    ----------
    type
        ONNX's number of the element type.
    dims
        Lengths as the file states them, a text where one is free; None where it states no shape.
    channels_last
        The network itself moves the channels from the last place to the first: its images are NHWC.
    """

    name: str
    type: int
    dims: tuple[int | str, ...] | None
    channels_last: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type that the network takes."""
        return FLOATS[self.type]

    def with_channels_last(self, yes: bool) -> Port:
        """Return the port with that said of it."""
        return replace(self, channels_last=yes)


def port_of(value: ValueInfoProto) -> Port:
    """Read an input or an output.

    Raises
    ------
    Malformed
        It is no tensor, or its shape is none.
    """
    tensor = value.type.tensor_type if value.type is not None else None
    if not value.name or tensor is None:
        raise Malformed(f"the value {value.name[:100]!r} is not said to be a tensor")
    if tensor.shape is None:
        return Port(value.name, tensor.elem_type, None)
    dims: list[int | str] = []
    for position, dim in enumerate(tensor.shape.dim):
        if dim.dim_value is not None and dim.dim_param is not None:
            raise Malformed(f"a length of {value.name[:100]!r} is both a number and a name")
        # Exporters write 0 and -1, too, for a length that is free.
        fixed = dim.dim_value is not None and dim.dim_value > 0
        dims.append(dim.dim_value if fixed and dim.dim_value is not None else dim.dim_param or f"free_{position}")
    if len(dims) > MOST_DIMS:
        raise Malformed(f"{value.name[:100]!r} has {len(dims)} dimensions; at most {MOST_DIMS} are read")
    return Port(value.name, tensor.elem_type, tuple(dims))


def reads_channels_last(port: Port, nodes: Sequence[NodeProto], constants: Constants) -> bool:
    """Tell whether images go in as NHWC: 1, 3 or 4 channels in the last place, which the network moves to the first itself.

    Before it does, only operations value by value (scaling with constants) may stand.
    """
    if port.dims is None or len(port.dims) != 4 or port.dims[3] not in (1, 3, 4):
        return False
    same_layout, moved = {port.name}, False
    for node in nodes:
        if not any(name in same_layout for name in node.input):
            continue
        if node.op_type == "Transpose":
            order = next((a.ints.list() for a in node.attribute if a.name == "perm" and a.ints is not None), None)
            if order != _TO_CHANNELS_FIRST:
                return False
            moved = True
        elif node.op_type in _VALUE_BY_VALUE and all(n in same_layout or n in constants or not n for n in node.input):
            same_layout.update(node.output)
        elif node.op_type != "Shape":
            return False
    return moved


def fit(x: Tensor, port: Port, sample: tuple[int | str, ...] | None) -> tuple[Tensor, str]:
    """Bring samples to the layout that the network takes, and say what was done; the empty text where nothing was.

    Parameters
    ----------
    x
        Shape (n, …).
    sample
        Lengths of one sample as the network takes it; None where the file does not say.

    Raises
    ------
    ModelError
        They have another number of values, or it cannot be told which value goes where.
    """
    if sample is None:
        return x, ""
    got = tuple(x.shape[1:])
    moved = (*got[1:], got[0]) if port.channels_last and len(got) == 3 else None
    as_is, permuted = _matches(got, sample), moved is not None and _matches(moved, sample)
    if as_is and permuted and got[0] != 1:
        raise ModelError(
            f"the network takes images of {shape_text(sample)}, channels last, and samples of {shape_text(got)} fit "
            "it both with channels first and last: which they are cannot be told; give images of another height or width"
        )
    if as_is:
        return x, ""
    if permuted:
        return x.permute(
            0, 2, 3, 1
        ), f"the network takes images with channels last: {shape_text(got)} go in as {shape_text(moved or ())}"
    fixed = tuple(length for length in sample if isinstance(length, int))
    if len(fixed) < len(sample) or math.prod(fixed) != math.prod(got):
        raise ModelError(
            f"the network takes samples of {shape_text(sample)}, but got {shape_text(got)}: check the data and --inputs"
        )
    mine, theirs = _without_ones(fixed), _without_ones(got)
    # A row of values has one order; planes of colours have two, and nothing in the file says which.
    if mine != theirs and not (min(len(mine), len(theirs)) <= 1 and max(len(mine), len(theirs)) <= 2):
        raise ModelError(
            f"the network takes samples of {shape_text(sample)}, but got {shape_text(got)}: as many values, but in which order "
            f"they should go in cannot be told; give the data in the shape {shape_text(sample)}"
        )
    return x.reshape(len(x), *fixed), f"samples of {shape_text(got)} go into the network as {shape_text(fixed)}"


def _matches(got: Sequence[int], sample: Sequence[int | str]) -> bool:
    return len(got) == len(sample) and all(isinstance(s, str) or s == g for g, s in zip(got, sample, strict=True))


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(length for length in shape if length != 1)


def shape_text(shape: Sequence[int | str]) -> str:
    """Write lengths as ``3×32×32``."""
    return "×".join(str(length)[:20] for length in shape) or "one number"
