"""Reductions: sums, means, norms and extremes over axes; ArgMax and TopK."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from audit.model.onnx.operators import Node, Operation, Unsupported, operator
from audit.model.onnx.operators.values import axes_of, axis_of, check, integer, integers, read, read_one, together

_Reduce = Callable[[Tensor, list[int], bool], Tensor]


def _reduction(name: str, kind: str, function: _Reduce, moved: int = 18) -> None:
    """Enter a reduction, whose axes are an attribute before the opset `moved` and an input from it on."""

    def build(node: Node) -> Operation:
        as_input = node.opset >= moved
        check(node, 1, 2 if as_input else 1, ("keepdims", "noop_with_empty_axes" if as_input else "axes"))
        keep, noop = bool(integer(node, "keepdims", 1)), bool(integer(node, "noop_with_empty_axes", 0))
        named = list(integers(node, "axes", ()))

        def compute(x: Tensor, axes: Tensor | None = None) -> Tensor:
            chosen = axes_of(name, read(name, "axes", axes) if axes is not None else named, x.ndim)
            (x,) = together(name, x)
            if not chosen and not noop:
                chosen = list(range(x.ndim))
            if not chosen:
                # Over no axes only what is done to each number remains: an axis of length one stands in for them.
                return function(x.unsqueeze(-1), [x.ndim], False)
            return function(x, chosen, keep)

        return Operation(kind, compute)

    operator(name)(build)


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep, dtype=x.dtype)


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keepdim=keep)
    count = torch.Size([x.shape[axis] for axis in axes]).numel()
    return torch.div(_sum(x, axes, keep), count, rounding_mode="trunc")


def _max(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    _check_any(x)
    return x.amax(axes, keepdim=keep)


def _check_any(x: Tensor) -> None:
    if x.numel() == 0:
        raise Unsupported("the extreme of no numbers")


def _min(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    _check_any(x)
    return x.amin(axes, keepdim=keep)


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def _l1(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x.abs(), axes, keep)


def _l2(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return cast(Tensor, torch.linalg.vector_norm(x, 2, axes, keepdim=keep))
    return _sum_square(x, axes, keep).double().sqrt().to(x.dtype)


def _sum_square(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x * x, axes, keep)


def _log_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x, axes, keep).log().to(x.dtype)


def _log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.logsumexp(x, axes, keepdim=keep).to(x.dtype)


_reduction("ReduceSum", "sum", _sum, moved=13)
_reduction("ReduceMean", "mean", _mean)
_reduction("ReduceMax", "amax", _max)
_reduction("ReduceMin", "amin", _min)
_reduction("ReduceProd", "prod", _prod)
_reduction("ReduceL1", "norm", _l1)
_reduction("ReduceL2", "norm", _l2)
_reduction("ReduceSumSquare", "sum_square", _sum_square)
_reduction("ReduceLogSum", "log", _log_sum)
_reduction("ReduceLogSumExp", "logsumexp", _log_sum_exp)


def _extreme(name: str, kind: str, function: Callable[..., Tensor]) -> None:
    """Enter ArgMax or ArgMin: the first place of the extreme along an axis, or the last."""

    def build(node: Node) -> Operation:
        check(node, 1, 1, ("axis", "keepdims", *(("select_last_index",) if node.opset >= 12 else ())))
        axis, keep, last = integer(node, "axis", 0), bool(integer(node, "keepdims", 1)), integer(node, "select_last_index", 0)

        def compute(x: Tensor) -> Tensor:
            along = axis_of(name, axis, x.ndim)
            (x,) = together(name, x)
            if not last:
                return function(x, dim=along, keepdim=keep)
            return x.shape[along] - 1 - function(x.flip(along), dim=along, keepdim=keep)

        return Operation(kind, compute)

    operator(name)(build)


_extreme("ArgMax", "argmax", torch.argmax)
_extreme("ArgMin", "argmin", torch.argmin)


@operator("TopK")
def top_k(node: Node) -> Operation:
    """Return the k largest (or smallest) numbers along an axis, sorted, and their places; of equals, the first comes first."""
    # What is not asked to be sorted may come in any order, so sorted is right, too.
    newer = ("largest", "sorted") if node.opset >= 11 else ()
    check(
        node,
        2 if node.opset >= 10 else 1,
        2 if node.opset >= 10 else 1,
        ("axis", *newer, *(("k",) if node.opset < 10 else ())),
        outputs=2,
    )
    axis, largest = integer(node, "axis", -1), bool(integer(node, "largest", 1))
    told = integer(node, "k", least=0) if node.opset < 10 else 0

    def compute(x: Tensor, k: Tensor | None = None) -> Any:
        count = told if k is None else read_one("TopK", "k", k)
        along = axis_of("TopK", axis, x.ndim)
        if not 0 <= count <= x.shape[along]:
            raise ValueError(f"TopK: {count} of {x.shape[along]} numbers")
        values, places = torch.sort(together("TopK", x)[0], dim=along, descending=largest, stable=True)
        found = values.narrow(along, 0, count), places.narrow(along, 0, count)
        return found if len(node.outputs) > 1 else found[0]

    return Operation("topk", compute)
