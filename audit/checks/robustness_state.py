"""What is known of the attack in one norm between the stages of the robustness check: who stands, who is broken, by what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from audit.attacks.asked import Asked, Source, make_attack
from audit.attacks.base import Attack
from audit.attacks.geometry import SYMBOLS, Norm, ThreatModel
from audit.checks.base import Found, Merged, Task
from audit.evaluations.base import Known, Profile, Round
from audit.model.outputs import right_answers

Bits = NDArray[np.bool_]

NOISE, AGAIN, LONGER, SQUARE, REST, CURVE = "noise", "again", "again.rest", "square", "square.rest", "curve"
FEW, CERTIFICATE = "certificate.few", "certificate"
# Whether outputs repeat, and what is asked of every norm alike: which samples a random network mostly gets right, its layers.
REPEAT, MAJORITY, LAYERS = "repeat", "robustness.majority", "robustness.layers"
JUMPS = "jumps"  # whether outputs jump beside points of the ball
# What evidence calls for: mended gradients, decisions alone, a surrogate and what it transfers to few and to all that stands.
MENDED, DECIDED, SURROGATE, TRANSFER, TRANSFERRED = "mended", "decided", "surrogate", "transfer", "transfer.rest"


@dataclass(frozen=True)
class Attacked:
    """One norm's threat model, the rounds of its evaluation, and the names of all that runs.

    Attributes
    ----------
    rounds
        The rounds of the evaluation, in their order.
    more
        Other stages whose examples count, of the plan's own.
    final
        Rounds that go on with what all others left open, and may certify samples, too.
    """

    task: Task
    norm: Norm
    threat: ThreatModel
    rounds: tuple[Round, ...]
    more: tuple[str, ...] = ()
    final: tuple[Round, ...] = ()

    @property
    def prefix(self) -> str:
        """First two parts of the ids of metrics, evidence and stages."""
        return f"robustness.{self.norm}"

    def id(self, part: str) -> str:
        """Return the id of a stage, a metric or a piece of evidence."""
        return f"{self.prefix}.{part}"

    @property
    def profile(self) -> Profile:
        """Profile of the run."""
        return cast(Profile, self.task.profile)

    def asked_for(self) -> dict[str, tuple[Source, Asked]]:
        """Return what the user asked for, by the part of the stage's id: ``own.fgsm``, ``art.HopSkipJump``."""
        out: dict[str, tuple[Source, Asked]] = {}
        options = self.task.options
        for source, kind, items in (("attacks", "own", options.attacks), ("art", "art", options.art)):
            for item in items:
                again = sum(part.split(".")[:2] == [kind, item.name] for part in out)
                out[f"{kind}.{item.name}" + (f".{again + 1}" if again else "")] = (cast(Source, source), item)
        return out

    def asked(self) -> dict[str, Attack]:
        """Return the attacks that the user asked for, ready to run."""
        threat, seed = self.threat, self.task.seed
        return {
            part: make_attack(source, item, threat.norm, threat.eps, seed) for part, (source, item) in self.asked_for().items()
        }

    def surveys(self) -> tuple[str, ...]:
        """Return the parts of the rounds that follow a gradient on all that stands."""
        return tuple(one.name for one in self.rounds if one.name.startswith(("survey", "apgd")))

    def evaluated(self) -> tuple[str, ...]:
        """Return the parts of the evaluation's rounds."""
        return tuple(one.name for one in self.rounds)

    def finders(self) -> tuple[str, ...]:
        """Return the parts whose examples count, in the order in which they run."""
        return (*self.evaluated(), *self.more, *self.asked_for(), *(one.name for one in self.final))

    def rows(self, found: Found, part: str) -> Merged | None:
        """Return what a stage found, or None where it did not run yet."""
        return found.get(self.id(part))

    def certified(self, found: Found) -> Bits:
        """Tell which samples no change within the radius can break."""
        n = len(self.task.data.test)
        out = np.zeros(n, dtype=bool)
        for part in (FEW, CERTIFICATE, *(one.name for one in self.final)):
            rows = self.rows(found, part)
            if rows is not None and "certified" in rows.arrays:
                out |= rows.spread("certified", n, False)
        return out

    def broken_by(self, found: Found, parts: Sequence[str]) -> Bits:
        """Tell which samples these stages broke; one that has not run broke none."""
        n = len(self.task.data.test)
        out = np.zeros(n, dtype=bool)
        for part in parts:
            rows = self.rows(found, part)
            if rows is not None:
                out |= rows.spread("broken", n, False)
        return out

    def standing(self, found: Found, parts: Sequence[str]) -> Bits:
        """Tell which samples are right, not certified, and unbroken by these stages."""
        return right_at_first(self.task, found) & ~self.certified(found) & ~self.broken_by(found, parts)

    def known(self, found: Found, *, final: bool = False) -> Known:
        """Return what the rounds that ran so far tell the next one; to a `final` round all else that broke a sample, too."""
        parts = (*self.evaluated(), *(one.name for one in self.final))
        done = [rows for part in parts if (rows := self.rows(found, part)) is not None]
        others = (*self.more, *self.asked_for()) if final else ()
        return Known.of(self.standing(found, others), done)

    @property
    def name(self) -> str:
        """How the norm is written."""
        return SYMBOLS[self.norm]

    @property
    def radius(self) -> str:
        """The radius in words."""
        return radius(self.task, self.threat)


