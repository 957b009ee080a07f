"""Reads ``.npz`` archives (keys x, y, sensitive_NAME) without ever unpickling, and mappings of arrays."""

from __future__ import annotations

import io
import math
import tokenize
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from audit.archives import DAMAGED, archive_members
from audit.data.base import Dataset, Reading, Role, as_array, preprocessed
from audit.errors import DataError, closest

MAX_RATIO = 1000  # an image set with empty margins packs about 20 to 1, a constant column about 900 to 1
# MemoryError comes from Python's parser, which NumPy asks to read the header.
READ_ERRORS = (*DAMAGED, TypeError, OverflowError, MemoryError, SyntaxError, tokenize.TokenError)
LARGEST_CHARACTER = 0x10FFFF  # of Unicode


def from_npz(content: bytes, reading: Reading, source: str, sha256: str, role: Role = "test") -> Dataset:
    """Read a ``.npz`` archive; for anomalies y may be missing.

    Raises
    ------
    DataError
        It is damaged, holds Python objects (which only a pickle could restore), or lacks x or y.
    """
    if content[:2] != b"PK":
        raise DataError(f"{source} is not a .npz archive (it begins with {content[:8]!r}): save it with numpy.savez")
    listed = archive_members(content, source, DataError, MAX_RATIO)
    members = {member.filename.removesuffix(".npy"): member for member in listed}
    if len(members) < len(listed):
        raise DataError(f"{source} holds an array with and without the ending .npy: which of the two is meant? Save it again")
    wanted = [name for name in members if name in ("x", "y", "anomaly") or name.startswith("sensitive_")]
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        loaded = {name: _member(archive, members[name], name, source) for name in wanted}
    _require(loaded, list(members), source, role)
    return from_mapping(loaded, reading, source, sha256, role)


def _require(arrays: Mapping[str, Any], held: Iterable[object], source: str, role: Role) -> None:
    wanted = ("x",) if role == "anomalies" else ("x", "y")
    if any(name not in arrays for name in wanted):
        names = "an array named x" if role == "anomalies" else "arrays named x and y"
        raise DataError(f"{source} should hold {names}, got {', '.join(map(str, held)) or 'nothing'}")


def from_mapping(arrays: Mapping[str, Any], reading: Reading, source: str, sha256: str, role: Role = "test") -> Dataset:
    """Build a Dataset from arrays x, y, sensitive_NAME and anomaly, whose rows of 1 go to the anomalies."""
    _require(arrays, arrays, source, role)
    x = as_array(arrays["x"])
    if x.ndim == 0:
        raise DataError(f"{source}: x should have shape (samples, …), got a single value")
    if reading.preprocess is not None:
        x = preprocessed(reading.preprocess, x, len(x))
    if role == "anomalies":
        return _only_marked(Dataset(x, np.zeros(len(x), dtype=np.int64), source=source, sha256=sha256), arrays.get("anomaly"))
    held = {name.removeprefix("sensitive_"): values for name, values in arrays.items() if name.startswith("sensitive_")}
    for name in reading.sensitive:
        if name not in held:
            raise DataError(f"{source} has no array sensitive_{name}; {closest(name, list(held))}")
    marked = anomaly_marks(arrays.get("anomaly"), len(x), f"{source}: anomaly")
    data = Dataset(
        x,
        codes_of_unmarked(arrays["y"], marked, reading.classes, source),
        sensitive={name: held[name] for name in (reading.sensitive or held)},
        classes=reading.classes,
        source=source,
        sha256=sha256,
    )
    return data.set_apart(marked)


def _only_marked(data: Dataset, values: Any) -> Dataset:
    """Leave out of a source of anomalies the rows that it marks as none; all stay where it marks nothing."""
    marked = anomaly_marks(values, len(data), f"{data.source}: anomaly")
    if values is None or marked.all():
        return data
    if not marked.any():
        raise DataError(
            f"{data.source}, given as --anomalies, marks none of its {len(data):,} rows as an anomaly: expected a 1 for each "
            "that is one in its array anomaly, or no such array where all are"
        )
    note = (
        f"{int((~marked).sum()):,} of {len(data):,} rows of {data.source} are not marked as anomalies and were left out of them"
    )
    return data._with(test=data.test.take(np.flatnonzero(marked))).with_notes(note)


