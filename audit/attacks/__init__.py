"""Attacks: one file each, on the base class that owns box, radius, survivors, the re-check and the count of passes."""

from audit.attacks.apgd import APGD
from audit.attacks.base import Attack, AttackOutput, MinimumNormAttack, verify
from audit.attacks.ddn import DDN
from audit.attacks.fab import FAB
from audit.attacks.fgsm import FGSM
from audit.attacks.fmn import FMN
from audit.attacks.geometry import ThreatModel
from audit.attacks.hop_skip_jump import HopSkipJump
from audit.attacks.noise import UniformNoise
from audit.attacks.pgd import PGD
from audit.attacks.sigma_zero import SigmaZero
from audit.attacks.sparse_search import SparseSearch
from audit.attacks.square import Square
from audit.attacks.tabu import Tabu

ATTACKS: dict[str, type[Attack]] = {
    attack.name: attack
    for attack in (PGD, FGSM, APGD, FAB, Square, UniformNoise, DDN, FMN, SigmaZero, Tabu, HopSkipJump, SparseSearch)
}

__all__ = [
    "APGD",
    "ATTACKS",
    "DDN",
    "FAB",
    "FGSM",
    "FMN",
    "PGD",
    "Attack",
    "AttackOutput",
    "HopSkipJump",
    "MinimumNormAttack",
    "SigmaZero",
    "SparseSearch",
    "Square",
    "Tabu",
    "ThreatModel",
    "UniformNoise",
    "registry",
    "verify",
]


def registry() -> dict[str, type[Attack]]:
    """Return all attacks by name: those of this package, then those of the entry-point group ``audit.attacks``."""
    from importlib.metadata import entry_points

    third_party = {point.name: point.load() for point in entry_points(group="audit.attacks")}
    return {**third_party, **ATTACKS}
