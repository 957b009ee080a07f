"""Charts: the data of a figure as inline SVG with real text, drawn by matplotlib in colours that the style sheet decides.

matplotlib draws with sentinel colours; each becomes a CSS variable in the SVG, so that one drawing serves light, dark and
paper. Its own style element, metadata, fonts and ids are dropped: inside a page they would reach beyond the chart.
"""

from __future__ import annotations

import io
import math
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from itertools import pairwise
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator
from matplotlib.transforms import Affine2D, Transform

from audit.report.figures import (
    Bars,
    Bracket,
    Curve,
    Histogram,
    HistogramGroup,
    Mark,
    Matrix,
    Paired,
    Panel,
    Reliability,
    Scatter,
    Series,
    Shape,
    Side,
    SmallMultiples,
    finite_values,
)
from audit.report.text import clip, count, interval, number, signed, width

INK, MUTED, RULE, ACCENT, WARM, BAR = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
PLUS, MINUS = "#070707", "#080808"
SERIES = ["#0a0101", "#0a0202", "#0a0303", "#0a0404", "#0a0505", "#0a0606"]
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    ACCENT: "var(--accent)",
    WARM: "var(--warm)",
    BAR: "var(--bar)",
    PLUS: "var(--plus)",
    MINUS: "var(--minus)",
    **{color: f"var(--series-{i})" for i, color in enumerate(SERIES, 1)},
}
_DASHES: list[Any] = ["-", (0, (5, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)), (0, (1, 1)), (0, (9, 3))]
_MARKERS = ["o", "s", "^", "D", "v", "P"]

MAX_BARS, MAX_CLASSES, MAX_POINTS, MAX_SERIES, MAX_FAINT, MAX_PANELS = 60, 100, 2000, 12, 100, 24
MOST_STEPS = 32  # of the other unit of an axis, for its ticks to stand at whole ones
_WIDE, _HALF, _ROW, _CHARACTER = 720, 512, 24, 6.6
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "audit",
    "text.parse_math": False,  # a label `$\frac{}$` is a label
    "text.usetex": False,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "font.family": ["DejaVu Sans"],
    "font.size": 12.0,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "grid.color": RULE,
    "lines.linewidth": 1.8,
    "path.simplify": False,
}


def draw(kind: str, title: str, shape: Shape, prefix: str) -> str | None:
    """Return the chart as an ``<svg>`` element, or None where this kind has no drawing or the data cannot be drawn.

    Parameters
    ----------
    kind : str
        The figure's kind.
    title : str
        Stands in the label that a screen reader speaks.
    shape : Shape
        The figure's data, as `audit.report.figures.read` gives them.
    prefix : str
        Begins every id in the SVG: one of a kind in the page.
    """
    # Labels in scripts that matplotlib's font lacks make it warn; the browser has the fonts, and nothing is laid out by them.
    with warnings.catch_warnings(), _house_style():
        warnings.simplefilter("ignore")
        try:
            canvas = _canvas(kind, shape)
            if canvas is None:
                return None
            return _inline(canvas, f"{title}. {describe(kind, shape)}", prefix)
        except (ValueError, ArithmeticError, RuntimeError, MemoryError, IndexError, TypeError):
            return None  # the data table beside it shows every value: a chart that fails must not take the report with it


def is_wide(shape: Shape | None) -> bool:
    """Return whether the chart takes the whole width of the page: long labels, many classes, a grid."""
    if isinstance(shape, Bars | Paired):
        return max(map(width, shape.labels), default=0.0) > 18
    if isinstance(shape, Bracket):
        return True
    if isinstance(shape, SmallMultiples):
        return len(shape.panels) > 2
    return isinstance(shape, Matrix) and len(shape.columns) > 20


def describe(kind: str, shape: Shape) -> str:
    """Return what the chart shows in one sentence, for those who cannot see it."""
    if isinstance(shape, Bars):
        return _describe_bars(kind, shape)
    say = _SENTENCES.get(type(shape))
    return say(shape) if say is not None else ""


def _describe_lines(shape: Curve) -> str:
    named = [line for line in shape.series if not line.faint]
    faint = len(shape.series) - len(named)
    names = ", ".join(clip(line.name, 40) for line in named[:MAX_SERIES])
    thin = f"{' and ' if names else ''}{count(faint)} thin lines" if faint else ""
    return f"{shape.ylabel} over {shape.xlabel}: {names}{thin}."


def _describe_pairs(shape: Paired) -> str:
    pairs = [(after - before, label) for before, after, label in zip(shape.before.values, shape.after.values, shape.labels,
             strict=True) if before is not None and after is not None]  # fmt: skip
    if not pairs:
        return f"{len(shape.labels)} pairs, none with both values."
    down, up = min(pairs), max(pairs)
    unit = _unit([*shape.before.values, *shape.after.values])
    return (
        f"{len(shape.labels)} pairs, {clip(shape.before_name, 40)} and {clip(shape.after_name, 40)}; changes from "
        f"{signed(down[0], unit)} ({clip(down[1], 40)}) to {signed(up[0], unit)} ({clip(up[1], 40)})."
    )


def _describe_histogram(shape: Histogram) -> str:
    names = ", ".join(f"{clip(group.name, 40)} ({count(group.n)})" for group in shape.series[:MAX_SERIES])
    mark = "" if shape.threshold is None else f"; {clip(shape.threshold_label, 40)} at {number(shape.threshold)}"
    return f"{shape.ylabel} over {shape.xlabel} in {len(shape.edges) - 1} bins: {names}{mark}."


