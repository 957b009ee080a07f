"""Asks whether a small change of the input changes the answer, and whether the attack that says so can be believed."""

from __future__ import annotations

import base64
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from audit import stats
from audit.attacks import sanity
from audit.attacks.base import NORMS, Attack, Norm, ThreatModel
from audit.attacks.noise import UniformNoise
from audit.attacks.pgd import PGD
from audit.checks.base import (
    Answer,
    Arrays,
    Block,
    Check,
    CheckOptions,
    Found,
    Merged,
    MetricDoc,
    Stage,
    Task,
    check,
    predictions,
)
from audit.errors import UsageError, closest
from audit.result import CheckResult, Evidence, Figure, Finding, Metric, finite

BUDGETS = {"quick": (20, 1), "standard": (40, 2), "thorough": (100, 5), "exhaustive": (200, 20)}
EVIDENCE_SAMPLES = 128
UNBOUNDED_STEPS = 100
GALLERY = 6


class RobustnessOptions(CheckOptions):
    """``[robustness]``."""

    norm: list[str] = Field(default_factory=lambda: ["linf"], description="threat models: linf, l2")
    eps: list[float] | None = Field(default=None, description="radius of each norm, in input units; fractions as '8/255'")
    steps: int | None = Field(default=None, ge=1, description="gradient steps a restart; unstated: by profile")
    restarts: int | None = Field(default=None, ge=1, description="runs from different starts; unstated: by profile")
    step_size: float | None = Field(default=None, gt=0, description="length of a step; unstated: 2.5 eps / steps")
    mutable: list[str] | None = Field(default=None, description="columns of a table that may change; unstated: all")
    tolerance: float | None = Field(
        default=None, gt=0, description="regression: a larger move of the output counts; unstated: one sd of the residuals"
    )
    noise_draws: int = Field(default=10, ge=1, description="random points a sample that the attack must beat")

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
    """Projected gradient descent with restarts on samples that still stand, and four tests of the attack itself."""

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
        return None if np.issubdtype(task.data.test.x.dtype, np.number) else "the inputs are not numbers"

    def preflight(self, task: Task) -> None:
        """Check radius, box and columns before any work starts."""
        eps = task.options.eps
        if eps is not None and len(eps) != len(task.options.norm):
            raise UsageError(f"give one --eps for each --norm: got {len(task.options.norm)} norms and {len(eps)} radii")
        for norm in task.options.norm:
            threat_model(task, norm).check(task.data.test.x.shape[1:])

    def stages(self, task: Task) -> list[Stage]:
        """List the work: for each norm the attack, random noise beside it, and the attack without a radius."""
        out = [predictions(task, cost_of="robustness.predictions")]
        for norm in task.options.norm:
            out += _stages(task, norm)
        return out

    def conclude(self, task: Task, found: Found) -> CheckResult:
        """Turn what the attacks found into metrics, evidence and examples."""
        answer = Answer(type(self))
        sentences = [_conclude_norm(task, norm, found, answer) for norm in task.options.norm]
        answer.findings += _unstated(task)
        answer.not_tested = _not_tested(task)
        return answer.result(task, " ".join(sentences))

    def artifact(self, task: Task, found: Found) -> Arrays | None:
        """Return the adversarial examples: ids, x_adv, distance, attack, norm and label or clean output."""
        parts = []
        for norm in task.options.norm:
            pgd = found[_id(norm, "pgd")]
            rows = np.flatnonzero(pgd["broken"] & (pgd["distance"] > 0))
            parts.append(
                {
                    "ids": task.data.test.ids[pgd.positions[rows]],
                    "x_adv": pgd["x_adv"][rows],
                    "distance": pgd["distance"][rows],
                    "attack": np.asarray(["pgd"] * len(rows), dtype="U16"),
                    "norm": np.asarray([norm] * len(rows), dtype="U8"),
                    "eps": np.full(len(rows), threat_model(task, norm).eps),
                }
            )
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def threat_model(task: Task, norm: str) -> ThreatModel:
    """Return what the attack may change: the stated radius, or the default of the kind of data."""
    options, data = task.options, task.data
    low, high = data.box()
    mutable = _mutable(task)
    stated = options.eps is not None
    scale = None
    if stated:
        eps = options.eps[options.norm.index(norm)] if len(options.eps) == len(options.norm) else options.eps[0]
    elif data.kind == "table":
        eps, scale = 0.1, data.scale()
    else:
        eps = {"linf": 8 / 255, "l2": 0.5}[norm] * float(np.max(high - low))
    norm_name: Norm = "linf" if norm == "linf" else "l2"
    return ThreatModel(norm_name, float(eps), low, high, scale=scale, mutable=mutable)


