"""What callers hand over: samples, labels, ids, a box; refused in words where it would give a figure of something else."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from audit.attacks.geometry import Norm, ThreatModel
from audit.errors import UsageError
from audit.model.numbers import as_numbers
from audit.model.wrapper import Model

FEW = 64  # samples that tell how many outputs a network has


def samples_of(model: Model, x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Return inputs and labels as tensors on the network's device, once the network's task and outputs are told.

    Raises
    ------
    UsageError
        They are not samples of this network, or not numbers; see `check_samples`.
    """
    if isinstance(cast(object, model), nn.Module):
        raise UsageError(f"expected an audit.Model, got {type(model).__name__}: audit.Model(module, bounds=(0, 1)) wraps it")
    inputs, labels = model.to_input(x).detach(), as_numbers(y, "labels").detach().to(model.device)
    if inputs.ndim == 0:
        raise UsageError("inputs should have shape (samples, …), got one number")
    if labels.ndim == 0 or len(labels) != len(inputs):
        many = f"{len(labels)} labels" if labels.ndim else "one label"
        raise UsageError(f"expected one label a sample, got {many} for {len(inputs)} samples")
    if labels.ndim == 2 and labels.shape[1] == 1:
        raise UsageError(f"labels should have shape ({len(inputs)},), got {tuple(labels.shape)}: y.ravel() has it")
    if not bool(torch.isfinite(labels).all()):
        raise UsageError("labels should be finite numbers, got NaN or infinite ones")
    if model.output is None:
        if len(inputs) == 0:
            raise UsageError("expected at least one sample, got none")
        model.resolve(inputs, labels.cpu().numpy())
    elif model.classes is None and model.task != "regression" and len(inputs):
        model.resolve(inputs[:FEW], labels[:FEW].cpu().numpy())  # the outputs were stated, their number was not
    check_samples(model, inputs, labels)
    return inputs, labels


def check_samples(model: Model, x: Tensor, y: Tensor) -> None:
    """Refuse what would count as broken, or as robust, for no fault of the network: labels of no class, inputs of no value."""
    if not bool(torch.isfinite(x).all()):
        raise UsageError("inputs should be finite numbers, got NaN or infinite ones")
    if model.task == "multilabel":
        width = "labels" if model.classes is None else model.classes
        if y.ndim != 2 or (model.classes is not None and y.shape[1] != model.classes):
            raise UsageError(f"labels of a multilabel network should have shape ({len(x)}, {width}), got {tuple(y.shape)}")
        if not bool(((y == 0) | (y == 1)).all()):
            raise UsageError("labels of a multilabel network should be 0 or 1 each; a class a sample has shape (samples,)")
        return
    if y.ndim != 1:
        raise UsageError(f"labels of a {model.task} network should have shape ({len(x)},), got {tuple(y.shape)}")
    if model.task == "classification" and len(y):
        least, most, last = y.min().item(), y.max().item(), "" if model.classes is None else f" to {model.classes - 1}"
        if least < 0 or (model.classes is not None and most >= model.classes):
            raise UsageError(f"labels should be classes from 0{last}, got {least:g} to {most:g}")
        if y.is_floating_point() and not torch.equal(y, y.round()):
            raise UsageError(f"labels should be classes from 0{last}, got numbers that are not whole")


def ids_of(ids: Any, n: int) -> Tensor:
    """Return the ids of n samples, whole numbers, on the CPU; row numbers where None."""
    if ids is None:
        return torch.arange(n)
    given = as_numbers(ids, "ids").cpu()
    if given.ndim != 1 or len(given) != n:
        raise UsageError(f"expected one id a sample, got ids of shape {tuple(given.shape)} for {n} samples")
    if given.is_floating_point() or given.dtype == torch.bool:
        raise UsageError(f"ids should be whole numbers, got {given.dtype}")
    return given.to(torch.int64)


def tolerance_of(model: Model, tolerance: Any, verb: str = "attack") -> float | None:
    """Return how far a regression network's output must move; None for other networks."""
    if model.task != "regression":
        return None
    if tolerance is None:
        raise UsageError(f"to {verb} a regression network, say how far its output must move: tolerance=…")
    # 0 is what the residuals of a network without errors give.
    if not isinstance(tolerance, Real) or not 0 <= float(tolerance) < math.inf:
        raise UsageError(f"tolerance should be a finite number, 0 or more, got {tolerance!r}")
    return float(tolerance)


def threat_of(model: Model, norm: Norm, eps: float, x: Tensor) -> ThreatModel:
    """Return the threat model of a radius in the model's bounds, which must hold the inputs.

    A radius in other units than theirs is next to nothing, and the network would look robust.
    """
    if model.bounds is None:
        raise UsageError("an attack needs to know which values are allowed: Model(…, bounds=(0, 1))")
    low, high = (np.asarray(side, dtype=np.float64) for side in model.bounds)
    threat = ThreatModel(norm, eps, low, high)
    threat.check_box(tuple(x.shape[1:]))
    values, slack = x.detach().cpu().numpy(), np.nan_to_num(1e-6 * (high - low), posinf=0.0)
    outside = ((values < low - slack) | (values > high + slack)).reshape(len(values), -1).any(axis=1) if len(values) else values
    if outside.any():
        raise UsageError(
            f"the model's bounds should hold every input, but {int(outside.sum())} of {len(values)} samples reach outside "
            f"{low.min():g} to {high.max():g}: inputs lie between {values.min():g} and {values.max():g}; "
            "give the bounds in the units of the inputs: Model(…, bounds=(low, high))"
        )
    return threat