_SENTENCES: dict[type[Shape], Callable[[Any], str]] = {
    Matrix: lambda s: f"Matrix of {len(s.row_names)} rows ({s.ylabel}) and {len(s.columns)} columns ({s.xlabel}).",
    Reliability: lambda s: f"Accuracy against confidence in {len(s.n)} bins, {count(sum(s.n))} samples.",
    Curve: _describe_lines,
    Bracket: lambda s: s.sentence(),
    SmallMultiples: lambda s: (
        f"{len(s.panels)} small charts of {s.ylabel} over {s.xlabel}: "
        f"{', '.join(clip(panel.title, 40) for panel in s.panels[:MAX_PANELS])}."
    ),
    Paired: _describe_pairs,
    Histogram: _describe_histogram,
    Scatter: lambda s: f"{count(len(s.x))} points, {s.ylabel} against {s.xlabel}.",
}


def _describe_bars(kind: str, shape: Bars) -> str:
    known = [(value, label) for value, label in zip(shape.values, shape.labels, strict=True) if value is not None]
    what = "points with intervals" if kind == "forest" else "bars"
    if not known:
        return f"{len(shape.labels)} {what}, none with a value."
    low, high, unit = min(known), max(known), _unit(shape.values)
    return (
        f"{len(shape.labels)} {what}; lowest {number(low[0], unit)} ({clip(low[1], 40)}), "
        f"highest {number(high[0], unit)} ({clip(high[1], 40)})."
    )


def _canvas(kind: str, shape: Shape) -> Canvas | None:
    if isinstance(shape, Bars):
        return _rows(shape, points=kind == "forest") if shape.labels else None
    painter = _PAINTERS.get(type(shape))
    return painter(shape) if painter is not None else None


@contextmanager
def _house_style() -> Iterator[None]:
    # from matplotlib's own defaults, so that nobody's matplotlibrc changes a report
    rc: Any = {key: value for key, value in mpl.rcParamsDefault.items() if not key.startswith("backend")}
    with mpl.rc_context(rc | _STYLE):
        yield


def _axes(wide: float, high: float, left: float, top: float, right: float, bottom: float) -> tuple[Canvas, Axes]:
    """Return a canvas of `wide` by `high` CSS pixels with one plain pair of axes inside the margins."""
    canvas = _blank(wide, high)
    return canvas, _add_axes(canvas, wide, high, left, top, right, bottom)


def _blank(wide: float, high: float) -> Canvas:
    canvas = Canvas(figsize=(wide / 72, high / 72), dpi=72, facecolor="none")
    FigureCanvasSVG(canvas)
    return canvas


def _add_axes(canvas: Canvas, wide: float, high: float, left: float, top: float, right: float, bottom: float) -> Axes:
    box = (left / wide, bottom / high, (wide - left - right) / wide, (high - top - bottom) / high)
    axes = canvas.add_axes(box, facecolor="none")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, pad=6)
    axes.set_axisbelow(True)
    axes.grid(visible=True, linewidth=0.8)
    return axes


# --- bars and forest ---------------------------------------------------------------------------------------------------


def _rows(shape: Bars, *, points: bool) -> Canvas:
    shown = min(len(shape.labels), MAX_BARS)
    labels = [clip(label, 34) for label in shape.labels[:shown]]
    left = min(260.0, 26 + _CHARACTER * max(width(label) for label in labels))
    right = 76.0 + (70 if shape.n else 0)
    top, bottom = (30 if shape.reference is not None or shape.n else 10), 48
    high = top + bottom + _ROW * shown
    canvas, axes = _axes(_WIDE if is_wide(shape) else _HALF, high, left, top, right, bottom)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(shown - 0.5, -0.5)
    axes.set_yticks(range(shown), labels)
    axes.set_xlabel(clip(shape.xlabel, 80), labelpad=8)
    axes.set_xlim(*_value_range(shape, shown, from_zero=not points))
    axes.xaxis.set_major_locator(MaxNLocator(6 if is_wide(shape) else 4))
    for row in range(shown):
        _row(axes, shape, row, points=points)
    if shape.signed:
        axes.axvline(0, color=INK, linewidth=1, clip_on=False)
    _margin_columns(axes, shape, shown)
    _reference_line(axes, shape)
    return canvas


def _row(axes: Axes, shape: Bars, row: int, *, points: bool) -> None:
    value = shape.values[row]
    low = shape.low[row] if shape.low else None
    high = shape.high[row] if shape.high else None
    if value is not None and not points:
        color = BAR if not shape.signed else PLUS if value >= 0 else MINUS
        axes.barh(row, value, height=0.62, color=color, linewidth=0, clip_on=False)
    if low is not None and high is not None:
        axes.plot([low, high], [row, row], color=ACCENT if points else INK, linewidth=1.6, clip_on=False)
        for end in (low, high):
            axes.plot([end, end], [row - 0.16, row + 0.16], color=ACCENT if points else INK, linewidth=1.6, clip_on=False)
    if value is not None and points:
        axes.plot([value], [row], "o", color=ACCENT, markersize=8, clip_on=False)


def _margin_columns(axes: Axes, shape: Bars, shown: int) -> None:
    place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
    unit = _unit(shape.values)
    for row in range(shown):
        written = signed(shape.values[row], unit) if shape.signed else number(shape.values[row], unit)
        axes.annotate(written, (1, row), xytext=(64, 0), ha="right", **place)
        if shape.n:
            axes.annotate(count(shape.n[row]), (1, row), xytext=(134, 0), ha="right", color=MUTED, **place)
    if shape.n:
        head: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "color": MUTED, "ha": "right"}
        axes.annotate("value", (1, 1), xytext=(64, 8), **head)
        axes.annotate("samples", (1, 1), xytext=(134, 8), **head)


