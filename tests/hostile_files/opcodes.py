"""Every way in which a pickle calls something, changes something, or says one thing to a scanner and does another."""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests import hostile
from tests.hostile_files.assemble import (
    call,
    good_weights,
    keys,
    members,
    name,
    path,
    pickled,
    several,
    text,
    value,
    weights_and,
)
from tests.hostile_files.case import Family, Place, Proof
from tests.hostile_files.gadgets import code, loaded

FAMILY = Family("opcodes")
RUNS = Proof("runs", loaded)
CHANGES = Proof("changes", loaded)


def unpickled(file: Path, _: Place) -> Any:
    return pickle.loads(file.read_bytes())


def add(case: str, body: Callable[[Place], bytes], proof: Proof, *words: str, **more: Any) -> None:
    """Add a case that does `body` beside good weights."""
    FAMILY.add(case, lambda place: place.write("hostile.pt", weights_and(body(place))), proof, *words, **more)


def add_alone(case: str, content: Callable[[Place], bytes], *words: str, opened: Any = unpickled, **more: Any) -> None:
    """Add a case of a bare pickle."""
    FAMILY.add(case, lambda place: place.write("hostile.pt", content(place)), Proof("runs", opened), *words, **more)


def canary(place: Place) -> bytes:
    return text(str(place.canary))


MKDIR = name("posix", "mkdir")

add("REDUCE", lambda p: MKDIR + b"(" + canary(p) + b"tR", RUNS, "posix.mkdir", quick=True)
add("INST", lambda p: b"(" + canary(p) + b"iposix\nmkdir\n", RUNS, "operation or the memory 105")
add("OBJ", lambda p: b"(" + MKDIR + canary(p) + b"o", RUNS, "posix.mkdir")
add(
    "NEWOBJ",
    lambda p: name("_io", "FileIO") + several(canary(p)) + b"\x81" + b"0" + MKDIR + several(canary(p)) + b"R",
    RUNS,
    "_io.FileIO",
)
add(
    "NEWOBJ_EX",
    lambda p: name("subprocess", "Popen") + several() + b"}\x92" + b"0" + call(MKDIR, canary(p)),
    RUNS,
    "subprocess.Popen",
)
add("STACK_GLOBAL", lambda p: text("posix") + text("mkdir") + b"\x93" + canary(p) + b"\x85R", RUNS, "posix.mkdir")
add(
    "a name put together from the memo",
    lambda p: (
        text("torch._utils") + b"q\xf0" + text("posix") + b"q\xf0" + b"00h\xf0" + text("mkdir") + b"\x93" + canary(p) + b"\x85R"
    ),
    RUNS,
    "posix.mkdir",
)
add(
    "the memo's two counts confused",
    lambda p: (
        text("posix")
        + b"r\xf0\x00\x00\x00"
        + text("mkdir")
        + b"r\xf1\x00\x00\x00"
        + text("torch._utils")
        + b"\x94"
        + text("_rebuild_tensor_v2")
        + b"\x94"
        + b"j\xf0\x00\x00\x00"
        + b"j\xf1\x00\x00\x00"
        + b"\x93"
        + canary(p)
        + b"\x85R"
    ),
    RUNS,
    "posix.mkdir",
)
add("a name with a line of its own protocol", lambda p: b"\x80\x00" + MKDIR + canary(p) + b"\x85R", RUNS, "posix.mkdir")
add("a name with dots", lambda p: path("torch", "serialization.os.mkdir") + canary(p) + b"\x85R", RUNS, "torch")
add(
    "an extension code",
    lambda p: (
        call(name("copyreg", "add_extension"), text("posix"), text("mkdir"), value(240)) + b"0\x82\xf0" + canary(p) + b"\x85R"
    ),
    RUNS,
    "copyreg",
)
add(
    "BUILD calls __setstate__",
    lambda p: (
        call(name("functools", "partial"), name("builtins", "print")) + several(MKDIR, several(canary(p)), b"}", b"N") + b"b)R"
    ),
    RUNS,
    "functools.partial",
    "builtins.print",
)
add(
    "BUILD on a class",
    lambda p: name("pathlib", "Path") + b"N" + keys(exists=name("posix", "system")) + b"\x86b",
    CHANGES,
    "pathlib.Path",
)
add(
    "BUILD on the code of a layer",
    lambda p: (
        path("torch.nn.modules.linear", "Linear.forward")
        + b"N"
        + keys(__code__=path("torch.nn.modules.linear", "Identity.forward.__code__"))
        + b"\x86b"
    ),
    CHANGES,
    "torch.nn",
    quick=True,
)
add(
    "BUILD on a function of torch",
    lambda p: (
        name("torch.nn.functional", "linear")
        + b"0"
        + name("torch._utils", "_rebuild_tensor_v2")
        + b"N"
        + keys(__defaults__=several(b"N", b"N"))
        + b"\x86b"
    ),
    CHANGES,
    "torch._utils._rebuild_tensor_v2",
)
add(
    "BUILD on a function that is allowed",
    lambda p: (
        name("torch._utils", "_rebuild_parameter") + b"N" + keys(__kwdefaults__=b"}") + b"\x86b" + keys(marked=value(1)) + b"b"
    ),
    CHANGES,
    "_rebuild_parameter",
)
add(
    "BUILD on a module",
    lambda p: path("torch", "nn.functional") + keys(linear=name("builtins", "print")) + b"b",
    CHANGES,
    "torch",
)
add(
    "BUILD on a class that is called then",
    lambda p: (
        path("collections", "UserDict")
        + b"N"
        + keys(__init__=name("builtins", "exec"))
        + b"\x86b"
        + b"0"
        + path("collections", "UserDict.__init__")
        + text(code(p))
        + b"\x85R"
    ),
    RUNS,
    "builtins.exec",
    "collections.UserDict",
)


