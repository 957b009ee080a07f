"""When a sample is broken, and the losses that lead there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LossName = Literal["ce", "margin"]
TOP_GAP = 4.0  # 2 to 8 did about equally well on four networks; the raw scale of their logits did, too, and 0.01 of it did not


@dataclass(frozen=True)
class Goal:
    """When a sample is broken, and the loss that leads there.

    For classification a sample is broken when its predicted class is not its label. For regression it is broken when the
    output moved by more than `tolerance` from the clean one.
    """

    task: str
    y: Tensor
    tolerance: float = 0.0

    def take(self, rows: Tensor) -> Goal:
        """Return the goal of these samples."""
        return Goal(self.task, self.y[rows], self.tolerance)

    def broken(self, output: Tensor) -> Tensor:
        """Tell which samples are broken, from logits (n, classes) or values (n,). A NaN output counts as broken."""
        if self.task == "regression":
            return ~((output - self.y).abs() <= self.tolerance)
        return (output.argmax(dim=1) != self.y) | ~torch.isfinite(output).all(dim=1)

    def loss(self, output: Tensor, direction: float = 1.0, kind: LossName = "ce") -> Tensor:
        r"""Return the loss to raise, of shape (n,).

        Classification, ``ce``: :math:`\log\sum_{j\ne y} e^{z_j} - z_y`. Cross-entropy is softplus of it, so both have the same
        gradient direction for each sample; but the sigmoid that cross-entropy multiplies it with underflows to zero in
        float32 where the network is sure, and here it is left out. The logits are first scaled so that the gap between the
        highest and the third is 4 (the gap is the denominator of Croce & Hein 2020, equation 6): a network whose logits are
        all small would otherwise be attacked towards every class at once, and look robust. ``margin``:
        :math:`\max_{j\ne y} z_j - z_y` (Carlini & Wagner 2017). Regression: the output, up or down (`direction` +1, −1).
        """
        if self.task == "regression":
            return (output - self.y) * direction
        if kind == "margin":
            return self._others(output).amax(dim=1) - self._own(output)
        return self.raw_loss(output * sharpness(output.detach()))

    def raw_loss(self, logits: Tensor) -> Tensor:
        """Return the soft margin of logits as they are scaled."""
        return self._others(logits).logsumexp(dim=1) - self._own(logits)

    def _own(self, output: Tensor) -> Tensor:
        return output.gather(1, self.y[:, None])[:, 0]

    def _others(self, output: Tensor) -> Tensor:
        return output.masked_fill(self._mask(output.shape[1]), -torch.inf)

    def _mask(self, classes: int) -> Tensor:
        """Return where each sample's own class stands, (n, classes); made once, for every step asks for it."""
        masks: dict[int, Tensor] = self.__dict__.setdefault("_masks", {})
        if classes not in masks:
            masks[classes] = torch.nn.functional.one_hot(self.y, classes).bool()
        return masks[classes]


def fixed_loss(goal: Goal, output: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the loss with the scale that `output` has, so that its values at neighbouring points can be compared."""
    if goal.task == "regression":
        return goal.loss
    factor = sharpness(output.detach())

    def loss(logits: Tensor) -> Tensor:
        return goal.raw_loss(logits * factor)

    return loss


def sharpness(logits: Tensor) -> Tensor:
    """Return the factor, (n, 1), that brings the gap between the highest and the third (or last) logit to `TOP_GAP`."""
    top = logits.topk(min(3, logits.shape[1]), dim=1).values
    gap = top[:, :1] - top[:, -1:]
    return TOP_GAP / gap.clamp_min(1e-30).maximum(1e-6 * top.abs().amax(dim=1, keepdim=True))


def as_columns(output: Tensor) -> Tensor:
    """Return logits (n, classes) as they are, and values (n,) as one column."""
    return output if output.ndim > 1 else output[:, None]
