"""What each kind of figure holds, checked, and the table of data that stands beside its chart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from audit.report.text import cell, interval, number, percent
from audit.result import Figure

# Charts draw coordinates as float32 would: beyond this an axis has no ticks that a person could read.
Value = Annotated[float, Field(allow_inf_nan=False, ge=-1e30, le=1e30)]
Values = list[Value | None]
Text = Annotated[str, Field(coerce_numbers_to_str=True)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class DataTable:
    """A table ready to show; `left_out` counts the rows that the report does not repeat from result.json."""

    columns: list[str]
    rows: list[list[str]]
    numeric: list[bool]
    left_out: int = 0


class Shape(BaseModel):
    """Base of the shapes of figure data: frozen; keys that it does not know are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    def _same_length(self, length: int, **others: Sequence[object] | None) -> None:
        for name, other in others.items():
            if other is not None and len(other) != length:
                raise ValueError(f"{name} needs {length} entries, has {len(other)}")

    def rows(self) -> tuple[list[str], list[list[JsonValue]]]:
        """Return the columns and rows of the data table."""
        raise NotImplementedError


class Bars(Shape):
    """Kinds "bars" and "forest": one value a label, with an interval and a sample count where there are any.

    `signed` bars are coloured by their sign: what speaks for something, and what against it.
    """

    labels: list[Text]
    values: Values
    low: Values | None = None
    high: Values | None = None
    n: list[int | None] | None = None
    xlabel: Text = ""
    ylabel: Text = ""
    reference: Value | None = None
    reference_label: Text = "reference"
    signed: bool = False
    note: Text = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._same_length(len(self.labels), values=self.values, low=self.low, high=self.high, n=self.n)
        return self

    def rows(self) -> tuple[list[str], list[list[JsonValue]]]:
        """One row a label."""
        optional: list[tuple[str, Sequence[float | None] | None]] = [
            ("low", self.low),
            ("high", self.high),
            ("samples", self.n),
        ]
        present = [(name, column) for name, column in optional if column is not None]
        columns = [self.ylabel or "label", self.xlabel or "value", *(name for name, _ in present)]
        body: list[list[JsonValue]] = [
            [label, self.values[i], *(column[i] for _, column in present)] for i, label in enumerate(self.labels)
        ]
        if self.reference is not None:
            body.append([self.reference_label, self.reference, *(None for _ in present)])
        return columns, body


class Matrix(Shape):
    """Kind "matrix": a value for each row and column, such as a confusion matrix of counts."""

    row_names: list[Text] = Field(alias="rows")
    columns: list[Text]
    values: list[Values]
    xlabel: Text = ""
    ylabel: Text = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._same_length(len(self.row_names), values=self.values)
        for row in self.values:
            self._same_length(len(self.columns), row=row)
        return self

    def rows(self) -> tuple[list[str], list[list[JsonValue]]]:
        """Return the matrix itself up to 30 columns; a larger one as its cells, the largest off the diagonal first."""
        corner = " \\ ".join(part for part in (self.ylabel, self.xlabel) if part) or "row"
        if len(self.columns) <= 30:
            return [corner, *self.columns], [[name, *row] for name, row in zip(self.row_names, self.values, strict=True)]
        cells = [
            (i == j, -abs(value), i, j, value) for i, row in enumerate(self.values) for j, value in enumerate(row) if value
        ]
        body: list[list[JsonValue]] = [
            [self.row_names[i], self.columns[j], value] for _, _, i, j, value in sorted(cells, key=lambda c: c[:4])
        ]
        return [self.ylabel or "row", self.xlabel or "column", "value"], body


class Reliability(Shape):
    """Kind "reliability": stated confidence against measured accuracy, one entry a bin."""

    confidence: Values
    accuracy: Values
    low: Values
    high: Values
    n: list[int]
    xlabel: Text = "confidence"
    ylabel: Text = "accuracy"

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._same_length(len(self.confidence), accuracy=self.accuracy, low=self.low, high=self.high, n=self.n)
        return self

    def rows(self) -> tuple[list[str], list[list[JsonValue]]]:
        """One row a bin."""
        columns = [self.xlabel, self.ylabel, "low", "high", "samples"]
        bins = zip(self.confidence, self.accuracy, self.low, self.high, self.n, strict=True)
        return columns, [list(entry) for entry in bins]


