"""What attacks share that make one thing for all samples: it is fitted on one half of them, and measured on the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from audit import stats
from audit.attacks.base import output_of
from audit.attacks.goal import Goal
from audit.data.noise import hashed_bits
from audit.errors import UsageError
from audit.model.batching import in_batches
from audit.model.wrapper import Model


@dataclass(frozen=True)
class Fitted:
    """One change for all samples, and what it does to samples that it was not fitted on.

    Attributes
    ----------
    change : Tensor
        The perturbation, shaped as one sample, or the patch, (channels, height, width).
    x_adv : Tensor like x
        Every sample with the change; those that it was fitted on, too.
    unseen : bool Tensor (n,)
        Samples that it was not fitted on.
    right : bool Tensor (n,)
        Samples that the network gets right without the change; for regression all.
    broken : bool Tensor (n,)
        Samples that are wrong with it.
    """

    change: Tensor
    x_adv: Tensor
    unseen: Tensor
    right: Tensor
    broken: Tensor
    forwards: int
    backwards: int

    def fooled(self, confidence: float = 0.95) -> stats.Interval:
        """Return the share of the unseen samples that were right and are broken, with its Clopper–Pearson interval."""
        asked = self.unseen & self.right
        return stats.clopper_pearson(int((asked & self.broken).sum()), int(asked.sum()), confidence)

    def accuracy(self, confidence: float = 0.95) -> stats.Interval:
        """Return the share of all unseen samples that are right with and without the change."""
        kept = self.unseen & self.right & ~self.broken
        return stats.clopper_pearson(int(kept.sum()), int(self.unseen.sum()), confidence)


class FittedAttack(ABC):
    """Base of such attacks: a subclass writes `fit` and `apply`.

    Parameters
    ----------
    seed
        Seed of all that is random. Which half a sample belongs to depends on its id and the seed alone.
    """

    name = "fitted"

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    @abstractmethod
    def fit(self, model: Model, x: Tensor, goal: Goal, ids: Tensor) -> Tensor:
        """Return the change that breaks most of these samples."""

    @abstractmethod
    def apply(self, x: Tensor, change: Tensor, ids: Tensor) -> Tensor:
        """Return the samples with the change; what is allowed is kept here."""

    def __call__(
        self, model: Model, x: Tensor, y: Tensor, *, ids: Tensor | None = None, tolerance: float | None = None
    ) -> Fitted:
        """Fit on one half, and measure on all; every figure is to be taken of the half that is unseen.

        Parameters
        ----------
        x, y, ids, tolerance
            See `Attack.__call__`.
        """
        inputs, labels = model.to_input(x), torch.as_tensor(y).to(model.device)
        ids = torch.arange(len(inputs)) if ids is None else torch.as_tensor(ids)
        ids = ids.to(inputs.device)
        if model.output is None:
            model.resolve(inputs, labels.cpu().numpy())
        if model.task == "regression" and tolerance is None:
            raise UsageError("to attack a regression network, say how far its output must move: tolerance=…")
        forwards, backwards = model.forwards, model.backwards
        with model.session():
            clean = in_batches(lambda xs: (output_of(model, xs),), (inputs,), model.batch_size)[0]
            goal = Goal(model.task or "", clean if model.task == "regression" else labels.long(), tolerance or 0.0)
            right = ~goal.broken(clean)
            unseen = hashed_bits(ids, 1, seed=self.seed, purpose=f"{self.name}.half")[:, 0] >= 2**31
            rows = (right & ~unseen).nonzero()[:, 0]
            if len(rows) == 0 or not bool((right & unseen).any()):
                raise UsageError(
                    f"{self.name} needs samples that the network gets right on both halves, got {len(rows)} to fit on "
                    f"and {int((right & unseen).sum())} to measure on: give it more samples"
                )
            change = self.fit(model, inputs[rows], goal.take(rows), ids[rows])
            x_adv = self.apply(inputs, change, ids)
            output = in_batches(lambda xs: (output_of(model, xs),), (x_adv,), model.batch_size)[0]
        return Fitted(
            change=change,
            x_adv=x_adv,
            unseen=unseen,
            right=right,
            broken=goal.broken(output),
            forwards=model.forwards - forwards,
            backwards=model.backwards - backwards,
        )

    def batches(self, count: int, size: int, steps: int) -> list[Tensor]:
        """Return the rows of each step: epochs in random orders, cut into batches of `size`."""
        generator = torch.Generator().manual_seed(self.seed)
        size = min(size, count)
        epochs = -(-steps * size // count)
        rows = torch.cat([torch.randperm(count, generator=generator) for _ in range(epochs)])
        return list(torch.split(rows[: steps * size], size))
