"""A comparison of two results as pages show it: which rows, in which order, in which words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from audit.report import text
from audit.result import Change, Comparison, Figure

WORDS = {"better": "Better", "worse": "Worse", "unchanged": "Unchanged", "not_comparable": "Not comparable"}
MEANINGS = {
    "better": "better beyond noise",
    "worse": "worse beyond noise",
    "unchanged": "unchanged within noise",
    "not_comparable": "could not be compared",
}
MOST_REASONS = 8


@dataclass(frozen=True)
class Row:
    """One metric in words: its values, the change with its interval, and what came of it."""

    change: Change
    old: str
    new: str
    by: str
    interval: str
    p: str
    aside: str


@dataclass(frozen=True)
class Apart:
    """Metrics that could not be compared for one reason."""

    reason: str
    metrics: list[str]

    def named(self, limit: int) -> str:
        """Return the first of them between commas, and how many more there are."""
        return text.listed(self.metrics, limit)


@dataclass(frozen=True)
class Changes:
    """A comparison sorted for a page: the primary metric, what is surely worse and surely better, the rest, what is apart."""

    comparison: Comparison
    primary: Row | None
    worse: list[Row]
    better: list[Row]
    unchanged: list[Row]
    apart: list[Apart]

    @property
    def rows(self) -> list[Row]:
        """All that could be compared, the primary metric first, then worse, better, unchanged."""
        first = [self.primary] if self.primary is not None and self.primary.change.outcome != "not_comparable" else []
        return [*first, *self.worse, *self.better, *self.unchanged]

    @property
    def left_apart(self) -> int:
        """How many metrics could not be compared."""
        return sum(len(group.metrics) for group in self.apart)


def shown(comparison: Comparison) -> Changes:
    """Return the changes of a comparison, sorted and in words."""
    primary = next((change for change in comparison.changes if change.primary), None)
    rest = [change for change in comparison.changes if change is not primary]
    return Changes(
        comparison=comparison,
        primary=None if primary is None else _row(primary),
        worse=[_row(change) for change in rest if change.outcome == "worse"],
        better=[_row(change) for change in rest if change.outcome == "better"],
        unchanged=[_row(change) for change in rest if change.outcome == "unchanged"],
        apart=_apart(comparison.changes),
    )


def figures(changes: Changes) -> list[Figure]:
    """Return the charts of the changes around 0, better to the right: one for each unit, the primary metric's first."""
    units = list(dict.fromkeys(row.change.unit for row in changes.rows))
    return [_figure(unit, [row.change for row in changes.rows if row.change.unit == unit]) for unit in units]


def better_by(change: Change) -> tuple[float | None, float | None, float | None]:
    """Return how much better a metric became, with its interval: the change, turned round where lower is better."""
    if change.direction == "higher":
        return change.change, change.low, change.high
    turned = [None if v is None else 0.0 - v for v in (change.change, change.high, change.low)]
    return turned[0], turned[1], turned[2]


def _figure(unit: str, some: Sequence[Change]) -> Figure:
    gains = [better_by(change) for change in some]
    return Figure(
        id=f"changes.{unit}",
        kind="forest",
        title=f"How much each metric changed{f' ({unit})' if unit and unit != 'fraction' else ''}: better to the right of 0, "
        "worse to the left",
        data={
            "labels": [change.metric for change in some],
            "values": [gain[0] for gain in gains],
            "low": [gain[1] for gain in gains],
            "high": [gain[2] for gain in gains],
            "xlabel": "better by" if unit in ("", "fraction") else f"better by ({text.clip(unit, 40)})",
            "ylabel": "metric",
            "reference": 0.0,
            "reference_label": "no change",
        },
    )


def _row(change: Change) -> Row:
    ends = change.low is not None and change.high is not None
    return Row(
        change=change,
        old=text.measure(change.old, change.unit),
        new=text.measure(change.new, change.unit),
        by=text.signed(change.change, change.unit),
        interval=f"[{text.signed(change.low, change.unit)}, {text.signed(change.high, change.unit)}]" if ends else text.DASH,
        p=text.p_value(change.p_worse),
        aside=_aside(change),
    )


def _aside(change: Change) -> str:
    """Say why an interval that leaves 0 out is no change beyond noise: a reader would take the row for a mistake."""
    gain = better_by(change)
    if change.outcome != "unchanged" or gain[1] is None or gain[2] is None or gain[1] <= 0 <= gain[2]:
        return ""
    return "beyond noise alone, but not after correction for the number of metrics"


def _apart(changes: Sequence[Change]) -> list[Apart]:
    """Return what could not be compared by reason, the primary metric first, then in the order of the metrics."""
    groups: dict[str, list[str]] = {}
    for change in sorted(changes, key=lambda change: not change.primary):
        if change.outcome == "not_comparable":
            groups.setdefault(change.reason, []).append(change.metric)
    return [Apart(reason, metrics) for reason, metrics in groups.items()]
