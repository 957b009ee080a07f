"""Backward-pass approximation (Athalye et al. 2018): a gradient for networks in which some step lets none through.

Rounding, signs, comparisons, casts to integers, ``detach`` and layers with a broken backward keep their values bit for bit, and
get the slope of something smooth. For the search alone: an example is confirmed outside, in the network as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from audit.attacks.geometry import per_sample
from audit.errors import AuditError
from audit.model.batching import is_out_of_memory
from audit.model.wrapper import Model

PROBES = 8  # samples that a layer is asked with
DIRECTIONS = 32  # random directions of a finite difference
STRIDE = 0.05  # their length, in standard deviations of the layer's input

ROUNDING = {"round", "floor", "ceil", "trunc", "fix"}
DIVISION = {"floor_divide", "__floordiv__"}
SIGNS = {"sign", "sgn"}
ABOVE = {"gt", "ge", "__gt__", "__ge__", "greater", "greater_equal"}
BELOW = {"lt", "le", "__lt__", "__le__", "less", "less_equal"}
CASTS = {"float", "double", "half", "bfloat16", "to", "type", "type_as", "long", "int", "short", "char", "byte"}
AND = {"logical_and", "__and__", "bitwise_and"}
OR = {"logical_or", "__or__", "bitwise_or"}
NOT = {"logical_not", "__invert__", "bitwise_not"}
SATURATING = {"exp", "exp2", "softmax", "sigmoid", "expit", "special_expit", "tanh", "erf"}
WIDEST = 10.0  # what goes into one of these, at most, where its slope is taken: e⁻¹⁰ does not underflow
FALSE = 0.5  # correlation of a layer's gradient with its own moves, below which it is mended


@contextmanager
def approximated(model: Model, x: Tensor | None = None) -> Iterator[list[str]]:
    """Let gradients of the network through where it cuts them, inside the ``with`` block.

    Athalye, Carlini & Wagner 2018, "Obfuscated Gradients Give a False Sense of Security", section 4.1 (BPDA): the forward stays
    as it is, and the backward of what cannot be differentiated is that of something like it. Functions of torch: identity for
    rounding, casts and ``detach``; a soft step whose slope never underflows for signs and comparisons; softmax for an argmax
    that becomes one-hot; exponentials, softmax and the like that are so far out that their slope underflows have it further
    in. Layers (asked where `x` is given) whose gradient is zero, NaN or false while their output follows their input: identity
    where shapes agree, else differences along random directions, whose forwards are counted. A layer whose backward ends in an
    error, as that of a function without a derivative does, is one of them.

    What runs under ``torch.no_grad`` or in a function of its own without a layer around it is reached only through the
    differences of the layer that it stands in; indexing by an argmax is not reached.

    Parameters
    ----------
    model
        The Model to attack; its network is put back as it was.
    x : Tensor (n, …), optional
        Some inputs, on which layers that cut the gradient are found.

    Yields
    ------
    list of str
        What was replaced so far, by name; it grows while the network runs.
    """
    names: list[str] = []
    module, mode = model.module, _Mode(names)
    handles: list[Any] = []
    through = _Through(module, mode)
    if x is not None:
        with model.session():
            handles = _mend(model, mode, model.to_input(x[:PROBES]), names, _layers(module, through))
    model.module = through
    try:
        yield names
    finally:
        model.module = module
        for handle in handles:
            handle.remove()


class _Through(nn.Module):
    """The network, with the mode on while it runs and off around it."""

    def __init__(self, module: nn.Module, mode: _Mode) -> None:
        super().__init__()
        self.training = module.training
        self.module, self.mode = module, mode

    def forward(self, x: Tensor) -> Any:
        with self.mode:
            return self.module(x)


class _Carry(torch.autograd.Function):
    """Has the values of the first argument, and hands the gradient to both."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, carrier: Tensor) -> Tensor:  # noqa: ARG004
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG004
        return gradients[0], gradients[0]


def _carry(value: Tensor, carrier: Tensor) -> Tensor:
    return _Carry.apply(value, carrier.to(value.dtype))  # type: ignore[no-any-return,no-untyped-call]


# --- functions --------------------------------------------------------------------------------------------------------


