"""Decides which checks run, with which stages, in which order, and refuses what could only be measured in vain."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from audit.checks import base
from audit.checks.base import Check, MetricDoc, Stage, Task
from audit.config import Config, Limit, PolicySection, validate
from audit.data.base import Dataset
from audit.errors import AuditError, UsageError, closest
from audit.model.wrapper import Model

RESERVED = ("model", "data", "run", "policy")  # sections of audit.toml, so no names for checks
ONE_OF = {"<norm>": ("linf", "l2", "l1", "l0")}  # what a name in a row of docs/metrics.md stands for, where not for any
STAGE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # it names files


@dataclass
class Planned:
    """One check in the plan: its task and stages, or the reason why it is not applicable or could not be planned."""

    check: Check
    task: Task
    stages: list[Stage] = field(default_factory=list)
    not_applicable: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Plan:
    """All checks, and their stages in the order in which they can run."""

    planned: list[Planned]
    stages: list[Stage]

    def passes(self, data: Dataset) -> float:
        """Return the expected forwards plus backwards of the whole run, as far as they can be known before it."""
        return sum(stage.passes * part_size(data, stage.part) for stage in self.stages)


def make_plan(model: Model, data: Dataset, config: Config, *, debug: bool = False) -> Plan:
    """Decide which checks run, with which stages, in which order."""
    registry, chosen = base.registry(), chosen_checks(config)
    for check_id, values in config.checks.items():
        validate(registry[check_id].Options, values, check_id)  # those of checks that do not run this time, too
    planned = []
    for check_id in chosen:
        check = registry[check_id]()
        options = validate(check.Options, config.checks.get(check_id, {}), check_id)
        task = Task(
            model=model,
            data=data,
            options=options,
            seed=config.run.seed,
            confidence=config.policy.confidence,
            profile=config.run.profile,
            keep_samples=config.run.save_samples,
            budget=config.run.budget,
        )
        planned.append(_plan_one(check, task, debug))
    unique: dict[str, Stage] = {}
    if config.data.expect_accuracy is not None:
        # What was stated is held against what is measured before any long work, and where no check asks for it, too.
        if model.task == "regression":
            raise UsageError("--expect-accuracy is for classification, but the network is a regression network")
        unique["predictions.test"] = base.predictions(planned[0].task)
    for item in planned:
        for stage in item.stages:
            unique.setdefault(stage.id, stage)
    return Plan(planned, _in_order(unique))


def _plan_one(check: Check, task: Task, debug: bool) -> Planned:
    """Let a check list its work. A fault in the user's options ends the audit; a fault in the check ends the check."""
    try:
        reason = check.not_applicable(task)
        if reason is not None:
            return Planned(check, task, not_applicable=reason)
        check.preflight(task)
        stages = list(check.stages(task))
        _check_stages(stages)
    except AuditError:
        raise
    except Exception as error:
        if debug:
            raise
        return Planned(check, task, error=describe_error(error))
    return Planned(check, task, stages)


def _check_stages(stages: Sequence[Stage]) -> None:
    for stage in stages:
        if not STAGE_ID.fullmatch(stage.id):
            raise ValueError(f"a stage's id names files: letters, digits, '.', '_' and '-'; got {stage.id!r}")


def chosen_checks(config: Config) -> list[str]:
    """Return the ids of the checks to run: those asked for, else all, less those to skip."""
    known = list(base.registry())
    for check_id in known:
        if not re.fullmatch("[a-z0-9_]+", check_id) or check_id in RESERVED:
            raise UsageError(f"a check's id should be of [a-z0-9_] and none of {', '.join(RESERVED)}; got {check_id!r}")
    for check_id in (*(config.run.checks or ()), *config.run.skip):
        if check_id not in known:
            raise UsageError(f"no check {check_id!r}; {closest(check_id, known)}")
    asked = config.run.checks if config.run.checks is not None else known
    chosen = [check_id for check_id in known if check_id in asked and check_id not in config.run.skip]
    if not chosen:
        raise UsageError("no check is left to run: nothing would be measured; look at --checks and --skip")
    return chosen


def check_limits(policy: PolicySection, more: Sequence[MetricDoc] = (), *, baseline: bool = False) -> None:
    """Raise a UsageError for a limit that no check could ever measure, nor any metric in `more`, or that says nothing.

    So for a waiver of a limit that there is none of, and for ``max_drop`` without a `baseline`.
    """
    docs = [*(doc for check in base.registry().values() for doc in check.metrics), *more]
    limited = [limit.metric for limit in policy.limit]
    for waiver in policy.waiver:
        if waiver.metric not in limited:
            raise UsageError(f"a waiver for {waiver.metric!r}, on which there is no limit; {closest(waiver.metric, limited)}")
        if not any(waiver.covers(limit) for limit in policy.limit):
            kind = waiver.limit or "min or max"
            raise UsageError(
                f"a waiver for {kind} on {waiver.metric!r}, but its limit is another: name it in the waiver, "
                'limit = "min", "max" or "max_drop"'
            )
    for limit in policy.limit:
        doc = next((doc for doc in docs if is_of(limit.metric, doc.id)), None)
        if doc is None:
            near = closest(limit.metric, [doc.id for doc in docs])
            raise UsageError(f"no check measures {limit.metric!r}; {near}; see audit list metrics")
        if (limit.min, limit.max, limit.max_drop).count(None) != 2:
            raise UsageError(f"the limit on {limit.metric!r} should have one of min, max and max_drop")
        if limit.max_drop is not None:
            _check_drop(limit, doc, baseline)
            continue
        side, other = ("min", "max") if doc.direction == "higher" else ("max", "min")
        if getattr(limit, other) is not None:
            raise UsageError(f"{limit.metric} is better {doc.direction}, so a limit on it needs {side}, got {other}")
        if doc.range == "0 to 1":
            _check_fraction(limit)
        elif doc.range == "-1 to 1":
            _check_difference(limit)


