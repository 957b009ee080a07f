"""What a way of hardening is: the worst input in the ball, and the loss that is made small on it.

A new method is one file: a subclass of `Method` that writes `maximise` and `loss`. Batches, schedules, modes, health,
checkpoints and early stopping are the training loop's, in base.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from audit.attacks.geometry import Ball
from audit.attacks.steps import step
from audit.hardening.network import Trainee
from audit.hardening.options import HardeningOptions
from audit.model.wrapper import Model

BEYOND = 2.5  # how many radii all steps together reach: Madry et al. 2018 (a path from one side to the other, and back)


@dataclass(frozen=True)
class Ascent:
    """Raises a loss inside the ball by projected gradient steps from a random start (Madry et al. 2018, section 2.1).

    Attributes
    ----------
    ball
        Radius and box.
    steps
        Gradient steps.
    step_size
        Length of each, as a share of the radius.
    seed, draw
        What the random start is drawn by: the same for the same step of training.
    ids
        Sample ids, where the start should belong to them rather than to places in the batch. (In training it belongs to the
        places: noise by ids is drawn in blocks of 64, of which a shuffled batch would use one sample each.)
    """

    ball: Ball
    steps: int
    step_size: float
    seed: int
    draw: int
    ids: Tensor | None = None

    def __call__(self, network: Model, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the last point of the ascent for each sample, like `x`; `loss` maps outputs to (n,)."""
        ball = self.ball
        if ball.eps == 0:
            return x
        region = ball.around(x)
        rows = torch.arange(len(x)) if self.ids is None else self.ids
        point = region.random(rows, seed=self.seed, purpose="hardening.start", draw=self.draw)
        length = self.step_size * ball.eps * ball.unit()
        for _ in range(self.steps):
            gradient, _ = network.gradient(loss, point)
            point = step(point, gradient.nan_to_num(0.0, 0.0, 0.0), region, length)
        return point


def step_size(options: HardeningOptions) -> float:
    """Return the length of a step as a share of the radius: as stated, else 2.5 radii over all steps, at most one."""
    return options.step_size if options.step_size is not None else min(1.0, BEYOND / options.attack_steps)


class Method(ABC):
    """One way of hardening.

    Parameters
    ----------
    options
        What was chosen.
    spread
        Regression: standard deviation of the training labels, in which errors are measured; 1 for classification.
    """

    name: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    source: ClassVar[str] = ""

    def __init__(self, options: HardeningOptions, spread: float = 1.0) -> None:
        self.options, self.spread = options, spread

    @abstractmethod
    def maximise(self, network: Trainee, x: Tensor, y: Tensor, ascend: Ascent) -> Tensor:
        """Return the worst inputs that were found around `x`, like `x`; the network is in evaluation mode."""

    @abstractmethod
    def loss(self, network: Trainee, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar; the network is in training mode."""


def output_of(network: Trainee, x: Tensor) -> Tensor:
    """Return logits (n, classes), or values (n,) of a regression network; differentiable in the weights."""
    return network.values(x) if network.task == "regression" else network.logits(x)
