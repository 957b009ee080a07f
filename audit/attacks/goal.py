"""When a sample is broken, and the losses that lead there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from audit.errors import UsageError

LossName = Literal["ce", "margin", "dlr"]
TOP_GAP = 4.0  # 2 to 8 did about equally well on four networks; the raw scale of their logits did, too, and 0.01 of it did not


@dataclass(frozen=True)
class Goal:
    """When a sample is broken, and the loss that leads there.

    For classification a sample is broken when its predicted class is not its label. For a multi-label network, `y` of shape
    (n, labels) holding 0 and 1, it is broken when any one label differs: the logit of a label that it has is no longer above
    0, or that of one that it has not is. For regression it is broken when the output moved by more than `tolerance` from the
    clean one.

    With a `target`, the losses lead to that class (for a multi-label network: to flipping that label); what counts as broken
    stays the same. Regression has none: there `direction` says where to.
    """

    task: str
    y: Tensor
    tolerance: float = 0.0
    target: Tensor | None = None

    def take(self, rows: Tensor) -> Goal:
        """Return the goal of these samples."""
        return replace(self, y=self.y[rows], target=None if self.target is None else self.target[rows])

    def towards(self, target: Tensor) -> Goal:
        """Return the goal whose losses lead to these classes, int64 (n,)."""
        return replace(self, target=target)

    def nearest(self, output: Tensor, count: int) -> Tensor:
        """Return the `count` classes closest to being predicted, nearest first, (n, ≤ count)."""
        if self.task == "multilabel":
            return self.flips(output).topk(min(count, output.shape[1]), dim=1).indices
        return self._others(output).topk(min(count, output.shape[1] - 1), dim=1).indices

    def broken(self, output: Tensor) -> Tensor:
        """Tell which samples are broken, from logits (n, classes) or values (n,). A NaN output counts as broken."""
        if self.task == "regression":
            return ~((output - self.y).abs() <= self.tolerance)
        if self.task == "multilabel":
            return ((output > 0) != self.y.bool()).any(dim=1) | ~torch.isfinite(output).all(dim=1)
        return (output.argmax(dim=1) != self.y) | ~torch.isfinite(output).all(dim=1)

    def margin(self, output: Tensor, direction: float = 1.0) -> Tensor:
        """Return the margin, (n,), whatever the target: above 0 a sample is broken (regression: the output, up or down)."""
        if self.task == "regression":
            return (output - self.y) * direction
        if self.task == "multilabel":
            return self.flips(output).amax(dim=1)
        return self._others(output).amax(dim=1) - self._own(output)

    def loss(self, output: Tensor, direction: float = 1.0, kind: LossName = "ce", *, scale: Tensor | None = None) -> Tensor:
        r"""Return the loss to raise, of shape (n,).

        Classification without a target, ``ce``: :math:`\log\sum_{j\ne y} e^{z_j} - z_y`. Cross-entropy is softplus of it, so
        both have the same gradient direction for each sample; but the sigmoid that cross-entropy multiplies it with underflows
        to zero in float32 where the network is sure, and here it is left out. The logits are first scaled so that the gap
        between the highest and the third is 4 (the gap is the denominator of Croce & Hein 2020, equation 6): a network whose
        logits are all small would otherwise be attacked towards every class at once, and look robust. ``margin``:
        :math:`\max_{j\ne y} z_j - z_y` (Carlini & Wagner 2017). Regression: the output, up or down (`direction` +1, −1).

        Multi-label: the same with `flips` in place of :math:`z_j - z_y`, which are above 0 where a label is flipped, too:
        ``margin`` is the largest of them, that of the label nearest to flipping, ``ce`` their log-sum-exp.
        Binary cross-entropy is the sum of the softplus of each: it weighs them alike but for a sigmoid that underflows where
        the network is sure.

        ``dlr``: the margin over the gap between the highest and the third logit (Croce & Hein 2020, "Reliable evaluation of
        adversarial robustness with an ensemble of diverse parameter-free attacks", equation 6), which no scaling of the logits
        changes. Two classes have no third, and the ratio to the gap between them is ±1 everywhere: there it is the margin,
        whose gradient has the same direction at every scale. Multi-label: the margin over the largest of the flips in absolute
        value; the margin itself where there is one label.

        With a target :math:`t`, ``margin`` is :math:`z_t - z_y`; ``ce`` is :math:`z_t - \log\sum_{j\ne t} e^{z_j}`, of which
        softplus makes the targeted cross-entropy, scaled as above; ``dlr`` divides :math:`z_t - z_y` by
        :math:`z_{(1)} - (z_{(3)} + z_{(4)}) / 2` (equation 8 there), with three classes by
        :math:`z_{(1)} - (z_{(2)} + z_{(3)}) / 2`: equation 6's gap would make it −1 everywhere for the last class. Multi-label:
        all three are the flip of label :math:`t`, ``dlr`` over the largest in absolute value.

        `scale`, (n, 1), is the factor of the logits in ``ce``, their own `sharpness` where None: only losses under one scale
        may be compared with each other.
        """
        if self.task == "regression":
            return (output - self.y) * direction
        if kind == "ce":
            return self.raw_loss(output * (self.sharpness(output.detach()) if scale is None else scale))
        gap = self.margin(output) if self.target is None else self._lead(output)
        return gap / self._spread(output) if kind == "dlr" else gap

    def raw_loss(self, logits: Tensor) -> Tensor:
        """Return the soft margin of logits as they are scaled."""
        if self.task == "multilabel":
            return self.flips(logits).logsumexp(dim=1) if self.target is None else self._lead(logits)
        if self.target is not None:
            mask = torch.nn.functional.one_hot(self.target, logits.shape[1]).bool()
            return logits.gather(1, self.target[:, None])[:, 0] - logits.masked_fill(mask, -torch.inf).logsumexp(dim=1)
        return self._others(logits).logsumexp(dim=1) - self._own(logits)

    def _lead(self, output: Tensor) -> Tensor:
        """Return by how much the target is ahead of the label's class; for a multi-label network the target's flip."""
        if self.target is None:
            raise UsageError("a loss towards a target needs one: goal.towards(target)")
        if self.task == "multilabel":
            return self.flips(output).gather(1, self.target[:, None])[:, 0]
        return output.gather(1, self.target[:, None])[:, 0] - self._own(output)

    def _spread(self, output: Tensor) -> Tensor | float:
        """Return what ``dlr`` divides by, (n,); 1 where there are too few classes."""
        if output.shape[1] < (2 if self.task == "multilabel" else 3):
            return 1.0
        if self.task == "multilabel":
            return output.abs().amax(dim=1).clamp_min(1e-30)
        top = output.topk(min(4, output.shape[1]), dim=1).values
        low = top[:, 2] if self.target is None else top[:, -2:].mean(dim=1)
        return (top[:, 0] - low).clamp_min(1e-30).maximum(1e-6 * top.detach().abs().amax(dim=1))

    def flips(self, output: Tensor) -> Tensor:
        """Return for each label of a multi-label network its logit, signed so that above 0 it is wrong, (n, labels)."""
        return torch.where(self.y.bool(), -output, output)

    def sharpness(self, output: Tensor) -> Tensor:
        """Return the factor, (n, 1), by which `loss` scales the logits; see `sharpness`.

        Where a class that is predicted leads the others, labels are measured from 0, which stands in for it: the gap is that
        between 0 and the second nearest label.
        """
        if self.task != "multilabel":
            return sharpness(output)
        flips = self.flips(output)
        return sharpness(torch.cat((torch.zeros_like(flips[:, :1]), flips), dim=1))

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
    factor = goal.sharpness(output.detach())

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
