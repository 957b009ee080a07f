"""The copy of a network that is trained: differentiable in its weights, in the mode that the training loop chooses."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from audit.errors import ModelError
from audit.model.wrapper import Model

BatchNorm = nn.modules.batchnorm._BatchNorm
AnyModel = TypeVar("AnyModel", bound=Model)


class Trainee(Model):
    """A Model over its own copy of a network, whose sessions change nothing: mode and gradients are the loop's.

    All that `Model` does between inputs and logits (mean, std, a softmax that is undone, one logit as a pair) holds in
    training, too, and is differentiable in the weights.
    """

    @contextmanager
    def session(self) -> Iterator[Model]:
        """Leave the network as it is."""
        yield self

    @contextmanager
    def attacked(self) -> Iterator[None]:
        """Hold the network still, as it will be attacked: evaluation mode, no gradient for weights; put both back after.

        In training mode an attack would meet other batch statistics and other dropout than the deployed network has, and
        would move the running statistics while it looks.
        """
        modes = [(module, module.training) for module in self.module.modules()]
        trained = [p for p in self.module.parameters() if p.requires_grad]
        self.module.eval()
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)
            for module, training in modes:
                module.training = training

    def learn(self, *, freeze_batch_norm: bool) -> None:
        """Set training mode; batch normalisation keeps its running statistics where `freeze_batch_norm` says so."""
        self.module.train()
        if freeze_batch_norm:
            for module in self.module.modules():
                if isinstance(module, BatchNorm):
                    module.eval()


def trainee_of(model: Model) -> Trainee:
    """Copy a network so that it can be trained; the given one is not touched.

    Parameters that were frozen stay frozen, unless all are: a network is often frozen whole for use.

    Raises
    ------
    ModelError
        It cannot be copied, has no parameters, or is in half precision.
    """
    if model.dtype not in (torch.float32, torch.float64):
        raise ModelError(
            f"hardening needs parameters in float32 or float64, got {model.dtype}: train a copy made with module.float(), "
            "and convert it back after"
        )
    try:
        with torch.no_grad():  # else TorchScript's copies are results of the given parameters, which no optimiser takes
            module = copy.deepcopy(model.module)
        for parameter, given in zip(module.parameters(), model.module.parameters(), strict=True):
            parameter.requires_grad_(given.requires_grad)  # TorchScript's copies are frozen
    except Exception as error:
        raise ModelError(
            f"the network cannot be copied, so it cannot be trained without changing it: {type(error).__name__}: {error}"
        ) from error
    parameters = [p for p in module.parameters() if p.is_floating_point()]
    if not parameters:
        raise ModelError("the network has no parameters to train (a frozen or compiled graph?): give its weights with --arch")
    if not any(p.requires_grad for p in parameters):
        for parameter in parameters:
            parameter.requires_grad_(True)
    trainee = wrap(model, module, Trainee)
    module.to(trainee.device)
    return trainee


def wrap(model: Model, module: nn.Module, kind: type[AnyModel]) -> AnyModel:
    """Return `module` wrapped as `model` wraps its own: same task, output, classes, mean, std, bounds and device."""
    wrapped = kind(
        module,
        task=model.task,
        classes=model.class_names or model.classes,
        output=model.output,
        bounds=model.bounds,
        mean=model.mean,
        std=model.std,
        device=str(model.device),
        batch_size=model.batch_size.current,
    )
    wrapped.input_shape = model.input_shape
    return wrapped


def start_afresh(module: nn.Module, seed: int) -> None:
    """Give every layer fresh weights, by `seed`, with the layer's own ``reset_parameters``.

    Raises
    ------
    ModelError
        A layer has parameters and no way to reset them.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, child in module.named_modules():
            own = list(child.parameters(recurse=False))
            reset = getattr(child, "reset_parameters", None) or getattr(child, "_reset_parameters", None)
            if callable(reset):
                reset()
            elif own:
                raise ModelError(
                    f"--from-scratch needs a reset_parameters() in every layer that has parameters; {name or 'the network'} "
                    f"({type(child).__name__}) has none: give a file with untrained weights instead"
                )
