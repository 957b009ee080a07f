"""Lines for GitHub, and what is printed into a CI job's log: read as GitHub's runner reads them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.console import Guarded, guard_log, harmless, harmless_json, leads_to_file, unguarded
from audit.report import github, html, markdown
from audit.report.text import clip
from audit.result import Finding, Result
from tests.injections import ALL, COMMANDS, commands
from tests.judged import results

PIECES = st.sampled_from(["::", ":", "##", "#", "[", "##[error]", "::error::x", " ", "\n", "\r", "x", "\u00a0", "]", "vso["])


@settings(max_examples=50, deadline=None)
@given(results())
def test_an_error_is_there_exactly_where_the_run_does_not_end_with_0(result: Result) -> None:
    found = commands(github.render(result))
    assert any(name == "error" for name, _, _ in found) == (result.exit_code != 0)
    assert found[0][1]["title"] == f"audit: {result.verdict}" or found[0][0] != "error"
    assert any(data.startswith(result.sentence[:40]) or result.sentence[:40] in data for _, _, data in found)


def test_each_line_is_one_annotation_with_its_figures(result: Result) -> None:
    lines = github.render(result).splitlines()
    assert len(commands("\n".join(lines))) == len(lines)
    assert lines[0] == (
        "::error title=audit%3A fail::1 of 4 required limits failed: accuracy under L∞ attacks of radius 0.1 is at most 0.634, "
        "and 0.7 was asked for; 1 could not be decided, 1 was waived."
    )
    failed = "::error title=audit%3A fail%3A robustness.linf.accuracy should be at least 0.7::"
    assert any(line.startswith(failed) and "its bound is 0.5912" in line for line in lines)
    waived = "::warning title=audit%3A waived%3A fairness.group.demographic_parity_difference"
    assert any(line.startswith(waived) and "by the risk board" in line for line in lines)


def test_github_shows_ten_of_a_level_so_the_rest_is_told(make_result: Any) -> None:
    result = make_result("pass", policy=[], comparison=None)
    finding = Finding(severity="high", title="A title", detail="A detail")
    checks = [result.checks[0].model_copy(update={"findings": [finding] * 30})]
    lines = github.render(result.model_copy(update={"checks": checks})).splitlines()
    warnings = [line for line in lines if line.startswith("::warning ")]
    assert len(warnings) == 10
    assert warnings[-1] == "::warning title=audit::21 more: see summary.md and report.html"


@pytest.mark.parametrize("payload", COMMANDS, ids=repr)
def test_harmless_text_holds_no_command(payload: str) -> None:
    for line in (payload, f"a name: {payload}", f"  {payload} and more"):
        assert commands(harmless(line)) == []
        assert not any(word in harmless(line) for word in ("##[", "##vso[", "##teamcity["))


def test_the_payloads_are_live() -> None:
    live = [payload for payload in COMMANDS if commands(payload)]
    assert len(live) >= 9
    assert len([payload for payload in COMMANDS if commands(f"a name: {payload}")]) >= 5


@given(st.text(), st.lists(PIECES, max_size=12).map("".join))
def test_other_text_comes_back_as_it_is(text: str, pieces: str) -> None:
    for one in (text, pieces):
        if "::" not in one and "##" not in one:
            assert harmless(one) == one
        assert commands(harmless(one)) == []
        assert harmless(harmless(one)) == harmless(one)


@given(st.lists(PIECES, max_size=12).map("".join))
def test_json_says_the_same_and_holds_no_command(pieces: str) -> None:
    text = harmless_json(json.dumps({pieces: [pieces]}, indent=1))
    assert json.loads(text) == {pieces: [pieces]}
    assert commands(text) == []


@given(st.lists(st.tuples(PIECES, st.booleans()), max_size=20))
def test_a_guarded_stream_makes_no_command_of_two_halves(writes: list[tuple[str, bool]]) -> None:
    raw = io.StringIO(newline="")
    stream = Guarded(raw)
    for text, flushed in writes:
        assert stream.write(text) == len(text)
        if flushed:
            stream.flush()
    stream.flush()
    log, meant = raw.getvalue(), "".join(text for text, _ in writes)
    assert commands(log) == []
    assert log.count("\n") == meant.count("\n")
    assert log.replace("\\x3a", ":").replace("\\x23", "#").replace("\\", "") == meant
    if harmless(meant) == meant:
        assert log == meant


def test_the_guard_stands_in_a_ci_job_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("GITHUB_ACTIONS", "TF_BUILD", "TEAMCITY_VERSION"):
        monkeypatch.delenv(name, raising=False)
    log = io.StringIO()
    monkeypatch.setattr(sys, "stdout", log)
    guard_log()
    assert sys.stdout is log
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    guard_log()
    guard_log()
    assert isinstance(sys.stdout, Guarded)
    assert unguarded(sys.stdout) is log
    assert not leads_to_file(sys.stdout)
    with (tmp_path / "page.html").open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        guard_log()
        assert leads_to_file(sys.stdout)


@pytest.fixture
def in_a_job(monkeypatch: pytest.MonkeyPatch, call: Any, tmp_path: Path) -> Any:
    """Call the command line as in a job of GitHub Actions."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.chdir(tmp_path)
    return call


