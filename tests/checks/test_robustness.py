"""The robustness check on networks of every kind, with the attacks that a user asks for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import audit
from audit.checks import robustness_evidence, robustness_plan, robustness_random
from audit.checks.base import Merged, Task
from audit.checks.robustness import Robustness, RobustnessOptions, evaluated
from audit.checks.robustness_state import AGAIN, LONGER
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


@pytest.mark.slow
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
    assert set(last.after) >= {"predictions.test", *(f"robustness.linf.{part}" for part in before)}
    assert run_check(Robustness(), task).status in ("measured", "incomplete")


@pytest.mark.slow
def test_an_attack_of_others_that_stops_leaves_the_rest_of_the_run(monkeypatch: pytest.MonkeyPatch):
    from audit.attacks.art import ArtAttack

    def stop(*args: object, **kwargs: object) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr(ArtAttack, "_ask", stop)
    net, data = pictures()
    # Uncertified: what is certified is handed to no attack.
    check = run(net, data, 'robustness.art=["HopSkipJump"]', "robustness.certify=false", eps=0.01)["robustness"]
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


@pytest.mark.slow
def test_regression_networks_are_attacked_without_gradients_and_not_by_art(regressor):
    net, data = regressor
    found = run(net, data, eps=0.5, samples=100)["robustness"]
    assert found.status == "measured", found.reason
    assert any(e.id == "robustness.linf.gradient_free" for e in found.evidence)
    with pytest.raises(UsageError, match="regression network"):
        run(net, data, 'robustness.art=["HopSkipJump"]', eps=0.5)


def found_by_square(n: int, stood: int) -> dict[str, Merged]:
    """All samples are right; gradients broke all but the first `stood`, all of which AutoAttack's Square broke."""
    everybody, left = np.arange(n), np.arange(stood)
    logits = np.zeros((n, 4)) + np.eye(4)[np.zeros(n, dtype=int)]
    out = {"predictions.test": Merged(everybody, {"logits": logits})}
    for part in ("apgd-ce", "apgd-t", "fab-t"):
        out[f"robustness.linf.{part}"] = Merged(everybody, {"broken": everybody >= stood})
    out["robustness.linf.square"] = Merged(left, {"broken": np.ones(stood, dtype=bool)})
    return out


def test_what_autoattacks_own_square_breaks_stood_before_it_and_it_is_never_left_out(monkeypatch: pytest.MonkeyPatch):
    net, data = pictures()
    data = audit.Dataset(data.test.x, np.zeros(60, dtype=np.int64), bounds=(-0.5, 0.5))
    options = RobustnessOptions(eps=0.03, evaluation="autoattack", certify=False)
    task = Task(Model(net, device="cpu", bounds=(-0.5, 0.5)), data, options, profile="standard")
    task.model.resolve(data.test.x[:2], data.test.y)
    one = evaluated(task, "linf")
    (said,) = robustness_evidence._square(one, found_by_square(60, 60))
    assert not said.ok
    assert "60 of 60" in said.detail
    first = {stage.id: stage for stage in reversed(robustness_plan.stages(one))}["robustness.linf.square"]
    before = {"predictions.test": found_by_square(60, 60)["predictions.test"]}
    monkeypatch.setattr(robustness_random, "is_random", lambda *_: True)
    assert len(first.select(before)) == 60


def test_the_attacks_that_ran_are_those_that_looked_at_a_sample():
    net, data = pictures()
    check = run(net, data, eps=0.1, profile="quick")["robustness"]
    planned = check.metric("robustness.linf.accuracy").params["attacks"]
    (line,) = [line for line in check.not_tested if "those that ran" in line]
    (table,) = [table for table in check.tables if table.id == "robustness.linf.threat"]
    listed = dict(table.rows)["attacks"].split(", ")
    assert f"({', '.join(listed)})" in line
    assert {"survey.1", "noise"} <= set(listed) < set(planned)
    assert not {"again.rest", "transfer", "mended", "decided"} & set(listed)


