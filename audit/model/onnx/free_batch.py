"""Sets free the batch that a file holds fixed in its nodes: in the shapes of Reshape and Expand, in constants of one row.

Which number of a shape is the batch is found by running the shapes twice, for the batch of the file and for a larger one: where
the data grew along an axis and the shape that the file gives did not, the number at that place in memory's order grows, too.
What is found is a guess: whoever uses it compares the outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from audit.model.graph import Ref

_RECURRENT = ("LSTM", "GRU", "RNN")
_PLACES = ("Reshape", "Expand", "Concat", *_RECURRENT)


@dataclass(frozen=True)
class _Seen:
    """What a node read and made for the batch of the file."""

    shape: tuple[int, ...]
    target: tuple[int, ...]
    made: tuple[int, ...]


class FreeBatch:
    """The places in the nodes where a batch may be fixed, and the axis of each that now follows the real one.

    Attributes
    ----------
    fixed
        Samples in one batch of the file; None where it leaves them free.
    following
        Axis that grows with the batch, by place.
    """

    def __init__(self, fixed: int | None) -> None:
        self.fixed = fixed
        self.following: Mapping[int, int] = {}
        self.places = 0
        self._seen: dict[int, _Seen] | None = None
        self._learned: dict[int, int] | None = None

    def place(self, op: str, arguments: Sequence[Any]) -> int | None:
        """Return the number of a place where a node may hold a fixed batch; None where it holds none."""
        if op not in _PLACES or not arguments or (op == "Reshape" and not isinstance(arguments[0], Ref)):
            return None
        self.places += 1
        return self.places - 1

    @contextmanager
    def following_at(self, axes: Mapping[int, int]) -> Iterator[None]:
        """Let these places follow the batch."""
        before, self.following = self.following, axes
        try:
            yield
        finally:
            self.following = before

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Note what the places read and make: in a run on the batch of the file."""
        self._seen = {}
        yield

    @contextmanager
    def learning(self) -> Iterator[dict[int, int]]:
        """Find the axes that grow: in a run on a larger batch, after one that was looked at."""
        self._learned = {}
        try:
            yield self._learned
        finally:
            self._seen = self._learned = None

    def note(self, place: int, op: str, arguments: Sequence[Any], made: Any) -> None:
        """Note what a node read and made, while somebody looks."""
        if self._seen is None or self._learned is not None or op not in ("Reshape", "Expand"):
            return
        target = _numbers(arguments[1])
        if target is not None and isinstance(made, Tensor):
            self._seen[place] = _Seen(tuple(arguments[0].shape), target, tuple(made.shape))

    def free(self, place: int, op: str, arguments: list[Any], samples: int) -> list[Any]:
        """Return a node's inputs with the batch of this place set free."""
        if op == "Concat":
            return self._rows(place, arguments, samples)
        if op in _RECURRENT:
            return self._states(place, arguments, samples)
        target = _numbers(arguments[1])
        if target is None:
            return arguments
        if self._learned is not None:
            axis = self._axis(place, op, tuple(arguments[0].shape), target, samples)
            if axis is not None:
                self._learned[place] = axis
        axis = self.following.get(place) if self._learned is None else self._learned.get(place)
        if axis is None or axis >= len(target) or target[axis] < 1:
            return arguments
        grown = [*target[:axis], target[axis] // (self.fixed or 1) * samples, *target[axis + 1 :]]
        return [arguments[0], torch.tensor(grown, dtype=torch.int64), *arguments[2:]]

    def _axis(self, place: int, op: str, shape: tuple[int, ...], target: tuple[int, ...], samples: int) -> int | None:
        """Return the place in the target that grows with the batch; None where the target needs no change."""
        seen, batch = (self._seen or {}).get(place), self.fixed or 1
        if seen is None or seen.target != target or len(shape) != len(seen.shape):
            return None
        if op == "Expand":
            # One row for each sample, whether it is there already or is made from a constant.
            return 0 if target[0] == batch and (not shape or len(shape) < len(target) or shape[0] in (1, samples)) else None
        grown = [axis for axis, (was, now) in enumerate(zip(seen.shape, shape, strict=True)) if was != now]
        if len(grown) != 1 or shape[grown[0]] * batch != seen.shape[grown[0]] * samples:
            return None
        found = _following_axis(seen, grown[0], batch)
        return found if found is not None and target[found] > 0 and target[found] % batch == 0 else None

    def _rows(self, place: int, arguments: list[Any], samples: int) -> list[Any]:
        parts = [part for part in arguments if isinstance(part, Tensor)]
        lengths = {len(part) if part.ndim > 1 else 0 for part in parts}
        if self._follows(place, lengths == {1, samples}) and len(parts) == len(arguments):
            return [part.expand(samples, *part.shape[1:]) if len(part) == 1 else part for part in parts]
        return arguments

    def _states(self, place: int, arguments: list[Any], samples: int) -> list[Any]:
        """Give each sample the initial state of one; the batch is the second axis there."""
        x, states = arguments[0], [part for part in arguments[5:7] if isinstance(part, Tensor)]
        could = x.ndim == 3 and x.shape[1] == samples and bool(states) and all(s.ndim == 3 and s.shape[1] == 1 for s in states)
        if not self._follows(place, could):
            return arguments
        wide = [part.expand(-1, samples, -1) if isinstance(part, Tensor) else part for part in arguments[5:7]]
        return [*arguments[:5], *wide, *arguments[7:]]

    def _follows(self, place: int, could: bool) -> bool:
        if self._learned is not None and could:
            self._learned[place] = 0
        return place in (self.following if self._learned is None else self._learned)


def _following_axis(seen: _Seen, axis: int, batch: int) -> int | None:
    """Return the axis of a Reshape's result that holds the batch, which is the outermost part of this axis of the data.

    One of its own is looked for first; else it joins the axis that begins there, or where axes are merged the one that ends.
    """
    before = math.prod(seen.shape[:axis])
    ends = [math.prod(seen.made[: k + 1]) for k in range(len(seen.made))]
    begins = [1, *ends[:-1]]
    there = (before, before * seen.shape[axis] // batch)
    own = [k for k, length in enumerate(seen.made) if length == batch and begins[k] in there]
    if own:
        return own[0]
    joined = [k for k, begin in enumerate(begins) if begin == before]
    merged = [k for k, end in enumerate(ends) if end == before]
    if len(seen.made) < len(seen.shape) and merged:
        return merged[0]
    return joined[0] if joined else next((k for k, end in enumerate(ends) if end % max(1, before) == 0 and end > before), None)


def _numbers(target: Any) -> tuple[int, ...] | None:
    if not isinstance(target, Tensor) or target.device.type != "cpu" or target.ndim != 1 or not 0 < len(target) <= 16:
        return None
    return tuple(int(number) for number in target.tolist())
