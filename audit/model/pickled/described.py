"""Says what a pickle of ``torch.save`` holds, and what torch's own loader would run, without making anything of it."""

from __future__ import annotations

from typing import Any

from audit.errors import ModelError
from audit.model import state_dict
from audit.model.description import Description, Layer, Port
from audit.model.pickled import Wanted, mapping, network, other_weights, shape_of
from audit.model.pickled.archive import Saved
from audit.model.pickled.layers.containers import DATA_PARALLEL
from audit.model.pickled.layers.schema import UnfitAt
from audit.model.pickled.rebuild import DEEPEST, MOST_ENTRIES, Refused, held_in, is_module, rebuild
from audit.model.pickled.records import Allowance, Blocked, Cut, Damaged, Made, Parameter

MOST_LAYERS = 10_000
# Attributes that say more of a layer than its shapes do.
SHOWN = ("stride", "padding", "kernel_size", "num_heads", "num_layers", "p", "negative_slope", "eps", "output_size", "dim")
KEEP_SHAPE = frozenset(
    (
        *("ReLU", "ReLU6", "LeakyReLU", "ELU", "SELU", "CELU", "GELU", "SiLU", "Mish", "Sigmoid", "Tanh", "Softmax"),
        *("Hardtanh", "Hardswish", "Hardsigmoid", "Softplus", "LogSoftmax", "Dropout", "Identity", "BatchNorm1d", "LayerNorm"),
    )
)


def describe(content: bytes, source: str) -> Description:
    """Say what a file holds.

    Raises
    ------
    ModelError
        It is truncated or damaged, or not from ``torch.save``.
    """
    wanted = Wanted()
    refused = ""
    try:
        saved = Saved(content, wanted)
        found = network(saved.content)
        try:
            wanted.stop(saved, found)
        except Blocked as blocked:
            refused = _asks(str(blocked), wanted.instead(blocked))
        executes = tuple(name[:200] for name in saved.seen.mentioned)
        if found is not None:
            return _network(found, executes, refused, other_weights(saved.content))
        return _weights(saved.content, source, executes, refused)
    except (Blocked, Damaged) as problem:
        reason = (str(problem).strip().splitlines() or ["no reason given"])[0][:200]
        if isinstance(problem, Blocked) or wanted.names:
            names = dict.fromkeys([*wanted.names, *([reason] if isinstance(problem, Blocked) else [])])
            said = (wanted.and_also(problem), wanted.instead(problem)) if isinstance(problem, Blocked) else (str(wanted), "")
            return Description("pickle", executes=tuple(names), refused=_asks(*said))
        raise ModelError(f"{source} is truncated or damaged, or not from torch.save ({reason}): save it again") from None


def _asks(names: str, instead: str) -> str:
    return f"it asks for {names[:500]}, which could execute code{f'; {instead}'.removesuffix('; ')}"


def asked(content: bytes, source: str, allowance: Allowance) -> tuple[str, ...]:
    """List what torch's own loader would import or call for a pickle: no more than the reading takes.

    Raises
    ------
    ModelError
        It is truncated or damaged, not from ``torch.save``, or takes more than what is allowed.
    """
    wanted = Wanted()
    try:
        return tuple(name[:200] for name in Saved(content, wanted, allowance).seen.mentioned)
    except Blocked as problem:
        return tuple(dict.fromkeys([*wanted.names, f"{str(problem)[:200]}, and whatever comes after it, which was not read"]))
    except Damaged as problem:
        if wanted.names:
            return tuple(wanted.names)
        raise ModelError(f"{source} is truncated or damaged, or not from torch.save ({str(problem)[:200]})") from None


def _weights(content: Any, source: str, executes: tuple[str, ...], refused: str) -> Description:
    try:
        found = state_dict.find_weights(mapping(content), source, tensor=(Cut, Parameter))
    except ModelError as error:
        return Description("pickle", executes=executes, refused=refused or str(error))
    layers = tuple(
        Layer(name[:200], "tensor", f"{_times(cut.size)} {_type(cut)}", cut.numel)
        for name, cut in ((name, _cut(record)) for name, record in found.items())
    )
    return Description(
        "weights saved by torch.save",
        layers,
        sum(layer.parameters for layer in layers),
        executes=executes,
        refused=refused,
        needs_arch=True,
        notes=tuple(other_weights(content)),
    )


