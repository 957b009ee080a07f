"""The wrapped network: logits, predictions and input gradients of anything that is a ``torch.nn.Module``.

A Model never changes the network that it wraps: evaluation mode is forced and put back, parameters and buffers come back bit
for bit, and no parameter collects a gradient. It counts the samples that go through forwards and backwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from audit.budget import check_deadline
from audit.config import Output
from audit.errors import AuditError, ModelError, UsageError
from audit.model.batching import BatchSize, in_batches, is_out_of_memory
from audit.model.numbers import as_numbers
from audit.model.outputs import (
    OUTPUTS,
    PROBABILITIES,
    Before,
    call_undoing,
    checked_output,
    refuse_softmax,
    task_of,
    tell_output,
    to_logits,
)

if TYPE_CHECKING:
    import os

TASKS = ("classification", "multilabel", "regression")


@dataclass(frozen=True)
class Origin:
    """Where a network came from: what the report says of it, and what the cache keys on."""

    source: str
    sha256: str
    format: str
    arch_sha256: str = ""
    trusted: bool = False


class Model:
    """A network with its task, classes, input bounds, preprocessing and device.

    Parameters
    ----------
    module
        The network: takes a float tensor of shape (n, …), returns (n, classes) or (n,).
    task
        ``classification``, ``multilabel`` (any number of labels a sample, each with an output of its own) or
        ``regression``; told from outputs and labels where None.
    classes
        Number of classes, or their names in the order of the network's outputs.
    output
        What the last layer returns: ``logits``, ``probabilities``, ``binary_logit``, ``binary_probability``,
        ``multilabel_logits``, ``multilabel_probabilities`` or ``regression``; told from the outputs where None.
        Probabilities are brought back to logits.
    bounds
        Lowest and highest input value, two numbers or two arrays that broadcast to one sample.
    mean, std
        Subtracted from, and divided into, the input inside the Model, so that radii stay in the user's units: one number, or
        one a channel (images) or column (tables).
    device
        ``cpu``, ``cuda``, or ``auto`` for a GPU where there is one.
    batch_size
        Samples a batch; halved when memory runs out.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        task: str | None = None,
        classes: int | Sequence[str] | None = None,
        output: str | None = None,
        bounds: tuple[ArrayLike, ArrayLike] | None = None,
        mean: ArrayLike | None = None,
        std: ArrayLike | None = None,
        device: str = "auto",
        batch_size: int = 256,
        origin: Origin | None = None,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise ModelError(f"expected a torch.nn.Module, got {type(module).__name__}; wrap the function in a module")
        if task not in (None, *TASKS):
            raise UsageError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
        if output not in (None, *OUTPUTS):
            raise UsageError(f"output must be one of {', '.join(OUTPUTS)}, got {output!r}")
        if output is not None and task is not None and task_of(output) != task:
            fitting = ", ".join(kind for kind in OUTPUTS if task_of(kind) == task)
            raise UsageError(
                f"task {task!r} and output {output!r} contradict each other: give one of them (of this task: {fitting})"
            )
        self.module = module
        self.output: Output | None = "regression" if task == "regression" else output  # type: ignore[assignment]
        self._task = task
        self.class_names: list[str] = [] if classes is None or isinstance(classes, int) else [str(c) for c in classes]
        self.classes: int | None = classes if isinstance(classes, int) else (len(self.class_names) or None)
        self.bounds = _box(bounds)
        self.mean, self.std = _constant(mean, "mean"), _constant(std, "std")
        if self.std is not None and not bool((self.std > 0).all()):
            raise UsageError(f"std must be above 0 everywhere, got {self.std.tolist()}")
        self.device = pick_device(device)
        self.batch_size = BatchSize(batch_size)
        self._forwards = self._backwards = 0
        self.notes: list[str] = []
        # Called with one sample before the network first sees any: networks out of files may be made to exhaust the machine.
        self.guard: Callable[[Tensor], None] | None = None
        self._origin = origin
        self._depth = 0

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        arch: str | Callable[..., nn.Module] | None = None,
        arch_args: dict[str, Any] | list[Any] | None = None,
        trust: bool = False,
        expect_sha256: str | None = None,
        **options: Any,
    ) -> Model:
        """Load a network from a file without running anything that the file holds; see `audit.model.load.load`."""
        from audit.model.load import load

        return load(path, arch=arch, arch_args=arch_args, trust=trust, expect_sha256=expect_sha256, **options)

    @property
    def task(self) -> str | None:
        """``classification``, ``multilabel``, ``regression``, or None while none was said nor told."""
        if self._task is not None or self.output is None:
            return self._task
        return task_of(self.output)

    @property
    def origin(self) -> Origin:
        """Where the network came from; for a live module its class and the hash of its weights."""
        if self._origin is not None:
            return self._origin
        kind = type(self.module)
        return Origin(f"{kind.__module__}.{kind.__qualname__}", weights_sha256(self.module), "live module")

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the network's parameters (float32 where it has none)."""
        for parameter in self.module.parameters():
            if parameter.is_floating_point():
                return parameter.dtype
        return torch.float32

    @property
    def forwards(self) -> int:
        """Samples that went through the network forwards so far."""
        return self._forwards

    @forwards.setter
    def forwards(self, count: int) -> None:
        self._forwards = count
        check_deadline()

    @property
    def backwards(self) -> int:
        """Samples that went through the network backwards so far."""
        return self._backwards

    @backwards.setter
    def backwards(self, count: int) -> None:
        self._backwards = count
        check_deadline()

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    @contextmanager
    def session(self) -> Iterator[Model]:
        """Hold the network in evaluation mode, on the device, without parameter gradients; put everything back after.

        Sessions nest; every method opens one where none is open, so a caller opens its own only to save the cost of doing so
        again and again.
        """
        if self._depth:
            self._depth += 1
            try:
                yield self
            finally:
                self._depth -= 1
            return
        state = _State(self.module)
        self._depth = 1
        try:
            self.module.eval()
            for child in self.module.modules():
                # A network whose own train() keeps a part in training mode is still asked as it is deployed.
                child.training = False
            for parameter in self.module.parameters():  # not Module.requires_grad_, which a ScriptModule lacks
                parameter.requires_grad_(False)
            self.module.to(self.device)
            yield self
        finally:
            self._depth = 0
            state.put_back()

    def to_input(self, x: Tensor | NDArray[Any]) -> Tensor:
        """Return `x` as a tensor on the network's device, in its floating-point type but at least float32.

        Half-precision networks are handed their own type inside: in it, a step or a radius of 1/255 would round away.
        """
        dtype = self.dtype if self.dtype == torch.float64 else torch.float32
        return as_numbers(x, "inputs").to(device=self.device, dtype=dtype)

    def outputs(self, x: Tensor) -> Tensor:
        """Return the network's raw output for inputs in the user's units, shape (n,) or (n, k); counts n forwards."""
        return self._forward(x, undo=False)[0]

    def logits(self, x: Tensor) -> Tensor:
        """Return logits of shape (n, classes); differentiable in `x`; counts n forwards.

        A single logit z counts as the pair (0, z); a softmax or sigmoid at the network's end is undone. Of a multi-label
        network each label has one logit, above 0 where the network says that it is present.
        """
        output = self._known_output(x)
        if output == "regression":
            raise ModelError("a regression network has no logits; use values()")
        raw, before = self._forward(x, undo=output in PROBABILITIES)
        return to_logits(raw, before, output).to(x.dtype)

    def values(self, x: Tensor) -> Tensor:
        """Return a regression network's output of shape (n,); differentiable in `x`; counts n forwards."""
        raw = self.outputs(x)
        if raw.numel() != len(x):
            raise ModelError(
                f"a regression network should return one number a sample, got shape {tuple(raw.shape)}; "
                "audit one output at a time, or say --task classification"
            )
        return raw.reshape(len(x)).to(x.dtype)

    def predict(self, x: Tensor | NDArray[Any]) -> Tensor:
        """Return what the network answers to each sample.

        Returns
        -------
        Tensor
            The predicted class (int64), or the value of a regression network, of shape (n,); of a multi-label network 1 for
            each label whose logit is above 0, else 0 (int64), of shape (n, labels).
        """
        x = self.to_input(x)

        def forward(batch: Tensor) -> tuple[Tensor, ...]:
            if self.task == "regression":
                return (self.values(batch),)
            logits = self.logits(batch)
            return ((logits > 0).long() if self.task == "multilabel" else logits.argmax(dim=1),)

        with self.session(), torch.no_grad():
            self._known_output(x[: self.batch_size.current])
            return in_batches(forward, (x,), self.batch_size)[0]

    def gradient(self, loss: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient of ``loss(output)`` summed over samples, in `x`, and the losses; counts one pass each way.

        Parameters
        ----------
        loss
            Takes logits (n, classes) or values (n,) and returns losses of shape (n,).
        x
            Inputs of shape (n, …).

        Returns
        -------
        gradient, losses
            Shapes of `x` and (n,), detached. A network whose output does not depend on `x` through anything
            differentiable has a gradient of zero; one with a function that torch has no derivative of has one of NaN.
        """
        with self.session():
            x = x.detach().requires_grad_(True)
            losses = loss(self.values(x) if self.task == "regression" else self.logits(x))
            if not losses.requires_grad:
                return torch.zeros_like(x), losses.detach()
            try:
                (gradient,) = torch.autograd.grad(losses.sum(), x, allow_unused=True)
            except RuntimeError as error:
                # Torch says so where a function (a floor division, say) has no derivative, which is no fault of who asks.
                if "derivative" not in str(error) or is_out_of_memory(error):
                    raise
                gradient = torch.full_like(x, torch.nan)
            self.backwards += len(x)
            return (torch.zeros_like(x) if gradient is None else gradient), losses.detach()

    def resolve(self, x: Tensor | NDArray[Any], y: NDArray[Any] | None = None) -> None:
        """Tell task, output kind and number of classes from some samples, where the user did not say.

        Raises
        ------
        ModelError, UsageError
            The network cannot take the input, or what it returns cannot be told apart, or labels are of another task.
        """
        binary = None if y is None else bool(np.isin(y, (0, 1)).all())
        if y is not None and y.ndim == 2:
            self._expect_labels(y)
        elif y is not None and self.task == "multilabel":
            raise UsageError(
                f"a multi-label network needs labels of shape (samples, labels), 0 or 1 each; got shape {y.shape}: "
                "save one column a label, or say --task classification"
            )
        if self._task is None and self.output is None and y is not None and not _are_whole(y):
            self._task = "regression"
        with self.session(), torch.no_grad():
            self._tell(self.to_input(x), binary)

    def as_art(self) -> Any:
        """Return the same network as an ART ``PyTorchClassifier`` (or ``PyTorchRegressor``), mean and std included.

        Raises
        ------
        UsageError
            ART is not installed, or bounds, classes or input shape are not known yet (``resolve`` tells them).
        """
        from audit.model.art import as_art

        return as_art(self)

    input_shape: tuple[int, ...] | None = None

    def normalise(self, x: Tensor) -> Tensor:
        """Apply mean and std, where there are any."""
        if self.mean is not None:
            x = x - _spread(self.mean, x)
        if self.std is not None:
            x = x / _spread(self.std, x)
        return x

    def _forward(self, x: Tensor, *, undo: bool) -> tuple[Tensor, Before | None]:
        check_deadline()
        with self.session():
            inputs = self.normalise(x).to(self.dtype)
            try:
                out = call_undoing(self.module, inputs) if undo else (checked_output(self.module(inputs), len(x)), None)
            except Exception as error:
                if isinstance(error, AuditError) or is_out_of_memory(error) or self.input_shape == tuple(x.shape[1:]):
                    raise
                raise ModelError(
                    f"the network cannot take inputs of shape {tuple(x.shape)}: {type(error).__name__}: {_first_line(error)}; "
                    "check --arch, --inputs and the layout (images are NCHW)"
                ) from error
            # A pass that memory did not suffice for is made again in halves, and counts then.
            self.forwards += len(x)
            return out

    def _expect_labels(self, y: NDArray[Any]) -> None:
        """Take labels of shape (n, labels) for those of a multi-label network, where nothing says otherwise."""
        one_each = bool((y.sum(axis=1) == 1).all())
        if self.task not in (None, "multilabel"):
            hint = "y.argmax(axis=1) gives the classes" if one_each else "say --task multilabel"
            raise UsageError(
                f"labels of shape {y.shape} name several labels a sample, but this is a {self.task} network with output "
                f"{self.output!r}: {hint}; of a multi-label network say --output multilabel_logits or multilabel_probabilities"
            )
        if self.task is None and one_each:
            raise UsageError(
                f"labels of shape {y.shape} have exactly one 1 in each row, as one-hot coded classes do: save the classes as "
                "numbers (y.argmax(axis=1)), or say --task multilabel where a sample may have several labels, or none"
            )
        self._task = "multilabel"

    def _known_output(self, x: Tensor) -> Output:
        if self.output is None:
            with self.session(), torch.no_grad():
                self._tell(x, None)
        assert self.output is not None  # noqa: S101  (_tell sets it or raises)
        return self.output

    def _tell(self, x: Tensor, binary: bool | None) -> None:
        if self.guard is not None:
            self.guard(self.normalise(x[:1]).to(self.dtype))
        raw, before = self._try(x)
        self.input_shape = tuple(x.shape[1:])
        if self.output is None:
            self.output = tell_output(raw, before, task=self._task, labels_are_binary=binary)
        if self.output == "regression":
            return
        width = 1 if raw.ndim == 1 else raw.shape[1]
        if self.task == "multilabel" and width == 1:
            raise ModelError(
                f"a multi-label network should return at least 2 numbers a sample, one a label, got shape {tuple(raw.shape)}; "
                "a network with one label is a binary classifier: --output binary_logit or binary_probability"
            )
        if (width == 1) != self.output.startswith("binary"):
            raise ModelError(
                f"a classifier should return at least 2 classes, or one number with --output binary_logit or "
                f"binary_probability; got shape {tuple(raw.shape)} for output {self.output!r}"
            )
        self._check_undo(raw, before)
        width = max(2, width)
        if self.classes not in (None, width):
            what = "labels" if self.task == "multilabel" else "classes"
            raise ModelError(f"the network has {width} outputs, but {self.classes} {what} were stated: fit --classes to it")
        self.classes = width

    def _try(self, x: Tensor) -> tuple[Tensor, Before | None]:
        """Run some samples for the first time: on fewer where memory runs out."""
        try:
            return self._forward(x, undo=True)
        except Exception as error:
            if is_out_of_memory(error) and len(x) > 1:
                return self._try(x[: len(x) // 2])
            raise

    def _check_undo(self, raw: Tensor, before: Before | None) -> None:
        """Say what was undone; refuse where values show that something came after the activation, or that it is none."""
        if self.output not in PROBABILITIES:
            return
        if self.output == "multilabel_probabilities":
            refuse_softmax(before)
        finite = torch.isfinite(raw)
        if before is not None:
            if torch.allclose(before.again()[finite], raw[finite], atol=1e-5):
                self._note(f"the network ends in a {before.activation}: audited on the logits before it")
                return
            raise ModelError(
                f"the network changes its probabilities in place after its last {before.activation}, so the logits behind them "
                "cannot be found; return them unchanged, or give the network without its last activation with --arch"
            )
        if bool(((raw[finite] < -1e-6) | (raw[finite] > 1 + 1e-6)).any()):
            low, high = float(raw[finite].min()), float(raw[finite].max())
            raise ModelError(
                f"probabilities should lie between 0 and 1, but the network returns {low:g} to {high:g}: "
                f"say --output {_LOGITS_OF[self.output]}"
            )
        self._note(
            "the network returns probabilities and its last softmax or sigmoid is out of reach: audited on their logarithms, "
            "whose gradients vanish where a probability is 0 or 1"
        )

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


_LOGITS_OF: dict[str, str] = {
    "probabilities": "logits",
    "binary_probability": "binary_logit",
    "multilabel_probabilities": "multilabel_logits",
}


class _State:
    """What a session changes in a module, to be put back bit for bit: the same tensors, with their values, where they were."""

    def __init__(self, module: nn.Module) -> None:
        self.training = [(child, child.training) for child in module.modules()]
        holders: list[Any] = [held for child in module.modules() for held in (child._parameters, child._buffers)]
        self.places = [(held, dict(held.items())) for held in holders]
        unique: dict[int, Tensor] = {id(t): t for _, names in self.places for t in names.values() if t is not None}
        self.tensors = [(t, t.data, t.detach().clone(), t.requires_grad, t.grad) for t in unique.values() if t.is_leaf]

    def put_back(self) -> None:
        for held, names in self.places:
            for name in [name for name in list(held.keys()) if name not in names]:
                del held[name]
            now = dict(held.items())
            for name, tensor in names.items():
                # A buffer is replaced, not filled, when a module moves or assigns to it.
                if now.get(name) is not tensor:
                    held[name] = tensor
        with torch.no_grad():
            for tensor, data, values, requires_grad, grad in self.tensors:
                tensor.data = data
                if not _same_bits(data, values):
                    data.copy_(values)
                tensor.requires_grad_(requires_grad)
                tensor.grad = grad
        for child, training in self.training:
            child.training = training


def _same_bits(a: Tensor, b: Tensor) -> bool:
    # Not torch.equal: it takes -0.0 for 0.0, and NaN for different from itself.
    if a.layout != torch.strided or a.dtype.is_complex or a.element_size() not in _BITS:
        return False
    bits = _BITS[a.element_size()]
    return torch.equal(a.contiguous().view(bits), b.contiguous().view(bits))


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def pick_device(name: str) -> torch.device:
    """Return the torch device for ``auto``, ``cpu``, ``cuda`` or ``cuda:1``; a UsageError where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device must be auto, cpu or cuda, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        # Others compute in their own ways (or, as "meta", not at all), and nothing here was ever tried on them.
        raise UsageError(f"device must be auto, cpu or cuda, got {name!r}, a device that is not supported; use --device cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda was asked for, but torch sees no GPU here; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device {name} was asked for, but torch sees {torch.cuda.device_count()} GPUs here, counted from cuda:0"
        )
    return device


def weights_sha256(module: nn.Module) -> str:
    """Hash names, shapes, types and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        if not isinstance(tensor, Tensor):
            continue
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _box(bounds: Any) -> tuple[ArrayLike, ArrayLike] | None:
    """Return bounds as they were given, once they are a lowest and a highest value: none lies between others."""
    if bounds is None:
        return None
    try:
        low, high = (np.asarray(side, dtype=np.float64) for side in bounds)
        sound = bool((low <= high).all())
    except (TypeError, ValueError):
        sound = False
    if not sound:
        raise UsageError(f"bounds must be the lowest and the highest value of an input, as in bounds=(0, 1); got {bounds!r}")
    lowest, highest = bounds
    return lowest, highest


def _constant(value: ArrayLike | None, name: str) -> Tensor | None:
    if value is None:
        return None
    tensor = torch.as_tensor(np.asarray(value, dtype=np.float64)).reshape(-1)
    if not bool(torch.isfinite(tensor).all()) or tensor.numel() == 0:
        raise UsageError(f"{name} must be finite numbers, got {value!r}")
    return tensor


def _spread(constant: Tensor, x: Tensor) -> Tensor:
    """Shape one number, or one a channel or column, so that it broadcasts over a batch."""
    if constant.numel() not in (1, x.shape[1] if x.ndim > 1 else 1):
        raise UsageError(f"mean and std need 1 value or {x.shape[1]}, one a channel or column; got {constant.numel()}")
    shape = [1, constant.numel()] + [1] * (x.ndim - 2) if x.ndim > 1 else [1]
    return constant.to(device=x.device, dtype=x.dtype).reshape(shape)


def _are_whole(y: NDArray[Any]) -> bool:
    return bool(np.issubdtype(y.dtype, np.integer) or np.issubdtype(y.dtype, np.bool_) or np.all(y == np.round(y)))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
