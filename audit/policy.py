"""Holds limits against metrics: limits -> judgements -> verdict -> exit code. It works on a Result alone.

The bound on the unfavourable side must clear a limit: pass. The whole interval lies beyond it, and does so after Holm's
correction for the number of limits: fail. Everything else is incomplete: an interval that straddles the limit, a check that
did not run or whose evidence is not ok, a metric that is missing. One exception: a failed ``min`` on an upper bound (or ``max``
on a lower one) stands where one-sided evidence is not ok, since better evidence could only make it worse. (An output that
changes from one forward to the next is not one-sided: it can break samples that nothing would break.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from audit import stats
from audit.config import Limit, PolicySection, validate
from audit.errors import InputError, PolicyFailed, UsageError
from audit.result import VERDICT_EXIT_CODES, CheckResult, Judgement, Metric, Result, VerdictWord

Found = dict[str, list[tuple[Metric, CheckResult]]]

ROUNDING = 1e-9  # two confidences that differ by less were meant to be equal


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
    found: Found = {}
    for check in checks:
        for metric in check.metrics:
            found.setdefault(metric.id, []).append((metric, check))
    first = [_judge_one(limit, found, checks, policy.confidence) for limit in policy.limit]
    judgements = _correct_for_number(first, found, (1 - policy.confidence) / 2)
    word = _word(judgements, checks, required)
    exit_code = 4 if gate and word == "unjudged" else VERDICT_EXIT_CODES[word]
    return Verdict(word, _sentence(word, judgements, checks, required), exit_code, judgements)


def judge_again(result: Result) -> Verdict:
    """Judge a stored result by the policy that it holds: a verdict that was edited by hand does not survive it.

    Raises
    ------
    InputError
        The configuration that the result holds is not one.
    """
    config = result.spec.config
    run = config.get("run", {})
    if not isinstance(run, dict):
        raise InputError("the result's configuration should hold a section [run], so that its verdict can be recomputed")
    asked = run.get("checks")
    try:
        policy: PolicySection = validate(PolicySection, config.get("policy", {}), "policy")  # type: ignore[arg-type]
    except UsageError as error:
        raise InputError(f"the result's policy cannot be read: {error}") from None
    required = [str(check_id) for check_id in asked] if isinstance(asked, list) else []
    return judge(policy, result.checks, gate=run.get("gate") is True, required=required)


def require(result: Result) -> None:
    """Raise PolicyFailed with a readable list unless the verdict is *pass*; an unjudged result raises, too."""
    if result.verdict == "pass":
        return
    lines = [f"audit: {result.verdict}: {result.sentence}"]
    for judgement in result.policy:
        if judgement.outcome != "pass":
            lines.append(f"  {judgement.outcome}{'' if judgement.required else ' (not required)'}: {describe(judgement)}")
    for check in result.checks:
        if check.status in ("error", "incomplete") and check.reason:
            lines.append(f"  {check.id} is {check.status}: {check.reason}")
    raise PolicyFailed("\n".join(lines), exit_code=1 if result.verdict == "fail" else 4)


def describe(judgement: Judgement) -> str:
    """Say in a line what was asked of a metric and what was found."""
    side, limit = ("at least", judgement.min) if judgement.min is not None else ("at most", judgement.max)
    bound = "nothing measured" if judgement.bound is None else f"its bound is {judgement.bound:.4g}"
    return f"{judgement.metric} should be {side} {limit:g}; {bound}{'; ' + judgement.reason if judgement.reason else ''}"


def _judge_one(limit: Limit, found: Found, checks: Sequence[CheckResult], confidence: float) -> Judgement:
    base = Judgement(metric=limit.metric, min=limit.min, max=limit.max, required=limit.required, outcome="incomplete")
    measured = found.get(limit.metric, [])
    if len(measured) != 1:
        owners = " and ".join(check.id for _, check in measured)
        reason = f"{owners} both measured it: which one counts?" if measured else _why_missing(limit.metric, checks)
        return base.model_copy(update={"reason": reason})
    metric, check = measured[0]
    if metric.value is None or metric.low is None or metric.high is None or metric.n == 0:
        return base.model_copy(update={"reason": metric.detail or "the metric has no value, no interval or no samples"})
    side, threshold = _asked(limit)
    bound, best = (metric.low, metric.high) if side == "min" else (metric.high, metric.low)
    clears = bound >= threshold if side == "min" else bound <= threshold
    beyond = best < threshold if side == "min" else best > threshold
    weak = _weakness(check)
    one_way = metric.kind == {"min": "upper", "max": "lower"}[side] and all(e.ok or e.one_sided for e in check.evidence)
    if beyond and one_way and check.status in ("measured", "incomplete"):
        weak = None  # better evidence could only make it worse
    p_fail = stats.p_beyond(metric.method, metric.value, metric.n, metric.low, metric.high, metric.confidence, threshold, side)
    update: dict[str, object] = {"bound": bound, "p_fail": p_fail}
    if weak is not None:
        update["reason"] = weak
    elif beyond:
        update["outcome"] = "fail"
    elif metric.confidence < confidence - ROUNDING:
        update["reason"] = f"its interval has a confidence of {metric.confidence:g}, but the policy asks for {confidence:g}"
    elif clears:
        update["outcome"] = "pass"
    else:
        update["reason"] = (
            f"the limit lies inside the interval {metric.low:.4g} to {metric.high:.4g}: more samples, planned before they are "
            "looked at, would decide it; adding samples until it passes is not a test"
        )
        update["plan_for"] = _plan(metric, threshold)
    return base.model_copy(update=update)


def _asked(limit: Limit) -> tuple[stats.Side, float]:
    if limit.min is not None and limit.max is None:
        return "min", limit.min
    if limit.max is not None and limit.min is None:
        return "max", limit.max
    raise UsageError(
        f"the limit on {limit.metric!r} should have either min or max, got {'both' if limit.min is not None else 'neither'}"
    )


def _weakness(check: CheckResult) -> str | None:
    """Return why nothing that a check measured may be believed, or None."""
    if check.status != "measured":
        return f"the check {check.id} is {check.status}: {check.reason or 'no reason given'}"
    # A check may say that it was measured while its own evidence says otherwise: the evidence is believed.
    failed = [evidence.id for evidence in check.evidence if not evidence.ok]
    return f"the evidence is not ok: {_few(failed)}" if failed else None


def _plan(metric: Metric, threshold: float) -> int | None:
    return stats.plan_size(metric.method, metric.value, metric.n, metric.low, metric.high, metric.confidence, threshold)


def _correct_for_number(judgements: list[Judgement], found: Found, alpha: float) -> list[Judgement]:
    """Turn a fail that does not survive Holm's correction over the limits with a p-value into incomplete.

    A required limit is corrected for the required ones alone, so that one that is not required never moves the verdict; one
    that is not required is corrected for all.
    """
    out = list(judgements)
    for required in (True, False):
        family = [i for i, j in enumerate(judgements) if j.p_fail is not None and (j.required or not required)]
        adjusted = stats.holm([judgements[i].p_fail or 0.0 for i in family])
        for i, p in zip(family, adjusted, strict=True):
            judgement = judgements[i]
            if judgement.required != required or judgement.outcome != "fail" or p <= alpha * (1 + ROUNDING):
                continue
            threshold = judgement.min if judgement.min is not None else judgement.max
            assert threshold is not None  # noqa: S101  (a judgement holds exactly one of them)
            reason = f"beyond the limit on its own, but not among {len(family)} limits (Holm: {p:.3g} > {alpha:.3g})"
            size = _plan(found[judgement.metric][0][0], threshold)
            out[i] = judgement.model_copy(update={"outcome": "incomplete", "reason": reason, "plan_for": size})
    return out


def _word(judgements: Sequence[Judgement], checks: Sequence[CheckResult], required: Sequence[str]) -> VerdictWord:
    binding = [j.outcome for j in judgements if j.required]
    if "fail" in binding:
        return "fail"
    if _not_run(checks, required) or not _any_measured(checks) or "incomplete" in binding:
        return "incomplete"
    return "pass" if binding else "unjudged"


def _any_measured(checks: Sequence[CheckResult]) -> bool:
    return any(check.status in ("measured", "incomplete") for check in checks)


def _not_run(checks: Sequence[CheckResult], required: Sequence[str]) -> list[str]:
    """Ids of the checks that ended in error, and of those asked for by name that did not apply or are missing."""
    failed = [check.id for check in checks if check.status == "error"]
    applied = {check.id for check in checks if check.status != "not_applicable"}
    return failed + [check_id for check_id in required if check_id not in applied]


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
    if word == "fail":
        names = [j.metric for j in binding if j.outcome == "fail"]
        return f"{_count(len(names), 'limit')} of {len(binding)} failed: {_few(names)}."
    if word == "incomplete":
        return f"The evidence is too weak for a verdict. {'; '.join(_gaps(binding, checks, required))}."
    unsound = [check.id for check in checks if check.status == "incomplete"]
    ending = f"; weak evidence in {_few(unsound)}" if unsound else ""
    missed = [j.metric for j in judgements if not j.required and j.outcome != "pass"]
    ending += f"; not required, and not cleared: {_few(missed)}" if missed else ""
    if word == "pass":
        subject = "The limit is" if len(binding) == 1 else f"All {len(binding)} limits are"
        return f"{subject} cleared by the confidence bound of what was measured{ending}."
    none = "No limit is required" if judgements else "No limits were set"
    return f"{none}, so nothing was judged: these are figures and findings, and no good news{ending}."


def _gaps(binding: Sequence[Judgement], checks: Sequence[CheckResult], required: Sequence[str]) -> list[str]:
    """Say what keeps the verdict from being given: undecided limits, checks that did not run, nothing measured at all."""
    undecided = [j.metric for j in binding if j.outcome == "incomplete"]
    not_run = _not_run(checks, required)
    gaps = [f"{_count(len(undecided), 'limit')} of {len(binding)} could not be decided: {_few(undecided)}"] if undecided else []
    if not_run:
        gaps.append(f"{_count(len(not_run), 'check')} did not run: {_few(not_run)}")
    if not _any_measured(checks):
        gaps.append("no check measured anything")
    return gaps


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
