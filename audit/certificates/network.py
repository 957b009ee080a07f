"""A network as a list of operations that have bounds, read off one pass of it; or the name of the layer that has none.

The network runs once on tensors without values, and what torch was asked to do is written down (`make_fx`): views, in-place
operations, layers and functions of any kind, from any of the readers, become the same few dozen operations. What is computed
from weights alone is computed as the network does. Whatever depends on the input in another way than through the operations
known here has no bound: it is refused by name, and never approximated. At the end the list is held against the network itself.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.overrides import TorchFunctionMode

from audit.certificates.operations import Convolution, Linear, Operation
from audit.certificates.rounding import Rounding
from audit.certificates.translate import BATCH, Untranslatable, translate
from audit.errors import AuditError
from audit.model.graph import Graph
from audit.model.outputs import PROBABILITIES
from audit.model.wrapper import Model

Ending = Literal["", "softmax", "sigmoid"]
LARGEST_MATRIX = 2**23  # numbers, 64 MB in float64, of one layer's matrix that is kept to look rows up


class NoBound(AuditError):
    """The network has a layer without a bound; the message names it."""


@dataclass(frozen=True)
class Node:
    """One value of the network: the operation that makes it, of which values, and its shape for one sample.

    The input has no operation; so has no layer.
    """

    operation: Operation | None
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    layer: str


@dataclass(frozen=True)
class Network:
    """The operations of a network in order; the first value is the input, the last one the output.

    The output is what the Model calls logits before a single one is paired with 0: a softmax or sigmoid at the end is left out.

    Attributes
    ----------
    nodes
        In an order in which each is made before it is used.
    single
        Whether the output is one logit, which stands for the pair (0, z).
    rounding
        What floating-point arithmetic does to the network and to its bounds.
    ending
        What the network ends in that is left out.
    dtype
        Type in which bounds are computed: the rounding of the bounds themselves is in them, so that any type makes true ones.
        In float32 that took 0.2 off each margin of a residual network; on a CPU float64 takes 1.1 to 1.5 times as long. On
        other devices, many of which compute float64 slowly or not at all, it is the network's own.
    """

    nodes: tuple[Node, ...]
    single: bool
    rounding: Rounding
    dtype: torch.dtype
    consumers: tuple[tuple[int, ...], ...] = field(default=())
    ending: Ending = ""
    _matrices: dict[int, Tensor | None] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, model: Model, x: Tensor, *, dtype: torch.dtype | None = None) -> Network:
        """Read a network off one pass, and hold it against the outputs of the network on samples `x`, (n, …).

        Raises
        ------
        NoBound
            A layer has no bound, or the operations do not give what the network gives.
        """
        if model.output is None:
            model.resolve(x)
        if model.dtype not in (torch.float32, torch.float64):
            raise NoBound(f"bounds are for networks in float32 or float64, not {model.dtype}: call .float() on it")
        own = torch.float64 if model.device.type == "cpu" else model.dtype
        dtype = torch.promote_types(dtype or own, model.dtype)
        with model.session(), torch.no_grad():
            graph = _recorded(model, x)
            nodes = _nodes(graph, tuple(x.shape[1:]), model, dtype)
            rounding = Rounding.of(model.dtype, dtype, model.device)
            single = (model.output or "").startswith("binary")
            network = cls(nodes, single, rounding, dtype, _consumers(nodes), _ending(graph, model))
            network._hold_against(model, x)
        return network

    def matrix(self, number: int) -> Tensor | None:
        """Return the matrix of the operation that makes a value, (outputs, *shape of its input); None where it is too large."""
        if number not in self._matrices:
            node = self.nodes[number]
            shape = self.nodes[node.inputs[0]].shape if len(node.inputs) == 1 else ()
            size = math.prod(node.shape)
            self._matrices[number] = None
            if isinstance(node.operation, Linear | Convolution) and size * math.prod(shape) <= LARGEST_MATRIX:
                unit = torch.eye(size, dtype=self.dtype, device=node.operation.weight.device)
                parts = [node.operation.back(part.view(-1, *node.shape), [shape])[0] for part in torch.split(unit, 256)]
                self._matrices[number] = torch.cat(parts)
        return self._matrices[number]

    def _hold_against(self, model: Model, x: Tensor) -> None:
        """Compare with the network at samples and at points beside them, one by one and together.

        A Python value that changes from call to call, or an operation that is read wrongly, shows here.
        """
        from audit.certificates.bounds import Bounds

        few = x[:4]
        beside = few + (few.flatten(1).std(dim=1).clamp_min(1e-3) / 4).reshape(-1, *[1] * (x.ndim - 1)) * torch.sin(
            torch.arange(few[0].numel(), device=x.device, dtype=x.dtype)
        ).view_as(few[0])
        for points in (few, beside, few[:1]):
            given = (model.values(points)[:, None] if model.task == "regression" else model.logits(points)).to(self.dtype)
            bounds = Bounds.intervals(self, points.to(self.dtype), points.to(self.dtype))
            low, high = bounds.output()
            if self.single:
                given = given[:, 1:]
            inside = (given >= low) & (given <= high)
            if given.shape != low.shape or not bool(inside.all()):
                far = float(torch.maximum(low - given, given - high).max()) if given.shape == low.shape else float("nan")
                raise NoBound(
                    "the network does not give what its own operations give when they are computed one by one "
                    f"(outside the error of rounding by {far:.2g}): it holds something that changes between two passes or is "
                    "not computed by torch"
                )


class _NoWayOut(TorchFunctionMode):
    """Refuses what takes values out of torch while a network is recorded: what is done with them would not be seen."""

    outside = frozenset({"numpy", "__array__", "tolist", "__dlpack__"})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name not in ("__get__", "__set__") and "rand" not in name and _are_whole(args):
            # Whole numbers of a file, such as the ends of a slice, are what they are for every input.
            with torch._C._DisableFuncTorch(), disable_proxy_modes_tracing(), unset_fake_temporarily():
                return func(*args, **(kwargs or {}))
        if name in self.outside:
            raise NoBound(
                f"the layer {_layer()} takes values out of torch ({name}), so that what is done with them has no bound"
            )
        return func(*args, **(kwargs or {}))


def _are_whole(args: Any) -> bool:
    """Tell whether all tensors are integers with values of their own, the first argument one: nothing recorded has values."""
    from torch._subclasses.fake_tensor import FakeTensor

    tensors = [part for argument in args for part in (argument if isinstance(argument, list | tuple) else (argument,))]
    tensors = [part for part in tensors if isinstance(part, Tensor)]
    if not tensors or not isinstance(args[0], Tensor):
        return False
    return all(
        not isinstance(tensor, FakeTensor)
        and not is_functorch_wrapped_tensor(tensor)
        and not tensor.is_floating_point()
        and not tensor.is_complex()
        for tensor in tensors
    )


_path: list[str] = []


def _layer() -> str:
    return repr(_path[-1]) if _path and _path[-1] else "at the top"


@contextlib.contextmanager
def _named(module: nn.Module) -> Iterator[None]:
    """Keep the name of the layer that is running, and mark what is recorded with it."""
    names = {id(child): name for name, child in module.named_modules()}
    hooks = torch.nn.modules.module

    def enter(child: nn.Module, _inputs: Any) -> None:
        if id(child) in names:
            kind = getattr(child, "kind", type(child).__name__)
            _path.append(f"{names[id(child)]} ({kind})" if names[id(child)] else "")
            fx.traceback.current_meta["nn_module_stack"] = {"layer": (_path[-1], type(child))}

    def leave(child: nn.Module, _inputs: Any, _output: Any) -> None:
        if id(child) in names and _path:
            _path.pop()
            fx.traceback.current_meta["nn_module_stack"] = {"layer": (_path[-1] if _path else "", type(child))}

    handles = (hooks.register_module_forward_pre_hook(enter), hooks.register_module_forward_hook(leave))
    try:
        with fx.traceback.preserve_node_meta():
            yield
    finally:
        for handle in handles:
            handle.remove()
        _path.clear()


def _recorded(model: Model, x: Tensor) -> fx.GraphModule:
    """Return what torch is asked to do for a batch, without in-place operations."""
    from torch.func import functionalize
    from torch.fx.experimental.proxy_tensor import make_fx

    def run(inputs: Tensor) -> Any:
        with _NoWayOut():
            return _call(model.module, model.normalise(inputs).to(model.dtype))

    model.outputs(x[:2])  # says so where they do not fit; an ONNX file's network learns with values how it takes a batch
    example = torch.zeros((BATCH, *x.shape[1:]), dtype=x.dtype, device=x.device)
    try:
        with warnings.catch_warnings(), _named(model.module):
            warnings.simplefilter("ignore")  # of torch, about what it records
            made: Callable[[Tensor], fx.GraphModule] = make_fx(
                functionalize(run, remove="mutations_and_views"), tracing_mode="fake", _allow_non_fake_inputs=True
            )
            return made(example)
    except NoBound:
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0][:200]
        raise NoBound(
            f"the network cannot be written down as operations without values ({type(error).__name__}: {first}): it decides by "
            "its values, or does something that torch cannot follow"
        ) from error


def _call(module: nn.Module, x: Tensor) -> Any:
    """Run the network; of an ONNX file only its graph, without the trials that need values."""
    from audit.model.onnx.network import Network as OnnxNetwork

    if not isinstance(module, OnnxNetwork):
        return module(x)
    from audit.model.onnx.layout import fit

    x, _ = fit(x.to(module.port.dtype), module.port, module.sample)
    way = module._way(tuple(x.shape[1:]))
    if way.together is not None:
        raise NoBound(
            "the ONNX file fixes its batch, so that its graph cannot be read for several samples: export it with a free one"
        )
    with module.batch.following_at(way.following):
        return module._flat(Graph.run(module, {module.inputs[0]: x}))


def _nodes(graph: fx.GraphModule, shape: tuple[int, ...], model: Model, dtype: torch.dtype) -> tuple[Node, ...]:
    """Translate what was recorded; what does not depend on the input is computed."""
    nodes: list[Node] = []
    values: dict[fx.Node, Any] = {}  # a number of a node, or a constant
    place: dict[fx.Node, int] = {}
    end = _last_activation(graph, model)

    def append(operation: Operation | None, inputs: tuple[int, ...], of: tuple[int, ...], layer: str) -> int:
        nodes.append(Node(operation, inputs, of, layer))
        return len(nodes) - 1

    for node in graph.graph.nodes:
        if node.op == "placeholder":
            place[node] = append(None, (), shape, "")
        elif node.op == "get_attr":
            values[node] = _attribute(graph, node.target)
        elif node.op == "output":
            last = node.args[0]
            last = end if end is not None else last
            if not isinstance(last, fx.Node) or last not in place:
                raise NoBound("the network's output does not depend on its input through anything that has a bound")
            _finish(nodes, place[last], model)
        elif end is not None and node is not end and _after(end, node):
            continue
        else:
            _translate(node, place, values, append, nodes, dtype)
    return tuple(nodes)


def _translate(
    node: fx.Node,
    place: dict[fx.Node, int],
    values: dict[fx.Node, Any],
    append: Callable[[Operation | None, tuple[int, ...], tuple[int, ...], str], int],
    nodes: list[Node],
    dtype: torch.dtype,
) -> None:
    layer = _layer_of(node)
    if not node.users:
        return
    if not any(parent in place for parent in node.all_input_nodes):
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise NoBound(f"the layer {layer} draws random numbers, so that it has no bound")
        arguments, keywords = fx.node.map_arg((node.args, node.kwargs), lambda known: values[known])
        values[node] = node.target(*arguments, **keywords)  # type: ignore[operator]
        return
    try:
        for operation, parents, of in translate(node, place, values, nodes, dtype):
            place[node] = append(operation, parents, of, layer)
    except Untranslatable as problem:
        raise NoBound(f"the layer {layer} has no bound: {problem}") from problem


def _layer_of(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    name = next((entry[0] for entry in stack.values()), "")
    what = str(node.target).removeprefix("aten.").split(".")[0]
    return f"{name!r}, operation {what}" if name else what


def _attribute(graph: fx.GraphModule, path: Any) -> Any:
    value: Any = graph
    for part in str(path).split("."):
        value = getattr(value, part)
    return value


def _activation_at_end(graph: fx.GraphModule, model: Model) -> fx.Node | None:
    """Return the softmax or sigmoid at the network's end, where the Model undoes that; see `outputs.py`."""
    if model.output not in PROBABILITIES:
        return None
    node = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    while isinstance(node, fx.Node) and _operation(node) in (
        "view_copy",
        "squeeze_copy",
        "unsqueeze_copy",
        "view",
        "clone",
        "alias_copy",
    ):
        node = node.args[0]
    if (
        not isinstance(node, fx.Node)
        or _operation(node) not in ("_softmax", "sigmoid")
        or not isinstance(node.args[0], fx.Node)
    ):
        raise NoBound(
            "the network returns probabilities, and not straight from a softmax or sigmoid: there is no bound on its logits"
        )
    return node


