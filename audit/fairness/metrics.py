"""Measures how differently a classifier treats groups of people, with intervals that hold for all groups at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from audit import stats
from audit.errors import UsageError
from audit.fairness.groups import Attribute, make_attributes
from audit.result import Metric, finite
from audit.stats import Interval

if TYPE_CHECKING:
    import pandas as pd

Ints = NDArray[np.int64]
SELECTION, TPR, FPR, ACCURACY = "selection rate", "true positive rate", "false positive rate", "accuracy"
RATES = (SELECTION, TPR, FPR, ACCURACY)


@dataclass(frozen=True)
class Rate:
    """One rate in every group of one attribute: `k` of `n` people, each of shape (groups,).

    `positive` is the class that counts as selected; None for accuracy, which needs none.
    """

    attribute: Attribute
    name: str
    positive: Any
    k: Ints
    n: Ints

    def gap(self, confidence: float, families: int = 1) -> Interval:
        """Return the largest difference between two groups; see `audit.stats.max_min_gap`."""
        return stats.max_min_gap(self.k, self.n, confidence, families)

    def proven(self, confidence: float, families: int = 1) -> tuple[int, int, float] | None:
        """Return the two groups that surely lie furthest apart, the higher first, and how far at least."""
        if (self.n > 0).sum() < 2:
            return None
        lower, _ = stats.pairwise_differences(self.k, self.n, confidence, families)
        high, low = np.unravel_index(int(np.nanargmax(lower)), lower.shape)
        return int(high), int(low), float(lower[high, low])


@dataclass(frozen=True)
class WeakGroup:
    """A group of which too little is known: few people, or nobody from whom one of the rates could be told."""

    attribute: Attribute
    group: str
    n: int
    why: str

    def __str__(self) -> str:
        return f"{self.attribute.name} = {self.group} ({self.why})"


@dataclass(frozen=True)
class Assessment:
    """What `assess` found.

    Attributes
    ----------
    metrics
        For each attribute the demographic parity difference, the equalized odds difference and the worst group's accuracy.
    groups
        A table with one row for each attribute, positive class and group: counts, rates and their intervals.
    weak_groups
        Groups that are too small, or where a rate is undefined. They are in the metrics all the same.
    attributes, rates, positives
        The groups, their counts, and the classes that count as selected, one at a time.
    """

    metrics: list[Metric]
    groups: pd.DataFrame
    weak_groups: list[WeakGroup]
    attributes: list[Attribute]
    rates: list[Rate]
    positives: tuple[Any, ...]

    @property
    def small_groups(self) -> list[str]:
        """The weak groups in words."""
        return [str(group) for group in self.weak_groups]

    def metric(self, metric_id: str) -> Metric:
        """Return the metric with this id; the error lists the ids that there are."""
        for metric in self.metrics:
            if metric.id == metric_id:
                return metric
        raise KeyError(f"no metric {metric_id!r}; there are {[m.id for m in self.metrics]}")


def assess(
    y_true: Any,
    y_pred: Any,
    sensitive: Any,
    scores: Any = None,
    *,
    positive: Any = None,
    min_group_size: int = 30,
    bins: Mapping[str, Sequence[float]] | None = None,
    intersections: bool = True,
    confidence: float = 0.95,
    labels: Mapping[Any, str] | None = None,
) -> Assessment:
    """Compare how groups of people are treated by a classifier.

    Parameters
    ----------
    y_true, y_pred
        Labels and predicted classes of shape (n,).
    sensitive
        A data frame, a mapping from attribute name to values of shape (n,), or one array of shape (n,).
    scores
        Scores or probabilities of the positive class of shape (n,); their mean in each group joins the table.
    positive
        The class that counts as selected. None: 1 where all labels are 0 and 1, the larger of two labels, and with more
        classes each in turn against the rest; the gaps are then the largest over the classes.
    min_group_size
        Groups with fewer people are listed in `Assessment.weak_groups`.
    bins, intersections
        See `audit.fairness.groups.make_attributes`.
    confidence
        Each metric's interval holds with this probability, over all its pairs of groups, rates and classes at once.
    labels
        The classes that there are and their names; those that occur, where None.

    Returns
    -------
    Assessment
        Metrics with the ids ``fairness.<attribute>.demographic_parity_difference``, ``….equalized_odds_difference`` and
        ``….worst_group_accuracy``, and the table of groups.

    Raises
    ------
    UsageError
        Lengths differ, there are no samples, or the positive class is none of the labels.
    """
    truth, predicted = np.asarray(y_true).reshape(-1), np.asarray(y_pred).reshape(-1)
    attributes = make_attributes(sensitive, bins=bins, intersections=intersections, min_group_size=min_group_size)
    lengths = (len(truth), len(predicted), len(attributes[0].index))
    if len(set(lengths)) > 1 or lengths[0] == 0:
        raise UsageError(f"y_true, y_pred and sensitive need one value for each of n > 0 samples, got lengths {lengths}")
    if (truth.dtype.kind in "US") != (predicted.dtype.kind in "US"):
        raise UsageError(f"labels and predictions should be of one kind, got {truth.dtype} and {predicted.dtype}")
    names = dict(labels) if labels else {label: str(label) for label in np.unique(np.r_[truth, predicted]).tolist()}
    positives = _positives(positive, list(names))
    rates = [rate for attribute in attributes for rate in _rates(truth, predicted, attribute, positives)]
    metrics = [metric for a in attributes for metric in _metrics(a, _of(rates, a), positives, names, confidence)]
    weak = [weak for a in attributes for weak in _weak_groups(a, _of(rates, a), min_group_size, names)]
    table = _table(attributes, rates, positives, names, confidence, scores)
    return Assessment(metrics, table, weak, attributes, rates, positives)


def _positives(positive: Any, labels: list[Any]) -> tuple[Any, ...]:
    zero_one = all(label in (0, 1) for label in labels)
    if positive is not None:
        if positive not in labels and not (zero_one and positive in (0, 1)):
            raise UsageError(f"the positive class {positive!r} is none of the labels: {', '.join(map(str, labels[:20]))}")
        return (positive,)
    if zero_one:
        return (1,)
    return (max(labels),) if len(labels) == 2 else tuple(labels)


def _of(rates: Sequence[Rate], attribute: Attribute, name: str | None = None) -> list[Rate]:
    return [rate for rate in rates if rate.attribute is attribute and name in (None, rate.name)]


# --- counts -----------------------------------------------------------------------------------------------------------

Count = Callable[[NDArray[Any], NDArray[Any]], int]


def _rates(truth: NDArray[Any], predicted: NDArray[Any], attribute: Attribute, positives: Sequence[Any]) -> list[Rate]:
    from fairlearn.metrics import MetricFrame

    counts: dict[str, Count] = {"n": _people, "right": _right}
    for i, positive in enumerate(positives):
        counts[f"labelled {i}"] = partial(_labelled, positive)
        counts[f"selected {i}"] = partial(_selected, positive)
        counts[f"found {i}"] = partial(_found, positive)
    frame = MetricFrame(metrics=counts, y_true=truth, y_pred=predicted, sensitive_features=attribute.index)
    by_group = frame.by_group.loc[range(len(attribute.groups))]
    column = {name: by_group[name].to_numpy(dtype=np.int64) for name in counts}
    n = column["n"]
    rates = []
    for i, positive in enumerate(positives):
        labelled, selected, found = (column[f"{name} {i}"] for name in ("labelled", "selected", "found"))
        rates.append(Rate(attribute, SELECTION, positive, selected, n))
        rates.append(Rate(attribute, TPR, positive, found, labelled))
        rates.append(Rate(attribute, FPR, positive, selected - found, n - labelled))
    return [*rates, Rate(attribute, ACCURACY, None, column["right"], n)]


def _people(truth: NDArray[Any], _: NDArray[Any]) -> int:
    return len(truth)


def _right(truth: NDArray[Any], predicted: NDArray[Any]) -> int:
    return int((truth == predicted).sum())


def _labelled(positive: Any, truth: NDArray[Any], _: NDArray[Any]) -> int:
    return int((truth == positive).sum())


def _selected(positive: Any, _: NDArray[Any], predicted: NDArray[Any]) -> int:
    return int((predicted == positive).sum())


def _found(positive: Any, truth: NDArray[Any], predicted: NDArray[Any]) -> int:
    return int(((truth == positive) & (predicted == positive)).sum())


# --- metrics ----------------------------------------------------------------------------------------------------------


def _metrics(
    attribute: Attribute, rates: Sequence[Rate], positives: Sequence[Any], names: Mapping[Any, str], confidence: float
) -> list[Metric]:
    parity = [rate for rate in rates if rate.name == SELECTION]
    # A class that nobody has, or that everybody has, leaves one of its two rates without meaning in all groups alike.
    odds = [rate for rate in rates if rate.name in (TPR, FPR) and rate.n.sum() > 0]
    (accuracy,) = (rate for rate in rates if rate.name == ACCURACY)
    count = int(accuracy.n.sum())
    many = len(positives) > 1
    params: dict[str, Any] = {
        "attribute": attribute.name,
        "groups": len(attribute.groups),
        "smallest_group": int(accuracy.n.min()),
        "positive": "each class against the rest" if many else names.get(positives[0], str(positives[0])),
        **({} if attribute.is_intersection else {"headline": True}),
    }
    over = f", the largest over {len(positives)} classes, each against the rest" if many else ""

    def metric(measure: str, interval: Interval, method: str, direction: str, detail: str) -> Metric:
        return Metric(
            id=f"fairness.{attribute.slug}.{measure}",
            value=finite(interval.value),
            low=finite(interval.low),
            high=finite(interval.high),
            confidence=confidence,
            n=count,
            method=method,
            direction=direction,  # type: ignore[arg-type]
            params=params,
            detail=detail,
        )

    alone = len(attribute.groups) < 2
    worst = Interval(None, 0.0, 1.0) if alone else stats.worst_of(accuracy.k, accuracy.n, confidence)
    only = "there is one group only: nothing to compare" if alone else ""
    return [
        metric(
            "demographic_parity_difference",
            _largest(parity, confidence),
            "bonferroni-mover",
            "lower",
            only or f"largest difference in selection rate between two groups{over}",
        ),
        metric(
            "equalized_odds_difference",
            _largest(odds, confidence),
            "bonferroni-mover",
            "lower",
            only or f"largest difference in true or false positive rate between two groups{over}",
        ),
        metric("worst_group_accuracy", worst, "bonferroni-clopper-pearson", "higher", only or _worst_detail(accuracy)),
    ]


def _worst_detail(accuracy: Rate) -> str:
    worst = int((accuracy.k / accuracy.n).argmin())
    return f"accuracy of {accuracy.attribute.groups[worst]} ({accuracy.k[worst]} of {accuracy.n[worst]} right)"


def _largest(rates: Sequence[Rate], confidence: float) -> Interval:
    """Return the largest gap of several rates; Bonferroni over them, so that its limits hold for all at once."""
    gaps = [rate.gap(confidence, len(rates)) for rate in rates]
    values = [gap.value for gap in gaps if gap.value is not None]
    if not values:
        return Interval(None, 0.0, 1.0)
    return Interval(max(values), max(gap.low or 0.0 for gap in gaps), max(1.0 if g.high is None else g.high for g in gaps))


def _weak_groups(attribute: Attribute, rates: Sequence[Rate], min_group_size: int, names: Mapping[Any, str]) -> list[WeakGroup]:
    weak = []
    (accuracy,) = (rate for rate in rates if rate.name == ACCURACY)
    for i, group in enumerate(attribute.groups):
        n = int(accuracy.n[i])
        reasons = [f"{n} {'people' if n != 1 else 'person'}, fewer than {min_group_size}"] if n < min_group_size else []
        for rate in rates:
            if rate.n[i] == 0 and rate.n.sum() > 0:
                label = "with" if rate.name == TPR else "without"
                reasons.append(f"nobody {label} the label {names.get(rate.positive, str(rate.positive))}")
        if reasons:
            weak.append(WeakGroup(attribute, group, n, "; ".join(reasons)))
    return weak


# --- the table --------------------------------------------------------------------------------------------------------


def _table(
    attributes: Sequence[Attribute],
    rates: Sequence[Rate],
    positives: Sequence[Any],
    names: Mapping[Any, str],
    confidence: float,
    scores: Any,
) -> pd.DataFrame:
    import pandas as pd

    frames = []
    for attribute in attributes:
        own = _of(rates, attribute)
        for positive in positives:
            columns: dict[str, Any] = {
                "attribute": attribute.name,
                "group": list(attribute.groups),
                "positive": names.get(positive, str(positive)),
            }
            chosen = {rate.name: rate for rate in own if rate.positive == positive or rate.name == ACCURACY}
            columns |= {
                "n": chosen[ACCURACY].n,
                "positives": chosen[TPR].n,
                "selected": chosen[SELECTION].k,
                "true_positives": chosen[TPR].k,
                "false_positives": chosen[FPR].k,
                "correct": chosen[ACCURACY].k,
            }
            for name in RATES:
                columns |= _columns(name.replace(" ", "_"), chosen[name], confidence)
            if scores is not None:
                columns["mean_score"] = _means(np.asarray(scores, dtype=np.float64).reshape(-1), attribute)
            frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def _columns(name: str, rate: Rate, confidence: float) -> dict[str, NDArray[np.float64]]:
    low, high = stats.clopper_pearson_limits(rate.k, rate.n, confidence)
    with np.errstate(invalid="ignore"):
        return {name: rate.k / rate.n, f"{name}_low": low, f"{name}_high": high}


def _means(scores: NDArray[np.float64], attribute: Attribute) -> NDArray[np.float64]:
    if len(scores) != len(attribute.index):
        raise UsageError(f"scores should have one value for each of {len(attribute.index)} samples, got {len(scores)}")
    means: NDArray[np.float64] = np.bincount(attribute.index, weights=scores) / np.bincount(attribute.index)
    return means
