"""Damages files at random: bytes anywhere, or zip members, pickles, JSON, protocol buffers, with the lengths around them right.

A file that is damaged blindly fails at its checksum or its first length; to get behind those, the damage must know the format.
Everything follows from one `random.Random`.
"""

from __future__ import annotations

import io
import json
import random
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from tests.fuzzing import pickles, protobuf

Mutation = Callable[[random.Random, bytes, Sequence[bytes]], bytes]

WHOLE = (
    0,
    1,
    -1,
    2,
    3,
    7,
    127,
    128,
    255,
    256,
    32767,
    65535,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**53,
    2**62,
    2**63 - 1,
    -(2**31),
    -(2**63),
)
TEXTS = (
    "", ".", "..", "/", "../../etc/passwd", "\x00", "\x1b[2J", "weight", "forward", "__class__", "training", "batch", "x" * 300,
    "é\ud800", "s0", "s0 + 1", "9**9**9**9", "__import__('os').system('true')", "int64", "float32", "1e999", "nan",
)  # fmt: skip
MOST_BYTES = 4 * 2**20


def draws(seed: int | str) -> random.Random:
    """Return the random numbers of one case."""
    return random.Random(seed)  # noqa: S311  (no secret is drawn)


def mutate(rng: random.Random, content: bytes, others: Sequence[bytes], structure: Mutation) -> bytes:
    """Return `content` damaged by one to four mutations, two of three by `structure`, the others blind.

    Parameters
    ----------
    others
        Files of the same kind, to take parts from.
    """
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        content = structure(rng, content, others) if rng.random() < 0.67 else blind(rng, content, others)
        if len(content) > MOST_BYTES:
            content = content[:MOST_BYTES]
    return content


# --- blind ------------------------------------------------------------------------------------------------------------


