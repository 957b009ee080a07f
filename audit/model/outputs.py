"""Tells what a network's last layer returns (logits, probabilities, one logit, a logit a label, a number); brings it to logits.

A softmax or sigmoid at the end squeezes small gradients to zero, so an attack on probabilities sees a flat loss where the
logits behind them are steep. It is undone exactly: a torch function mode notes the last activation's input, and where the
network returns that activation's own values, the input is taken in their stead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

from audit.config import Output
from audit.errors import ModelError, UsageError

OUTPUTS: tuple[str, ...] = get_args(Output)
SIXTY_TWO = 62  # labels whose sets fit into an int64 one bit each
MOST_NAMED = 5
PROBABILITIES = ("probabilities", "binary_probability", "multilabel_probabilities")

_SOFTMAX = {torch.softmax, torch.nn.functional.softmax, Tensor.softmax, torch.special.softmax}
_SIGMOID = {
    torch.sigmoid,
    torch.nn.functional.sigmoid,
    Tensor.sigmoid,
    torch.special.expit,
    torch.sigmoid_,
    Tensor.sigmoid_,
}
_SIGMOID_IN_PLACE = {torch.sigmoid_, Tensor.sigmoid_}


def task_of(output: str) -> str:
    """Return the task of a network with this kind of output."""
    return "regression" if output == "regression" else "multilabel" if output.startswith("multilabel") else "classification"


@dataclass(frozen=True)
class Before:
    """What went into the softmax or sigmoid that a network ends in, in the shape of the network's output."""

    values: Tensor
    activation: Literal["softmax", "sigmoid"]

    def again(self) -> Tensor:
        """Apply the activation again."""
        return self.values.softmax(dim=1) if self.activation == "softmax" else self.values.sigmoid()


class LastActivation(TorchFunctionMode):
    """Notes input and output of the last softmax or sigmoid that ran inside the ``with`` block."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Tensor | None = None
        self.after: Tensor | None = None
        self.activation: Literal["softmax", "sigmoid"] = "softmax"

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _SOFTMAX and func not in _SIGMOID:
            return func(*args, **kwargs)
        before = args[0] if args else kwargs.get("input")
        if func in _SIGMOID_IN_PLACE:
            before = before.clone()
        after = func(*args, **kwargs)
        self.before, self.after = before, after
        self.activation = "softmax" if func in _SOFTMAX else "sigmoid"
        return after

    def undo(self, output: Tensor) -> Before | None:
        """Return the activation's input in the shape of `output`, where `output` is the activation's own memory."""
        if self.before is None or self.after is None or self.after.numel() != output.numel():
            return None
        if self.after.data_ptr() != output.data_ptr() or (self.activation == "softmax" and output.ndim != 2):
            return None
        return Before(self.before.reshape(output.shape), self.activation)


def call_undoing(network: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Before | None]:
    """Return the network's output and, where it ends in a softmax or sigmoid, the values before that activation."""
    with LastActivation() as last:
        output = checked_output(network(x), len(x))
    return output, last.undo(output)


def checked_output(output: Any, n: int) -> Tensor:
    """Return `output` where it is one tensor of shape (n,) or (n, k); a ModelError says what else it was."""
    if not isinstance(output, Tensor):
        raise ModelError(
            f"the network should return one tensor of shape (samples, classes), got {type(output).__name__}; "
            "wrap it in a module that returns the logits alone and pass that with --arch"
        )
    if output.ndim not in (1, 2) or output.shape[0] != n:
        raise ModelError(
            f"the network should return shape ({n}, classes) for {n} samples, got {tuple(output.shape)}; "
            "wrap it in a module that returns one row a sample"
        )
    if not output.is_floating_point():
        raise ModelError(
            f"the network should return scores as floating-point numbers, got {output.dtype}: class numbers have no gradient "
            "and no confidence; return the logits instead"
        )
    return output


def tell_output(raw: Tensor, before: Before | None, *, task: str | None, labels_are_binary: bool | None) -> Output:
    """Tell what the network returns, from its output on some samples.

    Parameters
    ----------
    raw
        The network's output, shape (n,) or (n, k).
    before
        What went into a softmax or sigmoid at the network's end, or None.
    task
        ``classification``, ``multilabel`` or ``regression`` where the user, or the shape of the labels, said so.
    labels_are_binary
        Whether all labels are 0 or 1; None where there are no labels.

    Raises
    ------
    ModelError
        No sample has a finite output.
    UsageError
        A number could be a logit, a probability or a regression output, and nothing settles which.
    """
    width = 1 if raw.ndim == 1 else raw.shape[1]
    if task == "regression":
        return "regression"
    finite = raw[torch.isfinite(raw).reshape(len(raw), -1).all(dim=1)].detach()
    if len(finite) == 0:
        raise ModelError(
            f"the network returns NaN or infinity for each of the first {len(raw)} samples: is the data scaled as in training "
            "(--mean, --std, --preprocess), and are the weights the right ones?"
        )
    if task == "multilabel":
        return _tell_labels(finite, before)
    if width >= 2:
        # Sigmoids side by side (one class against the rest) hide their gradients as a softmax does, so they are undone, too.
        side_by_side = before is not None and before.activation == "sigmoid"
        return "probabilities" if side_by_side or _rows_are_probabilities(finite) else "logits"
    if labels_are_binary is None and task is None:
        raise UsageError(
            "the network returns one number a sample: say what it is with --task regression, "
            "or with --output binary_logit or binary_probability"
        )
    if not labels_are_binary and task is None:
        return "regression"
    if before is not None:
        return "binary_probability"
    if bool(((finite < 0) | (finite > 1)).any()):
        return "binary_logit"
    raise UsageError(
        "the network returns one number a sample, all between 0 and 1 and with no sigmoid in sight: "
        "say what it is with --output binary_logit or --output binary_probability"
    )


