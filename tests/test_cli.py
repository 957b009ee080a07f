"""The command line from outside: what it prints, what it writes, and the code that it ends with."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from audit import __version__, cli, listing
from audit.compare import diff
from audit.result import Result
from tests.test_runner import ARCH, LATER, QUICK
from tests.twins import accuracy

COMMANDS = ["run", "demo", "harden", "explain", "render", "inspect", "list"]
LIST = {
    "checks": "robustness",
    "attacks": "pgd",
    "options": "robustness.steps",
    "detectors": "autoencoder",
    "explainers": "integrated_gradients",
    "formats": "TorchScript",
    "metrics": "performance.accuracy",
    "schema": '"$schema"',
}


def arguments(folder: Path, out: Path, *more: str | Path) -> list[str | Path]:
    settings = [part for setting in (*QUICK, "robustness.certify=false") for part in ("--set", setting)]
    data = ["--data", folder / "test.npz", "--arch", ARCH]
    asked = ["--skip", ",".join(LATER), "--samples", "60"]
    return ["run", folder / "model.pt", *data, *asked, *settings, "--out", out, *more]


# --- help and lists ---------------------------------------------------------------------------------------------------


def test_version(call):
    assert call("--version") == (0, f"audit {__version__}\n", "")


def test_help_names_each_command(call):
    code, out, _ = call("--help")
    assert code == 0
    assert all(f"  {command} " in out for command in COMMANDS)
    assert call()[:2] == (2, out), "no arguments: the help, and not the exit code of a gate that passed"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_for_each_option(call, command):
    code, out, err = call(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: audit {command}")
    parameters = typer.main.get_command(cli.app).commands[command].params
    assert parameters
    for parameter in parameters:
        assert parameter.help or parameter.name == "help", parameter.name
        assert all(option in out for option in parameter.opts if option.startswith("--"))


@pytest.mark.parametrize("what", listing.KINDS)
def test_list(call, what):
    code, out, err = call("list", what)
    assert (code, err) == (0, "")
    assert LIST[what] in out
    assert out.strip() == listing.show(what).strip()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["nosuch"], "No such command 'nosuch'"),
        (["list", "check"], "did you mean 'checks'"),
        (["list"], "Missing argument"),
        (["run"], "Missing argument"),
        (["run", "m.pt"], "--data"),
        (["run", "m.pt", "--dta", "x"], "No such option"),
        (["run", "m.pt", "--samples", "many"], "--samples"),
        (["run", "m.pt", "--data", "x", "--mean", "a,b"], "--mean needs numbers"),
        (["run", "m.pt", "--data", "x", "--bounds", "1"], "--bounds needs LOW,HIGH"),
        (["run", "m.pt", "--data", "x", "--arch-args", "{"], "--arch-args needs JSON"),
        (["run", "m.pt", "--data", "x", "--arch-args", "3"], "object (keywords) or list"),
        (["run", "m.pt", "--data", "x", "--set", "steps=3"], "section.key=value"),
        (["run", "m.pt", "--data", "x", "--set", "robustnes.steps=3"], "did you mean 'robustness'"),
        (["run", "m.pt", "--data", "x", "--profile", "fast"], "profile"),
        (["run", "m.pt", "--data", "x", "--config", "nothing.toml"], "cannot read the configuration"),
        (["render", "x", "--format", "pdf"], "no format 'pdf'"),
    ],
)
def test_wrong_usage_is_2_in_a_line_without_a_traceback(call, wrong, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*wrong)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("audit: ")
    assert len(err.splitlines()) <= 2
    assert not list(tmp_path.rglob("*.json"))


def test_an_error_shows_its_traceback_only_with_debug(call):
    assert "Traceback" not in call("run", "m.pt", "--data", "x", "--mean", "a")[2]
    assert "Traceback" in call("run", "m.pt", "--data", "x", "--mean", "a", "--debug")[2]


def test_an_internal_error_is_5(call, monkeypatch):
    def broken(*_: Any, **__: Any) -> str:
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(listing, "show", broken)
    code, _, err = call("list", "checks")
    assert code == 5
    assert "internal error: ZeroDivisionError: of all things" in err
    assert "Traceback" not in err


def test_missing_files_are_3(call, digits_net, tmp_path):
    code, _, err = call("render", tmp_path / "result.json")
    assert (code, err.count("\n")) == (3, 1)
    assert call(*arguments(digits_net, tmp_path, "--data", tmp_path / "none.npz"))[0] == 3


# --- run and render ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(digits_net, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("run") / "out"
    command = [sys.executable, "-m", "audit", *map(str, arguments(digits_net, out))]
    return out, subprocess.run(command, capture_output=True, text=True)


def test_run_writes_its_files_and_says_where(finished):
    out, done = finished
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("unjudged: No limits were set")
    assert str(out / "report.html") in done.stdout
    assert {p.name for p in out.iterdir() if not p.name.startswith(".")} == {
        "result.json",
        "report.html",
        "summary.md",
        "junit.xml",
        "artifacts",
    }
    assert Result.load(out).spec.command.startswith("audit run ")


@pytest.mark.slow
@pytest.mark.parametrize(("form", "name"), [("html", "report.html"), ("markdown", "summary.md"), ("junit", "junit.xml")])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_render_gives_the_bytes_that_the_run_wrote(finished, tmp_path, form, name, encoding):
    out, _ = finished
    written = (out / name).read_bytes()
    command = [sys.executable, "-m", "audit", "render", str(out), "--format", form]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    assert subprocess.run(command, capture_output=True, env=environment).stdout == written
    subprocess.run([*command, "--out", str(tmp_path / name)], check=True)
    assert (tmp_path / name).read_bytes() == written


@pytest.mark.slow
def test_a_reader_that_goes_away_does_not_change_the_exit_code(finished, digits_net):
    """The pipe is closed before anything is printed, as ``head`` does: the code stays that of the verdict."""
    out, _ = finished
    commands = {"list metrics": 0, f"render {out}": 0}
    calls = [(command.split(), code) for command, code in commands.items()]
    calls.append(([str(a) for a in arguments(digits_net, out, "--gate")], 4))
    for words, code in calls:
        child = subprocess.Popen([sys.executable, "-m", "audit", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        child.stdout.close()
        errors = child.stderr.read().decode()
        child.stderr.close()
        assert child.wait() == code, errors
        assert "Broken pipe" not in errors


@pytest.mark.slow
def test_an_output_without_the_characters_keeps_the_verdict(finished, digits_net):
    out, _ = finished
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "audit", *map(str, arguments(digits_net, out))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert r"L\u221e" in done.stdout


def test_quiet_prints_nothing(call, digits_net, tmp_path):
    assert call(*arguments(digits_net, tmp_path, "--quiet", "--checks", "performance")) == (0, "", "")


def limits(*lines: str) -> str:
    return "\n".join(["[[policy.limit]]", 'metric = "performance.accuracy"', *lines])


@pytest.mark.parametrize(
    ("toml", "more", "code", "word"),
    [
        ("[run]", [], 0, "unjudged"),
        ("[run]", ["--gate"], 4, "unjudged"),
        ("[run]\ngate = true", [], 4, "unjudged"),
        (limits("min = 0.5"), ["--gate"], 0, "pass"),
        (limits("min = 0.9").replace("performance", "robustness.linf"), ["--checks", "robustness", "--eps", "0.5"], 1, "fail"),
        (limits("min = 0.97"), [], 4, "incomplete"),
        (limits("min = 0.97", "required = false"), [], 0, "unjudged"),
        (limits("min = 0.5"), ["--checks", "performance,fairness"], 4, "incomplete"),
    ],
)
def test_the_exit_code_is_the_verdict(call, digits_net, tmp_path, toml, more, code, word):
    (tmp_path / "audit.toml").write_text(toml)
    options = ["--checks", "performance", "--config", tmp_path / "audit.toml", *more]
    got, out, err = call(*arguments(digits_net, tmp_path / "out", *options))
    assert (got, out.partition(":")[0]) == (code, word), err
    result = Result.load(tmp_path / "out")
    assert (result.verdict, result.exit_code) == (word, code)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (limits("min = 0.5").replace("accuracy", "acuracy"), "did you mean 'performance.accuracy'"),
        (limits("min = 50"), "between 0 and 1"),
        (limits(), "one of min, max and max_drop"),
        (limits("min = 0.1", "max = 0.9"), "one of min, max and max_drop"),
        (limits("mim = 0.1"), "did you mean 'min'"),
        (limits('min = "high"'), "min"),
        (limits("min = nan"), "min"),
    ],
)
def test_a_limit_that_cannot_be_judged_is_2(call, digits_net, tmp_path, limit, message):
    (tmp_path / "audit.toml").write_text(limit)
    code, _, err = call(*arguments(digits_net, tmp_path / "out", "--config", tmp_path / "audit.toml"))
    assert code == 2
    assert message in err
    assert not (tmp_path / "out" / "result.json").exists()


@pytest.mark.slow
def test_the_command_line_wins_over_the_file_and_set_over_both(call, digits_net, tmp_path):
    (tmp_path / "audit.toml").write_text(
        """
