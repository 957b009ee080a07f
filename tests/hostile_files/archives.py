"""Zip archives that show different readers different content, hide members, or unpack to more than there is."""

from __future__ import annotations

import bz2
import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests import hostile
from tests.hostile_files.assemble import Member, archive, call, good_weights, members, name, pickled, text
from tests.hostile_files.case import Family, Place, Proof

FAMILY = Family("archives")


def loaded(file: Path, _: Place) -> Any:
    return torch.load(file, weights_only=False)


RUNS = Proof("runs", loaded)


def evil(place: Place) -> bytes:
    """Return a pickle that makes the canary."""
    return pickled(call(name("posix", "mkdir"), text(str(place.canary))))


def good() -> dict[str, bytes]:
    return members(good_weights())


def key_of_pickle() -> str:
    return next(key for key in good() if key.endswith("/data.pkl"))


def entries(**changed: bytes) -> list[Member]:
    """Return the members of good weights."""
    return [Member(key.encode(), changed.get(key, content)) for key, content in good().items()]


def add(case: str, content: Callable[[Place], bytes], proof: Proof, *words: str, **more: Any) -> None:
    FAMILY.add(case, lambda place: place.write("hostile.pt", content(place)), proof, *words, **more)


def as_python_reads(file: Path) -> bytes:
    with zipfile.ZipFile(file) as held:
        return held.read(next(key for key in held.namelist() if key.endswith("data.pkl")))


def front_to_back(file: Path) -> bytes:
    """Read the first data.pkl that stands in the file, without its directory: as a reader of a stream does."""
    content = file.read_bytes()
    at = 0
    while (at := content.find(b"PK\x03\x04", at)) >= 0:
        method, _, _, _, packed, _, names, extra = struct.unpack("<HHHLLLHH", content[at + 8 : at + 30])
        start = at + 30 + names + extra
        if content[at + 30 : at + 30 + names].endswith(b"data.pkl"):
            return content[start : start + packed] if method == 0 else zlib.decompressobj(-15).decompress(content[start:])
        at += 4
    return b""


def two_readers(file: Path, _: Place) -> list[str]:
    return [repr(as_python_reads(file)), repr(front_to_back(file))]


def first_and_last(file: Path, _: Place) -> list[str]:
    with zipfile.ZipFile(file) as held:
        pickles = [key for key in held.namelist() if key.endswith("data.pkl")]
        return [repr(held.read(pickles[0])), repr(held.read(pickles[-1]))]


DIFFERS = Proof("differs", two_readers)
FIRST_OR_LAST = Proof("differs", first_and_last)


def _doubled(first: bool) -> Callable[[Place], bytes]:
    def content(place: Place) -> bytes:
        other = Member(key_of_pickle().encode(), evil(place))
        return archive([other, *entries()] if first else [*entries(), other])

    return content


add("a second data.pkl behind", _doubled(first=False), DIFFERS, "two members of one name", quick=True)
add("a second data.pkl in front", _doubled(first=True), DIFFERS, "two members of one name")
add(
    "data.pkl in two folders",
    lambda p: archive([Member(b"other/data.pkl", evil(p)), *entries()]),
    FIRST_OR_LAST,
    "one data.pkl",
)
add(
    "data.pkl in a folder below",
    lambda p: archive([Member(b"archive/deep/data.pkl", evil(p)), *entries()]),
    FIRST_OR_LAST,
    "one data.pkl",
)


def _hidden_name(place: Place) -> bytes:
    """Write a member that its own header calls otherwise than the directory."""
    key = key_of_pickle().encode()
    held = [entry for entry in entries() if entry.name != key]
    return archive([Member(b"archive/note", evil(place), local_name=key), *held, Member(key, good()[key.decode()])])


add("a name that the two headers tell differently", _hidden_name, DIFFERS, "headers")


def _hidden_member(place: Place) -> bytes:
    """Write a member that the directory does not list."""
    hidden = archive([Member(key_of_pickle().encode(), evil(place))])
    body = hidden[: hidden.find(b"PK\x01\x02")]
    return archive(entries(), prefix=body, shift=len(body))


