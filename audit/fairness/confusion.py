"""Counts what a classifier did to each group, and ten measures of that, with limits that hold for few people and for none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audit import stats
from audit.fairness.groups import Attribute
from audit.stats import Floats, Interval, Ints
from audit.stats.differences import subtracted

Share = Callable[[NDArray[Any]], tuple[NDArray[Any], NDArray[Any]]]
Shares = Callable[[NDArray[Any]], tuple[tuple[NDArray[Any], NDArray[Any]], ...]]

# Columns of a table of counts; in the last, people without the label are taken for neither the positive class nor their own.
FOUND, MISSED, ACCUSED, CLEARED, CONFUSED = range(5)
OUTCOMES = 5


def count(truth: NDArray[Any], predicted: NDArray[Any], attribute: Attribute, positive: Any) -> Ints:
    """Return how many people of each group had which outcome, shape (groups, 5).

    Parameters
    ----------
    truth, predicted
        Labels and predicted classes of shape (n,).
    attribute
        The groups.
    positive
        The class that counts as selected.

    Returns
    -------
    int64 array of shape (groups, 5)
        Columns: with the label and selected (`FOUND`) or not (`MISSED`); without the label and selected (`ACCUSED`), predicted
        as what they are (`CLEARED`), or as a third class (`CONFUSED`; none where there are two classes).
    """
    return counted(outcomes(truth, predicted, positive), attribute)


def outcomes(truth: NDArray[Any], predicted: NDArray[Any], positive: Any) -> NDArray[np.int8]:
    """Return the column of `count` in which each person is counted, shape (n,)."""
    labelled, selected, right = truth == positive, predicted == positive, truth == predicted
    rejected = np.where(right, np.int8(CLEARED), np.int8(CONFUSED))
    return np.where(
        labelled, np.where(selected, np.int8(FOUND), np.int8(MISSED)), np.where(selected, np.int8(ACCUSED), rejected)
    )


def counted(outcome: NDArray[np.int8], attribute: Attribute) -> Ints:
    """Return the table of `count` from the outcome of each person."""
    groups = len(attribute.groups)
    cells = np.bincount(attribute.index * OUTCOMES + outcome, minlength=groups * OUTCOMES)
    return cells.reshape(groups, OUTCOMES).astype(np.int64)


@dataclass(frozen=True)
class Measure:
    """A function of the counts of one group.

    Attributes
    ----------
    name, direction
        As people call it, and which way is better; *neither* where that is for people to say.
    shares
        Takes counts of shape (..., 5) and returns the pairs of successes and totals of which the measure is the mean.
    is_f1
        Whether it is 2s/(1 + s) of that share s.
    """

    name: str
    direction: str
    shares: Shares
    is_f1: bool = False

    @property
    def slug(self) -> str:
        """The name as a column of a table."""
        return self.name.replace(" ", "_")

    @property
    def is_share(self) -> bool:
        """Whether it is the share of some people among some people."""
        return not self.is_f1 and self is not BALANCED_ACCURACY

    @property
    def method(self) -> str:
        """How `limits` are made."""
        if self is BALANCED_ACCURACY:
            return "bonferroni-mover"
        return "clopper-pearson-f-star" if self.is_f1 else "clopper-pearson"

    def values(self, counts: Floats | Ints) -> Floats:
        """Return the measure of counts (..., 5), shape (...,); NaN where a group has nobody whom it is about."""
        with np.errstate(invalid="ignore", divide="ignore"):
            parts = [k / n for k, n in self.shares(counts)]
        value: Floats = np.mean(parts, axis=0) if len(parts) > 1 else parts[0]
        return 2 * value / (1 + value) if self.is_f1 else value

    def limits(self, counts: Ints, confidence: float = 0.95) -> tuple[Floats, Floats]:
        """Return conservative limits of the measure in each group; 0 and 1 where it has no value.

        Shares have the exact limits of Clopper & Pearson, given how many people they are about. F1 has exact ones, too: of
        those who hold the label or are selected, the part that does both (F*) is a share, and F1 = 2F*/(1 + F*) rises with it.
        Balanced accuracy is half of 1 and of the difference between true and false positive rate: `audit.stats.difference`.
        Simulated at 95 % (20 to 2,000 people, a tenth or half with the label, rates of 0.01 to 0.99; 2,000 sets each): nominal
        or more for all ten, within three standard errors.

        Source: Clopper & Pearson (1934), Biometrika 26:404; Hand, Christen & Kirielle (2021), Machine Learning 110:451 (F*).
        """
        if self is BALANCED_ACCURACY:
            (found, labelled), (cleared, others) = self.shares(counts)
            known = (labelled > 0) & (others > 0)
            low, high = subtracted(found, labelled, others - cleared, others, confidence)
            low, high = ((1 + np.clip(limit, -1, 1)) / 2 for limit in (low, high))
            return np.where(known, low, 0.0), np.where(known, high, 1.0)
        ((k, n),) = self.shares(counts)
        low, high = stats.clopper_pearson_limits(k, n, confidence)
        low, high = np.where(n == 0, 0.0, low), np.where(n == 0, 1.0, high)
        return (2 * low / (1 + low), 2 * high / (1 + high)) if self.is_f1 else (low, high)

    def gap(self, counts: Ints, confidence: float = 0.95, families: int = 1) -> Interval:
        """Return the largest difference between two groups; `max_min_gap` of a share, `gap_by_limits` of F1 and the like."""
        parts = self.shares(counts)
        if self.is_share:
            return stats.max_min_gap(*parts[0], confidence, families)
        sizes = np.min([n for _, n in parts], axis=0)
        return stats.gap_by_limits(self.values(counts), sizes, lambda level: self.limits(counts, level), confidence, families)

    def ratio(self, counts: Ints, confidence: float = 0.95, families: int = 1) -> Interval:
        """Return the smallest group's value over the largest; see `audit.stats.ratio_by_limits`."""
        return stats.ratio_by_limits(self.values(counts), lambda level: self.limits(counts, level), confidence, families)


