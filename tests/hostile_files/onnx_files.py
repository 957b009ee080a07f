"""ONNX files: data that lie elsewhere, graphs that never end, and messages that grow when they are read."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.hostile_files.assemble import field, varint
from tests.hostile_files.case import SECRET, Family, Place, Proof

FAMILY = Family("onnx", file="hostile.onnx")
FLOAT = TensorProto.FLOAT


def weight(name: str = "w", array: Any = None) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones((4, 3), np.float32) if array is None else np.asarray(array), name)


def model(
    nodes: list[Any], weights: list[Any] | None = None, functions: list[Any] | None = None, **more: Any
) -> onnx.ModelProto:
    """Return a model of 4 inputs and 3 outputs, called x and y."""
    ports = [helper.make_tensor_value_info(name, FLOAT, ["batch", n]) for name, n in (("x", 4), ("y", 3))]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [weight()] if weights is None else weights)
    sets = [helper.make_opsetid("", 17), *more.pop("sets", [])]
    return helper.make_model(graph, opset_imports=sets, ir_version=8, functions=functions or [])


def matmul(source: str = "x") -> onnx.NodeProto:
    return helper.make_node("MatMul", [source, "w"], ["y"])


def add(case: str, made: Callable[[Place], Any] | onnx.ModelProto, proof: Proof, *words: str, **more: Any) -> None:
    def make(place: Place) -> None:
        held = made(place) if callable(made) else made
        place.write("hostile.onnx", held if isinstance(held, bytes) else held.SerializeToString())

    # With --arch an ONNX file is refused as it is, unless its data lie where none may be read.
    FAMILY.add(case, make, proof, *words, arch_codes=(2, 3), **more)


def run(file: Path, _: Place) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.ones((2, 4), np.float32)})


def evaluated(file: Path, _: Place) -> Any:
    """Run with onnx's own evaluator."""
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(onnx.load(file)).run(None, {"x": np.ones((2, 4), np.float32)})


# --- data that lie elsewhere --------------------------------------------------------------------------------------------


