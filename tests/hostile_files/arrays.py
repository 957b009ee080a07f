"""``.npz`` archives: arrays that only a pickle restores, and headers that claim or nest too much."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests import hostile
from tests.hostile_files.assemble import Member, archive, call, name, pickled, text
from tests.hostile_files.case import Family, Place, Proof

FAMILY = Family("arrays", file="hostile.npz", kind="data")
X, Y = hostile.rows()


def npy(array: Any) -> bytes:
    held = io.BytesIO()
    np.save(held, array, allow_pickle=True)
    return held.getvalue()


def header(text_: str | bytes, version: int = 2, body: bytes = b"") -> bytes:
    """Return a .npy with any header."""
    raw = text_ if isinstance(text_, bytes) else text_.encode()
    return b"\x93NUMPY" + bytes([version, 0]) + len(raw).to_bytes(4 if version > 1 else 2, "little") + raw + body


def said(shape: str = "(24, 4)", dtype: str = "'<f4'", order: str = "False") -> str:
    return f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


def loaded(file: Path, _: Place) -> Any:
    with np.load(file, allow_pickle=True) as arrays:
        return [arrays[key] for key in arrays.files]


def strictly(file: Path, _: Place) -> Any:
    """Read as numpy does that need not unpickle: it then limits the header, too."""
    with np.load(file) as arrays:
        return [arrays[key] for key in arrays.files]


def add(case: str, x: bytes | Callable[[Place], bytes], proof: Proof, *words: str, y: bytes = b"", **more: Any) -> None:
    """Add an archive with a hostile x."""

    def make(place: Place) -> None:
        content = x(place) if callable(x) else x
        place.write("hostile.npz", hostile.zipped({"x.npy": content, "y.npy": y or npy(Y)}))

    FAMILY.add(case, make, proof, *words, **more)


RUNS = Proof("runs", loaded)


def gadget(place: Place) -> bytes:
    return pickled(call(name("posix", "mkdir"), text(str(place.canary))))


add("an array of objects", lambda p: header(said("(24,)", "'|O'"), body=gadget(p)), RUNS, "Python objects", quick=True)
add(
    "a field of objects", lambda p: header(said("(24,)", "[('a', '<f4'), ('b', '|O')]"), body=gadget(p)), RUNS, "Python objects"
)
add(
    "objects in objects",
    lambda p: header(said("(24,)", "[('a', [('b', '|O', (2,))])]"), body=gadget(p)),
    RUNS,
    "Python objects",
)
add("an array of no objects", lambda p: header(said("(0,)", "'|O'"), body=gadget(p)), RUNS, "Python objects")


def _labels(place: Place) -> None:
    objects = header(said("(24,)", "'|O'"), body=gadget(place))
    place.write("hostile.npz", hostile.zipped({"x.npy": npy(X), "y.npy": objects}))


FAMILY.add("labels that are objects", _labels, RUNS, "array 'y' holds Python objects")


def _sensitive(place: Place) -> None:
    objects = header(said("(24,)", "'|O'"), body=gadget(place))
    place.write("hostile.npz", hostile.zipped({"x.npy": npy(X), "y.npy": npy(Y), "sensitive_sex.npy": objects}))


FAMILY.add("groups that are objects", _sensitive, RUNS, "Python objects")


def _without_numpy(place: Place) -> None:
    place.write("hostile.npz", gadget(place))


FAMILY.add(
    "a pickle under the name of an archive",
    _without_numpy,
    Proof("runs", lambda f, p: np.load(f, allow_pickle=True)),
    "not a .npz archive",
)


def fixed(words: str = "") -> Proof:
    return Proof("fixed", loaded, words)


EXHAUSTS = Proof("exhausts", loaded)
add("a shape of 16 GB", header(said("(4294967296, 4)")), EXHAUSTS, "claims shape")
add("a shape of 2**80", header(said("(1099511627776, 1099511627776)")), fixed(), "claims shape")
add("a negative shape", header(said("(-1, 4)")), fixed(), "claims shape (-1, 4)")
add("a shape of a truth value", header(said("(True, 4)")), fixed(), "damaged")
add("a shape that is no tuple", header(said("'many'")), fixed(), "damaged")
add("a text of 2**31 letters", header(said("(24,)", "'<U536870911'")), EXHAUSTS, "claims")
add("a field of 2**40 numbers", header(said("(1,)", "[('a', '<f4', (1048576, 1048576))]")), fixed(), "damaged")
add(
    "a header that is a call",
    lambda p: header(said(f"__import__('os').mkdir({str(p.canary)!r})")),
    fixed("malformed|Cannot parse"),
    "damaged",
)
add("a header nested 9,000 deep", header(said("(" * 4_000 + ")" * 4_000)), fixed(), "damaged")
add("a header of a gigabyte", header(b"{" + b" " * 9_000)[:12] + b"\xff\xff\xff\x7f", fixed(), "damaged")
add(
    "a header of a million spaces",
    header(said().strip() + " " * 1_000_000 + "\n", body=bytes(384)),
    Proof("fixed", strictly, "is large"),
    "damaged",
)
add("a number of 5,000 digits", header(said("(" + "7" * 5_000 + ",)")), fixed("Exceeds|digits|parse"), "damaged")
add("a version that nobody knows", header(said(), version=9, body=bytes(384)), fixed(), "damaged")
add(
    "dates",
    npy(np.zeros((24, 4), "M8[s]")),
    Proof("differs", lambda f, p: [loaded(f, p)[0].dtype, "float32"]),
    "should be numbers",
)
add(
    "raw bytes",
    npy(np.zeros((24, 4), "V8")),
    Proof("differs", lambda f, p: [loaded(f, p)[0].dtype, "float32"]),
    "should be numbers",
)


def _fortran() -> bytes:
    return header(said("(24, 4)", order="'no'"), body=bytes(384))


add("an order of storage in words", _fortran(), fixed("fortran_order"), "damaged")
FAMILY.add(
    "x twice",
    lambda p: p.write(
        "hostile.npz", archive([Member(b"x.npy", npy(X)), Member(b"x.npy", npy(1 - X)), Member(b"y.npy", npy(Y))])
    ),
    Proof("differs", lambda f, p: _first_and_last(f)),
    "two members of one name",
    quick=True,
)
FAMILY.add(
    "x with and without its ending",
    lambda p: p.write("hostile.npz", archive([Member(b"x.npy", npy(X)), Member(b"x", npy(1 - X)), Member(b"y.npy", npy(Y))])),
    Proof("differs", lambda f, p: _first_and_last(f)),
    "with and without the ending",
)


def _first_and_last(file: Path) -> list[str]:
    with zipfile.ZipFile(file) as held:
        found = [held.read(member) for member in held.infolist() if member.filename.startswith("x")]
    return [repr(found[0]), repr(found[-1])]


def _bomb(place: Place) -> None:
    """Pack 1.6 GB of zeros, forty of one, by hand: packed once and listed forty times, one behind another."""
    from tests.hostile_files.archives import _small_bomb

    place.write("hostile.npz", _small_bomb(8, 40)(place))


FAMILY.add("a bomb of members", _bomb, Proof("exhausts", lambda f, p: _all(f)), "exhaust memory")


def _all(file: Path) -> list[bytes]:
    with zipfile.ZipFile(file) as held:
        return [held.read(key) for key in held.namelist()]


def _inner(_: Place) -> bytes:
    """Claim few bytes for a member that unpacks to many."""
    return header(said("(24, 4)"), body=bytes(40_000_000))


def _lies(place: Place) -> None:
    made = archive([Member(b"x.npy", _inner(place), method=8, size=500), Member(b"y.npy", npy(Y))])
    place.write("hostile.npz", made)


def unpacked(file: Path, _: Place) -> Any:
    """Unpack fifty times what the members hold, whatever they claim, as fifty arrays would be."""
    import struct
    import zlib

    content = file.read_bytes()
    names, extra = struct.unpack("<HH", content[26:30])
    return [zlib.decompressobj(-15).decompress(content[30 + names + extra :]) for _ in range(50)]


FAMILY.add("a member that claims less than it holds", _lies, Proof("exhausts", unpacked), "damaged")
