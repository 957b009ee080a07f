"""Tabu search for the fewest inputs to change: to the end of the box and back, to and fro across the boundary."""

from __future__ import annotations

import torch
from torch import Tensor

from audit.attacks.base import Candidates, MinimumNormAttack
from audit.attacks.boundary import Run, Search, Sight, runs_of
from audit.attacks.geometry import Ball, Norm, per_sample
from audit.attacks.goal import Goal
from audit.data.noise import hashed_bits
from audit.errors import UsageError
from audit.model.wrapper import Model

RUN = 25  # looks of a run; at 100 looks 4 runs did as well as 6 or better on three networks, and better than 2
TENURE = (2, 6)  # looks for which an input that moved stays: at least, and below
BOLD = 1.3  # times the gain that is lacking; 0.7 to 1.5 did about as well
SHARE = 0.5  # of the changed inputs, the most that move at once; 0.3 and 0.7 did about as well, 0.1 worse
FIRST = 5  # inputs that the first look at the clean sample may change
FAR = 0.5  # of the width of the box: how far from the input each input of a random start may lie


class Tabu(MinimumNormAttack):
    r"""Tabu search with gradients, for L0.

    A changed input goes to an end of its box: which inputs, and to which end, is a search over a finite set. While a sample is
    not broken, the inputs whose move to the better end raises the margin most, as the gradient has it, are moved; while it is,
    those are put back whose return costs least. An input that moved stays for some looks, so that the search crosses the
    boundary again and again at other places: the "strategic oscillation" of tabu search (Glover 1989, "Tabu Search, Part I").
    The greedy step up alone is the saliency map of Papernot et al. 2016, "The Limitations of Deep Learning in Adversarial
    Settings", for one input. Runs begin at the input and at random places of the box around it, where all inputs are changed:
    the gradient of a network that was trained against attacks leads further from there than from the input.

    Known bias: an example that needs an input inside its box, and not at an end, is found only by chance (`SigmaZero` looks
    there, too).

    Parameters
    ----------
    eps, seed
        See `MinimumNormAttack`.
    steps
        Looks at the network a sample, one forward and one backward each, over all runs.
    restarts
        Runs among which the steps are divided; one for each 25 steps, but at least two, where None.
    first
        Number of the first run: from 1 on (for regression from 2 on) none begins at the input, as another attack's may have.
    """

    name = "tabu"
    norms = ("l0",)

    def __init__(
        self,
        norm: Norm = "l0",
        eps: float | None = None,
        *,
        steps: int = 100,
        restarts: int | None = None,
        first: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(norm, eps, seed=seed)
        if steps < 1 or (restarts is not None and restarts < 1):
            raise UsageError(f"steps and restarts must be at least 1, got {steps} and {restarts}")
        self.steps, self.first = steps, first
        self.restarts = max(2, steps // RUN) if restarts is None else restarts

    def run(self, model: Model, x: Tensor, goal: Goal, ball: Ball, ids: Tensor) -> Candidates:
        """Attack a batch; see `Attack.run`."""
        search = Search(model, x, goal, ball, ids, seed=self.seed, purpose=self.name)
        for run in runs_of(goal, self.steps, self.restarts, self.first):
            search.begin(run)
            self._search(search, run)
        return search.found

    def _search(self, search: Search, run: Run) -> None:
        width = per_sample(search.width, search.low)
        low, high = search.low.maximum(-width).flatten(1), search.high.minimum(width).flatten(1)
        # A table of few columns must not be left with none that may move.
        longest = min(TENURE[1] - TENURE[0], max(low.shape[1] // 2 - TENURE[0], 1))
        stay = hashed_bits(search.ids, run.steps, seed=search.seed, purpose=f"{self.name}.stay", draw=run.number)
        stay = min(TENURE[0], low.shape[1] // 2) + stay.to(low.device) % longest
        free = torch.zeros_like(low, dtype=torch.int64)  # look from which on an input may move
        u = FAR * search.anywhere(run.number) if run.random else torch.zeros_like(search.low)
        for k in range(run.steps):
            seen = search.see(u)
            if k == run.steps - 1:
                return
            g, v, may = seen.gradient.flatten(1), seen.u.flatten(1), free <= k
            end = torch.where(g > 0, high, low)
            there = _rising(seen, g * (end - v), may)
            back = _falling(seen, search.best.size, g * v, may)
            moves = torch.where(seen.hit[:, None], back, there)
            v = torch.where(moves, torch.where(seen.hit[:, None], torch.zeros_like(v), end), v)
            free = torch.where(moves, k + 1 + stay[:, k : k + 1], free)
            u = v.view_as(search.low)


def _rising(seen: Sight, gain: Tensor, may: Tensor) -> Tensor:
    """Choose the inputs to move of samples that are not broken: the best, until they gain more than is lacking, (n, d)."""
    gain, order = gain.masked_fill(~may, 0.0).sort(dim=1, descending=True)
    before = gain.cumsum(dim=1) - gain
    most = (SHARE * seen.size).floor().clamp_min(1.0).where(seen.size > 0, FIRST)
    place = torch.arange(gain.shape[1], device=gain.device)
    few = (before < BOLD * seen.excess.neg()[:, None]) & (place < most[:, None]) | (place == 0)
    return torch.zeros_like(may).scatter_(1, order, few & (gain > 0))


def _falling(seen: Sight, best: Tensor, cost: Tensor, may: Tensor) -> Tensor:
    """Choose the changes to take back of samples that are broken: the cheapest, as long as the excess affords them, (n, d)."""
    cost, order = cost.masked_fill((seen.u.flatten(1) == 0) | ~may, torch.inf).sort(dim=1)
    spent = cost.clamp_min(0.0).cumsum(dim=1)
    # More than half only to come back to as few as are known to do.
    most = (SHARE * seen.size).floor().clamp_min(1.0).maximum(seen.size - best)
    place = torch.arange(cost.shape[1], device=cost.device)
    few = (spent <= seen.excess[:, None]) & (place < most[:, None]) | (place == 0)
    return torch.zeros_like(may).scatter_(1, order, few & cost.isfinite())
