"""The performance check: values against scikit-learn, and what it says of networks and data that are not as they should be."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, mean_absolute_error, r2_score, recall_score
from torch import nn

from audit.checks.base import Answer, Task
from audit.checks.performance import Performance
from audit.checks.performance_measurement import judge_overlap
from audit.data.base import Dataset
from audit.model.wrapper import Model
from tests.realdata import shared
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
    (finding,) = (f for f in result.findings if f.title == "All test labels are of one class: 0")
    assert finding.severity == "high"
    assert "samples of every class" in finding.detail
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


class Wrapped(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


class Counting(nn.Module):
    """Counts its calls and answers every second one in another way."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x.flip(1) if self.calls % 2 else x


def masked(x: torch.Tensor) -> torch.Tensor:
    return torch.cat((x, torch.full_like(x[:, :1], -1e9)), dim=1)


def one_far_out(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x[:, :1] == x[:, :1].max(), x + 1e9, x)


UNREPEATABLE = {
    "noise beside a masked class": (lambda x: masked(x + torch.randn_like(x)), "deterministic"),
    "little noise beside a masked class": (lambda x: masked(x + 0.01 * torch.randn_like(x)), "deterministic"),
    "noise beside a sample far out": (lambda x: one_far_out(x + torch.randn_like(x)), "deterministic"),
    "noise under one large offset": (lambda x: x + torch.randn_like(x) + 1e6, "deterministic"),
    "another answer alone": (lambda x: x.flip(1) if len(x) == 1 else x, "batch_independent"),
    "a little other alone, beside a masked class": (lambda x: masked(x + 0.1 * (len(x) == 1)), "batch_independent"),
    "the first of a batch": (lambda x: torch.cat((x[:1].flip(1), x[1:])), "batch_independent"),
    "the last of a batch": (lambda x: torch.cat((x[:-1], x[-1:].flip(1))) if len(x) > 1 else x, "batch_independent"),
    "the neighbour's answer": (lambda x: 0.9 * x + 0.1 * x.roll(1, 0), "batch_independent"),
    "ranks within the batch": (lambda x: x.argsort(dim=0).argsort(dim=0) / len(x), "batch_independent"),
    "an axis squeezed away": (lambda x: x.squeeze(0), "batch_independent"),
    "batch statistics": (nn.BatchNorm1d(3, track_running_stats=False), "batch_independent"),
}


@pytest.mark.parametrize("name", UNREPEATABLE)
def test_a_network_whose_answers_depend_on_more_than_the_sample_is_found(name):
    function, broken = UNREPEATABLE[name]
    torch.manual_seed(0)
    result = audit(*labelled_logits(), function if isinstance(function, nn.Module) else Wrapped(function))
    assert result.status == "incomplete"
    assert not evidence(result)[broken]
    result.model_dump_json()


def test_every_second_call_another_answer_is_found():
    assert not evidence(audit(*labelled_logits(), Counting()))["deterministic"]


def test_a_regression_network_with_noise_is_found_beside_a_value_far_out():
    x, y = values()
    result = audit(x, y, Wrapped(lambda x: one_far_out(x + 0.01 * torch.randn_like(x))), task="regression")
    assert not evidence(result)["deterministic"]


def conv(seed: int, norm: bool) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16) if norm else nn.Identity(), nn.ReLU()]
    for _ in range(4):
        layers += [nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16) if norm else nn.Identity(), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))


def same_logits(x: torch.Tensor) -> torch.Tensor:
    return x[:, :1].expand(len(x), 3).clone()


HONEST = {
    "convolutions": lambda: conv(0, norm=False),
    "convolutions, batch norm as deployed": lambda: conv(1, norm=True),
    "a masked class": lambda: nn.Sequential(conv(2, norm=False), Wrapped(masked)),
    "a large offset": lambda: nn.Sequential(conv(3, norm=False), Wrapped(lambda z: z + 1000)),
    "half precision": lambda: conv(4, norm=False).bfloat16(),
    "ties": lambda: nn.Sequential(conv(5, norm=False), Wrapped(same_logits)),
    "constant": lambda: Wrapped(lambda x: torch.ones(len(x), 3)),
}


@pytest.mark.parametrize("name", HONEST)
@pytest.mark.parametrize("n", [2, 40, 300])
def test_an_honest_network_is_not_accused_of_rounding(name, n):
    rng = np.random.default_rng(0)
    result = audit(rng.random((n, 3, 12, 12)), np.arange(n) % 2, HONEST[name]())
    assert evidence(result)["deterministic"]
    assert evidence(result)["batch_independent"]


def test_repeating_works_when_memory_is_short():
    class Tight(nn.Module):
        def forward(self, x):
            if len(x) > 5:
                raise torch.OutOfMemoryError("out of memory")
            return x

    result = audit(*labelled_logits(n=100), Tight())
    assert result.status == "measured"


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


