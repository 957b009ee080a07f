"""What the scores of the detectors mean: metrics, evidence, findings and figures of the anomaly check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audit import figures, stats
from audit.checks.anomaly_trials import ROWS, fitting, primary_kind
from audit.checks.base import Answer, Arrays, Found, Task
from audit.errors import DataError
from audit.result import Evidence, Figure, Finding, Metric, Table, finite
from audit.stats import Interval

Floats = NDArray[np.float64]

SCORES = ("calibration", "test", "against_", "normal_", "anomalous_", "threshold")  # how the arrays of scores are named
COPIES = 0.05  # a larger difference in the share of copies is no chance
SURE = 0.99
KINDS = {
    "labelled": "labelled anomalies",
    "held_out": "classes held out",
    "shuffled": "rows of shuffled columns",
    "corrupted": "inputs corrupted at severity 5",
}


@dataclass(frozen=True)
class _Against:
    """Scores of normal samples and of anomalies with the threshold that they are held against; several where fits differ."""

    normal: list[Floats]
    anomalous: list[Floats]
    thresholds: list[float]

    @property
    def n(self) -> int:
        return sum(map(len, self.anomalous))

    def mean(self, measure: Any) -> Interval:
        """Return the mean of an interval over the fits. Limits are averaged, too: that is valid however they hang together."""
        parts = [measure(a, b) for a, b in zip(self.normal, self.anomalous, strict=True)]
        if not parts or any(part.value is None for part in parts):
            return Interval(None, 0.0, 1.0)
        value, low, high = (float(np.mean([part[i] for part in parts])) for i in range(3))
        return Interval(value, low, high)

    def detected(self) -> list[int]:
        return [int((scores > limit).sum()) for scores, limit in zip(self.anomalous, self.thresholds, strict=True)]


class Conclusion:
    """Adds what each detector showed to the answer."""

    def __init__(self, task: Task, found: Found, answer: Answer) -> None:
        self.task, self.found, self.answer = task, found, answer
        self.names = fitting(task)
        self.primary = primary_kind(task)
        self.not_numbers = dict.fromkeys(self.names, 0)
        self.fits = {name: self._of("fit", name) | self._of("adversarial", name) for name in self.names}
        self.left_out = {name: self._of("held_out", name) for name in self.names}
        self.kinds = self._found_kinds()
        self.primary = self.primary if self.primary in self.kinds else self.kinds[0]

    def draw(self) -> None:
        """Add everything."""
        for name in self.names:
            self._metrics(name)
            self._evidence(name)
        self._samples_evidence()
        main = self.names[0]
        self.answer.outcomes["anomaly.alarm"] = self.fits[main]["test"] > self._threshold(main)
        self._alarms(main)
        self._unnoticed(main)
        self._baselines(main)
        self._figures(main)
        self.answer.not_tested += self._not_tested()

    def _found_kinds(self) -> list[str]:
        arrays = self.fits[self.names[0]]
        kinds = [name.removeprefix("against_") for name in arrays if name.startswith("against_")]
        if any(name.startswith("normal_") for name in self.left_out[self.names[0]]):
            kinds.append("held_out")
        return sorted(kinds, key=lambda kind: (kind != self.primary, list(KINDS).index(kind) if kind in KINDS else 9, kind))

    def _of(self, stage: str, name: str) -> Arrays:
        """Return what a stage of a detector gave. A score that is no number is never an alarm, so it counts as the lowest."""
        merged = self.found.get(f"anomaly.{name}.{stage}")
        arrays = {} if merged is None else dict(merged.arrays)
        for key in arrays:
            if key.startswith(SCORES) and np.isnan(arrays[key]).any():
                lost = np.isnan(arrays[key])
                self.not_numbers[name] += int(lost.sum())
                lowest = np.inf if key.startswith("threshold") else float(arrays[key][~lost].min(initial=0.0))
                arrays[key] = np.where(lost, lowest, arrays[key])
        return arrays

    def _threshold(self, name: str) -> float:
        return float(self.fits[name]["threshold"][0])

    def against(self, name: str, kind: str) -> _Against:
        """Return the scores of detector `name` against one kind of anomaly."""
        if kind == "held_out":
            arrays = self.left_out[name]
            classes = [key.removeprefix("normal_") for key in arrays if key.startswith("normal_")]
            return _Against(
                [arrays[f"normal_{c}"] for c in classes],
                [arrays[f"anomalous_{c}"] for c in classes],
                [float(arrays[f"threshold_{c}"][0]) for c in classes],
            )
        arrays = self.fits[name]
        return _Against([arrays["test"]], [arrays[f"against_{kind}"]], [self._threshold(name)])

    def _metrics(self, name: str) -> None:
        task, arrays = self.task, self.fits[name]
        head = {"headline": True} if name == self.names[0] else {}
        for kind in self.kinds:
            against = self.against(name, kind)
            main = kind == self.primary
            prefix = f"anomaly.{name}" if main else f"anomaly.{name}.{kind}"
            params = {"against": _title(kind), **({"fits": len(against.normal)} if kind == "held_out" else {})}
            area = against.mean(lambda a, b: stats.auroc(a, b, task.confidence))
            self._add(f"{prefix}.auroc", area, against.n, "delong-clopper-pearson", params | (head if main else {}))
            if main:
                precision = against.mean(lambda a, b: stats.average_precision(a, b, task.confidence, task.seed))
                share = against.n / (against.n + sum(map(len, against.normal)))
                self._add(
                    f"{prefix}.average_precision", precision, against.n, "bootstrap", params | {"share_of_anomalies": share}
                )
            k, n = against.detected(), [len(scores) for scores in against.anomalous]
            rate = stats.clopper_pearson(sum(k), sum(n), task.confidence)
            method = "clopper-pearson"
            if len(k) > 1:
                rate, method = stats.mean_of_proportions(k, n, task.confidence), "mover"
            self._add(f"{prefix}.detection_rate", rate, against.n, method, params | {"alpha": task.options.alpha})
        alarms, n_test = int((arrays["test"] > self._threshold(name)).sum()), len(arrays["test"])
        self._add(
            f"anomaly.{name}.false_alarm_rate",
            stats.clopper_pearson(alarms, n_test, task.confidence),
            n_test,
            "clopper-pearson",
            {"alpha": task.options.alpha, "calibration_samples": len(arrays["calibration"])},
            direction="lower",
            outcome="anomaly.alarm" if name == self.names[0] else "",
        )

    def _add(
        self,
        metric_id: str,
        interval: Interval,
        n: int,
        method: str,
        params: dict[str, Any],
        direction: Any = "higher",
        outcome: str = "",
    ) -> None:
        value, low, high = (finite(v) for v in interval)
        self.answer.metrics.append(
            Metric(
                id=metric_id,
                value=value,
                low=low,
                high=high,
                confidence=self.task.confidence,
                n=n,
                method=method,
                direction=direction,
                params=params,
                outcome=outcome,
            )
        )

    # --- evidence

    def _evidence(self, name: str) -> None:
        from audit.anomaly import sanity

        arrays, prefix = self.fits[name], f"anomaly.{name}"
        test = self.task.data.test.x
        distinct = len({row.tobytes() for row in np.ascontiguousarray(test, dtype=np.float32)})
        self.answer.evidence += [
            sanity.distinct_scores(prefix, arrays["test"], distinct),
            sanity.repeatable(prefix, arrays["first"], arrays["second"]),
            sanity.numbers(prefix, self.not_numbers[name]),
        ]
        if name == "autoencoder":
            self.answer.evidence += [
                sanity.trained(prefix, arrays["own_error"], arrays["untrained_error"], arrays["mean_error"]),
                sanity.settled(prefix, arrays["step"], arrays["held_out_loss"], int(arrays["best_step"][0])),
            ]

    def _samples_evidence(self) -> None:
        from audit.anomaly.base import least_calibration

        arrays, alpha = self.fits[self.names[0]], self.task.options.alpha
        n, least = len(arrays["calibration"]), least_calibration(alpha)
        self.answer.evidence.append(
            Evidence(
                id="anomaly.enough_calibration",
                ok=n >= least,
                detail=f"{n} reference samples were put aside to set the threshold; a false-alarm rate of {alpha:g} needs at "
                f"least {least}",
                value=float(n),
            )
        )
        held, test = arrays["calibration_copies"], arrays["test_copies"]
        gap = stats.difference(int(test.sum()), len(test), int(held.sum()), len(held), SURE)
        leaked = gap.value is not None and gap.low is not None and gap.low > 0 and gap.value > COPIES
        repeated = gap.value is not None and gap.high is not None and gap.high < 0 and gap.value < -COPIES
        why = ": test samples were fitted on, so that their false-alarm rate says little" if leaked else ""
        why = ": the reference part holds copies, so that the threshold is too low" if repeated else why
        self.answer.evidence.append(
            Evidence(
                id="anomaly.same_draw",
                ok=not leaked and not repeated,
                detail=f"{test.mean():.1%} of the test samples and {held.mean():.1%} of the samples put aside also stand among "
                f"those that were fitted on{why}",
                value=gap.value,
            )
        )
        if "anomaly_copies" in arrays:
            self.answer.evidence.append(_apart(arrays["anomaly_copies"], test))

    # --- findings

    def _alarms(self, name: str) -> None:
        from audit.anomaly import sanity

        arrays, options, test = self.fits[name], self.task.options, self.task.data.test
        scores, limit = arrays["test"], self._threshold(name)
        alarm = scores > limit
        k, n = int(alarm.sum()), len(alarm)
        # Discrete scores often equal the threshold: those count, so that fewer alarms by ties are no sign.
        reached = int((scores >= limit).sum())
        if sanity.few_alarms_p_value(reached, n, len(arrays["calibration"]), options.alpha) < 1 - SURE:
            self.answer.findings.append(
                Finding(
                    severity="low",
                    title=f"The threshold is too high for this test part: {k} of {n} samples are alarms ({k / n:.1%}; it is "
                    f"set for {options.alpha:.0%})",
                    detail="So few would hardly come by chance if both parts had one source. The reference part is wider than "
                    "the test part: it may hold anomalies, other data or errors. Such a threshold lets more anomalies pass: "
                    "clean the reference part.",
                )
            )
        if not k:
            return
        worst = np.flatnonzero(alarm)[np.argsort(-scores[alarm], kind="stable")][:10]
        p = sanity.false_alarm_p_value(k, n, len(arrays["calibration"]), options.alpha)
        shifted = p < 1 - SURE
        share = k / n
        severity: Any = "info" if not shifted else "high" if share > 0.5 else "medium" if share > 2 * options.alpha else "low"
        title = f"{k} of {n} test samples are alarms ({share:.1%}; the threshold is set for {options.alpha:.0%})"
        self.answer.findings.append(
            Finding(
                severity=severity,
                title=f"The test part is not like the reference part: {title}" if shifted else title,
                detail=(
                    f"So many would come by chance with p = {p:.2g} if both parts had one source. Either the inputs changed "
                    "between them, or the reference part is not what the network was trained on, or it was selected. Figures "
                    "on this test part say little of data like the reference part, and every detection rate here comes with "
                    "these false alarms."
                    if shifted
                    else "About so many are to be expected of any test part. The most unusual ones are listed first."
                ),
                samples=test.ids[worst].tolist(),
            )
        )

    def _unnoticed(self, name: str) -> None:
        """Report kinds of anomaly that the detector sees no better, or hardly better, than chance."""
        clean = float((self.fits[name]["test"] > self._threshold(name)).mean())
        for kind in self.kinds:
            against = self.against(name, kind)
            area = against.mean(lambda a, b: stats.auroc(a, b, self.task.confidence))
            k, n = sum(against.detected()), against.n
            rate = stats.clopper_pearson(k, n, self.task.confidence)
            if rate.value is None or rate.high is None or area.low is None or rate.high >= 0.5:
                continue
            blind = area.low <= 0.5
            ours = kind.startswith("adversarial")
            self.answer.findings.append(
                Finding(
                    severity="medium" if blind and (ours or kind in ("labelled", "held_out")) else "low",
                    title=f"{_title(kind)[0].upper()}{_title(kind)[1:]} mostly go unnoticed ({rate.value:.0%} raise an alarm)",
                    detail=f"{k} of {n} lie above the threshold ({rate.low:.1%} to {rate.high:.1%}), and {clean:.1%} of the "
                    f"clean test samples do; AUROC {area.value:.3f} ({area.low:.3f} to {area.high:.3f})"
                    + (": that is not shown to be better than chance." if blind else ".")
                    + (" An attacker need not fear this detector." if ours and blind else ""),
                )
            )

    def _baselines(self, name: str) -> None:
        """Say which simpler detector does better, and whether any does worse."""
        if len(self.names) < 2:
            return
        own, beaten, better = self.against(name, self.primary), [], []
        level = 1 - (1 - self.task.confidence) / (len(self.names) - 1)
        for other in self.names[1:]:
            gap = _paired(own, self.against(other, self.primary), level)
            if gap.low is not None and gap.low > 0:
                beaten.append(other)
            if gap.high is not None and gap.high < 0:
                better.append((other, gap))
        if better:
            most = min(better, key=lambda item: item[1].value or 0)
            self.answer.findings.append(
                Finding(
                    severity="low",
                    title=f"A simpler detector does better than {name}: {', '.join(other for other, _ in better)}",
                    detail=f"Against {_title(self.primary)} the AUROC of {most[0]} is higher by {-(most[1].value or 0):.3f} "
                    f"({-(most[1].high or 0):.3f} to {-(most[1].low or 0):.3f}, paired): deploy that one.",
                )
            )
        elif not beaten:
            self.answer.findings.append(
                Finding(
                    severity="info",
                    title=f"{name} is not shown to beat any simpler detector",
                    detail=f"Against {_title(self.primary)} no paired difference of AUROC to {', '.join(self.names[1:])} is "
                    "surely above 0.",
                )
            )

    # --- figures

    def _figures(self, name: str) -> None:
        arrays, task = self.fits[name], self.task
        groups = [("test", arrays["test"])]
        groups += [(_title(kind), arrays[f"against_{kind}"]) for kind in self.kinds if f"against_{kind}" in arrays]
        lowest = min(float(scores.min()) for _, scores in groups)
        limit = self._threshold(name)
        logarithmic = lowest > 0 and np.isfinite(limit)
        self.answer.figures.append(
            figures.histogram(
                "anomaly.scores",
                f"Scores of the {name} detector",
                [(title, np.log10(scores) if logarithmic else scores) for title, scores in groups],
                xlabel="log10 of the score" if logarithmic else "score",
                threshold=(float(np.log10(limit)) if logarithmic else limit) if np.isfinite(limit) else None,
                threshold_label=f"threshold for {task.options.alpha:.0%} false alarms",
            )
        )
        self.answer.figures += [self._forest(), self._curve()]
        self.answer.tables += [self._table(), *self._by_corruption(name)]
        self.answer.figures += _gallery(task, arrays, self.kinds) + _columns(task, arrays, self.kinds)
        if "step" in arrays:
            self.answer.figures.append(_training_curve(arrays))

    def _forest(self) -> Figure:
        known = {metric.id: metric for metric in self.answer.metrics}
        rows = []
        for kind in self.kinds:
            for name in self.names:
                prefix = f"anomaly.{name}" if kind == self.primary else f"anomaly.{name}.{kind}"
                rows.append((f"{name}: {_short(kind)}", known[f"{prefix}.auroc"]))
        return Figure(
            id="anomaly.auroc",
            kind="forest",
            title="How well each detector tells anomalies from test samples (AUROC)",
            data={
                "labels": [label for label, _ in rows],
                "values": [metric.value for _, metric in rows],
                "low": [metric.low for _, metric in rows],
                "high": [metric.high for _, metric in rows],
                "n": [metric.n for _, metric in rows],
                "xlabel": "AUROC",
                "ylabel": "",
                "reference": 0.5,
                "reference_label": "chance",
            },
        )

    def _curve(self) -> Figure:
        series: list[Any] = []
        for name in self.names:
            against = self.against(name, self.primary)
            rates = np.linspace(0, 1, 101)
            found = [_roc(a, b, rates) for a, b in zip(against.normal, against.anomalous, strict=True)]
            series.append({"name": name, "x": rates.tolist(), "y": np.mean(found, axis=0).tolist()})
        return Figure(
            id="anomaly.roc",
            kind="curve",
            title=f"Anomalies found against false alarms ({_title(self.primary)})",
            data={"series": series, "xlabel": "false-alarm rate", "ylabel": "detection rate"},
        )

    def _table(self) -> Table:
        known = {metric.id: metric for metric in self.answer.metrics}
        rows: list[list[Any]] = []
        for name in self.names:
            false = known[f"anomaly.{name}.false_alarm_rate"].value
            for kind in self.kinds:
                prefix = f"anomaly.{name}" if kind == self.primary else f"anomaly.{name}.{kind}"
                area, rate = known[f"{prefix}.auroc"], known[f"{prefix}.detection_rate"]
                rows.append([name, _title(kind), area.n, area.value, area.low, area.high, rate.value, false])
        return Table(
            id="anomaly.detectors",
            title="Detectors and what they notice",
            columns=["detector", "against", "samples", "AUROC", "low", "high", "detected", "false alarms"],
            rows=rows,
        )

    def _by_corruption(self, name: str) -> list[Table]:
        arrays = self.fits[name]
        if "sources_corrupted" not in arrays:
            return []
        from audit.anomaly.comparisons import usable

        names = usable(self.task.data.test.x.shape[1:], images=self.task.data.kind == "image")
        rows: list[list[Any]] = []
        for i, corruption in enumerate(names):
            scores = arrays["against_corrupted"][arrays["sources_corrupted"] == i]
            area = stats.auroc(arrays["test"], scores, self.task.confidence)
            rows.append([corruption, len(scores), area.value, area.low, area.high])
        return [
            Table(
                id="anomaly.corruptions",
                title=f"Corruptions at severity 5 that the {name} detector notices",
                columns=["corruption", "samples", "AUROC", "low", "high"],
                rows=rows,
            )
        ]

    def _not_tested(self) -> list[str]:
        data, untested = self.task.data, []
        if self.primary != "labelled":
            untested.append("anomalies as they will come: none were given (--anomalies); those made up here stand in for them")
        if not any(kind.startswith("adversarial") for kind in self.kinds):
            untested.append("this run's own adversarial examples: the robustness check was not part of it, or broke nothing")
        if "corrupted" not in self.kinds:
            untested.append("corrupted inputs: no bounds are known (--bounds), or the inputs are too small")
        if "held_out" not in self.kinds:
            untested.append(
                "classes held out: that needs three classes with samples in both parts, and enough without one for a threshold"
            )
        left_out = [name for name in self.task.options.detectors if name not in self.names]
        if left_out:
            untested.append(f"{', '.join(left_out)}: samples of a single value leave no room for a bottleneck")
        used = self.task.options.rows or ROWS[self.task.profile]
        if data.reference is not None and len(data.reference) > used:
            untested.append(f"detectors fitted on more than {used:,} of the {len(data.reference):,} reference samples")
        untested.append("detectors that look at the network's inside: these look at its inputs alone")
        return untested


def _apart(anomalies: NDArray[np.bool_], test: NDArray[np.bool_]) -> Evidence:
    """Judge whether the labelled anomalies were kept out of the fit: more of them among the fitted than of the test samples."""
    gap = stats.difference(int(anomalies.sum()), len(anomalies), int(test.sum()), len(test), SURE)
    fitted_on = gap.value is not None and gap.low is not None and gap.low > 0 and gap.value > COPIES
    return Evidence(
        id="anomaly.anomalies_not_fitted",
        ok=not fitted_on,
        detail=f"{anomalies.mean():.1%} of the labelled anomalies and {test.mean():.1%} of the test samples also stand among "
        "those that were fitted on"
        + (": the detectors learnt them as normal, so that the figures against them are too low" if fitted_on else ""),
        value=gap.value,
    )


def _paired(own: _Against, other: _Against, confidence: float) -> Interval:
    """Return the AUROC of one detector less that of another, averaged over fits with its limits."""
    gaps = [
        stats.auroc_difference(a, b, c, d, confidence)
        for a, b, c, d in zip(own.normal, own.anomalous, other.normal, other.anomalous, strict=True)
    ]
    if not gaps or any(gap.value is None for gap in gaps):
        return Interval(None, -1.0, 1.0)
    value, low, high = (float(np.mean([gap[i] for gap in gaps])) for i in range(3))
    return Interval(value, low, high)


def _roc(normal: Floats, anomalous: Floats, rates: Floats) -> Floats:
    """Return the detection rate at each false-alarm rate."""
    limits = np.quantile(normal, 1 - rates, method="higher")
    found = (anomalous[None, :] > limits[:, None]).mean(axis=1)
    found[-1] = 1.0
    return np.asarray(found, dtype=np.float64)


def _gallery(task: Task, arrays: Arrays, kinds: list[str]) -> list[Figure]:
    """Show the most and the least usual test images, and one of each kind of anomaly, beside the network's copies."""
    if "shown_test" not in arrays or task.data.test.x.shape[1] not in (1, 3):
        return []
    try:
        low, high = (float(v) for v in (np.min(task.data.box()[0]), np.max(task.data.box()[1])))
    except DataError:
        return []
    test, rows = task.data.test, arrays["shown_rows"]
    items = []
    for i, row in enumerate(rows):
        caption = f"{'most usual' if i < len(rows) // 2 else 'most unusual'} test image, score {arrays['test'][row]:.3g}"
        items.append(_item(int(test.ids[row]), test.x[row], arrays["shown_test"][i], (low, high), caption))
    for kind in kinds:
        if f"shown_{kind}" in arrays:
            pair, score = arrays[f"shown_{kind}"][:, 0], float(np.median(arrays[f"against_{kind}"]))
            items.append(
                _item(
                    int(arrays[f"shown_id_{kind}"][0]),
                    pair[0],
                    pair[1],
                    (low, high),
                    f"{_title(kind)}: a middling one, score {score:.3g}",
                )
            )
    panels = ["input", "the network's copy", "difference"]
    return [figures.gallery("anomaly.copies", "What the autoencoder makes of inputs", panels, items)]


