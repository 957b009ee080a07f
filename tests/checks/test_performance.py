"""The performance check: values against scikit-learn, and what it says of networks and data that are not as they should be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, mean_absolute_error, r2_score, recall_score
from torch import nn

from audit.checks.base import Task
from audit.checks.performance import Performance
from audit.data.base import Dataset
from audit.model.wrapper import Model
from tests.stagerun import run_check


class Linear(nn.Module):
    """Takes the logits, or the value, straight from the input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Broken(nn.Module):
    """Returns NaN for the first half of its classes' samples: those with a positive first input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x[:, :1] > 0, torch.nan, x)


class Drunk(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.1 * torch.randn_like(x)


class Herd(nn.Module):
    """Lets the other samples of the batch into the answer, as batch normalisation in training mode does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(dim=0)


def audit(x, y, module=None, task="classification", reference=None, options=None, **data):
    dataset = Dataset(np.asarray(x, dtype=np.float32), y, reference=reference, **data)
    model = Model(module or Linear(), task=task, output="regression" if task == "regression" else "logits", batch_size=64)
    return run_check(Performance(), Task(model=model, data=dataset, options=options or Performance.Options()))


def labelled_logits(n=400, classes=3, noise=1.0, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    return 2 * np.eye(classes)[y] + noise * rng.normal(size=(n, classes)), y


def titles(result, severity=None):
    return [f.title for f in result.findings if severity in (None, f.severity)]


def evidence(result):
    return {e.id.removeprefix("performance."): e.ok for e in result.evidence}


def test_values_equal_scikit_learn():
    x, y = labelled_logits()
    result = audit(x, y)
    predicted = x.argmax(axis=1)
    assert result.status == "measured"
    assert result.metric("performance.accuracy").value == np.mean(predicted == y)
    assert result.metric("performance.balanced_accuracy").value == pytest.approx(balanced_accuracy_score(y, predicted))
    recalls = [result.metric(f"performance.{c}.recall").value for c in range(3)]
    assert recalls == pytest.approx(recall_score(y, predicted, average=None))
    assert (result.outcomes.bits("performance.correct") == (predicted == y)).all()
    assert all(evidence(result).values())
    (matrix,) = (f for f in result.figures if f.kind == "matrix")
    assert np.sum(matrix.data["values"]) == len(y)
    assert np.trace(matrix.data["values"]) == (predicted == y).sum()


def test_every_metric_is_documented_and_holds_its_value():
    x, y = labelled_logits()
    result = audit(x, y, reference=(x + 1e-3, y))
    known = {doc.id for doc in Performance.metrics}
    for metric in result.metrics:
        documented = metric.id if not metric.id.endswith(".recall") else "performance.<class>.recall"
        assert documented in known
        assert metric.low <= metric.value <= metric.high
    (doc,) = (d for d in Performance.metrics if d.id == "calibration.ece")
    assert doc.direction == result.metric("calibration.ece").direction == "lower"


def test_one_sample_does_not_crash_and_is_not_enough():
    result = audit(*labelled_logits(n=1))
    assert result.status == "incomplete"
    assert not evidence(result)["more_than_one_class"]
    assert "Only 1 test sample" in titles(result)
    assert result.metric("performance.accuracy").high - result.metric("performance.accuracy").low > 0.9


def test_labels_of_one_class_leave_it_incomplete():
    x, _ = labelled_logits()
    result = audit(x, np.zeros(len(x), dtype=int))
    assert result.status == "incomplete"
    assert "says nothing about telling classes apart" in result.reason
    assert any("classes without a test sample" in line for line in result.not_tested)
    assert result.metric("performance.1.recall").value is None


def test_non_finite_outputs_count_as_wrong_and_leave_it_incomplete():
    x, y = labelled_logits()
    result = audit(x, y, Broken())
    bad = x[:, 0] > 0
    assert result.metric("performance.accuracy").value == np.mean((x.argmax(axis=1) == y) & ~bad)
    assert result.metric("calibration.ece").value is None
    assert result.status == "incomplete"
    (finding,) = (f for f in result.findings if "NaN or infinity" in f.title)
    assert finding.severity == "high"
    assert finding.samples == np.flatnonzero(bad)[:10].tolist()
    result.model_dump_json()


def test_all_outputs_nan_is_right_on_nothing():
    x, y = labelled_logits()
    result = audit(np.abs(x) + 1, y, Broken())
    assert result.metric("performance.accuracy").value == 0.0
    assert result.status == "incomplete"


@pytest.mark.parametrize(("module", "broken"), [(Drunk(), "deterministic"), (Herd(), "batch_independent")])
def test_a_network_that_cannot_be_measured_twice_leaves_it_incomplete(module, broken):
    result = audit(*labelled_logits(), module)
    assert result.status == "incomplete"
    assert not evidence(result)[broken]


def test_a_constant_network_is_no_better_than_a_constant():
    _, y = labelled_logits()
    result = audit(np.tile([3.0, 0.0, 0.0], (len(y), 1)), y)
    assert any("no better than always answering" in t for t in titles(result, "high"))
    assert {"Class 1 is never predicted", "Class 2 is never predicted"} <= set(titles(result, "medium"))


def test_a_network_barely_better_on_unequal_classes_is_not_accused():
    rng = np.random.default_rng(0)
    y = (rng.random(2000) < 0.03).astype(int)
    logits = np.stack((np.zeros(2000), np.where(y == 1, 2.0, -2.0) + 0.8 * rng.normal(size=2000)), axis=1)
    result = audit(logits, y)
    assert not titles(result, "high")
    assert "The classes are very unequal in number" in titles(result)


def test_a_weak_class_is_named_with_samples_and_an_even_network_is_not_accused():
    x, y = labelled_logits(n=600)
    assert not [t for t in titles(audit(x, y)) if "far less often" in t]
    worse = x.copy()
    worse[y == 2, 2] -= 2
    result = audit(worse, y, classes=["cat", "dog", "<b>owl"])
    (finding,) = (f for f in result.findings if "far less often" in f.title)
    assert "<b>owl" in finding.title
    assert 1 <= len(finding.samples) <= 10
    assert all(y[i] == 2 for i in finding.samples)


def test_a_class_with_few_samples_is_not_accused_of_being_weak():
    x, y = labelled_logits(n=600)
    rare = np.r_[np.flatnonzero(y != 2), np.flatnonzero((y == 2) & (x.argmax(axis=1) == 2))[:6]]
    x, y = x[rare], y[rare]
    x[-3:, 2] = -9  # three of six found
    assert not [t for t in titles(audit(x, y)) if "far less often" in t or "never" in t]


def test_confidently_wrong_samples_are_listed_most_confident_first():
    x, y = labelled_logits(n=500)
    x[:5] = 0
    x[np.arange(5), (y[:5] + 1) % 3] = [8, 10, 9, 12, 11]
    result = audit(x, y)
    (finding,) = (f for f in result.findings if "stated confidence" in f.title)
    assert finding.samples[:5] == [3, 4, 1, 2, 0]
    assert len(finding.samples) <= 10


def test_samples_are_named_by_their_ids_after_a_draw():
    x, y = labelled_logits(n=500)
    x[7] = 0
    x[7, (y[7] + 1) % 3] = 30
    dataset = Dataset(np.asarray(x, dtype=np.float32), y)
    drawn = dataset._with(test=dataset.test.take(np.arange(5, 500)))
    task = Task(model=Model(Linear(), task="classification", output="logits"), data=drawn, options=Performance.Options())
    (finding,) = (f for f in run_check(Performance(), task).findings if "stated confidence" in f.title)
    assert finding.samples[0] == 7


def test_overfitting_gap_is_reported_only_when_surely_large():
    rng = np.random.default_rng(0)
    x, y = labelled_logits(n=1000)
    sharp = 9 * np.eye(3)[y] + rng.normal(size=(1000, 3))
    result = audit(x, y, reference=(sharp.astype(np.float32), y))
    gap = result.metric("performance.overfitting_gap")
    assert gap.value == pytest.approx(1 - result.metric("performance.accuracy").value)
    assert any(t.startswith("Over-fitting") for t in titles(result))
    right = x.argmax(axis=1) == y
    rows = np.r_[np.flatnonzero(right)[:18], np.flatnonzero(~right)[:2]]  # nine in ten right: a gap, but not a sure one
    few = audit(x[rows], y[rows], reference=(sharp.astype(np.float32), y))
    assert not any(t.startswith("Over-fitting") for t in titles(few))


def test_test_samples_from_the_training_data_leave_it_incomplete():
    x, y = labelled_logits()
    result = audit(x[:100], y[:100], reference=(x.astype(np.float32), y))
    assert not evidence(result)["test_unseen"]
    assert result.status == "incomplete"
    assert any("were in the training data" in t for t in titles(result, "high"))


def test_repeats_that_are_natural_in_coarse_data_are_not_called_a_leak():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 4, size=(900, 3)).astype(np.float32)
    y = x.argmax(axis=1)
    result = audit(x[:300], y[:300], reference=(x[300:], y[300:]))
    assert evidence(result)["test_unseen"]


