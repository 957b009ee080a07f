"""``.pt2`` programs: strings that torch evaluates, objects that it unpickles or loads as code, and graphs that exhaust."""

from __future__ import annotations

import functools
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests import hostile
from tests.hostile_files.assemble import call, name, pickled, text, weights_and
from tests.hostile_files.case import Family, Place, Proof

FAMILY = Family("exported", file="hostile.pt2")
FREE = {"as_expr": {"expr_str": "Symbol('s31', positive=True, integer=True)", "hint": {"as_int": 2}}}
Program = dict[str, Any]


def _meta(sizes: list[Any], kind: int = 7) -> dict[str, Any]:
    steps = [1]
    for size in reversed(sizes[1:]):
        steps.insert(0, steps[0] * (size if isinstance(size, int) else 1))
    return {
        "dtype": kind,
        "sizes": [{"as_int": size} if isinstance(size, int) else size for size in sizes],
        "requires_grad": False,
        "device": {"type": "cpu", "index": None},
        "strides": [{"as_int": step} for step in steps[: len(sizes)]],
        "storage_offset": {"as_int": 0},
        "layout": 7,
    }


def _tensor(named: str) -> dict[str, Any]:
    return {"as_tensor": {"name": named}}


def step(target: str, made: str, *arguments: Any) -> dict[str, Any]:
    """Return one node of the graph; its arguments have the names that torch gives them, where it knows the operator."""
    return {
        "target": target,
        "inputs": [
            {"name": key, "arg": argument, "kind": 1} for key, argument in zip(_arguments(target), arguments, strict=False)
        ],
        "outputs": [_tensor(made)],
        "metadata": {},
        "is_hop_single_tensor_return": None,
        "name": made,
    }


def _arguments(target: str) -> list[str]:
    found: Any = torch
    for part in target.removeprefix("torch.").split("."):
        found = getattr(found, part, None)
    if isinstance(found, torch._ops.OpOverload):
        return [argument.name for argument in found._schema.arguments]
    return [f"argument_{i}" for i in range(8)]


def linear(source: str = "input", made: str = "linear") -> dict[str, Any]:
    return step("torch.ops.aten.linear.default", made, _tensor(source), _tensor("p_weight"), _tensor("p_bias"))


def program() -> Program:
    """Return model.json of one linear layer, 4 to 3, with a free batch."""
    weights = {"p_weight": _meta([3, 4]), "p_bias": _meta([3])}
    values = {**weights, "input": _meta([FREE, 4]), "linear": _meta([FREE, 3])}
    leaf = {"type": None, "context": None, "children_spec": []}
    arguments = {"type": "builtins.tuple", "context": "null", "children_spec": [leaf]}
    keywords = {"type": "builtins.dict", "context": "[]", "children_spec": []}
    both = {"type": "builtins.tuple", "context": "null", "children_spec": [arguments, keywords]}
    graph = {
        "inputs": [_tensor("p_weight"), _tensor("p_bias"), _tensor("input")],
        "outputs": [_tensor("linear")],
        "nodes": [linear()],
        "tensor_values": values,
        "sym_int_values": {},
        "sym_bool_values": {},
        "is_single_tensor_return": False,
        "custom_obj_values": {},
        "sym_float_values": {},
    }
    signature = {
        "input_specs": [
            {"parameter": {"arg": {"name": "p_weight"}, "parameter_name": "weight"}},
            {"parameter": {"arg": {"name": "p_bias"}, "parameter_name": "bias"}},
            {"user_input": {"arg": _tensor("input")}},
        ],
        "output_specs": [{"user_output": {"arg": _tensor("linear")}}],
    }
    entry = {
        "inputs": [],
        "outputs": [],
        "in_spec": json.dumps([1, both]),
        "out_spec": json.dumps([1, leaf]),
        "forward_arg_names": ["input"],
    }
    return {
        "graph_module": {
            "graph": graph,
            "signature": signature,
            "module_call_graph": [{"fqn": "", "signature": entry}],
            "metadata": {},
            "treespec_namedtuple_fields": {},
        },
        "opset_version": {"aten": 10},
        "range_constraints": {"s31": {"min_val": 0, "max_val": None}},
        "schema_version": {"major": 8, "minor": 20},
        "verifiers": ["TRAINING"],
        "torch_version": "2.13.0+cpu",
        "guards_code": [],
    }