[run]
checks = ["performance", "robustness"]
seed = 5
samples = 30
[robustness]
steps = 2
restarts = 1
norm = ["l2"]
eps = [0.25]
"""
    )
    base = ["run", digits_net / "model.pt", "--data", digits_net / "test.npz", "--arch", ARCH]
    base += ["--config", tmp_path / "audit.toml", "--out", tmp_path / "out"]

    def ran(*more: str) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
        code, _, err = call(*base, *more)
        assert code == 0, err
        result = Result.load(tmp_path / "out")
        config = json.loads(result.to_json())["spec"]["config"]
        return [check.id for check in result.checks], config["run"], config["checks"].get("robustness", {})

    checks, run, robustness = ran()
    assert checks == ["performance", "robustness"]
    assert (run["seed"], run["samples"]) == (5, 30)
    assert (robustness["steps"], robustness["norm"], robustness["eps"]) == (2, ["l2"], [0.25])

    checks, run, robustness = ran("--checks", "robustness", "--seed", "6", "--norm", "linf", "--eps", "8/255")
    assert checks == ["robustness"]
    assert (run["seed"], run["samples"]) == (6, 30)
    assert (robustness["norm"], robustness["eps"], robustness["steps"]) == (["linf"], ["8/255"], 2)

    checks, run, robustness = ran("--samples", "31", "--set", "robustness.steps=3", "--set", "run.samples=32")
    assert run["samples"] == 32
    assert robustness["steps"] == 3
    assert Result.load(tmp_path / "out").data.n == 32


@pytest.mark.parametrize("key", ["arch = 'nets.py:Net'", "trust_model = true", "arch_args = {width = 3}"])
def test_a_file_cannot_name_code_to_run(call, digits_net, tmp_path, key):
    (tmp_path / "audit.toml").write_text(f"[model]\n{key}\n")
    code, _, err = call(*arguments(digits_net, tmp_path / "out", "--config", tmp_path / "audit.toml"))
    assert code == 2
    assert "runs code" in err


@pytest.mark.slow
def test_without_out_the_folder_is_the_configurations(call, digits_net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "audit.toml").write_text('[run]\nout = "mine"\nchecks = ["performance"]\n')
    options = ["run", digits_net / "model.pt", "--data", digits_net / "test.npz", "--arch", ARCH, "--samples", "30"]
    assert call(*options, "--config", "audit.toml")[0] == 0
    assert (tmp_path / "mine" / "result.json").exists()
    assert call(*options, "--checks", "performance")[0] == 0
    assert (tmp_path / "audit-out" / "result.json").exists()


def test_a_verdict_that_was_edited_is_said_to_be(call, digits_net, tmp_path):
    call(*arguments(digits_net, tmp_path / "out", "--checks", "performance"))
    file = tmp_path / "out" / "result.json"
    file.write_text(file.read_text().replace('"verdict": "unjudged"', '"verdict": "pass"'))
    code, _, err = call("render", tmp_path / "out", "--format", "markdown")
    assert code == 0
    assert "the file says 'pass', but what it holds is judged 'unjudged'" in err


def test_a_check_that_was_left_out_is_said_to_be(call, digits_net, tmp_path):
    call(*arguments(digits_net, tmp_path / "out", "--checks", "performance"))
    assert Result.load(tmp_path / "out").spec.not_run == ["robustness", *LATER, "fairness"]
    for file in ("report.html", "summary.md"):
        page = (tmp_path / "out" / file).read_text(encoding="utf-8")
        assert re.search(r"robustness(</b>|:) not run: left out by", page)


def test_what_changed_since_the_baseline_is_said_without_a_limit_on_it(capsys):
    old, new = (accuracy(np.arange(1000) < k, model=name) for k, name in ((950, "a"), (900, "b")))
    cli._say_result(new.model_copy(update={"comparison": diff(old, new)}), Path("out"))
    assert "  since the baseline, worse: performance.accuracy became worse: 0.95, then 0.9" in capsys.readouterr().out
