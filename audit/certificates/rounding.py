r"""How far floating-point arithmetic may stray: what makes a certificate one about the network as it runs.

A sum of k products, in whatever order, errs by at most :math:`\gamma_k \sum |w_i x_i|` with :math:`\gamma_k = k u / (1 - k u)`
(Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.1). Every layer's own error is treated as one more
perturbation of its output, with the weights and the bounds of its own inputs, so that bounds hold for the numbers that the
network computes, where it computes as is assumed here:

- each layer's outputs are sums of products in some order, fused or not, in the network's own type, rounded to nearest: any
  blocking, any number of threads, any batch;
- where torch may round factors to a shorter type (TF32, bfloat16: `torch.backends.*.fp32_precision`, and on CPUs oneDNN's
  variable ONEDNN_DEFAULT_FPMATH_MODE), they are rounded or cut off to it, and what accumulates the products may cut off, too.

Convolutions that transform their inputs (Winograd, Fourier) do not compute so. On x86 torch calls oneDNN's direct ones, or
multiplies matrices, which do. Elsewhere one of stride 1 is allowed `TRANSFORMED` times the error, or that of
`TRANSFORMED_TERMS` more terms of the largest sum on the image where that is more: an allowance, and not a bound. With torch's
own (NNPACK: batches of 16 and more where oneDNN is missing or off) outputs beside a large input or in the padding were off by
thousands of times their own error, and by up to 330 roundings of the largest sum on the image.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import Any

import torch

TRANSFORMED, TRANSFORMED_TERMS = 4, 512
TINY = 2.0**-126  # what flushing a denormal number to zero loses
# Relative error of a factor that is cut off to a shorter type, by the name that torch has for it.
SHORTER = {"none": 0.0, "ieee": 0.0, "tf32": 2.0**-10, "bf16": 2.0**-7}
FPMATH = {"": 0.0, "strict": 0.0, "tf32": 2.0**-10, "bf16": 2.0**-7}  # by oneDNN's; float16 has a shorter range, too: no bound


@dataclass(frozen=True)
class Rounding:
    """Relative errors of one operation: in the network's own type, and in the type in which bounds are computed.

    Attributes
    ----------
    network, bound
        Unit roundoff (half the distance from 1 to the next number).
    matrix, convolution
        What each factor of a matrix product or convolution may lose to a shorter type; 0 where factors are taken as they are.
    shared
        Whether bounds are computed with such factors, too: in float32 they are made by the same operations.
    transformed
        Whether a convolution of stride 1 may be another thing than sums of products.
    """

    network: float
    bound: float
    matrix: float = 0.0
    convolution: float = 0.0
    shared: bool = False
    transformed: bool = True

    @classmethod
    def of(cls, network: torch.dtype, bound: torch.dtype, device: torch.device) -> Rounding:
        """Return the errors for a network of one type, bounded in another, on a device, as torch is set now."""
        single = network == torch.float32
        matrix, convolution = (_shorter(device, kind) if single else 0.0 for kind in ("matmul", "conv"))
        x86 = device.type == "cpu" and platform.machine().lower() in ("x86_64", "amd64", "x86")
        backend: Any = torch.backends.mkldnn  # some of its attributes have no types
        direct = x86 and bool(backend.is_available()) and bool(backend.enabled)
        own, wide = torch.finfo(network).eps / 2, torch.finfo(bound).eps / 2
        return cls(own, wide, matrix, convolution, shared=bound == torch.float32, transformed=not direct)

    def products(self, terms: int, back: int, *, convolution: bool = False) -> float:
        """Return the relative error of a sum of so many products, made by the network, and of the bound's sums over it.

        `terms` are those of one output, `back` those of one coefficient on the way back.
        """
        lost = self._factors(convolution=convolution)
        exact = gamma((terms + 2) * (2 if lost else 1), self.network) + lost
        return exact + self._own(max(terms, back) + 8, lost)

    def few(self, operations: int) -> float:
        """Return the relative error of a few operations on single numbers."""
        return gamma(operations, self.network) + gamma(operations + 2, self.bound)

    def passing(self, more: int = 0) -> float:
        """Return the relative error of a coefficient that passes a value on the way back; the network computes none."""
        return gamma(16 + more, self.bound)

    def sums(self, numbers: int) -> float:
        """Return the relative error of a sum over a whole layer on the way back; the network makes no such sum."""
        return self._own(numbers + 4, self._factors(convolution=False))

    def _factors(self, *, convolution: bool) -> float:
        # A hundredth more for the product of two such errors.
        return 2.02 * (self.convolution if convolution else self.matrix)

    def _own(self, terms: int, lost: float) -> float:
        return gamma(2 * terms, self.bound) + lost if self.shared and lost else gamma(terms, self.bound)


def gamma(terms: int, unit: float) -> float:
    r"""Return :math:`k u / (1 - k u)`, or infinity where the sum is so long that nothing is known of it."""
    product = terms * unit
    # A hundredth more, for what is multiplied and summed with it is rounded again.
    return product / (1 - product) * 1.01 if product < 0.5 else float("inf")


def _shorter(device: torch.device, kind: str) -> float:
    """Return what a factor may lose in float32 by what torch is allowed; kind is ``matmul`` or ``conv``."""
    backends: Any = torch.backends
    if device.type == "cuda":
        backend = backends.cuda.matmul if kind == "matmul" else backends.cudnn.conv
    else:
        backend = getattr(backends.mkldnn, kind)
    lost = SHORTER.get(str(backend.fp32_precision), max(SHORTER.values()))
    if device.type != "cpu":
        return lost
    # Where torch says nothing oneDNN does as the environment says.
    modes = (os.environ.get(f"{name}_DEFAULT_FPMATH_MODE", "").lower() for name in ("ONEDNN", "DNNL"))
    return max(lost, *(FPMATH.get(mode, float("inf")) for mode in modes))