def _weight(path: str, sizes: list[Any]) -> dict[str, Any]:
    return {"path_name": path, "is_param": True, "use_pickle": False, "tensor_meta": _meta(sizes)}


def config() -> Program:
    return {"config": {"weight": _weight("weight_0", [3, 4]), "bias": _weight("weight_1", [3])}}


@functools.cache
def samples() -> bytes:
    held = io.BytesIO()
    torch.save(((torch.zeros(2, 4),), {}), held)
    return held.getvalue()


def content(
    model: Program | bytes | None = None,
    weights: Program | None = None,
    constants: Program | None = None,
    **more: bytes,
) -> dict[str, bytes]:
    """Return the members of an archive."""
    model = program() if model is None else model
    members = {
        "data/weights/weight_0": bytes(48),
        "data/weights/weight_1": bytes(12),
        "data/weights/model_weights_config.json": json.dumps(weights or config()).encode(),
        "data/constants/model_constants_config.json": json.dumps(constants or {"config": {}}).encode(),
        "models/model.json": model if isinstance(model, bytes) else json.dumps(model).encode(),
        "data/sample_inputs/model.pt": samples(),
        "archive_format": b"pt2",
        "archive_version": b"0",
        "byteorder": b"little",
        ".data/version": b"3\n",
    }
    return {f"archive/{key}": held for key, held in (members | more).items()}


def archive(*arguments: Any, **more: Any) -> bytes:
    return hostile.zipped(content(*arguments, **more))


def loaded(file: Path, _: Place) -> Any:
    return torch.export.load(file)


def ran(file: Path, place: Place) -> Any:
    return loaded(file, place).module()(torch.zeros(2, 4))


def add(case: str, edit: Callable[[Program, Place], Any], proof: Proof, *words: str, **more: Any) -> None:
    """Add a program after `edit` changed it."""

    def make(place: Place) -> None:
        model = program()
        edit(model, place)
        place.write("hostile.pt2", archive(model))

    FAMILY.add(case, make, proof, *words, **more)


def code(place: Place) -> str:
    return f"__import__('os').mkdir({str(place.canary)!r})"


def graph(model: Program) -> Program:
    held: Program = model["graph_module"]["graph"]
    return held


RUNS = Proof("runs", loaded)


def _expression(model: Program, place: Place) -> None:
    for value in ("input", "linear"):
        graph(model)["tensor_values"][value]["sizes"][0] = {"as_expr": {"expr_str": code(place), "hint": None}}


def _expression_in_a_call(model: Program, place: Place) -> None:
    size = {"as_expr": {"expr_str": f"Max(1, {code(place)} or 2)", "hint": {"as_int": 2}}}
    graph(model)["tensor_values"]["input"]["sizes"][0] = size


add("an expression that calls", _expression, RUNS, "no arithmetic", quick=True)
add("an expression that calls inside a function", _expression_in_a_call, RUNS, "no arithmetic")


def _power(model: Program, _: Place) -> None:
    graph(model)["tensor_values"]["input"]["sizes"][0] = {"as_expr": {"expr_str": "factorial(10**7)", "hint": None}}


add("an expression that never ends", _power, Proof("exhausts", loaded), "no arithmetic")


def _gadget(place: Place) -> bytes:
    return weights_and(call(name("posix", "mkdir"), text(str(place.canary))))


def _pickled_weight(place: Place) -> None:
    weights = config()
    weights["config"]["weight"]["use_pickle"] = True
    place.write("hostile.pt2", archive(weights=weights, **{"data/weights/weight_0": _gadget(place)}))


def _pickled_constant(place: Place) -> None:
    held = {"config": {"c": {**_weight("tensor_0", [2]), "is_param": False, "use_pickle": True}}}
    place.write("hostile.pt2", archive(constants=held, **{"data/constants/tensor_0": _gadget(place)}))


