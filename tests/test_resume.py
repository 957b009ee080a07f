"""A run that is killed goes on where it stopped, and ends with the result of a run that nobody disturbed."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from audit.result import Result
from tests.test_runner import ARCH, same

pytestmark = pytest.mark.slow

KILLS = 10
ROWS = 3072  # six blocks a stage
PATIENCE = 120.0


@pytest.fixture(scope="module")
def command(digits_net: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return a run that lasts several seconds: the digits several times over, each a little different."""
    data = tmp_path_factory.mktemp("resume") / "test.npz"
    with np.load(digits_net / "test.npz") as file:
        x, y = np.resize(file["x"], (ROWS, 1, 8, 8)), np.resize(file["y"], ROWS)
    noise = np.random.default_rng(0).uniform(-0.02, 0.02, x.shape)
    np.savez(data, x=np.clip(x + noise, 0, 1).astype(np.float32), y=y)
    options = ["--checks", "performance,robustness", "--norm", "linf,l2", "--profile", "standard"]
    # Bounds of 3,072 samples take a minute, and their jobs go on like any other.
    budget = ["--set", "robustness.steps=16", "--set", "robustness.restarts=2", "--set", "robustness.certify=false"]
    model = [str(digits_net / "model.pt"), "--arch", ARCH, "--data", str(data)]
    return [sys.executable, "-m", "audit", "run", *model, *options, *budget]


@pytest.fixture(scope="module")
def undisturbed(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return out


def start(command: list[str], out: Path) -> subprocess.Popen[str]:
    # A shell's background job ignores SIGINT, and its children inherit that: a user's terminal does not.
    return subprocess.Popen(
        [*command, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


def jobs(out: Path) -> dict[str, int]:
    """Return the finished jobs of a run and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in out.glob(".jobs/*/[!.]*.npz")}


def wait_for(out: Path, finished: int, child: subprocess.Popen[str]) -> None:
    stop = time.monotonic() + PATIENCE
    while len(jobs(out)) < finished and child.poll() is None:
        assert time.monotonic() < stop, f"{finished} jobs were not finished in {PATIENCE} s"
        time.sleep(0.002)


def finish(command: list[str], out: Path, undisturbed: Path) -> None:
    """Let the run end, and hold it against the undisturbed one: what was finished is kept, and the result is the same."""
    before = jobs(out)
    child = start(command, out)
    _, errors = child.communicate(timeout=PATIENCE)
    assert child.returncode == 0, errors
    after = jobs(out)
    assert {name: after[name] for name in before} == before, "a finished job was done again"
    assert after.keys() == jobs(undisturbed).keys()
    assert len(after) > len(before) > 0
    one, two = Result.load(out), Result.load(undisturbed)
    assert [c.outcomes for c in one.checks] == [c.outcomes for c in two.checks]
    assert same(one, two)


@pytest.mark.timeout(300)
def test_killed_ten_times_it_ends_as_if_undisturbed(command, undisturbed, tmp_path):
    draw = random.Random(7)  # noqa: S311
    total = len(jobs(undisturbed))
    assert total > 2 * KILLS
    # The first moments lie before any job is finished: while Python starts, while the model is loaded.
    moments = [0, 0, *sorted(draw.sample(range(1, total - 2), KILLS - 2))]
    killed = 0
    for finished in moments:
        child = start(command, tmp_path)
        wait_for(tmp_path, finished, child)
        time.sleep(draw.uniform(0.0, 3.0) if finished == 0 else draw.uniform(0.0, 0.1))
        child.kill()
        child.communicate(timeout=PATIENCE)
        killed += child.returncode == -signal.SIGKILL
        assert not (tmp_path / "result.json").exists()
        assert not (tmp_path / "report.html").exists()
    assert killed == KILLS
    finish(command, tmp_path, undisturbed)


@pytest.mark.timeout(300)
def test_an_interrupted_run_says_so_and_can_be_resumed(command, undisturbed, tmp_path):
    for number, kept in ((signal.SIGINT, 3), (signal.SIGTERM, 12)):
        child = start(command, tmp_path)
        wait_for(tmp_path, kept, child)
        child.send_signal(number)
        _, errors = child.communicate(timeout=PATIENCE)
        assert child.returncode == 130, errors
        assert "audit: interrupted; finished jobs are kept: the same command goes on where it stopped" in errors
        assert "Traceback" not in errors
        assert not (tmp_path / "result.json").exists()
        assert len(jobs(tmp_path)) >= kept
    finish(command, tmp_path, undisturbed)
