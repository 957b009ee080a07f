"""Branch and bound: cut a sample's inputs into parts where kinks are on one side, until each has a bound or a budget ends.

Bunel et al. 2020, "Branch and Bound for Piecewise Linear Neural Network Verification"; Wang et al. 2021, "Beta-CROWN" (bounds
of a part with multipliers of its split constraints). Parts keep the intervals that the whole sample has, so that only the last
pass back is made for each; whatever multipliers are chosen, a bound is true, with the network's own rounding in it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from audit.certificates.activations import Kink, Lines
from audit.certificates.bounds import Bounds
from audit.certificates.operations import flat
from audit.certificates.optimise import ascend

STEPS = 12  # of the multipliers of a part
RATE = 0.1
Split = tuple[int, int, int]  # number of the value, position in it, side


@dataclass(order=True)
class Part:
    """Inputs of one sample that obey some splits: their lower bound, and where to cut them next (None: nowhere)."""

    lower: float
    order: int
    splits: tuple[Split, ...] = field(compare=False)
    next: tuple[int, int] | None = field(compare=False)


@dataclass(frozen=True)
class Branched:
    """What branching found for one margin of one sample.

    Attributes
    ----------
    lower
        A lower bound of the margin: the smallest over all parts that are left; infinite where none is.
    stopped
        Whether `probe` ended it.
    parts
        Parts that were bounded: what it cost.
    """

    lower: float
    stopped: bool
    parts: int

    @property
    def certified(self) -> bool:
        """Whether the margin is above 0 everywhere."""
        return self.lower > 0 and not self.stopped


def branch(
    root: Bounds,
    row: Tensor,
    constant: float,
    *,
    most: int,
    batch: int = 32,
    probe: Callable[[Tensor], bool] | None = None,
) -> Branched:
    """Bound a linear function of the output of one sample from below, part by part, the loosest first.

    Parameters
    ----------
    root
        CROWN's bounds of the one sample.
    row
        The function, (outputs,).
    constant
        What is added.
    most
        Parts that may be bounded.
    batch
        Parts that are bounded at once.
    probe
        Called with the inputs (n, …) in which the bounds of parts are lowest, where the function is likeliest to be below 0;
        for norms but L∞ they may lie outside the ball. It returns True to end the search.
    """
    search = _Search(root, row, constant, probe)
    waiting = [search.bound([()])[0]]
    while waiting and waiting[0].lower <= 0 and not search.stopped and search.parts + 2 <= most:
        room = min(batch, (most - search.parts) // 2)
        taken = [heapq.heappop(waiting) for _ in range(min(room, len(waiting))) if waiting[0].lower <= 0]
        children: list[tuple[Split, ...]] = []
        for part in taken:
            if part.next is None:
                return Branched(taken[0].lower, search.stopped, search.parts)
            children += [(*part.splits, (*part.next, side)) for side in (1, -1)]
        for part in search.bound(children):
            if part.lower <= 0:
                heapq.heappush(waiting, part)
    return Branched(waiting[0].lower if waiting else float("inf"), search.stopped, search.parts)


class _Search:
    def __init__(self, root: Bounds, row: Tensor, constant: float, probe: Callable[[Tensor], bool] | None) -> None:
        self.root, self.row, self.constant, self.probe = root, row, constant, probe
        self.parts, self.stopped = 0, False
        self.slopes: dict[int, Tensor] | None = None  # of the whole sample, where all parts begin

    def bound(self, splits: list[tuple[Split, ...]]) -> list[Part]:
        """Bound some parts."""
        bounds = self._parts_of(splits)
        lower, corner, seen, slopes = self._optimised(bounds)
        if self.slopes is None:
            self.slopes = {number: slope[:1].detach() for number, slope in slopes.items()}
        if self.probe is not None and self.probe(corner[lower <= 0]):
            self.stopped = True
        places = self._next(bounds, seen, slopes)
        first = self.parts
        self.parts += len(splits)
        return [
            Part(value, first + i, known, place)
            for i, (value, known, place) in enumerate(zip(lower.tolist(), splits, places, strict=True))
        ]

    def _parts_of(self, splits: list[tuple[Split, ...]]) -> Bounds:
        root = self.root
        bounds = root.take(torch.zeros(len(splits), dtype=torch.long, device=root.inputs.x.device))
        sides: dict[int, Tensor] = {}
        for number in sorted({number for known in splits for number, _, _ in known}):
            side = torch.zeros_like(bounds.low[number], dtype=torch.int8)
            at = [(i, place, sign) for i, known in enumerate(splits) for where, place, sign in known if where == number]
            rows, places, signs = (torch.tensor(column, device=side.device) for column in zip(*at, strict=True))
            flat(side)[rows, places] = signs.to(torch.int8)
            sides[number] = side
        bounds.splits = sides
        bounds.clip()
        return bounds

    def _optimised(self, bounds: Bounds) -> tuple[Tensor, Tensor, dict[int, Tensor], dict[int, Tensor]]:
        """Return the best lower bounds (n,), the lowest inputs, the coefficients seen on the way, and the slopes."""
        count = len(bounds.inputs.x)
        rows = self.row.expand(count, 1, -1)
        slopes, multipliers = self._start(bounds, count)
        best = ascend(bounds, rows, self.constant, slopes, multipliers, STEPS, RATE)[:, 0] + self.constant
        with torch.no_grad():
            seen: dict[int, Tensor] = {}
            lower, reached = bounds.lowest(rows, slopes=slopes, multipliers=multipliers, seen=seen, bisections=16)
            best = torch.maximum(best, (lower[:, 0] + self.constant).nan_to_num(nan=-torch.inf))
            return best, bounds.inputs.corner(reached[:, 0]), {n: c[:, 0] for n, c in seen.items()}, slopes

    def _start(self, bounds: Bounds, count: int) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        slopes: dict[int, Tensor] = {}
        for node in bounds.network.nodes:
            if isinstance(node.operation, Kink):
                number = node.inputs[0]
                if self.slopes is not None:
                    slope = self.slopes[number].expand(count, *self.slopes[number].shape[1:]).clone()
                else:
                    low, high = bounds.low[number], bounds.high[number]
                    slope = ((high - node.operation.at) > (node.operation.at - low)).to(low.dtype)
                slopes[number] = slope.requires_grad_()
        return slopes, {number: torch.zeros_like(bounds.low[number]).requires_grad_() for number in bounds.splits}

    def _next(self, bounds: Bounds, seen: dict[int, Tensor], slopes: dict[int, Tensor]) -> list[tuple[int, int] | None]:
        """Choose the neuron whose lines lose most: its coefficient times the gap between a line and the kink."""
        numbers, scores = [], []
        for node in bounds.network.nodes:
            operation = node.operation
            if not isinstance(operation, Kink) or node.inputs[0] not in seen:
                continue
            number = node.inputs[0]
            low, high, coefficients = bounds.low[number], bounds.high[number], seen[number]
            lines: Lines = operation.lines(low, high, bounds.network.rounding, slopes[number].detach())
            at = torch.full_like(low, operation.at)
            above, below = (
                line + slope * at - operation.value
                for line, slope in ((lines.high_offset, lines.high_slope), (lines.low_offset, lines.low_slope))
            )
            lost = coefficients.clamp_max(0).abs() * above.abs() + coefficients.clamp_min(0) * below.abs()
            free = operation.unstable(low, high)
            if number in bounds.splits:
                free = free & (bounds.splits[number] == 0)
            numbers.append(number)
            scores.append(flat(torch.where(free, lost + 1e-12, -torch.inf)))
        if not scores:
            return [None] * len(bounds.inputs.x)
        best, places = zip(*(score.max(dim=1) for score in scores), strict=True)
        highest, which = torch.stack(best).max(dim=0)
        place = torch.stack(places).gather(0, which[None])[0]
        found = zip(highest.tolist(), which.tolist(), place.tolist(), strict=True)
        return [(numbers[w], p) if h > -float("inf") else None for h, w, p in found]
