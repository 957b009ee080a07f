"""What an evaluation is: rounds over the samples that still stand, each of which knows what the rounds before it found.

A round chooses its samples from what is known of all of them, and runs on blocks of these in any order: what it does to a
sample depends on the sample's id and on what is known of that sample, never on its neighbours. So the result does not depend
on batch size, on the number of workers, or on a kill.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.attacks.base import Attack, output_of
from audit.attacks.geometry import ThreatModel
from audit.attacks.given import ids_of, samples_of, tolerance_of
from audit.attacks.goal import Goal
from audit.errors import UsageError
from audit.model.batching import in_batches
from audit.model.wrapper import Model

Bits = NDArray[np.bool_]
Floats = NDArray[np.float64]
Profile = Literal["quick", "standard", "thorough", "exhaustive"]
ARRAYS = ("x_adv", "broken", "distance", "loss_start", "loss_end", "grad_zero", "grad_nan", "rejected")


class Rows(Protocol):
    """What one round found: arrays of `ARRAYS`, one row for each of its samples, at `positions` of all samples."""

    @property
    def positions(self) -> NDArray[np.int64]:
        """Positions of the samples that the round ran on, in rising order."""
        ...

    def __getitem__(self, name: str, /) -> NDArray[Any]:
        """Return one array, a row for each position."""
        ...


@dataclass(frozen=True)
class Known:
    """What is known of all n samples when a round begins.

    Attributes
    ----------
    standing : bool array (n,)
        Right, not certified, and broken by nothing so far.
    margin : float64 array (n,)
        Highest margin (see `Goal.loss`) that any round saw, −inf where none looked; above 0 a sample is broken.
    gain : float64 array (n,)
        By how much the last round that ran on the sample raised the highest margin; inf where only one round did.
    rounds
        What the rounds before this one found, in their order.
    """

    standing: Bits
    margin: Floats
    gain: Floats
    rounds: tuple[Rows, ...] = ()

    @classmethod
    def of(cls, standing: Bits, rounds: Sequence[Rows]) -> Known:
        """Put together what the rounds found; `standing` holds before the first of them."""
        standing = standing.copy()
        margin, gain = np.full(len(standing), -np.inf), np.full(len(standing), np.inf)
        for rows in rounds:
            at, seen = rows.positions, rows["loss_end"].astype(np.float64)
            standing[at[rows["broken"]]] = False
            known, looked = margin[at], np.isfinite(seen)
            higher = np.where(looked, np.maximum(known, np.nan_to_num(seen, nan=-np.inf)), known)
            again = np.isfinite(known) & looked
            gain[at[again]] = (higher - np.where(again, known, 0.0))[again]
            margin[at] = higher
        return cls(standing, margin, gain, tuple(rounds))

    def points(self, positions: NDArray[np.int64], x: Tensor) -> Tensor:
        """Return the points of the highest margin so far for the samples at `positions`, whose clean inputs are `x`."""
        out, best = x.clone(), np.full(len(positions), -np.inf)
        for rows in self.rounds:
            if not len(rows.positions):
                continue
            at = np.searchsorted(rows.positions, positions).clip(0, len(rows.positions) - 1)
            margin = rows["loss_end"][at].astype(np.float64)
            better = (rows.positions[at] == positions) & (margin > best)
            if better.any():
                taken = np.flatnonzero(better)
                out[torch.from_numpy(taken).to(x.device)] = torch.as_tensor(rows["x_adv"][at[taken]]).to(x)
                best[taken] = margin[taken]
        return out


@dataclass(frozen=True)
class Found:
    """What one round found, in memory."""

    positions: NDArray[np.int64]
    arrays: dict[str, NDArray[Any]]

    def __getitem__(self, name: str, /) -> NDArray[Any]:
        """Return one array, a row for each position."""
        return self.arrays[name]


@dataclass(frozen=True)
class Job:
    """The samples of one call of a round.

    Attributes
    ----------
    x, y, ids : Tensor (n, …), (n,), (n,)
        Clean inputs, labels, stable ids.
    positions
        Where these samples stand among all.
    tolerance
        Regression: how far the output must move.
    """

    model: Model
    x: Tensor
    y: Tensor
    ids: Tensor
    positions: NDArray[np.int64]
    threat: ThreatModel
    tolerance: float | None = None


class Round(ABC):
    """One round of an evaluation.

    Attributes
    ----------
    name
        Of lower-case letters, digits and points; unique in the evaluation.
    passes
        Expected forwards plus backwards for each of its samples, at most.
    """

    name: str
    passes: float

    def choose(self, known: Known) -> NDArray[np.int64]:
        """Return the positions of the samples to run on: all that stand, unless a round says otherwise."""
        return np.flatnonzero(known.standing)

    @abstractmethod
    def __call__(self, job: Job, known: Known) -> dict[str, NDArray[Any]]:
        """Run on some of the chosen samples and return `ARRAYS`; every sample in `broken` was confirmed by a fresh forward."""


class AttackRound(Round):
    """A round that is an attack as it stands."""

    def __init__(self, name: str, attack: Attack, passes: float) -> None:
        self.name, self.attack, self.passes = name, attack, passes

    def __call__(self, job: Job, known: Known) -> dict[str, NDArray[Any]]:  # noqa: ARG002
        """Run the attack; see `Round`."""
        out = self.attack(job.model, job.x, job.y, ids=job.ids, threat=job.threat, tolerance=job.tolerance)
        arrays = {name: getattr(out, "success" if name == "broken" else name) for name in ARRAYS}
        return {name: values.cpu().numpy() for name, values in arrays.items()}


Searched = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def search(job: Job, start: Tensor, run: Callable[[Tensor, Tensor, Goal, Tensor], Searched]) -> dict[str, NDArray[Any]]:
    """Run a search in batches from starting points of its own, and confirm what it claims.

    Parameters
    ----------
    start : Tensor like ``job.x``
        Where each sample's search may begin.
    run
        Takes clean inputs, starting points, the goal and ids of a batch and returns points (n, …), whether each broke its
        sample (n,), the margins at the start and the highest (n,), and whether the gradient was zero wherever it was looked
        at, and NaN anywhere (n,).
    """
    model, threat = job.model, job.threat
    labels = job.y.to(model.dtype) if model.task == "regression" else job.y.long()

    def batch(x: Tensor, y: Tensor, ids: Tensor, begin: Tensor) -> tuple[Tensor, ...]:
        if model.task == "regression":
            y = output_of(model, x)
        goal, ball = Goal(model.task or "", y, job.tolerance or 0.0), threat.on(x)
        point, claimed, first, last, zero, nan = run(x, begin, goal, ids)
        broken = claimed.clone()
        rows = claimed.nonzero()[:, 0]
        if len(rows):
            held = goal.take(rows).broken(output_of(model, point[rows])) & ball.allows(x[rows], point[rows])
            broken[rows] = held
        distance = torch.where(broken, ball.distance(x, point), torch.inf)
        return point, broken, distance, first, last, zero, nan, claimed & ~broken

    with model.session():
        out = in_batches(batch, (job.x, labels, job.ids.to(job.x.device), start), model.batch_size)
    return {name: values.cpu().numpy() for name, values in zip(ARRAYS, out, strict=True)}


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found.

    Attributes
    ----------
    accuracy
        Share of all samples that are right and that nothing broke: an upper bound on the true robust accuracy.
    right, broken : bool array (n,)
        Right before any attack; wrong before, or broken.
    x_adv : array like x
        The closest example that was found for each broken sample; the clean input elsewhere.
    distance : float64 array (n,)
        Its distance: 0 where the sample was wrong before, inf where nothing broke it.
    margin : float64 array (n,)
        Highest margin seen; see `Known`.
    by : list of str
        Which round broke each sample; empty where none did.
    forwards, backwards
        Passes of one sample.
    """

    accuracy: float
    right: Bits
    broken: Bits
    x_adv: NDArray[Any]
    distance: Floats
    margin: Floats
    by: list[str]
    forwards: int
    backwards: int


