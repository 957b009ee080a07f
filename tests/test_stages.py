"""Stages beyond blocks of test samples: whole ones, those that wait by pattern, and those over the anomalies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import audit
from audit.checks import base
from audit.checks.base import Answer, Check, Stage
from audit.data.base import Dataset
from audit.errors import DataError, UsageError
from audit.progress import Progress
from audit.result import CheckResult, Result
from tests.test_runner import fitted, plain_check, stage

N, ODD = 1100, 7  # three blocks; anomalies


@pytest.fixture
def add(monkeypatch):
    """Register checks for one test; what `audit.checks.base` knows is put back after."""
    base.registry()
    monkeypatch.setattr(base, "_checks", dict(base._checks))
    return base.check


def data(*, anomalies: bool = True) -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 2)).astype(np.float32)
    odd = rng.normal(9, 1, size=(ODD, 2)).astype(np.float32) if anomalies else None
    return Dataset(x, (x[:, 0] > 0).astype(int), anomalies=odd)


def run(*ids: str, **options: Any) -> Result:
    samples = options.pop("data", None) or data()
    return audit.run(fitted(), samples, checks=list(ids), **options)


def keeping(seen: dict[str, Any]) -> Callable[..., CheckResult]:
    """Return a conclusion that keeps what the stages found."""

    def conclude(self: Check, task: Any, found: Any) -> CheckResult:
        seen.clear()
        seen.update(found)
        return Answer(type(self)).result(task, "done")

    return conclude


def fit(block: Any) -> dict[str, np.ndarray]:
    """Fit what a detector fits: arrays of any shape, of which none has a row a sample."""
    x = block.x.numpy()
    names = np.array(["one", "two"])
    return {
        "center": x.mean(axis=0),
        "n": np.asarray(len(x)),
        "names": names,
        "basis": np.zeros((3, 2, 5)),
        "none": np.zeros((0, 4)),
    }


# --- whole stages -----------------------------------------------------------------------------------------------------


def test_a_whole_stage_is_called_once_and_may_return_any_shape(add):
    seen: dict[str, Any] = {}
    calls: list[int] = []

    def job(block: Any) -> dict[str, np.ndarray]:
        calls.append(len(block.x))
        return fit(block)

    add(plain_check("mine", [stage("mine.fit", job, whole=True)], keeping(seen)))
    assert run("mine")["mine"].status == "measured"
    assert calls == [N]
    assert {name: array.shape for name, array in seen["mine.fit"].arrays.items()} == {
        "center": (2,), "n": (), "names": (2,), "basis": (3, 2, 5), "none": (0, 4),
    }  # fmt: skip
    assert np.allclose(seen["mine.fit"]["center"], data().test.x.mean(axis=0), atol=1e-6)
    assert seen["mine.fit"].positions.tolist() == list(range(N))


def test_without_it_a_job_is_called_block_by_block_and_must_return_rows(add):
    add(plain_check("mine", [stage("mine.fit", fit)]))
    result = run("mine")["mine"]
    assert result.status == "error"
    assert "a row for each of 512 samples" in str(result.reason)


def test_a_later_stage_reads_what_a_whole_one_fitted(add):
    seen: dict[str, Any] = {}

    def score(block: Any) -> dict[str, np.ndarray]:
        return {"score": np.abs(block.x.numpy() - block.earlier["mine.fit"]["center"]).sum(axis=1)}

    stages = [stage("mine.score", score, after=("mine.fit",)), stage("mine.fit", fit, whole=True)]
    add(plain_check("mine", stages, keeping(seen)))
    run("mine")
    x = data().test.x
    assert np.allclose(seen["mine.score"]["score"], np.abs(x - x.mean(axis=0)).sum(axis=1), atol=1e-5)


def test_a_whole_stage_runs_on_what_it_selects(add):
    seen: dict[str, Any] = {}
    chosen = np.arange(700, 600, -1)
    add(plain_check("mine", [stage("mine.fit", fit, whole=True, select=lambda _: chosen)], keeping(seen)))
    run("mine")
    assert seen["mine.fit"]["n"] == 100
    assert np.allclose(seen["mine.fit"]["center"], data().test.x[601:701].mean(axis=0), atol=1e-6)
    assert seen["mine.fit"].positions.tolist() == sorted(chosen)


def test_a_whole_stage_is_stored_and_taken_up_again(add, tmp_path: Path):
    seen: dict[str, Any] = {}
    calls: list[int] = []

    def job(block: Any) -> dict[str, np.ndarray]:
        calls.append(len(block.x))
        return fit(block)

    add(plain_check("mine", [stage("mine.fit", job, whole=True)], keeping(seen)))
    run("mine", out=tmp_path)
    first = dict(seen["mine.fit"].arrays)
    run("mine", out=tmp_path)
    assert calls == [N]
    again = seen["mine.fit"].arrays
    assert again.keys() == first.keys()
    for name, array in first.items():
        assert (again[name].dtype, again[name].shape) == (array.dtype, array.shape)
        assert np.array_equal(again[name], array)
    run("mine", out=tmp_path, fresh=True)
    assert calls == [N, N]


def test_a_stored_stage_is_not_taken_for_that_of_other_samples(add, tmp_path: Path):
    seen: dict[str, Any] = {}
    chosen = [np.arange(10)]
    add(plain_check("mine", [stage("mine.fit", fit, whole=True, select=lambda _: chosen[0])], keeping(seen)))
    run("mine", out=tmp_path)
    chosen[0] = np.arange(20)
    run("mine", out=tmp_path)
    assert seen["mine.fit"]["n"] == 20


def test_a_whole_stage_that_holds_inputs_is_not_stored_where_none_may_be(add, tmp_path: Path):
    def job(block: Any) -> dict[str, np.ndarray]:
        return {"nearest": block.x.numpy()[:3].copy()}

    stages = [stage("mine.said", job, whole=True, holds_inputs=True), stage("mine.silent", job, whole=True), stage("mine.ids")]
    add(plain_check("mine", stages))
    run("mine", out=tmp_path / "kept")
    run("mine", out=tmp_path / "bare", save_samples=False)
    stored = {name: {path.name for path in (tmp_path / name).glob(".jobs/*/*.npz")} for name in ("kept", "bare")}
    assert {"mine.said-0.npz", "mine.silent-0.npz"} <= stored["kept"]
    assert stored["bare"] == {"mine.ids-0.npz", "mine.ids-512.npz", "mine.ids-1024.npz"}


def test_a_whole_stage_counts_its_passes_and_fills_the_plan(add):
    told: list[float] = []

    class Counting(Progress):
        def plan(self, passes: float) -> None:
            told.append(passes)

        def advance(self, stage_id: str, passes: float, **_: Any) -> None:
            told[0] -= passes

    def stages(task: Any) -> list[Stage]:
        def job(block: Any) -> dict[str, np.ndarray]:
            return {"sum": task.model.logits(block.x).detach().numpy().sum(axis=0)}

        return [stage("mine.fit", job, whole=True, select=lambda _: np.arange(300), passes=2.0)]

    add(plain_check("mine", stages))
    result = run("mine", progress=Counting(quiet=True))
    assert result["mine"].cost.parts["mine.fit.cost"].forwards == 300
    assert told == [0]  # all that was planned was done


@pytest.mark.parametrize("wrong", [[1, 2], {"a": [1, 2]}, {"a": np.array([object()])}, {"a": None}])
def test_a_whole_stage_returns_arrays_alone(add, wrong: Any):
    add(plain_check("mine", [stage("mine.fit", lambda _: wrong, whole=True)]))
    assert run("mine")["mine"].status == "error"


# --- waiting by pattern -----------------------------------------------------------------------------------------------


def noted(ran: list[str], name: str, *, fails: bool = False, **more: Any) -> Stage:
    def job(block: Any) -> dict[str, np.ndarray]:
        if name not in ran:
            ran.append(name)
        if fails:
            raise RuntimeError(f"boom in {name}")
        return {"ids": block.ids.numpy()}

    return stage(name, job, **more)


def test_a_pattern_waits_for_all_that_it_fits_of_whatever_check(add):
    ran: list[str] = []
    add(plain_check("watcher", [noted(ran, "watcher.last", after=("attack.*", "other.one"))]))
    add(plain_check("other", [noted(ran, "other.one", after=("attack.two",)), noted(ran, "other.free")]))
    add(plain_check("attack", [noted(ran, "attack.two", after=("attack.one",)), noted(ran, "attack.one")]))
    result = run("watcher", "other", "attack")
    assert {check.status for check in result.checks} == {"measured"}
    for earlier in ("attack.one", "attack.two", "other.one"):
        assert ran.index(earlier) < ran.index("watcher.last")


def test_a_pattern_that_fits_nothing_waits_for_nothing(add):
    add(plain_check("watcher", [noted([], "watcher.last", after=("attack.*",))]))
    assert run("watcher")["watcher"].status == "measured"


def test_a_pattern_goes_on_where_what_it_fits_failed(add):
    ran: list[str] = []
    seen: dict[str, Any] = {}
    stages = [noted(ran, "attack.bad", fails=True), noted(ran, "attack.good")]
    add(plain_check("attack", stages))
    add(plain_check("watcher", [noted(ran, "watcher.last", after=("attack.*",))], keeping(seen)))
    result = run("watcher", "attack")
    assert result["attack"].status == "error"
    assert result["watcher"].status == "measured"
    assert ran[-1] == "watcher.last"
    assert "attack.good" in seen
    assert "attack.bad" not in seen


def test_a_name_does_not_go_on_where_the_stage_failed(add):
    ran: list[str] = []
    add(plain_check("attack", [noted(ran, "attack.bad", fails=True)]))
    add(plain_check("watcher", [noted(ran, "watcher.last", after=("attack.*", "attack.bad"))]))
    result = run("watcher", "attack")
    assert result["watcher"].status == "error"
    assert "boom in attack.bad" in str(result["watcher"].reason)
    assert "watcher.last" not in ran


def test_a_stage_does_not_wait_for_itself(add):
    ran: list[str] = []
    add(plain_check("mine", [noted(ran, "mine.last", after=("mine.*",)), noted(ran, "mine.first")]))
    assert run("mine")["mine"].status == "measured"
    assert ran == ["mine.first", "mine.last"]


@pytest.mark.parametrize("after", [("mine.*",), ("*",), ("mine.?",)])
def test_patterns_that_wait_for_each_other_are_refused(add, after: tuple[str, ...]):
    add(plain_check("mine", [stage("mine.a", after=after), stage("mine.b", after=after)]))
    with pytest.raises(UsageError, match=r"wait for each other: mine\.a, mine\.b"):
        run("mine")


def test_a_circle_through_a_pattern_and_a_name_is_refused(add):
    add(plain_check("one", [stage("one.a", after=("two.*",))]))
    add(plain_check("two", [stage("two.b", after=("one.a",))]))
    with pytest.raises(UsageError, match="wait for each other"):
        run("one", "two")
    assert run("one")["one"].status == "measured"  # alone, there is nothing to wait for


# --- the anomalies ------------------------------------------------------------------------------------------------------


def test_a_stage_over_the_anomalies_sees_them_and_their_ids(add):
    seen: dict[str, Any] = {}

    def job(block: Any) -> dict[str, np.ndarray]:
        return {"x": block.x.numpy(), "ids": block.ids.numpy()}

    stages = [stage("mine.odd", job, part="anomalies"), stage("mine.fit", fit, part="anomalies", whole=True)]
    add(plain_check("mine", stages, keeping(seen)))
    assert run("mine")["mine"].status == "measured"
    anomalies = data().anomalies
    assert anomalies is not None
    assert np.array_equal(seen["mine.odd"]["x"], anomalies.x)
    assert seen["mine.odd"]["ids"].tolist() == list(range(ODD))
    assert seen["mine.fit"]["n"] == ODD


def test_a_stage_over_anomalies_that_there_are_not_is_an_error_of_its_check(add):
    add(plain_check("mine", [stage("mine.odd", part="anomalies")]))
    result = run("mine", "performance", data=data(anomalies=False))
    assert result["mine"].status == "error"
    assert result["performance"].status == "measured"


def test_jobs_over_other_anomalies_are_done_again(add, tmp_path: Path):
    seen: dict[str, Any] = {}
    add(plain_check("mine", [stage("mine.fit", fit, part="anomalies", whole=True)], keeping(seen)))
    run("mine", out=tmp_path)
    before = seen["mine.fit"]["center"]
    x, y = data().test.x, data().test.y
    run("mine", out=tmp_path, data=Dataset(x, y, anomalies=np.full((ODD, 2), -3.0, dtype=np.float32)))
    assert not np.allclose(seen["mine.fit"]["center"], before)


def test_parts_are_named():
    samples = data()
    assert samples.part("anomalies") is samples.anomalies
    assert samples.part("reference") is None
    with pytest.raises(DataError, match="give --reference"):
        samples.tensor(np.arange(1), "reference")
