"""Holds limits against metrics: limits -> judgements -> verdict -> exit code. It works on a Result alone.

The bound on the unfavourable side must clear a limit: pass. The whole interval lies beyond it, and does so after Holm's
correction for the number of limits: fail. Everything else is incomplete: an interval that straddles the limit, a check that
did not run or whose evidence is not ok, a metric that is missing. One exception: a failed ``min`` on an upper bound (or ``max``
on a lower one) stands where one-sided evidence is not ok, since better evidence could only make it worse. (An output that
changes from one forward to the next is not one-sided: it can break samples that nothing would break.)

A ``max_drop`` is held against the interval of the change since the baseline. A fail that somebody answers for, by a waiver that
has not run out, is *waived*: it no longer fails the run, and the verdict's sentence names it. With ``looks = "many"`` the
intervals are confidence sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

from audit import stats
from audit.config import Limit, PolicySection, validate
from audit.errors import InputError, PolicyFailed, UsageError
from audit.plain import plain
from audit.result import VERDICT_EXIT_CODES, CheckResult, Comparison, Judgement, Metric, Result, VerdictWord

Found = dict[str, list[tuple[Metric, CheckResult]]]

LONGEST = 200  # characters of what people wrote in a waiver
ROUNDING = 1e-9  # two confidences that differ by less were meant to be equal


@dataclass(frozen=True)
class Verdict:
    """The word, its sentence, the exit code, and the judgements that it rests on."""

    word: VerdictWord
    sentence: str
    exit_code: int
    judgements: list[Judgement]


def judge(
    policy: PolicySection,
    checks: Sequence[CheckResult],
    *,
    gate: bool,
    required: Sequence[str] = (),
    comparison: Comparison | None = None,
    today: date | None = None,
) -> Verdict:
    """Hold the policy against what the checks found.

    Parameters
    ----------
    policy
        The limits and waivers.
    checks
        What the run found.
    gate
        Whether *unjudged* ends with exit code 4 rather than 0.
    required
        Ids of checks that must have run, whether or not a limit names them.
    comparison
        What changed since the baseline, where there is one. One that cannot be compared leaves the verdict incomplete.
    today
        The day, in UTC, on which waivers must hold; the current one where None.
    """
    found: Found = {}
    for check in checks:
        for metric in check.metrics:
            found.setdefault(metric.id, []).append((metric, check))
    judging = _Judging(policy, checks, found, comparison)
    judgements = judging.corrected([judging.one(limit) for limit in policy.limit])
    judgements = [_waived(policy, judgement, today or datetime.now(UTC).date()) for judgement in judgements]
    run = _Run(checks, required, comparison)
    word = _word(judgements, run)
    exit_code = 4 if gate and word == "unjudged" else VERDICT_EXIT_CODES[word]
    return Verdict(word, _sentence(word, judgements, run), exit_code, judgements)


def judge_again(result: Result) -> Verdict:
    """Judge a stored result by the policy that it holds: a verdict that was edited by hand does not survive it.

    Waivers hold or not as on the day of the run.

    Raises
    ------
    InputError
        The configuration that the result holds is not one, or it does not say when it ran.
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
    try:
        day = date.fromisoformat(result.started_at[:10])
    except ValueError:
        raise InputError(
            f"the result should say when it ran, such as 2026-01-31T12:00:00Z, got {result.started_at!r}"
        ) from None
    required = [str(check_id) for check_id in asked] if isinstance(asked, list) else []
    gate = run.get("gate") is True
    return judge(policy, result.checks, gate=gate, required=required, comparison=result.comparison, today=day)


def require(result: Result) -> None:
    """Raise PolicyFailed with a readable list unless the verdict is *pass*; an unjudged result raises, too.

    So does one whose verdict is not the one that its own metrics, evidence and limits give.
    """
    again = judge_again(result)
    if result.verdict == again.word == "pass":
        return
    lines = [f"audit: {again.word}: {again.sentence}"]
    if again.word != result.verdict:
        lines.append(f"  the result says {result.verdict!r}, but what it holds is judged {again.word!r}: it was edited")
    for judgement in again.judgements:
        if judgement.outcome != "pass":
            lines.append(f"  {judgement.outcome}{'' if judgement.required else ' (not required)'}: {describe(judgement)}")
    for check in result.checks:
        if check.status in ("error", "incomplete") and check.reason:
            lines.append(f"  {check.id} is {check.status}: {check.reason}")
    raise PolicyFailed("\n".join(plain(line) for line in lines), exit_code=1 if again.word == "fail" else 4)


