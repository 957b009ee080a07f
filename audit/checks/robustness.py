"""Asks whether a small change of the input changes the answer, and whether the attack that says so can be believed."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, ClassVar, Literal, cast

import numpy as np
from pydantic import Field, FiniteFloat, field_validator

from audit.attacks.art import ArtAttack
from audit.attacks.asked import Asked, as_asked
from audit.attacks.geometry import NORMS, SYMBOLS, Norm, ThreatModel
from audit.checks import robustness_answer as said
from audit.checks import robustness_fitted, robustness_random, robustness_smoothing, robustness_spatial, robustness_surrogate
from audit.checks import robustness_plan as plan
from audit.checks import robustness_table as table
from audit.checks.base import (
    Answer,
    Arrays,
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
from audit.checks.robustness_norms import default_radius
from audit.checks.robustness_state import Attacked, radius
from audit.errors import UsageError, closest
from audit.result import CheckResult, Finding


class RobustnessOptions(CheckOptions):
    """``[robustness]``."""

    norm: list[str] = Field(default_factory=lambda: ["linf"], description="threat models: linf, l2, l1, l0")
    eps: list[float] | None = Field(
        default=None, description="radius of each norm, in input units, in l0 how many inputs; fractions as '8/255'"
    )
    evaluation: Literal["adaptive", "autoattack"] = Field(
        default="adaptive", description="which evaluation attacks the network: adaptive, or autoattack with its own budgets"
    )
    certify: bool = Field(default=True, description="bound the margins, so that samples that nothing can break are known")
    curve: bool = Field(default=True, description="look for each sample's smallest change: accuracy against radius")
    steps: int | None = Field(default=None, ge=1, le=100_000, description="gradient steps a survey; unstated: by profile")
    restarts: int | None = Field(default=None, ge=1, le=10_000, description="surveys of all samples; unstated: by profile")
    step_size: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="linf, l2: length of every step; unstated: shrinking from 0.7 eps to 0",
    )
    eps_unit: Literal["input", "sd"] | None = Field(
        default=None,
        description="tables: unit of eps, input or sd of each column; unstated: input where eps is stated, else sd",
    )
    mutable: list[str] | None = Field(default=None, description="columns of a table that may change; unstated: all")
    immutable: list[str] = Field(default_factory=list, description="columns of a table that may not change")
    column_bounds: dict[str, tuple[FiniteFloat, FiniteFloat]] = Field(
        default_factory=dict, description="lowest and highest value of columns of a table: {age = [17, 90]}"
    )
    integer: Literal["auto"] | list[str] | None = Field(
        default=None, description="columns that hold whole numbers; auto: those whose values in the data all are"
    )
    one_hot: list[list[str]] = Field(
        default_factory=list, description="groups of columns of which exactly one is 1 and the others 0"
    )
    max_category_changes: int | None = Field(
        default=None,
        ge=0,
        description="one-hot groups that may change, whatever the radius; unstated: they count in the radius",
    )
    constraints: list[str] = Field(
        default_factory=list, description="linear rules between columns: 'gain - loss >= 0', 'total == x + y'"
    )
    increase_only: list[str] = Field(default_factory=list, description="columns that may only rise")
    decrease_only: list[str] = Field(default_factory=list, description="columns that may only fall")
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
    surrogate: robustness_surrogate.SurrogateOptions | None = Field(
        default=None,
        description="transfer: file of a whole network (torch.nn layers, .pt2, .onnx); unstated: one is trained",
    )
    spatial: bool | robustness_spatial.SpatialOptions = Field(
        default=False, description="images: rotations and shifts, true or a table with max_angle, max_shift, angles, shifts"
    )
    smoothing: bool | robustness_smoothing.SmoothingOptions = Field(
        default=False,
        description="certify the network smoothed by noise, true or a table with sigma, n0, n, alpha, samples, radius",
    )
    universal: bool | robustness_fitted.UniversalOptions = Field(
        default=False, description="linf, l2: one change for all samples, true or a table with steps"
    )
    patch: bool | robustness_fitted.PatchOptions = Field(
        default=False, description="images: one patch for all samples, true or a table with share, place, steps"
    )

    @field_validator("attacks", "art", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return [as_asked(item) for item in (value if isinstance(value, list) else [value])]

    @field_validator("immutable", "constraints", "increase_only", "decrease_only", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

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
    """An evaluation by attacks, a certificate beside it, and tests of the attacks themselves."""

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
        MetricDoc(
            id="robustness.<norm>.certified_accuracy",
            definition="share of all samples that are right and that no change within the headline radius can break, by linear "
            "bounds of the network with the rounding of its own arithmetic in them",
            unit="fraction",
            range="0 to 1",
            interval="Clopper–Pearson over samples",
            bias="a lower bound on the truth: tighter bounds can only raise it; absent where a layer has no bound",
            source="Zhang et al. 2018 (CROWN); Wang et al. 2021 (branching, exhaustive profile); Clopper & Pearson 1934",
            kind="lower",
        ),
        MetricDoc(
            id="robustness.<norm>.autoattack_accuracy",
            definition="share of all samples that are right and that none of AutoAttack's four attacks broke, with its own "
            "budgets; only with evaluation = autoattack",
            unit="fraction",
            range="0 to 1",
            interval="Clopper–Pearson over samples",
            bias="an upper bound on the truth",
            source="Croce & Hein 2020; Clopper & Pearson 1934",
            kind="upper",
        ),
        MetricDoc(
            id="robustness.<norm>.median_distance",
            definition="median, over the samples that are right, of the smallest change that is known to break each; not "
            "known where no more than half have one",
            unit="distance",
            range="0 and up",
            interval="order statistics (binomial)",
            bias="an upper bound on the truth: closer examples may exist",
            source="Pintor et al. 2021; Conover 1999",
            kind="upper",
        ),
        *robustness_spatial.METRICS,
        *robustness_smoothing.METRICS,
        *robustness_fitted.METRICS,
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
        for extra in (robustness_surrogate, robustness_spatial, robustness_smoothing, robustness_fitted):
            extra.preflight(task)
        for norm in task.options.norm:
            threat = threat_model(task, norm)
            threat.check(task.data.test.x.shape[1:])
            for attack in evaluated(task, norm).asked().values():
                if isinstance(attack, ArtAttack):
                    attack.check(task.model, threat, task.data.test.x.shape[1:])

    def stages(self, task: Task) -> list[Stage]:
        """List the work: for each norm the attack, and what puts the attack to the test."""
        out = [predictions(task, cost_of="robustness.predictions"), *repeatability(task, self.id)]
        out += robustness_random.shared(task)
        for norm in task.options.norm:
            out += plan.stages(evaluated(task, norm))
        out += [*robustness_spatial.stages(task), *robustness_smoothing.stages(task)]
        return out + robustness_fitted.stages(task, threat_models(task))

    def conclude(self, task: Task, found: Found) -> CheckResult:
        """Turn what the attacks found into metrics, evidence and examples."""
        answer = Answer(type(self))
        sentences = [said.conclude(evaluated(task, norm), found, answer) for norm in task.options.norm]
        more = robustness_spatial.conclude(task, found, answer) + robustness_smoothing.conclude(task, found, answer)
        more += robustness_fitted.conclude(task, found, answer, threat_models(task))
        answer.evidence += [*repeatability_evidence(self.id, task, found), *robustness_random.modes(found)]
        answer.findings += _unstated(task)
        answer.findings += [found for norm in task.options.norm[:1] for found in table.findings(task, threat_model(task, norm))]
        answer.not_tested = _not_tested(task, found) + answer.not_tested
        return answer.result(task, " ".join(sentences) + more)

    def artifact(self, task: Task, found: Found) -> Arrays | None:
        """Return the adversarial examples: ids, x_adv, distance, attack, norm and eps."""
        parts = [said.examples(evaluated(task, norm), found) for norm in task.options.norm]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "after"}


def evaluated(task: Task, norm: str) -> Attacked:
    """Return the evaluation of one norm, with the names of all that runs."""
    threat = threat_model(task, norm)
    return plan.attacked(task, threat.norm, threat)


def threat_models(task: Task) -> dict[str, ThreatModel]:
    """Return the threat model of each norm of the run."""
    return {norm: threat_model(task, norm) for norm in task.options.norm}


def threat_model(task: Task, norm: str) -> ThreatModel:
    """Return what the attack may change: the stated radius, or the default of the kind of data."""
    options, data = task.options, task.data
    low, high = table.bounds(task, *data.box())
    name = cast(Norm, norm)
    scale = data.scale() if options.eps_unit == "sd" and data.kind == "table" else None
    if options.eps is not None:
        eps = options.eps[options.norm.index(norm)]
    elif data.kind == "table":
        eps, scale = default_radius(name, "table", 0, 0.0), data.scale()
    else:
        eps = default_radius(name, data.kind, int(np.prod(data.test.x.shape[1:])), float(np.max(high - low)))
    return ThreatModel(
        name, float(eps), low, high, scale=scale, mutable=table.mutable(task), constraints=table.constraints(task)
    )


def _unstated(task: Task) -> list[Finding]:
    notes = []
    if task.options.eps is None:
        radii = ", ".join(f"{SYMBOLS[norm]} {radius(task, threat_model(task, norm))}" for norm in task.options.norm)
        notes.append(f"no radius was stated, so the default was used ({radii}): state with --eps what must not matter to you")
    if task.data.bounds is None:
        kind = "range of each column" if task.data.kind == "table" else "box of the pixel values"
        stated, but = task.options.column_bounds, ""
        if stated:
            kind, but = "range of each other column", " but column_bounds"
        if not stated or len(stated) < len(task.data.columns):
            notes.append(f"no bounds{but} were stated, so the {kind} was taken from the data: state them with --bounds")
    if task.model.task == "regression" and task.options.tolerance is None:
        notes.append("no tolerance was stated, so a move of the output by one standard deviation of the residuals counts")
    return [Finding(severity="info", title="Unstated defaults", detail="; ".join(notes) + ".")] if notes else []


def _not_tested(task: Task, found: Found) -> list[str]:
    untested = [f"{SYMBOLS[norm]} changes" for norm in NORMS if norm not in task.options.norm]
    made = dict.fromkeys(name for norm in task.options.norm for name in said.ran(evaluated(task, norm), found))
    pictures = task.data.kind == "image"
    beyond = [
        "larger radii",
        *([] if not pictures or robustness_fitted.asked(task, "patch") else ["patches (robustness.patch)"]),
        *([] if not pictures or robustness_spatial.asked(task) else ["rotations and shifts (robustness.spatial)"]),
        "changes that a camera or a sensor makes",
    ]
    untested += [
        f"attacks other than those that ran ({', '.join(made) or 'none'}): the figure is an upper bound, and a stronger one "
        "may lower it",
        f"{', '.join(beyond[:-1])}, and {beyond[-1]}",
    ]
    if task.data.kind == "table" and not any(getattr(task.options, name) for name in table.OPTIONS):
        untested.append("whether the changed rows could exist: every column moved freely, whole-number columns by fractions")
    if task.options.mutable is not None:
        untested.append("whether an unlimited radius breaks everything: only some columns may change, so it need not")
    return untested
