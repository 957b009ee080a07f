"""What torch was asked to do, in the operations that have bounds; anything else is untranslatable, and says so."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as f

from audit.certificates.activations import Bend, Kink, Maximum
from audit.certificates.operations import (
    LOWEST,
    Concatenation,
    Convolution,
    Linear,
    Operation,
    Padding,
    Reshape,
    Same,
    Scale,
    Sum,
    Weighted,
    average,
    pad,
)

# Samples in the pass that is recorded. Any number above 1 does; a prime that no layer has lets mixed-up dimensions show.
BATCH = 3

Made = tuple[Operation, tuple[int, ...], tuple[int, ...]]  # operation, nodes that go in, shape of one sample


class Untranslatable(Exception):
    """An operation has no bound; says why."""


class Reader:
    """One recorded operation with its arguments: which are values of the network, and which are constants."""

    def __init__(
        self, node: fx.Node, place: dict[fx.Node, int], values: dict[fx.Node, Any], nodes: Sequence[Any], dtype: torch.dtype
    ) -> None:
        self.node, self.place, self.values, self.nodes, self.dtype = node, place, values, nodes, dtype
        schema = getattr(node.target, "_schema", None)
        names = [argument.name for argument in schema.arguments] if schema is not None else []
        defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()} if schema is not None else {}
        self.arguments = {**defaults, **dict(zip(names, node.args, strict=False)), **node.kwargs}

    def __getitem__(self, name: str) -> Any:
        """Return an argument: a number of a node wrapped in `Value`, a constant, or plain data."""
        return self._known(self.arguments[name])

    def _known(self, argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return Value(self.place[argument], self.nodes) if argument in self.place else self.values[argument]
        if isinstance(argument, list | tuple):
            return [self._known(part) for part in argument]
        return argument

    def value(self, name: str = "self") -> Value:
        """See the base class."""
        found = self[name]
        if not isinstance(found, Value):
            raise Untranslatable(f"its argument {name} does not depend on the input, but another one does")
        return found

    def constant(self, name: str) -> Tensor | None:
        """Return what is added; see `Affine.constant`."""
        found = self[name]
        if isinstance(found, Value):
            raise Untranslatable("two values that depend on the input are multiplied, or a weight depends on the input")
        return None if found is None else self.tensor(found)

    def tensor(self, value: Any) -> Tensor:
        """Return a constant in the type of the bounds; a number is what the network's own type makes of it."""
        own = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=self.node.meta["val"].dtype)
        return own.detach().to(self.dtype)

    def shape(self, value: Any = None) -> tuple[int, ...]:
        """Return the shape of one sample of the result."""
        made = self.node.meta["val"] if value is None else value
        shape = tuple(int(length) for length in made.shape)
        if not shape or shape[0] != BATCH:
            raise Untranslatable(f"its output of shape {shape} for {BATCH} samples has no row for each sample")
        return shape[1:]

    def beside(self, constant: Any, value: Value) -> Tensor:
        """Return a constant so that it broadcasts to one sample of a value: a row for each sample must be the same row."""
        tensor = self.tensor(constant)
        if tensor.ndim == len(value.shape) + 1:
            if tensor.shape[0] not in (1, BATCH) or not bool((tensor == tensor[:1]).all()):
                raise Untranslatable("its constant differs from sample to sample")
            tensor = tensor[0]
        if tensor.ndim > len(value.shape):
            raise Untranslatable(f"a constant of shape {tuple(tensor.shape)} does not fit one sample of shape {value.shape}")
        return tensor


class Value:
    """A value of the network that depends on the input."""

    def __init__(self, number: int, nodes: Sequence[Any]) -> None:
        self.number, self.shape = number, tuple(nodes[number].shape)


def translate(
    node: fx.Node, place: dict[fx.Node, int], values: dict[fx.Node, Any], nodes: Sequence[Any], dtype: torch.dtype
) -> list[Made]:
    """Return the operations that a recorded one stands for, in order; each reads nodes that exist by then.

    Raises
    ------
    Untranslatable
        It has no bound.
    """
    name = str(node.target).removeprefix("aten.").split(".")[0]
    if name == "<built-in function getitem>":
        if node.args[1] != 0 or _name(node.args[0]) not in _WITH_MORE:
            raise Untranslatable("only the first of its several outputs has a bound")
        first = node.args[0]
        return [(Same(), (place[first],), tuple(nodes[place[first]].shape))]  # type: ignore[index]
    if name not in _TABLE:
        raise Untranslatable("it is none of the operations that bounds are known for")
    return _TABLE[name](Reader(node, place, values, nodes, dtype))


