"""Watches gradients, updates and dead units while a network trains, and says what is wrong with them.

Gradients are compared as root mean squares, layer by layer: a layer is a module that holds parameters of its own.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from audit.hardening.history import DeadUnits, Epoch, History, LayerHealth
from audit.model.graph import Graph, Step
from audit.model.wrapper import Model
from audit.result import Finding

SPIKE, MEMORY = 100.0, 50  # a gradient so many times the median of the last steps' is a spike
# First layer's gradient over the last layer's. Ten ReLU layers, convolutional networks, batch normalisation, an LSTM, a
# transformer and a regression network had 0.2 to 3, ten tanh layers 8e-3, three sigmoid layers 2e-3, ten of them 2e-9.
FADED = 1e-4
LOOKED_AT = 8  # steps an epoch at which the size of the update is measured
MANY_DEAD, MOST_DEAD = 0.5, 0.9

Rectified = {
    torch.relu,
    torch.relu_,
    Tensor.relu,
    Tensor.relu_,
    nn.functional.relu,
    nn.functional.relu_,
    nn.functional.relu6,
    torch.ops.aten.relu.default,
    torch.ops.aten.relu_.default,
    torch.ops.aten.relu6.default,
}


class Watch:
    """Collects what the steps of one epoch show; its state is plain numbers, so that it can be stored and taken up again."""

    def __init__(self, module: nn.Module, state: dict[str, Any] | None = None) -> None:
        self.layers = layers_of(module)
        names = [name for name, _ in self.layers]
        state = state or {}
        self.gradients: dict[str, list[float]] = state.get("gradients") or {name: [] for name in names}
        self.updates: dict[str, list[float]] = state.get("updates") or {name: [] for name in names}
        self.recent: list[float] = state.get("recent") or []
        self.spikes: int = state.get("spikes") or 0
        self._before: dict[str, Tensor] = {}

    def state(self) -> dict[str, Any]:
        """Return what `__init__` takes up again."""
        return {"gradients": self.gradients, "updates": self.updates, "recent": self.recent, "spikes": self.spikes}

    def see_gradients(self) -> bool:
        """Note the gradients of a step; False where one is not finite."""
        sizes = [_rms([p.grad for p in parameters if p.grad is not None]) for _, parameters in self.layers]
        total = math.sqrt(sum(size**2 for size in sizes))
        if not math.isfinite(total):
            return False
        for (name, _), size in zip(self.layers, sizes, strict=True):
            self.gradients[name].append(size)
        usual = statistics.median(self.recent) if len(self.recent) >= MEMORY // 2 else 0.0
        self.spikes += bool(usual > 0 and total > SPIKE * usual)
        self.recent = [*self.recent, total][-MEMORY:]
        return True

    def before_update(self) -> None:
        """Keep the weights, to measure by how much the next update moves them."""
        self._before = {name: _flat(parameters) for name, parameters in self.layers}

    def after_update(self) -> None:
        """Note how far the update moved each layer's weights, as a share of their length."""
        for name, parameters in self.layers:
            if name in self._before:
                old = self._before[name]
                length = float(old.norm())
                if length > 0:
                    self.updates[name].append(float((_flat(parameters) - old).norm()) / length)
        self._before = {}

    def summary(self) -> list[LayerHealth]:
        """Return one record a layer, in the order of the network, and begin the next epoch."""
        found = [
            LayerHealth(
                name=name or "network",
                gradient=statistics.median(sizes),
                largest=max(sizes),
                update=statistics.median(self.updates[name]) if self.updates[name] else None,
            )
            for name, sizes in self.gradients.items()
            if sizes
        ]
        self.gradients = {name: [] for name in self.gradients}
        self.updates = {name: [] for name in self.updates}
        self.spikes = 0
        return found


def layers_of(module: nn.Module) -> list[tuple[str, list[nn.Parameter]]]:
    """List the modules that hold trained parameters of their own, in the order of the network."""
    found = []
    for name, child in (module.weights if isinstance(module, Graph) else module).named_modules():
        own = [p for p in child.parameters(recurse=False) if p.requires_grad]
        if own:
            found.append((name, own))
    if isinstance(module, Graph):
        # A file lists weights in any order: here they come in that in which the steps read them.
        order = {weight: place for place, weight in reversed(list(enumerate(_read_weights(module))))}
        found.sort(key=lambda layer: min(order.get(id(parameter), len(order)) for parameter in layer[1]))
    return found


def _read_weights(graph: Graph) -> list[int]:
    """Return the ids of the parameters, in the order in which the steps read them."""
    held = dict(graph.weights.named_parameters(remove_duplicate=False))
    names = [graph.named.get(value) for step in graph.steps if isinstance(step, Step) for value in step.reads]
    return [id(held[name]) for name in names if name in held]


