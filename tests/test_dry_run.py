"""A dry run says what a run would do, keeps to what can be known, and neither measures nor writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from audit import stats, workflows
from audit.config import Limit
from audit.errors import DataError, UsageError
from audit.forecast import about, of_share
from tests.test_runner import ARCH, QUICK, fitted
from tests.test_stages import data

LIMITS = {"policy": {"limit": [{"metric": "performance.accuracy", "min": 0.9}]}}


def planned(**options):
    return workflows.dry_run(fitted(), data(), **options)


def test_it_plans_what_a_run_does():
    forecast = planned(checks=["performance", "robustness"], eps=0.1, settings=QUICK)
    text = forecast.text()
    result = workflows.run(fitted(), data(), checks=["performance", "robustness"], eps=0.1, settings=QUICK)
    parts = {part for check in result.checks for part in check.cost.parts}
    assert {stage.cost_of for stage in forecast.plan.stages} == parts
    assert all(f"  {stage.id} " in text for stage in forecast.plan.stages)
    assert "1,100" in text
    made = sum(check.cost.forwards + check.cost.backwards for check in result.checks)
    assert 0 < made <= 1.5 * sum(passes for _, _, passes, _ in forecast.stages)
    assert forecast.seconds > 0


def test_it_draws_the_sample_that_the_run_draws():
    forecast = planned(checks=["performance"], samples=50, seed=3)
    assert forecast.data.test.ids.tolist() == data().sample(50, 3).test.ids.tolist()
    assert "  predictions.test " in forecast.text()
    assert "50 samples" in forecast.text()


def test_a_gate_does_not_go_green_on_a_plan():
    assert planned(checks=["performance"], config=LIMITS).exit_code == 0
    assert planned(checks=["performance"], config=LIMITS, gate=True).exit_code == 4
    assert "no verdict" in planned(checks=["performance"]).text()


def test_what_would_stop_the_run_stops_the_plan():
    with pytest.raises(UsageError, match="no check"):
        planned(checks=["performanse"])
    with pytest.raises(UsageError, match="no check measures"):
        planned(config={"policy": {"limit": [{"metric": "performance.acuracy", "min": 0.9}]}})
    with pytest.raises(UsageError, match="max_drop"):
        planned(config={"policy": {"limit": [{"metric": "performance.accuracy", "max_drop": 0.1}]}})
    with pytest.raises(DataError):
        workflows.dry_run(nn.Linear(2, 2), {"x": np.zeros((3, 2), dtype=np.float32), "y": [0, 1, 7]})
    with pytest.raises(TypeError):
        planned(chekcs=["performance"])


def test_a_budget_is_held_against_the_estimate():
    options = {"checks": ["performance", "robustness"], "eps": 0.1}
    assert "budget: 1e-06 s, less than the passes may take" in planned(**options, budget=1e-6).text()
    assert "budget: 10 h, enough for the passes, not surely for what comes on top" in planned(**options, budget="10h").text()


def test_what_the_estimate_leaves_out_is_said():
    assert "they take most of the time" in planned(checks=["performance"]).text()
    assert "more for the explainers" in planned(checks=["explanation"]).text()
    assert "more for the explainers" not in planned(checks=["performance"]).text()


def test_checks_that_cannot_speak_for_their_limits_are_named():
    limits = [
        {"metric": "fairness.sex.worst_group_accuracy", "min": 0.5},
        {"metric": "robustness.linf.accuracy", "min": 0.5},
        {"metric": "performance.accuracy", "min": 0.9999},
        {"metric": "calibration.ece", "max": 0.05},
    ]
    forecast = planned(checks=["performance", "fairness"], config={"policy": {"limit": limits}})
    said = dict(forecast.limits)
    assert "does not apply" in said["fairness.sex.worst_group_accuracy at least 0.5"]
    assert "not in this run" in said["robustness.linf.accuracy at least 0.5"]
    assert "at least 36,887 are needed" in said["performance.accuracy at least 0.9999"]
    assert "once it is measured" in said["calibration.ece at most 0.05"]
    assert all(what in forecast.text() for what in said)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.floats(0.01, 0.99), st.booleans(), st.sampled_from([0.8, 0.95, 0.99]))
def test_what_is_said_of_a_share_is_what_the_policy_does(n, at, is_min, confidence):
    limit = Limit(metric="a.b", min=at) if is_min else Limit(metric="a.b", max=at)
    said = of_share(limit, n, confidence)
    intervals = [stats.clopper_pearson(k, n, confidence) for k in range(n + 1)]
    clears = [i.low >= at if is_min else i.high <= at for i in intervals]
    if not any(clears):
        assert "cannot be cleared" in said
        least = int(said.split("at least ")[1].split(" ")[0].replace(",", ""))
        for size, enough in ((least, True), (least - 1, False)):
            best = stats.clopper_pearson(size if is_min else 0, size, confidence) if size else None
            assert enough == (best is not None and (best.low >= at if is_min else best.high <= at))
        return
    best = min if is_min else max
    edge = best(k for k in range(n + 1) if clears[k]) / n
    assert f"{'from' if is_min else 'up to'} {edge:.4g}" in said
    fails = [k / n for k in range(n + 1) if (intervals[k].high < at if is_min else intervals[k].low > at)]
    assert ("fails" in said) == bool(fails)
    if fails:
        assert f"fails {'up to' if is_min else 'from'} {(max(fails) if is_min else min(fails)):.4g}" in said


def test_the_size_to_plan_for_is_the_one_that_is_said():
    said = of_share(Limit(metric="a.b", min=0.95), 599, 0.95)
    assert f"plan for {stats.plan_size('clopper-pearson', 0.97, 599, 0.0, 1.0, 0.95, 0.95):,} samples" in said


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.01, "below 0.1 s"), (0.14, "0.14 s"), (44.7, "45 s"), (720, "12 m"), (12600, "3.5 h"), (4e6, "1,100 h")],
)
def test_a_length_of_time(seconds, words):
    assert about(seconds) == words


def test_a_network_without_gradients_is_planned_too():
    class Hard(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = fitted()

        def forward(self, x):
            return self.inner(x.sign().detach())

    forecast = workflows.dry_run(Hard(), data(), checks=["performance"])
    assert forecast.seconds > 0


@pytest.mark.slow
def test_on_the_command_line_nothing_is_written(digits_net: Path, tmp_path: Path):
    command = [sys.executable, "-m", "audit", "run", str(digits_net / "model.pt"), "--arch", ARCH]
    command += ["--data", str(digits_net / "test.npz"), "--checks", "performance", "--dry-run"]
    for gate, code in (([], 0), (["--gate"], 4)):
        done = subprocess.run([*command, *gate], capture_output=True, text=True, cwd=tmp_path, timeout=120)
        assert done.returncode == code, done.stderr
        assert "predictions.test" in done.stdout
        assert list(tmp_path.iterdir()) == []
