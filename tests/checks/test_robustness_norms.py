"""The robustness check norm by norm: default radii, what tests the evaluation; in L1 and L0 examples, stages, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import audit
from audit.attacks.pgd import PGD
from audit.checks.base import Task
from audit.checks.robustness import RobustnessOptions, evaluated
from audit.checks.robustness_norms import called, default_radius, longer
from audit.errors import UsageError
from audit.evaluations.afar import Afar
from audit.model.wrapper import Model
from tests.checks.test_robustness import pictures, run


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5000), st.floats(0.01, 255), st.sampled_from(["linf", "l2", "l1", "l0"]), st.sampled_from(["image", "table"])
)
def test_a_default_radius_fits_every_box(inputs: int, width: float, norm: str, kind: str):
    eps = default_radius(norm, kind, inputs, width)
    most = {"linf": width, "l2": width * inputs**0.5, "l1": width * inputs, "l0": inputs}[norm]
    assert eps > 0
    assert kind == "table" or eps <= most * (1 + 1e-9)
    assert norm != "l0" or eps == int(eps)


def test_the_default_radii_of_a_picture_are_the_fields():
    assert [default_radius(norm, "image", 3072, 1.0) for norm in ("linf", "l2", "l1", "l0")] == [8 / 255, 0.5, 12.0, 10.0]
    assert default_radius("l1", "image", 3072, 255.0) == 12 * 255
    assert default_radius("l0", "image", 36, 1.0) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("l1", 0.4), ("l0", 2.0)])
def test_pictures_are_attacked_within_box_and_radius(norm: str, eps: float, tmp_path: Path):
    net, data = pictures()
    check = run(net, data, norm=norm, eps=eps, out=tmp_path, profile="quick")["robustness"]
    assert check.status == "measured", check.reason
    attacked, certified = check.metric(f"robustness.{norm}.accuracy"), check.metric(f"robustness.{norm}.certified_accuracy")
    assert 0 < attacked.value < 1
    assert certified.value <= attacked.value
    assert "sparse_search" in attacked.params["attacks"]
    assert not any("square" in name for name in attacked.params["attacks"])
    with np.load(tmp_path / "artifacts" / "robustness.npz") as stored:
        x = data.test.x[np.searchsorted(data.test.ids, stored["ids"])]
        delta = (stored["x_adv"].astype(np.float64) - x).reshape(len(x), -1)
        within = stored["distance"] <= eps
        size = (delta != 0).sum(axis=1) if norm == "l0" else np.abs(delta).sum(axis=1)
        assert within.any()
        assert np.allclose(size, stored["distance"], rtol=1e-5)
        assert (size[within] <= eps * (1 + 1e-6)).all()
        assert stored["x_adv"].min() >= -0.5
        assert stored["x_adv"].max() <= 0.5
    replayed = audit.replay(tmp_path, Model(net, bounds=(-0.5, 0.5), device="cpu"), data)
    assert replayed.n > 0
    assert replayed.failed == []


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l1", "l0"])
def test_rows_of_a_table_keep_their_constraints(norm: str):
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.integers(0, 9, 80), rng.normal(size=80), rng.normal(size=80), rng.random(80)]).astype(np.float32)
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    with torch.no_grad():
        y = net(torch.from_numpy(x)).argmax(dim=1).numpy()
    data = audit.Dataset(x, y, columns=["count", "a", "b", "share"])
    rules = ['robustness.integer=["count"]', 'robustness.immutable=["share"]']
    check = run(net, data, *rules, norm=norm, eps=1.0 if norm == "l0" else 0.8, profile="quick")["robustness"]
    metric = check.metric(f"robustness.{norm}.accuracy")
    assert metric.params["violations"] == 0
    assert metric.value < 1


def test_unstated_radii_of_all_norms_are_said():
    net, data = pictures(20)
    result = run(net, data, "robustness.curve=false", norm=["l1", "l0"], profile="quick")
    notes = next(f.detail for f in result["robustness"].findings if f.title == "Unstated defaults")
    assert "L1 3.6, L0 3 of the 36 inputs" in notes
    assert {"L∞ changes", "L2 changes"} <= set(result["robustness"].not_tested)
    json.loads(result.model_dump_json())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "l0", "eps": 2.5}, "whole number"),
        ({"norm": "l0", "eps": 99}, "number of inputs"),
        ({"norm": "l3"}, "no norm 'l3'"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, object], message: str):
    net, data = pictures(10)
    with pytest.raises(UsageError, match=message):
        run(net, data, **options)


def test_autoattack_is_refused_in_l0_and_attacks_say_their_norms():
    net, data = pictures(10)
    with pytest.raises(UsageError, match="in L0 take the adaptive evaluation"):
        run(net, data, "robustness.evaluation=autoattack", norm="l0", eps=2)
    with pytest.raises(UsageError, match="pgd is for linf, l2, got 'l1'"):
        run(net, data, 'robustness.attacks=["pgd"]', norm="l1", eps=1)


def test_a_stage_is_called_by_what_it_runs():
    assert [called(norm, "square") for norm in ("linf", "l1")] == ["square", "sparse_search.again"]


def test_the_longer_attack_of_l2_begins_outside_the_ball_too():
    """The evaluation has runs from there: a test from inside alone would be weaker than what it tests."""
    net, data = pictures()
    kinds = {}
    for norm in ("linf", "l2"):
        task = Task(Model(net, device="cpu", bounds=(-0.5, 0.5)), data, RobustnessOptions(norm=[norm]), profile="quick")
        kinds[norm] = type(longer(evaluated(task, norm)))
    assert kinds == {"linf": PGD, "l2": Afar}