def _reference_line(axes: Axes, shape: Bars) -> None:
    if shape.reference is None:
        return
    axes.axvline(shape.reference, color=WARM, linewidth=1.4, linestyle=(0, (4, 3)), clip_on=False)
    low, high = axes.get_xlim()
    share = (shape.reference - low) / (high - low)
    side = "left" if share < 0.15 else "right" if share > 0.85 else "center"
    name = f"{clip(shape.reference_label, 30)} {number(shape.reference, _unit([*shape.values, shape.reference]))}"
    axes.annotate(
        name, (shape.reference, 1), xycoords=("data", "axes fraction"), xytext=(0, 8), textcoords="offset points",
        ha=side, color=WARM,
    )  # fmt: skip


# --- before and after --------------------------------------------------------------------------------------------------


_PAIR_ROW = 38
_SIDES = ((SERIES[1], "D", -0.19), (SERIES[0], "o", 0.19))  # color, marker and place differ together


def _paired(shape: Paired) -> Canvas | None:
    sides = (shape.before, shape.after)
    shown = min(len(shape.labels), MAX_BARS)
    if not any(finite_values(side.values[:shown]) for side in sides):
        return None
    labels = [clip(label, 34) for label in shape.labels[:shown]]
    left = min(260.0, 26 + _CHARACTER * max(width(label) for label in labels))
    top, bottom, right = 34, 48, 92
    canvas, axes = _axes(_WIDE if is_wide(shape) else _HALF, top + bottom + _PAIR_ROW * shown, left, top, right, bottom)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(shown - 0.5, -0.5)
    axes.set_yticks(range(shown), labels)
    axes.set_xlabel(clip(shape.xlabel, 80), labelpad=8)
    axes.set_xlim(*_padded(finite_values(*(c[:shown] for side in sides for c in (side.values, side.low, side.high) if c))))
    axes.xaxis.set_major_locator(MaxNLocator(6 if is_wide(shape) else 4))
    axes.tick_params(axis="y", pad=14)  # a point at the left end does not touch its label
    for row in range(shown):
        _dumbbell(axes, sides, row)
    _pair_values(axes, sides, shown)
    _pair_legend(axes, shape, left, shown)
    return canvas


def _dumbbell(axes: Axes, sides: tuple[Side, Side], row: int) -> None:
    places = [(side.values[row], row + shift) for side, (_, _, shift) in zip(sides, _SIDES, strict=True)]
    known = [(value, place) for value, place in places if value is not None]
    if len(known) == 2:
        axes.plot([value for value, _ in known], [place for _, place in known], color=MUTED, linewidth=1, clip_on=False)
    for side, (color, marker, shift) in zip(sides, _SIDES, strict=True):
        value, low, high = (c[row] if c else None for c in (side.values, side.low, side.high))
        if low is not None and high is not None:
            axes.plot([low, high], [row + shift] * 2, color=color, linewidth=1.6, clip_on=False)
        if value is not None:
            axes.plot([value], [row + shift], marker, color=color, markersize=7, clip_on=False)


def _pair_values(axes: Axes, sides: tuple[Side, Side], shown: int) -> None:
    unit = _unit([value for side in sides for value in side.values])
    place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
    for row in range(shown):
        for side, (color, _, shift) in zip(sides, _SIDES, strict=True):
            written = number(side.values[row], unit)
            axes.annotate(written, (1, row + shift), xytext=(80, 0), ha="right", color=color, fontsize=11, **place)


def _pair_legend(axes: Axes, shape: Paired, left: float, shown: int) -> None:
    x, y = -(left - 16), _PAIR_ROW * shown + 18
    for name, (color, marker, _) in zip((shape.before_name, shape.after_name), _SIDES, strict=True):
        at: dict[str, Any] = {"xycoords": "axes points", "textcoords": "offset points", "va": "center"}
        axes.plot([x], [y], marker, color=color, markersize=7, clip_on=False, transform=_points(axes))
        axes.annotate(clip(name, 26), (0, 0), xytext=(x + 11, y), **at)
        x += 44 + _CHARACTER * width(clip(name, 26))


def _points(axes: Axes) -> Transform:
    """Return CSS pixels from the lower left corner of the axes."""
    box = axes.get_window_extent()
    return Affine2D().translate(box.x0, box.y0)


def _unit(values: Sequence[float | None]) -> str:
    # values that may be shares are all written with three decimals, so that they line up
    known = finite_values(values)
    return "fraction" if known and max(map(abs, known)) <= 1 and not all(v.is_integer() for v in known) else ""


def _value_range(shape: Bars, shown: int, *, from_zero: bool) -> tuple[float, float]:
    columns = [column[:shown] if column else None for column in (shape.values, shape.low, shape.high)]
    values = finite_values(*columns, [shape.reference])
    return _padded(values, from_zero=from_zero)