def _name(node: Any) -> str:
    return str(getattr(node, "target", "")).removeprefix("aten.").split(".")[0]


_WITH_MORE = (
    "native_batch_norm",
    "_native_batch_norm_legit_no_training",
    "cudnn_batch_norm",
    "miopen_batch_norm",
    "max_pool2d_with_indices",
    "native_dropout",
    "_batch_norm_with_update",
    "_native_batch_norm_legit",
)


def _one(operation: Operation, value: Value, shape: tuple[int, ...]) -> list[Made]:
    return [(operation, (value.number,), shape)]


def _addmm(r: Reader) -> list[Made]:
    value, weight = r.value("mat1"), r.constant("mat2")
    bias = r.constant("self")
    if weight is None or bias is None or r["beta"] != 1 or r["alpha"] != 1:
        raise Untranslatable("its factors are not 1")
    if bias.ndim == 2:
        bias = r.beside(r["self"], Value(value.number, r.nodes))
    return _one(Linear(weight, bias.reshape(-1).expand(weight.shape[1])), value, r.shape())


def _mm(r: Reader) -> list[Made]:
    value, weight = r.value(), r.constant("mat2")
    if weight is None or len(value.shape) != 1:
        raise Untranslatable("it is a product of other shapes than (samples, inputs) and (inputs, outputs)")
    return _one(Linear(weight, None), value, r.shape())


def _linear(r: Reader) -> list[Made]:
    value, weight, bias = r.value("input"), r.constant("weight"), r.constant("bias")
    if weight is None or len(value.shape) != 1:
        raise Untranslatable("its input has more than one dimension")
    return _one(Linear(weight.T, bias), value, r.shape())


def _matmul(r: Reader) -> list[Made]:
    value, weight = r.value(), r.constant("other")
    if weight is None or len(value.shape) != 1 or weight.ndim != 2:
        raise Untranslatable("it is a product of other shapes than (samples, inputs) and (inputs, outputs)")
    return _one(Linear(weight, None), value, r.shape())


def _mv(r: Reader) -> list[Made]:
    value, weight = r.value(), r.constant("vec")
    if weight is None:
        raise Untranslatable("its vector depends on the input")
    operation = Linear(weight[:, None], None)
    return [(operation, (value.number,), (1,)), (Reshape(()), (len(r.nodes),), ())]


def _convolution(r: Reader) -> list[Made]:
    value, weight, bias = r.value("input"), r.constant("weight"), r.constant("bias")
    assert weight is not None  # noqa: S101  (torch requires it)
    if len(value.shape) != weight.ndim - 1:
        raise Untranslatable("its input has no channels")
    spatial = weight.ndim - 2
    lengths = {key: _list(r[key], spatial) for key in ("stride", "padding", "dilation", "output_padding")}
    return _one(Convolution(weight, bias, transposed=r["transposed"], groups=r["groups"], **lengths), value, r.shape())


def _list(value: Any, length: int) -> list[int]:
    numbers = [value] if isinstance(value, int) else list(value)
    return numbers * length if len(numbers) == 1 else numbers


def _batch_norm(r: Reader) -> list[Made]:
    value = r.value("input")
    training = r.arguments.get("training", False)
    mean, variance = r.constant("running_mean"), r.constant("running_var")
    eps = r.arguments.get("eps", r.arguments.get("epsilon"))
    if training or mean is None or variance is None or eps is None:
        raise Untranslatable("it normalises by the statistics of the batch, so that samples depend on each other")
    weight, bias = r.constant("weight"), r.constant("bias")
    factor = (variance + eps).rsqrt()
    factor = factor if weight is None else factor * weight
    shift = -mean * factor
    size = shift.abs()
    if bias is not None:
        size, shift = size + bias.abs(), shift + bias
    shape = (-1, *[1] * (len(value.shape) - 1))
    return _one(Scale(factor.reshape(shape), shift.reshape(shape), 8, size.reshape(shape)), value, value.shape)


def _add(r: Reader) -> list[Made]:
    return _plus(r, 1.0)


def _sub(r: Reader) -> list[Made]:
    return _plus(r, -1.0)


