"""Text for reports: hostile strings that stay text in markdown, long ones clipped, numbers written for people."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable

from pydantic import JsonValue

from audit.plain import plain

DASH = "–"

_MARKDOWN_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "\\": "&#92;", "`": "&#96;", "@": "&#64;"}
_MARKDOWN_MARKS = frozenset("*_[]{}#~$")
_METRIC_ID = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)+")


def clip(text: str, limit: int, *, newlines: bool = False) -> str:
    """Return `plain` text of at most `limit` characters; what is longer ends in an ellipsis."""
    shown = plain(text[: limit + 1], newlines=newlines)
    return shown if len(shown) <= limit else shown[: limit - 1].rstrip() + "…"


def markdown(text: str, limit: int = 2000) -> str:
    """Return `text` on one line, with everything that markdown or HTML would read as markup written so that it is text."""
    line = clip(" ".join(text.splitlines()), limit).strip()
    escaped = "".join(_MARKDOWN_ENTITIES.get(c) or (f"\\{c}" if c in _MARKDOWN_MARKS else c) for c in line)
    escaped = re.sub(r"^(\d*)([-+=.)])(?=[-+=\s]|$)", r"\1\\\2", escaped)  # what would begin a list or underline a heading
    escaped = re.sub(r"^:(?=:)", r"\\:", escaped)  # what begins a command where a CI log shows the page
    # bare addresses become links in GitHub's dialect
    return re.sub(r"(?i)\bwww\.", lambda m: m[0][:-1] + "\\.", escaped.replace("://", "\\://"))


def markdown_id(metric_id: str) -> str:
    """Return a metric's id as code in markdown; what does not look like an id is escaped as any text."""
    return f"`{metric_id}`" if _METRIC_ID.fullmatch(metric_id) else markdown(metric_id)


def number(value: float | None, unit: str = "") -> str:
    """Return `value` for people: three decimals for a fraction (more where it would round to 0 or 1), else four digits."""
    if value is None:
        return DASH
    return _digits(value, unit).replace("-", "−")


def measure(value: float | None, unit: str) -> str:
    """Return `value` with its unit; fractions stand without one."""
    text = number(value, unit)
    return text if value is None or unit in ("", "fraction") else f"{text} {clip(unit, 40)}"


def interval(low: float | None, high: float | None, unit: str = "") -> str:
    """Return an interval: both ends, or the one that there is."""
    if low is None and high is None:
        return DASH
    if high is None:
        return f"at least {number(low, unit)}"
    if low is None:
        return f"at most {number(high, unit)}"
    return f"[{number(low, unit)}, {number(high, unit)}]"


def signed(value: float | None, unit: str = "") -> str:
    """Return a difference with its sign, and with as many digits as it takes to see it."""
    if value is None:
        return DASH
    text = _digits(value, unit)
    return ("+" + text if value > 0 else text).replace("-", "−")


def p_value(value: float | None) -> str:
    """Return a p-value; below 0.0001 only that it is."""
    return DASH if value is None else "< 0.0001" if value < 1e-4 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def count(value: int | None) -> str:
    """Return a count with separators between the thousands."""
    return DASH if value is None else f"{value:,}"


def cell(value: JsonValue) -> str:
    """Return one cell of a table as text; numbers in a form that can be copied into a spreadsheet."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"
    if isinstance(value, int):
        return str(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def percent(confidence: float) -> str:
    """Return a confidence level: 95 %."""
    return f"{100 * confidence:.4g} %"


def short_hash(digest: str) -> str:
    """Return the first twelve characters of a hash: enough to tell two files apart at a glance."""
    return clip(digest[:12], 12)


def listed(items: Iterable[object], limit: int) -> str:
    """Return the first `limit` items between commas, and how many more there are."""
    all_items = [str(item) for item in items]
    more = len(all_items) - limit
    return ", ".join(all_items[:limit]) + (f" and {more:,} more" if more > 0 else "")


def width(text: str) -> float:
    """Return about how wide `text` is, in characters of a proportional font (wide scripts count double)."""
    return sum(2.0 if unicodedata.east_asian_width(c) in "WF" else 1.0 for c in text)


def _digits(value: float, unit: str) -> str:
    size = abs(value)
    if unit == "fraction":
        return _fraction(value)
    if float(value).is_integer() and size < 1e15:
        return f"{value:,.0f}"
    if size >= 1e9 or 0 < size < 1e-4:
        return f"{value:.3g}"
    return f"{value:,.0f}" if size >= 1e4 else f"{value:.4g}"


def _fraction(value: float) -> str:
    # 0.9996 shown as 1.000 would claim that nothing ever failed
    for decimals in (3, 4, 5, 6):
        text = f"{value:.{decimals}f}"
        if float(text) not in (0.0, 1.0, -1.0) or float(text) == value:
            return text
    return f"{value:.2g}" if abs(value) < 0.5 else repr(value)
