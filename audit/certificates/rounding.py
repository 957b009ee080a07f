r"""How far floating-point arithmetic may stray: what makes a certificate one about the network as it runs.

A sum of k products, in whatever order, errs by at most :math:`\gamma_k \sum |w_i x_i|` with :math:`\gamma_k = k u / (1 - k u)`
(Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.1). Every layer's own error is treated as one more
perturbation of its output, so that bounds hold for the numbers that the network itself computes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Fast convolutions (Winograd) do not sum products one by one; theirs is off by a few times more.
CONVOLUTION = 4
TINY = 2.0**-126  # what flushing a denormal number to zero loses


@dataclass(frozen=True)
class Rounding:
    """Relative errors of one operation: in the network's own type, and in the type in which bounds are computed.

    Attributes
    ----------
    network, bound
        Unit roundoff (half the distance from 1 to the next number).
    product
        Unit roundoff of factors in matrix products and convolutions; larger than `network` where the device rounds them (TF32).
    """

    network: float
    bound: float
    product: float

    @classmethod
    def of(cls, network: torch.dtype, bound: torch.dtype, device: torch.device) -> Rounding:
        """Return the errors for a network of one type, bounded in another, on a device."""
        unit = torch.finfo(network).eps / 2
        product = unit
        if network == torch.float32:
            precision = torch.get_float32_matmul_precision()
            cuda = device.type == "cuda" and (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
            if precision == "medium":
                product = 2.0**-8
            elif precision == "high" or cuda:
                product = 2.0**-11
        return cls(unit, torch.finfo(bound).eps / 2, product)

    def products(self, terms: int, back: int) -> float:
        """Return the relative error of a sum of so many products, made by the network, and of the bound's sums over it.

        `terms` are those of one output, `back` those of one coefficient on the way back.
        """
        exact = gamma(terms + 2, self.network) + 2 * (self.product if self.product > self.network else 0.0) * 1.01
        return exact + gamma(max(terms, back) + 8, self.bound)

    def few(self, operations: int) -> float:
        """Return the relative error of a few operations on single numbers."""
        return gamma(operations, self.network) + gamma(operations + 2, self.bound)

    def sums(self, numbers: int) -> float:
        """Return the relative error of a sum over a whole layer on the way back; the network makes no such sum."""
        return gamma(numbers + 4, self.bound)


def gamma(terms: int, unit: float) -> float:
    r"""Return :math:`k u / (1 - k u)`, or infinity where the sum is so long that nothing is known of it."""
    product = terms * unit
    # A hundredth more, for what is multiplied and summed with it is rounded again.
    return product / (1 - product) * 1.01 if product < 0.5 else float("inf")