def _two_stops(place: Place) -> bytes:
    good = members(good_weights())
    (key,) = [key for key in good if key.endswith("/data.pkl")]
    good[key] += pickled(call(MKDIR, canary(place)))
    return hostile.zipped(good)


def opened_to_the_end(file: Path, _: Place) -> None:
    """Read pickle after pickle, as a reader of a log does."""
    stream = io.BytesIO(next(content for key, content in members(file.read_bytes()).items() if key.endswith("/data.pkl")))
    while True:
        pickle._Unpickler.persistent_load = lambda self, pid: torch.storage.TypedStorage(
            wrap_storage=torch.UntypedStorage(4096), dtype=torch.float32, _internal=True
        )  # type: ignore[method-assign]
        try:
            pickle._Unpickler(stream).load()
        except EOFError:
            return


add_alone("a pickle behind the pickle", _two_stops, "behind", opened=opened_to_the_end)
add_alone("a bare pickle of protocol 0", lambda p: b"cposix\nmkdir\n(V" + str(p.canary).encode() + b"\ntR.", "not a model file")
add_alone("a bare pickle of protocol 5", lambda p: pickled(call(MKDIR, canary(p)), 5), "posix.mkdir")


def _framed(place: Place) -> bytes:
    """Return a pickle whose first frame claims less than it holds, so that who skips frames skips the call."""
    body = call(MKDIR, canary(place)) + b"."
    return b"\x80\x04\x95" + (len(body)).to_bytes(8, "little") + body


add_alone("inside a frame", _framed, "posix.mkdir")
add_alone(
    "broken behind the call", lambda p: pickled(call(MKDIR, canary(p)))[:-1] + b"\xff\xff", "posix.mkdir", opened=unpickled
)
add_alone(
    "a persistent id in text", lambda p: b"\x80\x02" + call(MKDIR, canary(p)) + b"0Pabc\n.", "posix.mkdir", opened=unpickled
)


def _from_type(function: bytes, kind: bytes, arguments: bytes, state: bytes) -> bytes:
    return call(name("torch._tensor", "_rebuild_from_type_v2"), function, kind, arguments, state)


add(
    "_rebuild_from_type_v2 with a function of its own",
    lambda p: _from_type(MKDIR, name("torch", "Tensor"), several(canary(p)), b"}"),
    RUNS,
    "_rebuild_from_type_v2",
    "posix.mkdir",
    quick=True,
)
add(
    "_rebuild_from_type_v2 sets attributes",
    lambda p: _from_type(
        name("copy", "copy"),
        name("builtins", "type"),
        several(name("torch.nn.modules.linear", "Linear")),
        keys(forward=name("torch.nn.functional", "relu")),
    ),
    CHANGES,
    "copy.copy",
    "_rebuild_from_type_v2",
)


def disassembled_and_loaded(file: Path, place: Place) -> None:
    """Show that Python's own disassembler sees a good pickle, and load it."""
    list(pickletools.genops(file.read_bytes()))
    unpickled(file, place)


add_alone(
    "a call in a list of calls that a reader may skip",
    lambda p: pickled(b"](" + MKDIR + canary(p) + b"\x85Re"),
    "posix.mkdir",
    opened=disassembled_and_loaded,
)
