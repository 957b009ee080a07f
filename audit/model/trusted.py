"""Loads a file that the caller trusts with ``torch.load`` or ``torch.jit.load``: this runs whatever the file holds."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from audit.errors import ModelError
from audit.model import state_dict
from audit.model.arch import Arch


def load(content: bytes, file_format: str, source: str, arch: Arch | None) -> nn.Module:
    """Return the module in the file, or the network of `arch` filled with the weights in it.

    Raises
    ------
    ModelError
        torch cannot open it, or it holds weights and no `arch` was given.
    """
    try:
        if file_format == "torchscript":
            return torch.jit.load(io.BytesIO(content), map_location="cpu")  # type: ignore[no-any-return,no-untyped-call]
        loaded: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0]
        raise ModelError(
            f"{source} was trusted, but torch cannot open it: {type(error).__name__}: {text}; "
            "the classes that it was saved with must be importable"
        ) from error
    module = _module_in(loaded)
    if module is not None:
        return module
    weights = state_dict.strip_prefixes(state_dict.find_weights(loaded, source))
    if arch is None:
        raise ModelError(f"{source} holds weights only ({state_dict.summary(weights)}): give --arch FILE.py:FACTORY")
    state_dict.fill(arch.module, weights, source, arch.name)
    return arch.module


def _module_in(loaded: Any) -> nn.Module | None:
    """Return a whole network, alone or under a usual name of a checkpoint dict; None where there is none."""
    if isinstance(loaded, nn.Module):
        return loaded
    if isinstance(loaded, Mapping):
        return next((loaded[name] for name in state_dict.CONTAINERS if isinstance(loaded.get(name), nn.Module)), None)
    return None
