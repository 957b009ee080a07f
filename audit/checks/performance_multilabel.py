"""What the performance check says of a network that tells several labels at once: whole sets of labels, and each label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from audit import stats
from audit.checks.base import Answer, Found, MetricDoc, Task
from audit.checks.performance_measurement import (
    MOST_SHOWN,
    finite_rows,
    judge_gap,
    make_metric,
    recall_bars,
    report_few,
    report_non_finite,
)
from audit.corruptions.intervals import bounded_mean
from audit.model.outputs import names_of, right_answers
from audit.result import Evidence, Finding, Table, slugs
from audit.stats import Interval

Bits = NDArray[np.bool_]

METRICS = (
    MetricDoc(
        "performance.hamming_accuracy",
        "Of a multi-label network: mean over the test samples of the share of labels that are told right, present or absent "
        "(1 − Hamming loss). A label is told present where its logit is above 0; a sample with a logit that is not finite "
        "counts as 0.",
        "fraction",
        "0 to 1",
        "Student's t over samples, with two more at each end of the range (Agresti–Coull), or plain Student's where wider",
        "Close to 1 for any network where most labels are absent from most samples: read recall, and each label.",
        "Schapire & Singer (2000), Machine Learning 39:135; Agresti & Coull (1998), The American Statistician 52:119",
    ),
    MetricDoc(
        "performance.<label>.label_accuracy",
        "Of a multi-label network: share of the test samples on which one label is told right, present or absent.",
        "fraction",
        "0 to 1",
        "Clopper–Pearson, one label at a time",
        "Close to 1 for any network where the label is rare. Of many intervals read together some miss: the finding on labels "
        "that are told no better than by a constant corrects for that, this does not.",
        "Clopper & Pearson (1934), Biometrika 26:404",
    ),
)


@dataclass(frozen=True)
class _Told:
    """Which labels the samples have and which the network tells, (n, labels); `known` where all logits are finite, (n,)."""

    has: Bits
    told: Bits
    known: Bits
    whole: Bits
    names: list[str]

    @classmethod
    def of(cls, task: Task, y: NDArray[Any], logits: NDArray[Any]) -> _Told:
        return cls(y > 0, logits > 0, finite_rows(logits), right_answers(logits, y), task.classes)

    @property
    def met(self) -> Bits:
        """Where a label is told right."""
        met: Bits = (self.has == self.told) & self.known[:, None]
        return met

    @property
    def found(self) -> Bits:
        """Where a label that a sample has is told."""
        found: Bits = self.has & self.told & self.known[:, None]
        return found


def conclude_multilabel(answer: Answer, task: Task, found: Found, logits: NDArray[Any]) -> str:
    """Add what the logits of the test part say, and return the answer in words.

    A sample is right where its whole set of labels is (subset accuracy): that is what every other check counts, too.
    """
    seen = _Told.of(task, task.data.test.y, logits)
    n, confidence = len(seen.whole), task.confidence
    whole = stats.clopper_pearson(int(seen.whole.sum()), n, confidence)
    each = bounded_mean(seen.met.mean(axis=1), 0.0, 1.0, confidence)
    answer.metrics += [
        make_metric(
            task,
            "performance.accuracy",
            whole,
            n,
            "clopper-pearson",
            params={"headline": True, "labels": len(seen.names)},
            detail="all labels of a sample are told right",
            outcome="performance.correct",
        ),
        make_metric(task, "performance.hamming_accuracy", each, n, "agresti-coull-t", params={"labels": len(seen.names)}),
    ]
    answer.outcomes["performance.correct"] = seen.whole
    _labels(answer, task, seen)
    _judge_labels(answer, seen)
    report_non_finite(answer, task.data.test, seen.known, "They count as wrong.")
    _constant_set(answer, task, seen)
    _constant_labels(answer, task, seen)
    report_few(answer, n, "accuracy", whole)
    _overfitting(answer, task, found, whole, int(seen.whole.sum()))
    answer.not_tested += [
        "calibration: whether the stated probabilities of labels are true",
        "thresholds other than one half: a label counts as told where its logit is above 0",
    ]
    return (
        f"On {n:,} test sample{'s' if n != 1 else ''} the network tells all {len(seen.names)} labels right "
        f"{_percent(whole.value)} of the time ({confidence:.0%} interval {_percent(whole.low)} to {_percent(whole.high)}), and "
        f"{_percent(each.value)} of the labels one by one ({_percent(each.low)} to {_percent(each.high)})."
    )


def _labels(answer: Answer, task: Task, seen: _Told) -> None:
    """Add recall and accuracy of each label, their table and a figure."""
    n = len(seen.whole)
    support, told, hits = seen.has.sum(axis=0), (seen.told & seen.known[:, None]).sum(axis=0), seen.found.sum(axis=0)
    met = seen.met.sum(axis=0)
    recalls = [stats.clopper_pearson(int(k), int(m), task.confidence) for k, m in zip(hits, support, strict=True)]
    shares = [stats.clopper_pearson(int(k), n, task.confidence) for k in met]
    slug = list(_slugs(seen.names))
    rows: list[list[Any]] = []
    for i, name in enumerate(seen.names):
        about = {"label": name, "index": i}
        answer.metrics += [
            make_metric(
                task,
                f"performance.{slug[i]}.recall",
                recalls[i],
                int(support[i]),
                "clopper-pearson",
                params=about,
                detail="" if support[i] else "no test sample has this label",
            ),
            make_metric(task, f"performance.{slug[i]}.label_accuracy", shares[i], n, "clopper-pearson", params=about),
        ]
        precision = int(hits[i]) / int(told[i]) if told[i] else None
        f1 = 2 * int(hits[i]) / int(support[i] + told[i]) if support[i] + told[i] else None
        rows.append([name, int(support[i]), int(told[i]), *recalls[i], precision, f1, *shares[i]])
    columns = ["label", "samples", "told", "recall", "low", "high", "precision", "F1", "accuracy", "accuracy low"]
    answer.tables.append(
        Table(
            id="performance.labels",
            title="Labels: how many samples have them, how many are found",
            columns=[*columns, "accuracy high"],
            rows=rows,
        )
    )
    answer.figures.append(recall_bars(seen.names, recalls, support, one="label", many="labels"))


def _slugs(names: Sequence[str]) -> Sequence[str]:
    keys = [f"{name}\x00{i}" if names.count(name) > 1 else name for i, name in enumerate(names)]
    return list(slugs(keys).values())


def _judge_labels(answer: Answer, seen: _Told) -> None:
    """Ask whether there is anything to tell: samples that all have the same labels say nothing."""
    sets = len(np.unique(seen.has, axis=0))
    answer.evidence.append(
        Evidence(
            id="performance.more_than_one_class",
            ok=sets > 1,
            detail=f"the test part has {sets} different set{'s' if sets != 1 else ''} of labels"
            + ("" if sets > 1 else ": accuracy on it says nothing about telling labels apart"),
            value=float(sets),
        )
    )
    counts = seen.has.sum(axis=0)
    for word, same in (("no", counts == 0), ("every", counts == len(seen.has))):
        names = [seen.names[i] for i in np.flatnonzero(same)]
        if names:
            more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
            answer.not_tested.append(
                f"labels that {word} test sample has ({len(names)}): {', '.join(names[:MOST_SHOWN])}{more}"
            )


def _constant_set(answer: Answer, task: Task, seen: _Told) -> None:
    """Compare the network, sample by sample, with always answering the most frequent set of labels (an exact sign test)."""
    sets, codes, counts = np.unique(seen.has, axis=0, return_inverse=True, return_counts=True)
    if len(sets) < 2:
        return
    top = int(counts.argmax())
    constant = codes.reshape(-1) == top
    better, worse, p = _sign_test(seen.whole, constant)
    if better > worse and p <= (1 - task.confidence) / 2:
        return
    sure = better <= worse
    answer.findings.append(
        Finding(
            severity="high" if sure else "low",
            title=f"Accuracy is {'no better' if sure else 'not shown to be better'} than always answering one set of labels",
            detail=f"The most frequent set ({names_of(sets[top], seen.names)}) is that of {constant.mean():.1%} of "
            f"{len(constant)} test samples; the network tells all labels right on {seen.whole.mean():.1%}. It is right where "
            f"that constant answer is wrong {better} times, and wrong where it is right {worse} times (one-sided sign test, "
            f"p = {p:.2g}).",
        )
    )


def _constant_labels(answer: Answer, task: Task, seen: _Told) -> None:
    """Report labels that always saying present, or absent, tells no worse; each is compared, which Bonferroni allows for."""
    counts, n = seen.has.sum(axis=0), len(seen.whole)
    varies = np.flatnonzero((counts > 0) & (counts < n))
    level = (1 - task.confidence) / 2 / max(1, len(varies))
    weak: dict[str, list[str]] = {"medium": [], "low": []}
    for i in varies.tolist():
        constant = seen.has[:, i] if 2 * counts[i] >= n else ~seen.has[:, i]
        better, worse, p = _sign_test(seen.met[:, i], constant)
        if better <= worse:
            weak["medium"].append(seen.names[i])
        elif p > level:
            weak["low"].append(seen.names[i])
    for severity, names in weak.items():
        if names:
            sure = "no better" if severity == "medium" else "not shown to be better"
            answer.findings.append(
                Finding(
                    severity="medium" if severity == "medium" else "low",
                    title=f"{len(names)} of {len(seen.names)} labels are told {sure} than by a constant answer",
                    detail="Always saying present, or always absent, whichever is right more often, is right as often: "
                    + ", ".join(names[:MOST_SHOWN])
                    + (f" and {len(names) - MOST_SHOWN} more." if len(names) > MOST_SHOWN else "."),
                )
            )


def _sign_test(right: Bits, constant: Bits) -> tuple[int, int, float]:
    better, worse = int((right & ~constant).sum()), int((~right & constant).sum())
    return better, worse, float(scipy_stats.binom.sf(better - 1, better + worse, 0.5))


def _overfitting(answer: Answer, task: Task, found: Found, test: Interval, right: int) -> None:
    merged, reference = found.get("predictions.reference"), task.data.reference
    if merged is None or reference is None:
        return
    own = right_answers(merged["logits"], reference.y[merged.positions])
    n, k = len(own), int(own.sum())
    gap = stats.difference(k, n, right, len(task.data.test), task.confidence)
    judge_gap(answer, task, gap, stats.clopper_pearson(k, n, task.confidence), test, n, "accuracy")


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"
