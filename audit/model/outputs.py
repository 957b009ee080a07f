"""Tells what a network's last layer returns (logits, probabilities, one logit, a number) and brings it to logits.

A softmax or sigmoid at the end squeezes small gradients to zero, so an attack on probabilities sees a flat loss where the
logits behind them are steep. It is undone exactly: a torch function mode notes the last activation's input, and where the
network returns that activation's own values, the input is taken in their stead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from audit.errors import ModelError, UsageError

Output = Literal["logits", "probabilities", "binary_logit", "binary_probability", "regression"]
OUTPUTS: tuple[str, ...] = get_args(Output)

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


class LastActivation(TorchFunctionMode):
    """Notes input and output of the last softmax or sigmoid that ran inside the ``with`` block."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Tensor | None = None
        self.after: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _SIGMOID_IN_PLACE:
            before = args[0].clone()
            after = func(*args, **kwargs)
            self.before, self.after = before, after
            return after
        after = func(*args, **kwargs)
        if func in _SOFTMAX or func in _SIGMOID:
            self.before, self.after = (args[0] if args else kwargs.get("input")), after
        return after

    def undo(self, output: Tensor) -> Tensor | None:
        """Return the activation's input in the shape of `output`, where `output` is the activation's own memory."""
        if self.before is None or self.after is None or self.after.numel() != output.numel():
            return None
        if self.after.data_ptr() != output.data_ptr():
            return None
        return self.before.reshape(output.shape)


def call_undoing(network: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor | None]:
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
    return output


def tell_output(raw: Tensor, before: Tensor | None, *, task: str | None, labels_are_binary: bool | None) -> Output:
    """Tell what the network returns, from its output on some samples.

    Parameters
    ----------
    raw
        The network's output, shape (n,) or (n, k).
    before
        What went into a softmax or sigmoid at the network's end, or None.
    task
        ``classification`` or ``regression`` where the user said so.
    labels_are_binary
        Whether all labels are 0 or 1; None where there are no labels.

    Raises
    ------
    UsageError
        One number a sample could be a logit, a probability or a regression output, and nothing settles which.
    """
    width = 1 if raw.ndim == 1 else raw.shape[1]
    if task == "regression":
        return "regression"
    if width >= 2:
        return "probabilities" if _rows_are_probabilities(raw) else "logits"
    if labels_are_binary is None and task is None:
        raise UsageError(
            "the network returns one number a sample: say what it is with --task regression, "
            "or with --output binary_logit or binary_probability"
        )
    if not labels_are_binary and task is None:
        return "regression"
    if before is not None:
        return "binary_probability"
    values = raw.detach().float()
    if bool(((values < 0) | (values > 1)).any()):
        return "binary_logit"
    raise UsageError(
        "the network returns one number a sample, all between 0 and 1 and with no sigmoid in sight: "
        "say what it is with --output binary_logit or --output binary_probability"
    )


def _rows_are_probabilities(raw: Tensor) -> bool:
    values = raw.detach().double()
    if not bool(torch.isfinite(values).all()):
        return False
    return bool((values >= 0).all()) and bool(((values.sum(dim=1) - 1).abs() < 1e-3).all())


def to_logits(raw: Tensor, before: Tensor | None, output: Output) -> Tensor:
    """Bring a classifier's output to logits of shape (n, classes); a single logit z becomes the pair (0, z)."""
    if output == "logits":
        return raw
    if output == "probabilities":
        return before if before is not None else raw.clamp_min(torch.finfo(raw.dtype).tiny).log()
    if output == "binary_logit":
        z = raw.reshape(len(raw))
    elif output == "binary_probability":
        if before is not None:
            z = before.reshape(len(raw))
        else:
            p = raw.reshape(len(raw))
            z = p.clamp_min(torch.finfo(p.dtype).tiny).log() - (1 - p).clamp_min(torch.finfo(p.dtype).tiny).log()
    else:
        raise ValueError(f"a {output} output has no logits")
    return torch.stack((torch.zeros_like(z), z), dim=1)