def _plus(r: Reader, sign: float) -> list[Made]:
    one, other, factor = r["self"], r["other"], sign * float(r.arguments.get("alpha", 1))
    shape = r.shape()
    if isinstance(one, Value) and isinstance(other, Value):
        if len(one.shape) != len(other.shape):
            raise Untranslatable("its two values have different numbers of dimensions")
        return [(Sum(factor), (one.number, other.number), shape)]
    value, constant = (one, other) if isinstance(one, Value) else (other, one)
    shift = r.beside(constant, Value(value.number, r.nodes)) if len(value.shape) == len(shape) else r.tensor(constant)
    if len(value.shape) != len(shape):
        raise Untranslatable("its constant gives the value more dimensions")
    scaled = factor if isinstance(one, Value) else 1.0
    slope = 1.0 if isinstance(one, Value) else factor
    return _one(Scale(r.tensor(slope), shift * scaled, 2), value, shape)


def _rsub(r: Reader) -> list[Made]:
    value = r.value()
    if r.arguments.get("alpha", 1) != 1:
        raise Untranslatable("its factor is not 1")
    return _one(Scale(r.tensor(-1.0), r.beside(r["other"], value), 2), value, r.shape())


def _mul(r: Reader) -> list[Made]:
    one, other = r["self"], r["other"]
    if isinstance(one, Value) and isinstance(other, Value):
        raise Untranslatable("two values that depend on the input are multiplied")
    value, constant = (one, other) if isinstance(one, Value) else (other, one)
    return _scaled(r, value, r.beside(constant, value))


def _div(r: Reader) -> list[Made]:
    if isinstance(r["other"], Value) or r.arguments.get("rounding_mode") is not None:
        raise Untranslatable("it divides by a value that depends on the input, or rounds")
    value = r.value()
    return _scaled(r, value, 1 / r.beside(r["other"], value))


def _scaled(r: Reader, value: Value, factor: Tensor) -> list[Made]:
    if len(r.shape()) != len(value.shape):
        raise Untranslatable("its constant gives the value more dimensions")
    return _one(Scale(factor, None, 2), value, r.shape())


def _neg(r: Reader) -> list[Made]:
    value = r.value()
    return _one(Scale(r.tensor(-1.0), None, 0), value, value.shape)


def _kink(left: float, right: float, operations: int = 0) -> Callable[[Reader], list[Made]]:
    def make(r: Reader) -> list[Made]:
        value = r.value()
        return _one(Kink(left, right, operations=operations), value, value.shape)

    return make


def _leaky(r: Reader) -> list[Made]:
    value = r.value()
    return _one(Kink(_number(r, r["negative_slope"]), 1.0, operations=1), value, value.shape)


def _prelu(r: Reader) -> list[Made]:
    value, weight = r.value(), r.constant("weight")
    assert weight is not None  # noqa: S101  (torch requires it)
    if weight.ndim == len(value.shape) + 1:
        weight = weight[0]
    if weight.numel() > 1 and weight.ndim != len(value.shape):
        weight = weight.reshape(-1, *[1] * (len(value.shape) - 1))
    return _one(Kink(weight if weight.numel() > 1 else float(weight), 1.0, operations=1), value, value.shape)


def _clamp(low: str, high: str) -> Callable[[Reader], list[Made]]:
    def make(r: Reader) -> list[Made]:
        value = r.value()
        limits = [r.arguments.get(low), r.arguments.get(high)]
        limits = [None if limit is None else _number(r, limit) for limit in limits]
        if limits[0] is not None and limits[1] is not None and limits[0] > limits[1]:
            raise Untranslatable("its lower limit lies above its upper one")
        ends = [Kink(0.0, 1.0, at=limits[0], value=limits[0])] if limits[0] is not None else []
        ends += [Kink(1.0, 0.0, at=limits[1], value=limits[1])] if limits[1] is not None else []
        made: list[Made] = []
        for end in ends:
            made.append((end, (len(r.nodes) + len(made) - 1 if made else value.number,), value.shape))
        return made or _one(Same(), value, value.shape)

    return make


def _number(r: Reader, limit: Any) -> float:
    known = r._known(limit)
    if isinstance(known, Value) or (isinstance(known, Tensor) and known.numel() != 1):
        raise Untranslatable("its limits depend on the input, or differ from number to number")
    # In the network's own type, in which it is compared.
    return float(torch.tensor(float(known), dtype=r.node.meta["val"].dtype))


