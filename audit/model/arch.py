"""Builds the network that weights belong to, from the class or function that the caller names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from audit.errors import UsageError
from audit.usercode import load_code


@dataclass(frozen=True)
class Arch:
    """A network as its factory built it, and the hash of the factory's source and arguments."""

    module: nn.Module
    name: str
    sha256: str


def build(arch: str | Callable[..., nn.Module] | None, arguments: dict[str, Any] | list[Any] | None) -> Arch | None:
    """Call the factory; None where none was given.

    Raises
    ------
    UsageError
        The factory cannot be found, fails, or returns something else than a module.
    """
    if arch is None:
        if arguments:
            raise UsageError("--arch-args was given without --arch: name the factory that takes them")
        return None
    if isinstance(arch, nn.Module):
        return Arch(arch, type(arch).__name__, "")
    code = load_code(arch, "--arch") if isinstance(arch, str) else None
    factory = code.function if code else arch
    name = code.spec if code else getattr(arch, "__qualname__", repr(arch))
    if isinstance(arguments, dict):
        positional, keywords = [], arguments
    else:
        positional, keywords = list(arguments or []), {}
    try:
        module = factory(*positional, **keywords)  # type: ignore[operator]
    except (Exception, SystemExit) as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0][:300]
        raise UsageError(
            f"--arch {name} failed to build the network: {type(error).__name__}: {reason}; arguments go in --arch-args"
        ) from error
    if not isinstance(module, nn.Module):
        raise UsageError(f"--arch {name} should return a torch.nn.Module, got {type(module).__name__}")
    written = json.dumps(arguments, sort_keys=True, default=repr)
    return Arch(module, name, hashlib.sha256(f"{code.sha256 if code else ''} {written}".encode()).hexdigest())
