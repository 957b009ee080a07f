"""Asks whether a small change of the input changes the answer, and whether the attack that says so can be believed."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator

from audit import stats
from audit.attacks import sanity
from audit.attacks.art import ArtAttack
from audit.attacks.asked import Asked, Source, as_asked, make_attack
from audit.attacks.base import Attack, AttackOutput
from audit.attacks.examples import Example, feature_changes, gallery
from audit.attacks.geometry import Norm, ThreatModel
from audit.attacks.noise import UniformNoise
from audit.attacks.pgd import PGD
from audit.attacks.square import Square
from audit.checks.base import (
    Answer,
    Arrays,
    Block,
    Check,
    CheckOptions,
    Found,
    MetricDoc,
    Stage,
    Task,
    check,
    predictions,
    repeatability,
    repeatability_evidence,
)
from audit.errors import AuditError, UsageError, closest
from audit.model.batching import is_out_of_memory
from audit.result import CheckResult, Evidence, Figure, Finding, Metric, finite

BUDGETS = {"quick": (20, 1), "standard": (40, 2), "thorough": (100, 5), "exhaustive": (200, 20)}
NORMS = ("linf", "l2")
QUERIES = {"quick": 100, "standard": 500, "thorough": 2000, "exhaustive": 5000}
ASKED_PASSES = 1000.0  # what an attack that was asked for may cost a sample: unknown beforehand
EVIDENCE_SAMPLES = 128  # each test of the attack looks at no more: enough to see a share of 5 %
LONGER_STEPS = 100
FEWEST_STANDING, ONE_CLASS = 10, 0.99  # samples that stand, and the share of one class among them, that say something
GALLERY = 6
MESSAGE = 200  # characters kept of what stopped an attack
FINDERS = ("pgd", "longer", "square", "noise")  # the stages whose examples count, in the order in which they are shown


class RobustnessOptions(CheckOptions):
    """``[robustness]``."""

    norm: list[str] = Field(default_factory=lambda: ["linf"], description="threat models: linf, l2")
    eps: list[float] | None = Field(default=None, description="radius of each norm, in input units; fractions as '8/255'")
    steps: int | None = Field(default=None, ge=1, le=100_000, description="gradient steps a restart; unstated: by profile")
    restarts: int | None = Field(default=None, ge=1, le=10_000, description="runs from different starts; unstated: by profile")
    step_size: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="length of every step; unstated: shrinking from 0.7 eps to 0"
    )
    mutable: list[str] | None = Field(default=None, description="columns of a table that may change; unstated: all")
    tolerance: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="regression: a larger move of the output counts; unstated: one sd of the residuals",
    )
    noise_draws: int = Field(default=10, ge=1, le=10_000, description="random points a sample that the attack must beat")
    queries: int | None = Field(
        default=None,
        ge=2,
        le=1_000_000,
        description="Square: forwards a sample of the gradient-free attack; unstated: by profile",
    )
    attacks: list[Asked] = Field(
        default_factory=list,
        description="more attacks on what stands: names of audit list attacks, or tables with name and parameters",
    )
    art: list[Asked] = Field(
        default_factory=list, description="attacks of ART on what stands: class names, or tables with name and parameters"
    )

    @field_validator("attacks", "art", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return [as_asked(item) for item in (value if isinstance(value, list) else [value])]

    @field_validator("norm", "eps", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return value if isinstance(value, list) or value is None else [value]

    @field_validator("norm")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        for norm in value:
            if norm not in NORMS:
                raise ValueError(f"no norm {norm!r}; {closest(norm, list(NORMS))}")
        if len(set(value)) != len(value) or not value:
            raise ValueError("name each norm once")
        return value

    @field_validator("eps", mode="before")
    @classmethod
    def _fractions(cls, value: Any) -> Any:
        if value is None:
            return None
        values = value if isinstance(value, list) else [value]
        try:
            return [float(Fraction(v.replace(" ", ""))) if isinstance(v, str) else v for v in values]
        except (ValueError, ZeroDivisionError):
            raise ValueError("a radius is a number or a fraction, for instance 0.3 or 8/255") from None


@check
class Robustness(Check):
    """Projected gradient descent with restarts, a gradient-free attack beside it, and nine tests of the attacks themselves."""

    id = "robustness"
    question = "Can a change too small to matter make the network change its answer?"
    Options = RobustnessOptions
    metrics: ClassVar = (
        MetricDoc(
            id="robustness.<norm>.accuracy",
            definition="share of all samples that are right and that no attack of the run broke at the headline radius; "
            "for regression, share whose output no attack moved by more than the tolerance",
            unit="fraction",
            range="0 to 1",
            interval="Clopper–Pearson over samples",
            bias="an upper bound on the truth: a stronger attack can only lower it",
            source="Madry et al. 2018; Clopper & Pearson 1934",
            kind="upper",
        ),
        MetricDoc(
            id="robustness.<norm>.attack_success",
            definition="share of the samples that were right and that an attack broke at the headline radius",
            unit="fraction",
            range="0 to 1",
            interval="Clopper–Pearson over the samples that were right",
            bias="a lower bound on the truth: a stronger attack can only raise it",
            source="Madry et al. 2018; Clopper & Pearson 1934",
            kind="lower",
            direction="lower",
        ),
    )

    def not_applicable(self, task: Task) -> str | None:
        """Return why nothing can be attacked, or None."""
        if not np.issubdtype(task.data.test.x.dtype, np.number):
            return "the inputs are not numbers"
        if task.data.kind == "table" and task.options.eps is None and not task.data.scale().any():
            return "no column varies, so that there is no radius in standard deviations: give --reference or --eps"
        return None

    def preflight(self, task: Task) -> None:
        """Check radius, box and columns before any work starts."""
        eps = task.options.eps
        if eps is not None and len(eps) != len(task.options.norm):
            raise UsageError(f"give one --eps for each --norm: got {len(task.options.norm)} norms and {len(eps)} radii")
        for norm in task.options.norm:
            threat = threat_model(task, norm)
            threat.check(task.data.test.x.shape[1:])
            for attack in NormTask(task, norm).asked().values():
                if isinstance(attack, ArtAttack):
                    attack.check(task.model, threat, task.data.test.x.shape[1:])

    def stages(self, task: Task) -> list[Stage]:
        """List the work: for each norm the attack, and what puts the attack to the test."""
        out = [predictions(task, cost_of="robustness.predictions"), *repeatability(task, self.id)]
        for norm in task.options.norm:
            out += NormTask(task, norm).stages()
        return out

    def conclude(self, task: Task, found: Found) -> CheckResult:
        """Turn what the attacks found into metrics, evidence and examples."""
        answer = Answer(type(self))
        sentences = [NormTask(task, norm).conclude(found, answer) for norm in task.options.norm]
        answer.evidence += repeatability_evidence(self.id, task, found)
        answer.findings += _unstated(task)
        answer.not_tested = _not_tested(task)
        return answer.result(task, " ".join(sentences))

    def artifact(self, task: Task, found: Found) -> Arrays | None:
        """Return the adversarial examples: ids, x_adv, distance, attack, norm and eps."""
        parts = [NormTask(task, norm).examples(found) for norm in task.options.norm]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "after"}


def threat_model(task: Task, norm: str) -> ThreatModel:
    """Return what the attack may change: the stated radius, or the default of the kind of data."""
    options, data = task.options, task.data
    low, high = data.box()
    scale = None
    if options.eps is not None:
        eps = options.eps[options.norm.index(norm)]
    elif data.kind == "table":
        eps, scale = 0.1, data.scale()
    else:
        eps = {"linf": 8 / 255, "l2": 0.5}[norm] * float(np.max(high - low))
    norm_name: Norm = "linf" if norm == "linf" else "l2"
    return ThreatModel(norm_name, float(eps), low, high, scale=scale, mutable=_mutable(task))


def budget(task: Task) -> tuple[int, int]:
    """Return steps and restarts: as stated, else those of the profile; regression needs a run up and one down."""
    steps, restarts = BUDGETS[task.profile]
    steps, restarts = task.options.steps or steps, task.options.restarts or restarts
    return steps, max(2, restarts) if task.model.task == "regression" else restarts


def tolerance(task: Task, found: Found) -> float | None:
    """Return how far a regression output must move: as stated, else one standard deviation of the residuals."""
    if task.model.task != "regression":
        return None
    if task.options.tolerance is not None:
        return float(task.options.tolerance)
    residuals = task.data.test.y - found["predictions.test"]["values"]
    known = residuals[np.isfinite(residuals)]
    return float(np.std(known)) if len(known) else 0.0


def right_at_first(task: Task, found: Found) -> NDArray[np.bool_]:
    """Tell which samples the network gets right before any attack; for regression all with a finite output count."""
    clean = found["predictions.test"]
    right: NDArray[np.bool_]
    if task.model.task == "regression":
        right = np.isfinite(clean["values"])
    else:
        right = (clean["logits"].argmax(axis=1) == task.data.test.y) & np.isfinite(clean["logits"]).all(axis=1)
    return right


def output_spread(found: Found) -> NDArray[np.floating[Any]]:
    """Return the standard deviation of each clean output over the samples, shape (classes,) or (1,); 0 where unknown."""
    (outputs,) = found["predictions.test"].arrays.values()
    columns = np.where(np.isfinite(outputs), outputs, np.nan).reshape(len(outputs), -1)
    with np.errstate(all="ignore"):
        spread: NDArray[np.floating[Any]] = np.nan_to_num(np.asarray([np.std(c[np.isfinite(c)]) for c in columns.T]))
    return spread


class NormTask:
    """The attack in one norm: its stages, and what they add to the answer."""

    def __init__(self, task: Task, norm: str) -> None:
        self.task, self.norm = task, norm
        self.prefix = f"robustness.{norm}"
        self.threat = threat_model(task, norm)

    def stages(self) -> list[Stage]:
        """List the attack, random noise beside it, a longer attack on what stands, and one without a radius."""
        task, threat = self.task, self.threat
        steps, restarts = budget(task)
        longer = max(LONGER_STEPS, 2 * steps)
        pgd = PGD(threat.norm, threat.eps, steps=steps, restarts=restarts, step_size=task.options.step_size, seed=task.seed)
        noise = UniformNoise(threat.norm, threat.eps, draws=task.options.noise_draws, seed=task.seed)
        again = PGD(threat.norm, threat.eps, steps=longer, restarts=2, loss="both", seed=task.seed + 1)
        queries = task.options.queries or QUERIES[task.profile]
        square = Square(threat.norm, threat.eps, queries=queries, seed=task.seed)
        stages = [
            self._attack("pgd", pgd, threat, 2.0 * steps * restarts),
            self._attack("noise", noise, threat, float(noise.draws), right=True),
            self._attack("longer", again, threat, 4.0 * longer, right=True, unbroken=("pgd", "noise")),
            self._attack("square", square, threat, float(queries), right=True, unbroken=("pgd",)),
            self._flat(),
            self._slope(),
        ]
        before: tuple[str, ...] = FINDERS
        for part, attack in self.asked().items():
            # What was asked for runs on all that stands, for its answer is wanted; our own on enough to test the first.
            stages.append(self._attack(part, attack, threat, ASKED_PASSES, right=True, unbroken=before, most=None))
            before = (*before, part)
        # Radius as wide as the box: a working gradient attack then reaches any corner.
        corner = threat.reach(task.data.test.x.shape[1:])
        unbounded = PGD(threat.norm, corner, steps=LONGER_STEPS, restarts=4, seed=task.seed)
        return [*stages, self._attack("unbounded", unbounded, replace(threat, eps=corner), 2.0 * LONGER_STEPS, right=True)]

    def _attack(
        self,
        part: str,
        attack: Attack,
        threat: ThreatModel,
        passes: float,
        *,
        right: bool = False,
        unbroken: tuple[str, ...] = (),
        most: int | None = EVIDENCE_SAMPLES,
    ) -> Stage:
        """Plan an attack on all samples, or with `right` on at most `most` that are right and no stage in `unbroken` broke."""
        task, asked_for = self.task, self.asked_for()

        def run(attack: Attack, block: Block) -> AttackOutput:
            moved = tolerance(task, block.earlier)
            return attack(task.model, block.x, block.y, ids=block.ids, threat=threat, tolerance=moved)

        def job(block: Block) -> Arrays:
            failed = ""
            try:
                out = run(attack, block)
            except Exception as error:
                # An attack of others may stop at anything; what the rest of the run found must not be lost with it.
                if part not in asked_for or isinstance(error, AuditError) or is_out_of_memory(error):
                    raise
                failed = f"{type(error).__name__}: {error}"[:MESSAGE]
                out = run(UniformNoise(threat.norm, threat.eps, draws=0), block)
            after = torch.full(out.success.shape, torch.nan, dtype=torch.float64)
            hit = out.success.cpu() & (out.distance.cpu() > 0)
            if bool(hit.any()):
                after[hit] = task.model.predict(out.x_adv[out.success & (out.distance > 0)]).cpu().double()
            names = ("x_adv", "distance", "loss_start", "loss_end", "grad_zero", "grad_nan", "rejected")
            arrays = {name: getattr(out, name).cpu().numpy() for name in names}
            stopped = np.full(len(block.ids), failed, dtype=f"U{MESSAGE}")
            return {**arrays, "broken": out.success.cpu().numpy(), "after": after.numpy(), "failed": stopped}

        def select(found: Found) -> NDArray[np.int64]:
            standing = right_at_first(task, found)
            for other in unbroken:
                standing = standing & ~found[self._id(other)].spread("broken", len(standing), False)
            positions = np.flatnonzero(standing)
            return positions[_spread_over(len(positions), most or len(positions))]

        return Stage(
            id=self._id(part),
            job=job,
            cost_of=self._id("unbounded_breaks" if part == "unbounded" else "accuracy"),
            select=select if right else None,
            after=("predictions.test", *(self._id(other) for other in unbroken)),
            passes=passes,
            holds_inputs=True,
        )

    def asked_for(self) -> dict[str, tuple[Source, Asked]]:
        """Return what the user asked for, by the part of the stage's id: ``own.fgsm``, ``art.HopSkipJump``."""
        out: dict[str, tuple[Source, Asked]] = {}
        options: RobustnessOptions = self.task.options
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

    def finders(self) -> tuple[str, ...]:
        """Return the stages whose examples count, in the order in which they are shown."""
        return (*FINDERS, *self.asked_for())

    def _flat(self) -> Stage:
        """Look closer at the samples whose gradient was zero wherever the attack looked."""
        task, pgd = self.task, self._id("pgd")

        def job(block: Block) -> Arrays:
            spread = output_spread(block.earlier)
            moved = sanity.outputs_move(task.model, block.x, block.ids, self.threat, spread, seed=task.seed)
            return {"moved": moved.cpu().numpy()}

        return Stage(
            id=self._id("flat"),
            job=job,
            cost_of=self._id("gradients_nonzero"),
            select=lambda found: found[pgd].positions[found[pgd]["grad_zero"]],
            after=(pgd,),
            passes=0.1,
        )

    def _slope(self) -> Stage:
        """Hold the gradient against what the loss really does."""
        task = self.task

        def job(block: Block) -> Arrays:
            told = sanity.gradient_correlation(task.model, block.x, block.y, block.ids, self.threat, seed=task.seed)
            return {"correlation": told.cpu().numpy()}

        def select(found: Found) -> NDArray[np.int64]:
            positions = np.flatnonzero(right_at_first(task, found))
            return positions[_spread_over(len(positions), EVIDENCE_SAMPLES)]

        return Stage(
            id=self._id("slope"),
            job=job,
            cost_of=self._id("gradient_true"),
            select=select,
            after=("predictions.test",),
            passes=2.0 * sanity.SLOPE_DRAWS * len(sanity.SLOPE_LENGTHS),
        )

    def conclude(self, found: Found, answer: Answer) -> str:
        """Add metrics, evidence, findings and figures to the answer; return its sentence."""
        task, n = self.task, len(self.task.data.test)
        right = right_at_first(task, found)
        broken = ~right
        for part in self.finders():
            # The attack's own clean forward can differ from the stored one by a rounding: either makes a sample broken.
            broken |= found[self._id(part)].spread("broken", n, False)
        hit = broken & right
        accuracy = self._share(
            "accuracy", int((~broken).sum()), n, kind="upper", params={**self._params(found), "headline": True}
        ).model_copy(update={"outcome": f"not {self._id('broken')}"})
        answer.metrics += [
            accuracy,
            self._share("attack_success", int(hit.sum()), int(right.sum()), kind="lower", params=self._params(found)),
        ]
        answer.outcomes[self._id("broken")] = broken
        answer.evidence += self._evidence(found)
        if not right.any():
            answer.reasons.append("no sample was right before the attack, so nothing could be broken")
        answer.reasons += self._idle_radius() + self._idle_tolerance(found) + self._stopped(found)
        if hit.any():
            answer.findings.append(self._finding(hit, right, accuracy))
        answer.findings += self._one_class(right, ~broken)
        answer.figures += [self._before_after(right, accuracy), *self._shown(found)]
        noun = "are right and stay right"
        if task.model.task == "regression":
            noun = f"move by no more than {tolerance(task, found):.4g}"
        return (
            f"Under {_name(self.norm)} changes of at most {_radius(task, self.threat)}, {int((~broken).sum())} of {n} samples "
            f"{noun} as far as this attack found ({_percent(accuracy.value)}, {task.confidence:.0%} interval "
            f"{_percent(accuracy.low)} to {_percent(accuracy.high)})."
        )

    def _all_may_change(self) -> bool:
        """Tell whether every input that varies may change, so that an unlimited radius should break everything."""
        if self.threat.mutable is None:
            return True
        return bool(self.threat.mutable[self.task.data.scale() > 0].all())

    def _idle_radius(self) -> list[str]:
        """Return why the radius cannot change any input that there could be, or nothing."""
        data = self.task.data
        share = self.threat.eps / self.threat.reach(data.test.x.shape[1:])
        if share < 1e-6:
            return [f"the radius ({self.threat.eps:g}) is next to nothing beside the box, so nothing was attacked"]
        if data.kind == "image" and data.test.x.dtype.kind in "iu" and self.threat.eps < 0.5:
            return [
                f"the radius ({self.threat.eps:g}) cannot change any whole-number pixel: it is in units of the input, whose "
                f"box is {float(np.max(self.threat.high)):g} wide; did you mean {self.threat.eps * 255:g}?"
            ]
        return []

    def _stopped(self, found: Found) -> list[str]:
        """Return which attacks that were asked for stopped with an error: what they would have broken is not known."""
        messages = {part: [text for text in np.unique(found[self._id(part)]["failed"]) if text] for part in self.asked_for()}
        return [f"{self._id(part)} stopped with {texts[0]}" for part, texts in messages.items() if texts]

    def _idle_tolerance(self, found: Found) -> list[str]:
        """Return why an unstated tolerance asks nothing of this network: it grows with the network's own errors."""
        moved = tolerance(self.task, found)
        if moved is None or self.task.options.tolerance is not None or moved <= float(np.std(self.task.data.test.y)):
            return []
        return [
            f"no tolerance was stated, and the residuals' standard deviation ({moved:.4g}) is larger than that of the labels: "
            "a network that wrong is robust to anything; state --set robustness.tolerance=… in units of the target"
        ]

    def examples(self, found: Found) -> Arrays:
        """Return one adversarial example for each sample that was broken: the first attack's that found one."""
        taken: set[int] = set()
        rows: list[tuple[int, str, int]] = []
        for part in self.finders():
            stage = found[self._id(part)]
            for row in np.flatnonzero(stage["broken"] & (stage["distance"] > 0)):
                position = int(stage.positions[row])
                if position not in taken:
                    taken.add(position)
                    rows.append((position, part, int(row)))
        rows.sort()
        shape, dtype = self.task.data.test.x.shape[1:], found[self._id("pgd")]["x_adv"].dtype
        picked = [found[self._id(part)] for _, part, _ in rows]
        x_adv = [stage["x_adv"][row] for stage, (_, _, row) in zip(picked, rows, strict=True)]
        return {
            "ids": self.task.data.test.ids[[position for position, _, _ in rows]],
            "x_adv": np.asarray(x_adv, dtype=dtype).reshape(-1, *shape),
            "distance": np.asarray([s["distance"][row] for s, (_, _, row) in zip(picked, rows, strict=True)], dtype=np.float64),
            "after": np.asarray([s["after"][row] for s, (_, _, row) in zip(picked, rows, strict=True)], dtype=np.float64),
            "attack": np.asarray([part for _, part, _ in rows], dtype=np.str_),
            "norm": np.asarray([self.norm] * len(rows), dtype="U8"),
            "eps": np.full(len(rows), self.threat.eps),
        }

    def _id(self, part: str) -> str:
        return f"{self.prefix}.{part}"

    def _share(self, measure: str, k: int, n: int, *, kind: Literal["upper", "lower"], params: dict[str, Any]) -> Metric:
        interval = stats.clopper_pearson(k, n, self.task.confidence)
        return Metric(
            id=self._id(measure),
            value=interval.value,
            low=interval.low,
            high=interval.high,
            confidence=self.task.confidence,
            n=n,
            method="clopper-pearson",
            kind=kind,
            direction="higher" if kind == "upper" else "lower",
            params=params,
            detail="no attack of this run broke these samples; a stronger one might" if kind == "upper" else "",
        )

    def _params(self, found: Found) -> dict[str, Any]:
        steps, restarts = budget(self.task)
        unit = "input units" if self.threat.scale is None else "column standard deviations"
        params: dict[str, Any] = {"eps": self.threat.eps, "norm": self.norm, "unit": unit, "steps": steps, "restarts": restarts}
        if self.task.model.task == "regression":
            params["tolerance"] = finite(tolerance(self.task, found))
        params["attacks"] = list(self.finders())
        return params

    def _evidence(self, found: Found) -> list[Evidence]:
        task = self.task
        pgd, noise, longer = (found[self._id(part)] for part in ("pgd", "noise", "longer"))
        free = found[self._id("unbounded")]
        attacked = np.isfinite(pgd["loss_start"])
        steep = attacked & ~pgd["grad_zero"]
        evidence = [sanity.verified(self.prefix, int((pgd["broken"] & attacked).sum()), int(pgd["rejected"].sum()))]
        if attacked.any() and self.threat.eps > 0:
            zero, hidden = int((pgd["grad_zero"] & attacked).sum()), int(found[self._id("flat")]["moved"].sum())
            nan = int((pgd["grad_nan"] & attacked).sum())
            evidence.append(sanity.gradients_nonzero(self.prefix, int(attacked.sum()), zero, hidden, nan))
        if steep.any() and self.threat.eps > 0:
            start, end, broken = (pgd[name][steep] for name in ("loss_start", "loss_end", "broken"))
            evidence.append(sanity.loss_rises(self.prefix, start, end, broken))
        if len(noise.positions):
            at = np.searchsorted(pgd.positions, noise.positions)
            evidence.append(sanity.beats_noise(self.prefix, noise["broken"], pgd["broken"][at]))
        stood = float(np.mean(right_at_first(task, found) & ~pgd.spread("broken", len(task.data.test), False)))
        if len(longer.positions):
            evidence.append(sanity.converged(self.prefix, longer["broken"], stood))
        square = found[self._id("square")]
        if len(square.positions):
            evidence.append(sanity.gradient_free(self.prefix, square["broken"], stood, task.confidence))
        if len(free.positions):
            evidence.append(sanity.gradient_found(self.prefix, free["grad_zero"]))
        correlation = found[self._id("slope")]["correlation"]
        if np.isfinite(correlation).any() and self.threat.eps > 0:
            evidence.append(sanity.gradient_true(self.prefix, correlation[np.isfinite(correlation)]))
        if len(free.positions) and self._all_may_change():
            evidence.append(sanity.unbounded_breaks(self.prefix, free["broken"]))
        return evidence

    def _finding(self, hit: NDArray[np.bool_], right: NDArray[np.bool_], accuracy: Metric) -> Finding:
        task = self.task
        lost = float(hit.sum() / right.sum())
        changed = "moved the output too far" if task.model.task == "regression" else "turned a right answer wrong"
        return Finding(
            severity="high" if lost >= 0.5 else "medium" if lost >= 0.1 else "low",
            title=f"{_name(self.norm)} changes of at most {_radius(task, self.threat)} break {lost:.0%} of the answers",
            detail=f"Such a change {changed} on {int(hit.sum())} of {int(right.sum())} samples; every example was verified "
            f"again. What remains ({_percent(accuracy.value)}) is what this attack did not break, not what cannot be broken.",
            samples=[int(i) for i in task.data.test.ids[np.flatnonzero(hit)[:10]]],
        )

    def _one_class(self, right: NDArray[np.bool_], standing: NDArray[np.bool_]) -> list[Finding]:
        """Say it where nearly all that stands is of one class: an answer that is always the same is never broken."""
        task, n = self.task, int(standing.sum())
        y = task.data.test.y
        if task.model.task == "regression" or n < FEWEST_STANDING or len(np.unique(y)) < 2:
            return []
        top = int(np.bincount(y[standing]).argmax())
        held, share = int((y[standing] == top).sum()), float(np.mean(y[right] == top))
        more = (stats.clopper_pearson(held, n, task.confidence).low or 0.0) > share
        if held < ONE_CLASS * n or not (more or share == 1):
            return []
        name, most = task.classes[top], float(np.bincount(y).max() / len(y))
        return [
            Finding(
                severity="high" if share == 1 else "medium",
                title=f"Nearly all that withstands {_name(self.norm)} changes is of class {name}",
                detail=f"{held} of the {n} samples that stay right are, and {share:.0%} of those that are right unattacked. "
                f"Always giving one answer, which nothing breaks, is right on {most:.1%}: what stands may be no robustness.",
            )
        ]

    def _before_after(self, right: NDArray[np.bool_], accuracy: Metric) -> Figure:
        clean = stats.clopper_pearson(int(right.sum()), len(right), self.task.confidence)
        return Figure(
            id=self._id("before_after"),
            kind="bars",
            title=f"Before and under attack ({_name(self.norm)}, at most {_radius(self.task, self.threat)})",
            data={
                "labels": ["clean inputs", "under attack"],
                "values": [clean.value, accuracy.value],
                "low": [clean.low, accuracy.low],
                "high": [clean.high, accuracy.high],
                "n": [len(right), len(right)],
                "xlabel": "share of samples",
                "ylabel": "",
            },
        )

    def _shown(self, found: Found) -> list[Figure]:
        """Return a figure of some examples, where inputs may be shown and are of a kind that can be."""
        data = self.task.data
        if not self.task.keep_samples:
            return []
        arrays = self.examples(found)
        positions = np.searchsorted(data.test.ids, arrays["ids"][:GALLERY])
        examples = [
            Example(int(arrays["ids"][i]), data.test.x[p], arrays["x_adv"][i], self._caption(arrays, i, int(p)))
            for i, p in enumerate(positions)
        ]
        if examples and data.kind == "image" and data.test.x.shape[1] in (1, 3):
            low, high = data.box()
            title = "Inputs that the attack broke"
            return [gallery(self._id("examples"), title, examples, float(np.min(low)), float(np.max(high)))]
        if examples and data.kind == "table":
            return [feature_changes(self._id("examples"), "Rows that the attack broke", examples, data.columns, data.scale())]
        return []

    def _caption(self, arrays: Arrays, row: int, position: int) -> str:
        after, how = float(arrays["after"][row]), f"distance {arrays['distance'][row]:.3g}, by {arrays['attack'][row]}"
        if self.task.model.task == "regression":
            return f"output moves to {after:.4g}, {how}"
        names = self.task.classes
        return f"{names[int(self.task.data.test.y[position])]} is taken for {names[int(after)]}, {how}"


