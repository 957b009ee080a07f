"""What the pages say, worked out from a result: which rows, which words, in which order. Templates only lay it out."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from audit.report import text
from audit.report.words import plain_words
from audit.result import CheckResult, Finding, Judgement, Metric, Result

VERDICTS = {"pass": "Pass", "fail": "Fail", "incomplete": "Incomplete", "unjudged": "Unjudged"}
FALLBACK_SENTENCES = {
    "pass": "Every required limit of the policy is met.",
    "fail": "At least one required limit of the policy is not met.",
    "incomplete": "At least one required limit of the policy could not be decided.",
    "unjudged": "No limits were set: figures, and no good news.",
}
STATUSES = {
    "pass": "pass",
    "fail": "fail",
    "incomplete": "incomplete",
    "waived": "waived",
    "unjudged": "unjudged",
    "measured": "measured",
    "not_applicable": "not applicable",
    "error": "error",
    "no_limit": "no limit",
    "ok": "holds",
    "not_ok": "does not hold",
    "better": "better",
    "worse": "worse",
    "unchanged": "unchanged",
    "not_comparable": "not comparable",
}
KINDS = {
    ("estimate", "higher"): "estimate",
    ("estimate", "lower"): "estimate",
    ("upper", "higher"): "upper bound on the truth: no attack found a lower one",
    ("upper", "lower"): "upper bound on the truth: it is at most this",
    ("lower", "higher"): "lower bound on the truth: it is at least this",
    ("lower", "lower"): "lower bound on the truth: a stronger attack may raise it",
}
DIRECTIONS = {"higher": "higher is better", "lower": "lower is better"}
SEVERITIES = ("high", "medium", "low", "info")


@dataclass(frozen=True)
class Flaw:
    """A finding with the check that made it."""

    check: str
    anchor: str
    finding: Finding


@dataclass(frozen=True)
class Gap:
    """Something that was not tested, with the check that says so; no check for what concerns the whole run."""

    check: str
    anchor: str
    detail: str


@dataclass(frozen=True)
class Limit:
    """One limit of the policy in words, with how far the bound stands from it."""

    judgement: Judgement
    words: str
    bound: str
    margin: str
    p_fail: str
    plan_for: str
    status: str


@dataclass(frozen=True)
class Strip:
    """Where an interval, its value and its limits lie between 0 and 1: the small ruler of the scorecard."""

    low: float | None
    high: float | None
    value: float | None
    floor: float | None
    ceiling: float | None


@dataclass(frozen=True)
class Score:
    """One row of the scorecard."""

    metric: Metric | None
    name: str
    value: str
    interval: str
    note: str
    limits: list[Limit]
    status: str
    strip: Strip | None


@dataclass(frozen=True)
class ScoreGroup:
    """All rows of the scorecard of one check, or of the limits on metrics of no check that ran."""

    name: str
    anchor: str
    status: str
    scores: list[Score]


@dataclass(frozen=True)
class Spent:
    """What one part of a check cost: its name in plain words, its id, and passes in all and for each sample audited."""

    words: str
    id: str
    forwards: str
    backwards: str
    forwards_each: str
    backwards_each: str
    seconds: str


@dataclass(frozen=True)
class Facts:
    """A titled list of names and values: what went in."""

    title: str
    entries: list[tuple[str, str]]
    notes: list[str] = field(default_factory=list)


def anchors(result: Result) -> dict[int, str]:
    """Return an anchor for each check by position, one of a kind even where two checks share an id."""
    taken: set[str] = set()
    found = {}
    for index, check in enumerate(result.checks):
        name = f"check-{check.id}"
        found[index] = name if name not in taken else f"{name}--{index}"
        taken.add(found[index])
    return found


def sentence(result: Result) -> str:
    """Return the verdict's sentence; an unjudged result always says that this is no good news."""
    said = result.sentence.strip() or FALLBACK_SENTENCES[result.verdict]
    if result.verdict == "unjudged" and "no good news" not in said:
        said = f"{FALLBACK_SENTENCES['unjudged']} {said}"
    return said


