"""AutoAttack (Croce & Hein 2020): its four attacks and budgets, in turn, so that figures compare with RobustBench's."""

from __future__ import annotations

import torch
from torch import Tensor

from audit.attacks.apgd import APGD
from audit.attacks.base import Attack, Candidates, output_of
from audit.attacks.fab import FAB
from audit.attacks.geometry import Ball, Norm
from audit.attacks.goal import Goal
from audit.attacks.square import Square
from audit.model.wrapper import Model

STEPS, TARGETS, QUERIES = 100, 9, 5000
SCHEDULE = 10_000  # queries that the windows of Square shrink over


def autoattack(
    norm: Norm = "linf", eps: float = 8 / 255, *, classes: int | None = None, seed: int = 0
) -> list[tuple[str, Attack]]:
    """Return AutoAttack's attacks by name in its order, each to be run on the samples that the ones before left standing.

    Croce & Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
    section 6, as its authors' code has it in version ``standard``:

    - ``apgd-ce``: APGD on cross-entropy, 100 steps, one random start (L1: 5);
    - ``apgd-t``: APGD on the targeted DLR loss, 100 steps towards each of 9 classes (L1: 5);
    - ``fab-t``: FAB, 100 steps towards each of 9 classes;
    - ``square``: Square Attack, 5,000 queries, one start. Not in L1, where the Square of this package has no form yet.

    Targets are the classes that come closest on the clean input; as many as there are where fewer. Two things differ from the
    authors' code: losses keep their gradient where float32 would lose it, and DLR its value with fewer than four classes (see
    `Goal.loss`); and a broken sample leaves its batch at once, and FAB makes one forward a step (see `FAB`), so that it costs
    fewer passes.

    Parameters
    ----------
    norm, eps, seed
        See `Attack`.
    classes
        Number of classes, which bounds the number of targets; that of the network's outputs where None.
    """
    few = norm == "l1"
    most = TARGETS if classes is None else min(TARGETS, max(classes - 1, 1))
    attacks: list[tuple[str, Attack]] = [
        ("apgd-ce", APGD(norm, eps, loss="ce", steps=STEPS, restarts=5 if few else 1, seed=seed)),
        ("apgd-t", APGD(norm, eps, loss="dlr", steps=STEPS, targets=min(most, 5) if few else most, seed=seed)),
        ("fab-t", FAB(norm, eps, steps=STEPS, targets=most, until_within=True, seed=seed)),
    ]
    return attacks if few else [*attacks, ("square", SlowSquare(norm, eps, queries=QUERIES, seed=seed))]


class SlowSquare(Square):
    """Square Attack whose windows shrink as if it had 10,000 queries, as AutoAttack's do: its budget ends halfway."""

    def _share(self, query: int, queries: int) -> float:
        return super()._share(query, max(queries, SCHEDULE))


class AutoAttack(Attack):
    """AutoAttack's attacks in turn, each on what the ones before left standing; see `autoattack`.

    What one attack claims is confirmed in a fresh forward before the sample is spared the next attack.

    Parameters
    ----------
    norm, eps, seed
        See `Attack`.
    """

    name = "autoattack"
    norms = ("linf", "l2", "l1")

    def __init__(self, norm: Norm = "linf", eps: float = 8 / 255, *, seed: int = 0) -> None:
        super().__init__(norm, eps, seed=seed)
        self.attacks = [attack for _, attack in autoattack(norm, eps, seed=seed)]

    def run(self, model: Model, x: Tensor, goal: Goal, ball: Ball, ids: Tensor) -> Candidates:
        """Attack a batch; see `Attack.run`."""
        found = Candidates.start(x)
        for attack in self.attacks:
            rows = (~found.broken).nonzero()[:, 0]
            if len(rows) == 0:
                break
            standing, aim = x[rows], goal.take(rows)
            seen = attack.run(model, standing, aim, attack.searched(ball, standing), ids[rows])
            held = seen.broken & ball.allows(standing, seen.x_adv)
            at = held.nonzero()[:, 0]
            if len(at):
                held[at] = aim.take(at).broken(output_of(model, seen.x_adv[at]))
            found.x_adv[rows] = torch.where(held.view(-1, *[1] * (x.ndim - 1)), seen.x_adv, found.x_adv[rows])
            found.broken[rows] = held
            first = found.loss_start[rows]
            found.loss_start[rows] = torch.where(first.isnan(), seen.loss_start, first)
            found.loss_end[rows] = torch.fmax(found.loss_end[rows], seen.loss_end)
            if attack.name != Square.name:
                found.grad_zero[rows] &= seen.grad_zero
                found.grad_nan[rows] |= seen.grad_nan
        return found
