"""Makes a network from records of ``torch.nn`` layers, by our own calls of torch's classes.

Each layer is made without numbers, from arguments that its `Schema` tested; then every attribute in the record is held against
the layer's, and the tensors of the file are put in place of its own where the shapes agree. What is not in the schema refuses
the file: a hook, a function, an attribute with the name of a method, another parameter.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from audit.model.pickled.layers import SCHEMAS
from audit.model.pickled.layers.attention import FUNCTIONS
from audit.model.pickled.layers.containers import DATA_PARALLEL, WITHOUT_FORWARD
from audit.model.pickled.layers.schema import Layer, Schema, Unfit, UnfitAt, shown
from audit.model.pickled.numpy_scalars import unpacked
from audit.model.pickled.records import Cut, Damaged, Made, Name, Parameter, PlainDict, PlainSet

DEEPEST = 100
MOST_LAYERS = 20_000  # each use of a layer counts: layers shared in layers shared in layers take exponential time to run
MOST_ENTRIES = 1_000_000  # attributes, weights and layers of all layers: a dict may be that of many, and counts for each
MOST_NAME = 1000  # characters of a weight's name with those of its layers
SLACK = 64 * 2**20  # bytes of tensors that are views of fewer numbers

_BASE = frozenset(vars(nn.Module()))
_HELD = ("_parameters", "_buffers", "_modules")
_HOOKS = frozenset(name for name in _BASE if "hook" in name) - {"_is_full_backward_hook"}
# Written by torch before 1.3: the functions that layers called. Nothing reads it any more.
_BACKEND = "torch.nn.backends.thnn._get_thnn_function_backend"
COMPILED = "_is_torch_compile"  # torch.compile leaves it, as True, on the network that it was given; no layer reads it
LONGEST_NOTE = 2_500  # texts or numbers in a list that stands on a layer and that no layer reads
_PLAIN = (bool, int, float, str)


class Refused(Exception):
    """To load it, code would have to run that is not torch's own, or that the file brings; the message says what."""


def is_module(record: Any) -> bool:
    """Say whether a record is a network or a layer, of whatever class."""
    return (
        isinstance(record, Made)
        and isinstance(record.state, PlainDict)
        and all(isinstance(record.state.get(held), PlainDict) for held in _HELD)
    )


def rebuild(record: Made, tensor: Callable[[Cut | Parameter], Tensor], notes: list[str] | None = None) -> nn.Module:
    """Return the network of a record, in evaluation mode.

    Parameters
    ----------
    tensor
        Returns the tensor of a record.
    notes
        Gets a line for each attribute that nothing uses: text and numbers under names of the author's.

    Raises
    ------
    Refused
        A class is not in the table, or something hangs on a layer that could change what it does.
    UnfitAt, Damaged
        The record contradicts itself.
    """
    # Constructors warn of odd but valid arguments; the warnings are for whoever wrote them.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rebuilding = _Rebuilding(tensor)
        module, _ = rebuilding.module(record, "", 0)
    if notes is not None:
        notes.extend(rebuilding.notes)
    return module.eval()


def weights(record: Made) -> dict[str, Any]:
    """Return the records of the tensors that a state dict of the network would hold, by name, whatever its classes are.

    Raises
    ------
    Damaged
        Layers are nested too deeply, stand inside themselves, or are too many.
    """
    found: dict[str, Any] = {}
    # Names are put together when a layer's turn comes: there may be as many in waiting as the file has entries.
    pending: list[tuple[Made, str, str, int]] = [(record, "", "", 0)]
    layers = entries = 0
    while pending:
        module, above, own, depth = pending.pop()
        layers += 1
        entries += held_in(module)
        if depth > DEEPEST or layers > MOST_LAYERS or entries > MOST_ENTRIES:
            raise Damaged("its layers are nested too deeply, or are too many")
        state, prefix = module.state, above + own
        if len(prefix) > MOST_NAME:
            raise Damaged(f"a layer has a name of {len(prefix):,} characters")
        passing = state.get("_non_persistent_buffers_set")
        passing = set(_texts(passing)) if isinstance(passing, PlainSet) else set()
        for name, value in [*state["_parameters"].items(), *state["_buffers"].items()]:
            if isinstance(value, Cut | Parameter) and not (name in passing and name in state["_buffers"]):
                found[_joined(prefix, name)] = value
        pending += [
            (child, prefix, f"{_joined('', name)}.", depth + 1)
            for name, child in reversed(state["_modules"].items())
            if is_module(child)
        ]
        if len(found) > 10 * MOST_LAYERS:
            raise Damaged("it has too many weights")
    return found


