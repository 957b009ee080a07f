"""Reads tables (CSV, gzipped CSV, Parquet, DataFrame). Nothing is encoded or imputed: what is not a number is an error."""

from __future__ import annotations

import gzip
import io
import warnings
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from audit.data.arrays import label_codes
from audit.data.base import Dataset, Reading, preprocessed
from audit.errors import DataError, UsageError, closest
from audit.files import memory_limit

if TYPE_CHECKING:
    import pandas as pd

MAX_RATIO = 200  # a table of zeros and ones packs about 100 to 1; the format's own limit is about 1000 to 1
SMALL = 64 * 2**20  # unpacked, harmless at any ratio
NUMBER_BYTES = 8  # a cell of a table takes this much memory once it is read


def read_csv(content: bytes) -> pd.DataFrame:
    """Parse CSV with a header line."""
    import pandas as pd

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            # Left to itself, pandas takes surplus fields for row labels, and each value lands under its neighbour's name.
            return pd.read_csv(io.BytesIO(content), low_memory=False, index_col=False)
    except pd.errors.ParserWarning:
        raise DataError("the CSV file's rows have more fields than its header has names: name every column") from None
    except (ValueError, pd.errors.ParserError, OverflowError, MemoryError) as error:
        raise DataError(f"the CSV file cannot be read: {str(error).strip()}") from None


def read_csv_gz(content: bytes) -> pd.DataFrame:
    """Parse gzipped CSV; it is unpacked up to a limit, so that a small file cannot fill the memory."""
    limit = min(memory_limit(), max(SMALL, MAX_RATIO * len(content)))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
            unpacked = stream.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"the gzip file is truncated or damaged: {error}") from None
    if len(unpacked) > limit:
        raise DataError(
            f"the gzip file unpacks {len(content):,} bytes to more than {limit:,}: refused as an archive made to exhaust memory"
        )
    return read_csv(unpacked)


