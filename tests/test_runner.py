"""From plan to result: stages in order, shared work paid once, the same result for every batch size, faults kept apart."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import Field
from torch import nn

import audit
from audit import demo_nets, provenance
from audit.checks import base
from audit.checks.base import Answer, Check, CheckOptions, MetricDoc, Stage, predictions
from audit.config import Config
from audit.data.base import Dataset
from audit.errors import IncompleteError, OutputError, UsageError
from audit.model.wrapper import Model
from audit.preflight import preflight
from audit.progress import Progress
from audit.result import CheckResult, Evidence, Metric, Result

ARCH = f"{demo_nets.__file__}:DigitsNet"
QUICK = ["robustness.steps=4", "robustness.restarts=1", "robustness.noise_draws=2", "robustness.queries=20"]
LATER = ["corruption", "anomaly", "explanation"]  # not run in most tests here, which are of the runner and not of the checks

# All that may differ between two runs of one seed: times, and the places that were named. Everything else is equal.
TIMES = {"started_at", "seconds"}
PLACES = {("spec", "command"), ("spec", "config", "run", "out"), ("model", "source"), ("data", "source")}


def without_times_and_places(value: Any, at: tuple[str, ...] = ()) -> Any:
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in TIMES and (*at, k) not in PLACES}
        return {k: without_times_and_places(v, (*at, k)) for k, v in kept.items()}
    return [without_times_and_places(v, at) for v in value] if isinstance(value, list) else value


def same(one: Result, two: Result) -> bool:
    return without_times_and_places(json.loads(one.to_json())) == without_times_and_places(json.loads(two.to_json()))


def digits(folder: Path, **options: Any) -> Result:
    """Audit the digits network; few checks, and quick, unless other settings are given."""
    options = {"settings": QUICK, "skip": LATER, "samples": 100, "reference": folder / "train.npz"} | options
    return audit.run(folder / "model.pt", folder / "test.npz", arch=ARCH, **options)


def small(n: int = 40, module: nn.Module | None = None, **options: Any) -> Result:
    """Audit a tiny network on random rows of two columns."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(n, 2)).astype(np.float32)
    y = (x[:, 0] > 0).astype(int)
    options = {"checks": ["performance"]} | options
    return audit.run(module or fitted(), Dataset(x, y), **options)


def fitted() -> nn.Module:
    network = nn.Linear(2, 2)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
        network.bias.zero_()
    return network


@pytest.fixture
def add(monkeypatch):
    """Register checks for one test; what `audit.checks.base` knows is put back after."""
    base.registry()
    monkeypatch.setattr(base, "_checks", dict(base._checks))
    return base.check


def metric(metric_id: str, value: float = 0.5, **more: Any) -> Metric:
    return Metric(id=metric_id, value=value, low=value, high=value, confidence=0.95, n=1, method="given", **more)


def plain_check(check_id: str, stages: Any = (), conclude: Any = None, **members: Any) -> type[Check]:
    """Make a check class from its parts; unless told otherwise it measures ``<id>.value``."""

    def default(self: Check, task: Any, found: Any) -> CheckResult:
        answer = Answer(type(self))
        answer.metrics.append(metric(f"{check_id}.value"))
        return answer.result(task, "done")

    doc = MetricDoc(f"{check_id}.value", "A value", "unit", "any", "none", "none", "none")
    members = {
        "id": check_id,
        "question": f"What of {check_id}?",
        "metrics": (doc,),
        "stages": lambda self, task: stages(task) if callable(stages) else list(stages),
        "conclude": conclude or default,
        **members,
    }
    return type(check_id.title(), (Check,), members)


def stage(stage_id: str, job: Any = None, **more: Any) -> Stage:
    return Stage(id=stage_id, job=job or (lambda block: {"ids": block.ids.numpy()}), cost_of=f"{stage_id}.cost", **more)


# --- the same result, however it is computed --------------------------------------------------------------------------


