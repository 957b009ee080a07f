"""What holds for every explainer: shapes, errors, what depends on the seed alone, and a network left as it was."""

from __future__ import annotations

import copy
import sys

import numpy as np
import pytest
import torch
from torch import nn

import audit
from audit import demo_nets
from audit.errors import UsageError
from audit.explain import EXPLAINERS, Explainer, explain, registry
from audit.explain.base import Raw, by_segment, over_segment, segments
from audit.explain.gradcam import last_convolution

FAST = {
    "shap.kernel": {"samples": 100},
    "shap.gradient": {"samples": 20},
    "lime": {"samples": 60},
    "shap.auto": {"samples": 20},
}
TABLE = [name for name in EXPLAINERS if name != "gradcam"]
IMAGE = [name for name in EXPLAINERS if name != "shap.permutation"]


def table_model() -> audit.Model:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))
    return audit.Model(net)


def image_model() -> audit.Model:
    torch.manual_seed(0)
    return audit.Model(demo_nets.DigitsNet(), task="classification")


def rows(n: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 5)).astype(np.float32)


def images(n: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((n, 1, 8, 8)).astype(np.float32)


CASES = [
    # numba compiles what shap.permutation runs, anew in each process
    *(pytest.param("table", name, marks=pytest.mark.slow if name == "shap.permutation" else ()) for name in TABLE),
    *(("image", name) for name in IMAGE),
]


def ask(kind: str, method: str, model: audit.Model | None = None, x: np.ndarray | None = None, **more):
    model = model or (table_model() if kind == "table" else image_model())
    data = rows() if kind == "table" else images()
    background = rows(12, 1) if kind == "table" else images(12, 1)
    return explain(model, data if x is None else x, method=method, baseline=background, **FAST.get(method, {}), **more)


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_values_are_like_x_and_the_target_is_what_the_network_says(kind: str, method: str):
    model, x = (table_model(), rows()) if kind == "table" else (image_model(), images())
    told = ask(kind, method, model)
    assert told.values.shape == x.shape
    assert told.values.dtype == np.float64
    assert np.isfinite(told.values).all()
    assert told.values.any()
    np.testing.assert_array_equal(told.target, model.predict(x).numpy())
    assert told.method == method
    assert told.forwards > 0
    assert EXPLAINERS[method].complete == (told.completeness_gap is not None)


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_the_network_and_the_random_generators_are_left_as_they_were(kind: str, method: str):
    model = table_model() if kind == "table" else image_model()
    model.module.train()
    before, state = copy.deepcopy(model.module.state_dict()), np.random.get_state()[1].copy()  # noqa: NPY002 - shap draws from it
    torch_state = torch.get_rng_state()
    ask(kind, method, model)
    after = model.module.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert model.module.training
    assert all(p.requires_grad and p.grad is None for p in model.module.parameters())
    assert not any(m._forward_hooks or m._backward_hooks or hasattr(m, "x") for m in model.module.modules())
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_values_depend_on_neither_batch_nor_order(kind: str, method: str):
    whole = ask(kind, method, ids=np.arange(10, 10 + (6 if kind == "table" else 3)))
    x = rows() if kind == "table" else images()
    order = np.arange(len(x))[::-1].copy()
    model = table_model() if kind == "table" else image_model()
    small = audit.Model(model.module, task="classification", batch_size=2)
    shuffled = ask(kind, method, small, x=x[order], ids=(10 + order))
    np.testing.assert_allclose(shuffled.values, whole.values[order], rtol=2e-3, atol=2e-5)
    alone = ask(kind, method, x=x[1:2], ids=[11])
    np.testing.assert_allclose(alone.values[0], whole.values[1], rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("method", ["shap.kernel", "shap.gradient", "lime"])
def test_another_seed_draws_anew_and_the_same_one_does_not(method: str):
    torch.manual_seed(0)
    model = audit.Model(nn.Sequential(nn.Linear(14, 16), nn.ReLU(), nn.Linear(16, 3)))
    x, background = (np.random.default_rng(s).normal(size=(2, 14)).astype(np.float32) for s in (0, 1))

    def told(seed: int) -> np.ndarray:
        return explain(model, x, method=method, baseline=np.concatenate([background, x]), seed=seed, **FAST[method]).values

    np.testing.assert_array_equal(told(0), told(0))
    assert not np.array_equal(told(0), told(1))


def test_a_single_logit_is_turned_round_for_class_0():
    torch.manual_seed(0)
    model = audit.Model(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1)), output="binary_logit")
    for method in ("integrated_gradients", "shap.kernel", "shap.deep", "shap.gradient", "lime"):
        one, zero = (ask("table", method, model, target=t).values for t in (1, 0))
        np.testing.assert_allclose(one, -zero, atol=1e-5)
        assert np.abs(one).max() > 1e-3, method


def test_probabilities_are_explained_where_they_are_asked_for():
    for method in ("integrated_gradients", "shap.kernel"):
        told = ask("table", method, output="probabilities")
        assert told.output == "probabilities"
        assert np.abs(told.change).max() <= 1
        assert told.completeness_gap.max() < 0.01
    assert ask("table", "shap.auto", output="probabilities").used == "shap.kernel"


