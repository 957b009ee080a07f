"""Compares two results: what became better, what worse, what is within noise, and what cannot be compared.

Where both hold the same samples and a metric is the share of an outcome, the two are compared sample by sample: that is what
tells a small change from noise. All else is compared on the two intervals. One metric is the primary one and is tested alone;
the others are corrected for their number, so that a result of a hundred metrics does not accuse a network by chance.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from audit import stats
from audit.comparable import Measured, measured, notes, obstacle, other_question, same_samples
from audit.errors import InputError, UsageError, closest
from audit.files import read_file
from audit.policy import judge_again
from audit.result import Change, Comparison, Metric, Result, finite
from audit.stats import Interval

LARGEST = 2**28  # bytes of a result: one of ten million samples and twenty outcomes is smaller
ROUNDING = 1e-9  # two confidences that differ by less were meant to be equal
PRIMARY = ("performance.accuracy", "performance.r2")
NAMED = 3  # metrics in a sentence
SMALLEST, HALVINGS = 1e-12, 40  # of a p-value that is found by halving: 1 less twice it must not round to 1

# How the intervals of figures are made that noise moves up and down alike, so that their distances may be added in squares. Of
# any other figure, those of plugins among them, no such thing is known; calibration errors are sums of absolute values.
CENTRED = {
    "agresti-coull-t",
    "bootstrap",
    "clopper-pearson",
    "delong-clopper-pearson",
    "mover",
    "mover-paired",
    "student-t",
    "studentised-bootstrap",
}
PUSHED = "calibration."

Outcome = Literal["better", "worse", "unchanged", "not_comparable"]


@dataclass(frozen=True)
class Stored:
    """A result, where it was read, and the hash of its file."""

    result: Result
    source: str
    sha256: str


@dataclass(frozen=True)
class _Test:
    """A change before it is corrected for the number of comparisons: one-sided p-values of worse and of better."""

    change: Change
    p_worse: float
    p_better: float


def diff(
    old: Result | str | os.PathLike[str],
    new: Result | str | os.PathLike[str],
    *,
    primary: str | None = None,
    confidence: float | None = None,
) -> Comparison:
    """Return what changed from one result to another; each is a result, its file, or the folder that holds it.

    See `compare` for the methods.

    Raises
    ------
    InputError
        A file is no result, or its verdict is not the one that its own metrics, evidence and limits give.
    UsageError
        Neither result holds the metric `primary`.
    """
    before, after = unedited(old), unedited(new)
    return compare(
        before.result, after.result, source=before.source, sha256=before.sha256, primary=primary, confidence=confidence
    )


def stored(result: Result | str | os.PathLike[str]) -> Stored:
    """Return a result with its source and hash; read from ``result.json``, or from the folder that holds it."""
    if isinstance(result, Result):
        return Stored(result, "a result that was not read from a file", hashlib.sha256(result.to_json().encode()).hexdigest())
    file = Path(result)
    file = file / "result.json" if file.is_dir() else file
    content = read_file(file, "result", InputError, LARGEST)
    return Stored(Result.from_json(content, str(file)), str(file), hashlib.sha256(content).hexdigest())


def unedited(result: Result | str | os.PathLike[str]) -> Stored:
    """Return what `stored` does; an InputError where the verdict is not the one that its own contents give."""
    found = stored(result)
    if said := edited(found.result):
        raise InputError(f"expected a result as audit run wrote it, but {found.source} was edited: {said}")
    return found


def edited(result: Result) -> str:
    """Say so where the stored verdict is not the one that what it holds gives; else an empty string."""
    again = judge_again(result).word
    return "" if again == result.verdict else f"it says {result.verdict!r}, but what it holds is judged {again!r}"


def compare(
    old: Result, new: Result, *, source: str, sha256: str, primary: str | None = None, confidence: float | None = None
) -> Comparison:
    """Compare two results metric by metric.

    Parameters
    ----------
    old, new
        The older and the newer result.
    source, sha256
        Where the older one was read, and the hash of its file.
    primary
        The metric whose comparison is tested alone; unstated: ``performance.accuracy``, else ``performance.r2``.
    confidence
        Of the intervals of the changes, two-sided; unstated: that of the newer result.

    Returns
    -------
    Comparison
        With a `Change` for each metric that either result holds.

    Raises
    ------
    UsageError
        Neither result holds the metric `primary`, or the confidence is not one.

    Notes
    -----
    *Pairs.* A metric that is the share of an outcome, on samples that are the same in both results (``ids_sha256``): the exact
    one-sided test of McNemar (1947, Psychometrika 12:153; binomial on the samples that disagree), and the interval of
    `stats.paired_difference`.

    *Intervals.* Otherwise the two are taken as independent: `stats.difference` for two shares of counted samples, MOVER
    (`stats.mover`) of the two intervals for other figures that noise moves up and down alike. Noise pushes largest gaps and
    calibration errors upward, and the worst of several downward, the more the fewer the samples and the nearer to 0 the truth
    is. MOVER takes the difference of two such values for its middle, and so understates how much a network that had no gap
    became worse: simulated, its limit misses up to 38 %, 2.5 % stated. For these, and for figures of methods that are not
    known here, the ends of the intervals are subtracted, which errs only where one of the two does (simulated: at most 2.5 % a
    side, beyond Monte-Carlo error). On the same samples two networks are mostly right and wrong together, so that the true
    interval is narrower than either: conservative. It would be too narrow where two networks fail on opposite
    samples. The p-value of two shares inverts the interval; that of the others is read off beyond its own confidence, which
    correction for many metrics asks for, with a tail no shorter than an exponential one (`stats.p_beyond`).

    *Outcome.* A metric is worse where its whole interval lies on the worse side of 0 and its p-value is at most half of
    1 − confidence: for the primary metric alone, for all others after Holm's correction for their number. Better likewise. So
    of two equally good networks the verdict accuses one in at most 1 − confidence of all comparisons: half by the primary
    metric, half by any of the others. Direction is that of the metric, also where neither way is better in itself.

    Simulated at 95 % (benchmarks/comparison.py): of networks that are equally good and disagree on 5 % of 2,000 samples 2.0 %
    are accused on their accuracy (2,000 pairs; on other samples 1.6 %), and of those that are 2 points worse 97.6 % are found
    (on other samples 51 %). Of whole results of 50 metrics 2.9 % are accused on the same 2,000 samples and 2.8 % on other ones,
    1.6 and 1.3 % where there are 200 (2,000 pairs each).
    """
    confidence = _confidence(new.spec.confidence if confidence is None else confidence)
    before, after = measured(old), measured(new)
    ids = list(dict.fromkeys([*after, *before]))
    first = _primary(primary, ids, new.model.task)
    tests: list[_Test] = []
    apart: dict[str, Change] = {}
    everything = other_question(old, new)
    for metric_id in dict.fromkeys([first, *ids]):
        a, b = before.get(metric_id, []), after.get(metric_id, [])
        reason = everything or obstacle(metric_id, old, new, a, b)
        found = reason if reason else _tested(a[0], b[0], confidence)
        if isinstance(found, _Test):
            tests.append(found)
        else:
            apart[metric_id] = _not_comparable(metric_id, a, b, found)
    changes = {**apart, **{change.metric: change for change in _judged(tests, first, (1 - confidence) / 2)}}
    ordered = [
        changes[metric_id].model_copy(update={"primary": metric_id == first}) for metric_id in dict.fromkeys([first, *ids])
    ]
    verdict = _verdict(ordered)
    return Comparison(
        verdict=verdict,
        sentence=_sentence(verdict, ordered, confidence),
        source=source,
        sha256=sha256,
        started_at=old.started_at,
        model_sha256=old.model.sha256,
        confidence=confidence,
        paired=same_samples(old, new),
        changes=ordered,
        notes=notes(old, new),
    )


def worst_case(change: Change) -> tuple[float | None, float | None]:
    """Return the least and the most that the metric may have become worse by, in its unit; None where that is not known."""
    if change.low is None or change.high is None:
        return None, None
    return (-change.high, -change.low) if change.direction == "higher" else (change.low, change.high)


def within(comparison: Comparison, max_drop: float) -> Literal["pass", "fail", "incomplete"]:
    """Tell whether the primary metric surely became worse by at most `max_drop`, in its own unit.

    *pass* only where the bound of the change shows it; *fail* where it surely became worse by more, or where any other metric
    surely is worse: an allowance for one metric excuses no other. Everything else is *incomplete*.
    """
    primary = next((change for change in comparison.changes if change.primary), None)
    least, most = (None, None) if primary is None else worst_case(primary)
    if any(change.outcome == "worse" and not change.primary for change in comparison.changes):
        return "fail"
    if least is None or most is None:
        return "incomplete"
    return "fail" if least > max_drop else "pass" if most <= max_drop else "incomplete"


# --- one metric -------------------------------------------------------------------------------------------------------


def _tested(old: Measured, new: Measured, confidence: float) -> _Test | str:
    """Return the change of a metric with its p-values, or why there is none."""
    pair = _paired(old, new, confidence)
    if pair is not None:
        return pair
    shares = _counted(old.metric), _counted(new.metric)
    if shares[0] is not None and shares[1] is not None:
        return _of_shares(new.metric, old.metric, shares[0], shares[1], confidence)
    return _of_intervals(old.metric, new.metric, confidence)


def _paired(old: Measured, new: Measured, confidence: float) -> _Test | None:
    """Compare the share of an outcome sample by sample; None where the samples differ or it is no such share."""
    a, b = old.check.outcomes, new.check.outcomes
    if a is None or b is None or not a.ids_sha256 or (a.ids_sha256, a.n) != (b.ids_sha256, b.n):
        return None
    if not new.metric.outcome or old.metric.outcome != new.metric.outcome:
        return None
    before, after = a.successes(old.metric), b.successes(new.metric)
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    interval = stats.paired_difference(gained, lost, a.n, confidence)
    fewer, more = (stats.mcnemar(gained, lost, side) for side in ("less", "greater"))
    p_worse, p_better = (fewer, more) if new.metric.direction == "higher" else (more, fewer)
    said = f"{lost:,} samples count in the older result alone, {gained:,} in the newer alone"
    return _test(old.metric, new.metric, interval, p_worse, p_better, "paired, exact McNemar", said)


def _of_shares(new: Metric, old: Metric, before: int, after: int, confidence: float) -> _Test | str:
    """Compare two shares of counted samples, taken as independent."""

    def at(level: float) -> Interval:
        return stats.difference(after, new.n, before, old.n, level)

    interval = at(confidence)
    p_worse, p_better = _p_values(interval, confidence, new.direction)
    beyond = _beyond(interval)
    if beyond:  # how far beyond: the smallest tail at which the interval still leaves out 0
        tail = _smallest_tail(lambda t: _beyond(at(1 - 2 * t)) == beyond, (1 - confidence) / 2)
        p_worse, p_better = (tail, 1 - tail) if p_worse < p_better else (1 - tail, tail)
    return _test(old, new, interval, p_worse, p_better, "independent, difference of two shares")


def _of_intervals(old: Metric, new: Metric, confidence: float) -> _Test | str:
    """Compare two estimates on their intervals, taken as independent."""
    if abs(old.confidence - new.confidence) > ROUNDING:
        return f"intervals of another confidence: {old.confidence:g}, then {new.confidence:g}"
    if new.confidence < confidence - ROUNDING:
        return f"its intervals have a confidence of {new.confidence:g}, but {confidence:g} is asked for"
    centred = all(metric.method in CENTRED and not metric.id.startswith(PUSHED) for metric in (old, new))
    method = f"independent, {'MOVER of the two intervals' if centred else 'the two intervals subtracted'}"
    try:
        after, before = (Interval(m.value, m.low, m.high) for m in (new, old))
        interval = stats.mover([after, before], [1.0, -1.0]) if centred else _subtracted(after, before)
    except OverflowError:  # a file may state any number
        interval = Interval(None, None, None)
    value, low, high = (finite(v) for v in interval)
    if value is None or low is None or high is None:
        return "the difference of its values is too large for a number"
    if low == high and value != 0:
        return "neither interval has a width: how much it moves by chance is not known"
    interval = Interval(value, low, high)
    p_worse, p_better = _p_values(interval, new.confidence, new.direction)
    return _test(old, new, interval, p_worse, p_better, method)


def _subtracted(after: Interval, before: Interval) -> Interval:
    """Return a difference with limits that hold wherever both of its parts lie within theirs, however far noise pushed them."""
    (value, low, high), (was, lowest, highest) = after, before
    if value is None or low is None or high is None or was is None or lowest is None or highest is None:
        return Interval(None, None, None)
    return Interval(value - was, low - highest, high - lowest)


def _test(
    old: Metric, new: Metric, interval: Interval, p_worse: float, p_better: float, method: str, reason: str = ""
) -> _Test:
    value, low, high = interval
    change = Change(
        metric=new.id,
        direction=new.direction,
        unit=new.unit,
        old=old.value,
        new=new.value,
        change=value,
        low=low,
        high=high,
        p_worse=min(1.0, p_worse),
        method=method,
        n=new.n,
        outcome="unchanged",
        reason=reason,
    )
    return _Test(change, p_worse, p_better)


def _not_comparable(metric_id: str, old: Sequence[Measured], new: Sequence[Measured], reason: str) -> Change:
    before, after = (found[0].metric if len(found) == 1 else None for found in (old, new))
    known = after or before
    return Change(
        metric=metric_id,
        direction=known.direction if known else "higher",
        unit=known.unit if known else "",
        old=before.value if before else None,
        new=after.value if after else None,
        n=after.n if after else 0,
        outcome="not_comparable",
        reason=reason,
    )


def _counted(metric: Metric) -> int | None:
    """Return how many samples count for a share of counted samples; None for any other metric."""
    if metric.method != "clopper-pearson" or metric.value is None or not 0 <= metric.value <= 1:
        return None
    count = round(metric.value * metric.n)
    return count if abs(metric.value * metric.n - count) < 1e-6 else None  # floats are that near up to 10^9 samples


def _p_values(interval: Interval, confidence: float, direction: str) -> tuple[float, float]:
    """Return the one-sided p-values of worse and of better that go with an interval of a change."""
    value, low, high = interval
    below, above = (stats.p_beyond("mover", value, 1, low, high, confidence, 0.0, side) or 0.0 for side in ("min", "max"))
    return (below, above) if direction == "higher" else (above, below)


def _beyond(interval: Interval) -> int:
    """Return 1 or −1 for the side of 0 that the whole interval lies on, 0 where it holds 0."""
    if interval.low is None or interval.high is None:
        return 0
    return 1 if interval.low > 0 else -1 if interval.high < 0 else 0


def _smallest_tail(leaves_out: Callable[[float], bool], largest: float) -> float:
    low, high = math.log(SMALLEST), math.log(largest)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if leaves_out(math.exp(middle)) else (middle, high)
    return math.exp(high)


# --- all of them ------------------------------------------------------------------------------------------------------


def _judged(tests: Sequence[_Test], primary: str, alpha: float) -> list[Change]:
    """Say for each change whether it is beyond noise: the primary one alone, the others after Holm's correction."""
    alone = [test for test in tests if test.change.metric == primary]
    others = [test for test in tests if test.change.metric != primary]
    judged = []
    for family in (alone, others):
        worse = stats.holm([test.p_worse for test in family])
        better = stats.holm([test.p_better for test in family])
        for test, p_worse, p_better in zip(family, worse, better, strict=True):
            judged.append(_outcome(test.change, p_worse, p_better, alpha))
    return judged


