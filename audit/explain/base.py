"""What every explainer shares: the question put to it, the shape of its answer, and the test whether the answer adds up.

A new explainer is one file: a subclass of `Explainer` that writes `attribute`. Targets, baselines, batches, the completeness
gap and the count of passes are the base class's.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from audit.data.base import Kind
from audit.errors import UsageError
from audit.model.batching import BatchSize, in_batches
from audit.model.graph import Step
from audit.model.wrapper import Model

Floats = NDArray[np.float64]
OUTPUTS = ("logits", "probabilities")
MOST_SEGMENTS = 64  # of an image, where a method has to ask the network about each of many subsets of the inputs
INSTALL = "pip install captum lime shap"
NOT_OF_LABELS = (
    "explanations are of one answer, and this network gives one for each of several labels: audit a module that returns the "
    "logit of one of them, with that label as y"
)


@dataclass(frozen=True)
class Attribution:
    """How much each input speaks for the answer.

    Attributes
    ----------
    values : float64 array like x
        Positive where an input speaks for the target, negative where it speaks against it; a method that is not `signed`
        gives sizes alone.
    method
        What was asked for.
    used
        What answered: ``shap.auto`` takes one of several.
    target : int64 array of shape (n,)
        The class that is explained; 0 for regression.
    baseline : array of shape (b, …)
        The inputs that x is compared with: what *absent* means.
    output
        ``logits``, ``probabilities`` or ``values``. A network with a single logit is explained by it, turned round for
        class 0.
    change : float64 array of shape (n,), or None
        What the values should add up to: the output less that at the baseline. None where the method promises no such thing.
    completeness_gap : float64 array of shape (n,), or None
        How far the values are from adding up to it, in units of the output.
    notes
        What was decided on the way.
    """

    values: Floats
    method: str
    used: str
    target: NDArray[np.int64]
    baseline: Floats
    output: str
    change: Floats | None
    completeness_gap: Floats | None
    signed: bool
    notes: tuple[str, ...]
    forwards: int
    backwards: int


@dataclass(frozen=True)
class Question:
    """Samples to explain, and the output of the network that is to be explained for each.

    `x` (n, …), `target` (n,) and `background` (b, …) lie on the model's device; `ids` are stable: whatever is drawn for a
    sample depends on its id and the seed alone. `middle` (1, …) is the mean of more rows than a background can hold.
    """

    model: Model
    x: Tensor
    target: Tensor
    ids: Tensor
    background: Tensor
    output: str
    kind: Kind
    seed: int
    middle: Tensor | None = None

    @property
    def baseline(self) -> Tensor:
        """The input that stands for an absent one, shape (1, …): `middle`, else the mean of the background."""
        return self.background.mean(dim=0, keepdim=True) if self.middle is None else self.middle

    def take(self, rows: slice) -> Question:
        """Return the question about these rows."""
        return replace(self, x=self.x[rows], target=self.target[rows], ids=self.ids[rows])

    def value(self, x: Tensor, target: Tensor) -> Tensor:
        """Return what is explained, shape (len(x),), differentiable in `x`."""
        out = self._own(x, target)
        # An output that does not depend on x has no graph at all, and then no gradient can be asked for, not even zero.
        return out + 0.0 * x.flatten(1).sum(dim=1) if x.requires_grad and torch.is_grad_enabled() else out

    def answers(self, x: Tensor, target: Tensor) -> Floats:
        """Return `value` as a float64 array, in batches and without gradients."""
        with self.model.session(), torch.no_grad():
            (out,) = in_batches(lambda xs, ts: (self._own(xs, ts),), (x, target), self.model.batch_size)
        return out.double().cpu().numpy()

    def ask(self, row: int) -> Callable[[NDArray[Any]], Floats]:
        """Return the network as shap and lime call it for one sample: flat rows of numbers in, one number for each out."""

        def answers(rows: NDArray[Any]) -> Floats:
            x = torch.as_tensor(np.ascontiguousarray(rows)).to(self.x).reshape(-1, *self.x.shape[1:])
            return self.answers(x, self.target[row].expand(len(x)))

        return answers

    def mean_answer(self, background: Tensor) -> Floats:
        """Return the mean output over `background` for each sample's target, shape (n,)."""
        means = {}
        for target in torch.unique(self.target).tolist():
            rows = torch.full((len(background),), target, device=self.x.device)
            means[target] = float(self.answers(background, rows).mean())
        return np.asarray([means[target] for target in self.target.tolist()], dtype=np.float64)

    def gradient(self, x: Tensor, target: Tensor) -> Tensor:
        """Return the gradient of `value` in `x`; counts one pass each way."""
        with self.model.session(), torch.enable_grad(), differentiable(self.model):
            x = x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.value(x, target).sum(), x)
        self.model.backwards += len(x)
        return gradient

    def batched(self, function: Callable[..., Tensor], copies: int = 1) -> Floats:
        """Call ``function(x, target)`` on batches so small that `copies` of each sample go through the network at once."""
        size = BatchSize(max(1, self.model.batch_size.current // copies))
        with self.model.session(), differentiable(self.model):
            (out,) = in_batches(lambda xs, ts: (function(xs, ts).detach(),), (self.x, self.target), size)
        return out.double().cpu().numpy()

    def row_seed(self, row: int, purpose: str) -> int:
        """Return the seed of what is drawn for one sample."""
        text = f"{self.seed}/{purpose}/{int(self.ids[row])}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")

    def _own(self, x: Tensor, target: Tensor) -> Tensor:
        if self.model.task == "regression":
            return self.model.values(x)
        logits = self.model.logits(x)
        if self.output == "probabilities":
            logits = logits.softmax(dim=1)
        own = logits.gather(1, target[:, None])[:, 0]
        if self.output == "logits" and (self.model.output or "").startswith("binary"):
            return own - logits.gather(1, 1 - target[:, None])[:, 0]
        return own


@dataclass(frozen=True)
class Raw:
    """What `Explainer.attribute` returns.

    Attributes
    ----------
    values : array like the question's x
    start : array of shape (n,), or None
        Output at the baseline that the method counts from; None where its values promise to add up to nothing.
    """

    values: Floats
    start: Floats | None = None
    used: str = ""
    notes: tuple[str, ...] = ()


class Explainer(ABC):
    """Base of all explainers.

    Attributes
    ----------
    name
        What it is called in ``explain(method=…)``.
    needs
        Packages that it cannot do without.
    complete
        Whether its values should add up to the change of the output from the baseline.
    signed
        Whether the sign of a value says for or against.
    random
        Whether it draws: another seed then gives other values.
    needs_baseline
        Whether it compares with a baseline.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    complete: ClassVar[bool] = False
    signed: ClassVar[bool] = True
    random: ClassVar[bool] = False
    needs_baseline: ClassVar[bool] = True

    @abstractmethod
    def attribute(self, question: Question) -> Raw:
        """Return a value for each input of each sample."""

    def unsuited(self, model: Model, x: Tensor, kind: Kind) -> str | None:  # noqa: ARG002
        """Return why the method makes no sense for this network and these inputs (a few samples), or None."""
        return None

    def missing(self) -> str | None:
        """Return which package is missing and how to install it, or None."""
        absent = [name for name in self.needs if find_spec(name) is None]
        return f"{self.name} needs {' and '.join(absent)}: {INSTALL}" if absent else None

    def __call__(
        self,
        model: Model,
        x: Tensor | ArrayLike,
        *,
        baseline: Tensor | ArrayLike | None = None,
        target: int | Tensor | ArrayLike | None = None,
        output: str = "logits",
        seed: int = 0,
        ids: Tensor | ArrayLike | None = None,
        kind: Kind | None = None,
    ) -> Attribution:
        """Explain samples; see `audit.explain.explain`."""
        absent = self.missing()
        if absent is not None:
            raise UsageError(absent)
        if output not in OUTPUTS:
            raise UsageError(f"output must be one of {', '.join(OUTPUTS)}, got {output!r}")
        inputs = model.to_input(_tensor(x))
        if inputs.ndim < 2 or len(inputs) == 0:
            raise UsageError(f"x should have shape (samples, …) and at least one sample, got {tuple(inputs.shape)}")
        with model.session():
            targets = _targets(model, inputs, target)
            question = Question(
                model=model,
                x=inputs,
                target=targets,
                ids=torch.arange(len(inputs)) if ids is None else _tensor(ids).long().cpu(),
                background=self._background(model, inputs, baseline),
                output="values" if model.task == "regression" else output,
                kind=kind or kind_of(inputs.shape[1:]),
                seed=seed,
            )
            unsuited = self.unsuited(model, inputs[:2], question.kind)
            if unsuited is not None:
                raise UsageError(f"{self.name} does not fit: {unsuited}")
            return self.answer(question)

    def answer(self, question: Question) -> Attribution:
        """Answer a question that was put together already, and hold the values against what they should add up to."""
        model = question.model
        forwards, backwards = model.forwards, model.backwards
        raw = self.attribute(question)
        values = np.asarray(raw.values, dtype=np.float64)
        if values.shape != tuple(question.x.shape):
            raise ValueError(f"{self.name} should give values of shape {tuple(question.x.shape)}, got {values.shape}")
        change = gap = None
        if raw.start is not None:
            with np.errstate(invalid="ignore"):  # infinity less infinity is NaN, which is what is told
                change = question.answers(question.x, question.target) - raw.start
            gap = np.abs(values.reshape(len(values), -1).sum(axis=1) - change)
        return Attribution(
            values=values,
            method=self.name,
            used=raw.used or self.name,
            target=question.target.cpu().numpy().astype(np.int64),
            baseline=question.background.double().cpu().numpy(),
            output=question.output,
            change=change,
            completeness_gap=gap,
            signed=self.signed,
            notes=raw.notes,
            forwards=model.forwards - forwards,
            backwards=model.backwards - backwards,
        )

    def _background(self, model: Model, x: Tensor, baseline: Tensor | ArrayLike | None) -> Tensor:
        if baseline is None:
            if self.needs_baseline:
                raise UsageError(
                    f"{self.name} compares with a baseline: give baseline=, rows that stand for an ordinary input "
                    "(some training data), or one such input"
                )
            return torch.zeros_like(x[:1])
        rows = model.to_input(_tensor(baseline))
        rows = rows[None] if rows.shape == x.shape[1:] else rows
        if rows.shape[1:] != x.shape[1:] or len(rows) == 0:
            raise UsageError(
                f"baseline should have shape (rows, …) with samples like x, {tuple(x.shape[1:])}; got {tuple(rows.shape)}"
            )
        return rows


def differentiable(model: Model) -> AbstractContextManager[Any]:
    """Return a context in which gradients in the input can be taken: cuDNN's recurrent layers have none in evaluation mode."""
    recurrent = any(
        child.kind in ("lstm", "gru", "rnn_tanh", "rnn_relu") if isinstance(child, Step) else isinstance(child, nn.RNNBase)
        for child in model.module.modules()
    )
    if recurrent and model.device.type == "cuda":
        return torch.backends.cudnn.flags(enabled=False)
    return nullcontext()


@contextmanager
def numpy_seeded(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, which shap draws from, and put it back after."""
    state = np.random.get_state()  # noqa: NPY002 - the global generator is what shap uses
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def kind_of(shape: tuple[int, ...] | torch.Size) -> Kind:
    """Return the kind of data that samples of this shape most likely are."""
    return "table" if len(shape) == 1 else "image" if len(shape) == 3 else "array"


def segments(shape: tuple[int, ...], kind: Kind, at_most: int | None = None) -> NDArray[np.int64]:
    """Return which inputs are taken or left out together: an array of `shape` of numbers from 0.

    Columns of a table and entries of an array each stand alone; a pixel is one over all its channels. With `at_most`, the
    pixels of an image, and the entries of an array, are taken in the blocks of a grid, at most so many.
    """
    if kind == "image" and len(shape) == 3:
        flat = _grid(shape[1:], at_most)
        return np.broadcast_to(flat, shape).copy()
    if kind == "table" or at_most is None or int(np.prod(shape)) <= at_most:
        return np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
    if len(shape) == 2:
        return _grid(shape, at_most)
    n = int(np.prod(shape))
    return (np.arange(n, dtype=np.int64) * at_most // n).reshape(shape)


def by_segment(values: Floats, segment: NDArray[np.int64]) -> Floats:
    """Add up values of shape (n, …) over each segment, shape (n, segments)."""
    flat, count = segment.reshape(-1), int(segment.max()) + 1
    out = np.zeros((len(values), count))
    for index, row in enumerate(values.reshape(len(values), -1)):
        out[index] = np.bincount(flat, weights=row, minlength=count)
    return out


def over_segment(values: Floats, segment: NDArray[np.int64]) -> Floats:
    """Spread values of shape (n, segments) evenly over the inputs of each segment, shape (n, …)."""
    share = values / np.bincount(segment.reshape(-1))
    return np.asarray(share[:, segment.reshape(-1)].reshape(len(values), *segment.shape), dtype=np.float64)


def _grid(shape: tuple[int, ...], at_most: int | None) -> NDArray[np.int64]:
    height, width = shape
    rows, columns = height, width
    if at_most is not None and height * width > at_most:
        side = int(np.sqrt(at_most))
        rows, columns = min(height, side), min(width, side)
    down, across = np.arange(height) * rows // height, np.arange(width) * columns // width
    return (down[:, None] * columns + across[None, :]).astype(np.int64)


def _targets(model: Model, x: Tensor, target: int | Tensor | ArrayLike | None) -> Tensor:
    if model.output is None or (model.task == "classification" and model.classes is None):
        model.resolve(x[: model.batch_size.current])
    if model.task == "multilabel":
        raise UsageError(NOT_OF_LABELS)
    if target is None:
        predicted = model.predict(x)
        return torch.zeros(len(x), dtype=torch.long, device=x.device) if model.task == "regression" else predicted
    targets = (
        torch.as_tensor(target, device=x.device).reshape(-1).long().expand(len(x))
        if np.ndim(target) == 0
        else (_tensor(target).to(x.device).long())
    )
    if targets.shape != (len(x),):
        raise UsageError(f"target should be one class, or one for each of {len(x)} samples, got shape {tuple(targets.shape)}")
    if model.task == "regression":
        if bool((targets != 0).any()):
            raise UsageError("a regression network has one output: leave target out")
        return targets
    classes = model.classes or 0
    if bool(((targets < 0) | (targets >= classes)).any()):
        raise UsageError(f"target should lie between 0 and {classes - 1}, since the network has {classes} classes")
    return targets


def _tensor(values: Tensor | ArrayLike) -> Tensor:
    return values if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(np.asarray(values)))
