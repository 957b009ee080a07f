"""One-node ONNX models for the tests of the operators: each operator, over the opsets in which it changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from audit.model.onnx.operators import OPERATORS, Node

# Inputs of floating-point numbers that are settings, not data: they stay on the CPU, and have no gradient.
SETTINGS = {
    "Clip": (1, 2),
    "Pad": (2,),
    "Resize": (1, 2),
    "Upsample": (1,),
    "Range": (0, 1, 2),
    "Dropout": (1, 2),
    "OneHot": (1,),
    "Tile": (1, 2),
}


@dataclass
class Case:
    """A node with its inputs, and the node of a later opset that says the same where no other reader knows the old one."""

    op: str
    opset: int
    inputs: tuple[np.ndarray | None, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    like: Case | None = None
    batch_first: bool = False  # the outputs are those of `like` with the samples in front

    def __str__(self) -> str:
        said = ",".join(f"{key}={_short(value)}" for key, value in self.attributes.items())
        return f"{self.op}-{self.opset}-{said}-{len(self.inputs)}"

    @property
    def names(self) -> list[str]:
        return ["" if value is None else f"x{place}" for place, value in enumerate(self.inputs)]

    def proto(self) -> onnx.NodeProto:
        return helper.make_node(self.op, self.names, [f"y{place}" for place in range(self.outputs)], **self.attributes)

    def model(self) -> onnx.ModelProto:
        """Return the node as a model of its own."""
        proto = self.proto()
        given = {name: value for name, value in zip(self.names, self.inputs, strict=True) if value is not None}
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in given.items()
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in proto.output]
        graph = helper.make_graph([proto], "one", inputs, outputs)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        return onnx.shape_inference.infer_shapes(model, strict_mode=False)

    def tensors(self) -> list[torch.Tensor | None]:
        return [None if value is None else torch.from_numpy(value.copy()) for value in self.inputs]

    def compute(self) -> Any:
        return OPERATORS[self.op](node_of(self.proto(), self.opset)).compute


def _short(value: Any) -> str:
    return "tensor" if isinstance(value, onnx.TensorProto) else str(value).replace(" ", "")[:30]


def node_of(proto: onnx.NodeProto, opset: int) -> Node:
    """Return a node of onnx's as the table of operators takes it."""
    attributes = {attribute.name: _value(attribute) for attribute in proto.attribute}
    return Node(proto.op_type, tuple(proto.input), tuple(proto.output), attributes, opset, proto.name)


