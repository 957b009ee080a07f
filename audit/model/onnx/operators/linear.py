"""Operators that multiply matrices: Gemm, MatMul, Einsum."""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torch.nn import functional

from audit.model.onnx.operators import Node, Operation, Unsupported, operator
from audit.model.onnx.operators.values import check, data, integer, number, text, together

_EQUATION = re.compile(r"[A-Za-z., ]{0,300}(->[A-Za-z. ]{0,100})?")


@operator("Gemm")
def gemm(node: Node) -> Operation:
    """Y = alpha A' B' + beta C, where A' and B' are A and B, transposed if so asked."""
    check(
        node,
        2 if node.opset >= 11 else 3,
        3,
        ("alpha", "beta", "transA", "transB", *(("broadcast",) if node.opset < 7 else ())),
    )
    alpha, beta = number(node, "alpha", 1.0), number(node, "beta", 1.0)
    turn_a, turn_b = bool(integer(node, "transA", 0)), bool(integer(node, "transB", 0))

    def compute(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        if a.ndim != 2 or b.ndim != 2:
            raise ValueError(f"Gemm: expected two matrices, got {a.ndim} and {b.ndim} axes")
        a, b = a.t() if turn_a else a, b.t() if turn_b else b
        if c is not None:
            _check_added(c, len(a), b.shape[1])
        if a.is_floating_point():
            a, b, c = data("Gemm", a, b, c)
        one_row = c is None or c.numel() == b.shape[1] == c.shape[-1]
        if alpha == beta == 1 and a.is_floating_point() and one_row:
            return functional.linear(a, b.t(), None if c is None else c.reshape(-1))
        product = _scaled(a @ b, alpha)
        return product if c is None else product + _scaled(c, beta)

    return Operation("linear", compute)


def _check_added(c: Tensor, rows: int, columns: int) -> None:
    shape = (1, 1, *c.shape)[-2:]
    if c.ndim > 2 or shape[0] not in (1, rows) or shape[1] not in (1, columns):
        raise ValueError(f"Gemm: C of shape {tuple(c.shape)} cannot be added to a product of shape {(rows, columns)}")


def _scaled(values: Tensor, factor: float) -> Tensor:
    if factor == 1:
        return values
    if not values.is_floating_point():
        raise Unsupported(f"Gemm of {str(values.dtype).removeprefix('torch.')} with a factor")
    return values * factor


@operator("MatMul")
def matmul(node: Node) -> Operation:
    """Return A B, with any number of axes before the last two, as ``numpy.matmul``."""
    check(node, 2, 2)

    def compute(a: Tensor, b: Tensor) -> Tensor:
        if a.is_floating_point():
            a, b = data("MatMul", a, b)
        else:
            a, b = together("MatMul", a, b, numbers=max(1, a.numel()) * max(1, b.numel()))
        return torch.matmul(a, b)

    return Operation("matmul", compute)


@operator("Einsum")
def einsum(node: Node) -> Operation:
    """Sum of products in Einstein's notation, of one or two tensors."""
    check(node, 1, None, ("equation",))
    equation = text(node, "equation", "", [str(node.attributes.get("equation"))])
    if not _EQUATION.fullmatch(equation):
        raise ValueError(f"Einsum: cannot read the equation {equation[:60]!r}")
    if len(node.inputs) > 2:
        # The products of three and more can be far larger than what goes in and what comes out.
        raise Unsupported(f"Einsum of {len(node.inputs)} inputs")

    def compute(*tensors: Tensor) -> Tensor:
        return torch.einsum(equation.replace(" ", ""), *data("Einsum", *tensors))

    return Operation("einsum", compute)
