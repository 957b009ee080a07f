"""Turns a pickle into inert records: nothing that it names is imported, and nothing that it calls is called.

Python's own unpickler is a machine that runs a program. Here it runs the same program on stand-ins: a name becomes a `Name`, a
call or an instance becomes a `Made` that keeps its class, arguments and state, a tensor becomes a `Cut` that knows where its
numbers stand. What may be done with the records is for their readers to decide.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sized
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

# Numbers stand beside the pickle, which has about 100 bytes and 51 reads a tensor: enough for some 39,000 tensors.
MAX_PICKLE = 32 * 2**20
MAX_READS = 2_000_000
# Members of lists and tuples that calls are handed: each call may be handed the same long list again.
MAX_HANDED = 1_000_000
MAX_NAME = 500  # characters of the name of a class with its module
MAX_KEY = 16  # members of a tuple that is a key
MAX_INTEGER = 2**60  # of a key: Python gives many integers above this one and the same hash
HUGE = 2**31

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


class Damaged(Exception):
    """The file is not what ``torch.save`` writes."""


class Blocked(Exception):
    """The pickle asks for something that neither weights nor layers have a use for; the message is its name."""


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function as a pickle names it, with Python 2's names of modules in Python 3's spelling."""

    module: str
    name: str

    @property
    def full(self) -> str:
        """``torch.nn.modules.linear.Linear``."""
        return f"{self.module}.{self.name}"

    def __str__(self) -> str:
        return self.full[:100]


@dataclass(frozen=True, slots=True)
class StorageType:
    """A type of numbers, as a pickle names it."""

    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of numbers that stands elsewhere in the file."""

    dtype: torch.dtype
    key: str
    numel: int


# Records may be keys of dicts, which messages name: what they hold is not written out, for it may be long.
@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Cut:
    """A tensor that has not been cut out of its storage yet."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Numbers that the tensor shows: more than there are, where it is expanded."""
        count = 1
        for length in self.size:
            count *= length
        return count


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Parameter:
    """A tensor that was a parameter. `plain` is False where it had hooks or attributes of its own."""

    data: Cut
    requires_grad: bool
    plain: bool = True


@dataclass(slots=True, eq=False, repr=False)
class Made:
    """Stands for an object that is not built: what it would be made of.

    Attributes
    ----------
    name
        Its class, or the function that would have returned it.
    called
        Whether the pickle calls the name; otherwise it makes an instance of a class without calling ``__init__``.
    state
        What its ``__setstate__`` would get, or None.
    """

    name: Name
    arguments: tuple[Any, ...]
    called: bool
    state: Any = None
    items: PlainDict | None = None

    def __repr__(self) -> str:
        # Not what it holds: records in records in records, each twice, take exponential time to write.
        return f"<{self.name}>"

    def __setitem__(self, key: Any, value: Any) -> None:
        if self.items is None:
            self.items = PlainDict()
        self.items[key] = value

    def append(self, value: Any) -> None:
        """Forget the members of a list of some other class."""

    def extend(self, values: Any) -> None:
        """Forget the members of a list of some other class."""


class PlainDict(dict[Any, Any]):
    """A dict whose keys are plain: nested tuples as keys would take exponential time to hash, and alike hashes quadratic time.

    The numbers in a key that is a tuple become text, whose hash nobody can foresee.
    """

    __slots__ = ()

    def __init__(self, pairs: Any = ()) -> None:
        super().__init__()
        for key, value in pairs if isinstance(pairs, list | tuple) else ():
            self[key] = value

    def __setitem__(self, key: Any, value: Any) -> None:
        _check_key(key, "a dictionary key")
        if isinstance(key, tuple):
            key = tuple(str(part) if isinstance(part, int | float) else part for part in key)
        super().__setitem__(key, value)


class PlainSet(list[Any]):
    """The members of a set: plain, and never hashed."""

    __slots__ = ()

    def __init__(self, members: Any = ()) -> None:
        super().__init__()
        for member in members if isinstance(members, list | tuple) else ():
            self.add(member)

    def add(self, value: Any) -> None:
        """Take a member."""
        _check_key(value, "a member of a set")
        self.append(value)


