"""The messages of an ONNX file: of each only the fields that are used; what is not read is skipped or refused by name.

From onnx.proto, IR version 14. Subgraphs, functions and sparse tensors stay slices of the file, so that nothing nests: however
deep a file's messages go, the reader goes as deep as this table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from audit.model.onnx.wire import Budget, Field, Malformed, Message, Numbers, parse

NEWEST_IR = 14
NEWEST_OPSET = 28
MOST_NODES = 10_000
DEFAULT_DOMAINS = ("", "ai.onnx")
_NO_INT, _NO_FLOAT32, _NO_FLOAT64 = Numbers("int"), Numbers("float32"), Numbers("float64")


@dataclass(frozen=True, slots=True)
class StringStringEntryProto(Message):
    """A key and its value."""

    FIELDS: ClassVar = {1: Field("key", "text"), 2: Field("value", "text")}
    key: str = ""
    value: str = ""


@dataclass(frozen=True, slots=True)
class TensorProto(Message):
    """Numbers: dims, a type, and the values in one of several fields or in a file beside."""

    FIELDS: ClassVar = {
        1: Field("dims", "int", many=True),
        2: Field("data_type", "int"),
        3: Field("segments", "refused"),
        4: Field("float_data", "float32", many=True),
        5: Field("int32_data", "int", many=True),
        6: Field("strings", "refused"),
        7: Field("int64_data", "int", many=True),
        8: Field("name", "text"),
        9: Field("raw_data", "bytes"),
        10: Field("double_data", "float64", many=True),
        11: Field("uint64_data", "int", many=True),
        12: Field("doc_string", "skipped"),
        13: Field("external_data", StringStringEntryProto, many=True),
        14: Field("data_location", "int"),
        16: Field("metadata_props", "skipped"),
    }
    dims: Numbers = _NO_INT
    data_type: int = 0
    float_data: Numbers = _NO_FLOAT32
    int32_data: Numbers = _NO_INT
    int64_data: Numbers = _NO_INT
    name: str = ""
    raw_data: memoryview | None = None
    double_data: Numbers = _NO_FLOAT64
    uint64_data: Numbers = _NO_INT
    external_data: tuple[StringStringEntryProto, ...] = ()
    data_location: int = 0


@dataclass(frozen=True, slots=True)
class AttributeProto(Message):
    """A setting of a node; None for each kind of value that it does not have."""

    FIELDS: ClassVar = {
        1: Field("name", "text"),
        2: Field("f", "float32"),
        3: Field("i", "int"),
        4: Field("s", "text"),
        5: Field("t", TensorProto),
        6: Field("g", "bytes"),
        7: Field("floats", "float32", many=True),
        8: Field("ints", "int", many=True),
        9: Field("strings", "text", many=True),
        10: Field("lists_of_tensors", "refused"),
        11: Field("graphs", "bytes", many=True),
        13: Field("doc_string", "skipped"),
        14: Field("types", "refused"),
        15: Field("types", "refused"),
        20: Field("type", "int"),
        21: Field("references_to_attributes", "refused"),
        22: Field("sparse_tensors", "refused"),
        23: Field("sparse_tensors", "refused"),
    }
    name: str = ""
    f: float | None = None
    i: int | None = None
    s: str | None = None
    t: TensorProto | None = None
    g: memoryview | None = None
    floats: Numbers | None = None
    ints: Numbers | None = None
    strings: tuple[str, ...] | None = None
    graphs: tuple[memoryview, ...] = ()
    type: int | None = None


@dataclass(frozen=True, slots=True)
class NodeProto(Message):
    """One operation."""

    FIELDS: ClassVar = {
        1: Field("input", "text", many=True),
        2: Field("output", "text", many=True),
        3: Field("name", "text"),
        4: Field("op_type", "text"),
        5: Field("attribute", AttributeProto, many=True),
        6: Field("doc_string", "skipped"),
        7: Field("domain", "text"),
        8: Field("overload", "text"),
        9: Field("metadata_props", "skipped"),
        10: Field("device_configurations", "skipped"),
    }
    input: tuple[str, ...] = ()
    output: tuple[str, ...] = ()
    name: str = ""
    op_type: str = ""
    attribute: tuple[AttributeProto, ...] = ()
    domain: str = ""
    overload: str = ""

    @property
    def word(self) -> str:
        """The operator with its domain, where that is not the standard one."""
        return self.op_type if self.domain in DEFAULT_DOMAINS else f"{self.domain}::{self.op_type}"


@dataclass(frozen=True, slots=True)
class Dimension(Message):
    """One length of a shape: a number, or the name of a free one."""

    FIELDS: ClassVar = {1: Field("dim_value", "int"), 2: Field("dim_param", "text"), 3: Field("denotation", "skipped")}
    dim_value: int | None = None
    dim_param: str | None = None


@dataclass(frozen=True, slots=True)
class TensorShapeProto(Message):
    """The lengths of a tensor."""

    FIELDS: ClassVar = {1: Field("dim", Dimension, many=True)}
    dim: tuple[Dimension, ...] = ()


@dataclass(frozen=True, slots=True)
class TensorTypeProto(Message):
    """The type and the shape of a tensor."""

    FIELDS: ClassVar = {1: Field("elem_type", "int"), 2: Field("shape", TensorShapeProto)}
    elem_type: int = 0
    shape: TensorShapeProto | None = None


@dataclass(frozen=True, slots=True)
class TypeProto(Message):
    """What a value is: only tensors are read."""

    FIELDS: ClassVar = {
        1: Field("tensor_type", TensorTypeProto),
        4: Field("sequences", "refused"),
        5: Field("maps", "refused"),
        6: Field("denotation", "skipped"),
        7: Field("opaque_values", "refused"),
        8: Field("sparse_tensors", "refused"),
        9: Field("optional_values", "refused"),
    }
    tensor_type: TensorTypeProto | None = None


@dataclass(frozen=True, slots=True)
class ValueInfoProto(Message):
    """An input or an output of the graph."""

    FIELDS: ClassVar = {
        1: Field("name", "text"),
        2: Field("type", TypeProto),
        3: Field("doc_string", "skipped"),
        4: Field("metadata_props", "skipped"),
    }
    name: str = ""
    type: TypeProto | None = None


@dataclass(frozen=True, slots=True)
class GraphProto(Message):
    """Nodes, weights, inputs and outputs."""

    FIELDS: ClassVar = {
        1: Field("node", NodeProto, many=True),
        2: Field("name", "text"),
        5: Field("initializer", TensorProto, many=True),
        10: Field("doc_string", "skipped"),
        11: Field("input", ValueInfoProto, many=True),
        12: Field("output", ValueInfoProto, many=True),
        13: Field("value_info", "skipped"),
        14: Field("quantization_annotations", "refused"),
        15: Field("sparse_initializers", "refused"),
        16: Field("metadata_props", "skipped"),
    }
    node: tuple[NodeProto, ...] = ()
    name: str = ""
    initializer: tuple[TensorProto, ...] = ()
    input: tuple[ValueInfoProto, ...] = ()
    output: tuple[ValueInfoProto, ...] = ()


@dataclass(frozen=True, slots=True)
class OperatorSetIdProto(Message):
    """A set of operators and its version."""

    FIELDS: ClassVar = {1: Field("domain", "text"), 2: Field("version", "int")}
    domain: str = ""
    version: int = 0


@dataclass(frozen=True, slots=True)
class ModelProto(Message):
    """The whole file."""

    FIELDS: ClassVar = {
        1: Field("ir_version", "int"),
        2: Field("producer_name", "text"),
        3: Field("producer_version", "text"),
        4: Field("domain", "skipped"),
        5: Field("model_version", "skipped"),
        6: Field("doc_string", "skipped"),
        7: Field("graph", GraphProto),
        8: Field("opset_import", OperatorSetIdProto, many=True),
        14: Field("metadata_props", "skipped"),
        20: Field("training_information", "refused"),
        25: Field("functions", "bytes", many=True),
        26: Field("configuration", "skipped"),
    }
    ir_version: int = 0
    producer_name: str = ""
    producer_version: str = ""
    graph: GraphProto = GraphProto()
    opset_import: tuple[OperatorSetIdProto, ...] = ()
    functions: tuple[memoryview, ...] = ()

    @property
    def opset(self) -> int:
        """Version of the standard operators; 1 where a file of the first IR versions does not tell it."""
        return next((said.version for said in self.opset_import if said.domain in DEFAULT_DOMAINS), 1)

    def tensors(self) -> Iterator[TensorProto]:
        """Yield every tensor of the file: initializers, and those in attributes."""
        yield from self.graph.initializer
        for node in self.graph.node:
            for attribute in node.attribute:
                if attribute.t is not None:
                    yield attribute.t


def read_model(content: bytes) -> ModelProto:
    """Read an ONNX file and check what concerns it as a whole.

    Raises
    ------
    Malformed
        It is damaged, newer than what is known here, or larger than any honest network.
    """
    model = parse(ModelProto, memoryview(content), Budget())
    if not 1 <= model.ir_version <= NEWEST_IR:
        raise Malformed(f"it is of IR version {model.ir_version}; 1 to {NEWEST_IR} are read")
    if not model.graph.output:
        raise Malformed("it holds no graph with an output")
    standard = [said.version for said in model.opset_import if said.domain in DEFAULT_DOMAINS]
    if len(standard) > 1:
        raise Malformed("it names the version of the standard operators twice")
    if not standard and model.ir_version >= 3:
        raise Malformed("it does not name the version of the standard operators")
    if not 1 <= model.opset <= NEWEST_OPSET:
        raise Malformed(f"it uses opset {model.opset}; 1 to {NEWEST_OPSET} are read: export it with an older opset")
    if len(model.graph.node) > MOST_NODES:
        raise Malformed(f"it has {len(model.graph.node):,} nodes; at most {MOST_NODES:,} are read")
    return model
