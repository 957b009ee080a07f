"""Deep SHAP for a network of steps (from ``.pt2`` or ONNX): tells whether it fits, and dresses the steps for shap.

shap knows a module by the name of its class. The steps that it has a rule for are given a module of that name; the others must
be linear in the input. What a step does is not believed from its kind alone where a trial can tell: that it runs once a pass,
on all samples at once, leaves its input as it is, and that a pool is the plain one whose positions shap computes again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from audit.model.graph import Graph, Step
from audit.model.wrapper import Model

PRODUCTS = {
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "addmm", "mm", "bmm",
    "mul", "matmul", "batch_norm", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
}  # fmt: skip  # linear where one value alone depends on the input
SUMS = {
    "add", "sub", "neg", "mean", "sum", "cat", "stack", "flatten", "reshape", "view", "permute", "transpose", "t", "squeeze",
    "unsqueeze", "expand", "select", "slice", "contiguous", "clone", "identity", "dropout", "getitem", "split", "chunk",
}  # fmt: skip
SIZES = {"size", "shape"}  # of a tensor: they do not follow its values
ELEMENTWISE = {"relu", "leaky_relu", "elu", "selu", "gelu", "sigmoid", "tanh", "softplus"}
TRIED = 7  # samples: no network fixes just so many


def why_not_deep(model: Model, x: Tensor) -> str | None:
    """Return why DeepExplainer cannot be believed on a network of steps, or None where it can."""
    graph = model.module
    if not isinstance(graph, Graph):
        return "it is no list of steps"
    if model.output not in ("logits", "binary_logit", "regression"):
        return "its softmax or sigmoid at the end is no step that shap can take back"
    moving = _moving(graph)
    for step in moving:
        if step.kind not in PRODUCTS | SUMS | ELEMENTWISE | set(POOLS) | {"div"}:
            return f"its step {step.kind} is none that shap knows"
        if not _fits(step, moving[step]):
            return f"its step {step.kind} takes two values that depend on the input"
    return _trial(model, list(moving), x)


def dress(model: Model, graph: Graph, x: Tensor) -> None:
    """Give each step of a copy of the network a module that shap has a rule for; the network computes the same."""
    settings: dict[Step, dict[str, Any]] = {}
    _trial(model, list(_moving(graph)), x, settings, graph)
    for step in graph.steps:
        assert isinstance(step, Step)  # noqa: S101  (a ModuleList says Module)
        if step.kind in POOLS and step in settings:
            step.function = _Around(POOLS[step.kind](step.function))
            vars(step.function.leaf).update(settings[step])
        elif step.kind in ELEMENTWISE:
            step.function = _Around(ReLU(step.function))
        else:
            step.add_module("gradient_as_it_is", nn.Identity())  # shap asks modules without children alone


class _Leaf(nn.Module):
    """One value of a step in, one out, under a class name that shap looks up."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.settings: tuple[Any, dict[str, Any]] = ((), {})

    def forward(self, x: Tensor) -> Any:
        rest, keywords = self.settings
        out = self.function(x, *rest, **keywords)
        return out[0] if isinstance(out, tuple) else out  # a pool may tell its positions beside


class _Around(nn.Module):
    """Hands a leaf the one value that varies, and keeps what else a step says."""

    def __init__(self, leaf: _Leaf) -> None:
        super().__init__()
        self.leaf = leaf

    def forward(self, x: Tensor, *rest: Any, **keywords: Any) -> Any:
        self.leaf.settings = rest, keywords
        return self.leaf(x)


class ReLU(_Leaf):
    """For shap: a function of one number, whose rule holds for all of them."""


class MaxPool2d(_Leaf):
    """For shap: its positions are computed again from the settings."""


class MaxPool3d(_Leaf):
    """For shap: its positions are computed again from the settings."""


POOLS: dict[str, type[_Leaf]] = {"max_pool2d": MaxPool2d, "max_pool3d": MaxPool3d}