def describe(judgement: Judgement) -> str:
    """Say in a line what was asked of a metric and what was found."""
    bound = "nothing measured" if judgement.bound is None else f"its bound is {judgement.bound:.4g}"
    return f"{judgement.metric} should be {asked(judgement)}; {bound}{'; ' + judgement.reason if judgement.reason else ''}"


def asked(limit: Limit | Judgement) -> str:
    """Say what a limit asks, as the rest of *should be …*."""
    if limit.min is not None:
        return f"at least {limit.min:g}"
    return f"at most {limit.max:g}" if limit.max is not None else f"at most {limit.max_drop:g} worse than the baseline"


@dataclass(frozen=True)
class _Held:
    """What is held against a limit: an estimate with its interval, and the side and threshold of the limit."""

    method: str
    value: float
    low: float
    high: float
    n: int
    confidence: float
    side: stats.Side
    threshold: float

    @property
    def bound(self) -> float:
        return self.low if self.side == "min" else self.high

    @property
    def clears(self) -> bool:
        return self.low >= self.threshold if self.side == "min" else self.high <= self.threshold

    @property
    def beyond(self) -> bool:
        return self.high < self.threshold if self.side == "min" else self.low > self.threshold

    def p_fail(self) -> float | None:
        interval = (self.method, self.value, self.n, self.low, self.high, self.confidence)
        return stats.p_beyond(*interval, self.threshold, self.side)

    def plan(self) -> int | None:
        return stats.plan_size(self.method, self.value, self.n, self.low, self.high, self.confidence, self.threshold)


@dataclass(frozen=True)
class _Judging:
    """One policy held against one run."""

    policy: PolicySection
    checks: Sequence[CheckResult]
    found: Found
    comparison: Comparison | None

    def one(self, limit: Limit) -> Judgement:
        """Hold one limit against its metric, as if it were the only one."""
        if limit.max_drop is None:
            _asked(limit)
        base = Judgement(**limit.model_dump(), outcome="incomplete")
        measured = self.found.get(limit.metric, [])
        if len(measured) != 1:
            owners = " and ".join(check.id for _, check in measured)
            why = f"{owners} both measured it: which one counts?" if measured else _why_missing(limit.metric, self.checks)
            return base.model_copy(update={"reason": why})
        metric, check = measured[0]
        held = self._held(limit, metric, check)
        if isinstance(held, str):
            return base.model_copy(update={"reason": held})
        update = {"bound": held.bound, "p_fail": held.p_fail(), **self._decided(held, metric, check, limit)}
        return base.model_copy(update=update)

    def corrected(self, judgements: list[Judgement]) -> list[Judgement]:
        """Turn a fail that does not survive Holm's correction over the limits with a p-value into incomplete.

        A required limit is corrected for the required ones alone, so that one that is not required never moves the verdict; one
        that is not required is corrected for all.
        """
        out, alpha = list(judgements), (1 - self.policy.confidence) / 2
        for required in (True, False):
            family = [i for i, j in enumerate(judgements) if j.p_fail is not None and (j.required or not required)]
            adjusted = stats.holm([judgements[i].p_fail or 0.0 for i in family])
            for i, p in zip(family, adjusted, strict=True):
                if judgements[i].required != required or judgements[i].outcome != "fail" or p <= alpha * (1 + ROUNDING):
                    continue
                reason = f"beyond the limit on its own, but not among {len(family)} limits (Holm: {p:.3g} > {alpha:.3g})"
                held = self._held(self.policy.limit[i], *self.found[judgements[i].metric][0])
                size = None if isinstance(held, str) else held.plan()
                out[i] = judgements[i].model_copy(update={"outcome": "incomplete", "reason": reason, "plan_for": size})
        return out

    def _held(self, limit: Limit, metric: Metric, check: CheckResult) -> _Held | str:
        """Return what is held against the limit, or why there is nothing to hold."""
        if limit.max_drop is not None:
            return self._drop(limit.max_drop, metric)
        side, threshold = _asked(limit)
        if self.policy.looks == "many":
            return self._sequence(metric, check, side, threshold)
        if metric.value is None or metric.low is None or metric.high is None or metric.n == 0:
            return metric.detail or "the metric has no value, no interval or no samples"
        interval = (metric.method, metric.value, metric.low, metric.high, metric.n, metric.confidence)
        return _Held(*interval, side, threshold)

    def _drop(self, max_drop: float, metric: Metric) -> _Held | str:
        """Return how much worse the metric became since the baseline."""
        if self.policy.looks == "many":
            return "how a change grows with the samples has no confidence sequence here: looks = 'many' needs min or max"
        if self.comparison is None:
            return "there is no baseline that it could have dropped from: give --baseline"
        change = self.comparison.change(metric.id)
        if change is None or change.change is None or change.low is None or change.high is None:
            return f"it cannot be compared with the baseline: {change.reason if change else 'neither result measured it'}"
        if change.outcome == "not_comparable":
            return f"it cannot be compared with the baseline: {change.reason}"
        if change.n == 0:
            return "nothing was compared with the baseline"
        value, low, high = change.change, change.low, change.high
        if metric.direction == "higher":
            value, low, high = -value, -high, -low
        return _Held("change", value, low, high, change.n, self.comparison.confidence, "max", max_drop)

    def _sequence(self, metric: Metric, check: CheckResult, side: stats.Side, threshold: float) -> _Held | str:
        """Return the metric with a confidence sequence over its samples."""
        if not metric.outcome or check.outcomes is None:
            return "it is no share of samples, so it has no confidence sequence (looks = 'many')"
        confidence = self.policy.confidence
        value, low, high = stats.sequential_interval(check.outcomes.successes(metric), confidence)
        if value is None or low is None or high is None:
            return "the metric has no samples"
        return _Held("confidence-sequence", value, low, high, metric.n, confidence, side, threshold)

    def _decided(self, held: _Held, metric: Metric, check: CheckResult, limit: Limit) -> dict[str, object]:
        weak = _weakness(check, metric)
        one_way = (
            limit.max_drop is None  # of two bounds, either may be the looser one
            and metric.kind == {"min": "upper", "max": "lower"}[held.side]
            and all(e.ok or e.one_sided for e in check.evidence if e.concerns(metric.id))
        )
        if held.beyond and one_way and check.status in ("measured", "incomplete"):
            weak = None  # better evidence could only make it worse
        if weak is not None:
            return {"reason": weak}
        if held.beyond:
            return {"outcome": "fail"}
        if held.confidence < self.policy.confidence - ROUNDING:
            asked_for = f"the policy asks for {self.policy.confidence:g}"
            return {"reason": f"its interval has a confidence of {held.confidence:g}, but {asked_for}"}
        if held.clears:
            return {"outcome": "pass"}
        return {"reason": _undecided(held, limit), "plan_for": None if self.policy.looks == "many" else held.plan()}


