"""Convolutions over one to three axes, and their transposes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional

from audit.model.onnx.operators import Node, Operation, Unsupported, operator
from audit.model.onnx.operators.values import check, check_padded, data, integer, integers
from audit.model.onnx.operators.windows import ATTRIBUTES, MOST_WINDOW, Window, window

_CONVOLVE: tuple[Any, ...] = (functional.conv1d, functional.conv2d, functional.conv3d)
_TRANSPOSED: tuple[Any, ...] = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)


@operator("Conv")
def conv(node: Node) -> Operation:
    """Convolution (a cross-correlation, as in torch) with groups, dilations and padding of any kind."""
    check(node, 2, 3, (*ATTRIBUTES, "group"))
    slides, group = window(node, kernel_needed=False), integer(node, "group", 1, least=1)

    def compute(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        x, weight, bias = _brought("Conv", slides, x, weight, bias)
        if x.shape[1] != weight.shape[1] * group or weight.shape[0] % group:
            raise ValueError(f"Conv: {x.shape[1]} channels in {group} groups do not fit a weight of {tuple(weight.shape)}")
        placed = slides.placed(x.shape[2:], weight.shape[2:])
        convolve = _CONVOLVE[x.ndim - 3]
        if all(begin == end for begin, end in placed.pads):
            check_padded("Conv", (*x.shape[:2], *(a + 2 * b for a, b in zip(x.shape[2:], placed.begins, strict=True))))
            return convolve(x, weight, bias, placed.strides, placed.begins, placed.dilations, group)  # type: ignore[no-any-return]
        x = placed.padded(x, placed.pads)
        return convolve(x, weight, bias, placed.strides, 0, placed.dilations, group)  # type: ignore[no-any-return]

    return Operation(_kind("conv", slides), compute)


@operator("ConvTranspose")
def conv_transpose(node: Node) -> Operation:
    """Transpose of a convolution: along each axis ``stride (n - 1) + output_padding + extent - pads`` long."""
    check(node, 2, 3, (*ATTRIBUTES, "group", "output_padding", "output_shape"))
    slides, group = window(node, kernel_needed=False), integer(node, "group", 1, least=1)
    extra = integers(node, "output_padding", (), least=0, most=MOST_WINDOW)
    wanted = integers(node, "output_shape", (), least=1, most=MOST_WINDOW)

    def compute(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        x, weight, bias = _brought("ConvTranspose", slides, x, weight, bias)
        axes = x.ndim - 2
        if x.shape[1] != weight.shape[0] or weight.shape[0] % group:
            raise ValueError(
                f"ConvTranspose: {x.shape[1]} channels in {group} groups do not fit a weight of {tuple(weight.shape)}"
            )
        strides, dilations = slides.strides or (1,) * axes, slides.dilations or (1,) * axes
        more = extra or (0,) * axes
        if not len(strides) == len(dilations) == len(more) == axes or len(wanted) not in (0, axes):
            raise ValueError(f"ConvTranspose: strides, dilations, output_padding or output_shape do not fit {axes} axes")
        extents = [(size - 1) * dilation + 1 for size, dilation in zip(weight.shape[2:], dilations, strict=True)]
        full = [stride * (length - 1) + extent for stride, length, extent in zip(strides, x.shape[2:], extents, strict=True)]
        check_padded("ConvTranspose", (1, weight.shape[1] * group, *(a + b for a, b in zip(full, more, strict=True))))
        pads = _transposed_pads(slides, x.shape[2:], strides, [a + b for a, b in zip(full, more, strict=True)], wanted)
        transposed = _TRANSPOSED[axes - 1]
        if all(begin == end for begin, end in pads) and all(
            e < max(s, d) for e, s, d in zip(more, strides, dilations, strict=True)
        ):
            begins = tuple(begin for begin, _ in pads)
            return transposed(x, weight, bias, strides, begins, more, group, dilations)  # type: ignore[no-any-return]
        y = transposed(x, weight, None, strides, 0, 0, group, dilations)
        sides = [(-begin, add - end) for (begin, end), add in zip(pads, more, strict=True)]
        y = functional.pad(y, [side for pair in reversed(sides) for side in pair])
        return y if bias is None else y + bias.reshape(-1, *(1,) * axes)

    return Operation(_kind("conv_transpose", slides), compute)


def _transposed_pads(
    slides: Window, lengths: Sequence[int], strides: Sequence[int], full: Sequence[int], wanted: Sequence[int]
) -> list[tuple[int, int]]:
    axes = len(lengths)
    if not wanted and slides.auto_pad in ("NOTSET", "VALID"):
        pads = slides.pads or (0,) * 2 * axes
        if len(pads) != 2 * axes:
            raise ValueError(f"ConvTranspose: pads do not fit {axes} axes")
        return [(pads[axis], pads[axis + axes]) for axis in range(axes)]
    shape = wanted or [length * stride for length, stride in zip(lengths, strides, strict=True)]
    totals = [long - short for long, short in zip(full, shape, strict=True)]
    if any(-total >= stride for total, stride in zip(totals, strides, strict=True)):
        raise ValueError(f"ConvTranspose: an output of {tuple(shape)} is beyond what the kernel reaches")
    if slides.auto_pad == "SAME_UPPER":
        pairs = [(total // 2, total - total // 2) for total in totals]
    else:
        pairs = [(total - total // 2, total // 2) for total in totals]
    # What an output has beyond the reach of the kernel lies at its end.
    return [pair if total >= 0 else (0, total) for pair, total in zip(pairs, totals, strict=True)]


def _brought(op: str, slides: Window, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    if x.ndim != weight.ndim:
        raise ValueError(f"{op}: an input with {x.ndim} axes and a weight with {weight.ndim}")
    if not 3 <= x.ndim <= 5:
        raise Unsupported(f"{op} over {x.ndim - 2} axes")
    if slides.kernel is not None and slides.kernel != tuple(weight.shape[2:]):
        raise ValueError(f"{op}: kernel_shape {slides.kernel} and a weight of {tuple(weight.shape)} contradict each other")
    x, weight, bias = data(op, x, weight, bias)
    return x, weight, bias


def _kind(name: str, slides: Window) -> str:
    known = slides.kernel or slides.strides or slides.dilations or (slides.pads or ())[::2]
    return f"{name}{len(known) if 1 <= len(known) <= 3 else 2}d"
