"""Reads weights that ``torch.save`` wrote, with torch's weights-only reader, and fills a network with them.

The usual checkpoint dicts are opened (`state_dict`, `model_state_dict`, `model`, Lightning's), and the prefixes that wrappers
leave on the names are taken off.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from audit.errors import ModelError, ModelRefused

CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")


def load(content: bytes, source: str) -> dict[str, Tensor]:
    """Return the weights by name, without running anything that the file holds.

    Raises
    ------
    ModelRefused
        The file holds something else than weights: the message names it.
    ModelError
        The file is truncated or damaged, or holds no weights.
    """
    try:
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        blocked = blocked_by(str(error))
        if blocked is None:
            raise ModelError(
                f"{source} is damaged or was not written by torch.save ({_first_line(error)}): save it again"
            ) from None
        from audit.model.load import WAYS_ON

        raise ModelRefused(
            f"{source} is a pickle that asks for {blocked}, which could execute code, so it was not opened; {WAYS_ON}"
        ) from None
    except Exception as error:
        # A hostile or truncated archive makes the reader raise almost anything; none of it may reach the user as a crash.
        raise ModelError(
            f"{source} is truncated or damaged ({type(error).__name__}: {_first_line(error)}): copy or save it again"
        ) from None
    return strip_prefixes(find_weights(loaded, source))


def blocked_by(message: str) -> str | None:
    """Return the name that stopped torch's weights-only reader, from its message; None where nothing was blocked."""
    for pattern in (
        r"Unsupported global: GLOBAL (\S+)",
        r"Unsupported class (\S+)",
        r"WeightsUnpickler error: (?:Trying to|Can only|Unsupported|Not allowed)[^\n]*?((?:\w+\.)+\w+)",
        r"GLOBAL (\S+)",
        r"(Unsupported operand \d+)",
    ):
        match = re.search(pattern, message)
        if match:
            return match.group(1)
    return None


def find_weights(loaded: Any, source: str) -> dict[str, Tensor]:
    """Return the dict of tensors inside whatever a checkpoint holds."""
    if not isinstance(loaded, Mapping):
        raise ModelError(f"{source} should hold a dict of weights, got {type(loaded).__name__}; save model.state_dict()")
    tensors = {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)}
    inner = [name for name in CONTAINERS if isinstance(loaded.get(name), Mapping)]
    if tensors and not inner:
        return tensors
    if inner:
        return find_weights(loaded[inner[0]], f"{source} [{inner[0]!r}]")
    keys = ", ".join(repr(str(k)) for k in list(loaded)[:8]) or "nothing"
    raise ModelError(f"{source} holds no weights: expected tensors or one of {', '.join(CONTAINERS)}, got the keys {keys}")


def strip_prefixes(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take ``module.`` (DataParallel) and ``_orig_mod.`` (torch.compile) off where every name has them.

    ``model.`` (Lightning) and the like are left to `fill`, since a network may really have a child of that name.
    """
    changed = True
    while changed:
        changed = False
        for prefix in PREFIXES[:2]:
            if weights and all(name.startswith(prefix) for name in weights):
                weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
                changed = True
    return weights


def fill(module: nn.Module, weights: dict[str, Tensor], source: str, arch: str) -> None:
    """Copy weights into the network; every name and shape must fit.

    Raises
    ------
    ModelError
        Names or shapes do not fit: the message lists missing, unexpected and misshapen ones.
    """
    expected = {name: tensor for name, tensor in module.state_dict().items() if isinstance(tensor, Tensor)}
    weights = _best_fit(weights, set(expected))
    missing = sorted(set(expected) - set(weights))
    unexpected = sorted(set(weights) - set(expected))
    misshapen = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in weights and weights[name].shape != expected[name].shape
    ]
    if missing or unexpected or misshapen:
        parts = [
            f"{label} {len(names)} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"
            for label, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", misshapen))
            if names
        ]
        raise ModelError(f"the weights in {source} do not fit --arch {arch}: {'; '.join(parts)}; is it the right architecture?")
    try:
        module.load_state_dict(weights, strict=False)
    except Exception as error:
        raise ModelError(f"the weights in {source} do not fit --arch {arch}: {_first_line(error)}") from None


def summary(weights: Mapping[str, Tensor]) -> str:
    """Describe weights in a few words: their number and the first ones with shapes."""
    first = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in list(weights.items())[:3])
    return f"{len(weights)} tensors: {first}{', …' if len(weights) > 3 else ''}"


def _best_fit(weights: dict[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    """Return the weights under the names, with or without a wrapper's prefix, that match the network best."""
    candidates = [weights]
    for prefix in PREFIXES:
        under = {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}
        if under:
            # A Lightning checkpoint also holds its losses and metrics beside the network: they are not the network's.
            candidates.append(under)
        candidates.append({prefix + n: t for n, t in weights.items()})
    return max(candidates, key=lambda c: len(expected & set(c)))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
