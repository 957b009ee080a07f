"""Draws groups of people anew from their counts: ten measures by group and between groups, at a cost that no row adds to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from audit import stats
from audit.errors import UsageError
from audit.fairness import confusion
from audit.fairness.confusion import MEASURES
from audit.fairness.groups import Attribute, make_attributes
from audit.fairness.metrics import Counts, checked, count_all, distinct, positives_of
from audit.stats import Floats, Interval, Ints

if TYPE_CHECKING:
    import pandas as pd

Fixed = Literal["groups", "labels", "total"]


@dataclass(frozen=True)
class Resampled:
    """Bootstrap replicates of one grouping.

    Attributes
    ----------
    attribute, positive
        The groups, and the class that counts as selected.
    counts : int64 array of shape (groups, 5)
        What was counted; see `audit.fairness.confusion.count`.
    measures
        Names of the measures.
    values : float64 array of shape (groups, measures)
        Their values; NaN where a group has none.
    drawn : float64 array of shape (n_boot, groups, measures)
        Their values over the resamples.
    """

    attribute: Attribute
    positive: Any
    counts: Ints
    measures: tuple[str, ...]
    values: Floats
    drawn: Floats

    @property
    def differences(self) -> Floats:
        """Largest less smallest group, shape (n_boot, measures). Its quantiles mislead: see `audit.stats.counts`."""
        with np.errstate(invalid="ignore"):
            spread: Floats = np.fmax.reduce(self.drawn, axis=1) - np.fmin.reduce(self.drawn, axis=1)
        return spread

    @property
    def ratios(self) -> Floats:
        """Smallest group over largest, shape (n_boot, measures). Its quantiles mislead, too."""
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio: Floats = np.fmin.reduce(self.drawn, axis=1) / np.fmax.reduce(self.drawn, axis=1)
        return ratio


@dataclass(frozen=True)
class Bootstrapped:
    """What `bootstrap` found.

    Attributes
    ----------
    by_group
        A table with one row for each attribute, positive class, group and measure: value, interval, its method, and the
        standard error over the resamples.
    between
        A table with one row for each attribute, positive class and measure: the largest difference between two groups and the
        smallest group over the largest, each with an interval that holds for all groups at once, and standard errors.
    resampled
        The replicates, one item for each attribute and positive class.
    confidence
        Of each interval.
    """

    by_group: pd.DataFrame
    between: pd.DataFrame
    resampled: list[Resampled]
    confidence: float


def bootstrap(
    y_true: Any,
    y_pred: Any,
    sensitive: Any,
    *,
    n_boot: int = 1000,
    positive: Any = None,
    fixed: Fixed = "groups",
    also: Mapping[str, stats.Statistic] | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    bins: Mapping[str, Sequence[float]] | None = None,
    names: Mapping[str, Mapping[str, str]] | None = None,
    intersections: bool = True,
    confidence: float = 0.95,
    seed: int = 0,
) -> Bootstrapped:
    """Measure each group and the gaps between groups, with intervals and bootstrap replicates.

    People are counted once. A resample draws counts, not people, so its cost does not depend on how many they are. The measures
    are selection rate, accuracy, true and false positive and negative rate, positive and negative predictive value, F1 and
    balanced accuracy.

    Parameters
    ----------
    y_true, y_pred, sensitive, positive, bins, names, intersections
        As of `assess`.
    n_boot
        Number of resamples.
    fixed
        What every resample keeps: the people of each group (``groups``), also how many of them have the label (``labels``), or
        only how many people there are in all (``total``).
    also
        More measures by name: functions of counts of shape (..., 5), columns as of `audit.fairness.confusion.count`, that
        return values of shape (...,), NaN where there is none.
    bounds
        Smallest and largest value of those measures.
    confidence
        Of each interval; those between groups hold for all groups at once.
    seed
        The same seed gives the same draws.

    Returns
    -------
    Bootstrapped
        Tables and replicates.

    Raises
    ------
    UsageError
        As of `assess`, or a measure in `also` has the name of another or does not give one value a group.

    Notes
    -----
    The ten measures have intervals that need no resampling, since those of a bootstrap are too narrow near 0 and 1 and mislead
    for maxima: `Measure.limits`, `Measure.gap` and `Measure.ratio` say which. Those in `also` have the widest of BCa and
    smoothed draws by group, and simultaneous (max-T) limits between groups of
    100 people and more; see `audit.stats.counts`. They have no ratio.
    """
    attributes = make_attributes(sensitive, bins=bins, names=names, intersections=intersections)
    truth, predicted = checked(y_true, y_pred, attributes)
    counts = count_all(truth, predicted, attributes, positives_of(positive, distinct(truth, predicted)))
    return resample(counts, n_boot=n_boot, fixed=fixed, also=also, bounds=bounds, confidence=confidence, seed=seed)


def resample(
    counts: Sequence[Counts],
    *,
    n_boot: int = 1000,
    fixed: Fixed = "groups",
    also: Mapping[str, stats.Statistic] | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    confidence: float = 0.95,
    seed: int = 0,
) -> Bootstrapped:
    """Do what `bootstrap` does with people who are counted already, such as `Assessment.counts`; parameters as there."""
    also = dict(also or {})
    taken = [measure.name for measure in MEASURES if measure.name in also]
    if taken:
        raise UsageError(f"measures in also need names of their own, got {taken[0]!r}")
    random = np.random.default_rng(seed)
    resampled = [_resampled(one, also, n_boot, fixed, random) for one in counts]
    chosen = _Chosen(also, bounds, confidence, n_boot, seed)
    by_group = _concatenated([chosen.by_group(one) for one in resampled])
    between = _concatenated([chosen.between(one) for one in resampled])
    return Bootstrapped(by_group, between, resampled, confidence)


def _resampled(
    counts: Counts, also: Mapping[str, stats.Statistic], n_boot: int, fixed: Fixed, random: np.random.Generator
) -> Resampled:
    drawn = _drawn(counts.cells, n_boot, fixed, random)
    measures = (*(measure.name for measure in MEASURES), *also)
    values, replicates = (_values(table, also) for table in (counts.cells, drawn))
    return Resampled(counts.attribute, counts.positive, counts.cells, measures, values, replicates)


def _drawn(cells: Ints, n_boot: int, fixed: Fixed, random: np.random.Generator) -> Ints:
    """Return resampled tables of shape (n_boot, groups, 5) that keep what is fixed."""
    if fixed == "groups":
        return stats.draw_counts(cells, n_boot, random)
    if fixed == "total":
        return stats.draw_counts(cells.reshape(-1), n_boot, random).reshape(n_boot, *cells.shape)
    if fixed != "labels":
        raise UsageError(f"fixed should be 'groups', 'labels' or 'total', got {fixed!r}")
    out = np.empty((n_boot, *cells.shape), dtype=np.int64)
    for part in (list(confusion.LABELLED), list(confusion.OTHERS)):
        out[:, :, part] = stats.draw_counts(cells[:, part], n_boot, random)
    return out


def _values(counts: NDArray[Any], also: Mapping[str, stats.Statistic]) -> Floats:
    """Return all measures of counts (..., 5), shape (..., measures)."""
    found = [measure.values(counts) for measure in MEASURES]
    for name, function in also.items():
        value = _value(function, counts)
        if value.shape != counts.shape[:-1]:
            raise UsageError(
                f"{name!r} should give a value for each table of counts, shape {counts.shape[:-1]}; got {value.shape}"
            )
        found.append(value)
    return np.stack(found, axis=-1)


def _value(function: stats.Statistic, counts: NDArray[Any]) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(function(counts.astype(np.float64)), dtype=np.float64)


@dataclass(frozen=True)
class _Chosen:
    """Which interval stands beside which measure."""

    also: Mapping[str, stats.Statistic]
    bounds: tuple[float, float]
    confidence: float
    n_boot: int
    seed: int

    def by_group(self, one: Resampled) -> pd.DataFrame:
        """Return a table with one row for each group and measure, measures first."""
        import pandas as pd

        limits = [(*measure.limits(one.counts, self.confidence), measure.method) for measure in MEASURES]
        limits += [self._own(function, one.counts) for function in self.also.values()]
        errors = _spread(one.drawn)
        frames = [
            pd.DataFrame(
                {
                    "attribute": one.attribute.name,
                    "positive": [one.positive] * len(one.counts),
                    "group": list(one.attribute.groups),
                    "measure": measure,
                    "value": one.values[:, i],
                    "low": low,
                    "high": high,
                    "method": method,
                    "standard_error": errors[:, i],
                    "n": one.counts.sum(axis=1),
                }
            )
            for i, (measure, (low, high, method)) in enumerate(zip(one.measures, limits, strict=True))
        ]
        return _concatenated(frames)

    def _own(self, function: stats.Statistic, counts: Ints) -> tuple[Floats, Floats, str]:
        """Return the limits of a measure that nothing is known of, one group at a time, so that the jackknife stays small."""
        found = [
            stats.bootstrap_counts(function, row, self.confidence, n_boot=self.n_boot, seed=self.seed, bounds=self.bounds)
            for row in counts
        ]
        return np.asarray([one.low for one in found]), np.asarray([one.high for one in found]), "bootstrap-widest"

    def between(self, one: Resampled) -> pd.DataFrame:
        """Return a table with one row a measure."""
        import pandas as pd

        gaps = [measure.gap(one.counts, self.confidence) for measure in MEASURES]
        ratios = [measure.ratio(one.counts, self.confidence) for measure in MEASURES]
        methods = ["bonferroni-mover"] * len(MEASURES)
        smooth = stats.smooth_counts(one.counts, 1.0, self.n_boot, self.seed) if self.also else one.counts
        sizes, widest = one.counts.sum(axis=1), self.bounds[1] - self.bounds[0]
        for i, function in enumerate(self.also.values(), start=len(MEASURES)):
            drawn = _value(function, smooth)
            gaps.append(stats.gap_by_bootstrap(one.values[:, i], drawn, sizes, self.confidence, widest))
            ratios.append(Interval(None, None, None))
            methods.append("bootstrap-max-t")
        frame = {
            "attribute": one.attribute.name,
            "positive": [one.positive] * len(one.measures),
            "measure": list(one.measures),
            **_columns("difference", gaps),
            "difference_standard_error": _spread(one.differences),
            **_columns("ratio", ratios),
            "ratio_standard_error": _spread(one.ratios),
            "method": methods,
        }
        return pd.DataFrame(frame)


def _columns(name: str, intervals: Sequence[Interval]) -> dict[str, Floats]:
    value, low, high = np.asarray([[np.nan if v is None else v for v in one] for one in intervals]).T
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _spread(drawn: Floats) -> Floats:
    """Return the standard deviation over the resamples that have a value; NaN where fewer than two do."""
    known = np.isfinite(drawn)
    n = known.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(known, drawn, 0).sum(axis=0) / n
        squares = np.where(known, drawn - mean, 0) ** 2
        spread: Floats = np.sqrt(squares.sum(axis=0) / np.where(n > 1, n - 1, np.nan))
    return spread


def _concatenated(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    return pd.concat(frames, ignore_index=True)