def read_parquet(content: bytes) -> pd.DataFrame:
    """Parse Parquet."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # A column of one repeated value takes a few bytes for any number of rows, so the claim is read first.
        said = pq.read_metadata(io.BytesIO(content))
        if said.num_rows * said.num_columns * NUMBER_BYTES > memory_limit():
            raise DataError(
                f"the Parquet file claims {said.num_rows:,} rows of {said.num_columns:,} columns, "
                "more than the memory of this machine holds"
            )
        return pd.read_parquet(io.BytesIO(content), engine="pyarrow")
    except (pa.ArrowException, ValueError, TypeError, KeyError, OSError, MemoryError) as error:
        raise DataError(f"the Parquet file is truncated or damaged: {str(error).strip()[:200]}") from None


def from_frame(frame: pd.DataFrame, reading: Reading, source: str, sha256: str, *, reference: bool = False) -> Dataset:
    """Build a Dataset from a frame: target, inputs and sensitive columns as stated."""
    frame = frame.rename(columns=str)
    if not frame.columns.is_unique:
        twice = sorted(set(frame.columns[frame.columns.duplicated()]))
        raise DataError(f"{source}: two columns are called {twice[0]!r}; give each its own name")
    if reading.target is None:
        raise UsageError(f"{source} is a table: say which column is the label with --target ({_listed(frame)})")
    _require(frame, reading.target, "--target", source)
    if reading.target in reading.inputs:
        raise UsageError(f"--inputs names {reading.target!r}, which is the --target: the network would be given the answer")
    sensitive = [name for name in reading.sensitive if not reference or name in frame.columns]
    for name in sensitive:
        _require(frame, name, "--sensitive", source)
    if len(frame) == 0:
        raise DataError(f"{source} holds no rows: nothing to audit")
    inputs = input_columns(frame, reading)
    for name in inputs:
        _require(frame, name, "--inputs", source)
    gaps = int(frame[reading.target].isna().sum())
    if gaps:
        raise DataError(f"{source}: column {reading.target!r} (the target) is missing in {gaps} rows; drop them")
    if reading.preprocess is not None:
        x: Any = preprocessed(reading.preprocess, frame[inputs], len(frame))
        columns = None
    else:
        x, columns = numbers(frame, inputs, source), inputs
    return Dataset(
        x,
        label_codes(_labels(frame[reading.target]), reading.classes, source),
        columns=columns,
        sensitive={name: _groups(frame[name]) for name in sensitive},
        classes=reading.classes,
        source=source,
        sha256=sha256 or _frame_sha256(frame),
        notes=_notes(frame, reading, inputs),
    )


def input_columns(frame: pd.DataFrame, reading: Reading) -> list[str]:
    """Return the columns that go into the network.

    Those stated; else all but the target in the file's order, less sensitive columns that hold text (kept for `preprocess`,
    which may encode them).
    """
    if reading.inputs:
        return list(reading.inputs)
    columns = [name for name in frame.columns if name != reading.target]
    if reading.preprocess is not None:
        return columns
    return [name for name in columns if name not in reading.sensitive or _is_numeric(frame[name])]


def numbers(frame: pd.DataFrame, columns: list[str], source: str) -> Any:
    """Return the columns as a float array; an error names the column that holds text or a gap."""
    for name in columns:
        column = frame[name]
        text = _text_in(column)
        if text is not None:
            raise DataError(
                f"{source}: column {name!r} holds text ({text[:40]!r}): encode it as the network saw it in training "
                "(--preprocess FILE.py:FUNC), or leave it out (--inputs)"
            )
        gaps = int(column.isna().sum())
        if gaps:
            raise DataError(
                f"{source}: column {name!r} is missing in {gaps} of {len(frame)} rows: impute as in training "
                "(--preprocess FILE.py:FUNC), or drop them"
            )
    if not columns:
        raise DataError(f"{source}: no column is left to go into the network; name some with --inputs")
    x = frame[columns].astype(np.float64).to_numpy()
    infinite = np.flatnonzero(np.isinf(x).any(axis=0))
    if len(infinite):
        raise DataError(
            f"{source}: column {columns[infinite[0]]!r} holds infinity; replace it as in training, or drop the rows"
        )
    return x


def _text_in(column: pd.Series[Any]) -> str | None:
    """Return the value that keeps a column from being numbers: in a column of numbers as text, the one that is none."""
    import pandas as pd

    if _is_numeric(column):
        return None
    texts = [str(value) for value in column.dropna() if not _is_number(value)]
    odd = pd.to_numeric(pd.Series(texts, dtype=object), errors="coerce").isna() if texts else ()
    return next((text for text, is_odd in zip(texts, odd, strict=True) if is_odd), texts[0] if texts else None)


def _labels(column: pd.Series[Any]) -> Any:
    # Types of pandas' own that allow for gaps come out as Python objects, which would be taken for text.
    return column.to_numpy(dtype=np.float64) if _is_numeric(column) and column.dtype.kind != "b" else column.to_numpy()


def _require(frame: pd.DataFrame, name: str, option: str, source: str) -> None:
    if name not in frame.columns:
        raise DataError(f"{option}: {source} has no column {name!r}; {closest(name, [str(c) for c in frame.columns])}")


def _is_numeric(column: pd.Series[Any]) -> bool:
    from pandas.api.types import is_bool_dtype, is_complex_dtype, is_numeric_dtype

    return bool((is_numeric_dtype(column) or is_bool_dtype(column)) and not is_complex_dtype(column))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, complex | np.complexfloating)


def _groups(column: pd.Series[Any]) -> Any:
    # A missing attribute is a group of its own: dropping the rows would hide whoever did not answer.
    return np.asarray(["(missing)" if missing else str(value) for value, missing in zip(column, column.isna(), strict=True)])


def _notes(frame: pd.DataFrame, reading: Reading, inputs: list[str]) -> tuple[str, ...]:
    left_out = [name for name in frame.columns if name != reading.target and name not in inputs]
    notes = []
    if left_out and not reading.inputs:
        notes.append(f"sensitive columns that hold text are not inputs: {', '.join(left_out)}")
    return tuple(notes)


def _frame_sha256(frame: pd.DataFrame) -> str:
    import hashlib

    import pandas as pd

    digest = hashlib.sha256(",".join(map(str, frame.columns)).encode())
    digest.update(pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes())
    return digest.hexdigest()


def _listed(frame: pd.DataFrame) -> str:
    names = [str(name) for name in frame.columns]
    return "columns: " + ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