def evaluate(
    model: Model,
    x: Tensor | NDArray[Any],
    y: Tensor | NDArray[Any],
    rounds: Sequence[Round],
    threat: ThreatModel,
    *,
    ids: NDArray[np.int64] | None = None,
    tolerance: float | None = None,
    certified: Bits | None = None,
) -> Evaluated:
    """Run the rounds one after the other, each on the samples that it chooses of those that still stand.

    Parameters
    ----------
    x, y
        Inputs (n, …) and labels (n,).
    ids
        Stable sample ids; row numbers where None.
    tolerance
        Regression: how far the output must move.
    certified : bool array (n,)
        Samples that nothing can break, which are not attacked.
    """
    inputs, labels = samples_of(model, x, y)
    if len(inputs) == 0:
        raise UsageError("expected at least one sample, got none")
    moved, names = tolerance_of(model, tolerance), ids_of(ids, len(inputs))
    threat.check(tuple(inputs.shape[1:]))
    forwards, backwards, n = model.forwards, model.backwards, len(inputs)
    right = _right(model, inputs, labels)
    standing = right if certified is None else right & ~_mask(certified, n)
    x_adv, distance = inputs.cpu().numpy().copy(), np.where(right, np.inf, 0.0)
    by, done = [""] * n, list[Rows]()
    for one in rounds:
        known = Known.of(standing, done)
        at = np.sort(one.choose(known))
        if not len(at):
            continue
        rows = torch.from_numpy(at).to(inputs.device)
        job = Job(model, inputs[rows], labels[rows], names[torch.from_numpy(at)], at, threat, moved)
        found = Found(at, one(job, known))
        done.append(found)
        for row in np.flatnonzero(found["broken"] & (found["distance"] < distance[at])):
            position = at[row]
            x_adv[position], distance[position], by[position] = found["x_adv"][row], found["distance"][row], one.name
    known = Known.of(standing, done)
    broken = ~(known.standing | (right & ~standing))
    return Evaluated(
        accuracy=float(np.mean(~broken)),
        right=right,
        broken=broken,
        x_adv=x_adv,
        distance=distance,
        margin=known.margin,
        by=by,
        forwards=model.forwards - forwards,
        backwards=model.backwards - backwards,
    )


def _mask(certified: object, n: int) -> Bits:
    """Return which samples are certified; row numbers would be taken for other samples than they name."""
    mask = np.asarray(certified)
    if mask.dtype != np.bool_ or mask.shape != (n,):
        raise UsageError(f"certified should be True or False for each of {n} samples, got {mask.dtype} of shape {mask.shape}")
    return mask


def _right(model: Model, x: Tensor, y: Tensor) -> Bits:
    def right(xs: Tensor, ys: Tensor) -> tuple[Tensor, ...]:
        output = output_of(model, xs)
        if model.task == "regression":
            return (torch.isfinite(output),)
        return (~Goal(model.task or "", ys.long()).broken(output),)

    with model.session():
        found: Bits = in_batches(right, (x, y), model.batch_size)[0].cpu().numpy()
    return found