def radius(task: Task, threat: ThreatModel) -> str:
    """Return the radius in words, with its unit."""
    if threat.norm == "l0":
        return f"{int(threat.eps)} of the {np.prod(task.data.test.x.shape[1:])} inputs"
    if threat.scale is not None:
        return f"{threat.eps:g} standard deviations of a column"
    width = float(np.max(np.asarray(threat.high) - np.asarray(threat.low)))
    share = f" ({threat.eps / width * 255:.3g}/255 of the box)" if task.data.kind == "image" and threat.norm == "linf" else ""
    return f"{threat.eps:.4g}{share}"


def tolerance(task: Task, found: Found) -> float | None:
    """Return how far a regression output must move: as stated, else one standard deviation of the residuals."""
    if task.model.task != "regression":
        return None
    if task.options.tolerance is not None:
        return float(task.options.tolerance)
    residuals = task.data.test.y - found["predictions.test"]["values"]
    known = residuals[np.isfinite(residuals)]
    return float(np.std(known)) if len(known) else 0.0


def right_at_first(task: Task, found: Found) -> Bits:
    """Tell which samples the network gets right before any attack; for regression all with a finite output count.

    Where outputs are random it is those that it gets right more often than not.
    """
    mostly = found.get(MAJORITY)
    if mostly is not None and len(mostly.positions):
        return cast(Bits, mostly["right"])
    clean = found["predictions.test"]
    right: Bits
    if task.model.task == "regression":
        right = np.isfinite(clean["values"])
    else:
        right = right_answers(clean["logits"], task.data.test.y)
    return right


def output_spread(found: Found) -> NDArray[np.floating[Any]]:
    """Return the standard deviation of each clean output over the samples, shape (classes,) or (1,); 0 where unknown."""
    (outputs,) = found["predictions.test"].arrays.values()
    columns = np.where(np.isfinite(outputs), outputs, np.nan).reshape(len(outputs), -1)
    with np.errstate(all="ignore"):
        spread: NDArray[np.floating[Any]] = np.nan_to_num(np.asarray([np.std(c[np.isfinite(c)]) for c in columns.T]))
    return spread


def spread_over(n: int, most: int) -> NDArray[np.int64]:
    """Return at most `most` of the positions 0 … n − 1, evenly spread, so that sorted data do not bias what is drawn."""
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).round().astype(np.int64)
