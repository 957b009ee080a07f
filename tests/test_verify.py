"""A stored run held against itself: every edit of a verdict, a report, an artifact or a file beside it is found."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import audit
from audit import signing, verifying
from audit.config import PolicySection
from audit.errors import InputError
from audit.policy import judge
from audit.result import CheckResult, Result
from tests.test_policy import check, policy, share, stored

MODEL, DATA, ARTIFACT = b"the weights", b"the samples", b"the examples"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def made(limit: float | None = 0.9, *, k: int = 950, gate: bool = False, **more: Any) -> Result:
    """Return a result of a network that is right on `k` of 1,000 samples, judged by a limit on its accuracy."""
    limits = policy(*([{"metric": "performance.accuracy", "min": limit}] if limit is not None else []))
    limits = limits.model_copy(update=more)
    robustness = check("robustness", share("robustness.linf.accuracy", 700, 1000, kind="upper"))
    robustness = robustness.model_copy(update={"artifact": "artifacts/robustness.npz", "artifact_sha256": sha256(ARTIFACT)})
    result = stored(limits, [check("performance", share("performance.accuracy", k, 1000)), robustness], gate=gate)
    return result.model_copy(
        update={
            "spec": result.spec.model_copy(update={"audit_version": version("audit")}),
            "model": result.model.model_copy(update={"sha256": sha256(MODEL)}),
            "data": result.data.model_copy(update={"sha256": sha256(DATA)}),
        }
    )


def written(result: Result, folder: Path) -> Path:
    """Write a result as a run does, with its artifact, finished jobs, and beside it the model and the data."""
    result.save(folder)
    for name, content in (("artifacts/robustness.npz", ARTIFACT), (".jobs/0/a.npz", b"a job")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder.parent / "model.pt").write_bytes(MODEL)
    (folder.parent / "test.npz").write_bytes(DATA)
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(made(), tmp_path_factory.mktemp("run") / "out")


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original.parent, tmp_path / "copy")
    return tmp_path / "copy" / "out"


def failed(found: verifying.Verification) -> set[str]:
    return {one.what for one in found.tested if one.holds is False}


def edit(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    text = json.loads((run / "result.json").read_text())
    change(text)
    (run / "result.json").write_text(json.dumps(text, indent=1, ensure_ascii=False) + "\n")


def test_what_a_run_wrote_holds(run):
    found = audit.verify(run, model=run.parent / "model.pt", data=run.parent / "test.npz")
    assert found.holds, str(found)
    assert found.exit_code == 0
    assert {one.what: one.holds for one in found.tested} == {
        "result.json": True,
        "verdict": True,
        "policy": True,
        **dict.fromkeys(audit._renderers(), True),
        "artifacts/robustness.npz": True,
        "model": True,
        "data": True,
        "signature": None,
    }


@pytest.mark.slow
def test_what_a_real_run_wrote_holds(digits_net, tmp_path):
    files = {"model": digits_net / "model.pt", "data": digits_net / "test.npz"}
    audit.run(
        **files,
        arch=f"{digits_net}/nets.py:DigitsNet",
        checks=["performance", "robustness"],
        policy={"limit": [{"metric": "performance.accuracy", "min": 0.5}]},
        samples=50,
        profile="quick",
        settings=["robustness.steps=2", "robustness.restarts=1", "robustness.noise_draws=2", "robustness.queries=20"],
        out=tmp_path / "out",
    )
    found = audit.verify(tmp_path / "out", **files)
    assert {one.what for one in found.tested if not one.holds} == {"signature"}, str(found)
    assert "artifacts/robustness.npz" in {one.what for one in found.tested}
    (tmp_path / "out" / "artifacts" / "robustness.npz").write_bytes(b"others")
    assert failed(audit.verify(tmp_path / "out")) == {"artifacts/robustness.npz"}


@pytest.mark.parametrize(
    ("result", "gate", "code"),
    [
        (made(), False, 0),
        (made(k=300), False, 1),
        (made(0.95), False, 4),
        (made(None), False, 0),
        (made(None), True, 4),
        (made(None, gate=True), False, 4),
    ],
)
def test_the_exit_code_is_that_of_the_verdict(tmp_path, result, gate, code):
    found = audit.verify(written(result, tmp_path / "out"), gate=gate)
    assert found.holds, str(found)
    assert found.exit_code == code


def set_metric(text: dict[str, Any], **values: Any) -> None:
    text["checks"][0]["metrics"][0].update(values)


def set_limit(text: dict[str, Any], value: float) -> None:
    text["spec"]["config"]["policy"]["limit"][0]["min"] = value


EDITS: dict[str, tuple[Callable[[dict[str, Any]], None], set[str]]] = {
    "verdict": (lambda t: t.update(verdict="incomplete", exit_code=4), {"verdict"}),
    "exit code": (lambda t: t.update(exit_code=1), {"verdict"}),
    "sentence": (lambda t: t.update(sentence="All is well."), {"verdict"}),
    "a metric": (lambda t: set_metric(t, value=0.5, low=0.4, high=0.6), {"verdict"}),
    "a metric, on the same side": (lambda t: set_metric(t, value=0.97), {"report.html", "summary.md"}),
    "a bound": (lambda t: set_metric(t, low=0.94), {"verdict"}),
    "a limit": (lambda t: set_limit(t, 0.5), {"verdict", "policy"}),
    "a limit and what was judged": (
        lambda t: (set_limit(t, 0.5), t["policy"][0].update(min=0.5)),
        {"policy"},
    ),
    "the hash of the policy": (lambda t: t["spec"].update(policy_sha256="0" * 64), {"policy"}),
    "no limits": (lambda t: t["spec"]["config"]["policy"].update(limit=[]), {"verdict", "policy"}),
    "the gate": (lambda t: t["spec"]["config"]["run"].update(gate=True), {"report.html"}),
    "evidence": (lambda t: t["checks"][0]["evidence"][0].update(ok=False), {"verdict"}),
    "what evidence says": (lambda t: t["checks"][0]["evidence"][0].update(detail="fine"), {"report.html"}),
    "a judgement": (lambda t: t["policy"][0].update(bound=0.99), {"verdict"}),
    "a judgement's outcome": (lambda t: t["policy"][0].update(outcome="waived"), {"verdict"}),
    "a check in error": (lambda t: t["checks"][1].update(status="error"), {"verdict"}),
    "the hash of an artifact": (lambda t: t["checks"][1].update(artifact_sha256="0" * 64), {"artifacts/robustness.npz"}),
    "the model": (lambda t: t["model"].update(sha256="0" * 64), {"model"}),
    "the data": (lambda t: t["data"].update(sha256="0" * 64), {"data"}),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_of_the_result_is_found(run, name):
    change, expected = EDITS[name]
    edit(run, change)
    found = audit.verify(run, model=run.parent / "model.pt", data=run.parent / "test.npz")
    assert expected <= failed(found), str(found)
    assert found.exit_code == 3


def test_an_edit_that_is_judged_anew_is_found_in_the_report(run):
    """A stronger network, with the verdict and the judgements that it would have had."""

    def change(text: dict[str, Any]) -> None:
        set_metric(text, value=0.99, low=0.98, high=0.995)
        checks = [CheckResult.model_validate(entry) for entry in text["checks"]]
        verdict = judge(PolicySection.model_validate(text["spec"]["config"]["policy"]), checks, gate=False)
        text["policy"] = [judgement.model_dump(mode="json") for judgement in verdict.judgements]

    edit(run, change)
    found = audit.verify(run)
    assert {"report.html", "summary.md"} <= failed(found)
    assert "verdict" not in failed(found)


@pytest.mark.parametrize("name", ["report.html", "summary.md", "junit.xml", "artifacts/robustness.npz"])
def test_an_edited_file_is_found(run, name):
    path = run / name
    if not path.exists():
        pytest.skip(f"this version writes no {name}")
    path.write_bytes(path.read_bytes().replace(b"e", b"E", 1))
    assert failed(audit.verify(run)) == {name}


def test_swapped_files_are_found(run):
    (run.parent / "model.pt").write_bytes(DATA)
    (run.parent / "test.npz").write_bytes(MODEL)
    found = audit.verify(run, model=run.parent / "model.pt", data=run.parent / "test.npz")
    assert failed(found) == {"model", "data"}
    assert found.exit_code == 3


def test_artifacts_that_are_missing_or_not_of_the_run_are_found(run):
    (run / "artifacts" / "robustness.npz").rename(run / "artifacts" / "other.npz")
    assert failed(audit.verify(run)) == {"artifacts/robustness.npz", "artifacts/other.npz"}


@pytest.mark.parametrize("name", ["../model.pt", "/etc/passwd", "artifacts/../result.json"])
def test_an_artifact_outside_the_folder_is_not_read(run, name):
    edit(run, lambda t: t["checks"][1].update(artifact=name, artifact_sha256=sha256(MODEL)))
    found = audit.verify(run)
    assert name in failed(found)
    assert "not there" in str(found)


def test_reports_of_another_version_cannot_be_checked_but_the_verdict_can(tmp_path):
    result = made(k=300)
    result = result.model_copy(update={"spec": result.spec.model_copy(update={"audit_version": "0.0.9"})})
    found = audit.verify(written(result, tmp_path / "out"))
    assert {one.holds for one in found.tested if one.what in audit._renderers()} == {None}
    assert "audit 0.0.9" in str(found)
    assert (found.holds, found.exit_code) == (True, 1)
    edit(tmp_path / "out", lambda t: t.update(verdict="pass", exit_code=0))
    assert audit.verify(tmp_path / "out").exit_code == 3


def test_reports_drawn_with_another_matplotlib_cannot_be_checked(tmp_path):
    result = made()
    result = result.model_copy(
        update={"spec": result.spec.model_copy(update={"packages": {"matplotlib": "1.0", "torch": "9"}})}
    )
    found = audit.verify(written(result, tmp_path / "out"))
    assert "matplotlib 1.0" in str(found)
    assert "torch" not in str(found)
    assert {one.holds for one in found.tested if one.what in audit._renderers()} == {None}


def test_a_gate_that_was_weakened_for_the_run_shows(run):
    toml = run.parent / "audit.toml"
    for text, code in (
        ('[[policy.limit]]\nmetric = "performance.accuracy"\nmin = 0.9\n', 0),
        ('[[policy.limit]]\nmetric = "performance.accuracy"\nmin = 0.91\n', 3),
        ('[policy]\nconfidence = 0.99\n[[policy.limit]]\nmetric = "performance.accuracy"\nmin = 0.9\n', 3),
        ("", 3),
    ):
        toml.write_text(f"{text}[run]\nseed = 1\n")
        found = audit.verify(run, config=toml)
        assert failed(found) == ({"limits"} if code else set()), text
        assert found.exit_code == code


@pytest.mark.parametrize(
    ("ran", "profile", "holds"),
    [
        ({"eps": ["8/255"]}, "standard", True),
        ({"eps": ["1e-9"]}, "standard", False),
        ({}, "standard", False),
        ({"eps": "8/255"}, "quick", None),
        ({"eps": "8/255", "steps": 1}, "standard", None),
        ({"eps": "8/255", "steps": None}, "standard", True),
    ],
)
def test_an_attack_that_was_weakened_for_the_run_shows(tmp_path, ran, profile, holds):
    result = made()
    config = {**result.spec.config, "checks": {"robustness": ran}, "run": {"gate": False, "profile": profile}}
    result = result.model_copy(update={"spec": result.spec.model_copy(update={"config": config})})
    toml = tmp_path / "audit.toml"
    toml.write_text('[robustness]\neps = "8/255"\n[[policy.limit]]\nmetric = "performance.accuracy"\nmin = 0.9\n')
    found = audit.verify(written(result, tmp_path / "out"), config=toml)
    assert next(one for one in found.tested if one.what == "options").holds is holds, str(found)
    assert found.exit_code == (3 if holds is False else 0)


def test_a_missing_report_is_said(run):
    (run / "summary.md").unlink()
    found = audit.verify(run)
    assert next(one for one in found.tested if one.what == "summary.md").holds is None
    assert found.exit_code == 0


@pytest.mark.parametrize(("day", "code"), [(0, 0), (-1, 3)])
def test_a_waiver_that_ran_out_since_the_run_holds_no_more(tmp_path, day, code):
    today = datetime.now(UTC)
    waiver = {"metric": "performance.accuracy", "reason": "r", "owner": "o", "expires": (today + timedelta(day)).date()}
    limits = PolicySection.model_validate({"limit": [{"metric": "performance.accuracy", "min": 0.9}], "waiver": [waiver]})
    result = made(k=300).model_copy(update={"started_at": (today - timedelta(7)).strftime("%Y-%m-%dT%H:%M:%SZ")})
    verdict = judge(limits, result.checks, gate=False, today=(today - timedelta(7)).date())
    assert verdict.exit_code == 0
    spec = {"config": {"run": {}, "policy": limits.model_dump(mode="json")}, "policy_sha256": limits.sha256()}
    judged = {"verdict": verdict.word, "sentence": verdict.sentence, "exit_code": 0, "policy": verdict.judgements}
    result = result.model_copy(update={**judged, "spec": result.spec.model_copy(update=spec)})
    found = audit.verify(written(result, tmp_path / "out"))
    assert failed(found) == ({"waivers"} if day < 0 else set()), str(found)
    assert found.exit_code == code


def test_the_comparison_with_a_baseline_is_made_anew(tmp_path):
    from audit.compare import compare

    old, new = made(k=940), made(k=950)
    written(old, tmp_path / "old")
    content = (tmp_path / "old" / "result.json").read_bytes()
    new = new.model_copy(update={"comparison": compare(old, new, source="old", sha256=sha256(content), confidence=0.95)})
    verdict = judge(policy({"metric": "performance.accuracy", "min": 0.9}), new.checks, gate=False, comparison=new.comparison)
    judged = {"verdict": verdict.word, "sentence": verdict.sentence, "exit_code": verdict.exit_code}
    new = new.model_copy(update={**judged, "policy": verdict.judgements})
    run = written(new, tmp_path / "out")
    assert next(one for one in audit.verify(run).tested if one.what == "baseline").holds is None
    for given in (tmp_path / "old", tmp_path / "old" / "result.json"):
        assert next(one for one in audit.verify(run, baseline=given).tested if one.what == "baseline").holds, str(given)
    assert "baseline" in failed(audit.verify(run, baseline=run))
    edit(run, lambda t: t["comparison"]["changes"][0].update(change=0.5))
    assert "baseline" in failed(audit.verify(run, baseline=tmp_path / "old"))


def test_a_baseline_where_there_was_none_does_not_hold(run):
    assert failed(audit.verify(run, baseline=run)) == {"baseline"}


# --- nothing in the folder is trusted ---------------------------------------------------------------------------------

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"{", "not JSON"),
        (DEEP.encode(), "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b'{"verdict": NaN}', "no number of JSON"),
        (b"[]", "not a result"),
        (b'{"schema_version": "2"}', "not a result"),
    ],
)
def test_what_is_no_result_is_refused(run, content, said):
    (run / "result.json").write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        audit.verify(run)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("inside", [False, True])
def test_a_key_that_stands_twice_is_refused(run, inside):
    """One reader believes the first, another the last."""
    text = (run / "result.json").read_text()
    where = '"spec": {' if inside else "{"
    text = text.replace(where, f'{where} "{"confidence" if inside else "verdict"}": 0.5,', 1)
    (run / "result.json").write_text(text)
    with pytest.raises(InputError, match="stands twice"):
        audit.verify(run)


def test_links_pipes_and_floods_are_refused(run, monkeypatch):
    (run / "extra").symlink_to("/etc/passwd")
    with pytest.raises(InputError, match="extra, a link"):
        audit.verify(run)
    (run / "extra").unlink()
    report = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    (run.parent / "elsewhere").write_bytes(report)
    (run / "report.html").symlink_to(run.parent / "elsewhere")
    with pytest.raises(InputError, match=r"report\.html, a link"):
        audit.verify(run)
    (run / "report.html").unlink()
    os.mkfifo(run / "report.html")
    with pytest.raises(InputError, match="a pipe"):
        audit.verify(run)
    (run / "report.html").unlink()
    monkeypatch.setattr(signing, "MAX_FILES", 3)
    with pytest.raises(InputError, match="more than 3 files"):
        audit.verify(run)
    monkeypatch.undo()
    with (run / "sparse").open("wb") as file:
        file.truncate(2**36)
    with pytest.raises(InputError, match="bytes"):
        audit.verify(run)


def test_a_result_that_is_too_large_is_not_read(run, monkeypatch):
    monkeypatch.setattr(verifying, "MAX_RESULT", 100)
    with pytest.raises(InputError, match="too large"):
        audit.verify(run)


@pytest.mark.parametrize("place", ["nowhere", "out/result.json", "."])
def test_what_is_no_folder_of_a_run_is_said(run, place):
    with pytest.raises(InputError, match="expected a folder that audit run wrote"):
        audit.verify(run.parent / place)


def test_hostile_text_cannot_move_the_cursor(run):
    edit(run, lambda t: t.update(sentence="\x1b[2J\nholds  everything", started_at="2026-01-01T00:00:00Z\x1b]0;x\x07"))
    assert "\x1b" not in str(audit.verify(run))


@pytest.mark.slow
def test_the_command_line(run):
    def verify(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "audit", "verify", str(run), *arguments], capture_output=True, text=True)

    done = verify("--model", str(run.parent / "model.pt"), "--data", str(run.parent / "test.npz"))
    assert done.returncode == 0, done.stderr
    assert "could not be checked  signature" in done.stdout
    edit(run, lambda t: t.update(verdict="incomplete", exit_code=4))
    done = verify()
    assert done.returncode == 3
    assert "does not hold" in done.stdout
    assert "Not to be relied on" in done.stdout
    (run / "result.json").unlink()
    done = verify("--quiet")
    assert (done.returncode, done.stdout) == (3, "")
    assert "without result.json" in done.stderr


@pytest.mark.slow
def test_verifying_loads_no_torch(run):
    code = f"import audit, sys; audit.verify({str(run)!r}); assert not {{'torch', 'sklearn', 'pandas'}} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
