"""action.yml, the hooks and docs/ci.md: valid by their schemas, and each script does what it says, whatever the inputs hold."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

import audit
from audit import cli
from audit.report import gate
from tests.injections import COMMANDS, commands

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
HOOKS = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"] if "name" in step}
FAKE = """#!{python}
import json, os, sys
from pathlib import Path
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
out = next((word[6:] for word in sys.argv if word.startswith("--out=")), None)
if sys.argv[1] == "run":
    print("::set-output name=exit-code::0")
    print("##[add-mask]a", file=sys.stderr)
    if os.environ.get("FAKE_RESULT", "yes") == "yes":
        Path(out).mkdir(parents=True, exist_ok=True)
        (Path(out) / "result.json").write_text("new")
        (Path(out) / "summary.md").write_text("# Fail\\n")
    print("no end of line", end="")
    sys.exit(int(os.environ["FAKE_CODE"]))
if "--format=github" in sys.argv:
    print("::error title=audit%3A fail::as it was")
sys.exit(int(os.environ.get("FAKE_RENDER", "0")))
"""
HOSTILE = [
    "$(touch pwned)",
    "`touch pwned`",
    '"; touch pwned; "',
    "'; touch pwned; '",
    "${IFS}touch${IFS}pwned",
    "* ? [a-z] ~ {a,b}",
    "-rf",
    "--help",
    "a\nb",
    "$((1/0))",
    "\\",
    "!! && touch pwned",
]


def schema(name: str) -> jsonschema.protocols.Validator:
    folder = resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    loaded = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return jsonschema.validators.validator_for(loaded)(loaded)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def snippet(heading: str) -> Any:
    section = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    (block,) = re.findall(r"```yaml\n(.*?)```", section, flags=re.DOTALL)
    return yaml.safe_load(block)


class Job:
    """A folder with a fake audit on PATH, and what a step did in it."""

    def __init__(self, place: Path) -> None:
        self.place, self.log = place, place / "calls.jsonl"
        programs = place / "bin"
        programs.mkdir()
        (programs / "python").symlink_to(sys.executable)
        fake = programs / "audit"
        fake.write_text(FAKE.format(python=sys.executable))
        fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
        self.work = place / "work"
        self.work.mkdir()
        (self.work / "a-file").write_text("for a glob to find")

    def step(self, name: str, variables: dict[str, str], **more: str) -> subprocess.CompletedProcess[str]:
        """Run the script of a step as GitHub does."""
        script = self.place / "step.sh"
        script.write_text(STEPS[name]["run"])
        environment = {
            "PATH": f"{self.place / 'bin'}:{os.environ['PATH']}",
            "GITHUB_OUTPUT": str(self.place / "output"),
            "GITHUB_STEP_SUMMARY": str(self.place / "step-summary"),
            "FAKE_LOG": str(self.log),
            "FAKE_CODE": "0",
            **variables,
            **more,
        }
        words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
        return subprocess.run(words, capture_output=True, text=True, env=environment, cwd=self.work)

    def audit(self, **inputs: str) -> subprocess.CompletedProcess[str]:
        names = {"model": "m.pt", "data": "", "config": "", "args": "", "out": "out"} | {
            key: value for key, value in inputs.items() if not key.startswith("FAKE")
        }
        given = {f"AUDIT_{name.upper()}": value for name, value in names.items()}
        assert set(given) == set(STEPS["Audit"]["env"])
        return self.step("Audit", given, **{key: value for key, value in inputs.items() if key.startswith("FAKE")})

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def output(self) -> str:
        return (self.place / "output").read_text()


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_the_action_is_one() -> None:
    schema("github-actions").validate(ACTION)
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step.get("run", ""), "an expression in a script is pasted into the shell's text"
        assert "run" not in step or step["shell"] == "bash"
    used = set(re.findall(r"inputs\.([a-z-]+)", (ROOT / "action.yml").read_text()))
    assert used == set(ACTION["inputs"])


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 130])
def test_the_exit_code_goes_through(job: Job, code: int) -> None:
    done = job.audit(FAKE_CODE=str(code))
    assert done.returncode == code, done.stderr
    assert job.output() == f"exit-code={code}\n"
    run, sarif, github = job.calls()
    assert run == ["run", "--out=out", "--fresh", "--gate", "--", "m.pt"]
    assert sarif == ["render", "--format=sarif", "--out=out/audit.sarif", "--", "out"]
    assert github == ["render", "--format=github", "--", "out"]
    assert (job.place / "step-summary").read_text() == "# Fail\n"


def test_nothing_that_a_run_prints_is_a_command(job: Job) -> None:
    log = job.audit(FAKE_CODE="1").stdout
    assert len(commands(log)) == 4, "the two of the run are there to be seen"
    stopped, heard = "", []
    for line in log.splitlines():
        for name, _, data in commands(line) or ([(stopped, {}, "")] if stopped and line == f"::{stopped}::" else []):
            if stopped:
                stopped = "" if name == stopped else stopped
            elif name == "stop-commands":
                stopped = data
            else:
                heard.append((name, data))
    assert heard == [("error", "as it was")]


@pytest.mark.parametrize("code", [0, 1, 3, 4])
def test_a_run_without_a_result_is_never_green(job: Job, code: int) -> None:
    (job.work / "out").mkdir()
    (job.work / "out" / "result.json").write_text("of last week")
    done = job.audit(FAKE_CODE=str(code), FAKE_RESULT="no", args="--help")
    assert done.returncode == (code or 4)
    assert job.output() == f"exit-code={code or 4}\n"
    assert f"(exit code {code or 4})" in (job.place / "step-summary").read_text()
    assert "::error title=audit::No result was written" in done.stdout
    assert not (job.work / "out" / "result.json").exists()


@pytest.mark.parametrize(("code", "ends"), [(0, 5), (1, 1), (4, 4)])
def test_reports_that_cannot_be_drawn_turn_nothing_green(job: Job, code: int, ends: int) -> None:
    assert job.audit(FAKE_CODE=str(code), FAKE_RENDER="5").returncode == ends


@pytest.mark.parametrize("text", [*HOSTILE, *COMMANDS[:2]], ids=repr)
def test_inputs_stay_words(job: Job, text: str) -> None:
    done = job.audit(model=text, data=text, config=text, args=text, out=text)
    lines = [line for line in text.split("\n") if line.strip()]
    assert job.calls()[0] == [
        "run",
        *lines,
        f"--data={text}",
        f"--config={text}",
        f"--out={text}",
        "--fresh",
        "--gate",
        "--",
        text,
    ]
    assert done.returncode == 0, done.stderr
    assert not list(job.place.rglob("pwned"))


def test_arguments_stand_one_a_line(job: Job) -> None:
    job.audit(args="--arch=nets.py:My Net\r\n\n  \n--set\nrobustness.steps=5\n")
    assert job.calls()[0][1:4] == ["--arch=nets.py:My Net", "--set", "robustness.steps=5"]


@pytest.mark.parametrize(("version", "installs"), [("", "/the/action"), ("audit==0.1.0", "audit==0.1.0"), ("-r x", "-r x")])
def test_what_is_installed(job: Job, version: str, installs: str) -> None:
    pip = job.place / "bin" / "python"
    pip.unlink()
    pip.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > "{job.log}"\n')
    pip.chmod(0o755)
    assert job.step("Install audit", {"AUDIT_VERSION": version, "AUDIT_SOURCE": "/the/action"}).returncode == 0
    assert job.log.read_text().splitlines() == ["-m", "pip", "install", "--quiet", "--", installs]


def test_the_workflow_of_the_page() -> None:
    workflow = snippet("GitHub Actions")
    schema("github-workflows").validate({key if key is not True else "on": value for key, value in workflow.items()})
    (job,) = workflow["jobs"].values()
    (step,) = [step for step in job["steps"] if "/audit@" in step["uses"]]
    assert set(step["with"]) <= set(ACTION["inputs"])
    upload = job["steps"][-1]
    assert upload["if"] == "always()"
    assert upload["with"]["sarif_file"] == f"{ACTION['inputs']['out']['default']}/audit.sarif"


def test_the_pipeline_of_the_page() -> None:
    pipeline = snippet("GitLab")
    schema("gitlab-ci").validate(pipeline)
    artifacts = pipeline["audit"]["artifacts"]
    assert artifacts["when"] == "always", "the report of a failed gate is the one that is wanted"
    folder, name = artifacts["reports"]["junit"].split("/")
    assert folder == "audit-out"
    assert name in audit._renderers()


def test_the_hooks() -> None:
    known = {"id", "name", "description", "entry", "args", "language", "files", "pass_filenames", "stages"}
    named = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    for hook in HOOKS:
        assert set(hook) <= known
        assert hook["language"] == "system"
        assert hook["pass_filenames"] is False
        program, command, *options = hook["entry"].split()
        assert program == "audit"
        there = {option for parameter in named[command].params for option in parameter.opts}
        assert {option for option in options if option.startswith("--")} <= there
        re.compile(hook["files"])
    (repository,) = snippet("pre-commit")["repos"]
    assert {hook["id"] for hook in repository["hooks"]} == {hook["id"] for hook in HOOKS}


def test_the_codes_and_formats_of_the_page_are_those_that_there_are() -> None:
    table = PAGE.split("## Exit codes")[1].split("##")[0]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE)} == set(gate.EXIT_CODES)
    assert set(cli.FORMATS) - {"html"} == {form for form in cli.FORMATS if f"`{form}`" in PAGE or f"--format {form}`" in PAGE}


def test_the_marker_of_the_page_is_read() -> None:
    (block,) = blocks("python")
    compile(block, "docs/ci.md", "exec")
    assert "pytest.mark.audit(" in block
