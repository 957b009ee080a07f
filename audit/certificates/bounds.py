"""Bounds of every value of a network over some inputs: intervals, and CROWN's linear bounds on the way back.

Interval bound propagation: Gowal et al. 2018, "On the Effectiveness of Interval Bound Propagation". CROWN: Zhang et al. 2018,
"Efficient Neural Network Robustness Certification with General Activation Functions", theorem 3.2; the free slope of an open
ReLU is 1 where its upper bound is the larger one, else 0. Optimised slopes: Xu et al. 2021, "Fast and Complete". Split
constraints with multipliers: Wang et al. 2021, "Beta-CROWN", theorem 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from audit.budget import check_deadline
from audit.certificates.activations import Activation, Fan, Kink, Lines, Maximum
from audit.certificates.inputs import Inputs
from audit.certificates.network import Network
from audit.certificates.operations import LOWEST, Affine, Interval, Padding, Reshape, flat, largest

CHUNK = 2**20  # numbers of one layer's coefficients at once: small enough to stay in a cache
# Coefficients that the bounds of one layer's inputs may take, for one sample: above, its inputs have interval bounds.
MOST = 2**26
# Takes functions of a value (n, r, …), what is added to each (n, r), and the value's number; returns lower bounds, (n, r).
Ascent = Callable[[Tensor, Tensor, int], Tensor]


@dataclass
class Bounds:
    """Bounds of every value of a network over a set of inputs.

    Attributes
    ----------
    low, high : tensors (n, …) by number of the value
        What the network computes lies between them, its own rounding included. Where `splits` were given, they hold for those
        inputs alone that obey them.
    splits
        By number of a value that goes into a kinked activation: +1 where it is taken to be at or above the kink, -1 at or
        below, 0 free.
    intervals_only
        Layers whose inputs have interval bounds, for being too large.
    rows
        Coefficients of one row for one sample that went back through the network: what it cost.
    """

    network: Network
    inputs: Inputs
    low: dict[int, Tensor] = field(default_factory=dict)
    high: dict[int, Tensor] = field(default_factory=dict)
    splits: Mapping[int, Tensor] = field(default_factory=dict)
    intervals_only: list[str] = field(default_factory=list)
    rows: int = 0
    slack: dict[int, Tensor | None] = field(default_factory=dict)
    _lines: dict[int, Lines] = field(default_factory=dict)
    _fans: dict[int, Fan] = field(default_factory=dict)

    @classmethod
    def intervals(cls, network: Network, low: Tensor, high: Tensor) -> Bounds:
        """Return interval bounds over boxes."""
        middle = (low + high) / 2
        inputs = Inputs(middle, low, high, torch.ones((), dtype=low.dtype, device=low.device), low.new_zeros(len(low)), "linf")
        return cls.over(network, inputs, crown=False)

    @classmethod
    def over(
        cls,
        network: Network,
        inputs: Inputs,
        *,
        crown: bool = True,
        splits: Mapping[int, Tensor] | None = None,
        most: int = MOST,
    ) -> Bounds:
        """Return bounds over inputs: intervals, and with `crown` linear bounds for whatever goes into an activation.

        Parameters
        ----------
        most
            Coefficients (rows times the largest value on their way) that one layer's inputs may take for one sample.
        """
        bounds = cls(network, inputs, splits=dict(splits or {}))
        for number in range(len(network.nodes)):
            bounds._interval(number)
            if crown and bounds._feeds(number):
                bounds._refine(number, most)
            if number in bounds.splits:
                bounds._split(number)
        return bounds

    def refine(self, most: int, ascent: Ascent) -> None:
        """Go over CROWN's bounds again from input to output, with `ascent` for lower bounds of what goes into activations."""
        self._lines.clear()
        self._fans.clear()
        for number in range(1, len(self.network.nodes)):
            low, high = self.low[number], self.high[number]
            self._interval(number)
            self.low[number], self.high[number] = torch.maximum(low, self.low[number]), torch.minimum(high, self.high[number])
            if self._feeds(number):
                self._refine(number, most, ascent)
            if number in self.splits:
                self._split(number)

    def output(self) -> Interval:
        """Return bounds of the network's output, (n, classes)."""
        last = len(self.network.nodes) - 1
        return self.low[last], self.high[last]

    def activations(self) -> list[int]:
        """Return the numbers of the values that go into an activation, from input to output: what can be split."""
        nodes = self.network.nodes
        return sorted({node.inputs[0] for node in nodes if isinstance(node.operation, Activation)})

    def unstable(self, number: int) -> Tensor:
        """Tell for which neurons of a value the activation after it is not linear between the bounds; shape of the value."""
        low, high = self.low[number], self.high[number]
        found = torch.zeros_like(low, dtype=torch.bool)
        for user in self.network.consumers[number]:
            operation = self.network.nodes[user].operation
            if isinstance(operation, Activation):
                found |= operation.unstable(low, high)
        return found

    def impossible(self) -> Tensor:
        """Tell for which samples the bounds contradict each other, (n,): no input obeys their splits."""
        empty = torch.zeros(len(self.inputs.x), dtype=torch.bool, device=self.inputs.x.device)
        for number in self.splits:
            empty |= (self.low[number] > self.high[number]).flatten(1).any(dim=1)
        return empty

    def clip(self) -> None:
        """Bring the intervals of values that are split to their side of the kink."""
        for number in self.splits:
            self._split(number)

    def take(self, rows: Tensor) -> Bounds:
        """Return the bounds of some samples, positions or a mask."""
        return Bounds(
            self.network,
            self.inputs.take(rows),
            {number: low[rows] for number, low in self.low.items()},
            {number: high[rows] for number, high in self.high.items()},
            {number: split[rows] for number, split in self.splits.items()},
            list(self.intervals_only),
            slack={number: None if slack is None else slack[rows] for number, slack in self.slack.items()},
        )

    def lowest(
        self,
        rows: Tensor,
        number: int | None = None,
        *,
        slopes: Mapping[int, Tensor] | None = None,
        multipliers: Mapping[int, Tensor] | None = None,
        intervals: bool = False,
        bisections: int = 0,
        seen: dict[int, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return lower bounds of linear functions of a value, (n, r), and their coefficients at the input, (n, r, …).

        Parameters
        ----------
        rows
            The functions, (n, r, …): coefficients of each number of the value.
        number
            Which value; the output where None.
        slopes
            Free slopes of kinked activations, in [0, 1], by the number of the value that goes in, (n, …) or (n, r, …).
        multipliers
            At least 0, likewise, for the values that are split.
        intervals
            Stop at the first activation on the way, and take its intervals: what interval propagation alone gives.
        seen
            Filled with the coefficients (n, r, …) of each activation's output, by the number of the value that goes in.
        """
        last = len(self.network.nodes) - 1 if number is None else number
        waiting: dict[int, Tensor] = {last: rows}
        total = torch.zeros(rows.shape[:2], dtype=rows.dtype, device=rows.device)
        self.rows += rows.shape[0] * rows.shape[1]
        for place in range(last, 0, -1):
            if place not in waiting:
                continue
            coefficients = waiting.pop(place)
            operation = self.network.nodes[place].operation
            if multipliers is not None and place in multipliers and place in self.splits:
                # Where a split is obeyed sign · (value - corner) >= 0: taking a multiple of that away keeps a lower bound.
                taken = multipliers[place] * self.splits[place].to(rows.dtype)
                coefficients = coefficients - taken[:, None]
                at, each = self._corner(place), flat(taken)
                lost = abs(at) * self.network.rounding.sums(each.shape[1] + len(self.network.nodes))
                total = total + at * each.sum(dim=1, keepdim=True) - lost * each.abs().sum(dim=1, keepdim=True)
            sizes, slack = coefficients.abs(), self.slack[place]
            if slack is not None:
                total = total - _dot(sizes, slack)
            if isinstance(operation, Affine):
                total = total + self._through(place, operation, coefficients, waiting)
            elif intervals:
                middle, half = (self.low[place] + self.high[place]) / 2, (self.high[place] - self.low[place]) / 2
                total = total + _dot(coefficients, middle) - _dot(sizes, half)
            else:
                assert isinstance(operation, Activation)  # noqa: S101  (there are two kinds)
                if seen is not None:
                    seen[self.network.nodes[place].inputs[0]] = coefficients
                total = total + self._relaxed(place, operation, coefficients, sizes, waiting, slopes)
        reached = waiting.pop(0, None)
        if reached is None:
            reached = torch.zeros((*rows.shape[:2], *self.network.nodes[0].shape), dtype=rows.dtype, device=rows.device)
        total = total + self.inputs.lowest(reached, bisections=bisections)
        own = self.slack[0]
        if own is not None:
            total = total - _dot(reached.abs(), own)
        return total, reached

    def fan(self, place: int, operation: Kink) -> Fan:
        """Return the lines of the kinked activation that makes a value, for all free slopes.

        Their offsets hold the rounding of the sums that they will enter.
        """
        if place not in self._fans:
            parent, rounding = self.network.nodes[place].inputs[0], self.network.rounding
            low, high = self.low[parent], self.high[parent]
            passing = largest((low, high)) * rounding.passing(4)  # what lies between two lines is rounded, too
            ends = (operation.lines(low, high, rounding, torch.full_like(low, end)) for end in (0.0, 1.0))
            first, last = (lines.widened(self._sums(place) * 1.01, passing) for lines in ends)
            self._fans[place] = Fan.between(first, last, through_zero=operation.at == 0)
        return self._fans[place]

    def _interval(self, number: int) -> None:
        node = self.network.nodes[number]
        rounding = self.network.rounding
        if node.operation is None:
            self.low[number], self.high[number] = self.inputs.low, self.inputs.high
            # Sums over the whole input, and the difference of its two sides.
            around = 1 if self.inputs.norm == "linf" else 3  # numbers from the samples to the ends of the box are summed, too
            size = largest((self.inputs.low, self.inputs.high))
            self.slack[number] = around * size * rounding.sums(math.prod(node.shape) + len(self.network.nodes))
            return
        boxes = [(self.low[parent], self.high[parent]) for parent in node.inputs]
        low, high = node.operation.interval(boxes)
        error = node.operation.error(boxes, (low, high), rounding)
        if error is not None:
            low, high = low - error, high + error
        self.low[number], self.high[number] = low, high
        if isinstance(node.operation, Reshape) and len(self.network.consumers[number]) == 1:
            self.slack[number] = None
            return
        # Coefficients are rounded, too, when they pass a value, and what is added there is summed over all of its numbers.
        passing = largest((low, high)) * rounding.passing()
        constant = node.operation.constant() if isinstance(node.operation, Affine) else None
        if constant is not None:
            passing = passing + constant.abs() * rounding.sums(low[0].numel() + len(self.network.nodes))
        slack = passing if error is None else passing + error
        self.slack[number] = torch.where(high <= LOWEST, 0.0, slack) if isinstance(node.operation, Padding) else slack

    def _split(self, number: int) -> None:
        sign, at = self.splits[number], self._corner(number)
        self.low[number] = torch.where(sign > 0, self.low[number].clamp_min(at), self.low[number])
        self.high[number] = torch.where(sign < 0, self.high[number].clamp_max(at), self.high[number])

    def _corner(self, number: int) -> float:
        """Return where the kink of the activation after a value lies: what its splits are about."""
        after = (self.network.nodes[user].operation for user in self.network.consumers[number])
        return next(kink.at for kink in after if isinstance(kink, Kink))

    def _feeds(self, number: int) -> bool:
        """Tell whether a value is affine and goes into an activation: those are tightened."""
        nodes = self.network.nodes
        users = self.network.consumers[number]
        return isinstance(nodes[number].operation, Affine) and any(isinstance(nodes[k].operation, Activation) for k in users)

    def _refine(self, number: int, most: int, ascent: Ascent | None = None) -> None:
        """Tighten the interval of what goes into an activation, where it would make a difference."""
        if self.inputs.norm == "linf" and self._is_first(number):
            return  # an affine function of the box: its interval is exact already
        loose = flat(self.unstable(number))
        count = int(loose.sum(dim=1).max())
        if count == 0:
            return
        widest = max(math.prod(node.shape) for node in self.network.nodes[: number + 1])
        if 2 * count * widest > most:
            if ascent is None:
                self.intervals_only.append(self.network.nodes[number].layer)
            return
        chosen = loose.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]
        each = max(1, CHUNK // max(1, 2 * widest * len(loose)))
        known = flat(self.low[number]), flat(self.high[number])
        low, high = (side.clone() for side in known)
        for part in torch.split(chosen, each, dim=1):
            check_deadline()
            below, above = self._of_neurons(number, part, ascent)
            low.scatter_(1, part, torch.maximum(low.gather(1, part), below))
            high.scatter_(1, part, torch.minimum(high.gather(1, part), -above))
        # What was bounded with them only because another sample needed it keeps its bounds: they depend on no neighbour.
        low, high = (torch.where(loose, side, before) for side, before in zip((low, high), known, strict=True))
        self.low[number], self.high[number] = low.view_as(self.low[number]), high.view_as(self.high[number])

    def _is_first(self, number: int) -> bool:
        """Tell whether a value is one affine operation of the input, moved numbers aside."""
        parents = self.network.nodes[number].inputs
        return len(parents) == 1 and parents[0] == 0

    def _of_neurons(self, number: int, chosen: Tensor, ascent: Ascent | None) -> tuple[Tensor, Tensor]:
        """Return lower bounds of some neurons of a value, (n, k), and of their negatives."""
        node = self.network.nodes[number]
        assert isinstance(node.operation, Affine)  # noqa: S101  (only those are tightened)
        size = math.prod(node.shape)
        matrix = self.network.matrix(number)
        if matrix is None:
            rows = torch.zeros((*chosen.shape, size), dtype=self.network.dtype, device=chosen.device)
            rows = rows.scatter_(2, chosen[..., None], 1.0).view(*chosen.shape, *node.shape)
            found = self._lowest_of(torch.cat((rows, -rows), dim=1), None, number, ascent)
            below, above = torch.split(found, chosen.shape[1], dim=1)
            return below, above
        # The first step back is the same for all samples: its rows are looked up.
        rows = matrix[chosen]
        slack = self.slack[number]
        assert slack is not None  # noqa: S101  (every value has one)
        lost = flat(slack.expand_as(self.low[number])).gather(1, chosen)
        constant = node.operation.constant()
        added = torch.zeros_like(lost) if constant is None else constant.expand(node.shape).reshape(-1)[chosen]
        added = torch.cat((added - lost, -added - lost), dim=1)
        found = self._lowest_of(torch.cat((rows, -rows), dim=1), added, node.inputs[0], ascent)
        below, above = torch.split(found + added, chosen.shape[1], dim=1)
        return below, above

    def _lowest_of(self, rows: Tensor, added: Tensor | None, number: int, ascent: Ascent | None) -> Tensor:
        if ascent is None:
            return self.lowest(rows, number)[0]
        return ascent(rows, rows.new_zeros(rows.shape[:2]) if added is None else added, number)

    def _through(self, place: int, operation: Affine, coefficients: Tensor, waiting: dict[int, Tensor]) -> Tensor:
        node = self.network.nodes[place]
        n, r = coefficients.shape[:2]
        shapes = [self.network.nodes[parent].shape for parent in node.inputs]
        for parent, part in zip(node.inputs, operation.back(coefficients.flatten(0, 1), shapes), strict=True):
            _add(waiting, parent, part.view(n, r, *part.shape[1:]))
        constant = operation.constant()
        if constant is None:
            return torch.zeros((), dtype=coefficients.dtype, device=coefficients.device)
        return _flat_rows(coefficients) @ constant.expand(node.shape).reshape(-1)

    def _relaxed(
        self,
        place: int,
        operation: Activation,
        coefficients: Tensor,
        sizes: Tensor,
        waiting: dict[int, Tensor],
        slopes: Mapping[int, Tensor] | None,
    ) -> Tensor:
        parent = self.network.nodes[place].inputs[0]
        if slopes is not None and parent in slopes and isinstance(operation, Kink):
            lines = self.fan(place, operation).at(slopes[parent])
            low, high = coefficients.clamp_min(0), coefficients.clamp_max(0)
            passed = torch.addcmul(low * _rowwise(lines.low_slope, low), high, _rowwise(lines.high_slope, high))
            _add(waiting, parent, passed)
            return _dot(low, lines.low_offset) + _dot(high, lines.high_offset)
        lines = self._lines_of(place, operation)
        if lines.places is None:
            # Positive coefficients take the lower line and negative ones the upper: their mean, and half of what lies between.
            middle, half = (lines.low_slope + lines.high_slope) / 2, (lines.low_slope - lines.high_slope) / 2
            passed = torch.addcmul(coefficients * _rowwise(middle, coefficients), sizes, _rowwise(half, coefficients))
            _add(waiting, parent, passed)
        else:
            shape = self.network.nodes[parent].shape
            low, high = coefficients.clamp_min(0), coefficients.clamp_max(0)
            _add(waiting, parent, _scattered(low * _rowwise(lines.low_slope, low), lines.places[0], shape))
            _add(waiting, parent, _scattered(high * _rowwise(lines.high_slope, high), lines.places[1], shape))
        total = _dot(coefficients, (lines.low_offset + lines.high_offset) / 2)
        return total + _dot(sizes, (lines.low_offset - lines.high_offset) / 2)

    def _passing(self, parent: int, place: int) -> Tensor:
        """Return what rounding a slope may cost at most: for a maximum over windows, at the largest of the whole image."""
        operation = self.network.nodes[place].operation
        added = operation.shared if isinstance(operation, Maximum) else 0
        size = largest((self.low[parent], self.high[parent])) * self.network.rounding.passing(added)
        if isinstance(self.network.nodes[parent].operation, Padding):
            size = torch.where(self.high[parent] <= LOWEST, 0.0, size)  # exact, and never the maximum
        if size.shape[1:] == self.network.nodes[place].shape:
            return size
        return flat(size).amax(dim=1).reshape(-1, *[1] * (size.ndim - 1))

    def _sums(self, place: int) -> float:
        """Return the relative error of the sums that a line's offset will enter, on both sides."""
        return 2 * self.network.rounding.sums(math.prod(self.network.nodes[place].shape) + len(self.network.nodes))

    def _lines_of(self, place: int, operation: Activation) -> Lines:
        """Return the lines of an activation; their offsets hold the rounding of the sums that they will enter."""
        if place not in self._lines:
            parent = self.network.nodes[place].inputs[0]
            lines = operation.lines(self.low[parent], self.high[parent], self.network.rounding)
            self._lines[place] = lines.widened(self._sums(place), self._passing(parent, place))
        return self._lines[place]


def _add(waiting: dict[int, Tensor], place: int, coefficients: Tensor) -> None:
    waiting[place] = coefficients if place not in waiting else waiting[place] + coefficients


def _rowwise(values: Tensor, rows: Tensor) -> Tensor:
    """Shape what is one a sample, (n, …), or one a row, (n, r, …), to go with rows."""
    return values if values.ndim == rows.ndim else values[:, None]


def _dot(rows: Tensor, values: Tensor) -> Tensor:
    """Return the sum of rows (n, r, …) times values (n, …) or (n, r, …); shape (n, r)."""
    if values.ndim == rows.ndim:
        total: Tensor = _flat_rows(rows * values).sum(dim=2)
        return total
    return torch.matmul(_flat_rows(rows), values.reshape(len(values), -1, 1))[..., 0]


def _flat_rows(rows: Tensor) -> Tensor:
    """Return rows (n, r, …), of a value that may be a single number, as (n, r, numbers)."""
    return rows.reshape(*rows.shape[:2], -1) if rows.numel() else rows.flatten(2)


def _scattered(rows: Tensor, places: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Send the coefficients of pooled numbers to the input that each is bounded by."""
    n, r, channels = rows.shape[:3]
    back = torch.zeros((n, r, channels, math.prod(shape[1:])), dtype=rows.dtype, device=rows.device)
    where = places.flatten(2)[:, None].expand(n, r, channels, -1)
    return back.scatter_add(3, where, rows.flatten(3)).view(n, r, *shape)
