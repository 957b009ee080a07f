"""The affine operations of a network, each with its interval and its way back for linear bounds.

Tensors carry samples in their first dimension; coefficients carry samples and rows in their first two. A bound holds for what
the network computes: each operation says how far its own rounding may move its output (`error`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as f

from audit.certificates.rounding import TINY, TRANSFORMED, TRANSFORMED_TERMS, Rounding

Interval = tuple[Tensor, Tensor]
# Stands for minus infinity where only a maximum is taken over it: times a coefficient of 0 it is 0.
LOWEST = float(torch.tensor(-1e30))


class Operation(ABC):
    """One step of a network over values by number; subclasses are affine, or `Activation`."""

    @abstractmethod
    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Return bounds of the exact operation over boxes (n, …)."""

    def error(self, inputs: Sequence[Interval], output: Interval, rounding: Rounding) -> Tensor | None:  # noqa: ARG002  (others need it)
        """Return how far the computed output may be from the exact one, like the output; None where it is exact."""
        return None


class Affine(Operation):
    """An operation that adds a constant to a linear function."""

    @abstractmethod
    def back(self, rows: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Return the coefficients (n, …) of each input, given those of the output."""

    def constant(self) -> Tensor | None:
        """Return what is added, broadcastable to one output; None where nothing is."""
        return None


def flat(values: Tensor) -> Tensor:
    """Return values (n, …) as (n, numbers); a value of one number a sample, (n,), as one column."""
    return values.flatten(1) if values.ndim > 1 else values[:, None]


def largest(box: Interval) -> Tensor:
    """Return the largest absolute value of a box."""
    return torch.maximum(box[0].abs(), box[1].abs())


@dataclass
class Linear(Affine):
    """``x @ weight + bias`` for x (n, inputs)."""

    weight: Tensor
    bias: Tensor | None

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Return bounds of the exact operation over boxes; see `Operation.interval`."""
        low, high = inputs[0]
        centre, radius = ((low + high) / 2) @ self.weight, ((high - low) / 2) @ self.weight.abs()
        if self.bias is not None:
            centre = centre + self.bias
        return centre - radius, centre + radius

    def error(self, inputs: Sequence[Interval], output: Interval, rounding: Rounding) -> Tensor:  # noqa: ARG002  (others need it)
        """Return how far rounding may move the output; see `Operation.error`."""
        size = largest(inputs[0]) @ self.weight.abs()
        if self.bias is not None:
            size = size + self.bias.abs()
        terms, back = self.weight.shape
        return size * rounding.products(terms, back) + terms * TINY

    def back(self, rows: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:  # noqa: ARG002  (others need it)
        """Return the coefficients of each input; see `Affine.back`."""
        return [rows @ self.weight.T]

    def constant(self) -> Tensor | None:
        """Return what is added; see `Affine.constant`."""
        return self.bias


@dataclass
class Convolution(Affine):
    """A convolution, transposed or not, of one to three dimensions."""

    weight: Tensor
    bias: Tensor | None
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int

    def _apply(self, x: Tensor, weight: Tensor, *, transposed: bool, output_padding: list[int]) -> Tensor:
        applied: Tensor = torch.ops.aten.convolution(
            x, weight, None, self.stride, self.padding, self.dilation, transposed, output_padding, self.groups
        )
        return applied

    def _forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._apply(x, weight, transposed=self.transposed, output_padding=self.output_padding)

    def _spread(self, like: Tensor) -> Tensor | None:
        return None if self.bias is None else self.bias.reshape(-1, *[1] * (like.ndim - 2))

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Return bounds of the exact operation over boxes; see `Operation.interval`."""
        low, high = inputs[0]
        centre, radius = self._forward((low + high) / 2, self.weight), self._forward((high - low) / 2, self.weight.abs())
        bias = self._spread(low)
        if bias is not None:
            centre = centre + bias
        return centre - radius, centre + radius

    def error(self, inputs: Sequence[Interval], output: Interval, rounding: Rounding) -> Tensor:  # noqa: ARG002  (others need it)
        """Return how far rounding may move the output; see `Operation.error`."""
        size = self._forward(largest(inputs[0]), self.weight.abs())
        bias = self._spread(size)
        if bias is not None:
            size = size + bias.abs()
        kernel = math.prod(self.weight.shape[2:])
        first, second = self.weight.shape[0] // self.groups * kernel, self.weight.shape[1] * kernel
        terms, back = (first, second) if self.transposed else (second, first)
        error = size * rounding.products(terms, back, convolution=True) + terms * TINY
        if not rounding.transformed or any(stride > 1 for stride in self.stride):
            return error
        spread = self._widest(largest(inputs[0])) * rounding.few(TRANSFORMED_TERMS)
        return torch.maximum(error * TRANSFORMED, error + spread)

    def _widest(self, x: Tensor) -> Tensor:
        """Return the largest sum of sizes in each channel, (n, channels, 1, …): what is transformed shares the error of a tile.

        Every input is seen through all of the kernel, which does not hang on where the image ends.
        """
        kernel = self.weight.shape[2:]
        none = [0] * len(kernel)
        padding = none if self.transposed else [d * (k - 1) for d, k in zip(self.dilation, kernel, strict=True)]
        sums = torch.ops.aten.convolution(
            x, self.weight.abs(), None, self.stride, padding, self.dilation, self.transposed, none, self.groups
        )
        widest: Tensor = sums.amax(dim=tuple(range(2, sums.ndim)), keepdim=True)
        return widest

    def back(self, rows: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Return the coefficients of each input; see `Affine.back`."""
        if self.transposed:
            return [self._apply(rows, self.weight, transposed=False, output_padding=[0] * len(self.stride))]
        kernel = self.weight.shape[2:]
        sizes = zip(shapes[0][1:], rows.shape[2:], self.stride, self.padding, self.dilation, kernel, strict=True)
        # Inputs at the end that no output sees are left out of the reversed convolution unless it is told of them.
        missing = [size - ((out - 1) * s - 2 * p + d * (k - 1) + 1) for size, out, s, p, d, k in sizes]
        return [self._apply(rows, self.weight, transposed=True, output_padding=missing)]

    def constant(self) -> Tensor | None:
        """Return what is added; see `Affine.constant`."""
        return None if self.bias is None else self.bias.reshape(-1, *[1] * len(self.stride))


@dataclass
class Scale(Affine):
    """``factor · x + shift`` for each number: a batch norm in evaluation mode, a product with a constant, a negation."""

    factor: Tensor
    shift: Tensor | None
    operations: int  # of the network, on each number; 0 where none rounds
    magnitude: Tensor | None = None  # of what is added and cancels again inside, like `shift`

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Return bounds of the exact operation over boxes; see `Operation.interval`."""
        one, two = (self.factor * side for side in inputs[0])
        low, high = torch.minimum(one, two), torch.maximum(one, two)
        return (low, high) if self.shift is None else (low + self.shift, high + self.shift)

    def error(self, inputs: Sequence[Interval], output: Interval, rounding: Rounding) -> Tensor:
        """Return how far rounding may move the output; see `Operation.error`."""
        size = self.factor.abs() * largest(inputs[0])
        for added in (self.shift, self.magnitude):
            if added is not None:
                size = size + added.abs()
        copies = output[0].numel() // max(1, inputs[0][0].numel())
        return size * (rounding.few(self.operations + 2) + rounding.sums(copies)) + TINY * (2 + self.operations)

    def back(self, rows: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Return the coefficients of each input; see `Affine.back`."""
        return [_unbroadcast(rows * self.factor, shapes[0])]

    def constant(self) -> Tensor | None:
        """Return what is added; see `Affine.constant`."""
        return self.shift


@dataclass
class Sum(Affine):
    """``x₁ + factor · x₂``, of two values that both depend on the input."""

    factor: float

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Return bounds of the exact operation over boxes; see `Operation.interval`."""
        (low, high), (other_low, other_high) = inputs
        if self.factor < 0:
            other_low, other_high = other_high, other_low
        return low + self.factor * other_low, high + self.factor * other_high

    def error(self, inputs: Sequence[Interval], output: Interval, rounding: Rounding) -> Tensor:
        """Return how far rounding may move the output; see `Operation.error`."""
        copies = max(output[0].numel() // max(1, box[0].numel()) for box in inputs)
        size = largest(inputs[0]) + abs(self.factor) * largest(inputs[1])
        return size * (rounding.few(3) + rounding.sums(copies)) + TINY

    def back(self, rows: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Return the coefficients of each input; see `Affine.back`."""
        return [_unbroadcast(rows, shapes[0]), _unbroadcast(rows * self.factor, shapes[1])]


@dataclass
class Concatenation(Affine):
    """Values side by side."""

    axis: int

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Return bounds of the exact operation over boxes; see `Operation.interval`."""
        return torch.cat([low for low, _ in inputs], self.axis), torch.cat([high for _, high in inputs], self.axis)

    def back(self, rows: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Return the coefficients of each input; see `Affine.back`."""
        return list(torch.split(rows, [shape[self.axis - 1] for shape in shapes], dim=self.axis))


@dataclass
class Weighted(Affine):
    """A linear function without a negative weight: views, parts, permutations, sums, means, average pooling.

    Parameters
    ----------
    function
        Takes (n, …) for any n.
    terms
        Numbers that go into one output; 1 where values are only moved.
    """

    function: Callable[[Tensor], Tensor]
    terms: int = 1

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Return bounds of the exact operation over boxes; see `Operation.interval`."""
        low, high = inputs[0]
        return self.function(low), self.function(high)

    def error(self, inputs: Sequence[Interval], output: Interval, rounding: Rounding) -> Tensor | None:  # noqa: ARG002  (others need it)
        """Return how far rounding may move the output; see `Operation.error`."""
        if self.terms == 1:
            return None
        return self.function(largest(inputs[0])) * rounding.products(self.terms + 2, self.terms + 2) + self.terms * TINY

    def back(self, rows: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Return the coefficients of each input; see `Affine.back`."""
        with torch.enable_grad():
            point = torch.zeros((len(rows), *shapes[0]), dtype=rows.dtype, device=rows.device, requires_grad=True)
            (gradient,) = torch.autograd.grad(self.function(point), point, rows, create_graph=rows.requires_grad)
        return [gradient]


@dataclass
class Padding(Weighted):
    """Padding with a number; `filled` is what one sample of zeros becomes."""

    filled: Tensor = field(default_factory=lambda: torch.zeros(()))

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Return bounds of the exact operation over boxes; see `Operation.interval`."""
        low, high = inputs[0]
        filled = 0.0 if self.filled is None else self.filled
        return self.function(low) + filled, self.function(high) + filled

    def constant(self) -> Tensor:
        """Return what is added; see `Affine.constant`."""
        return self.filled


@dataclass
class Reshape(Affine):
    """The same numbers in another shape."""

    shape: tuple[int, ...]

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Return bounds of the exact operation over boxes; see `Operation.interval`."""
        low, high = (side.reshape(len(side), *self.shape) for side in inputs[0])
        return low, high

    def back(self, rows: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Return the coefficients of each input; see `Affine.back`."""
        return [rows.reshape(len(rows), *shapes[0])]


class Same(Reshape):
    """A copy."""

    def __init__(self) -> None:
        super().__init__(())

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Return bounds of the exact operation over boxes; see `Operation.interval`."""
        return inputs[0]


def _unbroadcast(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Add up what an input that was broadcast to the output's shape gets from its copies."""
    while rows.ndim - 1 > len(shape):
        rows = rows.sum(dim=1)
    for axis, length in enumerate(shape, start=1):
        if length == 1 and rows.shape[axis] != 1:
            rows = rows.sum(dim=axis, keepdim=True)
    return rows


def average(function: Callable[..., Tensor], *arguments: Any) -> Callable[[Tensor], Tensor]:
    """Return an average pooling as a function of its input alone."""
    return lambda x: function(x, *arguments)


def pad(widths: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Return padding with zeros as a function of its input alone."""
    return lambda x: f.pad(x, list(widths))
