"""External data: weights in files of their own, read from the model file's folder and from nowhere else.

The name of such a file is the model file's word, and could be ``/etc/shadow``, ``../../secret``, a link or a pipe.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from audit.errors import ModelError
from audit.files import memory_limit, read_file
from audit.model.onnx.messages import TensorProto
from audit.model.onnx.wire import Malformed

MOST_FILES = 1000
_KEYS = ("location", "offset", "length", "checksum", "basepath")


@dataclass(frozen=True)
class Part:
    """A stretch of a file: `length` None for all that follows `offset`."""

    location: str
    offset: int = 0
    length: int | None = None

    @classmethod
    def of(cls, tensor: TensorProto) -> Part:
        """Read where a tensor's values stand.

        Raises
        ------
        Malformed
            The entries are incomplete, doubled, or no plain numbers.
        """
        entries = {entry.key: entry.value for entry in tensor.external_data}
        called = f"the external data of the tensor {tensor.name[:100]!r}"
        if len(entries) < len(tensor.external_data) or not set(entries) <= set(_KEYS) or "location" not in entries:
            raise Malformed(f"{called} should say location, offset and length once each")
        if "basepath" in entries:
            raise Malformed(f"{called} names a folder; only files beside the model file are read")
        numbers = [entries[key] for key in ("offset", "length") if key in entries]
        if any(not (text.isascii() and text.isdigit() and len(text) <= 18) for text in numbers):
            raise Malformed(f"{called} has an offset or length that is no plain number")
        length = int(entries["length"]) if "length" in entries else None
        return cls(entries["location"], int(entries.get("offset", "0")), length)


def part_of(part: Part, size: int, beside: Mapping[str, bytes]) -> memoryview:
    """Return the bytes of a part.

    Raises
    ------
    Malformed
        The file is shorter, or the part is not `size` bytes long.
    """
    content = beside.get(part.location)
    if content is None:
        raise Malformed(f"its weights stand in {part.location[:100]!r}, which is not there")
    if part.length not in (None, size):
        raise Malformed(f"{part.length:,} bytes of {part.location[:100]!r} should be {size:,}")
    if part.offset + size > len(content):
        raise Malformed(
            f"{part.location[:100]!r} is too short: {len(content):,} bytes, but {part.offset + size:,} are asked for: "
            "a copy that broke off?"
        )
    return memoryview(content)[part.offset : part.offset + size]


def read_files(tensors: Iterable[TensorProto], model: Path) -> dict[str, bytes]:
    """Read the files that tensors stand in: regular files in the folder of the model file or below it.

    Raises
    ------
    ModelError
        A name leads elsewhere, passes through a link, or is no regular file; or they are too large together.
    """
    names = sorted({Part.of(tensor).location for tensor in tensors if tensor.data_location == 1})
    if len(names) > MOST_FILES:
        raise ModelError(f"{model} keeps its weights in {len(names):,} files; at most {MOST_FILES:,} are read")
    left = memory_limit()
    found: dict[str, bytes] = {}
    for name in names:
        found[name] = read_file(_path(model, name), "external data of the ONNX file", ModelError, left)
        left -= len(found[name])
    return found


def _path(model: Path, name: str) -> Path:
    parts = name.removeprefix("./").split("/")
    bad = any(part in ("", ".", "..") for part in parts) or any(c in name for c in "\\:\0") or len(name) > 1000
    if bad:
        raise ModelError(
            f"{model} asks for the file {name[:100]!r}: external data are read from beside the model file only, "
            "by a plain relative name"
        )
    path = folder = model.parent
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise ModelError(f"{model} asks for {name[:100]!r}, which is a link: put the file itself beside the model file")
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise ModelError(f"{model} asks for {name[:100]!r}, which is not in its folder")
    return path
