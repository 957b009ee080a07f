"""The report as one HTML file that needs nothing else: no script, no remote resource, and a policy that forbids them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from audit.report import text, view
from audit.report.figures import Change, DataTable, FeatureChange, Gallery, GalleryItem, Shape, data_table, read, shown_table
from audit.report.pictures import address, decode, shrink
from audit.result import CheckResult, Figure, Result, Table

MAX_BYTES = 2_000_000
MOST_ROWS, MOST_COLUMNS = 8, 8  # of the rows that an attack changed
CONTENT_SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class Measure:
    """How much of each long thing the page repeats from result.json."""

    rows: int
    items: int
    metrics: int
    characters: int
    picture_bytes: int


# The first holds nearly every result in full; the others are for results that would come out larger than MAX_BYTES.
MEASURES = (
    Measure(rows=100, items=60, metrics=600, characters=4000, picture_bytes=900_000),
    Measure(rows=30, items=20, metrics=120, characters=800, picture_bytes=250_000),
    Measure(rows=5, items=4, metrics=20, characters=160, picture_bytes=20_000),
)


def render(result: Result) -> str:
    """Return the report as one self-contained HTML page; the same result gives the same bytes.

    Every string of the result comes out as text, whatever it holds. A result too large for a page of `MAX_BYTES` is
    shown shortened, and the page says so: result.json holds all of it.
    """
    page = ""
    for measure in MEASURES:
        page = _render(result, measure)
        if len(page) <= MAX_BYTES and len(page.encode()) <= MAX_BYTES:
            break
    return page


def templates_folder() -> Path:
    """Return the folder of the templates: inside the installed package, or in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_templates", package.parent / "reports" / "templates"):
        if (folder / "report.html").is_file():
            return folder
    raise FileNotFoundError(f"expected the report templates in {package / '_templates'}, found none; install the package again")


@dataclass(frozen=True)
class ShownPicture:
    """A picture as the page holds it."""

    address: str
    alt: str
    panel: str
    wide: int
    high: int


@dataclass(frozen=True)
class ShownItem:
    """One sample of a gallery as the page holds it."""

    id: int
    caption: str
    pictures: list[ShownPicture]


@dataclass(frozen=True)
class ChangedColumn:
    """One column that an attack changed: before, after, and the change as a share of the largest in this row."""

    name: str
    clean: str
    adversarial: str
    change: str
    share: float


@dataclass(frozen=True)
class ChangedRow:
    """One row of a table that an attack changed."""

    id: int
    caption: str
    columns: list[ChangedColumn]
    left_out: int


@dataclass(frozen=True)
class ShownFigure:
    """A figure as the page holds it: a chart, pictures, or changed rows, and always its data."""

    figure: Figure
    anchor: str
    table: DataTable
    chart: Markup | None = None
    items: list[ShownItem] = field(default_factory=list)
    changes: list[ChangedRow] = field(default_factory=list)
    note: str = ""
    wide: bool = True


@dataclass(frozen=True)
class ShownCheck:
    """A check as the page holds it."""

    check: CheckResult
    anchor: str
    figures: list[ShownFigure]
    tables: list[tuple[Table, DataTable]]
    command: str
    limits: list[view.Limit]