def _last_activation(graph: fx.GraphModule, model: Model) -> fx.Node | None:
    """Return what goes into the activation at the network's end."""
    node = _activation_at_end(graph, model)
    before = None if node is None else node.args[0]
    return before if isinstance(before, fx.Node) else None


def _ending(graph: fx.GraphModule, model: Model) -> Ending:
    node = _activation_at_end(graph, model)
    return "" if node is None else "sigmoid" if _operation(node) == "sigmoid" else "softmax"


def _operation(node: fx.Node) -> str:
    return str(node.target).removeprefix("aten.").split(".")[0]


def _after(end: fx.Node, node: fx.Node) -> bool:
    """Tell whether a node is made from `end`, and so no part of the logits."""
    seen, waiting = set(), [end]
    while waiting:
        for user in waiting.pop().users:
            if user is node:
                return True
            if user not in seen:
                seen.add(user)
                waiting.append(user)
    return False


def _finish(nodes: list[Node], last: int, model: Model) -> None:
    """Bring the output into the shape (classes,), and make it the last node; drop what nothing reads."""
    from audit.certificates.operations import Reshape

    size = 1
    for length in nodes[last].shape:
        size *= length
    wanted = 1 if (model.task == "regression" or (model.output or "").startswith("binary")) else model.classes
    if wanted is not None and size != wanted:
        raise NoBound(f"the network returns {size} numbers a sample where {wanted} were expected")
    del nodes[last + 1 :]
    nodes.append(Node(Reshape((size,)), (last,), (size,), "output"))


def _consumers(nodes: tuple[Node, ...]) -> tuple[tuple[int, ...], ...]:
    made: list[list[int]] = [[] for _ in nodes]
    for number, node in enumerate(nodes):
        for parent in node.inputs:
            made[parent].append(number)
    return tuple(tuple(users) for users in made)