def test_hostile_and_equal_class_names_keep_metric_ids_apart():
    x, y = labelled_logits()
    result = audit(x, y, classes=["</script>", "a" * 300, "</script>"])
    ids = [m.id for m in result.metrics]
    assert len(set(ids)) == len(ids)
    assert [m.params["class"] for m in result.metrics if m.id.endswith(".recall")] == ["</script>", "a" * 300, "</script>"]


def test_many_classes_are_not_drawn_beyond_what_can_be_read():
    x, y = labelled_logits(n=600, classes=60)
    result = audit(x, y)
    assert not [f for f in result.figures if f.kind == "matrix"]
    (bars,) = (f for f in result.figures if f.kind == "bars")
    assert len(bars.data["labels"]) == 40


# --- regression -------------------------------------------------------------------------------------------------------


def values(n=300, noise=0.5, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=n) + 0.25
    return (y + noise * rng.normal(size=n))[:, None], y


def test_regression_values_equal_scikit_learn():
    x, y = values()
    result = audit(x, y, task="regression")
    x = x.astype(np.float32)
    assert result.metric("performance.r2").value == pytest.approx(r2_score(y, x[:, 0]), abs=1e-6)
    mae = result.metric("performance.mae")
    assert mae.value == pytest.approx(mean_absolute_error(y, x[:, 0]), abs=1e-6)
    assert (mae.direction, mae.unit) == ("lower", "target units")
    assert result.status == "measured"
    (scatter,) = (f for f in result.figures if f.kind == "scatter")
    assert len(scatter.data["x"]) == 300


def test_a_large_regression_draws_at_most_two_thousand_points():
    (scatter,) = (f for f in audit(*values(5000), task="regression").figures if f.kind == "scatter")
    assert len(scatter.data["x"]) == 2000


def test_non_finite_regression_outputs_leave_no_metric():
    result = audit(*values(), Broken(), task="regression")
    assert result.metric("performance.r2").value is None
    assert result.metric("performance.mae").value is None
    assert result.status == "incomplete"
    assert titles(result, "high")


def test_regression_worse_than_the_mean_and_over_fitted_is_reported():
    x, y = values()
    rng = np.random.default_rng(1)
    result = audit(3 * rng.normal(size=(300, 1)), y, task="regression", reference=(x.astype(np.float32), y))
    assert "The network is no better than always answering the mean" in titles(result, "high")
    assert any(t.startswith("Over-fitting") for t in titles(result))


@pytest.mark.parametrize("n", [1, 5])
def test_few_or_equal_targets_have_no_r2_interval(n):
    x, y = values(n)
    result = audit(x, y, task="regression")
    assert result.metric("performance.r2").low is None
    equal = audit(values()[0], np.full(300, 0.5), task="regression")
    assert equal.status == "incomplete"
    assert "all equal" in equal.reason