def _mutable(task: Task) -> NDArray[np.bool_] | None:
    names = task.options.mutable
    if names is None:
        return None
    columns = list(task.data.columns)
    if not columns:
        raise UsageError("robustness.mutable names columns, but the data has none: it is for tables")
    if not names:
        raise UsageError(
            "robustness.mutable is empty: no column may change, so nothing could be attacked; name some, or skip it"
        )
    for name in names:
        if name not in columns:
            raise UsageError(f"robustness.mutable: no input column {name!r}; {closest(name, columns)}")
    return np.asarray([column in names for column in columns])


def _spread_over(n: int, most: int) -> NDArray[np.int64]:
    """Return at most `most` of the positions 0 … n − 1, evenly spread, so that sorted data do not bias what is drawn."""
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).round().astype(np.int64)


def _unstated(task: Task) -> list[Finding]:
    notes = []
    if task.options.eps is None:
        radii = ", ".join(f"{_name(norm)} {_radius(task, threat_model(task, norm))}" for norm in task.options.norm)
        notes.append(f"no radius was stated, so the default was used ({radii}): state with --eps what must not matter to you")
    if task.data.bounds is None:
        kind = "range of each column" if task.data.kind == "table" else "box of the pixel values"
        notes.append(f"no bounds were stated, so the {kind} was taken from the data: state them with --bounds")
    if task.model.task == "regression" and task.options.tolerance is None:
        notes.append("no tolerance was stated, so a move of the output by one standard deviation of the residuals counts")
    return [Finding(severity="info", title="Unstated defaults", detail="; ".join(notes) + ".")] if notes else []


def _not_tested(task: Task) -> list[str]:
    untested = [f"{_name(norm)} changes" for norm in NORMS if norm not in task.options.norm]
    made = NormTask(task, task.options.norm[0]).finders()
    untested += [
        f"attacks other than those that ran ({', '.join(made)}): the figure is an upper bound, and a stronger one may lower it",
        "larger radii, patches, rotations, and changes that a camera or a sensor makes",
    ]
    if task.data.kind == "table" and task.options.mutable is None:
        untested.append("whether the changed rows could exist: every column moved freely, whole-number columns by fractions")
    if task.options.mutable is not None:
        untested.append("whether an unlimited radius breaks everything: only some columns may change, so it need not")
    return untested


def _radius(task: Task, threat: ThreatModel) -> str:
    if threat.scale is not None:
        return f"{threat.eps:g} standard deviations of a column"
    width = float(np.max(np.asarray(threat.high) - np.asarray(threat.low)))
    share = f" ({threat.eps / width * 255:.3g}/255 of the box)" if task.data.kind == "image" and threat.norm == "linf" else ""
    return f"{threat.eps:.4g}{share}"


def _name(norm: str) -> str:
    return {"linf": "L∞", "l2": "L2"}[norm]


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"
