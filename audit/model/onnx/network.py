"""The network of an ONNX file: takes any number of samples, also where the file was written for one.

Many files fix a batch of 1, in the input's shape or deep inside, as the first number of a Reshape. Whether such a network also
runs on larger batches is not read off the file but tried: three random samples together must give what each gives alone. Where
they do not, and no free form of the fixed numbers helps, samples are run as the file has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from audit.errors import AuditError, ModelError
from audit.files import memory_limit
from audit.model.batching import is_out_of_memory
from audit.model.graph import Graph, Step, TooLarge
from audit.model.onnx.bounded import Cost, shapes_only
from audit.model.onnx.free_batch import FreeBatch
from audit.model.onnx.layout import Port, fit, shape_text
from audit.model.onnx.messages import NodeProto
from audit.model.onnx.operators import Unsupported

# Floating-point operations and numbers for one sample: up to here a network is tried when it is loaded, else when it is used.
CHEAP, SMALL = 2 * 10**10, 2**25
SAME = 1e-3  # of the largest output: float32 in another order differs by less, samples that see each other by more
_MIXES = (
    "what it answers for one depends on the others, so that no audit of single samples holds; export it in evaluation mode, "
    "with a free batch dimension"
)
_RANDOM = 3
_MANY = 257  # samples, for a pass that looks at shapes alone: a number that few other lengths have


class NodeFailed(ModelError):
    """A node cannot be computed: the message names it and says why."""


class NodeCall:
    """Calls what a node computes, with its fixed batch set free where that was found right.

    A class and not a closure, so that a deep copy of the network has its own.
    """

    def __init__(self, compute: Callable[..., Any], node: NodeProto, batch: FreeBatch, place: int | None) -> None:
        self.compute, self.outputs, self.op = compute, len(node.output), node.op_type
        self.called = f"the node {node.name[:100]!r} ({node.op_type[:100]})" if node.name else f"a node {node.op_type[:100]}"
        self.batch, self.place = batch, place

    def __call__(self, *arguments: Any) -> Any:
        """Return the node's output, or a tuple of them."""
        try:
            inputs = list(arguments)
            if self.place is not None:
                inputs = self.batch.free(self.place, self.op, inputs[:-1], len(inputs[-1]))
            returned = self.compute(*inputs)
            if self.place is not None:
                self.batch.note(self.place, self.op, inputs, returned)
        except (TooLarge, Unsupported, AuditError):
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise NodeFailed(f"{self.called} cannot be computed: {_first_line(error)}") from error
        values = tuple(returned) if isinstance(returned, tuple | list) else (returned,)
        if len(values) < self.outputs:
            raise NodeFailed(f"{self.called} has {self.outputs} outputs, but makes {len(values)}")
        return values[0] if self.outputs == 1 else values[: self.outputs]


@dataclass(frozen=True)
class Way:
    """How samples of one shape are run.

    Attributes
    ----------
    following
        Places that follow the real batch, and the axis of each.
    together
        Samples in one pass; None for any number, 0 for one at a time and without a batch dimension.
    """

    cost: Cost
    following: Mapping[int, int] = field(default_factory=dict)
    together: int | None = None