@pytest.mark.slow
def test_one_seed_gives_one_result(digits_net, tmp_path):
    one, two = (digits(digits_net, out=tmp_path / name) for name in ("one", "two"))
    assert one.spec.config["run"]["out"] != two.spec.config["run"]["out"]
    assert same(one, two)
    other = digits(digits_net, seed=1)
    assert not same(one, other)
    assert one["robustness"].outcomes.ids_sha256 != other["robustness"].outcomes.ids_sha256


def outcomes(result: Result) -> np.ndarray:
    tables = [check.outcomes for check in result.checks if check.outcomes is not None]
    return np.concatenate([table.bits(name) for table in tables for name in table.names()])


@pytest.mark.slow
def test_outcomes_are_the_same_for_every_batch_size(digits_net):
    runs = {
        size: outcomes(digits(digits_net, samples=512, batch_size=size, checks=["performance", "robustness"]))
        for size in (1, 7, 256)
    }
    total = len(runs[256])
    assert total > 1000
    for size in (1, 7):
        differ = int((runs[size] != runs[256]).sum())
        assert differ * 1000 <= total, f"{differ} of {total} outcomes differ between batches of {size} and of 256"


class Starved(nn.Module):
    """A network that runs out of memory on more than eight samples."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.starve, self.refused = inner, True, 0

    def forward(self, x):
        if self.starve and len(x) > 8:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.inner(x)


@pytest.mark.slow
def test_a_run_that_runs_out_of_memory_ends_as_one_that_does_not(digits_net):
    network = Starved(demo_nets.DigitsNet())
    network.inner.load_state_dict(torch.load(digits_net / "model.pt", weights_only=True))
    data = Dataset.load(digits_net / "test.npz")
    options = {"settings": QUICK, "samples": 100, "checks": ["performance", "robustness"]}
    starved = audit.run(network, data, **options)
    assert network.refused > 2
    assert [check.status for check in starved.checks] == ["measured", "measured"], [c.reason for c in starved.checks]
    network.starve = False
    full = audit.run(network, data, **options)
    differ = int((outcomes(starved) != outcomes(full)).sum())
    assert differ == 0, f"{differ} of {len(outcomes(full))} outcomes differ"


@pytest.mark.slow
def test_the_network_comes_back_bit_for_bit(digits_net):
    network = demo_nets.DigitsNet()
    network.load_state_dict(torch.load(digits_net / "model.pt", weights_only=True))
    network.register_buffer("seen", torch.tensor([1.5]))
    network.features.eval()
    network.classifier[1].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    flags = [(m.training) for m in network.modules()], [p.requires_grad for p in network.parameters()]
    result = audit.run(network, Dataset.load(digits_net / "test.npz"), skip=LATER, settings=QUICK, samples=100)
    assert result["robustness"].status == "measured"
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert flags == ([(m.training) for m in network.modules()], [p.requires_grad for p in network.parameters()])
    assert all(p.grad is None for p in network.parameters())


def test_samples_are_drawn_by_class(tmp_path):
    x = np.random.default_rng(0).normal(size=(1000, 2)).astype(np.float32)
    y = np.repeat([0, 1, 2], [700, 200, 100])
    result = audit.run(nn.Linear(2, 3), Dataset(x, y), checks=["performance"], samples=50)
    assert result.data.n == 50
    assert result.data.rows == 1000
    used = np.unpackbits(np.frombuffer(__import__("base64").b64decode(result.data.sampled), dtype=np.uint8))[:1000]
    assert [int(used[y == label].sum()) for label in (0, 1, 2)] == [35, 10, 5]


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_stages_run_after_those_that_they_wait_for(add):
    ran: list[str] = []

    def noted(name: str, **more: Any) -> Stage:
        def job(block: Any) -> dict[str, np.ndarray]:
            ran.append(name)
            assert all(earlier in block.earlier for earlier in more.get("after", ()) if earlier != "no.such.stage")
            return {"ids": block.ids.numpy()}

        return stage(name, job, **more)

    last, middle = noted("mine.last", after=("mine.middle", "no.such.stage")), noted("mine.middle", after=("mine.first",))
    add(plain_check("mine", [last, middle, noted("mine.first")]))
    assert small(checks=["mine"])["mine"].status == "measured"
    assert ran == ["mine.first", "mine.middle", "mine.last"]


def test_stages_that_wait_for_each_other_are_refused(add):
    add(plain_check("mine", [stage("mine.a", after=("mine.b",)), stage("mine.b", after=("mine.a",))]))
    with pytest.raises(UsageError, match=r"wait for each other: mine\.a, mine\.b"):
        small(checks=["mine"])


@pytest.mark.parametrize("as_mask", [False, True])
def test_a_later_stage_runs_on_what_an_earlier_one_found(add, as_mask):
    seen: dict[str, Any] = {}

    def select(found: Any) -> np.ndarray:
        odd = found["mine.first"]["ids"] % 2 == 1
        return odd if as_mask else np.flatnonzero(odd)[::-1]  # in no order: the runner puts them in that of the ids

    def conclude(self: Check, task: Any, found: Any) -> CheckResult:
        seen.update(found)
        return Answer(type(self)).result(task, "done")

    later = stage("mine.later", lambda block: {"x": block.x[:, 0].numpy(), "y": block.y.numpy()}, select=select)
    add(plain_check("mine", [stage("mine.first"), later], conclude))
    small(n=1100, checks=["mine"])
    assert seen["mine.later"].positions.tolist() == list(range(1, 1100, 2))
    x = np.random.default_rng(0).normal(size=(1100, 2)).astype(np.float32)[1::2, 0]
    assert np.array_equal(seen["mine.later"]["x"], x)
    assert np.array_equal(seen["mine.later"]["y"], (x > 0).astype(int))
    assert seen["mine.later"].spread("y", 1100, -1)[:4].tolist() == [-1, int(x[0] > 0), -1, int(x[1] > 0)]


class Flattened(nn.Module):
    """Reshapes as many networks do, in a way that has no meaning for a batch of none."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = fitted()

    def forward(self, x):
        return self.inner(x.view(x.size(0), -1))


