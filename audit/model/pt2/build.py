"""Makes a `Graph` of a program: steps with functions from our table, and a trial on the meta device, which holds no numbers.

On the trial every value's type and shape must be what the file says of it, for batches of one and of five: so an operator that
we read in another way than torch, or a batch that is not free, is noticed before anything is computed.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from audit.model.graph import MOST_NUMBERS, Graph, Ref, Step, TooLarge
from audit.model.pt2 import operators
from audit.model.pt2.operators import functions
from audit.model.pt2.problems import Problem, short
from audit.model.pt2.schema import Argument, InputSpec, Name, Node, Program, TensorMeta
from audit.model.pt2.shapes import Expression
from audit.model.pt2.weights import Held

# The largest batch that an audit makes (the default of `Model`).
LARGEST_BATCH = 256
HOW_TO_EXPORT = (
    "export it with a free batch dimension: torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)), "
    "where x has at least 2 samples"
)
TRIED_TWICE = 3000
# Time of this thread for the trials, which contended machines do not prolong.
MOST_SECONDS = 5
INPUT_TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def user_input(program: Program) -> InputSpec:
    """Return the one input that is not a weight.

    Raises
    ------
    Problem
        There is none, or more than one.
    """
    inputs = [spec for spec in program.inputs if spec.kind == "user_input"]
    if len(inputs) != 1:
        names = ", ".join(short(spec.value) for spec in inputs[:5])
        raise Problem(f"takes {len(inputs)} inputs ({names}); audit gives a network one tensor: export a module that takes one")
    return inputs[0]


def free_batch(program: Program) -> str:
    """Return the name of the free size that is the batch.

    Raises
    ------
    Problem
        The batch is fixed, or may not have every size that an audit needs.
    """
    meta = _meta(program, user_input(program).value)
    if meta.dtype not in INPUT_TYPES:
        raise Problem(f"takes an input of type {_type(meta.dtype)}; audit perturbs floating-point inputs")
    first = meta.sizes[0] if meta.sizes else None
    if first is None:
        raise Problem("takes an input without dimensions: the first should be the batch")
    if isinstance(first, int):
        raise Problem(f"works on batches of {first} alone: {HOW_TO_EXPORT}")
    if first.symbol is None:
        raise Problem(f"works on batches of {short(first.text)} alone: {HOW_TO_EXPORT}")
    if any(isinstance(size, Expression) and size.symbol == first.symbol for size in meta.sizes[1:]):
        raise Problem(f"takes an input with another dimension as long as its batch: {HOW_TO_EXPORT}")
    low, high = program.ranges.get(first.symbol, (None, None))
    # torch takes sizes 0 and 1 for special and writes 2 as the lowest, whatever the network can do.
    if (low is not None and low > 2) or (high is not None and high < LARGEST_BATCH):
        raise Problem(
            f"works on batches of {low} to {high}, and an audit makes batches of 1 to {LARGEST_BATCH}: {HOW_TO_EXPORT}"
        )
    return first.symbol


def build(program: Program, held: Held) -> Graph:
    """Return the network.

    Raises
    ------
    Problem
        It cannot be audited, holds operators that are not known, or does not compute what the file says.
    """
    batch = free_batch(program)
    _refuse_unknown(program)
    entry = user_input(program).value
    named, tensors, transient = _weights(program, held)
    written = _written_inputs(program, set(named))
    steps: list[Step] = []
    inside = entry
    meta = _meta(program, entry)
    model_dtype = next(
        (t.dtype for t in tensors.values() if t.is_floating_point() and isinstance(t, torch.nn.Parameter)), torch.float32
    )
    if written or model_dtype != meta.dtype:
        # The network gets a value of its own: writing into it changes nothing outside.
        inside = _unused_name(program, f"{entry} as given")
        keywords = {"dtype": meta.dtype, "copy": written}
        steps.append(Step("clone", functions.converted, (Ref(inside),), keywords, (entry,)))
    strict = any(_operator(node).writes for node in program.nodes if node.target not in operators.CHECKS)
    for node in program.nodes:
        if node.target not in operators.CHECKS:
            steps.append(_step(program, node, entry, strict))
    try:
        graph = Graph((inside,), program.output, steps, tensors, named, transient)
    except ValueError as error:
        raise Problem(f"holds a network that does not fit together: {short(str(error))}") from None
    # Two sizes that hardly anybody exports with; long programs are tried with one of them, for each step takes 0.3 ms.
    deadline = time.thread_time() + MOST_SECONDS
    for size in (1, 5) if len(steps) <= TRIED_TWICE else (5,):
        _try(graph, program, inside, {batch: size}, deadline)
    return graph


def sample_shape(program: Program, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Return the shape of an input where free sizes other than `sizes` are as small as the file allows, at least 2."""
    meta = _meta(program, user_input(program).value)
    return tuple(size if isinstance(size, int) else size.value(_sizes(program, sizes)) for size in meta.sizes)


