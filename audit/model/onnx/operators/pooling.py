"""Poolings: the largest, the mean or the norm of what lies in each window, or of each channel."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from audit.model.onnx.operators import Node, Operation, Unsupported, operator
from audit.model.onnx.operators.values import check, data, integer, number
from audit.model.onnx.operators.windows import ATTRIBUTES, Placed, window

_MAX: tuple[Any, ...] = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
_AVERAGE: tuple[Any, ...] = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)


@operator("MaxPool")
def max_pool(node: Node) -> Operation:
    """Return the largest number in each window; the padding is never the largest."""
    # storage_order tells how the second output counts, which is not read.
    check(node, 1, 1, (*ATTRIBUTES, "ceil_mode", "storage_order"))
    slides = window(node, kernel_needed=True)
    kernel = slides.kernel or ()

    def compute(x: Tensor) -> Tensor:
        (x,) = data("MaxPool", x)
        placed = slides.placed(x.shape[2:], kernel)
        placed.check_pooling()
        pool = _MAX[len(kernel) - 1]
        if placed.symmetric and all(2 * begin <= size for begin, size in zip(placed.begins, kernel, strict=True)):
            return pool(x, kernel, placed.strides, placed.begins, placed.dilations)  # type: ignore[no-any-return]
        x = placed.padded(x, placed.reached(), float("-inf"))
        return pool(x, kernel, placed.strides, 0, placed.dilations)  # type: ignore[no-any-return]

    return Operation(f"max_pool{len(kernel)}d", compute)


@operator("AveragePool")
def average_pool(node: Node) -> Operation:
    """Return the mean of each window, over the image alone or (``count_include_pad``) over the padding, too."""
    check(node, 1, 1, (*ATTRIBUTES, "ceil_mode", "count_include_pad"))
    slides, with_padding = window(node, kernel_needed=True), bool(integer(node, "count_include_pad", 0))
    kernel = slides.kernel or ()

    def compute(x: Tensor) -> Tensor:
        (x,) = data("AveragePool", x)
        placed = slides.placed(x.shape[2:], kernel)
        placed.check_pooling()
        dense = all(dilation == 1 for dilation in placed.dilations)
        if dense and placed.symmetric and all(2 * begin <= size for begin, size in zip(placed.begins, kernel, strict=True)):
            average = _AVERAGE[len(kernel) - 1]
            return average(x, kernel, placed.strides, placed.begins, False, with_padding)  # type: ignore[no-any-return]
        return placed.sums(x, placed.reached()) / _counted(placed, x, with_padding)

    return Operation(f"avg_pool{len(kernel)}d", compute)


def _counted(placed: Placed, x: Tensor, with_padding: bool) -> Tensor:
    """Return over how many places the mean of each window is taken: never over those that `ceil_mode` adds at the end."""
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    reached = placed.reached()
    if not with_padding:
        return placed.sums(ones, reached)
    ones = placed.padded(ones, placed.pads, 1.0)
    beyond = [(0, max(there - end, 0)) for (_, there), (_, end) in zip(reached, placed.pads, strict=True)]
    return placed.sums(ones, beyond)


@operator("LpPool")
def lp_pool(node: Node) -> Operation:
    """Return the Lp norm of each window."""
    check(node, 1, 1, (*ATTRIBUTES, "ceil_mode", "p"))
    slides, p = window(node, kernel_needed=True), _power(node)
    kernel = slides.kernel or ()

    def compute(x: Tensor) -> Tensor:
        (x,) = data("LpPool", x)
        placed = slides.placed(x.shape[2:], kernel)
        placed.check_pooling()
        return _root(placed.sums(x.abs() ** p, placed.reached()), p)

    return Operation(f"lp_pool{len(kernel)}d", compute)


@operator("GlobalLpPool")
def global_lp_pool(node: Node) -> Operation:
    """Return the Lp norm of each channel."""
    check(node, 1, 1, ("p",))
    p = _power(node)

    def compute(x: Tensor) -> Tensor:
        (x,) = data("GlobalLpPool", x)
        return cast(Tensor, torch.linalg.vector_norm(x, p, _space("GlobalLpPool", x), keepdim=True))

    return Operation("lp_pool2d", compute)


def _power(node: Node) -> float:
    p = number(node, "p", 2.0)
    if not 1 <= p <= 100:
        raise Unsupported(f"{node.op} with p {p}")
    return p


def _root(sums: Tensor, p: float) -> Tensor:
    # The root's slope at zero is infinite: where all is zero, the gradient is taken to be zero, as torch's norms do.
    positive = sums > 0
    return torch.where(positive, torch.where(positive, sums, 1.0) ** (1 / p), 0.0)


@operator("GlobalAveragePool")
def global_average_pool(node: Node) -> Operation:
    """Return the mean of each channel."""
    check(node, 1, 1)

    def compute(x: Tensor) -> Tensor:
        (x,) = data("GlobalAveragePool", x)
        return x.mean(_space("GlobalAveragePool", x), keepdim=True)

    return Operation("adaptive_avg_pool2d", compute)


@operator("GlobalMaxPool")
def global_max_pool(node: Node) -> Operation:
    """Return the largest number of each channel."""
    check(node, 1, 1)

    def compute(x: Tensor) -> Tensor:
        (x,) = data("GlobalMaxPool", x)
        return x.amax(_space("GlobalMaxPool", x), keepdim=True)

    return Operation("adaptive_max_pool2d", compute)


def _space(op: str, x: Tensor) -> list[int]:
    if x.ndim < 3:
        raise ValueError(f"{op}: expected samples, channels and at least one more axis, got {x.ndim} axes")
    return list(range(2, x.ndim))