def test_a_stage_that_selects_nothing_has_no_rows_and_breaks_nothing(add):
    seen: dict[str, Any] = {}

    def conclude(self: Check, task: Any, found: Any) -> CheckResult:
        seen.update(found)
        return Answer(type(self)).result(task, "done")

    def stages(task: Any) -> list[Stage]:
        def job(block: Any) -> dict[str, np.ndarray]:
            return {"out": task.model.module(block.x).detach().numpy()}

        return [stage("mine.none", job, select=lambda _: np.arange(0))]

    add(plain_check("mine", stages, conclude))
    result = small(module=Flattened(), checks=["mine"])
    assert result["mine"].status == "measured", result["mine"].reason
    assert seen["mine.none"]["out"].shape == (0, 2)
    assert seen["mine.none"]["out"].dtype == np.float32


def test_a_shared_stage_runs_once_and_is_paid_once(add):
    module = fitted()
    model = Model(module)
    for name in ("first", "second"):
        add(plain_check(name, lambda task: [predictions(task, cost_of="shared.predictions")]))
    result = small(module=model, checks=["first", "second"])
    assert result["first"].cost.forwards == 40
    assert result["second"].cost.forwards == 0
    assert result["first"].cost.parts["shared.predictions"].forwards == 40


@pytest.mark.slow
def test_costs_add_up_to_what_the_model_counted(digits_net, add):
    def fails(self: Check, task: Any, found: Any) -> CheckResult:
        task.model.predict(task.data.test.x[:5])
        raise RuntimeError("after some work")

    add(plain_check("mine", lambda task: [predictions(task, "reference", cost_of="mine.work")], fails))
    model = Model.load(digits_net / "model.pt", arch=ARCH)
    data = Dataset.load(digits_net / "test.npz", reference=digits_net / "train.npz")
    before = Model.load(digits_net / "model.pt", arch=ARCH)
    preflight(before, data)
    result = audit.run(model, data, settings=QUICK, samples=100, norm=["linf", "l2"], skip=["performance", "fairness", *LATER])
    assert result["mine"].status == "error"
    assert result["mine"].cost.parts["mine.conclusion"].forwards == 5
    for name in ("forwards", "backwards"):
        total = sum(getattr(check.cost, name) for check in result.checks)
        assert total + getattr(before, name) == getattr(model, name)
        for check in result.checks:
            assert getattr(check.cost, name) == sum(getattr(part, name) for part in check.cost.parts.values())


