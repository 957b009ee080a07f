"""Turns sensitive attributes into groups of people: values as they are or named, numbers cut, pairs of attributes joined."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from audit.errors import UsageError, closest
from audit.result import slug, slugs

MOST_VALUES = 12  # an attribute of numbers with more distinct values is cut: otherwise each group would be a handful of people
MOST_GROUPS = 1000  # each is compared with each other: the pairs of more groups would fill the memory
MISSING = "missing"
UNKNOWN = ("", "None", "<NA>", "NaT", "(missing)")  # how a missing value reads as text; audit.data writes the last


@dataclass(frozen=True)
class Attribute:
    """A way to split people into groups: one sensitive attribute, or two together.

    Attributes
    ----------
    name, slug
        As the user calls it, and as a part of a metric id.
    groups
        Names of the groups; none is empty.
    index : int64 array of shape (n,)
        Position in `groups` of each sample.
    made_of
        Names of the attributes that it joins: one, or two for an intersection.
    note
        How numbers were cut into ranges; empty where values were taken as they are.
    """

    name: str
    slug: str
    groups: tuple[str, ...]
    index: NDArray[np.int64]
    made_of: tuple[str, ...]
    note: str = ""

    @property
    def is_intersection(self) -> bool:
        """Whether two attributes are joined."""
        return len(self.made_of) > 1


class Column(NamedTuple):
    """One sensitive attribute as it was given: its distinct values as text, and the position of each person's among them."""

    values: list[str]
    places: NDArray[np.int64]


def make_attributes(
    sensitive: Any,
    *,
    bins: Mapping[str, Sequence[float]] | None = None,
    names: Mapping[str, Mapping[str, str]] | None = None,
    intersections: bool = True,
    min_group_size: int = 30,
) -> list[Attribute]:
    """Split people by each sensitive attribute, and by each pair of them.

    Parameters
    ----------
    sensitive
        A data frame, a mapping from attribute name to values of shape (n,), or one array of shape (n,). Values are compared
        as text.
    bins
        Attribute name to the edges of its ranges, rising: ``[25, 60]`` makes *less than 25*, *25 to less than 60* and
        *60 and more*. Attributes of numbers with more than 12 values and no stated bins are cut at their quartiles, unless
        all are whole numbers that `min_group_size` people or more share each: those may be codes, and stay as they are.
    names
        Attribute name to what its groups are called: ``{"sex": {"0": "women", "1": "men"}}``. Groups that are not named keep
        their value; ranges are named by what they would be called else.
    intersections
        Also split by all pairs of attributes.
    min_group_size
        Fewest people of whom enough is known.

    Raises
    ------
    UsageError
        There is no attribute, lengths differ, bins or names do not fit, or an attribute makes more than 1,000 groups.
    """
    columns = _columns(sensitive)
    bins, names = dict(bins or {}), dict(names or {})
    for option, given in (("bins", bins), ("names", names)):
        for name in given:
            if name not in columns:
                other = closest(name, list(columns))
                raise UsageError(f"{option} are given for {name!r}, which is no sensitive attribute; {other}")
    short = slugs(columns)
    singles = [_single(name, short[name], column, bins.get(name), min_group_size) for name, column in columns.items()]
    singles = [_named(attribute, names.get(attribute.name, {})) for attribute in singles]
    if not intersections:
        return singles
    taken = set(short.values())
    return singles + [_joined(a, b, taken) for a, b in combinations(singles, 2)]