def _value(attribute: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return torch.from_numpy(np.array(numpy_helper.to_array(value)))
    if isinstance(value, int | float | str):
        return value
    return [part.decode() if isinstance(part, bytes) else part for part in value]


_random = np.random.default_rng(4)
CASES: list[Case] = []


def f(*shape: int, low: float = -2.0, high: float = 2.0) -> np.ndarray:
    return _random.uniform(low, high, shape).astype(np.float32)


def i(*numbers: Any) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def b(*shape: int) -> np.ndarray:
    return _random.random(shape) < 0.5


def add(
    op: str,
    opsets: int | tuple[int, ...],
    *inputs: np.ndarray | None,
    outputs: int = 1,
    like: Case | None = None,
    **attributes: Any,
) -> None:
    for opset in (opsets,) if isinstance(opsets, int) else opsets:
        CASES.append(Case(op, opset, inputs, attributes, outputs, like))


def old(op: str, opsets: tuple[int, ...], inputs: tuple[np.ndarray, ...], attributes: dict[str, Any], new: Case) -> None:
    """Enter a node of opsets 1 to 6, which says what `new` says."""
    for opset in opsets:
        CASES.append(Case(op, opset, inputs, attributes, new.outputs, new))


def _linear() -> None:
    a, w, c = f(3, 4), f(4, 5), f(5)
    add("Gemm", (7, 9, 11, 13), a, w, c)
    add("Gemm", (7, 13), a, f(5, 4), c, transB=1)
    add("Gemm", 13, f(4, 3), f(5, 4), f(3, 5), transA=1, transB=1, alpha=0.5, beta=2.0)
    add("Gemm", 11, a, w, alpha=0.3)
    add("Gemm", 13, a, w, f(1), beta=0.0)
    add("Gemm", 13, a, w, f(3, 1))
    add("Gemm", 13, a, w, f(1, 5))
    old("Gemm", (1, 6), (a, w, c), {"broadcast": 1}, Case("Gemm", 7, (a, w, c)))
    add("MatMul", (9, 13), a, w)
    add("MatMul", 13, f(2, 3, 4), f(4, 5))
    add("MatMul", 13, f(2, 1, 3, 4), f(3, 4, 5))
    add("MatMul", 13, f(4), f(2, 4, 3))
    add("MatMul", 13, f(2, 3, 4), f(4))
    add("MatMul", 13, i([1, 2], [3, 4]), i([5], [6]))
    old("MatMul", (1,), (a, w), {}, Case("MatMul", 9, (a, w)))
    add("Einsum", 12, f(2, 3), f(3, 4), equation="ij, jk -> ik")
    add("Einsum", 12, f(2, 3, 4), f(2, 4, 5), equation="bij,bjk")
    add("Einsum", 12, f(3, 3), equation="ii->i")
    add("Einsum", 12, f(2, 3, 4), f(4, 2), equation="...j,jk->...k")


def _windows() -> None:
    x1, x2, x3 = f(2, 4, 11), f(2, 4, 9, 8), f(1, 2, 6, 5, 7)
    add("Conv", (7, 11, 22), x2, f(6, 4, 3, 3), f(6), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    add("Conv", 11, x2, f(6, 4, 3, 2), pads=[0, 1, 2, 0], strides=[2, 1])
    add("Conv", 11, x2, f(6, 2, 3, 3), f(6), group=2, dilations=[2, 1], strides=[2, 3])
    add("Conv", 11, x2, f(4, 1, 3, 3), group=4, auto_pad="SAME_UPPER", strides=[2, 2])
    add("Conv", 11, x2, f(4, 4, 4, 2), auto_pad="SAME_LOWER", strides=[2, 1])
    add("Conv", 11, x2, f(4, 4, 4, 2), auto_pad="VALID", strides=[2, 1])
    add("Conv", 11, x1, f(6, 4, 3), f(6), pads=[2, 0], dilations=[2])
    add("Conv", 11, x3, f(3, 2, 2, 3, 2), f(3), pads=[1, 0, 1, 0, 1, 1], strides=[2, 1, 2])
    new = Case("Conv", 11, (x2, f(4, 4, 5, 5)), {"kernel_shape": [5, 5], "auto_pad": "SAME_UPPER"})
    old("Conv", (1,), new.inputs, new.attributes | {"strides": [1, 1], "dilations": [1, 1], "group": 1}, new)
    add("ConvTranspose", (7, 11, 22), x2, f(4, 3, 3, 3), f(3), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    add("ConvTranspose", 11, x2, f(4, 3, 3, 3), f(3), strides=[2, 2], pads=[1, 0, 0, 1], output_padding=[1, 1])
    add("ConvTranspose", 11, x2, f(4, 2, 3, 3), strides=[2, 3], group=2, dilations=[1, 2])
    add("ConvTranspose", 11, x2, f(4, 2, 3, 3), f(2), strides=[2, 2], auto_pad="SAME_UPPER")
    add("ConvTranspose", 11, x2, f(4, 2, 3, 3), f(2), strides=[2, 2], auto_pad="SAME_LOWER")
    add("ConvTranspose", 11, x2, f(4, 2, 3, 3), f(2), strides=[2, 2], output_shape=[18, 17])
    add("ConvTranspose", 11, x2, f(4, 2, 3, 3), f(2), strides=[2, 2], output_shape=[20, 18])
    add("ConvTranspose", 11, x2, f(4, 2, 3, 3), strides=[2, 2], output_shape=[18, 16], auto_pad="SAME_UPPER")
    add("ConvTranspose", 11, x1, f(4, 2, 3), f(2), strides=[2])
    add("ConvTranspose", 11, x3, f(2, 2, 2, 3, 2), strides=[2, 1, 2])
    for op, more in (
        ("MaxPool", {}),
        ("AveragePool", {}),
        ("AveragePool", {"count_include_pad": 1}),
        ("LpPool", {"p": 2}),
        ("LpPool", {"p": 1}),
    ):
        newest = {"MaxPool": (8, 10, 11, 12, 22), "AveragePool": (7, 10, 11, 19, 22), "LpPool": (11, 18)}[op]
        add(op, newest, x2, kernel_shape=[3, 2], **more)
        add(op, newest[-1:], x2, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], **more)
        add(op, newest[-1:], x2, kernel_shape=[3, 3], strides=[2, 3], pads=[0, 1, 2, 2], **more)
        add(op, newest[-1:], x2, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER", **more)
        add(op, newest[-1:], x2, kernel_shape=[2, 3], strides=[2, 2], auto_pad="SAME_LOWER", **more)
        add(op, newest[-1:], x1, kernel_shape=[3], strides=[2], **more)
        add(op, newest[-1:], x3, kernel_shape=[2, 3, 2], strides=[2, 1, 2], **more)
        if op != "LpPool":
            add(op, newest[-3:], x2, kernel_shape=[3, 3], strides=[2, 3], ceil_mode=1, **more)
            add(op, newest[-3:], x2, kernel_shape=[3, 3], strides=[3, 3], pads=[1, 1, 1, 1], ceil_mode=1, **more)
            add(op, newest[-3:], x2, kernel_shape=[4, 3], strides=[4, 3], pads=[1, 2, 2, 1], ceil_mode=1, **more)
            add(op, newest[-1:], x2, kernel_shape=[2, 3], dilations=[3, 2], strides=[1, 2], pads=[1, 0, 0, 1], **more)
    pool = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 1, 0]}
    old("MaxPool", (1,), (x2,), pool, Case("MaxPool", 8, (x2,), pool))
    old("AveragePool", (1,), (x2,), pool, Case("AveragePool", 7, (x2,), pool))
    old("LpPool", (1,), (x2,), pool | {"p": 2.0}, Case("LpPool", 11, (x2,), pool))
    old("LpPool", (2,), (x2,), pool, Case("LpPool", 11, (x2,), pool))
    for op in ("GlobalAveragePool", "GlobalMaxPool"):
        add(op, (7, 22), x2)
        old(op, (1,), (x2,), {}, Case(op, 7, (x2,)))
        add(op, 7, x1)
        add(op, 7, x3)
    add("GlobalLpPool", 7, x2, p=2)
    old("GlobalLpPool", (2, 22), (x2,), {"p": 2}, Case("GlobalLpPool", 7, (x2,)))
    add("GlobalLpPool", 7, x2, p=3)


def _norms() -> None:
    x, (s, c, m) = f(2, 4, 5, 3), (f(4), f(4), f(4))
    v = f(4, low=0.1)
    add("BatchNormalization", (7, 9, 14, 15), x, s, c, m, v)
    add("BatchNormalization", 15, f(3, 4), s, c, m, v, epsilon=0.1)
    add("BatchNormalization", 15, f(3, 4, 2, 3, 2), s, c, m, v)
    new = Case("BatchNormalization", 9, (x, s, c, m, v), {"epsilon": 1e-3})
    old("BatchNormalization", (1,), new.inputs, {"epsilon": 1e-3, "is_test": 1, "consumed_inputs": [0, 0, 0, 1, 1]}, new)
    old("BatchNormalization", (6,), new.inputs, {"epsilon": 1e-3, "is_test": 1, "spatial": 1}, new)
    add("BatchNormalization", 7, x, *(f(4, 5, 3, low=0.2) for _ in range(4)), spatial=0)
    add("InstanceNormalization", (7, 22), x, s, c, epsilon=1e-3)
    old("InstanceNormalization", (1, 6), (x, s, c), {}, Case("InstanceNormalization", 7, (x, s, c)))
    add("LayerNormalization", 17, x, f(3), f(3))
    add("LayerNormalization", 17, x, f(5, 3), axis=2, epsilon=0.01)
    add("LayerNormalization", 17, x, f(4, 5, 3), f(4, 5, 3), axis=-3)
    add("LayerNormalization", 17, x, f(1, 3), f(1), outputs=3)
    add("GroupNormalization", 18, x, f(2), f(2), num_groups=2)
    add("GroupNormalization", 21, x, s, c, num_groups=2, epsilon=0.01)
    add("LRN", (7, 13), x, size=3)
    add("LRN", 13, x, size=3, alpha=0.1, beta=0.5, bias=2.0)
    add("LpNormalization", (7, 22), x)
    add("LpNormalization", 22, x, p=1, axis=1)
    add("MeanVarianceNormalization", (9, 13), x)
    add("MeanVarianceNormalization", 13, x, axes=[1, 2, 3])
    add("RMSNormalization", 23, x, f(3))
    add("RMSNormalization", 23, x, f(5, 3), axis=2, epsilon=0.01)


def _activations() -> None:
    x = f(3, 4, 5)
    newer = {
        "Relu": (6, 13, 14),
        "Sigmoid": (6, 13),
        "Tanh": (6, 13),
        "Softplus": (7, 22),
        "Softsign": (7, 22),
        "Erf": (9, 13),
        "HardSwish": (14, 22),
        "Mish": (18, 22),
    }
    for op, opsets in newer.items():
        add(op, tuple(max(opset, 7) for opset in opsets), x)
        if opsets[0] < 7:
            old(op, (1, 6), (x,), {}, Case(op, 7, (x,)))
    steered = {
        "LeakyRelu": ((7, 16), {"alpha": 0.3}), "Elu": ((7, 22), {"alpha": 1.7}), "Celu": ((12,), {"alpha": 0.6}),
        "Selu": ((7, 22), {"alpha": 2.0, "gamma": 0.7}), "HardSigmoid": ((7, 22), {"alpha": 0.4, "beta": 0.3}),
        "ThresholdedRelu": ((10, 22), {"alpha": 0.4}), "Shrink": ((9,), {"lambd": 0.7, "bias": 0.2}),
        "Swish": ((24,), {"alpha": 1.5}),
    }  # fmt: skip
    for op, (opsets, attributes) in steered.items():
        add(op, opsets, x)
        add(op, opsets, x, **attributes)
    for op in ("LeakyRelu", "Elu", "HardSigmoid"):
        old(op, (1, 6), (x,), {"alpha": 0.3}, Case(op, 7, (x,), {"alpha": 0.3}))
    old("Selu", (1,), (x,), {}, Case("Selu", 7, (x,), {"alpha": 1.6732, "gamma": 1.0507}))
    old("Selu", (6,), (x,), {}, Case("Selu", 7, (x,)))
    add("Gelu", 20, x)
    add("Gelu", 20, x, approximate="tanh")
    add("PRelu", (7, 9, 16), x, f(5))
    add("PRelu", 16, x, f(4, 1))
    slope = f(4)
    old("PRelu", (1, 6), (x, slope), {}, Case("PRelu", 7, (x, slope.reshape(4, 1))))
    old("PRelu", (1, 6), (x, slope[:1]), {}, Case("PRelu", 7, (x, slope[:1])))
    add("Clip", (7, 10), x, min=-0.5, max=0.7)
    add("Clip", 7, x, min=0.0)
    old("Clip", (1, 6), (x,), {"max": 0.3}, Case("Clip", 7, (x,), {"max": 0.3}))
    low, high = np.float32(-0.5), np.float32(0.7)
    add("Clip", (11, 12, 13), x, np.array(low), np.array(high))
    add("Clip", 13, x, None, np.array(high))
    add("Clip", 13, x)
    add("Clip", 13, x, np.array(high), np.array(low))
    add("Clip", 13, i(1, 5, 9), np.array(2), np.array(6))
    for op in ("Softmax", "LogSoftmax"):
        add(op, (7, 11, 13), x)
        add(op, (7, 11, 13), f(3, 4))
        add(op, (7, 11, 13), x, axis=2)
        add(op, (7, 11, 13), x, axis=0)
        add(op, (11, 13), x, axis=-2)
        old(op, (1,), (x,), {"axis": 1}, Case(op, 7, (x,), {"axis": 1}))


def _elementwise() -> None:
    x, y, small = f(2, 3, 4), f(2, 3, 4, low=0.3), f(3, 1, low=0.3)
    for op in ("Add", "Sub", "Mul", "Div"):
        add(op, (7, 13, 14), x, y)
        add(op, 14, x, small)
        add(op, 14, i(7, -7, 7, -7), i(2, 2, -2, -2))
        for opset in (1, 6):
            old(op, (opset,), (x, y), {}, Case(op, 7, (x, y)))
            old(op, (opset,), (x, small[:, 0]), {"broadcast": 1, "axis": 1}, Case(op, 7, (x, small)))
            old(op, (opset,), (x, y[0]), {"broadcast": 1}, Case(op, 7, (x, y[0])))
            old(op, (opset,), (x, y[0, 0]), {"broadcast": 1}, Case(op, 7, (x, y[0, 0])))
            old(op, (opset,), (x, y[:1, :1, 0]), {"broadcast": 1}, Case(op, 7, (x, np.array(y[0, 0, 0]))))
    add("Pow", (7, 12, 13, 15), y, x)
    add("Pow", 15, x, i(2))
    add("Pow", 15, i(2, 3), f(1, low=1.0))
    add("Pow", 15, i(2, 3), i(3, 2))
    old("Pow", (1,), (y, small[:, 0]), {"broadcast": 1, "axis": 1}, Case("Pow", 7, (y, small)))
    for op in ("Equal", "Greater", "Less"):
        add(op, {"Equal": (11, 13), "Greater": (9, 13), "Less": (9, 13)}[op], x, x.round(1))
        add(op, 13, i(1, 2, 3), i(2))
        new = Case(op, 13, (i(1, 2, 3), i(2, 2, 2)))
        old(op, (1,), (i(1, 2, 3), i(2)), {"broadcast": 1}, new)
    for op in ("GreaterOrEqual", "LessOrEqual"):
        add(op, (12, 16), x, x[0])
    for op in ("And", "Or", "Xor"):
        left, right = b(2, 3), b(3)
        add(op, 7, left, right)
        old(op, (1,), (left, right), {"broadcast": 1}, Case(op, 7, (left, right)))
    add("Not", 7, b(2, 3))
    add("Mod", (10, 13), i(7, -7, 7, -7), i(3, 3, -3, -3))
    add("Mod", (10, 13), i(7, -7, 7, -7), i(3, 3, -3, -3), fmod=1)
    add("Mod", 13, x, y, fmod=1)
    for op in ("Min", "Max", "Sum", "Mean"):
        add(op, (8, 13), x, y, f(4))
        add(op, 8, x)
        old(op, (1, 6), (x, y), {}, Case(op, 8, (x, y)))
    add("Max", 13, i(1, 5), i(3, 3))
    everywhere = (
        "Neg",
        "Abs",
        "Exp",
        "Floor",
        "Ceil",
        "Sin",
        "Cos",
        "Tan",
        "Atan",
        "Sinh",
        "Cosh",
        "Asinh",
        "Round",
        "Sign",
        "IsNaN",
    )
    later = {"Round": (11, 22), "Sign": (9, 13), "Sinh": (9, 22), "Cosh": (9, 22), "Asinh": (9, 22), "IsNaN": (9, 13, 20)}
    for op in everywhere:
        add(op, later.get(op, (7, 13)), x)
    add("Round", 11, np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5], dtype=np.float32))
    for op in ("Log", "Sqrt", "Reciprocal"):
        add(op, (7, 13), y)
        old(op, (1, 6), (y,), {}, Case(op, 7, (y,)))
    for op in ("Neg", "Abs", "Exp", "Floor", "Ceil"):
        old(op, (1, 6), (x,), {}, Case(op, 7, (x,)))
    for op in ("Asin", "Acos", "Atanh"):
        add(op, 9, x / 3)
    add("Acosh", 9, y + 1)
    add("Neg", 13, i(1, -2))
    add("Abs", 13, i(1, -2))
    odd = np.array([1, np.inf, -np.inf, np.nan], dtype=np.float32)
    add("IsNaN", 13, odd)
    add("IsInf", 10, odd)
    add("IsInf", 10, odd, detect_negative=0)
    add("Where", (9, 16), b(2, 3, 4), x, small)
    add("Where", 9, b(3), i(1, 2, 3), i(4))
    for to, opsets in ((7, (9, 13, 19)), (11, (9, 13)), (9, (13,)), (1, (13,))):
        add("Cast", opsets, f(3, 4, low=-3, high=3), to=to)
    add("Cast", 13, i(1, 0, -3), to=1)
    add("Cast", 13, i(1, 0, -3), to=9)
    old("Cast", (1,), (x,), {"to": "INT64"}, Case("Cast", 9, (x,), {"to": 7}))
    old("Cast", (6,), (x,), {"to": 7}, Case("Cast", 9, (x,), {"to": 7}))
    add("CastLike", (15, 19), i(1, 2), f(1))
    add("Identity", (7, 13, 16), x)
    add("Dropout", (7, 10), x, ratio=0.4)
    add("Dropout", (12, 13, 22), x, np.array(np.float32(0.4)))
    add("Dropout", 12, x, None, np.array(False), outputs=2)
    old("Dropout", (1, 6), (x,), {"is_test": 1, "ratio": 0.3}, Case("Dropout", 7, (x,)))


