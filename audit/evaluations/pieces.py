"""A piecewise-linear network as sparse linear programs: the best point of a linear region, and the best one of many at once.

Gradient steps end where the gradient turns; a linear program ends at the best vertex of the region whose activation pattern is
that of its starting point. With some units free to switch it is a mixed-integer program over all regions that these units tell
apart, which leaves a local optimum that no gradient leads out of. What a solver returns is a candidate and no more: whoever
calls runs the network on it. Nothing here certifies.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import Bounds as Box
from scipy.optimize import LinearConstraint, milp

from audit.certificates.activations import Kink
from audit.certificates.network import Network, NoBound
from audit.certificates.operations import Affine

Floats = NDArray[np.float64]
Bits = NDArray[np.bool_]

ROWS = 256  # of a matrix that are taken from the network at once
MOST_NONZERO = 20_000_000  # entries of all matrices together: about 240 MB


@dataclass(frozen=True)
class Sheet:
    """One value as an affine function of variables: the input (variable 0) and the outputs of kinks (1, 2, …)."""

    matrices: dict[int, sparse.csr_matrix]
    constant: Floats

    def of(self, values: Sequence[Floats]) -> Floats:
        """Return the value, flat, where the variables have these values."""
        total = self.constant.copy()
        for variable, matrix in self.matrices.items():
            total += matrix @ values[variable]
        return total

    def rows(self, chosen: NDArray[np.int64], sizes: Sequence[int]) -> sparse.csr_matrix:
        """Return the matrix of some rows over all variables side by side."""
        blocks = [
            self.matrices[v][chosen] if v in self.matrices else sparse.csr_matrix((len(chosen), size))
            for v, size in enumerate(sizes)
        ]
        beside: sparse.csr_matrix = sparse.hstack(blocks, format="csr")
        return beside


@dataclass(frozen=True)
class Bent:
    """One kinked layer: what goes in, and the slopes and corner of each unit, all flat."""

    node: int
    sheet: Sheet
    left: Floats
    right: Floats
    at: float
    value: float

    def out(self, z: Floats) -> Floats:
        """Return what comes out."""
        return self.value + np.where(z > self.at, self.right, self.left) * (z - self.at)


@dataclass(frozen=True)
class Pieces:
    """A network of affine operations and kinks.

    Attributes
    ----------
    shape
        Of one input.
    kinks
        In order; kink k is variable k + 1.
    output
        The logits.
    """

    shape: tuple[int, ...]
    kinks: tuple[Bent, ...]
    output: Sheet
    single: bool

    @classmethod
    def of(cls, network: Network) -> Pieces:
        """Take a network apart.

        Raises
        ------
        NoBound
            It holds an operation that is neither affine nor a kink, or its matrices would be too large.
        """
        variables = {0: 0}
        bent: list[int] = []
        for number, node in enumerate(network.nodes):
            if isinstance(node.operation, Kink):
                bent.append(number)
                variables[number] = len(bent)
            elif node.operation is not None and not isinstance(node.operation, Affine):
                raise NoBound(f"the layer {node.layer} is not piecewise linear as a sum of kinks, so it has no linear program")
        room = [MOST_NONZERO]
        kinks = []
        for number in bent:
            node = network.nodes[number]
            assert isinstance(node.operation, Kink)  # noqa: S101  (chosen above)
            sheet = _sheet(network, node.inputs[0], variables, room)
            left, right = (_flat(side, node.shape) for side in (node.operation.left, node.operation.right))
            kinks.append(Bent(number, sheet, left, right, node.operation.at, node.operation.value))
        output = _sheet(network, len(network.nodes) - 1, variables, room)
        return cls(network.nodes[0].shape, tuple(kinks), output, network.single)

    @property
    def sizes(self) -> list[int]:
        """Number of entries of each variable."""
        return [int(np.prod(self.shape)), *(len(kink.left) for kink in self.kinks)]

    def run(self, x: Floats) -> tuple[list[Floats], list[Floats], Floats]:
        """Return the inputs of all kinks, the values of all variables, and the logits, for one flat input."""
        values, inside = [x], list[Floats]()
        for kink in self.kinks:
            inside.append(kink.sheet.of(values))
            values.append(kink.out(inside[-1]))
        return inside, values, self.output.of(values)

    def gain(self, target: int, label: int) -> tuple[Floats, float]:
        """Return the coefficients over all variables, and the constant, of the target's logit less the label's."""
        if self.single:
            sign = float(target) - float(label)
            row, constant = self.output.rows(np.asarray([0]), self.sizes) * sign, self.output.constant[0] * sign
        else:
            both = self.output.rows(np.asarray([target, label]), self.sizes)
            row, constant = both[0] - both[1], self.output.constant[target] - self.output.constant[label]
        return np.asarray(row.todense()).ravel(), float(constant)


@dataclass(frozen=True)
class Reach:
    """What is known of one sample's box: the box itself, and bounds on the input of each kink, all flat."""

    low: Floats
    high: Floats
    kinks: tuple[tuple[Floats, Floats], ...]