def worst_findings(result: Result, limit: int | None = None) -> list[Flaw]:
    """Return the findings of all checks, the worst first; among equals in the order of the checks."""
    names = anchors(result)
    flaws = [Flaw(c.id, names[i], finding) for i, c in enumerate(result.checks) for finding in c.findings]
    return sorted(flaws, key=lambda flaw: SEVERITIES.index(flaw.finding.severity))[:limit]


def ranked(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings of a check, the worst first."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def gaps(result: Result) -> list[Gap]:
    """Return all that was not tested: checks that did not run first, then what each check leaves open, in turn.

    What several checks say in the same words stands once, with the first that says it.
    """
    names = anchors(result)
    hardened = any(check.id == "hardening" for check in result.checks)
    why = "hardening audits performance and robustness alone" if hardened else "left out by --checks or --skip"
    found = [Gap(check_id, "", f"not run: {why}") for check_id in result.spec.not_run]
    found += [
        Gap(check.id, names[i], f"{_NOT_RUN[check.status]}: {check.reason or 'no reason was recorded'}")
        for i, check in enumerate(result.checks)
        if check.status in _NOT_RUN
    ]
    longest = max((len(check.not_tested) for check in result.checks), default=0)
    left_open: dict[str, Gap] = {}
    for rank in range(longest):
        for i, check in enumerate(result.checks):
            if rank < len(check.not_tested):
                words = " ".join(check.not_tested[rank].lower().split()).rstrip(".")
                left_open.setdefault(words, Gap(check.id, names[i], check.not_tested[rank]))
    return found + list(left_open.values())


_NOT_RUN = {"not_applicable": "not applicable", "error": "ended in an error", "incomplete": "not complete"}


def limits(result: Result) -> list[Limit]:
    """Return all limits of the policy in words."""
    units = {metric_id: metric.unit for metric_id, metric in result.metrics().items()}
    return [_limit(judgement, units.get(judgement.metric, "")) for judgement in result.policy]


def scorecard(result: Result) -> list[ScoreGroup]:
    """Return the headline metrics and all that have a limit, check by check.

    A check's headline metrics are those with ``params.headline``; where none has it, the first two. A limit on a metric that
    was not measured stands with its check; where no such check ran, in a group of its own at the end.
    """
    names = anchors(result)
    by_metric: dict[str, list[Limit]] = {}
    for limit in limits(result):
        by_metric.setdefault(limit.judgement.metric, []).append(limit)
    groups = []
    for i, check in enumerate(result.checks):
        scores = [_score(metric, by_metric.get(metric.id, []), check) for metric in _headline(check, set(by_metric))]
        measured = {metric.id for metric in check.metrics}
        for metric_id in [name for name in by_metric if name.startswith(f"{check.id}.") or name in measured]:
            unmet = by_metric.pop(metric_id)
            if metric_id not in measured:
                scores.append(_no_score(check, metric_id.split(".", 1)[1], unmet))
        groups.append(ScoreGroup(check.id, names[i], check.status, scores or [_no_score(check, "", [])]))
    if by_metric:
        left = [
            Score(None, metric_id, text.DASH, text.DASH, "no check measured it", some, _worst(some), None)
            for metric_id, some in by_metric.items()
        ]
        groups.append(ScoreGroup("no check", "limits", "measured", left))
    return groups


def facts(result: Result) -> list[Facts]:
    """Return what went in: the model, the data, and the run."""
    return [_model_facts(result), _data_facts(result), _run_facts(result)]


def spent(result: Result, check: CheckResult) -> list[Spent]:
    """Return what each part of a check cost, the dearest first (by passes, then seconds)."""
    parts = sorted(check.cost.parts.items(), key=lambda entry: (-entry[1].forwards - entry[1].backwards, -entry[1].seconds))
    return [
        Spent(
            words=plain_words(name),
            id=name,
            forwards=text.count(part.forwards),
            backwards=text.count(part.backwards),
            forwards_each=_each(part.forwards, result.data.n),
            backwards_each=_each(part.backwards, result.data.n),
            seconds=f"{part.seconds:,.2f}",
        )
        for name, part in parts
    ]


def _each(passes: int, samples: int) -> str:
    return text.number(round(passes / samples, 2)) if samples else text.DASH


def configuration(result: Result) -> list[tuple[str, str]]:
    """Return the resolved configuration as dotted keys and values, then packages and git."""
    spec = result.spec
    rows = list(_flatten("", spec.config))
    rows += [(f"package {name}", version) for name, version in spec.packages.items()]
    return rows + list(_flatten("git.", spec.git))


def command(result: Result, check_id: str) -> str:
    """Return the command that repeats one check, or an empty string where the run was not started from a shell."""
    said = result.spec.command.strip()
    if not said:
        return ""
    try:
        words = shlex.split(said)
    except ValueError:
        return said
    if words[1:2] == ["harden"]:
        return said  # it has no --checks: training and both audits are one
    kept: list[str] = []
    out, after = "audit-out", ""
    for word in words:
        name, equals, value = word.partition("=")
        if after:
            out, after = (word if after == "--out" else out), ""
        elif name in ("--checks", "--skip", "--out"):
            after = "" if equals else name
            out = value if name == "--out" and equals else out
        else:
            kept.append(word)
    # A folder of its own: the whole report must not be replaced by one of a single check.
    return shlex.join([*kept, "--checks", check_id, "--out", f"{out.rstrip('/')}-{check_id}"])


def _limit(judgement: Judgement, unit: str) -> Limit:
    sides = []
    if judgement.min is not None:
        sides.append(f"at least {_limit_number(judgement.min)}")
    if judgement.max is not None:
        sides.append(f"at most {_limit_number(judgement.max)}")
    if judgement.max_drop is not None:
        sides.append(f"worse by at most {_limit_number(judgement.max_drop)}")
    return Limit(
        judgement=judgement,
        words=" and ".join(sides) or "see the reason",
        bound=text.number(judgement.bound, unit),
        margin=text.signed(_margin(judgement), unit),
        p_fail=text.p_value(judgement.p_fail),
        plan_for=text.count(judgement.plan_for),
        status=judgement.outcome,
    )


def _limit_number(value: float) -> str:
    # as it stands in audit.toml, not rounded
    return f"{value:.10g}".replace("-", "−")


def _margin(judgement: Judgement) -> float | None:
    if judgement.bound is None:
        return None
    room = [judgement.bound - judgement.min] if judgement.min is not None else []
    room += [judgement.max - judgement.bound] if judgement.max is not None else []
    room += [judgement.max_drop - judgement.bound] if judgement.max_drop is not None else []
    return min(room, default=None)


def _headline(check: CheckResult, limited: set[str]) -> list[Metric]:
    chosen = [metric for metric in check.metrics if metric.params.get("headline") is True] or check.metrics[:2]
    ids = {metric.id for metric in chosen} | limited
    return [metric for metric in check.metrics if metric.id in ids]


def _score(metric: Metric, its_limits: list[Limit], check: CheckResult) -> Score:
    status = _worst(its_limits)
    if status == "no_limit" and check.status != "measured":
        status = check.status
    note = metric.detail if metric.value is None else ""
    return Score(
        metric=metric,
        name=metric.id.split(".", 1)[1],
        value=text.measure(metric.value, metric.unit),
        interval=text.interval(metric.low, metric.high, metric.unit),
        note=text.clip(note, 120),
        limits=its_limits,
        status=status,
        strip=_strip(metric, its_limits),
    )


def _no_score(check: CheckResult, name: str, its_limits: list[Limit]) -> Score:
    note = text.clip(check.reason or "not measured", 160)
    status = _worst(its_limits) if its_limits else check.status
    return Score(None, name, text.DASH, text.DASH, note, its_limits, status, None)


def _worst(its_limits: Sequence[Limit]) -> str:
    outcomes = [limit.status for limit in its_limits]
    return next((word for word in ("fail", "incomplete", "waived", "pass") if word in outcomes), "no_limit")


def _strip(metric: Metric, its_limits: Sequence[Limit]) -> Strip | None:
    floor = next((limit.judgement.min for limit in its_limits if limit.judgement.min is not None), None)
    ceiling = next((limit.judgement.max for limit in its_limits if limit.judgement.max is not None), None)
    marks = [mark for mark in (metric.low, metric.value, metric.high, floor, ceiling) if mark is not None]
    if metric.unit != "fraction" or not marks or min(marks) < 0 or max(marks) > 1:
        return None
    return Strip(metric.low, metric.high, metric.value, floor, ceiling)


def _model_facts(result: Result) -> Facts:
    model = result.model
    notes = [*model.notes, *trust(result)]
    classes = [] if model.classes is None else [("classes", _classes(model.classes, model.class_names))]
    entries = [
        ("source", model.source),
        ("sha-256", text.short_hash(model.sha256)),
        ("format", model.format),
        ("task", model.task),
        *classes,
        ("input shape", " × ".join(str(side) for side in model.input_shape)),
        ("parameters", text.count(model.parameters)),
        ("output", model.output),
    ]
    return Facts("The network", [(name, value) for name, value in entries if value], notes)


def trust(result: Result) -> list[str]:
    """Say so where the model file was let run code of its own, and what stood around it."""
    if not result.model.trusted:
        return []
    walls = f", in a sandbox: {result.spec.sandbox}" if result.spec.sandbox else ", with the rights of who ran the audit"
    return [f"The file was loaded as a program, on the caller's word (--trust-model){walls}."]


def _classes(classes: int, names: Sequence[str]) -> str:
    listed = text.listed((text.clip(name, 30) for name in names), 6)
    return f"{classes} ({listed})" if names else str(classes)


def _data_facts(result: Result) -> Facts:
    data = result.data
    samples = text.count(data.n)
    if data.rows > data.n:
        samples += f" of {text.count(data.rows)} rows"
    entries = [
        ("source", data.source),
        ("sha-256", text.short_hash(data.sha256)),
        ("kind", data.kind),
        ("samples", samples),
        ("reference", text.count(data.n_reference) if data.n_reference else "none given"),
        ("anomalies", text.count(data.n_anomalies) if data.n_anomalies else ""),
        ("columns", text.listed((text.clip(name, 40) for name in data.columns), 12)),
        ("sensitive", text.listed((text.clip(name, 40) for name in data.sensitive), 12)),
        ("bounds", _bounds(data.bounds)),
    ]
    return Facts("The data", [(name, value) for name, value in entries if value], list(data.notes))


def _bounds(bounds: Sequence[JsonValue] | None) -> str:
    if bounds is None:
        return ""
    inside = text.listed((text.clip(text.cell(bound), 200) for bound in bounds), 8)
    return f"[{inside}]" if len(bounds) == 2 else inside


def _run_facts(result: Result) -> Facts:
    spec = result.spec
    entries = [
        ("started", result.started_at),
        ("took", f"{result.seconds:,.1f} s"),
        ("intervals", text.percent(spec.confidence)),
        ("seed", str(spec.seed)),
        ("device", spec.device),
        ("audit", spec.audit_version),
        ("python", spec.python),
        ("platform", spec.platform),
        ("sandbox", spec.sandbox),
        ("policy", text.short_hash(spec.policy_sha256) if spec.policy_sha256 else "no limits"),
    ]
    return Facts("The run", [(name, value) for name, value in entries if value])


def _flatten(prefix: str, values: dict[str, JsonValue]) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten(f"{prefix}{key}.", value)
        else:
            yield prefix + key, text.cell(value)
