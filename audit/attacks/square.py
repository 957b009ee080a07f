"""Square Attack (Andriushchenko et al. 2020): a random search that asks for outputs alone, batched on the device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import prod, sqrt

import torch
from torch import Tensor

from audit.attacks.base import Candidates, output_of
from audit.attacks.geometry import Ball, Norm, Region, l2_norm, per_sample
from audit.attacks.goal import Goal
from audit.attacks.queries import QueryAttack
from audit.data.noise import hashed_bits
from audit.errors import UsageError
from audit.model.wrapper import Model

# Section 4.1: the share of inputs that a proposal changes, halved at these shares of the budget.
HALVED_AT = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
LOOK_EVERY = 10  # queries between looks at who has left: each look is a sync on a GPU, each leaving a copy
TILES = 5  # L2: the first point has 5 × 5 tiles


class Square(QueryAttack):
    """Random search over squares at the edge of the ball; no gradient, so that none can be masked from it.

    Andriushchenko et al. 2020, "Square Attack: a query-efficient black-box adversarial attack via random search", algorithms 1
    to 3: it starts at vertical stripes (L∞) or a grid of tiles (L2), then proposes a new value for one square window a query,
    and keeps it where the margin (Carlini & Wagner 2017) grows. The window shrinks on a schedule that is scaled to the budget.

    Inputs of shape (c, h, w) have square windows; (h, w) is one channel, and longer shapes are flattened in between. In a table
    there are no neighbours: there a proposal changes a random set of columns, each with a sign of its own, and of fixed columns
    none. Regression: half of the queries push the output up, half down.

    Two things differ from the authors' code: every position of the window is drawn, where theirs leaves out the last row and
    column; and a proposal that changes nothing takes the opposite signs, where theirs draws until something changes.

    Parameters
    ----------
    norm, eps, seed
        See `Attack`.
    queries
        Forwards a sample, the first point included.
    p_init
        Share of the inputs that the first proposals change.
    """

    name = "square"

    def __init__(
        self, norm: Norm = "linf", eps: float = 8 / 255, *, queries: int = 1000, p_init: float = 0.8, seed: int = 0
    ) -> None:
        super().__init__(norm, eps, queries=queries, seed=seed)
        if not 0 < p_init <= 1:
            raise UsageError(f"p_init must be above 0 and at most 1, got {p_init:g}")
        self.p_init = p_init

    def _search(
        self, model: Model, x: Tensor, goal: Goal, ball: Ball, ids: Tensor, found: Candidates, direction: float, queries: int
    ) -> None:
        """Search from one start and note in `found` what comes of it."""
        rows = (~found.broken).nonzero()[:, 0]
        if len(rows) == 0:
            return
        kind = f"{self.name}.{self.norm}" + ("" if direction > 0 else ".down")
        state = _State.start(x[rows], goal.take(rows), ball, rows, ids[rows])
        layout = _layout(x, ball)
        for query in range(queries):
            share = self._share(query - 1, queries - 1)
            draw = partial(hashed_bits, state.ids, seed=self.seed, purpose=kind, draw=query)
            point = _PROPOSALS[ball.norm](state, layout, draw, share if query else None).reshape(state.x.shape)
            point = state.region.settle(point)
            output = output_of(model, point)
            margin, hit = state.goal.loss(output, direction, "margin"), state.goal.broken(output)
            if query == 0 and direction > 0:
                found.loss_start[rows] = margin
            state.keep(point, margin, hit)
            if query % LOOK_EVERY == LOOK_EVERY - 1 or query == queries - 1:
                state.note(found)
                if bool(state.broken.all()):
                    return
                state = state.standing()

    def _share(self, query: int, queries: int) -> float:
        halved = sum(query > at * queries for at in HALVED_AT)
        return self.p_init * 0.5**halved


@dataclass
class _State:
    """The search on samples that still stand; the best point so far, and whether it broke its sample."""

    region: Region
    best: Tensor
    margin: Tensor
    broken: Tensor
    goal: Goal
    rows: Tensor
    ids: Tensor

    @classmethod
    def start(cls, x: Tensor, goal: Goal, ball: Ball, rows: Tensor, ids: Tensor) -> _State:
        flags = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        margin = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        return cls(ball.around(x), x.clone(), margin, flags, goal, rows, ids.to(x.device))

    @property
    def x(self) -> Tensor:
        """The clean samples."""
        return self.region.x

    def keep(self, point: Tensor, margin: Tensor, hit: Tensor) -> None:
        """Take the points that are better; a sample that is broken keeps the point that broke it."""
        better = ~self.broken & ((margin > self.margin) | hit)
        self.best = torch.where(per_sample(better, point), point, self.best)
        self.margin = torch.where(better, margin, self.margin)
        self.broken = self.broken | hit

    def note(self, found: Candidates) -> None:
        """Write down how far the search came."""
        found.x_adv[self.rows] = self.best
        found.broken[self.rows] = self.broken
        found.loss_end[self.rows] = torch.maximum(found.loss_end[self.rows], self.margin)

    def standing(self) -> _State:
        """Return the state of the samples that still stand."""
        keep = (~self.broken).nonzero()[:, 0]
        if len(keep) == len(self.rows):
            return self
        names = ("best", "margin", "broken", "rows", "ids")
        kept = {name: getattr(self, name)[keep] for name in names}
        return replace(self, region=self.region.take(keep), goal=self.goal.take(keep), **kept)


# --- proposals --------------------------------------------------------------------------------------------------------

Draw = Callable[[int], Tensor]  # how many numbers a sample -> 32-bit numbers, (n, how many)


def _at_the_edge(state: _State, layout: _Layout, draw: Draw, share: float | None) -> Tensor:
    """L∞, algorithm 2: one window goes to the upper or the lower end of what is allowed; at the start everything does."""
    low, high, best = (layout.view(side) for side in (state.region.low, state.region.high, state.best))
    if share is None:
        return torch.where(layout.stripes(draw), high, low)
    window, up = layout.window(draw, share)
    point = torch.where(window, torch.where(up, high, low), best)
    idle = (point == best).flatten(1).all(dim=1)
    return torch.where(window & per_sample(idle, best), torch.where(up, low, high), point)


def _on_the_sphere(state: _State, layout: _Layout, draw: Draw, share: float | None) -> Tensor:
    """L2, algorithm 3: the length of the change in a second window, and what clipping left over, move to the first."""
    x, best, low, high = (layout.view(side) for side in (state.x, state.best, state.region.low, state.region.high))
    eps, unit = state.region.ball.eps, layout.unit
    if share is None:
        change = layout.tiles(draw)
    else:
        change = torch.where(unit > 0, (best - x) / unit.clamp_min(torch.finfo(x.dtype).tiny), 0.0)
        one, two, bump = layout.bumps(draw, share)
        bump = _unit_length(bump.to(x.dtype) * (unit > 0))
        total = per_sample(l2_norm(change), x)
        both = _length(change * (one | two))
        new = bump + _unit_length(change * one)
        # Where the bump undoes what was there, it goes in alone.
        new = _unit_length(torch.where(_length(new) < 1e-3, bump, new))
        new = new * ((eps**2 - total**2).clamp_min(0.0) / x.shape[1] + both**2).sqrt()
        change = torch.where(one, new, torch.where(two, 0.0, change))
    change = change.to(x.dtype) * (unit > 0)
    change = change / per_sample(l2_norm(change).clamp_min(torch.finfo(x.dtype).tiny), x) * eps
    return torch.minimum(torch.maximum(x + change * unit, low), high)


_PROPOSALS = {"linf": _at_the_edge, "l2": _on_the_sphere}


def _length(change: Tensor) -> Tensor:
    """Return the L2 norm of each channel, (n, c, 1, 1)."""
    length: Tensor = torch.linalg.vector_norm(change, dim=(-2, -1), keepdim=True)
    return length


def _unit_length(change: Tensor) -> Tensor:
    """Scale each channel to length 1; zero stays zero."""
    return change / _length(change).clamp_min(torch.finfo(change.dtype).tiny)


class _Layout(ABC):
    """Where inputs lie beside each other: what a window, a stripe, a tile and a bump are; inputs are seen as (n, c, h, w)."""

    def __init__(self, shape: tuple[int, int, int], like: Tensor, ball: Ball) -> None:
        self.shape = shape
        unit = torch.ones((), dtype=like.dtype, device=like.device) if ball.scale is None else ball.scale
        self.unit = unit.expand(like.shape[1:]).reshape(1, *shape)

    def view(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), *self.shape)

    @abstractmethod
    def stripes(self, draw: Draw) -> Tensor:
        """Return which inputs go up at the start, bool, broadcastable to (n, c, h, w)."""

    @abstractmethod
    def window(self, draw: Draw, share: float) -> tuple[Tensor, Tensor]:
        """Return a random window that holds this share of the inputs, and which of them go up."""

    @abstractmethod
    def tiles(self, draw: Draw) -> Tensor:
        """Return the direction of the first change in L2."""

    @abstractmethod
    def bumps(self, draw: Draw, share: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return two random windows, and the change to put into the first."""


