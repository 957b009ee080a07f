"""What the evidence of the robustness check calls for: mended gradients, decisions alone, examples made on a surrogate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from audit.attacks.base import Attack
from audit.attacks.hop_skip_jump import HopSkipJump
from audit.attacks.pgd import PGD
from audit.attacks.straight_through import approximated
from audit.attacks.transfer import Transfer
from audit.checks import robustness_norms
from audit.checks.base import Block, spread_positions
from audit.checks.robustness_evidence import masked
from audit.checks.robustness_random import as_attacked
from audit.checks.robustness_state import DECIDED, MENDED, TRANSFER, TRANSFERRED, Attacked
from audit.model.wrapper import Model

MENDED_STEPS = {"quick": 20, "standard": 50, "thorough": 100, "exhaustive": 200}
# Forwards a sample of the attack that sees decisions alone, which runs only where gradients are masked and the rest failed.
DECISIONS = {"quick": 300, "standard": 1000, "thorough": 3000, "exhaustive": 10_000}
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


@contextmanager
def asked(one: Attacked, block: Block, part: str) -> Iterator[Model]:
    """Yield the Model that a stage asks: the mean over draws of a random network, and with its gradient mended for `MENDED`."""
    if part != MENDED or not len(block.ids) or not masked(one, block.earlier):
        yield as_attacked(one, block, part)
        return
    with approximated(one.task.model, block.x):
        yield as_attacked(one, block, part)