class _Mode(TorchFunctionMode):
    """Gives what torch cannot differentiate a soft twin; whole numbers and truth values keep theirs until they are floats."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():
            return func(*args, **kwargs)
        name = "data" if func == Tensor.data.__get__ else getattr(func, "__name__", "")  # type: ignore[attr-defined]
        plain = name.removesuffix("_")
        if plain != name and plain in ROUNDING | SIGNS | DIVISION and _follows(args[0]):
            soft = _soft(plain, [args[0].clone(), *args[1:]], kwargs, args[0])
            assert soft is not None  # noqa: S101  (every one of these has a twin)
            return args[0].copy_(self._pair(func(args[0].detach().clone(), *args[1:], **kwargs), soft, plain))
        twins = [_twin(arg) for arg in args]
        value = func(*args, **kwargs)
        if not isinstance(value, Tensor):
            return value
        if all(twin is None for twin in twins):
            soft = _soft(name, args, kwargs, value)
            return value if soft is None else self._pair(value.detach(), soft, name)
        soft = _soft_along(func, name, args, twins, kwargs)
        return value if soft is None or not soft.requires_grad else self._pair(value, soft)

    def _pair(self, value: Tensor, soft: Tensor, name: str = "") -> Tensor:
        """Return the value with the twin's gradient; where it is no float, with the twin attached."""
        if value.is_floating_point() and value.shape != soft.shape:
            return value
        if name and f"torch.{name}" not in self.names:
            self.names.append(f"torch.{name}")
        if value.is_floating_point():
            return _carry(value, soft)
        value._audit_twin = soft  # type: ignore[attr-defined]
        return value


def _twin(arg: Any) -> Tensor | None:
    return getattr(arg, "_audit_twin", None) if isinstance(arg, Tensor) else None


def _follows(arg: Any) -> bool:
    return isinstance(arg, Tensor) and arg.is_floating_point() and arg.requires_grad


def _soft(name: str, args: Any, kwargs: Any, value: Tensor) -> Tensor | None:
    """Return what a function that cuts the gradient, and returned `value`, is taken for; None for any other function."""
    if not any(_follows(arg) for arg in args[:2]):
        return None
    x, other = args[0], args[1] if len(args) > 1 else kwargs.get("other")
    twin: Tensor | None = None
    if name in ROUNDING or name in ("detach", "data") or (name in CASTS and not value.is_floating_point()):
        twin = x
    elif name in DIVISION or (name in ("div", "divide", "true_divide") and kwargs.get("rounding_mode")):
        twin = x / other
    elif name in SIGNS:
        twin = _bend(x)
    elif name == "heaviside":
        twin = (1 + _bend(x)) / 2
    elif name in ABOVE | BELOW:
        twin = (1 + _bend(x - other if name in ABOVE else other - x)) / 2
    elif name in SATURATING:
        twin = _unsaturated(name, x, args[1:], kwargs)
    elif name == "argmax":
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        twin = None if dim is None or kwargs.get("keepdim") else x.softmax(dim).movedim(dim, -1)
    return twin


def _unsaturated(name: str, x: Tensor, more: Any, kwargs: Any) -> Tensor | None:
    """Return the function of an input brought to where it has a slope, sample by sample; None where all have one."""
    last = x.detach().reshape(len(x), -1) if x.ndim else x.detach().reshape(1, 1)
    widest = last.amax(dim=1) - last.amin(dim=1) if name == "softmax" else last.abs().amax(dim=1)
    if bool((widest <= WIDEST).all()):
        return None
    factor = per_sample(WIDEST / widest.clamp_min(WIDEST), x) if x.ndim else (WIDEST / widest.clamp_min(WIDEST))[0]
    if name == "softmax":
        dim = more[0] if more else kwargs.get("dim", -1)
        return (x * factor).softmax(-1 if dim is None else dim)
    function: Callable[[Tensor], Tensor] = getattr(torch, "sigmoid" if "expit" in name else name)
    return function(x * factor)


