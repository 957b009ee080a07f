"""Randomised smoothing: a certificate for the network under Gaussian noise, not for the network itself.

Cohen, Rosenfeld & Kolter 2019, "Certified Adversarial Robustness via Randomized Smoothing", theorem 1, algorithm CERTIFY.
The smoothed network answers with the class that the network gives most often under noise N(0, σ²); whoever deploys the network
without that noise has no such guarantee.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats as distributions
from torch import Tensor
from torch.nn.functional import one_hot

from audit.data.noise import BLOCK, normal_noise
from audit.errors import UsageError
from audit.model.wrapper import Model

ABSTAIN = -1


@dataclass(frozen=True)
class Smoothed:
    """The smoothed network's answers.

    Attributes
    ----------
    predicted : int64 Tensor (n,)
        The class of the smoothed network; -1 where it abstains, for no class has more than half of the votes for certain.
    radius : float64 Tensor (n,)
        L2 radius in which the smoothed network gives that class, in the units of the input, without regard to a box; 0 where it
        abstains. It holds for each sample with probability at least 1 - alpha over the noise.
    lower : float64 Tensor (n,)
        Clopper–Pearson lower bound of the share of votes for the class.
    forwards
        Samples that went through the network.
    """

    predicted: Tensor
    radius: Tensor
    lower: Tensor
    sigma: float
    alpha: float
    forwards: int

    def certified(self, y: Tensor | NDArray[Any], radius: float) -> Tensor:
        """Tell which samples the smoothed network gets right everywhere within an L2 radius, (n,)."""
        return (self.predicted == torch.as_tensor(y).to(self.predicted.device)) & (self.radius > radius)


def smooth(
    model: Model,
    x: Tensor | NDArray[Any],
    ids: Tensor | NDArray[np.int64],
    *,
    sigma: float,
    n0: int = 100,
    n: int = 10_000,
    alpha: float = 0.001,
    seed: int = 0,
) -> Smoothed:
    """Certify the smoothed network at samples `x`, (k, …).

    `n0` votes choose the class and `n` others, independent of them, bound its share from below (one-sided Clopper–Pearson at
    `alpha`); the radius is σ Φ⁻¹(share). Noise belongs to sample ids.

    Raises
    ------
    UsageError
        Sigma is not positive, a count is below 1, alpha is not between 0 and 1, or the network is for regression.
    """
    if not (sigma > 0 and math.isfinite(sigma)):
        raise UsageError(f"sigma must be a positive number, got {sigma!r}")
    if len(x) == 0:
        raise UsageError("expected at least one sample to smooth, got none")
    if n0 < 1 or n < 1 or not 0 < alpha < 1:
        raise UsageError(f"n0 and n must be at least 1 and alpha between 0 and 1, got {n0}, {n} and {alpha}")
    inputs, ids = model.to_input(x), torch.as_tensor(ids)
    if len(ids) != len(inputs):
        raise UsageError(f"expected one id a sample, got {len(ids)} ids for {len(inputs)} samples")
    if model.output is None:
        model.resolve(inputs)
    if model.task != "classification":
        raise UsageError(f"randomised smoothing takes votes for classes: it is not for a {model.task} network")
    before = model.forwards
    with model.session(), torch.no_grad():
        first = _votes(model, inputs, ids, sigma, n0, seed, "smoothing.choose")
        predicted = first.argmax(dim=1)
        again = _votes(model, inputs, ids, sigma, n, seed, "smoothing.estimate")
    count = again.gather(1, predicted[:, None])[:, 0].double().cpu().numpy()
    lower = torch.as_tensor(distributions.beta.ppf(alpha, count, n - count + 1), dtype=torch.float64).nan_to_num(0.0)
    sure = lower > 0.5
    radius = torch.where(sure, sigma * torch.special.ndtri(lower.clamp(0.5, 1 - 1e-16)), 0.0)
    predicted = torch.where(sure, predicted.cpu(), torch.full_like(predicted.cpu(), ABSTAIN))
    return Smoothed(predicted, radius, lower, sigma, alpha, model.forwards - before)


def _votes(model: Model, x: Tensor, ids: Tensor, sigma: float, count: int, seed: int, purpose: str) -> Tensor:
    """Return how many of `count` noisy copies of each sample get each class, (n, classes)."""
    votes: Tensor | None = None
    shape = tuple(x.shape[1:])
    for rows in torch.split(torch.arange(len(x)), BLOCK):
        together = max(1, model.batch_size.current // len(rows))
        for draws in torch.split(torch.arange(count), together):
            noise = [normal_noise(ids.cpu()[rows], shape, seed=seed, purpose=purpose, draw=draw) for draw in draws.tolist()]
            noisy = x[rows.to(x.device)] + sigma * torch.stack(noise).to(x)
            logits = model.logits(noisy.flatten(0, 1))
            # An output that is NaN or infinite is no answer (`Goal.broken`): of NaN, `argmax` would make a vote for some class.
            answered = torch.isfinite(logits).all(dim=1, keepdim=True)
            hit = (one_hot(logits.argmax(dim=1), logits.shape[1]) * answered).view(len(draws), len(rows), -1).sum(dim=0)
            if votes is None:
                votes = torch.zeros((len(x), logits.shape[1]), dtype=torch.long, device=x.device)
            votes[rows.to(x.device)] += hit
    assert votes is not None  # noqa: S101  (there are samples and draws)
    return votes
