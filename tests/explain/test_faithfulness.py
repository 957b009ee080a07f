"""The tests that explanations are put to: deletion curves, rankings, shuffled weights; and single columns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import audit
from audit.explain import columns, faithfulness, sanity
from audit.explain.base import Question

COLUMNS = 6


def question(n: int = 20, net: nn.Module | None = None, regression: bool = False, seed: int = 0) -> Question:
    torch.manual_seed(seed)
    net = net or nn.Linear(COLUMNS, 1 if regression else 2)
    model = audit.Model(net, task="regression" if regression else "classification")
    x = torch.randn(n, COLUMNS)
    target = torch.zeros(n, dtype=torch.long) if regression else model.predict(x)
    output = "values" if regression else "logits"
    return Question(model, x, target, torch.arange(n), torch.randn(12, COLUMNS), output, "table", seed)


def truth(asked: Question) -> np.ndarray:
    """Return what each column of a linear network adds to the target's logit, against the other class's."""
    weight = asked.model.module.weight.detach()
    if len(weight) == 2:
        weight = (weight[asked.target] - weight[1 - asked.target]) * 1.0
    return (weight * (asked.x - asked.baseline)).double().numpy()


@pytest.mark.parametrize("regression", [False, True])
def test_the_truth_falls_faster_than_chance_and_its_opposite_slower(regression: bool):
    asked = question(40, regression=regression)
    values = truth(asked)
    random = np.mean(
        [faithfulness.area(faithfulness.curve(asked, faithfulness.random_rank(asked, d))) for d in range(20)], axis=0
    )

    def gain(values: np.ndarray) -> float:
        order = faithfulness.rank(values, asked, signed=True)
        return float((random - faithfulness.area(faithfulness.curve(asked, order))).mean())

    assert gain(values) > 0.05
    opposite = 1 / (np.abs(values) + 1e-3) if regression else -values
    assert gain(opposite) < -0.03


def test_a_curve_begins_with_the_answer_and_ends_with_the_baseline():
    asked = question()
    order = faithfulness.random_rank(asked, 0)
    down, up = (faithfulness.curve(asked, order, insert=insert) for insert in (False, True))
    p = asked.model.logits(asked.x).softmax(dim=1).gather(1, asked.target[:, None])[:, 0].detach().numpy()
    np.testing.assert_allclose(down[:, 0], p, atol=1e-6)
    np.testing.assert_allclose(up[:, -1], p, atol=1e-6)
    np.testing.assert_allclose(down[:, -1], up[:, 0], atol=1e-6)
    assert down.shape == (20, COLUMNS + 1)


def test_rankings_belong_to_sample_ids():
    asked = question()
    part = asked.take(slice(5, 9))
    np.testing.assert_array_equal(faithfulness.random_rank(part, 3), faithfulness.random_rank(asked, 3)[5:9])
    ties = np.zeros((20, COLUMNS))
    np.testing.assert_array_equal(
        faithfulness.rank(ties[5:9], part, signed=True), faithfulness.rank(ties, asked, signed=True)[5:9]
    )
    # equal values stand in no order of their own: otherwise the order of the columns would count as an explanation
    assert len({tuple(row) for row in faithfulness.rank(ties, asked, signed=True)}) > 10


def test_large_values_without_a_sign_come_first():
    asked = question(1)
    values = np.asarray([[0.1, -3.0, 2.0, 0.0, -0.5, 1.0]])
    assert faithfulness.rank(values, asked, signed=False)[0].tolist()[:3] == [1, 2, 5]
    assert faithfulness.rank(values, asked, signed=True)[0].tolist()[:3] == [2, 5, 0]


def test_a_mean_of_skewed_differences_is_covered():
    """Simulated: means of 32 values, many near 0 and some large, as differences of curves are; it misses at most 6.5 %."""
    rng, missed, trials = np.random.default_rng(0), 0, 2000
    for values in rng.beta(1.0, 3.0, size=(trials, 32)):
        interval = faithfulness.mean_interval(values, 0.95)
        missed += not interval.low <= 0.25 <= interval.high
    assert missed / trials < 0.05 + 0.015 + 3 * np.sqrt(0.05 * 0.95 / trials)


@pytest.mark.parametrize("values", [[], [1.0], [0.3] * 9, [0.2] * 30])
def test_no_interval_is_made_up(values):
    interval = faithfulness.mean_interval(np.asarray(values), 0.95)
    assert interval.low is None
    assert interval.high is None
    assert (interval.value is None) == (not values)


# --- shuffled weights -------------------------------------------------------------------------------------------------


def test_weights_are_shuffled_within_and_put_back_after():
    model = audit.Model(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)))
    before = [p.detach().clone() for p in model.module.parameters()]
    with sanity.shuffled_weights(model, 0):
        inside = [p.detach().clone() for p in model.module.parameters()]
    assert not torch.equal(before[0], inside[0])
    assert torch.equal(before[0].flatten().sort().values, inside[0].flatten().sort().values)
    with pytest.raises(RuntimeError, match="boom"), sanity.shuffled_weights(model, 1):
        raise RuntimeError("boom")
    assert all(torch.equal(a, b) for a, b in zip(before, model.module.parameters(), strict=True))


def test_a_network_without_weights_cannot_be_shuffled():
    assert not sanity.can_shuffle(audit.Model(nn.Identity(), output="logits"))
    assert not sanity.can_shuffle(audit.Model(nn.LayerNorm(4), output="logits"))
    assert sanity.can_shuffle(audit.Model(nn.Linear(4, 2)))


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_rank_agreement_is_spearmans(seed: int):
    from scipy.stats import spearmanr

    a, b = np.random.default_rng(seed).normal(size=(2, 3, 7)).round(1)
    told = sanity.rank_agreement(a, b, "table")
    np.testing.assert_allclose(told, [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)], atol=1e-8)
    np.testing.assert_allclose(sanity.rank_agreement(a, 2 * a, "table"), 1.0)
    assert np.isnan(sanity.rank_agreement(a, np.zeros_like(a), "table")).all()


def test_what_is_left_over():
    assert sanity.left_over(np.asarray([0.1, 0.3]), np.asarray([-1.0, 3.0])) == pytest.approx(0.1)
    assert sanity.left_over(np.asarray([0.0]), np.asarray([0.0])) is None
    assert sanity.left_over(np.asarray([np.nan]), np.asarray([1.0])) is None


# --- single columns ---------------------------------------------------------------------------------------------------


def test_permutation_importance_is_that_of_scikit_learn():
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.inspection import permutation_importance

    rng = np.random.default_rng(0)
    x = rng.normal(size=(800, 4)).astype(np.float32)
    y = (x[:, 0] + 0.5 * x[:, 1] > 0).astype(np.int64)
    net = nn.Linear(4, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.0, 0, 0, 0], [2.0, 1.0, 0.0, 0.3]]))
        net.bias.zero_()
    model = audit.Model(net)

    class Wrapped(ClassifierMixin, BaseEstimator):
        classes_ = np.arange(2)

        def fit(self, x, y):
            return self

        def predict(self, x):
            return model.predict(x).numpy()

    theirs = permutation_importance(Wrapped(), x, y, n_repeats=30, random_state=0)
    ours = columns.permutation_rise(model, torch.from_numpy(x), torch.from_numpy(y), [[0], [1], [2], [3]], repeats=30, seed=0)
    np.testing.assert_allclose(
        ours.mean(axis=1), theirs.importances_mean, atol=4 * theirs.importances_std.max() / np.sqrt(30) + 1e-9
    )
    assert ours[2].max() == 0.0


def test_columns_of_one_group_are_shuffled_together():
    """The label is the product of two columns' signs: shuffled together they stay a pair, and nothing is lost between them."""
    x = torch.tensor([[1.0, 1.0], [-1.0, -1.0]] * 50)

    class Product(nn.Module):
        def forward(self, x):
            product = x[:, 0] * x[:, 1]
            return torch.stack((-product, product), dim=1)

    model, y = audit.Model(Product(), output="logits"), torch.ones(100, dtype=torch.long)
    alone, together = (columns.permutation_rise(model, x, y, groups, repeats=3, seed=0).mean() for groups in ([[0]], [[0, 1]]))
    assert alone > 0.3
    assert together == 0.0


