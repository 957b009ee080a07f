"""What hardening brought and what it cost: two audits of the same samples, before and after, and whether the gain is real."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from audit import stats
from audit.checks.base import MetricDoc
from audit.hardening.health import findings as health_findings
from audit.hardening.history import Epoch, History
from audit.result import CheckResult, Evidence, Figure, Finding, Metric, Result, Table
from audit.stats import Interval

CHECK = "hardening"
QUESTION = "Does hardening make the network withstand small changes, and what does it cost?"
LEFT = 0.5  # of what the given network can tell apart, the hardened one should keep at least so much
SELECTED = 0.05  # by so much validation may surely beat the test part: the best of several epochs is picked on it
MOST_LAYERS = 12

PAIRED = (
    "paired: MOVER over the Clopper–Pearson limits of the shares of samples that one network alone gets right, "
    "correlation at the upper limits"
)
METRICS = (
    MetricDoc(
        id="hardening.<norm>.robust_accuracy",
        definition="share of the test samples that the hardened network gets right and that no attack of the run broke; for "
        "regression, share whose output no attack moved by more than the tolerance",
        unit="fraction",
        range="0 to 1",
        interval="Clopper–Pearson over samples",
        bias="an upper bound on the truth: a stronger attack can only lower it",
        source="Madry et al. 2018; Clopper & Pearson 1934",
        kind="upper",
    ),
    MetricDoc(
        id="hardening.<norm>.accuracy_gain",
        definition="robust accuracy of the hardened network less that of the given one, on the same test samples",
        unit="fraction",
        range="-1 to 1",
        interval=PAIRED,
        bias="both are upper bounds, so their difference errs towards whichever network the attack is weaker on",
        source="Madry et al. 2018; Zou & Donner 2008, equation 4",
    ),
    MetricDoc(
        id="hardening.clean.accuracy",
        definition="share of the test samples that the hardened network gets right, unattacked",
        unit="fraction",
        range="0 to 1",
        interval="Clopper–Pearson over samples",
        bias="interval wider than it need be for small n",
        source="Clopper & Pearson 1934",
    ),
    MetricDoc(
        id="hardening.clean.cost",
        definition="clean accuracy of the given network less that of the hardened one, on the same test samples",
        unit="fraction",
        range="-1 to 1",
        interval=PAIRED,
        bias="none; conservative",
        source="Tsipras et al. 2019 (the trade-off); Zou & Donner 2008, equation 4",
        direction="lower",
    ),
    MetricDoc(
        id="hardening.clean.error_increase",
        definition="regression: mean absolute error of the hardened network less that of the given one, on the same samples",
        unit="target units",
        range="any number",
        interval="studentised bootstrap of the paired differences, fixed seed",
        bias="none of the value; the interval is too narrow for heavy-tailed errors in small samples",
        source="Davison & Hinkley 1997, section 5.2.1",
        direction="lower",
    ),
)


@dataclass(frozen=True)
class Trial:
    """What hardening is judged by.

    Attributes
    ----------
    before, after
        Audits of the given and of the hardened network on the same test samples.
    history
        The training between them.
    same_attack : ((right, n), (right, n)) or None
        Samples that the hardened network gets right under the very attack of early stopping: of the validation part, and of
        the test part. None for regression.
    errors : float array (n,) or None
        Regression: how much larger the absolute error of each test sample became.
    labels : int64 array (n,) or None
        Classification: the labels of the test samples.
    """

    before: Result
    after: Result
    history: History
    same_attack: tuple[tuple[int, int], tuple[int, int]] | None = None
    errors: NDArray[np.float64] | None = None
    labels: NDArray[np.int64] | None = None

    @property
    def norm(self) -> str:
        """The norm that was trained for and that both audits attack in."""
        return self.history.norm

    def broken(self, result: Result) -> NDArray[np.bool_]:
        """Tell which samples the audit broke, in the order of sample ids."""
        return _bits(result, "robustness", f"robustness.{self.norm}.broken")

    def correct(self, result: Result) -> NDArray[np.bool_] | None:
        """Tell which samples are right unattacked; None for regression."""
        if result.model.task == "regression":
            return None
        return _bits(result, "performance", "performance.correct")


def conclude(trial: Trial, confidence: float, *, more: Sequence[Figure] = ()) -> CheckResult:
    """Turn two audits and the training between them into the answer of ``hardening``.

    It is *incomplete* where either audit is, where training broke off, where the test samples were trained on, where the
    network does on the validation part what it does not on the test part, or where it answers nearly the same to everything.
    """
    missing = [
        f"{check.id} {name} is {check.status}: {check.reason}"
        for name, result in (("before", trial.before), ("after", trial.after))
        for check in result.checks
        if check.id in ("performance", "robustness") and check.status in ("error", "not_applicable")
    ]
    if missing:
        reason = "; ".join(missing)
        return CheckResult(id=CHECK, status="error", reason=reason, question=QUESTION, answer=f"Not measured: {reason}")
    metrics = [*_robustness(trial, confidence), *_clean(trial, confidence)]
    evidence = [
        *_sound(trial),
        _unseen(trial),
        _finished(trial.history),
        *_not_selected(trial, confidence),
        *_tells_apart(trial, confidence),
    ]
    failed = [f"{e.id}: {e.detail}" for e in evidence if not e.ok]
    attack = trial.after["robustness"]
    return CheckResult(
        id=CHECK,
        status="incomplete" if failed else "measured",
        reason="; ".join(failed) or None,
        question=QUESTION,
        answer=_answer(trial, metrics, bool(failed)),
        metrics=metrics,
        evidence=evidence,
        findings=[
            *_outcome(trial, metrics, bool(failed)),
            *_collapsed(evidence),
            *_stopped(trial.history),
            *health_findings(trial.history),
        ],
        outcomes=attack.outcomes,
        figures=[_before_after(trial, confidence), *_curves(trial.history), *more],
        tables=[_table(trial.history)],
        not_tested=[
            "changes other than those that the network was hardened against: robustness to one kind need not carry over",
            "other seeds of the training: it was run once, and the interval holds the test samples' chance alone",
        ],
    )


def _bits(result: Result, check_id: str, name: str) -> NDArray[np.bool_]:
    outcomes = result[check_id].outcomes
    if outcomes is None:
        raise ValueError(f"the audit of {result.model.source} holds no outcomes of {check_id}")
    return outcomes.bits(name)


# --- figures of merit -------------------------------------------------------------------------------------------------


def _robustness(trial: Trial, confidence: float) -> list[Metric]:
    before, after = ~trial.broken(trial.before), ~trial.broken(trial.after)
    attack = trial.after["robustness"].metric(f"robustness.{trial.norm}.accuracy")
    gain = _paired(after, before, confidence)
    params = {**attack.params, "before": float(before.mean()), "after": float(after.mean()), "method": trial.history.method}
    return [
        attack.model_copy(update={"id": f"hardening.{trial.norm}.robust_accuracy", "params": {**params, "headline": True}}),
        _metric(
            f"hardening.{trial.norm}.accuracy_gain",
            gain,
            len(after),
            confidence,
            method="mover-paired",
            params={**params, "headline": True},
        ),
    ]


def _clean(trial: Trial, confidence: float) -> list[Metric]:
    before, after = trial.correct(trial.before), trial.correct(trial.after)
    if before is None or after is None:
        return [] if trial.errors is None else [_error_increase(trial.errors, confidence)]
    own = stats.clopper_pearson(int(after.sum()), len(after), confidence)
    return [
        _metric("hardening.clean.accuracy", own, len(after), confidence, method="clopper-pearson"),
        _metric(
            "hardening.clean.cost",
            _paired(before, after, confidence),
            len(after),
            confidence,
            method="mover-paired",
            direction="lower",
            params={"before": float(before.mean()), "after": float(after.mean()), "headline": True},
        ),
    ]


def _error_increase(errors: NDArray[np.float64], confidence: float) -> Metric:
    return _metric(
        "hardening.clean.error_increase",
        stats.paired_mean(errors, confidence),
        len(errors),
        confidence,
        method="bootstrap",
        direction="lower",
        unit="target units",
        params={"headline": True},
    )


def _paired(first: NDArray[np.bool_], second: NDArray[np.bool_], confidence: float) -> Interval:
    return stats.paired_difference(int((first & ~second).sum()), int((~first & second).sum()), len(first), confidence)


def _metric(metric_id: str, interval: Interval, n: int, confidence: float, **more: Any) -> Metric:
    return Metric(id=metric_id, value=interval.value, low=interval.low, high=interval.high, confidence=confidence, n=n, **more)


# --- may it be believed? ----------------------------------------------------------------------------------------------


def _sound(trial: Trial) -> list[Evidence]:
    """Ask whether the attack could be believed on both networks: training that hides gradients looks like robustness."""
    found = []
    for name, result in (("after", trial.after), ("before", trial.before)):
        weak = [e.id for check in _both(result) for e in check.evidence if not e.ok]
        held = sum(len(check.evidence) for check in _both(result))
        unsound = [check.reason or check.status for check in _both(result) if check.status != "measured" and not weak]
        text = f"{held - len(weak)} of {held} tests of the measurement hold for the network {name} hardening"
        found.append(
            Evidence(
                id=f"hardening.sound_{name}",
                ok=not weak and not unsound,
                value=(held - len(weak)) / held if held else 0.0,
                detail=text + (f"; not: {', '.join(weak)}" if weak else "") + "".join(f"; {reason}" for reason in unsound),
                # What an attack on the given network misses makes the gain smaller than it is, and nothing larger.
                one_sided=name == "after" and _all_one_sided(result),
            )
        )
    return found


def _both(result: Result) -> list[CheckResult]:
    return [check for check in result.checks if check.id in ("performance", "robustness")]


def _all_one_sided(result: Result) -> bool:
    return all(e.ok or e.one_sided for check in _both(result) for e in check.evidence)


def _unseen(trial: Trial) -> Evidence:
    """Ask whether the test samples were kept out of training: the audit compared both parts row by row."""
    told = next((e for e in trial.after["performance"].evidence if e.id == "performance.test_unseen"), None)
    if told is None:
        return Evidence(id="hardening.test_unseen", ok=False, detail="nothing compared the test part with the reference part")
    return Evidence(id="hardening.test_unseen", ok=told.ok, detail=told.detail, value=told.value)


def _finished(history: History) -> Evidence:
    return Evidence(
        id="hardening.training_finite",
        ok=history.ended != "not_finite",
        detail=f"training ended after epoch {history.epochs[-1].epoch}: {history.reason}; the weights of epoch {history.kept} "
        "were kept",
        value=float(history.epochs[-1].epoch),
    )


def _not_selected(trial: Trial, confidence: float) -> list[Evidence]:
    """Ask whether the test part bears out the validation part, on which the best epoch was picked, under the same attack."""
    if trial.same_attack is None:
        return []
    (k, n), (k_test, n_test) = trial.same_attack
    gap = stats.difference(k, n, k_test, n_test, confidence)
    return [
        Evidence(
            id="hardening.validation_borne_out",
            ok=gap.low is None or gap.low <= SELECTED,
            value=gap.value,
            detail=f"under the attack that early stopping looked at, {k} of {n} validation samples stay right and "
            f"{k_test} of {n_test} test samples ({SELECTED:.0%} more is allowed for, since the epoch was picked there)",
        )
    ]


def _tells_apart(trial: Trial, confidence: float) -> list[Evidence]:
    """Ask whether the hardened network still tells classes apart: nothing breaks one that gives the same answer to everything.

    Its robust accuracy is the share of that class, which may be most of the samples, and the gain looks like a success. What a
    network tells apart is its balanced accuracy less that of a constant answer; the normal approximation does for its bound.
    """
    before, after = trial.correct(trial.before), trial.correct(trial.after)
    if before is None or after is None or trial.labels is None or len(np.unique(trial.labels)) < 2:
        return []
    had, _ = _above_constant(before, trial.labels)
    has, error = _above_constant(after, trial.labels)
    least = has - float(scipy_stats.norm.isf((1 - confidence) / 2)) * error
    return [
        Evidence(
            id="hardening.tells_classes_apart",
            ok=least > 0 and has >= LEFT * had,
            value=has,
            detail=f"balanced accuracy lies {has:.1%} above that of always giving one answer, before hardening {had:.1%} "
            f"(surely above 0, and {LEFT:.0%} of what it was, is asked for: an answer that is always the same is never broken)",
            one_sided=True,
        )
    ]


def _above_constant(correct: NDArray[np.bool_], labels: NDArray[np.int64]) -> tuple[float, float]:
    """Return the balanced accuracy less that of a constant answer, and its standard error."""
    each = [correct[labels == label] for label in np.unique(labels)]
    error = np.sqrt(sum(c.mean() * (1 - c.mean()) / len(c) for c in each)) / len(each)
    return float(np.mean([c.mean() for c in each])) - 1 / len(each), float(error)


# --- words ------------------------------------------------------------------------------------------------------------


def _answer(trial: Trial, metrics: Sequence[Metric], weak: bool) -> str:
    held = {metric.id: metric for metric in metrics}
    gain = held[f"hardening.{trial.norm}.accuracy_gain"]
    after, before = float(str(gain.params["after"])), float(str(gain.params["before"]))
    verb = "rises" if after > before else "falls" if after < before else "stays"
    course = f"{verb} from {before:.1%} to {after:.1%}" if after != before else f"stays at {after:.1%}"
    noun = "the share of outputs that hold" if trial.after.model.task == "regression" else "robust accuracy"
    text = (
        f"{noun.capitalize()} at {_name(trial.norm)} {trial.history.eps:g} {course} "
        f"({_points(gain.value)} points, {_points(gain.low)} to {_points(gain.high)})"
    )
    cost = held.get("hardening.clean.cost")
    more = held.get("hardening.clean.error_increase")
    if cost is not None and cost.value is not None and cost.value < 0 and cost.low is not None and cost.high is not None:
        text += f", and clean accuracy changes by {_points(-cost.value)} points ({_points(-cost.high)} to {_points(-cost.low)})"
    elif cost is not None:
        text += f", at a cost of {_points(cost.value)} points of clean accuracy ({_points(cost.low)} to {_points(cost.high)})"
    if more is not None and more.value is not None:
        text += f", and the mean absolute error changes by {more.value:+.4g}" + (
            f" ({more.low:+.4g} to {more.high:+.4g})" if more.low is not None and more.high is not None else ""
        )
    return text + (
        ". This cannot be relied on: a test of the measurement failed."
        if weak
        else f", on {gain.n:,} samples never trained on."
    )


def _outcome(trial: Trial, metrics: Sequence[Metric], weak: bool) -> list[Finding]:
    held = {metric.id: metric for metric in metrics}
    gain = held[f"hardening.{trial.norm}.accuracy_gain"]
    found = []
    if weak and not next(e for e in _sound(trial) if e.id == "hardening.sound_after").ok:
        found.append(
            Finding(
                severity="high",
                title="The hardened network may only look robust",
                detail="A test of the attack on it failed: gradients may be hidden rather than answers made stable, so that "
                f"another attack would break it. {_sound(trial)[0].detail}.",
            )
        )
    if gain.low is not None and gain.low <= 0:
        worse = gain.high is not None and gain.high < 0
        found.append(
            Finding(
                severity="high" if worse else "medium",
                title="Hardening made the network less robust" if worse else "Hardening is not shown to have helped",
                detail=f"The gain in robust accuracy lies between {_points(gain.low)} and {_points(gain.high)} points. The "
                "learning curves show whether training got anywhere: more --epochs, a longer warm_up, a smaller --beta, or a "
                "wider network may help; so may a smaller --eps.",
            )
        )
    found += _calibration(trial)
    if trial.history.kept == 0:
        found.append(
            Finding(
                severity="medium",
                title="No epoch was better than the given network",
                detail="On the validation samples the given network withstood the attack at least as well as after any epoch, "
                "so that its own weights were kept.",
            )
        )
    return found


def _collapsed(evidence: Sequence[Evidence]) -> list[Finding]:
    return [
        Finding(
            severity="high",
            title="The hardened network hardly tells classes apart",
            detail=f"{e.detail[0].upper()}{e.detail[1:]}. Rare classes lead there, and a radius as wide as what sets classes "
            "apart: more samples of the rare classes, a smaller --eps or a smaller --beta may help.",
        )
        for e in evidence
        if e.id == "hardening.tells_classes_apart" and not e.ok
    ]


def _calibration(trial: Trial) -> list[Finding]:
    """Return what hardening did to the confidence that the network states, where its error grew for sure."""
    before, after = (result.metrics().get("calibration.ece") for result in (trial.before, trial.after))
    if before is None or after is None or after.low is None or before.high is None or after.low <= before.high:
        return []
    return [
        Finding(
            severity="medium",
            title="Its stated confidence is further off than before",
            detail=f"The expected calibration error is {after.value:.3f} ({after.low:.3f} to {after.high:.3f}) after hardening "
            f"and was {before.value:.3f} ({before.low:.3f} to {before.high:.3f}): do not read its probabilities as such until "
            "it is calibrated again.",
        )
    ]


def _stopped(history: History) -> list[Finding]:
    if history.ended != "time":
        return []
    return [
        Finding(
            severity="low",
            title="Training was stopped by the clock",
            detail=f"{history.reason[0].upper()}{history.reason[1:]}. Another machine would get further, or less far: to "
            "repeat this exactly, say --epochs instead.",
        )
    ]


def _name(norm: str) -> str:
    return {"linf": "L∞", "l2": "L2"}.get(norm, norm)


def _points(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:+.1f}"


# --- figures ----------------------------------------------------------------------------------------------------------


def _before_after(trial: Trial, confidence: float) -> Figure:
    rows: list[tuple[str, Interval, Interval]] = []
    clean = trial.correct(trial.before), trial.correct(trial.after)
    if clean[0] is not None and clean[1] is not None:
        rows.append(("clean inputs", _share(clean[0], confidence), _share(clean[1], confidence)))
    under = f"under attack ({_name(trial.norm)} {trial.history.eps:g})"
    rows.append((under, _share(~trial.broken(trial.before), confidence), _share(~trial.broken(trial.after), confidence)))

    def side(which: int) -> dict[str, Any]:
        intervals = [row[which] for row in rows]
        return {
            "values": [i[0] for i in intervals],
            "low": [i[1] for i in intervals],
            "high": [i[2] for i in intervals],
        }

    data: dict[str, Any] = {
        "labels": [row[0] for row in rows],
        "before": side(1),
        "after": side(2),
        "before_name": "given network",
        "after_name": "hardened network",
        "xlabel": "share of samples",
    }
    return Figure(id="hardening.before_after", kind="paired", title="Before and after hardening", data=data)


def _share(bits: NDArray[np.bool_], confidence: float) -> Interval:
    return stats.clopper_pearson(int(bits.sum()), len(bits), confidence)


def _curves(history: History) -> list[Figure]:
    known = [epoch for epoch in history.epochs if epoch.loss is not None]
    attacked = f"attacked ({_name(history.norm)} {history.eps:g})"
    validation = [
        {"name": "clean", "x": [e.epoch for e in history.epochs], "y": [e.clean for e in history.epochs]},
        {"name": attacked, "x": [e.epoch for e in history.epochs], "y": [e.robust for e in history.epochs]},
    ]
    figures = [
        _curve(
            "hardening.validation", f"Validation {history.measure} by epoch (kept: {history.kept})", validation, history.measure
        )
    ]
    if known:
        loss = [{"name": "training loss", "x": [e.epoch for e in known], "y": [e.loss for e in known]}]
        figures.append(_curve("hardening.loss", "Training loss by epoch (the radius grows at first)", loss, "loss"))
        figures.append(_gradients(known))
    return figures


def _curve(figure_id: str, title: str, series: list[dict[str, Any]], ylabel: str) -> Figure:
    data: dict[str, Any] = {"series": series, "xlabel": "epoch", "ylabel": ylabel}
    return Figure(id=figure_id, kind="curve", title=title, data=data)


def _gradients(known: Sequence[Epoch]) -> Figure:
    names = [layer.name for layer in known[0].layers]
    kept = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(len(names), MOST_LAYERS)).round().astype(int))]
    panels: list[Any] = []
    for name in kept:
        points = [(e.epoch, layer.gradient) for e in known for layer in e.layers if layer.name == name and layer.gradient > 0]
        series = {"name": name, "x": [x for x, _ in points], "y": [float(np.log10(y)) for _, y in points]}
        panels.append({"title": name, "series": [series]})
    every = [y for panel in panels for y in panel["series"][0]["y"]]
    data: dict[str, Any] = {
        "panels": panels,
        "xlabel": "epoch",
        "ylabel": "log10 of the gradient's root mean square",
        "ymin": float(np.floor(min(every))) if every else None,
        "ymax": float(np.ceil(max(every))) if every else None,
    }
    return Figure(id="hardening.gradients", kind="small_multiples", title="Gradient of each layer by epoch", data=data)


def _table(history: History) -> Table:
    rows: list[list[Any]] = []
    for epoch in history.epochs:
        dead = max((unit.dead / unit.units for unit in epoch.dead if unit.units), default=None)
        rows.append(
            [epoch.epoch, epoch.loss, epoch.eps, epoch.lr, epoch.clean, epoch.robust, dead, epoch.spikes, epoch.seconds]
        )
    columns = ["epoch", "loss", "radius", "learning rate", "clean", "attacked", "dead units (worst ReLU)", "spikes", "seconds"]
    return Table(
        id="hardening.epochs",
        title=f"Training by epoch ({history.n_train:,} samples; {history.measure} on {history.n_validation:,} kept back)",
        columns=columns,
        rows=rows,
    )
