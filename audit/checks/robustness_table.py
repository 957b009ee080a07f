"""What an attack may change in the rows of a table, as `[robustness]` states it: columns, bounds, whole numbers, rules."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from audit.attacks.constraints import Constraints, parse
from audit.attacks.geometry import ThreatModel
from audit.checks.base import Task
from audit.errors import UsageError, closest
from audit.plain import plain
from audit.result import Finding

OPTIONS = (
    "mutable",
    "immutable",
    "column_bounds",
    "integer",
    "one_hot",
    "constraints",
    "increase_only",
    "decrease_only",
    "max_category_changes",
)


def mutable(task: Task) -> NDArray[np.bool_] | None:
    """Return which columns may change, or None where all may."""
    free, fixed = task.options.mutable, task.options.immutable
    if free is None and not fixed:
        return None
    columns = _columns(task, "mutable" if free is not None else "immutable")
    if free is not None and not free:
        raise UsageError(
            "robustness.mutable is empty: no column may change, so nothing could be attacked; name some, or skip it"
        )
    chosen = set(columns) if free is None else set(_known(columns, free, "mutable"))
    both = chosen & set(_known(columns, fixed, "immutable")) if free is not None else set()
    if both:
        raise UsageError(f"robustness: {plain(repr(min(both)))} is named in mutable and in immutable: leave it out of one")
    chosen -= set(fixed)
    if not chosen or not set(_known(columns, fixed, "immutable")) < set(columns):
        raise UsageError(
            "robustness.immutable names all columns: none may change, so nothing could be attacked; skip the check"
        )
    return np.asarray([column in chosen for column in columns])


def bounds(task: Task, low: NDArray[np.float64], high: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the box with the stated bounds of columns in it."""
    stated = task.options.column_bounds
    if not stated:
        return low, high
    columns = _columns(task, "column_bounds")
    _known(columns, stated, "column_bounds")
    low, high = (np.array(np.broadcast_to(side, len(columns)), dtype=np.float64) for side in (low, high))
    for name, (least, most) in stated.items():
        if least > most:
            raise UsageError(f"robustness.column_bounds: {plain(repr(name))} has the lowest value {least:g} above {most:g}")
        low[columns.index(name)], high[columns.index(name)] = least, most
    return low, high


def constraints(task: Task) -> Constraints | None:
    """Return what changed rows must keep to, or None where nothing is stated."""
    options = task.options
    named = next((name for name in OPTIONS[3:] if getattr(options, name) not in (None, [])), None)
    if named is None:
        return None
    columns = _columns(task, named)
    groups = tuple(tuple(_at(columns, group, "one_hot")) for group in options.one_hot)
    whole = _whole(task, groups) if options.integer == "auto" else _at(columns, options.integer or [], "integer")
    out = Constraints(
        integer=tuple(whole),
        one_hot=groups,
        linear=tuple(parse(text, columns) for text in options.constraints),
        increase_only=tuple(_at(columns, options.increase_only, "increase_only")),
        decrease_only=tuple(_at(columns, options.decrease_only, "decrease_only")),
        max_category_changes=options.max_category_changes,
    )
    out.check(len(columns))
    return out or None


def findings(task: Task, threat: ThreatModel) -> list[Finding]:
    """Say which clean rows break what was stated, what was taken for whole numbers, and what the radius leaves alone."""
    columns, rules = list(task.data.columns), threat.constraints
    out = []
    if rules and task.options.integer == "auto":
        names = ", ".join(plain(columns[c]) for c in rules.integer) or "none"
        detail = f"robustness.integer = auto took for whole numbers, as all their values are: {names}."
        out.append(Finding(severity="info", title="Columns taken for whole numbers", detail=detail))
    if rules and (counts := rules.broken_by(task.data.test.x, columns)):
        rows = "; ".join(f"{count} of {len(task.data.test)} break {name}" for name, count in counts.items())
        detail = (
            f"Stated constraints, and clean test rows that break them: {rows}. Such a row may stay as it is, and may not be "
        )
        detail += "made worse: state constraints that hold, or mend the rows."
        out.append(Finding(severity="medium", title="Clean rows break stated constraints", detail=detail))
    if rules:
        can = threat.can_change(task.data.test.x.shape[1:])
        held = rules.discrete(len(columns)) & ~can & (np.ones(len(columns), bool) if threat.mutable is None else threat.mutable)
        if held.any():
            names = ", ".join(plain(columns[c]) for c in np.flatnonzero(held))
            detail = f"The radius is less than one whole step in {names}: these columns were not attacked. State a larger --eps"
            detail += ", or max_category_changes for one-hot columns, where such a step must not matter."
            severity = "info" if can.any() else "medium"
            out.append(Finding(severity=severity, title="Whole numbers that the radius cannot change", detail=detail))  # type: ignore[arg-type]
    return out


def _columns(task: Task, option: str) -> list[str]:
    columns = list(task.data.columns)
    if not columns:
        raise UsageError(f"robustness.{option} names columns, but the data has none: it is for tables")
    return columns


def _known(columns: list[str], names: Iterable[str], option: str) -> list[str]:
    for name in names:
        if name not in columns:
            raise UsageError(f"robustness.{option}: no input column {plain(repr(name))}; {plain(closest(name, columns))}")
    return list(names)


def _at(columns: list[str], names: Iterable[str], option: str) -> list[int]:
    return [columns.index(name) for name in _known(columns, names, option)]


def _whole(task: Task, groups: tuple[tuple[int, ...], ...]) -> list[int]:
    """Return the columns whose values are whole numbers in all parts, less those of one-hot groups."""
    grouped = {column for group in groups for column in group}
    parts = [task.data.test.x, *([] if task.data.reference is None else [task.data.reference.x])]
    whole = np.logical_and.reduce([(part == np.round(part)).all(axis=0) for part in parts])
    return [int(column) for column in np.flatnonzero(whole) if int(column) not in grouped]
