"""What callers hand over: bad samples, labels, boxes and radii end in words, never in a figure of something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from audit.attacks import FMN, PGD
from audit.attacks.geometry import ThreatModel
from audit.attacks.spatial import Spatial
from audit.certificates import certify
from audit.errors import AuditError, ModelError, UsageError
from audit.evaluations.accuracy import robust_accuracy
from audit.model.wrapper import Model

X = np.random.default_rng(0).random((6, 4)).astype(np.float32)
Y = np.array([0, 1, 2, 0, 1, 2])
LOW, HIGH = np.array(0.0), np.array(1.0)
Call = Callable[..., Any]


def model(**options: Any) -> Model:
    torch.manual_seed(0)
    return Model(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), **{"bounds": (0, 1), "device": "cpu", **options})


def seen(**options: Any) -> Model:
    """Return a Model that has been asked before: task and classes are known."""
    out = model(**options)
    out.resolve(X, Y)
    return out


def box(eps: float = 0.1, **other: Any) -> ThreatModel:
    return ThreatModel(**{"norm": "linf", "eps": eps, "low": LOW, "high": HIGH, **other})


CALLS: dict[str, Call] = {
    "robust_accuracy": lambda m, x, y, **o: robust_accuracy(m, x, y, **{"eps": 0.1, "profile": "quick", **o}),
    "attack": PGD("linf", 0.1, steps=2),
    "minimum norm": FMN("linf", steps=2),
    "certify": lambda m, x, y, threat=None, **o: certify(m, x, y, threat or box(), **o),
}


def nan_at(values: np.ndarray, number: float = float("nan")) -> np.ndarray:
    out = values.astype(np.float64)
    out.flat[1] = number
    return out


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("asked", [model, seen, lambda: model(output="logits")], ids=["first", "asked before", "stated"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": X[:, :3]}, "the network cannot take inputs of shape"),
        ({"x": nan_at(X)}, "inputs should be finite numbers"),
        ({"x": nan_at(X, np.inf)}, "inputs should be finite numbers"),
        ({"x": X.astype(str)}, "inputs should be numbers, got ndarray of type <U"),
        ({"x": X.astype(object)}, "inputs should be numbers, got ndarray of type object"),
        ({"x": X.astype(complex)}, "inputs should be numbers, got ndarray of type complex"),
        ({"x": torch.from_numpy(X).to(torch.complex64)}, "inputs should be real numbers"),
        ({"x": [[1.0, 2.0], [1.0]]}, "inputs should be an array of numbers, got list"),
        ({"x": np.array(1.0)}, r"inputs should have shape \(samples"),
        ({"y": Y[:, None]}, r"labels should have shape \(6,\), got \(6, 1\): y.ravel\(\) has it"),
        ({"y": Y[:5]}, "expected one label a sample, got 5 labels for 6 samples"),
        ({"y": np.array(1)}, "expected one label a sample, got one label for 6 samples"),
        ({"y": nan_at(Y)}, "labels should be finite numbers"),
        ({"y": Y.astype(str)}, "labels should be numbers, got ndarray of type <U"),
        ({"y": None}, "labels should be numbers, got NoneType"),
        ({"y": Y + 1}, "labels should be classes from 0 to 2, got 1 to 3"),
        ({"y": Y - 1}, "labels should be classes from 0 to 2, got -1 to 1"),
    ],
)
def test_bad_samples_are_refused_in_words(call: Call, asked: Callable[[], Model], given: dict[str, Any], message: str):
    with pytest.raises(AuditError, match=message) as refused:
        call(asked(), given.get("x", X), given.get("y", Y))
    assert isinstance(refused.value, UsageError | ModelError)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_labels_between_two_classes_are_none(call: Call):
    """Cut off, they would give the figure of other labels."""
    with pytest.raises(UsageError, match="labels should be classes from 0 to 2, got numbers that are not whole"):
        call(seen(), X, Y + 0.25 * (Y < 2))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.tile([0, 1, 1, 0], (6, 1)), r"multilabel network should have shape \(6, 3\), got \(6, 4\)"),
        (np.tile([0, 2, 1], (6, 1)), "0 or 1 each"),
        (np.tile([0.5, 0.5, 1], (6, 1)), "0 or 1 each"),
    ],
)
def test_labels_of_a_multilabel_network_are_0_or_1_for_each_output(call: Call, labels: np.ndarray, message: str):
    """A column that all outputs are held against would make the network wrong everywhere."""
    with pytest.raises(UsageError, match=message):
        call(model(output="multilabel_logits"), X, labels)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_bare_network_is_told_how_to_be_wrapped(call: Call):
    with pytest.raises(UsageError, match=r"expected an audit.Model, got Linear: audit.Model\(module, bounds=\(0, 1\)\)"):
        call(nn.Linear(4, 3), X, Y)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("name", ["robust_accuracy", "certify"])
def test_no_samples_have_no_figure(name: str, known: bool):
    with pytest.raises(UsageError, match="expected at least one sample, got none"):
        CALLS[name](seen() if known else model(), X[:0], Y[:0])


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"low": HIGH, "high": LOW}, "lowest value of each input should be no larger than its highest, got 1 to 0"),
        ({"low": np.array([0, np.nan, 0, 0])}, "got nan to 1"),
        ({"low": np.zeros(3)}, r"threat model's low should be one value or fit samples of shape \(4,\), got shape \(3,\)"),
        ({"high": np.ones((6, 4))}, r"high should be one value or fit samples of shape \(4,\), got shape \(6, 4\)"),
        ({"scale": np.array([np.nan, 1, 1, 1])}, "scale should be finite and 0 or more"),
        ({"scale": np.array([np.inf, 1, 1, 1])}, "scale should be finite and 0 or more"),
        ({"scale": np.array([-1.0, 1, 1, 1])}, "scale should be finite and 0 or more"),
        ({"scale": np.ones(3)}, "scale should be one value or fit"),
        ({"mutable": np.array([0, 1, 2, 3])}, "mutable should be True or False, got int64"),
        ({"mutable": np.ones(3, dtype=bool)}, "mutable should be one value or fit"),
        ({"eps": None}, "eps must be a number"),
        ({"eps": np.array([0.1, 0.2])}, "eps must be a number"),
        ({"eps": float("nan")}, "eps must be between 0 and"),
    ],
)
def test_a_threat_model_that_holds_nothing_is_refused(call: Call, other: dict[str, Any], message: str):
    """In a box that is upside down, or with a scale without a value, no input changes: any network would pass."""
    with pytest.raises(UsageError, match=message):
        call(model(), X, Y, threat=box(**other))


@pytest.mark.parametrize("name", ["robust_accuracy", "minimum norm", "certify"])
def test_in_l0_the_radius_is_a_whole_number(name: str):
    with pytest.raises(UsageError, match=r"in L0 the radius is a whole number of inputs that may change, got 0\.5"):
        CALLS[name](model(), X, Y, threat=box(0.5, norm="l0"))


@pytest.mark.parametrize(
    "bounds",
    [(1, 0), (0, float("nan")), ("a", "b"), (0,), (0, 1, 2), 5, (None, None), ([0, 1], [1, 0]), (np.zeros(2), np.ones(3))],
)
def test_bounds_are_a_lowest_and_a_highest_value(bounds: Any):
    with pytest.raises(UsageError, match="bounds must be the lowest and the highest value of an input"):
        model(bounds=bounds)


@pytest.mark.parametrize("name", ["robust_accuracy", "attack", "minimum norm"])
def test_inputs_outside_the_models_bounds_are_refused(name: str):
    """Bytes beside bounds of 0 to 1: a radius of 0.1 would be next to nothing."""
    with pytest.raises(UsageError, match="the model's bounds should hold every input, but 6 of 6 samples reach outside 0 to 1"):
        CALLS[name](model(), X * 250 + 2, Y)


@pytest.mark.parametrize("eps", ["8/255", np.array([0.1, 0.2]), float("nan"), -0.1])
def test_a_minimum_norm_attack_is_asked_for_a_radius_or_none(eps: Any):
    with pytest.raises(UsageError, match="eps must be"):
        FMN("l2", eps, steps=2)(model(), X, Y)


@pytest.mark.parametrize("name", ["robust_accuracy", "attack", "minimum norm"])
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.arange(5), r"expected one id a sample, got ids of shape \(5,\) for 6 samples"),
        (np.arange(9), r"expected one id a sample, got ids of shape \(9,\) for 6 samples"),
        (np.arange(6) + 0.5, "ids should be whole numbers"),
        (np.array(list("abcdef")), "ids should be numbers"),
    ],
)
def test_ids_are_a_whole_number_a_sample(name: str, ids: np.ndarray, message: str):
    with pytest.raises(UsageError, match=message):
        CALLS[name](model(), X, Y, ids=ids)


@pytest.mark.parametrize("certified", [np.arange(6), np.ones((6, 1), dtype=bool), np.ones(5, dtype=bool), True])
def test_certified_is_a_mask_and_no_list_of_rows(certified: Any):
    with pytest.raises(UsageError, match="certified should be True or False for each of 6 samples"):
        robust_accuracy(model(), X, Y, eps=0.1, profile="quick", certified=certified)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("tolerance", [-1.0, float("nan"), float("inf"), "0.1"])
def test_a_tolerance_is_a_finite_number(call: Call, tolerance: Any):
    net = Model(nn.Linear(4, 1), task="regression", bounds=(0, 1), device="cpu")
    with pytest.raises(UsageError, match="tolerance should be a finite number, 0 or more"):
        call(net, X, Y / 2, tolerance=tolerance)


def test_a_classifiers_certificate_asks_for_no_tolerance():
    plain, told = certify(model(), X, Y, box()), certify(model(), X, Y, box(), tolerance=0.1)
    assert torch.equal(plain.lower, told.lower)


def test_images_turned_are_held_to_the_same():
    net = Model(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), bounds=(0, 1), device="cpu")
    with pytest.raises(UsageError, match=r"labels should have shape \(6,\), got \(6, 1\)"):
        Spatial()(net, X.reshape(6, 1, 2, 2), Y[:, None])


def test_lists_frames_and_tensors_that_carry_gradients_are_taken():
    pandas = pytest.importorskip("pandas")
    y = model().predict(X)
    want = PGD("linf", 0.1, steps=2)(model(), X, y).x_adv
    for x in (X.tolist(), pandas.DataFrame(X), torch.from_numpy(X).requires_grad_(), X.astype(np.float64)):
        assert torch.equal(PGD("linf", 0.1, steps=2)(model(), x, y.tolist()).x_adv, want)
        assert robust_accuracy(model(), x, y.numpy(), eps=0.01, profile="quick").right.all()
        assert len(certify(model(), x, y, box()).certified) == 6