def _shapes() -> None:
    x = f(2, 3, 4)
    add("Reshape", (7, 13, 14), x, i(4, 6))
    add("Reshape", 14, x, i(0, -1))
    add("Reshape", 14, x, i(-1))
    add("Reshape", 14, f(0, 3), i(3, 0), allowzero=1)
    old("Reshape", (1,), (x,), {"shape": [0, -1]}, Case("Reshape", 7, (x, i(0, -1))))
    old("Reshape", (5,), (x, i(0, -1)), {}, Case("Reshape", 7, (x, i(0, -1))))
    for axis in (0, 1, 2, 3):
        add("Flatten", (7, 9, 11), x, axis=axis)
    add("Flatten", 11, x, axis=-1)
    old("Flatten", (1,), (x,), {}, Case("Flatten", 9, (x,)))
    add("Transpose", (7, 13), x)
    add("Transpose", 13, x, perm=[1, 2, 0])
    one = f(2, 1, 3, 1)
    add("Squeeze", (7, 11), one, axes=[1])
    add("Squeeze", 11, one, axes=[-1, 1])
    add("Squeeze", (7, 13), one)
    add("Squeeze", (13, 21), one, i(-1))
    add("Unsqueeze", (7, 11), x, axes=[0, 2])
    add("Unsqueeze", 13, x, i(-1, 0))
    add("Concat", (7, 11, 13), x, f(2, 5, 4), axis=1)
    add("Concat", 13, i(1, 2), i(3), axis=-1)
    y = f(2, 5, 4)
    old("Concat", (1,), (x, y), {}, Case("Concat", 7, (x, y), {"axis": 1}))
    old("Concat", (4,), (x, y), {"axis": 1}, Case("Concat", 7, (x, y), {"axis": 1}))
    add("Split", (7, 11), f(2, 6), outputs=3, axis=1)
    add("Split", (7, 11), f(2, 6), outputs=2, axis=1, split=[2, 4])
    add("Split", 13, f(2, 6), i(1, 5), outputs=2, axis=-1)
    add("Split", 13, f(2, 6), outputs=2)
    add("Split", 18, f(2, 7), outputs=3, axis=1, num_outputs=3)
    add("Split", 18, f(2, 7), i(3, 4), outputs=2, axis=1)
    z = f(2, 6)
    old("Split", (2,), (z,), {"axis": 1, "split": [4, 2]}, Case("Split", 7, (z,), {"axis": 1, "split": [4, 2]}, 2))
    old(
        "Split",
        (1,),
        (z, np.array([4, 2], np.float32).astype(np.int64)),
        {"axis": 1},
        Case("Split", 13, (z, i(4, 2)), {"axis": 1}, 2),
    )
    for attributes in (
        {"starts": [0, 1], "ends": [1, -1]},
        {"starts": [-3], "ends": [2**31], "axes": [2]},
        {"starts": [5], "ends": [9], "axes": [1]},
    ):
        add("Slice", (7, 9), x, **attributes)
        old("Slice", (1,), (x,), attributes, Case("Slice", 7, (x,), attributes))
    for starts, ends, axes, steps in (
        ([1], [3], [2], None), ([0, -1], [2, -9], [0, 2], [1, -1]), ([3], [-(2**40)], [2], [-2]), ([-1], [0], [1], [-1]),
        ([0], [2**62], [-1], [3]), ([9], [0], [2], [-1]), ([2], [1], [1], [1]),
    ):  # fmt: skip
        inputs = (x, i(*starts), i(*ends), i(*axes), *((i(*steps),) if steps else ()))
        add("Slice", (10, 11, 13), *inputs)
    add("Slice", 13, x, i(1, 1), i(2, 2))
    add("Gather", (7, 11, 13), x, i([0, 2], [1, 0]), axis=1)
    add("Gather", 13, x, np.array(1), axis=-1)
    add("Gather", 13, x, i(-1, 0))
    add("Gather", 13, i(4, 5, 6), np.array(2))
    old("Gather", (1,), (x, i(1)), {}, Case("Gather", 7, (x, i(1))))
    add("GatherElements", (11, 13), x, i([[0, -1, 1, 2]], [[2, 1, 0, 0]]), axis=1)
    add("GatherND", (11, 12, 13), x, i([0, 1], [1, -1]))
    add("GatherND", 13, x, i([[1]], [[0]]), batch_dims=1)
    add("GatherND", 13, x, i([[[0, 1], [1, 2]]]))
    add("Expand", (8, 13), f(3, 1), i(2, 1, 4))
    add("Expand", 13, f(3, 4), i(1))
    add("Tile", (7, 13), x, i(1, 2, 3))
    tiled = Case("Tile", 7, (x, i(1, 3, 1)))
    old("Tile", (1,), (x, np.array([3], np.float32), np.array([1], np.float32)), {}, tiled)
    old("Tile", (6,), (x, i(1, 3, 1)), {}, tiled)
    pads = [0, 1, 2, 1, 0, 1]
    for mode in ("constant", "reflect", "edge"):
        add("Pad", (7,), x, mode=mode, pads=pads)
        old("Pad", (1,), (x,), {"mode": mode, "paddings": pads}, Case("Pad", 7, (x,), {"mode": mode, "pads": pads}))
        add("Pad", (11, 13, 19), x, i(*pads), mode=mode)
        add("Pad", 18, x, i(2, 1), None, i(-1), mode=mode)
    add("Pad", 7, x, pads=pads, value=1.5)
    add("Pad", 13, x, i(*pads), np.array(np.float32(-2)))
    add("Pad", 13, x, i(0, -1, 2, 1, 0, -1))
    add("Pad", 19, x, i(0, 2, 3, 0, 5, 1), mode="wrap")
    add("Shape", (7, 13), x)
    add("Shape", (15, 19), x, start=-2, end=-1)
    add("Shape", 15, x, end=1)
    add("Size", (7, 13), x)
    add("Constant", (7, 9, 11), value=numpy_helper.from_array(x))
    add("Constant", 12, value_floats=[1.0, 2.5])
    add("Constant", 12, value_float=1.5)
    add("Constant", 12, value_ints=[3, -4])
    add("Constant", 13, value_int=7)
    old(
        "Constant",
        (1,),
        (),
        {"value": numpy_helper.from_array(x)},
        Case("Constant", 7, (), {"value": numpy_helper.from_array(x)}),
    )
    add("ConstantOfShape", (9, 20), i(2, 3))
    add("ConstantOfShape", 9, i(2), value=numpy_helper.from_array(np.array([5], np.int64)))
    add("Range", 11, np.array(2), np.array(11), np.array(3))
    add("Range", 11, np.array(9), np.array(1), np.array(-3))
    add("Range", 11, np.array(np.float32(0)), np.array(np.float32(1)), np.array(np.float32(0.3)))
    add("DepthToSpace", (7, 11, 13), f(2, 8, 2, 3), blocksize=2)
    add("DepthToSpace", 13, f(2, 8, 2, 3), blocksize=2, mode="CRD")
    add("SpaceToDepth", (7, 13), f(2, 2, 4, 6), blocksize=2)
    add("OneHot", (9, 11), i([0, 2], [1, 5]), np.array(3), np.array([0.5, 2.0], np.float32))
    add("OneHot", 11, i(-1, 2), np.array(3), i(0, 1), axis=0)
    add("Trilu", 14, x)
    add("Trilu", 14, x, np.array(1), upper=0)
    add("CumSum", (11, 14), x, np.array(1))
    add("CumSum", 14, x, np.array(-1), exclusive=1, reverse=1)
    add("CumSum", 14, i(1, 2, 3), np.array(0), exclusive=1)


