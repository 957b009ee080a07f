"""The attack that tests the evaluation in L2 finds what no path inside the ball leads to."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from audit.attacks.geometry import ThreatModel
from audit.attacks.pgd import PGD
from audit.evaluations.afar import Afar
from audit.model.wrapper import Model

INPUTS, EPS = 64, 1.0


class Deaf(nn.Module):
    """Ignores changes of an input by less than 0.5: a few large ones break it, and many small ones never do."""

    def __init__(self) -> None:
        super().__init__()
        weights = torch.rand(INPUTS, generator=torch.Generator().manual_seed(0)) ** 2
        self.register_buffer("weights", weights)

    def forward(self, x: Tensor) -> Tensor:
        heard = (x.abs() - 0.5).clamp_min(0.0) @ self.weights
        return torch.stack([torch.full_like(heard, 0.15), heard], dim=1)


def test_runs_from_outside_the_ball_break_what_none_inside_does():
    x = (0.02 * torch.randn(30, INPUTS, generator=torch.Generator().manual_seed(1))).numpy()
    y = np.zeros(len(x), dtype=np.int64)
    model = Model(Deaf(), bounds=(-1, 1), device="cpu")
    threat = ThreatModel("l2", EPS, np.array(-1.0), np.array(1.0))
    inside = PGD("l2", EPS, steps=100, restarts=2, loss="both")(model, x, y, threat=threat)
    afar = Afar("l2", EPS, steps=100, restarts=2, loss="both")(model, x, y, threat=threat)
    assert int(inside.success.sum()) < 5
    assert bool(afar.success.all())
    assert not bool(afar.rejected.any())
    assert (afar.distance <= EPS * (1 + 1e-6)).all()
    assert np.allclose(np.linalg.norm(afar.x_adv.numpy() - x, axis=1), afar.distance.numpy(), rtol=1e-4)
