"""Attacks: one file each, on the base class that owns box, radius, survivors, the re-check and the count of passes."""

from audit.attacks.base import Attack, AttackOutput, MinimumNormAttack, verify
from audit.attacks.fgsm import FGSM
from audit.attacks.geometry import ThreatModel
from audit.attacks.noise import UniformNoise
from audit.attacks.pgd import PGD
from audit.attacks.square import Square

ATTACKS: dict[str, type[Attack]] = {attack.name: attack for attack in (PGD, FGSM, Square, UniformNoise)}

__all__ = [
    "ATTACKS",
    "FGSM",
    "PGD",
    "Attack",
    "AttackOutput",
    "MinimumNormAttack",
    "Square",
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
