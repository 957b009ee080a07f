"""Choose the free slopes of kinked activations, and the multipliers of splits, so that margins are bounded most tightly.

Xu et al. 2021 ("Fast and Complete", section 3.2) and Wang et al. 2021 ("Beta-CROWN", section 3.2). Whatever is chosen, a bound
is true: the best one seen is kept.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from audit.certificates.activations import Kink
from audit.certificates.bounds import Bounds


def optimised(bounds: Bounds, rows: Tensor, constant: Tensor, steps: int, *, rate: float = 0.25) -> Tensor:
    """Return the best lower bounds of the functions `rows` of the output that so many steps found, (n, r).

    Parameters
    ----------
    constant
        What is added to each bound, (n, r): only bounds that stay at or below 0 are improved.
    rate
        Length of Adam's first step, in units of the slopes' range; it falls to nothing over the steps.
    """
    slopes, multipliers = _start(bounds)
    return ascend(bounds, rows, constant, slopes, multipliers, steps, rate, stay=True)


def ascend(
    bounds: Bounds,
    rows: Tensor,
    constant: Tensor | float,
    slopes: Mapping[int, Tensor],
    multipliers: Mapping[int, Tensor],
    steps: int,
    rate: float,
    *,
    stay: bool = False,
) -> Tensor:
    """Raise the bounds of the functions `rows`, (n, r), by Adam's steps on slopes and multipliers, which are changed in place.

    With `stay` they end where the last bound was looked at; else one step further.
    """
    chosen = [*slopes.values(), *multipliers.values()]
    if not chosen:
        return bounds.lowest(rows)[0].detach()
    best = torch.full(rows.shape[:2], -torch.inf, dtype=rows.dtype, device=rows.device)
    with torch.enable_grad():
        optimiser = torch.optim.Adam(chosen, lr=rate)
        for step in range(steps):
            lower, _ = bounds.lowest(rows, slopes=slopes, multipliers=multipliers)
            best = torch.maximum(best, lower.detach().nan_to_num(nan=-torch.inf))
            loss = -(lower + constant).clamp_max(0).sum()
            if (stay and step == steps - 1) or not bool((loss > 0) & loss.isfinite()):
                break
            optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # of torch
            optimiser.step()
            with torch.no_grad():
                for slope in slopes.values():
                    slope.clamp_(0, 1)
                for multiplier in multipliers.values():
                    multiplier.clamp_(min=0)
    return best


def _start(bounds: Bounds) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Begin with CROWN's own slopes, and with multipliers of 0."""
    slopes: dict[int, Tensor] = {}
    for node in bounds.network.nodes:
        operation = node.operation
        if isinstance(operation, Kink):
            parent = node.inputs[0]
            low, high = bounds.low[parent], bounds.high[parent]
            slopes[parent] = ((high - operation.at) > (operation.at - low)).to(low.dtype).requires_grad_()
    multipliers = {number: torch.zeros_like(bounds.low[number]).requires_grad_() for number in bounds.splits}
    return slopes, multipliers
