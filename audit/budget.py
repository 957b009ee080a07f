"""The wall clock that a run may take (``--budget``), and what is said of the work that it cuts off.

A deadline holds for all that runs inside `until`, however deep: whatever takes long calls `check_deadline` now and then.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from audit.errors import BudgetSpent

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


@contextmanager
def until(deadline: float | None) -> Iterator[None]:
    """Let `check_deadline` raise once ``time.monotonic()`` reaches `deadline`; never where None."""
    token = _deadline.set(deadline)
    try:
        yield
    finally:
        _deadline.reset(token)


def check_deadline() -> None:
    """Raise `BudgetSpent` where the deadline has passed."""
    deadline = _deadline.get()
    if deadline is not None and time.monotonic() >= deadline:
        raise BudgetSpent


def seconds_left() -> float:
    """Return the seconds until the deadline, infinite where there is none: for solvers that take a limit of their own."""
    deadline = _deadline.get()
    return float("inf") if deadline is None else max(0.0, deadline - time.monotonic())


@dataclass
class Budget:
    """How long a run may take, from when its network and data are loaded.

    Cut are jobs, passes through the network, and the training of detectors. What goes on past it: the statistics of conclusions
    that need no pass, and a single fit of a detector that another library makes.

    Attributes
    ----------
    seconds
        None where there is no budget.
    started
        On ``time.monotonic()``, as `deadline`.
    kept
        Whether finished jobs are stored, so that the same command goes on with them.
    stored
        Jobs that this run finished and stored so far.
    """

    seconds: float | None
    started: float
    kept: bool
    stored: int = 0

    @property
    def deadline(self) -> float | None:
        """When it is spent; None where there is none."""
        return None if self.seconds is None else self.started + self.seconds

    def reason(self, what: str) -> str:
        """Say that it ran out, `what` was done until then, and how to go on."""
        return f"the budget of {span(self.seconds or 0.0)} ran out: {what}; {self._next()}"

    def _next(self) -> str:
        if not self.kept:
            return "nothing is stored without an output folder: give one, or a larger budget"
        if self.stored:
            return "the same command goes on where it stopped"
        return "no job was finished in it, so that the same command would stop here again: give a larger budget"


def span(seconds: float) -> str:
    """Return a time in words: ``10 m``, ``90 s``, ``1.5 h``."""
    for size, unit in ((3600, "h"), (60, "m")):
        if seconds >= size and seconds * 4 % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:.0f} s" if seconds >= 100 else f"{seconds:.3g} s"
