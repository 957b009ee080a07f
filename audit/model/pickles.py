"""Reads the weights in a file that ``torch.save`` wrote without doing what the pickle in it says.

torch's own weights-only reader runs no code of the file, but calls what is on its list with whatever arguments the file
gives: on torch 2.13 a pickle of 32 bytes (``bytearray(2**31)``) takes 2 GB, sparse tensors come back with indices that nobody
checked, and a dictionary key made of nested tuples takes for ever to hash. Here nothing is called: names become inert records,
names that are not on a short list stop the reading, and a tensor is cut out of the file's own bytes, so that it can never be
larger than they are. Both formats are read: the zip archive (torch 1.6 and later) and the plain stream before it.
"""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

MAGIC = 0x1950A86A20F9469CFC6C  # first object of the plain stream: torch.serialization.MAGIC_NUMBER
# Numbers stand beside the pickle, which has about 100 bytes and 51 reads a tensor: enough for some 60,000 tensors.
MAX_PICKLE = 32 * 2**20
MAX_READS = 3_000_000

STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}

# Found beside weights in ordinary checkpoints (optimizers, schedulers, hyperparameters, metrics). They are not built: an inert
# record stands for each.
BESIDE_WEIGHTS = {
    "collections.Counter",
    "torch.device",
    "_codecs.encode",
    "builtins.bytearray",
    "builtins.complex",
    "builtins.dict",
    "builtins.float",
    "builtins.int",
    "builtins.list",
    "builtins.long",
    "builtins.set",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "argparse.Namespace",
    "pathlib.PosixPath",
}


class Blocked(Exception):
    """The pickle asks for something that weights have no use for; the message is its name."""


class Damaged(Exception):
    """The file is not what ``torch.save`` writes."""


@dataclass(frozen=True)
class StorageType:
    """A type of numbers, as a pickle names it."""

    dtype: torch.dtype


@dataclass(frozen=True)
class Storage:
    """A run of numbers that stands elsewhere in the file."""

    dtype: torch.dtype
    key: str
    numel: int


@dataclass(frozen=True)
class Cut:
    """A tensor that has not been cut out of its storage yet."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Inert:
    """Stands for an object that is not built, whatever it was to be built from."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class PlainDict(dict[Any, Any]):
    """A dict whose keys are plain: nested tuples as keys would take exponential time to hash."""

    def __init__(self, pairs: Any = ()) -> None:
        super().__init__()
        for key, value in pairs if isinstance(pairs, list | tuple) else ():
            self[key] = value

    def __setitem__(self, key: Any, value: Any) -> None:
        parts = key if isinstance(key, tuple) else (key,)
        if not all(part is None or isinstance(part, str | bytes | int | float) for part in parts):
            raise Damaged("a dictionary key is neither text nor a number")
        super().__setitem__(key, value)


class DefaultDict(PlainDict):
    """Stands for a defaultdict, without its factory."""

    def __init__(self, *_: Any) -> None:
        super().__init__()


