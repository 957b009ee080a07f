"""What the evidence of the robustness check calls for: mended gradients, decisions alone, examples made on a surrogate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from audit.attacks.base import Attack
from audit.attacks.hop_skip_jump import HopSkipJump
from audit.attacks.noise import UniformNoise
from audit.attacks.pgd import PGD
from audit.attacks.straight_through import approximated
from audit.attacks.transfer import Transfer, fit_surrogate, refitted, weights
from audit.checks import robustness_norms
from audit.checks.base import Arrays, Block, Found, Stage, spread_positions
from audit.checks.robustness_evidence import masked, suspicious
from audit.checks.robustness_random import as_attacked
from audit.checks.robustness_state import DECIDED, MENDED, SURROGATE, TRANSFER, TRANSFERRED, Attacked
from audit.model.wrapper import Model

MENDED_STEPS = {"quick": 20, "standard": 50, "thorough": 100, "exhaustive": 200}
# Forwards a sample of the attack that sees decisions alone, which runs only where gradients are masked and the rest failed.
DECISIONS = {"quick": 300, "standard": 1000, "thorough": 3000, "exhaustive": 10_000}
LEARNT_FROM = 2000  # inputs that a surrogate learns from
STARTS = 256  # inputs from which decisions are followed


def decided(one: Attacked) -> HopSkipJump | None:
    """Return the attack that sees decisions alone; None for a norm that it does not know."""
    if one.norm not in HopSkipJump.norms:
        return None
    data = one.task.data
    part = "test" if data.reference is None else "reference"
    starts = data.tensor(spread_positions(len(one.task.part(part)), STARTS), part)
    queries = DECISIONS[one.profile]
    return HopSkipJump(one.norm, one.threat.eps, queries=queries, starts=one.task.model.to_input(starts), seed=one.task.seed)


def through(one: Attacked) -> Attack:
    """Return the attack that runs on mended gradients."""
    if one.norm not in PGD.norms:
        return robustness_norms.longer(one)
    steps, seed = MENDED_STEPS[one.profile], one.task.seed + 2
    return PGD(one.norm, one.threat.eps, steps=steps, restarts=2, loss="both", seed=seed)


def transferred(one: Attacked) -> Transfer | None:
    """Return the attack on a surrogate; None for a norm that it does not know."""
    return Transfer(one.norm, one.threat.eps, seed=one.task.seed) if one.norm in Transfer.norms else None


def names(one: Attacked) -> tuple[str, ...]:
    """Return the parts that may run, in their order."""
    parts = ((TRANSFER, transferred), (MENDED, through), (TRANSFERRED, transferred), (DECIDED, decided))
    return tuple(part for part, attack in parts if attack(one) is not None)


def surrogate(one: Attacked, after: tuple[str, ...]) -> Stage:
    """Return the stage that trains a surrogate of the network on reference data, or on test data where there is none."""
    task = one.task
    part = "test" if task.data.reference is None else "reference"

    def job(block: Block) -> Arrays:
        if len(block.ids) < 2:
            return {}
        return weights(fit_surrogate(task.model, block.x, seed=task.seed))

    def select(found: Found) -> NDArray[np.int64]:
        wanted = task.profile != "quick" or suspicious(one, found)
        standing = one.standing(found, one.evaluated()).any()
        return spread_positions(len(task.part(part)), LEARNT_FROM) if wanted and standing else np.arange(0)

    return Stage(
        id=one.id(SURROGATE),
        job=job,
        cost_of=one.id("transfer"),
        part=part,
        select=select,
        after=("predictions.test", *(one.id(other) for other in after)),
        passes=0.1,
        whole=True,
    )


def on_surrogate(one: Attacked) -> Callable[[Attack, Block], Attack]:
    """Return what hands the trained surrogate to the attack; an attack that does nothing where there is none."""

    def prepared(attack: Attack, block: Block) -> Attack:
        rows = one.rows(block.earlier, SURROGATE)
        if rows is None or not rows.arrays:
            return UniformNoise(one.norm, one.threat.eps, draws=0)
        fitted = refitted(one.task.model, tuple(block.x.shape[1:]), rows.arrays)
        return Transfer(one.norm, one.threat.eps, surrogate=fitted, seed=attack.seed)

    return prepared


@contextmanager
def asked(one: Attacked, block: Block, part: str) -> Iterator[Model]:
    """Yield the Model that a stage asks: the mean over draws of a random network, and with its gradient mended for `MENDED`."""
    if part != MENDED or not len(block.ids) or not masked(one, block.earlier):
        yield as_attacked(one, block, part)
        return
    with approximated(one.task.model, block.x):
        yield as_attacked(one, block, part)