def _columns(sensitive: Any) -> dict[str, Column]:
    if hasattr(sensitive, "columns"):  # a data frame
        found = {str(name): sensitive[name].to_numpy() for name in sensitive.columns}
    elif isinstance(sensitive, Mapping):
        found = {str(name): np.asarray(values).reshape(-1) for name, values in sensitive.items()}
    else:
        values = np.asarray(sensitive)
        if values.ndim != 1:
            raise UsageError(
                f"sensitive should be a data frame, a mapping of names to values, or values of shape (n,); got {values.shape}"
            )
        found = {str(getattr(sensitive, "name", None) or "group"): values}
    if not found:
        raise UsageError("fairness needs at least one sensitive attribute, got none")
    lengths = {name: len(values) for name, values in found.items()}
    if len(set(lengths.values())) > 1:
        raise UsageError(f"sensitive attributes should have one value a sample, got lengths {lengths}")
    return {name: _column(values) for name, values in found.items()}


def _column(values: NDArray[Any]) -> Column:
    """Give each distinct value a number: what follows looks at each of them once, whatever the number of people."""
    import pandas as pd

    if values.dtype.kind not in "biufU":  # 1 and True and 1.0 are equal, but are not one text
        values = np.asarray([str(value) for value in values], dtype=object)
    elif values.dtype.kind == "U":
        values = values.astype(object)
    index, distinct = pd.factorize(values, use_na_sentinel=False)
    return Column([str(value) for value in distinct], np.asarray(index, dtype=np.int64))


def _single(name: str, slug_: str, column: Column, edges: Sequence[float] | None, min_group_size: int) -> Attribute:
    values, numbers = column.values, _numbers(column.values)
    note = ""
    if edges is not None:
        if numbers is None:
            raise UsageError(f"bins are given for {name!r}, but its values are not numbers, such as {_first_text(values)!r}")
        values, order = _cut(numbers, _checked(name, edges))
        note = "cut at the stated edges"
    elif numbers is not None and len(values) > MOST_VALUES and not _may_be_codes(column, numbers, min_group_size):
        everybody = numbers[column.places]
        known = everybody[np.isfinite(everybody)]
        values, order = _cut(numbers, sorted(set(np.quantile(known, [0.25, 0.5, 0.75]).tolist())))
        note = "cut at the quartiles of the test part, since no bins were stated"
    elif numbers is not None:
        order = sorted(values, key=_by_number)
    else:
        order = sorted(values)
    return _attribute(name, slug_, Column(values, column.places), order, note)


def _may_be_codes(column: Column, numbers: NDArray[np.float64], min_group_size: int) -> bool:
    """Tell whether all are whole numbers that enough people share each.

    A range of codes (regions, shops) mixes those who have nothing in common but their place in a list, so that gaps between
    them cancel out. Where enough is known of every value, nothing speaks for ranges.
    """
    known = numbers[~np.isnan(numbers)]
    if not np.isfinite(known).all() or (known != np.round(known)).any():
        return False
    sizes = np.bincount(column.places, minlength=len(column.values)).tolist()
    return all(size >= min_group_size for value, size in zip(column.values, sizes, strict=True) if not _is_missing(value))


def _named(attribute: Attribute, names: Mapping[str, str]) -> Attribute:
    """Return the attribute with its groups called by their names; an error where a name fits none, or two groups."""
    calls = {}
    for value, name in names.items():
        group = value if value in attribute.groups else _same_number(value, attribute.groups)
        if group is None:
            other = closest(value, list(attribute.groups))
            raise UsageError(f"names of {attribute.name!r} name {value!r}, which is none of its groups; {other}")
        if not name.strip():
            raise UsageError(f"names of {attribute.name!r} should say what {value!r} is called, got nothing")
        calls[group] = name
    groups = tuple(calls.get(group, group) for group in attribute.groups)
    if len(set(groups)) < len(groups):
        twice = next(group for group in groups if groups.count(group) > 1)
        raise UsageError(
            f"names of {attribute.name!r} call two groups {twice!r}: give each its own name, or join them in the data"
        )
    return replace(attribute, groups=groups)


def _same_number(value: str, groups: Sequence[str]) -> str | None:
    """Return the group that is the same number as `value`: a file may hold 1.0 where its owner says 1."""
    number = _number(value)
    return next((group for group in groups if number is not None and _number(group) == number), None)


