"""Branch and bound: cut a sample's inputs into parts where kinks are on one side, until each has a bound or a budget ends.

Bunel et al. 2020, "Branch and Bound for Piecewise Linear Neural Network Verification"; Wang et al. 2021, "Beta-CROWN" (bounds
of a part with multipliers of its split constraints). Parts keep the intervals that the whole sample has, so that only the last
pass back is made for each; whatever slopes and multipliers are chosen, a bound is true, with the network's own rounding in it.

A part begins with the slopes and multipliers of the part that it was cut from, and takes a few steps from there: on an
adversarially trained network at L∞ 0.3, 4 such steps gave the bounds that 12 steps from the whole sample's gave, in two fifths
of the time. To try several cuts of each part and take the best (De Palma et al. 2021) saved a tenth of the parts there, at
twice the time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from audit.budget import check_deadline
from audit.certificates.activations import Kink
from audit.certificates.bounds import Bounds
from audit.certificates.operations import flat
from audit.certificates.optimise import ascend

FIRST_STEPS, STEPS = 20, 4  # of slopes and multipliers: of the whole sample, and of a part
RATE = 0.1
# Bound passes that take as long as the whole sample's steps, and as a part's: on cnn_a of the project's benchmarks, a pass
# took 0.5 ms, the first part 65 ms and each other one 2.8 ms.
OF_ALL, OF_A_PART = 130.0, 6.0
Split = tuple[int, int, int]  # number of the value, position in it, side


@dataclass(frozen=True)
class Cut:
    """Inputs of one sample that obey some splits, and where the search for their bound begins.

    Attributes
    ----------
    slopes : float32 Tensor (open units of the whole sample,)
        Free slopes.
    multipliers
        One for each split.
    """

    splits: tuple[Split, ...]
    slopes: Tensor
    multipliers: tuple[float, ...]


@dataclass(order=True)
class Part:
    """A cut with its lower bound, and where to cut it next (None: nowhere)."""

    lower: float
    order: int
    cut: Cut = field(compare=False)
    next: tuple[int, int] | None = field(compare=False)

    def halves(self) -> list[Cut]:
        """Return the two parts that its next neuron cuts it into."""
        if self.next is None:
            return []
        known, slopes, multipliers = self.cut.splits, self.cut.slopes, (*self.cut.multipliers, 0.0)
        return [Cut((*known, (*self.next, side)), slopes, multipliers) for side in (1, -1)]


@dataclass(frozen=True)
class Branched:
    """What branching found for one margin of one sample.

    Attributes
    ----------
    lower
        A lower bound of the margin: the smallest over all parts.
    stopped
        Whether `probe` ended it.
    parts
        Parts that were bounded.
    """

    lower: float
    stopped: bool
    parts: int

    @property
    def passes(self) -> float:
        """Bound passes (see `Certificate`) that took as long."""
        return 0.0 if self.parts == 0 else OF_ALL + OF_A_PART * self.parts

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
    batch: int = 16,
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
    waiting = search.bound([search.whole()])
    while waiting and waiting[0].lower <= 0 and not search.stopped and search.parts + 2 <= most:
        check_deadline()
        room = min(batch, (most - search.parts) // 2)
        taken = [heapq.heappop(waiting) for _ in range(min(room, len(waiting))) if waiting[0].lower <= 0]
        if any(part.next is None for part in taken):
            return search.found(taken[0].lower)
        for half in search.bound([cut for part in taken for cut in part.halves()]):
            if half.lower <= 0:
                heapq.heappush(waiting, half)
            else:
                search.closed = min(search.closed, half.lower)
    return search.found(waiting[0].lower if waiting else search.closed)


class _Search:
    def __init__(self, root: Bounds, row: Tensor, constant: float, probe: Callable[[Tensor], bool] | None) -> None:
        self.root, self.row, self.constant, self.probe = root, row, constant, probe
        self.parts, self.stopped = 0, False
        self.closed = float("inf")  # lowest bound of a part that needs no further work
        self.kinks = {node.inputs[0]: node.operation for node in root.network.nodes if isinstance(node.operation, Kink)}
        # Positions of the units that are open in the whole sample: the slopes of the others make no difference.
        self.open = {
            number: flat(kink.unstable(root.low[number], root.high[number]))[0].nonzero()[:, 0]
            for number, kink in self.kinks.items()
        }

    def found(self, lower: float) -> Branched:
        """Return the outcome."""
        return Branched(lower, self.stopped, self.parts)

    def whole(self) -> Cut:
        """Return the whole sample, with CROWN's own slopes."""
        slopes = []
        for number, kink in self.kinks.items():
            low, high = (flat(side[number])[0, self.open[number]] for side in (self.root.low, self.root.high))
            slopes.append((high - kink.at > kink.at - low).float())
        return Cut((), torch.cat(slopes) if slopes else torch.zeros(0), ())

    def bound(self, cuts: list[Cut]) -> list[Part]:
        """Bound some parts."""
        bounds = self._parts_of([cut.splits for cut in cuts])
        slopes, multipliers = self._start(bounds, cuts)
        lower, corner, seen = self._optimised(bounds, slopes, multipliers, STEPS if cuts[0].splits else FIRST_STEPS)
        if self.probe is not None and self.probe(corner[lower <= 0]):
            self.stopped = True
        places = self._next(bounds, seen, slopes)
        ends = self._ends(cuts, slopes, multipliers)
        first = self.parts
        self.parts += len(cuts)
        return [
            Part(value, first + i, cut, place)
            for i, (value, cut, place) in enumerate(zip(lower.tolist(), ends, places, strict=True))
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

    def _optimised(
        self, bounds: Bounds, slopes: dict[int, Tensor], multipliers: dict[int, Tensor], steps: int
    ) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
        """Return the best lower bounds (n,), the lowest inputs, and the coefficients seen on the way."""
        rows = self.row.expand(len(bounds.inputs.x), 1, -1)
        best = ascend(bounds, rows, self.constant, slopes, multipliers, steps, RATE)[:, 0] + self.constant
        with torch.no_grad():
            seen: dict[int, Tensor] = {}
            lower, reached = bounds.lowest(rows, slopes=slopes, multipliers=multipliers, seen=seen, bisections=16)
            best = torch.maximum(best, (lower[:, 0] + self.constant).nan_to_num(nan=-torch.inf))
            return best, bounds.inputs.corner(reached[:, 0]), {n: c[:, 0] for n, c in seen.items()}

    def _start(self, bounds: Bounds, cuts: list[Cut]) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        kept = torch.split(torch.stack([cut.slopes for cut in cuts]), [len(places) for places in self.open.values()], dim=1)
        slopes: dict[int, Tensor] = {}
        for (number, places), known in zip(self.open.items(), kept, strict=True):
            slope = torch.zeros_like(bounds.low[number])
            flat(slope)[:, places] = known.to(slope)
            slopes[number] = slope.requires_grad_()
        multipliers = {number: torch.zeros_like(bounds.low[number]) for number in bounds.splits}
        for i, cut in enumerate(cuts):
            for (number, place, _), value in zip(cut.splits, cut.multipliers, strict=True):
                flat(multipliers[number])[i, place] = value
        return slopes, {number: values.requires_grad_() for number, values in multipliers.items()}

    def _ends(self, cuts: list[Cut], slopes: dict[int, Tensor], multipliers: dict[int, Tensor]) -> list[Cut]:
        """Return the parts with the slopes and multipliers that were reached."""
        reached = [flat(slopes[number].detach())[:, places] for number, places in self.open.items()]
        kept = torch.cat(reached, dim=1).float() if reached else torch.zeros(len(cuts), 0)
        values = {number: flat(one.detach()).cpu() for number, one in multipliers.items()}
        return [
            Cut(cut.splits, kept[i].clone(), tuple(float(values[number][i, place]) for number, place, _ in cut.splits))
            for i, cut in enumerate(cuts)
        ]

    def _next(self, bounds: Bounds, seen: dict[int, Tensor], slopes: dict[int, Tensor]) -> list[tuple[int, int] | None]:
        """Choose the neuron whose lines lose most: its coefficient times the gap between a line and the kink."""
        numbers, scores = [], []
        for after, node in enumerate(bounds.network.nodes):
            operation = node.operation
            if not isinstance(operation, Kink) or node.inputs[0] not in seen:
                continue
            number = node.inputs[0]
            low, high, coefficients = bounds.low[number], bounds.high[number], seen[number]
            lines = bounds.fan(after, operation).at(slopes[number].detach())
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
