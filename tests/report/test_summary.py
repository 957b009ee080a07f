"""summary.md: the verdict, the scorecard, the three worst findings and what was not tested, in valid markdown."""

from __future__ import annotations

from typing import Any

import pytest

from audit.report import markdown
from audit.result import Result


@pytest.mark.parametrize("verdict", ["pass", "fail", "incomplete", "unjudged"])
def test_verdict_comes_first(make_result: Any, verdict: str) -> None:
    assert markdown.render(make_result(verdict)).startswith(f"# {verdict.capitalize()}\n")


def test_unjudged_is_no_good_news(make_result: Any) -> None:
    assert "No limits were set: figures, and no good news." in markdown.render(make_result("unjudged"))


def test_summary_holds_the_scorecard_findings_and_gaps(result: Result) -> None:
    page = markdown.render(result)
    assert "| robustness | `robustness.linf.accuracy` | 0.613 | \\[0.591, 0.634\\] | at least 0.7 | −0.109 | **fail** |" in page
    assert "| anomaly | `anomaly.autoencoder.auroc` | – | – | at least 0.9 (not required) | – | **incomplete** |" in page
    assert "- **high** (robustness): Gradients may be masked. " in page
    assert "- 1 more: see report.html." in page
    assert "| explanation | RuntimeError: the network has no layer that Grad-CAM could use. | – | – | – | – | error |" in page
    assert "- anomaly: not applicable: It needs training data: give them with --reference." in page


def test_summary_says_how_the_file_was_read(result: Result) -> None:
    model = result.model.model_copy(update={"notes": ["the file fixes a batch of 1: it was *set free*", "rows are NHWC"]})
    page = markdown.render(result.model_copy(update={"model": model}))
    assert "the file fixes a batch of 1: it was \\*set free\\*\n\nrows are NHWC\n" in page


def test_summary_is_short_and_the_same_each_time(result: Result) -> None:
    page = markdown.render(result)
    assert page == markdown.render(Result.from_json(result.to_json()))
    assert len(page) < 6000


def test_summary_of_nothing(make_result: Any) -> None:
    page = markdown.render(make_result("unjudged", checks=[], policy=[]))
    assert "No check ran." in page
    assert "What was not tested was not found, either." in page


def test_summary_says_between_what_bounds_the_truth_lies(make_result: Any, make_figures: Any) -> None:
    said = "Certified 0.415 \\[0.393, 0.437\\] ≤ the truth ≤ 0.613 \\[0.591, 0.635\\], what no attack broke."
    assert said in markdown.render(make_result())
    broken = make_figures()["bracket"].model_copy(update={"data": {"certified": "many"}})
    check = make_result()["robustness"].model_copy(update={"figures": [broken]})
    assert "the truth" not in markdown.render(make_result(checks=[check]))