def _sizes(program: Program, sizes: Mapping[str, int]) -> dict[str, int]:
    meta = _meta(program, user_input(program).value)
    found = dict(sizes)
    for size in meta.sizes:
        if isinstance(size, Expression) and size.symbol is not None and size.symbol not in found:
            low, high = program.ranges.get(size.symbol, (None, None))
            found[size.symbol] = max(2, low or 0) if high is None else min(max(2, low or 0), high)
    return found


def _meta(program: Program, name: str) -> TensorMeta:
    if name not in program.tensors:
        raise Problem(f"does not say what shape {short(name)} has")
    return program.tensors[name]


def _refuse_unknown(program: Program) -> None:
    known = operators.table()
    unknown = Counter(n.target for n in program.nodes if n.target not in known and n.target not in operators.CHECKS)
    if unknown:
        listed = ", ".join(f"{short(name)[1:-1]} ({count})" for name, count in unknown.most_common(20))
        raise Problem(f"holds {sum(unknown.values()):,} operations of {len(unknown)} kinds that are not known: {listed}")


def _operator(node: Node) -> operators.Operator:
    return operators.table()[node.target]


def _weights(program: Program, held: Held) -> tuple[dict[str, str], dict[str, Tensor], frozenset[str]]:
    """Return value names to weight names, all tensors by weight name, and the names that are no part of the state dict."""
    tensors = {**held.weights, **held.constants}
    named: dict[str, str] = {}
    alike: dict[int, torch.nn.Parameter] = {}  # tied parameters stay one
    for spec in program.inputs:
        if spec.kind == "user_input":
            continue
        if spec.target not in tensors:
            raise Problem(f"lacks the numbers of {short(spec.target)}")
        if spec.value in named or spec.value == user_input(program).value:
            raise Problem(f"reads two weights under the name {short(spec.value)}")
        got, said = tensors[spec.target], _meta(program, spec.value)
        if tuple(got.shape) != said.sizes or got.dtype != said.dtype:
            raise Problem(f"holds {short(spec.target)} of shape {tuple(got.shape)}, and its program wants {said.sizes}")
        if spec.kind == "parameter" and not isinstance(got, torch.nn.Parameter):
            alike[id(got)] = alike.get(id(got)) or torch.nn.Parameter(got, requires_grad=said.requires_grad)
            tensors[spec.target] = alike[id(got)]
        named[spec.value] = spec.target
    for name in tensors:
        if name.count(".") > 50:
            raise Problem(f"has a weight {short(name)} inside more than 50 modules")
    return named, tensors, held.transient


def _written_inputs(program: Program, weights: set[str]) -> bool:
    """Return whether something writes into the network's input; refuse where it writes into a weight.

    Which values share memory is told from the schemas: a view of a view of the input is the input.
    """
    entry = user_input(program).value
    behind: dict[str, frozenset[str]] = {entry: frozenset({entry}), **{name: frozenset({name}) for name in weights}}
    into: set[str] = set()
    made = {*behind}
    for node in program.nodes:
        if node.target in operators.CHECKS:
            continue
        operator = _operator(node)
        shared: frozenset[str] = frozenset()
        for name, _, argument in node.inputs:
            if name in operator.views:
                shared |= frozenset().union(*(behind.get(value, frozenset()) for value in _names(argument)))
        if operator.writes:
            first = operator.parameters[0].name
            targets = [value for name, _, argument in node.inputs if name == first for value in _names(argument)]
            into |= frozenset().union(*(behind.get(value, frozenset()) for value in targets))
        for value in _outputs(node):
            if value in made:
                raise Problem(f"makes two values of the name {short(value)}")
            if value:
                made.add(value)
                behind[value] = shared
    if into & weights:
        raise Problem(
            f"changes its own weights as it runs ({short(sorted(into & weights)[0])}): was it exported in training mode? "
            "Export it after model.eval()"
        )
    return bool(into)


def _names(argument: Argument) -> list[str]:
    parts = argument.value if isinstance(argument.value, list) else [argument.value]
    return [part.name for part in parts if isinstance(part, Name)]


def _outputs(node: Node) -> list[str]:
    return [name for output in node.outputs for name in ((output,) if isinstance(output, str) else output)]


