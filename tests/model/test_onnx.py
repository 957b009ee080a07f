"""The ONNX reader: outputs are onnxruntime's, gradients the live network's; hostile files end in a plain word."""

from __future__ import annotations

import contextlib
import copy
import os
import struct
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import audit
from audit.errors import ModelError
from audit.model import graph
from audit.model import onnx as reader
from audit.model.load import load
from audit.model.onnx import bounded
from audit.model.onnx.messages import read_model
from audit.model.onnx.tensors import read_tensor
from audit.model.onnx.wire import Malformed
from tests.realdata import mnist, shared

BATCHES = (1, 3, 17)


def read(path: Path) -> Any:
    content = path.read_bytes()
    return reader.load(content, str(path), reader.read_beside(content, path))


def by_onnxruntime(path: Path, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path))
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def write(
    path: Path,
    nodes: list[Any],
    shape: tuple[Any, ...] = ("n", 4),
    weights: dict[str, np.ndarray] | None = None,
    out: tuple[Any, ...] | None = None,
    opset: int = 17,
    dtype: int = TensorProto.FLOAT,
) -> Path:
    """Write a file with one input ``x`` and one output ``y``."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def whole(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(nn.functional.gelu(self.norm(self.conv(x))), 7)
        return self.head(self.layer(x.flatten(2)).flatten(1))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv1(x)).relu()
        x = nn.functional.avg_pool2d(x + self.conv2(x), 2)
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(28, 8, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x[:, 0])[0][:, -1])


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.Tanh(), nn.Linear(32, 10))


NETWORKS = {"mlp": mlp, "residual": Residual, "attention": Attention, "recurrent": Recurrent}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    module = NETWORKS[name]()
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            nn.init.normal_(child.running_mean)
            nn.init.uniform_(child.running_var, 0.5, 2)
    return module.eval()


def export(module: nn.Module, path: Path, *, free: bool = True, **options: Any) -> Path:
    x = torch.randn(2 if free else 1, 1, 28, 28)
    if options.get("dynamo"):
        options["dynamic_shapes"] = ({0: torch.export.Dim("batch")},) if free else None
        options["verbose"] = False
    elif free:
        options |= {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), str(path), **options)
    return path


def check_against_live(module: nn.Module, path: Path, ran: bool = True) -> Any:
    """Hold outputs against onnxruntime and the module, gradients against the module."""
    network = read(path)
    weights = torch.randn(10)
    for n in BATCHES:
        x = torch.randn(n, 1, 28, 28, requires_grad=True)
        ours, live = network(x), module(x)
        if ran:
            np.testing.assert_allclose(ours.detach(), by_onnxruntime(path, x.detach().numpy()), atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(ours.detach(), live.detach(), atol=1e-5, rtol=1e-5)
        (mine,) = torch.autograd.grad((ours * weights).sum(), x)
        (theirs,) = torch.autograd.grad((live * weights).sum(), x)
        np.testing.assert_allclose(mine, theirs, atol=1e-4, rtol=1e-4)
    return network


# torch exports attention from opset 14 on.
EXPORTED = [(name, opset) for name in NETWORKS for opset in (9, 11, 14, 17) if name != "attention" or opset >= 14]


@pytest.mark.parametrize(("name", "opset"), EXPORTED)
def test_exported_networks_compute_what_the_live_ones_do(tmp_path: Path, name: str, opset: int) -> None:
    module = made(name)
    path = export(module, tmp_path / "net.onnx", dynamo=False, opset_version=opset)
    network = check_against_live(module, path)
    assert not network.notes
    assert network._ways
    assert all(way.together is None for way in network._ways.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_the_dynamo_exporter_compute_what_the_live_ones_do(tmp_path: Path, name: str) -> None:
    module = made(name)
    check_against_live(module, export(module, tmp_path / "net.onnx", dynamo=True))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_fixed_batch_of_one_is_set_free(tmp_path: Path, name: str, dynamo: bool) -> None:
    options = {} if dynamo else {"opset_version": 14}
    module = made(name)
    path = export(module, tmp_path / "net.onnx", free=False, dynamo=dynamo, **options)
    network = check_against_live(module, path, ran=False)
    assert all(way.together is None for way in network._ways.values()), network.notes


def test_weights_keep_their_names_and_moments_are_buffers(tmp_path: Path) -> None:
    module = made("residual")
    path = export(module, tmp_path / "net.onnx", dynamo=False, opset_version=13, training=torch.onnx.TrainingMode.PRESERVE,
                  do_constant_folding=False)  # fmt: skip
    network = read(path)
    parameters = dict(network.weights.named_parameters())
    assert set(parameters) == set(dict(module.named_parameters()))
    assert {"norm.running_mean", "norm.running_var"} <= set(dict(network.weights.named_buffers()))
    for name, value in module.named_parameters():
        assert torch.equal(parameters[name], value)


def test_names_that_no_module_holds_are_cleaned_and_told_apart(tmp_path: Path) -> None:
    names = ["onnx::MatMul_1", "onnx/MatMul_1", "a", "a.b", "forward", "..", "é" * 500]
    nodes = [node("Add", f"{'x' if k == 0 else f'h{k}'} w{k}", f"h{k + 1}") for k in range(len(names))]
    for made_node, name in zip(nodes, names, strict=True):
        made_node.input[1] = name
    nodes[-1].output[0] = "y"
    path = write(tmp_path / "net.onnx", nodes, weights={name: normal(4) for name in names})
    network = read(path)
    assert len(list(network.parameters())) == len(names)
    x = normal(3, 4)
    np.testing.assert_allclose(network(torch.from_numpy(x)).detach(), by_onnxruntime(path, x), atol=1e-5)


def test_a_shared_weight_stays_one(tmp_path: Path) -> None:
    nodes = [node("Identity", "w", "v"), node("MatMul", "x w", "h"), node("MatMul", "h v", "y")]
    network = read(write(tmp_path / "net.onnx", nodes, weights={"w": normal(4, 4)}))
    assert len(list(network.parameters())) == 1


def test_a_deep_copy_is_a_network_of_its_own(tmp_path: Path) -> None:
    network = read(export(made("attention"), tmp_path / "net.onnx", free=False, dynamo=False, opset_version=14))
    twin = copy.deepcopy(network)
    x = torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(twin(x), network(x))
    assert twin.steps[-1].function.batch is twin.batch is not network.batch


# Third-party files


@pytest.mark.slow
@pytest.mark.parametrize(("name", "right"), [("mnistfc_256x2", 9808), ("mnistfc_256x4", 9764)])
def test_the_fully_connected_networks_have_their_published_accuracy(name: str, right: int) -> None:
    x, y = mnist()
    model = audit.Model.load(shared(f"models/{name}.onnx"))
    assert int((model.predict(x).numpy() == y).sum()) == right
    assert "1×28×28 go into the network as 784×1" in model.notes[0]
    assert set(model.module.weights.state_dict()) >= {"layers.0.weight", "layers.4.bias"}


def test_the_networks_hold_their_labels_within_the_boxes_that_verifiers_proved() -> None:
    known = np.load(shared("models/mnistfc_known_outcomes.npz"))
    rng = np.random.default_rng(0)
    held = 0
    for name in ("mnistfc_256x2", "mnistfc_256x4"):
        model = audit.Model.load(shared(f"models/{name}.onnx"))
        for k in _boxes(known, name):
            low, high = known["low"][k], known["high"][k]
            inside = low + (high - low) * rng.random((50, *low.shape))
            assert (model.predict(inside.astype(np.float32)) == int(known["label"][k])).all()
            held += 1
    assert held


def _boxes(known: Any, name: str) -> list[int]:
    return [k for k in range(len(known["label"])) if str(known["outcome"][k]) == "holds" and name in str(known["network"][k])]


@pytest.mark.slow
def test_the_network_of_opset_1_has_its_published_error() -> None:
    x, y = mnist()
    model = load(shared("models/mnist_opset1.onnx"), bounds=(0, 255))
    wrong = (model.predict(x * 255).numpy() != y).mean()
    assert wrong == pytest.approx(0.0109, abs=1e-9)
    assert "set free" in model.notes[0]
    assert model.parameters == sum(value.numel() for value in model.module.weights.state_dict().values())


# Batches


def test_a_reshape_to_one_row_is_set_free(tmp_path: Path) -> None:
    nodes = [node("Reshape", "x shape", "flat"), node("MatMul", "flat w", "y")]
    path = write(tmp_path / "net.onnx", nodes, (1, 2, 3), {"shape": whole(1, 6), "w": normal(6, 4)}, (1, 4))
    network = read(path)
    x = normal(17, 2, 3)
    expected = np.concatenate([by_onnxruntime(path, x[k : k + 1]) for k in range(17)])
    np.testing.assert_allclose(network(torch.from_numpy(x)).detach(), expected, atol=1e-5)
    assert "set free" in network.notes[0]


def test_what_cannot_be_set_free_is_run_one_by_one(tmp_path: Path) -> None:
    nodes = [node("Squeeze", "x axis", "row"), node("MatMul", "w row", "column"), node("Unsqueeze", "column axis", "y")]
    path = write(tmp_path / "net.onnx", nodes, (1, 6), {"axis": whole(0), "w": normal(4, 6)}, (1, 4))
    network = read(path)
    x = normal(5, 6)
    expected = np.concatenate([by_onnxruntime(path, x[k : k + 1]) for k in range(5)])
    np.testing.assert_allclose(network(torch.from_numpy(x)).detach(), expected, atol=1e-5)
    assert "one sample at a time" in network.notes[0]


def test_a_batch_of_several_that_is_built_in_is_filled_up(tmp_path: Path) -> None:
    nodes = [node("Split", "x", "a b c", axis=0), node("Concat", "a b c", "d", axis=0), node("MatMul", "d w", "y")]
    path = write(tmp_path / "net.onnx", nodes, (3, 6), {"w": normal(6, 4)}, (3, 4), opset=13)
    network = read(path)
    x = normal(7, 6)
    np.testing.assert_allclose(network(torch.from_numpy(x)).detach(), x @ normal(6, 4), atol=1e-5)


@pytest.mark.parametrize("shape", [("n", 6), (3, 6)])
def test_a_network_that_mixes_the_samples_of_a_batch_is_refused(tmp_path: Path, shape: tuple[Any, ...]) -> None:
    nodes = [node("ReduceMean", "x", "mean", axes=[0]), node("Sub", "x mean", "h"), node("MatMul", "h w", "y")]
    path = write(tmp_path / "net.onnx", nodes, shape, {"w": normal(6, 4)}, opset=13)
    with pytest.raises(ModelError, match="mixes the"):
        read(path)


@pytest.mark.parametrize("saturated", [False, True])
def test_a_network_that_mixes_little_or_behind_a_saturated_softmax_is_refused(tmp_path: Path, saturated: bool) -> None:
    # The third random sample is far larger than the first: what changes the first is small beside what comes out of the third.
    nodes = [node("ReduceMean", "x", "mean", axes=[0]), node("Mul", "mean part", "m"), node("Add", "x m", "h")]
    nodes += [node("MatMul", "h w", "logits"), node("Add", "logits surely", "z")]
    nodes += [node("Softmax", "z", "p", axis=-1), node("Identity", "p", "y")] if saturated else [node("Identity", "z", "y")]
    weights = {"part": np.array(1 if saturated else 1e-3, np.float32), "w": normal(6, 4)}
    weights["surely"] = np.array([1e4 if saturated else 0, 0, 0, 0], np.float32)
    with pytest.raises(ModelError, match="mixes the samples of a batch"):
        read(write(tmp_path / "net.onnx", nodes, ("n", 6), weights, opset=13))


@pytest.mark.parametrize("first", ["n", 1, 4])
def test_a_way_that_random_samples_do_not_prove_is_held_against_real_ones(tmp_path: Path, first: Any) -> None:
    # Only where a number is exactly zero, as in the background of images, does one sample change another.
    nodes = [node("Equal", "x zero", "dark"), node("Cast", "dark", "d", to=TensorProto.FLOAT)]
    nodes += [node("ReduceSum", "d axis", "all", keepdims=1), node("Add", "x all", "h"), node("MatMul", "h w", "y")]
    weights = {"zero": np.zeros((), np.float32), "axis": whole(0), "w": normal(6, 4)}
    path = write(tmp_path / "net.onnx", nodes, (first, 6), weights, opset=13)
    network = read(path)
    x = np.maximum(normal(7, 6), 0)
    if first != 1:
        for _ in range(2):
            with pytest.raises(ModelError, match="mixes the"):
                network(torch.from_numpy(x))
        return
    expected = np.concatenate([by_onnxruntime(path, x[k : k + 1]) for k in range(7)])
    np.testing.assert_allclose(network(torch.from_numpy(x)).detach(), expected, atol=1e-5)
    assert len(network.notes) == 1
    assert "one sample at a time" in network.notes[0]


@pytest.mark.parametrize("first", ["n", 1])
def test_a_batch_of_one_keeps_its_dimension_where_the_file_squeezes_it_away(tmp_path: Path, first: Any) -> None:
    nodes = [node("GlobalAveragePool", "x", "pooled"), node("Squeeze", "pooled", "flat"), node("MatMul", "flat w", "y")]
    network = read(write(tmp_path / "net.onnx", nodes, (first, 3, 4, 4), {"w": normal(3, 4)}, opset=11))
    x = normal(5, 3, 4, 4)
    for n in (1, 2, 5):
        expected = x[:n].mean((2, 3)) @ normal(3, 4)
        np.testing.assert_allclose(network(torch.from_numpy(x[:n])).detach(), expected, atol=1e-5)


@pytest.mark.parametrize("first", ["n", 2])
def test_a_network_that_takes_no_sample_alone_takes_it_twice(tmp_path: Path, first: Any) -> None:
    # ``x.squeeze()`` of a live module, exported with a free batch: Gemm has no matrix where the batch is one.
    nodes = [node("GlobalAveragePool", "x", "pooled"), node("Squeeze", "pooled", "flat"), node("Gemm", "flat w", "y")]
    network = read(write(tmp_path / "net.onnx", nodes, (first, 3, 4, 4), {"w": normal(3, 4)}, opset=11))
    x = torch.from_numpy(normal(5, 3, 4, 4)).requires_grad_(True)
    for n in (1, 5):
        expected = x[:n].mean((2, 3)) @ torch.from_numpy(normal(3, 4))
        torch.testing.assert_close(network(x[:n]), expected, atol=1e-5, rtol=1e-5)
    (ours,) = torch.autograd.grad(network(x[:1])[:, 0].sum(), x)
    (theirs,) = torch.autograd.grad(network(x)[0, 0], x)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("rows", [3, 100])
def test_names_of_classes_in_a_column_of_floats_are_looked_up(tmp_path: Path, rows: int) -> None:
    # No random number of the trial may be beyond the table, whose length the file's input does not tell.
    nodes = [node("Gather", "x first", "column", axis=1), node("Cast", "column", "names", to=TensorProto.INT64)]
    nodes += [node("Gather", "table names", "vectors"), node("Concat", "vectors x", "h", axis=1), node("MatMul", "h w", "y")]
    weights = {"first": np.array(0, np.int64), "table": normal(rows, 5), "w": normal(8, 4)}
    path = write(tmp_path / "net.onnx", nodes, ("n", 3), weights)
    x = normal(7, 3)
    x[:, 0] = np.arange(7) % rows
    np.testing.assert_allclose(read(path)(torch.from_numpy(x)).detach(), by_onnxruntime(path, x), atol=1e-5)
    x[0, 0] = rows
    with pytest.raises(ModelError, match="out of bounds"):
        read(path)(torch.from_numpy(x))


def test_a_network_without_a_batch_dimension_takes_batches(tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", [node("MatMul", "x w", "y")], (6,), {"w": normal(6, 4)}, (4,))
    x = normal(5, 6)
    np.testing.assert_allclose(read(path)(torch.from_numpy(x)).detach(), x @ normal(6, 4), atol=1e-5)


def test_a_network_of_one_image_without_a_batch_dimension_is_run_image_by_image(tmp_path: Path) -> None:
    nodes = [node("Unsqueeze", "x axis", "b"), node("Conv", "b k", "c"), node("GlobalAveragePool", "c", "y")]
    path = write(tmp_path / "net.onnx", nodes, (3, 8, 8), {"axis": whole(0), "k": normal(5, 3, 3, 3)}, (1, 5, 1, 1))
    network = read(path)
    x = normal(4, 3, 8, 8)
    expected = np.stack([by_onnxruntime(path, x[k]).reshape(5) for k in range(4)])
    np.testing.assert_allclose(network(torch.from_numpy(x)).detach(), expected, atol=1e-5)


def test_values_that_grow_faster_than_the_batch_are_run_one_by_one(tmp_path: Path) -> None:
    nodes = [
        node("Unsqueeze", "x first", "p"),
        node("Unsqueeze", "x second", "q"),
        node("Sub", "p q", "pairs"),
        node("Mul", "pairs zero", "nothing"),
        node("ReduceSum", "nothing first", "h", keepdims=0),
        node("Add", "x h", "y"),
    ]
    weights = {"first": whole(0), "second": whole(1), "zero": np.zeros(1, np.float32)}
    network = read(write(tmp_path / "net.onnx", nodes, weights=weights, opset=13))
    assert "one sample at a time" in network.notes[0]
    x = torch.from_numpy(normal(5, 4))
    torch.testing.assert_close(network(x), x)


# Layout


def channels_last(path: Path, shape: tuple[Any, ...] = ("n", 8, 6, 3)) -> Path:
    nodes = [
        node("Div", "x scale", "scaled"),
        node("Transpose", "scaled", "moved", perm=[0, 3, 1, 2]),
        node("Conv", "moved k", "c"),
        node("GlobalAveragePool", "c", "pooled"),
        node("Flatten", "pooled", "y"),
    ]
    weights = {"scale": np.array([1, 2, 3], np.float32), "k": normal(5, 3, 3, 3)}
    return write(path, nodes, shape, weights)


def test_images_are_permuted_for_a_network_that_takes_channels_last(tmp_path: Path) -> None:
    path = channels_last(tmp_path / "net.onnx")
    network = read(path)
    x = normal(4, 8, 6, 3)
    expected = by_onnxruntime(path, x)
    np.testing.assert_allclose(network(torch.from_numpy(x)).detach(), expected, atol=1e-5)
    assert not network.notes
    nchw = torch.from_numpy(x).permute(0, 3, 1, 2)
    np.testing.assert_allclose(network(nchw).detach(), expected, atol=1e-5)
    assert "channels last: 3×8×6 go in as 8×6×3" in network.notes[0]
    said = reader.describe(path.read_bytes(), "net.onnx", {})
    assert any("NHWC" in note for note in said.notes)
    with pytest.raises(ModelError, match="takes samples of 8×6×3, but got 3×6×8"):
        network(torch.zeros(2, 3, 6, 8))


def test_an_image_that_fits_both_ways_is_refused(tmp_path: Path) -> None:
    network = read(channels_last(tmp_path / "net.onnx", ("n", "h", "w", 3)))
    with pytest.raises(ModelError, match="cannot be told"):
        network(torch.zeros(2, 3, 8, 3))


def test_samples_are_reshaped_where_their_order_is_plain_and_refused_where_not(tmp_path: Path) -> None:
    network = read(
        write(tmp_path / "net.onnx", [node("Flatten", "x", "h"), node("MatMul", "h w", "y")], (1, 12, 1), {"w": normal(12, 4)})
    )
    x = torch.from_numpy(normal(3, 1, 4, 3))
    assert torch.equal(network(x), network(x.reshape(3, 12, 1)))
    assert "1×4×3 go into the network as 12×1" in network.notes[0]
    with pytest.raises(ModelError, match="order"):
        network(torch.zeros(2, 3, 2, 2))
    with pytest.raises(ModelError, match="takes samples of 12×1, but got 1×5×3"):
        network(torch.zeros(2, 1, 5, 3))


# What is refused


def test_all_operators_that_are_not_read_are_named_with_their_counts(tmp_path: Path) -> None:
    nodes = [
        node("NonZero", "x", "a"),
        node("Resize9", "x", "b"),
        node("Resize9", "b", "c"),
        node("Dead", "x", "nobody"),
        helper.make_node("FusedMatMul", ["c", "a"], ["d"], domain="com.microsoft"),
        helper.make_node("If", ["d"], ["y"], then_branch=helper.make_graph([], "g", [], [])),
    ]
    path = write(tmp_path / "net.onnx", nodes)
    with pytest.raises(ModelError, match=r"If ×1, NonZero ×1, Resize9 ×2, com.microsoft::FusedMatMul ×1.*--arch"):
        read(path)
    said = reader.describe(path.read_bytes(), "net.onnx", {})
    assert "Resize9 ×2" in said.refused
    assert [layer.kind for layer in said.layers][:2] == ["NonZero", "Resize9"]


def _relu() -> list[Any]:
    return [node("Relu", "x", "y")]


REFUSED = {
    "a value made twice": ([node("Relu", "x", "y"), node("Neg", "x", "y")], "two values are named"),
    "the input made again": ([node("Relu", "x", "x"), node("Neg", "x", "y")], "two values are named"),
    "a cycle": ([node("Add", "x b", "a"), node("Neg", "a", "b"), node("Relu", "a", "y")], "nothing before it makes"),
    "a value from nowhere": ([node("Add", "x nowhere", "y")], "nothing before it makes"),
    "no output": ([node("Relu", "x", "z")], "made by no node"),
    "an output of constants": ([node("Relu", "w", "y")], "does not depend on the input"),
    "a graph in an attribute": (
        [helper.make_node("Relu", ["x"], ["y"], body=helper.make_graph([], "g", [], []))],
        "graph within the graph",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_graph_that_contradicts_itself_is_refused(tmp_path: Path, case: str) -> None:
    nodes, words = REFUSED[case]
    with pytest.raises(ModelError, match=words):
        read(write(tmp_path / "net.onnx", nodes, weights={"w": normal(4)}))


def test_the_smallest_whole_number_over_minus_one_does_not_stop_the_process(tmp_path: Path) -> None:
    nodes = [node("Div", "a b", "q"), node("Cast", "q", "f", to=1), node("Add", "x f", "y")]
    found = read(write(tmp_path / "net.onnx", nodes, weights={"a": whole(-(2**63)), "b": whole(-1)}))
    assert torch.isfinite(found(torch.zeros(2, 4))).all()


def test_a_network_that_makes_no_numbers_is_no_crash(tmp_path: Path) -> None:
    nodes = [helper.make_node("Resize", ["x", "", "s"], ["y"], mode="linear")]
    model = write(tmp_path / "net.onnx", nodes, weights={"s": np.array([1, 1e-40], np.float32)})
    with contextlib.suppress(ModelError):
        assert read(model)(torch.zeros(2, 4)).numel() == 0


@pytest.mark.slow
def test_weights_in_more_modules_than_any_network_has_are_refused(tmp_path: Path) -> None:
    names = [f"m{i}." + "a." * 13 + "w" for i in range(3000)]
    model = write(
        tmp_path / "net.onnx",
        [node("Concat", " ".join(["x", *names]), "y", axis=0)],
        weights={name: np.zeros((0, 4), np.float32) for name in names},
    )
    with pytest.raises(ModelError, match="more than 30,000 modules"):
        read(model)


IMAGE = [node("Reshape", "x s", "r"), node("GlobalAveragePool", "r", "g"), node("Expand", "g t", "e")]
BOMBS: dict[str, tuple[list[Any], dict[str, np.ndarray]]] = {
    "Expand": ([node("Expand", "x s", "y")], {"s": whole(2**20, 2**20, 1, 4)}),
    "Tile": ([node("Tile", "x s", "y")], {"s": whole(1, 2**33)}),
    "ConstantOfShape": ([node("ConstantOfShape", "s", "c"), node("Add", "x c", "y")], {"s": whole(2**20, 2**10, 4)}),
    "Range": (
        [node("Range", "a b c", "r"), node("Cast", "r", "f", to=1), node("ReduceSum", "f", "m"), node("Add", "x m", "y")],
        {"a": np.array(0), "b": np.array(2**40), "c": np.array(1)},
    ),
    "Pad": ([node("Pad", "x s", "y")], {"s": whole(0, 0, 0, 2**40)}),
    "doubling": (
        [node("Concat", f"{'x' if k == 0 else f'h{k}'} " * 2, f"h{k + 1}", axis=1) for k in range(40)]
        + [node("Relu", "h40", "y")],
        {},
    ),
    "doubling integers": (
        [node("Concat", f"h{k} h{k}", f"h{k + 1}", axis=0) for k in range(40)] + [node("Reshape", "x h40", "y")],
        {"h0": whole(*[1] * 64)},
    ),
    "an outer product of integers": (
        [node("Mul", "a b", "c"), node("Mul", "c d", "e"), node("Reshape", "x e", "y")],
        {"a": whole(*[1] * 4000).reshape(-1, 1, 1), "b": whole(*[1] * 4000).reshape(1, -1, 1), "d": whole(*[1] * 4000)},
    ),
    "a matrix product": (
        [node("Reshape", "x s", "r"), node("Expand", "r t", "e"), node("MatMul", "e e", "y")],
        {"s": whole(-1, 1, 4), "t": whole(1, 4, 2**40)},
    ),
    "a pool of four million numbers": (
        [*IMAGE, node("MaxPool", "e", "p", kernel_shape=[2000, 2000], pads=[999] * 4), node("GlobalAveragePool", "p", "y")],
        {"s": whole(-1, 1, 2, 2), "t": whole(1, 1, 2000, 2000), "i": whole(0)},
    ),
    "a convolution that unfolds its input": (
        [*IMAGE, node("Conv", "e k", "p"), node("GlobalAveragePool", "p", "y")],
        {"s": whole(-1, 1, 2, 2), "t": whole(1, 1, 1100, 1100), "i": whole(0), "k": normal(1, 1, 100, 100)},
    ),
    "many large values": (
        [node("Expand", "x t", f"h{k}") for k in range(40)] + [node("Sum", " ".join(f"h{k}" for k in range(40)), "y")],
        {"t": whole(2**23, 1, 4)},
    ),
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_small_file_cannot_make_large_values(tmp_path: Path, case: str) -> None:
    nodes, weights = BOMBS[case]
    path = write(tmp_path / "net.onnx", nodes, weights=weights)
    assert path.stat().st_size < 120_000
    before, peak = time.process_time(), _peak()
    with pytest.raises(ModelError):
        read(path)
    assert time.process_time() - before < 3
    assert _peak() - peak < 300 * 2**20


@pytest.mark.parametrize("op", ["Gemm", "Transpose"])
def test_the_transpose_of_a_large_weight_is_no_large_value(tmp_path: Path, monkeypatch: Any, op: str) -> None:
    # The first linear layer of VGG-16 has more weights than any value may have numbers.
    for module in (graph, bounded):
        monkeypatch.setattr(module, "MOST_NUMBERS", 1000)
    nodes = [node("Gemm", "x w", "y", transB=1)]
    if op == "Transpose":
        nodes = [node("Transpose", "w", "turned", perm=[1, 0]), node("MatMul", "x turned", "y")]
    path = write(tmp_path / "net.onnx", nodes, ("n", 100), {"w": normal(40, 100)})
    x = normal(3, 100)
    np.testing.assert_allclose(read(path)(torch.from_numpy(x)).detach(), x @ normal(40, 100).T, atol=1e-4)
    copied = [node("Transpose", "w", "turned", perm=[1, 0]), node("Neg", "turned", "n"), node("MatMul", "x n", "y")]
    with pytest.raises(ModelError, match="at most 1,000"):
        read(write(tmp_path / "net.onnx", copied, ("n", 100), {"w": normal(40, 100)}))
    repeated = [node("Expand", "w", "many"), node("ReduceSum", "many", "one"), node("Mul", "x one", "y")]
    repeated[0].input.append("shape")
    with pytest.raises(ModelError, match="at most 1,000"):
        read(write(tmp_path / "net.onnx", repeated, ("n", 100), {"w": normal(1, 100), "shape": whole(40, 100)}))


def _peak() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# Damaged and hostile bytes


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def model_bytes(graph: bytes, opset: bytes = b"\x10\x11") -> bytes:
    return b"\x08\x08" + field(7, graph) + field(8, opset)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (model_bytes(field(1, b"")) + b"\x00", "field has the number 0"),
        (model_bytes(field(1, b""))[:-3], "cut off"),
        (model_bytes(b"") + b"\x08\x08", "twice"),
        (model_bytes(b"") + field(7, b""), "twice"),
        (b"\x08\x08" + b"\x38\x01", "wire type 0 in the place of 2"),
        (b"\x08" + b"\xff" * 9 + b"\x7f", "64 bits"),
        (b"\x08" + b"\x80" * 1000, "64 bits"),
        (b"\x08\x7f" + field(7, field(12, field(1, b"y"))), "IR version 127"),
        (model_bytes(field(12, field(1, b"y")), b"\x10\x7f"), "opset 127"),
        (model_bytes(field(1, b"\x0b")), "group"),
        (model_bytes(field(15, b"")), "sparse initializers"),
        (model_bytes(field(99, b"")), "does not know"),
        (model_bytes(field(1, field(4, b"\xff\xfe"))), "UTF-8"),
        (model_bytes(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f"), "cut off"),
        (model_bytes(b"\x0a\x00" * 1_500_000), "more than 500,000 fields"),
        (model_bytes(field(1, field(5, field(6, b"\x0a\x02" * 10_000)))), "no graph with an output"),
        (b"", "no graph|IR version"),
    ],
)
def test_damaged_bytes_are_refused_with_the_reason(content: bytes, words: str) -> None:
    before = time.process_time()
    with pytest.raises(ModelError, match=words):
        reader.load(content, "net.onnx", {})
    assert time.process_time() - before < 8


def with_weight(tmp_path: Path, **changes: Any) -> bytes:
    """Return a file whose one weight was tampered with."""
    path = write(tmp_path / "net.onnx", [node("MatMul", "x w", "y")], weights={"w": normal(4, 4)})
    model = onnx.load(path)
    (weight,) = model.graph.initializer
    for name, value in changes.items():
        if name in ("dims", "float_data", "int32_data"):
            del getattr(weight, name)[:]
            getattr(weight, name).extend(value)
        else:
            setattr(weight, name, value)
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dims": [2**31, 2**31]}, "lengths"),
        ({"dims": [2**16, 2**16, 2**16]}, "bytes, but 64 are there"),
        ({"dims": [-4, -4]}, "lengths"),
        ({"dims": [4, 5]}, "needs 80 bytes, but 64 are there"),
        ({"dims": [1] * 100}, "100 dimensions"),
        ({"float_data": [1.0]}, "twice"),
        ({"data_type": 8}, "type string"),
        ({"data_type": 17}, "float8e4m3fn"),
        ({"data_type": 22}, "int4"),
        ({"data_type": 99}, "type 99"),
        ({"raw_data": b"", "float_data": []}, "0 are there"),
    ],
)
def test_a_tensor_is_held_against_the_bytes_that_are_there(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        reader.load(with_weight(tmp_path, **changes), "net.onnx", {})


DTYPES = [
    np.float32,
    np.float64,
    np.float16,
    np.int8,
    np.uint8,
    np.int16,
    np.uint16,
    np.int32,
    np.uint32,
    np.int64,
    np.uint64,
    np.bool_,
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("raw", [True, False])
def test_tensors_of_each_type_are_read_as_onnx_reads_them(dtype: Any, raw: bool) -> None:
    from audit.model.onnx import messages, wire

    values = (np.random.default_rng(0).normal(size=(3, 5)) * 50).astype(np.int64 if np.dtype(dtype).kind != "f" else dtype)
    values = np.abs(values).astype(dtype) if np.dtype(dtype).kind in "ub" else values.astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    proto = helper.make_tensor("w", kind, values.shape, values.tobytes() if raw else values.reshape(-1).tolist(), raw=raw)
    ours = read_tensor(wire.parse(messages.TensorProto, memoryview(proto.SerializeToString()), wire.Budget()), {})
    np.testing.assert_array_equal(ours.numpy(), numpy_helper.to_array(proto).astype(ours.numpy().dtype))
    assert ours.shape == (3, 5)


def test_bfloat16_and_truth_values_are_read_by_their_bits() -> None:
    from audit.model.onnx import messages, wire

    def ours(proto: TensorProto) -> Tensor:
        return read_tensor(wire.parse(messages.TensorProto, memoryview(proto.SerializeToString()), wire.Budget()), {})

    wanted = torch.tensor([1.5, -2.25, 3e30], dtype=torch.bfloat16)
    bits = wanted.view(torch.int16).numpy().astype(np.uint16)
    raw = TensorProto(dims=[3], data_type=16, raw_data=bits.tobytes())
    typed = TensorProto(dims=[3], data_type=16, int32_data=bits.astype(np.int32))
    assert torch.equal(ours(raw), wanted)
    assert torch.equal(ours(typed), wanted)
    with pytest.raises(Malformed, match="neither 0 nor 1"):
        ours(TensorProto(dims=[1], data_type=9, raw_data=b"\x02"))
    with pytest.raises(Malformed, match="none of type int8"):
        ours(TensorProto(dims=[1], data_type=3, int32_data=[300]))


def _base() -> bytes:
    weights = {"w": normal(4, 4), "b": normal(4)}
    graph = helper.make_graph(
        [node("Gemm", "x w b", "h", alpha=2.0, transB=1), node("Softmax", "h", "y", axis=-1)],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 4))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 4))],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


BASE = _base()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(st.lists(st.tuples(st.integers(0, len(BASE) - 1), st.binary(max_size=3), st.integers(0, 3)), min_size=1, max_size=4))
def test_where_both_readers_read_a_mutated_file_they_see_the_same(changes: list[tuple[int, bytes, int]]) -> None:
    content = bytearray(BASE)
    for position, put, taken in changes:
        content[position : position + taken] = put
    try:
        ours = read_model(bytes(content))
    except Malformed:
        return
    try:
        theirs = onnx.load_from_string(bytes(content))
    except Exception:  # skipped fields are not looked into here
        return
    for mine, other in zip(ours.graph.node, theirs.graph.node, strict=True):
        assert (mine.op_type, mine.input, mine.output) == (other.op_type, tuple(other.input), tuple(other.output))
        assert (mine.domain, mine.name) == (other.domain, other.name)
        for a, b in zip(mine.attribute, other.attribute, strict=True):
            assert (a.name, a.i or 0) == (b.name, b.i)
            assert struct.pack("<f", a.f or 0) == struct.pack("<f", b.f) or np.isnan(b.f)
    for mine, other in zip(ours.graph.initializer, theirs.graph.initializer, strict=True):
        assert (mine.name, mine.dims.list(), mine.data_type) == (other.name, list(other.dims), other.data_type)
        assert bytes(mine.raw_data or b"") == other.raw_data


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(BASE) - 1), st.binary(max_size=3), st.integers(0, 3)), min_size=1, max_size=3))
def test_a_mutated_file_is_loaded_or_refused_in_a_plain_word(changes: list[tuple[int, bytes, int]]) -> None:
    content = bytearray(BASE)
    for position, put, taken in changes:
        content[position : position + taken] = put
    for step in (reader.load, reader.describe):
        with contextlib.suppress(ModelError):
            step(bytes(content), "net.onnx", {})


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=50))
def test_packed_numbers_are_decoded_as_protobuf_encodes_them(numbers: list[int]) -> None:
    from audit.model.onnx.wire import Numbers

    encoded = b"".join(varint(number % 2**64) for number in numbers)
    assert Numbers("int", [memoryview(encoded)]).list() == numbers


# External data


def with_data_beside(folder: Path, location: str = "weights.bin", **more: str) -> Path:
    path = write(folder / "net.onnx", [node("MatMul", "x w", "y")], weights={"w": normal(4, 4)})
    model = onnx.load(path)
    (weight,) = model.graph.initializer
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        weight.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return path


def test_weights_beside_the_file_are_read_and_hashed(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"1234" + normal(4, 4).tobytes() + b"tail")
    path = with_data_beside(tmp_path, offset="4", length="64")
    model = audit.Model.load(path)
    x = normal(3, 4)
    np.testing.assert_allclose(model.outputs(torch.from_numpy(x)).detach(), x @ normal(4, 4), atol=1e-5)
    before = model.origin.sha256
    (tmp_path / "weights.bin").write_bytes(b"1234" + (2 * normal(4, 4)).tobytes() + b"tail")
    assert audit.Model.load(path).origin.sha256 != before


def test_weights_beside_the_file_as_torch_writes_them(tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", [node("MatMul", "x w", "y")], weights={"w": normal(4, 4)})
    onnx.save(onnx.load(path), tmp_path / "out.onnx", save_as_external_data=True, location="out.onnx.data", size_threshold=0)
    x = normal(3, 4)
    np.testing.assert_allclose(read(tmp_path / "out.onnx")(torch.from_numpy(x)).detach(), x @ normal(4, 4), atol=1e-5)


@pytest.mark.parametrize(
    ("location", "more", "words"),
    [
        ("../secret.bin", {}, "plain relative name"),
        ("sub/../../secret.bin", {}, "plain relative name"),
        ("/etc/passwd", {}, "plain relative name"),
        ("C:\\secret", {}, "plain relative name"),
        ("..\\secret", {}, "plain relative name"),
        ("a\0b", {}, "plain relative name"),
        ("", {}, "plain relative name"),
        (".", {}, "plain relative name"),
        ("link.bin", {}, "which is a link"),
        ("folder/secret.bin", {}, "which is a link"),
        ("pipe", {}, "pipe"),
        ("here", {}, "folder"),
        ("missing.bin", {}, "No such file"),
        ("short.bin", {}, "too short"),
        ("weights.bin", {"offset": "1"}, "too short"),
        ("weights.bin", {"offset": "-1"}, "no plain number"),
        ("weights.bin", {"offset": "9" * 5000}, "no plain number"),
        ("weights.bin", {"length": "63"}, "should be 64"),
        ("weights.bin", {"basepath": "/etc"}, "names a folder"),
        ("weights.bin", {"other": "/etc"}, "location, offset and length"),
    ],
)
def test_nothing_but_files_beside_the_model_is_read(tmp_path: Path, location: str, more: dict[str, str], words: str) -> None:
    folder = tmp_path / "models"
    outside = tmp_path / "outside"
    for made_folder in (folder, outside, folder / "here"):
        made_folder.mkdir()
    for place in (outside / "secret.bin", tmp_path / "secret.bin", folder / "weights.bin"):
        place.write_bytes(normal(4, 4).tobytes())
    (folder / "short.bin").write_bytes(b"1234")
    (folder / "link.bin").symlink_to(outside / "secret.bin")
    (folder / "folder").symlink_to(outside)
    os.mkfifo(folder / "pipe")
    path = with_data_beside(folder, location, **more)
    with pytest.raises(ModelError, match=words):
        load(path)


def test_many_tensors_cannot_share_one_stretch_of_a_file(tmp_path: Path) -> None:
    size = 2**18
    graph = helper.make_graph(
        [node("Add", f"{'x' if k == 0 else f'h{k}'} w{k}", f"h{k + 1}" if k < 199 else "y") for k in range(200)],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", size // 4))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    for k in range(200):
        weight = graph.initializer.add(name=f"w{k}", data_type=1, dims=[size // 4 - k], data_location=TensorProto.EXTERNAL)
        weight.external_data.add(key="location", value="weights.bin")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ModelError, match="overlap"):
        reader.load(model.SerializeToString(), "net.onnx", {"weights.bin": bytes(size)})


# Ports


def test_inputs_that_are_initializers_do_not_count(tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", [node("MatMul", "x w", "y")], weights={"w": normal(4, 4)})
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, (4, 4)))
    assert reader.load(model.SerializeToString(), "net.onnx", {})
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, (4, 4)))
    with pytest.raises(ModelError, match=r"2 inputs.*'x'.*'mask'"):
        reader.load(model.SerializeToString(), "net.onnx", {})


def test_several_outputs_and_inputs_of_integers_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", [node("Cast", "x", "y", to=1)], dtype=TensorProto.UINT8)
    with pytest.raises(ModelError, match=r"type uint8.*float32 input"):
        read(path)
    model = onnx.load(write(path, [node("Relu", "x", "y"), node("Neg", "x", "z")]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    with pytest.raises(ModelError, match=r"2 outputs.*'y'.*'z'"):
        reader.load(model.SerializeToString(), "net.onnx", {})


def test_an_output_with_lengths_of_one_becomes_a_row_a_sample(tmp_path: Path) -> None:
    nodes = [node("Conv", "x k", "c"), node("GlobalAveragePool", "c", "y")]
    path = write(tmp_path / "net.onnx", nodes, ("n", 3, 8, 8), {"k": normal(5, 3, 3, 3)})
    network = read(path)
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 5)
    assert "taken as (n, 5)" in network.notes[0]


@pytest.mark.parametrize("dtype", [TensorProto.DOUBLE, TensorProto.FLOAT16])
def test_a_network_of_another_precision_takes_its_own(tmp_path: Path, dtype: int) -> None:
    kind = {TensorProto.DOUBLE: np.float64, TensorProto.FLOAT16: np.float16}[dtype]
    weights = {"w": normal(4, 4).astype(kind)}
    path = write(
        tmp_path / "net.onnx", [node("MatMul", "x w", "h"), node("Cast", "h", "y", to=1)], weights=weights, dtype=dtype
    )
    model = audit.Model.load(path)
    x = normal(3, 4)
    np.testing.assert_allclose(model.outputs(torch.from_numpy(x)).detach(), by_onnxruntime(path, x.astype(kind)), atol=2e-3)


def test_what_a_file_is_can_be_told_without_running_it() -> None:
    said = reader.describe(shared("models/mnistfc_256x2.onnx").read_bytes(), "net.onnx", {})
    assert said.format == "ONNX"
    assert said.parameters == 784 * 256 + 256 + 256 * 256 + 256 + 2560 + 10
    assert [layer.kind for layer in said.layers] == ["Flatten", "Gemm", "Relu", "Gemm", "Relu", "Gemm"]
    assert said.layers[1].detail == "256×784, 256"
    assert said.inputs[0].shape == (1, 784, 1)
    assert said.outputs[0].shape == (1, 10)
    assert not said.refused
    assert any("opset 9" in note for note in said.notes)