def blind(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Damage bytes anywhere."""
    return rng.choice(BLIND)(rng, content, others)


def _flip(rng: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    out = bytearray(content)
    for _number in range(rng.choice((1, 1, 2, 8))):
        if out:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _set(rng: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    out = bytearray(content)
    if out:
        out[rng.randrange(len(out))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(out)


def _boundary(rng: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    size = rng.choice((1, 2, 4, 8))
    at = rng.randrange(max(1, len(content) - size))
    number = (rng.choice(WHOLE) + rng.choice((0, 0, 1, -1))) % 256**size
    return content[:at] + number.to_bytes(size, rng.choice(("little", "little", "big"))) + content[at + size :]


def _nudge(rng: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    """Add a little to a number in the file: lengths and offsets that are nearly right."""
    size = rng.choice((1, 2, 4))
    at = rng.randrange(max(1, len(content) - size))
    number = int.from_bytes(content[at : at + size], "little") + rng.choice((-2, -1, 1, 2, 16))
    return content[:at] + (number % 256**size).to_bytes(size, "little") + content[at + size :]


def _delete(rng: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    start, stop = _range(rng, content)
    return content[:start] + content[stop:]


def _duplicate(rng: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    start, stop = _range(rng, content)
    return content[:stop] + content[start:stop] * rng.choice((1, 1, 2, 50)) + content[stop:]


def _truncate(rng: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _insert(rng: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.randbytes(rng.choice((1, 2, 4, 16))) + content[at:]


def _splice(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others)
    return content[: rng.randrange(len(content) + 1)] + other[rng.randrange(len(other) + 1) :]


def _transplant(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    start, stop = _range(rng, content)
    other = rng.choice(others)
    at, end = _range(rng, other)
    return content[:start] + other[at:end] + content[stop:]


def _swap(rng: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    a, b = _range(rng, content)
    c, d = _range(rng, content)
    if b > c:
        return content
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


def _number(rng: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    """Put another number in the place of one written in digits."""
    found = list(re.finditer(rb"-?\d+", content[:200_000]))
    if not found:
        return content
    match = rng.choice(found)
    text = rng.choice((str(rng.choice(WHOLE)), "9" * 400, "1e400", "-0", "NaN", "0x10", "1_0", ""))
    return content[: match.start()] + text.encode() + content[match.end() :]


def _range(rng: random.Random, content: bytes) -> tuple[int, int]:
    start = rng.randrange(len(content) + 1)
    return start, min(len(content), start + rng.choice((1, 2, 4, 8, 32, 256, len(content))))


BLIND = (_flip, _set, _boundary, _nudge, _delete, _duplicate, _truncate, _insert, _splice, _transplant, _swap, _number)


# --- text and JSON ----------------------------------------------------------------------------------------------------


def text(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Damage a text: a line, a field, a delimiter."""
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    fields = lines[at].split(b",")
    field = rng.randrange(len(fields))
    kind = rng.randrange(7)
    if kind == 0:
        fields[field] = str(rng.choice(WHOLE)).encode()
    elif kind == 1:
        fields[field] = rng.choice(TEXTS).encode("utf-8", "surrogatepass")
    elif kind == 2:
        del fields[field]
    elif kind == 3:
        fields.insert(field, rng.choice((b"", b'"', b"1e309", b"nan", b"=1+1", b"\xff\xfe", b"'" * 3)))
    elif kind == 4:
        return number_or_splice(rng, content, others)
    lines[at] = rng.choice((b",", b",", b",", b";", b"\t")).join(fields)
    if kind == 5:
        lines.insert(at, lines[at])
    elif kind == 6:
        del lines[at]
    return b"\n".join(lines)


def number_or_splice(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Damage a number written in digits, or join two files."""
    return rng.choice((_number, _splice))(rng, content, others)


def json_text(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Damage one place of a JSON text; a text that is none, blindly."""
    try:
        held = json.loads(content)
    except (ValueError, RecursionError):
        return blind(rng, content, others)
    places = list(_places(held))
    if not places:
        return blind(rng, content, others)
    holder, key = rng.choice(places)
    kind = rng.randrange(10)
    if kind < 4:
        holder[key] = _scalar(rng, holder[key])
    elif kind < 6:
        other_holder, other_key = rng.choice(places)
        holder[key] = json.loads(json.dumps(other_holder[other_key]))
    elif kind == 6:
        del holder[key]
    elif kind == 7 and isinstance(holder, list):
        holder.extend([holder[key]] * rng.choice((1, 3, 200)))
    elif kind == 7:
        holder[rng.choice(TEXTS)] = holder[key]
    elif kind == 8:
        for _ in range(rng.choice((1, 3, 200))):
            holder[key] = [holder[key]] if rng.random() < 0.5 else {"a": holder[key]}
    else:
        holder[key] = rng.choice(([], {}, [[]], {"": None}))
    return json.dumps(held).encode()


def _places(held: Any) -> list[tuple[Any, Any]]:
    places: list[tuple[Any, Any]] = []
    waiting = [held]
    while waiting:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            places.append((node, key))
            waiting.append(node[key])
    return places


def _scalar(rng: random.Random, old: Any) -> Any:
    choices: list[Any] = [rng.choice(WHOLE), rng.choice(TEXTS), None, True, False, 0.5, -1.5, 1e300, float("nan"), 10**400]
    if isinstance(old, int) and not isinstance(old, bool):
        choices += [old + 1, old - 1, -old, old * 2, rng.choice(WHOLE), rng.choice(WHOLE), rng.choice(WHOLE)]
    elif isinstance(old, str) and old:
        at = rng.randrange(len(old))
        choices += [old[:at] + rng.choice("x0._- ") + old[at + 1 :], old[:at], old + "_", old.upper()] * 2
    elif isinstance(old, float):
        choices += [-old, 0.0, old * 2, float("inf")] * 2
    return rng.choice(choices)


# --- containers -------------------------------------------------------------------------------------------------------


def archive(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Damage a member of a zip archive by what it is, or the list of members; lengths and checksums are made anew."""
    members = _members(content)
    if not members:
        return blind(rng, content, others)
    kind = rng.randrange(12)
    at = _member_at(rng, members)
    name, held = members[at]
    if kind < 8:
        members[at] = name, _inside(rng, name, held, [held, *_same_member(name, others)])
    elif kind == 8:
        del members[at]
    elif kind == 9:
        folder, _, leaf = name.rpartition("/")
        members[at] = (
            rng.choice(
                (f"{folder}/{rng.choice(TEXTS)}", f"../{leaf}", leaf, f"{name}x", name.upper(), f"{folder}/code/{leaf}")
            ),
            held,
        )
    elif kind == 10:
        foreign = _members(rng.choice(others))
        members.append(rng.choice(foreign or members))
    else:
        other = rng.randrange(len(members))
        members[at], members[other] = (name, members[other][1]), (members[other][0], held)
    return _zip(rng, members)


def _inside(rng: random.Random, name: str, held: bytes, others: Sequence[bytes]) -> bytes:
    leaf = name.rpartition("/")[2]
    if leaf.endswith(".pkl"):
        return rng.choice((pickles.mutate, pickles.mutate, blind))(rng, held, others)
    if leaf.endswith(".json") or held[:1] == b"{":
        return rng.choice((json_text, json_text, json_text, blind))(rng, held, others)
    if leaf.endswith(".npy"):
        return array(rng, held, others)
    if held[:2] == b"PK":
        return archive(rng, held, others)
    return blind(rng, held, others)


def array(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Damage the header of a NumPy array, or its numbers."""
    stop = content.find(b"\n") + 1
    if content[:6] != b"\x93NUMPY" or stop == 0 or rng.random() < 0.3:
        return blind(rng, content, others)
    header = bytearray(content[10:stop])
    kinds = (b"|O", b"<f8", b"<U9", b"|V9", b"<M8[s]", b"<c16", b">i4", b"|b1", b"|S0", b"<f2", b"<x9", b"[('a', '<f4')]")
    changed = bytes(header)
    if rng.random() < 0.5:
        changed = re.sub(rb"'[<>|][a-zA-Z]\d+'", b"'" + rng.choice(kinds) + b"'", changed, count=1)
    if rng.random() < 0.6:
        changed = _number(rng, changed, others)
    if rng.random() < 0.2:
        changed = blind(rng, changed, others)
    if rng.random() < 0.1:
        changed = changed.replace(b"False", b"True")
    return content[:8] + (len(changed) % 65536).to_bytes(2, "little") + changed + content[stop:]


def _members(content: bytes) -> list[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as held:
            return [(entry.filename, held.read(entry)) for entry in held.infolist() if entry.file_size <= MOST_BYTES]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, RuntimeError, EOFError, zlib.error, KeyError):
        return []


def _member_at(rng: random.Random, members: Sequence[tuple[str, bytes]]) -> int:
    """Choose a member: mostly one that says what the others are."""
    telling = [i for i, (name, held) in enumerate(members) if name.endswith((".pkl", ".json", ".npy")) or held[:1] == b"{"]
    return rng.choice(telling) if telling and rng.random() < 0.8 else rng.randrange(len(members))


def _same_member(name: str, others: Sequence[bytes]) -> list[bytes]:
    leaf = name.rpartition("/")[2]
    return [held for other in others[:1] for entry, held in _members(other) if entry.rpartition("/")[2] == leaf]


def _zip(rng: random.Random, members: Sequence[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    how = zipfile.ZIP_STORED if rng.random() < 0.9 else zipfile.ZIP_DEFLATED
    import warnings

    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", how) as out:
        warnings.simplefilter("ignore")
        for name, held in members:
            entry = zipfile.ZipInfo(name.encode("utf-8", "replace").decode()[:300] or "x", (2020, 1, 1, 0, 0, 0))
            entry.compress_type = how
            out.writestr(entry, held)
    return buffer.getvalue()


def pickle_stream(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Damage operations of a file that begins with pickles, or the numbers behind them."""
    if rng.random() < 0.15:
        pieces, rest = pickles.operations(content)
        return b"".join(pieces) + blind(rng, rest, others)
    return pickles.mutate(rng, content, others)


def safetensors(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Damage the header of a safetensors file; the length before it is made anew, mostly."""
    length = int.from_bytes(content[:8], "little")
    if length > len(content) - 8:
        return blind(rng, content, others)
    header = json_text(rng, content[8 : 8 + length], others)
    said = len(header) if rng.random() < 0.95 else rng.choice(WHOLE) % 2**64
    return said.to_bytes(8, "little") + header + content[8 + length :]


def protocol_buffer(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Damage a field of a protocol buffer; the lengths around it are made anew."""
    return protobuf.mutate(rng, content, others, WHOLE, TEXTS)
