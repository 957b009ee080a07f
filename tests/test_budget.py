"""A budget ends a run promptly and honestly: what it cut off is incomplete, and going on gives what an unbounded run gives."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import audit
import audit.budget
from audit import provenance
from audit.anomaly import AutoencoderDetector
from audit.budget import Budget, check_deadline, span, until
from audit.checks import base
from audit.checks.base import Answer, Check
from audit.config import resolve, seconds
from audit.data.base import Dataset
from audit.errors import BudgetSpent, UsageError
from audit.model.wrapper import Model
from audit.policy import judge_again
from audit.result import CheckResult, Result
from tests.test_runner import QUICK, fitted, plain_check, same, small, stage

TICK = 1e6  # seconds of the clock that stands still but where the deadline is looked at


@pytest.fixture
def add(monkeypatch):
    """Register checks for one test; what `audit.checks.base` knows is put back after."""
    base.registry()
    monkeypatch.setattr(base, "_checks", dict(base._checks))
    return base.check


@pytest.fixture
def ticking(monkeypatch):
    """Let the budget's clock go on by a tick each time that the deadline is looked at, so that runs end where a test says."""
    start, looks = time.monotonic(), [0]

    def monotonic() -> float:
        looks[0] += 1
        return start + TICK * looks[0]

    def begin() -> None:
        looks[0] = 0

    monkeypatch.setattr(audit.budget, "time", SimpleNamespace(monotonic=monotonic))
    return SimpleNamespace(begin=begin, looks=lambda: looks[0])


class Slow(nn.Module):
    """The network of `fitted`, which takes its time."""

    def __init__(self, pause: float) -> None:
        super().__init__()
        self.inner, self.pause = fitted(), pause

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.pause)
        out: torch.Tensor = self.inner(x)
        return out


def reads(found: Any = None, *, name: str = "mine", calls: int = 1):
    """Return a job that runs the network so many times."""

    def job(block: Any) -> dict[str, np.ndarray]:
        network = found or Model(fitted())
        for _ in range(calls):
            out = network.logits(block.x)
        return {name: out.detach().numpy()}

    return job


# --- going on -------------------------------------------------------------------------------------------------------------


BOTH: dict[str, Any] = {"n": 600, "checks": ["performance", "robustness"], "eps": 0.1, "settings": QUICK}  # two blocks


@pytest.fixture(scope="module")
def unbounded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    out = tmp_path_factory.mktemp("unbounded")
    return small(**BOTH, out=out), out


@pytest.fixture(autouse=True)
def one_version(monkeypatch):
    """Let no source file that somebody edits meanwhile make other jobs of the same ones."""
    monkeypatch.setattr(provenance, "_package_sources", lambda: "")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.95])
def test_wherever_it_cuts_going_on_ends_as_an_unbounded_run(unbounded, ticking, tmp_path, share):
    whole, folder = unbounded
    ticking.begin()
    small(**BOTH, budget=1e12)
    at = int(ticking.looks() * share)
    ticking.begin()
    cut = small(**BOTH, out=tmp_path, budget=(at + 0.5) * TICK)
    assert (cut.verdict, cut.exit_code) == ("incomplete", 4)
    assert ticking.looks() <= at + 100  # each stage and conclusion that is left may look once more
    unfinished = [check for check in cut.checks if check.status == "incomplete"]
    assert unfinished
    for check in unfinished:
        assert not check.metrics
        assert check.not_tested
        assert "the budget of" in str(check.reason)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob(".jobs/*/*.npz")}
    ticking.begin()
    again = small(**BOTH, out=tmp_path)
    assert same(again, whole)
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob(".jobs/*/*.npz")}
    assert {name: after[name] for name in before} == before, "a finished job was done again"
    assert after.keys() == {path.name for path in folder.glob(".jobs/*/*.npz")}
    arrays = [np.load(where / "artifacts" / "robustness.npz") for where in (tmp_path, folder)]
    assert all(np.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[0].files)


@pytest.mark.slow
def test_runs_under_one_budget_after_the_other_end_as_an_unbounded_run(unbounded, ticking, tmp_path):
    ticking.begin()
    small(**BOTH, budget=1e12)
    budget = 0.6 * TICK * ticking.looks()  # longer than the longest job
    verdicts = []
    for _ in range(9):
        ticking.begin()
        result = small(**BOTH, out=tmp_path, budget=budget)
        verdicts.append(result.verdict)
        if result.verdict != "incomplete":
            break
    assert verdicts[-1] == "unjudged"
    assert len(verdicts) > 1
    config = {**result.spec.config, "run": {**result.spec.config["run"], "budget": None}}
    assert same(result.model_copy(update={"spec": result.spec.model_copy(update={"config": config})}), unbounded[0])


