"""What an attack may change, and the geometry of it: boxes and balls of four norms, projections, distances, random points.

A `ThreatModel` says it; on a device it is a `Ball`; around some samples it is a `Region`, which attacks project onto. What the
rows of a table must keep to besides stands in `audit.attacks.constraints`; without constraints nothing is done for them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.attacks.constraints import NEAREST, Constraints, Filling, Rules
from audit.data.noise import normal_noise, uniform_noise
from audit.errors import UsageError
from audit.plain import plain

Norm = Literal["linf", "l2", "l1", "l0"]
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1", "l0")
SYMBOLS = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}
# How a point of the ball is brought to whole numbers and categories: the share of its change that is kept, the fraction from
# which a whole number moves away from the clean one, and whether categories change. The first that is allowed is taken.
EDGE = 0.95  # of the radius
RUNGS = ((1.0, 0.5, True), (1.0, 1.0, True), (1.0, 0.5, False), (1.0, 1.0, False), (0.5, 0.5, False), (0.25, 1.0, False))


@dataclass(frozen=True)
class ThreatModel:
    """What an attack may change.

    Attributes
    ----------
    norm
        ``linf``, ``l2``, ``l1`` or ``l0``.
    eps
        Radius, in the units of the input divided by `scale`; in L0 the number of inputs that may change.
    low, high
        The box: lowest and highest value of each input, broadcastable to one sample.
    scale
        Length of one unit of the radius in each input (a column's standard deviation, say); 1 where None. An input with
        scale 0 cannot be changed.
    mutable
        Inputs that may change, broadcastable to one sample; all where None.
    constraints
        What changed rows of a table must keep to; nothing where None.
    """

    norm: Norm
    eps: float
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    scale: NDArray[np.float64] | None = None
    mutable: NDArray[np.bool_] | None = None
    constraints: Constraints | None = None

    def reach(self, shape: tuple[int, ...]) -> float:
        """Return the radius that reaches every corner of the box of samples of this shape.

        In L∞ it is the width of the box, in L2 its diagonal, in L1 the sum of its sides, in L0 the number of inputs. One-hot
        columns outside the radius are left out.
        """
        width = np.broadcast_to(np.asarray(self.high) - np.asarray(self.low), shape)
        scale = np.broadcast_to(self._scale(), shape)
        if self.constraints and self.constraints.max_category_changes is not None:
            scale = np.where(self.constraints.free(shape[-1]), 0.0, scale)
        ratio = width[scale > 0] / scale[scale > 0]
        if ratio.size == 0:
            return 0.0
        return float(size_of(torch.from_numpy(ratio)[None], self.norm))

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise a UsageError where the radius is not between 0 and the size of the box of a sample of this shape."""
        if self.norm not in NORMS:
            raise UsageError(f"norm must be one of {', '.join(NORMS)}, got {self.norm!r}")
        if not isinstance(cast(object, self.eps), Real):
            raise UsageError(f"eps must be a number, as in eps=8/255 without quotes, got {self.eps!r}")
        self.check_box(shape)
        if self.constraints:
            if len(shape) != 1:
                raise UsageError(f"constraints are for tables, whose samples have one axis; these have shape {shape}")
            self.constraints.check(shape[0])
        most = self.reach(shape)
        if not 0 <= self.eps <= most:
            size = {"linf": "width", "l2": "diagonal", "l1": "sum of the sides", "l0": "number of inputs"}[self.norm]
            hint = f": did you mean {self.eps:g}/255?" if most <= 1 and most < self.eps <= 255 * most else ""
            raise UsageError(f"eps must be between 0 and the {size} of the box ({most:g}), got {self.eps:g}{hint}")
        if self.norm == "l0" and math.isfinite(self.eps) and self.eps != int(self.eps):
            raise UsageError(f"in L0 the radius is a whole number of inputs that may change, got {self.eps:g}")

    def check_box(self, shape: tuple[int, ...]) -> None:
        """Raise a UsageError where box, scale or mutable inputs are not those of a sample of this shape.

        A box whose lowest value is above its highest, or a scale without a value, holds no changed input: every network
        would look robust in it.
        """
        for name in ("low", "high", "scale", "mutable"):
            side = getattr(self, name)
            if side is None:
                continue
            numbers = np.asarray(side)
            if numbers.dtype.kind not in ("b" if name == "mutable" else "iuf"):
                kind = "True or False" if name == "mutable" else "numbers"
                raise UsageError(f"the threat model's {name} should be {kind}, got {numbers.dtype}")
            try:
                np.broadcast_to(numbers, shape)
            except ValueError:
                raise UsageError(
                    f"the threat model's {name} should be one value or fit samples of shape {shape}, got shape {numbers.shape}"
                ) from None
        low, high = np.broadcast_arrays(np.asarray(self.low), np.asarray(self.high))
        wrong = ~(low <= high)
        if wrong.any():
            raise UsageError(
                "the lowest value of each input should be no larger than its highest, "
                f"got {float(low[wrong][0]):g} to {float(high[wrong][0]):g}"
            )
        if self.scale is not None and not bool((np.isfinite(self.scale) & (np.asarray(self.scale) >= 0)).all()):
            raise UsageError("the threat model's scale should be finite and 0 or more, got NaN, infinite or negative values")

    def _scale(self) -> NDArray[np.float64]:
        scale = np.asarray(1.0) if self.scale is None else np.asarray(self.scale, dtype=np.float64)
        return scale if self.mutable is None else np.where(self.mutable, scale, 0.0)

    def can_change(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Tell which inputs the radius can change at all, of this shape: a whole number by 1, say; the box is left aside."""
        scale = np.broadcast_to(self._scale(), shape)
        if not self.constraints:
            return (scale > 0) & (self.eps > 0)
        rules, columns = self.constraints, shape[-1]
        steps = rules.discrete(columns)
        far = self.eps >= 1 if self.norm == "l0" else self.eps * scale * (1 + 1e-6) >= np.where(steps, 1.0, 0.0)
        able = np.asarray((scale > 0) & far & (self.eps > 0))
        return np.where(rules.free(columns), (scale > 0) & (rules.max_category_changes != 0), able)

    def describe(self, columns: Sequence[str] = ()) -> list[str]:
        """Say in plain words what may be changed; `columns` are the names of a table's columns."""
        each = "" if self.scale is None else " standard deviations of each column"
        what = f"at most {int(self.eps)} inputs change" if self.norm == "l0" else f"radius {self.eps:.6g}{each}"
        out = [f"{SYMBOLS[self.norm]}: {what}"]
        low, high = (np.asarray(side, dtype=np.float64).reshape(-1) for side in (self.low, self.high))
        if len(columns) and max(len(low), len(high)) > 1:
            low, high = np.broadcast_to(low, len(columns)), np.broadcast_to(high, len(columns))
            out.append("bounds: " + ", ".join(f"{n} {a:.6g} to {b:.6g}" for n, a, b in zip(columns, low, high, strict=True)))
        else:
            out.append(f"bounds: {low.min():.6g} to {high.max():.6g}")
        fixed = [name for name, unit in zip(columns, np.broadcast_to(self._scale(), len(columns)), strict=True) if unit == 0]
        if fixed:
            out.append("never changed: " + ", ".join(fixed))
        out = [plain(line) for line in out]
        return out + (self.constraints.describe(columns) if self.constraints and len(columns) else [])

    def on(self, like: Tensor) -> Ball:
        """Return the threat model as tensors on the device of `like`, to project with."""
        scale, rules = self._scale(), None
        if self.constraints:
            scale = np.broadcast_to(scale, like.shape[1:])
            rules = self.constraints.on(like, torch.from_numpy(scale == 0).to(like.device))
            # A category outside the radius flips with a step as long as the radius.
            outside = self.constraints.free(like.shape[1]) & (scale > 0)
            scale = np.where(outside, 1.0 / self.eps if self.eps > 0 else 1.0, scale)
        return Ball(
            norm=self.norm,
            eps=self.eps,
            low=torch.as_tensor(self.low, dtype=like.dtype, device=like.device),
            high=torch.as_tensor(self.high, dtype=like.dtype, device=like.device),
            scale=None if scale.ndim == 0 and scale == 1 else torch.as_tensor(scale, dtype=like.dtype, device=like.device),
            rules=rules,
        )


@dataclass(frozen=True)
class Ball:
    """A threat model on a device: projects onto box and radius, and measures distances."""

    norm: Norm
    eps: float
    low: Tensor
    high: Tensor
    scale: Tensor | None
    rules: Rules | None = None

    def unit(self) -> Tensor | float:
        """Length of one unit of the radius in each input."""
        return 1.0 if self.scale is None else self.scale

    def around(self, x: Tensor) -> Region:
        """Return the points that may stand in for the samples `x`."""
        return Region(x, *self.limits(x), self)

    def limits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return lowest and highest allowed value around `x` for L∞; for other norms the box alone."""
        low, high = self._limits(x)
        return (low, high) if self.rules is None else self.rules.limits(x, low, high)

    def _limits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.norm != "l0" and self.rules is not None:
            # In L1 and L2, too, no input alone moves further than the radius: whole numbers are told apart by it.
            far = torch.where(self.rules.free, torch.inf, torch.as_tensor(self.eps * self.unit()))
            return torch.maximum(x - far, torch.minimum(self.low, x)), torch.minimum(x + far, torch.maximum(self.high, x))
        if self.norm == "linf":
            reach = self.eps * self.unit()
            return torch.maximum(x - reach, torch.minimum(self.low, x)), torch.minimum(x + reach, torch.maximum(self.high, x))
        # A clean input outside the box stays where it is rather than being moved by the projection.
        low, high = torch.minimum(self.low, x), torch.maximum(self.high, x)
        if self.scale is None:
            return low, high
        fixed = self.scale == 0
        return torch.where(fixed, x, low), torch.where(fixed, x, high)

    def distance(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Return the distance of each pair in units of the radius, computed in float64; infinite where a fixed input moved."""
        return self._size(x_adv.double() - x.double())

    def allows(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Tell which candidates lie in the box and the radius, but for the rounding of their floating-point type."""
        ulp = torch.finfo(x.dtype).eps
        # Each input may be off by its own rounding: a wide column must not lend its slack to a narrow one.
        slack = 2 * ulp * torch.maximum(x.abs(), x_adv.abs()).double()
        if self.scale is not None:
            slack = torch.where(self.scale > 0, slack, 0.0)  # a fixed input is not changed by anything
        delta = ((x_adv.double() - x.double()).abs() - slack).clamp_min(0.0)
        # In L0 a change is one however small it is.
        near = self._size(x_adv.double() - x.double() if self.norm == "l0" else delta) <= self.eps * (1 + 4 * ulp)
        inside = (x_adv >= torch.minimum(self.low, x)) & (x_adv <= torch.maximum(self.high, x))
        near &= inside.flatten(1).all(dim=1)
        return near if self.rules is None else near & self.rules.kept(x, x_adv)

    def reach(self, shape: tuple[int, ...]) -> float:
        """Return the radius that reaches every corner of the box; see `ThreatModel.reach`."""
        low, high = (side.double().cpu().numpy() for side in (self.low, self.high))
        scale = None if self.scale is None else self.scale.double().cpu().numpy()
        if scale is not None and self.rules is not None:
            scale = np.where(self.rules.free.cpu().numpy(), 0.0, scale)
        return ThreatModel(self.norm, self.eps, low, high, scale).reach(shape)

    def _size(self, delta: Tensor) -> Tensor:
        """Return the norm of each change in units of the radius; infinite where a fixed input moved."""
        if self.scale is not None:
            scale = self.scale.double()
            delta = torch.where(scale > 0, delta / scale.clamp_min(1e-300), torch.where(delta == 0, 0.0, torch.inf))
        if self.rules is not None:
            delta = torch.where(self.rules.free, 0.0, delta)
        return size_of(delta, self.norm)

    def scaled(self, delta: Tensor) -> Tensor:
        """Return changes in units of the radius; zero where an input is fixed, or outside the radius."""
        if self.scale is None:
            return delta
        if self.rules is not None:
            delta = torch.where(self.rules.free, 0.0, delta)
        return torch.where(self.scale > 0, delta / self.scale.clamp_min(torch.finfo(delta.dtype).tiny), torch.zeros_like(delta))


@dataclass(frozen=True)
class Region:
    """The points that may stand in for some samples: in the box, and within the radius of the samples.

    Attributes
    ----------
    x : Tensor (n, …)
        The clean samples.
    low, high : Tensor like x
        Lowest and highest allowed value of each input; for L∞ the radius is in them.
    lag : list of at most one Tensor like x
        What `follow` last rounded away, to be added to the next step.
    """

    x: Tensor
    low: Tensor
    high: Tensor
    ball: Ball
    lag: list[Tensor] = field(default_factory=list)

    def take(self, rows: Tensor) -> Region:
        """Return the region around the samples at `rows`, positions or a mask."""
        lag = [each[rows] for each in self.lag]
        return replace(self, x=self.x[rows], low=self.low[rows], high=self.high[rows], lag=lag)

    def clip(self, point: Tensor) -> Tensor:
        """Bring points into the box; for L∞ into the radius, too."""
        return torch.clamp(point, self.low, self.high)

    def project(self, point: Tensor) -> Tensor:
        """Bring points to ones that are allowed: into box and radius (see `nearest`), and to the constraints (see `settle`)."""
        return self.settle(self.nearest(point))

    def follow(self, point: Tensor) -> Tensor:
        """Project the next point of a path of small steps, of which none is lost: what is rounded away joins the next step.

        Whole numbers and categories would otherwise stay where they are, however many small steps push them. The gradient is
        that at the allowed point, the steps add up in a relaxed one ("error feedback", Seide et al. 2014). A sample that begins
        elsewhere takes along less than one unit of what was rounded away before.
        """
        rules = self.ball.rules
        if rules is None or not rules.discrete:
            return self.project(point)
        relaxed = self._relaxed(self.nearest(point + self.lag[0] if self.lag else point))
        allowed = self._settled(relaxed)
        self.lag[:] = [torch.where(rules.integer | rules.grouped, relaxed - allowed, 0.0)]
        return allowed

    def signs(self, gradient: Tensor) -> Tensor:
        """Return the sign of the gradient; between the columns of a one-hot group, of which one wins, their sizes count."""
        rules = self.ball.rules
        return gradient.sign() if rules is None else rules.direction(gradient)

    def slopes(self, gradient: Tensor) -> Tensor:
        """Return the gradient in units of the radius; within a one-hot group as `Rules.between` has it."""
        gradient = gradient if self.ball.rules is None else self.ball.rules.between(gradient)
        return gradient if self.ball.scale is None else gradient * self.ball.scale

    def settle(self, point: Tensor) -> Tensor:
        """Bring points of box and radius to ones that keep the constraints as well; the same points where there are none.

        The linear rules first, by alternating projections; then whole numbers, categories and what the linear rules lack
        again, closer and closer to the sample (`RUNGS`). Where nothing of that is allowed, the sample itself is.
        """
        return point if self.ball.rules is None else self._settled(self._relaxed(point))

    def _relaxed(self, point: Tensor) -> Tensor:
        """Bring points to the linear rules, whole numbers and categories left aside, as near as sweeps over them lead."""
        rules = self.ball.rules
        if rules is None or not len(rules.low):
            return point
        weight = torch.where(self.high > self.low, torch.as_tensor(self.ball.unit()).to(point), 0.0)
        for _ in range(2):
            point = self.nearest(rules.towards(point, self.x, weight, self.ball.eps))
        return point

    def _settled(self, point: Tensor) -> Tensor:
        rules, x = self.ball.rules, self.x
        if rules is None:
            return point
        out, rows, around = x.clone(), torch.arange(len(x), device=x.device), self
        for share, up, change in RUNGS:
            near = point if share == 1.0 else around.x + share * (point - around.x)
            fill = around._fill(point) if share == 1.0 and up == NEAREST else None
            near = rules.settle(around.x, near, around.low, around.high, up=up, change=change, fill=fill)
            good = self.ball.allows(around.x, near)
            out[rows[good]] = near[good]
            if bool(good.all()):
                break
            around, point, rows = around.take(~good), point[~good], rows[~good]
        return out

    def _fill(self, point: Tensor) -> Filling | None:
        """Return how whole numbers fill the radius: in L1 and L2, around points at its edge."""
        ball = self.ball
        if ball.norm not in ("l1", "l2"):
            return None
        # Far inside, a point is rounded to the nearest; at the edge, it is a direction, and shorter than a step in each column.
        edge = ball.distance(self.x, point) >= EDGE * ball.eps
        return Filling(edge, ball.scaled(torch.ones_like(point)).double(), ball.eps, 2 if ball.norm == "l2" else 1)

    def nearest(self, point: Tensor) -> Tensor:
        """Bring points into box and radius, constraints left aside.

        L∞ and L1: the nearest point of both (L1: Croce & Hein 2021, "Mind the Box", section 3.1). L2: onto the radius, then
        into the box, which keeps the radius. L0: into the box, then back to the sample but for the inputs that changed most.
        """
        ball = self.ball
        if ball.norm == "linf":
            return self.clip(point)
        if ball.rules is None:
            return self._within(point)
        # Categories outside the radius take no part of it.
        inner = self._within(torch.where(ball.rules.free, self.x, self.clip(point)))
        return torch.where(ball.rules.free, self.clip(point), inner)

    def _within(self, point: Tensor) -> Tensor:
        ball, x = self.ball, self.x
        if ball.norm == "l2":
            delta = point - x
            length = l2_norm(ball.scaled(delta))
            return self.clip(delta.mul_(per_sample((ball.eps / length.clamp_min(1e-12)).clamp_max(1.0), delta)).add_(x))
        if ball.norm == "l0":
            return self._fewest(self.clip(point))
        unit = ball.unit()
        most = torch.where(point >= x, self.high - x, x - self.low)
        z = l1_projection(ball.scaled(point - x).double(), ball.scaled(most.abs()).double(), ball.eps)
        return self.clip(x + z.to(x) * unit)

    def _fewest(self, point: Tensor) -> Tensor:
        delta = self.ball.scaled(point - self.x).abs().flatten(1)
        kept = min(int(self.ball.eps), delta.shape[1])
        if kept == 0:
            return self.x.clone()
        chosen = torch.zeros_like(delta, dtype=torch.bool).scatter_(1, delta.topk(kept, dim=1).indices, True)
        return torch.where(chosen.view_as(point), point, self.x)

    def random(self, ids: Tensor, *, seed: int, purpose: str, draw: int = 0) -> Tensor:
        """Return a random point of the ball around each sample, clipped to the box; it belongs to the sample's id."""
        shape, rules = tuple(self.x.shape[1:]), self.ball.rules
        noise = random_in_ball(ids, shape, self.ball, seed=seed, purpose=purpose, draw=draw)
        point = self.clip(self.x + noise.to(self.x) * self.ball.unit())
        if rules is None:
            return point
        any_value = uniform_noise(ids, shape, seed=seed, purpose=f"{purpose}.categories", draw=draw).to(self.x)
        return self.project(torch.where(rules.free, self.clip(self.x + any_value), point))


def l1_projection(z: Tensor, most: Tensor, eps: float | Tensor) -> Tensor:
    r"""Return the nearest points to `z`, (n, …), of L1 norm at most `eps` whose entries are at most `most` in absolute value.

    They are :math:`\operatorname{sign}(z)\,\min(\max(|z| - \lambda, 0), m)` with the smallest :math:`\lambda \ge 0` that keeps
    the norm; the norm falls piecewise linearly in :math:`\lambda`, with corners at :math:`|z|` and :math:`|z| - m`.
    """
    a, m = z.abs().flatten(1), most.flatten(1)
    corners, order = torch.cat((a - m, a), dim=1).clamp_min(0.0).sort(dim=1)
    turn = torch.cat((-torch.ones_like(a), torch.ones_like(a)), dim=1).gather(1, order)
    slope = turn.cumsum(dim=1)  # of the norm, right of each corner
    steps = corners.diff(dim=1, prepend=torch.zeros_like(corners[:, :1]))
    falls = torch.cat((torch.zeros_like(slope[:, :1]), slope[:, :-1]), dim=1) * steps
    norms = torch.minimum(a, m).sum(dim=1, keepdim=True) + falls.cumsum(dim=1)
    # The last corner whose norm is still above eps: lambda lies right of it.
    above = (norms > eps).sum(dim=1, keepdim=True)
    at = (above - 1).clamp_min(0)
    steep = slope.gather(1, at).clamp_max(-1.0)
    level = corners.gather(1, at) + (eps - norms.gather(1, at)) / steep
    level = torch.where(above > 0, level, torch.zeros_like(level))
    return z.sign() * torch.minimum((a - level).clamp_min(0.0), m).view_as(z)


def size_of(delta: Tensor, norm: Norm) -> Tensor:
    """Return the norm of each change, shape (n,)."""
    flat = delta.flatten(1)
    if norm == "l0":
        return (flat != 0).sum(dim=1).to(delta.dtype).where(~flat.isinf().any(dim=1), torch.inf)
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    size: Tensor = torch.linalg.vector_norm(flat, ord=order, dim=1)
    return size


def random_in_ball(ids: Tensor, shape: tuple[int, ...], ball: Ball, *, seed: int, purpose: str, draw: int) -> Tensor:
    r"""Return points uniform in the ball of radius ``ball.eps``, in units of the radius, shape (len(ids), \\*shape)."""
    if ball.norm == "linf":
        return uniform_noise(ids, shape, seed=seed, purpose=purpose, draw=draw) * ball.eps
    if ball.norm == "l0":
        # As many inputs as may change, chosen at random, go to a random place of the widest box that there could be.
        value, rank = (uniform_noise(ids, shape, seed=seed, purpose=f"{purpose}{what}", draw=draw) for what in ("", ".rank"))
        ranks = rank.flatten(1)
        few = ranks.topk(min(int(ball.eps), ranks.shape[1]), dim=1).indices
        chosen = torch.zeros_like(ranks, dtype=torch.bool).scatter_(1, few, True).view_as(value)
        width = float((ball.scaled((ball.high - ball.low).abs())).max())
        return torch.where(chosen, value * width, torch.zeros_like(value))
    if ball.norm == "l1":
        # Uniform in the ball: exponential lengths with signs of their own, over their sum and one more (Barthe et al. 2005).
        value = uniform_noise(ids, shape, seed=seed, purpose=purpose, draw=draw)
        length = -torch.log1p(-value.abs().clamp_max(1 - 2**-24))
        more = uniform_noise(ids, (1,), seed=seed, purpose=f"{purpose}.length", draw=draw).abs().clamp_max(1 - 2**-24)
        total = length.flatten(1).sum(dim=1) - torch.log1p(-more[:, 0])
        return value.sign() * length / per_sample(total, value) * ball.eps
    # Uniform in a ball of d dimensions: a normal vector's direction, and a length whose d-th power is uniform.
    noise = normal_noise(ids, shape, seed=seed, purpose=purpose, draw=draw)
    share = (uniform_noise(ids, (1,), seed=seed, purpose=f"{purpose}.length", draw=draw)[:, 0] + 1) / 2
    length = share ** (1 / math.prod(shape)) * ball.eps
    return noise * per_sample(length / l2_norm(noise), noise)


def l2_norm(delta: Tensor) -> Tensor:
    """Return the L2 norm of each sample, shape (n,)."""
    norm: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
    return norm


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Shape one value a sample, (n,), so that it broadcasts over `like`, (n, …)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def movable(threat: ThreatModel, x: Tensor, points: float = 1.0) -> Tensor:
    """Tell which samples can change to more than `points` points, themselves among them, shape (n,).

    That is more than 1 where any input can change at all. Whole numbers and categories are counted column by column, before
    linear rules and, but for L∞, before columns share the radius: an upper bound; other columns have no end of values.
    """
    region = threat.on(x).around(x)
    room = (region.high - region.low).flatten(1).double()
    rules = region.ball.rules
    if rules is not None:
        room = torch.where(rules.integer | rules.grouped | (room == 0), room, torch.inf)
    else:
        room = torch.where(room > 0, torch.inf, 0.0)
    return room.log1p().sum(dim=1) > math.log(points) + 1e-9


def violations(threat: ThreatModel, x: NDArray[np.floating] | Tensor, x_adv: NDArray[np.floating] | Tensor) -> int:
    """Count the examples that break the threat model anywhere: box, radius, fixed inputs, constraints; floats have slack.

    `x` and `x_adv` are rows in pairs, of the type that the network gets. A clean row's own violation is no violation.
    """
    clean, changed = (torch.as_tensor(values) for values in (x, x_adv))
    if not len(clean):
        return 0
    changed = changed.to(clean) if clean.is_floating_point() else changed
    clean = clean.to(changed)
    return int((~threat.on(clean).allows(clean, changed)).sum())