def _pickled_object(place: Place) -> None:
    """Put a pickled object where custom classes stand."""
    held = {"config": {"c": {**_weight("opaque_obj_0", [2]), "is_param": False, "use_pickle": True, "tensor_meta": None}}}
    gadget = pickled(call(name("posix", "mkdir"), text(str(place.canary))))
    place.write("hostile.pt2", archive(constants=held, **{"data/constants/opaque_obj_0": gadget}))


def _sample_inputs(place: Place) -> None:
    place.write("hostile.pt2", archive(**{"data/sample_inputs/model.pt": _gadget(place)}))


FAMILY.add("a pickled weight", _pickled_weight, RUNS, "pickle", quick=True)
FAMILY.add("a pickled constant", _pickled_constant, RUNS, "pickle")
FAMILY.add("a pickled object", _pickled_object, RUNS, "opaque_obj_0")
FAMILY.add("pickled sample inputs", _sample_inputs, RUNS, "posix.mkdir", bare_codes=(0, 3))  # never opened


def _shared_object(place: Place) -> None:
    """Write a program compiled ahead of time whose library makes the canary when it is loaded."""
    source = place.write(
        "hostile.c", f'#include <sys/stat.h>\n__attribute__((constructor)) void f(void) {{ mkdir("{place.canary}", 0777); }}\n'
    )
    library = place.at / "hostile.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
    held = library.read_bytes()
    for made in (source, library):
        made.unlink()
    folder = "data/aotinductor/model"
    metadata = json.dumps({"AOTI_DEVICE_KEY": "cpu"}).encode()
    place.write("hostile.pt2", archive(**{f"{folder}/h.wrapper.so": held, f"{folder}/h.wrapper_metadata.json": metadata}))


FAMILY.add("a shared object", _shared_object, RUNS, "wrapper.so")


def _operator(target: str, *arguments: Any) -> Callable[[Program, Place], None]:
    def edit(model: Program, place: Place) -> None:
        given = [{"as_string": str(place.canary)} if argument is None else argument for argument in arguments]
        graph(model)["nodes"].insert(0, step(target, "odd", *given))
        graph(model)["tensor_values"]["odd"] = _meta([1])

    return edit


RAN = Proof("runs", ran)
add(
    "an operator that is os.mkdir",
    _operator("torch.serialization.os.mkdir", None),
    Proof("fixed", ran, "not an allowed operator"),
    "torch.serialization.os.mkdir",
)
add(
    "an operator that is os.makedirs by another way",
    _operator("torch.utils.data.os.makedirs", None),
    Proof("fixed", ran, ""),
    "os.makedirs",
)
add(
    "an operator that nobody knows",
    _operator("torch.ops.os.system.default", None),
    Proof("fixed", ran, ""),
    "torch.ops.os.system",
)
add(
    "an operator of Python's", _operator("_operator.__builtins__.exec", None), Proof("fixed", ran, ""), "_operator.__builtins__"
)


def _from_file(model: Program, place: Place) -> None:
    """Map a file into memory: one that is not there is made, and what is written to the tensor is written to the file."""
    node = step("torch.ops.aten.from_file.default", "odd", {"as_string": str(place.canary)}, {"as_bool": True}, {"as_int": 4})
    graph(model)["nodes"].insert(0, node)
    graph(model)["tensor_values"]["odd"] = _meta([4])
    graph(model)["nodes"].insert(1, step("torch.ops.aten.fill_.Scalar", "filled", _tensor("odd"), {"as_float": 1.0}))
    graph(model)["tensor_values"]["filled"] = _meta([4])
    graph(model)["nodes"].insert(2, step("torch.ops.aten.add.Tensor", "sum", _tensor("input"), _tensor("filled")))
    graph(model)["tensor_values"]["sum"] = _meta([FREE, 4])
    graph(model)["nodes"][3] = linear("sum")


add("an operator that writes a file", _from_file, RAN, "from_file", quick=True)


def _member(file: Path, ending: str) -> bytes:
    import zipfile

    with zipfile.ZipFile(file) as held:
        return held.read(next(key for key in held.namelist() if key.endswith(ending)))


