"""An autoencoder: how badly a network that learnt to copy the reference data through a bottleneck copies an input."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from audit.anomaly.base import Detector, Floats
from audit.anomaly.scaling import RobustScaling
from audit.budget import check_deadline

EVALUATE_EVERY = 10  # steps, at least, between two looks at the held-out loss
LEAST_SPREAD = 0.05  # of the median spread of the errors: a column that is copied all but exactly must not own the score
SMALLEST_IMAGE = 8  # pixels a side from which convolutions have something to see
AT_ONCE = 2**22  # values scored at once, which bounds memory
TABLE_TRAINING, IMAGE_TRAINING = (1500, 3e-3), (400, 1e-2)  # steps and learning rate


class AutoencoderDetector(Detector):
    """Reconstruction error of a neural network whose bottleneck is smaller than its input.

    Samples of shape (n, columns) and of other shapes go through dense layers, images of shape (n, c, h, w) of at least 8×8
    pixels through convolutions around them. Inputs are scaled (`RobustScaling`). For tables each column's error is divided by
    its spread on the fitted samples. Training stops early on a held-out part of the fitted samples, and the best weights are
    kept.

    Parameters
    ----------
    bottleneck
        Width of the narrowest layer, below the number of values of a sample. Unstated: half of it for tables, a sixteenth, but
        from 8 to 128, for images and other arrays.
    width
        Width of the other dense layers.
    steps
        Steps of the optimiser at most; 0 leaves the network as it was drawn. Unstated: 1,500, for images 400.
    batch_size, learning_rate
        Of AdamW under a one-cycle schedule (Smith & Topin 2019); unstated, the rate is 0.003, for images 0.01.
    held_out
        Share of the fitted samples that early stopping looks at.
    patience
        Share of all steps without a lower held-out loss after which training stops.
    reach
        As for `RobustScaling`.
    device
        Where the network is trained: ``cpu`` or ``cuda``.
    alpha, calibration, random_state
        As for `Detector`.

    Attributes
    ----------
    bottleneck_ : int
        Width of the narrowest layer.
    network_ : torch.nn.Module
        The trained network; float64 where it is dense, so that a score does not depend on the other samples of a batch.
    history_ : dict of arrays
        ``step``, ``train`` and ``held_out``: the mean squared error (scaled inputs) along the training.
    best_step_ : int
        The step whose weights were kept.
    n_steps_ : int
        Steps that were planned.
    spread_ : array of shape (values,)
        What each value's error is divided by.
    scaling_ : RobustScaling
    """

    def __init__(
        self,
        *,
        bottleneck: int | None = None,
        width: int = 128,
        steps: int | None = None,
        batch_size: int = 128,
        learning_rate: float | None = None,
        held_out: float = 0.1,
        patience: float = 0.3,
        reach: float = 10.0,
        device: str = "cpu",
        alpha: float = 0.05,
        calibration: float = 0.2,
        random_state: int | None = None,
    ) -> None:
        super().__init__(alpha=alpha, calibration=calibration, random_state=random_state)
        self.bottleneck = bottleneck
        self.width = width
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.held_out = held_out
        self.patience = patience
        self.reach = reach
        self.device = device

    def _fit(self, x: Floats, seed: int) -> None:
        self._check_parameters(x.shape[1])
        self.bottleneck_ = self._bottleneck(x.shape[1])
        self.scaling_ = RobustScaling.fit(x, self.sample_shape_, self.reach)
        z = torch.from_numpy(self.scaling_.apply(x).astype(np.float32)).to(self.device)
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(z))).to(self.device)
        aside = min(len(z) - 1, max(1, round(self.held_out * len(z)))) if len(z) > 1 else 0
        fitted, held_out = (z[order[aside:]], z[order[:aside]]) if aside else (z, z)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = build(self.sample_shape_, self.bottleneck_, self.width).to(self.device)
        steps, rate = IMAGE_TRAINING if self._is_image() else TABLE_TRAINING
        self.n_steps_ = steps if self.steps is None else self.steps
        history = train(
            network,
            fitted,
            held_out,
            steps=self.n_steps_,
            batch_size=self.batch_size,
            learning_rate=rate if self.learning_rate is None else self.learning_rate,
            patience=self.patience,
            seed=seed,
        )
        self.history_ = {"step": history.step, "train": history.train, "held_out": history.held_out}
        self.best_step_ = history.best_step
        # Convolutions in float64 are several times slower; theirs differ between batches by a rounding.
        network = network if self._is_image() else network.double()
        self.network_ = network.cpu().eval().requires_grad_(False)
        self.spread_ = self._spread(x)

    def _distance(self, x: Floats) -> Floats:
        scores = [(((self._copied(part) - z) / self.spread_) ** 2).mean(axis=1) for part, z in self._parts(x)]
        return np.concatenate(scores)

    def reconstruct(self, X: ArrayLike) -> Floats:  # noqa: N803
        """Return the network's copy of each sample, in the units of the input and of its shape."""
        check_is_fitted(self)
        x = self._flat(X, reset=False)
        copies = np.concatenate([self._copied(part) for part, _ in self._parts(x)])
        return self.scaling_.undo(copies).reshape(len(x), *self.sample_shape_)

    def errors(self, X: ArrayLike) -> Floats:  # noqa: N803
        """Return each value's squared error on scaled inputs, shape (n, values)."""
        check_is_fitted(self)
        x = self._flat(X, reset=False)
        return np.concatenate([(self._copied(part) - z) ** 2 for part, z in self._parts(x)])

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what was fitted, but for the history, as arrays: they can be stored without pickles."""
        check_is_fitted(self)
        weights = {f"weight.{name}": value.numpy() for name, value in self.network_.state_dict().items()}
        return {
            **weights,
            "shape": np.asarray(self.sample_shape_, dtype=np.int64),
            "bottleneck": np.asarray(self.bottleneck_),
            "centre": self.scaling_.centre,
            "scale": self.scaling_.scale,
            "spread": self.spread_,
            "calibration_scores": self.calibration_scores_,
            "calibration_rows": self.calibration_rows_,
            "offset": np.asarray(self.offset_),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> Self:
        """Take up what `state` returned; the parameters must be the ones that it was fitted with."""
        self.sample_shape_ = tuple(int(side) for side in state["shape"])
        self.n_features_in_ = math.prod(self.sample_shape_)
        self.bottleneck_ = int(state["bottleneck"])
        self.scaling_ = RobustScaling(state["centre"], state["scale"], self.reach)
        self.spread_ = state["spread"]
        self.calibration_scores_, self.calibration_rows_ = state["calibration_scores"], state["calibration_rows"]
        self.offset_ = float(state["offset"])
        with torch.random.fork_rng(devices=[]):
            network = build(self.sample_shape_, self.bottleneck_, self.width)
        network = network if self._is_image() else network.double()
        weights = {name.removeprefix("weight."): torch.from_numpy(v) for name, v in state.items() if name.startswith("weight.")}
        network.load_state_dict(weights)
        self.network_ = network.eval().requires_grad_(False)
        return self

    def _parts(self, x: Floats) -> list[tuple[Floats, Floats]]:
        """Return samples as scaled arrays, twice: to copy, and to compare with; in parts that fit into memory."""
        z = self.scaling_.apply(x)
        size = max(1, AT_ONCE // z.shape[1])
        return [(z[i : i + size], z[i : i + size]) for i in range(0, len(z), size)]

    def _copied(self, z: Floats) -> Floats:
        with torch.no_grad():
            copies: Floats = self.network_(torch.from_numpy(z).to(next(self.network_.parameters()).dtype)).double().numpy()
        return copies

    def _spread(self, x: Floats) -> Floats:
        ones = np.ones(x.shape[1])
        if len(self.sample_shape_) > 1:
            return ones
        self.spread_ = ones
        squared = np.concatenate([((self._copied(part) - z) ** 2) for part, z in self._parts(x)])
        spread: Floats = np.sqrt(squared.mean(axis=0))
        return np.maximum(spread, max(LEAST_SPREAD * float(np.median(spread)), 1e-6))

    def _is_image(self) -> bool:
        return len(self.sample_shape_) == 3 and min(self.sample_shape_[1:]) >= SMALLEST_IMAGE

    def _bottleneck(self, values: int) -> int:
        if self.bottleneck is not None:
            return self.bottleneck
        wanted = -(-values // 2) if len(self.sample_shape_) == 1 else min(128, max(8, values // 16))
        return max(1, min(values - 1, wanted))

    def _check_parameters(self, values: int) -> None:
        if values < 2:
            raise ValueError("a bottleneck smaller than the input needs at least two values a sample, got n_features=1")
        if self.bottleneck is not None and not 1 <= self.bottleneck < values:
            raise ValueError(
                f"bottleneck should be at least 1 and smaller than the {values} values of a sample, got {self.bottleneck}: "
                "a network that can copy every input tells nothing apart"
            )
        for name, least in (("width", 1), ("batch_size", 1), ("steps", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} should be at least {least}, got {value}")
        if not 0 < self.held_out < 1 or not 0 < self.patience <= 1:
            raise ValueError(f"held_out and patience should lie between 0 and 1, got {self.held_out} and {self.patience}")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"learning_rate should be above 0, got {self.learning_rate}")


# --- the networks -----------------------------------------------------------------------------------------------------


def build(shape: tuple[int, ...], bottleneck: int, width: int) -> nn.Module:
    """Return a network from flat samples, (n, values), to their copies; samples have shape `shape`."""
    if len(shape) == 3 and min(shape[1:]) >= SMALLEST_IMAGE:
        return _Convolutional((shape[0], shape[1], shape[2]), bottleneck, width)
    values = math.prod(shape)
    encoder, decoder = _dense([values, width, width, bottleneck]), _dense([bottleneck, width, width, values])
    return nn.Sequential(*encoder, *decoder)


def _dense(sizes: list[int]) -> list[nn.Module]:
    """Return dense layers with an activation between them, and none at the end."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.GELU()]
    return layers[:-1]