def _undecided(held: _Held, limit: Limit) -> str:
    what = "interval" if limit.max_drop is None else "interval of the drop,"
    more = (
        "more samples would decide it"
        if held.method == "confidence-sequence"
        else "more samples, planned before they are looked at, would decide it; adding samples until it passes is not a test"
    )
    return f"the limit lies inside the {what} {held.low:.4g} to {held.high:.4g}: {more}"


def _asked(limit: Limit) -> tuple[stats.Side, float]:
    if limit.min is not None and limit.max is None:
        return "min", limit.min
    if limit.max is not None and limit.min is None:
        return "max", limit.max
    raise UsageError(
        f"the limit on {limit.metric!r} should have one of min, max and max_drop, got {'none' if limit.min is None else 'two'}"
    )


def _weakness(check: CheckResult, metric: Metric) -> str | None:
    """Return why a metric of a check may not be believed, or None."""
    if check.status != "measured":
        return f"the check {check.id} is {check.status}: {check.reason or 'no reason given'}"
    # A check may say that it was measured while its own evidence says otherwise: the evidence is believed.
    failed = [evidence.id for evidence in check.evidence if not evidence.ok and evidence.concerns(metric.id)]
    return f"the evidence is not ok: {_few(failed)}" if failed else None


def _waived(policy: PolicySection, judgement: Judgement, today: date) -> Judgement:
    """Return a fail that somebody answers for as waived; a waiver that has run out is told, and counts as none."""
    waivers = [waiver for waiver in policy.waiver if waiver.covers(judgement)]
    if judgement.outcome != "fail" or not waivers:
        return judgement
    waiver = max(waivers, key=lambda waiver: waiver.expires)
    if waiver.expires < today:
        reason = f"the waiver of {_clipped(waiver.owner)} ran out on {waiver.expires}"
        return judgement.model_copy(update={"reason": reason})
    reason = f"waived by {_clipped(waiver.owner)} until {waiver.expires}: {_clipped(waiver.reason)}"
    return judgement.model_copy(update={"outcome": "waived", "reason": reason})


