"""Each way in which a run can find nothing ends a gate with 4, 3 or 2, never with 0; the clean twin ends with 0."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from audit.checks import base
from audit.checks.base import Answer, Check, MetricDoc
from audit.result import Metric, Result

ACCURATE = '[[policy.limit]]\nmetric = "performance.accuracy"\nmin = 0.8\n'
ALL = ["performance", "robustness", "corruption", "anomaly", "explanation", "fairness"]
ALL += ["boom", "hollow", "odd", "none", "lax", "weak"]  # of this file


@dataclass(frozen=True)
class Way:
    """One way of finding nothing: what is changed in a run that passes, and the code that it must end with."""

    name: str
    code: int
    said: str
    policy: str = ACCURATE
    more: tuple[str, ...] = ()
    prepare: Callable[[Path], object] = field(default=lambda folder: None)
    drop: tuple[str, ...] = ()


def limit(metric: str, side: str = "min", value: float = 0.1, more: str = "") -> str:
    return f'[[policy.limit]]\nmetric = "{metric}"\n{side} = {value}\n{more}'


# --- what is changed --------------------------------------------------------------------------------------------------


def network(module: nn.Module) -> Callable[[Path], object]:
    return lambda folder: torch.save(module, folder / "model.pt")


class Noisy(nn.Module):
    def forward(self, x):
        return x[:, :2] + torch.randn(len(x), 2)


def scaled(factor: float) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        module = separating()
        with torch.no_grad():
            module[0].weight.mul_(factor)
        torch.save(module, folder / "model.pt")

    return write


def rows(n: int, **columns: np.ndarray) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        x, y = samples(n)
        np.savez(folder / "test.npz", x=x, y=y, **columns)

    return write


def older(change: Callable[[dict], object]) -> Callable[[Path], object]:
    """Return what edits the older result that a run is compared with."""

    def write(folder: Path) -> None:
        path = folder / "old" / "result.json"
        held = json.loads(path.read_text())
        change(held)
        path.write_text(json.dumps(held))

    return write


def other_task(held: dict) -> None:
    held["model"]["task"], held["model"]["classes"] = "regression", None


def other_metric(held: dict) -> None:
    for check in held["checks"]:
        check["metrics"] = [metric for metric in check["metrics"] if metric["id"] != "performance.accuracy"]


def nothing_measured(held: dict) -> None:
    for check in held["checks"]:
        check.update(metrics=[], outcomes=None)


def of_a_group(n: int) -> Callable[[Path], object]:
    return rows(400, sensitive_g=np.asarray(["a"] * (400 - n) + ["b"] * n))


WAIVER = '[[policy.waiver]]\nmetric = "performance.accuracy"\nreason = "old"\nowner = "Ada"\nexpires = 2020-01-01\n'
BASELINE = ("--baseline", "old")
DROP = limit("performance.accuracy", "max_drop", 0.02)

WAYS = [
    Way("no data named", 2, "no data was given", drop=("--data", "test.npz")),
    Way("no model", 3, "cannot read the model", prepare=lambda folder: (folder / "model.pt").unlink()),
    Way("no data file", 3, "cannot read the data", prepare=lambda folder: (folder / "test.npz").unlink()),
    Way("data without rows", 3, "no rows", prepare=rows(0)),
    Way("an empty configuration", 2, "is empty", policy=""),
    Way("no limits", 4, "unjudged", policy="[policy]\n"),
    Way("an empty list of limits", 4, "unjudged", policy="[policy]\nlimit = []\n"),
    Way("no limit that is required", 4, "unjudged", policy=limit("performance.accuracy", more="required = false\n")),
    Way("no configuration", 2, "cannot read the configuration", more=("--config", "missing.toml")),
    Way("a configuration that is no TOML", 2, "not TOML", policy="[policy"),
    Way("a limit that is misspelt", 2, "mim", policy='[[policy.limit]]\nmetric = "performance.accuracy"\nmim = 0.9\n'),
    Way("all checks left out", 2, "no check is left", more=("--skip", ",".join(ALL))),
    Way("an unknown check", 2, "no check 'perfomance'", more=("--checks", "perfomance")),
    Way("a check in error", 4, "boom did not run|boom", more=("--checks", "performance,boom")),
    Way("a check that measures nothing", 4, "hollow", more=("--checks", "hollow"), policy="[policy]\n"),
    Way("a limit on a check that measures nothing", 4, "hollow", more=("--checks", "hollow"), policy=limit("hollow.share")),
    Way("a check that does not apply", 4, "fairness", more=("--checks", "performance,fairness")),
    Way("a limit on what does not apply", 4, "fairness", policy=limit("fairness.sex.worst_group_accuracy")),
    Way("a limit on a check that was left out", 4, "no check of this run", policy=limit("robustness.linf.accuracy")),
    Way("a limit on an unknown metric", 2, "no check measures", policy=limit("performance.acuracy")),
    Way("a limit on a metric that this run lacks", 4, "did not measure", policy=limit("performance.r2")),
    Way("a metric that is no number", 4, "no value|no interval", more=("--checks", "odd"), policy=limit("odd.share")),
    Way("a metric of no samples", 4, "no samples", more=("--checks", "none"), policy=limit("none.share")),
    Way("an interval of another confidence", 4, "confidence of", more=("--checks", "lax"), policy=limit("lax.share")),
    Way("evidence that does not hold", 4, "the attack did not attack", more=("--checks", "weak"), policy=limit("weak.share")),
    Way("outputs that are no numbers", 3, "NaN or infinity", prepare=scaled(float("nan"))),
    Way(
        "outputs of which some are no numbers", 4, "finite_outputs", prepare=scaled(3e38), policy=limit("performance.accuracy")
    ),
    Way(
        "outputs that change from call to call",
        4,
        "deterministic",
        prepare=network(Noisy()),
        more=("--trust-model",),
        policy=limit("performance.accuracy", value=0.01),
    ),
    Way("too few samples", 4, "the limit lies inside", prepare=rows(12), policy=limit("performance.accuracy", value=0.95)),
    Way(
        "a group of two people",
        4,
        "fewer than|group",
        prepare=of_a_group(2),
        more=("--checks", "performance,fairness"),
        policy=limit("fairness.g.worst_group_accuracy", value=0.01),
    ),
    Way(
        "one group only",
        4,
        "one group",
        prepare=of_a_group(0),
        more=("--checks", "performance,fairness"),
        policy=limit("fairness.g.demographic_parity_difference", "max", 0.9),
    ),
    Way("another accuracy than was stated", 4, "expect", more=("--expect-accuracy", "0.3")),
    Way("a budget that ran out", 4, "budget", more=("--budget", "0.001s")),
    Way("a dry run", 4, "", more=("--dry-run",)),
    Way("a gate that is taken back", 2, "--gate was given", more=("--set", "run.gate=false")),
    Way("a dry run whose gate is taken back", 2, "--gate was given", more=("--dry-run", "--set", "run.gate=false")),
    Way("a difference that nothing can exceed", 2, "below 1", policy=limit("corruption.noise.drop", "max", 5)),
    Way("a waiver that ran out", 1, "ran out", policy=limit("performance.accuracy", value=0.9999) + WAIVER, prepare=rows(2000)),
    Way("a waiver of no limit", 2, "no limit", policy=limit("performance.balanced_accuracy") + WAIVER),
    Way("a drop without a baseline", 2, "--baseline", policy=DROP),
    Way("a baseline that is not there", 3, "cannot read the result", policy=DROP, more=("--baseline", "older")),
    Way(
        "a baseline that was edited",
        3,
        "edited",
        policy=DROP,
        more=BASELINE,
        prepare=older(lambda held: held.update(verdict="fail", exit_code=1)),
    ),
    Way(
        "a baseline that is no result",
        3,
        "not a result",
        policy=DROP,
        more=BASELINE,
        prepare=lambda folder: (folder / "old" / "result.json").write_text("{}"),
    ),
    Way("a baseline of another task", 4, "task|compared", policy=DROP, more=BASELINE, prepare=older(other_task)),
    Way(
        "a baseline without that metric",
        4,
        "compared",
        policy=DROP,
        more=BASELINE,
        prepare=older(lambda held: (held.update(verdict="incomplete", exit_code=4), other_metric(held))),
    ),
    Way(
        "a baseline that measured nothing",
        4,
        "compared",
        more=BASELINE,
        prepare=older(lambda held: (held.update(verdict="incomplete", exit_code=4), nothing_measured(held))),
    ),
    Way(
        "many looks at what is no share",
        4,
        "no confidence sequence",
        policy='[policy]\nlooks = "many"\n' + limit("performance.balanced_accuracy"),
    ),
]


# --- checks that measure badly ----------------------------------------------------------------------------------------


def bad_check(check_id: str, **metric: object) -> type[Check]:
    class Bad(Check):
        id = check_id
        question = "?"
        metrics = (MetricDoc(f"{check_id}.share", "a share", "fraction", "0 to 1", "none", "none", "none"),)

        def stages(self, task):
            return []

        def conclude(self, task, found):
            if check_id == "boom":
                raise ArithmeticError("boom")
            answer = Answer(type(self))
            known = {"value": 0.9, "low": 0.85, "high": 0.95, "n": 100, "confidence": task.confidence} | metric
            if check_id != "hollow":
                answer.metrics.append(Metric(id=f"{check_id}.share", method="clopper-pearson", **known))
            result = answer.result(task, "It is measured.")
            if check_id == "weak":
                from audit.result import Evidence

                sound = Evidence(id="weak.sound", ok=False, detail="the attack did not attack")
                result = result.model_copy(update={"evidence": [sound]})
            return result

    return Bad


BAD = {
    "boom": {},
    "hollow": {},
    "odd": {"value": None, "low": None, "high": None},
    "none": {"n": 0},
    "lax": {"confidence": 0.5},
    "weak": {},
}


@pytest.fixture(autouse=True)
def _bad_checks(monkeypatch):
    known = base.registry()
    monkeypatch.setattr(base, "_checks", {**known, **{name: bad_check(name, **metric) for name, metric in BAD.items()}})


# --- the runs ---------------------------------------------------------------------------------------------------------


def separating() -> nn.Sequential:
    module = nn.Sequential(nn.Linear(4, 2))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[-1.0, 0, 0, 0], [1.0, 0, 0, 0]]))
        module[0].bias.zero_()
    return module


def samples(n: int) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(0)
    x = draws.normal(size=(n, 4)).astype(np.float32)
    return x, ((x[:, 0] > 0) ^ (draws.random(n) < 0.02)).astype(np.int64)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.save(separating(), "model.pt")
    rows(400)(tmp_path)
    return tmp_path


def words(way: Way | None = None, out: str = "out") -> list[str]:
    said = ["run", "model.pt", "--data", "test.npz", "--bounds", "-9,9", "--config", "audit.toml", "--out", out, "--gate"]
    if way is None:
        return [*said, "--checks", "performance"]
    said = [word for word in said if word not in way.drop]
    return [*said, *(() if {"--checks", "--skip"} & set(way.more) else ("--checks", "performance")), *way.more]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_a_run_that_finds_nothing_is_never_green(call, folder, way):
    (folder / "audit.toml").write_text(ACCURATE)
    if "--baseline" in way.more:
        code, out, err = call(*words(out="old"))
        assert code == 0, out + err
    (folder / "audit.toml").write_text(way.policy)
    way.prepare(folder)
    code, out, err = call(*words(way))
    said = " ".join((out + err).split())
    assert code == way.code, said
    assert any(part in said for part in way.said.split("|")), said
    result = folder / "out" / "result.json"
    if result.exists():
        assert Result.load(result).exit_code == code


@pytest.mark.parametrize("place", ["old", "old/result.json"])
def test_a_run_that_ends_early_leaves_no_older_verdict(call, folder, place):
    (folder / "audit.toml").write_text(ACCURATE)
    assert call(*words(out="old"))[0] == 0
    (folder / "model.pt").write_bytes(b"no network")
    assert call(*words(out="old"), "--baseline", place)[0] == 3
    assert Result.load("old").verdict == "pass", "what a run is compared with is kept until it is replaced"
    assert call(*words(out="old"))[0] == 3
    left = {path.name for path in (folder / "old").iterdir()}
    assert not left & {"result.json", "report.html", "junit.xml", "summary.md"}


@pytest.mark.parametrize("policy", [ACCURATE, ACCURATE + DROP, '[policy]\nlooks = "many"\n' + ACCURATE])
def test_the_clean_twin_is_green(call, folder, policy):
    (folder / "audit.toml").write_text(ACCURATE)
    assert call(*words(out="old"))[0] == 0
    (folder / "audit.toml").write_text(policy)
    code, out, err = call(*words(), *BASELINE)
    assert code == 0, out + err
    assert Result.load("out").verdict == "pass"


def test_without_a_gate_a_run_that_asks_nothing_is_unjudged_and_one_that_asks_is_not(call, folder):
    """What --gate adds is the run without limits; all other ways are closed without it, too."""
    (folder / "audit.toml").write_text("[policy]\n")
    code, out, _ = call(*(word for word in words() if word != "--gate"))
    assert (code, out.split(":")[0]) == (0, "unjudged")
    for way in WAYS:
        if way.name in (
            "a check in error",
            "a limit on an unknown metric",
            "evidence that does not hold",
            "a metric of no samples",
        ):
            (folder / "audit.toml").write_text(way.policy)
            assert call(*(word for word in words(way) if word != "--gate"))[0] == way.code, way.name