def _padded(values: Sequence[float], *, from_zero: bool = False) -> tuple[float, float]:
    """Return an axis that holds the values: all of [0, 1] where they fill most of it, else some room."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    if low >= 0 and high <= 1 and (high > 0.7 if from_zero else high - low > 0.5):
        return 0.0, 1.0
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    lower = low if low == 0 and from_zero else low - room
    upper = high if high == 0 and from_zero else high + room
    if low >= 0 and high <= 1:
        lower, upper = max(lower, 0.0), min(upper, 1.0)
    return lower, upper


# --- matrix ------------------------------------------------------------------------------------------------------------


def _matrix(shape: Matrix) -> Canvas | None:
    rows, columns = len(shape.row_names), len(shape.columns)
    if not (0 < rows <= MAX_CLASSES and 0 < columns <= MAX_CLASSES):
        return None
    row_labels, column_labels = [clip(name, 22) for name in shape.row_names], [clip(name, 22) for name in shape.columns]
    left = 44 + _CHARACTER * max(width(label) for label in row_labels)
    wide = _WIDE if is_wide(shape) else _HALF
    side = max(4.0, min(46.0 if columns > 4 else 72.0, (wide - left - 12) / columns, 760 / rows))
    upright = max(width(label) for label in column_labels) * _CHARACTER > side - 4
    bottom = 40 + (_CHARACTER * max(width(label) for label in column_labels) if upright else 16)
    canvas, axes = _axes(left + side * columns + 12, side * rows + bottom + 8, left, 8, 12, bottom)
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    step_x, step_y = max(1, round(16 / side)), max(1, round(16 / side))
    axes.set_xticks([j + 0.5 for j in range(0, columns, step_x)], column_labels[::step_x], rotation=90 if upright else 0)
    axes.set_yticks([i + 0.5 for i in range(0, rows, step_y)], row_labels[::step_y])
    axes.set_xlabel(clip(shape.xlabel, 60), labelpad=6)
    axes.set_ylabel(clip(shape.ylabel, 60), labelpad=6)
    axes.tick_params(axis="x", labelcolor=INK)
    _cells(axes, shape, side)
    if max(rows, columns) <= 15:
        _cell_texts(axes, shape)
    return canvas


def _cells(axes: Axes, shape: Matrix, side: float) -> None:
    """Fill cells by their share of the row, one path for each of eight strengths: a page must not hold 10,000 rectangles."""
    levels: dict[tuple[str, int], list[tuple[int, int]]] = {}
    # One more column may hold what was no class; fractions count nothing, so that off the diagonal they are no errors.
    counts = all(value is None or float(value).is_integer() for row in shape.values for value in row)
    confusion = counts and shape.row_names == shape.columns[: len(shape.row_names)]
    largest = max((abs(v) for v in finite_values(*shape.values)), default=0.0)
    for i, row in enumerate(shape.values):
        whole = sum(abs(v) for v in finite_values(row)) if confusion else largest
        for j, value in enumerate(row):
            # the root keeps an error of a few percent visible beside a diagonal of ninety
            level = round(8 * math.sqrt(abs(value) / whole)) if value and whole else 0
            color = WARM if (confusion and i != j) or (value or 0) < 0 else ACCENT
            if value:
                levels.setdefault((color, max(level, 1)), []).append((i, j))
    gap = 0.0 if max(len(shape.columns), len(shape.row_names)) > 40 else 0.03
    for (color, level), cells in sorted(levels.items()):
        look: dict[str, Any] = {"facecolor": "none", "edgecolor": color, "alpha": 0.04 + 0.065 * level, "capstyle": "butt"}
        axes.add_patch(PathPatch(_strokes(cells, gap), linewidth=side * (1 - 2 * gap), clip_on=False, **look))
    wide, high = len(shape.columns), len(shape.row_names)
    frame = Outline([(0, 0), (wide, 0), (wide, high), (0, high), (0, 0)])
    axes.add_patch(PathPatch(frame, facecolor="none", edgecolor=RULE, linewidth=1, clip_on=False))


def _strokes(cells: Sequence[tuple[int, int]], gap: float) -> Outline:
    # a stroke as thick as a cell takes a third of the bytes of a square
    points = [(x, i + 0.5) for i, j in cells for x in (j + gap, j + 1 - gap)]
    return Outline(points, [Outline.MOVETO, Outline.LINETO] * len(cells))


def _cell_texts(axes: Axes, shape: Matrix) -> None:
    unit = _unit([value for row in shape.values for value in row])
    for i, row in enumerate(shape.values):
        for j, value in enumerate(row):
            axes.text(
                j + 0.5, i + 0.5, number(value, unit), ha="center", va="center", fontsize=11, color=INK if value else MUTED
            )


# --- reliability -------------------------------------------------------------------------------------------------------


def _reliability(shape: Reliability) -> Canvas | None:
    if not shape.n:
        return None
    high, left, top = 528, 64, 30
    canvas, axes = _axes(_HALF, high, left, top, 24, 150)
    start = _calibration_start(shape)
    axes.set_xlim(start, 1)
    axes.set_ylim(start, 1)
    dashed: dict[str, Any] = {"color": WARM, "linewidth": 1.4, "linestyle": (0, (4, 3)), "clip_on": False}
    axes.plot([start, 1], [start, 1], **dashed)
    above = 1 + 14 / (high - top - 150)
    axes.plot([0, 0.06], [above, above], transform=axes.transAxes, **dashed)
    axes.text(0.075, above, "right as often as it says", color=WARM, va="center", transform=axes.transAxes)
    for x, low, upper in zip(shape.confidence, shape.low, shape.high, strict=True):
        if x is not None and low is not None and upper is not None:
            axes.plot([x, x], [low, upper], color=ACCENT, linewidth=1.6, clip_on=False)
    points = [(x, y) for x, y in zip(shape.confidence, shape.accuracy, strict=True) if x is not None and y is not None]
    axes.plot([x for x, _ in points], [y for _, y in points], "-o", color=ACCENT, markersize=7, clip_on=False)
    axes.set_ylabel(clip(shape.ylabel, 60), labelpad=8)
    axes.tick_params(axis="y", labelcolor=MUTED)
    axes.set_xticklabels([])
    _counts(_add_axes(canvas, _HALF, high, left, high - 132, 24, 48), shape, start)
    return canvas


def _counts(axes: Axes, shape: Reliability, start: float) -> None:
    bins = sorted((x, n) for x, n in zip(shape.confidence, shape.n, strict=True) if x is not None)
    # bins of equal mass crowd near 1: each bar is as wide as its distance to the next allows
    steps = [0.06 * (1 - start), *(after - before for (before, _), (after, _) in pairwise(bins)), 0.06 * (1 - start)]
    widths = [max(0.8 * min(one, other, steps[0]), 0.004 * (1 - start)) for one, other in pairwise(steps)]
    axes.bar([x for x, _ in bins], [n for _, n in bins], width=widths[: len(bins)], color=BAR)
    axes.grid(visible=False, axis="x")
    axes.set_xlim(start, 1)
    axes.set_ylim(0, 1.08 * max([n for _, n in bins] or [0]) or 1)
    axes.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    axes.tick_params(axis="y", labelcolor=MUTED)
    axes.set_ylabel("samples", labelpad=8)
    axes.set_xlabel(clip(shape.xlabel, 60), labelpad=8)


def _calibration_start(shape: Reliability) -> float:
    # a network that is sure of nearly everything has all its points in one corner of [0, 1]
    least = min(finite_values(shape.confidence, shape.accuracy, shape.low), default=0.0)
    return max(0.0, min(0.9, math.floor(10 * least) / 10)) if least >= 0.2 else 0.0


# --- curve and scatter -------------------------------------------------------------------------------------------------


_CURVE_HEIGHT = 268


def _curve(shape: Curve) -> Canvas | None:
    named = [line for line in shape.series if not line.faint][:MAX_SERIES]
    faint = [line for line in shape.series if line.faint][:MAX_FAINT]
    if not any(finite_values(line.y) for line in (*named, *faint)):
        return None
    names = [line.name for line in named] if len(named) > 1 or any(line.name for line in named) else []
    columns, legend_rows = _legend_size(names)
    room = 20 if shape.marks else 0
    top = 12 + 20 * legend_rows + room
    bottom = 52 if shape.second_scale is None else 68
    canvas, axes = _axes(_HALF, top + _CURVE_HEIGHT + bottom, 64, top, 24, bottom)
    _lines(axes, faint, named)
    xs, ys = _extent((*named, *faint))
    xs += finite_values([shape.xmin, shape.xmax])
    axes.set_xlim(*((min(xs), max(xs)) if min(xs) < max(xs) else _padded(xs)))
    low, high = _padded(finite_values(ys, [shape.ymin, shape.ymax]))
    axes.set_ylim(low if shape.ymin is None else shape.ymin, high if shape.ymax is None else shape.ymax)
    _plane(axes, shape.xlabel, shape.ylabel)
    if shape.whole:
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    if shape.second_scale is not None:
        axes.xaxis.set_major_locator(_locator(axes.get_xlim(), shape.second_scale))
        axes.xaxis.set_major_formatter(FuncFormatter(_two_scales(shape.second_scale, shape.second_unit)))
    _marks(axes, shape.marks)
    _legend(axes, names, columns, above=room)
    return canvas


def _locator(limits: tuple[float, float], times: float) -> FixedLocator | MaxNLocator:
    """Return where ticks stand: at round values of the axis, or of the other unit where there are few of these."""
    low, high = limits[0] * times, limits[1] * times
    if not 0 < high - low <= MOST_STEPS:
        return MaxNLocator(7)
    return FixedLocator([t / times for t in MaxNLocator(7, integer=True).tick_values(low, high) if low <= t <= high])


def _two_scales(times: float, unit: str) -> Callable[[float, Any], str]:
    """Return how to write a tick: its value, and below it the value in another unit."""
    short = clip(unit, 8)
    return lambda value, _: f"{value:.3g}\n{value * times:.3g}{short}"


def _marks(axes: Axes, marks: Sequence[Mark]) -> None:
    low, high = axes.get_xlim()
    inside = [mark for mark in marks if low <= mark.x <= high][:MAX_FAINT]
    place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    for mark in inside:
        axes.axvline(mark.x, color=WARM, linewidth=1, linestyle=(0, (2, 3)), clip_on=False)
        if len(inside) <= 5:  # the words of more would run into each other
            alone = len(inside) == 1
            side = _side((mark.x - low) / (high - low)) if alone else "center"
            axes.annotate(clip(mark.label, 34 if alone else 14), (mark.x, 1), xytext=(0, 8), ha=side, color=WARM, **place)


def _side(share: float) -> str:
    """Return how a word over an axis is aligned to its place there, so that it does not reach beyond the chart."""
    return "left" if share < 0.25 else "right" if share > 0.75 else "center"


def _plane(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.tick_params(axis="y", labelcolor=MUTED)
    axes.set_xlabel(clip(xlabel, 80), labelpad=8)
    axes.set_ylabel(clip(ylabel, 60), labelpad=8)


def _lines(axes: Axes, faint: Sequence[Series], named: Sequence[Series]) -> None:
    for line in faint:
        axes.plot(line.x, _gaps(line.y), color=MUTED, alpha=0.3, linewidth=0.8, clip_on=False)
    for index, line in enumerate(named):
        _line(axes, line, index)


def _extent(lines: Sequence[Series]) -> tuple[list[float], list[float]]:
    ys = finite_values(*(column for line in lines for column in (line.y, line.low, line.high)))
    return finite_values(*(line.x for line in lines)), ys


def _look(index: int) -> dict[str, Any]:
    # color, dashes and marker differ together, so that lines can be told apart without seeing color
    marker = _MARKERS[(index + index // 6) % 6]
    return {"color": SERIES[index % 6], "linestyle": _DASHES[index % 6], "marker": marker, "markersize": 6, "clip_on": False}


def _line(axes: Axes, line: Series, index: int, **changes: Any) -> None:
    look = {**_look(index), **changes}
    if line.step:
        look |= {"drawstyle": f"steps-{line.step}"}
    if line.low and line.high:
        band: dict[str, Any] = {"color": look["color"], "alpha": 0.16, "linewidth": 0, "step": line.step}
        axes.fill_between(line.x, _gaps(line.low), _gaps(line.high), **band)
        if len(line.x) == 1:  # a band over a single point has no width
            axes.plot([line.x[0]] * 2, _gaps([*line.low, *line.high]), color=look["color"], linewidth=1.6, clip_on=False)
    axes.plot(line.x, _gaps(line.y), markevery=max(1, len(line.x) // 24), **look)


def _gaps(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _legend_size(names: Sequence[str]) -> tuple[int, int]:
    """Return the columns and rows of the legend."""
    columns = 1 if any(width(name) > 24 for name in names) else 2
    return columns, -(-len(names) // columns)


def _legend(axes: Axes, names: Sequence[str], columns: int, *, above: float = 0) -> None:
    """Write the names `above` pixels over the axes, each behind a piece of its line."""
    rows = -(-len(names) // columns)
    for index, name in enumerate(names):
        x, y = 0.5 * (index % columns), 1 + (14 + above + 20 * (rows - 1 - index // columns)) / _CURVE_HEIGHT
        axes.plot([x, x + 0.025, x + 0.05], [y] * 3, transform=axes.transAxes, markevery=[1], **_look(index))
        axes.text(x + 0.062, y, clip(name, 50), va="center", transform=axes.transAxes)


# --- bracket -------------------------------------------------------------------------------------------------------------


# Filling and strength differ with the colour, and each part has its word: none is told by colour alone.
_PARTS: dict[str, tuple[str, float]] = {
    "certified": (ACCENT, 0.85),
    "undecided": (ACCENT, 0.3),
    "unbroken, not proven": (ACCENT, 0.3),
    "broken": (WARM, 0.45),
    "wrong unattacked": (WARM, 0.95),
}
_BRACKET_ROW = 46


def _bracket(shape: Bracket) -> Canvas:
    left, right, top, bottom = 140.0, 158.0, 12.0, 48 + 26.0
    rows = 3 if shape.certified is not None else 2
    canvas, axes = _axes(_WIDE, top + _BRACKET_ROW * rows + bottom, left, top, right, bottom)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel(clip(shape.xlabel, 60), labelpad=8)
    bar = rows - 2
    _bracket_bar(axes, shape, bar, _WIDE - left - right)
    names = ["all samples", "under attack: at most"]
    if shape.certified is not None:
        names.insert(0, "certified: at least")
        ends = shape.certified_low, shape.certified_high
        _bound(axes, shape.certified / shape.total, *ends, ACCENT, row=bar - 1, bar=bar)
    _bound(axes, shape.attacked, shape.attacked_low, shape.attacked_high, WARM, row=bar + 1, bar=bar)
    axes.set_yticks(range(rows), names)
    _bracket_legend(axes, shape, left)
    return canvas


def _bracket_bar(axes: Axes, shape: Bracket, row: int, wide: float) -> None:
    start = 0.0
    for name, size in shape.segments():
        share, (color, strength) = size / shape.total, _PARTS[name]
        if size:
            axes.barh(row, share, left=start, height=0.6, color=color, alpha=strength, linewidth=0, clip_on=False)
            axes.plot([start + share] * 2, [row - 0.3, row + 0.3], color=INK, linewidth=1, clip_on=False)
            if share * wide > 6 + 0.9 * _CHARACTER * width(name):
                place: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "bottom"}
                axes.annotate(name, (start + share / 2, row - 0.3), xytext=(0, 2), color=MUTED, fontsize=10.5, **place)
        start += share


def _bound(axes: Axes, value: float, low: float | None, high: float | None, color: str, *, row: int, bar: int) -> None:
    """Draw one bound with its interval, joined to the place in the bar where it stands."""
    axes.plot([value, value], [row, bar], color=color, linewidth=1.2, linestyle=(0, (3, 2)), clip_on=False)
    if low is not None and high is not None:
        axes.plot([low, high], [row, row], color=color, linewidth=1.6, clip_on=False)
        for end in (low, high):
            axes.plot([end, end], [row - 0.1, row + 0.1], color=color, linewidth=1.6, clip_on=False)
    axes.plot([value], [row], "o", color=color, markersize=8, clip_on=False)
    place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
    axes.annotate(number(value, "fraction"), (1, row), xytext=(56, 0), ha="right", **place)
    axes.annotate(interval(low, high, "fraction"), (1, row), xytext=(64, 0), ha="left", color=MUTED, fontsize=10.5, **place)


def _bracket_legend(axes: Axes, shape: Bracket, left: float) -> None:
    """Write what the parts of the bar are, in their order, with counts and shares."""
    x, y = -(left - 12), -(48 + 14)
    for name, size in shape.segments():
        color, strength = _PARTS[name]
        words = f"{name}: {count(size)}"
        axes.plot([x], [y], "s", color=color, alpha=strength, markersize=11, clip_on=False, transform=_points(axes))
        axes.annotate(words, (0, 0), xytext=(x + 12, y), xycoords="axes points", textcoords="offset points", va="center")
        x += 40 + _CHARACTER * width(words)


# --- small multiples -----------------------------------------------------------------------------------------------------


_PANEL_HEIGHT, _PANEL_TITLE = 112, 26


def _small_multiples(shape: SmallMultiples) -> Canvas | None:
    panels = shape.panels[:MAX_PANELS]
    xs, ys = _extent([line for panel in panels for line in panel.series])
    if not xs or not ys:
        return None
    names = list(dict.fromkeys(line.name for panel in panels for line in panel.series if not line.faint))[:MAX_SERIES]
    shown_names = names if len(names) > 1 else []
    across = len(panels) if len(panels) <= 4 else 3 if len(panels) in (5, 6, 9) else 4
    down = -(-len(panels) // across)
    wide = _WIDE if is_wide(shape) else _HALF
    left, right, gap, bottom = 56.0, 12.0, 16.0, 48.0
    side = (wide - left - right - gap * (across - 1)) / across
    head = 8.0 + 20 * -(-len(shown_names) // 3)
    high = head + down * (_PANEL_HEIGHT + _PANEL_TITLE) + bottom
    canvas = _blank(wide, high)
    low, top = _padded(ys)
    limits = (low if shape.ymin is None else shape.ymin, top if shape.ymax is None else shape.ymax)
    ends = (min(xs), max(xs)) if min(xs) < max(xs) else _padded(xs)
    steps = sorted(set(xs))  # a few steps, such as severities, are named one by one
    for index, panel in enumerate(panels):
        row, column = divmod(index, across)
        x, y = left + column * (side + gap), head + row * (_PANEL_HEIGHT + _PANEL_TITLE) + _PANEL_TITLE
        axes = _add_axes(canvas, wide, high, x, y, wide - x - side, high - y - _PANEL_HEIGHT)
        axes.set_xlim(*ends)
        axes.xaxis.set_major_locator(FixedLocator(steps) if _sparse(steps) else MaxNLocator(4, prune="both"))
        axes.set_ylim(*(limits if limits[0] < limits[1] else _padded(ys)))
        _panel(axes, panel, names, side)
        last = index + across >= len(panels)
        axes.tick_params(labelleft=column == 0, labelbottom=last, labelcolor=MUTED)
    _grid_words(canvas, shape, shown_names, wide, high)
    return canvas


def _sparse(steps: Sequence[float]) -> bool:
    return all(after - before > 0.1 * (steps[-1] - steps[0]) for before, after in pairwise(steps))


def _panel(axes: Axes, panel: Panel, names: Sequence[str], side: float) -> None:
    for line in [line for line in panel.series if line.faint][:MAX_FAINT]:
        axes.plot(line.x, _gaps(line.y), color=MUTED, alpha=0.3, linewidth=0.8)
    for line in panel.series:
        if not line.faint and line.name in names:
            _line(axes, line, names.index(line.name), markersize=4, clip_on=True)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.text(0, 1 + 9 / _PANEL_HEIGHT, clip(panel.title, int(side / 6.2)), transform=axes.transAxes, va="center")


def _grid_words(canvas: Canvas, shape: SmallMultiples, names: Sequence[str], wide: float, high: float) -> None:
    """Write the names of the lines at the head, and the labels of the common axes at the edges."""
    page = _add_axes(canvas, wide, high, 0, 0, 0, 0)
    page.set_axis_off()
    page.set_xlim(0, wide)
    page.set_ylim(high, 0)
    for index, name in enumerate(names):
        x, y = 56 + (wide - 56) / 3 * (index % 3), 10 + 20 * (index // 3)
        page.plot([x, x + 12, x + 24], [y] * 3, markevery=[1], **_look(index))
        page.text(x + 31, y, clip(name, int((wide - 56) / 3 / _CHARACTER) - 6), va="center")
    page.text((wide + 44) / 2, high - 8, clip(shape.xlabel, 80), color=MUTED, ha="center", va="center")
    page.text(10, high / 2, clip(shape.ylabel, 60), color=MUTED, rotation=90, ha="center", va="center")


# --- histogram -----------------------------------------------------------------------------------------------------------


def _histogram(shape: Histogram) -> Canvas | None:
    groups = shape.series[:MAX_SERIES]
    if not any(finite_values(group.share) for group in groups):
        return None
    names = [_group_name(group) for group in groups]
    columns, legend_rows = _legend_size(names)
    mark = 20 if shape.threshold is not None else 0
    top = 12 + 20 * legend_rows + mark
    canvas, axes = _axes(_HALF, top + _CURVE_HEIGHT + 52, 64, top, 24, 52)
    for index, group in enumerate(groups):
        look = {**_look(index), "marker": ""}
        axes.stairs(group.share, shape.edges, fill=True, color=look["color"], alpha=0.14, linewidth=0)
        # a step where the bin begins and one where it ends: the marker in its middle is what tells groups apart without color
        axes.stairs(group.share, shape.edges, color=look["color"], linestyle=look["linestyle"], linewidth=1.6)
        _bin_marks(axes, shape, group, index)
    known = finite_values(shape.edges, [shape.threshold])
    axes.set_xlim(min(known), max(known))
    axes.set_ylim(0, 1.05 * max(finite_values(*(group.share for group in groups))) or 1.0)
    _plane(axes, shape.xlabel, shape.ylabel)
    _threshold(axes, shape)
    _legend(axes, names, columns, above=mark)
    return canvas


def _group_name(group: HistogramGroup) -> str:
    return f"{clip(group.name, 36)} (n = {count(group.n)})"


def _bin_marks(axes: Axes, shape: Histogram, group: HistogramGroup, index: int) -> None:
    middles = [(left + right) / 2 for left, right in pairwise(shape.edges)]
    filled = [(x, y) for x, y in zip(middles, group.share, strict=True) if y > 0]
    some = filled[index % 3 :: max(1, len(filled) // 8)]
    axes.plot([x for x, _ in some], [y for _, y in some], **{**_look(index), "linestyle": "", "markersize": 4.5})


def _threshold(axes: Axes, shape: Histogram) -> None:
    if shape.threshold is None:
        return
    axes.axvline(shape.threshold, color=INK, linewidth=1.6, linestyle=(0, (4, 3)), clip_on=False)
    low, high = axes.get_xlim()
    side = _side((shape.threshold - low) / (high - low))
    name = f"{clip(shape.threshold_label, 40)} {number(shape.threshold)}"
    axes.annotate(
        name, (shape.threshold, 1), xycoords=("data", "axes fraction"), xytext=(0, 9), textcoords="offset points", ha=side
    )


# --- scatter -------------------------------------------------------------------------------------------------------------


def _scatter(shape: Scatter) -> Canvas | None:
    pairs = [(x, y) for x, y in zip(shape.x, shape.y, strict=True) if x is not None and y is not None][:MAX_POINTS]
    if not pairs:
        return None
    xs, ys = [x for x, _ in pairs], [y for _, y in pairs]
    canvas, axes = _axes(_HALF, 496, 76, 14, 24, 56)
    if shape.diagonal:
        ends = _padded([*xs, *ys])
        axes.plot(ends, ends, color=WARM, linewidth=1.4, linestyle=(0, (4, 3)))
        axes.set_xlim(*ends)
        axes.set_ylim(*ends)
    else:
        axes.set_xlim(*_padded(xs))
        axes.set_ylim(*_padded(ys))
    axes.plot(xs, ys, "o", color=ACCENT, alpha=0.45, markersize=5, markeredgewidth=0, clip_on=False)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.tick_params(axis="y", labelcolor=MUTED)
    axes.set_xlabel(clip(shape.xlabel, 60), labelpad=8)
    axes.set_ylabel(clip(shape.ylabel, 60), labelpad=8)
    return canvas


_PAINTERS: dict[type[Shape], Callable[[Any], Canvas | None]] = {
    Matrix: _matrix,
    Reliability: _reliability,
    Curve: _curve,
    Bracket: _bracket,
    SmallMultiples: _small_multiples,
    Paired: _paired,
    Histogram: _histogram,
    Scatter: _scatter,
}


# --- from matplotlib's file to an element of the page --------------------------------------------------------------------


_NAMESPACE = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_KEPT = {"d", "x", "y", "style", "transform", "clip-path", "width", "height"}
_LONG_NUMBER = re.compile(r"-?\d+\.\d+(e-?\d+)?")
_NO_ROTATION = re.compile(r"rotate\(-?0(\.0+)? ")


def _inline(canvas: Canvas, label: str, prefix: str) -> str:
    wide, high = (72 * side for side in canvas.get_size_inches())
    file = io.StringIO()
    canvas.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ET.fromstring(file.getvalue())  # noqa: S314 - matplotlib's own output
    writer = _Writer(prefix, root)
    body = "".join(writer.element(child) for child in root)
    return (
        f'<svg class="chart" role="img" aria-label="{escape(clip(label, 400))}" viewBox="0 0 {wide:g} {high:g}" '
        f'width="{wide:g}" height="{high:g}" style="min-width:{0.7 * wide:.0f}px">{body}</svg>'
    )


class _Writer:
    """Writes matplotlib's elements anew: only known attributes, sentinels as variables, ids that are one of a kind."""

    def __init__(self, prefix: str, root: ET.Element) -> None:
        used = re.findall(r'(?:href="#|url\(#)([^")]+)', ET.tostring(root, encoding="unicode"))
        self._ids = {name: f"{prefix}-{i}" for i, name in enumerate(dict.fromkeys(used))}
        self._styles = {e.get("id"): e.get("style") for e in root.iter() if e.get("id") in self._ids}

    def element(self, element: ET.Element) -> str:
        tag = element.tag.removeprefix(_NAMESPACE)
        if tag in ("metadata", "style"):
            return ""
        inside = "".join(self.element(child) for child in element)
        attributes = self._attributes(element)
        text = escape(element.text, quote=False) if tag == "text" and element.text else ""
        if tag in ("g", "defs") and not (inside and (attributes or tag == "defs")):
            return inside
        return f"<{tag}{attributes}>{text}{inside}</{tag}>" if text or inside else f"<{tag}{attributes}/>"

    def _attributes(self, element: ET.Element) -> str:
        kept = {name: value for name, value in element.attrib.items() if name in _KEPT}
        if element.get("id") in self._ids:
            kept["id"] = self._ids[element.attrib["id"]]
        target = element.get(_HREF, "").removeprefix("#")
        if target:
            kept["href"] = f"#{self._ids[target]}"
            if kept.get("style") == self._styles.get(target):
                kept.pop("style", None)
        if _NO_ROTATION.match(kept.get("transform", "")):
            del kept["transform"]
        return "".join(f' {name}="{escape(self._value(name, value))}"' for name, value in kept.items())

    def _value(self, name: str, value: str) -> str:
        if name == "clip-path":
            return re.sub(r"url\(#([^)]+)\)", lambda m: f"url(#{self._ids[m[1]]})", value)
        if name in ("id", "href"):
            return value
        if name == "style":
            value = "; ".join(part for part in value.split("; ") if not part.startswith("font-family"))
            for sentinel, variable in _VARIABLES.items():
                value = value.replace(sentinel, variable)
        if name == "d":
            value = " ".join(value.split())
        return _LONG_NUMBER.sub(lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), value)