@dataclass(frozen=True)
class _Run:
    """What of a run, beside its limits, can keep a verdict from being given."""

    checks: Sequence[CheckResult]
    required: Sequence[str]
    comparison: Comparison | None

    @property
    def measured_something(self) -> bool:
        return any(check.metrics for check in self.checks if check.status in ("measured", "incomplete"))

    def not_run(self) -> list[str]:
        """Ids of checks in error, of those that measured nothing in the end, and of those asked for that did not apply."""
        failed = [c.id for c in self.checks if c.status == "error" or (c.status == "incomplete" and not c.metrics)]
        applied = {check.id for check in self.checks if check.status != "not_applicable"}
        return failed + [check_id for check_id in self.required if check_id not in applied]

    def gaps(self) -> list[str]:
        """Say what keeps the verdict from being given."""
        not_run = self.not_run()
        gaps = [f"{_count(len(not_run), 'check')} did not run to the end: {_few(not_run)}"] if not_run else []
        if not self.measured_something:
            gaps.append("no check measured anything")
        if self.comparison is not None and self.comparison.verdict == "not_comparable":
            gaps.append(f"the baseline cannot be compared: {self.comparison.sentence}")
        return gaps


def _word(judgements: Sequence[Judgement], run: _Run) -> VerdictWord:
    binding = [j.outcome for j in judgements if j.required]
    if "fail" in binding:
        return "fail"
    if run.gaps() or "incomplete" in binding:
        return "incomplete"
    return "pass" if binding else "unjudged"


def _why_missing(metric: str, checks: Sequence[CheckResult]) -> str:
    family = metric.partition(".")[0]
    for check in checks:
        if family == check.id or any(m.id.split(".")[0] == family for m in check.metrics):
            if check.status in ("error", "not_applicable") or (check.status == "incomplete" and not check.metrics):
                return f"the check {check.id} is {check.status}: {check.reason or 'no reason given'}"
            return f"the check {check.id} ran, but did not measure {metric}"
    return "no check of this run measures it"


def _sentence(word: VerdictWord, judgements: Sequence[Judgement], run: _Run) -> str:
    binding = [j for j in judgements if j.required]
    waived = [j for j in judgements if j.outcome == "waived"]
    ending = "".join(dict.fromkeys(f"; {j.metric} fails and is {j.reason}" for j in waived))  # one metric may have two limits
    if word == "fail":
        names = [j.metric for j in binding if j.outcome == "fail"]
        return f"{_count(len(names), 'limit')} of {len(binding)} failed: {_few(names)}{ending}."
    if word == "incomplete":
        undecided = [j.metric for j in binding if j.outcome == "incomplete"]
        open_ = [f"{_count(len(undecided), 'limit')} of {len(binding)} could not be decided: {_few(undecided)}"]
        return f"The evidence is too weak for a verdict. {'; '.join((open_ if undecided else []) + run.gaps())}{ending}."
    unsound = [c.id for c in run.checks if c.status == "incomplete" or any(not e.ok for e in c.evidence)]
    ending += f"; weak evidence in {_few(unsound)}" if unsound else ""
    worse = [change.metric for change in run.comparison.changes if change.outcome == "worse"] if run.comparison else []
    ending += f"; surely worse than the baseline: {_few(worse)}" if worse else ""
    missed = [j.metric for j in judgements if not j.required and j.outcome not in ("pass", "waived")]
    ending += f"; not required, and not cleared: {_few(missed)}" if missed else ""
    if word == "pass":
        return _passed(binding, ending)
    none = "No limit is required" if judgements else "No limits were set"
    return f"{none}, so nothing was judged: these are figures and findings, and no good news{ending}."


def _passed(binding: Sequence[Judgement], ending: str) -> str:
    cleared = sum(j.outcome == "pass" for j in binding)
    if cleared == 0:
        return f"No limit is cleared; each that fails is waived{ending}."
    subject = "The limit is" if len(binding) == 1 else f"All {len(binding)} limits are"
    if cleared < len(binding):
        subject = f"{cleared} of {len(binding)} limits {'is' if cleared == 1 else 'are'}"
    return f"{subject} cleared by the confidence bound of what was measured{ending}."


def _clipped(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