def _mutable(task: Task) -> NDArray[np.bool_] | None:
    names = task.options.mutable
    if names is None:
        return None
    columns = list(task.data.columns)
    if not columns:
        raise UsageError("robustness.mutable names columns, but the data has none: it is for tables")
    for name in names:
        if name not in columns:
            raise UsageError(f"robustness.mutable: no input column {name!r}; {closest(name, columns)}")
    return np.asarray([column in names for column in columns])


def _id(norm: str, part: str) -> str:
    return f"robustness.{norm}.{part}"


def _stages(task: Task, norm: str) -> list[Stage]:
    threat = threat_model(task, norm)
    steps, restarts = budget(task)
    pgd = PGD(threat.norm, threat.eps, steps=steps, restarts=restarts, step_size=task.options.step_size, seed=task.seed)
    noise = UniformNoise(threat.norm, threat.eps, draws=task.options.noise_draws, seed=task.seed)
    stages = [
        _attack_stage(task, norm, "pgd", pgd, threat, 2.0 * steps * restarts, None),
        _attack_stage(task, norm, "noise", noise, threat, float(noise.draws), EVIDENCE_SAMPLES),
    ]
    if threat.mutable is None:
        # Radius as wide as the box: a working gradient attack then reaches any corner.
        corner = threat.reach(task.data.test.x.shape[1:])
        free = ThreatModel(threat.norm, corner, threat.low, threat.high, threat.scale)
        unbounded = PGD(threat.norm, corner, steps=UNBOUNDED_STEPS, restarts=4, seed=task.seed)
        stages.append(_attack_stage(task, norm, "unbounded", unbounded, free, 2.0 * UNBOUNDED_STEPS, EVIDENCE_SAMPLES // 2))
    return [*stages, _flat_stage(task, norm, threat)]


def budget(task: Task) -> tuple[int, int]:
    """Return steps and restarts: as stated, else those of the profile; regression needs a run up and one down."""
    steps, restarts = BUDGETS[task.profile]
    steps, restarts = task.options.steps or steps, task.options.restarts or restarts
    return steps, max(2, restarts) if task.model.task == "regression" else restarts


def _attack_stage(
    task: Task, norm: str, part: str, attack: Attack, threat: ThreatModel, passes: float, most: int | None
) -> Stage:
    cost_of = {"unbounded": _id(norm, "unbounded_breaks")}.get(part, _id(norm, "accuracy"))

    def job(block: Block) -> Arrays:
        out = attack(task.model, block.x, block.y, ids=block.ids, threat=threat, tolerance=tolerance(task, block.earlier))
        arrays = {
            "broken": out.success,
            "distance": out.distance,
            "loss_start": out.loss_start,
            "loss_end": out.loss_end,
            "grad_zero": out.grad_zero,
            "rejected": out.rejected,
        }
        if part == "pgd":
            arrays |= {"x_adv": out.x_adv, "adversarial": task.model.predict(out.x_adv)}
        return {name: tensor.cpu().numpy() for name, tensor in arrays.items()}

    def select(found: Found) -> NDArray[np.int64]:
        right = np.flatnonzero(right_at_first(task, found))
        return right[spread_over(len(right), most)]

    return Stage(
        id=_id(norm, part),
        job=job,
        cost_of=cost_of,
        select=select if most is not None else None,
        after=("predictions.test",),
        passes=passes,
        holds_inputs=part == "pgd",
    )


def _flat_stage(task: Task, norm: str, threat: ThreatModel) -> Stage:
    """Look closer at the samples whose gradient was zero wherever the attack looked."""

    def job(block: Block) -> Arrays:
        return {"moved": sanity.outputs_move(task.model, block.x, block.ids, threat, seed=task.seed).cpu().numpy()}

    pgd = _id(norm, "pgd")
    return Stage(
        id=_id(norm, "flat"),
        job=job,
        cost_of=_id(norm, "gradients_nonzero"),
        select=lambda found: found[pgd].positions[found[pgd]["grad_zero"]],
        after=(pgd,),
        passes=0.1,
    )


def tolerance(task: Task, found: Found) -> float | None:
    """Return how far a regression output must move: as stated, else one standard deviation of the residuals."""
    if task.model.task != "regression":
        return None
    if task.options.tolerance is not None:
        return float(task.options.tolerance)
    residuals = task.data.test.y - found["predictions.test"]["values"]
    return float(np.std(residuals)) or 1e-12


def right_at_first(task: Task, found: Found) -> NDArray[np.bool_]:
    """Tell which samples the network gets right before any attack; for regression all count."""
    clean = found["predictions.test"]
    if task.model.task == "regression":
        finite_values: NDArray[np.bool_] = np.isfinite(clean["values"])
        return finite_values
    logits = clean["logits"]
    right: NDArray[np.bool_] = (logits.argmax(axis=1) == task.data.test.y) & np.isfinite(logits).all(axis=1)
    return right


def spread_over(n: int, most: int | None) -> NDArray[np.int64]:
    """Return at most `most` of the positions 0 … n − 1, evenly spread, so that sorted data do not bias what is drawn."""
    return np.arange(n) if most is None or n <= most else np.linspace(0, n - 1, most).round().astype(np.int64)


def _conclude_norm(task: Task, norm: str, found: Found, answer: Answer) -> str:
    n = len(task.data.test)
    pgd, noise = found[_id(norm, "pgd")], found[_id(norm, "noise")]
    threat = threat_model(task, norm)
    right = right_at_first(task, found)
    # The attack's own clean forward can differ from the stored one by a rounding: a sample counts as broken if either says so.
    broken = pgd.spread("broken", n, False) | noise.spread("broken", n, False) | ~right
    standing = int((~broken).sum())
    interval = stats.clopper_pearson(standing, n, task.confidence)
    params = _params(task, norm, threat, found)
    accuracy = Metric(
        id=_id(norm, "accuracy"),
        value=interval.value,
        low=interval.low,
        high=interval.high,
        confidence=task.confidence,
        n=n,
        method="clopper-pearson",
        kind="upper",
        params={**params, "headline": True},
        detail="no attack of this run broke these samples; a stronger one might",
    )
    answer.metrics.append(accuracy)
    hit = broken & right
    success = stats.clopper_pearson(int(hit.sum()), int(right.sum()), task.confidence)
    answer.metrics.append(
        Metric(
            id=_id(norm, "attack_success"),
            value=success.value,
            low=success.low,
            high=success.high,
            confidence=task.confidence,
            n=int(right.sum()),
            method="clopper-pearson",
            kind="lower",
            direction="lower",
            params=params,
        )
    )
    answer.outcomes[_id(norm, "broken")] = broken
    answer.evidence += _evidence(norm, threat, found)
    if not right.any():
        answer.reasons.append("no sample was right before the attack, so nothing could be broken")
    answer.findings += _findings(task, norm, threat, hit, right, accuracy)
    answer.figures += _figures(task, norm, pgd, accuracy, right, hit, threat)
    noun = "kept their answer" if task.model.task == "regression" else "are right and stay right"
    return (
        f"Under {_name(norm)} changes of at most {_radius(task, threat)}, {standing} of {n} samples {noun} as far as this "
        f"attack found ({_percent(accuracy.value)}, {task.confidence:.0%} interval {_percent(accuracy.low)} to "
        f"{_percent(accuracy.high)})."
    )


def _params(task: Task, norm: str, threat: ThreatModel, found: Found) -> dict[str, Any]:
    steps, restarts = budget(task)
    params: dict[str, Any] = {
        "eps": threat.eps,
        "norm": norm,
        "unit": "input units" if threat.scale is None else "column standard deviations",
        "steps": steps,
        "restarts": restarts,
    }
    if task.model.task == "regression":
        params["tolerance"] = finite(tolerance(task, found))
    return params


def _evidence(norm: str, threat: ThreatModel, found: Found) -> list[Evidence]:
    prefix = f"robustness.{norm}"
    pgd, noise, free = found[_id(norm, "pgd")], found[_id(norm, "noise")], found.get(_id(norm, "unbounded"))
    attacked = np.isfinite(pgd["loss_start"])
    steep = attacked & ~pgd["grad_zero"]
    rejected = int(pgd["rejected"].sum())
    evidence = [sanity.verified(prefix, int((pgd["broken"] & attacked).sum()), rejected)]
    if attacked.any() and threat.eps > 0:
        zero, hidden = int((pgd["grad_zero"] & attacked).sum()), int(found[_id(norm, "flat")]["moved"].sum())
        evidence.append(sanity.gradients_nonzero(prefix, int(attacked.sum()), zero, hidden))
    if steep.any() and threat.eps > 0:
        start, end, broken = (pgd[name][steep] for name in ("loss_start", "loss_end", "broken"))
        evidence.append(sanity.loss_rises(prefix, start, end, broken))
    if len(noise.positions):
        at = np.searchsorted(pgd.positions, noise.positions)
        evidence.append(sanity.beats_noise(prefix, noise["broken"], pgd["broken"][at]))
    if free is not None and len(free.positions):
        evidence.append(sanity.unbounded_breaks(prefix, free["broken"]))
    return evidence


def _findings(
    task: Task, norm: str, threat: ThreatModel, hit: NDArray[np.bool_], right: NDArray[np.bool_], accuracy: Metric
) -> list[Finding]:
    if not hit.any():
        return []
    lost = float(hit.sum() / max(1, right.sum()))
    severity = "high" if lost >= 0.5 else "medium" if lost >= 0.1 else "low"
    changed = "moved the output too far" if task.model.task == "regression" else "turned a right answer wrong"
    return [
        Finding(
            severity=severity,  # type: ignore[arg-type]
            title=f"{_name(norm)} changes of at most {_radius(task, threat)} break {lost:.0%} of the answers",
            detail=f"Such a change {changed} on {int(hit.sum())} of {int(right.sum())} samples; every example was verified "
            f"again. What remains ({_percent(accuracy.value)}) is what this attack did not break, not what cannot be broken.",
            samples=[int(i) for i in task.data.test.ids[np.flatnonzero(hit)[:10]]],
        )
    ]


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
    untested += [
        "attacks other than projected gradient descent: its figure is an upper bound, and a stronger attack may lower it",
        "larger radii, patches, rotations, and changes that a camera or a sensor makes",
    ]
    if task.data.kind == "table" and task.options.mutable is None:
        untested.append("whether the changed rows could exist: every column moved freely, whole-number columns by fractions")
    if task.options.mutable is not None:
        untested.append("whether an unlimited radius breaks everything: only some columns may change, so it need not")
    return untested


def _figures(
    task: Task,
    norm: str,
    pgd: Merged,
    accuracy: Metric,
    right: NDArray[np.bool_],
    hit: NDArray[np.bool_],
    threat: ThreatModel,
) -> list[Figure]:
    n = len(task.data.test)
    clean = stats.clopper_pearson(int(right.sum()), n, task.confidence)
    figures = [
        Figure(
            id=_id(norm, "before_after"),
            kind="bars",
            title=f"Before and under attack ({_name(norm)}, at most {_radius(task, threat)})",
            data={
                "labels": ["clean inputs", "under attack"],
                "values": [clean.value, accuracy.value],
                "low": [clean.low, accuracy.low],
                "high": [clean.high, accuracy.high],
                "n": [n, n],
                "xlabel": "share of samples",
                "ylabel": "",
            },
        )
    ]
    if not task.keep_samples:
        return figures
    chosen = [
        int(i)
        for i in np.flatnonzero(hit & (pgd.spread("distance", n, 0.0) > 0) & np.isfinite(pgd.spread("distance", n, 0.0)))[
            :GALLERY
        ]
    ]
    if chosen and task.data.kind == "image" and task.data.test.x.shape[1] in (1, 3):
        figures.append(_gallery(task, norm, pgd, chosen))
    elif chosen and task.data.kind == "table":
        figures.append(_changes(task, norm, pgd, chosen))
    return figures


def _gallery(task: Task, norm: str, pgd: Merged, chosen: list[int]) -> Figure:
    low, high = (float(np.min(side)) if i == 0 else float(np.max(side)) for i, side in enumerate(task.data.box()))
    x, x_adv = task.data.test.x, pgd["x_adv"]
    rows = np.searchsorted(pgd.positions, chosen)
    items: list[Any] = []
    for position, row in zip(chosen, rows, strict=True):
        clean = (x[position].astype(np.float64) - low) / (high - low)
        changed = (x_adv[row].astype(np.float64) - low) / (high - low)
        items.append(
            {
                "id": int(task.data.test.ids[position]),
                "caption": _caption(task, pgd, position, int(row)),
                "images": [_pixels(clean), _pixels(changed), _pixels(0.5 + 5 * (changed - clean))],
            }
        )
    return Figure(
        id=_id(norm, "examples"),
        kind="gallery",
        title="Inputs that the attack broke",
        data={"panels": ["clean", "adversarial", "difference × 10"], "items": items},
    )


def _changes(task: Task, norm: str, pgd: Merged, chosen: list[int]) -> Figure:
    rows = np.searchsorted(pgd.positions, chosen)
    items: list[Any] = [
        {
            "id": int(task.data.test.ids[position]),
            "caption": _caption(task, pgd, position, int(row)),
            "clean": [float(v) for v in task.data.test.x[position]],
            "adversarial": [float(v) for v in pgd["x_adv"][row]],
        }
        for position, row in zip(chosen, rows, strict=True)
    ]
    return Figure(
        id=_id(norm, "examples"),
        kind="feature_change",
        title="Rows that the attack broke",
        data={"columns": list(task.data.columns), "items": items, "scale": [float(s) for s in task.data.scale()]},
    )


def _caption(task: Task, pgd: Merged, position: int, row: int) -> str:
    after = pgd["adversarial"][row]
    distance = f"distance {pgd['distance'][row]:.3g}"
    if task.model.task == "regression":
        return f"sample {int(task.data.test.ids[position])}: output moves to {float(after):.4g}, {distance}"
    names = task.classes
    return (
        f"sample {int(task.data.test.ids[position])}: {names[int(task.data.test.y[position])]} is taken for "
        f"{names[int(after)]}, {distance}"
    )


def _pixels(image: NDArray[np.float64]) -> dict[str, Any]:
    pixels = (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
    return {"shape": list(pixels.shape), "pixels": base64.b64encode(pixels.tobytes()).decode("ascii")}


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