def _grown(*nodes: dict[str, Any], shapes: list[list[Any]] | None = None) -> Callable[[Program, Place], None]:
    """Put nodes between the input and the layer; `shapes` is what the program says that they make."""

    def edit(model: Program, _: Place) -> None:
        held = graph(model)
        for i, node in enumerate(nodes):
            held["tensor_values"][node["name"]] = _meta(shapes[i] if shapes else [FREE, 4])
        held["nodes"] = [*nodes, linear(nodes[-1]["name"])]

    return edit


def _names(*named: str) -> dict[str, Any]:
    return {"as_tensors": [{"name": part} for part in named]}


def _doubling(levels: int) -> Callable[[Program, Place], None]:
    nodes, last = [], "input"
    for i in range(levels):
        nodes.append(step("torch.ops.aten.cat.default", f"cat_{i}", _names(last, last), {"as_int": 1}))
        last = f"cat_{i}"
    return _grown(*nodes, shapes=[[FREE, 4 * 2 ** (i + 1)] for i in range(levels)])


EXHAUSTS = Proof("exhausts", ran)


def by_hand(file: Path, place: Place) -> None:
    """Run the nodes one by one with torch's operators, as a converter does that knows no limits."""
    held = json.loads(_member(file, "models/model.json"))["graph_module"]["graph"]
    values: dict[str, Any] = {"input": torch.zeros(2, 4)}
    for node in held["nodes"]:
        package, operator, overload = node["target"].removeprefix("torch.ops.").split(".")
        if operator == "linear":
            return
        function = getattr(getattr(getattr(torch.ops, package), operator), overload)
        values[node["name"]] = function(*[_argument(argument["arg"], values) for argument in node["inputs"]])


def _argument(argument: dict[str, Any], values: dict[str, Any]) -> Any:
    ((key, held),) = argument.items()
    if key == "as_tensor":
        return values[held["name"]]
    if key == "as_tensors":
        return [values[part["name"]] for part in held]
    return held


BY_HAND = Proof("exhausts", by_hand)
INPUT = _tensor("input")
add("forty doublings", _doubling(40), BY_HAND, "numbers")
add(
    "a repetition of 10**9",
    _grown(step("torch.ops.aten.repeat.default", "r", INPUT, {"as_ints": [1, 10**9]})),
    BY_HAND,
    "4,000,000,000 numbers",
)
add(
    "padding by 10**9",
    _grown(step("torch.ops.aten.constant_pad_nd.default", "r", INPUT, {"as_ints": [10**9, 0]})),
    BY_HAND,
    "1,000,000,004 numbers",
)
add(
    "10**10 numbers",
    _grown(step("torch.ops.aten.full.default", "r", {"as_ints": [10**5, 10**5]}, {"as_float": 1.0})),
    BY_HAND,
    "10,000,000,000 numbers",
)
add(
    "a range to 10**12",
    _grown(step("torch.ops.aten.arange.default", "r", {"as_int": 10**12})),
    BY_HAND,
    "1,000,000,000,000 numbers",
)
add(
    "upsampling by 10**9",
    _grown(
        step("torch.ops.aten.unsqueeze.default", "u", INPUT, {"as_int": 1}),
        step("torch.ops.aten.upsample_nearest1d.default", "r", _tensor("u"), {"as_ints": [10**9]}),
        shapes=[[FREE, 1, 4], [FREE, 1, 10**9]],
    ),
    BY_HAND,
    "numbers",
)
add(
    "a power of a power",
    _grown(
        *[
            step(
                "torch.ops.aten.kron.default",
                f"k{i}",
                _tensor("input" if i == 0 else f"k{i - 1}"),
                _tensor("input" if i == 0 else f"k{i - 1}"),
            )
            for i in range(6)
        ]
    ),
    BY_HAND,
    "kron",
)


def _cycle(model: Program, _: Place) -> None:
    graph(model)["nodes"].insert(0, step("torch.ops.aten.relu.default", "a", _tensor("b")))
    graph(model)["nodes"].insert(1, step("torch.ops.aten.relu.default", "b", _tensor("a")))


add("a cycle", _cycle, Proof("fixed", loaded, ""), "which nothing before it makes")