def test_flips_are_of_binary_columns_alone():
    x = np.asarray([[0, 1, 5], [1, 2, 5], [0, 2, 5], [1, 1, 5]], dtype=np.float32)
    assert columns.binary_columns([x]) == {0: (0.0, 1.0), 1: (1.0, 2.0)}
    assert columns.binary_columns([x, x + 1]) == {2: (5.0, 6.0)}
    net = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.5, 0.0, 0.0], [1.0, 0.0, 0.0]]) * torch.tensor([[1.0], [1.0]]))
        net.weight[0] = torch.tensor([0.0, 0.0, 0.1])
    changed = columns.flipped(audit.Model(net), torch.from_numpy(x), {0: (0.0, 1.0), 1: (1.0, 2.0)})
    assert changed[:, 0].all()
    assert not changed[:, 1].any()


def test_dependence_of_a_linear_network_is_a_line(regressor):
    torch.manual_seed(0)
    net = nn.Linear(3, 1)
    model, x, grid = audit.Model(net, task="regression"), torch.randn(10, 3), np.linspace(-1, 1, 5)
    lines = columns.dependence(model, x, 1, grid, 0)
    slopes = np.diff(lines, axis=1) / np.diff(grid)
    np.testing.assert_allclose(slopes, net.weight[0, 1].item(), rtol=1e-4)


def test_partial_dependence_is_that_of_scikit_learn():
    from sklearn.base import BaseEstimator, RegressorMixin
    from sklearn.inspection import partial_dependence

    torch.manual_seed(0)
    model = audit.Model(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)), task="regression")
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)

    class Wrapped(RegressorMixin, BaseEstimator):
        def fit(self, x, y):
            self.fitted_ = True
            return self

        def predict(self, x):
            return model.predict(x.astype(np.float32)).numpy()

    theirs = partial_dependence(Wrapped().fit(x, None), x, [2], grid_resolution=7, kind="average")
    ours = columns.dependence(model, torch.from_numpy(x), 2, theirs["grid_values"][0], 0)
    np.testing.assert_allclose(ours.mean(axis=0), theirs["average"][0], atol=1e-4)


def test_a_column_alone_scores_what_it_knows():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 600)
    x = np.column_stack((y + 0.01 * rng.normal(size=600), rng.normal(size=600), rng.permutation(y)))
    scores = columns.alone(x, y, regression=False, seed=0)
    assert scores[0] > 0.99
    assert np.abs(scores[1:]).max() < 0.15
    target = rng.normal(size=600)
    scores = columns.alone(np.column_stack((target**3, rng.normal(size=600))), target, regression=True, seed=0)
    assert scores[0] > 0.98
    assert scores[1] < 0.1
    assert np.isnan(columns.alone(x[:4], y[:4], regression=False, seed=0)).all()


def test_a_column_of_a_float64_network_is_flipped_both_ways():
    """Its two values, read as float32, equal none of what the network gets."""
    x = np.asarray([[0.7], [-1.1], [0.7], [-1.1]])
    net = nn.Linear(1, 2, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.0], [1.0]]))
    found = columns.binary_columns([x.astype(np.float32)])
    assert columns.flipped(audit.Model(net), torch.from_numpy(x), found).all()