def _network(record: Made, executes: tuple[str, ...], refused: str, notes: list[str]) -> Description:
    foreign = False
    try:
        if not refused:
            rebuild(record, shape_of, notes)
    except Refused as reason:
        refused, foreign = f"it holds a network that only code from elsewhere could rebuild: {reason}", True
    except (UnfitAt, Damaged) as reason:
        refused = f"it holds a network that contradicts itself: {reason}"
    leaves = _leaves(record)
    layers = tuple(_layer(where, leaf) for where, leaf in leaves)
    return Description(
        "pickled module",
        layers,
        _parameters(leaves),
        *(_ports(record, leaves) if not refused else ((), ())),
        executes=executes,
        refused=refused,
        needs_arch=foreign,
        notes=tuple(notes[:20]),
    )


def _leaves(record: Made) -> list[tuple[str, Made]]:
    """List the layers without layers inside, or with weights beside them, in order."""
    found: list[tuple[str, Made]] = []
    pending: list[tuple[Made, str, str, int]] = [(record, "", "", 0)]
    visits = entries = 0
    while pending and len(found) < MOST_LAYERS and visits < 10 * MOST_LAYERS:
        module, above, own, depth = pending.pop()
        visits += 1
        entries += held_in(module)
        if entries > MOST_ENTRIES:
            break
        where = f"{above}.{own}" if above else own
        inner = [(name, child) for name, child in module.state["_modules"].items() if is_module(child)]
        if not inner or any(value is not None for value in module.state["_parameters"].values()):
            found.append((where, module))
        if depth < DEEPEST:
            pending += [(child, where, str(name)[:60], depth + 1) for name, child in reversed(inner)]
    return found


def _layer(where: str, record: Made) -> Layer:
    held = [(name, _cut(value)) for name, value in record.state["_parameters"].items() if isinstance(value, Cut | Parameter)]
    said = [f"{str(name)[:60]} {_times(cut.size)}" for name, cut in held[:6]]
    said += [f"{name} {_plain(record.state[name])}" for name in SHOWN if _plain(record.state.get(name))]
    return Layer(where[:200], record.name.name[:60], ", ".join(said)[:200], sum(cut.numel for _, cut in held))


def _parameters(leaves: list[tuple[str, Made]]) -> int:
    """Count each parameter once, however often it is used."""
    held = [value for _, leaf in leaves for value in leaf.state["_parameters"].values() if isinstance(value, Cut | Parameter)]
    return sum(_cut(value).numel for value in {id(value): value for value in held}.values())


def _ports(record: Made, leaves: list[tuple[str, Made]]) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Tell the shapes that go in and come out, where a network of layers in a row begins or ends with one that fixes them."""
    while record.name.full == DATA_PARALLEL:
        record = record.state["_modules"]["module"]
    if record.name.name not in ("Sequential", "Linear", "Conv2d"):
        return (), ()
    first = next((leaf for _, leaf in leaves if leaf.name.name not in KEEP_SHAPE), None)
    last = next((leaf for _, leaf in reversed(leaves) if leaf.name.name not in KEEP_SHAPE), None)
    inputs: tuple[Port, ...] = ()
    if first is not None and first.name.name == "Linear":
        inputs = (Port("input", ("batch", first.state["in_features"])),)
    elif first is not None and first.name.name == "Conv2d":
        inputs = (Port("input", ("batch", first.state["in_channels"], "height", "width")),)
    linear = last is not None and last.name.name == "Linear"
    return inputs, (Port("output", ("batch", last.state["out_features"])),) if last is not None and linear else ()


def _plain(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return ""
    if isinstance(value, int):
        return str(value) if abs(value) < 2**63 else ""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple) and 0 < len(value) <= 6 and all(type(part) is int for part in value):
        return "×".join(map(str, value)) if all(abs(part) < 2**63 for part in value) else ""
    return value[:20] if isinstance(value, str) else ""


def _cut(record: Cut | Parameter) -> Cut:
    return record.data if isinstance(record, Parameter) else record


def _times(size: tuple[int, ...]) -> str:
    return "×".join(map(str, size[:8])) or "1"


def _type(cut: Cut) -> str:
    return str(cut.storage.dtype).removeprefix("torch.")
