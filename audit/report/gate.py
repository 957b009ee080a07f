"""What a machine must know of a result, item by item: the verdict, the limits, the evidence, the checks that fell short.

JUnit, SARIF and the lines for GitHub are drawn from these items, so that they agree. One rule holds for all of them: some item
is *binding* and not passed exactly where the run ends with another exit code than 0. What does not move the verdict is told and
turns nothing red; what moves it is never told as skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from pydantic import JsonValue

from audit.policy import asked, describe
from audit.report import text, view
from audit.result import Change, CheckResult, Evidence, Judgement, Metric, Result

Kind = Literal["verdict", "limit", "evidence", "check", "baseline"]
Outcome = Literal["pass", "fail", "incomplete", "waived", "not_applicable"]
VERDICTS: dict[str, Outcome] = {"pass": "pass", "fail": "fail"}
EXIT_CODES = {
    0: "every required limit is cleared, or no limits were set and no gate was asked for",
    1: "a required limit failed",
    2: "an option or the configuration cannot be used",
    3: "the model or the data could not be loaded, or do not fit",
    4: "the evidence is too weak for a verdict, or a gate was asked for without limits",
    5: "an internal error",
    130: "interrupted",
}


@dataclass(frozen=True)
class Item:
    """One thing that passed, failed or stayed undecided. All its strings are as hostile as those of the result.

    Attributes
    ----------
    kind, key
        What it is, and what tells it from its siblings from one run to the next: the metric and side of a limit, the id of a
        piece of evidence or of a check. It holds no figure.
    group
        Id of the check that it belongs to; ``policy`` for the verdict and for limits on what no check measured.
    outcome, binding
        What came of it, and whether that moves the verdict.
    seconds
        What it took to measure, where that is known.
    figures
        The numbers that it rests on.
    """

    kind: Kind
    key: str
    group: str
    name: str
    outcome: Outcome
    binding: bool
    message: str
    seconds: float = 0.0
    figures: dict[str, JsonValue] = field(default_factory=dict)

    @property
    def red(self) -> bool:
        """Whether a machine must stop on it."""
        return self.binding and self.outcome in ("fail", "incomplete")


def items(result: Result) -> list[Item]:
    """Return the verdict, then the limits in the order of the policy, then evidence and checks, then the baseline."""
    return [_verdict(result), *_limits(result), *_evidence(result), *_checks(result), *_baseline(result)]


def ends_red(result: Result) -> bool:
    """Tell whether the run ends with another exit code than 0; where verdict and exit code disagree, the worse counts."""
    return result.exit_code != 0 or result.verdict in ("fail", "incomplete")


def metric_figures(metric: Metric) -> dict[str, JsonValue]:
    """Return a metric's value, interval, and how it was made."""
    return metric.model_dump(mode="json", include={"value", "low", "high", "confidence", "n", "method", "kind", "unit"})


def _verdict(result: Result) -> Item:
    outcome = VERDICTS.get(result.verdict, "incomplete")
    if outcome == "pass" and result.exit_code != 0:
        outcome = "incomplete"
    said = view.sentence(result)
    if result.verdict == "unjudged" and result.exit_code:
        said = f"A gate was asked for, but no required limit was set. {said}"
    return Item("verdict", "verdict", "policy", "the verdict", outcome, ends_red(result), said, result.seconds)


def _limits(result: Result) -> Iterator[Item]:
    owners = {metric.id: (check, metric) for check in result.checks for metric in check.metrics}
    for judgement in result.policy:
        check, metric = owners.get(judgement.metric, (None, None))
        figures: dict[str, JsonValue] = judgement.model_dump(mode="json", exclude={"metric", "reason", "outcome"})
        if metric is not None:
            figures |= metric_figures(metric)
        part = check.cost.parts.get(judgement.metric) if check is not None else None
        yield Item(
            kind="limit",
            key=f"{judgement.metric} {_side(judgement)}",
            group=check.id if check is not None else "policy",
            name=f"{judgement.metric} should be {asked(judgement)}{'' if judgement.required else ' (not required)'}",
            outcome=judgement.outcome,
            binding=judgement.required,
            message=describe(judgement) + (f"; plan for {judgement.plan_for:,} samples" if judgement.plan_for else ""),
            seconds=part.seconds if part is not None else 0.0,
            figures=figures,
        )


