"""TRADES (Zhang et al. 2019): train on clean inputs, and for answers that do not change within the ball."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from audit.hardening.method import Ascent, Method
from audit.hardening.network import Trainee


class Trades(Method):
    r"""Minimise :math:`L(f(x), y) + \beta \max_{x' \in B(x)} KL(f(x) \,\|\, f(x'))`.

    Zhang, Yu, Jiao, Xing, El Ghaoui & Jordan 2019, "Theoretically Principled Trade-off between Robustness and Accuracy",
    equation 5; :math:`\beta` is their :math:`1/\lambda`. As in their code the maximum is sought with the network in evaluation
    mode, and both terms are differentiated through both outputs. The start is uniform in the ball rather than 0.001 of a
    normal draw: at radii as wide as 0.3 a few steps reach further from there.
    """

    name = "trades"
    source = "Zhang et al. 2019, equation 5"

    def maximise(self, network: Trainee, x: Tensor, y: Tensor, ascend: Ascent) -> Tensor:  # noqa: ARG002
        """Raise the divergence from the clean answer."""
        clean = network.logits(x).detach().log_softmax(dim=1)

        def divergence(logits: Tensor) -> Tensor:
            return (clean.exp() * (clean - logits.log_softmax(dim=1))).sum(dim=1)

        return ascend(network, x, divergence)

    def loss(self, network: Trainee, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Return cross-entropy on clean inputs plus beta times the divergence on the worst ones."""
        clean, worst = network.logits(x), network.logits(x_adv)
        natural = functional.cross_entropy(clean, y)
        robust = functional.kl_div(worst.log_softmax(dim=1), clean.log_softmax(dim=1), reduction="batchmean", log_target=True)
        return natural + self.options.beta * robust
