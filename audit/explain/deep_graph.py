"""Tells whether shap's DeepExplainer can be believed on a network, from the network's own graph.

DeepExplainer replaces the gradient of the modules that it knows, by hooks. Whatever else is nonlinear (a function such as
``F.relu``, attention, a recurrent layer) it lets the plain gradient through, without a word; a module that runs twice
overwrites what it remembered of the first time; one that works in place destroys it. So a network is taken only where every
step is a linear one, or a module that shap knows, in a place of its own, that runs once.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from audit.model.wrapper import Model

# Modules of shap.explainers._deep.deep_pytorch.op_handler. Its softmax is left out: the rule is for functions of one number.
LINEAR = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
    nn.Dropout, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity, nn.Flatten,
)  # fmt: skip
NONLINEAR = (
    nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.Softplus,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
)  # fmt: skip
SHAPES = {
    "flatten", "view", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "contiguous", "size", "dim",
    "mean", "sum", "getitem", "getattr", "cat", "stack", "add", "sub", "neg", "float", "double", "expand", "t",
}  # fmt: skip
PRODUCTS = {"mul", "truediv", "div", "matmul"}  # linear where only one factor depends on the input


def why_not_deep(model: Model) -> str | None:
    """Return why DeepExplainer cannot be believed on this network, or None where it can."""
    # a single layer has no graph of its own: inside a container it is a step of one
    module = model.module if list(model.module.children()) else nn.Sequential(model.module)
    if model.output not in ("logits", "binary_logit", "regression"):
        return "its softmax or sigmoid at the end is no step that shap can take back"
    if any(child._forward_hooks or child._forward_pre_hooks for child in module.modules()):
        return "it has hooks of its own, which a graph does not show"
    try:
        graph = _Tracer().trace(module)
    except Exception as error:
        # torch.fx raises whatever the network's own code raises on a stand-in for a tensor
        return f"its graph cannot be read ({type(error).__name__})"
    modules = dict(module.named_modules(remove_duplicate=False))
    return _modules_fit(graph, modules) or _steps_fit(graph)


class _Tracer(fx.Tracer):
    """Keeps every module without children whole, also one that is not of torch."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or not list(m.children())


def _modules_fit(graph: fx.Graph, modules: dict[str, nn.Module]) -> str | None:
    """Return what is wrong with the modules that run, or None."""
    runs: dict[int, int] = {}
    for node in graph.nodes:
        if node.op != "call_module":
            continue
        module = modules[str(node.target)]
        kind = type(module)
        if kind not in LINEAR and kind not in NONLINEAR:
            return f"shap does not know {kind.__name__} ({node.target})"
        if getattr(module, "inplace", False):
            return f"{kind.__name__} ({node.target}) works in place"
        runs[id(module)] = runs.get(id(module), 0) + 1
        if runs[id(module)] > 1 and kind in NONLINEAR:
            return f"{kind.__name__} ({node.target}) runs more than once"
    return None


def _steps_fit(graph: fx.Graph) -> str | None:
    """Return which step outside modules is not linear in the input, or None."""
    depends: dict[fx.Node, bool] = {}
    for node in graph.nodes:
        inputs = [depends[other] for other in node.all_input_nodes]
        depends[node] = node.op == "placeholder" or any(inputs)
        if node.op not in ("call_function", "call_method") or not depends[node]:
            continue
        name = _name(node.target)
        if name in SHAPES or (name in PRODUCTS and _one_factor(node, depends, name)):
            continue
        return f"its step {name} is not a module that shap knows"
    return None


def _one_factor(node: fx.Node, depends: dict[fx.Node, bool], name: str) -> bool:
    moving = [isinstance(a, fx.Node) and depends[a] for a in node.args]
    divides = name in ("truediv", "div")
    return sum(moving) == 1 and not (divides and len(moving) > 1 and moving[1]) and not node.kwargs


def _name(target: Any) -> str:
    return target if isinstance(target, str) else str(getattr(target, "__name__", target))
