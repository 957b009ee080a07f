"""Finished jobs are kept, damaged ones done again; progress says how far a run is and how long it will take."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audit import progress as progress_module
from audit.cache import COST, Cache, FinishedJob, run_key
from audit.errors import OutputError
from audit.progress import Progress
from audit.result import Passes


def job(value: float = 1.0) -> FinishedJob:
    return FinishedJob(
        {"x": np.full((3, 2), value), "ok": np.asarray([True, False, True])}, Passes(forwards=3, backwards=2, seconds=0.5)
    )


def same(a: FinishedJob | None, b: FinishedJob) -> bool:
    return (
        a is not None
        and a.cost == b.cost
        and sorted(a.arrays) == sorted(b.arrays)
        and all(
            np.array_equal(a.arrays[name], b.arrays[name]) and a.arrays[name].dtype == b.arrays[name].dtype for name in a.arrays
        )
    )


def test_a_finished_job_comes_back(tmp_path: Path):
    cache = Cache(tmp_path / "out", "key")
    assert cache.get("stage", 0) is None
    cache.put("stage", 0, job())
    cache.put("stage", 512, job(2.0))
    assert same(cache.get("stage", 0), job())
    again = Cache(tmp_path / "out", "key")
    assert same(again.get("stage", 512), job(2.0))
    assert again.get("other", 0) is None
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]


def test_jobs_of_other_runs_are_forgotten(tmp_path: Path):
    one, two = "1" * 32, "2" * 32
    Cache(tmp_path, one).put("stage", 0, job())
    assert same(Cache(tmp_path, one).get("stage", 0), job())
    assert Cache(tmp_path, two).get("stage", 0) is None
    assert Cache(tmp_path, one).get("stage", 0) is None
    Cache(tmp_path, one).put("stage", 0, job())
    assert Cache(tmp_path, one, fresh=True).get("stage", 0) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04", b"not an archive", None],
    ids=["empty", "cut", "text", "objects"],
)
def test_a_damaged_job_is_done_again(content: bytes | None, tmp_path: Path):
    cache = Cache(tmp_path, "key")
    cache.put("stage", 0, job())
    path = next(tmp_path.rglob("stage-0.npz"))
    if content is None:
        np.savez(path, **{COST: np.ones(3), "x": np.asarray([{}], dtype=object)})  # type: ignore[arg-type]
    else:
        path.write_bytes(content)
    assert cache.get("stage", 0) is None
    whole = io.BytesIO()
    np.savez(whole, x=np.ones(3))
    path.write_bytes(whole.getvalue())  # no cost in it
    assert cache.get("stage", 0) is None
    path.write_bytes(whole.getvalue()[:-30])
    assert cache.get("stage", 0) is None
    np.savez(path, **{COST: np.full(3, np.inf), "x": np.ones(3)})  # type: ignore[arg-type]
    assert cache.get("stage", 0) is None


def test_a_job_that_claims_more_than_the_memory_is_done_again(tmp_path: Path):
    cache = Cache(tmp_path, "key")
    cache.put("stage", 0, job())
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**55,)})
    with zipfile.ZipFile(next(tmp_path.rglob("stage-0.npz")), "a") as archive:
        archive.writestr("more.npy", header.getvalue())
    assert cache.get("stage", 0) is None


def test_nothing_is_stored_without_a_folder():
    cache = Cache(None, "key")
    cache.put("stage", 0, job())
    assert cache.get("stage", 0) is None


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="--out"):
        Cache(tmp_path / "file", "key")


def test_the_key_depends_on_everything_and_on_no_order():
    base: dict[str, Any] = {"model": ["a", 1], "config": {"x": 1, "y": None}}
    assert run_key(base) == run_key({"config": {"y": None, "x": 1}, "model": ["a", 1]})
    others = [{"model": ["a", 2]}, {"config": {"x": 1, "y": 0}}, {"more": 1}]
    assert len({run_key(base), *(run_key({**base, **other}) for other in others)}) == 4


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress_module.time, "monotonic", clock.monotonic)
    return clock


def test_plain_lines_come_now_and_then(clock: Clock):
    stream = io.StringIO()
    with Progress(stream=stream, every=10) as progress:
        progress.plan(100)
        progress.say("what will be done")
        clock.now += 5
        progress.advance("attack", 10)
        assert stream.getvalue() == "what will be done\n"
        clock.now += 15
        progress.advance("attack", 30)
        assert stream.getvalue().splitlines()[1:] == ["  40% done, attack, about 30 s left"]


def test_jobs_taken_over_do_not_speed_up_the_estimate(clock: Clock):
    progress = Progress(stream=io.StringIO())
    progress.plan(100)
    assert progress.left() == 0
    progress.advance("attack", 50, reused=True)
    assert progress.left() == 0, "nothing is known yet"
    clock.now += 10
    progress.advance("attack", 10)
    assert progress.left() == pytest.approx(40)
    progress.advance("attack", 100)
    assert progress.left() == 0


def test_quiet_says_nothing(clock: Clock):
    stream = io.StringIO()
    with Progress(stream=stream, quiet=True, every=0) as progress:
        progress.plan(10)
        progress.say("x")
        clock.now += 60
        progress.advance("x", 5)
    assert stream.getvalue() == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_that_shows_hostile_names_as_text():
    stream = Terminal()
    with Progress(stream=stream) as progress:
        progress.plan(10)
        progress.say("[bold]a stage[/bold] of [link=http://x]y[/link]")
        progress.advance("[red]attack[/red]", 5)
    assert "[bold]a stage[/bold] of [link=http://x]y[/link]" in stream.getvalue()


def test_the_bar_stops_when_the_run_fails():
    progress = Progress(stream=Terminal())

    def fails() -> None:
        with progress:
            progress.plan(10)
            raise KeyError("in the middle")

    with pytest.raises(KeyError):
        fails()
    assert progress._bar is not None
    assert not progress._bar.live.is_started