def _resizes() -> None:
    x = f(2, 3, 4, 5)
    scales = np.array([1, 1, 2, 3], np.float32)
    for mode in ("nearest", "linear"):
        add("Upsample", 7, x, mode=mode, scales=[1.0, 1.0, 2.0, 2.0])
        add("Upsample", 9, x, scales, mode=mode)
        add("Resize", 10, x, np.array([1, 1, 2, 0.5], np.float32), mode=mode)
    halved = Case("Upsample", 7, (x,), {"mode": "linear", "scales": [1.0, 1.0, 2.0, 3.0]})
    old("Upsample", (1,), (x,), {"mode": "bilinear", "height_scale": 2.0, "width_scale": 3.0}, halved)
    for mode in ("nearest", "linear", "cubic"):
        for place in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"):
            more = {"mode": mode, "coordinate_transformation_mode": place}
            more |= {"nearest_mode": "floor"} if mode == "nearest" else {}
            add("Resize", 11, x, np.zeros(0, np.float32), scales, **more)
            add("Resize", (13, 18, 19), x, None, scales, **more)
            add("Resize", 19, x, None, None, i(2, 3, 7, 3), **more)
    for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
        add("Resize", 13, x, None, np.array([1, 1, 0.6, 1.7], np.float32), nearest_mode=rounding)
    add(
        "Resize",
        19,
        x,
        None,
        np.array([1, 1, 1.3, 0.7], np.float32),
        mode="linear",
        coordinate_transformation_mode="half_pixel_symmetric",
    )
    add("Resize", 13, x, None, np.array([1, 1, 0.6, 0.6], np.float32), mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5)
    add("Resize", 18, x, None, np.array([2, 3], np.float32), mode="linear", axes=[3, 2])
    for policy in ("not_larger", "not_smaller"):
        add("Resize", 18, x, None, None, i(7, 8), mode="linear", axes=[2, 3], keep_aspect_ratio_policy=policy)


