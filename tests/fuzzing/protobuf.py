"""Takes protocol buffers apart without their schema, damages a field, and puts them together with the right lengths."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MOST_DEEP = 10


@dataclass
class Field:
    """One field: its number, its wire type, and a number, bytes, or fields."""

    number: int
    wire: int
    value: Any


def parse(content: bytes, depth: int = 0) -> list[Field] | None:
    """Return the fields of a message, or None where `content` is none."""
    fields, at = [], 0
    while at < len(content):
        key, at = _varint(content, at)
        number, wire = key >> 3, key & 7
        if at < 0 or not 0 < number < 100_000:
            return None
        value: Any
        if wire == 0:
            value, at = _varint(content, at)
            if at < 0:
                return None
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            value, at = content[at : at + size], at + size
        elif wire == 2:
            length, at = _varint(content, at)
            if at < 0 or at + length > len(content):
                return None
            value, at = content[at : at + length], at + length
            inner = parse(value, depth + 1) if depth < MOST_DEEP and 1 < length < 2**20 and not _is_text(value) else None
            value = value if inner is None else inner
        else:
            return None
        if at > len(content):
            return None
        fields.append(Field(number, wire, value))
    return fields


def build(fields: Sequence[Field]) -> bytes:
    """Return the bytes of a message."""
    out = bytearray()
    for field in fields:
        out += _encoded(field.number << 3 | field.wire)
        if field.wire == 0:
            out += _encoded(field.value)
        else:
            value = field.value if isinstance(field.value, bytes) else build(field.value)
            out += (_encoded(len(value)) if field.wire == 2 else b"") + value
    return bytes(out)


def mutate(rng: random.Random, content: bytes, others: Sequence[bytes], whole: Sequence[int], texts: Sequence[str]) -> bytes:
    """Return `content` with one field changed."""
    fields = parse(content)
    if not fields:
        return content[: rng.randrange(len(content) + 1)]
    places = list(_places(fields))
    holder, at = rng.choice(places)
    field = holder[at]
    kind = rng.randrange(9)
    if kind < 4:
        field.value = _changed(rng, field, whole, texts)
    elif kind == 4:
        del holder[at]
    elif kind == 5:
        holder[at:at] = [holder[at]] * rng.choice((1, 1, 2, 300))
    elif kind == 6:
        other_holder, other_at = rng.choice(places)
        holder[at], other_holder[other_at] = other_holder[other_at], holder[at]
    elif kind == 7:
        foreign = parse(rng.choice(others))
        if foreign:
            from_holder, from_at = rng.choice(list(_places(foreign)))
            holder.insert(at, from_holder[from_at])
    else:
        field.number = rng.choice((1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 20))
    try:
        return build(fields)
    except (RecursionError, MemoryError):  # a field was put inside itself
        return content


def _changed(rng: random.Random, field: Field, whole: Sequence[int], texts: Sequence[str]) -> Any:
    if field.wire == 0:
        nearly = field.value + rng.choice((-1, 1, 2))
        return (rng.choice(whole) if rng.random() < 0.6 else nearly) % 2**64
    if field.wire in (1, 5):
        size = 8 if field.wire == 1 else 4
        return rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size), struct.pack("<d" if size == 8 else "<f", 0.5)))
    if isinstance(field.value, list):
        return rng.choice(([], field.value + field.value, field.value[:1], b"", rng.randbytes(8)))
    value: bytes = field.value
    at = rng.randrange(len(value) + 1)
    packed = b"".join(_encoded(rng.choice(whole) % 2**64) for _ in range(rng.randrange(4)))
    flipped = bytes([*value[:at], rng.randrange(256), *value[at + 1 :]])
    text = rng.choice(texts).encode("utf-8", "surrogatepass")
    return rng.choice((b"", text, text, packed, value[:at], value + value, flipped, rng.choice(OPERATORS)))


OPERATORS = (
    b"Add", b"Conv", b"Gemm", b"MatMul", b"Relu", b"Reshape", b"Gather", b"Slice", b"Concat", b"Softmax", b"LSTM", b"GRU",
    b"RNN", b"Loop", b"If", b"Scan", b"Pad", b"Resize", b"Tile", b"Expand", b"ConstantOfShape", b"Range", b"Pow", b"Einsum",
    b"Transpose", b"MaxPool", b"AveragePool", b"Unsqueeze", b"Split", b"TopK", b"NonZero", b"Where", b"Cast",
    b"RandomNormal", b"DFT", b"Shape", b"LayerNormalization", b"BatchNormalization", b"Squeeze", b"Flatten",
    b"ConvTranspose", b"Upsample", b"Identity", b"Constant",
)  # fmt: skip


def _places(fields: list[Field]) -> list[tuple[list[Field], int]]:
    places: list[tuple[list[Field], int]] = []
    waiting = [fields]
    while waiting:
        holder = waiting.pop()
        for at, field in enumerate(holder):
            places.append((holder, at))
            if isinstance(field.value, list):
                waiting.append(field.value)
    return places


def _is_text(value: bytes) -> bool:
    return len(value) < 200 and all(32 <= byte < 127 for byte in value)


def _varint(content: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while at < len(content) and shift < 70:
        byte = content[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at
    return 0, -1


def _encoded(number: int) -> bytes:
    number %= 2**64
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
