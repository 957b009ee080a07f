"""The page of a folder of results: what is joined, what is marked, what is named and not drawn."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from audit.cli import app
from audit.errors import InputError
from audit.report import charts, html, trend
from audit.report.figures import read
from audit.report.trend import read_folder, render
from audit.result import Result
from audit.signing import ENVELOPE
from tests.report.test_hostile_strings import INJECTIONS
from tests.report.test_html_report import Page
from tests.twins import accuracy, unsound

NAME = "performance.accuracy"


def run(k: int, day: int, *, model: str = "a", samples: str = "test", n: int = 100, **changes: Any) -> Result:
    made = accuracy(np.arange(n) < k, model=model, samples=samples, **changes)
    return made.model_copy(update={"started_at": f"2026-01-{day:02d}T00:00:00Z"})


def put(root: Path, name: str, made: Result) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(made.to_json())


def drawn(root: Path) -> Any:
    return read(trend._figure(read_folder(root).runs, NAME))


def test_runs_stand_in_the_order_of_time_wherever_they_lie(tmp_path: Path) -> None:
    for name, day, k in (("z/result.json", 1, 90), ("a/b/result.json", 3, 92), ("m.json", 2, 91)):
        put(tmp_path, name, run(k, day))
    found = read_folder(tmp_path)
    assert [point.file for point in found.runs] == ["z/result.json", "m.json", "a/b/result.json"]
    (line,) = drawn(tmp_path).series
    assert line.x == [1, 2, 3]
    assert line.y == pytest.approx([0.90, 0.91, 0.92])
    assert all(low < y < high for low, y, high in zip(line.low, line.y, line.high, strict=True))


def test_points_of_other_samples_are_not_joined_and_changes_are_marked(tmp_path: Path) -> None:
    plan = [("a", "test"), ("b", "test"), ("b", "other"), ("b", "other"), ("a", "test")]
    for day, (model, samples) in enumerate(plan, 1):
        put(tmp_path, f"{day}.json", run(90, day, model=model, samples=samples))
    shape = drawn(tmp_path)
    assert [line.x for line in shape.series] == [[1, 2, 5], [3, 4]]
    assert len({line.name for line in shape.series}) == 2
    assert [(mark.x, mark.label) for mark in shape.marks] == [(1.5, "network"), (2.5, "data"), (4.5, "network, data")]
    assert (shape.xmin, shape.xmax) == (0.5, 5.5)


def test_the_folder_where_one_stands_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "1.json", run(90, 1))
    monkeypatch.chdir(tmp_path)
    assert read_folder(".").folder == tmp_path.name


def test_points_of_another_question_are_not_joined(tmp_path: Path) -> None:
    for day, eps in enumerate((0.1, 0.1, 0.2), 1):
        made = run(90, day)
        metric = made.checks[0].metrics[0].model_copy(update={"params": {"eps": eps, "headline": True}})
        check = made.checks[0].model_copy(update={"metrics": [metric]})
        put(tmp_path, f"{day}.json", made.model_copy(update={"checks": [check]}))
    assert [line.x for line in drawn(tmp_path).series] == [[1, 2], [3]]
    assert [line.name[-12:] for line in drawn(tmp_path).series] == ["definition 1", "definition 2"]


def test_a_figure_that_is_not_believed_is_not_drawn_and_the_table_says_why(tmp_path: Path) -> None:
    put(tmp_path, "1.json", run(90, 1))
    put(tmp_path, "2.json", unsound(run(99, 2), "performance"))
    found = read_folder(tmp_path)
    assert [line.x for line in drawn(tmp_path).series] == [[1]]
    assert "not believed: the evidence is not ok: performance.deterministic" in Page(render(found, [NAME])).text


def test_damaged_edited_and_other_files_are_named_and_the_rest_is_drawn(tmp_path: Path) -> None:
    put(tmp_path, "good.json", run(90, 1))
    put(tmp_path, "edited.json", run(90, 2).model_copy(update={"verdict": "pass"}))
    (tmp_path / "half.json").write_text(run(90, 3).to_json()[:-100])
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("not looked at")
    (tmp_path / "link.json").symlink_to(tmp_path / "good.json")
    found = read_folder(tmp_path)
    assert [point.file for point in found.runs] == ["good.json"]
    assert {fault.file for fault in found.faults} == {"edited.json", "half.json", "other.json"}
    text = Page(render(found)).text
    for fault in found.faults:
        assert fault.file in text
    assert "but what it holds is judged" in text


def test_of_too_many_results_the_newest_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trend, "MOST_RESULTS", 3)
    for day in range(1, 6):
        put(tmp_path, f"{day}.json", run(90, day))
    found = read_folder(tmp_path)
    assert [point.file for point in found.runs] == ["3.json", "4.json", "5.json"]
    assert "2 older runs are left out" in Page(render(found)).text
    monkeypatch.setattr(trend, "MOST_FILES", 3)
    with pytest.raises(InputError, match="at most 3 files"):
        read_folder(tmp_path)


def test_metrics_are_the_headlines_or_those_that_are_named(tmp_path: Path) -> None:
    made = run(90, 1)
    headline = made.checks[0].metrics[0].model_copy(update={"params": {"headline": True}})
    other = headline.model_copy(update={"id": "performance.other", "params": {}})
    put(
        tmp_path,
        "1.json",
        made.model_copy(update={"checks": [made.checks[0].model_copy(update={"metrics": [headline, other]})]}),
    )
    found = read_folder(tmp_path)
    assert found.metrics() == [NAME]
    assert "1 more metric: name those to draw with --metric" in Page(render(found)).text
    text = Page(render(found, ["performance.other", "performance.none"])).text
    assert "performance.other, run by run" in text
    assert "Nothing to draw of performance.none" in text


def test_the_page_stands_alone_and_is_readable(tmp_path: Path) -> None:
    for day in (1, 2, 3):
        put(tmp_path, f"{day}.json", run(90 + day, day, model="ab"[day == 3]))
    text = render(read_folder(tmp_path), [NAME])
    page = Page(text)
    assert "<script" not in text.lower()
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    ids = Counter(a["id"] for _, a in page.elements if "id" in a)
    assert [name for name, times in ids.items() if times > 1] == []
    assert len(page.all("caption")) == len(page.all("table"))
    assert page.all("nav")
    assert page.open == []
    assert len([svg for svg in page.all("svg") if svg.get("role") == "img"]) == 1


@pytest.mark.parametrize("injection", [s for s in INJECTIONS if s.strip()][::4], ids=lambda s: repr(s)[:40])
def test_hostile_names_stay_text(tmp_path: Path, injection: str) -> None:
    def drawn_with(name: str) -> Page:
        made = run(90, 1, model__source=name, data__source=name).model_copy(update={"started_at": name})
        put(tmp_path, "1.json", made)
        put(tmp_path, "2.json", run(90, 2, samples="other"))
        return Page(render(read_folder(tmp_path), [NAME, name]))

    hostile, benign = drawn_with(injection), drawn_with("benign")
    assert hostile.open == []
    assert {tag for tag, _ in hostile.elements} == {tag for tag, _ in benign.elements}
    assert {n for _, names in hostile.elements for n in names} <= {n for _, names in benign.elements for n in names}


def test_a_single_point_shows_its_interval_and_many_marks_have_no_words(tmp_path: Path) -> None:
    put(tmp_path, "1.json", run(90, 1))
    shape = drawn(tmp_path)
    alone = charts.draw("curve", "t", shape, "p") or ""
    bare = charts.draw(
        "curve", "t", shape.model_copy(update={"series": [shape.series[0].model_copy(update={"low": None, "high": None})]}), "p"
    )
    assert alone.count("<path") > (bare or "").count("<path")
    for day in range(2, 12):
        put(tmp_path, f"{day:02d}.json", run(90, day, model=f"m{day}"))
    drawn_marks = charts.draw("curve", "t", drawn(tmp_path), "p") or ""
    assert len(drawn(tmp_path).marks) == 10
    assert "network" not in drawn_marks


@pytest.mark.slow
def test_the_command_ends_with_4_where_there_is_nothing_to_draw(tmp_path: Path) -> None:
    out = str(tmp_path / "t.html")
    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    put(full, "1.json", run(90, 1))
    (full / "bad.json").write_text("[")
    assert CliRunner().invoke(app, ["trend", str(empty), "--out", out]).exit_code == 4
    outcome = CliRunner().invoke(app, ["trend", str(full), "--out", out, "--metric", NAME])
    assert outcome.exit_code == 0
    assert "not shown: bad.json" in outcome.stderr
    assert "1 results, 1 files not shown" in outcome.stdout
    assert "run by run" in Path(out).read_text()
    (full / ENVELOPE).write_text("{}")  # a signature lies beside its result
    assert [fault.file for fault in read_folder(full).faults] == ["bad.json"]
    assert read_folder(full).faults[0].why.startswith("is not a result")
    assert getattr(CliRunner().invoke(app, ["trend", str(tmp_path / "none")]).exception, "exit_code", 0) == 3


def test_the_hash_of_the_data_is_the_one_that_the_report_shows(tmp_path: Path) -> None:
    made = run(90, 1)
    made = made.model_copy(update={"data": made.data.model_copy(update={"sha256": "9f86d081884c7d65" * 4})})
    put(tmp_path, "1.json", made)
    page = Page(render(read_folder(tmp_path), [NAME])).text
    assert "(9f86d081884c), 100: " in page
    assert "9f86d081884c" in Page(html.render(made)).text