def _item(identity: int, image: NDArray[Any], copy: Floats, box: tuple[float, float], caption: str) -> figures.Item:
    first, second = figures.unit(image, *box), figures.unit(copy, *box)
    return figures.Item(identity, [first, second, figures.difference(first, second, times=1.0)], caption)


def _columns(task: Task, arrays: Arrays, kinds: list[str]) -> list[Figure]:
    """Show which columns of the first kind of anomaly are copied worst."""
    kind = next((kind for kind in kinds if f"column_error_{kind}" in arrays), None)
    if kind is None or "column_error_test" not in arrays:
        return []
    error, names = arrays[f"column_error_{kind}"], task.data.columns
    order = np.argsort(-error, kind="stable")[:12]
    return [
        Figure(
            id="anomaly.columns",
            kind="bars",
            title=f"Columns that give {_title(kind)} away to the autoencoder",
            data={
                "labels": [names[i] for i in order],
                "values": [float(error[i]) for i in order],
                "low": [None] * len(order),
                "high": [None] * len(order),
                "n": [len(arrays[f"against_{kind}"])] * len(order),
                "xlabel": "mean squared error; that of a normal sample is 1",
                "ylabel": "column",
                "reference": 1.0,
                "reference_label": "normal",
            },
        )
    ]


def _training_curve(arrays: Arrays) -> Figure:
    x = arrays["step"].astype(float).tolist()
    return Figure(
        id="anomaly.training",
        kind="curve",
        title="How the autoencoder learnt",
        data={
            "series": [
                {"name": "held out", "x": x, "y": arrays["held_out_loss"].tolist()},
                {"name": "fitted", "x": x, "y": arrays["train_loss"].tolist()},
            ],
            "xlabel": "step",
            "ylabel": "mean squared error",
        },
    )