# --- faults -----------------------------------------------------------------------------------------------------------


def fails_in(where: str) -> type[Check]:
    def boom(*_: Any) -> Any:
        raise RuntimeError(f"boom in {where}")

    if where == "stage":
        return plain_check("mine", [stage("mine.work", boom)])
    if where == "select":
        return plain_check("mine", [stage("mine.work", select=boom)])
    return plain_check("mine", **{where: boom})


@pytest.mark.parametrize("where", ["not_applicable", "preflight", "stages", "stage", "select", "conclude"])
def test_a_check_that_raises_ends_in_error_and_the_others_are_measured(add, where):
    add(fails_in(where))
    result = small(checks=["performance", "mine"])
    assert [(check.id, check.status) for check in result.checks] == [("performance", "measured"), ("mine", "error")]
    assert f"RuntimeError: boom in {where}" in result["mine"].reason
    assert (result.verdict, result.exit_code) == ("incomplete", 4)
    assert "mine" in result.sentence
    with pytest.raises(audit.PolicyFailed, match="boom"):
        audit.require(result)


def test_debug_lets_an_unexpected_error_through(add):
    for where in ("stage", "conclude"):
        add(fails_in(where))
        with pytest.raises(RuntimeError, match="boom"):
            small(checks=["mine"], debug=True)


def test_an_artifact_that_cannot_be_collected_leaves_the_check_incomplete(add, tmp_path):
    add(fails_in("artifact"))
    result = small(checks=["mine"], out=tmp_path)
    assert result["mine"].status == "incomplete"
    assert "boom in artifact" in result["mine"].reason
    assert result["mine"].artifact is None


def test_a_stage_after_a_broken_one_does_not_run(add):
    ran = []
    later = stage("other.later", lambda block: ran.append(1), after=("mine.work",))
    add(fails_in("stage"))
    add(plain_check("other", [later]))
    result = small(checks=["mine", "other"])
    assert result["other"].status == "error"
    assert "boom in stage" in result["other"].reason
    assert not ran


WRONG_JOBS = {
    "too few rows": (lambda block: {"a": np.zeros(1)}, "a row for each of 40 samples"),
    "a scalar": (lambda block: {"a": np.zeros(())}, "a row for each"),
    "a tensor": (lambda block: {"a": block.x}, "NumPy arrays"),
    "objects": (lambda block: {"a": np.asarray([None] * len(block.ids))}, "NumPy arrays"),
    "nothing": (lambda block: None, "AttributeError"),
}


@pytest.mark.parametrize("name", WRONG_JOBS)
def test_a_job_that_returns_something_else_than_rows_is_an_error(add, name):
    job, message = WRONG_JOBS[name]
    add(plain_check("mine", [stage("mine.work", job)]))
    result = small(checks=["mine"])
    assert result["mine"].status == "error"
    assert message in result["mine"].reason


@pytest.mark.parametrize("positions", [[-1], [40], [[True]]])
def test_positions_outside_the_data_are_an_error(add, positions):
    add(plain_check("mine", [stage("mine.work", select=lambda _: np.asarray(positions))]))
    assert small(checks=["mine"])["mine"].status == "error"


