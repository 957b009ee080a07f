"""The network of an ONNX file: takes any number of samples, also where the file was written for one.

Many files fix a batch of 1, in the input's shape or deep inside, as the first number of a Reshape. Whether such a network also
runs on larger batches is not read off the file but tried: three random samples together must give what each gives alone. Where
they do not, and no free form of the fixed numbers helps, samples are run as the file has them. Random samples may saturate what
real ones do not, so that the first real samples that come together are tried in the same way.
"""

from __future__ import annotations

import math
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
MOST_OUTPUTS = 2**22  # numbers that one sample gives: those of a few samples are compared in several copies
SAME = 1e-3  # of a sample's largest output: float32 in another order differs by less, samples that see each other by more
# Scales of the third random sample: bytes, and smaller ones where numbers are names of classes that a table must hold.
_LARGEST = (255.0, 8.0, 1.0)
# What hides differences where it saturates: not only what comes out of a last one is compared, but what goes in.
_SATURATING = ("softmax", "sigmoid")
_TRANSPARENT = ("identity", "dropout")
_MIXES = (
    "what it answers for one depends on the others, so that no audit of single samples holds; export it in evaluation mode, "
    "with a free batch dimension"
)
_SET_FREE = "the file fixes a batch of {}: it was set free, which changes no output"
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
        self._tried: set[tuple[int, ...]] = set()
        self._without_batch = False
        self._in_pairs = False  # a Squeeze takes the batch dimension, too, where it holds one sample
        self._judged = _before_activation(steps, output)

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
        way = self._tried_on(x, self._way(tuple(x.shape[1:])))
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
        cost = self._cost_of(sample)
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

    def _cost_of(self, sample: tuple[int, ...]) -> Cost:
        """Return what one sample of this shape takes; as one of two where a network with a free batch takes none alone."""
        try:
            return self._cost(self._shape(sample), self.batch.fixed or 1)
        except ModelError as problem:
            if self.batch.fixed is not None or self.without_batch or not isinstance(problem.__cause__, NodeFailed):
                raise
            try:
                cost = self._cost((2, *sample), 2)
            except ModelError:
                raise problem from problem.__cause__
            self._in_pairs = True
            return cost

    def _cost(self, shape: tuple[int, ...], samples: int) -> Cost:
        try:
            return shapes_only(self, shape, self.port.dtype, samples)
        except (TooLarge, Unsupported, NodeFailed) as problem:
            raise ModelError(f"for an input of shape {shape}, {problem}") from problem

    def _way(self, sample: tuple[int, ...], cost: Cost | None = None) -> Way:
        if sample not in self._ways:
            cost = cost or self._cost_of(sample)
            try:
                with torch.no_grad():
                    self._ways[sample] = self._find_way(sample, cost)
            except (TooLarge, Unsupported) as problem:
                raise ModelError(f"for samples of {shape_text(sample)}, {problem}") from problem
        return self._ways[sample]

    def _find_way(self, sample: tuple[int, ...], cost: Cost) -> Way:
        together = 0 if self.without_batch else (self.batch.fixed or 1)
        if math.prod(cost.shape) > max(1, together) * MOST_OUTPUTS:
            raise TooLarge(f"the network returns shape {cost.shape}; at most {MOST_OUTPUTS:,} numbers a sample are compared")
        as_file = Way(cost, together=together)
        x, expected, largest = self._on_random(sample, as_file)
        if together > 1:
            self._check_rows(x, expected, as_file, _random_samples(sample, x.dtype, x.device, largest, seed=1))
        for following in self._followings(sample, cost):
            way = Way(cost, following)
            if self._fits_batches(sample, cost, following):
                if _same(self._run(x, way, judging=True), expected):
                    if following:
                        self._note(_SET_FREE.format(together))
                    return way
                if together == 1 and self.batch.fixed is None and not following:
                    raise ModelError(f"the network mixes the samples of a batch: {_MIXES}")
        return self._as_the_file_has_it(as_file)

    def _as_the_file_has_it(self, way: Way) -> Way:
        together = way.together or 0
        slow = "one sample at a time, so that is how it is run, which is slow"
        several = f"{together} samples at a time, so that is how it is run"
        self._note(
            f"the file holds a network for {slow if together <= 1 else several}; export it with a free batch dimension "
            "(dynamic_axes or dynamic_shapes)"
        )
        return way

    def _tried_on(self, x: Tensor, way: Way) -> Way:
        """Hold the way against what the file itself makes of the first real samples that come together."""
        sample = tuple(x.shape[1:])
        if len(x) < 2 or sample in self._tried:
            return way
        if way.together in (0, 1):
            return way
        several = x.detach()[_spread(len(x), 8)]
        rows = _spread(len(several), _RANDOM)
        as_file, few = Way(way.cost, together=self.batch.fixed or 1), several[rows]
        with torch.no_grad():
            expected = self._run(few, as_file, judging=True)
            if way.together is None and not _same(self._run(several, way, judging=True)[rows], expected):
                if self.batch.fixed is None:
                    raise ModelError(f"the network mixes the samples of a batch: {_MIXES}")
                self.notes[:] = [note for note in self.notes if note != _SET_FREE.format(self.batch.fixed)]
                self._ways[sample] = way = self._as_the_file_has_it(as_file)
            if (way.together or 1) > 1:
                self._check_rows(few, expected, way, few.roll(1, 0))
        self._tried.add(sample)
        return way

    def _on_random(self, sample: tuple[int, ...], way: Way) -> tuple[Tensor, Tensor, float]:
        """Return random samples that can be computed, what comes out, and the largest number that was drawn."""
        device = next(iter(self.weights.parameters()), torch.empty(0)).device
        for largest in _LARGEST:
            x = _random_samples(sample, self.port.dtype, device, largest)
            try:
                return x, self._run(x, way, judging=True), largest
            except NodeFailed:
                if largest == _LARGEST[-1]:
                    raise
        raise AssertionError  # the loop returns or raises

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

    def _check_rows(self, x: Tensor, expected: Tensor, way: Way, others: Tensor) -> None:
        """Check for a file that fixes a batch of several that its rows do not see each other."""
        for row in range(len(x)):
            batch = torch.cat((others[:1], x[row : row + 1], others[1:]))[: max(2, min(4, way.together or 1))]
            if not _same(self._run(batch, way, judging=True)[1:2], expected[row : row + 1]):
                raise ModelError(f"the network mixes the {way.together} samples of its batch: {_MIXES}")

    def _run(self, x: Tensor, way: Way, *, judging: bool = False) -> Tensor:
        """Return what comes out; when judging, with what goes into a last softmax or sigmoid beside it, number by number."""
        with self.batch.following_at(way.following):
            if way.together is None:
                # A batch dimension of one may have been squeezed away.
                return self._pass(x, judging) if len(x) > 1 else self._row(self._pass(x, judging))
            if way.together == 0:
                return torch.cat([self._row(self._pass(sample, judging)) for sample in x])
            return torch.cat([self._part(part, way.together, judging) for part in torch.split(x, way.together)])

    def _part(self, part: Tensor, together: int, judging: bool) -> Tensor:
        """Run one batch of the file's size, filled up with copies of its last sample."""
        missing = together - len(part)
        full = torch.cat((part, part[-1:].expand(missing, *part.shape[1:]))) if missing else part
        output = self._pass(full, judging)
        if together == 1:
            return self._row(output)
        if not output.ndim or len(output) != together:
            raise ModelError(f"the network returns shape {tuple(output.shape)} for a batch of {together} samples")
        return output[: len(part)]

    def _pass(self, x: Tensor, judging: bool) -> Tensor:
        """Run the graph once."""
        # A file of several samples need not take one alone either, once its batch is free.
        alone = len(x) == 1 and (self._in_pairs or (self.batch.fixed or 1) > 1) and not self.without_batch
        before: list[Tensor] = []

        def observe(step: Step, returned: Any) -> None:
            if step.outputs == (self._judged,):
                before.append(_as_tensor(returned))

        inputs = {self.inputs[0]: torch.cat((x, x)) if alone else x}
        output = _as_tensor(self.run(inputs, observe=observe if judging else None))
        if before and before[0].shape == output.shape:
            output = torch.stack((output, before[0]), dim=-1)
        return output[:1] if alone else output

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


