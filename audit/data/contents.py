"""Says what stands in a data file without making a Dataset of it: what ``audit inspect`` shows of data.

Arrays are described by their headers alone, so that one that holds Python objects, which only a pickle could restore, is named
and never read.
"""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from audit.archives import archive_members
from audit.data.arrays import MAX_RATIO, READ_ERRORS, read_header
from audit.errors import DataError
from audit.files import not_a_model_nor_data, read_file

ENDINGS = (".npz", ".csv", ".csv.gz", ".parquet")
MOST_ARRAYS = 10_000


@dataclass(frozen=True)
class Column:
    """An array, a column of a table, or a folder of images: its name, what it holds, and how much."""

    name: str
    kind: str
    detail: str = ""


@dataclass(frozen=True)
class Contents:
    """What a data file is.

    Attributes
    ----------
    format
        For people: ``NumPy archive``, ``CSV table``, …
    size, sha256
        Of the file; of a folder the number of bytes is None and there is no hash.
    columns
        In the file's order.
    rows
        Rows of a table, None where the file does not tell.
    unpickles
        Arrays that only a pickle could restore: what NumPy's own reader would run with ``allow_pickle=True``.
    refused
        Why audit does not read it; empty where it does.
    """

    format: str
    size: int | None
    sha256: str
    columns: tuple[Column, ...]
    rows: int | None = None
    unpickles: tuple[str, ...] = ()
    refused: str = ""
    notes: tuple[str, ...] = ()


def is_data(path: Path) -> bool:
    """Tell whether a path is read as data: by its name, as `audit.data.load` does, or as a folder."""
    return path.is_dir() or path.name.lower().endswith(ENDINGS)


def contents(path: Path) -> Contents:
    """Read a data file and say what it holds.

    Raises
    ------
    DataError
        It cannot be read, or is damaged.
    """
    if path.is_dir():
        return _of_folder(path)
    content = read_file(path, "data file", DataError)
    something_else = not_a_model_nor_data(content)
    if something_else is not None:
        raise DataError(f"{path} {something_else}")
    name, sha256 = path.name.lower(), hashlib.sha256(content).hexdigest()
    if name.endswith(".npz"):
        return _of_npz(content, sha256, str(path))
    if name.endswith(".parquet"):
        return _of_parquet(content, sha256)
    return _of_csv(content, sha256, packed=name.endswith(".gz"))


def _of_npz(content: bytes, sha256: str, source: str) -> Contents:
    if content[:2] != b"PK":
        raise DataError(f"{source} is not a .npz archive (it begins with {content[:8]!r}): save it with numpy.savez")
    members = archive_members(content, source, DataError, MAX_RATIO)
    columns, objects, flaws = [], [], []
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for member in members[:MOST_ARRAYS]:
            name = member.filename.removesuffix(".npy")
            try:
                shape, dtype = read_header(archive, member)
            except READ_ERRORS:
                columns.append(Column(name, "not an array", f"{member.file_size:,} bytes"))
                flaw = "is truncated or damaged"
            else:
                columns.append(Column(name, str(dtype), " × ".join(map(str, shape)) or "one value"))
                flaw = _flaw(shape, dtype, member.file_size)
                objects += [name] if dtype.hasobject else []
            # What audit does not read may be damaged.
            if flaw and (name in ("x", "y", "anomaly") or name.startswith("sensitive_")):
                flaws.append(f"array {name!r} {flaw}")
    names = {column.name for column in columns}
    if not {"x", "y"} <= names:
        flaws.append(f"it should hold arrays named x and y, got {', '.join(sorted(names)[:8]) or 'nothing'}")
    notes = () if len(members) <= MOST_ARRAYS else (f"{len(members):,} members; {MOST_ARRAYS:,} were looked at",)
    refused = flaws[0] if flaws else ""
    return Contents("NumPy archive", len(content), sha256, tuple(columns), None, tuple(objects), refused, notes)


def _flaw(shape: tuple[int, ...], dtype: np.dtype[Any], held: int) -> str:
    """Return what keeps an array from being read, by its header alone."""
    if dtype.hasobject:
        return "holds Python objects, which only a pickle could restore"
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > held:
        return "claims more numbers than the archive holds"
    return ""


def _of_parquet(content: bytes, sha256: str) -> Contents:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from audit.data.tables import MOST_COLUMNS

    try:
        file = pq.ParquetFile(io.BytesIO(content))
        if len(file.schema) > MOST_COLUMNS:
            raise DataError(f"the Parquet file has {len(file.schema):,} columns; at most {MOST_COLUMNS:,} are read")
        columns = tuple(Column(field.name, str(field.type)[:100]) for field in file.schema_arrow)
        return Contents("Parquet table", len(content), sha256, columns, rows=file.metadata.num_rows)
    except (pa.ArrowException, ValueError, TypeError, KeyError, OSError, MemoryError) as error:
        raise DataError(f"the Parquet file is truncated or damaged: {str(error).strip()[:200]}") from None


def _of_csv(content: bytes, sha256: str, *, packed: bool) -> Contents:
    from audit.data import tables

    frame = tables.read_csv_gz(content) if packed else tables.read_csv(content)
    columns = []
    for name in frame.columns:
        held = frame[name]
        if getattr(held, "ndim", 1) != 1:
            raise DataError(f"two columns are called {str(name)[:100]!r}; give each its own name")
        gaps = int(held.isna().sum())
        kind = "numbers" if held.dtype.kind in "fiub" else "text"
        spread = f"{held.min():.6g} to {held.max():.6g}" if held.dtype.kind in "fiu" and gaps < len(held) else ""
        different = "" if spread else f"{held.nunique():,} different"
        columns.append(
            Column(str(name), kind, "; ".join(filter(None, [spread, different, f"{gaps:,} missing" if gaps else ""])))
        )
    return Contents("CSV table, gzipped" if packed else "CSV table", len(content), sha256, tuple(columns), rows=len(frame))


def _of_folder(folder: Path) -> Contents:
    from collections import Counter

    from audit.data.images import listing

    found = listing(folder)
    if not found.images:
        raise DataError(f"{folder} holds no images: name a file in it, or the folder that has one folder of images a class")
    counts = Counter(name.partition("/")[0] if "/" in name else "." for name in found.images)
    columns = tuple(Column(name, "folder", f"{n:,} images") for name, n in sorted(counts.items()))
    notes = (f"{len(found.others):,} other files are passed over",) if found.others else ()
    return Contents("folder of images, one folder a class", None, "", columns, rows=len(found.images), notes=notes)
