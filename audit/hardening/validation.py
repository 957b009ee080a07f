"""What training may see: the reference part, split into samples to learn from and samples to attack after each epoch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from audit.attacks.geometry import ThreatModel
from audit.attacks.pgd import PGD
from audit.data.base import Dataset, Part
from audit.errors import UsageError
from audit.hardening.method import BEYOND, Ascent
from audit.model.batching import in_batches
from audit.model.wrapper import Model

MOST_VALIDATED = 1000
FEWEST = 20  # validation samples: with fewer, early stopping would pick an epoch by luck


def training_data(data: Dataset) -> Dataset:
    """Return the reference part as data of its own: training cannot reach the test part from it.

    Raises
    ------
    UsageError
        There is none, or it reaches outside the stated bounds.
    """
    part = data.reference
    if part is None:
        raise UsageError(
            "hardening trains on the reference part and never on the test part, but there is none: give the training samples "
            "with --reference DATA (in Python: Dataset(x, y, reference=(x_train, y_train)))"
        )
    # The box of a table would else be that of both parts.
    bounds = data.bounds if data.bounds is not None or data.kind == "table" else data.box()
    return Dataset(
        part.x,
        part.y,
        columns=data.columns or None,
        classes=data.classes or None,
        bounds=bounds,
        source=f"{data.source} (reference)",
    )


def split(training: Dataset, share: float, seed: int) -> tuple[Part, Part]:
    """Split samples into those to train on and those to validate on, each class in its share, by `seed`."""
    n = len(training.test)
    kept = min(MOST_VALIDATED, round(share * n))
    if kept < FEWEST:
        raise UsageError(
            f"early stopping needs at least {FEWEST} validation samples, but {share:g} of {n} reference samples are {kept}: "
            "give more samples with --reference, or a larger share with --set hardening.validation=0.3"
        )
    validation = training.sample(kept, seed).test
    rest = np.setdiff1d(np.arange(n), validation.ids)
    return training.test.take(rest), validation


def robust_accuracy(model: Model, part: Part, threat: ThreatModel, *, steps: int, seed: int) -> tuple[float, float]:
    """Return accuracy clean and under one run of PGD; for regression the mean absolute error, clean and in the worst case."""
    x, y, ids = model.to_input(torch.from_numpy(part.x)), torch.from_numpy(part.y).to(model.device), torch.from_numpy(part.ids)
    if model.task == "regression":
        return _absolute_errors(model, x, y.to(x.dtype), ids, threat, steps, seed)
    right = model.predict(x) == y
    broken = PGD(threat.norm, threat.eps, steps=steps, seed=seed)(model, x, y, ids=ids, threat=threat).success
    return float(right.double().mean()), 1 - float(broken.double().mean())


def _absolute_errors(
    model: Model, x: Tensor, y: Tensor, ids: Tensor, threat: ThreatModel, steps: int, seed: int
) -> tuple[float, float]:
    def errors(xs: Tensor, ys: Tensor, batch_ids: Tensor) -> tuple[Tensor, ...]:
        ascend = Ascent(threat.on(xs), steps, min(1.0, BEYOND / steps), seed, 0, batch_ids)
        worst = ascend(model, xs, lambda output: (output - ys) ** 2)
        with torch.no_grad():
            clean, far = (model.values(xs) - ys).abs(), (model.values(worst) - ys).abs()
        return clean, torch.maximum(clean, far)

    with model.session():
        clean, worst = in_batches(errors, (x, y, ids), model.batch_size)
    return float(clean.double().mean()), float(worst.double().mean())
