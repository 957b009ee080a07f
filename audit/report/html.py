"""The report as one HTML file that needs nothing else: no script, no remote resource, and a policy that forbids them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from audit.report import changes, text, view
from audit.report.figures import (
    Change,
    Curve,
    DataTable,
    FeatureChange,
    Gallery,
    GalleryItem,
    Histogram,
    Shape,
    data_table,
    read,
    shown_table,
)
from audit.report.pictures import address, decode, shrink
from audit.report.words import plain_words
from audit.result import CheckResult, Evidence, Figure, Metric, Result, Table

T = TypeVar("T")

MAX_BYTES = 2_000_000
MOST_ROWS, MOST_COLUMNS = 8, 8  # of the rows that an attack changed
SHOWN_CHARTS, SHOWN_EXAMPLES = 2, 1  # of a check, before its other figures, which open on demand
SHOWN_METRICS, SHOWN_LINES, SHOWN_SAMPLES, SHOWN_ROWS = 8, 4, 6, 20  # of long lists, likewise
MOST_BESIDE = 4  # panels of a sample, for two samples to stand side by side
WORTH_FOLDING = 3  # a door for one or two more is more to read than they are
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


def render(result: Result, template: str = "report.html") -> str:
    """Return the report as one self-contained HTML page; the same result gives the same bytes.

    Every string of the result comes out as text, whatever it holds. A result too large for a page of `MAX_BYTES` is
    shown shortened, and the page says so: result.json holds all of it.
    """
    page = ""
    for measure in MEASURES:
        page = _render(result, measure, template)
        if len(page) <= MAX_BYTES and len(page.encode()) <= MAX_BYTES:
            break
    return page


def page(template: str, **said: Any) -> str:
    """Return a page of another template, with what it says, in the style of the report and as safe.

    A page that comes out larger than `MAX_BYTES` is drawn again with less: templates keep to ``measure``.
    """
    drawn = ""
    for measure in MEASURES:
        drawn = _fill(template, measure, **said)
        if len(drawn) <= MAX_BYTES and len(drawn.encode()) <= MAX_BYTES:
            break
    return drawn


def shown_figure(figure: Figure, anchor: str) -> ShownFigure:
    """Return a chart with its data, as the macro ``figure`` of parts.html takes it; `anchor` is one of a kind in the page."""
    return _figure(figure, anchor, MEASURES[0], None)


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

    address: Markup  # not text, which would be clipped
    alt: str
    panel: str
    wide: int
    high: int
    pixels_wide: int


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
    more_items: list[ShownItem] = field(default_factory=list)
    changes: list[ChangedRow] = field(default_factory=list)
    note: str = ""
    wide: bool = True


@dataclass(frozen=True)
class ShownCheck:
    """A check as the page holds it."""

    check: CheckResult
    anchor: str
    figures: list[ShownFigure]
    more_figures: list[ShownFigure]
    evidence: list[Evidence]
    more_evidence: list[Evidence]
    metrics: list[Metric]
    more_metrics: list[Metric]
    not_tested: list[str]
    more_not_tested: list[str]
    tables: list[tuple[Table, DataTable]]
    command: str
    limits: list[view.Limit]

    @property
    def titles(self) -> list[str]:
        """Titles of the figures that open on demand."""
        return [text.clip(shown.figure.title, 80) for shown in self.more_figures]


def _render(result: Result, measure: Measure, template: str) -> str:
    return _fill(
        template,
        measure,
        result=result,
        flaws=view.worst_findings(result),
        gaps=view.gaps(result),
        limits=view.limits(result),
        scorecard=view.scorecard(result),
        checks=_checks(result, measure),
        shown_rows=SHOWN_ROWS,
        changes=None if result.comparison is None else changes.shown(result.comparison),
    )


def _fill(template: str, measure: Measure, **said: Any) -> str:
    folder = templates_folder()
    return (
        _environment(folder, measure)
        .get_template(template)
        .render(
            measure=measure,
            csp=CONTENT_SECURITY_POLICY,
            style=Markup((folder / "report.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file
            view=view,
            text=text,
            **said,
        )
    )


@cache
def _environment(folder: Path, measure: Measure) -> Environment:
    """Return the templates of a folder, compiled once a process; they show what `measure` allows."""
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
    environment.filters["plain_words"] = plain_words
    environment.filters["first_upper"] = lambda words: words[:1].upper() + words[1:]
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
        drawn = [_figure(figure, f"f{i}-{j}", measure, pictures) for j, figure in enumerate(check.figures[: measure.items])]
        figures, more_figures = _first_figures(drawn)
        failed = sum(not evidence.ok for evidence in check.evidence)  # none of these stands behind a door
        tests = sorted(check.evidence, key=lambda evidence: evidence.ok)[: measure.items]
        evidence, more_evidence = _folded(tests, max(SHOWN_LINES, failed))
        not_tested, more_not_tested = _folded(list(dict.fromkeys(check.not_tested))[: measure.items], SHOWN_LINES)
        metrics, more_metrics = _first_metrics(check.metrics[: measure.metrics], result)
        shown.append(
            ShownCheck(
                check=check,
                anchor=names[i],
                figures=figures,
                more_figures=more_figures,
                evidence=evidence,
                more_evidence=more_evidence,
                metrics=metrics,
                more_metrics=more_metrics,
                not_tested=not_tested,
                more_not_tested=more_not_tested,
                tables=[(t, shown_table(t.columns, t.rows, measure.rows)) for t in check.tables[: measure.items]],
                command=view.command(result, check.id),
                limits=[limit for limit in view.limits(result) if limit.judgement.metric in ids],
            )
        )
    return shown


def _first_figures(figures: list[ShownFigure]) -> tuple[list[ShownFigure], list[ShownFigure]]:
    """Return the figures to show at once, the first charts and the first examples, and those to open on demand."""
    examples = [figure for figure in figures if figure.items or figure.changes]
    charts = [figure for figure in figures if not (figure.items or figure.changes)]
    first = {id(figure) for figure in (*charts[:SHOWN_CHARTS], *examples[:SHOWN_EXAMPLES])}
    rest = [figure for figure in figures if id(figure) not in first]
    if len(rest) == 1:
        return figures, []
    return [figure for figure in figures if id(figure) in first], rest


def _folded(entries: list[T], shown: int) -> tuple[list[T], list[T]]:
    """Return the entries of a list to show at once, and those to open on demand."""
    return (entries, []) if len(entries) < shown + WORTH_FOLDING else (entries[:shown], entries[shown:])


def _first_metrics(metrics: list[Metric], result: Result) -> tuple[list[Metric], list[Metric]]:
    """Return the metrics to show at once: all of a short list; else the headlines, those with a limit, and the first."""
    if len(metrics) < SHOWN_METRICS + WORTH_FOLDING:
        return metrics, []
    limited = {judgement.metric for judgement in result.policy}
    chosen = [m.id for m in metrics if m.params.get("headline") is True or m.id in limited]
    first = set(chosen + [m.id for m in metrics if m.id not in chosen][: max(0, SHOWN_METRICS - len(chosen))])
    return [m for m in metrics if m.id in first], [m for m in metrics if m.id not in first]


def _figure(figure: Figure, anchor: str, measure: Measure, pictures: _Pictures | None) -> ShownFigure:
    from audit.report import charts  # matplotlib takes a while: only a report with a chart needs it

    shape = read(figure)
    table = data_table(figure, shape, measure.rows)
    if isinstance(shape, Gallery) and pictures is not None:
        items = list(pictures.items(shape))
        note = _left_out(len(shape.items) - len(items), "sample", "that the page has no room for")
        first, rest = _folded(items, SHOWN_SAMPLES // 2 if len(shape.panels) > MOST_BESIDE else SHOWN_SAMPLES)
        return ShownFigure(figure, anchor, table, items=first, more_items=rest, note=note)
    if isinstance(shape, FeatureChange):
        rows = [_changed_row(shape, index) for index in range(min(len(shape.items), MOST_ROWS))]
        return ShownFigure(figure, anchor, table, changes=rows, note=_left_out(len(shape.items) - MOST_ROWS, "row"))
    svg = None if shape is None else charts.draw(figure.kind, figure.title, shape, anchor)
    chart = None if svg is None else Markup(svg)  # noqa: S704 - written by charts, which escapes every label
    return ShownFigure(
        figure, anchor, table, chart=chart, note=_chart_note(figure, shape, svg), wide=chart is None or charts.is_wide(shape)
    )


def _chart_note(figure: Figure, shape: Shape | None, svg: str | None) -> str:
    if svg is None:
        return f"No drawing for these data of kind {text.clip(figure.kind, 40)!r}: the table holds them."
    said = [str(getattr(shape, "note", "")), *_drawn_notes(shape)]
    return " ".join(note for note in said if note)


def _drawn_notes(shape: Shape | None) -> Iterator[str]:
    """Say what of the data the chart leaves out."""
    from audit.report import charts

    labels = len(getattr(shape, "labels", []))
    if labels > charts.MAX_BARS:
        yield f"The first {charts.MAX_BARS} of {labels:,} are drawn: the table holds more."
    points = len(getattr(shape, "x", []))
    if points > charts.MAX_POINTS:
        yield f"The first {charts.MAX_POINTS:,} of {points:,} points are drawn."
    panels = len(getattr(shape, "panels", []))
    if panels > charts.MAX_PANELS:
        yield f"The first {charts.MAX_PANELS} of {panels} small charts are drawn."
    if isinstance(shape, Curve | Histogram):
        yield from _line_notes(shape)


def _line_notes(shape: Curve | Histogram) -> Iterator[str]:
    from audit.report import charts

    faint = sum(line.faint for line in shape.series) if isinstance(shape, Curve) else 0
    named = len(shape.series) - faint
    if named > charts.MAX_SERIES:
        yield f"The first {charts.MAX_SERIES} of {named} lines are drawn."
    if faint > charts.MAX_FAINT:
        yield f"The first {charts.MAX_FAINT} of {faint:,} thin lines are drawn."


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
    """Pictures of all galleries, the largest shrunk so that together they stay within the page's room for them."""

    def __init__(self, result: Result, measure: Measure) -> None:
        self._limit = measure.items
        galleries = [read(f) for c in result.checks for f in c.figures[: measure.items] if f.kind == "gallery"]
        sizes = [
            size
            for gallery in galleries
            if isinstance(gallery, Gallery)
            for item in gallery.items[: measure.items]
            for size in self._sizes(item)
        ]
        self._room = _fair_share(sizes, measure.picture_bytes)

    def items(self, gallery: Gallery) -> Iterator[ShownItem]:
        """Yield the samples of a gallery whose pictures can be shown."""
        for item in gallery.items[: self._limit]:
            pictures = [self._picture(gallery, item, panel) for panel in range(len(item.images))]
            yield ShownItem(item.id, _own(item), [picture for picture in pictures if picture is not None])

    def _sizes(self, item: GalleryItem) -> Iterator[int]:
        for image in item.images:
            try:
                yield len(address(decode(image.shape, image.pixels)))
            except ValueError:
                continue

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
        return ShownPicture(
            Markup(shown),  # noqa: S704 - base64 of our own PNG
            f"{name}: sample {item.id}{note}",
            name,
            wide,
            high,
            wide // factor,
        )


def _fair_share(sizes: list[int], room: int) -> int:
    """Return the largest size such that all pictures, cut down to it where they are larger, fit into the room."""
    left = room
    for i, size in enumerate(sorted(sizes)):
        share = left // (len(sizes) - i)
        if size > share:
            return share
        left -= size
    return room