class _Convolutional(nn.Module):
    """Halves the sides until they are at most 8 pixels, then one dense bottleneck, and the same way back."""

    def __init__(self, shape: tuple[int, int, int], bottleneck: int, width: int) -> None:
        super().__init__()
        self.shape = shape
        channels, sides = [shape[0]], [shape[1:]]
        while max(sides[-1]) > 8 or len(sides) == 1:
            channels.append(min(64, 16 * 2 ** (len(channels) - 1)))
            sides.append(((sides[-1][0] + 1) // 2, (sides[-1][1] + 1) // 2))
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for i in range(len(sides) - 1):
            down += [nn.Conv2d(channels[i], channels[i + 1], 3, stride=2, padding=1), nn.GELU()]
        for i in reversed(range(len(sides) - 1)):
            # What the stride cut off an odd side is not added back.
            odd = (sides[i][0] - 2 * sides[i + 1][0] + 1, sides[i][1] - 2 * sides[i + 1][1] + 1)
            up += [nn.GELU(), nn.ConvTranspose2d(channels[i + 1], channels[i], 3, stride=2, padding=1, output_padding=odd)]
        inner = (channels[-1], *sides[-1])
        flat = math.prod(inner)
        self.encoder = nn.Sequential(*down, nn.Flatten(), *_dense([flat, width, bottleneck]))
        self.decoder = nn.Sequential(*_dense([bottleneck, width, flat]), nn.Unflatten(1, inner), *up)

    def forward(self, x: Tensor) -> Tensor:
        copies: Tensor = self.decoder(self.encoder(x.reshape(len(x), *self.shape))).flatten(1)
        return copies


# --- the training loop ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class History:
    """Mean squared error along a training: at each look, the step, the batches since the last look, and the held-out part."""

    step: NDArray[np.int64]
    train: Floats
    held_out: Floats
    best_step: int


def train(
    network: nn.Module,
    x: Tensor,
    held_out: Tensor,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    patience: float = 1.0,
    seed: int = 0,
    until: float | None = None,
) -> History:
    """Train a network to copy its input; the weights of the lowest held-out loss are left in it.

    Parameters
    ----------
    x, held_out
        Scaled samples of shape (n, values), on the network's device: all are kept there, and batches are slices of them.
    steps
        Steps of AdamW at most, under a one-cycle schedule.
    patience
        Share of `steps` without a lower held-out loss after which training stops.
    until
        Stop as soon as the held-out loss is at most this.
    """
    batches = max(1, round(len(x) / batch_size))
    every = -(-EVALUATE_EVERY // batches)  # epochs
    generator = torch.Generator().manual_seed(seed)
    best = _Best(network, _loss(network, held_out))
    looks: list[tuple[int, float, float]] = [(0, _loss(network, x), best.loss)]
    if steps == 0:
        return best.history(looks)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, fused=True)
    epochs = -(-steps // batches)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * batches, pct_start=0.2)
    with torch.random.fork_rng(devices=[]):  # dropout, where the network has any, draws from the global generator
        torch.manual_seed(seed)
        for epoch in range(1, epochs + 1):
            loss = _epoch(network, x[torch.randperm(len(x), generator=generator).to(x.device)], batches, optimizer, schedule)
            if epoch % every and epoch < epochs:
                continue
            looks.append((epoch * batches, loss, best.look(_loss(network, held_out), epoch * batches)))
            waited = epoch * batches - best.step
            if waited > patience * epochs * batches or (until is not None and looks[-1][2] <= until):
                break
    best.restore()
    return best.history(looks)


def _epoch(network: nn.Module, x: Tensor, batches: int, optimizer: Any, schedule: Any) -> float:
    """Make one pass over shuffled samples; return the mean loss of its batches."""
    network.train()
    total = torch.zeros((), device=x.device)
    for batch in torch.tensor_split(x, batches):
        check_deadline()
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.mse_loss(network(batch), batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        total += loss.detach()
    return float(total) / batches


def _loss(network: nn.Module, x: Tensor) -> float:
    network.eval()
    with torch.no_grad():
        parts = torch.split(x, max(1, AT_ONCE // x.shape[1]))
        return float(sum(nn.functional.mse_loss(network(part), part, reduction="sum") for part in parts)) / x.numel()


class _Best:
    """The weights with the lowest held-out loss so far."""

    def __init__(self, network: nn.Module, loss: float) -> None:
        self.network, self.loss, self.step = network, loss, 0
        self.weights = self._copy()

    def look(self, loss: float, step: int) -> float:
        if loss < self.loss:
            self.loss, self.step, self.weights = loss, step, self._copy()
        return loss

    def restore(self) -> None:
        self.network.load_state_dict(self.weights)

    def history(self, looks: list[tuple[int, float, float]]) -> History:
        step, train, held_out = (np.asarray(column) for column in zip(*looks, strict=True))
        return History(step.astype(np.int64), train, held_out, self.step)

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.network.state_dict().items()}
