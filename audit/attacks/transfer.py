"""Transfer: examples made on a surrogate network whose gradients can be trusted, tried on the target, which gives none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from audit.attacks.base import Attack, Candidates, output_of
from audit.attacks.geometry import Ball, Norm, per_sample
from audit.attacks.goal import Goal
from audit.attacks.steps import look, step
from audit.budget import check_deadline
from audit.errors import UsageError
from audit.model.wrapper import Model

STEP = 2.5  # step length is this times the radius over the number of steps, as is customary where steps are all alike
BATCH, RATE = 64, 3e-3


class Transfer(Attack):
    """Momentum iterative attack on a surrogate; several points of its path are tried on the target.

    Papernot, McDaniel & Goodfellow 2016, "Transferability in Machine Learning", for the surrogate; Dong et al. 2018, "Boosting
    Adversarial Attacks with Momentum", algorithm 1 (decay 1), for the path. It does not stop where the surrogate is broken,
    for the target's boundary lies elsewhere. `AttackOutput` counts the passes of the target; those of the surrogate are
    counted by the surrogate.

    Parameters
    ----------
    norm, eps, seed
        See `Attack`.
    surrogate
        A Model of the same inputs and outputs: one that `fit_surrogate` trained, or any other.
    steps
        Gradient steps on the surrogate; for regression half of them up and half down.
    looks
        Points of the path that are tried on the target, one forward each.
    """

    name = "transfer"

    def __init__(
        self,
        norm: Norm = "linf",
        eps: float = 8 / 255,
        *,
        surrogate: Model | None = None,
        steps: int = 40,
        looks: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__(norm, eps, seed=seed)
        if not 1 <= looks <= steps:
            raise UsageError(f"steps and looks must be at least 1, and looks no more than steps, got {steps} and {looks}")
        self.surrogate, self.steps, self.looks = surrogate, steps, looks

    def run(self, model: Model, x: Tensor, goal: Goal, ball: Ball, ids: Tensor) -> Candidates:  # noqa: ARG002
        """Attack a batch; see `Attack.run`. Margins are the target's."""
        surrogate = self.surrogate
        if surrogate is None:
            raise UsageError("transfer needs a surrogate: Transfer(…, surrogate=fit_surrogate(model, reference_inputs))")
        if surrogate.output is None:
            surrogate.resolve(x, None if goal.task == "regression" else goal.y.cpu().numpy())
        if surrogate.task != model.task or surrogate.classes != model.classes:
            raise UsageError(
                f"the surrogate should be for {model.task} with {model.classes} classes as the target is, "
                f"got {surrogate.task} with {surrogate.classes}"
            )
        found = Candidates.start(x)
        directions = (1.0, -1.0) if goal.task == "regression" else (1.0,)
        for direction in directions:
            rows = (~found.broken).nonzero()[:, 0]
            if len(rows):
                with surrogate.session():
                    self._path(model, surrogate, x[rows], goal.take(rows), ball, rows, found, direction, len(directions))
        return found

    def _path(
        self,
        model: Model,
        surrogate: Model,
        x: Tensor,
        goal: Goal,
        ball: Ball,
        rows: Tensor,
        found: Candidates,
        direction: float,
        runs: int,
    ) -> None:
        """Walk from the samples on the surrogate, and note in `found` what the target makes of some points."""
        region, steps, looks = ball.around(x), max(1, self.steps // runs), max(1, self.looks // runs)
        length = STEP * ball.eps / steps * ball.unit()
        point, momentum = x, torch.zeros_like(x)
        for k in range(1, steps + 1):
            gradient, _, _ = look(surrogate, goal, point, direction, "ce")
            gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
            momentum = momentum + gradient / per_sample(gradient.abs().flatten(1).mean(dim=1).clamp_min(1e-30), gradient)
            point = step(point, momentum, region, length)
            if k * looks // steps == (k - 1) * looks // steps:
                continue
            output = output_of(model, point)
            margin = goal.loss(output, direction, "margin")
            found.loss_start[rows] = torch.where(found.loss_start[rows].isnan(), margin, found.loss_start[rows])
            # Whether a gradient vanishes is asked of the target's, which this attack does not use.
            found.grad_zero[rows] = False
            found.note(rows, point, margin, goal.broken(output), last=True)
            keep = (~found.broken[rows]).nonzero()[:, 0]
            if len(keep) < len(rows):
                rows, point, momentum = rows[keep], point[keep], momentum[keep]
                region, goal = region.take(keep), goal.take(keep)
            if len(rows) == 0:
                return


def fit_surrogate(target: Model, x: Tensor, *, steps: int = 600, seed: int = 0) -> Model:
    """Train a small network to answer as the target does, a convolutional one on images and a perceptron on anything else.

    Its labels are the target's own answers (Papernot et al. 2017, "Practical Black-Box Attacks against Machine Learning",
    section 4), one forward each. Seeded: the same inputs give the same network; its cost is bounded by `steps`, not by a clock,
    so that it does not depend on the machine.

    Parameters
    ----------
    target
        The Model to imitate; its task, classes and bounds are known.
    x : Tensor (n, …)
        Inputs to learn from: the reference data.
    steps
        Optimiser steps of 64 samples.
    """
    inputs = target.to_input(x)
    if len(inputs) < 2:
        raise UsageError(f"a surrogate needs inputs to learn from, at least 2, got {len(inputs)}")
    target.resolve(inputs[:BATCH])
    answers = target.predict(inputs)
    axes = [0, 2, 3] if inputs.ndim == 4 else [0]
    mean, std = inputs.mean(dim=axes), inputs.std(dim=axes)
    plain = inputs.ndim not in (2, 4)  # a sequence, say: there is no channel or column to standardise by
    cuda = [target.device] if target.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        network = _untrained(target, tuple(inputs.shape[1:]), answers).to(inputs)
        scale = network.scale if network.regression else None
        _train(network, _standard(inputs, mean, std, plain=plain), answers, steps, seed, scale)
    if plain:
        return _as_model(target, network, None, None)
    return _as_model(target, network, mean.cpu().numpy(), _no_zero(std).cpu().numpy())


def weights(surrogate: Model) -> dict[str, NDArray[Any]]:
    """Return all that `refitted` makes the same surrogate of again: its weights by name, and its mean and std."""
    arrays = {f"weight.{name}": value.cpu().numpy() for name, value in surrogate.module.state_dict().items()}
    for name in ("mean", "std"):
        value = getattr(surrogate, name)
        arrays[name] = np.zeros(0) if value is None else value.cpu().numpy()
    return arrays


def refitted(target: Model, shape: tuple[int, ...], arrays: Mapping[str, NDArray[Any]]) -> Model:
    """Return the surrogate of `fit_surrogate` for inputs of `shape` from its `weights`, without training it again."""
    like = torch.empty(0, dtype=target.dtype if target.dtype == torch.float64 else torch.float32, device=target.device)
    with torch.random.fork_rng(devices=[]):
        network = _untrained(target, shape, torch.zeros(2)).to(like)
    network.load_state_dict(
        {name.removeprefix("weight."): torch.as_tensor(a) for name, a in arrays.items() if name.startswith("weight.")}
    )
    mean, std = (arrays[name] if len(arrays[name]) else None for name in ("mean", "std"))
    return _as_model(target, network, mean, std)


def _untrained(target: Model, shape: tuple[int, ...], answers: Tensor) -> _Surrogate:
    regression = target.task == "regression"
    centre, scale = (answers.mean(), answers.std().clamp_min(1e-12)) if regression else (None, None)
    return _Surrogate(shape, 1 if regression else int(target.classes or 2), centre, scale)


def _as_model(target: Model, network: nn.Module, mean: NDArray[Any] | None, std: NDArray[Any] | None) -> Model:
    return Model(
        network.eval(),
        task=target.task,
        classes=target.class_names or target.classes,
        output={"regression": "regression", "multilabel": "multilabel_logits"}.get(target.task or "", "logits"),
        bounds=target.bounds,
        mean=mean,
        std=std,
        device=str(target.device),
        batch_size=target.batch_size.current,
    )


class _Surrogate(nn.Module):
    """A network small enough to train in seconds, and smooth, so that its gradients lead far."""

    def __init__(self, shape: tuple[int, ...], outputs: int, centre: Tensor | None, scale: Tensor | None) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_convolutions(shape) if len(shape) == 3 else [nn.Flatten()])
        with torch.no_grad():
            width = self.layers(torch.zeros(1, *shape)).shape[1]
        self.layers.extend([nn.Linear(width, 64), nn.GELU(), nn.Linear(64, outputs)])
        if len(shape) != 3:
            self.layers.insert(1, nn.Linear(width, 64))
            self.layers.insert(2, nn.GELU())
            self.layers[3] = nn.Linear(64, 64)
        self.regression = centre is not None
        self.register_buffer("centre", torch.zeros(()) if centre is None else centre)
        self.register_buffer("scale", torch.ones(()) if scale is None else scale)

    centre: Tensor
    scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return self.centre + self.scale * out[:, 0] if self.regression else out


