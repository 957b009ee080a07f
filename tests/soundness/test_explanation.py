"""Planted defects in explanations and in data: explainers that ignore the network or nothing at all, and a leaked column."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import audit
from audit import demo_nets
from audit.checks.base import Task
from audit.checks.explanation import Explanation
from audit.data.base import Dataset
from audit.explain import EXPLAINERS, Explainer, columns
from audit.explain.base import Raw
from audit.explain.saliency import Saliency
from audit.model.wrapper import Model
from tests.stagerun import run_check

pytestmark = pytest.mark.slow


class Edges(Explainer):
    """Marks the edges of the picture, whatever the network is: it looks convincing (Adebayo et al. 2018, figure 1)."""

    name = "edges"
    signed = False
    needs_baseline = False

    def attribute(self, question):
        x = question.x.double().cpu().numpy()
        down, across = np.gradient(x, axis=(2, 3))
        return Raw(np.hypot(down, across))


class Ink(Explainer):
    """Marks what differs from the mean input, whatever the network is."""

    name = "ink"

    def attribute(self, question):
        return Raw((question.x - question.baseline).double().abs().cpu().numpy())


class NoisyInk(Explainer):
    """The same with noise on it, so that it agrees with itself as little as with a network of shuffled weights."""

    name = "noisy_ink"
    random = True

    def attribute(self, question):
        away = (question.x - question.baseline).double().abs().cpu().numpy()
        noise = np.stack(
            [np.random.default_rng(question.row_seed(i, "ink")).normal(size=away.shape[1:]) for i in range(len(away))]
        )
        return Raw(away + 0.3 * away.std() * noise)


class Dice(Explainer):
    """Rolls dice."""

    name = "dice"
    random = True

    def attribute(self, question):
        shape = tuple(question.x.shape[1:])
        rows = [np.random.default_rng(question.row_seed(i, "dice")).normal(size=shape) for i in range(len(question.x))]
        return Raw(np.stack(rows))


class Backwards(Saliency):
    """Calls the least important the most important."""

    name = "backwards"
    signed = True

    def attribute(self, question):
        return Raw(-super().attribute(question).values)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch):
    for explainer in (Edges, Ink, NoisyInk, Dice, Backwards):
        monkeypatch.setitem(EXPLAINERS, explainer.name, explainer)


@pytest.fixture(scope="module")
def task_of(digits_net):
    def make(*methods: str) -> Task:
        net = demo_nets.DigitsNet()
        net.load_state_dict(torch.load(digits_net / "model.pt"))
        data = Dataset.load(digits_net / "test.npz", reference=digits_net / "train.npz")
        options = Explanation.Options(methods=list(methods), samples=24, show=1)
        return Task(Model(net, device="cpu"), data, options, profile="quick")

    return make


@pytest.mark.parametrize("method", ["edges", "ink", "noisy_ink"])
def test_an_explainer_that_ignores_the_weights_is_caught(method: str, task_of):
    result = run_check(Explanation(), task_of(method))
    evidence = {e.id: e for e in result.evidence}
    assert not evidence[f"explanation.{method}.depends_on_weights"].ok
    assert result.status == "incomplete"
    assert "hardly depend on what the network learnt" in result.reason
    assert result.metric(f"explanation.{method}.faithfulness").detail.startswith("do not believe it")
    assert any(f.title == f"What {method} says of this network is not to be believed" for f in result.findings)
    gallery = next(f for f in result.figures if f.id == "explanation.heat_maps")
    assert gallery.data["panels"][1] == f"{method} (do not believe)"


def test_explainers_that_look_at_the_network_are_not_accused(task_of):
    result = run_check(Explanation(), task_of("saliency", "integrated_gradients", "shap.deep", "shap.gradient"))
    assert [e.id for e in result.evidence if not e.ok] == []
    assert result.status == "measured"
    assert not result.findings


@pytest.mark.parametrize("method", ["dice", "backwards"])
def test_an_explainer_no_better_than_chance_is_caught(method: str, task_of):
    result = run_check(Explanation(), task_of(method))
    evidence = {e.id: e.ok for e in result.evidence}
    assert not evidence[f"explanation.{method}.beats_random"]
    assert result.status == "incomplete"
    if method == "dice":
        assert not evidence["explanation.dice.repeatable"]


# --- a leaked column --------------------------------------------------------------------------------------------------


def records(n: int, seed: int, *, leaked: bool) -> tuple[np.ndarray, np.ndarray]:
    """Patients whose illness six findings tell to some degree; the leaked column is the dose given once it was known."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 7))
    y = (x[:, 0] + 0.7 * x[:, 1] - 0.5 * x[:, 2] + rng.normal(size=n) > 0).astype(np.int64)
    if leaked:
        x[:, 6] = 2.0 * y + 0.2 * rng.normal(size=n)
    return x.astype(np.float32), y