class Stood:
    """180 of 200 samples stand after an evaluation's rounds."""

    prefix = "robustness.linf"

    def __init__(self, *rounds: str) -> None:
        self.rounds = [SimpleNamespace(name=name) for name in rounds]

    def evaluated(self) -> tuple[str, ...]:
        return ("survey.1",)

    def broken_by(self, found: dict[str, Merged], parts: list[str]) -> np.ndarray:
        return np.any([found[part].spread("broken", 200, False) for part in parts], axis=0)

    def standing(self, found: dict[str, Merged], parts: object) -> np.ndarray:
        return np.arange(200) < 180

    def rows(self, found: dict[str, Merged], part: str) -> Merged | None:
        return found.get(part)


@pytest.mark.parametrize(("few", "others", "ok"), [(1, None, True), (2, 3, True), (2, 9, False), (5, None, False)])
def test_an_unlucky_few_do_not_accuse_where_the_longer_attack_ran_on_all(few: int, others: int | None, ok: bool):
    """Two of 32 send it to all that stands; three more of the other 148 are less than a twentieth of all samples."""
    found = {"again": Merged(np.arange(32), {"broken": np.arange(32) < few})}
    if others is not None:
        found["again.rest"] = Merged(np.arange(32, 180), {"broken": np.arange(148) < others})
    (evidence,) = robustness_evidence._again(Stood(), found, (AGAIN, LONGER))  # type: ignore[arg-type]
    assert evidence.ok == ok
    assert robustness_evidence.unfinished(Stood(), found) == (few > 1)  # type: ignore[arg-type]


def test_what_stood_on_the_few_counts_once_where_the_longer_attack_went_on_to_all():
    net, data = pictures()
    data = audit.Dataset(data.test.x, np.zeros(60, dtype=np.int64), bounds=(-0.5, 0.5))
    task = Task(Model(net, device="cpu", bounds=(-0.5, 0.5)), data, RobustnessOptions(eps=0.03), profile="quick")
    task.model.resolve(data.test.x[:2], data.test.y)
    few, everybody = np.arange(0, 60, 2), np.arange(60)
    rest = np.setdiff1d(everybody, [0, 2, 4])
    found = {
        "predictions.test": found_by_square(60, 0)["predictions.test"],
        "robustness.linf.again": Merged(few, {"broken": few <= 4}),
        "robustness.linf.again.rest": Merged(rest, {"broken": rest == 1}),
    }
    (said,) = robustness_evidence._again(evaluated(task, "linf"), found, ("again", "again.rest"))
    assert "broke 4 of 60 samples" in said.detail


@pytest.mark.parametrize(
    ("rounds", "last"),
    [
        (("survey.1", "focus.1"), None),
        (("survey.1", "wide.1", "focus.1"), None),
        (("survey.1", "focus.1", "focus.2"), {"focus.2"}),
        (("survey.1", "wide.1", "wide.2", "focus.1"), {"wide.2"}),
        (("survey.1", "wide.1", "wide.2", "wide.3", "wide.4", "focus.1", "focus.2"), {"wide.3", "wide.4", "focus.2"}),
    ],
)
def test_the_last_doubling_is_that_of_each_kind_of_round(rounds: tuple[str, ...], last: set[str] | None):
    """Each round breaks ten samples of its own: only those of the last doubling may count."""
    found = {name: Merged(np.arange(200), {"broken": np.arange(200) // 10 == i}) for i, name in enumerate(rounds)}
    said = robustness_evidence._doubled(Stood(*rounds), found)  # type: ignore[arg-type]
    assert bool(said) == (last is not None)
    if last is not None:
        assert said[0].value == pytest.approx(10 * len(last) / 200)
        assert not said[0].ok


def test_a_layer_without_a_bound_is_named():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 3)).eval()
    x = np.random.default_rng(0).random((40, 8), dtype=np.float32)
    with torch.no_grad():
        y = net(torch.as_tensor(x)).argmax(dim=1).numpy()
    check = run(net, audit.Dataset(x, y), eps=0.01, profile="quick")["robustness"]
    assert not [metric for metric in check.metrics if "certified" in metric.id]
    bracket = next(figure for figure in check.figures if figure.id == "robustness.linf.bracket")
    assert "'1 (SiLU)'" in bracket.data["note"]
    rows = dict(row for table in check.tables for row in table.rows if len(row) == 2)
    assert "'1 (SiLU)'" in rows["certificate"]
