"""The summary in markdown: what stands at the head of the report, short enough for a pull request or a job's log."""

from __future__ import annotations

from collections.abc import Iterable

from audit.report import figures, view
from audit.report.diff import markdown_lines
from audit.report.text import count, markdown, markdown_id
from audit.result import Result

MAX_ROWS = 40
MAX_GAPS = 8
MAX_BRACKETS = 4  # one a norm
MAX_NOTES = 3  # how samples are laid out, a batch set free


def render(result: Result) -> str:
    """Return summary.md: the verdict's sentence, the scorecard, the three worst findings, and what was not tested.

    Every string of the result comes out as text: what markdown or HTML would read as markup is escaped.
    """
    parts = [
        f"# {view.VERDICTS[result.verdict]}",
        markdown(view.sentence(result)),
        f"{markdown(result.model.source, 120)} on {markdown(result.data.source, 120)}, {count(result.data.n)} samples.",
        *(markdown(sentence, 300) for sentence in (*view.trust(result), *result.model.notes[:MAX_NOTES])),
        "## Scorecard",
        "\n".join(_scorecard(result)),
        *_brackets(result),
        *(["## Changes since the baseline", *markdown_lines(result.comparison)] if result.comparison else []),
        "## The worst findings",
        "\n".join(_findings(result)),
        "## Not tested",
        "\n".join(_gaps(result)),
    ]
    return "\n\n".join(parts) + "\n"


def _scorecard(result: Result) -> list[str]:
    rows = list(_rows(result))
    head = ["| Check | Metric | Value | Interval | Limit | Margin | Status |", "|---|---|--:|--:|---|--:|---|"]
    more = [f"\n{len(rows) - MAX_ROWS} more rows: see report.html."] if len(rows) > MAX_ROWS else []
    return [*head, *rows[:MAX_ROWS], *more] if rows else ["No check ran."]


def _rows(result: Result) -> Iterable[str]:
    for group in view.scorecard(result):
        for score in group.scores:
            name = score.metric.id if score.metric else f"{group.name}.{score.name}" if score.name else ""
            metric = markdown_id(name) if name else markdown(score.note)
            figures = [group.name, metric, markdown(score.value, 80), markdown(score.interval, 120)]
            for limit in score.limits:
                words = limit.words + ("" if limit.judgement.required else " (not required)")
                yield _row(*figures, words, limit.margin, f"**{view.STATUSES[limit.status]}**")
            if not score.limits:
                yield _row(*figures, "–", "–", view.STATUSES[score.status])


def _brackets(result: Result) -> Iterable[str]:
    """Say between what bounds the truth lies, where a check found both."""
    drawn = [(check.id, figure) for check in result.checks for figure in check.figures if figure.kind == "bracket"]
    for check_id, figure in drawn[:MAX_BRACKETS]:
        shape = figures.read(figure)
        if isinstance(shape, figures.Bracket):
            yield f"{check_id}: {markdown(figure.title, 160)}. {markdown(shape.sentence(), 600)}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _findings(result: Result) -> list[str]:
    flaws = view.worst_findings(result)
    lines = [
        f"- **{flaw.finding.severity}** ({flaw.check}): {markdown(flaw.finding.title.rstrip('. '), 200)}. "
        f"{markdown(flaw.finding.detail, 300)}"
        for flaw in flaws[:3]
    ]
    more = [f"- {len(flaws) - 3} more: see report.html."] if len(flaws) > 3 else []
    return lines + more or ["No check recorded a finding. What was not tested was not found, either."]


def _gaps(result: Result) -> list[str]:
    gaps = view.gaps(result)
    lines = [f"- {gap.check}: {markdown(gap.detail, 300)}" for gap in gaps[:MAX_GAPS]]
    more = [f"- {len(gaps) - MAX_GAPS} more: see report.html."] if len(gaps) > MAX_GAPS else []
    return lines + more or ["The checks name nothing. Whatever no check asks about is untested all the same."]