def _sizes(edit: Callable[[dict[str, Any]], None]) -> Callable[[Place], None]:
    """Return a maker whose weight's description says something else than its bytes."""

    def make(place: Place) -> None:
        weights = config()
        edit(weights["config"]["weight"])
        place.write("hostile.pt2", archive(weights=weights))

    return make


def _path(held: dict[str, Any]) -> None:
    held["path_name"] = "../../../../secret"


def _huge(held: dict[str, Any]) -> None:
    held["tensor_meta"]["sizes"] = [{"as_int": 2**31}, {"as_int": 2**31}]


def _expanded(held: dict[str, Any]) -> None:
    held["tensor_meta"].update(sizes=[{"as_int": 2**20}, {"as_int": 2**20}], strides=[{"as_int": 0}] * 2)


def _backwards(held: dict[str, Any]) -> None:
    held["tensor_meta"]["strides"] = [{"as_int": -4}, {"as_int": -1}]


def _offset(held: dict[str, Any]) -> None:
    held["tensor_meta"]["storage_offset"] = {"as_int": 2**40}


FAMILY.add("a weight's path that leaves the archive", _sizes(_path), Proof("fixed", loaded, ""), "../../../../secret")
FAMILY.add("a weight of 2**62 numbers", _sizes(_huge), Proof("fixed", loaded, ""), "4,611,686,018,427,387,904 numbers")
FAMILY.add(
    "a weight of strides of zero", _sizes(_expanded), Proof("exhausts", lambda f, p: _clones(f)), "1,099,511,627,776 numbers"
)
FAMILY.add("a weight of negative strides", _sizes(_backwards), Proof("fixed", loaded, ""), "whole numbers")
FAMILY.add("a weight far outside", _sizes(_offset), Proof("fixed", loaded, ""), "12 numbers for 'weight'")


def _clones(file: Path) -> Any:
    return [held.clone(memory_format=torch.contiguous_format) for held in torch.export.load(file).state_dict.values()]


def _twice(place: Place) -> None:
    """Write each key twice: readers of JSON differ in which one holds."""
    text_ = json.dumps(program())
    place.write(
        "hostile.pt2", archive(text_.replace('"verifiers"', '"graph_module": {"graph": {"nodes": []}}, "verifiers"').encode())
    )


def first_and_last(file: Path, _: Place) -> Any:
    text_ = _member(file, "models/model.json").decode()
    first = json.loads(text_, object_pairs_hook=lambda pairs: dict(reversed(pairs)))
    return [len(json.dumps(first)), len(json.dumps(json.loads(text_)))]


FAMILY.add("keys twice", _twice, Proof("differs", first_and_last), "twice")


def parsed(file: Path, _: Place) -> Any:
    return json.loads(_member(file, "models/model.json"))


FAMILY.add(
    "JSON nested 100,000 deep",
    archive(b"[" * 100_000 + b"]" * 100_000),
    Proof("fixed", parsed, "recursion"),
    "nested too deeply",
)
FAMILY.add(
    "a number of a million digits",
    archive(b'{"schema_version": ' + b"7" * 1_000_000 + b"}"),
    Proof("fixed", parsed, "Exceeds"),
    "1,000,000 digits",
)
FAMILY.add(
    "NaN", archive(json.dumps(program()).replace('"min_val": 0', '"min_val": NaN').encode()), Proof("fixed", loaded, ""), "NaN"
)
FAMILY.add("JSON that is a list", archive(b"[]"), Proof("fixed", loaded, ""), "got a list")
FAMILY.add("30,000 nodes", lambda p: p.write("hostile.pt2", _million()), Proof("exhausts", loaded), "at most 10,000")


def _million() -> bytes:
    model = program()
    node = json.dumps(step("torch.ops.aten.relu.default", "r", INPUT))
    return archive(json.dumps(model).replace('"nodes": [', '"nodes": [' + (node + ", ") * 30_000).encode())


def _guard(model: Program, place: Place) -> None:
    model["guards_code"] = [code(place)]


add("a guard that calls", _guard, RAN, "no arithmetic")
