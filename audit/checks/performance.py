"""Asks how often the network is right, and whether it knows when it is not: the ground that every other check stands on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import stats as scipy_stats

from audit import stats
from audit.checks.base import (
    Answer,
    Check,
    CheckOptions,
    Found,
    MetricDoc,
    Stage,
    Task,
    check,
    predictions,
    repeatability,
    repeatability_evidence,
)
from audit.checks.performance_measurement import (
    MOST_SHOWN,
    finite_rows,
    judge_gap,
    judge_outputs,
    judge_overlap,
    judge_repeats,
    make_metric,
    recall_bars,
    report_few,
    report_non_finite,
)
from audit.checks.performance_multilabel import METRICS as MULTILABEL_METRICS
from audit.checks.performance_multilabel import conclude_multilabel
from audit.checks.performance_regression import conclude_regression
from audit.data.base import Part
from audit.result import CheckResult, Evidence, Figure, Finding, Table, slugs
from audit.stats import Interval

CONFIDENT = 0.9
NO_CLASS = -1  # the prediction of a sample whose logits are not finite: right for no label


class PerformanceOptions(CheckOptions):
    """The section ``[performance]`` of audit.toml."""

    max_gap: float = Field(0.05, ge=0, description="over-fitting is reported when the gap is surely larger than this")
    recall_gap: float = Field(0.1, ge=0, description="a class is reported when its recall is surely this far below the others'")
    imbalance: float = Field(10.0, gt=1, description="ratio of the largest to the smallest class that is reported")
    bins: int = Field(15, ge=1, description="bins of the calibration error, at most")


@check
class Performance(Check):
    """How often the network is right, how sure it is, and whether the measurement can be repeated."""

    id = "performance"
    question = "How often is the network right, and does it know when it is not?"
    Options = PerformanceOptions
    metrics = (
        MetricDoc(
            "performance.accuracy",
            "Share of the test samples whose label is the predicted class (the largest logit); of a multi-label network, share "
            "of those whose labels are exactly the ones with a logit above 0 (subset accuracy). A sample whose logits are not "
            "finite counts as wrong.",
            "fraction",
            "0 to 1",
            "Clopper–Pearson (exact binomial)",
            "Interval wider than it need be for small n; optimistic where test samples were seen in training.",
            "Clopper & Pearson (1934), Biometrika 26:404",
        ),
        MetricDoc(
            "performance.balanced_accuracy",
            "Unweighted mean of the recalls of the classes that occur in the test part.",
            "fraction",
            "0 to 1",
            "MOVER over Clopper–Pearson limits of the recalls, the wider side of each on both; with classes of fewer than 30 "
            "samples at least as wide as Clopper–Pearson for as many draws as the mean is worth",
            "Says nothing of classes without test samples; rare classes make it noisy.",
            "Brodersen et al. (2010), ICPR; Zou & Donner (2008), Statistics in Medicine 27:1693",
        ),
        MetricDoc(
            "performance.<class>.recall",
            "Share of the test samples of one class (of a multi-label network: with one label) that are predicted as that "
            "class.",
            "fraction",
            "0 to 1",
            "Clopper–Pearson, one class at a time",
            "Of many intervals read together some miss: the finding on weak classes corrects for that, this does not.",
            "Clopper & Pearson (1934), Biometrika 26:404",
        ),
        MetricDoc(
            "performance.overfitting_gap",
            "Accuracy (for regression R²) on the reference part less that on the test part.",
            "fraction",
            "-1 to 1 (regression: any)",
            "MOVER over the intervals of the two parts; for accuracies with the longer side of each on both, or Bonferroni's "
            "limit where that is nearer",
            "Rises, too, where the parts differ in more than having been seen; 0 where the test part was trained on.",
            "Newcombe (1998), Statistics in Medicine 17:873; Zou & Donner (2008), Statistics in Medicine 27:1693",
            direction="lower",
        ),
        MetricDoc(
            "calibration.ece",
            "Expected calibration error: mean over bins of equal size of |accuracy − mean confidence|, weighted by their "
            "samples. Confidence is the largest softmax probability.",
            "fraction",
            "0 to 1",
            "MOVER over Clopper–Pearson limits of the bins, upward the longer side of each; the lower limit is the larger of "
            "that less a bound on the bias and of the distance between accuracy and mean confidence over all samples",
            "Biased upward for small n (noise adds to the absolute value); bins hide errors that cancel within a bin.",
            "Guo, Pleiss, Sun & Weinberger (2017), ICML; equal-mass bins: Nixon et al. (2019), CVPR workshops",
            direction="lower",
        ),
        MetricDoc(
            "performance.r2",
            "Coefficient of determination on the test part: 1 − mean squared error / variance of the labels.",
            "fraction",
            "any number up to 1; 0 is as good as the mean",
            "studentised bootstrap of log(1 − R²), fixed seed",
            "A little downward for small n; the interval is too narrow for heavy-tailed errors and skewed labels, of which the "
            "evidence performance.not_ruled_by_few notices many. No interval where too few errors differ from 0.",
            "Davison & Hinkley (1997), Bootstrap Methods and their Application, section 5.2.1",
        ),
        MetricDoc(
            "performance.mae",
            "Mean absolute error on the test part.",
            "target units",
            "0 and more",
            "studentised bootstrap of its logarithm, fixed seed",
            "None of the value; the interval is too narrow for heavy-tailed errors in small samples, of which the evidence "
            "performance.not_ruled_by_few notices many. No interval where too few errors differ from 0.",
            "Davison & Hinkley (1997), Bootstrap Methods and their Application, section 5.2.1",
            direction="lower",
        ),
        *MULTILABEL_METRICS,
    )

    def stages(self, task: Task) -> list[Stage]:
        """Run both parts once, some samples again, and some one at a time."""
        headline = "performance.r2" if task.model.task == "regression" else "performance.accuracy"
        clean = predictions(task, cost_of=headline)
        listed = [clean]
        if task.data.reference is not None:
            listed.append(predictions(task, "reference", cost_of="performance.overfitting_gap"))
        return listed + repeatability(task, self.id)

    def conclude(self, task: Task, found: Found) -> CheckResult:
        """Turn outputs into accuracy or error, with the tests of the measurement."""
        answer = Answer(type(self))
        name = "values" if task.model.task == "regression" else "logits"
        outputs = found["predictions.test"].spread(name, len(task.data.test), np.nan)
        judge_outputs(answer, outputs)
        answer.evidence += repeatability_evidence(self.id, task, found)
        judge_overlap(answer, task)
        judge_repeats(answer, task)
        conclude = {"regression": conclude_regression, "multilabel": conclude_multilabel}.get(task.model.task or "")
        text = (conclude or _classification)(answer, task, found, outputs)
        answer.not_tested += [
            "data unlike the test part: other sources, later times, rarer cases",
            "whether the labels themselves are right: the network is compared with them as they are",
        ]
        return answer.result(task, text)


# --- classification ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Classified:
    """Labels and predictions of the test part, with counts by class; `classes` are those seen in either or named."""

    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]
    classes: list[int]
    names: list[str]

    @property
    def correct(self) -> NDArray[np.bool_]:
        right: NDArray[np.bool_] = self.labels == self.predicted
        return right

    def support(self) -> NDArray[np.int64]:
        return np.asarray([(self.labels == c).sum() for c in self.classes], dtype=np.int64)

    def hits(self) -> NDArray[np.int64]:
        return np.asarray([((self.labels == c) & self.correct).sum() for c in self.classes], dtype=np.int64)

    def chosen(self) -> NDArray[np.int64]:
        return np.asarray([(self.predicted == c).sum() for c in self.classes], dtype=np.int64)


def _classify(task: Task, part: Part, logits: NDArray[Any]) -> _Classified:
    known = finite_rows(logits)
    predicted, confidence = np.full(len(logits), NO_CLASS, dtype=np.int64), np.full(len(logits), np.nan)
    rows = logits[known].astype(np.float64)
    if len(rows):
        predicted[known] = rows.argmax(axis=1)
        shifted = rows - rows.max(axis=1, keepdims=True)
        confidence[known] = 1 / np.exp(shifted).sum(axis=1)
    labels = part.y.astype(np.int64)
    named = task.classes
    classes = sorted({*range(logits.shape[1]), *np.unique(labels).tolist()})
    names = [named[c] if 0 <= c < len(named) else str(c) for c in classes]
    return _Classified(labels, predicted, confidence, classes, names)


def _classification(answer: Answer, task: Task, found: Found, logits: NDArray[Any]) -> str:
    seen = _classify(task, task.data.test, logits)
    n, confidence = len(seen.labels), task.confidence
    accuracy = stats.clopper_pearson(int(seen.correct.sum()), n, confidence)
    balanced = stats.mean_of_proportions(seen.hits(), seen.support(), confidence)
    answer.metrics += [
        make_metric(
            task,
            "performance.accuracy",
            accuracy,
            n,
            "clopper-pearson",
            params={"headline": True},
            outcome="performance.correct",
        ),
        make_metric(
            task, "performance.balanced_accuracy", balanced, n, "mover", params={"classes": int((seen.support() > 0).sum())}
        ),
    ]
    _recalls(answer, task, seen)
    answer.outcomes["performance.correct"] = seen.correct
    _judge_labels(answer, seen)
    report_non_finite(answer, task.data.test, finite_rows(logits), "They count as wrong.")
    _below_guessing(answer, task, seen)
    _constant(answer, task, seen)
    _weak_classes(answer, task, seen)
    _imbalance(answer, task, seen)
    report_few(answer, n, "accuracy", accuracy)
    gap = _overfitting(answer, task, found, accuracy, int(seen.correct.sum()))
    calibration = _calibration(answer, task, seen)
    _confusion(answer, seen)
    return _answer_text(task, n, accuracy, calibration, gap)


def _answer_text(task: Task, n: int, accuracy: Interval, calibration: Interval, gap: Interval | None) -> str:
    level = f"{task.confidence:.0%} interval"
    text = (
        f"On {n:,} test sample{'s' if n != 1 else ''} the network is right {accuracy.value:.1%} of the time "
        f"({level} {accuracy.low:.1%} to {accuracy.high:.1%})."
    )
    if calibration.value is not None:
        text += (
            f" Its stated confidence is off by {calibration.value:.3f} on average "
            f"({calibration.low:.3f} to {calibration.high:.3f})"
        )
        text += (
            f", and on the reference part it is right {100 * (gap.value or 0):+.1f} percentage points more often "
            f"({100 * (gap.low or 0):+.1f} to {100 * (gap.high or 0):+.1f})."
            if gap is not None and gap.value is not None
            else "."
        )
    return text


def _recalls(answer: Answer, task: Task, seen: _Classified) -> None:
    support, hits, chosen = seen.support(), seen.hits(), seen.chosen()
    unique = slugs(
        f"{name}\x00{c}" if seen.names.count(name) > 1 else name for name, c in zip(seen.names, seen.classes, strict=True)
    )
    intervals = [stats.clopper_pearson(int(k), int(m), task.confidence) for k, m in zip(hits, support, strict=True)]
    rows: list[list[Any]] = []
    for i, (name, slug) in enumerate(zip(seen.names, unique.values(), strict=True)):
        interval = intervals[i]
        answer.metrics.append(
            make_metric(
                task,
                f"performance.{slug}.recall",
                interval,
                int(support[i]),
                "clopper-pearson",
                params={"class": name, "index": seen.classes[i]},
                detail="" if support[i] else "no test sample of this class",
            )
        )
        precision = int(hits[i]) / int(chosen[i]) if chosen[i] else None
        rows.append([name, int(support[i]), int(chosen[i]), interval.value, interval.low, interval.high, precision])
    answer.tables.append(
        Table(
            id="performance.classes",
            title="Classes: how many samples, how many found",
            columns=["class", "samples", "predicted", "recall", "low", "high", "precision"],
            rows=rows,
        )
    )
    answer.figures.append(recall_bars(seen.names, intervals, support, one="class", many="classes"))


def _judge_labels(answer: Answer, seen: _Classified) -> None:
    present = int((seen.support() > 0).sum())
    answer.evidence.append(
        Evidence(
            id="performance.more_than_one_class",
            ok=present > 1,
            detail=f"the test part has labels of {present} class{'es' if present != 1 else ''}"
            + ("" if present > 1 else ": accuracy on it says nothing about telling classes apart"),
            value=float(present),
        )
    )
    if present == 1:
        only = seen.names[int(seen.support().argmax())]
        answer.findings.append(
            Finding(
                severity="high",
                title=f"All test labels are of one class: {only}",
                detail="A network that always answers that class would be right every time, so accuracy, recall and "
                "calibration say nothing here. Audit with a test part that holds samples of every class; where it should "
                "hold them, look whether it was sorted before it was cut, and whether the label is read from the right column.",
            )
        )
    absent = [name for name, m in zip(seen.names, seen.support(), strict=True) if m == 0]
    if absent:
        answer.not_tested.append(f"classes without a test sample ({len(absent)}): {_listed(absent)}")


def _below_guessing(answer: Answer, task: Task, seen: _Classified) -> None:
    """Say so where the network is surely worse than a guess: its answers and the labels hardly mean the same classes."""
    n, k = len(seen.labels), int(seen.correct.sum())
    accuracy, guess = stats.clopper_pearson(k, n, task.confidence), 1 / (task.model.classes or 2)
    if accuracy.high is None or accuracy.high >= guess:
        return
    shifted = {step: float((seen.predicted == seen.labels + step).mean()) for step in (-1, 1)}
    step, share = max(shifted.items(), key=lambda item: item[1])
    hint = (
        f" With every label {'one more' if step > 0 else 'one less'} it would be right on {share:.1%}." if share > guess else ""
    )
    answer.findings.append(
        Finding(
            severity="high",
            title=f"Accuracy is far below guessing ({k / n:.1%} of {n})",
            detail=f"A guess is right on {guess:.1%}, so labels and outputs hardly mean the same classes: look at "
            f"the numbering of the labels (from 0?), their order (--classes) and the target column.{hint}",
        )
    )


def _constant(answer: Answer, task: Task, seen: _Classified) -> None:
    """Compare the network, sample by sample, with always answering the most frequent class (an exact sign test)."""
    support = seen.support()
    if (support > 0).sum() < 2:
        return
    top = int(support.argmax())
    constant_right = seen.labels == seen.classes[top]
    better, worse = int((seen.correct & ~constant_right).sum()), int((~seen.correct & constant_right).sum())
    p = float(scipy_stats.binom.sf(better - 1, better + worse, 0.5))
    if better > worse and p <= (1 - task.confidence) / 2:
        return
    share, n = constant_right.mean(), len(seen.labels)
    sure = better <= worse
    answer.findings.append(
        Finding(
            severity="high" if sure else "low",
            title=f"Accuracy is {'no better' if sure else 'not shown to be better'} than always answering {seen.names[top]}",
            detail=f"The most frequent class makes up {share:.1%} of {n} test samples; the network is right on "
            f"{seen.correct.mean():.1%}. It is right where that constant answer is wrong {better} times, and wrong where it "
            f"is right {worse} times (one-sided sign test, p = {p:.2g}).",
        )
    )


def _weak_classes(answer: Answer, task: Task, seen: _Classified) -> None:
    support, hits, chosen = seen.support(), seen.hits(), seen.chosen()
    present = np.flatnonzero(support > 0)
    if len(present) < 2:
        return
    options: PerformanceOptions = task.options
    each = 1 - (1 - task.confidence) / len(present)  # Bonferroni: every class is compared
    for i in present.tolist():
        own = stats.clopper_pearson(int(hits[i]), int(support[i]), each)
        others = present[present != i]
        rest = stats.mean_of_proportions(hits[others], support[others], each)
        below = stats.mover([rest, own], [1.0, -1.0])
        missed = seen.labels == seen.classes[i]
        samples = task.data.test.ids[missed & ~seen.correct][:10].tolist()
        name, counts = seen.names[i], f"{hits[i]} of {support[i]} found"
        if chosen[i] == 0 and own.high is not None and own.high < 0.5:
            answer.findings.append(
                Finding(
                    severity="medium",
                    title=f"Class {name} is never predicted",
                    detail=f"None of its {support[i]} test samples is found: recall is at most {own.high:.1%}.",
                    samples=samples,
                )
            )
        elif below.low is not None and below.low > options.recall_gap:
            answer.findings.append(
                Finding(
                    severity="medium",
                    title=f"Class {name} is recognised far less often than the others",
                    detail=f"Recall {own.value:.1%} ({counts}) against {rest.value:.1%} on average for the other classes: "
                    f"surely more than {below.low:.1%} less.",
                    samples=samples,
                )
            )


def _imbalance(answer: Answer, task: Task, seen: _Classified) -> None:
    support = seen.support()
    present = support[support > 0]
    if len(present) < 2 or present.max() / present.min() < task.options.imbalance:
        return
    rare, common = np.where(support > 0, support, support.max() + 1).argmin(), support.argmax()
    answer.findings.append(
        Finding(
            severity="low",
            title="The classes are very unequal in number",
            detail=f"{seen.names[common]} has {support[common]} test samples, {seen.names[rare]} has {support[rare]} "
            f"(ratio {present.max() / present.min():.0f}). Accuracy is mostly about the large classes: read balanced accuracy.",
        )
    )


def _overfitting(answer: Answer, task: Task, found: Found, test: Interval, right: int) -> Interval | None:
    merged = found.get("predictions.reference")
    if merged is None or task.data.reference is None:
        return None
    reference = _classify(task, task.data.reference.take(merged.positions), merged["logits"])
    n = len(reference.labels)
    k, tested = int(reference.correct.sum()), len(task.data.test)
    own = stats.clopper_pearson(k, n, task.confidence)
    gap = stats.difference(k, n, right, tested, task.confidence)
    return judge_gap(answer, task, gap, own, test, n, "accuracy")


def _calibration(answer: Answer, task: Task, seen: _Classified) -> Interval:
    options: PerformanceOptions = task.options
    n, known = len(seen.labels), np.isfinite(seen.confidence)
    if not known.all():
        unknown = Interval(None, None, None)
        note = "some outputs are not finite: a confidence of theirs does not exist"
        answer.metrics.append(make_metric(task, "calibration.ece", unknown, n, "mover", direction="lower", detail=note))
        return unknown
    interval = stats.ece(seen.confidence, seen.correct, options.bins, task.confidence)
    bins = stats.reliability_bins(seen.confidence, seen.correct, options.bins, task.confidence)
    answer.metrics.append(
        make_metric(
            task,
            "calibration.ece",
            interval,
            n,
            "mover",
            direction="lower",
            params={"bins": len(bins.n), "binning": "equal mass"},
            detail="biased upward: noise adds to it, and the upper limit leaves that in",
        )
    )
    answer.figures.append(
        Figure(
            id="calibration.reliability",
            kind="reliability",
            title="How often it is right, by how sure it says it is",
            data={
                "confidence": bins.confidence.tolist(),
                "accuracy": bins.accuracy.tolist(),
                "low": bins.low.tolist(),
                "high": bins.high.tolist(),
                "n": bins.n.tolist(),
            },
        )
    )
    _confidently_wrong(answer, task, seen)
    return interval


def _confidently_wrong(answer: Answer, task: Task, seen: _Classified) -> None:
    sure = seen.confidence >= CONFIDENT
    wrong = np.flatnonzero(sure & ~seen.correct)
    if len(wrong) == 0:
        return
    share = stats.clopper_pearson(len(wrong), int(sure.sum()), task.confidence)
    order = wrong[np.argsort(-seen.confidence[wrong], kind="stable")][:10]
    too_often = share.low is not None and share.low > 1 - CONFIDENT
    answer.findings.append(
        Finding(
            severity="low" if too_often else "info",
            title=f"{len(wrong)} test samples are wrong with a stated confidence of {CONFIDENT:.0%} or more",
            detail=f"Of {int(sure.sum())} samples with that confidence {share.value:.1%} are wrong ({share.low:.1%} to "
            f"{share.high:.1%}); at most {1 - CONFIDENT:.0%} should be. The most confident are listed first.",
            samples=task.data.test.ids[order].tolist(),
        )
    )


def _confusion(answer: Answer, seen: _Classified) -> None:
    if len(seen.classes) > MOST_SHOWN:
        return
    columns = [*seen.classes, NO_CLASS] if (seen.predicted == NO_CLASS).any() and NO_CLASS not in seen.classes else seen.classes
    counts: list[Any] = [[int(((seen.labels == c) & (seen.predicted == d)).sum()) for d in columns] for c in seen.classes]
    answer.figures.append(
        Figure(
            id="performance.confusion",
            kind="matrix",
            title="Labels against predictions",
            data={
                "rows": [*seen.names],
                "columns": [*[*seen.names, "none"][: len(columns)]],
                "values": counts,
                "xlabel": "predicted",
                "ylabel": "label",
            },
        )
    )


def _listed(names: Sequence[str], at_most: int = 8) -> str:
    shown = ", ".join(names[:at_most])
    return shown if len(names) <= at_most else f"{shown} and {len(names) - at_most} more"
