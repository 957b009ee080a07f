"""Audits of one network agree, and hardening of it takes the same path, whichever kind of file it was read from."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import audit
from audit import workflows
from audit.demo_nets import DigitsNet
from audit.model.graph import Graph
from audit.result import CheckResult, Result
from tests.roundtrip.formats import FORMATS, WEIGHTS

pytestmark = pytest.mark.slow

FORMS = ("state_dict", "safetensors", "pickled", "pt2", "pt2_decomposed", "onnx13", "onnx_dynamo")
SELF_CONTAINED = ("pickled", "pt2", "onnx13", "onnx_external")
CHECKS = ["performance", "robustness", "corruption", "explanation", "fairness"]
SETTINGS = ["robustness.steps=6", "robustness.restarts=1", "robustness.noise_draws=2", "corruption.severities=[1,3]"]
POLICY = {
    "policy": {"limit": [{"metric": "performance.accuracy", "min": 0.5}, {"metric": "robustness.linf.accuracy", "min": 0.99}]}
}


def network() -> nn.Sequential:
    """Build the demo's network for digits of torch.nn's own layers alone."""
    parts = DigitsNet()
    return nn.Sequential(parts.features, parts.classifier)


@pytest.fixture(scope="module")
def files(digits_net: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    live = network()
    kept = torch.load(digits_net / "model.pt", weights_only=True)
    live.load_state_dict(dict(zip(live.state_dict(), kept.values(), strict=True)))
    saved = {}
    for form in {*FORMS, *SELF_CONTAINED}:
        with contextlib.redirect_stdout(io.StringIO()):
            saved[form] = FORMATS[form](live.eval(), torch.rand(2, 1, 8, 8), tmp_path_factory.mktemp(form))
    return saved


@pytest.fixture(scope="module")
def data(digits_net: Path) -> audit.Dataset:
    test, train = np.load(digits_net / "test.npz"), np.load(digits_net / "train.npz")
    group = np.where(np.random.default_rng(0).random(len(test["x"])) < 0.5, "a", "b")
    return audit.Dataset(
        test["x"], test["y"], sensitive={"group": group}, reference=(train["x"], train["y"]), bounds=(0.0, 1.0)
    )


def run(path: Path, form: str, data: audit.Dataset) -> Result:
    arch = network if form in WEIGHTS else None
    return audit.run(path, data, arch=arch, checks=CHECKS, config=POLICY, settings=SETTINGS, profile="quick", samples=40)


@pytest.fixture(scope="module")
def expected(files: dict[str, Path], data: audit.Dataset) -> Result:
    return run(files["state_dict"], "state_dict", data)


@pytest.mark.parametrize("form", FORMS[1:])
def test_audits_from_every_kind_of_file_agree(form: str, files: dict[str, Path], data: audit.Dataset, expected: Result) -> None:
    result = run(files[form], form, data)
    assert (result.verdict, result.exit_code) == (expected.verdict, expected.exit_code)
    assert [(j.metric, j.outcome) for j in result.policy] == [(j.metric, j.outcome) for j in expected.policy]
    assert [check.id for check in result.checks] == [check.id for check in expected.checks]
    for check, wanted in zip(result.checks, expected.checks, strict=True):
        _agree(check, wanted)


def _agree(check: CheckResult, wanted: CheckResult) -> None:
    assert (check.status, check.reason, check.not_tested) == (wanted.status, wanted.reason, wanted.not_tested), check.id
    assert {e.id: e.ok for e in check.evidence} == {e.id: e.ok for e in wanted.evidence}
    found = {metric.id: metric for metric in check.metrics}
    assert found.keys() == {metric.id for metric in wanted.metrics}
    for metric in wanted.metrics:
        same = found[metric.id]
        for value, again in ((metric.value, same.value), (metric.low, same.low), (metric.high, same.high)):
            assert again == (value if value is None else pytest.approx(value, rel=1e-4, abs=1e-4)), metric.id


def test_deep_shap_and_grad_cam_were_among_what_agreed(expected: Result) -> None:
    ids = {metric.id for metric in expected["explanation"].metrics}
    assert any("gradcam" in metric for metric in ids)
    assert any("shap" in metric for metric in ids)


# --- hardening --------------------------------------------------------------------------------------------------------


def harden(path: Path, digits_net: Path, out: Path, **more: Any) -> workflows.Hardened:
    return workflows.harden(
        path,
        digits_net / "test.npz",
        reference=digits_net / "train.npz",
        norm="linf",
        eps=0.1,
        out=out,
        sections={"run": {"profile": "quick", "samples": 40}, "data": {"bounds": (0, 1)}},
        settings=["robustness.steps=3", "robustness.noise_draws=2"],
        **{"training": {"epochs": 1, "attack_steps": 2}, **more},
    )


@pytest.fixture(scope="module")
def hardened_live(files: dict[str, Path], digits_net: Path, tmp_path_factory: pytest.TempPathFactory) -> workflows.Hardened:
    return harden(files["state_dict"], digits_net, tmp_path_factory.mktemp("live"), arch=network)


@pytest.mark.parametrize("form", SELF_CONTAINED)
def test_a_hardened_network_opens_as_the_given_one_did(
    form: str, files: dict[str, Path], digits_net: Path, hardened_live: workflows.Hardened, tmp_path: Path
) -> None:
    hardened = harden(files[form], digits_net, tmp_path)
    path = tmp_path / f"hardened.{'pt' if form == 'pickled' else form[:4] if form[0] == 'o' else form}"
    assert hardened.opens == "opens without --arch, as the given one does"
    assert hardened.result.model.source == str(path)
    assert [each.name for each in tmp_path.glob("hardened.*")] == [path.name]

    again, given = audit.Model.load(path, expect_sha256=hardened.result.model.sha256), audit.Model.load(files[form])
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for model in (again, given, hardened.model):
        model.resolve(x)
    assert torch.equal(again.logits(x), hardened.model.logits(x))
    assert float((again.logits(x) - given.logits(x)).abs().max()) > 0.1
    # The same training, whatever the network was read from.
    assert hardened.history.epochs[-1].loss == pytest.approx(hardened_live.history.epochs[-1].loss, rel=1e-3)
    assert [layer.gradient for layer in hardened.history.epochs[-1].layers] == pytest.approx(
        [layer.gradient for layer in hardened_live.history.epochs[-1].layers], rel=1e-2
    )
    assert [unit.dead for unit in hardened.history.epochs[0].dead] == [
        unit.dead for unit in hardened_live.history.epochs[0].dead
    ]
    said = any("as its file deploys it" in note for note in hardened.result.model.notes)
    assert said == isinstance(hardened.model.module, Graph)


def test_with_an_architecture_the_weights_are_written(hardened_live: workflows.Hardened) -> None:
    assert hardened_live.opens == "loads with the same --arch"
    path = Path(hardened_live.result.model.source)
    assert path.name == "hardened.pt"
    network().load_state_dict(torch.load(path, weights_only=True))


def test_where_the_given_file_is_gone_the_weights_are_written(files: dict[str, Path], digits_net: Path, tmp_path: Path) -> None:
    moved = tmp_path / "given.pt2"
    moved.write_bytes(files["pt2"].read_bytes())
    model = audit.Model.load(moved)
    moved.unlink()
    hardened = harden(model, digits_net, tmp_path / "out")
    assert hardened.opens.startswith("its weights alone")
    assert (tmp_path / "out" / "hardened.pt").exists()


def test_batch_normalisation_in_a_file_stays_as_it_was_deployed(digits_net: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 10)]
    path = FORMATS["pt2"](nn.Sequential(*layers).eval(), torch.rand(2, 1, 8, 8), tmp_path)
    hardened = harden(path, digits_net, tmp_path / "out", training={"epochs": 3, "attack_steps": 1, "lr": 0.01})
    assert hardened.history.kept > 0
    given, again = (audit.Model.load(each).module for each in (path, hardened.result.model.source))
    buffers = dict(again.named_buffers())
    assert {name.rpartition(".")[2] for name in buffers} >= {"running_mean", "running_var"}
    assert all(torch.equal(tensor, buffers[name]) for name, tensor in given.named_buffers())
    moved = dict(given.named_parameters())
    assert all(not torch.equal(tensor, moved[name]) for name, tensor in again.named_parameters())
    assert not any(module.training for module in hardened.model.module.modules())