def conclusion(**fields: Any) -> Any:
    def conclude(self: Check, task: Any, found: Any) -> Any:
        return CheckResult(**{"id": "mine", "status": "measured", "question": "?", "answer": "."} | fields)

    return conclude


@pytest.mark.parametrize(
    ("conclude", "message"),
    [
        (lambda *_: None, "conclude should return the CheckResult of 'mine'"),
        (conclusion(id="performance"), "got 'performance'"),
        (conclusion(metrics=[metric("performance.accuracy", 1.0)]), "which performance measured already"),
        (lambda *_: metric("mine.value", float("nan")), "ValidationError"),
    ],
)
def test_a_conclusion_that_cannot_be_is_an_error(add, conclude, message):
    add(plain_check("mine", conclude=conclude))
    result = small(checks=["performance", "mine"])
    assert result["mine"].status == "error"
    assert message in result["mine"].reason
    assert result["performance"].status == "measured"


def test_a_check_that_contradicts_its_own_evidence_is_incomplete(add):
    weak = [Evidence(id="mine.sound", ok=False, detail="it was not")]
    add(plain_check("mine", conclude=conclusion(evidence=weak, metrics=[metric("mine.value", 1.0)])))
    result = small(checks=["mine"], policy={"limit": [{"metric": "mine.value", "min": 0.5}]})
    assert result["mine"].status == "incomplete"
    assert (result.verdict, result.exit_code) == ("incomplete", 4)


def test_a_full_disk_ends_the_run(add, monkeypatch, tmp_path):
    def full(*_: Any) -> None:
        raise OutputError("cannot write: no space left")

    monkeypatch.setattr("audit.cache.write_atomically", full)
    with pytest.raises(OutputError, match="no space left"):
        small(out=tmp_path)


# --- what was asked ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_check_that_was_asked_for_and_does_not_apply_leaves_the_verdict_incomplete():
    result = small(checks=["performance", "fairness"])
    assert result["fairness"].status == "not_applicable"
    assert (result.verdict, result.exit_code) == ("incomplete", 4)
    assert small(checks=None, skip=["robustness"]).exit_code == 0
    assert small(checks=None, skip=["robustness"], gate=True).exit_code == 4


def test_nothing_to_run_is_refused():
    for options in ({"checks": []}, {"checks": ["performance"], "skip": ["performance"]}):
        with pytest.raises(UsageError, match="nothing would be measured"):
            small(**options)
    with pytest.raises(UsageError, match="did you mean 'robustness'"):
        small(checks=["robustnes"])


def test_sections_of_checks_that_do_not_run_are_validated_too():
    with pytest.raises(UsageError, match=r"robustness\.step.*did you mean"):
        small(settings=["robustness.step=3"])


def test_a_limit_that_no_check_could_measure_stops_before_any_work():
    model = Model(fitted())
    with pytest.raises(UsageError, match=r"did you mean 'performance\.accuracy'"):
        small(module=model, policy={"limit": [{"metric": "performance.acuracy", "min": 0.5}]})
    assert model.forwards <= 2 * 64


def test_the_stated_accuracy_is_held_against_the_measured_one(add):
    assert small(expect_accuracy=1.0)["performance"].metric("performance.accuracy").value == 1.0
    with pytest.raises(IncompleteError, match="expected a clean accuracy of 50") as caught:
        small(expect_accuracy=0.5)
    assert caught.value.exit_code == 4
    # also where no check of the run looks at predictions, and before anything else runs
    ran = []
    add(plain_check("mine", [stage("mine.work", lambda block: ran.append(1) or {"ids": block.ids.numpy()})]))
    with pytest.raises(IncompleteError):
        small(checks=["mine"], expect_accuracy=0.5)
    assert not ran


# --- checks of others -------------------------------------------------------------------------------------------------


class OtherOptions(CheckOptions):
    depth: int = Field(1, ge=1)


