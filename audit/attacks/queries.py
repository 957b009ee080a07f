"""Base of random searches that ask for outputs alone, one forward a query."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from audit.attacks.base import Attack, Candidates
from audit.attacks.geometry import Ball, Norm
from audit.attacks.goal import Goal
from audit.errors import UsageError
from audit.model.wrapper import Model


class QueryAttack(Attack):
    """Base of attacks with a budget of queries.

    Parameters
    ----------
    norm, eps, seed
        See `Attack`.
    queries
        Forwards a sample, at least 2; for regression half of them up and half down.
    """

    def __init__(self, norm: Norm, eps: float, *, queries: int, seed: int = 0) -> None:
        super().__init__(norm, eps, seed=seed)
        if queries < 2:
            raise UsageError(f"queries must be at least 2, got {queries}")
        self.queries = queries

    def run(self, model: Model, x: Tensor, goal: Goal, ball: Ball, ids: Tensor) -> Candidates:
        """Attack a batch; see `Attack.run`. The candidate of an unbroken sample is the best point of its last search."""
        found = Candidates.start(x)
        found.grad_zero.fill_(False)
        if goal.task == "regression":
            self._search(model, x, goal, ball, ids, found, 1.0, (self.queries + 1) // 2)
            self._search(model, x, goal, ball, ids, found, -1.0, self.queries // 2)
        else:
            self._search(model, x, goal, ball, ids, found, 1.0, self.queries)
        return found

    @abstractmethod
    def _search(
        self, model: Model, x: Tensor, goal: Goal, ball: Ball, ids: Tensor, found: Candidates, direction: float, queries: int
    ) -> None:
        """Search from one start and note in `found` what comes of it."""
