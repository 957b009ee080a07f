"""The one training loop: batches, schedules, validation under attack, health, checkpoints, and the best weights kept.

Everything in it follows from (seed, epoch, step): a training that was killed and taken up again ends in the same bits.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from audit.attacks.geometry import Norm, ThreatModel
from audit.data.base import Dataset, replace_bounds
from audit.errors import DataError, UsageError, closest
from audit.hardening.checkpoint import Checkpoint, Stored
from audit.hardening.health import LOOKED_AT, Watch, dead_units
from audit.hardening.history import Ending, Epoch, History
from audit.hardening.method import Ascent, Method, step_size
from audit.hardening.network import start_afresh, trainee_of, wrap
from audit.hardening.options import HardeningOptions
from audit.hardening.pgd import AdversarialTraining
from audit.hardening.trades import Trades
from audit.hardening.validation import robust_accuracy, split, training_data
from audit.model.wrapper import Model, weights_sha256
from audit.result import finite

METHODS: dict[str, type[Method]] = {method.name: method for method in (Trades, AdversarialTraining)}
PROBED = 256
RISE, LAST_LR = 0.1, 0.01  # share of training over which the learning rate rises; its last value as a share of the highest
STORE_EVERY = 60.0  # seconds: what a kill may cost at most

Say = Callable[[str], None]


def harden(
    model: Model | nn.Module,
    data: Dataset,
    method: str | type[Method] = "trades",
    norm: str = "linf",
    eps: float | None = None,
    *,
    threat: ThreatModel | None = None,
    seed: int = 0,
    out: Path | None = None,
    fresh: bool = False,
    say: Say | None = None,
    **options: Any,
) -> tuple[Model, History]:
    """Train a copy of a network until small changes of the input no longer change its answer, as far as training can.

    Trained on ``data.reference`` alone; a part of it is kept back, on which the network is attacked after each epoch, and the
    weights of the best epoch are the ones that are returned. The given network and the test part are not touched.

    Parameters
    ----------
    model
        The network, whose weights training starts from (unless ``from_scratch=True``).
    data
        Samples with a reference part.
    method
        ``trades`` (Zhang et al. 2019) or ``pgd`` (Madry et al. 2018), or a class of your own under `Method`.
    norm, eps
        Norm and radius of the changes, in input units before mean and std.
    threat
        What may be changed, in full; in place of `norm` and `eps`.
    seed
        Seed of all that is drawn: split, order, starts, dropout.
    out
        Folder for checkpoints; a training that is started again with the same arguments goes on from there.
    fresh
        Start over.
    say
        Called with one line an epoch.
    **options
        The fields of `HardeningOptions`: epochs, max_time, batch_size, lr, beta, attack_steps, …

    Returns
    -------
    hardened : Model
        Of the network's own class, on the same device.
    history : History

    Raises
    ------
    UsageError
        There is no reference part, it is too small, an option cannot be used, or the method does not fit the task.
    ModelError
        The network cannot be trained.
    """
    from audit.config import validate

    chosen = method_named(method)
    settings: HardeningOptions = validate(
        HardeningOptions, {**options, "method": chosen.name, "norm": norm, "eps": eps}, "hardening"
    )
    network = model if isinstance(model, Model) else Model(model)
    if data.bounds is None and network.bounds is not None:
        data = replace_bounds(data, network.bounds)
    training = training_data(data)
    network.resolve(torch.from_numpy(training.test.x[:64].copy()), training.test.y)
    check_task(chosen, network)
    _labels_fit(network, training)
    threat = threat or _threat(settings, training)
    threat.check(training.test.x.shape[1:])
    say = say or (lambda _: None)
    loop = _Loop(network, training, chosen, settings, threat, seed, say)
    checkpoint = Checkpoint(out, loop.key(), fresh=fresh)
    stored = checkpoint.load()
    with torch.random.fork_rng():
        if stored is not None:
            try:
                loop.restore(stored)
            except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError):  # damaged, or tampered with
                say("the checkpoint is damaged: training begins anew")
                loop, stored = _Loop(network, training, chosen, settings, threat, seed, say), None
        return loop.run(checkpoint, begun=stored is not None)


def method_named(method: str | type[Method]) -> type[Method]:
    """Return the class of a way of hardening; a UsageError names what is close."""
    if isinstance(method, type) and issubclass(method, Method):
        return method
    if method not in METHODS:
        raise UsageError(f"no way of hardening called {method!r}; {closest(str(method), list(METHODS))}")
    return METHODS[str(method)]


def check_task(method: type[Method], model: Model) -> None:
    """Raise a UsageError where a way of hardening is not for networks of this task."""
    if model.task not in method.tasks:
        way = "--method pgd (adversarial training) trains it on the squared error"
        if model.task == "multilabel":
            way = "no way of hardening is, so far"
        raise UsageError(f"{method.name} is for {' and '.join(method.tasks)}, but this is a {model.task} network: {way}")


def _labels_fit(model: Model, training: Dataset) -> None:
    y = training.test.y
    if model.task == "classification" and (y.dtype.kind == "f" or y.min() < 0 or y.max() >= (model.classes or 0)):
        raise DataError(
            f"the labels of the reference part should be whole numbers between 0 and {(model.classes or 0) - 1}, got "
            f"{y.min():g} to {y.max():g}: is the target another column, or the numbering from 1?"
        )


def _threat(options: HardeningOptions, training: Dataset) -> ThreatModel:
    if options.eps is None:
        raise UsageError("say how large the changes are that the network should withstand: eps=0.3, say, in input units")
    low, high = training.box()
    norm: Norm = "linf" if options.norm == "linf" else "l2"
    return ThreatModel(norm, options.eps, low, high)


# --- the loop ---------------------------------------------------------------------------------------------------------


@dataclass
class _Progress:
    """Where a training is: what a checkpoint stores beside weights and moments."""

    step: int = 0
    best: float = -math.inf
    kept: int = 0
    since: int = 0
    loss: float = 0.0
    seen: int = 0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    ended: Ending | None = None
    reason: str = ""


class _Loop:
    """One training."""

    def __init__(
        self,
        model: Model,
        training: Dataset,
        method: type[Method],
        options: HardeningOptions,
        threat: ThreatModel,
        seed: int,
        say: Say,
    ) -> None:
        self.given, self.options, self.threat, self.seed, self.say = model, options, threat, seed, say
        self.data = training
        self.train, self.validation = split(training, options.validation, seed)
        self.regression = model.task == "regression"
        spread = float(np.std(self.train.y)) if self.regression else 1.0
        self.method = method(options, spread or 1.0)
        self.trainee = trainee_of(model)
        if options.from_scratch:
            start_afresh(self.trainee.module, seed)
        self.fixed = wrap(model, self.trainee.module, Model)  # the same network, as it is deployed
        self.optimizer = torch.optim.AdamW(
            [p for p in self.trainee.module.parameters() if p.requires_grad], lr=options.lr, weight_decay=options.weight_decay
        )
        self.batches = math.ceil(len(self.train) / options.batch_size)
        self.total = self.batches * options.epochs
        self.at = _Progress()
        self.watch = Watch(self.trainee.module)
        self.epochs: list[Epoch] = []
        self.best_weights: dict[str, Tensor] = {}
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.arange(0))

    def key(self) -> str:
        """Hash everything that the training depends on."""
        threat = [str(np.asarray(side).tolist()) for side in (self.threat.low, self.threat.high)]
        scale = None if self.threat.scale is None else self.threat.scale.tolist()
        mutable = None if self.threat.mutable is None else self.threat.mutable.tolist()
        parts = [
            self.options.model_dump(),
            f"{type(self.method).__module__}.{type(self.method).__qualname__}",
            [self.threat.norm, self.threat.eps, threat, scale, mutable, self.threat.constraints],
            [self.seed, self.data.test.sha256()],
            [str(self.given.module), weights_sha256(self.given.module), self.given.output, str(self.given.device)],
            [None if side is None else side.tolist() for side in (self.given.mean, self.given.std)],
            [torch.__version__, np.__version__, _sources()],
        ]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def run(self, checkpoint: Checkpoint, *, begun: bool) -> tuple[Model, History]:
        """Train to the end; where it has `begun`, from what was restored."""
        if begun:
            self.say(f"training goes on after step {self.at.step:,} of {self.total:,}")
        else:
            self._validate()
            self.say(_line(self.epochs[-1], self.options.epochs, self.regression))
            checkpoint.save(self._stored())
        clock = stored_at = time.monotonic()
        while self.at.ended is None:
            self._one_step()
            now = time.monotonic()
            self.at.seconds, self.at.epoch_seconds = self.at.seconds + now - clock, self.at.epoch_seconds + now - clock
            clock = now
            if self.at.ended is None and self.at.step % self.batches == 0:
                self._close_epoch()
            self._watch_clock()
            if self.at.ended is not None or self.at.step % self.batches == 0 or now - stored_at > STORE_EVERY:
                checkpoint.save(self._stored())
                stored_at = time.monotonic()
        return self._finish()

    def _watch_clock(self) -> None:
        limit = self.options.max_time
        if self.at.ended is None and limit is not None and self.at.seconds > limit:
            if self.at.seen:
                self._close_epoch()
            done = f"{self.at.step:,} of {self.total:,} steps"
            self._end("time", f"the time given ({limit:g} s) was over after {done}: the schedule did not come to its end")

    def _end(self, ending: Ending, reason: str) -> None:
        self.at.ended, self.at.reason = ending, reason

    def _one_step(self) -> None:
        epoch, batch = divmod(self.at.step, self.batches)
        rows = self._batch(epoch, batch)
        torch.manual_seed(_mix(self.seed, self.at.step))  # dropout: by step, so that a resumed run draws the same
        x = self.trainee.to_input(torch.from_numpy(self.train.x[rows]))
        y = torch.from_numpy(self.train.y[rows]).to(self.trainee.device)
        y = y.to(x.dtype) if self.regression else y.long()
        with self.trainee.attacked():
            x_adv = self.method.maximise(self.trainee, x, y, self._ascent(x)).detach()
        self.trainee.learn(freeze_batch_norm=self.options.freeze_batch_norm)
        forwards = self.trainee.forwards
        loss = self.method.loss(self.trainee, x, x_adv, y)
        self.optimizer.zero_grad(set_to_none=True)
        if bool(torch.isfinite(loss)):
            loss.backward()  # type: ignore[no-untyped-call]
            self.trainee.backwards += self.trainee.forwards - forwards
        if not bool(torch.isfinite(loss)) or not self.watch.see_gradients():
            what = "loss" if not bool(torch.isfinite(loss)) else "gradient"
            self._end("not_finite", f"in epoch {epoch + 1}, step {batch + 1} of {self.batches}, the {what} was not finite")
            return
        self._update(batch)
        self.at.loss += float(loss.detach()) * len(rows)
        self.at.seen += len(rows)
        self.at.step += 1

    def _batch(self, epoch: int, batch: int) -> NDArray[np.int64]:
        """Return the positions of one batch; the sizes of an epoch's batches differ by one at most, so that none is tiny."""
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.train))
        return np.sort(np.array_split(self._order[1], self.batches)[batch])

    def _update(self, batch: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.options.lr, self.at.step, self.total)
        looked = batch % max(1, self.batches // LOOKED_AT) == 0
        if looked:
            self.watch.before_update()
        self.optimizer.step()
        if looked:
            self.watch.after_update()

    def _ascent(self, x: Tensor) -> Ascent:
        threat = replace(self.threat, eps=self.threat.eps * self._growth(self.at.step))
        return Ascent(threat.on(x), self.options.attack_steps, step_size(self.options), self.seed, self.at.step)

    def _growth(self, step: int) -> float:
        rise = self.options.warm_up * self.total
        return 1.0 if rise == 0 else min(1.0, (step + 1) / rise)

    def _close_epoch(self) -> None:
        """Validate, keep the weights where they are the best so far, and see whether to go on."""
        self._validate()
        epoch = self.epochs[-1]
        self.say(_line(epoch, self.options.epochs, self.regression))
        if self.at.step >= self.total:
            self._end("epochs", f"all {self.options.epochs} epochs were done")
        elif self.at.since >= self.options.patience:
            self._end("patience", f"no epoch of the last {self.at.since} was better than epoch {self.at.kept}")

    def _validate(self) -> None:
        self.trainee.module.eval()
        clean, robust = robust_accuracy(
            self.fixed, self.validation, self.threat, steps=self.options.validation_steps, seed=self.seed
        )
        with self.fixed.session():
            probe = self.fixed.to_input(torch.from_numpy(self.validation.x[:PROBED]))
            dead = dead_units(self.fixed, probe)
        number, last = len(self.epochs), max(0, self.at.step - 1)
        spikes = self.watch.spikes
        self.epochs.append(
            Epoch(
                epoch=number,
                loss=finite(self.at.loss / self.at.seen) if self.at.seen else None,
                eps=self.threat.eps * self._growth(last) if number else 0.0,
                lr=learning_rate(self.options.lr, last, self.total) if number else 0.0,
                clean=finite(clean),
                robust=finite(robust),
                seconds=round(self.at.epoch_seconds, 3),
                spikes=spikes,
                layers=self.watch.summary(),
                dead=dead,
            )
        )
        self.at.loss, self.at.seen, self.at.epoch_seconds = 0.0, 0, 0.0
        self._compare(-robust if self.regression else robust)

    def _compare(self, score: float) -> None:
        # Before the radius is whole a network is not yet trained for what it is judged by.
        whole = self._growth(max(0, self.at.step - 1)) >= 1.0
        if score > self.at.best or not self.best_weights:
            self.at.best, self.at.kept, self.at.since = score, self.epochs[-1].epoch, 0
            self.best_weights = _weights(self.trainee.module)
        elif whole:
            self.at.since += 1

    def _stored(self) -> Stored:
        moments = {
            f"{index}.{name}": value
            for index, state in self.optimizer.state_dict()["state"].items()
            for name, value in state.items()
            if isinstance(value, Tensor)
        }
        state = {
            "progress": {**vars(self.at), "best": self.at.best if math.isfinite(self.at.best) else None},
            "watch": self.watch.state(),
            "epochs": [epoch.model_dump(mode="json") for epoch in self.epochs],
            "passes": [self.trainee.forwards, self.trainee.backwards, self.fixed.forwards, self.fixed.backwards],
        }
        return Stored({"now": _weights(self.trainee.module), "best": self.best_weights, "moments": moments}, state)

    def restore(self, stored: Stored) -> None:
        """Go back to where a checkpoint was written; KeyError, TypeError or ValueError where it does not fit the network."""
        _check_fits(self.trainee.module, stored.tensors["now"])
        _check_fits(self.trainee.module, stored.tensors["best"])
        _fill(self.trainee.module, stored.tensors["now"])
        self.best_weights = stored.tensors["best"]
        held: dict[int, dict[str, Tensor]] = {}
        for name, value in stored.tensors.get("moments", {}).items():
            index, _, part = name.partition(".")
            held.setdefault(int(index), {})[part] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": held})
        progress = stored.state["progress"]
        self.at = _Progress(**{**progress, "best": -math.inf if progress["best"] is None else progress["best"]})
        self.watch = Watch(self.trainee.module, stored.state["watch"])
        self.epochs = [Epoch.model_validate(epoch) for epoch in stored.state["epochs"]]
        if self.at.kept not in [epoch.epoch for epoch in self.epochs] or not 0 <= self.at.step <= self.total:
            raise ValueError("the checkpoint names an epoch or a step that there is not")
        if self.at.ended not in (None, *get_args(Ending)) or not isinstance(self.at.reason, str):
            raise ValueError("the checkpoint ends in a way that there is not")
        passes = [int(count) for count in stored.state["passes"]]
        self.trainee.forwards, self.trainee.backwards, self.fixed.forwards, self.fixed.backwards = passes

    def _finish(self) -> tuple[Model, History]:
        module = self.trainee.module
        _fill(module, self.best_weights)
        for (_, given), (_, trained) in zip(self.given.module.named_parameters(), module.named_parameters(), strict=True):
            trained.requires_grad_(given.requires_grad)
            trained.grad = None
        for theirs, ours in zip(self.given.module.modules(), module.modules(), strict=True):
            ours.training = theirs.training
        history = History(
            method=self.method.name,
            norm=self.threat.norm,
            eps=self.threat.eps,
            measure="mean absolute error" if self.regression else "accuracy",
            epochs=self.epochs,
            kept=self.at.kept,
            ended=self.at.ended or "epochs",
            reason=self.at.reason,
            n_train=len(self.train),
            n_validation=len(self.validation),
            options=self.options.model_dump(),
            forwards=self.trainee.forwards + self.fixed.forwards,
            backwards=self.trainee.backwards + self.fixed.backwards,
        )
        return wrap(self.given, module, Model), history


def learning_rate(highest: float, step: int, total: int) -> float:
    """Return the learning rate of a step: up from a tenth over the first tenth of training, then down along half a cosine.

    Source: Smith & Topin 2019 (one cycle), with the cosine of Loshchilov & Hutter 2017.
    """
    rise = max(1, round(RISE * total))
    if step < rise:
        return highest * (0.1 + 0.9 * (step + 1) / rise)
    done = (step - rise) / max(1, total - rise)
    return highest * (LAST_LR + (1 - LAST_LR) * (1 + math.cos(math.pi * done)) / 2)


def _line(epoch: Epoch, epochs: int, regression: bool) -> str:
    def shown(value: float | None) -> str:
        return "none" if value is None else f"{value:.4g}" if regression else f"{value:.1%}"

    loss = "none" if epoch.loss is None else f"{epoch.loss:.4f}"
    return (
        f"epoch {epoch.epoch} of {epochs}: loss {loss}, radius {epoch.eps:.3g}; validation: clean {shown(epoch.clean)}, "
        f"attacked at the full radius {shown(epoch.robust)}; {epoch.seconds:.0f} s"
    )


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in _held(module).items()}


def _check_fits(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    held = _held(module)
    if held.keys() != weights.keys() or any(held[name].shape != weights[name].shape for name in held):
        raise ValueError("the checkpoint's tensors are not those of the network")
    if any(bool(torch.isnan(tensor).any()) for tensor in weights.values()):
        raise ValueError("the checkpoint holds weights that are no numbers")


def _fill(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in _held(module).items():
            tensor.copy_(weights[name])


def _held(module: nn.Module) -> dict[str, Tensor]:
    """Return all that training may change, by name: a state dict lacks the buffers that are not persistent."""
    held = {name: t for name, t in module.state_dict().items() if isinstance(t, Tensor)}
    return {**dict(module.named_buffers()), **held}


def _mix(seed: int, step: int) -> int:
    digest = hashlib.sha256(f"{seed}/hardening/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _sources() -> str:
    """Hash the code that a training runs: its own, and that of the attack inside it."""
    digest = hashlib.sha256()
    for folder in ("hardening", "attacks", "data"):
        for path in sorted((Path(__file__).parents[1] / folder).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