def climb(
    pieces: Pieces, reach: Reach, x: Floats, target: int, label: int, *, free: int = 0, seconds: float = 60.0
) -> Floats | None:
    """Return the best point of the box for a target, among those that differ in the pattern of `free` units at most.

    Parameters
    ----------
    x
        Point whose activation pattern is kept, flat.
    free
        Units that may switch: those whose inputs are nearest to their corner, by the width of what they can be.
    seconds
        Limit of the solver; a mixed-integer program that reaches it returns its best point.

    Returns
    -------
    array or None
        Flat input in the box; None where the solver found none.
    """
    inside, _, _ = pieces.run(x)
    loose = _loose(pieces, reach, inside, free)
    program = _Program(pieces, reach, inside, loose)
    cost, _ = pieces.gain(target, label)
    with _quiet():
        found = milp(
            np.concatenate([-cost, np.zeros(program.binaries)]),
            constraints=LinearConstraint(program.matrix, program.lower, program.upper),
            integrality=np.concatenate([np.zeros(len(cost)), np.ones(program.binaries)]),
            bounds=Box(program.low, program.high),
            options={"time_limit": seconds, "disp": False},
        )
    if found.x is None:
        return None
    return np.clip(found.x[: len(x)], reach.low, reach.high)


def _loose(pieces: Pieces, reach: Reach, inside: Sequence[Floats], free: int) -> list[Bits]:
    """Choose the units that may switch."""
    scores = []
    for kink, z, (low, high) in zip(pieces.kinks, inside, reach.kinks, strict=True):
        open_ = (low < kink.at) & (high > kink.at)
        scores.append(np.where(open_, np.abs(z - kink.at) / np.maximum(high - low, 1e-12), np.inf))
    all_ = np.concatenate(scores) if scores else np.zeros(0)
    free = min(free, int(np.isfinite(all_).sum()))
    chosen = np.zeros(len(all_), dtype=bool)
    if free:
        chosen[np.argsort(all_, kind="stable")[:free]] = True
    return np.split(chosen, np.cumsum([len(s) for s in scores])[:-1]) if scores else []