NAMES = ["age", "pulse", "pressure", "weight", "fever", "iron", "dose"]


def trained(x: np.ndarray, y: np.ndarray, seed: int) -> Model:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(x.shape[1], 16), nn.ReLU(), nn.Linear(16, int(y.max()) + 1))
    demo_nets.fit(net, torch.from_numpy(x), torch.from_numpy(y), epochs=15, seed=seed)
    return Model(net, output="logits", device="cpu")


def leaks(model: Model, x: np.ndarray, y: np.ndarray, names: list[str]) -> list[tuple[str, str]]:
    options = Explanation.Options(methods=["saliency"], samples=12, show=0)
    result = run_check(Explanation(), Task(model, Dataset(x, y, columns=names), options, profile="quick"))
    return [(f.severity, f.title) for f in result.findings if "like the answer itself" in f.title]


@pytest.mark.parametrize("seed", range(3))
def test_a_leaked_column_is_found(seed: int):
    model = trained(*records(1000, seed, leaked=True), seed)
    x, y = records(500, seed + 100, leaked=True)
    assert leaks(model, x, y, NAMES) == [("high", "dose looks like the answer itself")]


@pytest.mark.parametrize("seed", range(6))
def test_its_clean_twin_is_not_accused(seed: int):
    model = trained(*records(1000, seed, leaked=False), seed)
    x, y = records(500, seed + 100, leaked=False)
    assert leaks(model, x, y, NAMES) == []


def test_a_network_that_does_not_use_the_leak_is_not_accused_of_it():
    x, y = records(1000, 0, leaked=True)
    x[:, 6] = np.random.default_rng(1).normal(size=1000)  # it never saw the dose
    model = trained(x, y, 0)
    with torch.no_grad():
        model.module[0].weight[:, 6] = 0.0
    x, y = records(500, 100, leaked=True)
    assert leaks(model, x, y, NAMES) == [("info", "dose looks like the answer itself")]


@pytest.mark.parametrize("dataset", ["iris", "breast_cancer", "wine", "diabetes"])
def test_honest_tables_are_not_accused(dataset: str):
    import sklearn.datasets

    bunch = getattr(sklearn.datasets, f"load_{dataset}")()
    x = ((bunch.data - bunch.data.mean(axis=0)) / bunch.data.std(axis=0)).astype(np.float32)
    y = bunch.target if dataset != "diabetes" else (bunch.target > 140).astype(np.int64)
    assert leaks(trained(x, y, 0), x, y, list(bunch.feature_names)) == []


def test_a_leaked_one_hot_code_counts_as_one_column():
    x, y = records(1000, 0, leaked=True)
    x[:, 5], x[:, 6] = y, 1 - y
    model = trained(x, y, 0)
    x, y = records(500, 100, leaked=True)
    x[:, 5], x[:, 6] = y, 1 - y
    assert leaks(model, x, y, NAMES) == [("high", "iron and dose look like the answer itself")]


@pytest.mark.parametrize("draw", [30, 66])
def test_a_few_rows_accuse_no_column(draw: int):
    """Of 30 rows of iris some, as these, have a petal width that tells all three kinds apart, by luck."""
    from sklearn.datasets import load_iris

    bunch, rows = load_iris(), np.random.default_rng(draw).choice(150, 30, replace=False)
    scores = columns.alone(bunch.data[rows], bunch.target[rows], regression=False, seed=0)
    assert columns.suspects(scores, bunch.data[rows]) == []


def test_easy_data_are_not_accused():
    """Clusters so far apart that each column alone tells them: nothing is leaked, it is merely easy."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    x = (y[:, None] * 6 + rng.normal(size=(400, 5))).astype(np.float32)
    assert leaks(trained(x, y, 0), x, y, NAMES[:5]) == []


@pytest.mark.slow
def test_a_leak_in_a_regression_is_found_and_its_twin_is_not():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1200, 6)).astype(np.float32)
    target = (50 + 10 * (x[:, 0] + x[:, 1] + rng.normal(size=1200))).astype(np.float32)
    for leaked in (True, False):
        rows = x.copy()
        if leaked:
            rows[:, 5] = target / 10
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(600):
            optimizer.zero_grad()
            nn.functional.mse_loss(net(torch.from_numpy(rows[:800]))[:, 0], torch.from_numpy(target[:800])).backward()
            optimizer.step()
        data = audit.Dataset(rows[800:], target[800:] + 0.25, columns=NAMES[:6])
        options = Explanation.Options(methods=["saliency"], samples=12, show=0)
        result = run_check(Explanation(), Task(Model(net, task="regression"), data, options, profile="quick"))
        found = [f.severity for f in result.findings if "iron looks like the answer itself" in f.title]
        assert found == (["high"] if leaked else [])
