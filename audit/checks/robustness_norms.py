"""What differs between the norms of the robustness check: default radii, and the attacks that test the evaluation."""

from __future__ import annotations

from dataclasses import replace

from audit.attacks.base import Attack
from audit.attacks.fmn import FMN
from audit.attacks.geometry import Norm, ThreatModel
from audit.attacks.pgd import PGD
from audit.attacks.sigma_zero import SigmaZero
from audit.attacks.sparse_search import SparseSearch
from audit.attacks.square import Square
from audit.checks.robustness_state import REST, SQUARE, Attacked
from audit.evaluations.afar import Afar

# Of images whose box is 1 wide: L∞, L2 and L1 as the field has CIFAR-10 (RobustBench; Croce & Hein 2021, "Mind the Box"); L0 is
# a choice of our own.
IMAGES: dict[str, float] = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0, "l0": 10.0}
MOST = 0.1  # of the inputs, L1 and L0: in small pictures the field's radii would change all that there is
ROW = 0.1  # standard deviations of a table's columns; in L0, one column
SPARSE: tuple[Norm, ...] = ("l1", "l0")
LONGER_STEPS = 100


def default_radius(norm: Norm, kind: str, inputs: int, width: float) -> float:
    """Return the radius that is taken where none is stated.

    Parameters
    ----------
    kind
        Of the data: ``table``, or any other.
    inputs
        Numbers in a sample.
    width
        Of the box.
    """
    if kind == "table":
        return 1.0 if norm == "l0" else ROW
    if norm == "l0":
        return float(max(1, min(int(IMAGES[norm]), int(MOST * inputs))))
    if norm == "l1":
        return min(IMAGES[norm], MOST * inputs) * width
    return IMAGES[norm] * width


def longer(one: Attacked) -> Attack:
    """Return an attack by gradient that is longer than a survey, from places of its own."""
    threat, seed = one.threat, one.task.seed + 1
    if threat.norm == "l1":
        return FMN("l1", threat.eps, steps=2 * LONGER_STEPS, restarts=4, first=1, seed=seed)
    if threat.norm == "l0":
        return SigmaZero("l0", threat.eps, steps=2 * LONGER_STEPS, restarts=4, first=1, seed=seed)
    # In L2 the evaluation has runs from outside the ball: a test from inside it alone would be weaker than what it tests.
    kind = Afar if threat.norm == "l2" else PGD
    return kind(threat.norm, threat.eps, steps=LONGER_STEPS, restarts=2, loss="both", seed=seed)


def by_outputs(one: Attacked, queries: int) -> Attack:
    """Return the attack that asks for outputs alone."""
    threat, seed = one.threat, one.task.seed
    if threat.norm in SPARSE:
        # The evaluation has one, too: this one draws other numbers.
        return SparseSearch(threat.norm, threat.eps, queries=queries, seed=seed + 1)
    return Square(threat.norm, threat.eps, queries=queries, seed=seed)


def boundless(one: Attacked) -> tuple[Attack, ThreatModel]:
    """Return an attack that may go anywhere in the box, and its threat model; every norm allows the same there."""
    shape = one.task.data.test.x.shape[1:]
    norm: Norm = "linf" if one.threat.norm in SPARSE else one.threat.norm
    wide = replace(one.threat, norm=norm)
    wide = replace(wide, eps=wide.reach(shape))
    return PGD(norm, wide.eps, steps=LONGER_STEPS, restarts=4, seed=one.task.seed), wide


def called(norm: Norm, part: str) -> str:
    """Return the name of a stage's attack as a reader knows it."""
    names = {SQUARE: "sparse_search.again", REST: "sparse_search.rest"} if norm in SPARSE else {}
    return names.get(part, part)
