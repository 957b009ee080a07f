"""Says what a ``.pt2`` file is: layers that hold weights, shapes, and what torch's own loader would run."""

from __future__ import annotations

from audit.errors import ModelError
from audit.model.description import Description, Layer, Port
from audit.model.pickled.described import asked
from audit.model.pickled.records import Allowance
from audit.model.pt2 import operators, schema, weights
from audit.model.pt2.archive import Archive
from audit.model.pt2.build import build, free_batch, user_input
from audit.model.pt2.problems import Executes, Problem, short
from audit.model.pt2.schema import Name, Program
from audit.model.pt2.weights import Held

FORMAT = "torch.export program"
MAX_PROGRAM = 64 * 2**20
# torch writes them for a sample that is a tensor; whatever they are made to call is named beside them.
ORDINARY = ("torch._tensor._rebuild_from_type_v2", "torch.Tensor")


def described(content: bytes, source: str) -> Description:
    """Return what the file says of itself, and why it is not loaded where it is not."""
    program: Program | None = None
    held: Held | None = None
    refused = ""
    executes: list[str] = []
    try:
        archive = Archive(content, source)
        executes += _in_pickles(archive)
        program = schema.program(archive.read(f"models/{archive.model}.json", MAX_PROGRAM))
        held = weights.read(archive, numbers=False)
        build(program, held)
    except Executes as problem:
        refused = f"it {problem}"
        executes.append(refused)
    except Problem as problem:
        refused = f"it {problem}"
    return Description(
        format=FORMAT,
        layers=_layers(program, held) if program and held else (),
        parameters=_parameters(program, held) if program and held else None,
        inputs=_inputs(program) if program else (),
        outputs=_outputs(program) if program else (),
        executes=tuple(executes),
        refused=refused,
        notes=_notes(program) if program else (),
    )


def _in_pickles(archive: Archive) -> list[str]:
    """List what torch's loader would call for the pickles in the archive, sample inputs included, which we never read."""
    found: list[str] = []
    allowance = Allowance()
    for name in archive.members:
        if not name.startswith("data/") or name.endswith(".json") or not archive.begins_as_pickle(name):
            continue
        try:
            names = asked(bytes(archive.read(name, MAX_PROGRAM)), name, allowance)
        except (ModelError, Problem) as problem:
            names = (f"what is in it: {short(str(problem))}",)
        found += [f"{short(name)}: {said}" for said in names if said not in ORDINARY]
    return found


def _notes(program: Program) -> tuple[str, ...]:
    version = (f"written by torch {program.torch_version[:50]}",) if program.torch_version else ()
    return (*version, f"{len(program.nodes):,} operations")


def _targets(program: Program, kind: str) -> dict[str, str]:
    return {spec.value: spec.target for spec in program.inputs if spec.kind == kind}


def _parameters(program: Program, held: Held) -> int:
    unique = {id(held.weights[t]): held.weights[t] for t in _targets(program, "parameter").values() if t in held.weights}
    return sum(tensor.numel() for tensor in unique.values())


def _layers(program: Program, held: Held) -> tuple[Layer, ...]:
    """Return the modules that hold weights, each called after the first operation that reads one of them."""
    parameters = _targets(program, "parameter")
    module = {value: target.rpartition(".")[0] for value, target in {**parameters, **_targets(program, "buffer")}.items()}
    kinds = _first_uses(program, module)
    grouped: dict[str, list[str]] = {}
    for value, name in module.items():
        grouped.setdefault(name, []).append(value)
    layers = []
    for name, values in grouped.items():
        tensors = {value: held.weights.get(parameters[value]) if value in parameters else None for value in values}
        shapes = (
            f"{parameters[v].rpartition('.')[2]} {'×'.join(map(str, t.shape))}" for v, t in tensors.items() if t is not None
        )
        count = sum(tensor.numel() for tensor in tensors.values() if tensor is not None)
        kind = kinds.get(name, "unused")
        if kind == "convolution":
            kind = f"conv{max((t.ndim for t in tensors.values() if t is not None), default=4) - 2}d"
        layers.append(Layer(name, kind, ", ".join(shapes), count))
    return tuple(layers)


def _first_uses(program: Program, module: dict[str, str]) -> dict[str, str]:
    known = operators.table()
    found: dict[str, str] = {}
    passed = dict(module)  # a weight that is turned round first (t, permute) is still that module's
    for node in program.nodes:
        operator = known.get(node.target)
        read = [
            part.name
            for _, _, argument in node.inputs
            for part in (argument.value if isinstance(argument.value, list) else [argument.value])
            if isinstance(part, Name) and part.name in passed
        ]
        if not read:
            continue
        if operator is not None and operator.views:
            passed |= {output: passed[read[0]] for output in node.outputs if isinstance(output, str)}
            continue
        for name in read:
            found.setdefault(passed[name], operator.kind if operator else short(node.target)[1:-1])
    return found


def _inputs(program: Program) -> tuple[Port, ...]:
    try:
        entry = user_input(program).value
    except Problem:
        return tuple(_port(program, spec.value, "") for spec in program.inputs if spec.kind == "user_input")
    return (_port(program, entry, _batch(program)),)


def _outputs(program: Program) -> tuple[Port, ...]:
    return (_port(program, program.output, _batch(program)),)


def _batch(program: Program) -> str:
    try:
        return free_batch(program)
    except Problem:
        return ""


def _port(program: Program, name: str, batch: str) -> Port:
    meta = program.tensors.get(name)
    if meta is None:
        return Port(name, (), "unknown")
    shape = (
        size if isinstance(size, int) else "batch" if size.symbol == batch else size.symbol or size.text[:60]
        for size in meta.sizes
    )
    return Port(name, tuple(shape), str(meta.dtype).removeprefix("torch."))
