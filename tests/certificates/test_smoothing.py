"""Randomised smoothing: the radius of a linear network is its distance; votes belong to ids; it abstains where unsure."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import nn

import audit
from audit.certificates import smooth
from audit.errors import UsageError


def _linear() -> audit.Model:
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 0, 0, 0], [3.0, 0, 4.0, 0]]))
        layer.bias.zero_()
    return audit.Model(layer, output="logits", bounds=(-5, 5), device="cpu")


def test_a_linear_network_gets_its_distance_as_radius() -> None:
    x = torch.tensor([[0.3, 1.0, 0.4, 0.0], [-0.15, 1.0, -0.2, 0.0]])  # 0.5 and 0.25 away from the boundary
    out = smooth(_linear(), x, torch.arange(2), sigma=0.5, n0=50, n=4000, alpha=0.01)
    assert out.predicted.tolist() == [1, 0]
    for radius, distance, share in zip(out.radius, (0.5, 0.25), (1.0, 0.5), strict=True):
        true = float(stats.norm.cdf(share))
        slack = 0.5 * (stats.norm.ppf(true) - stats.norm.ppf(true - 6 * (true * (1 - true) / 4000) ** 0.5))
        assert distance - slack <= float(radius) <= distance + slack / 2
    assert out.certified(torch.tensor([1, 1]), 0.1).tolist() == [True, False]
    assert out.forwards == 2 * 4050


def test_the_bound_is_clopper_pearsons() -> None:
    out = smooth(_linear(), torch.tensor([[9.0, 0, 9.0, 0]]), torch.arange(1), sigma=0.1, n0=5, n=100, alpha=0.05)
    assert float(out.lower) == pytest.approx(0.05 ** (1 / 100))
    assert float(out.radius) == pytest.approx(0.1 * stats.norm.ppf(0.05**0.01))


def test_it_abstains_on_the_boundary() -> None:
    out = smooth(_linear(), torch.zeros(1, 4), torch.arange(1), sigma=0.5, n=500)
    assert out.predicted.tolist() == [-1]
    assert out.radius.tolist() == [0.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_output_that_is_no_number_votes_for_no_class(value: float) -> None:
    """Whatever class `argmax` makes of it, a network that answers nothing under noise has no radius."""

    class Unanswered(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            gone = torch.where(x.abs().amax(dim=1, keepdim=True) > 0.01, value, 0.0)
            return torch.cat((1 + gone, torch.zeros_like(gone)), dim=1)

    model = audit.Model(Unanswered(), output="logits", bounds=(-5, 5), device="cpu")
    out = smooth(model, torch.zeros(2, 4), torch.arange(2), sigma=0.5, n0=20, n=200)
    assert out.predicted.tolist() == [-1, -1]
    assert out.radius.tolist() == [0.0, 0.0]


def test_votes_belong_to_ids_and_not_to_batches() -> None:
    torch.manual_seed(0)
    model = audit.Model(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), output="logits", bounds=(0, 1), device="cpu"
    )
    x, ids = torch.rand(70, 4), torch.arange(70) + 30
    whole = smooth(model, x, ids, sigma=0.5, n0=20, n=50)
    model.batch_size.current = 7
    part = smooth(model, x[60:], ids[60:], sigma=0.5, n0=20, n=50)
    assert part.lower.tolist() == whole.lower[60:].tolist()
    assert part.predicted.tolist() == whole.predicted[60:].tolist()
    arrays = smooth(model, x[60:].numpy(), ids[60:].numpy(), sigma=0.5, n0=20, n=50)
    assert arrays.lower.tolist() == part.lower.tolist()
    assert bool(arrays.certified(part.predicted.numpy(), 0.0).equal(part.radius > 0))


@pytest.mark.parametrize("wrong", [{"sigma": 0.0}, {"sigma": 0.1, "n": 0}, {"sigma": 0.1, "alpha": 1.0}])
def test_wrong_options_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"sigma|n0"):
        smooth(_linear(), torch.zeros(1, 4), torch.arange(1), **wrong)  # type: ignore[arg-type]