def _check_key(key: Any, what: str) -> None:
    parts = key if isinstance(key, tuple) else (key,)
    # A tensor is told from others by its place: a whole optimizer keeps what it knows of each under the parameter.
    if not all(part is None or isinstance(part, str | bytes | int | float | Name | Made | Cut | Parameter) for part in parts):
        raise Damaged(f"{what} is neither text nor a number")
    if len(parts) > MAX_KEY or any(isinstance(part, int) and abs(part) > MAX_INTEGER for part in parts):
        raise Damaged(f"{what} has more than {MAX_KEY} members, or a number above 2**60")
    if parts is key and any(isinstance(part, str | bytes) and len(part) > MAX_NAME for part in parts):
        raise Damaged(f"{what} has a member of more than {MAX_NAME} characters")  # each key that is written repeats it


@dataclass(slots=True)
class Seen:
    """Names that a pickle mentions, in order: those that it calls or builds, and all."""

    mentioned: dict[str, None] = field(default_factory=dict)
    made: dict[str, None] = field(default_factory=dict)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, _: Any = False, hooks: Any = None, metadata: Any = None) -> Cut:
    counts = (offset, *size, *stride)
    if not isinstance(storage, Storage) or not all(type(n) is int and 0 <= n < 2**62 for n in counts):
        raise Damaged("a tensor is not made of a storage and whole numbers")
    if len(size) != len(stride) or len(size) > 64 or hooks or metadata:
        raise Damaged("a tensor has something else than a storage, a shape and strides")
    return Cut(storage, offset, tuple(size), tuple(stride))


# Attributes that torch.compile and torch.export leave on tensors: how they are traced, which changes no number. Not read.
MARKS = frozenset(
    (
        *("_dynamo_dynamic_indices", "_dynamo_dynamic_range", "_dynamo_hint_overrides", "_dynamo_shape_ids"),
        *("_dynamo_static_indices", "_dynamo_static_input_type", "_dynamo_strict_unbacked_indices", "_dynamo_unbacked_bounds"),
        *("_dynamo_unbacked_indices", "_dynamo_weak_dynamic_indices", "_specialize_on"),
    )
)


def _parameter(data: Any, requires_grad: Any = True, hooks: Any = None, state: Any = None, *more: Any) -> Parameter:
    if not isinstance(data, Cut):
        raise Damaged("a parameter is not made of a tensor")
    marked = state is None or (isinstance(state, PlainDict) and all(name in MARKS for name in state))
    return Parameter(data, requires_grad is True, plain=marked and not hooks and not more and isinstance(requires_grad, bool))


def _typed(function: Any = None, kind: Any = None, arguments: Any = None, state: Any = None, *more: Any) -> Cut:
    """Return a tensor that had attributes of its own, as an ``nn.Buffer`` has; they are not read."""
    plain = isinstance(state, PlainDict) and all(
        name in MARKS or (isinstance(name, str) and (value is None or isinstance(value, bool | int | float | str)))
        for name, value in state.items()
    )
    if (
        function != Name("torch._utils", "_rebuild_tensor_v2")
        or kind not in (Name("torch", "Tensor"), Name("torch.nn.parameter", "Buffer"))
        or not isinstance(arguments, tuple)
        or not plain
        or more
    ):
        raise Blocked("torch._tensor._rebuild_from_type_v2")
    return _tensor(*arguments)


def _is_function_of_torch(arguments: tuple[Any, ...]) -> bool:
    """Tell whether the attribute that a pickle asks for is one of torch's functions, as ``torch.relu`` is pickled."""
    return (
        len(arguments) == 2
        and arguments[0] == Name("torch._C", "_VariableFunctionsClass")
        and isinstance(arguments[1], str)
        and arguments[1].isidentifier()
        and not arguments[1].startswith("__")
    )


