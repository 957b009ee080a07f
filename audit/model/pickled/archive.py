"""Opens what ``torch.save`` wrote, the zip archive (torch 1.6 and later) and the plain stream before it, and cuts tensors out.

torch's own weights-only reader runs no code of the file, but calls what is on its list with whatever arguments the file
gives: on torch 2.13 a pickle of 32 bytes (``bytearray(2**31)``) takes 2 GB, sparse tensors come back with indices that nobody
checked, and a dictionary key made of nested tuples takes for ever to hash. Here a tensor is cut out of the file's own bytes, so
that it can never be larger than they are.
"""

from __future__ import annotations

import io
import re
import sys
import zipfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from audit.archives import read_member
from audit.model.pickled import names
from audit.model.pickled.records import MAX_PICKLE, Allowance, Blocked, Cut, Damaged, Name, Parameter, Seen, Storage, Unpickler

MAGIC = 0x1950A86A20F9469CFC6C  # first object of the plain stream: torch.serialization.MAGIC_NUMBER

# What torch.save writes beside the pickle, and the folders that a zip tool adds.
MEMBER = re.compile(
    r"data\.pkl|data/[^/]+|version|byteorder|\.data/serialization_id|\.format_version|\.storage_alignment|(\.?data/)?"
)


class Saved:
    """What a file holds: `content`, made of plain containers, numbers, text and records, and the numbers themselves.

    Parameters
    ----------
    file
        The bytes.
    refuse
        Called with each name, and whether it is called; raises `Blocked`.
    allowance
        What reading it may take, where it is one of several files in a file.

    Raises
    ------
    Blocked
        The pickle asks for something that weights and layers have no use for.
    Damaged
        The file is truncated, damaged, or not what ``torch.save`` writes.
    """

    def __init__(
        self, file: bytes, refuse: Callable[[Name, bool], None] = names.check, allowance: Allowance | None = None
    ) -> None:
        self.seen = Seen()
        self._allowance = Allowance() if allowance is None else allowance
        self._refuse = refuse
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
            if isinstance(error, KeyError) and error.args and type(error.args[0]) is int:
                raise Damaged(f"its pickle uses the operation or the memory {error.args[0]}, which is not there") from None
            raise Damaged(f"{type(error).__name__}: {error}"[:300]) from None

    def tensor(self, cut: Cut | Parameter) -> Tensor:
        """Cut a tensor out of the file's numbers.

        Raises
        ------
        Damaged
            The numbers are not there.
        """
        cut = cut.data if isinstance(cut, Parameter) else cut
        storage = cut.storage
        if storage.key not in self._storages:
            try:
                raw = self._find(storage)
            except Exception as error:  # the reader of damaged archives raises almost anything
                raise Damaged(f"the numbers of storage {storage.key[:100]!r} are not there ({error})") from None
            itemsize = storage.dtype.itemsize
            if len(raw) < storage.numel * itemsize:
                raise Damaged(f"storage {storage.key[:100]!r} should have {storage.numel * itemsize:,} bytes, got {len(raw):,}")
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

    def _unpickler(self, stream: io.BytesIO) -> Unpickler:
        return Unpickler(stream, self._refuse, self.seen, self._allowance)

    def _open_zip(self, file: bytes) -> Any:
        archive = zipfile.ZipFile(io.BytesIO(file))  # stays open: to read its directory anew for each storage would take long
        members = {member.filename: member for member in archive.infolist()}
        pickles = [name for name in members if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise Damaged(f"it should hold one data.pkl, got {len(pickles)}")
        if members[pickles[0]].file_size > MAX_PICKLE:
            raise Damaged(f"its data.pkl has more than {MAX_PICKLE:,} bytes of operations")
        folder = pickles[0].removesuffix("data.pkl")
        odd = next((name for name in members if not (name.startswith(folder) and MEMBER.fullmatch(name[len(folder) :]))), None)
        if odd is not None:
            raise Damaged(f"it holds {odd[:80]!r}, which torch.save does not write")
        order = members.get(f"{folder}byteorder")
        if order is not None and read_member(archive, file, order)[:16].strip() != sys.byteorder.encode():
            raise Damaged(f"its numbers have another byte order than this machine's ({sys.byteorder}-endian)")

        def find(storage: Storage) -> bytearray:
            return read_member(archive, file, members[f"{folder}data/{storage.key}"])

        self._find = find
        stream = io.BytesIO(read_member(archive, file, members[pickles[0]]))
        content = self._unpickler(stream).load()
        if stream.read(1):
            raise Damaged("something stands behind its pickle")
        return content

    def _open_stream(self, file: bytes) -> Any:
        stream = io.BytesIO(file)
        magic = self._unpickler(stream).load()
        if type(magic) is not int or magic != MAGIC:
            raise Damaged("it is a pickle, but not one that torch.save wrote")
        self._unpickler(stream).load()  # version of the format
        machine = self._unpickler(stream).load()
        if not isinstance(machine, dict) or machine.get("little_endian") is not (sys.byteorder == "little"):
            raise Damaged("its numbers have another byte order than this machine's")
        reader = self._unpickler(stream)
        content = reader.load()
        starts: dict[str, int] = {}
        # Behind the pickles stands each storage: a count, then so many numbers of the type that the pickle named.
        position = None
        for key in _keys(self._unpickler(stream).load()):
            position = stream.tell() if position is None else position
            count = int.from_bytes(file[position : position + 8], "little", signed=True)
            if count != reader.storages[key].numel:
                raise Damaged(f"storage {key[:100]!r} should have {reader.storages[key].numel:,} numbers, got {count:,}")
            starts[key] = position + 8
            position = starts[key] + count * reader.storages[key].dtype.itemsize

        def find(storage: Storage) -> bytearray:
            start = starts[storage.key]
            return bytearray(memoryview(file)[start : start + storage.numel * storage.dtype.itemsize])

        self._find = find
        return content


def _keys(keys: Any) -> list[str]:
    # Text of anything else may be exponentially longer than its pickle: tuples of one tuple twice.
    if not isinstance(keys, list | tuple) or not all(isinstance(key, str | int) for key in keys):
        raise Damaged("its storages are not named")
    return [str(key) for key in keys]
