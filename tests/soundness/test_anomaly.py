"""Detectors with planted faults are caught, and so are data that are not what they should be; clean twins are not accused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import audit
from audit.anomaly import autoencoder, pca
from tests.checks.test_anomaly import Line, check, correlated, table

pytestmark = pytest.mark.slow


class Three(nn.Module):
    def forward(self, x):
        return x[:, :3] + torch.zeros(3)


def evidence(result, name):
    return next(e for e in result.evidence if e.id == name)


def test_the_clean_twin_is_not_accused():
    result = check(Line(), table())
    assert result.status == "measured", result.reason
    assert all(e.ok for e in result.evidence)
    assert not any(f.severity in ("medium", "high") for f in result.findings)


@pytest.mark.parametrize("fault", ["no steps", "no learning", "ascent"])
def test_an_autoencoder_that_did_not_train_is_caught(fault, monkeypatch):
    honest = autoencoder.train

    def broken(network, x, held_out, **options):
        if fault == "no steps":
            return honest(network, x, held_out, **{**options, "steps": 0})
        if fault == "no learning":
            return honest(network, x, held_out, **{**options, "learning_rate": 1e-12})
        history = honest(network, -x, -held_out, **{**options, "steps": min(options["steps"], 30)})
        for parameter in network.parameters():
            parameter.data.mul_(-3)
        return history

    monkeypatch.setattr(autoencoder, "train", broken)
    odd = correlated(100, seed=3) + 20
    result = check(Line(), table(anomalies=odd))
    assert result.metric("anomaly.autoencoder.auroc").value > 0.95, "its figure looks as good as a trained one's"
    assert result.status == "incomplete"
    assert not evidence(result, "anomaly.autoencoder.trained").ok


def test_a_training_that_is_cut_short_is_caught(monkeypatch):
    honest = autoencoder.train

    def hasty(network, x, held_out, **options):
        return honest(network, x, held_out, **{**options, "steps": 40, "learning_rate": 1e-4})

    monkeypatch.setattr(autoencoder, "train", hasty)
    result = check(Line(), table(n_reference=500))
    assert result.status == "incomplete"


@pytest.mark.parametrize("collapsed", [lambda x: np.ones(len(x)), lambda x: 5 + 1e-13 * x[:, 0]])
def test_a_collapsed_detector_is_caught(collapsed, monkeypatch):
    monkeypatch.setattr(pca.PCADetector, "_distance", lambda self, x: collapsed(x))
    result = check(Line(), table(), detectors=["pca"])
    assert result.status == "incomplete"
    assert not evidence(result, "anomaly.pca.distinct_scores").ok


def test_a_detector_that_draws_as_it_likes_is_caught(monkeypatch):
    rng = np.random.default_rng()
    honest = pca.PCADetector._distance
    monkeypatch.setattr(pca.PCADetector, "_distance", lambda self, x: honest(self, x) + rng.random(len(x)))
    result = check(Line(), table(), detectors=["pca"])
    assert not evidence(result, "anomaly.pca.repeatable").ok


def test_a_reference_part_of_another_source_is_said():
    x, reference = correlated(300, seed=1) + 1.5, correlated(400, seed=2)
    data = audit.Dataset(x, x[:, 0] > 0, reference=(reference, reference[:, 0] > 0))
    result = check(Line(), data)
    shift = [f for f in result.findings if "not like the reference part" in f.title]
    assert shift
    assert shift[0].severity in ("medium", "high")
    assert shift[0].samples
    assert not any("not like the reference part" in f.title for f in check(Line(), table()).findings)


def test_test_samples_that_were_fitted_on_are_said():
    reference = correlated(600, seed=2)
    y = reference[:, 0] > 0
    data = audit.Dataset(reference[:300], y[:300], reference=(reference, y))
    result = check(Line(), data, detectors=["knn"], rows=600)
    assert not evidence(result, "anomaly.same_draw").ok
    assert "test samples were fitted on" in result.reason


def test_a_reference_part_of_copies_is_said():
    reference = np.repeat(correlated(200, seed=2), 4, axis=0)
    y = reference[:, 0] > 0
    x = correlated(300, seed=1)
    data = audit.Dataset(x, x[:, 0] > 0, reference=(reference, y))
    result = check(Line(), data, detectors=["knn"], rows=800)
    assert not evidence(result, "anomaly.same_draw").ok
    assert "the reference part holds copies" in result.reason


def test_rows_that_repeat_by_nature_are_not_accused():
    rng = np.random.default_rng(0)
    x, reference = (rng.integers(0, 2, size=(n, 7)).astype(np.float32) for n in (400, 600))
    data = audit.Dataset(x, x[:, 0] > 0, reference=(reference, reference[:, 0] > 0))
    result = check(Line(), data, detectors=["knn", "isolation_forest"], rows=600)
    assert evidence(result, "anomaly.same_draw").ok
    assert evidence(result, "anomaly.knn.distinct_scores").ok


def test_anomalies_that_nothing_sets_apart_are_said_to_go_unnoticed():
    result = check(Line(), table(anomalies=correlated(200, seed=9)))
    unseen = [f for f in result.findings if f.title.startswith("Labelled anomalies mostly go unnoticed")]
    assert unseen
    assert unseen[0].severity == "medium"
    area = result.metric("anomaly.autoencoder.auroc")
    assert area.low <= 0.5 <= area.high


def labelled(reference_of_anomalies: int) -> audit.Dataset:
    odd = correlated(160, seed=3) + np.float32([0, 4, 0, -4, 0, 4])
    x, reference = correlated(300, seed=1), np.concatenate((correlated(400, seed=2), odd[:reference_of_anomalies]))
    return audit.Dataset(x, x[:, 0] > 0, reference=(reference, reference[:, 0] > 0), anomalies=odd)


def test_labelled_anomalies_that_were_fitted_on_are_said():
    leaked, clean = (check(Line(), labelled(n), detectors=["knn"], rows=600) for n in (160, 0))
    assert leaked.status == "incomplete"
    assert not evidence(leaked, "anomaly.anomalies_not_fitted").ok
    assert clean.status == "measured", clean.reason
    assert evidence(clean, "anomaly.anomalies_not_fitted").ok


def test_anomalies_of_a_few_codes_that_normal_rows_have_too_are_not_accused():
    rng = np.random.default_rng(0)
    x, reference, odd = (rng.integers(0, 2, size=(n, 7)).astype(np.float32) for n in (400, 600, 100))
    data = audit.Dataset(x, x[:, 0] > 0, reference=(reference, reference[:, 0] > 0), anomalies=odd)
    assert evidence(check(Line(), data, detectors=["isolation_forest"], rows=600), "anomaly.anomalies_not_fitted").ok


def test_a_reference_part_wider_than_the_test_part_is_said():
    """Its threshold is so high that there are no false alarms, which looks good."""
    x, reference = correlated(300, seed=1), correlated(600, seed=2)
    reference[::3] *= 4
    data = audit.Dataset(x, x[:, 0] > 0, reference=(reference, reference[:, 0] > 0))
    result = check(Line(), data, detectors=["pca"], rows=600)
    assert result.metric("anomaly.pca.false_alarm_rate").value < 0.01
    assert any("threshold is too high" in f.title for f in result.findings)
    assert not any("threshold is too high" in f.title for f in check(Line(), table(), detectors=["pca"]).findings)


@pytest.mark.parametrize("where", ["anomalies", "everywhere"])
def test_scores_that_are_no_numbers_are_caught(where, monkeypatch):
    honest = pca.PCADetector._distance
    far = 12 if where == "anomalies" else 2
    monkeypatch.setattr(pca.PCADetector, "_distance", lambda self, x: np.where(np.abs(x).max(1) > far, np.nan, honest(self, x)))
    odd = correlated(60, seed=3) + 30
    result = check(Line(), table(anomalies=odd), detectors=["pca"])
    assert result.status == "incomplete"
    assert not evidence(result, "anomaly.pca.scores_are_numbers").ok
    assert result.metric("anomaly.pca.detection_rate").value == 0, "such an input raises no alarm"


def test_a_class_held_out_that_leaves_too_few_for_a_threshold_is_not_said_to_go_unnoticed():
    def classes(n, seed):
        c = np.random.default_rng(seed).integers(0, 3, n)
        x = correlated(n, seed=seed)
        x[:, :3] += 6 * np.eye(3, dtype=np.float32)[c]
        return x, c

    data = audit.Dataset(*classes(300, 1), reference=classes(210, 2))
    few = check(Three(), data, detectors=["pca"], alpha=0.01)
    assert evidence(few, "anomaly.enough_calibration").ok
    assert not any("held out" in f.title for f in few.findings)
    assert few.metric("anomaly.pca.auroc").params["against"] != "classes held out"
    enough = check(Three(), data, detectors=["pca"], alpha=0.05)
    assert enough.metric("anomaly.pca.detection_rate").params["against"] == "classes held out"