def _default_dict(*_: Any) -> PlainDict:
    return PlainDict()


# Calls that every file of torch.save makes: they become records of their own kind.
CALLED: dict[str, Any] = {
    "collections.OrderedDict": PlainDict,
    "collections.defaultdict": _default_dict,
    "builtins.set": PlainSet,
    "builtins.frozenset": PlainSet,
    "torch.Size": tuple,
    "torch._tensor._rebuild_from_type_v2": _typed,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}

_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}


@dataclass(slots=True)
class Allowance:
    """What all pickles of a file together may still take: bytes, reads, and members of lists that are handed to calls."""

    bytes: int = MAX_PICKLE
    reads: int = MAX_READS
    handed: int = MAX_HANDED


class _Counted:
    """A file that is read at most so often and so far: each operation of a pickle takes memory, be it one byte long."""

    def __init__(self, stream: io.BytesIO, allowance: Allowance) -> None:
        self.stream, self.allowance = stream, allowance

    def read(self, n: int = -1) -> bytes:
        return self._count(self.stream.read(n))

    def readline(self) -> bytes:
        return self._count(self.stream.readline())

    def _count(self, data: bytes) -> bytes:
        self.allowance.bytes -= len(data)
        self.allowance.reads -= 1
        if self.allowance.bytes < 0 or self.allowance.reads < 0:
            raise Damaged(f"its pickle has more than {MAX_PICKLE:,} bytes or about {MAX_READS // 2:,} operations")
        return data


_NEEDED = (
    "PROTO STOP MARK NONE NEWTRUE NEWFALSE EMPTY_TUPLE EMPTY_LIST TUPLE TUPLE1 TUPLE2 TUPLE3 BININT BININT1 BININT2 "
    "LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE SHORT_BINSTRING BINSTRING SHORT_BINBYTES BINBYTES GLOBAL STACK_GLOBAL "
    "POP APPEND APPENDS SETITEM SETITEMS BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE BINPERSID"
)
_OPERATIONS = [getattr(pickle, name)[0] for name in _NEEDED.split()]

# The unpickler written in Python: operations cannot be taken away from the one written in C.
_PythonUnpickler: Any = pickle._Unpickler


