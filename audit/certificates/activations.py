"""The operations that are not affine, each between two lines: what CROWN replaces it by (Zhang et al. 2018, section 3)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as f

from audit.certificates.operations import Interval, Operation, largest
from audit.certificates.rounding import TINY, Rounding


@dataclass(frozen=True)
class Lines:
    """Lines below and above an activation: slope · x + offset; the offsets hold their own rounding.

    For a maximum over windows, `places` tell which input each line is about (positions in the flattened image).
    """

    low_slope: Tensor
    low_offset: Tensor
    high_slope: Tensor
    high_offset: Tensor
    places: tuple[Tensor, Tensor] | None = None

    def widened(self, share: float, passing: Tensor) -> Lines:
        """Return the lines with their offsets moved apart, by a share of both and by what rounding the slopes may cost.

        `passing` is that cost for a slope of 1.
        """
        steep = self.low_slope.abs() + self.high_slope.abs()
        apart = share * (self.low_offset.abs() + self.high_offset.abs()) + passing * steep
        return replace(self, low_offset=self.low_offset - apart, high_offset=self.high_offset + apart)


@dataclass(frozen=True)
class Fan:
    """Lines of a kinked activation for every free slope s in [0, 1]: (1 - s) times those for 0, and s times those for 1.

    What lies between two lines below a function lies below it, too: no line is computed anew when slopes change.
    """

    first: Lines
    low_slope: Tensor | None  # by how much those for 1 differ; None where they do not
    low_offset: Tensor | None
    high_slope: Tensor | None
    high_offset: Tensor | None

    @classmethod
    def between(cls, first: Lines, last: Lines, *, through_zero: bool) -> Fan:
        """Return the fan of the lines for slopes 0 and 1; with `through_zero` their offsets differ by rounding alone."""
        if through_zero:
            low = torch.minimum(first.low_offset, last.low_offset)
            high = torch.maximum(first.high_offset, last.high_offset)
            first, last = (replace(lines, low_offset=low, high_offset=high) for lines in (first, last))
        sides = ("low_slope", "low_offset", "high_slope", "high_offset")
        change = [getattr(last, side) - getattr(first, side) for side in sides]
        return cls(first, *(None if bool((part == 0).all()) else part for part in change))

    def at(self, slope: Tensor) -> Lines:
        """Return the lines for slopes (n, …), or (n, r, …) for r rows each."""
        first, slope = self.first, slope.clamp(0, 1)

        def moved(start: Tensor, change: Tensor | None) -> Tensor:
            if change is None:
                return start
            if slope.ndim > start.ndim:
                start, change = start[:, None], change[:, None]
            return torch.addcmul(start, slope, change)

        return Lines(
            moved(first.low_slope, self.low_slope),
            moved(first.low_offset, self.low_offset),
            moved(first.high_slope, self.high_slope),
            moved(first.high_offset, self.high_offset),
        )


class Activation(Operation):
    """An operation of one value that is not affine."""

    @abstractmethod
    def lines(self, low: Tensor, high: Tensor, rounding: Rounding, slope: Tensor | None = None) -> Lines:
        """Return lines that hold between `low` and `high`; `slope` in [0, 1] chooses among those that may be chosen."""

    def unstable(self, low: Tensor, high: Tensor) -> Tensor:
        """Tell for which inputs tighter bounds would make tighter lines."""
        return low < high


@dataclass
class Kink(Activation):
    """Two half-lines that meet: ReLU (0 and 1), leaky ReLU, abs (-1 and 1), and each end of a clamp.

    Parameters
    ----------
    left, right
        Slopes below and above `at`; numbers, or tensors that broadcast to one sample.
    at, value
        Where they meet.
    operations
        Roundings of the network for each number.
    """

    left: Tensor | float
    right: Tensor | float
    at: float = 0.0
    value: float = 0.0
    operations: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        """Return the activation of x."""
        # Numbers alone would be made float32 by `where`.
        return self.value + torch.where(x > self.at, _like(self.right, x), _like(self.left, x)) * (x - self.at)

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Return bounds of the exact operation over boxes; see `Operation.interval`."""
        low, high = inputs[0]
        one, two = self(low), self(high)
        below, above = torch.minimum(one, two), torch.maximum(one, two)
        inside = (low < self.at) & (high > self.at)
        return (
            torch.where(inside, below.clamp_max(self.value), below),
            torch.where(inside, above.clamp_min(self.value), above),
        )

    def error(self, inputs: Sequence[Interval], output: Interval, rounding: Rounding) -> Tensor | None:  # noqa: ARG002  (others need it)
        """Return how far rounding may move the output; see `Operation.error`."""
        steep = torch.maximum(_like(self.left, inputs[0][0]).abs(), _like(self.right, inputs[0][0]).abs())
        size = largest(inputs[0]) * steep + abs(self.value) + abs(self.at) * steep
        exact = 0.0 if self.operations == 0 else rounding.few(self.operations + 1)
        return size * (exact + 4 * rounding.bound) + TINY * self.operations

    def unstable(self, low: Tensor, high: Tensor) -> Tensor:
        """Tell for which inputs tighter bounds would make tighter lines."""
        return (low < self.at) & (high > self.at)

    def lines(self, low: Tensor, high: Tensor, rounding: Rounding, slope: Tensor | None = None) -> Lines:
        """Return lines below and above; see `Activation.lines`."""
        left, right = _like(self.left, low), _like(self.right, low)
        stable = torch.where(low >= self.at, right, left)
        inside = ~(
            (low >= self.at) | (high <= self.at)
        )  # also where a bound is NaN: the lines become NaN, and nothing is certified
        width = torch.where(inside, high - low, torch.ones_like(low))
        at_low, at_high = self(low), self(high)
        chord = torch.where(inside, (at_high - at_low) / width, stable)
        through = torch.where(high - self.at > self.at - low, right, left)
        if slope is not None:
            through = left + slope.clamp(0, 1) * (right - left)
        through = torch.where(inside, through, stable)
        slack = 8 * rounding.bound * (at_low.abs() + at_high.abs() + chord.abs() * largest((low, high)))
        slack = slack + 8 * rounding.bound * (abs(self.value) + abs(self.at) * through.abs())
        kinked = self.value - through * self.at
        ends = (at_low - chord * low, at_high - chord * high)
        above, below = torch.maximum(*ends), torch.minimum(*ends)
        convex = right >= left
        above, below = (torch.where(inside, side, kinked) for side in (above, below))
        return Lines(
            low_slope=torch.where(convex, through, chord),
            low_offset=torch.where(convex, kinked, below) - slack,
            high_slope=torch.where(convex, chord, through),
            high_offset=torch.where(convex, above, kinked) + slack,
        )