def _of(successes: Sequence[int], total: Sequence[int]) -> Share:
    return lambda c: (c[..., list(successes)].sum(axis=-1), c[..., list(total)].sum(axis=-1))


def _measure(name: str, direction: str, *shares: Share, is_f1: bool = False) -> Measure:
    return Measure(name, direction, lambda c: tuple(share(c) for share in shares), is_f1)


EVERYBODY, LABELLED, OTHERS = range(OUTCOMES), (FOUND, MISSED), (ACCUSED, CLEARED, CONFUSED)
SELECTED, REJECTED = (FOUND, ACCUSED), (MISSED, CLEARED, CONFUSED)

SELECTION_RATE = _measure("selection rate", "neither", _of(SELECTED, EVERYBODY))
ACCURACY = _measure("accuracy", "higher", _of((FOUND, CLEARED), EVERYBODY))
TRUE_POSITIVE_RATE = _measure("true positive rate", "higher", _of((FOUND,), LABELLED))
FALSE_POSITIVE_RATE = _measure("false positive rate", "lower", _of((ACCUSED,), OTHERS))
TRUE_NEGATIVE_RATE = _measure("true negative rate", "higher", _of((CLEARED, CONFUSED), OTHERS))
FALSE_NEGATIVE_RATE = _measure("false negative rate", "lower", _of((MISSED,), LABELLED))
PRECISION = _measure("positive predictive value", "higher", _of((FOUND,), SELECTED))
NEGATIVE_PREDICTIVE_VALUE = _measure("negative predictive value", "higher", _of((CLEARED, CONFUSED), REJECTED))
F1 = _measure("f1", "higher", _of((FOUND,), (FOUND, MISSED, ACCUSED)), is_f1=True)
BALANCED_ACCURACY = _measure("balanced accuracy", "higher", _of((FOUND,), LABELLED), _of((CLEARED, CONFUSED), OTHERS))

MEASURES = (
    SELECTION_RATE,
    ACCURACY,
    TRUE_POSITIVE_RATE,
    FALSE_POSITIVE_RATE,
    TRUE_NEGATIVE_RATE,
    FALSE_NEGATIVE_RATE,
    PRECISION,
    NEGATIVE_PREDICTIVE_VALUE,
    F1,
    BALANCED_ACCURACY,
)