add("a member that the directory does not list", _hidden_member, DIFFERS, "bytes between its members")
add(
    "one archive behind another",
    lambda p: archive([Member(key_of_pickle().encode(), evil(p))]) + archive(entries()),
    DIFFERS,
    "stands elsewhere than its end says",
)
add(
    "an archive behind a script",
    lambda p: archive(entries(), prefix=b"#!/bin/sh\nmkdir '" + str(p.canary).encode() + b"'\nexit\n"),
    Proof("runs", lambda f, p: __import__("subprocess").run(["sh", str(f)])),
    "not a model file",
)
add(
    "trailing bytes",
    lambda p: archive(entries()) + evil(p),
    Proof("differs", lambda f, p: [as_python_reads(f)[:40], _read_from_the_end(f)]),
    "bytes behind its end",
    quick=True,
)


def _read_from_the_end(file: Path) -> bytes:
    content = file.read_bytes()
    return content[content.rfind(b"\x80\x04") :][:40]


def _archive_in_comment(place: Place) -> bytes:
    """Put a whole archive into the comment: who looks for the end from behind finds the other one."""
    inner = archive([Member(key_of_pickle().encode(), evil(place))])
    return archive(entries(), comment=inner)


add("an archive in the comment", _archive_in_comment, DIFFERS, "stands elsewhere than its end says")


def _two_ends(place: Place) -> bytes:
    """Write two records of the end: the first directory lists one pickle, the second another."""
    key = key_of_pickle().encode()
    both = [Member(key, evil(place)), *[entry for entry in entries() if entry.name != key]]
    whole = archive(both)
    start = len(whole)
    return archive([*entries()], prefix=whole, shift=start)


add("two directories", _two_ends, DIFFERS, "bytes between its members")


def _overlapping(place: Place) -> bytes:
    """Let one member's bytes be those of another: the same numbers count twice."""
    held = entries()
    first = archive(held)
    return archive([*held, Member(b"archive/data/99", b"", offset=0, written=False, size=len(first), packed_size=len(first))])


def through_python(file: Path, _: Place) -> None:
    with zipfile.ZipFile(file) as held:
        for key in held.namelist():
            held.read(key)


add(
    "members that overlap",
    _overlapping,
    Proof("fixed", through_python, "Overlapped|differ|Bad CRC"),
    "members inside each other",
)


ZEROS = 40_000_000


def _quine(_: Place) -> bytes:
    """Let five hundred names share one compressed member of 40 MB: 64 kB unpack to 20 GB (Fifield's bomb)."""
    one = archive([Member(b"archive/data/0", bytes(ZEROS), method=8)])
    crc = int.from_bytes(one[14:18], "little")
    packed = len(one) - len(archive([Member(b"archive/data/0", b"")]))
    shared = [
        Member(b"archive/data/0", b"", method=8, offset=0, written=False, size=ZEROS, packed_size=packed, crc=crc)
        for _ in range(500)
    ]
    for i, entry in enumerate(shared):
        entry.name = b"archive/data/%d" % i
    body = one[: one.find(b"PK\x01\x02")]
    return archive([*shared, *entries()], prefix=body, shift=len(body))


def all_of_it(file: Path, place: Place) -> list[bytes]:
    """Unpack all members as a reader does that trusts the archive."""
    content = file.read_bytes()
    unpacked = []
    with zipfile.ZipFile(io.BytesIO(content)) as held:
        for member in held.infolist():
            at = member.header_offset
            names, extra = struct.unpack("<HH", content[at + 26 : at + 30])
            start = at + 30 + names + extra
            data = content[start : start + member.compress_size]
            unpacked.append(zlib.decompress(data, -15) if member.compress_type == 8 else data)
    return unpacked


add("five hundred names of one bomb", _quine, Proof("exhausts", all_of_it), "exhaust memory")