@dataclass
class Bend(Activation):
    """Sigmoid or tanh: rising, convex below 0 and concave above."""

    kind: Literal["sigmoid", "tanh"]

    def __call__(self, x: Tensor) -> Tensor:
        """Return the activation of x."""
        return torch.sigmoid(x) if self.kind == "sigmoid" else torch.tanh(x)

    def _slope(self, x: Tensor) -> Tensor:
        value = self(x)
        return value * (1 - value) if self.kind == "sigmoid" else 1 - value * value

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Return bounds of the exact operation over boxes; see `Operation.interval`."""
        low, high = inputs[0]
        return self(low), self(high)

    def error(self, inputs: Sequence[Interval], output: Interval, rounding: Rounding) -> Tensor:  # noqa: ARG002  (others need it)
        """Return how far rounding may move the output; see `Operation.error`."""
        # Libraries compute them to within a few units in the last place of 1.
        return torch.full_like(output[0], rounding.few(32) + TINY)

    def lines(self, low: Tensor, high: Tensor, rounding: Rounding, slope: Tensor | None = None) -> Lines:  # noqa: ARG002  (others need it)
        """Return lines below and above; see `Activation.lines`."""
        at_low, at_high = self(low), self(high)
        flattest = torch.minimum(self._slope(low), self._slope(high))
        wide = high - low > 1e-6
        chord = torch.where(wide, (at_high - at_low) / torch.where(wide, high - low, torch.ones_like(low)), flattest)
        middle = (low + high) / 2
        tangent = self._slope(middle)
        touch = self(middle) - tangent * middle
        concave, convex = (low >= 0) & wide, (high <= 0) & wide
        # Between, the derivative is smallest at one of the two ends: a line of that slope through an end stays on its side.
        low_slope = torch.where(concave, chord, torch.where(convex, tangent, flattest))
        high_slope = torch.where(convex, chord, torch.where(concave, tangent, flattest))
        low_offset = torch.where(convex, touch, at_low - low_slope * low)
        high_offset = torch.where(concave, touch, at_high - high_slope * high)
        low_offset = torch.where(concave, torch.minimum(low_offset, at_high - low_slope * high), low_offset)
        high_offset = torch.where(convex, torch.maximum(high_offset, at_low - high_slope * low), high_offset)
        slack = 64 * rounding.bound * (1 + high - low + largest((low, high)))
        return Lines(low_slope, low_offset - slack, high_slope, high_offset + slack)


@dataclass
class Maximum(Activation):
    """The largest number of each window of an image."""

    kernel: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    ceil: bool

    @property
    def shared(self) -> int:
        """How many windows an input may be in, at most: so many coefficients are added up on the way back."""
        return math.prod(self.kernel)

    def _pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pooled: tuple[Tensor, Tensor] = f.max_pool2d(
            x, self.kernel, self.stride, self.padding, self.dilation, self.ceil, return_indices=True
        )
        return pooled

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Return bounds of the exact operation over boxes; see `Operation.interval`."""
        low, high = inputs[0]
        return self._pool(low)[0], self._pool(high)[0]

    def lines(self, low: Tensor, high: Tensor, rounding: Rounding, slope: Tensor | None = None) -> Lines:  # noqa: ARG002  (others need it)
        """Return lines of the input with the highest lower bound (below) and with the highest upper bound (above).

        No other input of the window exceeds the second highest upper bound m, so that the maximum lies below max(x, m), which
        is convex in x: its chord bounds it.
        """
        below, first = self._pool(low)
        above, second = self._pool(high)
        without = self._others(high, second)
        floor = low.flatten(2).gather(2, second.flatten(2)).view_as(above)
        m = torch.maximum(without, floor)
        open_ = m < above
        ratio = torch.where(open_, (above - m) / torch.where(open_, above - floor, torch.ones_like(above)), 0.0)
        # Where no other input reaches above this one's lower bound it is the maximum itself.
        ratio = torch.where(without <= floor, torch.ones_like(ratio), ratio)
        offset = torch.maximum(above - ratio * above, m - ratio * floor)
        offset = torch.where(without <= floor, torch.zeros_like(offset), offset)
        slack = 8 * rounding.bound * (above.abs() + m.abs() + floor.abs())
        return Lines(torch.ones_like(below), torch.zeros_like(below), ratio, offset + slack, (first, second))

    def _others(self, high: Tensor, place: Tensor) -> Tensor:
        """Return the highest upper bound of each window without the input at `place`; -inf where it is alone.

        Windows overlap, so that the input is left out of its own window alone: each is laid out as a row.
        """
        height, width = high.shape[2:]
        numbers = torch.arange(height * width, device=high.device, dtype=high.dtype).view(1, 1, height, width)
        outside = -torch.inf
        ph, pw = self.padding
        extra = [
            (size - 1) * s + d * (k - 1) + 1
            for size, s, d, k in zip(place.shape[2:], self.stride, self.dilation, self.kernel, strict=True)
        ]
        widths = [pw, max(pw, extra[1] - width - pw), ph, max(ph, extra[0] - height - ph)]

        def windows(x: Tensor, fill: float) -> Tensor:
            padded = f.pad(x, widths, value=fill)
            for axis, (size, s, d, k) in enumerate(zip(place.shape[2:], self.stride, self.dilation, self.kernel, strict=True)):
                starts = torch.arange(size, device=x.device) * s
                inside = torch.arange(k, device=x.device) * d
                padded = padded.index_select(2 + 2 * axis, (starts[:, None] + inside).flatten())
                shape = padded.shape
                padded = padded.reshape(*shape[: 2 + 2 * axis], size, k, *shape[3 + 2 * axis :])
            return padded  # (n, channels, rows, kernel rows, columns, kernel columns)

        values, here = windows(high, outside), windows(numbers, -1.0)
        same = here == place[:, :, :, None, :, None].to(here.dtype)
        return torch.where(same, outside, values).amax(dim=(3, 5))


def _like(value: Tensor | float, x: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=x.dtype, device=x.device).expand_as(x)