def _soft_along(func: Any, name: str, args: Any, twins: list[Tensor | None], kwargs: Any) -> Tensor | None:
    """Return what a function makes of the twins, with its other arguments held fixed; None where it cannot take them."""
    if any(twin is not None and twin.shape != arg.shape for arg, twin in zip(args, twins, strict=True)):
        return twins[0] if name == "one_hot" else None
    if name in CASTS:
        return twins[0]
    soft = [
        twin if twin is not None else arg.detach() if isinstance(arg, Tensor) else arg
        for arg, twin in zip(args, twins, strict=True)
    ]
    try:
        if name in AND:
            return soft[0] * soft[1]
        if name in OR:
            return soft[0] + soft[1] - soft[0] * soft[1]
        if name in NOT:
            return 1 - soft[0]
        if name == "where" and len(soft) == 3:
            return soft[0] * soft[1] + (1 - soft[0]) * soft[2]
        if name == "masked_fill":
            return soft[0] * (1 - soft[1]) + soft[2] * soft[1]
        if name in DIVISION:
            return soft[0] / soft[1]
        out = func(*soft, **kwargs)
    except (RuntimeError, TypeError, IndexError):
        return None  # it takes whole numbers or truth values alone
    return out if isinstance(out, Tensor) else None


def _bend(x: Tensor) -> Tensor:
    """Return a soft sign, x / (|x| + mean |x|): its slope falls as 1 / x², and so never underflows."""
    size = x.detach().abs().reshape(len(x), -1).mean(dim=1) if x.ndim else x.detach().abs()
    return x / (x.abs() + per_sample(size.clamp_min(torch.finfo(x.dtype).tiny), x))


def _spread(x: Tensor) -> Tensor:
    """Return each sample's standard deviation, shaped to broadcast; 1 where its inputs are all alike."""
    std = x.reshape(len(x), -1).std(dim=1, correction=0)
    return per_sample(torch.where(std > 0, std, 1.0), x)


# --- layers -----------------------------------------------------------------------------------------------------------