def _bend(kind: Any) -> Callable[[Reader], list[Made]]:
    def make(r: Reader) -> list[Made]:
        value = r.value()
        return _one(Bend(kind), value, value.shape)

    return make


def _max_pool(r: Reader) -> list[Made]:
    value = r.value()
    if len(value.shape) != 3:
        raise Untranslatable("its input is no image with channels")
    kernel, stride, padding, dilation = (_list(r[key], 2) for key in ("kernel_size", "stride", "padding", "dilation"))
    maximum = Maximum(kernel, stride or kernel, padding, dilation, bool(r["ceil_mode"]))
    made = r.node.meta["val"]
    return _one(maximum, value, r.shape(made[0] if isinstance(made, tuple | list) else made))


def _average(r: Reader) -> list[Made]:
    value = r.value()
    if len(value.shape) != 3:
        raise Untranslatable("its input is no image with channels")
    keys = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    arguments = [r[key] for key in keys]
    arguments[1] = arguments[1] or arguments[0]
    if (arguments[5] or 1) < 0:
        raise Untranslatable("its divisor is negative")
    terms = math.prod(_list(arguments[0], 2))
    return _one(Weighted(average(f.avg_pool2d, *arguments), terms), value, r.shape())


def _adaptive(r: Reader) -> list[Made]:
    value, size = r.value(), _list(r["output_size"], 2)
    terms = math.prod(-(-length // out) + 1 for length, out in zip(value.shape[-2:], size, strict=True))
    return _one(Weighted(average(f.adaptive_avg_pool2d, size), terms), value, r.shape())


def _mean(r: Reader) -> list[Made]:
    return _over(r, mean=True)


def _total(r: Reader) -> list[Made]:
    return _over(r, mean=False)


def _over(r: Reader, *, mean: bool) -> list[Made]:
    value, keep = r.value(), bool(r.arguments.get("keepdim", False))
    axes = _axes(r.arguments.get("dim"), value)
    terms = math.prod(value.shape[axis - 1] for axis in axes)
    return _one(Weighted(lambda x: x.mean(axes, keep) if mean else x.sum(axes, keep), terms), value, r.shape())


def _axes(given: Any, value: Value) -> list[int]:
    ndim = len(value.shape) + 1
    numbers = [given] if isinstance(given, int) else list(given or range(ndim))
    axes = [axis % ndim for axis in numbers]
    if 0 in axes:
        raise Untranslatable("it goes over the samples of a batch")
    return axes


def _view(r: Reader) -> list[Made]:
    value, shape = r.value(), r.shape()
    if math.prod(shape) != math.prod(value.shape):
        raise Untranslatable("it moves numbers from one sample to another")
    return _one(Reshape(shape), value, shape)


def _moved(*keys: str) -> Callable[[Reader], list[Made]]:
    """Return a reader of an operation that moves numbers within each sample; `keys` name its axes."""

    def make(r: Reader) -> list[Made]:
        value, shape = r.value(), r.shape()
        for key in keys:
            _axes(r.arguments[key], value)
        target = r.node.target
        rest = {name: r[name] for name in r.arguments if name != "self"}
        return _one(Weighted(lambda x: target(x, **rest)), value, shape)  # type: ignore[operator]

    return make


def _permute(r: Reader) -> list[Made]:
    value = r.value()
    order = [axis % (len(value.shape) + 1) for axis in r["dims"]]
    if order[0] != 0:
        raise Untranslatable("it moves the samples of a batch to another dimension")
    return _one(Weighted(lambda x: x.permute(order)), value, r.shape())


def _slice(r: Reader) -> list[Made]:
    value = r.value()
    axis = r["dim"] % (len(value.shape) + 1)
    start, end, step = r["start"], r["end"], r["step"]
    if axis == 0:
        whole = (start in (None, 0)) and (end is None or end >= BATCH) and step == 1
        if not whole:
            raise Untranslatable("it takes some samples of a batch")
        return _one(Same(), value, value.shape)
    part = (slice(None),) * axis + (slice(start, end, step),)
    return _one(Weighted(lambda x: x[part]), value, r.shape())


def _expand(r: Reader) -> list[Made]:
    value, shape = r.value(), r.shape()
    if len(shape) != len(value.shape):
        raise Untranslatable("it gives each sample more dimensions")
    copies = math.prod(shape) // max(1, math.prod(value.shape))
    return _one(Weighted(lambda x: x.expand(-1, *shape), copies), value, shape)


def _cat(r: Reader) -> list[Made]:
    parts, shape = r["tensors"], r.shape()
    axis = r["dim"] % (len(shape) + 1)
    if axis == 0 or not all(isinstance(part, Value) for part in parts):
        raise Untranslatable("it puts samples of a batch, or a constant, beside the value")
    return [(Concatenation(axis), tuple(part.number for part in parts), shape)]


def _pad(r: Reader) -> list[Made]:
    value, widths, fill = r.value(), r["pad"], float(r.arguments.get("value") or 0)
    if len(widths) > 2 * len(value.shape):
        raise Untranslatable("it pads the batch")
    if fill == 0:
        return _one(Weighted(pad(widths)), value, r.shape())
    if not math.isfinite(fill):
        if fill > 0 or not all(_name(user) in ("max_pool2d_with_indices", "max_pool2d") for user in r.node.users):
            raise Untranslatable(f"it pads with {fill}")
        fill = LOWEST
    kept = r.node.meta["val"].dtype
    fill = float(torch.tensor(fill, dtype=kept))  # as the network has it
    filled = f.pad(torch.zeros(value.shape, dtype=r.dtype, device=r.node.meta["val"].device), widths, value=fill)
    return _one(Padding(pad(widths), filled=filled), value, r.shape())


def _same(r: Reader) -> list[Made]:
    value = r.value()
    kept = r.node.meta["val"]
    if not kept.is_floating_point() or kept.dtype not in (torch.float32, torch.float64):
        raise Untranslatable(f"it turns numbers into {kept.dtype}")
    given = r.node.all_input_nodes[0].meta["val"]
    if torch.finfo(kept.dtype).eps > torch.finfo(given.dtype).eps:
        raise Untranslatable(f"it rounds numbers from {given.dtype} to {kept.dtype}")
    return _one(Same(), value, value.shape)


def _dropout(r: Reader) -> list[Made]:
    if r.arguments.get("train"):
        raise Untranslatable("it is dropout that is left on: it draws random numbers")
    value = r.value("input")
    return _one(Same(), value, value.shape)


_TABLE: dict[str, Callable[[Reader], list[Made]]] = {
    "addmm": _addmm,
    "mm": _mm,
    "linear": _linear,
    "matmul": _matmul,
    "mv": _mv,
    "convolution": _convolution,
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "_native_batch_norm_legit": _batch_norm,
    "cudnn_batch_norm": _batch_norm,
    "add": _add,
    "sub": _sub,
    "rsub": _rsub,
    "mul": _mul,
    "div": _div,
    "neg": _neg,
    "relu": _kink(0.0, 1.0),
    "abs": _kink(-1.0, 1.0),
    "leaky_relu": _leaky,
    "prelu": _prelu,
    "_prelu_kernel": _prelu,
    "clamp": _clamp("min", "max"),
    "clamp_min": _clamp("min", ""),
    "clamp_max": _clamp("", "max"),
    "hardtanh": _clamp("min_val", "max_val"),
    "sigmoid": _bend("sigmoid"),
    "tanh": _bend("tanh"),
    "max_pool2d_with_indices": _max_pool,
    "max_pool2d": _max_pool,
    "avg_pool2d": _average,
    "_adaptive_avg_pool2d": _adaptive,
    "adaptive_avg_pool2d": _adaptive,
    "mean": _mean,
    "sum": _total,
    **dict.fromkeys(("view_copy", "view", "_unsafe_view", "reshape", "_reshape_copy", "_reshape_alias_copy", "flatten"), _view),
    **dict.fromkeys(("squeeze_copy", "squeeze", "unsqueeze_copy", "unsqueeze"), _view),
    **dict.fromkeys(("permute_copy", "permute"), _permute),
    **dict.fromkeys(("slice_copy", "slice"), _slice),
    **dict.fromkeys(("select_copy", "select"), _moved("dim")),
    **dict.fromkeys(("transpose_copy", "transpose"), _moved("dim0", "dim1")),
    "flip": _moved("dims"),
    **dict.fromkeys(("expand_copy", "expand"), _expand),
    "cat": _cat,
    "constant_pad_nd": _pad,
    **dict.fromkeys(
        ("clone", "detach", "detach_copy", "alias", "alias_copy", "lift_fresh_copy", "_to_copy", "contiguous"), _same
    ),
    "dropout": _dropout,
    "native_dropout": _dropout,
}
