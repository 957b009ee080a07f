"""The page of a comparison of two results, and the same as markdown and for a terminal."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Literal

from audit.compare import Stored, compare, edited, stored, within, worst_case
from audit.errors import UsageError
from audit.plain import plain
from audit.report import changes as changes_of
from audit.report.changes import Changes, Row
from audit.report.html import page, shown_figure
from audit.report.text import listed, markdown, markdown_id, short_hash
from audit.result import Comparison, Result

FORMATS = ("text", "html", "markdown", "json")
EXIT_CODES = {"worse": 1, "not_comparable": 4, "better": 0, "unchanged": 0}
ALLOWED_EXIT_CODES = {"pass": 0, "fail": 1, "incomplete": 4}
MAX_ROWS, MAX_REASONS, MAX_GROUPS, MAX_NOTES = 40, 8, 3, 8


@dataclass(frozen=True)
class Allowance:
    """What was allowed with ``--max-drop``, and whether it was shown to be kept."""

    max_drop: float
    outcome: Literal["pass", "fail", "incomplete"]

    def sentence(self, comparison: Comparison) -> str:
        """Say whether the primary metric surely became worse by no more than was allowed, and what else decided."""
        primary = next((change for change in comparison.changes if change.primary), None)
        name = "the primary metric" if primary is None else primary.metric
        others = any(change.outcome == "worse" and not change.primary for change in comparison.changes)
        least = None if primary is None else worst_case(primary)[0]
        beyond = least is not None and least > self.max_drop
        allowed = f"worse by at most {self.max_drop:g}"
        if self.outcome == "pass":
            return f"It is shown that {name} became {allowed}."
        if self.outcome == "fail":
            whys = [f"{name} surely became worse by more than was allowed"] if beyond else []
            why = " and ".join(whys + (["another metric surely became worse"] if others else []))
            return f"Not kept: {why} (allowed: {name} {allowed})."
        return f"It is not shown that {name} became {allowed}: the interval of its change does not tell."


@dataclass(frozen=True)
class Compared:
    """Two results that were read and compared; `edits` names what in them was changed by hand."""

    old: Stored
    new: Stored
    comparison: Comparison
    allowance: Allowance | None
    edits: list[str]

    @property
    def exit_code(self) -> int:
        """1 where it surely became worse, 4 where that cannot be told, else 0.

        With an allowance 0 means that it is shown to be kept. A result that was edited tells nothing: 4.
        """
        if self.edits:
            return 4
        return ALLOWED_EXIT_CODES[self.allowance.outcome] if self.allowance else EXIT_CODES[self.comparison.verdict]

    def render(self, to: str) -> str:
        """Return the comparison as ``text``, ``html``, ``markdown`` or ``json``."""
        if to == "json":
            return json.dumps(self.comparison.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        draw = {"text": render_text, "html": render, "markdown": render_markdown}[to]
        return draw(self.old.result, self.new.result, self.comparison, self.allowance)


def compare_files(
    old: str | os.PathLike[str], new: str | os.PathLike[str], *, max_drop: float | None = None, primary: str | None = None
) -> Compared:
    """Read and compare two results, each a ``result.json`` or the folder that holds it.

    Parameters
    ----------
    max_drop
        How much worse the primary metric may have become, in its own unit.
    primary
        The metric that is tested alone; unstated: ``performance.accuracy``, else ``performance.r2``.

    Raises
    ------
    InputError
        One of them is no result.
    UsageError
        Neither holds the metric `primary`, or `max_drop` is no amount.
    """
    if max_drop is not None and not 0 <= max_drop < float("inf"):
        raise UsageError(f"--max-drop should be 0 or more, in the unit of the primary metric, got {max_drop:g}")
    before, after = stored(old), stored(new)
    edits = [f"{side.source} was edited: {why}" for side in (before, after) if (why := edited(side.result))]
    comparison = compare(before.result, after.result, source=before.source, sha256=before.sha256, primary=primary)
    first = next((change for change in comparison.changes if change.primary), None)
    if max_drop is not None and max_drop >= 1 and first is not None and first.unit == "fraction":
        raise UsageError(f"{first.metric} is a share, so --max-drop should be below 1, such as 0.02, got {max_drop:g}")
    allowance = None if max_drop is None else Allowance(max_drop, within(comparison, max_drop))
    return Compared(before, after, comparison, allowance, edits)


def render(old: Result, new: Result, comparison: Comparison, allowance: Allowance | None = None) -> str:
    """Return the comparison as one self-contained HTML page, as the report is one: no script, nothing loaded."""
    changes = changes_of.shown(comparison)
    charts = [shown_figure(figure, f"c{i}") for i, figure in enumerate(changes_of.figures(changes))]
    return page(
        "diff.html",
        comparison=comparison,
        changes=changes,
        word=changes_of.WORDS[comparison.verdict],
        allowance=None if allowance is None else (allowance.outcome, allowance.sentence(comparison)),
        figures=charts,
        sides=[("The older run", old), ("The newer run", new)],
    )


def render_markdown(old: Result, new: Result, comparison: Comparison, allowance: Allowance | None = None) -> str:
    """Return the comparison as markdown, short enough for a pull request; every string of the results comes out as text."""
    changes = changes_of.shown(comparison)
    parts = [
        f"# {changes_of.WORDS[comparison.verdict]}",
        markdown(comparison.sentence),
        *([markdown(allowance.sentence(comparison))] if allowance else []),
        f"From {_run(old)} to {_run(new)}.",
        "## Changes",
        "\n".join(_table(changes)),
    ]
    if changes.apart:
        parts += ["## Not comparable", "\n".join(_apart(changes))]
    if comparison.notes:
        parts += ["## What else differs", "\n".join(f"- {markdown(note, 300)}" for note in comparison.notes[:MAX_NOTES])]
    return "\n\n".join(parts) + "\n"


def markdown_lines(comparison: Comparison) -> list[str]:
    """Return the changes since a baseline as the summary of a run shows them: what moved, and what was not compared."""
    changes = changes_of.shown(comparison)
    moved = any(row.change.outcome != "unchanged" or row.change.primary for row in changes.rows)
    parts = [
        markdown(comparison.sentence),
        "\n".join(_table(changes, unchanged=False)) if moved else "",
        "\n".join(_apart(changes, MAX_GROUPS)),
    ]
    return [part for part in parts if part]


def render_text(old: Result, new: Result, comparison: Comparison, allowance: Allowance | None = None) -> str:
    """Return the comparison for a terminal: verdict, what changed beyond noise, what was not compared, what else differs."""
    changes = changes_of.shown(comparison)
    lines = [f"{comparison.verdict.replace('_', ' ')}: {comparison.sentence}"]
    lines += [allowance.sentence(comparison)] if allowance else []
    lines += [f"  from {_name(old)}", f"  to   {_name(new)}"]
    lines += [
        f"  {row.change.outcome}: {row.change.metric} {row.old} → {row.new} ({row.by}, {row.interval})"
        for row in [*changes.worse, *changes.better][:MAX_ROWS]
    ]
    lines += [f"  not compared: {group.named(3)}: {group.reason}" for group in changes.apart[:MAX_REASONS]]
    left = len(changes.apart) - MAX_REASONS
    lines += [f"  {left} more reasons: see --format json"] if left > 0 else []
    lines += [f"  note: {note}" for note in comparison.notes]
    return "\n".join(plain(line) for line in lines) + "\n"


def _name(result: Result) -> str:
    return f"{result.model.source} ({short_hash(result.model.sha256)}), {result.started_at}, {result.verdict}"


def _run(result: Result) -> str:
    name = markdown(result.model.source, 120)
    return f"{name} ({markdown(short_hash(result.model.sha256))}, {markdown(result.started_at, 40)}, {result.verdict})"


def _table(changes: Changes, *, unchanged: bool = True) -> list[str]:
    rows = [row for row in changes.rows if unchanged or row.change.primary or row.change.outcome != "unchanged"]
    head = ["| Metric | Older | Newer | Change | Interval | Outcome |", "|---|--:|--:|--:|--:|---|"]
    more = [f"\n{len(rows) - MAX_ROWS} more rows: see the JSON."] if len(rows) > MAX_ROWS else []
    return [*head, *(_line(row) for row in rows[:MAX_ROWS]), *more] if rows else ["Nothing could be compared."]


def _line(row: Row) -> str:
    word = changes_of.WORDS[row.change.outcome].lower()
    outcome = word if row.change.outcome == "unchanged" else f"**{word}**"
    figures = (markdown(cell, 80) for cell in (row.old, row.new, row.by, row.interval))
    return (
        f"| {markdown_id(row.change.metric)}{' (primary)' if row.change.primary else ''} | {' | '.join(figures)} | {outcome} |"
    )


def _apart(changes: Changes, most: int = MAX_REASONS) -> list[str]:
    shown = changes.apart[:most]
    lines = [
        f"- not compared: {listed((markdown_id(name) for name in group.metrics), 3)}: {markdown(group.reason, 300)}"
        for group in shown
    ]
    left = len(changes.apart) - len(shown)
    return [*lines, *([f"- {left} more reasons: see report.html or the JSON."] if left else [])]