class _Columns(_Layout):
    """Columns, which have no neighbours: a window is a random set of those that may change."""

    def __init__(self, like: Tensor, ball: Ball) -> None:
        self.count = like[0].numel()
        super().__init__((1, 1, self.count), like, ball)
        self.fixed = self.unit[0, 0, 0] == 0
        self.free = self.count - int(self.fixed.sum())

    def stripes(self, draw: Draw) -> Tensor:
        return _signs(draw(self.count))[:, None, None]

    def window(self, draw: Draw, share: float) -> tuple[Tensor, Tensor]:
        ranks, signs = draw(2 * self.count).tensor_split(2, dim=1)
        return self._chosen(ranks, share), _signs(signs)[:, None, None]

    def tiles(self, draw: Draw) -> Tensor:
        return 2.0 * self.stripes(draw) - 1.0

    def bumps(self, draw: Draw, share: float) -> tuple[Tensor, Tensor, Tensor]:
        first, second, signs = draw(3 * self.count).tensor_split(3, dim=1)
        one, two = self._chosen(first, share), self._chosen(second, share)
        return one, two, one * (2.0 * _signs(signs)[:, None, None] - 1.0)

    def _chosen(self, ranks: Tensor, share: float) -> Tensor:
        """Choose the columns of lowest rank among those that may change, bool (n, 1, 1, d)."""
        if self.free == 0:
            return torch.zeros_like(ranks, dtype=torch.bool)[:, None, None]
        ranks = ranks.masked_fill(self.fixed, 2**32)
        most = ranks.kthvalue(max(1, round(share * self.free)), dim=1, keepdim=True).values
        return (ranks <= most)[:, None, None]