def entry_point(monkeypatch, loads: Any) -> None:
    class Point:
        name, value, group, dist = "other", "other_package:Other", "audit.checks", None

        def load(self) -> Any:
            if isinstance(loads, Exception):
                raise loads
            return loads

    real = importlib.metadata.entry_points
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda **kw: [Point()] if kw.get("group") == "audit.checks" else real(**kw)
    )


@pytest.mark.slow
def test_a_check_of_an_entry_point_runs_and_its_options_are_validated(add, monkeypatch):
    depths = []

    def conclude(self: Check, task: Any, found: Any) -> CheckResult:
        depths.append(task.options.depth)
        answer = Answer(type(self))
        answer.metrics.append(metric("other.value"))
        return answer.result(task, "done")

    entry_point(monkeypatch, plain_check("other", conclude=conclude, Options=OtherOptions))
    assert "other" in [check.id for check in small(checks=None, skip=["robustness"]).checks]
    passed = small(
        checks=["other"], settings=["other.depth=3"], policy={"limit": [{"metric": "other.value", "min": 0.4}]}, gate=True
    )
    assert depths == [1, 3]
    assert passed.exit_code == 0
    for setting, message in (("other.dept=3", "did you mean 'depth'"), ("other.depth=0", "greater than or equal to 1")):
        with pytest.raises(UsageError, match=message):
            small(checks=["other"], settings=[setting])


@pytest.mark.parametrize(
    ("loads", "message"),
    [
        (ImportError("no module named torchtoys"), "cannot be imported: ImportError: no module named torchtoys"),
        (object, "should be a subclass of audit.Check"),
        (plain_check("performance"), "needs another id"),
        (plain_check("run"), "a check's id should be"),
        (plain_check("My-Check"), "a check's id should be"),
    ],
)
def test_a_broken_plugin_is_named(add, monkeypatch, loads, message):
    entry_point(monkeypatch, loads)
    with pytest.raises(UsageError, match=re.escape(message)):
        small()


# --- what is stored ---------------------------------------------------------------------------------------------------


def stored_arrays(out: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in out.rglob("*.npz"):
        with np.load(path, allow_pickle=False) as file:
            found |= {f"{path.relative_to(out)}:{name}": file[name] for name in file.files}
    return found


@pytest.mark.slow
def test_no_samples_leaves_no_input_anywhere(digits_net, tmp_path):
    shape = (1, 8, 8)
    digits(digits_net, out=tmp_path)
    assert any(a.shape[1:] == shape for a in stored_arrays(tmp_path).values())
    assert (tmp_path / "artifacts" / "robustness.npz").exists()
    assert '"pixels"' in (tmp_path / "result.json").read_text()

    result = digits(digits_net, out=tmp_path, save_samples=False)
    assert result["robustness"].status == "measured"
    assert result["robustness"].artifact is None
    arrays = stored_arrays(tmp_path)
    assert arrays, "finished jobs that hold no input are kept all the same"
    # An input has 64 values: no array holds that many for a sample, whatever its name and shape. Weights are none.
    inputs = {name: a for name, a in arrays.items() if ".surrogate" not in name}
    assert len(inputs) > len(arrays) / 2
    wide = {name: a.shape for name, a in inputs.items() if a.size and a[0].size >= 32}
    assert not wide
    assert not (tmp_path / "artifacts" / "robustness.npz").exists()
    for name in ("result.json", "report.html", "summary.md", "junit.xml"):
        text = (tmp_path / name).read_text()
        assert '"pixels"' not in text
        assert "data:image" not in text
        assert "gallery" not in text or name == "report.html"  # the style sheet names it
    assert "examples" not in [figure.kind for check in result.checks for figure in check.figures]
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} == {".npz", ".json", ".html", ".md", ".xml"}