def _moving(graph: Graph) -> dict[Step, list[str]]:
    """Return the steps that depend on the input, each with the values in it that do."""
    depends = set(graph.inputs)
    found: dict[Step, list[str]] = {}
    for step in graph.steps:
        assert isinstance(step, Step)  # noqa: S101  (a ModuleList says Module)
        moving = [name for name in step.reads if name in depends]
        if moving and step.kind not in SIZES:
            found[step] = moving
            depends.update(step.outputs)
    return found


def _fits(step: Step, moving: list[str]) -> bool:
    if step.kind in SUMS:
        return True
    # A product is linear in either side; what is divided, normalised or bent is the first value.
    return len(moving) == 1 and (step.reads[0] in moving or step.kind in PRODUCTS - {"batch_norm"})


def _trial(
    model: Model, steps: list[Step], x: Tensor, settings: dict[Step, dict[str, Any]] | None = None, graph: Graph | None = None
) -> str | None:
    """Run some samples and look at each step; return what does not fit. Settings of pools are put into `settings`."""
    runs: dict[Step, int] = dict.fromkeys(steps, 0)
    before: dict[Step, Tensor] = {}
    problems: list[str] = []

    def look_before(step: nn.Module, values: tuple[Any, ...]) -> None:
        assert isinstance(step, Step)  # noqa: S101  (hooked below)
        tensors = [value for value in values if isinstance(value, Tensor)]
        if step.kind not in SUMS and tensors and not tensors[0].is_meta:
            before[step] = tensors[0].clone()

    def look_after(step: nn.Module, values: tuple[Any, ...], output: Any) -> None:
        assert isinstance(step, Step)  # noqa: S101  (hooked below)
        if any(isinstance(value, Tensor) and value.is_meta for value in (*values, output)):
            return
        runs[step] += 1
        if step in before and not torch.equal(before[step], values[0]):
            problems.append(f"its step {step.kind} works in place")
        if step.kind in POOLS:
            found = _pool_settings(step, values)
            if found is None:
                problems.append(f"its step {step.kind} is none of the pools that shap knows")
            elif settings is not None:
                settings[step] = found

    hooks = [step.register_forward_pre_hook(look_before) for step in steps]
    hooks += [step.register_forward_hook(look_after) for step in steps]
    several = x[:1].expand(TRIED, *x.shape[1:]).contiguous()
    try:
        with model.session(), torch.no_grad():
            inputs = model.normalise(several).to(model.dtype)
            (graph or model.module)(inputs)
            runs = dict.fromkeys(steps, 0)  # the first pass may try out shapes and batches
            (graph or model.module)(inputs)
            model.forwards += 2 * TRIED
    finally:
        for hook in hooks:
            hook.remove()
    if any(count != 1 for count in runs.values()):
        problems.append("it does not run all samples of a batch together, or has steps that nothing reads")
    return problems[0] if problems else None


class _Pools(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the settings of the pools that run inside the ``with`` block, and where their input lies."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[tuple[Tensor, list[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "max_pool" in func.name() and args:
            self.seen.append((args[0], list(args[1:])))
        return func(*args, **(kwargs or {}))


def _pool_settings(step: Step, values: tuple[Any, ...]) -> dict[str, Any] | None:
    """Return the settings of a pool; None where it does more than one plain pool of its input does."""
    with _Pools() as pools:
        step.forward(*values)  # past the hooks
    if len(pools.seen) != 1:
        return None
    x, given = pools.seen[0]
    if x.data_ptr() != values[0].data_ptr() or x.shape != values[0].shape:
        return None
    kernel, stride, padding, dilation, ceil = (given + [None] * 5)[:5]
    return {
        "kernel_size": kernel,
        "stride": stride or kernel,
        "padding": padding or 0,
        "dilation": dilation or 1,
        "ceil_mode": bool(ceil),
    }
