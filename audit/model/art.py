"""Hands a Model to the adversarial-robustness-toolbox, so that anything that ART does can be done to the same network."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from audit.errors import UsageError
from audit.model.wrapper import Model


class _AsModule(nn.Module):
    """The Model as a plain module: mean and std inside, logits (or values in a column) outside.

    ART switches modes and moves modules as it goes and puts nothing back. Here neither reaches the network: each forward
    runs in a session of the Model, in evaluation mode and on its device.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.network = model.module
        self._model = model

    def train(self, mode: bool = True) -> _AsModule:
        """Note the mode, and leave the network's alone."""
        self.training = mode
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> _AsModule:  # noqa: ARG002
        return self

    def forward(self, x: Tensor) -> Tensor:
        x = self._model.to_input(x)
        if x.requires_grad:
            # A view of its own, so that a backward counts once however often ART runs the same tensor.
            x = x.view_as(x)
            x.register_hook(self._count)  # type: ignore[no-untyped-call]
        return self._model.values(x)[:, None] if self._model.task == "regression" else self._model.logits(x)

    def _count(self, gradient: Tensor) -> None:
        self._model.backwards += len(gradient)


def as_art(model: Model) -> Any:
    """Return an ART ``PyTorchClassifier``, or ``PyTorchRegressor``, of the same network."""
    try:
        from art.estimators.classification import PyTorchClassifier
        from art.estimators.regression.pytorch import PyTorchRegressor
    except ImportError as error:
        raise UsageError(f"as_art() needs ART: pip install 'adversarial-robustness-toolbox>=1.20' ({error})") from None
    if model.input_shape is None or model.output is None:
        raise UsageError("as_art() needs to know the input shape and what the network returns: call model.resolve(x, y) first")
    if model.task == "multilabel":
        raise UsageError(
            "as_art() is for classifiers and regression networks: ART takes the largest of a network's outputs for its answer, "
            "and a multi-label network has one for each label; give ART a module that returns one label's (0, logit)"
        )
    clip = None
    if model.bounds is not None:
        clip = tuple(np.asarray(side, dtype=np.float32) for side in model.bounds)
    device = "gpu" if model.device.type == "cuda" else "cpu"
    module = _AsModule(model)
    if model.task == "regression":
        return PyTorchRegressor(
            model=module, loss=torch.nn.MSELoss(), input_shape=model.input_shape, clip_values=clip, device_type=device
        )
    return PyTorchClassifier(
        model=module,
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=model.input_shape,
        nb_classes=model.classes,
        clip_values=clip,
        device_type=device,
    )
