"""Certify samples: a lower bound of the margin over all that the threat model allows, or the layer that has none."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.attacks.geometry import ThreatModel
from audit.attacks.given import samples_of, tolerance_of
from audit.certificates.bounds import MOST, Bounds
from audit.certificates.branching import branch
from audit.certificates.inputs import Inputs
from audit.certificates.network import Network
from audit.certificates.optimise import optimised, tighten
from audit.errors import UsageError
from audit.model.batching import BatchSize, in_batches
from audit.model.wrapper import Model

Method = Literal["crown", "ibp"]
METHODS: tuple[Method, ...] = ("crown", "ibp")
NEAR = 0.5  # branching is tried where the bound lies below 0 by no more than this share of the clean margin
TIGHTEN = 2**21  # coefficients of a layer whose bounds are tightened before: more take longer than branching itself
LARGEST = 2**16  # numbers of all values of a network, for one sample, with which branching is tried
TELLS = 32  # units of roundoff by which two probabilities must differ, to be told apart as they are computed
DENORMAL = -80.0  # below, a sigmoid may be 0 in float32
FORWARDS = 20  # that take as long as one bound pass: 3 to 50 on six networks (benchmarks/certificates.py)


@dataclass(frozen=True)
class Certificate:
    """What was certified, and by what.

    Attributes
    ----------
    certified : bool Tensor (n,)
        No input in box and ball makes the network, in its own floating-point arithmetic, give another class than `y`. What is
        assumed of that arithmetic is in `audit.certificates.rounding`: sums of products, in any order. Convolutions that
        transform their inputs (Winograd, on GPUs and ARM) have an allowance in place of a bound.
    lower : float64 Tensor (n, classes)
        Lower bounds of z_y - z_j over box and ball, infinite at j = y; for a multi-label network of each label's logit, with
        its sign turned where the sample has not the label. For regression (n, 2): how far the output stays within
        the tolerance above and below.
    method
        ``crown`` or ``ibp``, with the number of layers whose inputs have interval bounds, and with branching where asked for.
    passes
        Bound passes: coefficients of one row for one sample on their way back through the network, over rows of its output,
        plus two (the two sides of its intervals).
    seconds
        Wall-clock time, the reading of the network not included.
    """

    certified: Tensor
    lower: Tensor
    method: str
    note: str
    passes: float
    seconds: float


def certify(
    model: Model,
    x: Tensor | NDArray[Any],
    y: Tensor | NDArray[Any],
    threat: ThreatModel,
    *,
    method: Method = "crown",
    alpha_steps: int = 0,
    parts: int = 0,
    tolerance: float | None = None,
    network: Network | None = None,
    most: int = MOST,
    batch_size: int = 4,
) -> Certificate:
    """Bound the margins of samples over all that the threat model allows.

    Intervals cost two passes over the network. CROWN goes back once for each output and twice for each unstable neuron of each
    layer, over all layers before it: time grows with both; each step of `alpha_steps` is one more pass, with its gradient.

    Parameters
    ----------
    model
        The network.
    x, y
        Inputs of shape (n, …) and labels of shape (n,), or (n, labels) for a multi-label network; for regression the outputs
        that must not be left.
    threat
        Box and radius in L∞, L2, L1 or L0. Constraints between inputs are left out, which keeps the bounds true.
    method
        ``crown``: linear bounds, never looser than intervals but for rounding. ``ibp``: intervals.
    alpha_steps
        Steps in which the free slopes of samples that are not yet certified are optimised; 0 for none.
    parts
        Parts that branching may bound for each sample that is nearly certified (its bound is below 0 by at most half of its
        clean margin) by a small network whose layers have linear bounds, after these were tightened
        (`audit.certificates.optimise.tighten`); 0 for none. See `audit.certificates.branching`.
    tolerance
        Regression: how far the output may move.
    network
        The network's operations where they have been read before (`Network.of`).
    most
        Coefficients that the inputs of one layer may take for one sample; a layer that takes more has interval bounds there.

    Raises
    ------
    NoBound
        A layer has no bound; the message names it.
    """
    if method not in METHODS:
        raise UsageError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    inputs, labels = samples_of(model, x, y)
    if len(inputs) == 0:
        raise UsageError("expected at least one sample, got none")
    tolerance = tolerance_of(model, tolerance, "certify")
    threat.check(tuple(inputs.shape[1:]))
    network = network or Network.of(model, inputs)
    began = time.perf_counter()
    layers: dict[str, None] = {}
    rows = 0

    def bound(xs: Tensor, ys: Tensor) -> tuple[Tensor, ...]:
        nonlocal rows
        bounds = Bounds.over(network, Inputs.around(xs, threat.on(xs), network.dtype), crown=method == "crown", most=most)
        lower = margins(bounds, ys, tolerance, crown=method == "crown", alpha_steps=alpha_steps)
        if parts and method == "crown":
            lower = _branched(bounds, ys, tolerance, lower, parts)
        rows += bounds.rows
        layers.update(dict.fromkeys(bounds.intervals_only))
        return (lower,)

    with model.session(), torch.no_grad():
        (lower,) = in_batches(bound, (inputs, labels), BatchSize(batch_size))
    lower = torch.nan_to_num(lower.double(), nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    outputs = max(1, lower.shape[1] if len(lower) else 1)
    said = f"{method} (intervals at {len(layers)} layers)" if layers else method
    if parts and method == "crown":
        said += f", then branching into up to {parts} parts where nearly certified"
    return Certificate(
        certified=(lower > 0).all(dim=1),
        lower=lower,
        method=said,
        note="" if not layers else "interval bounds for the inputs of the activations after " + ", ".join(layers),
        passes=rows / outputs + 2 * len(inputs),
        seconds=time.perf_counter() - began,
    )


def bounds_of(
    network: Network, x: Tensor, threat: ThreatModel, *, splits: Mapping[int, Tensor] | None = None, most: int = MOST
) -> Bounds:
    """Return CROWN's bounds of every value around samples, with split constraints where they are given.

    `Bounds.activations` says what can be split, `Bounds.unstable` where it makes a difference, and `margin_rows` with
    `Bounds.lowest` give the margins and their coefficients at the input, whose lowest corner (`Bounds.inputs.corner`) is a
    starting point for an attack.
    """
    with torch.no_grad():
        return Bounds.over(network, Inputs.around(x, threat.on(x), network.dtype), splits=splits, most=most)


def margins(bounds: Bounds, y: Tensor, tolerance: float | None = None, *, crown: bool = True, alpha_steps: int = 0) -> Tensor:
    """Return lower bounds of z_y - z_j, (n, classes), infinite at j = y; for regression of the two sides of the tolerance."""
    rows, constant, own = margin_rows(bounds.network, y, tolerance, bounds)
    lower, _ = bounds.lowest(rows, intervals=True, bisections=16)
    if crown:
        linear, _ = bounds.lowest(rows, bisections=16)
        lower = torch.maximum(lower.nan_to_num(nan=-torch.inf), linear.nan_to_num(nan=-torch.inf))
        open_ = ~((lower + constant > 0) | own).all(dim=1)
        if alpha_steps and bool(open_.any()):
            part = bounds.take(open_)
            better = optimised(part, rows[open_], constant[open_].masked_fill(own[open_], torch.inf), alpha_steps)
            bounds.rows += part.rows
            lower[open_] = torch.maximum(lower[open_], better)
    lower = lower + constant
    return lower.masked_fill(own, torch.inf)


def margin_rows(
    network: Network, y: Tensor, tolerance: float | None = None, bounds: Bounds | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return margins as functions of the network's output: rows (n, r, outputs), what is added (n, r), and where j = y.

    Where the network ends in a softmax or sigmoid, so much is taken away that the probabilities differ, too, as they are
    computed: sigmoids side by side may all be 1. For these the bounds are needed; without them nothing is certified.
    """
    size, dtype = network.nodes[-1].shape[0], network.dtype
    if tolerance is not None:
        sides = torch.tensor([[-1.0], [1.0]], dtype=dtype, device=y.device).expand(len(y), 2, 1)
        value = y.to(dtype)[:, None]
        slack = 8 * network.rounding.network * (value.abs() + tolerance)
        return sides, torch.cat((value, -value), dim=1) + tolerance - slack, torch.zeros_like(sides[..., 0], dtype=torch.bool)
    labels = y.long()
    apart = -TELLS * network.rounding.network if network.ending else 0.0
    if y.ndim == 2:
        # A multi-label network: each label has a logit of its own, which must keep its sign.
        rows = torch.diag_embed((2 * labels - 1).to(dtype))
        return rows, torch.full_like(rows[..., 0], apart), torch.zeros_like(labels, dtype=torch.bool)
    if network.single:
        # The logit z stands for the pair (0, z).
        sign = (2.0 * labels - 1).to(dtype)[:, None, None]
        return sign.expand(-1, 2, 1), torch.full((len(y), 2), apart, dtype=dtype, device=y.device), _own(labels, 2)
    rows = torch.eye(size, dtype=dtype, device=y.device)[labels][:, None] - torch.eye(size, dtype=dtype, device=y.device)
    added = torch.full((len(y), size), apart, dtype=dtype, device=y.device)
    if network.ending == "sigmoid":
        added = -_gap_of_sigmoids(bounds, labels, network)[:, None].to(dtype).expand_as(added)
    return rows, added, _own(labels, size)