@pytest.mark.parametrize("how", ["each row twice", "one class twice", "a bootstrap", "rows drawn again for balance"])
def test_an_oversampled_training_part_does_not_hide_a_leak(how):
    x, y = labelled_logits(n=300)
    rng = np.random.default_rng(0)
    again = {
        "each row twice": np.arange(300),
        "one class twice": np.flatnonzero(y == 1),
        "a bootstrap": rng.integers(0, 300, 600),
        "rows drawn again for balance": rng.choice(np.flatnonzero(y == 2), 300),
    }[how]
    rows = np.r_[np.arange(300), again]
    result = audit(x[:100], y[:100], reference=(x[rows].astype(np.float32), y[rows]))
    assert not evidence(result)["test_unseen"]
    clean = audit(x[:100], y[:100], reference=(x[rows[rows >= 100]].astype(np.float32), y[rows[rows >= 100]]))
    assert evidence(clean)["test_unseen"]


def test_rows_that_repeat_in_the_adult_table_are_no_leak_and_a_leak_of_it_is():
    """One in five of its test rows stands in the training part as well, because rows repeat."""
    tables = []
    for part in ("test", "train"):
        frame = pd.read_csv(shared(f"tables/adult_encoded_{part}.csv.gz"))
        tables.append((frame.drop(columns="income").to_numpy(np.float32), frame["income"].to_numpy()))
    (x, y), (x_train, y_train) = tables
    rng = np.random.default_rng(0)

    def unseen(x, y, rows_x, rows_y):
        answer = Answer(Performance)
        task = Task(model=None, data=Dataset(x, y, reference=(rows_x, rows_y)), options=Performance.Options())
        judge_overlap(answer, task)
        return answer.evidence[0].ok

    twice = np.r_[np.arange(len(x_train)), np.arange(len(x_train))]
    poor, rich = (np.flatnonzero(y_train == c) for c in (0, 1))
    balanced = np.r_[poor, rng.choice(rich, len(poor))]
    for few in (slice(None), slice(100), slice(1000)):
        for rows in (slice(None), twice, balanced):
            assert unseen(x[few], y[few], x_train[rows], y_train[rows])
    leaked = rng.choice(len(x), len(x) // 3, replace=False)
    rows_x, rows_y = np.r_[x_train, x[leaked]], np.r_[y_train, y[leaked]]
    again = rng.integers(0, len(rows_x), 2 * len(rows_x))
    for rows in (slice(None), np.r_[np.arange(len(rows_x)), again], np.repeat(np.arange(len(rows_x)), 3)):
        assert not unseen(x, y, rows_x[rows], rows_y[rows])


def test_coarse_data_is_seldom_accused_whatever_its_grain():
    accused = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        x = rng.integers(0, rng.choice([3, 6, 12, 30]), size=(900, 3)).astype(np.float32)
        n, y = int(rng.choice([20, 100, 300, 600])), x.argmax(axis=1)
        answer = Answer(Performance)
        task = Task(model=None, data=Dataset(x[:n], y[:n], reference=(x[n:], y[n:])), options=Performance.Options())
        judge_overlap(answer, task)
        accused += not answer.evidence[0].ok
    assert accused <= 200 * 0.01 + 3 * (200 * 0.01 * 0.99) ** 0.5


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


@pytest.mark.parametrize("seed", range(5))
def test_errors_or_targets_ruled_by_a_few_samples_leave_it_incomplete(seed):
    rng = np.random.default_rng(seed)
    x, y = values(100, seed=seed)
    assert audit(x, y, task="regression").status == "measured"
    skewed = np.exp(1.5 * y)
    heavy = y + rng.standard_cauchy(100)
    sparse = y + (np.arange(100) < 5)
    for inputs, labels in ((skewed + 0.3 * rng.normal(size=100), skewed), (heavy, y), (sparse, y)):
        result = audit(inputs[:, None], labels, task="regression")
        assert result.status == "incomplete"
        assert not evidence(result)["not_ruled_by_few"]
        assert "more test samples are needed" in result.reason


def test_one_error_in_fifty_samples_has_no_interval_and_says_why():
    y = np.arange(50.0)
    result = audit((y + (y == 7))[:, None], y, task="regression")
    mae = result.metric("performance.mae")
    assert (mae.value, mae.low, mae.high) == (pytest.approx(0.02), None, None)
    assert "can be stated from so few samples, or so few errors" in mae.detail
    assert result.status == "incomplete"


def test_a_perfect_regression_is_not_called_ruled_by_few():
    y = np.arange(200.0)
    assert evidence(audit(y[:, None], y, task="regression"))["not_ruled_by_few"]


def test_copies_of_a_few_rows_are_not_so_many_samples():
    x, y = np.random.default_rng(0).random((12, 3)).astype(np.float32), np.arange(12) % 2
    copied = audit(np.tile(x, (50, 1)), np.tile(y, 50), nn.Linear(3, 2))
    assert copied.status == "incomplete"
    assert "12 of 600 test samples are distinct" in copied.reason
    generator = np.random.default_rng(1)
    own = audit(generator.random((600, 3)).astype(np.float32), generator.integers(0, 2, 600), nn.Linear(3, 2))
    assert evidence(own)["distinct_samples"]


def test_rows_of_few_values_repeat_by_nature():
    generator = np.random.default_rng(0)
    x = generator.integers(0, 3, (600, 4)).astype(np.float32)
    result = audit(x, generator.integers(0, 2, 600), nn.Linear(4, 2))
    assert evidence(result)["distinct_samples"]