def _check_drop(limit: Limit, doc: MetricDoc, baseline: bool) -> None:
    if not baseline:
        raise UsageError(f"max_drop on {limit.metric!r} needs an older result: --baseline OLD.json (pytest: --audit-baseline)")
    if doc.unit == "fraction" and limit.max_drop is not None and limit.max_drop >= 1:
        raise UsageError(f"{limit.metric} is a share, so max_drop should be below 1, such as 0.02, got {limit.max_drop:g}")


def _check_fraction(limit: Limit) -> None:
    """Refuse a limit that every network keeps, or none: 40 where 0.4 was meant must not become a gate that is always green."""
    if limit.min is not None and not 0 < limit.min <= 1:
        raise UsageError(f"{limit.metric} lies between 0 and 1, so min should be above 0 and at most 1, got {limit.min:g}")
    if limit.max is not None and not 0 <= limit.max < 1:
        raise UsageError(f"{limit.metric} lies between 0 and 1, so max should be at least 0 and below 1, got {limit.max:g}")


def _check_difference(limit: Limit) -> None:
    """As `_check_fraction`, for a metric between -1 and 1: 5 where 0.05 was meant."""
    if limit.min is not None and not -1 < limit.min <= 1:
        raise UsageError(f"{limit.metric} lies between -1 and 1, so min should be above -1 and at most 1, got {limit.min:g}")
    if limit.max is not None and not -1 <= limit.max < 1:
        raise UsageError(f"{limit.metric} lies between -1 and 1, so max should be at least -1 and below 1, got {limit.max:g}")


def is_of(metric: str, pattern: str) -> bool:
    """Tell whether a metric's id is one of those that a row of docs/metrics.md stands for."""
    parts, wanted = metric.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(_stands_for(w, p) for p, w in zip(parts, wanted, strict=True))


def _stands_for(wanted: str, part: str) -> bool:
    return part in ONE_OF.get(wanted, (part,)) if wanted.startswith("<") else wanted == part


def _in_order(stages: Mapping[str, Stage]) -> list[Stage]:
    ordered: list[Stage] = []
    placed: set[str] = set()
    waiting = dict(stages)
    while waiting:
        ready = [s for s in waiting.values() if not any(s.waits_for(other) for other in stages if other not in placed)]
        if not ready:
            raise UsageError(f"these stages wait for each other: {', '.join(waiting)}")
        for stage in [s for s in ready if not s.last] or ready:
            ordered.append(stage)
            placed.add(stage.id)
            del waiting[stage.id]
    return ordered


def announce(model: Model, data: Dataset, plan: Plan) -> str:
    """Say what goes in and what will be done, before it is done."""
    shape = " × ".join(str(side) for side in data.test.x.shape[1:])
    what = f"{len(data.columns)} columns: {', '.join(data.columns)}" if data.columns else f"{shape} each"
    checks = [item.check.id for item in plan.planned if item.not_applicable is None]
    skipped = [f"{item.check.id} does not apply ({item.not_applicable})" for item in plan.planned if item.not_applicable]
    lines = [
        f"network: {model.origin.source}, {model.task}, returns {model.output}"
        + ("" if model.task == "regression" else f", {model.classes} {'labels' if model.task == 'multilabel' else 'classes'}"),
        f"data: {data.source}, {len(data.test):,} samples, {what}; as {data.test.x.dtype} from {data.test.x.min():g} to "
        f"{data.test.x.max():g}"
        + (f"; reference: {len(data.reference):,} samples" if data.reference else "; no reference part")
        + (f"; anomalies: {len(data.anomalies):,} inputs" if data.anomalies else ""),
        *(f"note: {note}" for note in (*model.notes, *data.notes)),
        f"checks: {', '.join(checks)}; at most about {plan.passes(data):,.0f} passes of one sample"
        + (", more for the explainers" if any(stage.id.startswith("explanation.") for stage in plan.stages) else ""),
        *(f"note: {line}" for line in skipped),
    ]
    return "\n".join(line.replace("\n", " ") for line in lines)


def part_size(data: Dataset, part: str) -> int:
    """Return the number of samples of a part; 0 where there is none."""
    samples = data.part(part)
    return 0 if samples is None else len(samples)


def describe_error(error: BaseException) -> str:
    """Say in one line what went wrong and where."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({Path(last[0].filename).name}:{last[0].lineno})" if last else ""
    return f"{type(error).__name__}: {error}{where}"