class Weights:
    """What a file holds: `content`, made of plain containers, numbers, text and `Cut` tensors, and the numbers themselves.

    Raises
    ------
    Blocked
        The pickle asks for something that weights have no use for.
    Damaged
        The file is truncated, damaged, or not what ``torch.save`` writes.
    """

    def __init__(self, file: bytes) -> None:
        self._storages: dict[str, Tensor] = {}
        self._find: Callable[[Storage], bytearray]
        try:
            self.content: Any = self._open_zip(file) if file[:2] == b"PK" else self._open_stream(file)
        except (Blocked, Damaged):
            raise
        except RecursionError:
            raise Damaged("it is nested too deeply") from None
        except Exception as error:
            # A hostile or truncated pickle can make the stack machine raise almost anything.
            raise Damaged(f"{type(error).__name__}: {error}") from None

    def tensor(self, cut: Cut) -> Tensor:
        """Cut a tensor out of the file's numbers.

        Raises
        ------
        Damaged
            The numbers are not there.
        """
        storage = cut.storage
        if storage.key not in self._storages:
            try:
                raw = self._find(storage)
            except (KeyError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError) as error:
                raise Damaged(f"the numbers of storage {storage.key!r} are not there ({error})") from None
            itemsize = storage.dtype.itemsize
            if len(raw) < storage.numel * itemsize:
                raise Damaged(f"storage {storage.key!r} should have {storage.numel * itemsize:,} bytes, got {len(raw):,}")
            # Numbers that are not there cannot be asked for: the tensor is as long as the bytes, whatever the pickle claims.
            self._storages[storage.key] = (
                torch.frombuffer(raw, dtype=storage.dtype, count=storage.numel)
                if storage.numel
                else torch.empty(0, dtype=storage.dtype)
            )
        flat = self._storages[storage.key]
        last = cut.offset + sum((n - 1) * step for n, step in zip(cut.size, cut.stride, strict=True))
        if flat.dtype != storage.dtype or (0 not in cut.size and last >= len(flat)):
            raise Damaged(f"a tensor of shape {cut.size} reaches outside its storage of {len(flat):,} numbers")
        try:
            return flat.as_strided(cut.size, cut.stride, cut.offset if flat.numel() else 0)
        except RuntimeError as error:
            raise Damaged(str(error)) from None

    def _open_zip(self, file: bytes) -> Any:
        with zipfile.ZipFile(io.BytesIO(file)) as archive:
            members = {member.filename: member for member in archive.infolist()}
        pickles = [name for name in members if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise Damaged(f"it should hold one data.pkl, got {len(pickles)}")
        if members[pickles[0]].file_size > MAX_PICKLE:
            raise Damaged(f"its data.pkl has more than {MAX_PICKLE:,} bytes")
        folder = pickles[0].removesuffix("data.pkl")
        order = members.get(f"{folder}byteorder")
        if order is not None and _member(file, order)[:16].strip() != sys.byteorder.encode():
            raise Damaged(f"its numbers have another byte order than this machine's ({sys.byteorder}-endian)")

        def find(storage: Storage) -> bytearray:
            return _member(file, members[f"{folder}data/{storage.key}"])

        self._find = find
        return Unpickler(io.BytesIO(_member(file, members[pickles[0]]))).load()

    def _open_stream(self, file: bytes) -> Any:
        stream = io.BytesIO(file)
        if Unpickler(stream).load() != MAGIC:
            raise Damaged("it is a pickle, but not one that torch.save wrote")
        Unpickler(stream).load()  # version of the format
        machine = Unpickler(stream).load()
        if not isinstance(machine, dict) or machine.get("little_endian") is not (sys.byteorder == "little"):
            raise Damaged("its numbers have another byte order than this machine's")
        reader = Unpickler(stream)
        content = reader.load()
        starts: dict[str, int] = {}
        # Behind the pickles stands each storage: a count, then so many numbers of the type that the pickle named.
        position = None
        for key in _names(Unpickler(stream).load()):
            position = stream.tell() if position is None else position
            count = int.from_bytes(file[position : position + 8], "little", signed=True)
            if count != reader.storages[key].numel:
                raise Damaged(f"storage {key!r} should have {reader.storages[key].numel:,} numbers, got {count:,}")
            starts[key] = position + 8
            position = starts[key] + count * reader.storages[key].dtype.itemsize

        def find(storage: Storage) -> bytearray:
            start = starts[storage.key]
            return bytearray(memoryview(file)[start : start + storage.numel * storage.dtype.itemsize])

        self._find = find
        return content


def _names(keys: Any) -> list[str]:
    # Text of anything else may be exponentially longer than its pickle: tuples of one tuple twice.
    if not isinstance(keys, list | tuple) or not all(isinstance(key, str | int) for key in keys):
        raise Damaged("its storages are not named")
    return [str(key) for key in keys]


def _member(file: bytes, member: zipfile.ZipInfo) -> bytearray:
    if member.compress_type != zipfile.ZIP_STORED:
        with zipfile.ZipFile(io.BytesIO(file)) as archive:
            return bytearray(archive.read(member))
    # Stored numbers are cut out of the file: archives saved with set_crc32_options(False) have no checksums to verify.
    head = file[member.header_offset : member.header_offset + 30]
    if head[:4] != b"PK\x03\x04" or member.flag_bits & 1:
        raise KeyError(member.filename)
    start = member.header_offset + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    return bytearray(memoryview(file)[start : start + member.file_size])


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, _: Any = False, hooks: Any = None, metadata: Any = None) -> Cut:
    counts = (offset, *size, *stride)
    if not isinstance(storage, Storage) or not all(type(n) is int and 0 <= n < 2**62 for n in counts):
        raise Damaged("a tensor is not made of a storage and whole numbers")
    if len(size) != len(stride) or len(size) > 64 or hooks or metadata:
        raise Damaged("a tensor has something else than a storage, a shape and strides")
    return Cut(storage, offset, tuple(size), tuple(stride))


