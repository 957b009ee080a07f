"""The inputs that a certificate speaks of, and the lowest value that a linear function takes on them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from audit.attacks.geometry import Ball, per_sample

BISECTIONS = 16  # of the multiplier in L2: any multiplier gives a bound, a better one a tighter


@dataclass(frozen=True)
class Inputs:
    """Box and ball around some samples, a hair wider than what counts as an adversarial example (`Ball.allows`).

    Attributes
    ----------
    x, low, high : Tensor (n, …)
        The samples, and the box: for every norm it holds all that the ball can reach.
    unit : Tensor, broadcastable to one sample
        Length of one unit of the radius in each input.
    eps : Tensor (n,)
        Radius.
    free : bool Tensor, broadcastable to one sample
        Inputs outside the radius, which the box alone holds; none where None.
    """

    x: Tensor
    low: Tensor
    high: Tensor
    unit: Tensor
    eps: Tensor
    norm: str
    free: Tensor | None = None

    @classmethod
    def around(cls, x: Tensor, ball: Ball, dtype: torch.dtype) -> Inputs:
        """Return the inputs that the threat model allows around `x`.

        `Ball.allows` forgives each input a rounding of its own (two units in the last place) and the radius four: these are
        twice as much wider, but for the sides of the box, which it does not forgive.
        """
        ulp = torch.finfo(x.dtype).eps
        wide = x.to(dtype)
        low, high = torch.minimum(ball.low, x).to(dtype), torch.maximum(ball.high, x).to(dtype)
        low, high = low.expand_as(wide), high.expand_as(wide)
        unit = torch.as_tensor(ball.unit(), dtype=dtype, device=x.device)
        fixed, free = unit == 0, None if ball.rules is None else ball.rules.free
        most = torch.maximum(low.abs(), high.abs()) if ball.norm == "l0" else (wide.abs() + ball.eps * unit)
        forgiven = torch.where(fixed, 0.0, 4 * ulp * torch.minimum(most, torch.maximum(low.abs(), high.abs())))
        eps = torch.full((len(x),), ball.eps * (1 + 8 * ulp) + 1e-30, dtype=dtype, device=x.device)
        if ball.norm == "l0":
            low, high = torch.where(fixed, wide, low), torch.where(fixed, wide, high)
            return cls(wide, low, high, torch.ones_like(unit), eps, "l0", free)
        if ball.norm != "linf":
            units = torch.where(fixed, 0.0, forgiven / torch.where(fixed, 1.0, unit)).flatten(1)
            eps = eps + torch.linalg.vector_norm(units, ord=2 if ball.norm == "l2" else 1, dim=1) * 1.01
        reach = per_sample(eps, wide) * unit * (1 + 4 * ulp) + (forgiven if ball.norm == "linf" else 0.0)
        reach = reach if free is None else torch.where(free, torch.inf, reach)
        box = (torch.maximum(low, wide - reach), torch.minimum(high, wide + reach))
        return cls(wide, *box, unit, eps, ball.norm, free)

    def take(self, rows: Tensor) -> Inputs:
        """Return those of some samples."""
        return replace(self, x=self.x[rows], low=self.low[rows], high=self.high[rows], eps=self.eps[rows])

    def lowest(self, rows: Tensor, *, bisections: int = 0) -> Tensor:
        r"""Return a lower bound of :math:`a \cdot x` over the inputs for coefficients `rows`, (n, r, …); shape (n, r).

        L∞: the box, exact. L1, L2: any multiplier :math:`\lambda \ge 0` of the radius bounds from below (weak duality); the
        best one is sought, with the box still in force. L0: exact.
        """
        a = rows.flatten(2)
        low, high = self.low.flatten(1)[:, None], self.high.flatten(1)[:, None]
        if self.norm == "linf":
            centre, radius = (low + high) / 2, (high - low) / 2
            return (torch.matmul(centre, a.mT) - torch.matmul(radius, a.abs().mT))[:, 0]
        x = self.x.flatten(1)[:, None]
        room = torch.where(a > 0, x - low, high - x).clamp_min(0)
        whole = a.abs() * room
        start = torch.matmul(x, a.mT)[:, 0]
        if self.free is not None:
            # What is outside the radius goes to its end of the box, the rest shares the radius.
            free = self.free.expand(self.x.shape[1:]).flatten()
            start = start - torch.where(free, whole, 0.0).sum(dim=2)
            room, whole = torch.where(free, 0.0, room), torch.where(free, 0.0, whole)
        gain = torch.minimum(whole.sum(dim=2), self._gain(a, room, whole, bisections))
        return start - gain

    def _gain(self, a: Tensor, room: Tensor, whole: Tensor, bisections: int) -> Tensor:
        if self.norm == "l0":
            kept = min(int(self.eps[0]), whole.shape[2]) if len(self.eps) else 0
            return whole.topk(kept, dim=2).values.sum(dim=2)
        unit = torch.where(self.unit == 0, 0.0, self.unit).expand(self.x.shape[1:]).flatten()
        steps = torch.where(unit > 0, room / torch.where(unit > 0, unit, 1.0), 0.0)
        rate, eps = a.abs() * unit, self.eps[:, None]
        if self.norm == "l1":
            return self._gain_l1(rate, steps, eps)
        return self._gain_l2(rate, steps, eps, bisections)

    @staticmethod
    def _gain_l1(rate: Tensor, steps: Tensor, eps: Tensor) -> Tensor:
        order = rate.argsort(dim=2, descending=True)
        used = steps.gather(2, order).cumsum(dim=2)
        at = (used < eps[..., None]).sum(dim=2, keepdim=True).clamp_max(rate.shape[2] - 1)
        worth = rate.gather(2, order).gather(2, at)
        gain: Tensor = eps * worth[..., 0] + ((rate - worth).clamp_min(0) * steps).sum(dim=2)
        return gain

    @staticmethod
    def _gain_l2(rate: Tensor, steps: Tensor, eps: Tensor, bisections: int) -> Tensor:
        length = torch.linalg.vector_norm(rate, dim=2)
        high = (length / eps.clamp_min(1e-30)).clamp_min(1e-30)
        low = high * 1e-6

        def bound(worth: Tensor) -> tuple[Tensor, Tensor]:
            step = torch.minimum(rate / worth[..., None], steps)
            size = (step * step).sum(dim=2)
            return (rate * step).sum(dim=2) - worth / 2 * (size - eps * eps), size

        best, _ = bound(high)
        for _ in range(bisections):
            middle = low.sqrt() * high.sqrt()  # their product may be too small a number
            gain, size = bound(middle)
            best = torch.minimum(best, gain)
            low, high = torch.where(size > eps * eps, middle, low), torch.where(size > eps * eps, high, middle)
        return torch.minimum(best, eps * length)

    def corner(self, rows: Tensor) -> Tensor:
        """Return the corner of the box in which coefficients `rows`, (n, …), are lowest: a starting point for an attack.

        For norms other than L∞ it may lie outside the ball: project it.
        """
        return torch.where(rows > 0, self.low, torch.where(rows < 0, self.high, self.x))