def held_in(record: Made) -> int:
    """Count the attributes, weights and layers in a record of a layer."""
    return len(record.state) + sum(len(record.state[held]) for held in _HELD)


def _joined(prefix: str, name: Any) -> str:
    if not isinstance(name, str) or len(prefix) + len(name) > MOST_NAME:
        raise Damaged(f"a weight or a layer has a name that is no text of at most {MOST_NAME:,} characters")
    return prefix + name


def _texts(values: PlainSet) -> list[str]:
    return [value for value in values if isinstance(value, str)]


class _Rebuilding:
    """One network on its way from records to layers."""

    def __init__(self, tensor: Callable[[Cut | Parameter], Tensor]) -> None:
        self.tensor = tensor
        self.done: dict[int, tuple[nn.Module, int]] = {}  # by the record's identity: a layer that is used twice is one layer
        self.open: set[int] = set()
        self.tensors: dict[int, Tensor] = {}
        self.taken, self.there = 0, 0
        self.entries = 0
        self.storages: set[str] = set()
        self.notes: list[str] = []

    def module(self, record: Any, where: str, depth: int) -> tuple[nn.Module, int]:
        """Return a layer that computes something by itself, and how many layers run when it does."""
        while isinstance(record, Made) and record.name.full == DATA_PARALLEL and is_module(record):
            record, depth = self._inside(record, where, depth)
        if isinstance(record, Made) and record.name.full in WITHOUT_FORWARD:
            raise Refused(
                f"{_at(where)}a {record.name}, which holds layers but does not say how they are joined: "
                "that is code outside the file"
            )
        return self._any(record, where, depth)

    def _any(self, record: Any, where: str, depth: int) -> tuple[nn.Module, int]:
        if id(record) in self.done:
            return self.done[id(record)]
        if not isinstance(record, Made):
            raise UnfitAt(f"{_at(where)}something else than a layer")
        schema = SCHEMAS.get(record.name.full)
        if schema is None or record.called or record.arguments or record.items is not None:
            raise Refused(f"{_at(where)}a {record.name}, which is not one of the layers of torch.nn that are known")
        self.open.add(id(record))
        try:
            self.done[id(record)] = self._make(record, schema, where, depth)
        except Unfit as unfit:
            raise UnfitAt(f"{_at(where)}a {schema.kind.__name__} that {unfit}") from None
        self.open.discard(id(record))
        return self.done[id(record)]

    def _make(self, record: Made, schema: Schema, where: str, depth: int) -> tuple[nn.Module, int]:
        if not is_module(record):
            raise Unfit("has no parameters, buffers and layers")
        self.entries += held_in(record)
        if self.entries > MOST_ENTRIES:
            raise Unfit(f"is one of layers with more than {MOST_ENTRIES:,} attributes, weights and layers in all")
        layer = _layer(record, where)
        _check_flags(record.state)
        _check_hooks(record.state, where)
        children, uses = self._children(layer, schema, depth)
        try:
            with torch.device("meta"):
                keywords = schema.keywords(layer)
                module = schema.make(keywords, children) if schema.make else schema.kind(**keywords)
        except Unfit:
            raise
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise Unfit(f"cannot be made: {reason[:150]}") from None
        if set(layer.modules) != set(module._modules):
            raise Refused(f"{_at(where)}a {schema.kind.__name__} with layers of its own: {_listed(layer.modules)}")
        ignored = _compare(module, layer, schema)
        self.notes += [f"{_at(where)}{name[:60]!r} = {shown(layer.attributes[name])} is not used" for name in ignored[:3]]
        self._fill(module, layer, schema)
        if schema.after is not None:
            schema.after(module, layer)
        return module, uses

    def _children(self, layer: Layer, schema: Schema, depth: int) -> tuple[dict[str, nn.Module], int]:
        children: dict[str, nn.Module] = {}
        uses = 1
        for name, record in layer.modules.items() if schema.children else ():
            if id(record) in self.open:
                raise Unfit(f"stands inside itself, as {name[:60]!r}")
            if depth >= DEEPEST:
                raise Unfit(f"holds layers nested more than {DEEPEST} deep")
            inner = f"{layer.where}.{name[:60]}" if layer.where else name[:60]
            # The layers in a Sequential run by themselves; others say how they use theirs.
            made = self.module if schema.kind is nn.Sequential else self._any
            children[name], more = made(record, inner, depth + 1)
            uses += more
            if uses > MOST_LAYERS:
                raise Unfit(f"runs more than {MOST_LAYERS:,} layers")
        return children, uses

    def _inside(self, record: Made, where: str, depth: int) -> tuple[Any, int]:
        """Return the network that a DataParallel wraps: on one device it computes the same."""
        state = record.state
        _check_hooks(state, where)
        known = _BASE | {"dim", "device_ids", "output_device", "src_device_obj", "_is_full_backward_hook", "module", COMPILED}
        odd = [name for name in state if name not in known]
        if odd or list(state["_modules"]) != ["module"] or state["_parameters"] or state["_buffers"] or depth > DEEPEST:
            raise Refused(f"{_at(where)}a DataParallel with more than the network inside it")
        return state["_modules"]["module"], depth + 1

    def _fill(self, module: nn.Module, layer: Layer, schema: Schema) -> None:
        for what, theirs, ours in (
            ("parameter", layer.parameters, module._parameters),
            ("buffer", layer.buffers, module._buffers),
        ):
            for name in [*theirs, *ours]:
                record, own = theirs.get(name), ours.get(name)
                if (record is None) != (own is None) or (name not in ours and record is not None):
                    raise Unfit(f"should {'have' if record is None else 'not have'} the {what} {name[:60]!r}")
            for name, own in list(ours.items()):
                if own is not None:
                    setattr(module, name, self._tensor(theirs[name], own, f"{what} {name}", schema))

    def _tensor(self, record: Any, own: Tensor, what: str, schema: Schema) -> Tensor:
        parameter = isinstance(own, nn.Parameter)
        if not isinstance(record, Parameter if parameter else Cut):
            raise Unfit(f"has something else than a tensor as {what}")
        cut = record.data if isinstance(record, Parameter) else record
        if cut.size != tuple(own.shape):
            raise Unfit(f"has a {what} of shape {_shape(cut.size)}, its sizes ask for {_shape(own.shape)}")
        if cut.storage.dtype.is_floating_point != own.dtype.is_floating_point or cut.storage.dtype.is_complex:
            raise Unfit(f"has a {what} of type {cut.storage.dtype}, instead of {own.dtype} or the like")
        if isinstance(record, Parameter) and not record.plain:
            raise Refused(f"a parameter of a {schema.kind.__name__} with hooks or attributes of its own")
        if id(record) not in self.tensors:
            self._count(cut)
            tensor = self.tensor(cut)
            made = nn.Parameter(tensor, requires_grad=record.requires_grad) if isinstance(record, Parameter) else tensor
            self.tensors[id(record)] = made
        found = self.tensors[id(record)]
        if isinstance(found, nn.Parameter) != parameter:
            raise Unfit("has one tensor as a parameter and as a buffer")
        return found

    def _count(self, cut: Cut) -> None:
        """Hold what the tensors would take, each on its own, against what the file has: views may show numbers many times."""
        itemsize = cut.storage.dtype.itemsize
        if cut.storage.key not in self.storages:
            self.storages.add(cut.storage.key)
            self.there += cut.storage.numel * itemsize
        self.taken += cut.numel * itemsize
        if self.taken > self.there + SLACK:
            raise Unfit(f"shows its numbers many times: with it the tensors take {self.taken:,} bytes, made of {self.there:,}")