def _parameter(data: Any, *_: Any) -> Any:
    return data


CALLED: dict[str, Any] = {
    "collections.OrderedDict": PlainDict,
    "collections.defaultdict": DefaultDict,
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}


class _Counted:
    """A file that is read at most so often and so far: each operation of a pickle takes memory, be it one byte long."""

    def __init__(self, stream: io.BytesIO) -> None:
        self.stream, self.bytes, self.reads = stream, MAX_PICKLE, MAX_READS

    def read(self, n: int = -1) -> bytes:
        return self._count(self.stream.read(n))

    def readline(self) -> bytes:
        return self._count(self.stream.readline())

    def _count(self, data: bytes) -> bytes:
        self.bytes -= len(data)
        self.reads -= 1
        if self.bytes < 0 or self.reads < 0:
            raise Damaged(f"its pickle has more than {MAX_PICKLE:,} bytes or about {MAX_READS // 2:,} operations")
        return data


_NEEDED = (
    "PROTO STOP MARK NONE NEWTRUE NEWFALSE EMPTY_TUPLE EMPTY_LIST TUPLE TUPLE1 TUPLE2 TUPLE3 BININT BININT1 BININT2 "
    "LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE SHORT_BINSTRING BINSTRING SHORT_BINBYTES BINBYTES GLOBAL STACK_GLOBAL "
    "REDUCE APPEND APPENDS SETITEM SETITEMS BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE BINPERSID"
)
_OPERATIONS = [getattr(pickle, name)[0] for name in _NEEDED.split()]

# The unpickler written in Python: operations cannot be taken away from the one written in C.
_PythonUnpickler: Any = pickle._Unpickler


class Unpickler(_PythonUnpickler):  # type: ignore[misc]
    """Python's own unpickler with inert records for objects, and only the operations that weights need."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(_Counted(stream), encoding="utf-8", errors="surrogateescape")
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name, or raise `Blocked`."""
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"  # Python 2's name, which protocol 2 writes
        if full in CALLED:
            return CALLED[full]
        if module in ("torch", "torch.cuda", "torch.storage") and name in STORAGES:
            return StorageType(STORAGES[name])
        if full in BESIDE_WEIGHTS or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return Inert
        raise Blocked(full[:100])

    def persistent_load(self, pid: Any) -> Storage:
        """Return the storage that an id of ``torch.save`` names."""
        kind, storage_type, key, _, numel, *view = pid
        if kind not in ("storage", b"storage") or not isinstance(storage_type, StorageType) or (view and view[0] is not None):
            raise Damaged("it refers to something else than a storage")
        if type(numel) is not int or not 0 <= numel < 2**62 or not isinstance(key, str | int):
            raise Damaged("a storage should have a name and a count of numbers")
        storage = Storage(storage_type.dtype, str(key), numel)
        if self.storages.setdefault(storage.key, storage) != storage:
            raise Damaged(f"storage {storage.key!r} is described in two ways")
        return storage

    def load_build(self) -> None:
        """Forget the state that an object was to get: setting it could change functions and classes of this process."""
        self.stack.pop()
        if not isinstance(self.stack[-1], PlainDict | Inert):
            raise Damaged(f"it sets the state of a {type(self.stack[-1]).__name__}")

    def load_empty_dictionary(self) -> None:
        """Push a dict with plain keys."""
        self.append(PlainDict())

    def load_newobj(self) -> None:
        """Build an object: for the records here that is to call their class."""
        args = self.stack.pop()
        self.stack[-1] = self.stack[-1](*args)

    def load_frame(self) -> None:
        """Read on: frames only speed reading up, and the bytes in one would not be counted."""
        self.read(8)

    dispatch: ClassVar[dict[int, Any]] = {
        **{number: _PythonUnpickler.dispatch[number] for number in _OPERATIONS},
        pickle.BUILD[0]: load_build,
        pickle.EMPTY_DICT[0]: load_empty_dictionary,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.FRAME[0]: load_frame,
    }