def _reductions() -> None:
    x = f(2, 3, 4, low=0.2)
    for op in ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare"):
        name = f"Reduce{op}"
        moved = 13 if op == "Sum" else 18
        older = (7, 11) if op == "Sum" else (7, 11, 13)
        add(name, older, x, axes=[1], keepdims=0)
        add(name, older, x)
        add(name, 11, x, axes=[-1, 0])
        add(name, (moved, 20), x, i(0, 2))
        add(name, moved, x, i(-1), keepdims=0)
        add(name, moved, x, keepdims=0)
        add(name, moved, x, noop_with_empty_axes=1)
        old(name, (1,), (x,), {"axes": [1]}, Case(name, 7, (x,), {"axes": [1]}))
    add("ReduceProd", 13, i(2, 3, 4))
    add("ReduceSum", 13, i([2, 3], [4, 5]), i(1))
    add("ReduceMax", 12, i([2, 3], [4, 5]), axes=[1])
    for op in ("ArgMax", "ArgMin"):
        add(op, (7, 11, 12, 13), x, axis=1)
        add(op, 13, i([1, 3, 3], [2, 2, 0]), axis=1, keepdims=0)
        add(op, 13, i([1, 3, 3], [0, 0, 2]), axis=-1, select_last_index=1)
        old(op, (1,), (x,), {}, Case(op, 7, (x,)))
    add("TopK", 10, x, i(2), outputs=2, axis=1)
    add("TopK", (11, 24), x, i(2), outputs=2, largest=0)
    add("TopK", 11, i([3, 3, 1, 3]), i(3), outputs=2)
    old("TopK", (1,), (x,), {"k": 2, "axis": 1}, Case("TopK", 10, (x, i(2)), {"axis": 1}, 2))


