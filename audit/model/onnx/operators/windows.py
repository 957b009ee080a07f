"""How a window slides over an image: kernel, strides, dilations and padding, as convolutions and poolings share them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from audit.model.onnx.operators import Node, Unsupported
from audit.model.onnx.operators.values import check_padded, integer, integers, text

# A kernel, stride, dilation or padding above this is no image's.
MOST_WINDOW = 2**20
ATTRIBUTES = ("auto_pad", "dilations", "kernel_shape", "pads", "strides")
_AUTO = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")


@dataclass(frozen=True)
class Window:
    """What the attributes say of the window; a list is None where it was left out.

    Attributes
    ----------
    pads
        First the padding at the beginning of each axis, then that at the end.
    """

    op: str
    auto_pad: str
    kernel: tuple[int, ...] | None
    strides: tuple[int, ...] | None
    dilations: tuple[int, ...] | None
    pads: tuple[int, ...] | None
    ceil: bool = False

    def placed(self, lengths: Sequence[int], kernel: Sequence[int]) -> Placed:
        """Return where the windows lie on axes of these lengths.

        Raises
        ------
        ValueError
            The attributes do not fit the number of axes, or no window fits in.
        """
        axes = len(lengths)
        if not 1 <= axes <= 3:
            raise Unsupported(f"{self.op} over {axes} axes")
        given = ((self.kernel, axes), (self.strides, axes), (self.dilations, axes), (self.pads, 2 * axes))
        if any(values is not None and len(values) != count for values, count in given) or len(kernel) != axes:
            raise ValueError(f"{self.op}: kernel_shape, strides, dilations or pads do not fit {axes} axes")
        strides, dilations = self.strides or (1,) * axes, self.dilations or (1,) * axes
        extents = tuple((size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True))
        pads = self.pads or (0,) * 2 * axes
        pairs = [
            self._pair(length, extent, stride, (pads[axis], pads[axis + axes]))
            for axis, (length, extent, stride) in enumerate(zip(lengths, extents, strides, strict=True))
        ]
        counts = tuple(
            self._count(length, extent, stride, pair)
            for length, extent, stride, pair in zip(lengths, extents, strides, pairs, strict=True)
        )
        return Placed(self.op, tuple(lengths), tuple(kernel), strides, dilations, extents, tuple(pairs), counts)

    def _pair(self, length: int, extent: int, stride: int, pads: tuple[int, int]) -> tuple[int, int]:
        if self.auto_pad == "NOTSET":
            return pads
        if self.auto_pad == "VALID":
            return (0, 0)
        total = max((-(-length // stride) - 1) * stride + extent - length, 0)
        small, large = total // 2, total - total // 2
        return (small, large) if self.auto_pad == "SAME_UPPER" else (large, small)

    def _count(self, length: int, extent: int, stride: int, pair: tuple[int, int]) -> int:
        room = length + sum(pair) - extent
        if room < 0:
            raise ValueError(f"{self.op}: a window of {extent} does not fit into {length + sum(pair)}")
        count = room // stride + 1
        # A last window that hangs over the end counts, unless it would start in the padding at the end.
        if self.ceil and room % stride and count * stride < length + pair[0]:
            count += 1
        return count


@dataclass(frozen=True)
class Placed:
    """Windows on axes of known lengths; each attribute holds one entry an axis.

    Attributes
    ----------
    extents
        How many places a window spans: its kernel, spread by the dilation.
    pads
        Padding at the beginning and at the end.
    counts
        How many windows there are: the shape of the output.
    """

    op: str
    lengths: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    extents: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    counts: tuple[int, ...]

    @property
    def symmetric(self) -> bool:
        """Whether as much is padded at the beginning as at the end, and every window counts that then fits in."""
        zipped = zip(self.lengths, self.extents, self.strides, self.pads, self.counts, strict=True)
        return all(
            begin == end and (length + 2 * begin - extent) // stride + 1 == count
            for length, extent, stride, (begin, end), count in zipped
        )

    @property
    def begins(self) -> tuple[int, ...]:
        """Padding at the beginning of each axis."""
        return tuple(begin for begin, _ in self.pads)

    def reached(self) -> list[tuple[int, int]]:
        """Return the padding that the windows reach: at the end it can be less than asked for, or more (`ceil_mode`)."""
        zipped = zip(self.lengths, self.extents, self.strides, self.pads, self.counts, strict=True)
        return [
            (begin, max((count - 1) * stride + extent - length - begin, 0))
            for length, extent, stride, (begin, _), count in zipped
        ]

    def padded(self, x: Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
        """Return `x` with `value` around its last axes."""
        if not any(begin or end for begin, end in pads):
            return x
        lengths = [length + begin + end for length, (begin, end) in zip(x.shape[-len(pads) :], pads, strict=True)]
        check_padded(self.op, (*x.shape[: -len(pads)], *lengths))
        return functional.pad(x, [side for pair in reversed(pads) for side in pair], value=value)

    def check_pooling(self) -> None:
        """Refuse padding in which a whole window could lie: its maximum and its average would be those of nothing."""
        if any(max(pair) >= extent for pair, extent in zip(self.pads, self.extents, strict=True)):
            raise ValueError(f"{self.op}: pads of {max(map(max, self.pads))} should be less than the kernel")

    def sums(self, x: Tensor, pads: Sequence[tuple[int, int]]) -> Tensor:
        """Return the sum over each window, with zeros around."""
        x = self.padded(x, pads)
        convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[len(self.kernel) - 1]
        ones = torch.ones((1, 1, *self.kernel), dtype=x.dtype, device=x.device)
        flat = x.reshape(-1, 1, *x.shape[2:])
        sums = convolve(flat, ones, None, self.strides, 0, self.dilations)
        for axis, count in enumerate(self.counts):
            sums = sums.narrow(axis + 2, 0, count)
        return sums.reshape(*x.shape[:2], *self.counts)


def window(node: Node, *, kernel_needed: bool) -> Window:
    """Read the attributes of a convolution or pooling."""
    auto_pad = text(node, "auto_pad", "NOTSET", _AUTO)
    pads = _listed(node, "pads", 0)
    if auto_pad != "NOTSET" and pads is not None and any(pads):
        raise ValueError(f"{node.op}: pads and auto_pad {auto_pad} contradict each other")
    kernel = _listed(node, "kernel_shape", 1)
    if kernel is None and kernel_needed:
        raise ValueError(f"{node.op} needs the attribute kernel_shape")
    ceil = bool(integer(node, "ceil_mode", 0))
    if ceil and auto_pad != "NOTSET":
        # The specification and its readers differ on how many windows there are.
        raise Unsupported(f"{node.op} with ceil_mode and auto_pad {auto_pad}")
    return Window(node.op, auto_pad, kernel, _listed(node, "strides", 1), _listed(node, "dilations", 1), pads, ceil)


def _listed(node: Node, name: str, least: int) -> tuple[int, ...] | None:
    return integers(node, name, least=least, most=MOST_WINDOW) if name in node.attributes else None
