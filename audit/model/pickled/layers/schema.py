"""What a record of a layer must look like before a layer is made from it: one `Schema` a class of ``torch.nn``.

A layer is made by calling torch's own class with arguments that were checked one by one, and then held against the record:
every attribute that the file has must be the one that our own layer has, and the other way round. So a schema can be too
strict, and refuse a good file; it cannot let a layer through that computes something else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from audit.model.pickled.records import Made, Name

Test = Callable[[Any], bool]

MOST_FEATURES = 2**31 - 1  # weights are held against the file, so that a large count costs nothing
MOST_STEPS = 2**16  # lengths of kernels, strides, paddings, outputs: what has no weights behind it


def flag(value: Any) -> bool:
    """Accept True and False."""
    return isinstance(value, bool)


def count(value: Any) -> bool:
    """Accept a number of features."""
    return type(value) is int and 0 <= value <= MOST_FEATURES


def axis(value: Any) -> bool:
    """Accept the number of a dimension."""
    return type(value) is int and -64 <= value <= 64


def number(value: Any) -> bool:
    """Accept a finite number."""
    return type(value) in (int, float) and abs(value) < 1e300


def limit(value: Any) -> bool:
    """Accept a number, or infinity."""
    return number(value) or (type(value) is float and math.isinf(value))


def step(value: Any) -> bool:
    """Accept a length in pixels or samples."""
    return type(value) is int and 0 <= value <= MOST_STEPS


def edge(value: Any) -> bool:
    """Accept a padding: negative ones cut."""
    return type(value) is int and -MOST_STEPS <= value <= MOST_STEPS


def optional(test: Test) -> Test:
    """Accept None too."""
    return lambda value: value is None or test(value)


def several(test: Test, most: int = 8) -> Test:
    """Accept a list or tuple."""
    return lambda value: isinstance(value, list | tuple) and len(value) <= most and all(map(test, value))


def one_or_several(test: Test) -> Test:
    """Accept one, a list or a tuple."""
    return lambda value: test(value) or several(test)(value)


def among(*values: Any) -> Test:
    """Accept some values."""
    return lambda value: any(type(value) is type(known) and value == known for known in values)


steps = one_or_several(step)
edges = one_or_several(edge)


@dataclass(frozen=True)
class Layer:
    """A record of a layer, taken apart.

    Attributes
    ----------
    attributes
        Plain ones, by name.
    parameters, buffers, modules
        Records, or None.
    where
        Its path in the network, for messages.
    """

    name: Name
    attributes: Mapping[str, Any]
    parameters: Mapping[str, Any]
    buffers: Mapping[str, Any]
    modules: Mapping[str, Any]
    where: str

    def has(self, parameter: str) -> bool:
        """Say whether the parameter is there."""
        return self.parameters.get(parameter) is not None


class Unfit(Exception):
    """A record contradicts itself, or holds what no layer of its class has; the message says what: ``has no bias``."""


class UnfitAt(Exception):
    """An `Unfit` with the layer that it is about."""


@dataclass(frozen=True)
class Schema:
    """How a class is made from a record.

    Attributes
    ----------
    kind
        The class.
    arguments
        Tests of the attributes that are passed to the constructor under their own names.
    derived
        The other arguments, from the record; raises `Unfit`.
    older
        Attributes that files of older versions lack, with the value that stood for them.
    gone
        Tests of attributes that older versions wrote, and that nothing reads any more.
    loose
        Tests of attributes that may differ from those of a layer that the constructor made.
    children
        Whether it has layers of its own, which are made from their records and put into it.
    make
        Called in the constructor's place with its arguments and the layers inside, by name.
    after
        Called with the filled layer and its record.
    """

    kind: type[nn.Module]
    arguments: Mapping[str, Test] = field(default_factory=dict)
    derived: Callable[[Layer], dict[str, Any]] = lambda layer: {}  # noqa: ARG005  (the signature of the field)
    older: Mapping[str, Any] = field(default_factory=dict)
    gone: Mapping[str, Test] = field(default_factory=dict)
    loose: Mapping[str, Test] = field(default_factory=dict)
    children: bool = False
    make: Callable[[dict[str, Any], dict[str, nn.Module]], nn.Module] | None = None
    after: Callable[[nn.Module, Layer], None] | None = None

    @property
    def name(self) -> str:
        """The name under which pickles mention the class."""
        return f"{self.kind.__module__}.{self.kind.__qualname__}"

    def keywords(self, layer: Layer) -> dict[str, Any]:
        """Return the constructor's arguments for a record.

        Raises
        ------
        Unfit
            An attribute is missing, or is not of its kind.
        """
        keywords = {}
        for name, test in self.arguments.items():
            if name not in layer.attributes and name not in self.older:
                raise Unfit(f"has no {name}")
            value = layer.attributes.get(name, self.older.get(name))
            if not test(value):
                raise Unfit(f"has {name} = {shown(value)}, which no {self.kind.__name__} has")
            keywords[name] = value
        return {**keywords, **self.derived(layer)}


def bias(layer: Layer) -> dict[str, Any]:
    """Tell from the parameters whether there is a bias."""
    return {"bias": layer.has("bias")}


def affine_bias(layer: Layer) -> dict[str, Any]:
    """Tell whether a normalisation with weights has a bias."""
    return {"bias": layer.has("bias") or not layer.has("weight")}


def shown(value: Any) -> str:
    """Write a plain value in a few characters."""
    if isinstance(value, str):
        return repr(value[:40])
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if abs(value) < 2**64 else "a huge number"
    if isinstance(value, Name):
        return str(value)
    if isinstance(value, Made):
        return f"a {value.name}"
    if callable(value):
        return "a function"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}: {', '.join(shown(part) for part in value[:3] if not _nested(part))}"[
            :100
        ]
    return f"a {type(value).__name__}"


def _nested(value: Any) -> bool:
    return isinstance(value, list | tuple)


def meta() -> torch.device:
    """Return the device on which tensors have shapes and no numbers."""
    return torch.device("meta")
