"""What happened in training: one record an epoch, how it ended, and which epoch's weights were kept."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from audit.result import Number, Record

Ending = Literal["epochs", "patience", "time", "not_finite"]


class LayerHealth(Record):
    """One layer in one epoch.

    Attributes
    ----------
    gradient
        Median over steps of the root mean square of its parameters' gradient, so that layers of any size compare.
    largest
        Largest over steps of the same.
    update
        Median over some steps of the length of the update over the length of the weights; None where all weights are 0.
    """

    name: str
    gradient: Number
    largest: Number
    update: Number | None = None


class DeadUnits(Record):
    """Units of one ReLU that were zero for every probe sample."""

    name: str
    units: int
    dead: int


class Epoch(Record):
    """One pass over the training samples; epoch 0 is the network as it was given.

    Attributes
    ----------
    loss
        Mean training loss; None for epoch 0.
    eps, lr
        Radius and learning rate at the epoch's last step.
    clean, robust
        Accuracy on the validation samples, clean and under attack at the full radius; for regression the mean absolute error.
    spikes
        Steps whose gradient was over 100 times as long as the running median.
    """

    epoch: int
    loss: Number | None = None
    eps: Number = 0.0
    lr: Number = 0.0
    clean: Number | None
    robust: Number | None
    seconds: Number = 0.0
    spikes: int = 0
    layers: list[LayerHealth] = Field(default_factory=list)
    dead: list[DeadUnits] = Field(default_factory=list)


class History(Record):
    """A whole training.

    Attributes
    ----------
    measure
        What `clean` and `robust` of each epoch are: ``accuracy`` or ``mean absolute error``.
    kept
        The epoch whose weights the hardened network has.
    ended
        Why training stopped: all ``epochs`` done, no better epoch for ``patience`` epochs, out of ``time``, or a loss or
        gradient that is ``not_finite``.
    """

    method: str
    norm: str
    eps: Number
    measure: Literal["accuracy", "mean absolute error"]
    epochs: list[Epoch]
    kept: int
    ended: Ending
    reason: str
    n_train: int
    n_validation: int
    options: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    forwards: int = 0
    backwards: int = 0

    @property
    def best(self) -> Epoch:
        """The epoch whose weights were kept."""
        return next(epoch for epoch in self.epochs if epoch.epoch == self.kept)