def _short(kind: str) -> str:
    return kind.replace("_", " ").replace("linf", "L∞").replace("l2", "L2")


def _title(kind: str) -> str:
    if kind.startswith("adversarial_"):
        norm = kind.removeprefix("adversarial_")
        return f"this run's {({'linf': 'L∞', 'l2': 'L2'}).get(norm, norm)} adversarial examples"
    return KINDS[kind]


def sentence(task: Task, answer: Answer) -> str:
    """Return the answer in words."""
    name = fitting(task)[0]
    known = {metric.id: metric for metric in answer.metrics}
    area, false = known.get(f"anomaly.{name}.auroc"), known[f"anomaly.{name}.false_alarm_rate"]
    text = (
        f"Set for {task.options.alpha:.0%} false alarms, the {name} detector raises one on {false.value:.1%} of {false.n:,} "
        f"test samples ({false.low:.1%} to {false.high:.1%})."
    )
    if area is None or area.value is None:
        return text
    rate = known[f"anomaly.{name}.detection_rate"]
    return (
        f"{text} Against {area.params['against']} its AUROC is {area.value:.3f} ({task.confidence:.0%} interval {area.low:.3f} "
        f"to {area.high:.3f}); it notices {rate.value:.1%} of them ({rate.low:.1%} to {rate.high:.1%})."
    )