def _layers(module: nn.Module, through: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that can be hooked, by name; `through` stands for a network of TorchScript, which cannot."""
    layers = {name: each for name, each in module.named_modules() if not isinstance(each, torch.jit.ScriptModule)}
    return layers or {"": through}


def _mend(model: Model, mode: _Mode, x: Tensor, names: list[str], layers: dict[str, nn.Module]) -> list[Any]:
    """Give each layer that cuts the gradient a hook that lets it through; return the hooks' handles."""
    seen: dict[str, tuple[nn.Module, Tensor]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if len(inputs) == 1 and _is_float(inputs[0]) and _is_float(output):
                seen.setdefault(name, (module, inputs[0].detach().clone()))

        return hook

    watching = [module.register_forward_hook(note(name)) for name, module in layers.items()]
    network = model.module
    try:
        model.module = layers.get("", network)
        with torch.no_grad():
            model.outputs(x)
    finally:
        model.module = network
        for handle in watching:
            handle.remove()
    handles: list[Any] = []
    cut: list[str] = []
    # The innermost come first: what lies around a layer that was mended is not to blame for it.
    for name in sorted(seen, key=lambda name: -name.count(".") if name else 1):
        module, inputs = seen[name]
        if any(inner.startswith(f"{name}." if name else "") for inner in cut) or not _asked(module, mode, inputs):
            continue
        cut.append(name)
        with torch.no_grad():
            alike = module(inputs).shape == inputs.shape
        kind = type(module.module if isinstance(module, _Through) else module).__name__
        names.append(f"{name or 'the network'} ({kind}): {'identity' if alike else 'differences'}")
        handles.append(module.register_forward_hook(_identity if alike else _differences(model, inputs)))
    return handles


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _asked(module: nn.Module, mode: _Mode, inputs: Tensor) -> bool:
    """Tell whether a layer cuts the gradient; one that refuses the inputs that it is asked with is left as it is."""
    try:
        return _cuts(module, mode, inputs)
    except (AuditError, MemoryError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return False


def _cuts(module: nn.Module, mode: _Mode, inputs: Tensor) -> bool:
    """Tell whether a layer's gradient is zero, NaN, or false, while its output follows its input."""
    names, mode.names[:] = list(mode.names), []
    leaf = inputs.clone().requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        with mode:
            output = module(leaf)
        softened, mode.names[:] = bool(mode.names), names
        gradient: Tensor | None = None
        weights: Tensor | None = None
        if output.requires_grad:
            weights = torch.randn(output.shape, generator=generator).to(output)
            gradient = _backward((output * weights).sum(), leaf)
    with torch.no_grad():
        noise = torch.randn(inputs.shape, generator=generator).to(inputs)
        follows = not torch.equal(module(inputs + noise * _spread(inputs)), output)
    if not follows or gradient is None or not bool(gradient.any()) or not bool(gradient.isfinite().all()):
        return follows
    assert weights is not None  # noqa: S101  (there is a gradient of the sum that they weigh)
    # A function that was softened has another gradient than its own, which is what it is for.
    return not softened and _is_false(module, inputs, gradient, weights)


def _is_false(module: nn.Module, inputs: Tensor, gradient: Tensor, weights: Tensor) -> bool:
    """Tell whether a layer's gradient says nothing of how its output moves along random directions."""
    generator, length = torch.Generator().manual_seed(1), STRIDE * _spread(inputs)
    moved, told = [], []
    with torch.no_grad():
        for _ in range(DIRECTIONS):
            u = torch.randn(inputs.shape, generator=generator).to(inputs) * length
            apart = (module(inputs + u) - module(inputs - u)) * weights
            moved.append(apart.reshape(len(inputs), -1).sum(dim=1))
            told.append((gradient * u).reshape(len(inputs), -1).sum(dim=1))
    a, b = torch.stack(moved), torch.stack(told)
    size = a.norm(dim=0) * b.norm(dim=0)
    agrees = ((a * b).sum(dim=0) / size.clamp_min(torch.finfo(size.dtype).tiny))[a.norm(dim=0) > 0]
    return len(agrees) > 0 and bool(agrees.nan_to_num(0.0).median() < FALSE)


def _backward(total: Tensor, leaf: Tensor) -> Tensor | None:
    """Return the gradient; None where there is none, also where torch has no derivative for a function inside."""
    try:
        (gradient,) = torch.autograd.grad(total, leaf, allow_unused=True)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return None
    return gradient


def _identity(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:  # noqa: ARG001
    return _carry(_cut_off(output), inputs[0]) if inputs[0].requires_grad else output


def _cut_off(output: Tensor) -> Tensor:
    """Detach where the mode is on, which would let the gradient through ``detach``, too."""
    with torch.no_grad():
        return output.detach()


def _differences(model: Model, seen: Tensor) -> Callable[..., Tensor]:
    """Return a hook whose gradient is that of differences along random directions (Nesterov & Spokoiny 2017, equation 30).

    They are taken between values that the layer has `seen`: beyond, a root, say, may not be defined.
    """
    reach = (float(seen.amin()), float(seen.amax()))
    draw = 0

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        nonlocal draw
        if not inputs[0].requires_grad:
            return output
        # Other directions each time: an attack would otherwise never leave the few that it is shown.
        draw += 1
        return _Differences.apply(  # type: ignore[no-any-return,no-untyped-call]
            inputs[0], _cut_off(output), lambda x: module.forward(x.clamp(*reach)), model, draw
        )

    return hook


class _Differences(torch.autograd.Function):
    """Has the values of the second argument; the gradient of the first is estimated by central differences."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, function: Callable[[Tensor], Tensor], model: Model, draw: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.function, ctx.model, ctx.draw = function, model, draw
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (x,), (gradient,) = ctx.saved_tensors, gradients
        length = STRIDE * _spread(x)
        total, generator = torch.zeros_like(x), torch.Generator().manual_seed(ctx.draw)
        for _ in range(DIRECTIONS):
            # The same directions for every sample, so that a sample's gradient does not depend on its place in the batch.
            u = torch.randn(x.shape[1:], generator=generator).to(x)
            moved = ctx.function(x + length * u) - ctx.function(x - length * u)
            total += per_sample((moved * gradient).reshape(len(x), -1).sum(dim=1), x) * u / (2 * length)
        ctx.model.forwards += 2 * DIRECTIONS * len(x)
        return total / DIRECTIONS, None, None, None, None
