"""Loads a file that the caller trusts with torch's own loader of its format: this runs whatever the file holds."""

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
        if file_format == "pt2":
            program = torch.export.load(io.BytesIO(content))
            loaded: Any = Exported(program.module()) if arch is None else dict(program.state_dict)
        else:
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0][:300]
        raise ModelError(
            f"{source} was trusted, but torch cannot open it: {type(error).__name__}: {text}; {_way_on(error)}"
        ) from error
    module = _module_in(loaded)
    if module is not None:
        return module
    weights = state_dict.strip_prefixes(state_dict.find_weights(loaded, source))
    if arch is None:
        raise ModelError(f"{source} holds weights only ({state_dict.summary(weights)}): give --arch FILE.py:FACTORY")
    state_dict.fill(arch.module, weights, source, arch.name)
    return arch.module


class Exported(nn.Module):
    """A program of ``torch.export``, which stays in the mode that it was exported in and refuses to be asked for another."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, *inputs: Any) -> Any:
        """Run the program."""
        return self.program(*inputs)

    def train(self, mode: bool = True) -> Exported:  # noqa: ARG002  (nn.Module's signature)
        """Leave the program as it is."""
        self.training = False
        return self


def _way_on(error: Exception) -> str:
    """Say how the classes that the file was saved with can be found."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        name = error.name[:100]
        return (
            f"it needs module {name!r}: run the command in the folder that holds {name.partition('.')[0]}.py, with PYTHONPATH=."
        )
    if isinstance(error, AttributeError) and "__main__" in str(error):
        return (
            "its class was defined in the script that saved it: move the class to a file of its own and save again, "
            "or save the weights (torch.save(model.state_dict(), 'weights.pt')) and give --arch FILE.py:FACTORY"
        )
    return "the classes that it was saved with must be importable"


def _module_in(loaded: Any) -> nn.Module | None:
    """Return a whole network, alone or under a usual name of a checkpoint dict; None where there is none."""
    if isinstance(loaded, nn.Module):
        return loaded
    if isinstance(loaded, Mapping):
        return next((loaded[name] for name in state_dict.CONTAINERS if isinstance(loaded.get(name), nn.Module)), None)
    return None
