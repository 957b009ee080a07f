"""A network given as a list of steps over named values: what a ``.pt2`` or ONNX file becomes.

No code is generated from a file: each step holds a function of ours or of torch, chosen from a table, and the arguments for it.
Steps are modules, so that hooks (Grad-CAM) find the convolutions by their kind; the weights stand in modules of their own under
the names that the file gives, so that the state dict reads as the original network's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# One value of one sample: 256 MiB in float32. Larger ones are made by files that mean to exhaust the machine.
MOST_NUMBERS = 2**26

# Modules that weights stand in: as many as an honest network has weights. Each takes 2 kB and 50 µs, whatever its weights do.
MOST_MODULES = 30_000

# True while only shapes are computed, on the meta device: constants of a file then need no memory either.
only_shapes: ContextVar[bool] = ContextVar("only_shapes", default=False)


class TooLarge(Exception):
    """A value would have more numbers than any honest network's has."""


@dataclass(frozen=True)
class Ref:
    """Stands in a step's arguments for the value of that name."""

    name: str


class Step(nn.Module):
    """One operation: a function, its arguments with a `Ref` where a value goes, and the names of what it returns.

    Parameters
    ----------
    kind
        What the operation is, in torch's words: ``conv2d``, ``linear``, ``relu``, … Explainers look for it.
    function
        Called with the arguments once each `Ref` is replaced; returns one value, or a tuple or list of them.
    arguments, keywords
        Plain values, `Ref`, and lists or tuples of them.
    outputs
        Names of the returned values; an empty name is not kept.
    """

    def __init__(
        self,
        kind: str,
        function: Callable[..., Any],
        arguments: Sequence[Any],
        keywords: Mapping[str, Any] | None = None,
        outputs: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.kind = kind
        self.function = function
        self.arguments = tuple(arguments)
        self.keywords = dict(keywords or {})
        self.outputs = tuple(outputs)
        self.reads = tuple(ref.name for ref in _refs([*self.arguments, *self.keywords.values()]))

    def forward(self, *values: Any) -> Any:
        """Apply the function; `values` are those of `reads`, in order."""
        following = iter(values)
        arguments = [_replace(argument, following) for argument in self.arguments]
        keywords = {name: _replace(argument, following) for name, argument in self.keywords.items()}
        return self.function(*arguments, **keywords)

    def extra_repr(self) -> str:
        """Say what the step does."""
        return f"{self.kind}: {', '.join(self.reads)} -> {', '.join(self.outputs)}"


class Graph(nn.Module):
    """Runs steps in order, and lets go of each value after its last use.

    Parameters
    ----------
    inputs, output
        Names of the values that go in, and of the one that comes out.
    steps
        In an order in which each value is made before it is read.
    tensors
        Weights by name: an ``nn.Parameter`` becomes a parameter, any other tensor a buffer. Dots in names make modules, as in a
        state dict.
    named
        Name of the value under which the steps read each weight: value name to weight name.
    transient
        Names of those tensors that are no part of the state dict.

    Raises
    ------
    ValueError
        A weight's name cannot stand in a module, or a step reads a value that nothing made.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        output: str,
        steps: Sequence[Step],
        tensors: Mapping[str, Tensor],
        named: Mapping[str, str],
        transient: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.inputs, self.output = tuple(inputs), output
        self.weights = nn.Module()
        self._modules_left = MOST_MODULES
        self.steps = nn.ModuleList(steps)
        for name, tensor in tensors.items():
            self._register(name, tensor, persistent=name not in transient)
        self.named = dict(named)
        self.notes: list[str] = []  # what a user should know of how the file was read: shown in the report
        self.drops = self._last_uses()
        self.eval()

    def forward(self, *inputs: Tensor) -> Any:
        """Return the output for the inputs, in their order."""
        if len(inputs) != len(self.inputs):
            raise ValueError(f"the network takes {len(self.inputs)} inputs ({', '.join(self.inputs)}), got {len(inputs)}")
        return self.run(dict(zip(self.inputs, inputs, strict=True)))

    def run(
        self,
        values: dict[str, Any],
        weight: Callable[[Tensor], Tensor] | None = None,
        observe: Callable[[Step, Any], None] | None = None,
    ) -> Any:
        """Run the steps on `values` by name and return the output.

        Parameters
        ----------
        values
            The inputs; other values are added and dropped.
        weight
            Applied to each weight before it is used (``lambda t: t.to("meta")``); as it is where None.
        observe
            Called with each step and what it returned.
        """
        for value, name in self.named.items():
            tensor = self._tensor(name)
            values[value] = tensor if weight is None else weight(tensor)
        for step, drops in zip(self.steps, self.drops, strict=True):
            assert isinstance(step, Step)  # noqa: S101  (a ModuleList says Module)
            returned = step(*(values[name] for name in step.reads))
            if observe is not None:
                observe(step, returned)
            several = isinstance(returned, tuple | list) and len(step.outputs) != 1
            for name, value in zip(step.outputs, returned if several else (returned,), strict=False):
                values[name] = value
            for name in drops:
                values.pop(name, None)
        return values[self.output]

    def largest(self, *shapes: Sequence[int], dtype: torch.dtype = torch.float32) -> int:
        """Return how many numbers the largest value has for inputs of these shapes, by running on the meta device.

        Raises
        ------
        TooLarge
            A value has more than `MOST_NUMBERS`, or the values of one step do.
        """
        most = 0

        def observe(step: Step, returned: Any) -> None:
            nonlocal most
            most = max(most, check_size(step.kind, returned))

        inputs = {
            name: torch.empty(tuple(shape), dtype=dtype, device="meta") for name, shape in zip(self.inputs, shapes, strict=True)
        }
        before = only_shapes.set(True)
        try:
            with torch.no_grad():
                self.run(inputs, weight=lambda tensor: tensor.to("meta"), observe=observe)
        finally:
            only_shapes.reset(before)
        return most

    def train(self, mode: bool = True) -> Graph:  # noqa: ARG002  (nn.Module's signature)
        """Stay in evaluation mode: a file of this kind holds the network as it is deployed."""
        return super().train(False)

    def _register(self, name: str, tensor: Tensor, *, persistent: bool) -> None:
        *path, last = name.split(".")
        holder = self.weights
        for part in path:
            if part not in holder._modules:
                if not part.strip() or hasattr(holder, part):
                    raise ValueError(f"a weight is named {name!r}, which no module can hold")
                self._modules_left -= 1
                if self._modules_left < 0:
                    raise ValueError(f"its weights stand in more than {MOST_MODULES:,} modules")
                holder.add_module(part, nn.Module())
            holder = holder._modules[part]  # type: ignore[assignment]
        if not last or hasattr(holder, last):
            raise ValueError(f"a weight is named {name!r}, which no module can hold")
        if isinstance(tensor, nn.Parameter):
            holder.register_parameter(last, tensor)
        else:
            holder.register_buffer(last, tensor, persistent=persistent)

    def _tensor(self, name: str) -> Tensor:
        path, _, last = name.rpartition(".")
        holder = self.weights
        for part in path.split(".") if path else ():
            holder = holder._modules[part]  # type: ignore[assignment]
        found = holder._parameters.get(last)
        return found if found is not None else holder._buffers[last]  # type: ignore[return-value]

    def _last_uses(self) -> list[tuple[str, ...]]:
        made = {*self.inputs, *self.named}
        last: dict[str, int] = {}
        for position, step in enumerate(self.steps):
            assert isinstance(step, Step)  # noqa: S101  (a ModuleList says Module)
            for name in step.reads:
                if name not in made:
                    raise ValueError(f"the step {step.kind} reads {name!r}, which nothing before it makes")
                last[name] = position
            for name in step.outputs:
                made.add(name)
                last.setdefault(name, position)
        if self.output not in made:
            raise ValueError(f"the output {self.output!r} is made by no step")
        last.pop(self.output, None)
        drops: list[list[str]] = [[] for _ in self.steps]
        for name, position in last.items():
            drops[position].append(name)
        return [tuple(names) for names in drops]


def only_looks(func: Any, args: Sequence[Any], returned: Any) -> bool:
    """Tell whether one of torch's operations makes nothing: it returns a view, no larger than what it is a view of.

    The transpose of a weight may so have more than `MOST_NUMBERS`: the first linear layer of VGG-16 has 102,760,448.
    """
    given = next((argument for argument in args if isinstance(argument, Tensor)), None)
    return (
        getattr(func, "is_view", False)
        and isinstance(given, Tensor)
        and isinstance(returned, Tensor)
        and returned.numel() <= given.numel()
    )


def check_size(kind: str, returned: Any) -> int:
    """Return how many numbers the largest tensor that a step made has; raise `TooLarge` above `MOST_NUMBERS`.

    What is a view, and no larger than what it is a view of, was not made.
    """
    tensors = [
        value for value in (returned if isinstance(returned, tuple | list) else (returned,)) if isinstance(value, Tensor)
    ]
    most = max((tensor.numel() for tensor in tensors if not _is_part(tensor)), default=0)
    if most > MOST_NUMBERS or len(tensors) > 4096:
        raise TooLarge(f"the step {kind} makes {most:,} numbers from one sample, at most {MOST_NUMBERS:,} are computed")
    return most


def _is_part(tensor: Tensor) -> bool:
    base = tensor._base
    return base is not None and tensor.numel() <= base.numel()


def _refs(arguments: Sequence[Any]) -> Iterator[Ref]:
    for argument in arguments:
        if isinstance(argument, Ref):
            yield argument
        elif isinstance(argument, tuple | list):
            yield from _refs(argument)


def _replace(argument: Any, following: Iterator[Any]) -> Any:
    if isinstance(argument, Ref):
        return next(following)
    if isinstance(argument, tuple | list):
        return type(argument)(_replace(part, following) for part in argument)
    return argument
