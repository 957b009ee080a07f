"""Puts each explainer to the test: whether it beats random rankings, follows the weights, adds up, and repeats itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audit.checks.base import Answer, Arrays, Found
from audit.checks.explanation_columns import metric
from audit.checks.explanation_plan import Plan
from audit.explain import faithfulness, sanity
from audit.result import Evidence, Finding, Metric, finite
from audit.stats import Interval

ADDS_UP, ADDS_UP_DRAWN = 0.05, 0.15  # share of the output's change that may be left over, by rule and by draws
SURELY = 0.99  # confidence that a method must beat random rankings with
REPEATS = 0.5  # rank correlation over seeds that a method should reach
SAME_WITHOUT_WEIGHTS = 0.7  # share of it that is too much agreement with networks whose weights were shuffled


@dataclass(frozen=True)
class Judged:
    """What the tests of one method said; `flaws` are why its figures are not to be believed."""

    name: str
    used: str
    faithfulness: Interval
    flaws: tuple[str, ...]

    @property
    def believed(self) -> bool:
        """Whether no test of the method failed."""
        return not self.flaws


def judge(answer: Answer, plan: Plan, found: Found, name: str) -> Judged:
    """Put one method to its tests; add its evidence and metrics."""
    part = plan.slugs[name]
    stage, tested = found[f"explanation.{part}"], plan.tested(found)
    rows = np.searchsorted(stage.positions, tested)
    failed = sorted(set(stage["failed"].tolist()) - {""})
    worked = bool(len(rows)) and not failed and bool(np.isfinite(stage["values"]).all())
    evidence = [
        Evidence(
            id=f"explanation.{part}.worked",
            ok=worked,
            detail=f"{name} gave a value for each input of {len(stage.positions)} samples"
            if worked
            else f"{name} gave no values: {failed[0] if failed else 'they are not finite, or no sample could be explained'}",
        )
    ]
    metrics: list[Metric] = []
    faithful = Interval(None, None, None)
    if worked:
        stable = _stability(plan, found, name)
        faithful = _faithfulness(found, part, plan.task.confidence)
        evidence += [_beats_random(plan, found, name), _depends_on_weights(plan, found, name, stable)]
        evidence += _adds_up(plan, stage.arrays, rows, name) + _repeatable(name, part, stable)
        headline = {"headline": True} if name == plan.headline else {}
        params: dict[str, Any] = {"method": name, **headline}
        metrics += [metric(plan, f"{part}.faithfulness", faithful, len(tested), params=params)]
        if stable is not None:
            metrics.append(metric(plan, f"{part}.stability", stable, len(tested), params={"method": name}))
        metrics += _gap(plan, stage.arrays, rows, name)
    answer.evidence += evidence
    failed_tests = [e for e in evidence if not e.ok]
    flaws = tuple(e.detail for e in failed_tests)
    # Better than chance in the mean, and no other test failed: with more samples it may be shown to be.
    open_yet = (faithful.value or 0.0) > 0 and all(e.id.endswith(".beats_random") for e in failed_tests)
    doubt = f"{'not shown to beat chance' if open_yet else 'do not believe it'}: {'; '.join(flaws)}" if flaws else ""
    used = str(stage["used"][0]) if worked else name
    notes = str(stage["notes"][0]) if worked else ""
    detail = "; ".join(text for text in (doubt, notes) if text)
    answer.metrics += [m.model_copy(update={"detail": detail}) for m in metrics]
    if flaws:
        answer.findings.append(
            Finding(
                severity="low" if open_yet else "medium",
                title=f"What {name} says of this network is not {'shown to beat chance' if open_yet else 'to be believed'}",
                detail=f"{'; '.join(flaws)}. Its figures and pictures stand here for comparison only."
                + (f" More samples than {len(tested)} may settle it: --set explanation.samples=…" if open_yet else ""),
            )
        )
    return Judged(name, used, faithful, flaws)


def _faithfulness(found: Found, part: str, confidence: float) -> Interval:
    curves = found["explanation.curves"]
    below = faithfulness.area(curves["random.deletion"]) - faithfulness.area(curves[f"{part}.deletion"])
    return faithfulness.mean_interval(below, confidence)


def _stability(plan: Plan, found: Found, name: str) -> Interval | None:
    """Return the agreement over seeds, or None for a method that draws nothing."""
    if not plan.drawn(name):
        return None
    first, again = found[f"explanation.{plan.slugs[name]}"], found[f"explanation.{plan.slugs[name]}.again"]
    rows = np.searchsorted(first.positions, again.positions)
    agreement = sanity.rank_agreement(first["values"][rows], again["values"], plan.task.data.kind)
    if len(agreement) >= faithfulness.FEWEST and bool((agreement == 1.0).all()):
        return Interval(1.0, 1.0, 1.0)  # as where the baseline is the mean of all rows there are, whatever the seed
    return faithfulness.mean_interval(agreement, plan.task.confidence)


def _beats_random(plan: Plan, found: Found, name: str) -> Evidence:
    # Several methods are tested, and one that rolls dice must not be believed once in forty times: the interval is wider here.
    level = max(plan.task.confidence, SURELY)
    faithful = _faithfulness(found, plan.slugs[name], level)
    ok = faithful.low is not None and faithful.low > 0
    told = "unknown" if faithful.value is None else f"{faithful.value:+.3f}"
    told += (
        ""
        if faithful.low is None or faithful.high is None
        else f", {level:.0%} interval {faithful.low:+.3f} to {faithful.high:+.3f}"
    )
    return Evidence(
        id=f"explanation.{plan.slugs[name]}.beats_random",
        ok=ok,
        detail=f"taking away what {name} calls important lowers the answer faster than random rankings do by {told}"
        + ("" if ok else ": not surely any faster"),
        value=finite(faithful.value),
    )


def _depends_on_weights(plan: Plan, found: Found, name: str, stable: Interval | None) -> Evidence:
    agreement = found[f"explanation.{plan.slugs[name]}.shuffled"]["agreement"]
    known = agreement[np.isfinite(agreement)]
    own = 1.0 if stable is None or stable.value is None else stable.value
    same = float(known.mean()) if len(known) else np.nan
    ok = bool(np.isfinite(same)) and same < SAME_WITHOUT_WEIGHTS * max(own, 0.0)
    if not sanity.can_shuffle(plan.task.model):
        detail = f"the network has no weights to shuffle, so whether {name} looks at them could not be tested"
    elif not len(known):
        detail = f"{name} gives the same value to every input once the weights are shuffled, so nothing could be compared"
    else:
        detail = (
            f"with shuffled weights ({agreement.shape[1]} networks, {agreement.shape[0]} samples) the values of {name} agree "
            f"with the network's own at a rank correlation of {same:.2f}, and with themselves at {own:.2f}"
        )
        detail += "" if ok else ": they hardly depend on what the network learnt"
    return Evidence(id=f"explanation.{plan.slugs[name]}.depends_on_weights", ok=ok, detail=detail, value=finite(same))


def _adds_up(plan: Plan, arrays: Arrays, rows: NDArray[np.int64], name: str) -> list[Evidence]:
    if not plan.explainers[name].complete:
        return []
    share = sanity.left_over(arrays["gap"][rows], arrays["change"][rows])
    most = ADDS_UP_DRAWN if str(arrays["used"][0]) == "shap.gradient" else ADDS_UP
    told = "cannot be told, since the answer does not change from the baseline" if share is None else f"{share:.2%}"
    return [
        Evidence(
            id=f"explanation.{plan.slugs[name]}.adds_up",
            ok=share is not None and share <= most,
            detail=f"of the answer's change from the baseline, {name}'s values leave over {told} ({most:.0%} may be)",
            value=share,
        )
    ]


def _repeatable(name: str, part: str, stable: Interval | None) -> list[Evidence]:
    if stable is None:
        return []
    ok = stable.value is not None and stable.value >= REPEATS
    told = "cannot be compared: all values are equal" if stable.value is None else f"agree at {stable.value:.2f}"
    return [
        Evidence(
            id=f"explanation.{part}.repeatable",
            ok=ok,
            detail=f"under another seed the rankings of {name} {told} ({REPEATS} or more is asked for)",
            value=finite(stable.value),
        )
    ]


def _gap(plan: Plan, arrays: Arrays, rows: NDArray[np.int64], name: str) -> list[Metric]:
    gap, change = arrays["gap"][rows], np.abs(arrays["change"][rows])
    share = sanity.left_over(gap, change)
    if not plan.explainers[name].complete or share is None:
        return []
    # A ratio of means, linearised (Cochran 1977, equation 6.4): its error is that of gap − share · |change|.
    around = faithfulness.mean_interval(gap - share * change, plan.task.confidence)
    half = None if around.high is None or around.value is None else (around.high - around.value) / float(change.mean())
    if half is None and len(rows) >= faithfulness.FEWEST:
        half = 0.0  # every sample leaves over the same share, as where values are made to add up
    interval = Interval(share, None if half is None else max(0.0, share - half), None if half is None else share + half)
    part = plan.slugs[name]
    return [
        metric(plan, f"{part}.completeness_gap", interval, len(rows), direction="lower", params={"method": name},
                method="ratio of means")
    ]  # fmt: skip


def methods_sentence(plan: Plan, judged: dict[str, Judged]) -> str:
    """Say how many explainers passed, and which of them lowers the answer fastest."""
    if not judged:
        return "No explainer could be asked."
    sound = [j for j in judged.values() if j.believed]
    text = f"{len(sound)} of {len(judged)} explainers passed their tests on {plan.samples} samples"
    if not sound:
        return f"{text}: none of the explanations is to be believed."
    best = max(sound, key=lambda j: j.faithfulness.value or 0.0)
    scale = "of the outputs' spread" if plan.task.model.task == "regression" else "in probability"
    value, low, high = best.faithfulness
    return (
        f"{text}; taking away what {best.name} calls important lowers the answer fastest: by {value:.2f} {scale} more than "
        f"random rankings ({plan.task.confidence:.0%} interval {low:.2f} to {high:.2f})."
    )