class Network(Graph):
    """A Graph of one input whose first dimension is free."""

    def __init__(
        self,
        port: Port,
        output: str,
        steps: Sequence[Step],
        tensors: Mapping[str, Tensor],
        named: Mapping[str, str],
        batch: FreeBatch,
    ) -> None:
        super().__init__([port.name], output, steps, tensors, named)
        self.port, self.batch = port, batch
        self._ways: dict[tuple[int, ...], Way] = {}
        self._without_batch = False

    @property
    def sample(self) -> tuple[int | str, ...] | None:
        """Lengths of one sample as the file states them; None where it states none."""
        dims = self.port.dims
        return None if dims is None else dims if self.without_batch else dims[1:]

    @property
    def without_batch(self) -> bool:
        """Whether the file's input is one sample, and not a batch of them."""
        dims = self.port.dims
        if dims is None or not dims or not isinstance(dims[0], int):
            return dims == ()
        return self._without_batch

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the outputs of shape (n, …) for n samples."""
        (x,) = inputs
        x, done = fit(x.to(self.port.dtype), self.port, self.sample)
        self._note(done)
        way = self._way(tuple(x.shape[1:]))
        self._check_memory(x, way.cost)
        output = self._run(x, way)
        return self._flat(output)

    def try_out(self) -> None:
        """Compute the shapes that the file states, and where that is cheap, try random samples.

        Raises
        ------
        ModelError
            It takes too much, cannot be computed, or samples of one batch change each other's outputs.
        """
        dims = self.port.dims
        if dims is None:
            return
        if isinstance(dims[0] if dims else 0, int):
            self._without_batch = len(dims) <= 1 or self._loses_batch()
        sample = tuple(length for length in self.sample or () if isinstance(length, int))
        if len(sample) < len(self.sample or ()):
            return
        cost = self._cost(self._shape(sample), self.batch.fixed or 1)
        if cost.flops <= CHEAP and cost.live + cost.columns <= SMALL:
            self._way(sample, cost)

    def _loses_batch(self) -> bool:
        """Tell whether a first length above 1 is no batch: what comes out has not as many rows."""
        dims = self.port.dims or ()
        if dims[0] == 1 or any(not isinstance(length, int) for length in dims):
            return False
        cost = self._cost(tuple(length for length in dims if isinstance(length, int)), 1)
        return not cost.shape or cost.shape[0] != dims[0]

    def _shape(self, sample: tuple[int, ...]) -> tuple[int, ...]:
        return sample if self.without_batch else (self.batch.fixed or 1, *sample)

    def _cost(self, shape: tuple[int, ...], samples: int) -> Cost:
        try:
            return shapes_only(self, shape, self.port.dtype, samples)
        except (TooLarge, Unsupported, NodeFailed) as problem:
            raise ModelError(f"for an input of shape {shape}, {problem}") from problem

    def _way(self, sample: tuple[int, ...], cost: Cost | None = None) -> Way:
        if sample not in self._ways:
            cost = cost or self._cost(self._shape(sample), self.batch.fixed or 1)
            try:
                with torch.no_grad():
                    self._ways[sample] = self._find_way(sample, cost)
            except (TooLarge, Unsupported) as problem:
                raise ModelError(f"for samples of {shape_text(sample)}, {problem}") from problem
        return self._ways[sample]

    def _find_way(self, sample: tuple[int, ...], cost: Cost) -> Way:
        together = 0 if self.without_batch else (self.batch.fixed or 1)
        as_file = Way(cost, together=together)
        x = _random_samples(sample, self.port.dtype, next(iter(self.weights.parameters()), torch.empty(0)).device)
        expected = self._flat(self._run(x, as_file))
        if together > 1:
            self._check_rows(x, expected, as_file)
        for following in self._followings(sample, cost):
            way = Way(cost, following)
            if self._fits_batches(sample, cost, following):
                if _same(self._flat(self._run(x, way)), expected):
                    if following:
                        self._note(f"the file fixes a batch of {together}: it was set free, which changes no output")
                    return way
                if together == 1 and self.batch.fixed is None and not following:
                    raise ModelError(f"the network mixes the samples of a batch: {_MIXES}")
        slow = "one sample at a time, so that is how it is run, which is slow"
        several = f"{together} samples at a time, so that is how it is run"
        self._note(
            f"the file holds a network for {slow if together <= 1 else several}; export it with a free batch dimension "
            "(dynamic_axes or dynamic_shapes)"
        )
        return as_file

    def _followings(self, sample: tuple[int, ...], cost: Cost) -> Iterator[Mapping[int, int]]:
        """Yield the places that may follow the batch: none, then all that were found to hold it."""
        yield {}
        if self.batch.places and not self.without_batch:
            with self.batch.looking():
                self._cost(self._shape(sample), self.batch.fixed or 1)
            with self.batch.learning() as learned:
                fits = self._fits_batches(sample, cost, {})
            if fits and learned:
                yield learned

    def _fits_batches(self, sample: tuple[int, ...], alone: Cost, following: Mapping[int, int]) -> bool:
        try:
            with self.batch.following_at(following):
                cost = shapes_only(self, (_MANY, *sample), self.port.dtype, _MANY)
        except (TooLarge, Unsupported, NodeFailed):
            return False
        # What grows faster than the batch is no batch of samples, and would exhaust the machine in a larger one.
        linear = cost.made <= 2 * alone.made and cost.flops <= 2 * alone.flops
        return linear and len(cost.shape) > 0 and cost.shape[0] == _MANY

    def _check_rows(self, x: Tensor, expected: Tensor, way: Way) -> None:
        """Check for a file that fixes a batch of several that its rows do not see each other."""
        others = _random_samples(tuple(x.shape[1:]), x.dtype, x.device, seed=1)
        for row in range(len(x)):
            batch = torch.cat((others[:1], x[row : row + 1], others[1:]))[: max(2, min(4, way.together or 1))]
            if not _same(self._flat(self._run(batch, way))[1:2], expected[row : row + 1]):
                raise ModelError(f"the network mixes the {way.together} samples of its batch: {_MIXES}")

    def _run(self, x: Tensor, way: Way) -> Tensor:
        with self.batch.following_at(way.following):
            if way.together is None:
                return _as_tensor(self.run({self.inputs[0]: x}))
            if way.together == 0:
                return torch.cat([self._row(_as_tensor(self.run({self.inputs[0]: sample}))) for sample in x])
            return torch.cat([self._part(part, way.together) for part in torch.split(x, way.together)])

    def _part(self, part: Tensor, together: int) -> Tensor:
        """Run one batch of the file's size, filled up with copies of its last sample."""
        missing = together - len(part)
        full = torch.cat((part, part[-1:].expand(missing, *part.shape[1:]))) if missing else part
        output = _as_tensor(self.run({self.inputs[0]: full}))
        if together == 1:
            return self._row(output)
        if not output.ndim or len(output) != together:
            raise ModelError(f"the network returns shape {tuple(output.shape)} for a batch of {together} samples")
        return output[: len(part)]

    def _row(self, output: Tensor) -> Tensor:
        return output if output.ndim and len(output) == 1 else output.unsqueeze(0)

    def _flat(self, output: Tensor) -> Tensor:
        """Leave out lengths of 1: (n, classes, 1, 1) becomes (n, classes)."""
        lengths = [length for length in output.shape[1:] if length != 1]
        if output.ndim <= 2 or len(lengths) > 1:
            return output
        self._note(f"the network's output of shape {('n', *output.shape[1:])} is taken as (n, {(lengths or [1])[0]})")
        return output.reshape(len(output), *(lengths or [1]))

    def _check_memory(self, x: Tensor, cost: Cost) -> None:
        """Say in time that a batch is too large for the machine, so that it is halved; the system would end the process."""
        numbers = cost.made if torch.is_grad_enabled() and x.requires_grad else cost.live
        if x.device.type == "cpu" and len(x) > 1 and numbers * len(x) * x.element_size() > memory_limit() // 2:
            raise torch.OutOfMemoryError(f"{len(x)} samples of the network take {numbers * len(x):,} numbers: out of memory")

    def _note(self, text: str) -> None:
        if text and text not in self.notes:
            self.notes.append(text)


def _random_samples(sample: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    """Draw three samples of different scales, since the file does not say which its network takes."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.rand((_RANDOM, *sample), generator=draw)
    scale = torch.tensor([1.0, 2.0, 255.0]).reshape(-1, *[1] * len(sample))
    shift = torch.tensor([0.0, -1.0, 0.0]).reshape(scale.shape)
    return (values * scale + shift).to(device=device, dtype=dtype)


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    a, b = a.double(), b.double()
    finite = b[torch.isfinite(b)]
    most = float(finite.abs().max()) if len(finite) else 1.0
    return torch.allclose(a, b, rtol=SAME, atol=SAME * most + 1e-12, equal_nan=True)


def _as_tensor(output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise ModelError(f"the network returns {type(output).__name__} in the place of a tensor")
    return output


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