class Series(Shape):
    """One line of a curve, with its band where there is one; a `faint` line is one of many, such as that of one sample.

    A line with a `step` goes straight on from each point to the next ("post"), or to it from the one before ("pre").
    """

    name: Text = ""
    x: list[Value]
    y: Values
    low: Values | None = None
    high: Values | None = None
    faint: bool = False
    step: Literal["pre", "post"] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._same_length(len(self.x), y=self.y, low=self.low, high=self.high)
        return self

    def points(self, *, banded: bool) -> list[list[JsonValue]]:
        """One row a point: name, x, y, and the ends of the band."""
        low, high = self.low or [None] * len(self.x), self.high or [None] * len(self.x)
        rows: list[list[JsonValue]] = []
        for x, y, bottom, top in zip(self.x, self.y, low, high, strict=True):
            rows.append([self.name, x, y, bottom, top] if banded else [self.name, x, y])
        return rows


class Mark(Shape):
    """An upright line at `x`, with a word: something happened there."""

    x: Value
    label: Text = ""


class Curve(Shape):
    """Kind "curve": one or more lines over a common axis, and marks on it; `whole` where that axis counts something.

    The axes run over the points, or from `xmin` to `xmax` and `ymin` to `ymax` where these are given. Where there is a second
    scale, each tick shows its value times that as well, with its unit.
    """

    series: list[Series]
    xlabel: Text = ""
    ylabel: Text = ""
    marks: list[Mark] = Field(default_factory=list)
    whole: bool = False
    xmin: Value | None = None
    xmax: Value | None = None
    ymin: Value | None = None
    ymax: Value | None = None
    second_scale: Value | None = None
    second_unit: Text = ""
    note: Text = ""

    def rows(self) -> tuple[list[str], list[list[JsonValue]]]:
        """One row a point of the lines that have a name; the faint ones are counted."""
        named = [s for s in self.series if not s.faint]
        banded = any(s.low is not None or s.high is not None for s in named)
        columns = ["series", self.xlabel or "x", self.ylabel or "y", *(["low", "high"] if banded else [])]
        body = [row for s in named for row in s.points(banded=banded)]
        faint = len(self.series) - len(named)
        if faint:
            body.append([f"{faint:,} thin lines: see result.json", *([None] * (len(columns) - 1))])
        for mark in self.marks:
            body.append([mark.label, mark.x, *([None] * (len(columns) - 2))])
        return columns, body


class Bracket(Shape):
    """Kind "bracket": how many samples are certified, undecided, broken and wrong, with the two bounds on the truth.

    `certified` is None where there is no certificate: then the truth is bounded from above alone. The ends of the intervals
    of both bounds are shares of all samples.
    """

    certified: Count | None = None
    undecided: Count
    broken: Count
    wrong: Count
    certified_low: Share | None = None
    certified_high: Share | None = None
    attacked_low: Share | None = None
    attacked_high: Share | None = None
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    xlabel: Text = "share of samples"
    note: Text = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.total == 0:
            raise ValueError("a bracket needs at least one sample")
        return self

    @property
    def total(self) -> int:
        """All samples."""
        return (self.certified or 0) + self.undecided + self.broken + self.wrong

    @property
    def attacked(self) -> float:
        """Share that no attack broke: the truth on these samples is at most this."""
        return 1 - (self.broken + self.wrong) / self.total

    def segments(self) -> list[tuple[str, int]]:
        """Return names and counts in the order in which they stand in the bar."""
        if self.certified is None:
            return [("unbroken, not proven", self.undecided), ("broken", self.broken), ("wrong unattacked", self.wrong)]
        return [
            ("certified", self.certified),
            ("undecided", self.undecided),
            ("broken", self.broken),
            ("wrong unattacked", self.wrong),
        ]

    def sentence(self) -> str:
        """Return what the bar says, for those who do not see it."""
        level = percent(self.confidence)
        above = _stated(self.attacked, self.attacked_low, self.attacked_high)
        parts = ", ".join(f"{size:,} {name}" for name, size in self.segments())
        if self.certified is None:
            said = f"The truth is at most {above}, what no attack broke; no certificate bounds it from below."
        else:
            below = _stated(self.certified / self.total, self.certified_low, self.certified_high)
            said = f"Certified {below} ≤ the truth ≤ {above}, what no attack broke."
        return f"{said} Of {self.total:,} samples: {parts}; intervals at {level}."

    def rows(self) -> tuple[list[str], list[list[JsonValue]]]:
        """One row a segment, then the two bounds."""
        body: list[list[JsonValue]] = [[name, size, size / self.total, None, None] for name, size in self.segments()]
        if self.certified is not None:
            share = self.certified / self.total
            body.append(["the truth is at least", self.certified, share, self.certified_low, self.certified_high])
        standing = self.total - self.broken - self.wrong
        body.append(["the truth is at most", standing, self.attacked, self.attacked_low, self.attacked_high])
        return ["samples that are", "samples", "share", "low", "high"], body


