"""Measures how differently a classifier treats groups of people, with intervals that hold for all groups at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from audit import stats
from audit.errors import UsageError
from audit.fairness import confusion
from audit.fairness.confusion import MEASURES, Measure
from audit.fairness.groups import Attribute, make_attributes
from audit.result import Metric, finite
from audit.stats import Interval, Ints

if TYPE_CHECKING:
    import pandas as pd

SELECTION, TPR, FPR, ACCURACY = (
    measure.name
    for measure in (
        confusion.SELECTION_RATE,
        confusion.TRUE_POSITIVE_RATE,
        confusion.FALSE_POSITIVE_RATE,
        confusion.ACCURACY,
    )
)


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
    """A group of which too little is known: `few` people, or (`unlabelled`) few of whom one of the error rates could be told.

    Either text is empty where it is not so. Few people weaken whatever is said of the attribute; few with a label, or without,
    only what rests on error rates.
    """

    attribute: Attribute
    group: str
    n: int
    few: str = ""
    unlabelled: str = ""

    @property
    def why(self) -> str:
        """Both reasons."""
        return "; ".join(filter(None, (self.few, self.unlabelled)))

    def __str__(self) -> str:
        return self.told(self.why)

    def told(self, why: str) -> str:
        """Name the group with one of the reasons."""
        return f"{self.attribute.name} = {self.group} ({why})"


@dataclass(frozen=True)
class Assessment:
    """What `assess` found.

    Attributes
    ----------
    metrics
        For each attribute the demographic parity difference, the equalized odds difference and the worst group's accuracy.
    groups
        A table with one row for each attribute, positive class and group: counts, ten measures (see
        `audit.fairness.confusion`) and their intervals, each of which holds on its own.
    weak_groups
        Groups that are too small, or where an error rate rests on too few. They are in the metrics all the same.
    attributes, rates, positives
        The groups, their counts, and the classes that count as selected, one at a time.
    counts
        The tables of counts, one for each attribute and positive class.
    """

    metrics: list[Metric]
    groups: pd.DataFrame
    weak_groups: list[WeakGroup]
    attributes: list[Attribute]
    rates: list[Rate]
    positives: tuple[Any, ...]
    counts: list[Counts]

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
    min_labelled: int | None = None,
    bins: Mapping[str, Sequence[float]] | None = None,
    names: Mapping[str, Mapping[str, str]] | None = None,
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
    min_labelled
        So are groups with fewer people who have the label of a positive class, or fewer who have it not: its true and false
        positive rates are about them alone. None: a third of `min_group_size`.
    bins, names, intersections
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
    attributes = make_attributes(sensitive, bins=bins, names=names, intersections=intersections, min_group_size=min_group_size)
    truth, predicted = checked(y_true, y_pred, attributes)
    called = dict(labels) if labels else {label: str(label) for label in distinct(truth, predicted)}
    positives = positives_of(positive, list(called))
    counts = count_all(truth, predicted, attributes, positives)
    rates = [rate for attribute in attributes for rate in _rates(counts, attribute)]
    metrics = [metric for a in attributes for metric in _metrics(a, _of(rates, a), positives, called, confidence)]
    least = -(-min_group_size // 3) if min_labelled is None else min_labelled
    weak = [weak for a in attributes for weak in _weak_groups(a, _of(rates, a), min_group_size, least, called)]
    table = _table(counts, called, confidence, scores)
    return Assessment(metrics, table, weak, attributes, rates, positives, counts)


def checked(y_true: Any, y_pred: Any, attributes: Sequence[Attribute]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return labels and predictions of shape (n,); a UsageError where they and the groups are not of one length and kind."""
    truth, predicted = np.asarray(y_true).reshape(-1), np.asarray(y_pred).reshape(-1)
    lengths = (len(truth), len(predicted), len(attributes[0].index))
    if len(set(lengths)) > 1 or lengths[0] == 0:
        raise UsageError(f"y_true, y_pred and sensitive need one value for each of n > 0 samples, got lengths {lengths}")
    if (truth.dtype.kind in "US") != (predicted.dtype.kind in "US"):
        raise UsageError(f"labels and predictions should be of one kind, got {truth.dtype} and {predicted.dtype}")
    return truth, predicted


def distinct(truth: NDArray[Any], predicted: NDArray[Any]) -> list[Any]:
    """Return the classes that occur, in their order."""
    found: list[Any] = np.union1d(np.unique(truth), np.unique(predicted)).tolist()
    return found