def external(
    location: Callable[[Place], str], count: int = 12, kind: int = FLOAT, **more: str
) -> Callable[[Place], onnx.ModelProto]:
    """Return a maker of a model whose weight stands in another file."""

    def made(place: Place) -> onnx.ModelProto:
        tensor = TensorProto(name="w", data_type=kind, dims=[4, count // 4], data_location=TensorProto.EXTERNAL)
        for key, value in {"location": location(place), **more}.items():
            tensor.external_data.add(key=key, value=value)
        return model([matmul()], [tensor])

    return made


def naively(file: Path, place: Place) -> str:
    """Read the data where the file says: as readers did before onnx 1.13 (CVE-2022-25882, CVE-2024-27318)."""
    tensor = onnx.load(file, load_external_data=False).graph.initializer[0]
    said = {entry.key: entry.value for entry in tensor.external_data}
    where = file.parent / said["location"]
    if where.is_fifo():
        return SECRET  # who opens it waits for ever
    with where.open("rb") as stream:
        return stream.read(10_000_000).decode(errors="replace")


def exhausted(file: Path, place: Place) -> bytes:
    """Read the data to their end, where the file says."""
    tensor = onnx.load(file, load_external_data=False).graph.initializer[0]
    return (file.parent / tensor.external_data[0].value).read_bytes()


ESCAPES = Proof("escapes", naively)


def _linked(place: Place) -> onnx.ModelProto:
    (place.at / "weights.bin").symlink_to(place.secret)
    return external(lambda p: "weights.bin")(place)


def _linked_folder(place: Place) -> onnx.ModelProto:
    (place.at / "folder").symlink_to(place.secret.parent)
    return external(lambda p: "folder/secret")(place)


def _hard_link(place: Place) -> onnx.ModelProto:
    os.link(place.secret, place.at / "weights.bin")
    return external(lambda p: "weights.bin")(place)


def _pipe(place: Place) -> onnx.ModelProto:
    os.mkfifo(place.at / "weights.bin")
    return external(lambda p: "weights.bin")(place)


add("data above the folder", external(lambda p: "../secret"), ESCAPES, "secret", quick=True)
add("data at an absolute path", external(lambda p: str(p.secret)), ESCAPES, "secret")
add("data behind a link", _linked, ESCAPES, "weights.bin")
add("data behind a linked folder", _linked_folder, ESCAPES, "folder/secret")
add(
    "data in a folder below that leads up",
    external(lambda p: "a/../../secret"),
    Proof("fixed", naively, "No such file"),
    "secret",
)
add("data in a pipe", _pipe, ESCAPES, "weights.bin")
add("data in a device", external(lambda p: "/dev/zero"), Proof("exhausts", exhausted), "/dev/zero")
add(
    "data of another process",
    external(lambda p: "/proc/self/environ"),
    Proof("differs", lambda f, p: [len(naively(f, p)), 0]),
    "/proc",
)


def _beside(content: bytes, **more: str) -> Callable[[Place], onnx.ModelProto]:
    def made(place: Place) -> onnx.ModelProto:
        place.write("weights.bin", content)
        return external(lambda p: "weights.bin", **more)(place)

    return made


def with_external(file: Path, _: Place) -> Any:
    return numpy_helper.to_array(onnx.load(file).graph.initializer[0])


add("data that end too soon", _beside(bytes(20)), Proof("fixed", run, ""), "weights.bin")
add("data far behind the end", _beside(bytes(48), offset=str(2**60)), Proof("fixed", run, ""), "'w'")
add("data before the beginning", _beside(bytes(48), offset="-4096"), Proof("fixed", with_external, ""), "'w'")
add("data of 2**62 bytes", _beside(bytes(48), length=str(2**62)), Proof("fixed", run, ""), "'w'")
add(
    "a location with a NUL",
    external(lambda p: "weights.bin\0../secret"),
    Proof("fixed", naively, "null"),
    "plain relative name",
)
add(
    "a location of 100,000 letters",
    external(lambda p: "a" * 100_000),
    Proof("fixed", naively, "too long"),
    "plain relative name",
)


# --- numbers that are not there -----------------------------------------------------------------------------------------


def _claims(dims: list[int], raw: bytes = bytes(48)) -> onnx.ModelProto:
    return model([matmul()], [TensorProto(name="w", data_type=FLOAT, dims=dims, raw_data=raw)])


add("a weight of 2**62 numbers from 48 bytes", _claims([2**31, 2**31]), Proof("fixed", run, ""), "the lengths")
add("a weight of a negative size", _claims([-4, -3]), Proof("fixed", run, ""), "the lengths")
add("a weight of no numbers that claims many", _claims([2**40, 0], b""), Proof("fixed", run, ""), "the lengths")
add(
    "a weight of a kind that nobody knows",
    model([matmul()], [TensorProto(name="w", data_type=99, dims=[4, 3], raw_data=bytes(48))]),
    Proof("fixed", run, ""),
    "type 99",
)


def shaped(*numbers: int) -> onnx.TensorProto:
    return weight("shape", np.asarray(numbers, np.int64))


def bomb(case: str, words: str, *nodes: Any, weights: tuple[Any, ...] = (), **more: Any) -> None:
    """Add a model whose nodes make something large, ``r``, whose sum goes into its layer."""
    summed = [node("ReduceSum", ["r"], ["s"], keepdims=0), node("Add", ["x", "s"], ["b"]), matmul("b")]
    add(case, model([*nodes, *summed], [weight(), *weights]), Proof("exhausts", run), words, **more)


node = helper.make_node
ONE = weight("one", np.ones((1, 4), np.float32))
RANGE = tuple(weight(key, np.asarray(value, np.float32)) for key, value in (("zero", 0), ("end", 1e12), ("one", 1)))
DEPTH = (weight("depth", np.asarray(2**33)), weight("values", np.asarray([0, 1], np.float32)))
NUMBERS = "numbers"
bomb(
    "ConstantOfShape of 2**34",
    "ConstantOfShape",
    node("ConstantOfShape", ["shape"], ["r"]),
    weights=(shaped(2**32, 4),),
    quick=True,
)
bomb("Expand to 2**34", "Expand", node("Expand", ["one", "shape"], ["r"]), weights=(ONE, shaped(2**32, 4)))
bomb("Tile by 2**27", NUMBERS, node("Tile", ["one", "shape"], ["r"]), weights=(ONE, shaped(2**27, 1)))
bomb("Tile of the input by 2**26", NUMBERS, node("Tile", ["x", "shape"], ["r"]), weights=(shaped(2**26, 1),))
bomb("Range to 10**12", "Range", node("Range", ["zero", "end", "one"], ["r"]), weights=RANGE)
bomb("Pad by 2**32", "Pad", node("Pad", ["x", "shape"], ["r"]), weights=(shaped(2**32, 0, 0, 0),))
SCALES = weight("scales", np.asarray([1e9, 1.0], np.float32))
bomb("Resize by 10**9", NUMBERS, node("Resize", ["x", "", "scales"], ["r"]), weights=(SCALES,))
bomb(
    "OneHot of 2**33",
    "OneHot",
    node("Cast", ["x"], ["i"], to=TensorProto.INT64),
    node("OneHot", ["i", "depth", "values"], ["r"]),
    weights=DEPTH,
)


def _doubling(operator: str, **attributes: Any) -> list[Any]:
    names = ["x", *[f"d{i}" for i in range(40)]]
    steps = [node(operator, [a, a], [b], **attributes) for a, b in itertools.pairwise(names)]
    return [*steps, node("Identity", [names[-1]], ["r"])]


bomb("forty doublings", NUMBERS, *_doubling("Concat", axis=0))


# --- graphs that never end ----------------------------------------------------------------------------------------------


def _loop() -> onnx.ModelProto:
    """Write a loop that goes on as long as it likes."""
    value, yes = helper.make_tensor_value_info("v", FLOAT, None), helper.make_tensor_value_info("go", TensorProto.BOOL, [])
    step = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    after = [helper.make_tensor_value_info("go2", TensorProto.BOOL, []), helper.make_tensor_value_info("v2", FLOAT, None)]
    body = helper.make_graph(
        [node("Identity", ["go"], ["go2"]), node("Identity", ["v"], ["v2"])], "body", [step, yes, value], after
    )
    often = weight("often", np.asarray(2**62))
    true = numpy_helper.from_array(np.asarray(True), "true")
    return model([node("Loop", ["often", "true", "x"], ["b"], body=body), matmul("b")], [weight(), often, true])


add("a loop without end", _loop(), Proof("exhausts", run), "Loop", quick=True)


def _functions() -> onnx.ModelProto:
    """Write forty functions, each of which calls the one before twice."""
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = [helper.make_function("own", "f0", ["a"], ["c"], [node("Relu", ["a"], ["c"])], sets)]
    for i in range(1, 40):
        twice = [node(f"f{i - 1}", ["a"], ["m"], domain="own"), node(f"f{i - 1}", ["m"], ["c"], domain="own")]
        functions.append(helper.make_function("own", f"f{i}", ["a"], ["c"], twice, sets))
    return model(
        [node("f39", ["x"], ["b"], domain="own"), matmul("b")], functions=functions, sets=[helper.make_opsetid("own", 1)]
    )


add("functions that call each the one before twice", _functions(), Proof("exhausts", evaluated), "f39")


def _recursive() -> onnx.ModelProto:
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = [helper.make_function("own", "f", ["a"], ["c"], [node("f", ["a"], ["c"], domain="own")], sets)]
    return model(
        [node("f", ["x"], ["b"], domain="own"), matmul("b")], functions=functions, sets=[helper.make_opsetid("own", 1)]
    )


add("a function that calls itself", _recursive(), Proof("fixed", evaluated, ""), "own::f")
add(
    "a cycle",
    model([node("Relu", ["c"], ["b"]), node("Relu", ["b"], ["c"]), matmul("b")]),
    Proof("fixed", run, ""),
    "which nothing before it makes",
)
add(
    "a node of another domain",
    model(
        [node("System", ["x"], ["b"], domain="com.evil", command="id"), matmul("b")], sets=[helper.make_opsetid("com.evil", 1)]
    ),
    Proof("fixed", run, ""),
    "System",
)
add(
    "Python in a node",
    model(
        [node("PythonOp", ["x"], ["b"], domain="com.microsoft.extensions", code="import os"), matmul("b")],
        sets=[helper.make_opsetid("com.microsoft.extensions", 1)],
    ),
    Proof("fixed", run, ""),
    "PythonOp",
)


def in_graph(more: bytes, source: str = "x") -> bytes:
    """Return the good model with more fields in front of those of its graph."""
    held = model([matmul(source)])
    graph: bytes = held.graph.SerializeToString()
    held.ClearField("graph")
    content: bytes = held.SerializeToString()
    return content + field(7, more + graph)


def _if_deep() -> bytes:
    """Nest graphs in attributes, by hand: onnx writes no such message."""
    graph = b""
    for _ in range(5_000):
        attribute = field(1, "then_branch") + field(6, graph) + field(20, 5)
        graph = field(1, field(1, "x") + field(2, "b") + field(4, "If") + field(5, attribute))
    return in_graph(graph, "b")


add("graphs nested 5,000 deep", lambda p: _if_deep(), Proof("fixed", lambda f, p: onnx.load(f), "Error parsing"), "If")


# --- messages -----------------------------------------------------------------------------------------------------------


def parsed(file: Path, _: Place) -> Any:
    return onnx.load(file, load_external_data=False)


def _base() -> bytes:
    content: bytes = model([matmul()]).SerializeToString()
    return content


def parsed_as_objects(file: Path, place: Place) -> list[Any]:
    """Make a list of what each message holds, as a reader in Python does."""
    held = parsed(file, place)
    return [list(tensor.float_data) * 8 for tensor in held.graph.initializer] + [
        str(held) if len(held.graph.node) > 1000 else ""
    ]


add(
    "ten million empty nodes",
    lambda p: in_graph(field(1, b"") * 10_000_000),
    Proof("exhausts", parsed),
    "fields",
)
add(
    "packed numbers of one byte each",
    lambda p: in_graph(field(5, field(1, 2**24) + field(2, 6) + field(8, "w2") + field(5, b"\x01" * 2**24))),
    Proof(
        "exhausts", lambda f, p: [list(t.int32_data) + [float(n) for n in t.int32_data] for t in parsed(f, p).graph.initializer]
    ),
    "ONNX",
    bare_codes=(0, 3),  # four times the size of the file, and no more
)
add(
    "two graphs in one message",
    lambda p: _base() + field(7, field(2, "other") + field(1, field(4, "Relu") + field(1, "x") + field(2, "y"))),
    Proof("differs", lambda f, p: _first_and_merged(f)),
    "graph twice",
)


def _first_and_merged(file: Path) -> list[int]:
    """Return how many nodes the first graph of the file has, and how many protobuf makes of both."""
    first = onnx.ModelProto.FromString(_base())
    return [len(first.graph.node), len(onnx.load(file).graph.node)]


add(
    "a length that ends outside",
    lambda p: _base() + varint(7 << 3 | 2) + varint(2**40) + b"x",
    Proof("fixed", parsed, ""),
    "cut off",
)
add("a group that never ends", lambda p: _base() + varint(99 << 3 | 3) * 100_000, Proof("fixed", parsed, ""), "group")
add(
    "a number of ten bytes and more",
    lambda p: _base() + varint(99 << 3) + b"\xff" * 1000 + b"\x01",
    Proof("fixed", parsed, ""),
    "64 bits",
)


def _escape() -> onnx.ModelProto:
    return model([node("\x1b[2J\x1b[31mRelu", ["x"], ["b\x1b]0;title\x07"]), matmul("b\x1b]0;title\x07")])


add(
    "names that command the terminal",
    _escape(),
    Proof("escapes", lambda f, p: parsed(f, p).graph.node[0].op_type),
    "Relu",
    quick=True,
)
add(
    "two weights of one name",
    model([matmul()], [weight(), weight("w", np.zeros((4, 3), np.float32))]),
    Proof("differs", lambda f, p: [numpy_helper.to_array(t).sum() for t in parsed(f, p).graph.initializer]),
    "two initializers",
)
add("a weight that a node makes, too", model([node("Identity", ["x"], ["w"]), matmul()]), Proof("fixed", run, ""), "two values")
