"""Writes pickles, zip archives and protobuf messages by hand: what no honest writer would write."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from tests import hostile

# --- pickles ------------------------------------------------------------------------------------------------------------


def name(module: str, attribute: str) -> bytes:
    """Push what a module holds under a name."""
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def path(module: str, attribute: str) -> bytes:
    """Push what a module holds under a name with dots, which protocol 4 follows."""
    return text(module) + text(attribute) + b"\x93"


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogateescape")
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def value(held: Any) -> bytes:
    """Push a plain value."""
    return text(held) if isinstance(held, str) else pickle.dumps(held, protocol=3)[2:-1]


def several(*parts: bytes) -> bytes:
    """Push a tuple."""
    return b"(" + b"".join(parts) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + several(*arguments) + b"R"


def keys(**held: bytes) -> bytes:
    """Push a dict."""
    return b"}(" + b"".join(text(key) + part for key, part in held.items()) + b"u"


def pickled(body: bytes, protocol: int = 4) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


def good_weights() -> bytes:
    """Return the file of weights that fits the network of `tests.hostile.NETS`."""
    held = io.BytesIO()
    torch.save(hostile.net().state_dict(), held)
    return held.getvalue()


def members(file: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def weights_and(body: bytes, protocol: int = 4) -> bytes:
    """Return good weights beside which the pickle puts what `body` pushes, under a name that no network has a use for."""
    held = members(good_weights())
    (key,) = [key for key in held if key.endswith("/data.pkl")]
    held[key] = b"\x80" + bytes([protocol]) + held[key][2:-1] + text("more") + body + b"s."
    return hostile.zipped(held)


def storage(key: str = "0", numel: bytes | int = 4, kind: str = "FloatStorage") -> bytes:
    """Push a storage, as torch.save refers to it."""
    count = value(numel) if isinstance(numel, int) else numel
    return several(text("storage"), name("torch", kind), text(key), text("cpu"), count) + b"Q"


def tensor(size: Any, stride: Any, offset: int = 0, held: bytes | None = None, more: bytes = b"") -> bytes:
    """Push a tensor that is cut out of a storage."""
    arguments = [storage() if held is None else held, value(offset), value(size), value(stride), b"\x89", b"N", more]
    return call(name("torch._utils", "_rebuild_tensor_v2"), *arguments)


# --- zip archives -------------------------------------------------------------------------------------------------------


@dataclass
class Member:
    """A member of an archive, with what its two headers say of it where that differs from the truth."""

    name: bytes
    content: bytes
    local_name: bytes | None = None
    method: int = 0
    local_method: int | None = None
    flags: int = 0
    local_flags: int | None = None
    crc: int | None = None
    size: int | None = None
    packed_size: int | None = None
    extra: bytes = b""
    local_extra: bytes = b""
    attributes: int = 0
    offset: int | None = None
    written: bool = True


def pack(content: bytes, method: int) -> bytes:
    if method == zipfile.ZIP_DEFLATED:
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        return packer.compress(content) + packer.flush()
    return content


def archive(entries: Iterable[Member], prefix: bytes = b"", comment: bytes = b"", suffix: bytes = b"", shift: int = 0) -> bytes:
    """Return an archive whose headers say what the members say, be it true or not.

    Parameters
    ----------
    prefix, suffix
        Bytes before the first member and behind the end.
    shift
        Added to all offsets: with ``len(prefix)``, they are those of a file that begins with the prefix.
    """
    body, central = io.BytesIO(), io.BytesIO()
    body.write(prefix)
    count = 0
    for entry in entries:
        packed = pack(entry.content, entry.method)
        crc = zlib.crc32(entry.content) if entry.crc is None else entry.crc
        size = len(entry.content) if entry.size is None else entry.size
        packed_size = len(packed) if entry.packed_size is None else entry.packed_size
        at = body.tell() - len(prefix) + shift if entry.offset is None else entry.offset
        if entry.written:
            local = entry.name if entry.local_name is None else entry.local_name
            method = entry.method if entry.local_method is None else entry.local_method
            flags = entry.flags if entry.local_flags is None else entry.local_flags
            head = (20, flags, method, 0, 33, crc, packed_size, size, len(local), len(entry.local_extra))
            body.write(b"PK\x03\x04" + struct.pack("<5H3L2H", *head) + local + entry.local_extra + packed)
        lengths = (len(entry.name), len(entry.extra), 0, 0, 0, entry.attributes, at)
        head = (0x314, 20, entry.flags, entry.method, 0, 33, crc, packed_size, size, *lengths)
        central.write(b"PK\x01\x02" + struct.pack("<6H3L5H2L", *head) + entry.name + entry.extra)
        count += 1
    directory = central.getvalue()
    start = body.tell() - len(prefix) + shift
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count & 0xFFFF, count & 0xFFFF, len(directory), start, len(comment))
    return body.getvalue() + directory + end + comment + suffix


# --- protobuf messages --------------------------------------------------------------------------------------------------


def varint(number: int) -> bytes:
    number &= 2**64 - 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number: int, held: bytes | str | int) -> bytes:
    """Return one field of a message: a length and bytes, or a number."""
    if isinstance(held, int):
        return varint(number << 3) + varint(held)
    held = held.encode() if isinstance(held, str) else held
    return varint(number << 3 | 2) + varint(len(held)) + held