def positives_of(positive: Any, labels: list[Any]) -> tuple[Any, ...]:
    """Return the classes that count as selected, one at a time: as stated, 1 of 0 and 1, the larger of two, else each."""
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


@dataclass(frozen=True)
class Counts:
    """What happened to the people of each group of one attribute when one class counts as selected.

    `cells` has shape (groups, 5); see `audit.fairness.confusion.count`.
    """

    attribute: Attribute
    positive: Any
    cells: Ints


def count_all(
    truth: NDArray[Any], predicted: NDArray[Any], attributes: Sequence[Attribute], positives: Sequence[Any]
) -> list[Counts]:
    """Count every grouping and every positive class, attributes first."""
    found = [confusion.outcomes(truth, predicted, positive) for positive in positives]
    return [
        Counts(attribute, positive, confusion.counted(outcome, attribute))
        for attribute in attributes
        for positive, outcome in zip(positives, found, strict=True)
    ]


def _rates(counts: Sequence[Counts], attribute: Attribute) -> list[Rate]:
    own = [one for one in counts if one.attribute is attribute]
    rates = [
        _rate(measure, one, one.positive)
        for one in own
        for measure in (confusion.SELECTION_RATE, confusion.TRUE_POSITIVE_RATE, confusion.FALSE_POSITIVE_RATE)
    ]
    return [*rates, _rate(confusion.ACCURACY, own[0], None)]


def _rate(measure: Measure, counts: Counts, positive: Any) -> Rate:
    ((k, n),) = measure.shares(counts.cells)
    return Rate(counts.attribute, measure.name, positive, k, n)


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


def _weak_groups(
    attribute: Attribute, rates: Sequence[Rate], min_group_size: int, least: int, names: Mapping[Any, str]
) -> list[WeakGroup]:
    weak = []
    (accuracy,) = (rate for rate in rates if rate.name == ACCURACY)
    for i, group in enumerate(attribute.groups):
        n = int(accuracy.n[i])
        few = f"{_people(n)}, fewer than {min_group_size}" if n < min_group_size else ""
        # That a small group has few of either label goes without saying; that it has none does not.
        unlabelled = [why for rate in rates if (why := _unlabelled(rate, i, 1 if few else least, names))]
        if few or unlabelled:
            weak.append(WeakGroup(attribute, group, n, few, "; ".join(unlabelled)))
    return weak


def _unlabelled(rate: Rate, group: int, least: int, names: Mapping[Any, str]) -> str:
    """Say that an error rate is about too few of a group, if so; of a class that nobody has there is no rate at all."""
    n = int(rate.n[group])
    if rate.name not in (TPR, FPR) or n >= least or rate.n.sum() == 0:
        return ""
    label = f"{'with' if rate.name == TPR else 'without'} the label {names.get(rate.positive, str(rate.positive))}"
    return f"nobody {label}" if n == 0 else f"{_people(n)} {label}, fewer than {least}"


def _people(n: int) -> str:
    return f"{n} {'people' if n != 1 else 'person'}"


# --- the table --------------------------------------------------------------------------------------------------------


def _table(counts: Sequence[Counts], names: Mapping[Any, str], confidence: float, scores: Any) -> pd.DataFrame:
    import pandas as pd

    frames = []
    for one in counts:
        columns: dict[str, Any] = {
            "attribute": one.attribute.name,
            "group": list(one.attribute.groups),
            "positive": names.get(one.positive, str(one.positive)),
            "n": one.cells.sum(axis=1),
            "positives": one.cells[:, list(confusion.LABELLED)].sum(axis=1),
            "selected": one.cells[:, list(confusion.SELECTED)].sum(axis=1),
            "true_positives": one.cells[:, confusion.FOUND],
            "false_positives": one.cells[:, confusion.ACCUSED],
            "correct": one.cells[:, [confusion.FOUND, confusion.CLEARED]].sum(axis=1),
        }
        for measure in MEASURES:
            low, high = measure.limits(one.cells, confidence)
            name = measure.slug
            columns |= {name: measure.values(one.cells), f"{name}_low": low, f"{name}_high": high}
        if scores is not None:
            columns["mean_score"] = _means(np.asarray(scores, dtype=np.float64).reshape(-1), one.attribute)
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def _means(scores: NDArray[np.float64], attribute: Attribute) -> NDArray[np.float64]:
    if len(scores) != len(attribute.index):
        raise UsageError(f"scores should have one value for each of {len(attribute.index)} samples, got {len(scores)}")
    means: NDArray[np.float64] = np.bincount(attribute.index, weights=scores) / np.bincount(attribute.index)
    return means
