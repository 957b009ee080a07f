"""The result as lines that GitHub Actions turns into annotations: ``::error``, ``::warning`` and ``::notice``.

An ``::error`` is there exactly where the run ends with another exit code than 0. The step summary is summary.md.

GitHub's runner reads a line that begins with ``::`` (blanks before it do not count), and also ``##[`` anywhere in a line, as
a command. Names are escaped as the runner's own rules ask (percent, carriage return, line feed; in properties colon and comma,
too), and what would begin another command comes out as a visible escape.
"""

from __future__ import annotations

from collections.abc import Iterator

from audit.console import harmless
from audit.report import gate, view
from audit.report.text import clip
from audit.result import Result

MOST_OF_A_LEVEL = 10  # GitHub shows ten errors, ten warnings and ten notices of a step, and drops the others unsaid
LONGEST = 1000


def render(result: Result) -> str:
    """Return one line an annotation: the verdict first, then what moves it, then what must be known."""
    said: dict[str, list[str]] = {"error": [], "warning": [], "notice": []}
    for level, title, message in _annotations(result):
        said[level].append(_line(level, title, message))
    lines = []
    for level, of_level in said.items():
        if len(of_level) > MOST_OF_A_LEVEL:
            more = len(of_level) - MOST_OF_A_LEVEL + 1
            of_level[MOST_OF_A_LEVEL - 1 :] = [_line(level, "audit", f"{more} more: see summary.md and report.html")]
        lines += of_level
    return "\n".join(lines) + "\n"


def _annotations(result: Result) -> Iterator[tuple[str, str, str]]:
    for item in gate.items(result):
        if item.kind == "verdict":
            level = "error" if item.red else "notice" if item.outcome == "pass" else "warning"
            yield level, f"audit: {result.verdict}", item.message
        elif item.outcome not in ("pass", "not_applicable"):
            level = "error" if item.red else "warning"
            word = "worse" if item.kind == "baseline" and item.outcome == "fail" else item.outcome
            yield level, f"audit: {word}: {item.name}", item.message
    for flaw in view.worst_findings(result):
        level = "warning" if flaw.finding.severity in ("high", "medium") else "notice"
        yield level, f"audit: {flaw.check}: {flaw.finding.title}", flaw.finding.detail or flaw.finding.title


def _line(level: str, title: str, message: str) -> str:
    return f"::{level} title={_property(title)}::{_data(message)}"


def _data(text: str) -> str:
    shown = harmless(clip(text, LONGEST)).strip() or "no more is known"
    return shown.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    shown = harmless(clip(text, 200))
    escaped = shown.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return escaped.replace(":", "%3A").replace(",", "%2C")