def anomaly_marks(values: Any, n: int, what: str) -> NDArray[np.bool_]:
    """Return which of `n` rows are marked as anomalies; none where `values` is None.

    Raises
    ------
    DataError
        The marks are not one 0 or 1 a row.
    """
    if values is None:
        return np.zeros(n, dtype=np.bool_)
    marks = as_array(values)
    if marks.ndim == 2 and marks.shape[1] == 1:
        marks = marks[:, 0]
    if marks.shape != (n,) or marks.dtype.kind not in "fiub" or not np.isin(marks, (0, 1)).all():
        raise DataError(f"{what} should be 0 or 1 for each of {n} rows, got {marks.dtype} of shape {marks.shape}")
    return marks.astype(np.bool_)


def codes_of_unmarked(y: Any, marked: NDArray[np.bool_], classes: tuple[str, ...], source: str) -> Any:
    """Return labels as numbers, zeros where a row is marked: an anomaly is of no class, whatever its label says."""
    labels = as_array(y)
    if not marked.any() or labels.shape[:1] != marked.shape:
        return label_codes(labels, classes, source)
    codes = label_codes(labels[~marked], classes, source)
    spread = np.zeros(labels.shape, dtype=codes.dtype)
    spread[~marked] = codes.reshape(labels[~marked].shape)
    return spread


def label_codes(y: Any, classes: tuple[str, ...], source: str) -> Any:
    """Return labels as numbers: text is looked up in `classes`, numbers stay.

    Raises
    ------
    DataError
        Labels are text and no classes were stated, or a label is not among them.
    """
    labels = as_array(y)
    if labels.dtype.kind in "fiub":
        return labels.astype(np.int64) if labels.dtype.kind == "b" else labels
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise DataError(
            f"{source}: labels of shape {labels.shape} are text; where a sample may have several labels, save 1 for each that "
            "it has and 0 for each that it has not, one column a label, and name the labels with --classes"
        )
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


def read_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type that an array's header claims, or raise one of `READ_ERRORS`."""
    with archive.open(member) as stream:
        version = npy.read_magic(stream)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(stream)
    return shape, dtype


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, source: str) -> Any:
    try:
        _check_header(*read_header(archive, member), member.file_size, f"{source}: array {name!r}")
        with archive.open(member) as stream:
            return _checked_text(npy.read_array(stream, allow_pickle=False))
    except READ_ERRORS as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DataError(
            f"{source}: array {name!r} is truncated or damaged ({reason}): save it again with numpy.savez"
        ) from None


def _checked_text(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array; a ValueError where its text holds what is no character, at which Python breaks off."""
    if array.dtype.kind == "U" and array.size and array.dtype.itemsize:
        numbers = np.ascontiguousarray(array).reshape(-1).view(array.dtype.byteorder.replace("|", "=") + "u4")
        if int(numbers.max()) > LARGEST_CHARACTER:
            raise ValueError("its text holds what is no character")
    return array


def _check_header(shape: tuple[int, ...], dtype: np.dtype[Any], held: int, what: str) -> None:
    """Compare what an array's header asks for with what the archive holds: NumPy allocates before it reads."""
    if dtype.hasobject:
        raise DataError(
            f"{what} holds Python objects, which only a pickle could restore, so it was not read; "
            "save plain numbers (x.astype('float32'))"
        )
    # Texts without a character take no bytes, and any number of them would fit.
    if min(shape, default=0) < 0 or math.prod(shape) * max(1, dtype.itemsize) > held:
        raise DataError(f"{what} claims shape {shape} of {dtype}, but holds {held:,} bytes: it is damaged; save it again")