def _stated(share: float, low: float | None, high: float | None) -> str:
    ends = "" if low is None and high is None else f" {interval(low, high, 'fraction')}"
    return number(share, "fraction") + ends


class Panel(Shape):
    """One of the small curves of a grid."""

    title: Text = ""
    series: list[Series]


class SmallMultiples(Shape):
    """Kind "small_multiples": a grid of small curves over common axes."""

    panels: list[Panel]
    xlabel: Text = ""
    ylabel: Text = ""
    ymin: Value | None = None
    ymax: Value | None = None

    def rows(self) -> tuple[list[str], list[list[JsonValue]]]:
        """One row a point, the panel first; the faint lines are left out."""
        lines = [(panel.title, s) for panel in self.panels for s in panel.series if not s.faint]
        banded = any(s.low is not None or s.high is not None for _, s in lines)
        columns = ["panel", "series", self.xlabel or "x", self.ylabel or "y", *(["low", "high"] if banded else [])]
        return columns, [[title, *row] for title, s in lines for row in s.points(banded=banded)]


class Side(Shape):
    """One side of a pair: a value a label, with its interval."""

    values: Values
    low: Values | None = None
    high: Values | None = None

    def entry(self, index: int) -> list[JsonValue]:
        """Return value, low and high of one label."""
        return [column[index] if column else None for column in (self.values, self.low, self.high)]


class Paired(Shape):
    """Kind "paired": the same measurements before and after something, with an interval on both sides."""

    labels: list[Text]
    before: Side
    after: Side
    before_name: Text = "before"
    after_name: Text = "after"
    xlabel: Text = ""
    ylabel: Text = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, side in (("before", self.before), ("after", self.after)):
            columns = {"values": side.values, "low": side.low, "high": side.high}
            self._same_length(len(self.labels), **{f"{name} {key}": column for key, column in columns.items()})
        return self

    def rows(self) -> tuple[list[str], list[list[JsonValue]]]:
        """One row a label."""
        ends = [f"{name}{what}" for name in (self.before_name, self.after_name) for what in ("", " (low)", " (high)")]
        body: list[list[JsonValue]] = [
            [label, *self.before.entry(i), *self.after.entry(i)] for i, label in enumerate(self.labels)
        ]
        return [self.ylabel or "label", *ends], body


class HistogramGroup(Shape):
    """How the values of one group are spread: its share in each bin."""

    name: Text = ""
    share: list[Value]
    n: int = 0


class Histogram(Shape):
    """Kind "histogram": shares of several groups over common bins, with a threshold marked where there is one."""

    edges: list[Value] = Field(min_length=2)
    series: list[HistogramGroup]
    threshold: Value | None = None
    threshold_label: Text = "threshold"
    xlabel: Text = ""
    ylabel: Text = "share of samples"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(right <= left for left, right in pairwise(self.edges)):
            raise ValueError("the edges of bins should rise")
        for group in self.series:
            self._same_length(len(self.edges) - 1, share=group.share)
        return self

    def rows(self) -> tuple[list[str], list[list[JsonValue]]]:
        """One row a bin, one column a group."""
        columns = ["from", "to", *(f"{group.name} (n = {group.n:,})" for group in self.series)]
        body: list[list[JsonValue]] = [
            [left, right, *(group.share[i] for group in self.series)] for i, (left, right) in enumerate(pairwise(self.edges))
        ]
        if self.threshold is not None:
            body.append([self.threshold_label, self.threshold, *(None for _ in self.series)])
        return columns, body


class Scatter(Shape):
    """Kind "scatter": pairs of numbers, such as predicted against true."""

    x: Values
    y: Values
    xlabel: Text = ""
    ylabel: Text = ""
    diagonal: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._same_length(len(self.x), y=self.y)
        return self

    def rows(self) -> tuple[list[str], list[list[JsonValue]]]:
        """One row a point."""
        return [self.xlabel or "x", self.ylabel or "y"], [list(pair) for pair in zip(self.x, self.y, strict=True)]


class Picture(Shape):
    """One picture: bytes of (channels, height, width) in base64, C order."""

    shape: tuple[int, int, int]
    pixels: str