def _gap_of_sigmoids(bounds: Bounds | None, labels: Tensor, network: Network) -> Tensor:
    r"""Return by how much z_y must exceed z_j for the sigmoid of z_y to be the larger one, (n,).

    For a gap m the ratio of the two falls as z_y rises, so that it is enough to ask at the upper bound u of z_y for
    :math:`s(u - m) < s(u) (1 - t)`, where t is what tells two numbers apart: :math:`m > u - s^{-1}(s(u) (1 - t))`.
    """
    if bounds is None:
        return torch.full((len(labels),), torch.inf, dtype=torch.float64, device=labels.device)
    low, high = (side.gather(1, labels[:, None])[:, 0].double() for side in bounds.output())
    share = TELLS * network.rounding.network
    rest = torch.sigmoid(-high) + torch.sigmoid(high) * share  # 1 - s(u) (1 - t)
    gap = high - (torch.nn.functional.logsigmoid(high) + math.log1p(-share) - rest.log()) + share
    return torch.where((low > DENORMAL) & gap.isfinite(), gap, torch.inf)


def _branched(bounds: Bounds, y: Tensor, tolerance: float | None, lower: Tensor, parts: int) -> Tensor:
    """Return tighter bounds for the samples that are nearly certified, the loosest class of each first."""
    network = bounds.network
    if bounds.intervals_only or sum(math.prod(node.shape) for node in network.nodes) > LARGEST:
        return lower
    rows, constant, _ = margin_rows(network, y, tolerance, bounds)
    clean = Bounds.intervals(network, bounds.inputs.x, bounds.inputs.x).output()[0]
    margin = (rows * clean[:, None]).sum(dim=2) + constant
    near = (lower > -NEAR * margin.clamp_min(0)).all(dim=1) & ~(lower > 0).all(dim=1)
    lower = lower.clone()
    for i in near.nonzero()[:, 0].tolist():
        here, left = torch.tensor([i], device=lower.device), parts
        one = bounds.take(here)
        tighten(one, most=TIGHTEN)
        lower[here] = torch.maximum(lower[here], margins(one, y[here], tolerance))
        for j in torch.argsort(lower[i]).tolist():
            if left <= 0 or bool(lower[i, j] > 0):
                break
            found = branch(one, rows[i, j], float(constant[i, j]), most=left)
            lower[i, j] = max(float(lower[i, j]), found.lower)
            left -= found.parts
            bounds.rows += round(found.passes * lower.shape[1])
            if not found.certified:
                break
        bounds.rows += one.rows
    return lower


def _own(labels: Tensor, classes: int) -> Tensor:
    return torch.nn.functional.one_hot(labels, classes).bool()
