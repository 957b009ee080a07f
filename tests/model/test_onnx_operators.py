"""ONNX operators are those of the specification: against onnxruntime, onnx's own node tests, and finite differences."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from audit.model.graph import TooLarge, only_shapes
from audit.model.onnx import load
from audit.model.onnx.operators import OPERATORS, Node, Unsupported
from audit.model.outputs import LastActivation
from tests.model.onnx_cases import CASES, SETTINGS, Case, node_of

onnxruntime = pytest.importorskip("onnxruntime")

# Where onnxruntime has no kernel, onnx's reference evaluator says what comes out.
_MISSING = ("NOT_IMPLEMENTED", "opset")


def _newest(op: str) -> int:
    return max(case.opset for case in CASES if case.op == op)


def _expected(case: Case) -> list[np.ndarray]:
    if case.batch_first and case.like is not None:
        return [part.transpose(2, 0, 1, 3) if part.ndim == 4 else part.swapaxes(0, 1) for part in _expected(case.like)]
    if case.like is not None:
        return _expected(case.like)
    model = case.model()
    given = {name: value for name, value in zip(case.names, case.inputs, strict=True) if value is not None}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, given)
    except Exception as problem:
        if not any(word in str(problem) for word in _MISSING):
            raise
    return ReferenceEvaluator(model).run(None, given)


def _computed(case: Case, tensors: list[torch.Tensor | None]) -> tuple[torch.Tensor, ...]:
    found = case.compute()(*tensors)
    return found if isinstance(found, tuple | list) else (found,)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_operator_computes_what_onnxruntime_computes(case: Case) -> None:
    found, expected = _computed(case, case.tensors()), _expected(case)

    assert len(found) == case.outputs
    for ours, theirs in zip(found, expected, strict=False):
        assert ours.numpy().dtype == theirs.dtype
        if theirs.dtype == np.float32 or theirs.dtype == np.float64:
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_array_equal(ours.numpy(), theirs)


def _is_data(case: Case, place: int, value: Any) -> bool:
    return value is not None and value.dtype == np.float32 and place not in SETTINGS.get(case.op, ())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_shapes_and_types_are_those_of_the_numbers_where_data_are_on_the_meta_device(case: Case) -> None:
    tensors = case.tensors()
    away = [
        value.to("meta") if value is not None and _is_data(case, place, case.inputs[place]) else value
        for place, value in enumerate(tensors)
    ]
    before = only_shapes.set(True)
    try:
        shaped = _computed(case, away)
    finally:
        only_shapes.reset(before)

    told = case.op in ("Shape", "Size", "CastLike")  # of the last, the data only tell a type
    for real, shape in zip(_computed(case, tensors), shaped, strict=True):
        assert (shape.shape, shape.dtype) == (real.shape, real.dtype)
        if any(value is not None and value.device.type == "meta" for value in away):
            assert shape.device.type == ("cpu" if told else "meta")


# Integers or truths come out, or (Cast to float32) numbers that are too coarse for finite differences.
_NO_GRADIENT = (
    "ArgMax", "ArgMin", "Cast", "CastLike", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual",
    "Shape", "Size",
)  # fmt: skip


def _data(case: Case) -> list[int]:
    return [place for place, value in enumerate(case.inputs) if _is_data(case, place, value) and value.size]


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.op not in _NO_GRADIENT and case.opset == _newest(case.op) and _data(case)],
    ids=str,
)
def test_gradients_are_those_of_finite_differences(case: Case) -> None:
    tensors = [value.double() if value is not None and value.is_floating_point() else value for value in case.tensors()]
    data, compute = _data(case), case.compute()

    def of_data(*given: torch.Tensor) -> Any:
        inputs = list(tensors)
        for place, value in zip(data, given, strict=True):
            inputs[place] = value
        found = compute(*inputs)
        found = found if isinstance(found, tuple | list) else (found,)
        return tuple(part for part in found if part.is_floating_point())

    given = [tensors[place].clone().requires_grad_() for place in data]  # type: ignore[union-attr]
    assert torch.autograd.gradcheck(of_data, given, eps=1e-6, atol=1e-4, fast_mode=True)


def test_every_operator_has_a_case() -> None:
    assert set(OPERATORS) == {case.op for case in CASES}


# What onnx's own node tests hold that is refused, and why; no other case of a known operator may be.
_REFUSED = {
    "Attention with the attribute": 9,
    "Attention with 3 outputs": 11,
    "Attention with 4 outputs": 18,
    "Attention with a cache": 7,
    "BatchNormalization in training mode": 2,
    "Dropout in training mode": 6,
    "LSTM with peepholes": 1,
    "MaxPool of uint8": 1,
    "MaxPool with 2 outputs": 2,
    "Resize with antialias": 4,
    "Resize with coordinate_transformation_mode 'tf_crop_and_resize'": 4,
    "Resize with align_corners and a scale": 2,
    "arithmetic of uint": 36,
    "the extreme of no numbers": 3,
}


@pytest.mark.slow
def test_no_node_test_of_onnx_gives_another_answer() -> None:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = [case for case in collect_testcases(None) if len(case.model.graph.node) == 1]
    agree, wrong, refused = 0, [], dict.fromkeys(_REFUSED, 0)
    for case in cases:
        proto = case.model.graph.node[0]
        opset = max((entry.version for entry in case.model.opset_import if entry.domain == ""), default=0)
        if proto.op_type not in OPERATORS or proto.domain != "":
            continue
        for inputs, expected in case.data_sets:
            try:
                told = iter(inputs)
                tensors = [torch.from_numpy(np.array(next(told))) if name else None for name in proto.input]
            except (TypeError, ValueError):
                continue  # text, sequences, and numbers of 8 bits and less: torch has no such tensors from NumPy
            try:
                found = OPERATORS[proto.op_type](node_of(proto, opset)).compute(*tensors)
            except Unsupported as problem:
                reason = next((start for start in _REFUSED if str(problem).startswith(start)), f"{case.name}: {problem}")
                refused[reason] = refused.get(reason, 0) + 1
                continue
            found = found if isinstance(found, tuple | list) else (found,)
            kept = [part for part, name in zip(found, proto.output, strict=True) if name]
            same = all(_close(ours, np.asarray(theirs), case.name) for ours, theirs in zip(kept, expected, strict=True))
            agree += same
            wrong += [] if same else [case.name]

    assert wrong == []
    assert agree > 700
    assert refused == _REFUSED


def _close(ours: torch.Tensor, theirs: np.ndarray, name: str) -> bool:
    coarse = name == "test_averagepool_2d_ceil_last_window_starts_on_pad"  # its answer is written with four digits
    bound = 1e-4 if coarse else {np.dtype(np.float16): 2e-3, np.dtype(np.float32): 1e-5}.get(theirs.dtype, 1e-7)
    if ours.numpy().dtype != theirs.dtype or tuple(ours.shape) != theirs.shape:
        return False
    if theirs.dtype.kind in "biu":
        return bool((ours.numpy() == theirs).all())
    return bool(np.allclose(ours.double().numpy(), theirs.astype(np.float64), rtol=bound, atol=bound, equal_nan=True))


def _file_of(case: Case) -> bytes:
    """Return a file whose one node takes samples first, and the other inputs as weights."""
    x = case.inputs[0]
    assert x is not None
    weights = [
        numpy_helper.from_array(value, name)
        for name, value in zip(case.names[1:], case.inputs[1:], strict=True)
        if value is not None
    ]
    port = helper.make_tensor_value_info("x0", onnx.TensorProto.FLOAT, ["N", *x.shape[1:]])
    graph = helper.make_graph([case.proto()], "one", [port], [onnx.ValueInfoProto(name="y0")], weights)
    imports = [helper.make_opsetid("", case.opset)]
    return bytes(helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString())


def _each_sample_alone(case: Case, together: torch.Tensor) -> bool:
    """Whether the first output has a row for each sample that no other sample and no weight of more rows has changed."""
    first, *others = case.tensors()
    if first is None or first.dtype != torch.float32 or first.ndim < 2:
        return False
    try:
        rows = [_computed(case, [sample, *others])[0] for sample in first.split(1)]
    except (ValueError, RuntimeError, Unsupported):
        return False
    rows = [row for row in rows if row.ndim and len(row) == 1]
    if len(rows) != len(first) or not together.is_floating_point() or len(rows) * rows[0].numel() != together.numel():
        return False
    alone = torch.cat(rows)
    return alone.shape == together.shape and torch.allclose(alone, together, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.slow
def test_a_file_of_one_node_computes_what_the_node_computes() -> None:
    tried = set()
    for case in CASES:
        if not case.inputs or case.inputs[0] is None or case.inputs[0].size == 0:
            continue
        (expected, *_) = _computed(case, case.tensors())
        if not _each_sample_alone(case, expected):
            continue
        network = load(_file_of(case), "one.onnx", {})
        (x, *_) = case.tensors()
        assert x is not None
        found = network(x)
        assert torch.allclose(found.reshape(expected.shape), expected, rtol=1e-5, atol=1e-5, equal_nan=True), str(case)
        tried.add(case.op)

    assert len(tried) > 80


def _node(op: str, opset: int = 13, inputs: int = 1, outputs: int = 1, **attributes: Any) -> Node:
    names = tuple(f"x{place}" for place in range(inputs))
    return Node(op, names, tuple(f"y{place}" for place in range(outputs)), attributes, opset)


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (_node("BatchNormalization", 15, 5, training_mode=1), "BatchNormalization in training mode"),
        (_node("BatchNormalization", 9, 5, outputs=5), "BatchNormalization in training mode"),
        (_node("BatchNormalization", 6, 5), "is_test 0"),
        (_node("Dropout", 6), "is_test 0"),
        (_node("Resize", 13, 3, mode="cubic", antialias=1), "Resize with the attribute 'antialias' in opset 13"),
        (_node("Resize", 13, 3, coordinate_transformation_mode="tf_crop_and_resize"), "tf_crop_and_resize"),
        (_node("LSTM", 14, 3, input_forget=1), "input_forget"),
        (_node("LSTM", 14, 8), "peepholes"),
        (_node("LSTM", 14, 3, clip=2.0), "clip"),
        (_node("GRU", 14, 3, activations=["Relu", "Tanh"]), "other activations"),
        (_node("MaxPool", 12, outputs=2, kernel_shape=[2, 2]), "MaxPool with 2 outputs"),
        (_node("MaxPool", 12, kernel_shape=[2, 2], ceil_mode=1, auto_pad="VALID"), "ceil_mode and auto_pad VALID"),
        (_node("Squeeze", 13, axes=[0]), "attribute 'axes' in opset 13"),
        (_node("Pad", 18, 2, mode="wrap"), "Pad with mode 'wrap'"),
        (_node("Cast", 13, to=8), "element type 8"),
        (_node("Einsum", 13, 3, equation="a,b,c->abc"), "Einsum of 3 inputs"),
        (_node("Constant", 13, 0, value_string="x"), "value_string"),
        (_node("LayerNormalization", 17, 2, stash_type=10), "stash_type"),
        (_node("Attention", 23, 5), "cache"),
    ],
    ids=str,
)
def test_a_variant_that_is_not_read_is_refused_by_name(node: Node, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        OPERATORS[node.op](node)


@pytest.mark.parametrize(
    "node",
    [
        _node("Conv", 11, 2, pads=[-1, 0, 0, 0]),
        _node("Conv", 11, 2, strides=[0, 1]),
        _node("Conv", 11, 2, dilations=[2**40, 1]),
        _node("Conv", 11, 2, group=0),
        _node("Conv", 11, 2, kernel_shape="3"),
        _node("Conv", 11, 2, auto_pad="SAME_UPPER", pads=[1, 1, 1, 1]),
        _node("MaxPool", 12),
        _node("MaxPool", 12, kernel_shape=[2, 10**4000]),
        _node("Gemm", 13, 1),
        _node("Gemm", 13, 4),
        _node("Concat", 13, 2),
        _node("Einsum", 13, 1, equation="__import__('os')"),
        _node("GroupNormalization", 21, 3),
        _node("Split", 18, outputs=2, num_outputs=3),
        _node("Reshape", 1),
        _node("Softmax", 13, axis="1"),
        _node("Transpose", 13, perm=[0, "1"]),
        _node("LRN", 13, size=2**40),
    ],
    ids=str,
)
def test_a_node_that_contradicts_the_specification_is_a_value_error(node: Node) -> None:
    with pytest.raises(ValueError, match=node.op):
        OPERATORS[node.op](node)


def _i(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


_EYE, _MANY, _ONES = torch.eye(3), 2**40, torch.ones(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("node", "inputs"),
    [
        (_node("ConstantOfShape"), [_i(2**20, 2**20)]),
        (_node("ConstantOfShape", value=torch.zeros(1, dtype=torch.int64)), [_i(2**30)]),
        (_node("Range", 13, 3), [torch.tensor(0), torch.tensor(_MANY), torch.tensor(1)]),
        (_node("Range", 13, 3), [torch.tensor(0.0), torch.tensor(1e30), torch.tensor(1.0)]),
        (_node("Tile", 13, 2), [_ONES, _i(2**30)]),
        (_node("OneHot", 13, 3), [torch.ones(2**10, dtype=torch.int64), torch.tensor(2**19), _i(0, 1)]),
        (_node("Add", 13, 2), [torch.ones(2**15, 1, dtype=torch.int64), torch.ones(2**15, dtype=torch.int64)]),
        (_node("Concat", 13, 2000, axis=0), [torch.ones(2**17, dtype=torch.int64)] * 2000),
        (_node("Pad", 13, 2), [_ONES, _i(2**30, 0)]),
        (_node("MatMul", 13, 2), [torch.ones(2**14, 1, dtype=torch.int64), torch.ones(1, 2**14, dtype=torch.int64)]),
        (_node("Gather", 13, 2), [torch.ones(2, 2**16, dtype=torch.int64), torch.zeros(2**12, dtype=torch.int64)]),
        (
            _node("Conv", 11, 2, pads=[2**20, 2**20, 0, 0], strides=[2**20, 2**20]),
            [torch.ones(1, 1, 3, 3), torch.ones(1, 1, 2, 2)],
        ),
        (
            _node("AveragePool", 11, kernel_shape=[2**20, 2**20], pads=[2**19, 2**19, 2**18, 2**19]),
            [torch.ones(1, 1, 2**18, 3)],
        ),
        (_node("ConvTranspose", 11, 2, strides=[2**20, 2**20]), [torch.ones(1, 1, 3, 3), torch.ones(1, 1, 2, 2)]),
        (_node("Upsample", 9, 2), [torch.ones(1, 1, 3, 3), torch.tensor([1, 1, 2.0**20, 2.0**20])]),
    ],
    ids=lambda value: value.op if isinstance(value, Node) else "",
)
@pytest.mark.parametrize("shapes", [False, True])
def test_what_a_file_makes_from_its_numbers_is_bounded_before_it_is_made(
    node: Node, inputs: list[torch.Tensor], shapes: bool
) -> None:
    before = only_shapes.set(shapes)
    try:
        with pytest.raises((TooLarge, ValueError)):
            OPERATORS[node.op](node).compute(*inputs)
    finally:
        only_shapes.reset(before)


def test_a_large_batch_of_truths_is_no_constant() -> None:
    mask = torch.zeros(2**25, dtype=torch.bool)

    for op in ("Not", "Cast"):
        assert len(OPERATORS[op](_node(op, **({"to": 2} if op == "Cast" else {}))).compute(mask)) == 2**25


@pytest.mark.parametrize(
    ("node", "inputs"),
    [
        (_node("Reshape", 13, 2), [_EYE, _i(9)]),
        (_node("Slice", 13, 3), [_EYE, _i(1), _i(2)]),
        (_node("Expand", 13, 2), [_EYE, _i(3)]),
        (_node("Unsqueeze", 13, 2), [_EYE, _i(0)]),
        (_node("TopK", 13, 2, outputs=2), [_EYE, _i(1)]),
        (_node("Range", 13, 3), [torch.tensor(0), torch.tensor(4), torch.tensor(1)]),
        (_node("ReduceSum", 13, 2), [_EYE, _i(0)]),
    ],
    ids=lambda value: value.op if isinstance(value, Node) else "",
)
def test_a_shape_that_depends_on_the_input_is_refused(node: Node, inputs: list[torch.Tensor]) -> None:
    with pytest.raises(Unsupported, match="depends on the input"):
        OPERATORS[node.op](node).compute(inputs[0], *(value.to("meta") for value in inputs[1:]))


def test_shapes_are_computed_on_the_cpu_and_follow_data() -> None:
    def run(op: str, *inputs: torch.Tensor, **attributes: Any) -> torch.Tensor:
        return OPERATORS[op](_node(op, 13, len(inputs), **attributes)).compute(*inputs)

    x = torch.empty(5, 3, 4, device="meta")
    lengths = run("Shape", x)
    batch = run("Gather", lengths, torch.tensor(0), axis=0)
    shape = run("Concat", run("Unsqueeze", batch, _i(0)), _i(-1), axis=0)
    flat = run("Reshape", x, run("Mul", shape, _i(1, 1)))
    scaled = run("Mul", flat, run("ConstantOfShape", _i(12), value=torch.full((1,), 2.0)))
    chosen = run("Gather", scaled, _i(1, -1), axis=1)

    assert shape.tolist() == [5, -1]
    assert (chosen.shape, chosen.device.type) == ((5, 2), "meta")


@pytest.mark.parametrize("opset", [9, 13])
def test_a_last_softmax_can_be_undone(opset: int) -> None:
    logits = torch.randn(4, 3)

    with LastActivation() as last:
        output = OPERATORS["Softmax"](_node("Softmax", opset, axis=1)).compute(logits)
    before = last.undo(output)

    assert before is not None
    torch.testing.assert_close(before.values, logits)


@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_local_response_is_over_the_channels_of_the_specification(size: int) -> None:
    x = torch.rand(3, 6, 4, 5)
    expected = torch.empty_like(x)
    for c in range(6):
        low, high = max(0, c - (size - 1) // 2), min(5, c + size // 2)
        expected[:, c] = x[:, c] / (2.0 + 0.5 / size * (x[:, low : high + 1] ** 2).sum(1)) ** 0.7

    found = OPERATORS["LRN"](_node("LRN", size=size, alpha=0.5, beta=0.7, bias=2.0)).compute(x)

    torch.testing.assert_close(found, expected)


def test_a_gradient_is_finite_where_a_norm_is_zero() -> None:
    x = torch.zeros(1, 1, 4, 4, requires_grad=True)
    for op, attributes in (("LpPool", {"kernel_shape": [2, 2]}), ("ReduceL2", {}), ("LpNormalization", {})):
        (slope,) = torch.autograd.grad(OPERATORS[op](_node(op, 13, **attributes)).compute(x).sum(), x)
        assert torch.isfinite(slope).all()