@pytest.mark.parametrize("more", [[], ["--debug"]])
@pytest.mark.parametrize("name", ["x\n::error::pwned.pt", "##[add-mask]a.pt", "::stop-commands::never.pt"])
def test_errors_in_a_job_hold_no_command(in_a_job: Any, tmp_path: Path, name: str, more: list[str]) -> None:
    (tmp_path / name).write_bytes(b"no network")
    code, out, err = in_a_job("run", name, "--data", "sklearn:digits", *more)
    assert code == 3
    assert "audit: " in err
    assert ("Traceback" in err) == bool(more)
    assert name.splitlines()[-1].strip(":#")[:8] in err
    assert commands(out + err) == []


@pytest.mark.slow
def test_a_page_in_a_file_is_as_it_was_drawn(make_result: Any, tmp_path: Path) -> None:
    result: Result = make_result(checks=[], policy=[], sentence="::error::pwned ##[error]")
    (tmp_path / "result.json").write_text(result.to_json(), encoding="utf-8")
    for form, render in (("markdown", markdown.render), ("html", html.render)):
        with (tmp_path / "page").open("wb") as page:
            words = [sys.executable, "-m", "audit", "render", "result.json", "--format", form]
            subprocess.run(words, stdout=page, check=True, env={**os.environ, "GITHUB_ACTIONS": "true"}, cwd=tmp_path)
        assert (tmp_path / "page").read_text(encoding="utf-8") == render(result)


@pytest.mark.slow
def test_a_child_in_a_job_holds_no_command(tmp_path: Path) -> None:
    (tmp_path / "##[add-mask]a.pt").write_bytes(b"no network")
    environment = {**os.environ, "GITHUB_ACTIONS": "true"}
    words = ["-m", "audit", "run", "##[add-mask]a.pt", "--data", "sklearn:digits", "--debug"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 3
    assert "Traceback" in done.stderr
    assert "\\x23#[add-mask]a.pt" in done.stderr
    assert commands(done.stdout + done.stderr) == []


def test_render_in_a_job_gives_commands_for_github_alone(make_result: Any, in_a_job: Any, tmp_path: Path) -> None:
    result: Result = make_result()
    model = result.model.model_copy(update={"source": "::error::pwned", "notes": ["::error::pwned", "##[error]pwned"]})
    flawed = [check.model_copy(update={"answer": "##[error]pwned", "figures": []}) for check in result.checks]
    hostile = result.model_copy(update={"model": model, "checks": flawed, "sentence": "##[error]pwned"})
    (tmp_path / "result.json").write_text(hostile.to_json(), encoding="utf-8")
    for form in ("html", "markdown", "junit", "sarif"):
        code, out, err = in_a_job("render", "result.json", "--format", form)
        assert code == 0
        assert commands(out + err) == [], form
        assert "pwned" in out
    out = in_a_job("render", "result.json", "--format", "github")[1]
    assert {name for name, _, _ in commands(out)} == {"error", "warning", "notice"}
    assert len(commands(out)) == len(out.splitlines())


def test_a_payload_is_the_text_of_its_annotation(make_result: Any) -> None:
    result: Result = make_result("unjudged", checks=[], comparison=None)
    for payload in ALL:
        said = f"no good news {payload}."
        (found,) = commands(github.render(result.model_copy(update={"sentence": said})))
        name, properties, data = found
        assert (name, list(properties)) == ("warning", ["title"])
        assert clip(said, 60).rstrip("…").strip() in data.replace("\\x23", "#").replace("\\x3a", ":")