class _Program:
    """Rows and limits of the program over all variables, then one binary for each loose unit."""

    def __init__(self, pieces: Pieces, reach: Reach, inside: Sequence[Floats], loose: Sequence[Bits]) -> None:
        self.sizes = pieces.sizes
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes)])
        self.total = int(self.offsets[-1])
        self.binaries = int(sum(int(bits.sum()) for bits in loose))
        self.low, self.high = np.full(self.total, -np.inf), np.full(self.total, np.inf)
        self.low[: self.sizes[0]], self.high[: self.sizes[0]] = reach.low, reach.high
        self._rows: list[sparse.csr_matrix] = []
        self._limits: list[tuple[Floats, Floats]] = []
        first = 0
        for k, (kink, z, bits, box) in enumerate(zip(pieces.kinks, inside, loose, reach.kinks, strict=True)):
            self._fixed(k, kink, z, bits, box)
            self._free(k, kink, np.flatnonzero(bits), box, first)
            first += int(bits.sum())
        self.matrix = (
            sparse.vstack(self._rows, format="csr") if self._rows else sparse.csr_matrix((0, self.total + self.binaries))
        )
        self.lower = np.concatenate([low for low, _ in self._limits]) if self._limits else np.zeros(0)
        self.upper = np.concatenate([high for _, high in self._limits]) if self._limits else np.zeros(0)
        self.low = np.concatenate([self.low, np.zeros(self.binaries)])
        self.high = np.concatenate([self.high, np.ones(self.binaries)])

    def _add(self, rows: sparse.csr_matrix, low: Floats, high: Floats, binary: sparse.csr_matrix | None = None) -> None:
        beside = sparse.csr_matrix((rows.shape[0], self.binaries)) if binary is None else binary
        self._rows.append(sparse.hstack([rows, beside], format="csr"))
        self._limits.append((low, high))

    def _own(self, k: int, units: NDArray[np.int64]) -> sparse.csr_matrix:
        """Return rows that pick the outputs of some units of kink k."""
        at = (np.arange(len(units)), self.offsets[k + 1] + units)
        return sparse.csr_matrix((np.ones(len(units)), at), shape=(len(units), self.total))

    def _fixed(self, k: int, kink: Bent, z: Floats, bits: Bits, box: tuple[Floats, Floats]) -> None:
        """Units that stay on their side: the output follows one line, and the input stays on that side of the corner."""
        up = z > kink.at
        slope = np.where(up, kink.right, kink.left)
        flat = (slope == 0) & ~bits
        own = slice(self.offsets[k + 1], self.offsets[k + 2])
        self.low[own] = np.where(flat, kink.value, -np.inf)
        self.high[own] = np.where(flat, kink.value, np.inf)
        following = np.flatnonzero(~flat & ~bits)
        if len(following):
            s = sparse.diags(slope[following])
            rows = self._own(k, following) - s @ kink.sheet.rows(following, self.sizes)
            ends = kink.value + slope[following] * (kink.sheet.constant[following] - kink.at)
            self._add(rows, ends, ends)
        open_ = np.flatnonzero((box[0] < kink.at) & (box[1] > kink.at) & ~bits)
        if len(open_):
            side = kink.at - kink.sheet.constant[open_]
            rising = up[open_]
            self._add(kink.sheet.rows(open_, self.sizes), np.where(rising, side, -np.inf), np.where(rising, np.inf, side))

    def _free(self, k: int, kink: Bent, units: NDArray[np.int64], box: tuple[Floats, Floats], first: int) -> None:
        """Units that may switch, each with a binary that is 1 above its corner."""
        if not len(units):
            return
        left, right, constant = kink.left[units], kink.right[units], kink.sheet.constant[units]
        low, high = box[0][units], box[1][units]
        # Of a kink that opens downward all is mirrored.
        sign = np.where(right >= left, 1.0, -1.0)
        own, inputs = self._own(k, units), kink.sheet.rows(units, self.sizes)
        turn = sparse.diags(sign)
        for slope, far, above in ((left, high, True), (right, low, False)):
            rows = turn @ (own - sparse.diags(slope) @ inputs)
            level = sign * (kink.value + slope * (constant - kink.at))
            self._add(rows, level, np.full(len(units), np.inf))  # the output is at least either line
            # ... and at most the one of its own side; the other is let go as far as the bounds on the input ask for.
            slack = np.abs(right - left) * np.abs(far - kink.at)
            places = (np.arange(len(units)), first + np.arange(len(units)))
            weight = -slack if above else slack
            binary = sparse.csr_matrix((weight, places), shape=(len(units), self.binaries))
            self._add(rows, np.full(len(units), -np.inf), level + (0.0 if above else slack), binary)


def _sheet(network: Network, number: int, variables: dict[int, int], room: list[int]) -> Sheet:
    """Return value `number` as an affine function of variables, by going back through the affine operations before it."""
    size = int(np.prod(network.nodes[number].shape))
    matrices: dict[int, list[sparse.csr_matrix]] = {}
    constant = np.zeros(size)
    for start in range(0, size, ROWS):
        count = min(ROWS, size - start)
        rows = torch.zeros((count, size), dtype=torch.float64)
        rows[torch.arange(count), torch.arange(start, start + count)] = 1.0
        found, constant[start : start + count] = _back(
            network, number, rows.view(count, *network.nodes[number].shape), variables
        )
        for variable in variables.values():
            if variable in found:
                part = sparse.csr_matrix(found[variable].flatten(1).numpy())
                room[0] -= part.nnz
                matrices.setdefault(variable, []).append(part)
        if room[0] < 0:
            raise NoBound("the network is too large for linear programs")
    return Sheet({v: sparse.vstack(parts, format="csr") for v, parts in matrices.items()}, constant)


def _back(
    network: Network, number: int, rows: torch.Tensor, variables: dict[int, int]
) -> tuple[dict[int, torch.Tensor], Floats]:
    waiting = {number: rows}
    found: dict[int, torch.Tensor] = {}
    constant = torch.zeros(len(rows), dtype=torch.float64)
    while waiting:
        at = max(waiting)
        coefficients = waiting.pop(at)
        if at in variables:
            found[variables[at]] = coefficients
            continue
        node = network.nodes[at]
        operation = node.operation
        assert isinstance(operation, Affine)  # noqa: S101  (Pieces.of refuses all others)
        added = operation.constant()
        if added is not None:
            constant += (coefficients * added.cpu().double()).flatten(1).sum(dim=1)
        shapes = [network.nodes[parent].shape for parent in node.inputs]
        for parent, part in zip(node.inputs, operation.back(coefficients, shapes), strict=True):
            waiting[parent] = waiting[parent] + part if parent in waiting else part
    return found, constant.numpy()


def _flat(side: torch.Tensor | float, shape: tuple[int, ...]) -> Floats:
    spread: Floats = torch.as_tensor(side, dtype=torch.float64).expand(shape).reshape(-1).cpu().numpy()
    return spread


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the solver prints by itself off standard output, which belongs to the program that called."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
