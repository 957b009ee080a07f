"""One explained answer as one HTML page, with the look and the safety of the report."""

from __future__ import annotations

from audit.report import html
from audit.result import Result


def render(result: Result) -> str:
    """Return the page of a result that `audit.explaining.explain_one` made; the same result gives the same bytes."""
    return html.render(result, "explanation.html")
