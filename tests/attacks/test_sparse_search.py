"""Random search over few inputs: box and radius, planted linear networks, batches and ids, fixed columns, its cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from audit.attacks import ThreatModel
from audit.attacks.sparse_search import SparseSearch
from audit.errors import UsageError
from audit.model.wrapper import Model
from tests.attacks.test_attacks import model, samples


def sizes(norm: str, delta: Tensor) -> Tensor:
    flat = delta.flatten(1)
    return (flat != 0).sum(dim=1).double() if norm == "l0" else flat.abs().sum(dim=1)


@pytest.mark.parametrize("norm", ["l0", "l1"])
@given(eps=st.floats(0.0, 6.0), seed=st.integers(0, 3))
@settings(max_examples=8, deadline=None)
def test_box_radius_and_label_hold_for_every_success(norm: str, eps: float, seed: int):
    x, y = samples(20, seed)
    eps = float(int(eps)) if norm == "l0" else eps
    out = SparseSearch(norm, eps, queries=20, seed=seed)(model(), x, y)
    assert bool(((out.x_adv >= 0) & (out.x_adv <= 1)).all())
    assert bool((sizes(norm, out.x_adv.double() - x.double()) <= eps * (1 + 1e-6) + 1e-9).all())
    assert torch.equal(out.success, model().predict(out.x_adv) != y)
    assert not bool(out.rejected.any())


@pytest.mark.parametrize("norm", ["l0", "l1"])
def test_what_broke_in_a_table_with_fixed_columns_kept_them(norm: str):
    net = nn.Linear(5, 2)
    net.weight.data = torch.stack((torch.zeros(5), torch.tensor([1.0, 1, 1, 1, 1])))
    net.bias.data.zero_()
    x = torch.rand((40, 5), generator=torch.Generator().manual_seed(0)) * 0.2
    line = Model(net, bounds=(-1, 1), device="cpu", output="logits")
    mutable = np.array([True, False, True, False, True])
    low, high = -np.ones(5), np.ones(5)
    box = ThreatModel(norm, 2.0, low, high, scale=np.array([0.5, 1.0, 1.0, 1.0, 2.0]), mutable=mutable)
    out = SparseSearch(norm, 2.0, queries=60)(line, x, line.predict(x), threat=box)
    assert torch.equal(out.x_adv[:, ~torch.from_numpy(mutable)], x[:, ~torch.from_numpy(mutable)])
    assert int(out.success.sum()) > 20
    assert bool((out.distance[out.success] <= 2 * (1 + 1e-6)).all())


@pytest.mark.parametrize(("norm", "enough", "short"), [("l0", 3.0, 2.0), ("l1", 2.4, 2.2)])
def test_a_planted_linear_network_breaks_just_where_it_must(norm: str, enough: float, short: float):
    """Only three of 30 inputs count, 0.8 away from their lower end each: all three are needed, by 2.3 together."""
    net = nn.Linear(30, 2)
    net.weight.data.zero_()
    net.weight.data[1, [4, 11, 25]] = 1.0
    net.bias.data = torch.tensor([0.1, 0.0])
    x = torch.full((20, 30), 0.5)
    x[:, [4, 11, 25]] = 0.8
    line = Model(net, bounds=(0, 1), device="cpu", output="logits")
    y = torch.ones(20, dtype=torch.long)
    assert float(SparseSearch(norm, enough, queries=1000)(line, x, y).success.float().mean()) > 0.9
    assert not bool(SparseSearch(norm, short, queries=200)(line, x, y).success.any())


@pytest.mark.parametrize("norm", ["l0", "l1"])
def test_results_belong_to_ids_and_not_to_batches(norm: str):
    x, y = samples(80)
    ids, eps = torch.arange(80), 1.0 if norm == "l0" else 0.3
    whole = SparseSearch(norm, eps, queries=30)(model(), x, y, ids=ids)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    small = SparseSearch(norm, eps, queries=30)(model(7), x[order], y[order], ids=ids[order])
    assert 0 < int(whole.success.sum()) < 80
    assert torch.equal(whole.success[order], small.success)
    assert torch.allclose(whole.x_adv[order], small.x_adv, atol=1e-6)


def test_it_costs_its_queries_and_samples_that_broke_leave():
    x, y = samples(30)
    none = SparseSearch("l0", 0.0, queries=20)(model(), x, y)
    assert none.forwards == 30 * 22  # clean, queries, and the check
    assert none.backwards == 0
    some = SparseSearch("l0", 4.0, queries=200)(model(), x, y)
    assert some.forwards < 0.9 * 30 * 202


def test_regression_goes_up_and_down():
    net = nn.Linear(3, 1)
    nn.init.constant_(net.weight, 1.0)
    line = Model(net, task="regression", bounds=(0, 1), device="cpu")
    out = SparseSearch("l0", 1.0, queries=30)(line, torch.ones(10, 3), torch.zeros(10), tolerance=0.5)
    assert bool(out.success.all()), "there is room downwards alone"


def test_what_does_not_fit_is_said():
    with pytest.raises(UsageError, match="queries"):
        SparseSearch("l0", 1.0, queries=1)
    with pytest.raises(UsageError, match="l0, l1"):
        SparseSearch("l2", 1.0)
