"""Turns sensitive attributes into groups of people: values as they are, numbers cut into ranges, pairs of attributes joined."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

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


def make_attributes(
    sensitive: Any,
    *,
    bins: Mapping[str, Sequence[float]] | None = None,
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
    intersections
        Also split by all pairs of attributes.
    min_group_size
        Fewest people of whom enough is known.

    Raises
    ------
    UsageError
        There is no attribute, lengths differ, bins do not fit, or an attribute makes more than 1,000 groups.
    """
    columns = _columns(sensitive)
    bins = dict(bins or {})
    for name in bins:
        if name not in columns:
            raise UsageError(f"bins are given for {name!r}, which is no sensitive attribute; {closest(name, list(columns))}")
    names = slugs(columns)
    singles = [_single(name, names[name], values, bins.get(name), min_group_size) for name, values in columns.items()]
    if not intersections:
        return singles
    taken = set(names.values())
    return singles + [_joined(a, b, taken) for a, b in combinations(singles, 2)]


def _columns(sensitive: Any) -> dict[str, list[str]]:
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
    return {name: [str(value) for value in values] for name, values in found.items()}


def _single(name: str, slug_: str, values: list[str], edges: Sequence[float] | None, min_group_size: int) -> Attribute:
    numbers = _numbers(values)
    note = ""
    if edges is not None:
        if numbers is None:
            raise UsageError(f"bins are given for {name!r}, but its values are not numbers, such as {_first_text(values)!r}")
        values, order = _cut(numbers, _checked(name, edges))
        note = "cut at the stated edges"
    elif numbers is not None and len(set(values)) > MOST_VALUES and not _may_be_codes(values, numbers, min_group_size):
        known = numbers[np.isfinite(numbers)]
        values, order = _cut(numbers, sorted(set(np.quantile(known, [0.25, 0.5, 0.75]).tolist())))
        note = "cut at the quartiles of the test part, since no bins were stated"
    elif numbers is not None:
        order = sorted(set(values), key=_by_number)
    else:
        order = sorted(set(values))
    return _attribute(name, slug_, values, order, (name,), note)


def _may_be_codes(values: list[str], numbers: NDArray[np.float64], min_group_size: int) -> bool:
    """Tell whether all are whole numbers that enough people share each.

    A range of codes (regions, shops) mixes those who have nothing in common but their place in a list, so that gaps between
    them cancel out. Where enough is known of every value, nothing speaks for ranges.
    """
    known = numbers[~np.isnan(numbers)]
    if not np.isfinite(known).all() or (known != np.round(known)).any():
        return False
    sizes = Counter(values)
    return all(size >= min_group_size for value, size in sizes.items() if not _is_missing(value))


def _joined(a: Attribute, b: Attribute, taken: set[str]) -> Attribute:
    values = [f"{a.groups[i]} & {b.groups[j]}" for i, j in zip(a.index, b.index, strict=True)]
    # Two pairs of groups could read the same where a name holds " & ": the pair of numbers tells them apart.
    keys = [(int(i), int(j)) for i, j in zip(a.index, b.index, strict=True)]
    order = sorted(set(keys))
    if len(order) > MOST_GROUPS:
        raise UsageError(
            f"{a.name!r} and {b.name!r} together make {len(order):,} groups, expected at most {MOST_GROUPS:,}: "
            "compare by each attribute alone (fairness.intersections = false), or make fewer groups of one of them"
        )
    position = {key: i for i, key in enumerate(order)}
    text = dict(zip(keys, values, strict=True))
    base = candidate = f"{slug(a.slug)}__{slug(b.slug)}"
    count = 1
    while candidate in taken:
        count += 1
        candidate = f"{base}_{count}"
    taken.add(candidate)
    return Attribute(
        name=f"{a.name} & {b.name}",
        slug=candidate,
        groups=tuple(text[key] for key in order),
        index=np.asarray([position[key] for key in keys], dtype=np.int64),
        made_of=(a.name, b.name),
        note="; ".join(f"{part.name} {part.note}" for part in (a, b) if part.note),
    )


def _attribute(
    name: str, slug_: str, values: list[str], order: Iterable[str], made_of: tuple[str, ...], note: str
) -> Attribute:
    present = set(values)
    if len(present) > MOST_GROUPS:
        raise UsageError(
            f"sensitive attribute {name!r} makes {len(present):,} groups, expected at most {MOST_GROUPS:,}: for numbers state "
            "ranges with fairness.bins, join text into fewer groups in the data, or leave the attribute out"
        )
    groups = tuple(group for group in order if group in present)
    position = {group: i for i, group in enumerate(groups)}
    return Attribute(name, slug_, groups, np.asarray([position[v] for v in values], dtype=np.int64), made_of, note)


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
