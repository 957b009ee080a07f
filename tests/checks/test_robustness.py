"""The robustness check on networks of every kind, with the attacks that a user asks for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import audit
from audit.checks import robustness_plan
from audit.checks.base import Task
from audit.checks.robustness import Robustness, RobustnessOptions, evaluated
from audit.config import parse_setting, validate
from audit.errors import UsageError
from audit.model.wrapper import Model
from tests.stagerun import run_check

SMALL = ["robustness.steps=10", "robustness.restarts=1", "robustness.queries=60"]


def pictures(n: int = 60) -> tuple[nn.Module, audit.Dataset]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 16, bias=False), nn.ReLU(), nn.Linear(16, 4, bias=False))
    x = torch.rand((n, 1, 6, 6), generator=torch.Generator().manual_seed(0)) - 0.5
    with torch.no_grad():
        return net, audit.Dataset(x.numpy(), net(x).argmax(dim=1).numpy(), bounds=(-0.5, 0.5))


def run(net: nn.Module, data: audit.Dataset, *settings: str, **options: object) -> audit.Result:
    return audit.run(net, data, checks=["robustness"], settings=[*SMALL, *settings], device="cpu", **options)


def test_attacks_that_were_asked_for_run_on_what_stands_and_count(tmp_path: Path):
    net, data = pictures()
    weak = ["robustness.steps=1", "robustness.step_size=1e-6", "robustness.noise_draws=1"]
    art = 'robustness.art=["DeepFool", {name="HopSkipJump", max_iter=3, max_eval=50, init_eval=10}]'
    asked = [*weak, 'robustness.attacks=["fgsm"]', art]
    check = run(net, data, *asked, eps=0.05, out=tmp_path)["robustness"]
    attacks = check.metric("robustness.linf.accuracy").params["attacks"]
    assert attacks[0] == "survey.1"
    assert attacks[-3:] == ["own.fgsm", "art.DeepFool", "art.HopSkipJump"]
    with np.load(tmp_path / "artifacts" / "robustness.npz") as stored:
        assert len(stored["ids"]) == int(check.outcomes.bits("robustness.linf.broken").sum()) > 0
        assert set(stored["attack"]) <= set(attacks)
    replayed = audit.replay(tmp_path, Model(net, bounds=(-0.5, 0.5), device="cpu"), data)
    assert replayed.n > 0
    assert replayed.failed == []
    assert any("art.HopSkipJump" in line for line in check.not_tested)


def test_only_survivors_are_handed_over_and_names_are_kept_whole():
    net, data = pictures()
    options = RobustnessOptions(eps=0.03, steps=10, queries=50, art=["ProjectedGradientDescentPyTorch"] * 2)
    task = Task(Model(net, device="cpu", bounds=(-0.5, 0.5)), data, options, profile="quick")
    task.model.resolve(data.test.x[:2], data.test.y)
    parts = evaluated(task, "linf").finders()
    assert parts[-2:] == ("art.ProjectedGradientDescentPyTorch", "art.ProjectedGradientDescentPyTorch.2")
    stages = {stage.id: stage for stage in robustness_plan.stages(evaluated(task, "linf"))}
    last = stages["robustness.linf.art.ProjectedGradientDescentPyTorch.2"]
    before = ("certificate.few", "certificate", *parts[:-1])
    assert set(last.after) == {"predictions.test", *(f"robustness.linf.{part}" for part in before)}
    assert run_check(Robustness(), task).status in ("measured", "incomplete")


def test_an_attack_of_others_that_stops_leaves_the_rest_of_the_run(monkeypatch: pytest.MonkeyPatch):
    from audit.attacks.art import ArtAttack

    def stop(*args: object, **kwargs: object) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr(ArtAttack, "_ask", stop)
    net, data = pictures()
    check = run(net, data, 'robustness.art=["HopSkipJump"]', eps=0.01)["robustness"]
    assert check.status == "incomplete"
    assert "robustness.linf.art.HopSkipJump stopped with IndexError: list index out of range" in (check.reason or "")
    assert check.metric("robustness.linf.accuracy").value is not None


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ('robustness.art=["HopSkipJmp"]', "did you mean 'HopSkipJump'"),
        ("robustness.art=HopSkipJmp", "did you mean 'HopSkipJump'"),
        ('robustness.art=[{name="HopSkipJump", eps=1}]', "set from the run itself"),
        ('robustness.attacks=["fgsn"]', "did you mean 'fgsm'"),
        ('robustness.attacks=[{name="square", querys=3}]', "did you mean 'queries'"),
        ('robustness.attacks=[{name="square", queries=1}]', "at least 2"),
        ("robustness.art=[3]", "an attack is a name"),
    ],
)
def test_what_cannot_be_asked_for_says_why(setting: str, message: str):
    net, data = pictures(10)
    with pytest.raises(UsageError, match=message):
        run(net, data, setting, eps=0.1)


def test_options_read_from_a_file_and_from_the_command_line_are_the_same():
    _, _, value = parse_setting('robustness.art=["SquareAttack", {name="HopSkipJump", max_iter=10}]')
    options = validate(RobustnessOptions, {"art": value}, "robustness")
    assert [(item.name, item.params) for item in options.art] == [("SquareAttack", {}), ("HopSkipJump", {"max_iter": 10})]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lstm", "transformer"])
def test_recurrent_networks_and_transformers(kind: str, request: pytest.FixtureRequest):
    net, data = request.getfixturevalue(kind)
    art = 'robustness.art=[{name="HopSkipJump", max_iter=3, max_eval=50, init_eval=10}]'
    check = run(net, data, "robustness.queries=100", art, eps=0.05, samples=60, profile="quick")
    found = check["robustness"]
    assert found.status == "measured", found.reason
    evidence = {e.id: e for e in found.evidence}
    assert evidence["robustness.linf.gradient_free"].ok
    assert 0 < found.metric("robustness.linf.attack_success").value < 1


def test_regression_networks_are_attacked_without_gradients_and_not_by_art(regressor):
    net, data = regressor
    found = run(net, data, eps=0.5, samples=100)["robustness"]
    assert found.status == "measured", found.reason
    assert any(e.id == "robustness.linf.gradient_free" for e in found.evidence)
    with pytest.raises(UsageError, match="regression network"):
        run(net, data, 'robustness.art=["HopSkipJump"]', eps=0.5)
