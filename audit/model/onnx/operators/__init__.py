"""The table of ONNX operators that are read: one file a family, each operator a function from a node to what computes it.

Third-party code is not asked what an operator means: each is written from the specification with torch's functions, so that
gradients flow, and held against onnxruntime in the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Compute = Callable[..., Any]


class Unsupported(Exception):
    """A node uses an operator, or a variant of one, that is not read; the message says which: ``Resize with mode cubic``."""


@dataclass(frozen=True)
class Node:
    """One node of the graph.

    Attributes
    ----------
    op
        ``Conv``, ``Gemm``, …
    inputs, outputs
        Names of values; an empty name is an input that was left out, or an output that nobody reads.
    attributes
        int, float, str, Tensor, or lists of the first three.
    opset
        Version of the standard operators that the file was written for: 1 and up.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 1
    name: str = ""


@dataclass(frozen=True)
class Operation:
    """What a node becomes.

    Attributes
    ----------
    kind
        In torch's words: ``conv2d``, ``linear``, ``relu``, ``batch_norm``, ``max_pool2d``, ``softmax``, ``add``, …
    compute
        Takes the node's inputs in order, None for one left out, and returns its output or a tuple of them. Tensors of data are
        on the network's device (or the meta device, when only shapes are computed). Whatever tells shapes, axes, indices or
        counts is an int64 tensor on the CPU, and may be read with ``tolist()``.
    """

    kind: str
    compute: Compute


OPERATORS: dict[str, Callable[[Node], Operation]] = {}


def operator(name: str) -> Callable[[Callable[[Node], Operation]], Callable[[Node], Operation]]:
    """Enter a function into the table: it gets the node, looks at attributes and opset, and returns the operation.

    It raises `Unsupported` for a variant that is not read, and ValueError where the node contradicts the specification.
    """

    def enter(function: Callable[[Node], Operation]) -> Callable[[Node], Operation]:
        OPERATORS[name] = function
        return function

    return enter


# Each family enters its operators into the table when it is imported.
from audit.model.onnx.operators import (  # noqa: E402  (they need what stands above)
    activation,
    attention,
    convolution,
    elementwise,
    indexing,
    linear,
    normalisation,
    pooling,
    recurrent,
    reduction,
    resize,
    shape,
)

__all__ = [
    "OPERATORS",
    "Compute",
    "Node",
    "Operation",
    "Unsupported",
    "activation",
    "attention",
    "convolution",
    "elementwise",
    "indexing",
    "linear",
    "normalisation",
    "operator",
    "pooling",
    "recurrent",
    "reduction",
    "resize",
    "shape",
]
