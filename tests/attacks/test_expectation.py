"""Expectation over transformation: the mean over draws, its cost, its repeatability, and what counts as broken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from audit.attacks import PGD
from audit.attacks.base import output_of
from audit.attacks.expectation import Expectation, beyond_chance, wrong_share
from audit.errors import UsageError
from audit.model.wrapper import Model
from tests.attacks.test_attacks import samples, small_net


class Noisy(nn.Module):
    """A small network that blurs its input with noise at every forward."""

    def __init__(self, size: float = 0.5) -> None:
        super().__init__()
        self.net, self.size = small_net(), size

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + self.size * torch.randn_like(x))


def noisy(size: float = 0.5, batch_size: int = 256) -> Model:
    return Model(Noisy(size), bounds=(0, 1), device="cpu", output="logits", classes=4, batch_size=batch_size)


def test_the_gradient_is_the_mean_of_gradients():
    class Slopes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, 0] * (1 + torch.randn(()))

    x = torch.ones(3, 2)
    line = Model(Slopes(), task="regression", device="cpu")
    gradient, _ = Expectation(line, draws=4000).gradient(lambda z: z, x)
    assert float(gradient[0, 0]) == pytest.approx(1.0, abs=3 / 4000**0.5)
    assert bool((gradient[:, 1] == 0).all())


def test_every_draw_is_a_pass_of_the_network_inside():
    x, _ = samples(7)
    inner = noisy()
    model = Expectation(inner, draws=5)
    output_of(model, x)
    assert (inner.forwards, inner.backwards) == (35, 0)
    model.gradient(lambda z: z[:, 0], x)
    assert (inner.forwards, inner.backwards) == (70, 35)
    assert (model.forwards, model.backwards) == (70, 35)


def test_the_same_questions_have_the_same_answers_and_the_generator_is_put_back():
    x, _ = samples(7)
    one, two, other, block = (Expectation(noisy(), seed=seed, block=block) for seed, block in ((1, 0), (1, 0), (2, 0), (1, 1)))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second = (output_of(one, x), output_of(one, x)), (output_of(two, x), output_of(two, x))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], first[1]), "a pass must have draws of its own"
    assert not torch.equal(first[0], output_of(other, x))
    assert not torch.equal(first[0], output_of(block, x))
    assert torch.equal(torch.get_rng_state(), before)


def test_fixed_draws_are_the_same_in_every_pass():
    x, _ = samples(7)
    fixed = Expectation(noisy(), draws=3, fixed=True)
    assert torch.equal(output_of(fixed, x), output_of(fixed, x))


def test_a_network_that_is_not_random_stays_as_it_is():
    x, y = samples(50)
    plain = Model(small_net(), bounds=(0, 1), device="cpu", output="logits", classes=4)
    attack = PGD("linf", 0.1, steps=10)
    out = attack(Expectation(plain, draws=3), x, y)
    assert torch.equal(attack(plain, x, y).success, out.success)
    assert set(wrong_share(plain, out.x_adv[out.success], y[out.success], draws=4).tolist()) == {1.0}


def test_the_mean_is_attacked_better_than_single_draws():
    x, _ = samples(100)
    inner = noisy(1.0)
    y = output_of(Model(small_net(), device="cpu", output="logits"), x).argmax(dim=1)
    once = PGD("linf", 0.1, steps=20)(inner, x, y)
    mean = PGD("linf", 0.1, steps=20)(Expectation(inner, draws=20), x, y)
    by_one, by_mean = (wrong_share(inner, out.x_adv, y, draws=200) for out in (once, mean))
    stood = wrong_share(inner, x, y, draws=200) < 0.5
    assert float((by_mean[stood] > 0.5).double().mean()) > float((by_one[stood] > 0.5).double().mean()) + 0.05
    assert once.rejected.any(), "single draws are not confirmed: the trap is gone"


def test_the_share_of_wrong_answers_is_that_of_fresh_draws():
    class Coin(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            wrong = (torch.rand(len(x)) < x[:, 0]).float()
            return torch.stack((1 - wrong, wrong), dim=1)

    x = torch.tensor([[0.0], [0.25], [0.75], [1.0]])
    coin = Model(Coin(), device="cpu", output="logits", classes=2)
    share = wrong_share(coin, x, torch.zeros(4, dtype=torch.long), draws=900)
    assert share[0] == 0
    assert share[3] == 1
    assert torch.allclose(share[1:3], torch.tensor([0.25, 0.75], dtype=torch.float64), atol=3 * (0.1875 / 900) ** 0.5)
    assert coin.forwards == 3600


def test_a_draw_with_large_logits_has_one_vote():
    class Loud(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.asked = 0

        def forward(self, x: Tensor) -> Tensor:
            self.asked += 1
            loud = self.asked % 3 == 0
            return (torch.tensor([[0.0, 1e6]]) if loud else torch.tensor([[1.0, 0.0]])).expand(len(x), 2)

    mean = Expectation(Model(Loud(), device="cpu", output="logits", classes=2), draws=9)
    assert output_of(mean, torch.zeros(2, 3)).argmax(dim=1).tolist() == [0, 0]


def test_bad_parameters_are_errors():
    with pytest.raises(UsageError, match="draws"):
        Expectation(noisy(), draws=0)


@pytest.mark.parametrize("draws", [40, 100])
def test_an_input_that_is_right_half_of_the_time_is_seldom_called_broken(draws):
    class Coin(nn.Module):
        """Wrong about each input as often as the input says."""

        def forward(self, x: Tensor) -> Tensor:
            wrong = torch.rand(len(x)) < x[:, 0]
            return torch.stack((1 - 2.0 * wrong, 2.0 * wrong - 1), dim=1)

    model = Model(Coin(), bounds=(0, 1), device="cpu", output="logits", classes=2, batch_size=4000)
    x = torch.tensor([0.5, 0.45, 0.9]).repeat_interleave(4000)[:, None]
    broken = wrong_share(model, x, torch.zeros(12000, dtype=torch.long), draws=draws) > beyond_chance(draws)
    half, less, mostly = broken.double().view(3, 4000).mean(dim=1)
    assert half <= 0.05 + 3 * (0.05 / 4000) ** 0.5
    assert less <= half
    assert mostly >= 0.99
