"""The page of a comparison, its markdown, its text, and the exit codes of ``audit diff``."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from audit.cli import app
from audit.report import changes as changes_of
from audit.report import diff as drawing
from audit.report import html, markdown, view
from audit.result import Comparison, Judgement, Result
from tests.report.test_hostile_strings import INJECTIONS, Skeleton, replace, structure
from tests.report.test_html_report import Page
from tests.twins import accuracy

UNSAFE = "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]"


@pytest.fixture(scope="module")
def comparison(result: Result) -> Comparison:
    assert result.comparison is not None
    return result.comparison


@pytest.fixture(scope="module")
def text(result: Result, make_result: Any, comparison: Comparison) -> str:
    return drawing.render(make_result("pass"), result, comparison)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def bits(n: int, k: int) -> Any:
    return np.arange(n) < k


def stored(folder: Path, made: Result) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(made.to_json())
    return str(folder)


def audit(*words: str) -> Any:
    return CliRunner().invoke(app, ["diff", *words])


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_verdict_stands_first_and_then_what_changed(page: Page, comparison: Comparison) -> None:
    assert page.text.index("Worse") < page.text.index(comparison.sentence) < page.text.index("All that could be compared")
    for change in comparison.changes:
        assert change.metric in page.text
    for note in comparison.notes:
        assert note in page.text
    assert "2 metrics, by reason" in page.text


def test_each_unit_has_a_chart_of_its_own_around_zero(page: Page, comparison: Comparison) -> None:
    charts = [svg["aria-label"] or "" for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(charts) == 2
    assert all("better to the right of 0" in label for label in charts)
    figures = changes_of.figures(changes_of.shown(comparison))
    assert [figure.data["labels"] for figure in figures] == [
        ["performance.accuracy", "robustness.linf.accuracy", "calibration.ece"],
        ["performance.mae"],
    ]
    assert figures[0].data["values"] == pytest.approx([-0.004, -0.08, 0.03])  # of ECE less is better
    assert figures[1].data["low"] == pytest.approx([-4.5])
    assert figures[1].data["high"] == pytest.approx([-2.5])


def test_both_runs_stand_side_by_side(page: Page) -> None:
    assert "The older run: pass" in page.text
    assert "The newer run: fail" in page.text


def test_the_page_stands_alone_and_is_readable(text: str, page: Page) -> None:
    assert "<script" not in text.lower()
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert (policy or "").startswith("default-src 'none'")
    ids = Counter(a["id"] for _, a in page.elements if "id" in a)
    assert [name for name, times in ids.items() if times > 1] == []
    named = {name for _, a in page.elements if "aria-labelledby" in a for name in (a["aria-labelledby"] or "").split()}
    targets = {(a.get("href") or "").removeprefix("#") for _, a in page.elements if a.get("href")}
    assert (named | targets) - set(ids) == set()
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert len(page.all("caption")) == len(page.all("table"))
    assert page.open == []


def test_every_outcome_has_an_icon_a_word_and_a_colour() -> None:
    folder = html.templates_folder()
    icons, style = ((folder / name).read_text() for name in ("icons.html", "report.css"))
    for word in changes_of.WORDS:
        assert f'id="icon-{word}"' in icons
        assert word in view.STATUSES
        assert f".is-{word}" in style
        assert f".verdict-{word}" in style


@pytest.mark.parametrize("offset", range(0, len(INJECTIONS), 16))
def test_hostile_strings_stay_text(result: Result, comparison: Comparison, offset: int) -> None:
    def drawn(strings: list[str], draw: Any) -> str:
        filled = [s for s in strings if s.strip()]
        turn = (filled[(offset + i) % len(filled)] for i in range(10**6))
        parts = (result.model_copy(update={"checks": []}), comparison)
        changed = [type(part).model_validate(replace(part.model_dump(mode="json"), turn, "")) for part in parts]
        return draw(changed[0], changed[0], changed[1])

    benign = [f"benign {i}" for i in range(40)]
    found, model = Skeleton(drawn(INJECTIONS, drawing.render)), Skeleton(drawn(benign, drawing.render))
    assert found.attributes <= model.attributes
    assert Counter(tag for tag, _ in found.outside_charts) == Counter(tag for tag, _ in model.outside_charts)
    assert structure(drawn(INJECTIONS, drawing.render_markdown)) == structure(drawn(benign, drawing.render_markdown))
    for draw in (drawing.render, drawing.render_markdown, drawing.render_text):
        assert not re.search(UNSAFE, drawn(INJECTIONS, draw))


@pytest.mark.slow
def test_a_comparison_of_very_many_metrics_stays_small(result: Result, comparison: Comparison) -> None:
    few = [change.model_copy(update={"metric": f"a.b{i}"}) for i in range(4000) for change in comparison.changes[1:2]]
    apart = [
        change.model_copy(update={"metric": f"c.d{i}", "reason": f"r{i}" * 200})
        for i in range(3000)
        for change in comparison.changes[4:5]
    ]
    many = comparison.model_copy(update={"changes": [*comparison.changes, *few, *apart]})
    page = drawing.render(result, result, many)
    assert len(page.encode()) <= html.MAX_BYTES
    assert "more: see the JSON" in page
    assert len(drawing.render_markdown(result, result, many)) < 20_000


# --- in the report of a run ------------------------------------------------------------------------------------------


def test_the_report_of_a_run_shows_what_changed_since_its_baseline(make_result: Any) -> None:
    page = Page(html.render(make_result(checks=[])))
    assert "Changes since the baseline" in page.text
    assert "release-1/result.json" in page.text
    assert "another eps: 0.5, then 1" in page.text
    assert "Changes since the baseline" not in Page(html.render(make_result(checks=[], comparison=None))).text


def test_the_summary_of_a_run_shows_what_changed_since_its_baseline(result: Result, make_result: Any) -> None:
    summary = markdown.render(result)
    lines = summary.split("## Changes since the baseline")[1].split("## ")[0]
    assert "| `robustness.linf.accuracy` | 0.900 | 0.820 | −0.080 |" in lines
    assert "`performance.accuracy` (primary)" in lines
    assert "not compared: `robustness.l2.accuracy`: another eps: 0.5, then 1" in lines
    assert "Changes since" not in markdown.render(make_result(comparison=None))


@pytest.mark.parametrize(("bound", "outcome", "margin"), [(0.012, "pass", "+0.008"), (0.03, "fail", "−0.010")])
def test_a_limit_on_a_drop_is_shown_with_its_margin(make_result: Any, bound: float, outcome: Any, margin: str) -> None:
    judgement = Judgement(metric="performance.accuracy", max_drop=0.02, bound=bound, outcome=outcome)
    (limit,) = view.limits(make_result(policy=[judgement]))
    assert limit.words == "worse by at most 0.02"
    assert limit.margin == margin
    made = make_result(policy=[judgement])
    score = next(s for group in view.scorecard(made) for s in group.scores if s.limits)
    assert score.strip is None or (score.strip.floor is None and score.strip.ceiling is None)


# --- the command -----------------------------------------------------------------------------------------------------


def test_exit_codes(tmp_path: Path) -> None:
    same = stored(tmp_path / "a", accuracy(bits(1000, 950)))
    worse = stored(tmp_path / "b", accuracy(bits(1000, 900)))
    other = stored(tmp_path / "c", accuracy(bits(1000, 950), model__classes=3))
    assert audit(same, same).exit_code == 0
    assert audit(same, worse).exit_code == 1
    assert audit(worse, same).exit_code == 0
    assert audit(same, other).exit_code == 4


def test_an_allowance_decides_with_its_bound(tmp_path: Path) -> None:
    old = stored(tmp_path / "a", accuracy(bits(1000, 950)))
    new = stored(tmp_path / "b", accuracy(bits(1000, 900)))
    codes = {drop: audit(old, new, "--max-drop", drop).exit_code for drop in ("0.02", "0.05", "0.1")}
    assert codes == {"0.02": 1, "0.05": 4, "0.1": 0}
    assert "It is shown that performance.accuracy became worse by at most 0.1" in audit(old, new, "--max-drop", "0.1").stdout
    assert audit(old, old, "--max-drop", "0.001").exit_code == 4, "a thousand samples that agree do not show so little"
    assert "Not kept: performance.accuracy surely became worse by more" in audit(old, new, "--max-drop", "0.02").stdout


def test_an_allowance_that_is_broken_twice_says_both(comparison: Comparison) -> None:
    primary = next(change for change in comparison.changes if change.primary)
    other = primary.model_copy(update={"metric": "robustness.linf.accuracy", "primary": False, "outcome": "worse"})
    dropped = primary.model_copy(update={"change": -0.1, "low": -0.15, "high": -0.05, "outcome": "worse"})
    broken = comparison.model_copy(update={"changes": [dropped, other]})
    said = drawing.Allowance(0.02, "fail").sentence(broken)
    assert f"{primary.metric} surely became worse by more than was allowed and another metric surely became worse" in said
    assert f"Not kept: {primary.metric} surely" not in drawing.Allowance(0.5, "fail").sentence(broken)


def test_an_interval_beside_zero_that_is_called_unchanged_says_why(comparison: Comparison) -> None:
    change = comparison.changes[0].model_copy(
        update={
            "metric": "performance.0.recall",
            "primary": False,
            "change": -0.1,
            "low": -0.2,
            "high": -0.01,
            "outcome": "unchanged",
        }
    )
    told = [
        changes_of.shown(comparison.model_copy(update={"changes": [some]})).rows[0].aside
        for some in (change, change.model_copy(update={"high": 0.01}), change.model_copy(update={"outcome": "worse"}))
    ]
    assert told == ["beyond noise alone, but not after correction for the number of metrics", "", ""]


def test_what_else_is_to_be_known_is_no_difference_in_itself(tmp_path: Path) -> None:
    same = stored(tmp_path / "a", accuracy(bits(1000, 950)))
    assert "  note: both audits are of the same network file" in audit(same, same).stdout


@pytest.mark.parametrize("words", [("--max-drop", "-1"), ("--max-drop", "nan"), ("--max-drop", "inf"), ("--format", "pdf"),
                                   ("--max-drop", "1"), ("--primary", "performance.nothing")])  # fmt: skip
def test_what_was_asked_wrongly_is_an_error(tmp_path: Path, words: tuple[str, str]) -> None:
    old = stored(tmp_path / "a", accuracy(bits(10, 9)))
    outcome = audit(old, old, *words)
    assert outcome.exit_code not in (0, 4)
    assert getattr(outcome.exception, "exit_code", 2) == 2


def test_an_edited_result_is_told_and_ends_with_4(tmp_path: Path) -> None:
    made = accuracy(bits(1000, 950))
    good = stored(tmp_path / "a", made)
    edited = stored(tmp_path / "b", made.model_copy(update={"verdict": "pass"}))
    for words in ((good, edited), (edited, good), (good, edited, "--max-drop", "0.5")):
        outcome = audit(*words)
        assert outcome.exit_code == 4
        assert "was edited" in outcome.stderr


def test_formats(tmp_path: Path) -> None:
    old, new = (stored(tmp_path / name, accuracy(bits(1000, k), model=name)) for name, k in (("a", 950), ("b", 900)))
    assert audit(old, new).stdout.startswith("worse: performance.accuracy became worse: 0.95, then 0.9")
    read = Comparison.model_validate(json.loads(audit(old, new, "--format", "json").stdout))
    assert read.verdict == "worse"
    assert audit(old, new, "--format", "markdown").stdout.startswith("# Worse")
    file = tmp_path / "d.html"
    outcome = audit(old, new, "--format", "html", "--out", str(file))
    assert file.read_text().startswith("<!doctype html>") or "<!doctype html>" in file.read_text()[:300]
    assert outcome.stdout.startswith("worse: ")
    assert outcome.exit_code == 1