def _render(result: Result, measure: Measure) -> str:
    folder = templates_folder()
    environment = _environment(folder, measure)
    return environment.get_template("report.html").render(
        result=result,
        measure=measure,
        csp=CONTENT_SECURITY_POLICY,
        style=Markup((folder / "report.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file
        view=view,
        text=text,
        flaws=view.worst_findings(result),
        gaps=view.gaps(result),
        limits=view.limits(result),
        scorecard=view.scorecard(result),
        checks=_checks(result, measure),
    )


def _environment(folder: Path, measure: Measure) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: _finalize(value, measure.characters),
    )
    environment.filters["prose"] = lambda value, limit=measure.characters: _prose(value, min(limit, measure.characters))
    environment.filters["command"] = lambda value: _options(text.clip(value, measure.characters))
    environment.filters["breakable"] = _breakable
    environment.filters["clip"] = text.clip
    environment.filters["cell"] = text.cell
    environment.filters["count"] = text.count
    return environment


def _finalize(value: Any, limit: int) -> Any:
    """Make every string that a template prints visible and of bounded length, before it is escaped."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return text.clip(value, limit)
    return value


def _prose(value: str, limit: int) -> Markup:
    """Return prose as text that keeps its lines, a number with its percent sign, and an option in one piece."""
    shown = text.clip(value, limit, newlines=True)
    if shown.endswith("…") and not value.endswith("…"):
        shown = re.sub(r"\s+\S{1,20}…$", " …", shown)  # end at a word
    return _options(re.sub(r"(?<=\d) %", "\u00a0%", shown))


def _options(shown: str) -> Markup:
    """Return text whose command-line options do not break after their dashes."""
    pieces = re.split(r"((?<![\w-])--[a-z][a-z-]{1,30})", shown)
    options = (Markup('<span class="nowrap">{}</span>').format(piece) for piece in pieces[1::2])
    return Markup("").join(piece for pair in zip_longest(pieces[::2], options, fillvalue="") for piece in pair)


def _breakable(name: str) -> Markup:
    """Return a metric's id as text that may break after a dot or an underscore."""
    pieces = re.split(r"(?<=[._])", text.clip(name, 160))
    return Markup("<wbr>").join(pieces)


def _checks(result: Result, measure: Measure) -> list[ShownCheck]:
    names = view.anchors(result)
    pictures = _Pictures(result, measure)
    shown = []
    for i, check in enumerate(result.checks):
        ids = {metric.id for metric in check.metrics}
        shown.append(
            ShownCheck(
                check=check,
                anchor=names[i],
                figures=[
                    _figure(figure, f"f{i}-{j}", measure, pictures) for j, figure in enumerate(check.figures[: measure.items])
                ],
                tables=[(t, shown_table(t.columns, t.rows, measure.rows)) for t in check.tables[: measure.items]],
                command=view.command(result, check.id),
                limits=[limit for limit in view.limits(result) if limit.judgement.metric in ids],
            )
        )
    return shown


def _figure(figure: Figure, anchor: str, measure: Measure, pictures: _Pictures) -> ShownFigure:
    from audit.report import charts  # matplotlib takes a while: only a report with a chart needs it

    shape = read(figure)
    table = data_table(figure, shape, measure.rows)
    if isinstance(shape, Gallery):
        items = list(pictures.items(shape))
        note = _left_out(len(shape.items) - len(items), "sample", "that the page has no room for")
        return ShownFigure(figure, anchor, table, items=items, note=note)
    if isinstance(shape, FeatureChange):
        changes = [_changed_row(shape, index) for index in range(min(len(shape.items), MOST_ROWS))]
        return ShownFigure(figure, anchor, table, changes=changes, note=_left_out(len(shape.items) - MOST_ROWS, "row"))
    svg = None if shape is None else charts.draw(figure.kind, figure.title, shape, anchor)
    chart = None if svg is None else Markup(svg)  # noqa: S704 - written by charts, which escapes every label
    return ShownFigure(
        figure, anchor, table, chart=chart, note=_chart_note(figure, shape, svg), wide=chart is None or charts.is_wide(shape)
    )


def _chart_note(figure: Figure, shape: Shape | None, svg: str | None) -> str:
    from audit.report import charts

    if svg is None:
        return f"No drawing for these data of kind {text.clip(figure.kind, 40)!r}: the table holds them."
    labels = len(getattr(shape, "labels", []))
    if labels > charts.MAX_BARS:
        return f"The first {charts.MAX_BARS} of {labels:,} are drawn: the table holds more."
    points = len(getattr(shape, "x", []))
    if points > charts.MAX_POINTS:
        return f"The first {charts.MAX_POINTS:,} of {points:,} points are drawn."
    series = len(getattr(shape, "series", []))
    return f"The first {charts.MAX_SERIES} of {series} lines are drawn." if series > charts.MAX_SERIES else ""


def _left_out(number: int, what: str, why: str = "that the page does not repeat") -> str:
    if number <= 0:
        return ""
    return f"{number:,} more {what}{'' if number == 1 else 's'} {why}: see result.json."


def _changed_row(shape: FeatureChange, index: int) -> ChangedRow:
    item = shape.items[index]
    changed = []
    for column, (before, after) in enumerate(zip(item.clean, item.adversarial, strict=True)):
        if before is not None and after is not None and before != after:
            scale = abs(shape.scale[column]) if shape.scale and shape.scale[column] else 1.0
            changed.append(((after - before) / scale, column, before, after))
    changed.sort(key=lambda entry: (-abs(entry[0]), entry[1]))
    largest = abs(changed[0][0]) if changed else 1.0
    columns = [
        ChangedColumn(
            text.clip(shape.columns[column], 60),
            text.number(before),
            text.number(after),
            text.signed(after - before),
            size / largest,
        )
        for size, column, before, after in changed[:MOST_COLUMNS]
    ]
    return ChangedRow(item.id, _own(item), columns, max(0, len(changed) - MOST_COLUMNS))


def _own(item: GalleryItem | Change) -> str:
    """Return the caption without the sample's number, which stands before it."""
    return item.caption.removeprefix(f"sample {item.id}: ")


class _Pictures:
    """Pictures of all galleries, shrunk so that together they stay within the page's room for them."""

    def __init__(self, result: Result, measure: Measure) -> None:
        galleries = [read(f) for c in result.checks for f in c.figures if f.kind == "gallery"]
        self._limit = measure.items
        total = sum(len(i.images) for g in galleries if isinstance(g, Gallery) for i in g.items[: measure.items])
        self._room = measure.picture_bytes // max(total, 1)

    def items(self, gallery: Gallery) -> Iterator[ShownItem]:
        """Yield the samples of a gallery whose pictures can be shown."""
        for item in gallery.items[: self._limit]:
            pictures = [self._picture(gallery, item, panel) for panel in range(len(item.images))]
            yield ShownItem(item.id, _own(item), [picture for picture in pictures if picture is not None])

    def _picture(self, gallery: Gallery, item: GalleryItem, panel: int) -> ShownPicture | None:
        name = text.clip(gallery.panels[panel], 60)
        try:
            picture = decode(item.images[panel].shape, item.images[panel].pixels)
        except ValueError:
            return None
        _, high, wide = picture.shape
        shown, factor = address(picture), 1
        while len(shown) > self._room and min(picture.shape[1:]) // (factor + 1) >= 8:
            factor += 1
            shown = address(shrink(picture, factor))
        note = f", shown at 1/{factor} of its resolution" if factor > 1 else ""
        return ShownPicture(shown, f"{name}: sample {item.id}{note}", name, wide, high)
