"""What every corruption shares: five severities, the box, and noise that belongs to a sample.

A new corruption is a class in the file of its family, and its name in that file's list. It writes `run`; box, shape, severity
0 and the random numbers are the base class's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from audit.data.noise import normal_noise, uniform_noise
from audit.errors import UsageError

SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 8  # pixels a side: on fewer, half of the corruptions could not be told from each other
Kind = Literal["image", "columns"]


class Draws:
    """Random numbers of some samples for one corruption, the same at every severity.

    A stronger corruption is so the same change made larger, not another one: differences between severities are no luck.

    Parameters
    ----------
    ids
        Stable ids of the samples, int64 of shape (n,): the numbers do not depend on batch size or order.
    purpose
        What they are for. Corruptions that share it share their numbers.
    like
        A tensor on whose device, and in whose type, the numbers are wanted.
    """

    def __init__(self, ids: Tensor, *, seed: int, purpose: str, like: Tensor) -> None:
        self.ids, self._seed, self._purpose = ids, seed, purpose
        self._device, self._dtype = like.device, like.dtype
        self._drawn: dict[tuple[str, int, tuple[int, ...]], Tensor] = {}

    def uniform(self, shape: tuple[int, ...], draw: int = 0) -> Tensor:
        r"""Return numbers uniform in [0, 1), of shape (n, \*shape)."""
        return (self._get("uniform", shape, draw) + 1) / 2

    def normal(self, shape: tuple[int, ...], draw: int = 0) -> Tensor:
        r"""Return standard normal numbers of shape (n, \*shape)."""
        return self._get("normal", shape, draw)

    def _get(self, what: str, shape: tuple[int, ...], draw: int) -> Tensor:
        key = (what, draw, shape)
        if key not in self._drawn:
            noise = normal_noise if what == "normal" else uniform_noise
            drawn = noise(self.ids, shape, seed=self._seed, purpose=f"corruption/{self._purpose}", draw=draw)
            self._drawn[key] = drawn.to(device=self._device, dtype=self._dtype)
        return self._drawn[key]


class Corruption(ABC):
    """One thing that happens to inputs, at five severities.

    Attributes
    ----------
    name
        Part of metric ids and of the options.
    title
        The name in plain words.
    family
        ``noise``, ``blur``, ``weather``, ``digital``, ``geometry`` or ``tabular``.
    kind
        What it is for: images of shape (n, c, h, w), or columns.
    strengths, unit
        The five strengths, and what they measure.
    group
        Corruptions of one group are variants of one harm, and share one place in a mean over all. Unstated: the name.
    fault
        Whether it is a fault of the pipeline that no network can be expected to survive, and that must be caught before it.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    family: ClassVar[str]
    kind: ClassVar[Kind]
    strengths: ClassVar[tuple[float, float, float, float, float]]
    unit: ClassVar[str]
    group: ClassVar[str] = ""
    fault: ClassVar[bool] = False

    def draws(self, x: Tensor, ids: Tensor, seed: int, turn: int = 0) -> Draws:
        """Return the random numbers of these samples, to be handed to every severity; others for each `turn`."""
        return Draws(ids, seed=seed, purpose=f"{self.group or self.name}/{turn}", like=x)

    def strength(self, severity: int) -> float:
        """Return the strength at a severity of 1 to 5.

        Raises
        ------
        UsageError
            There is no such severity.
        """
        if severity not in SEVERITIES:
            raise UsageError(f"a severity is a whole number from 0 (unchanged) to 5, got {severity!r}")
        return self.strengths[severity - 1]


class ImageCorruption(Corruption):
    """Base of the corruptions of images: `run` sees them scaled to the unit box, and need not clip."""

    kind: ClassVar[Kind] = "image"

    @abstractmethod
    def run(self, x: Tensor, strength: float, draws: Draws) -> Tensor:
        """Return images of shape (n, c, h, w), which lie in [0, 1], corrupted."""

    def left_out(self, shape: tuple[int, ...]) -> str | None:  # noqa: ARG002
        """Return why images of shape (c, h, w) cannot be corrupted so, or None."""
        return None

    def __call__(self, x: Tensor, severity: int, *, low: ArrayLike, high: ArrayLike, draws: Draws) -> Tensor:
        """Return a corrupted copy of the images, inside the box.

        Parameters
        ----------
        x
            Images of shape (n, c, h, w), at least 8×8.
        severity
            0 (unchanged) to 5.
        low, high
            The box: numbers, or arrays that broadcast to one image.
        draws
            The samples' random numbers, from `draws`.

        Raises
        ------
        UsageError
            No images, no such severity, or a number of channels that this corruption cannot take.
        """
        check_images(x)
        reason = self.left_out(tuple(x.shape[1:]))
        if reason is not None:
            raise UsageError(f"{self.name}: {reason}")
        if severity == 0:
            return x.clone()
        strength = self.strength(severity)
        lowest, highest = _side(low, x), _side(high, x)
        width = highest - lowest
        unit = ((x - lowest) / torch.where(width > 0, width, 1)).clamp(0, 1)
        changed = self.run(unit, strength, draws) * width + lowest
        return torch.minimum(torch.maximum(changed, lowest), highest)


def check_images(x: Tensor) -> None:
    """Raise a UsageError where `x` are no images of at least 8×8 pixels."""
    if x.ndim != 4 or min(x.shape[2:]) < SMALLEST:
        raise UsageError(
            f"expected images of shape (n, channels, height, width), at least {SMALLEST}×{SMALLEST}, got {tuple(x.shape)}"
        )


def _side(value: ArrayLike, x: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=x.dtype, device=x.device)