def _recurrent() -> None:
    x = f(4, 2, 3)
    for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        outputs = 3 if op == "LSTM" else 2
        for direction in ("forward", "reverse", "bidirectional"):
            n = 2 if direction == "bidirectional" else 1
            w, r, bias, h = f(n, gates * 5, 3), f(n, gates * 5, 5), f(n, 2 * gates * 5), f(n, 2, 5)
            states = (h, f(n, 2, 5)) if op == "LSTM" else (h,)
            for more in ({"linear_before_reset": 0}, {"linear_before_reset": 1}) if op == "GRU" else ({},):
                add(op, (7, 14, 22), x, w, r, bias, outputs=outputs, hidden_size=5, direction=direction, **more)
                add(op, 14, x, w, r, outputs=1, hidden_size=5, direction=direction, **more)
                full = np.array([4, 4], np.int32)
                add(op, 14, x, w, r, bias, full, *states, outputs=outputs, hidden_size=5, direction=direction, **more)
                swapped = tuple(np.ascontiguousarray(part.swapaxes(0, 1)) for part in (x, *states))
                one = Case(op, 14, (x, w, r, bias, None, *states), {"hidden_size": 5, "direction": direction, **more}, outputs)
                two = {"hidden_size": 5, "direction": direction, "layout": 1, **more}
                CASES.append(
                    Case(op, 14, (swapped[0], w, r, bias, None, *swapped[1:]), two, outputs, like=one, batch_first=True)
                )
    add("RNN", 14, x, f(1, 5, 3), f(1, 5, 5), f(1, 10), outputs=2, hidden_size=5, activations=["Relu"])
    w, r, bias = f(1, 20, 3), f(1, 20, 5), f(1, 40)
    old(
        "LSTM",
        (1,),
        (x, w, r, bias),
        {"hidden_size": 5, "output_sequence": 1},
        Case("LSTM", 7, (x, w, r, bias), {"hidden_size": 5}),
    )


def _attention() -> None:
    q, k, v = f(2, 4, 3, 8), f(2, 4, 5, 8), f(2, 4, 5, 6)
    add("Attention", 23, q, k, v)
    add("Attention", 23, q, k, v, scale=0.1, softcap=2.0)
    add("Attention", 23, q, f(2, 2, 3, 8), f(2, 2, 3, 8), is_causal=1)
    add("Attention", 23, q, k, v, f(3, 5))
    add("Attention", 24, q, k, v, np.array([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], bool))
    add("Attention", 23, f(2, 3, 16), f(2, 5, 16), f(2, 5, 16), q_num_heads=4, kv_num_heads=4)


for _enter in (_linear, _windows, _norms, _activations, _elementwise, _shapes, _resizes, _reductions, _recurrent, _attention):
    _enter()