def read_through(file: Path, _: Place) -> list[bytes]:
    with zipfile.ZipFile(file) as held:
        return [held.read(key) for key in held.namelist()]


def _small_bomb(method: int, times: int) -> Callable[[Place], bytes]:
    """Return a maker of an archive that unpacks to `times` 40 MB, packed once by hand."""
    zeros = bytes(ZEROS)
    packers: dict[int, Callable[[bytes], bytes]] = {8: _deflated, 12: bz2.compress, 14: _lzma}

    def content(_: Place) -> bytes:
        packed = packers[method](zeros)
        crc = zlib.crc32(zeros)
        bombs = [Member(b"archive/data/%d" % (90 + i), packed, method=0, crc=crc, size=len(zeros)) for i in range(times)]
        made = bytearray(archive([*entries(), *bombs]))
        # The content is packed already: only the method in the headers has to say so.
        for signature, at in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
            place_ = 0
            while (place_ := made.find(signature, place_)) >= 0:
                size_at = place_ + (22 if signature == b"PK\x03\x04" else 24)
                if made[size_at : size_at + 4] == len(zeros).to_bytes(4, "little"):
                    made[place_ + at : place_ + at + 2] = method.to_bytes(2, "little")
                place_ += 4
        return bytes(made)

    return content


def _deflated(content: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush()


def _lzma(content: bytes) -> bytes:
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": 2**23, "lc": 3, "lp": 0, "pb": 2}]
    properties = lzma._encode_filter_properties(filters[0])  # type: ignore[attr-defined]
    packer = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=filters)
    return struct.pack("<BBH", 9, 4, len(properties)) + properties + packer.compress(content) + packer.flush()


BOMB = Proof("exhausts", read_through)
add("a bomb of deflate", _small_bomb(8, 40), BOMB, "exhaust memory")
add("a bomb of bzip2", _small_bomb(12, 40), BOMB, "exhaust memory")
add("a bomb of lzma", _small_bomb(14, 40), BOMB, "exhaust memory")


def _nested(_: Place) -> bytes:
    """Put a bomb into an archive into an archive, stored in between."""
    inner = hostile.zipped({"a": bytes(80_000_000)}, zipfile.ZIP_DEFLATED)
    second = hostile.zipped({f"{i}": inner for i in range(400)}, zipfile.ZIP_DEFLATED)
    return archive([*entries(), Member(b"archive/inner.zip", second)])


def unpacked_to_the_last(file: Path, _: Place) -> list[bytes]:
    found, waiting = [], [file.read_bytes()]
    while waiting:
        content = waiting.pop()
        if content[:2] == b"PK":
            with zipfile.ZipFile(io.BytesIO(content)) as held:
                waiting += [held.read(key) for key in held.namelist()]
        else:
            found.append(content)
    return found


add("archives inside each other", _nested, Proof("exhausts", unpacked_to_the_last), "inner.zip")


def _many(_: Place) -> bytes:
    body = bytearray()
    central = bytearray()
    for i in range(1_000_000):
        key = b"%07d" % i
        central += b"PK\x01\x02" + struct.pack("<6H3L5H2L", 20, 20, 0, 0, 0, 33, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0) + key
    body += b"PK\x03\x04" + struct.pack("<5H3L2H", 20, 0, 0, 0, 33, 0, 0, 0, 7, 0) + b"0000000"
    start = len(body)
    zip64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1_000_000, 1_000_000, len(central), start)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, start + len(central), 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return bytes(body + central) + zip64 + locator + end


add("a million members", _many, Proof("exhausts", lambda f, p: [zipfile.ZipFile(f) for _ in range(3)]), "members")


def _zip64_lies(place: Place) -> bytes:
    """Let the record of zip64 point to another directory than the one of the old kind."""
    key = key_of_pickle().encode()
    other = archive([Member(key, evil(place)), *[entry for entry in entries() if entry.name != key]])
    cut = other.rfind(b"PK\x05\x06")
    number, _, size, start = struct.unpack("<HHLL", other[cut + 8 : cut + 20])
    zip64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, number, number, size, start)
    whole = archive(entries(), prefix=other[:cut], shift=cut)
    end = whole.rfind(b"PK\x05\x06")
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)
    return whole[:end] + zip64 + locator + whole[end:]