def test_a_budget_that_suffices_changes_nothing(unbounded):
    result = small(**BOTH, budget="1h")
    assert result.verdict == "unjudged"
    assert result.metrics() == unbounded[0].metrics()


# --- promptness -----------------------------------------------------------------------------------------------------------


def test_a_run_ends_soon_after_its_deadline_also_inside_a_long_job():
    start = time.monotonic()
    result = small(n=500, module=Slow(0.02), checks=["robustness"], budget=1.0, eps=0.1, settings=["robustness.steps=5000"])
    assert result.verdict == "incomplete"
    assert 1.0 <= result.seconds < 2.0
    assert time.monotonic() - start < 10


def test_the_training_of_a_detector_is_cut():
    x = np.random.default_rng(0).normal(size=(4000, 20))
    AutoencoderDetector(steps=1).fit(x[:200])  # what is imported on first use takes longer than the training
    start = time.monotonic()
    with until(start + 0.3), pytest.raises(BudgetSpent):
        AutoencoderDetector(steps=10**6, patience=1.0).fit(x)
    assert time.monotonic() - start < 2


def test_after_it_ran_out_the_model_is_as_it_was():
    network = Slow(0.01).train()
    model = Model(network, task="classification", classes=2)
    with until(time.monotonic() - 1), pytest.raises(BudgetSpent):
        model.gradient(lambda out: out[:, 0], torch.zeros(4, 2))
    assert network.training
    assert all(p.requires_grad for p in network.parameters())
    assert model.predict(torch.zeros(4, 2)).shape == (4,)  # the deadline is gone with its block


def test_a_deadline_inside_another_ends_with_it():
    with until(time.monotonic() - 1):
        with until(None):
            check_deadline()
        with pytest.raises(BudgetSpent):
            check_deadline()
    check_deadline()


# --- honesty --------------------------------------------------------------------------------------------------------------


def test_no_broad_except_takes_it_for_an_answer(add, ticking):
    class Deaf(Check):
        id, question = "deaf", "?"

        def stages(self, task):
            def job(block):
                refused = np.zeros(len(block.x), dtype=bool)
                for i in range(len(block.x)):
                    try:
                        task.model.logits(block.x[i : i + 1])
                    except Exception:
                        refused[i] = True
                return {"refused": refused}

            return [stage("deaf.ask", job)]

        def conclude(self, task, found):
            return Answer(type(self)).result(task, f"{found['deaf.ask']['refused'].sum()} were refused")

    add(Deaf)
    ticking.begin()
    result = small(checks=["deaf"], budget=20.5 * TICK)["deaf"]
    assert result.status == "incomplete"
    assert "refused" not in result.answer
    assert "0 of about 40 passes were made" in str(result.reason)


def test_limits_on_checks_that_finished_do_not_pass_the_run(ticking, tmp_path):
    limits = {"policy": {"limit": [{"metric": "performance.accuracy", "min": 0.5}]}}
    options = {"checks": ["performance", "robustness"], "eps": 0.1, "config": limits, "gate": True, "out": tmp_path}
    assert small(**options).verdict == "pass"
    ticking.begin()
    cut = small(**options, fresh=True, budget=150.5 * TICK)
    assert [check.status for check in cut.checks] == ["measured", "incomplete"]
    assert [judgement.outcome for judgement in cut.policy] == ["pass"]
    assert (cut.verdict, cut.exit_code) == ("incomplete", 4)
    assert "robustness" in cut.sentence
    assert judge_again(cut).word == "incomplete"
    with pytest.raises(audit.PolicyFailed) as caught:
        audit.require(cut)
    assert caught.value.exit_code == 4


def test_a_stage_that_waits_for_one_that_was_cut_is_not_run_with_less(add, ticking, tmp_path):
    # Its own job is stored, from a run in which the first stage failed: used now, it would speak for one that is only late.
    seen: list[bool] = []
    faulty = [True]

    def first(block):
        if faulty[0]:
            raise ValueError("not this time")
        return reads(calls=50)(block)

    def second(block):
        seen.append("mine.first" in block.earlier)
        return {"b": np.zeros(len(block.x))}

    add(plain_check("mine", [stage("mine.first", first)]))
    add(plain_check("other", [stage("other.second", second, after=("mine.*",))]))
    small(checks=["mine", "other"], out=tmp_path)
    faulty[0] = False
    ticking.begin()
    cut = small(checks=["mine", "other"], out=tmp_path, budget=10.5 * TICK)
    assert [check.status for check in cut.checks] == ["incomplete", "incomplete"]
    assert seen == [False]