@pytest.mark.parametrize("net", ["lstm", "transformer", "regressor"])
def test_other_kinds_of_networks(net: str, request: pytest.FixtureRequest):
    module, data = request.getfixturevalue(net)
    model = audit.Model(module, task="regression" if net == "regressor" else "classification")
    x, background = data.test.x[:3], data.reference.x[:10]
    for method in ("saliency", "integrated_gradients", "shap.auto", "shap.kernel", "lime"):
        told = explain(model, x, method=method, baseline=background, **FAST.get(method, {}))
        assert told.values.shape == x.shape
        assert told.values.any()
        if told.change is not None and method != "shap.auto":
            assert told.completeness_gap.mean() < 0.05 * np.abs(told.change).mean(), method
    used = explain(model, x, method="shap.auto", baseline=background, **FAST["shap.auto"])
    assert used.used == ("shap.kernel" if net == "regressor" else "shap.gradient")
    assert "was used" in used.notes[0]


def test_regression_has_one_output_and_no_other_target(regressor):
    module, data = regressor
    model = audit.Model(module, task="regression")
    told = explain(model, data.test.x[:2], method="integrated_gradients", baseline=data.reference.x[:5])
    assert told.output == "values"
    with pytest.raises(UsageError, match="leave target out"):
        explain(model, data.test.x[:2], method="integrated_gradients", baseline=data.reference.x[:5], target=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "grdcam"}, "did you mean 'gradcam'"),
        ({"method": "gradcam"}, "it is for images"),
        ({"target": 3}, "between 0 and 2"),
        ({"target": [0, 1]}, "one for each of 6 samples"),
        ({"output": "logit"}, "must be one of logits, probabilities"),
        ({"baseline": None}, "give baseline="),
        ({"baseline": np.zeros((2, 4), np.float32)}, r"samples like x, \(5,\)"),
        ({"steps": 1}, "at least 2"),
        ({"stepz": 5}, "cannot be made with"),
    ],
)
def test_what_cannot_be_asked_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        explain(table_model(), rows(), **{"method": "integrated_gradients", "baseline": rows(4, 1), **options})


def test_permutation_shap_is_for_tables():
    with pytest.raises(UsageError, match="it is for tables"):
        ask("image", "shap.permutation")


def test_one_baseline_row_may_stand_without_its_first_axis():
    a = explain(table_model(), rows(), method="integrated_gradients", baseline=np.zeros(5, np.float32))
    b = explain(table_model(), rows(), method="integrated_gradients", baseline=np.zeros((1, 5), np.float32))
    np.testing.assert_array_equal(a.values, b.values)


# --- Grad-CAM's layer -------------------------------------------------------------------------------------------------


def test_the_last_convolution_is_the_one_that_runs_last():
    class Twisted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.late = nn.Conv2d(1, 1, 3, padding=1)
            self.early = nn.Conv2d(1, 1, 3, padding=1)
            self.never = nn.Conv2d(1, 1, 3)

        def forward(self, x):
            return self.late(self.early(x).relu()).flatten(1)

    found = last_convolution(audit.Model(Twisted(), output="logits"), torch.zeros(1, 1, 4, 4))
    assert found is not None
    assert found[0] == "late"


def test_a_convolution_that_runs_twice_is_not_looked_at():
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x)).flatten(1)

    model = audit.Model(Loop(), output="logits")
    with pytest.raises(UsageError, match="used once"):
        explain(model, torch.rand(2, 1, 4, 4), method="gradcam")


# --- segments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "kind", "at_most", "count"),
    [
        ((7,), "table", 3, 7),
        ((3, 8, 8), "image", None, 64),
        ((3, 28, 28), "image", 64, 64),
        ((1, 5, 40), "image", 64, 40),
        ((8, 8), "array", 64, 64),
        ((20, 20), "array", 64, 64),
        ((300,), "array", 64, 64),
    ],
)
def test_segments_cover_all_inputs(shape, kind, at_most, count):
    segment = segments(shape, kind, at_most)
    assert segment.shape == shape
    assert set(np.unique(segment)) == set(range(count))
    values = np.random.default_rng(0).normal(size=(2, count))
    np.testing.assert_allclose(by_segment(over_segment(values, segment), segment), values, atol=1e-12)
    if kind == "image":
        assert (segment == segment[:1]).all()


# --- what is missing, and what others add -----------------------------------------------------------------------------


@pytest.mark.parametrize(("package", "method"), [("captum", "saliency"), ("shap", "shap.kernel"), ("lime", "lime")])
def test_a_missing_package_is_named_with_its_command(package: str, method: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"{method} needs {package}: pip install captum lime shap"):
        ask("table", method)


@pytest.mark.slow
def test_listing_loads_none_of_the_libraries():
    import subprocess

    code = "import sys, audit.listing; audit.listing.show('explainers'); print({'captum','shap','lime'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_an_explainer_of_another_package_is_found_and_takes_no_name(monkeypatch: pytest.MonkeyPatch):
    class Zero(Explainer):
        name = "zero"
        needs_baseline = False

        def attribute(self, question):
            return Raw(np.zeros(tuple(question.x.shape)))

    class Point:
        def __init__(self, name: str) -> None:
            self.name = name

        def load(self):
            return Zero

    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [Point("zero"), Point("lime")])
    assert registry()["zero"] is Zero
    assert registry()["lime"] is EXPLAINERS["lime"]
    assert not explain(table_model(), rows(), method="zero").values.any()
