"""Runs one sample through a rebuilt network, and stops before a value is made that no honest network has.

A layer without weights may still make gigabytes out of one sample: a padding, an upsampling, an adaptive pooling. Its
attributes are bounded one by one, but twenty layers that each double a side are not. So before the first forward each operation
of torch is asked for the size of its result, on the meta device, where a tensor of any size costs nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from audit.errors import ModelError
from audit.model.graph import MOST_NUMBERS, TooLarge, only_looks

MOST_OPERATIONS = 200_000


def check(module: nn.Module, sample: Tensor) -> None:
    """Run one sample through a network.

    Raises
    ------
    ModelError
        A value would have more than `MOST_NUMBERS` numbers, or more than `MOST_OPERATIONS` operations would run.
    """
    device = next((parameter.device for parameter in module.parameters()), sample.device)
    try:
        with torch.no_grad(), _Asks():
            module(sample.to(device))
    except TooLarge as problem:
        raise ModelError(f"the network in the file is made to exhaust the machine: {problem}") from None
    except Exception:  # noqa: S110  (whatever is wrong with the input is told by the forward that follows)
        pass


class _Asks(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Asks each operation for the size of its result before it runs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        self.operations += 1
        if self.operations > MOST_OPERATIONS:
            raise TooLarge(f"one sample takes more than {MOST_OPERATIONS:,} operations")
        _ask(func, args, kwargs)
        return func(*args, **kwargs)


def _ask(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    there = tree_map(lambda value: value.to("meta") if isinstance(value, Tensor) else value, (args, kwargs))
    if "device" in kwargs or not any(isinstance(value, Tensor) for value in tree_leaves(args)):
        there[1]["device"] = torch.device("meta")
    try:
        returned = func(*there[0], **there[1])
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AssertionError):
        return  # it fails for real too, or reads values, as item() does
    numbers = size(returned)
    if numbers > MOST_NUMBERS and not only_looks(func, args, returned):
        raise TooLarge(
            f"{func._overloadpacket.__name__} makes {numbers:,} numbers from one sample, at most {MOST_NUMBERS:,} are"
        )


def size(returned: Any) -> int:
    """Return how many numbers the largest tensor in what an operation returns has."""
    return max((value.numel() for value in tree_leaves(returned) if isinstance(value, Tensor)), default=0)