def zip64_or_not(file: Path, _: Place) -> list[str]:
    """Return the pickle as a reader finds it that knows zip64, and as one that does not."""
    content = file.read_bytes()
    end = content.rfind(b"PK\x05\x06")
    size, start = struct.unpack("<LL", content[end + 12 : end + 20])
    record = struct.unpack("<4sQ2H2L4Q", content[end - 76 : end - 20])
    return [repr(content[start : start + 60]), repr(content[record[9] : record[9] + 60])] if size else []


add("zip64 that tells another directory", _zip64_lies, Proof("differs", zip64_or_not), "bytes between its members")


def changed(**attributes: Any) -> Callable[[Place], bytes]:
    """Return a maker of good weights in which one member says something odd."""

    def content(_: Place) -> bytes:
        held = entries()
        for key, value in attributes.items():
            setattr(held[2], key, value)
        return archive(held)

    return content


def named(odd: bytes) -> Callable[[Place], bytes]:
    return lambda p: archive([*entries(), Member(odd, evil(p))])


def unpacked_by_a_naive_reader(file: Path, place: Place) -> None:
    """Write each member where its name says, below the folder of the file: as many a script does."""
    content = file.read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as held:
        for member in held.infolist():
            where = place.at / member.orig_filename.replace("\\", "/").split("\0")[0]
            if where == place.canary or where.resolve() == place.canary.resolve():
                where.write_bytes(b"x")


add("a name with dots", named(b"../canary"), Proof("runs", unpacked_by_a_naive_reader), "name", quick=True)
add("a name with backslashes", named(b"..\\canary"), Proof("runs", unpacked_by_a_naive_reader), "name")
add(
    "an absolute name",
    lambda p: archive([*entries(), Member(str(p.canary).encode(), b"x")]),
    Proof("runs", unpacked_by_a_naive_reader),
    "name",
)
add("a name with a NUL", named(b"../canary\0.txt"), Proof("runs", unpacked_by_a_naive_reader), "name")


def _link(place: Place) -> bytes:
    target = str(place.secret).encode()
    return archive([*entries(), Member(b"archive/data/77", target, attributes=0o120777 << 16)])


def followed(file: Path, place: Place) -> str:
    """Unpack as the unzip of a shell does, which makes links, and read."""
    with zipfile.ZipFile(file) as held:
        member = next(one for one in held.infolist() if one.external_attr >> 28 == 0o12)
        (place.at / "link").symlink_to(held.read(member).decode())
    return (place.at / "link").read_text()


add("a link out of the archive", _link, Proof("escapes", followed), "link")
add("a member that is encrypted", changed(flags=1), Proof("fixed", through_python, "encrypted|password"), "encrypted")
add(
    "a method that nobody knows",
    changed(method=97),
    Proof("fixed", through_python, "not supported"),
    "packed in an unusual way",
)
add(
    "a size that is too small",
    changed(size=3, packed_size=3),
    Proof("fixed", through_python, "CRC|differ"),
    "bytes between its members",
)
add("a size of 4 GB", changed(size=2**32 - 2, packed_size=2**32 - 2), Proof("fixed", loaded, ""), "exhaust memory")
add("an offset beyond the end", changed(offset=2**31), Proof("fixed", loaded, ""), "bytes between its members")
add("numbers that are packed, and others", lambda p: _two_methods(), Proof("differs", lambda f, p: _methods(f)), "headers")


def _two_methods() -> bytes:
    held = entries()
    held[0].local_method = 8
    return archive(held)


def _methods(file: Path) -> list[int]:
    content = file.read_bytes()
    with zipfile.ZipFile(file) as held:
        member = held.infolist()[0]
    return [member.compress_type, int.from_bytes(content[member.header_offset + 8 : member.header_offset + 10], "little")]