def _side(judgement: Judgement) -> str:
    return "min" if judgement.min is not None else "max" if judgement.max is not None else "max_drop"


def _evidence(result: Result) -> Iterator[Item]:
    red = ends_red(result)
    for check in result.checks:
        for evidence in check.evidence:
            yield _one_evidence(check, evidence, red)


def _one_evidence(check: CheckResult, evidence: Evidence, red: bool) -> Item:
    part = check.cost.parts.get(evidence.id)
    return Item(
        kind="evidence",
        key=evidence.id,
        group=check.id,
        name=f"evidence: {evidence.id}",
        outcome="pass" if evidence.ok else "incomplete",
        # Where all limits are cleared none rests on this evidence: a limit on a figure of its check would be open.
        binding=red,
        message=evidence.detail or ("it holds" if evidence.ok else "it does not hold"),
        seconds=part.seconds if part is not None else 0.0,
        figures={"ok": evidence.ok, "value": evidence.value, "one_sided": evidence.one_sided},
    )


def _checks(result: Result) -> Iterator[Item]:
    wanted, red = _asked_for(result), ends_red(result)
    for check in result.checks:
        if check.status == "measured":
            continue
        fell_out = check.status == "error" or (check.status == "incomplete" and not check.metrics)
        missing = check.status == "not_applicable" and check.id in wanted
        why = f"{view.STATUSES[check.status]}: {check.reason or 'no reason was recorded'}"
        if check.status == "not_applicable" and not missing:
            yield _check(check.id, why, "not_applicable", binding=False)
        else:
            yield _check(check.id, why, "incomplete", binding=fell_out or missing or red)
    there = {check.id for check in result.checks}
    for check_id in wanted:
        if check_id not in there:
            yield _check(check_id, "not run: it was asked for with --checks", "incomplete", binding=True)


def _check(check_id: str, why: str, outcome: Outcome, *, binding: bool) -> Item:
    return Item("check", check_id, check_id, f"the check {check_id} runs to its end", outcome, binding, why)


def _asked_for(result: Result) -> list[str]:
    """Return the checks that were asked for by name, and so must have run."""
    run = result.spec.config.get("run")
    asked_for = run.get("checks") if isinstance(run, dict) else None
    hardened = any(check.id == "hardening" for check in result.checks)  # it audits performance and robustness alone
    return [str(check_id) for check_id in asked_for] if isinstance(asked_for, list) and not hardened else []


def _baseline(result: Result) -> Iterator[Item]:
    compared = result.comparison
    if compared is None:
        return
    outcome: Outcome = "fail" if compared.verdict == "worse" else "pass"
    if compared.verdict == "not_comparable":
        outcome = "incomplete"
    # A change for the worse fails a run through a limit with max_drop alone; one that cannot be seen leaves it incomplete.
    binding = compared.verdict == "not_comparable"
    message = f"{compared.verdict.replace('_', ' ')}: {compared.sentence}"
    name = "the network should be no worse than the baseline"
    yield Item("baseline", "baseline", "baseline", name, outcome, binding, message)
    for change in compared.changes:
        if change.outcome == "worse":
            name = f"{change.metric} should be no worse than in the baseline"
            yield Item("baseline", change.metric, "baseline", name, "fail", False, _changed(change), figures=_figures(change))


def _changed(change: Change) -> str:
    sizes = [text.number(value, change.unit) for value in (change.old, change.new)]
    by = f"{text.signed(change.change, change.unit)}, interval {text.interval(change.low, change.high, change.unit)}"
    return f"{change.metric} went from {sizes[0]} to {sizes[1]}: {by}{'; ' + change.reason if change.reason else ''}"


def _figures(change: Change) -> dict[str, JsonValue]:
    return change.model_dump(mode="json", include={"old", "new", "change", "low", "high", "p_worse", "method", "n", "unit"})
