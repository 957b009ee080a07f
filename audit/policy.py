"""Holds limits against metrics: limits -> judgements -> verdict -> exit code. It works on a Result alone.

The bound on the unfavourable side must clear a limit: pass. The whole interval lies beyond it, and does so after Holm's
correction for the number of limits: fail. Everything else is incomplete: an interval that straddles the limit, a check that
did not run or whose evidence is not ok, a metric that is missing. One exception: a failed ``min`` on an upper bound (or ``max``
on a lower one) stands where evidence is not ok, since better evidence could only make it worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from audit import stats
from audit.config import Limit, PolicySection
from audit.errors import PolicyFailed
from audit.result import VERDICT_EXIT_CODES, CheckResult, Judgement, Metric, Result, VerdictWord


@dataclass(frozen=True)
class Verdict:
    """The word, its sentence, the exit code, and the judgements that it rests on."""

    word: VerdictWord
    sentence: str
    exit_code: int
    judgements: list[Judgement]


def judge(policy: PolicySection, checks: Sequence[CheckResult], *, gate: bool, required: Sequence[str] = ()) -> Verdict:
    """Hold the policy against what the checks found.

    Parameters
    ----------
    policy
        The limits.
    checks
        What the run found.
    gate
        Whether *unjudged* ends with exit code 4 rather than 0.
    required
        Ids of checks that must have run, whether or not a limit names them.
    """
    found = {metric.id: (metric, check) for check in checks for metric in check.metrics}
    alpha = (1 - policy.confidence) / 2
    first = [_judge_one(limit, found, checks) for limit in policy.limit]
    judgements = _correct_for_number(first, found, alpha)
    word = _word(judgements, checks, required)
    exit_code = 4 if gate and word == "unjudged" else VERDICT_EXIT_CODES[word]
    return Verdict(word, _sentence(word, judgements, checks, required), exit_code, judgements)


def require(result: Result) -> None:
    """Raise PolicyFailed with a readable list unless the verdict is *pass*; an unjudged result raises, too."""
    if result.verdict == "pass":
        return
    lines = [f"audit: {result.verdict}: {result.sentence}"]
    for judgement in result.policy:
        if judgement.outcome != "pass":
            lines.append(f"  {judgement.outcome}: {describe(judgement)}")
    for check in result.checks:
        if check.status in ("error", "incomplete") and check.reason:
            lines.append(f"  {check.id} is {check.status}: {check.reason}")
    raise PolicyFailed("\n".join(lines), exit_code=1 if result.verdict == "fail" else 4)


def describe(judgement: Judgement) -> str:
    """Say in a line what was asked of a metric and what was found."""
    side, limit = ("at least", judgement.min) if judgement.min is not None else ("at most", judgement.max)
    bound = "nothing measured" if judgement.bound is None else f"its bound is {judgement.bound:.4g}"
    return f"{judgement.metric} should be {side} {limit:g}; {bound}{'; ' + judgement.reason if judgement.reason else ''}"


def _judge_one(limit: Limit, found: dict[str, tuple[Metric, CheckResult]], checks: Sequence[CheckResult]) -> Judgement:
    base = Judgement(metric=limit.metric, min=limit.min, max=limit.max, required=limit.required, outcome="incomplete")
    if limit.metric not in found:
        return base.model_copy(update={"reason": _why_missing(limit.metric, checks)})
    metric, check = found[limit.metric]
    if metric.value is None or metric.low is None or metric.high is None:
        return base.model_copy(update={"reason": metric.detail or "the metric has no value or no interval"})
    side: stats.Side = "min" if limit.min is not None else "max"
    threshold = limit.min if limit.min is not None else limit.max
    assert threshold is not None  # noqa: S101  (the config holds exactly one of them)
    bound, best = (metric.low, metric.high) if side == "min" else (metric.high, metric.low)
    clears = bound >= threshold if side == "min" else bound <= threshold
    beyond = best < threshold if side == "min" else best > threshold
    p_fail = stats.p_beyond(metric.method, metric.value, metric.n, metric.low, metric.high, metric.confidence, threshold, side)
    update: dict[str, object] = {"bound": bound, "p_fail": p_fail}
    one_way = metric.kind == {"min": "upper", "max": "lower"}[side]
    if check.status != "measured" and not (beyond and one_way):
        update["reason"] = f"the check {check.id} is {check.status}: {check.reason or 'no reason given'}"
    elif clears:
        update["outcome"] = "pass"
    elif beyond:
        update["outcome"] = "fail"
    else:
        update["reason"] = (
            f"the limit lies inside the interval {metric.low:.4g} to {metric.high:.4g}: more samples, planned before they are "
            "looked at, would decide it; adding samples until it passes is not a test"
        )
        update["plan_for"] = stats.plan_size(
            metric.method, metric.value, metric.n, metric.low, metric.high, metric.confidence, threshold
        )
    return base.model_copy(update=update)


def _correct_for_number(
    judgements: list[Judgement], found: dict[str, tuple[Metric, CheckResult]], alpha: float
) -> list[Judgement]:
    """Turn a fail that does not survive Holm's correction over all limits with a p-value into incomplete."""
    with_p = [i for i, j in enumerate(judgements) if j.p_fail is not None]
    adjusted = stats.holm([judgements[i].p_fail or 0.0 for i in with_p])
    out = list(judgements)
    for i, p in zip(with_p, adjusted, strict=True):
        if out[i].outcome == "fail" and p is not None and p > alpha:
            reason = f"beyond the limit on its own, but not among {len(with_p)} limits (Holm: {p:.3g} > {alpha:.3g})"
            metric = found[out[i].metric][0]
            threshold = out[i].min if out[i].min is not None else out[i].max
            assert metric.value is not None and metric.low is not None and metric.high is not None and threshold is not None  # noqa: S101, PT018
            size = stats.plan_size(metric.method, metric.value, metric.n, metric.low, metric.high, metric.confidence, threshold)
            out[i] = out[i].model_copy(update={"outcome": "incomplete", "reason": reason, "plan_for": size})
    return out


