"""Spatial: rotations and shifts against exact ones, the grid, early leaving, and what it says of its own find."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from audit.attacks.spatial import Spatial, transformed
from audit.errors import UsageError
from audit.model.wrapper import Model
from tests.attacks.test_attacks import model, samples


def moves(*rows: tuple[float, float, float]) -> Tensor:
    return torch.tensor(rows)


@pytest.mark.parametrize("shape", [(2, 6, 6), (1, 5, 5)])
def test_quarter_turns_and_whole_shifts_are_exact(shape: tuple[int, int, int]):
    x = torch.rand((3, *shape), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(transformed(x, moves(*[(90.0, 0.0, 0.0)] * 3)), x.rot90(1, (2, 3)), atol=1e-5)
    down = transformed(x, moves(*[(0.0, 2.0, 0.0)] * 3), 0.25)
    assert torch.allclose(down[:, :, 2:], x[:, :, :-2], atol=1e-5)
    assert torch.allclose(down[:, :, :2], torch.tensor(0.25))
    right = transformed(x, moves(*[(0.0, 0.0, 1.0)] * 3))
    assert torch.allclose(right[..., 1:], x[..., :-1], atol=1e-5)


def test_a_turn_keeps_lengths_in_images_that_are_not_square():
    x = torch.zeros(1, 1, 21, 41)
    x[0, 0, 10, 28] = 1.0  # 8 pixels to the right of the centre
    turned = transformed(x, moves((90.0, 0.0, 0.0)))
    assert turned.argmax().item() == 2 * 41 + 20, "8 pixels above it after a quarter turn"


class Middle(nn.Module):
    """Answers 1 while the middle of the image is bright."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x[:, 0, 4:6, 4:6].flatten(1).mean(dim=1)
        return torch.stack((torch.full_like(bright, 0.5), bright), dim=1)


def test_a_shift_out_of_the_middle_is_found_and_one_that_cannot_leave_it_is_not():
    x = torch.zeros(4, 1, 10, 10)
    x[:, :, 4:6, 4:6] = 1.0
    net, y = Model(Middle(), bounds=(0, 1), device="cpu", output="logits"), torch.ones(4, dtype=torch.long)
    far = Spatial(max_angle=0, max_shift=0.2)(net, x, y)
    near = Spatial(max_angle=0, max_shift=0.04)(net, x, y)
    assert bool(far.success.all())
    assert bool(((far.down.abs() >= 1) | (far.right.abs() >= 1)).all())
    again = transformed(x, torch.stack((far.angle, far.down, far.right), dim=1))
    assert torch.equal(again, far.x_adv)
    assert far.forwards == 4 * 3, "clean, the largest shift, and its confirmation"
    assert not bool(near.success.any())
    assert near.forwards == 4 * (1 + 31 * 25)
    assert torch.equal(near.x_adv, x)
    assert bool(near.angle.isnan().all())


def test_random_draws_belong_to_ids():
    x, y = samples(80)
    ids = torch.arange(80)
    whole = Spatial(worst_of=10)(model(), x, y, ids=ids)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    turned = Spatial(worst_of=10)(model(7), x[order], y[order], ids=ids[order])
    assert 0 < int(whole.success.sum()) < 80
    assert torch.equal(whole.success[order], turned.success)
    assert bool((whole.angle.nan_to_num(0.0).abs() <= 30).all())
    assert bool((whole.down.nan_to_num(0.0).abs() <= 0.2 + 1e-6).all())


def test_what_a_fresh_forward_does_not_confirm_is_rejected():
    class Coin(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack((torch.full((len(x),), 1.2), torch.randn(len(x))), dim=1)

    torch.manual_seed(0)
    out = Spatial(worst_of=20)(
        Model(Coin(), bounds=(0, 1), device="cpu", output="logits"), torch.rand(200, 1, 4, 4), torch.zeros(200).long()
    )
    assert int(out.rejected.sum()) > 50
    assert not bool((out.rejected & out.success).any())


def test_what_does_not_fit_is_said():
    with pytest.raises(UsageError, match="images"):
        Spatial()(Model(nn.Linear(3, 2), bounds=(0, 1), device="cpu"), torch.rand(4, 3), torch.zeros(4))
    with pytest.raises(UsageError, match="max_angle"):
        Spatial(max_angle=400)
    with pytest.raises(UsageError, match="at least 1"):
        Spatial(angles=0)