def _number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _joined(a: Attribute, b: Attribute, taken: set[str]) -> Attribute:
    # Two pairs of groups could read the same where a name holds " & ": the pair of numbers tells them apart.
    keys = a.index * len(b.groups) + b.index
    order = np.flatnonzero(np.bincount(keys))
    if len(order) > MOST_GROUPS:
        raise UsageError(
            f"{a.name!r} and {b.name!r} together make {len(order):,} groups, expected at most {MOST_GROUPS:,}: "
            "compare by each attribute alone (fairness.intersections = false), or make fewer groups of one of them"
        )
    position = np.zeros(len(a.groups) * len(b.groups), dtype=np.int64)
    position[order] = np.arange(len(order))
    base = candidate = f"{slug(a.slug)}__{slug(b.slug)}"
    count = 1
    while candidate in taken:
        count += 1
        candidate = f"{base}_{count}"
    taken.add(candidate)
    return Attribute(
        name=f"{a.name} & {b.name}",
        slug=candidate,
        groups=tuple(f"{a.groups[key // len(b.groups)]} & {b.groups[key % len(b.groups)]}" for key in order.tolist()),
        index=position[keys],
        made_of=(a.name, b.name),
        note="; ".join(f"{part.name} {part.note}" for part in (a, b) if part.note),
    )


def _attribute(name: str, slug_: str, column: Column, order: Iterable[str], note: str) -> Attribute:
    present = set(column.values)
    if len(present) > MOST_GROUPS:
        raise UsageError(
            f"sensitive attribute {name!r} makes {len(present):,} groups, expected at most {MOST_GROUPS:,}: for numbers state "
            "ranges with fairness.bins, join text into fewer groups in the data, or leave the attribute out"
        )
    groups = tuple(group for group in dict.fromkeys(order) if group in present)
    position = {group: i for i, group in enumerate(groups)}
    # Values that share a range, or a text, are one group.
    place = np.asarray([position[value] for value in column.values], dtype=np.int64)
    return Attribute(name, slug_, groups, place[column.places] if len(place) else column.places, (name,), note)


def _numbers(values: list[str]) -> NDArray[np.float64] | None:
    """Return the values as numbers, missing ones as NaN; None where any is text."""
    try:
        numbers = np.asarray([math.nan if v in UNKNOWN else float(v) for v in values])
    except ValueError:
        return None
    return numbers if len(numbers) and np.isfinite(numbers).any() else None


def _by_number(value: str) -> tuple[bool, float, str]:
    """Sort numbers by size and missing values last."""
    return (True, 0.0, value) if _is_missing(value) else (False, float(value), value)


def _is_missing(value: str) -> bool:
    return value in UNKNOWN or math.isnan(float(value))


def _first_text(values: list[str]) -> str:
    for value in values:
        try:
            float(value)
        except ValueError:
            if value not in UNKNOWN:
                return value
    return "nothing"


def _checked(name: str, edges: Sequence[float]) -> list[float]:
    numbers = [float(edge) for edge in edges]
    if not numbers or any(b <= a for a, b in pairwise(numbers)) or not np.isfinite(numbers).all():
        raise UsageError(f"bins of {name!r} should be rising numbers, such as [25, 60], got {list(edges)}")
    return numbers


def _cut(numbers: NDArray[np.float64], edges: Sequence[float]) -> tuple[list[str], list[str]]:
    """Return the range of each number, and all ranges in their order."""
    texts = [f"{edge:.10g}" for edge in edges]
    ranges = [f"less than {texts[0]}"]
    ranges += [f"{a} to less than {b}" for a, b in pairwise(texts)]
    ranges += [f"{texts[-1]} and more", MISSING]
    index = np.where(np.isnan(numbers), len(ranges) - 1, np.searchsorted(np.asarray(edges), numbers, side="right"))
    return [ranges[i] for i in index.tolist()], ranges
