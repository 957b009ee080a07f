"""Adversarial training with projected gradient descent (Madry et al. 2018): train on the worst inputs in the ball."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from audit.attacks.goal import Goal
from audit.hardening.method import Ascent, Method, output_of
from audit.hardening.network import Trainee


class AdversarialTraining(Method):
    r"""Minimise :math:`\max_{x' \in B(x)} L(f(x'), y)`: cross-entropy, or for regression the squared error.

    Madry, Makelov, Schmidt, Tsipras & Vladu 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks",
    equation 2.1.
    """

    name = "pgd"
    tasks: ClassVar = ("classification", "regression")
    source = "Madry et al. 2018, equation 2.1"

    def maximise(self, network: Trainee, x: Tensor, y: Tensor, ascend: Ascent) -> Tensor:
        """Raise the loss from a random start."""
        goal = Goal(network.task or "", y)

        def loss(output: Tensor) -> Tensor:
            # The soft margin has the direction of cross-entropy and does not underflow where the network is sure.
            return (output - y) ** 2 if network.task == "regression" else goal.raw_loss(output)

        return ascend(network, x, loss)

    def loss(self, network: Trainee, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        """Return the loss on the worst inputs alone."""
        output = output_of(network, x_adv)
        if network.task == "regression":
            return functional.mse_loss(output / self.spread, y / self.spread)
        return functional.cross_entropy(output, y)
