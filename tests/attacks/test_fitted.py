"""Universal perturbation and patch: what may change, which half counts, and planted networks that one change breaks for all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from audit.attacks import ThreatModel
from audit.attacks.patch import Patch
from audit.attacks.universal import Universal
from audit.errors import UsageError
from audit.model.wrapper import Model
from tests.attacks.test_attacks import model, samples


def threat(norm: str, eps: float) -> ThreatModel:
    return ThreatModel(norm, eps, np.asarray(0.0), np.asarray(1.0))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@given(eps=st.floats(0.0, 1.0), seed=st.integers(0, 3))
@settings(max_examples=8, deadline=None)
def test_a_perturbation_keeps_box_and_radius(norm: str, eps: float, seed: int):
    x, y = samples(40, seed)
    out = Universal(threat(norm, eps), steps=6)(model(), x, y)
    delta = (out.x_adv.double() - x.double()).flatten(1)
    distance = delta.abs().amax(dim=1) if norm == "linf" else delta.norm(dim=1)
    assert bool(((out.x_adv >= 0) & (out.x_adv <= 1)).all())
    assert bool((distance <= eps + 1e-6).all())
    assert torch.equal(out.broken, model().predict(out.x_adv) != y)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.11), ("l2", 0.11 * 6**0.5)])
def test_one_direction_that_breaks_all_is_found(norm: str, eps: float):
    """All samples lie 0.1 · 6 above one plane, in L∞ 0.1 and in L2 0.1 · √6 away: a step against it breaks all, less none."""
    net = nn.Linear(6, 2)
    net.weight.data = torch.stack((torch.zeros(6), torch.tensor([1.0, -1, 1, -1, 1, -1])))
    x = torch.rand((200, 6), generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    x[:, 0] += 0.6 - x @ net.weight.data[1]
    net.bias.data.zero_()
    line = Model(net, bounds=(-5, 5), device="cpu", output="logits")
    box = ThreatModel(norm, eps, np.asarray(-5.0), np.asarray(5.0))
    out = Universal(box, steps=60)(line, x, torch.ones(200, dtype=torch.long))
    short = Universal(ThreatModel(norm, eps * 0.85, np.asarray(-5.0), np.asarray(5.0)), steps=60)
    assert out.fooled().value == 1.0
    assert short(line, x, torch.ones(200, dtype=torch.long)).fooled().value == 0.0


def test_the_figure_is_of_samples_that_it_was_not_fitted_on():
    x, y = samples(200)
    seen: list[Tensor] = []

    class Watched(Universal):
        def fit(self, model, x, goal, ids):
            seen.append(ids)
            return super().fit(model, x, goal, ids)

    ids = torch.arange(1000, 1200)
    out = Watched(threat("linf", 0.3), steps=100)(model(), x, y, ids=ids)
    assert not bool(torch.isin(ids[out.unseen], seen[0]).any())
    assert 70 < int(out.unseen.sum()) < 130
    share = out.fooled()
    assert share.value == pytest.approx(float((out.broken & out.unseen & out.right).sum() / (out.unseen & out.right).sum()))
    assert share.low < share.value < share.high
    assert share.value > 0.3
    assert out.accuracy().value == pytest.approx(1 - share.value)
    turned = Universal(threat("linf", 0.3), steps=100)(model(7), x.flip(0), y.flip(0), ids=ids.flip(0))
    assert torch.equal(out.unseen.flip(0), turned.unseen)


def test_fixed_columns_stay():
    net = nn.Linear(3, 2)
    net.weight.data = torch.tensor([[0.0, 0, 0], [1.0, 1, 1]])
    x = torch.rand((40, 3), generator=torch.Generator().manual_seed(0))
    box = ThreatModel(
        "l2", 1.0, np.zeros(3), np.ones(3), scale=np.array([0.1, 1.0, 1.0]), mutable=np.array([True, False, True])
    )
    line = Model(net, bounds=(0, 1), device="cpu", output="logits")
    out = Universal(box, steps=20)(line, x, line.predict(x))
    assert torch.equal(out.x_adv[:, 1], x[:, 1])
    moved = ((out.x_adv - x)[:, [0, 2]] / torch.tensor([0.1, 1.0])).norm(dim=1)
    assert float(moved.max()) <= 1 + 1e-5
    assert float(moved.max()) > 0


def test_regression_takes_the_better_direction():
    net = nn.Linear(3, 1)
    nn.init.constant_(net.weight, 1.0)
    line = Model(net, task="regression", bounds=(0, 1), device="cpu")
    out = Universal(threat("linf", 0.2), steps=20)(line, torch.ones(40, 3), torch.zeros(40), tolerance=0.5)
    assert out.fooled().value == 1.0, "there is room downwards alone"


class Spot(nn.Module):
    """Answers 1 where a window of 3 × 3 shows a bright cross of its own kind anywhere; else 0."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, bias=False)
        self.conv.weight.data = torch.tensor([[[[-1.0, 1, -1], [1, 1, 1], [-1, 1, -1]]]])

    def forward(self, x: Tensor) -> Tensor:
        strongest = (8 * self.conv(x)).flatten(1).logsumexp(dim=1) / 8
        return torch.stack((torch.full_like(strongest, 3.5), strongest), dim=1)


def test_a_patch_that_works_in_any_place_is_found_and_changes_nothing_else():
    x = 0.3 * torch.rand((120, 1, 12, 12), generator=torch.Generator().manual_seed(0))
    spot = Model(Spot(), bounds=(0, 1), device="cpu", output="logits")
    assert bool((spot.predict(x) == 0).all())
    ids = torch.arange(120)
    out = Patch(share=9.5 / 144, steps=300)(spot, x, torch.zeros(120, dtype=torch.long), ids=ids)
    assert out.change.shape == (1, 3, 3)
    assert out.fooled().low > 0.9
    changed = (out.x_adv != x).flatten(1)
    assert int(changed.sum(dim=1).max()) <= 9
    assert len({tuple(row.nonzero()[:1].flatten().tolist()) for row in changed}) > 20, "all patches lie in the same place"
    assert bool(((out.x_adv >= 0) & (out.x_adv <= 1)).all())
    corner = Patch(share=9.5 / 144, place="corner", steps=300)(spot, x, torch.zeros(120, dtype=torch.long))
    assert not bool((corner.x_adv != x)[:, :, 3:].any())
    assert not bool((corner.x_adv != x)[:, :, :, 3:].any())


def test_what_does_not_fit_is_said():
    x, y = samples(40)
    with pytest.raises(UsageError, match="linf, l2"):
        Universal(threat("l0", 3))
    universal, net = Universal(threat("linf", 0.1)), model()
    with pytest.raises(UsageError, match="on both halves"):
        universal(net, x, (y + 1) % 4)
    line = Model(nn.Linear(3, 2), bounds=(0, 1), device="cpu", output="logits")
    rows = torch.rand(40, 3)
    answers = line.predict(rows)
    with pytest.raises(UsageError, match="images"):
        Patch()(line, rows, answers)
    with pytest.raises(UsageError, match="share"):
        Patch(share=1.5)
    number = Model(nn.Linear(3, 1), task="regression", bounds=(0, 1), device="cpu")
    with pytest.raises(UsageError, match="tolerance"):
        universal(number, rows, rows[:, 0])