def _layer(record: Made, where: str) -> Layer:
    """Take a record apart; its names must be text and its attributes plain."""
    state = record.state
    for held in (state, *(state[name] for name in _HELD)):
        if not all(isinstance(name, str) for name in held):
            raise Unfit("has a name that is no text")
    attributes = {}
    for name, value in state.items():
        if name in _BASE:
            continue
        if name == "_backend" and isinstance(value, Made) and value.name.full == _BACKEND:
            continue
        if name == COMPILED and value is True:
            continue
        if isinstance(value, Name) and value.full in FUNCTIONS:
            value = FUNCTIONS[value.full]  # noqa: PLW2901  (the record of a function becomes our own function)
        attributes[name] = unpacked(value)
    return Layer(record.name, attributes, state["_parameters"], state["_buffers"], state["_modules"], where)


def _check_hooks(state: Mapping[str, Any], where: str) -> None:
    for name, held in state.items():
        if name in _HOOKS and held is not None and not (isinstance(held, PlainDict) and not held):
            raise Refused(f"{_at(where)}a layer with {name}: functions that are called whenever it runs or is saved")


def _check_flags(state: Mapping[str, Any]) -> None:
    if not isinstance(state.get("training", False), bool):
        raise Unfit("has something else than a flag as training")
    full = state.get("_is_full_backward_hook")
    if full is not None and not isinstance(full, bool):
        raise Unfit("has something else than a flag as _is_full_backward_hook")
    passing = state.get("_non_persistent_buffers_set")
    if passing is not None and (not isinstance(passing, PlainSet) or passing):
        raise Unfit("has buffers that are not saved")