def _word(judgements: Sequence[Judgement], checks: Sequence[CheckResult], required: Sequence[str]) -> VerdictWord:
    binding = [j.outcome for j in judgements if j.required]
    if "fail" in binding:
        return "fail"
    if _not_run(checks, required) or "incomplete" in binding:
        return "incomplete"
    return "pass" if binding else "unjudged"


def _not_run(checks: Sequence[CheckResult], required: Sequence[str]) -> list[str]:
    """Ids of the checks that ended in error, and of those asked for by name that did not apply or are missing."""
    status = {check.id: check.status for check in checks}
    failed = [check_id for check_id, word in status.items() if word == "error"]
    absent = [check_id for check_id in required if status.get(check_id, "not_applicable") == "not_applicable"]
    return failed + absent


def _why_missing(metric: str, checks: Sequence[CheckResult]) -> str:
    family = metric.partition(".")[0]
    for check in checks:
        if family == check.id or any(m.id.split(".")[0] == family for m in check.metrics):
            if check.status in ("error", "not_applicable"):
                return f"the check {check.id} is {check.status}: {check.reason or 'no reason given'}"
            return f"the check {check.id} ran, but did not measure {metric}"
    return "no check of this run measures it"


def _sentence(
    word: VerdictWord, judgements: Sequence[Judgement], checks: Sequence[CheckResult], required: Sequence[str]
) -> str:
    binding = [j for j in judgements if j.required]
    not_run = _not_run(checks, required)
    unsound = [check.id for check in checks if check.status == "incomplete"]
    if word == "fail":
        names = [j.metric for j in binding if j.outcome == "fail"]
        return f"{_count(len(names), 'limit')} of {len(binding)} failed: {_few(names)}."
    if word == "incomplete":
        names = [j.metric for j in binding if j.outcome == "incomplete"]
        parts = [f"{_count(len(names), 'limit')} of {len(binding)} could not be decided: {_few(names)}"] if names else []
        if not_run:
            parts.append(f"{_count(len(not_run), 'check')} did not run: {_few(not_run)}")
        return "The evidence is too weak for a verdict. " + "; ".join(parts) + "."
    if word == "pass":
        subject = "The limit is" if len(binding) == 1 else f"All {len(binding)} limits are"
        return f"{subject} cleared by the confidence bound of what was measured."
    ending = f"; weak evidence in {_few(unsound)}" if unsound else ""
    return f"No limits were set, so nothing was judged: these are figures and findings, and no good news{ending}."


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
