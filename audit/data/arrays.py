"""Reads ``.npz`` archives (keys x, y, sensitive_NAME) without ever unpickling, and mappings of arrays."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from audit.data.base import Dataset, preprocessed
from audit.errors import DataError, closest

if TYPE_CHECKING:
    from audit.data.load import Reading

MAX_UNPACKED = 16 * 2**30
MAX_RATIO = 1000  # an image set with empty margins packs about 20 to 1, a constant column about 900 to 1


def from_npz(content: bytes, reading: Reading, source: str, sha256: str) -> Dataset:
    """Read a ``.npz`` archive.

    Raises
    ------
    DataError
        It is damaged, holds Python objects (which only a pickle could restore), or lacks x or y.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > MAX_UNPACKED or unpacked > MAX_RATIO * len(content):
            raise DataError(
                f"{source} unpacks {len(content):,} bytes to {unpacked:,}: refused as an archive made to exhaust memory"
            )
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            wanted = [name for name in arrays.files if name in ("x", "y", "anomaly") or name.startswith("sensitive_")]
            loaded = {name: _member(arrays, name, source) for name in wanted}
            names = list(arrays.files)
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError) as error:
        raise DataError(f"{source} is not a .npz archive that can be read ({error}): save it again with numpy.savez") from None
    for name in ("x", "y"):
        if name not in loaded:
            raise DataError(f"{source} should hold arrays named x and y, got {', '.join(names) or 'nothing'}")
    return from_mapping(loaded, reading, source, sha256)


def from_mapping(arrays: Mapping[str, Any], reading: Reading, source: str, sha256: str) -> Dataset:
    """Build a Dataset from arrays x, y and sensitive_NAME."""
    for name in ("x", "y"):
        if name not in arrays:
            raise DataError(f"{source} should hold arrays named x and y, got {', '.join(map(str, arrays)) or 'nothing'}")
    held = {name.removeprefix("sensitive_"): values for name, values in arrays.items() if name.startswith("sensitive_")}
    for name in reading.sensitive:
        if name not in held:
            raise DataError(f"{source} has no array sensitive_{name}; {closest(name, list(held))}")
    x = arrays["x"]
    if reading.preprocess is not None:
        x = preprocessed(reading.preprocess, x, len(x))
    return Dataset(
        x,
        label_codes(arrays["y"], reading.classes, source),
        sensitive={name: held[name] for name in (reading.sensitive or held)},
        classes=reading.classes,
        source=source,
        sha256=sha256,
    )


def label_codes(y: Any, classes: tuple[str, ...], source: str) -> Any:
    """Return labels as numbers: text is looked up in `classes`, numbers stay.

    Raises
    ------
    DataError
        Labels are text and no classes were stated, or a label is not among them.
    """
    labels = np.asarray(y)
    if labels.dtype.kind in "fiub":
        return labels.astype(np.int64) if labels.dtype.kind == "b" else labels
    texts = [str(value) for value in labels.reshape(-1)]
    if not classes:
        found = sorted(set(texts))
        raise DataError(
            f"{source}: labels are text ({', '.join(repr(t) for t in found[:5])}{', …' if len(found) > 5 else ''}): "
            "give --classes with one class a line in the order of the network's outputs"
        )
    codes = {name: code for code, name in enumerate(classes)}
    unknown = sorted(set(texts) - set(codes))
    if unknown:
        names = ", ".join(repr(text) for text in unknown[:5])
        raise DataError(f"{source}: labels {names} are not among --classes; {closest(unknown[0], list(classes))}")
    return np.asarray([codes[text] for text in texts], dtype=np.int64)


def _member(arrays: Any, name: str, source: str) -> Any:
    try:
        return arrays[name]
    except ValueError as error:
        if "pickle" in str(error).lower() or "object" in str(error).lower():
            raise DataError(
                f"{source}: array {name!r} holds Python objects, which only a pickle could restore, so it was not read; "
                "save plain numbers (x.astype('float32'))"
            ) from None
        raise