def _step(program: Program, node: Node, entry: str, strict: bool) -> Step:
    operator = _operator(node)
    bound = operators.bind(operator, node)
    function = operator.function
    if strict and function is functions.view:
        # Where something writes in place, a copy in the place of a view would lose what is written.
        function = torch.ops.aten.view.default
    listed = any(isinstance(output, tuple) for output in node.outputs)
    if listed != operator.lists or (listed and len(node.outputs) != 1) or not node.outputs:
        raise Problem(f"has {operator.target} with other outputs than it returns")
    outputs = _outputs(node)
    if listed:
        function = _parts(function, len(outputs))
    positional = [_ref(value) for value in bound.positional]
    keywords = {name: _ref(value) for name, value in bound.keywords.items()}
    if function is functions.squeeze:
        positional.append(_ones(program, positional[0]))
    if operator.makes:
        positional.insert(0, Ref(entry))
    if strict and function is torch.ops.aten.view.default:
        positional, keywords = [*positional, *keywords.values()], {}
    return Step(_kind(operator, bound), function, positional, keywords, outputs)


def _ones(program: Program, value: Any) -> list[int]:
    """Return the dimensions whose length is 1 whatever goes in."""
    sizes = _meta(program, value.name).sizes if isinstance(value, Ref) else ()
    return [position for position, size in enumerate(sizes) if size == 1]


def _parts(function: Any, count: int) -> Any:
    """Return a function that makes exactly so many parts, or fails: a dimension that is split may be a free one."""

    def run(*arguments: Any, **keywords: Any) -> Any:
        found = function(*arguments, **keywords)
        if len(found) != count:
            raise ValueError(f"it should make {count} parts, got {len(found)}")
        return found[0] if count == 1 else tuple(found)

    return run


def _ref(value: Any) -> Any:
    if isinstance(value, Name):
        return Ref(value.name)
    return [_ref(part) for part in value] if isinstance(value, list) else value


def _kind(operator: operators.Operator, bound: operators.Bound) -> str:
    if operator.kind != "convolution":
        return operator.kind
    turned = "_transpose" if bound.keywords.get("transposed") else ""
    return f"conv{turned}{len(bound.keywords.get('stride', ()))}d"


def _unused_name(program: Program, name: str) -> str:
    taken = {*program.tensors, *(value for node in program.nodes for value in _outputs(node))}
    while name in taken:
        name += "'"
    return name


def _try(graph: Graph, program: Program, entry: str, free: dict[str, int], deadline: float) -> None:
    """Run on the meta device, and hold every value against what the file says of it."""
    sizes = _sizes(program, free)
    shape = sample_shape(program, free)
    batch = next(iter(free.values()))
    if math.prod(shape) > batch * MOST_NUMBERS:
        raise Problem(f"takes inputs of shape {shape}; at most {MOST_NUMBERS:,} numbers a sample are read")

    def observe(step: Step, returned: Any) -> None:
        if time.thread_time() > deadline:
            raise TooLarge(f"holds a network whose shapes alone take over {MOST_SECONDS} seconds to compute")
        several = isinstance(returned, tuple | list) and len(step.outputs) != 1
        for name, value in zip(step.outputs, returned if several else (returned,), strict=False):
            if isinstance(value, Tensor):
                if value.numel() > batch * MOST_NUMBERS:
                    raise TooLarge(
                        f"holds a step {step.kind} that makes {value.numel():,} numbers from {batch} samples; "
                        f"at most {MOST_NUMBERS:,} a sample are computed"
                    )
                _check(step, value, _meta(program, name), sizes)

    inputs = {entry: torch.empty(shape, dtype=_meta(program, user_input(program).value).dtype, device="meta")}
    try:
        with torch.no_grad():
            out = graph.run(inputs, weight=lambda tensor: tensor.to("meta"), observe=observe)
    except (TooLarge, Problem) as error:
        raise Problem(str(error)) from None
    except Exception as error:
        # Whatever kernels say of arguments that do not fit one another.
        line = (str(error).strip().splitlines() or [""])[0]
        raise Problem(f"holds a network that does not compute: {type(error).__name__}: {short(line)[1:-1]}") from None
    if not isinstance(out, Tensor) or out.ndim < 1 or out.shape[0] != batch:
        raise Problem(f"returns a shape of {tuple(getattr(out, 'shape', ()))} for a batch of {batch}: {HOW_TO_EXPORT}")


def _check(step: Step, value: Tensor, said: TensorMeta, sizes: Mapping[str, int]) -> None:
    wanted = tuple(size if isinstance(size, int) else size.value(sizes) for size in said.sizes)
    if tuple(value.shape) != wanted or value.dtype != said.dtype:
        raise Problem(
            f"says that the step {step.kind} makes {_type(said.dtype)} of shape {wanted}, but it makes {_type(value.dtype)} of "
            f"shape {tuple(value.shape)}"
        )


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
