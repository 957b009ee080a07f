"""What every attack shares: the box, the radius, survivors, the re-check in a fresh forward, and the count of passes.

A new attack is one file: a subclass of `Attack` that writes `run`. It cannot forget the box or the radius, nor report a success
that a fresh forward does not confirm, for `__call__` does all of that.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from audit.data.noise import normal_noise, uniform_noise
from audit.errors import UsageError
from audit.model.batching import in_batches
from audit.model.wrapper import Model

Norm = Literal["linf", "l2"]
LossName = Literal["ce", "margin"]
NORMS = ("linf", "l2")
TOP_GAP = 4.0  # 2 to 8 did about equally well on four networks; the raw scale of their logits did, too, and 0.01 of it did not


@dataclass(frozen=True)
class ThreatModel:
    """What an attack may change.

    Attributes
    ----------
    norm
        ``linf`` or ``l2``.
    eps
        Radius, in the units of the input divided by `scale`.
    low, high
        The box: lowest and highest value of each input, broadcastable to one sample.
    scale
        Length of one unit of the radius in each input (a column's standard deviation, say); 1 where None. An input with
        scale 0 cannot be changed.
    mutable
        Inputs that may change, broadcastable to one sample; all where None.
    """

    norm: Norm
    eps: float
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    scale: NDArray[np.float64] | None = None
    mutable: NDArray[np.bool_] | None = None

    def reach(self, shape: tuple[int, ...]) -> float:
        """Return the radius that reaches every corner of the box of samples of this shape: its width, in L2 its diagonal."""
        width = np.broadcast_to(np.asarray(self.high) - np.asarray(self.low), shape)
        scale = np.broadcast_to(self._scale(), shape)
        ratio = width[scale > 0] / scale[scale > 0]
        if ratio.size == 0:
            return 0.0
        return float(ratio.max()) if self.norm == "linf" else float(np.sqrt(np.sum(ratio**2)))

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise a UsageError where the radius is not between 0 and the size of the box of a sample of this shape."""
        if self.norm not in NORMS:
            raise UsageError(f"norm must be one of {', '.join(NORMS)}, got {self.norm!r}")
        most = self.reach(shape)
        if not 0 <= self.eps <= most:
            size = "width" if self.norm == "linf" else "diagonal"
            hint = f": did you mean {self.eps:g}/255?" if self.eps > most and most <= 1 else ""
            raise UsageError(f"eps must be between 0 and the {size} of the box ({most:g}), got {self.eps:g}{hint}")

    def _scale(self) -> NDArray[np.float64]:
        scale = np.asarray(1.0) if self.scale is None else np.asarray(self.scale, dtype=np.float64)
        return scale if self.mutable is None else np.where(self.mutable, scale, 0.0)

    def on(self, like: Tensor) -> Ball:
        """Return the threat model as tensors on the device of `like`, to project with."""
        scale = self._scale()
        return Ball(
            norm=self.norm,
            eps=self.eps,
            low=torch.as_tensor(self.low, dtype=like.dtype, device=like.device),
            high=torch.as_tensor(self.high, dtype=like.dtype, device=like.device),
            scale=None if scale.ndim == 0 and scale == 1 else torch.as_tensor(scale, dtype=like.dtype, device=like.device),
        )


@dataclass(frozen=True)
class Ball:
    """A threat model on a device: projects onto box and radius, and measures distances."""

    norm: Norm
    eps: float
    low: Tensor
    high: Tensor
    scale: Tensor | None

    def unit(self) -> Tensor | float:
        """Length of one unit of the radius in each input."""
        return 1.0 if self.scale is None else self.scale

    def limits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return lowest and highest allowed value around `x` for L∞; for L2 the box alone."""
        if self.norm == "l2":
            # A clean input outside the box stays where it is rather than being moved by the projection.
            low, high = torch.minimum(self.low, x), torch.maximum(self.high, x)
            if self.scale is None:
                return low, high
            fixed = self.scale == 0
            return torch.where(fixed, x, low), torch.where(fixed, x, high)
        reach = self.eps * self.unit()
        return torch.maximum(x - reach, torch.minimum(self.low, x)), torch.minimum(x + reach, torch.maximum(self.high, x))

    def project_l2(self, delta: Tensor) -> Tensor:
        """Scale `delta` down to the radius, measured in units of `scale`."""
        norm = l2_norm(self._scaled(delta))
        return delta * per_sample((self.eps / norm.clamp_min(1e-12)).clamp_max(1.0), delta)

    def distance(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Return the distance of each pair in units of the radius, computed in float64; infinite where a fixed input moved."""
        return self._size(x_adv.double() - x.double())

    def allows(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Tell which candidates lie in the box and the radius, but for the rounding of their floating-point type."""
        ulp = torch.finfo(x.dtype).eps
        # Each input may be off by its own rounding: a wide column must not lend its slack to a narrow one.
        slack = 2 * ulp * torch.maximum(x.abs(), x_adv.abs()).double()
        delta = ((x_adv.double() - x.double()).abs() - slack).clamp_min(0.0)
        near = self._size(delta) <= self.eps * (1 + 4 * ulp)
        inside = (x_adv >= torch.minimum(self.low, x)) & (x_adv <= torch.maximum(self.high, x))
        return near & inside.flatten(1).all(dim=1)

    def _size(self, delta: Tensor) -> Tensor:
        """Return the norm of each change in units of the radius; infinite where a fixed input moved."""
        if self.scale is not None:
            scale = self.scale.double()
            delta = torch.where(scale > 0, delta / scale.clamp_min(1e-300), torch.where(delta == 0, 0.0, torch.inf))
        return delta.flatten(1).abs().amax(dim=1) if self.norm == "linf" else l2_norm(delta)

    def _scaled(self, delta: Tensor) -> Tensor:
        if self.scale is None:
            return delta
        return torch.where(self.scale > 0, delta / self.scale.clamp_min(torch.finfo(delta.dtype).tiny), torch.zeros_like(delta))


@dataclass(frozen=True)
class AttackOutput:
    """What an attack found; every success was confirmed by a fresh forward.

    Attributes
    ----------
    x_adv : Tensor like x
        The adversarial example, or the clean input where none was found.
    success : bool Tensor (n,)
        Broken: wrong already, or made wrong inside box and radius.
    distance : float64 Tensor (n,)
        Distance of `x_adv` in units of the radius; infinite where nothing was found.
    loss_start, loss_end : Tensor (n,)
        Margin (see `Goal.loss`) at the attack's start and at its best point; NaN where a sample was not attacked.
    grad_zero : bool Tensor (n,)
        Whether the gradient was exactly zero wherever the attack looked at it; False where it uses none.
    grad_nan : bool Tensor (n,)
        Whether the gradient was NaN or infinite anywhere that the attack looked at it.
    rejected : bool Tensor (n,)
        Claimed by the attack, and not confirmed by the re-check: the network's output is random or depends on the batch.
    """

    x_adv: Tensor
    success: Tensor
    distance: Tensor
    loss_start: Tensor
    loss_end: Tensor
    grad_zero: Tensor
    grad_nan: Tensor
    rejected: Tensor
    forwards: int
    backwards: int


@dataclass(frozen=True)
class Candidates:
    """What `Attack.run` returns: one candidate a sample, and how the attack's own loss went. Its tensors are filled in place.

    Attributes
    ----------
    x_adv : Tensor like x
        The first point that broke its sample, else the last one that was looked at.
    broken : bool Tensor (n,)
        What the attack itself saw; `Attack.__call__` confirms it.
    loss_start, loss_end : Tensor (n,)
        Margin (see `Goal.loss`) at the start of the first run, and the highest one seen.
    grad_zero : bool Tensor (n,)
        Whether the gradient was exactly zero wherever the attack looked at it; False where it uses none.
    grad_nan : bool Tensor (n,)
        Whether the gradient was NaN or infinite anywhere that the attack looked at it.
    """

    x_adv: Tensor
    broken: Tensor
    loss_start: Tensor
    loss_end: Tensor
    grad_zero: Tensor
    grad_nan: Tensor

    @classmethod
    def start(cls, x: Tensor) -> Candidates:
        """Begin with the clean inputs."""
        flags = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        losses = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        return cls(x.clone(), flags, losses * torch.nan, losses, torch.ones_like(flags), flags.clone())

    def note(self, rows: Tensor, point: Tensor, losses: Tensor, hit: Tensor, *, last: bool = False) -> None:
        """Note what was seen at `point` for the samples at `rows`; `last` keeps the point of an unbroken sample, too."""
        self.loss_end[rows] = torch.maximum(self.loss_end[rows], losses)
        fresh = (hit | last) & ~self.broken[rows]
        if bool(fresh.any()):
            self.x_adv[rows[fresh]] = point[fresh]
            self.broken[rows[fresh]] = hit[fresh]


@dataclass(frozen=True)
class Goal:
    """When a sample is broken, and the loss that leads there.

    For classification a sample is broken when its predicted class is not its label. For regression it is broken when the
    output moved by more than `tolerance` from the clean one.
    """

    task: str
    y: Tensor
    tolerance: float = 0.0

    def take(self, rows: Tensor) -> Goal:
        """Return the goal of these samples."""
        return Goal(self.task, self.y[rows], self.tolerance)

    def broken(self, output: Tensor) -> Tensor:
        """Tell which samples are broken, from logits (n, classes) or values (n,). A NaN output counts as broken."""
        if self.task == "regression":
            return ~((output - self.y).abs() <= self.tolerance)
        return (output.argmax(dim=1) != self.y) | ~torch.isfinite(output).all(dim=1)

    def loss(self, output: Tensor, direction: float = 1.0, kind: LossName = "ce") -> Tensor:
        r"""Return the loss to raise, of shape (n,).

        Classification, ``ce``: :math:`\log\sum_{j\ne y} e^{z_j} - z_y`. Cross-entropy is softplus of it, so both have the same
        gradient direction for each sample; but the sigmoid that cross-entropy multiplies it with underflows to zero in
        float32 where the network is sure, and here it is left out. The logits are first scaled so that the gap between the
        highest and the third is 4 (the gap is the denominator of Croce & Hein 2020, equation 6): a network whose logits are
        all small would otherwise be attacked towards every class at once, and look robust. ``margin``:
        :math:`\max_{j\ne y} z_j - z_y` (Carlini & Wagner 2017). Regression: the output, up or down (`direction` +1, −1).
        """
        if self.task == "regression":
            return (output - self.y) * direction
        if kind == "margin":
            return self._others(output).amax(dim=1) - self._own(output)
        return self.raw_loss(output * sharpness(output.detach()))

    def raw_loss(self, logits: Tensor) -> Tensor:
        """Return the soft margin of logits as they are scaled."""
        return self._others(logits).logsumexp(dim=1) - self._own(logits)

    def _own(self, output: Tensor) -> Tensor:
        return output.gather(1, self.y[:, None])[:, 0]

    def _others(self, output: Tensor) -> Tensor:
        return output.masked_fill(self._mask(output.shape[1]), -torch.inf)

    def _mask(self, classes: int) -> Tensor:
        """Return where each sample's own class stands, (n, classes); made once, for every step asks for it."""
        masks: dict[int, Tensor] = self.__dict__.setdefault("_masks", {})
        if classes not in masks:
            masks[classes] = torch.nn.functional.one_hot(self.y, classes).bool()
        return masks[classes]


class Attack(ABC):
    """Base of all attacks.

    Parameters
    ----------
    norm
        ``linf`` or ``l2``.
    eps
        Radius.
    seed
        Seed of the attack's noise, which belongs to sample ids and not to batches.
    """

    name: str = "attack"

    def __init__(self, norm: Norm = "linf", eps: float = 8 / 255, *, seed: int = 0) -> None:
        self.norm: Norm = norm
        self.eps = eps
        self.seed = seed

    @abstractmethod
    def run(self, model: Model, x: Tensor, goal: Goal, ball: Ball, ids: Tensor) -> Candidates:
        """Return candidates for a batch of samples that still stand.

        They may break box or radius: whoever calls rejects those that do.
        """

    def __call__(
        self,
        model: Model,
        x: Tensor | ArrayLike,
        y: Tensor | ArrayLike,
        *,
        ids: Tensor | ArrayLike | None = None,
        threat: ThreatModel | None = None,
        tolerance: float | None = None,
    ) -> AttackOutput:
        """Attack samples and confirm every success in a fresh forward.

        Parameters
        ----------
        model
            The network. Its `bounds` are the box, unless `threat` states one.
        x, y
            Inputs of shape (n, …) and labels of shape (n,); for regression the clean outputs take the place of `y`.
        ids
            Stable sample ids; row numbers where None.
        threat
            What may be changed; made from `norm`, `eps` and the model's bounds where None.
        tolerance
            Regression: how far the output must move.
        """
        threat = threat or self._threat(model)
        inputs, labels = model.to_input(_tensor(x)), _tensor(y).to(model.device)
        threat.check(tuple(inputs.shape[1:]))
        sample_ids = torch.arange(len(inputs)) if ids is None else _tensor(ids)
        if model.output is None:
            model.resolve(inputs, labels.cpu().numpy())
        if model.task == "regression" and tolerance is None:
            raise UsageError("to attack a regression network, say how far its output must move: tolerance=…")
        labels = labels.to(model.dtype) if model.task == "regression" else labels.long()
        forwards, backwards = model.forwards, model.backwards

        def attack(xs: Tensor, ys: Tensor, batch_ids: Tensor) -> tuple[Tensor, ...]:
            return self._batch(model, xs, Goal(model.task or "", ys, tolerance or 0.0), threat.on(xs), batch_ids)

        with model.session():
            out = in_batches(attack, (inputs, labels, sample_ids), model.batch_size)
        x_adv, success, distance, start, end, zero, nan, claimed = out
        return AttackOutput(
            x_adv=x_adv,
            success=success,
            distance=distance,
            loss_start=start,
            loss_end=end,
            grad_zero=zero,
            grad_nan=nan,
            rejected=claimed & ~success,
            forwards=model.forwards - forwards,
            backwards=model.backwards - backwards,
        )

    def _threat(self, model: Model) -> ThreatModel:
        if model.bounds is None:
            raise UsageError("an attack needs to know which values are allowed: Model(…, bounds=(0, 1))")
        low, high = (np.asarray(side, dtype=np.float64) for side in model.bounds)
        return ThreatModel(self.norm, self.eps, low, high)

    def _batch(self, model: Model, x: Tensor, goal: Goal, ball: Ball, ids: Tensor) -> tuple[Tensor, ...]:
        clean = output_of(model, x)
        if goal.task == "regression":
            goal = Goal(goal.task, clean, goal.tolerance)
        wrong = goal.broken(clean)
        x_adv, distance = x.clone(), torch.where(wrong, 0.0, torch.inf).double()
        nothing = torch.full((len(x),), torch.nan, dtype=x.dtype, device=x.device)
        start, end, zero, nan = nothing, nothing.clone(), torch.zeros_like(wrong), torch.zeros_like(wrong)
        success, claimed = wrong.clone(), wrong.clone()
        rows = (~wrong).nonzero()[:, 0]
        if len(rows) == 0:
            return x_adv, success, distance, start, end, zero, nan, claimed
        standing, goals = x[rows], goal.take(rows)
        found = self.run(model, standing, goals, ball, ids.to(rows.device)[rows])
        start[rows], end[rows] = found.loss_start, found.loss_end
        zero[rows], nan[rows] = found.grad_zero, found.grad_nan
        claimed[rows] = found.broken
        valid = goals.broken(output_of(model, found.x_adv)) & ball.allows(standing, found.x_adv)
        winners = rows[valid]
        x_adv[winners], success[winners] = found.x_adv[valid], True
        distance[winners] = ball.distance(standing[valid], found.x_adv[valid])
        return x_adv, success, distance, start, end, zero, nan, claimed


def output_of(model: Model, x: Tensor) -> Tensor:
    """Return logits, or values for regression, without a gradient."""
    with torch.no_grad():
        return model.values(x) if model.task == "regression" else model.logits(x)


def fixed_loss(goal: Goal, output: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the loss with the scale that `output` has, so that its values at neighbouring points can be compared."""
    if goal.task == "regression":
        return goal.loss
    factor = sharpness(output.detach())

    def loss(logits: Tensor) -> Tensor:
        return goal.raw_loss(logits * factor)

    return loss


def sharpness(logits: Tensor) -> Tensor:
    """Return the factor, (n, 1), that brings the gap between the highest and the third (or last) logit to `TOP_GAP`."""
    top = logits.topk(min(3, logits.shape[1]), dim=1).values
    gap = top[:, :1] - top[:, -1:]
    return TOP_GAP / gap.clamp_min(1e-30).maximum(1e-6 * top.abs().amax(dim=1, keepdim=True))


def as_columns(output: Tensor) -> Tensor:
    """Return logits (n, classes) as they are, and values (n,) as one column."""
    return output if output.ndim > 1 else output[:, None]


def verify(model: Model, x: Tensor, y: Tensor, x_adv: Tensor, threat: ThreatModel, tolerance: float = 0.0) -> Tensor:
    """Check stored adversarial examples again: prediction wrong, box kept, radius kept; shape (n,).

    For regression `y` holds the clean outputs.
    """
    inputs, candidates = model.to_input(x), model.to_input(x_adv)
    ball = threat.on(inputs)
    labels = y.to(model.device)
    labels = labels.to(model.dtype) if model.task == "regression" else labels.long()

    def check(xs: Tensor, advs: Tensor, ys: Tensor) -> tuple[Tensor, ...]:
        goal = Goal(model.task or "", ys, tolerance)
        return (goal.broken(output_of(model, advs)) & ball.allows(xs, advs),)

    with model.session():
        return in_batches(check, (inputs, candidates, labels), model.batch_size)[0]


def random_in_ball(ids: Tensor, shape: tuple[int, ...], ball: Ball, *, seed: int, purpose: str, draw: int) -> Tensor:
    r"""Return points uniform in the ball of radius ``ball.eps``, in units of the radius, shape (len(ids), \\*shape)."""
    if ball.norm == "linf":
        return uniform_noise(ids, shape, seed=seed, purpose=purpose, draw=draw) * ball.eps
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


def _tensor(values: Any) -> Tensor:
    return values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