def _before_activation(steps: Sequence[Step], output: str) -> str:
    """Return the name of what goes into a last softmax or sigmoid; the empty text where the network ends in none."""
    makers = {step.outputs: step for step in steps}
    name, found = output, ""
    while (step := makers.get((name,))) is not None and step.kind in (*_SATURATING, *_TRANSPARENT) and step.reads:
        name = step.reads[0]
        found = name if step.kind in _SATURATING else found
    return found


def _spread(n: int, most: int) -> list[int]:
    """Return at most so many positions among n, the first and the last with them."""
    return sorted({place * (n - 1) // (most - 1) for place in range(most)})


def _random_samples(sample: tuple[int, ...], dtype: torch.dtype, device: torch.device, largest: float, seed: int = 0) -> Tensor:
    """Draw three samples of different scales, since the file does not say which its network takes."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.rand((_RANDOM, *sample), generator=draw)
    scale = torch.tensor([1.0, 2.0, largest]).reshape(-1, *[1] * len(sample))
    shift = torch.tensor([0.0, -1.0, 0.0]).reshape(scale.shape)
    return (values * scale + shift).to(device=device, dtype=dtype)


def _same(a: Tensor, b: Tensor) -> bool:
    """Tell whether the outputs of each sample are the same; those of one may be far smaller than those of another."""
    if a.numel() != b.numel() or len(a) != len(b):
        return False
    if not a.numel():
        return True
    same = max(SAME, 8 * torch.finfo(a.dtype).eps) if a.is_floating_point() else SAME
    a, b = a.reshape(len(a), -1).double(), b.reshape(len(b), -1).double()
    size = torch.where(torch.isfinite(b), b.abs(), 0.0)
    bound = same * size.amax(dim=1, keepdim=True) + 1e-6 * size.max() + 1e-12
    alike = (a == b) | (torch.isnan(a) & torch.isnan(b)) | ((a - b).abs() <= bound)
    return bool(alike.all())


def _as_tensor(output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise ModelError(f"the network returns {type(output).__name__} in the place of a tensor")
    return output


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
