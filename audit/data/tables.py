"""Reads tables (CSV, gzipped CSV, Parquet, DataFrame). Nothing is encoded or imputed: what is not a number is an error."""

from __future__ import annotations

import gzip
import io
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from audit.data.arrays import label_codes
from audit.data.base import Dataset, preprocessed
from audit.errors import DataError, UsageError, closest

if TYPE_CHECKING:
    import pandas as pd

    from audit.data.load import Reading

MAX_UNPACKED = 16 * 2**30


def read_csv(content: bytes) -> pd.DataFrame:
    """Parse CSV with a header line."""
    import pandas as pd

    try:
        return pd.read_csv(io.BytesIO(content), low_memory=False)
    except (ValueError, pd.errors.ParserError) as error:
        raise DataError(f"the CSV file cannot be read: {str(error).strip()}") from None


def read_csv_gz(content: bytes) -> pd.DataFrame:
    """Parse gzipped CSV; it is unpacked up to a limit, so that a small file cannot fill the memory."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
            unpacked = stream.read(MAX_UNPACKED + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"the gzip file is truncated or damaged: {error}") from None
    if len(unpacked) > MAX_UNPACKED:
        raise DataError(f"the gzip file unpacks to more than {MAX_UNPACKED:,} bytes")
    return read_csv(unpacked)


def read_parquet(content: bytes) -> pd.DataFrame:
    """Parse Parquet."""
    import pandas as pd
    import pyarrow as pa

    try:
        return pd.read_parquet(io.BytesIO(content), engine="pyarrow")
    except (pa.ArrowException, ValueError, OSError) as error:
        raise DataError(f"the Parquet file is truncated or damaged: {str(error).strip()}") from None


def from_frame(frame: pd.DataFrame, reading: Reading, source: str, sha256: str, *, reference: bool = False) -> Dataset:
    """Build a Dataset from a frame: target, inputs and sensitive columns as stated."""
    frame = frame.rename(columns=str)
    if reading.target is None:
        raise UsageError(f"{source} is a table: say which column is the label with --target ({_listed(frame)})")
    _require(frame, reading.target, "--target", source)
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
        label_codes(frame[reading.target].to_numpy(), reading.classes, source),
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
        if not _is_numeric(column):
            text = next(v for v in column if not _is_number(v))
            raise DataError(
                f"{source}: column {name!r} holds text ({str(text)[:40]!r}): encode it as the network saw it in training "
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
    return frame[columns].astype(np.float64).to_numpy()


def _require(frame: pd.DataFrame, name: str, option: str, source: str) -> None:
    if name not in frame.columns:
        raise DataError(f"{option}: {source} has no column {name!r}; {closest(name, [str(c) for c in frame.columns])}")


def _is_numeric(column: pd.Series[Any]) -> bool:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    return bool(is_numeric_dtype(column) or is_bool_dtype(column))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number)


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
