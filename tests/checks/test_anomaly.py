"""The anomaly check on every kind of network and data, and where there is too little to go by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import audit
from audit import demo_nets
from audit.checks.anomaly import Anomaly, AnomalyOptions
from audit.checks.base import Task
from audit.errors import UsageError
from tests.stagerun import run_check


class Line(nn.Module):
    """Takes anything, answers two classes."""

    def forward(self, x):
        z = x.flatten(1).mean(dim=1)
        return torch.stack((z, -z), dim=1)


def correlated(n, columns=6, seed=0):
    rng = np.random.default_rng(seed)
    factors = np.random.default_rng(99).normal(size=(2, columns))
    return (rng.normal(size=(n, 2)) @ factors + 0.2 * rng.normal(size=(n, columns))).astype(np.float32)


def table(n=300, n_reference=400, **more):
    x, reference = correlated(n, seed=1), correlated(n_reference, seed=2)
    return audit.Dataset(x, x[:, 0] > 0, reference=(reference, reference[:, 0] > 0), **more)


def check(module, data, profile="quick", task="classification", **options):
    chosen = {"detectors": ["autoencoder", "pca"], "rows": 500, **options}
    model = audit.Model(module, task=task, device="cpu")
    return run_check(Anomaly(), Task(model, data, AnomalyOptions(**chosen), profile=profile))


@pytest.mark.slow
def test_a_table_with_labelled_anomalies():
    odd = correlated(80, seed=3)
    odd[:, 1] = -odd[:, 1] + 2
    result = check(Line(), table(anomalies=odd))
    assert result.status == "measured", result.reason
    area = result.metric("anomaly.autoencoder.auroc")
    assert area.params["against"] == "labelled anomalies"
    assert area.params["headline"] is True
    assert 0.8 < area.low <= area.value <= area.high <= 1
    assert area.n == 80
    precision = result.metric("anomaly.autoencoder.average_precision")
    assert precision.params["share_of_anomalies"] == pytest.approx(80 / 380)
    assert result.metric("anomaly.pca.shuffled.auroc").value > 0.7
    assert result.metric("anomaly.pca.corrupted.auroc").value > 0.7
    false = result.metric("anomaly.autoencoder.false_alarm_rate")
    assert false.low <= 0.05 <= false.high
    assert result.outcomes.bits("anomaly.alarm").sum() == round(false.value * 300)
    assert {figure.id for figure in result.figures} >= {"anomaly.scores", "anomaly.auroc", "anomaly.roc", "anomaly.columns"}
    assert any("adversarial examples" in line for line in result.not_tested)


def test_every_metric_is_documented_and_every_figure_can_be_drawn():
    from audit.plan import is_of
    from audit.report.charts import draw
    from audit.report.figures import read

    result = check(Line(), table())
    for metric in result.metrics:
        assert any(is_of(metric.id, doc.id) and doc.direction == metric.direction for doc in Anomaly.metrics), metric.id
    for figure in result.figures:
        assert draw(figure.kind, figure.title, read(figure), "f"), figure.id


@pytest.mark.slow
def test_images_with_three_classes_hold_one_out(digits_net):
    images = audit.Dataset.load(digits_net / "test.npz", reference=digits_net / "train.npz")
    result = check(demo_nets.DigitsNet(), images, rows=800)
    assert result.status == "measured", result.reason
    area = result.metric("anomaly.autoencoder.auroc")
    assert (area.params["against"], area.params["fits"]) == ("classes held out", 1)
    assert area.low > 0.7
    assert {metric.id.split(".")[2] for metric in result.metrics} >= {"auroc", "corrupted", "false_alarm_rate"}
    gallery = next(figure for figure in result.figures if figure.id == "anomaly.copies")
    assert gallery.data["panels"] == ["input", "the network's copy", "difference"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lstm", "transformer"])
def test_sequences_and_transformers(kind, request):
    module, data = request.getfixturevalue(kind)
    result = check(module, data, rows=600, held_out_classes=0)
    assert result.status == "measured", result.reason
    against = {"lstm": "rows of shuffled columns", "transformer": "inputs corrupted at severity 5"}[kind]
    assert against in {metric.params.get("against") for metric in result.metrics}


def test_regression(regressor):
    module, data = regressor
    result = check(module, data, task="regression")
    assert result.status == "measured", result.reason
    assert result.metric("anomaly.autoencoder.auroc").params["against"] == "rows of shuffled columns"


def test_without_a_reference_part_it_says_how_to_give_one():
    data = audit.Dataset(correlated(30), np.arange(30) % 2)
    model = audit.Model(Line(), task="classification", device="cpu")
    assert "--reference" in Anomaly().not_applicable(Task(model, data, AnomalyOptions()))


def test_a_tiny_reference_is_not_enough():
    result = check(Line(), table(n_reference=40))
    assert result.status == "incomplete"
    assert "has 40 samples, and 50 are the least" in result.reason
    assert result.metrics == []


def test_the_least_reference_can_set_a_threshold():
    result = check(Line(), table(n_reference=50), detectors=["pca"])
    assert result.metric("anomaly.pca.false_alarm_rate").params["calibration_samples"] == 20


def test_an_alpha_that_calibration_cannot_vouch_for_is_incomplete():
    result = check(Line(), table(n_reference=80), detectors=["pca"], alpha=0.01)
    assert result.status == "incomplete"
    assert "anomaly.enough_calibration" in result.reason
    assert result.metric("anomaly.pca.detection_rate").value == 0, "without a threshold nothing is an alarm"


def test_a_reference_of_equal_rows_is_incomplete():
    data = audit.Dataset(correlated(50), np.arange(50) % 2, reference=(np.ones((100, 6), np.float32), np.arange(100) % 2))
    result = check(Line(), data)
    assert result.status == "incomplete"
    assert "are the same" in result.reason


@pytest.mark.slow
def test_constant_columns_do_no_harm():
    x, reference = correlated(200, seed=1), correlated(300, seed=2)
    x[:, 3] = reference[:, 3] = 7
    data = audit.Dataset(x, x[:, 0] > 0, reference=(reference, reference[:, 0] > 0))
    assert check(Line(), data).status == "measured"


def test_a_single_column_is_left_to_neighbours_and_forests():
    x, reference = correlated(200, 1, seed=1), correlated(300, 1, seed=2)
    data = audit.Dataset(x, x[:, 0] > 0, reference=(reference, reference[:, 0] > 0))
    result = check(Line(), data, detectors=["autoencoder", "knn"])
    assert "anomaly.knn.false_alarm_rate" in {metric.id for metric in result.metrics}
    assert any(line.startswith("autoencoder:") for line in result.not_tested)
    alone = check(Line(), data, detectors=["autoencoder"])
    assert "single value" in alone.reason


def test_no_input_is_shown_where_none_may_be():
    rng = np.random.default_rng(0)
    images = rng.random((120, 1, 8, 8)).astype(np.float32)
    data = audit.Dataset(images[:60], np.arange(60) % 2, reference=(images[60:], np.arange(60) % 2))
    model = audit.Model(Line(), task="classification", device="cpu")
    task = Task(model, data, AnomalyOptions(detectors=["autoencoder"]), profile="quick")
    stages = Anomaly().stages(replace(task, keep_samples=False))
    assert not any(stage.holds_inputs for stage in stages)
    assert all(stage.holds_inputs for stage in Anomaly().stages(task))
    result = run_check(Anomaly(), replace(task, keep_samples=False))
    assert not any(figure.kind == "gallery" for figure in result.figures)


def test_unknown_detectors_are_refused_with_a_hint():
    with pytest.raises(ValueError, match="isolation_forest"):
        AnomalyOptions(detectors=["isolationforest"])
    with pytest.raises(UsageError, match="anomaly"):
        audit.run(audit.Model(Line(), task="classification"), table(), checks=["anomaly"], settings=["anomaly.detectors=[]"])


@pytest.mark.slow
def test_it_sees_the_adversarial_examples_of_its_own_run_whatever_ran_before(digits_net, tmp_path):
    data = audit.Dataset.load(digits_net / "test.npz", reference=digits_net / "train.npz")
    settings = [
        "robustness.steps=5",
        "robustness.restarts=1",
        "robustness.noise_draws=2",
        'anomaly.detectors=["autoencoder","knn"]',
        "anomaly.rows=400",
        "anomaly.held_out_classes=0",
    ]
    common = {"settings": settings, "samples": 100, "eps": [0.3], "out": tmp_path / "out"}
    model = audit.Model.load(digits_net / "model.pt", arch=f"{digits_net / 'nets.py'}:DigitsNet")
    without = audit.run(model, data, checks=["anomaly"], **common)["anomaly"]
    both = audit.run(model, data, checks=["robustness", "anomaly"], **common)["anomaly"]
    own = both.metric("anomaly.autoencoder.adversarial_linf.auroc")
    assert own.n > 10
    assert not any("adversarial" in metric.id for metric in without.metrics), "its stored jobs were not those of the other run"
    fresh = audit.run(model, data, checks=["robustness", "anomaly"], **{**common, "out": tmp_path / "fresh"})["anomaly"]
    assert [m.value for m in fresh.metrics] == [m.value for m in both.metrics]
    again = audit.run(model, data, checks=["anomaly"], **common)["anomaly"]
    assert [m.id for m in again.metrics] == [m.id for m in without.metrics]