def test_a_stage_that_failed_stays_an_error(add, ticking):
    def fault(block):
        raise ValueError("odd")

    add(plain_check("mine", [stage("mine.first", fault), stage("mine.second", reads(calls=50))]))
    ticking.begin()
    result = small(checks=["mine"], budget=10.5 * TICK)
    assert result["mine"].status == "error"
    assert result.verdict == "incomplete"


def test_a_conclusion_that_needs_passes_is_cut_too(add, ticking, tmp_path):
    class Late(Check):
        id, question = "late", "?"

        def stages(self, task):
            return [stage("late.ask", reads(task.model))]

        def conclude(self, task, found):
            for _ in range(20):
                task.model.logits(torch.zeros(1, 2))
            return Answer(type(self)).result(task, "done")

    add(Late)
    assert small(checks=["late"])["late"].status == "measured"
    ticking.begin()
    result = small(checks=["late"], budget=10.5 * TICK, out=tmp_path)["late"]
    assert result.status == "incomplete"
    assert "what it needs was measured, but not concluded from; the same command goes on" in str(result.reason)
    assert result.artifact is None


def test_examples_that_need_passes_are_missed_and_said_so(add, ticking, tmp_path):
    class Late(Check):
        id, question = "late", "?"

        def stages(self, task):
            return [stage("late.ask", reads(task.model))]

        def conclude(self, task, found):
            return Answer(type(self)).result(task, "done")

        def artifact(self, task, found):
            for _ in range(20):
                task.model.logits(torch.zeros(1, 2))
            return {"x": np.zeros(3)}

    add(Late)
    ticking.begin()
    result = small(checks=["late"], budget=10.5 * TICK, out=tmp_path)["late"]
    assert result.status == "incomplete"
    assert "examples could not be collected: the budget" in str(result.reason)


def test_a_stated_accuracy_that_was_not_held_against_leaves_all_open(add, ticking, tmp_path):
    add(plain_check("mine", [stage("mine.first", reads())]))
    stated = {"checks": ["mine"], "expect_accuracy": 1.0, "out": tmp_path}
    assert small(**stated)["mine"].status == "measured"
    for job in tmp_path.glob(".jobs/*/predictions.test-*.npz"):
        job.unlink()
    ticking.begin()
    assert small(**stated, budget=0.5 * TICK)["mine"].status == "incomplete"


def test_no_inputs_are_left_out_of_the_count_where_none_may_be_stored(ticking, tmp_path):
    ticking.begin()
    result = small(checks=["performance"], budget=0.5 * TICK, out=tmp_path, save_samples=False)
    assert result.verdict == "incomplete"
    assert result.seconds >= 0
    assert Result.load(tmp_path).verdict == "incomplete"


# --- words ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [(600, "10 m"), (90, "1.5 m"), (100, "100 s"), (5400, "1.5 h"), (3600, "1 h"), (0.5, "0.5 s"), (86400, "24 h")],
)
def test_a_time_in_words(given, words):
    assert span(given) == words


@given(st.floats(0.001, 1e7))
def test_a_time_in_words_is_the_time(given):
    assert seconds(span(given).replace(" ", "")) == pytest.approx(given, rel=6e-3)


def test_the_reason_says_what_to_do():
    kept = Budget(600.0, 0.0, kept=True, stored=3)
    assert kept.reason("x") == "the budget of 10 m ran out: x; the same command goes on where it stopped"
    assert "give a larger budget" in Budget(1.0, 0.0, kept=True).reason("x")
    assert "give one" in Budget(1.0, 0.0, kept=False, stored=3).reason("x")


@pytest.mark.parametrize("bad", ["soon", "0", "-1s", "nan", float("nan"), float("inf"), 0, -5, "1e3"])
def test_a_budget_is_a_time_above_zero(bad):
    with pytest.raises(UsageError, match=r"run\.budget"):
        resolve({"run": {"budget": bad}}, [])


def test_it_can_stand_in_a_file(tmp_path):
    (tmp_path / "audit.toml").write_text('[run]\nbudget = "1.5h"\n')
    result = small(config=tmp_path / "audit.toml")
    assert json.loads(result.to_json())["spec"]["config"]["run"]["budget"] == 5400


def test_hardening_refuses_a_budget(digits_net):
    with pytest.raises(UsageError, match="--max-time"):
        audit.harden(digits_net / "model.pt", digits_net / "test.npz", config={"run": {"budget": "10m"}})


def test_the_data_is_untouched_by_a_cut_run(ticking):
    data = Dataset(np.zeros((4, 2), dtype=np.float32), [0, 1, 0, 1])
    before = data.test.sha256()
    ticking.begin()
    result: CheckResult = audit.run(fitted(), data, checks=["performance"], budget=0.5 * TICK)["performance"]
    assert result.status == "incomplete"
    assert data.test.sha256() == before