def _compare(module: nn.Module, layer: Layer, schema: Schema) -> list[str]:
    """Hold each attribute of the record against the layer's, and the other way round; return those that nothing uses."""
    ignored = []
    ours = {name: value for name, value in vars(module).items() if name not in _BASE}
    for name, value in layer.attributes.items():
        if name in schema.loose:
            if not schema.loose[name](value):
                raise Unfit(f"has {name[:60]} = {shown(value)}, which no {schema.kind.__name__} has")
        elif name in ours:
            if not same(ours[name], value):
                raise _differs(name, ours[name], value, schema, layer.where)
        elif name in schema.gone:
            if not schema.gone[name](value):
                raise Unfit(f"has {name[:60]} = {shown(value)}, which no {schema.kind.__name__} has")
        elif "hook" in name and isinstance(value, PlainDict) and not value:
            continue  # hooks that another version of torch knows, and that are not there
        elif hasattr(module, name) or not _harmless(name, value):
            raise Refused(
                f"{_at(layer.where)}a {schema.kind.__name__} with {name[:60]!r} of its own ({shown(value)}): "
                "it could change what the layer does"
            )
        else:
            ignored.append(name)
    missing = [name for name in ours if name not in layer.attributes and name not in schema.older]
    if missing:
        raise Unfit(f"has no {', '.join(missing)}")
    return ignored


def _differs(name: str, own: Any, value: Any, schema: Schema, where: str) -> Exception:
    if isinstance(value, Made | Name) or callable(value):
        return Refused(f"{_at(where)}a {schema.kind.__name__} with {shown(value)} as {name[:60]}")
    return Unfit(f"has {name[:60]} = {shown(value)}, where its other attributes ask for {shown(own)}")


def _harmless(name: str, value: Any) -> bool:
    """Say whether an attribute that no layer knows is a note: text, numbers or a list of them, under a name of its own."""
    if name.startswith("_"):
        return False
    if isinstance(value, list | tuple | dict):  # names of classes, say
        held = [*value, *value.values()] if isinstance(value, dict) else value
        return len(held) <= LONGEST_NOTE and all(part is None or isinstance(part, _PLAIN) for part in held)
    return value is None or isinstance(value, _PLAIN)


def same(ours: Any, theirs: Any) -> bool:
    """Compare plain values; lists and tuples are alike, and so are 0 and 0.0, but not 1 and True."""
    if isinstance(ours, list | tuple):
        return (
            isinstance(theirs, list | tuple)
            and len(ours) == len(theirs)
            and all(same(one, other) for one, other in zip(ours, theirs, strict=True))
        )
    if isinstance(ours, bool) or ours is None or callable(ours):
        return ours is theirs
    if isinstance(ours, int | float):
        if isinstance(theirs, bool) or not isinstance(theirs, int | float):
            return False
        return ours == theirs and not math.isnan(theirs)
    return isinstance(ours, str) and isinstance(theirs, str) and ours == theirs


def _shape(size: Any) -> str:
    return "×".join(map(str, size[:8])) or "one number"


def _at(where: str) -> str:
    return f"at {where[:100]}: " if where else ""


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(repr(name[:40]) for name in list(names)[:5]) or "none"