def test_a_stage_that_forgets_to_say_that_it_holds_inputs_is_not_stored_either(add, tmp_path):
    add(plain_check("mine", [stage("mine.work", lambda block: {"copy": block.x.numpy()})]))
    small(checks=["mine"], out=tmp_path / "kept")
    small(checks=["mine"], out=tmp_path / "none", save_samples=False)
    assert any(":copy" in name for name in stored_arrays(tmp_path / "kept"))
    assert not stored_arrays(tmp_path / "none")


def counting(calls: list[int]) -> Stage:
    return stage("mine.work", lambda block: calls.append(len(block.ids)) or {"ids": block.ids.numpy()})


def test_finished_jobs_are_not_done_again(add, tmp_path):
    calls: list[int] = []
    add(plain_check("mine", [counting(calls)]))
    one = small(n=1100, checks=["mine"], out=tmp_path)
    assert calls == [512, 512, 76]
    two = small(n=1100, checks=["mine"], out=tmp_path, gate=True)
    assert calls == [512, 512, 76]
    assert one["mine"].cost == two["mine"].cost
    small(n=1100, checks=["mine"], out=tmp_path, fresh=True)
    assert len(calls) == 6


CHANGES: dict[str, dict[str, Any]] = {
    "seed": {"seed": 1},
    "weights": {"module": nn.Linear(2, 2)},
    "code": {"module": Flattened()},
    "confidence": {"policy": {"confidence": 0.9}},
    "data": {"n": 41},
    "mean": {"module": Model(fitted(), mean=1.0)},
    "options": {"settings": ["performance.bins=3"]},
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_changes_a_result_makes_jobs_run_again(add, tmp_path, name):
    calls: list[int] = []
    add(plain_check("mine", [counting(calls)]))
    small(checks=["mine"], out=tmp_path)
    small(**{"checks": ["mine"], "out": tmp_path} | CHANGES[name])
    assert len(calls) == 2, calls


def test_the_code_of_a_network_is_part_of_the_key(tmp_path):
    """The same weights under another ``forward`` are another network."""
    keys = []
    for body in ("x", "-x"):
        source = (
            f"from torch import nn\nclass Net(nn.Linear):\n    def forward(self, x):\n        return super().forward({body})\n"
        )
        path = tmp_path / f"net{len(keys)}.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location("net", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules["net"] = module
        spec.loader.exec_module(module)
        torch.manual_seed(0)
        model = Model(module.Net(2, 2), task="classification", output="logits")
        keys.append(provenance.job_key(model, Dataset(np.zeros((2, 2), np.float32), [0, 1]), Config(), ""))
    assert keys[0] != keys[1]


def test_a_damaged_job_is_done_again(add, tmp_path):
    calls: list[int] = []
    add(plain_check("mine", [counting(calls)]))
    small(n=1100, checks=["mine"], out=tmp_path)
    first, _, second = sorted(tmp_path.glob(".jobs/*/mine.work-*.npz"))  # 0, 1024, 512
    first.write_bytes(first.read_bytes()[:100])
    second.write_bytes(b"")
    small(n=1100, checks=["mine"], out=tmp_path)
    assert calls[3:] == [512, 512]


def test_a_stored_job_of_other_samples_is_not_taken_for_this_one(add, tmp_path):
    """What a stage selects may differ by a rounding after a kill: rows are paired by position, never by count."""
    calls: list[int] = []
    chosen = [np.arange(0, 10)]
    work = counting(calls)
    add(plain_check("mine", [stage("mine.work", work.job, select=lambda _: chosen[0])]))
    small(checks=["mine"], out=tmp_path)
    chosen[0] = np.arange(5, 15)
    small(checks=["mine"], out=tmp_path)
    assert calls == [10, 10]


def test_infinity_in_the_configuration_does_not_enter_the_json(add, tmp_path):
    class Open(CheckOptions):
        edges: list[float] = Field(default_factory=list)

    add(plain_check("mine", Options=Open))
    result = small(checks=["mine"], config={"mine": {"edges": [float("-inf"), 0.0, float("inf")]}}, out=tmp_path)
    assert result.spec.config["checks"]["mine"] == {"edges": ["-inf", 0.0, "inf"]}
    assert Result.load(tmp_path) == result


# --- progress ---------------------------------------------------------------------------------------------------------


def test_progress_says_how_far_and_how_long_in_plain_lines(add):
    stream = io.StringIO()

    def slow(block: Any) -> dict[str, np.ndarray]:
        time.sleep(0.01)
        return {"ids": block.ids.numpy()}

    add(plain_check("mine", [stage("mine.work", slow), stage("mine.more", slow)]))
    with Progress(stream=stream, every=0.0) as progress:
        small(n=1100, checks=["mine"], progress=progress)
        lines = [line for line in stream.getvalue().splitlines() if "%" in line]  # without those that say what goes in
        shares = [int(re.fullmatch(r" +(\d+)% done, mine\.(work|more), about \d+ s left", line)[1]) for line in lines]
        assert shares == sorted(shares)
        assert shares[0] < 50
        assert shares[-1] == 100
        # a second run on the same Progress starts from nothing, as in the demo
        small(n=1100, checks=["mine"], progress=progress)
        again = [line for line in stream.getvalue().splitlines() if "%" in line][len(lines) :]
        assert again[0].strip().startswith(f"{shares[0]}%")
    assert "\x1b" not in stream.getvalue()


def test_time_left_counts_only_work_that_was_done_now(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    progress = Progress(stream=io.StringIO(), every=1.0)
    progress.plan(1000)
    progress.advance("a", 800, reused=True)
    clock[0] = 10.0
    progress.advance("b", 100)
    assert progress.left() == pytest.approx(10.0)


def test_quiet_progress_says_nothing():
    stream = io.StringIO()
    with Progress(stream=stream, quiet=True, every=0.0) as progress:
        progress.say("training")
        small(progress=progress)
    assert stream.getvalue() == ""


class Wanderer(torch.nn.Module):
    """A network that changes the current folder as it runs."""

    def __init__(self, place: Path) -> None:
        super().__init__()
        self.inner, self.place = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        os.chdir(self.place)
        return self.inner(x)


def test_results_go_where_the_run_began(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    audit.run(Wanderer(tmp_path / "elsewhere"), "sklearn:digits", checks=["performance"], samples=20, out="here")
    assert (tmp_path / "here" / "result.json").is_file()
    assert not list((tmp_path / "elsewhere").iterdir())


class InPlace(nn.Module):
    """Changes the tensor that it is handed."""

    def forward(self, x):
        return torch.stack((x.clamp_(-0.5, 0.5)[:, 0], x[:, 1]), dim=1)


def test_a_network_that_changes_its_input_does_not_change_the_data():
    data = Dataset(np.random.default_rng(0).normal(size=(80, 2)).astype(np.float32), np.tile([0, 1], 40))
    before = data.test.x.copy()
    audit.run(InPlace(), data, checks=["performance"])
    assert np.array_equal(data.test.x, before)


@pytest.mark.parametrize("part", ["data", "reference"])
def test_what_is_given_to_the_call_wins_over_the_files_of_the_configuration(part, tmp_path):
    """An audit of the file that a configuration names would be a verdict on other samples."""
    x = np.zeros((40, 2), dtype=np.float32)
    np.savez(tmp_path / "other.npz", x=np.ones((70, 2), dtype=np.float32), y=np.zeros(70, dtype=np.int64))
    key = "source" if part == "data" else part
    given = {"data": {"x": x, "y": np.zeros(40, dtype=np.int64)}, "reference": None}
    given[part] = {"x": x, "y": np.zeros(40, dtype=np.int64)}
    config = {"data": {key: str(tmp_path / "other.npz"), "bounds": [0, 1]}}
    result = audit.run(
        torch.nn.Linear(2, 2), given["data"], reference=given["reference"], config=config, checks=["performance"]
    )
    assert (result.data.n, result.data.n_reference) == (40, 0 if part == "data" else 40)
