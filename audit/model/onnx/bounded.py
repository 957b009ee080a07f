"""Runs a graph for its shapes alone, and stops it before a value is allocated that no honest network has.

Data are on the meta device, where a tensor of any size costs nothing; what tells shapes is computed for real on the CPU, but
each of torch's operations is asked for the size of its result first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

from audit.model.graph import MOST_NUMBERS, Graph, Step, TooLarge, check_size, only_looks, only_shapes

MOST_REAL = 2**24  # numbers of one value that is computed for real while only shapes are asked for
MOST_LIVE = 2**27  # numbers of all values that are kept at one time, for one sample: 512 MiB in float32
MOST_CALLS = 50_000  # of torch's operations for one sample: what a network unrolls in Python
MOST_FLOPS = 2 * 10**11  # for one sample; ViT-L/16 has 1.2e11, VGG-19 4e10
MOST_COLUMNS = 2**28  # numbers that a convolution unfolds its input into, where it has no faster way


@dataclass(frozen=True)
class Cost:
    """What one sample takes.

    Attributes
    ----------
    shape, dtype
        Of what comes out for the whole input.
    flops
        Floating-point operations.
    live, made
        Numbers that are kept at one time, and numbers that are made in all: what a backward pass keeps.
    columns
        Most numbers that a convolution unfolds its input into.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    flops: int
    live: int
    made: int
    columns: int


def shapes_only(graph: Graph, shape: Sequence[int], dtype: torch.dtype, samples: int = 1) -> Cost:
    """Run a graph of one input on the meta device.

    Parameters
    ----------
    shape
        Of the whole input.
    samples
        How many samples these are: the limits hold for one.

    Raises
    ------
    TooLarge
        It takes more memory or more work than any honest network.
    """
    most_live = live = made = 0
    sizes: dict[str, int] = {}
    drops = iter(graph.drops)

    def observe(step: Step, returned: Any) -> None:
        nonlocal live, made, most_live
        check_size(step.kind, returned) if samples == 1 else None
        values = returned if isinstance(returned, tuple | list) else (returned,)
        for name, value in zip(step.outputs, values, strict=False):
            sizes[name] = value.numel() if isinstance(value, Tensor) else 0
            live += sizes[name]
            made += sizes[name]
        most_live = max(most_live, live)
        if live > samples * MOST_LIVE:
            raise TooLarge(f"the network keeps {live:,} numbers at one time, at most {MOST_LIVE:,} a sample are computed")
        for name in next(drops):
            live -= sizes.pop(name, 0)

    numbers = math.prod(shape)
    if numbers > samples * MOST_NUMBERS:
        raise TooLarge(f"the network takes {numbers:,} numbers, at most {MOST_NUMBERS:,} a sample are read")
    away = {id(tensor): tensor.to("meta") for tensor in (*graph.parameters(), *graph.buffers())}
    before = only_shapes.set(True)
    try:
        with torch.no_grad(), _Watch(samples) as watch:
            x = torch.empty(tuple(shape), dtype=dtype, device="meta")
            output = graph.run({graph.inputs[0]: x}, weight=lambda tensor: away[id(tensor)], observe=observe)
    finally:
        only_shapes.reset(before)
    if not isinstance(output, Tensor):
        raise TypeError("the network returns no tensor")
    return Cost(
        tuple(output.shape),
        output.dtype,
        watch.flops // samples,
        most_live // samples,
        made // samples,
        watch.columns // samples,
    )


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Looks at the size of each operation's result: on the meta device after, elsewhere before it is computed."""

    def __init__(self, samples: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.samples = samples
        self.flops = self.calls = self.columns = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.calls += 1
        if self.calls > MOST_CALLS:
            raise TooLarge(f"one sample takes more than {MOST_CALLS:,} operations")
        if self._real(args, kwargs):
            self._ask_first(func, args, kwargs)
        returned = func(*args, **kwargs)
        if not only_looks(func, args, returned):
            self._check(func, returned, self.samples * MOST_NUMBERS)
        self._count(func, args, kwargs, returned)
        if self.flops > self.samples * MOST_FLOPS:
            raise TooLarge(f"one sample takes more than {MOST_FLOPS:,} floating-point operations")
        return returned

    def _count(self, func: Any, args: Any, kwargs: Any, returned: Any) -> None:
        name = func._overloadpacket.__name__
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=returned)
        else:
            looked_at = math.prod(args[1]) if "_pool" in name and "adaptive" not in name else 1
            self.flops += _numbers(returned) * looked_at
        if name == "convolution":
            x, weight, transposed = args[0], args[1], args[6]
            places = x if transposed else returned
            self.columns = max(self.columns, math.prod(weight.shape[1:]) * places.numel() // max(1, places.shape[1]))
            if self.columns > self.samples * MOST_COLUMNS:
                raise TooLarge(f"a convolution looks at {self.columns:,} numbers, at most {MOST_COLUMNS:,} are read")

    def _real(self, args: Any, kwargs: Any) -> bool:
        there = [value for value in args if isinstance(value, Tensor)]
        there += [part for value in args if isinstance(value, list | tuple) for part in value if isinstance(part, Tensor)]
        if there:
            return all(tensor.device.type != "meta" for tensor in there)
        device = kwargs.get("device")
        return device is None or torch.device(device).type != "meta"

    def _ask_first(self, func: Any, args: Any, kwargs: Any) -> None:
        there = tree_map(lambda value: value.to("meta") if isinstance(value, Tensor) else value, (args, dict(kwargs)))
        if "device" in kwargs or not any(isinstance(value, Tensor) for value in args):
            there[1]["device"] = torch.device("meta")
        try:
            returned = func(*there[0], **there[1])
        except (RuntimeError, NotImplementedError, TypeError):
            return  # reads values, as item() does: of what is small already
        self._check(func, returned, MOST_REAL)

    def _check(self, func: Any, returned: Any, most: int) -> None:
        numbers = _numbers(returned)
        if numbers > most:
            raise TooLarge(f"{func._overloadpacket.__name__} makes {numbers:,} numbers, at most {most:,} are computed")


def _numbers(returned: Any) -> int:
    if isinstance(returned, Tensor):
        return returned.numel()
    if isinstance(returned, tuple | list):
        return max((value.numel() for value in returned if isinstance(value, Tensor)), default=0)
    return 0
