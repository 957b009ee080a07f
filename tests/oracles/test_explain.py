"""Attributions whose right values are known: by enumeration of all subsets, and in closed form for linear networks."""

from __future__ import annotations

from itertools import combinations
from math import factorial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import audit
from audit.explain import explain

SHAP = ["shap.kernel", "shap.permutation", "shap.gradient", "shap.deep", "shap.auto"]
METHODS = [pytest.param(name, marks=pytest.mark.slow if name == "shap.permutation" else ()) for name in SHAP]
METHODS.append(pytest.param("integrated_gradients"))


def small_network(columns: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(columns, 12), nn.ReLU(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def shapley(network: nn.Module, x: np.ndarray, background: np.ndarray, target: int) -> np.ndarray:
    """Return the Shapley values of one row by their definition (Shapley 1953), every subset of columns asked for."""
    columns = len(x)

    def worth(subset: tuple[int, ...]) -> float:
        rows = background.copy()
        rows[:, list(subset)] = x[list(subset)]
        with torch.no_grad():
            return float(network(torch.from_numpy(rows))[:, target].mean())

    values = np.zeros(columns)
    for j in range(columns):
        others = [k for k in range(columns) if k != j]
        for size in range(columns):
            weight = factorial(size) * factorial(columns - size - 1) / factorial(columns)
            for subset in combinations(others, size):
                values[j] += weight * (worth((*subset, j)) - worth(subset))
    return values


@pytest.mark.parametrize("columns", [2, 3, 5])
def test_kernel_shap_of_few_columns_is_exact(columns: int):
    network, rng = small_network(columns, columns), np.random.default_rng(columns)
    x, background = rng.normal(size=(3, columns)), rng.normal(size=(6, columns))
    told = explain(network, x, method="shap.kernel", baseline=background, target=1)
    expected = np.stack([shapley(network, row, background, 1) for row in x])
    np.testing.assert_allclose(told.values, expected, atol=1e-8)
    assert told.completeness_gap.max() < 1e-8


@pytest.mark.slow
def test_permutation_shap_comes_near_the_exact_values():
    network, rng = small_network(5, 0), np.random.default_rng(0)
    x, background = rng.normal(size=(3, 5)), rng.normal(size=(6, 5))
    told = explain(network, x, method="shap.permutation", baseline=background, target=2, walks=400)
    expected = np.stack([shapley(network, row, background, 2) for row in x])
    assert np.abs(told.values - expected).max() < 0.05 * np.abs(expected).max()


@given(seed=st.integers(0, 10_000), target=st.integers(0, 2))
@settings(max_examples=10, deadline=None)
@pytest.mark.parametrize("method", METHODS)
def test_of_a_linear_network_each_method_gives_weight_times_difference(method: str, seed: int, target: int):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    network = nn.Linear(4, 3).double()
    x, background = rng.normal(size=(3, 4)), rng.normal(size=(5, 4))
    # The gradient of a linear network is the same everywhere, so that draws differ by the baseline rows alone: one has none.
    rows = background[:1] if method == "shap.gradient" else background
    told = explain(network, x, method=method, baseline=rows, target=target)
    expected = network.weight.detach().numpy()[target] * (x - rows.mean(axis=0))
    np.testing.assert_allclose(told.values, expected, atol=1e-6)
    assert told.completeness_gap.max() < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_mean_and_std_inside_the_model_are_seen(method: str):
    rng = np.random.default_rng(0)
    network = nn.Linear(4, 3).double()
    model = audit.Model(network, mean=[1.0, 2.0, 3.0, 4.0], std=[2.0, 1.0, 0.5, 4.0])
    x, baseline = rng.normal(size=(2, 4)), rng.normal(size=(1, 4))
    told = explain(model, x, method=method, baseline=baseline, target=0)
    expected = network.weight.detach().numpy()[0] / np.asarray([2.0, 1.0, 0.5, 4.0]) * (x - baseline)
    np.testing.assert_allclose(told.values, expected, atol=1e-5)


def test_saliency_of_a_linear_network_is_the_size_of_its_weights():
    network = nn.Linear(4, 3)
    told = explain(network, torch.randn(5, 4), method="saliency", target=2)
    np.testing.assert_allclose(told.values, np.tile(network.weight.detach().abs().numpy()[2], (5, 1)), atol=1e-7)


def test_lime_of_a_linear_network_over_categories_is_the_effect_of_each():
    """Of two-valued columns lime's line is the network itself: a column's weight is what its value adds against the other."""
    network = nn.Linear(4, 2).double()
    background = np.random.default_rng(0).integers(0, 2, (200, 4)).astype(float)
    told = explain(network, np.ones((1, 4)), method="lime", baseline=background, target=1, samples=5000)
    np.testing.assert_allclose(told.values[0], network.weight.detach().numpy()[1], rtol=0.05, atol=0.01)


def test_integrated_gradients_of_a_square_is_known():
    """Of f(x) = Σ x² from 0, the values are x² (the integral of 2tx·x)."""

    class Square(nn.Module):
        def forward(self, x):
            return torch.stack((torch.zeros_like(x[:, 0]), (x**2).sum(dim=1)), dim=1)

    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    told = explain(Square(), x, method="integrated_gradients", baseline=np.zeros((1, 3), np.float32), target=1)
    np.testing.assert_allclose(told.values, x**2, atol=1e-5)


def test_gradcam_finds_the_only_place_that_matters():
    class Corner(nn.Module):
        """Answers 1 where the lower right corner is bright."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1, bias=False)
            nn.init.ones_(self.conv.weight)

        def forward(self, x):
            bright = self.conv(x)[:, 0, 4:, 4:].mean(dim=(1, 2))
            return torch.stack((1 - bright, bright), dim=1)

    x = torch.zeros(1, 1, 8, 8)
    x[..., 4:, 4:] = 1.0
    told = explain(Corner(), x, method="gradcam", target=1)
    assert told.values.shape == (1, 1, 8, 8)
    assert told.values[0, 0, 4:, 4:].min() > 0
    assert told.values[0, 0, :4].max() == 0
