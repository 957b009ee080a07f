"""Expectation over transformation (Athalye et al. 2018): networks whose outputs are random, attacked through their mean.

`Expectation` is a Model whose outputs and gradients are means over several draws of another's, so that every attack runs on it
as it stands. `wrong_share` says how often the network itself, at fresh draws, is then wrong; more often than `beyond_chance`
allows, the sample is broken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from scipy import stats
from torch import Tensor

from audit.attacks.base import output_of
from audit.attacks.goal import Goal, sharpness
from audit.data.noise import block_seed
from audit.errors import UsageError
from audit.model.batching import BatchSize, in_batches
from audit.model.wrapper import Model

PURPOSE = "expectation"
CHANCE = 0.05  # probability with which an input that is right half of the time may be taken for broken


class Around(Model):
    """A Model around another one's network: each pass is counted by the Model inside."""

    def __init__(self, model: Model) -> None:
        self.__dict__.update(model.__dict__)
        self._depth = 0
        self.inner = model

    @property
    def forwards(self) -> int:
        """Samples that went through the network forwards so far."""
        return self.inner.forwards

    @forwards.setter
    def forwards(self, count: int) -> None:
        self.inner.forwards = count

    @property
    def backwards(self) -> int:
        """Samples that went through the network backwards so far."""
        return self.inner.backwards

    @backwards.setter
    def backwards(self, count: int) -> None:
        self.inner.backwards = count


class Expectation(Around):
    r"""A Model whose output is the mean over draws of another Model's random output.

    Athalye, Engstrom, Ilyas & Kwok 2018, "Synthesizing Robust Adversarial Examples", section 2.2: the gradient of an
    expectation is the mean of gradients. The loss is taken of the mean of the logits, as Athalye, Carlini & Wagner 2018
    ("Obfuscated Gradients", section 4.2) do it, not of the mean of the probabilities, whose gradient vanishes in every draw
    that is sure. The logits of each draw are first brought to one scale (`goal.sharpness`), so that no draw outvotes the
    others; values of a regression network are averaged as they are.

    An attack's success on this Model says that the mean over some draws is wrong; what the network itself does at fresh
    draws, `wrong_share` tells.

    Draws come from torch's global generators, seeded anew for each draw of each pass and put back after: a Model that is made
    anew and asked the same again answers the same. Every pass has draws of its own, for an attack that saw the same few again
    and again would break these and not the network. A sample's draw depends on its place in the batch, as it does in
    the network. Randomness from elsewhere (NumPy, a generator that the network keeps) is averaged, too, but not repeated.

    Every draw counts as a pass, and is counted by the Model inside.

    Parameters
    ----------
    model
        The Model whose outputs differ between two forwards; its network is shared.
    draws
        Draws of each pass. The batch is that many times smaller, for a gradient holds all draws in memory.
    seed, block
        Seed of the draws, and the block of samples that this Model is made for.
    fixed
        Whether every pass sees the same draws, so that differences between two points are not those of two draws: for
        questions about the gradient, not for attacks.
    """

    def __init__(self, model: Model, *, draws: int = 10, seed: int = 0, block: int = 0, fixed: bool = False) -> None:
        if draws < 1:
            raise UsageError(f"draws must be at least 1, got {draws}")
        super().__init__(model)
        self.batch_size = BatchSize(max(1, model.batch_size.current // draws))
        self.draws, self.seed, self.block = draws, seed, block
        self.asked, self.fixed = 0, fixed

    def logits(self, x: Tensor) -> Tensor:
        """Return the mean over draws of logits on one scale, (n, classes); counts n forwards a draw."""
        return self._mean(lambda: self._scaled(super(Expectation, self).logits(x)))

    def values(self, x: Tensor) -> Tensor:
        """Return the mean over draws of a regression network's output, (n,); counts n forwards a draw."""
        return self._mean(lambda: super(Expectation, self).values(x))

    def gradient(self, loss: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient of the loss of the mean output; see `Model.gradient`. Counts one pass each way a draw."""
        before = self.backwards
        gradient, losses = super().gradient(loss, x)
        self.backwards += (self.draws - 1) * (self.backwards - before)
        return gradient, losses

    def _scaled(self, logits: Tensor) -> Tensor:
        # The logits of a multi-label network answer a question each, so they have no scale in common.
        return logits * sharpness(logits.detach()) if self.task == "classification" else logits

    def _mean(self, once: Callable[[], Tensor]) -> Tensor:
        self.asked += not self.fixed
        total: Tensor | None = None
        for draw in range(self.draws):
            with seeded(block_seed(self.seed, f"{PURPOSE}.{self.asked}", self.block, draw), self.device):
                output = once()
            total = output if total is None else total + output
        assert total is not None  # noqa: S101  (there is at least one draw)
        return total / self.draws


def wrong_share(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    draws: int = 100,
    seed: int = 0,
    block: int = 0,
    tolerance: float = 0.0,
) -> Tensor:
    """Return the share of fresh draws in which the network is wrong about each input, float64 (n,); counts n forwards a draw.

    The draws are none that an `Expectation` of the same seed sees. The mean of the outputs would let one sure draw stand for
    many unsure ones; a user of the network gets a single answer, and this is how often it is wrong.

    Parameters
    ----------
    y : Tensor (n,)
        Labels; for regression the clean outputs, averaged over draws.
    """
    inputs, labels = model.to_input(x), y.to(model.device)
    labels = labels.to(model.dtype) if model.task == "regression" else labels.long()
    wrong = torch.zeros(len(inputs), dtype=torch.float64, device=inputs.device)

    def ask(xs: Tensor, ys: Tensor) -> tuple[Tensor, ...]:
        return (Goal(model.task or "", ys, tolerance).broken(output_of(model, xs)),)

    with model.session():
        for draw in range(draws):
            with seeded(block_seed(seed, f"{PURPOSE}.fresh", block, draw), model.device):
                wrong += in_batches(ask, (inputs, labels), model.batch_size)[0]
    return wrong / draws


def beyond_chance(draws: int) -> float:
    """Return the share of wrong draws above which a single answer is more likely wrong than right, for certain.

    The smallest that an input that is right half of the time exceeds with probability 0.05 at most (exact one-sided binomial
    test): 0.625 of 40 draws, 0.58 of 100. An input that is wrong 45 times in 100 exceeds it with probability 0.009 and 0.003;
    it would exceed one half with 0.21 and 0.13, and each attack tosses anew. One that is wrong 60 times exceeds it with 0.32
    and 0.62.
    """
    return float(stats.binom.isf(CHANCE, draws, 0.5)) / draws


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators of the CPU and of the device, and put their states back after."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