class _Grid(_Layout):
    """Images, and anything else whose last two axes have neighbours: a window is a rectangle, a square where it fits."""

    def __init__(self, like: Tensor, ball: Ball) -> None:
        *front, width = like.shape[1:]
        channels = front[0] if len(front) > 1 else 1
        height = prod(front) // channels
        super().__init__((channels, height, width), like, ball)
        self.y, self.x = torch.arange(height, device=like.device), torch.arange(width, device=like.device)

    def stripes(self, draw: Draw) -> Tensor:
        channels, _, width = self.shape
        return _signs(draw(channels * width)).reshape(-1, channels, 1, width)

    def window(self, draw: Draw, share: float) -> tuple[Tensor, Tensor]:
        numbers, sides = draw(2 + self.shape[0]), self._sides(share, 1)
        return _inside(*self._place(numbers, sides), sides), _signs(numbers[:, 2:])[:, :, None, None]

    def tiles(self, draw: Draw) -> Tensor:
        channels, height, width = self.shape
        side = max(1, min(height, width) // TILES)
        down, across = height // side, width // side
        y, x = self.y - (height - down * side) // 2, self.x - (width - across * side) // 2
        signs = _signs(draw((channels + 1) * down * across)).reshape(-1, channels + 1, down, across)
        tile_y, tile_x = (y // side).clamp(0, down - 1), (x // side).clamp(0, across - 1)
        signs = signs[:, :, tile_y][:, :, :, tile_x]
        bumps = _bump(side, side).to(self.unit)
        upright, lying = (b[y % side][:, x % side] for b in (bumps, bumps.T))
        tiles = torch.where(signs[:, channels:], upright, lying) * (2.0 * signs[:, :channels] - 1.0)
        return tiles * _inside(y[None], x[None], (down * side, across * side))

    def bumps(self, draw: Draw, share: float) -> tuple[Tensor, Tensor, Tensor]:
        numbers, sides = draw(5 + self.shape[0]), self._sides(share, 3)
        (y, x), second = self._place(numbers, sides), self._place(numbers[:, 2:], sides)
        upright, lying = _bump(*sides).to(self.unit), _bump(*sides[::-1]).T.to(self.unit)
        at_y, at_x = y.clamp(0, sides[0] - 1)[:, :, None], x.clamp(0, sides[1] - 1)[:, None, :]
        shape = torch.where(_signs(numbers[:, 4:5])[:, :, None], upright[at_y, at_x], lying[at_y, at_x])[:, None]
        one = _inside(y, x, sides)
        return one, _inside(*second, sides), one * shape * (2.0 * _signs(numbers[:, 5:])[:, :, None, None] - 1.0)

    def _sides(self, share: float, least: int) -> tuple[int, int]:
        """Return height and width of the window that holds this share of a channel: odd in L2, as the authors have it."""
        _, height, width = self.shape
        side = max(round(sqrt(share * height * width)), least)
        side += least == 3 and side % 2 == 0
        if side > height:  # a flat picture, or a sequence: the window grows along the other axis
            return height, min(width, max(least, round(share * width)))
        if side > width:
            return min(height, max(least, round(share * height))), width
        return side, side

    def _place(self, numbers: Tensor, sides: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return each row's and each column's place in a window that is drawn from two numbers, (n, h) and (n, w)."""
        _, height, width = self.shape
        top = (numbers[:, :1] * (height - sides[0] + 1)) >> 32
        left = (numbers[:, 1:2] * (width - sides[1] + 1)) >> 32
        return self.y - top, self.x - left


def _layout(x: Tensor, ball: Ball) -> _Layout:
    if x.ndim == 2:
        return _Columns(x, ball)
    grid = _Grid(x, ball)
    # In a picture of a few pixels an L2 bump, a hill beside a valley, covers everything: no direction but that one is tried.
    return _Columns(x, ball) if ball.norm == "l2" and min(grid.shape[1:]) < TILES else grid


def _signs(numbers: Tensor) -> Tensor:
    return numbers >= 2**31


def _inside(y: Tensor, x: Tensor, sides: tuple[int, int]) -> Tensor:
    """Return which inputs lie in the window, bool (n, 1, h, w)."""
    return ((y >= 0) & (y < sides[0]))[:, None, :, None] & ((x >= 0) & (x < sides[1]))[:, None, None, :]


@lru_cache(maxsize=64)
def _bump(height: int, width: int) -> Tensor:
    """Return the update of section 3.3: a hill in the upper half, a valley in the lower one; L2 norm 1, on the CPU."""
    half = height // 2
    bump = torch.cat((_hill(half, width), -_hill(height - half, width)))
    return bump / l2_norm(bump[None])


def _hill(height: int, width: int) -> Tensor:
    """Return rectangles around the middle whose heights fall as 1 / k²; L2 norm 1."""
    hill = torch.zeros((height, width))
    middle_y, middle_x = height // 2, width // 2
    for k in range(max(middle_y, middle_x) + 1):
        rows = slice(max(middle_y - k, 0), middle_y + k + 1)
        hill[rows, max(middle_x - k, 0) : middle_x + k + 1] += 1.0 / (k + 1) ** 2
    return hill / l2_norm(hill[None]).clamp_min(1e-12)
