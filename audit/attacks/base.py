"""What every attack shares: the box, the radius, survivors, the re-check in a fresh forward, and the count of passes.

A new attack is one file: a subclass of `Attack` that writes `run`. It cannot forget the box or the radius, nor report a success
that a fresh forward does not confirm, for `__call__` does all of that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from numbers import Real
from typing import ClassVar, cast

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from audit.attacks.geometry import Ball, Norm, ThreatModel
from audit.attacks.given import ids_of, samples_of, threat_of, tolerance_of
from audit.attacks.goal import Goal
from audit.errors import UsageError
from audit.model.batching import in_batches
from audit.model.wrapper import Model


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


class Attack(ABC):
    """Base of all attacks.

    Parameters
    ----------
    norm
        One of `norms`.
    eps
        Radius.
    seed
        Seed of the attack's noise, which belongs to sample ids and not to batches.
    """

    name: str = "attack"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    def __init__(self, norm: Norm = "linf", eps: float = 8 / 255, *, seed: int = 0) -> None:
        if norm not in self.norms:
            raise UsageError(f"{self.name} is for {', '.join(self.norms)}, got {norm!r}")
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
            Inputs of shape (n, …) and labels of shape (n,), or (n, labels) for a multi-label network; for regression the
            clean outputs take the place of `y`.
        ids
            Stable sample ids; row numbers where None.
        threat
            What may be changed; made from `norm`, `eps` and the model's bounds where None.
        tolerance
            Regression: how far the output must move.
        """
        inputs, labels = samples_of(model, x, y)
        threat = self._threat(model, inputs) if threat is None else threat
        if threat.norm not in self.norms:
            raise UsageError(f"{self.name} is for {', '.join(self.norms)}, got {threat.norm!r}")
        threat.check(tuple(inputs.shape[1:]))
        sample_ids, moved = ids_of(ids, len(inputs)), tolerance_of(model, tolerance)
        labels = labels.to(model.dtype) if model.task == "regression" else labels.long()
        forwards, backwards = model.forwards, model.backwards

        def attack(xs: Tensor, ys: Tensor, batch_ids: Tensor) -> tuple[Tensor, ...]:
            return self._batch(model, xs, Goal(model.task or "", ys, moved or 0.0), threat.on(xs), batch_ids)

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

    def _threat(self, model: Model, x: Tensor) -> ThreatModel:
        return threat_of(model, self.norm, self.eps, x)

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
        searched = self.searched(ball, x)
        found = self.run(model, standing, goals, searched, ids.to(rows.device)[rows])
        start[rows], end[rows] = found.loss_start, found.loss_end
        zero[rows], nan[rows] = found.grad_zero, found.grad_nan
        valid = goals.broken(output_of(model, found.x_adv)) & searched.allows(standing, found.x_adv)
        winners = rows[valid]
        x_adv[winners] = found.x_adv[valid]
        distance[winners] = ball.distance(standing[valid], found.x_adv[valid])
        success[rows] = valid & ball.allows(standing, found.x_adv)
        # An example that was confirmed, but lies beyond the radius, was not rejected.
        claimed[rows] = torch.where(valid, success[rows], found.broken)
        return x_adv, success, distance, start, end, zero, nan, claimed

    def searched(self, ball: Ball, x: Tensor) -> Ball:  # noqa: ARG002
        """Return where the attack looks: in the ball that was asked for."""
        return ball


class MinimumNormAttack(Attack):
    """Base of attacks that look for the closest example rather than for any within a radius.

    They look in the whole box. `AttackOutput.x_adv` and `distance` are those of the closest example that was found and
    confirmed, however far it lies; `success` still means within the radius. `run` gets a ball that reaches every corner of the
    box, and returns the closest point that it saw broken for each sample.

    Parameters
    ----------
    eps
        Radius that `success` is about; unlimited where None.
    """

    def __init__(self, norm: Norm = "l2", eps: float | None = None, *, seed: int = 0) -> None:
        super().__init__(norm, float("inf") if eps is None else eps, seed=seed)

    def _threat(self, model: Model, x: Tensor) -> ThreatModel:
        threat = super()._threat(model, x)
        most = threat.reach(tuple(x.shape[1:]))
        # A radius beyond the box is as good as none; what is no number is left for `ThreatModel.check` to refuse.
        return replace(threat, eps=most) if isinstance(cast(object, threat.eps), Real) and threat.eps > most else threat

    def searched(self, ball: Ball, x: Tensor) -> Ball:
        """Return the ball that reaches every corner of the box."""
        return replace(ball, eps=ball.reach(tuple(x.shape[1:])))


def output_of(model: Model, x: Tensor) -> Tensor:
    """Return logits, or values for regression, without a gradient."""
    with torch.no_grad():
        return model.values(x) if model.task == "regression" else model.logits(x)


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