def _flat(parameters: Sequence[Tensor]) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in parameters])


def _rms(gradients: Sequence[Tensor]) -> float:
    if not gradients:
        return 0.0
    flat = _flat(gradients)
    # The largest entry is taken out first: a gradient of 1e-30 must not underflow in its own square.
    largest = float(flat.abs().max())
    if not (math.isfinite(largest) and largest > 0):
        return largest
    return largest * float((flat / largest).norm()) / math.sqrt(flat.numel())


# --- dead units -------------------------------------------------------------------------------------------------------


class _Rectifiers(TorchFunctionMode):
    """Notes which units of each ReLU that runs inside the ``with`` block were zero for every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in Rectified and isinstance(out, Tensor) and out.ndim >= 2:
            self.seen.append(_dead(out.detach()))
        return out


def _dead(out: Tensor) -> tuple[int, int]:
    """Return the number of units and of dead ones: channels of images, else the last axis."""
    channels = out.movedim(1, -1) if out.ndim >= 4 else out
    alive = (channels.reshape(-1, channels.shape[-1]) != 0).any(dim=0)
    return len(alive), int((~alive).sum())


def dead_units(network: Model, probe: Tensor) -> list[DeadUnits]:
    """Run probe samples once and count, ReLU by ReLU in the order in which they ran, the units that stayed at zero.

    Parameters
    ----------
    network
        A Model in a session.
    probe
        Inputs of shape (n, …).
    """
    with _Rectifiers() as rectifiers, torch.no_grad():
        network.outputs(probe)
    return [DeadUnits(name=f"ReLU {i + 1}", units=units, dead=dead) for i, (units, dead) in enumerate(rectifiers.seen)]


# --- what is wrong ----------------------------------------------------------------------------------------------------


def faded(epoch: Epoch) -> float | None:
    """Return the first layer's gradient over the last layer's; None where there is one layer, or no gradient at all."""
    if len(epoch.layers) < 2 or epoch.layers[-1].gradient == 0:
        return None
    return epoch.layers[0].gradient / epoch.layers[-1].gradient


def findings(history: History) -> list[Finding]:
    """Say what was wrong with the training: vanishing or exploding gradients, dead units, a loss that is no number."""
    return [*_diverged(history), *_vanishing(history), *_exploding(history), *_dying(history)]


def _diverged(history: History) -> list[Finding]:
    if history.ended != "not_finite":
        return []
    return [
        Finding(
            severity="high",
            title="Training broke off: the loss or its gradient was no finite number",
            detail=f"{history.reason}. Try a lower --lr, or a longer warm_up.",
        )
    ]


def _vanishing(history: History) -> list[Finding]:
    ratios = [ratio for epoch in history.epochs if (ratio := faded(epoch)) is not None]
    low = [ratio for ratio in ratios if ratio < FADED]
    if not ratios or 2 * len(low) <= len(ratios):
        return []
    layers = history.epochs[-1].layers
    return [
        Finding(
            severity="medium",
            title="Gradients vanish towards the input",
            detail=f"In {len(low)} of {len(ratios)} epochs the gradient of the first layer ({layers[0].name}) was less than "
            f"{FADED:g} of that of the last ({layers[-1].name}): {statistics.median(ratios):.1e} in the median. What the first "
            "layers compute hardly follows the loss. Activations that saturate (sigmoid, tanh), poor initial weights, or depth "
            "without normalisation or shortcuts do that.",
        )
    ]


def _exploding(history: History) -> list[Finding]:
    spikes = sum(epoch.spikes for epoch in history.epochs)
    if not spikes:
        return []
    return [
        Finding(
            severity="medium",
            title=f"Gradients exploded in {spikes} step{'s' if spikes != 1 else ''}",
            detail=f"There the gradient was over {SPIKE:g} times as long as in the median of the {MEMORY} steps before. Try a "
            "lower --lr.",
        )
    ]


def _dying(history: History) -> list[Finding]:
    shares = [(unit.dead / unit.units, unit) for unit in history.best.dead if unit.units]
    worst = [(share, unit) for share, unit in shares if share >= MANY_DEAD]
    if not worst:
        return []
    before = {unit.name: unit for unit in history.epochs[0].dead}
    listed = ", ".join(
        f"{unit.name}: {unit.dead} of {unit.units}" + (f" (before: {before[unit.name].dead})" if unit.name in before else "")
        for _, unit in worst
    )
    return [
        Finding(
            severity="medium" if max(share for share, _ in worst) >= MOST_DEAD else "low",
            title=f"Many units are dead in {len(worst)} of {len(shares)} ReLUs",
            detail=f"They are zero for every validation sample that was looked at ({listed}), so that they compute nothing and "
            "learn no more. Robust networks on simple images often let units go; else try a lower --lr.",
        )
    ]
