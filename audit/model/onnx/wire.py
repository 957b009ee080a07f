"""Reads protobuf's wire format: numbered fields cut lazily out of the file's bytes, counted, and never copied.

protobuf's own parser builds an object of a hundred bytes for a message of two, so that what it takes has no bound; here a field
is a slice of the file until somebody asks for its value. Stricter than protobuf where two readers could see different content:
no groups, no unknown fields, no field twice that may stand once. Written from https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

MOST_FIELDS = 500_000  # an exported node has ten to twenty-five, and at most 10,000 nodes are read
MOST_LISTED = 2**20  # bytes
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
_WIRE_NAMES = {3: "a group", 4: "the end of a group"}


class Malformed(ValueError):
    """The bytes are no protobuf message of the kind that should stand here."""


@dataclass(frozen=True)
class Field:
    """One field of a kind of message.

    Attributes
    ----------
    name
        Of the attribute that it fills; empty for a field that is skipped.
    kind
        ``int``, ``float32``, ``float64``, ``text``, ``bytes``, ``skipped``, ``refused``, or a `Message`.
    many
        May stand any number of times; numbers then come as `Numbers`, all else as a tuple.
    """

    name: str
    kind: str | type[Message]
    many: bool = False


class Message:
    """Base of the messages: frozen dataclasses, each with the table of its fields."""

    __slots__ = ()
    FIELDS: ClassVar[Mapping[int, Field]] = {}


class Budget:
    """Counts the fields that are read from one file."""

    def __init__(self, fields: int = MOST_FIELDS) -> None:
        self.fields = fields

    def spend(self) -> None:
        """Count one field."""
        self.fields -= 1
        if self.fields < 0:
            raise Malformed(f"it has more than {MOST_FIELDS:,} fields, more than any honest network")


class Numbers:
    """A repeated number: the pieces of the file that hold it, one number each or many packed."""

    __slots__ = ("kind", "pieces")

    def __init__(self, kind: str, pieces: Sequence[memoryview] = ()) -> None:
        self.kind = kind
        self.pieces = tuple(pieces)

    def __bool__(self) -> bool:
        return any(len(piece) for piece in self.pieces)

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return sum(len(piece) for piece in self.pieces)

    def array(self) -> NDArray[Any]:
        """Return the numbers: int64 (unsigned ones wrap as protobuf's do), float32 or float64."""
        data = b"".join(self.pieces)
        if self.kind == "int":
            return _varints(data)
        size, dtype = (4, "<f4") if self.kind == "float32" else (8, "<f8")
        if len(data) % size:
            raise Malformed(f"a list of {self.kind} ends within a number")
        return np.frombuffer(data, dtype)

    def list(self) -> list[Any]:
        """Return the numbers as Python's; a Malformed where they are too many, since each takes a hundred bytes."""
        if self.size > MOST_LISTED:
            raise Malformed(f"a list of numbers takes {self.size:,} bytes; at most {MOST_LISTED:,} are read outside of tensors")
        return self.array().tolist()  # type: ignore[no-any-return]


M = TypeVar("M", bound=Message)


def parse(kind: type[M], data: memoryview, budget: Budget) -> M:
    """Read one message.

    Raises
    ------
    Malformed
        It is cut off, has a field that this kind of message does not have, or one twice that may stand once.
    """
    found: dict[str, Any] = {}
    several: dict[str, tuple[Field, list[Any]]] = {}
    table = kind.FIELDS
    for number, wire, piece, value in fields(data, budget):
        field = table.get(number)
        if field is None:
            raise Malformed(f"a {kind.__name__} has a field {number}, which ONNX does not know")
        if field.kind == "skipped":
            continue
        if field.kind == "refused":
            raise Malformed(f"a {kind.__name__} holds {field.name.replace('_', ' ')}, which audit does not read")
        read = _value(kind, field, wire, piece, value, budget)
        if field.many:
            several.setdefault(field.name, (field, []))[1].append(read)
        elif field.name in found:
            raise Malformed(f"a {kind.__name__} holds {field.name} twice, so that readers would see different content")
        else:
            found[field.name] = read
    for name, (field, values) in several.items():
        found[name] = Numbers(str(field.kind), values) if field.kind in _ONE else tuple(values)
    return kind(**found)


def fields(data: memoryview, budget: Budget) -> Iterator[tuple[int, int, memoryview, int]]:
    """Yield each field of a message: its number, wire type, bytes, and for a varint its value (0 up to 2**64)."""
    position, end = 0, len(data)
    while position < end:
        budget.spend()
        key = data[position]
        if key < 0x80:
            position += 1
        else:
            key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if not 0 < number < 2**29:
            raise Malformed(f"a field has the number {number}")
        start, value = position, 0
        if wire == VARINT:
            value, position = _varint(data, position)
        elif wire == LENGTH:
            length, start = _varint(data, position)
            position = start + length
        elif wire in (FIXED32, FIXED64):
            position += 4 if wire == FIXED32 else 8
        else:
            raise Malformed(f"a field is {_WIRE_NAMES.get(wire, f'of wire type {wire}')}, which no ONNX file has")
        if position > end:
            raise Malformed("it is cut off: a field is longer than what is there")
        yield number, wire, data[start:position], value


_ONE = {"int": VARINT, "float32": FIXED32, "float64": FIXED64}


def _value(kind: type[Message], field: Field, wire: int, piece: memoryview, value: int, budget: Budget) -> Any:
    expected = _ONE.get(field.kind, LENGTH) if isinstance(field.kind, str) else LENGTH
    packed = field.many and wire == LENGTH
    if wire != expected and not packed:
        raise Malformed(f"{field.name} of a {kind.__name__} has wire type {wire} in the place of {expected}")
    if not isinstance(field.kind, str):
        return parse(field.kind, piece, budget)
    if field.many and field.kind in _ONE:
        return piece
    if field.kind == "int":
        return value - 2**64 if value >= 2**63 else value
    if field.kind == "float32":
        return struct.unpack("<f", piece)[0]
    if field.kind == "text":
        return _text(kind, field, piece)
    return piece


def _text(kind: type[Message], field: Field, piece: memoryview) -> str:
    try:
        return str(piece, "utf-8")
    except UnicodeDecodeError:
        raise Malformed(f"{field.name} of a {kind.__name__} is no UTF-8") from None


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    end = len(data)
    while position < end:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 2**64:
                raise Malformed("a number has more than 64 bits")
            return value, position
        shift += 7
        if shift > 63:
            raise Malformed("a number has more than 64 bits")
    raise Malformed("it is cut off within a number")


def _varints(data: bytes) -> NDArray[np.int64]:
    """Decode packed varints all at once: ten vector operations, however many there are."""
    raw = np.frombuffer(data, np.uint8)
    if not len(raw):
        return np.zeros(0, np.int64)
    ends = np.flatnonzero(raw < 0x80)
    if raw[-1] >= 0x80:
        raise Malformed("it is cut off within a number")
    starts = np.concatenate((np.zeros(1, ends.dtype), ends[:-1] + 1))
    lengths = ends - starts + 1
    longest = int(lengths.max())
    if longest > 10 or (longest == 10 and bool((raw[starts[lengths == 10] + 9] > 1).any())):
        raise Malformed("a number has more than 64 bits")
    values = np.zeros(len(ends), np.uint64)
    for k in range(longest):
        there = lengths > k
        values[there] |= (raw[starts[there] + k] & 0x7F).astype(np.uint64) << np.uint64(7 * k)
    return values.view(np.int64)