def _convolutions(shape: tuple[int, ...]) -> list[nn.Module]:
    side = min(shape[1:])
    first = 2 if side > 16 else 1  # at full size the first layer would take most of the time
    layers: list[nn.Module] = [nn.Conv2d(shape[0], 16, 3, stride=first, padding=1), nn.GELU()]
    channels, side = 16, -(-side // first)
    while side > 4:
        layers += [nn.Conv2d(channels, 32, 3, stride=2, padding=1), nn.GELU()]
        channels, side = 32, (side + 1) // 2
    return [*layers, nn.Flatten()]


def _train(network: nn.Module, x: Tensor, y: Tensor, steps: int, seed: int, scale: Tensor | None) -> None:
    """Adam with a learning rate that falls along half a cosine."""
    optimiser = torch.optim.Adam(network.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    order = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        check_deadline()
        chosen = torch.randint(len(x), (min(BATCH, len(x)),), generator=order).to(x.device)
        output, wanted = network(x[chosen]), y[chosen]
        if scale is not None:
            loss = nn.functional.mse_loss(output / scale, wanted / scale)
        elif wanted.ndim == 2:
            loss = nn.functional.binary_cross_entropy_with_logits(output, wanted.to(output.dtype))
        else:
            loss = nn.functional.cross_entropy(output, wanted)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()


def _standard(x: Tensor, mean: Tensor, std: Tensor, *, plain: bool) -> Tensor:
    if plain:
        return x
    shape = [1, -1] + [1] * (x.ndim - 2)
    return (x - mean.reshape(shape)) / _no_zero(std).reshape(shape)


def _no_zero(std: Tensor) -> Tensor:
    return torch.where(std > 0, std, 1.0)
