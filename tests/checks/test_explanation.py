"""The explanation check on each kind of data: what it measures, shows, leaves out, and refuses."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

import audit
from audit import demo_nets
from audit.checks.base import Task
from audit.checks.explanation import Explanation
from audit.checks.explanation_plan import Plan
from audit.data.base import Dataset
from audit.model.wrapper import Model
from tests.stagerun import run_check

QUICK = {"samples": 12, "show": 1, "background": 8}


def digits_task(folder, *, profile: str = "quick", keep: bool = True, **options) -> Task:
    net = demo_nets.DigitsNet()
    net.load_state_dict(torch.load(folder / "model.pt"))
    data = Dataset.load(folder / "test.npz", reference=folder / "train.npz")
    return Task(Model(net, device="cpu"), data, Explanation.Options(**{**QUICK, **options}), profile=profile, keep_samples=keep)


def diabetes_task(folder, *, profile: str = "quick", keep: bool = True, **options) -> Task:
    net = demo_nets.TableNet()
    net.load_state_dict(torch.load(folder / "model.pt"))
    how = {"target": "progression_above_median", "sensitive": ["sex"]}
    data = Dataset.load(str(folder / "test.csv"), reference=str(folder / "train.csv"), **how)
    return Task(Model(net, device="cpu"), data, Explanation.Options(**{**QUICK, **options}), profile=profile, keep_samples=keep)


@pytest.fixture(scope="module")
def images(digits_net):
    return run_check(Explanation(), digits_task(digits_net))


@pytest.fixture(scope="module")
def table(diabetes_net):
    return run_check(Explanation(), diabetes_task(diabetes_net))


def test_images_are_explained_by_five_methods_with_their_tests(images):
    methods = ["saliency", "integrated_gradients", "gradcam", "shap_auto", "lime"]
    ids = {m.id for m in images.metrics}
    assert {f"explanation.{m}.faithfulness" for m in methods} <= ids
    assert {f"explanation.{m}.stability" for m in ("integrated_gradients", "shap_auto", "lime")} <= ids
    assert "explanation.saliency.stability" not in ids  # it draws nothing
    assert {f"explanation.{m}.completeness_gap" for m in ("integrated_gradients", "shap_auto")} <= ids
    tests = {e.id for e in images.evidence}
    assert {f"explanation.{m}.{t}" for m in methods for t in ("worked", "beats_random", "depends_on_weights")} <= tests
    assert {"explanation.deterministic", "explanation.batch_independent"} <= tests
    sound = {e.id: e.ok for e in images.evidence}
    for method in ("integrated_gradients", "shap_auto", "lime"):
        assert all(ok for test, ok in sound.items() if f".{method}." in test), method
        assert images.metric(f"explanation.{method}.faithfulness").low > 0.2
    assert "shap.deep was used" in images.metric("explanation.shap_auto.faithfulness").detail
    assert images.answer.startswith(("5 of 5", "4 of 5"))


def test_images_are_shown_with_heat_maps(images):
    figures = {f.id: f for f in images.figures}
    gallery = figures["explanation.heat_maps"]
    assert gallery.data["panels"][:3] == ["input", "saliency", "integrated_gradients"]
    assert [item["caption"].split(":")[0] for item in gallery.data["items"]] == [
        "right and sure",
        "wrong and sure",
        "uncertain",
    ]
    assert all(len(item["images"]) == len(gallery.data["panels"]) for item in gallery.data["items"])
    names = [series["name"] for series in figures["explanation.deletion"].data["series"]]
    assert names[-1] == "random rankings"
    assert len(names) == 6


def test_columns_of_a_table_are_asked_one_by_one(table):
    ids = {m.id for m in table.metrics}
    assert {"explanation.shap_kernel.faithfulness", "explanation.agreement.top3", "explanation.sex.flip_share"} <= ids
    flip = table.metric("explanation.sex.flip_share")
    assert flip.n == 177
    assert flip.low < flip.value < flip.high
    assert flip.params["sensitive"] is True
    assert flip.value == pytest.approx(table.outcomes.bits("explanation.sex.flipped").mean())
    assert any(f.title.startswith("Flipping sex alone changes") for f in table.findings)
    importance = next(t for t in table.tables if t.id == "explanation.importance")
    assert len(importance.rows) == 10
    assert importance.rows[0][0] == "bmi"
    assert [row[1] for row in importance.rows] == sorted((row[1] for row in importance.rows), reverse=True)
    agreement = table.metric("explanation.agreement.top3")
    disagree = any("disagree" in f.title for f in table.findings)
    assert disagree == (agreement.value < 1)
    assert ("disagree" in table.answer) == disagree


def test_a_table_is_shown_with_bars_and_curves(table):
    kinds = {f.id: f for f in table.figures}
    bars = [f for f in table.figures if f.id.startswith("explanation.sample_")]
    assert bars
    assert all(f.data["signed"] and len(f.data["labels"]) == len(f.data["values"]) for f in bars)
    assert kinds["explanation.importance"].kind == "forest"
    curves = [f for f in table.figures if f.id.startswith("explanation.dependence_")]
    assert len(curves) == 4
    series = curves[0].data["series"]
    assert not series[0].get("faint")
    assert all(line["faint"] for line in series[1:])
    np.testing.assert_equal(len(series), 21)


def test_what_is_found_can_be_written_as_json(images, table):
    for result in (images, table):
        json.loads(result.model_dump_json())


@pytest.mark.parametrize("kind", ["images", "table"])
def test_no_sample_is_shown_where_none_may_be(kind: str, digits_net, diabetes_net):
    task = digits_task(digits_net, keep=False, methods=["saliency"]) if kind == "images" else (
        diabetes_task(diabetes_net, keep=False, methods=["saliency"])
    )  # fmt: skip
    result = run_check(Explanation(), task)
    assert not any(f.kind == "gallery" or "sample_" in f.id for f in result.figures)
    assert not any(t.id == "explanation.samples" for t in result.tables)
    assert not any(series.get("faint") for f in result.figures if f.kind == "curve" for series in f.data["series"])
    held = [stage for stage in Explanation().stages(task) if stage.id.startswith("explanation.saliency")]
    assert held[0].holds_inputs


@pytest.mark.slow
def test_the_same_is_found_for_every_batch_size(diabetes_net):
    results = []
    for batch_size in (256, 7):
        task = diabetes_task(diabetes_net, methods=["integrated_gradients", "shap.gradient"])
        task.model.batch_size.current = batch_size
        results.append(run_check(Explanation(), task))
    for a, b in zip(results[0].metrics, results[1].metrics, strict=True):
        assert a.id == b.id
        assert a.value == pytest.approx(b.value, rel=1e-3, abs=1e-5), a.id


@pytest.mark.slow
@pytest.mark.parametrize("net", ["lstm", "transformer", "regressor"])
def test_other_networks_are_explained_by_what_makes_sense(net: str, request: pytest.FixtureRequest):
    module, data = request.getfixturevalue(net)
    task = Task(
        Model(module, task="regression" if net == "regressor" else "classification", device="cpu"),
        data,
        Explanation.Options(**QUICK),
        profile="quick",
    )
    result = run_check(Explanation(), task)
    assert all(e.ok for e in result.evidence if e.id.endswith((".worked", ".adds_up", ".depends_on_weights")))
    assert result.metric("explanation.integrated_gradients.faithfulness").value > 0.1
    if net == "regressor":
        assert not any("flip_share" in m.id for m in result.metrics)
        assert any("flips of single columns" in text for text in result.not_tested)
        assert "outputs' spread" in result.answer
    else:
        assert any(f.id == "explanation.heat_maps" for f in result.figures)
        assert "shap.gradient was used" in result.metric("explanation.shap_auto.faithfulness").detail
    if net == "transformer":
        assert any(text.startswith("gradcam: the network has no") for text in result.not_tested)
        assert "gradcam" not in (result.reason or "")  # a method that does not fit is no reason to doubt the others


# --- what is missing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "left"),
    [("captum", {"shap.auto", "lime"}), ("shap", {"saliency", "integrated_gradients", "gradcam", "lime"}),
     ("lime", {"saliency", "integrated_gradients", "gradcam", "shap.auto"})],
)  # fmt: skip
def test_without_a_package_its_methods_are_left_out_and_the_check_is_incomplete(package, left, digits_net, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    task = digits_task(digits_net)
    task.model.resolve(task.data.test.x[:2], task.data.test.y)
    assert set(Plan(task).explainers) == left
    few = digits_task(digits_net, methods=["saliency", "shap.deep", "lime"], samples=4)
    result = run_check(Explanation(), few)
    assert result.status == "incomplete"
    assert f"needs {package}: pip install captum lime shap" in result.reason
    assert any("pip install captum lime shap" in text for text in result.not_tested)


def test_without_any_package_images_cannot_be_explained_and_tables_still_can(digits_net, diabetes_net, monkeypatch):
    for package in ("captum", "shap", "lime"):
        monkeypatch.setitem(sys.modules, package, None)
    task = digits_task(digits_net)
    task.model.resolve(task.data.test.x[:2], task.data.test.y)
    assert "pip install captum lime shap" in Explanation().not_applicable(task)
    result = run_check(Explanation(), diabetes_task(diabetes_net))
    assert result.status == "incomplete"
    assert "pip install captum lime shap" in result.reason
    assert any(t.id == "explanation.importance" for t in result.tables)
    assert result.metric("explanation.sex.flip_share").value > 0


def test_a_method_that_fails_is_reported_and_the_others_go_on(diabetes_net, monkeypatch):
    from audit.explain.lime import Lime

    def broken(self, question):
        raise RuntimeError("no line\nfits here")

    monkeypatch.setattr(Lime, "attribute", broken)
    result = run_check(Explanation(), diabetes_task(diabetes_net))
    assert result.status == "incomplete"
    assert "lime gave no values: RuntimeError: no line" in result.reason
    assert result.metric("explanation.shap_kernel.faithfulness").value > 0
    assert not any(m.id.startswith("explanation.lime") for m in result.metrics)
    assert any("SHAP, LIME and permutation importance agree" in text for text in result.not_tested)


# --- edges ------------------------------------------------------------------------------------------------------------


def test_one_input_leaves_nothing_to_compare():
    data = Dataset(np.random.default_rng(0).normal(size=(30, 1)).astype(np.float32), np.arange(30) % 2)
    task = Task(Model(nn.Linear(1, 2)), data, Explanation.Options())
    task.model.resolve(data.test.x[:2], data.test.y)
    assert "one input only" in Explanation().not_applicable(task)


def test_a_network_that_answers_the_same_to_everything_explains_nothing():
    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.tensor([0.0, 1.0]))

        def forward(self, x):
            return self.bias.expand(len(x), 2) + 0 * x[:, :1]

    x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    task = Task(Model(Same()), Dataset(x, np.arange(60) % 2), Explanation.Options(**QUICK), profile="quick")
    result = run_check(Explanation(), task)
    assert result.status == "incomplete"
    assert result.answer.startswith("0 of 4 explainers passed their tests")
    json.loads(result.model_dump_json())


def test_a_network_without_weights_is_not_believed():
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    model = Model(nn.Identity(), output="logits")
    task = Task(model, Dataset(x, x.argmax(axis=1)), Explanation.Options(**QUICK, methods=["shap.kernel"]), profile="quick")
    result = run_check(Explanation(), task)
    assert result.status == "incomplete"
    assert "no weights to shuffle" in result.reason


def test_samples_without_a_finite_answer_are_left_out():
    class Hole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 2)

        def forward(self, x):
            return torch.where(x[:, :1] > 1, torch.nan, self.net(x))

    x = np.random.default_rng(0).normal(size=(80, 4)).astype(np.float32)
    x[:40, 0] = 0.0
    data = Dataset(x, np.arange(80) % 2, reference=(x[:40], np.arange(40) % 2))
    task = Task(
        Model(Hole(), output="logits"), data, Explanation.Options(**QUICK, methods=["integrated_gradients"]), profile="quick"
    )
    result = run_check(Explanation(), task)
    assert next(e for e in result.evidence if e.id == "explanation.integrated_gradients.worked").ok
    json.loads(result.model_dump_json())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["shapley"]}, "no explainer 'shapley'"),
        ({"methods": []}, "at least one"),
        ({"methods": ["lime", "lime"]}, "once"),
        ({"output": "values"}, "one of logits, probabilities"),
        ({"samples": 1}, "greater than or equal to 2"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        Explanation.Options(**options)


def test_one_method_may_be_named_without_a_list():
    assert Explanation.Options(methods="lime").methods == ["lime"]


def test_columns_whose_names_clash_get_metrics_of_their_own():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, (60, 4)).astype(np.float32)
    data = Dataset(x, x[:, 0].astype(int), columns=["a b", "a-b", "lime", "ä"])
    task = Task(Model(nn.Linear(4, 2)), data, Explanation.Options(**QUICK, methods=["saliency"]), profile="quick")
    flips = [m for m in run_check(Explanation(), task).metrics if m.id.endswith("flip_share")]
    assert len({m.id for m in flips}) == 4
    assert [m.params["column"] for m in flips] == ["a b", "a-b", "lime", "ä"]


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_and_finds_the_same(diabetes_net, tmp_path):
    options = {
        "arch": f"{demo_nets.__file__}:TableNet",
        "target": "progression_above_median",
        "reference": diabetes_net / "train.csv",
        "checks": ["explanation"],
        "profile": "quick",
        "settings": ['explanation.methods=["integrated_gradients", "lime"]'],
    }
    first = audit.run(diabetes_net / "model.pt", str(diabetes_net / "test.csv"), out=tmp_path, **options)["explanation"]
    for job in list(tmp_path.rglob("explanation.lime*")):
        job.unlink()
    again = audit.run(diabetes_net / "model.pt", str(diabetes_net / "test.csv"), out=tmp_path, **options)["explanation"]
    assert [m.value for m in first.metrics] == [m.value for m in again.metrics]
    assert first.figures == again.figures