class GalleryItem(Shape):
    """One sample of a gallery, with a picture for each panel."""

    id: int
    caption: Text = ""
    images: list[Picture]


class Gallery(Shape):
    """Kind "gallery": samples as pictures in panels, such as clean, adversarial and their difference."""

    panels: list[Text]
    items: list[GalleryItem]

    @model_validator(mode="after")
    def _check(self) -> Self:
        for item in self.items:
            self._same_length(len(self.panels), images=item.images)
        return self

    def rows(self) -> tuple[list[str], list[list[JsonValue]]]:
        """One row a sample: a list of captions."""
        return ["sample", "caption"], [[item.id, item.caption] for item in self.items]


class Change(Shape):
    """One row of a table before and after an attack."""

    id: int
    caption: Text = ""
    clean: Values
    adversarial: Values


class FeatureChange(Shape):
    """Kind "feature_change": what an attack changed in rows of a table; `scale` makes columns comparable."""

    columns: list[Text]
    items: list[Change]
    scale: list[Value] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._same_length(len(self.columns), scale=self.scale)
        for item in self.items:
            self._same_length(len(self.columns), clean=item.clean, adversarial=item.adversarial)
        return self

    def rows(self) -> tuple[list[str], list[list[JsonValue]]]:
        """One row a sample and column."""
        body: list[list[JsonValue]] = [
            [item.id, name, before, after, None if before is None or after is None else after - before]
            for item in self.items
            for name, before, after in zip(self.columns, item.clean, item.adversarial, strict=True)
        ]
        return ["sample", "column", "clean", "adversarial", "change"], body


_SHAPES: dict[str, type[Shape]] = {
    "bars": Bars,
    "forest": Bars,
    "matrix": Matrix,
    "reliability": Reliability,
    "curve": Curve,
    "bracket": Bracket,
    "histogram": Histogram,
    "paired": Paired,
    "small_multiples": SmallMultiples,
    "scatter": Scatter,
    "gallery": Gallery,
    "feature_change": FeatureChange,
}


def read(figure: Figure) -> Shape | None:
    """Return the figure's data in the shape of its kind; None where the kind is unknown or the data do not fit it."""
    shape = _SHAPES.get(figure.kind)
    if shape is None:
        return None
    try:
        return shape.model_validate(figure.data)
    except ValidationError:
        return None


def data_table(figure: Figure, shape: Shape | None, max_rows: int) -> DataTable:
    """Return the table of a figure's data; for data of no known shape, whatever rows can be made of them."""
    columns, rows = shape.rows() if shape is not None else _any_rows(figure.data)
    return shown_table(columns, rows, max_rows)


def shown_table(columns: list[str], rows: Sequence[Sequence[JsonValue]], max_rows: int) -> DataTable:
    """Return the first rows as text, and which columns hold nothing but numbers."""
    kept = rows[:max_rows]
    formats = [_column([row[i] for row in kept if i < len(row)]) for i in range(len(columns))]
    shown = [[formats[i](value) if i < len(formats) else cell(value) for i, value in enumerate(row)] for row in kept]
    return DataTable(columns, shown, [form is not cell for form in formats], len(rows) - len(kept))


def _column(values: list[JsonValue]) -> Callable[[JsonValue], str]:
    """Return how to write the cells of a column: numbers alike, so that they line up, and in digits that can be copied."""
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if not numbers or len(numbers) < sum(v is not None for v in values):
        return cell
    shares = max(map(abs, numbers)) <= 1 and any(isinstance(v, float) and not v.is_integer() for v in numbers)
    return _share if shares else _plain_number


def _share(value: JsonValue) -> str:
    fits = isinstance(value, (int, float)) and (value == 0 or abs(value) >= 5e-4)
    return f"{value:.4f}" if fits else _plain_number(value)


def _plain_number(value: JsonValue) -> str:
    return cell(value)


def finite_values(*columns: Sequence[float | None] | None) -> list[float]:
    """Return all numbers of the columns, without those that are missing."""
    return [v for column in columns if column is not None for v in column if v is not None and math.isfinite(v)]


def _any_rows(data: dict[str, Any]) -> tuple[list[str], list[list[JsonValue]]]:
    lengths = {len(value) for value in data.values() if isinstance(value, list)}
    if data and len(lengths) == 1 and all(isinstance(value, list) for value in data.values()):
        return list(data), [list(row) for row in zip(*data.values(), strict=True)]
    return ["key", "value"], [[key, value] for key, value in data.items()]
