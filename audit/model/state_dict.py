"""Finds the weights in what ``torch.save`` wrote, and fills a network with them.

The usual checkpoint dicts are opened (`state_dict`, `model_state_dict`, `model`, Lightning's), and the prefixes that wrappers
leave on the names are taken off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from audit.errors import ModelError

CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params")
PREFIXES = ("module.", "model.", "net.", "network.")
COMPILED = "_orig_mod."
MOST_NESTED = 8
MOST_SHOWN = 100  # characters of a name in a message
UNUSED_IN_EVALUATION = ".num_batches_tracked"  # counts training batches; files older than torch 0.4.1 lack it


def find_weights(loaded: Any, source: str, depth: int = 0, tensor: Any = Tensor) -> dict[str, Any]:
    """Return the dict of tensors inside whatever a checkpoint holds.

    Parameters
    ----------
    tensor
        The class, or classes, of what counts as a tensor.
    """
    if not isinstance(loaded, Mapping):
        got = "a tensor" if isinstance(loaded, tensor) else f"a {type(loaded).__name__}"
        raise ModelError(f"{source} should hold a dict of weights, got {got}; save model.state_dict()")
    inner = [name for name in CONTAINERS if isinstance(loaded.get(name), Mapping)]
    if inner and depth < MOST_NESTED:
        return find_weights(loaded[inner[0]], f"{source} [{inner[0]!r}]", depth + 1, tensor)
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, tensor)}
    if tensors:
        return tensors
    keys = ", ".join(repr(str(k)[:60]) for k in list(loaded)[:8]) or "nothing"
    raise ModelError(f"{source} holds no weights: expected tensors or one of {', '.join(CONTAINERS)}, got the keys {keys}")


def strip_prefixes(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take ``_orig_mod.`` (torch.compile) off wherever it stands, and ``module.`` (DataParallel) where every name has it.

    ``model.`` (Lightning) and the like are left to `fill`, since a network may really have a child of that name.
    """
    weights = {name.replace(COMPILED, ""): tensor for name, tensor in weights.items()}
    for _ in range(MOST_NESTED):  # a name of a million of them would be copied as often
        if not weights or not all(name.startswith("module.") for name in weights):
            break
        weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
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
    missing = _missing(expected, weights)
    unexpected = sorted(set(weights) - set(expected))
    misshapen = [
        f"{name[:MOST_SHOWN]} {tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in weights and weights[name].shape != expected[name].shape
    ]
    if missing or unexpected or misshapen:
        parts = [
            f"{label} {len(names)} ({', '.join(name[: 2 * MOST_SHOWN] for name in names[:5])}{', …' if len(names) > 5 else ''})"
            for label, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", misshapen))
            if names
        ]
        raise ModelError(f"the weights in {source} do not fit --arch {arch}: {'; '.join(parts)}; is it the right architecture?")
    try:
        module.load_state_dict(weights, strict=False)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:200]
        raise ModelError(f"the weights in {source} do not fit --arch {arch}: {reason}") from None


def summary(weights: Mapping[str, Tensor]) -> str:
    """Describe weights in a few words: their number and the first ones with shapes."""
    first = ", ".join(f"{name[:MOST_SHOWN]} {tuple(tensor.shape)}" for name, tensor in list(weights.items())[:3])
    return f"{len(weights)} tensors: {first}{', …' if len(weights) > 3 else ''}"


def _missing(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """List the names that no weight fills: not those tied to a filled one, which safetensors stores once."""
    filled = {(tensor.data_ptr(), tensor.shape) for name, tensor in expected.items() if name in weights and tensor.numel()}
    return sorted(
        name
        for name, tensor in expected.items()
        if name not in weights and (tensor.data_ptr(), tensor.shape) not in filled and not _counts_batches(name)
    )


def _counts_batches(name: str) -> bool:
    return f".{name}".endswith(UNUSED_IN_EVALUATION)


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