def _tell_labels(finite: Tensor, before: Before | None) -> Output:
    refuse_softmax(before)
    if before is not None:
        return "multilabel_probabilities"
    if bool(((finite < 0) | (finite > 1)).any()):
        return "multilabel_logits"
    raise UsageError(
        "the network returns numbers between 0 and 1 for each label, with no sigmoid in sight: say what they are with "
        "--output multilabel_logits or --output multilabel_probabilities"
    )


def refuse_softmax(before: Before | None) -> None:
    """Raise a ModelError where what should be a probability for each label comes out of one softmax for all of them."""
    if before is not None and before.activation == "softmax":
        raise ModelError(
            "the network ends in a softmax, which shares one unit out among the labels, so that no two of them could be "
            "present at once: a multi-label network ends in a sigmoid or in nothing; say --task classification where each "
            "sample has one class"
        )


def _rows_are_probabilities(rows: Tensor) -> bool:
    values = rows.double()
    return bool((values >= 0).all()) and bool(((values.sum(dim=1) - 1).abs() < 1e-3).all())


def to_logits(raw: Tensor, before: Before | None, output: Output) -> Tensor:
    """Bring a classifier's output to logits of shape (n, classes); a single logit z becomes the pair (0, z).

    Of a multi-label network each label has one logit of its own, (n, labels): it is present where that is above 0.
    """
    if output in ("logits", "multilabel_logits"):
        return raw
    if output == "multilabel_probabilities":
        return before.values if before is not None else _log_odds(raw)
    if output == "probabilities":
        return before.values if before is not None else raw.clamp_min(torch.finfo(raw.dtype).tiny).log()
    if output == "binary_logit":
        z = raw.reshape(len(raw))
    elif output == "binary_probability":
        z = (before.values if before is not None else _log_odds(raw)).reshape(len(raw))
    else:
        raise ValueError(f"a {output} output has no logits")
    return torch.stack((torch.zeros_like(z), z), dim=1)


def _log_odds(p: Tensor) -> Tensor:
    tiny = torch.finfo(p.dtype).tiny
    return p.clamp_min(tiny).log() - (1 - p).clamp_min(tiny).log()


def right_answers(logits: NDArray[Any], y: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which samples are answered right: the label is the class of the largest logit, or the set of logits above 0.

    Parameters
    ----------
    logits : array (n, classes)
        A sample with one that is NaN or infinite counts as wrong.
    y : array (n,), or (n, classes) of 0 and 1
        Classes; or for a multi-label network which labels are present, all of which must be met.
    """
    known = np.isfinite(logits).all(axis=1)
    met = ((logits > 0) == (y > 0)).all(axis=1) if y.ndim == 2 else logits.argmax(axis=1) == y
    right: NDArray[np.bool_] = known & met
    return right


def label_sets(marks: Tensor) -> Tensor:
    """Return a number of its own, 0 or above, for each set of labels.

    Parameters
    ----------
    marks : Tensor (n, labels)
        True or 1 where a label is present.

    Returns
    -------
    int64 Tensor (n,)
        Up to 62 labels are read as a binary number. More are hashed with odd factors, and two of m sets that occur share a
        number with a chance of about m² / 2⁶³.
    """
    labels = marks.shape[1]
    place = torch.arange(labels, device=marks.device)
    if labels <= SIXTY_TWO:
        return ((marks > 0).long() << place).sum(dim=1)
    factors = torch.from_numpy(np.random.default_rng(0).integers(1, 2**62, labels) * 2 + 1).to(marks.device)
    return ((marks > 0).long() * factors).sum(dim=1) & (2**63 - 1)


def names_of(marks: NDArray[Any], names: Sequence[str]) -> str:
    """Return the labels that are present in words, at most `MOST_NAMED`; ``none`` where there is none."""
    present = np.flatnonzero(marks > 0)
    told = [names[k] if k < len(names) else str(k) for k in present[:MOST_NAMED]]
    more = f" and {len(present) - len(told)} more" if len(present) > len(told) else ""
    return (", ".join(told) or "none") + more
