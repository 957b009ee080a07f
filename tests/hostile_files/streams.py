"""The two formats of torch.save before 1.6: a stream of pickles, and a tar archive."""

from __future__ import annotations

import io
import tarfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.hostile_files.assemble import call, name, pickled, several, text, value
from tests.hostile_files.case import Family, Place, Proof
from tests.hostile_files.gadgets import loaded

FAMILY = Family("streams")
RUNS = Proof("runs", loaded)
MAGIC = value(0x1950A86A20F9469CFC6C)
MACHINE = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


def mkdir(place: Place) -> bytes:
    return call(name("posix", "mkdir"), text(str(place.canary)))


def stream(
    magic: bytes = MAGIC,
    version: bytes | None = None,
    machine: bytes | None = None,
    content: bytes = b"}",
    keys: bytes = b"]",
    rest: bytes = b"",
) -> bytes:
    parts = [magic, value(1001) if version is None else version, value(MACHINE) if machine is None else machine, content, keys]
    return b"".join(pickled(part, 2) for part in parts) + rest


def add(case: str, content: Any, proof: Proof, *words: str, **more: Any) -> None:
    FAMILY.add(case, lambda place: place.write("hostile.pt", content(place)), proof, *words, **more)


add("a call where the weights stand", lambda p: stream(content=mkdir(p)), RUNS, "posix.mkdir", quick=True)
add("a call where the magic number stands", lambda p: stream(magic=mkdir(p) + b"0" + MAGIC), RUNS, "posix.mkdir")
add("a call where the version stands", lambda p: stream(version=mkdir(p) + b"0" + value(1001)), RUNS, "posix.mkdir")
add("a call where the machine stands", lambda p: stream(machine=mkdir(p) + b"0" + value(MACHINE)), RUNS, "posix.mkdir")
add("a call where the storages are named", lambda p: stream(keys=mkdir(p) + b"0]"), RUNS, "posix.mkdir")


def storage(key: str, numel: int, view: bytes = b"N") -> bytes:
    return several(text("storage"), name("torch", "FloatStorage"), text(key), text("cpu"), value(numel), view) + b"Q"


def one_tensor(pushed: bytes, size: int = 4) -> bytes:
    rebuilt = call(name("torch._utils", "_rebuild_tensor_v2"), pushed, value(0), value((size,)), value((1,)), b"\x89", b"}")
    return b"}" + text("w") + rebuilt + b"s"


def numbers(claimed: int, held: int = 4) -> bytes:
    return claimed.to_bytes(8, "little", signed=True) + bytes(4 * held)


add(
    "a storage that claims 16 GB",
    lambda p: stream(content=one_tensor(storage("0", 2**32), 2**32), keys=value(["0"]), rest=numbers(2**32)),
    Proof("exhausts", loaded),
    "storage",
)
add(
    "a storage whose two counts differ",
    lambda p: stream(content=one_tensor(storage("0", 4)), keys=value(["0"]), rest=numbers(2**40)),
    Proof("fixed", loaded, "storage has wrong byte size"),
    "should have 4 numbers",
)
add(
    "a storage of a negative count",
    lambda p: stream(content=one_tensor(storage("0", 4)), keys=value(["0"]), rest=numbers(-1)),
    Proof("fixed", loaded, ""),
    "should have 4 numbers",
)
add(
    "a storage that nothing names",
    lambda p: stream(content=one_tensor(storage("0", 4)), keys=value(["1"]), rest=numbers(4)),
    Proof("fixed", loaded, "1"),
    "KeyError: '1'",
)
add(
    "a view of a storage",
    lambda p: stream(content=one_tensor(storage("0", 4, value(("v", 2**40, 4)))), keys=value(["0"]), rest=numbers(4)),
    Proof("fixed", loaded, ""),
    "storage",
)


class Sources(nn.Linear):
    """A module whose source torch.save kept in its older format, and offers to write as a patch."""


def _with_sources(place: Place) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        held = io.BytesIO()
        torch.save(nn.Sequential(nn.Flatten(), Sources(4, 3)), held, _use_new_zipfile_serialization=False)
    # torch runs what stands in the pickle beside the source that it compares.
    content = held.getvalue()
    marker = b"X\x06\x00\x00\x00module"
    place.write("hostile.pt", content.replace(marker, mkdir(place) + b"0" + marker, 1))


FAMILY.add("a module with its source", _with_sources, RUNS, "posix.mkdir", bare_words=("",))


def _tar(place: Place) -> None:
    """Write the tar archive of torch 0.1.9, with a pickle that calls in it, or a member that leaves the folder."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        for key, content in {
            "sys_info": pickled(value(MACHINE), 2),
            "storages": pickled(mkdir(place), 2) + pickled(value(0), 2),
            "tensors": pickled(value(0), 2),
            "pickle": pickled(mkdir(place), 2),
        }.items():
            said = tarfile.TarInfo(key)
            said.size = len(content)
            archive.addfile(said, io.BytesIO(content))
    place.write("hostile.pt", held.getvalue())


FAMILY.add("a tar archive", _tar, RUNS, "not a model file")


def _tar_outside(place: Place) -> None:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        said = tarfile.TarInfo("../canary")
        said.size = 1
        archive.addfile(said, io.BytesIO(b"x"))
    place.write("hostile.pt", held.getvalue())


def extracted(file: Path, place: Place) -> None:
    with tarfile.open(file) as archive:
        archive.extractall(place.at, filter="fully_trusted")  # noqa: S202


FAMILY.add("a tar archive that leaves its folder", _tar_outside, Proof("runs", extracted), "not a model file")