class Unpickler(_PythonUnpickler):  # type: ignore[misc]
    """Python's own unpickler with inert records for objects, and only the operations that weights and layers need.

    Parameters
    ----------
    refuse
        Called with each name as it is mentioned, and with whether it is called; raises `Blocked` to stop.
    allowance
        What it may take, less what it took when it is read.
    """

    def __init__(self, stream: io.BytesIO, refuse: Any, seen: Seen | None = None, allowance: Allowance | None = None) -> None:
        self.allowance = Allowance() if allowance is None else allowance
        super().__init__(_Counted(stream, self.allowance), encoding="utf-8", errors="surrogateescape")
        self.storages: dict[str, Storage] = {}
        self.refuse = refuse
        self.seen = Seen() if seen is None else seen

    def find_class(self, module: str, name: str) -> Any:
        """Return the record of a name."""
        if len(module) + len(name) > MAX_NAME:
            raise Damaged(f"it names something in {len(module) + len(name):,} characters")
        found = Name(_PYTHON_2.get(module, module), name)
        if module in ("torch", "torch.cuda", "torch.storage") and name in STORAGES:
            return StorageType(STORAGES[name])
        if found.full not in CALLED:
            self.seen.mentioned[found.full] = None
        self.refuse(found, False)
        return found

    def persistent_load(self, pid: Any) -> Storage | Name:
        """Return the storage, or the class with its source, that an id of ``torch.save`` names."""
        if not isinstance(pid, tuple) or not 1 <= len(pid) <= 6:
            raise Damaged("it refers to something else than a storage")
        kind, *rest = pid
        if kind in ("module", b"module") and len(rest) == 3 and isinstance(rest[0], Name):
            return rest[0]  # before torch 1.6 the source of a class of one's own stood beside it: its text is not looked at
        storage_type, key, _, numel, *view = rest
        if isinstance(storage_type, Name):
            raise Blocked(storage_type.full[:100])  # a type of numbers that is not known here
        if kind not in ("storage", b"storage") or not isinstance(storage_type, StorageType) or (view and view[0] is not None):
            raise Damaged("it refers to something else than a storage")
        if type(numel) is not int or not 0 <= numel < 2**62 or not isinstance(key, str | int):
            raise Damaged("a storage should have a name and a count of numbers")
        if len(str(key)) > MAX_NAME:
            raise Damaged(f"a storage has a name of more than {MAX_NAME} characters")
        storage = Storage(storage_type.dtype, str(key), numel)
        if self.storages.setdefault(storage.key, storage) != storage:
            raise Damaged(f"storage {storage.key!r} is described in two ways")
        return storage

    def load_reduce(self) -> None:
        """Record a call."""
        self._make(called=True)

    def load_newobj(self) -> None:
        """Record an instance."""
        self._make(called=False)

    def _make(self, *, called: bool) -> None:
        arguments = self.stack.pop()
        name = self.stack[-1]
        if isinstance(name, Made):
            raise Blocked(name.name.full[:100])  # a function that a call made: functools.partial(os.system, "…")()
        if not isinstance(name, Name) or not isinstance(arguments, tuple):
            raise Damaged("it calls something that is not a name")
        self._count_handed(arguments)
        if name.full in CALLED:
            self._count_handed(*(part for part in arguments if isinstance(part, list | tuple | dict | str | bytes)))
            self.stack[-1] = CALLED[name.full](*arguments)
            return
        if name.full == "builtins.getattr" and _is_function_of_torch(arguments):
            self.seen.mentioned.pop(name.full, None)
            self.seen.mentioned[f"torch.{arguments[1]}"] = None
            self.stack[-1] = Name("torch", arguments[1])
            return
        self.seen.made[name.full] = None
        if called and any(type(argument) is int and abs(argument) >= HUGE for argument in arguments):
            raise Blocked(name.full[:100])  # bytearray(2**32) on its way to all of the memory
        self.refuse(name, called)
        self.stack[-1] = Made(name, arguments, called)

    def _count_handed(self, *lists: Sized) -> None:
        self.allowance.handed -= sum(map(len, lists))
        if self.allowance.handed < 0:
            raise Damaged(f"its pickle hands more than {MAX_HANDED:,} values to calls")

    def load_build(self) -> None:
        """Keep the state that an object was to get: setting it could change functions and classes of this process."""
        state = self.stack.pop()
        found = self.stack[-1]
        if isinstance(found, Made):
            if found.state is not None:
                raise Damaged(f"it sets the state of {found.name} twice")
            found.state = state
        elif isinstance(found, Name):
            raise Blocked(found.full[:100])  # it would change a class or function of the whole process
        elif not isinstance(found, PlainDict):
            raise Damaged(f"it sets the state of a {type(found).__name__}")

    def load_empty_dictionary(self) -> None:
        """Push a dict with plain keys."""
        self.append(PlainDict.__new__(PlainDict))

    def load_empty_set(self) -> None:
        """Push a set whose members are not hashed."""
        self.append(PlainSet.__new__(PlainSet))

    def load_frozenset(self) -> None:
        """Push a set whose members are not hashed."""
        self.append(PlainSet(self.pop_mark()))

    def load_frame(self) -> None:
        """Read on: frames only speed reading up, and the bytes in one would not be counted."""
        self.read(8)

    dispatch: ClassVar[dict[int, Any]] = {
        **{number: _PythonUnpickler.dispatch[number] for number in _OPERATIONS},
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.BUILD[0]: load_build,
        pickle.EMPTY_DICT[0]: load_empty_dictionary,
        pickle.EMPTY_SET[0]: load_empty_set,
        pickle.FROZENSET[0]: load_frozenset,
        pickle.ADDITEMS[0]: _PythonUnpickler.load_additems,
        pickle.FRAME[0]: load_frame,
    }