def _outcome(change: Change, p_worse: float, p_better: float, alpha: float) -> Change:
    least, most = worst_case(change)
    outcome: Outcome = "unchanged"
    if least is not None and least > 0 and p_worse <= alpha:
        outcome = "worse"
    elif most is not None and most < 0 and p_better <= alpha:
        outcome = "better"
    return change.model_copy(update={"outcome": outcome})


def _verdict(changes: Sequence[Change]) -> Outcome:
    if any(change.outcome == "worse" for change in changes):
        return "worse"
    return next((change.outcome for change in changes if change.primary), "not_comparable")


def _primary(stated: str | None, ids: Sequence[str], task: str) -> str:
    if stated is not None:
        if stated not in ids:
            raise UsageError(f"neither result holds the metric {stated!r}; {closest(stated, list(ids))}")
        return stated
    return next((metric_id for metric_id in PRIMARY if metric_id in ids), PRIMARY[task == "regression"])


def _confidence(value: float) -> float:
    if not 0.5 <= value < 1:
        raise UsageError(f"expected a confidence of at least 0.5 and below 1 for the changes, got {value:g}")
    return value


# --- in words ---------------------------------------------------------------------------------------------------------


def _sentence(verdict: Outcome, changes: Sequence[Change], confidence: float) -> str:
    primary = next(change for change in changes if change.primary)
    others = [change for change in changes if not change.primary]
    compared = sum(change.outcome != "not_comparable" for change in others)
    parts = [_of_primary(primary, confidence)]
    for word in ("worse", "better"):
        names = [change.metric for change in others if change.outcome == word]
        if names:
            share = f"{len(names):,} of {compared:,} other metrics" if compared > 1 else "The other metric"
            parts.append(f"{share} surely became {word}: {_few(names)}.")
    if compared and len(parts) == 1:
        parts.append("No other metric changed beyond noise.")
    if verdict == "worse" != primary.outcome:
        parts[:2] = parts[1::-1]  # what decides stands first
    if compared < len(others):
        missing = len(others) - compared
        parts.append(f"{missing:,} other metric{'' if missing == 1 else 's'} could not be compared.")
    return " ".join(parts)


def _of_primary(change: Change, confidence: float) -> str:
    if change.outcome == "not_comparable":
        return f"{change.metric} cannot be compared: {change.reason}."
    word = "is unchanged within noise" if change.outcome == "unchanged" else f"became {change.outcome}"
    over = f"over the same {change.n:,} samples" if change.method.startswith("paired") else "not paired"
    return (
        f"{change.metric} {word}: {change.old:.4g}, then {change.new:.4g}, a change of {_signed(change.change)} "
        f"({100 * confidence:g} % interval {_signed(change.low)} to {_signed(change.high)}, {over})."
    )


def _signed(value: float | None) -> str:
    return "none" if value is None else "0" if value == 0 else f"{value:+.3g}".replace("-", "−")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
