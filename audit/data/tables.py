"""Reads tables (CSV, gzipped CSV, Parquet, DataFrame). Nothing is encoded or imputed: what is not a number is an error."""

from __future__ import annotations

import csv
import gzip
import io
import warnings
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from audit.data.arrays import anomaly_marks, codes_of_unmarked
from audit.data.base import Dataset, Reading, Role, preprocessed
from audit.errors import DataError, UsageError, closest
from audit.files import memory_limit

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

MAX_RATIO = 200  # a table of zeros and ones packs about 100 to 1; the format's own limit is about 1000 to 1
SMALL = 64 * 2**20  # unpacked, harmless at any ratio
MOST_COLUMNS = 10_000  # pandas takes minutes to open a table of some 100,000
MAX_PARQUET_RATIO = 1000  # as for .npz: a column of one repeated value has no limit of its own
NUMBER_BYTES = 8  # a number in a table takes this much memory once it is read
TEXT_BYTES = 60  # and a text at least this much
COPIES = 4  # of a table live at once between the file and the network's input


def read_csv(content: bytes) -> pd.DataFrame:
    """Parse CSV with a header line."""
    import pandas as pd

    _check_width(_header_width(content), "CSV")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            # Left to itself, pandas takes surplus fields for row labels, and each value lands under its neighbour's name.
            return pd.read_csv(io.BytesIO(content), low_memory=False, index_col=False)
    except pd.errors.ParserWarning:
        raise DataError("the CSV file's rows have more fields than its header has names: name every column") from None
    except (ValueError, pd.errors.ParserError, OverflowError, MemoryError) as error:
        raise DataError(f"the CSV file cannot be read: {str(error).strip()}") from None


def _header_width(content: bytes) -> int:
    """Return the number of columns in the header line, counted before a parser builds a column of each."""
    # Any byte is a character of Latin-1, and the commas and quotes of UTF-8 are the same in it.
    lines = io.TextIOWrapper(io.BytesIO(content.removeprefix(b"\xef\xbb\xbf")), encoding="latin-1", newline="")
    try:
        return next((len(row) for row in csv.reader(lines) if len(row) > 1 or "".join(row).strip()), 0)
    except csv.Error as error:
        raise DataError(f"the CSV file's header line cannot be read: {error}; expected names with commas between") from None


def _check_width(columns: int, what: str) -> None:
    if columns > MOST_COLUMNS:
        raise DataError(
            f"the {what} file has {columns:,} columns; at most {MOST_COLUMNS:,} are read from a table: "
            "save wider data as .npz with arrays x and y"
        )


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


def read_parquet(content: bytes, reading: Reading | None = None) -> pd.DataFrame:
    """Parse Parquet: the columns that `reading` states, where it states the inputs and all are there, else all.

    Raises
    ------
    DataError
        It is damaged, or would take more memory than its size accounts for.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # A column of one repeated value takes a few bytes for any number of rows, so the claims are read first.
        file = pq.ParquetFile(io.BytesIO(content))
        columns = _stated_columns(file.schema_arrow.names, reading)
        limit = min(memory_limit() // COPIES, max(SMALL, MAX_PARQUET_RATIO * len(content)))
        _check_size(_claimed(file, columns), limit, len(content))
        _check_size(_text_bytes(content, file, columns), limit, len(content))
        return pd.read_parquet(io.BytesIO(content), engine="pyarrow", columns=columns)
    except (pa.ArrowException, ValueError, TypeError, KeyError, OSError, MemoryError) as error:
        raise DataError(f"the Parquet file is truncated or damaged: {str(error).strip()[:200]}") from None


def _stated_columns(names: list[str], reading: Reading | None) -> list[str] | None:
    """Return the columns to read; None for all, also where one is missing, so that the error can list what there is."""
    if reading is None or not reading.inputs or reading.target is None or len(set(names)) < len(names):
        return None
    wanted = {*targets(names, reading.target), *reading.inputs, *reading.sensitive, *([reading.marks] if reading.marks else [])}
    return [name for name in names if name in wanted] if wanted <= set(names) else None


def _leaves(file: Any, columns: list[str] | None) -> list[Any]:
    """Return the descriptions of the stored columns that belong to `columns`."""
    described = [file.schema.column(i) for i in range(len(file.schema))]
    return [leaf for leaf in described if columns is None or leaf.path in columns or leaf.path.split(".")[0] in columns]


def _claimed(file: Any, columns: list[str] | None) -> int:
    """Return the least memory that the columns take once they are read, by what the file says of itself."""
    said = file.metadata
    wanted = _leaves(file, columns)
    _check_width(len(wanted), "Parquet")
    each = {}
    for leaf in wanted:
        if leaf.max_repetition_level > 0:
            raise DataError(f"the Parquet file's column {leaf.path!r} holds lists; expected one number or text in each row")
        each[leaf.path] = max(TEXT_BYTES, leaf.length or 0) if leaf.physical_type.endswith("BYTE_ARRAY") else NUMBER_BYTES
    total = said.num_rows * sum(each.values())
    chunks = 0
    for group in map(said.row_group, range(said.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            if chunk.path_in_schema in each:
                chunks += max(chunk.num_values * each[chunk.path_in_schema], chunk.total_uncompressed_size)
    return int(max(total, chunks))


def _text_bytes(content: bytes, file: Any, columns: list[str] | None) -> int:
    """Return the length of all text, which no claim tells: each different text is stored once, however long it is."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    paths = [leaf.path for leaf in _leaves(file, columns) if leaf.physical_type == "BYTE_ARRAY"]
    # Read as a dictionary, a text takes its length once, and each row that holds it a few bytes.
    coded = pq.ParquetFile(io.BytesIO(content), read_dictionary=paths)
    total = 0
    for path in paths:
        for column in coded.read(columns=[path], use_threads=False).columns:
            for chunk in column.chunks:
                if isinstance(chunk, pa.DictionaryArray) and not pa.types.is_nested(chunk.dictionary.type):
                    lengths = pc.binary_length(chunk.dictionary.cast(pa.large_binary()))
                    total += pc.sum(lengths.take(chunk.indices)).as_py() or 0
                else:
                    total += chunk.nbytes
    return total


def _check_size(size: int, limit: int, packed: int) -> None:
    if size > limit:
        raise DataError(
            f"the Parquet file unpacks {packed:,} bytes to {size:,} or more, and at most {limit:,} are read here: refused as "
            "a file made to exhaust memory; if it is yours, name fewer columns (--inputs) or save fewer rows"
        )


def from_frame(frame: pd.DataFrame, reading: Reading, source: str, sha256: str, role: Role = "test") -> Dataset:
    """Build a Dataset from a frame: target, inputs and sensitive columns as stated; anomalies need no target."""
    frame = frame.rename(columns=str)
    if not frame.columns.is_unique:
        twice = sorted(set(frame.columns[frame.columns.duplicated()]))
        raise DataError(f"{source}: two columns are called {twice[0]!r}; give each its own name")
    _check_stated(frame, reading, source, role)
    if len(frame) == 0:
        raise DataError(f"{source} holds no rows: nothing to audit")
    inputs, labels = input_columns(frame, reading), targets(frame.columns, reading.target)
    for name in inputs:
        _require(frame, name, "--inputs", source)
    if role == "anomalies":
        y: Any = np.zeros(len(frame), dtype=np.int64)
        marked = np.zeros(len(frame), dtype=np.bool_)
    else:
        marked = _marked(frame, reading, source)
        y = _target(frame, reading, marked, source)
    if reading.preprocess is not None:
        x: Any = preprocessed(reading.preprocess, frame[inputs], len(frame))
        columns = None
    else:
        x, columns = numbers(frame, inputs, source), inputs
    data = Dataset(
        x,
        y,
        columns=columns,
        sensitive={name: _without_gaps(frame[name]) for name in _groups(frame, reading, role)},
        classes=reading.classes or (labels if len(labels) > 1 else ()),
        source=source,
        sha256=sha256 or _frame_sha256(frame),
        notes=_notes(frame, reading, inputs),
    )
    return data.set_apart(marked)


def _check_stated(frame: pd.DataFrame, reading: Reading, source: str, role: Role) -> None:
    """Hold the columns that the user named against those that there are."""
    if role != "anomalies":
        if reading.target is None:
            raise UsageError(f"{source} is a table: say which column is the label with --target ({_listed(frame)})")
        for name in targets(frame.columns, reading.target):
            _require(frame, name, "--target", source)
    labels = targets(frame.columns, reading.target)
    if len(set(labels)) < len(labels):
        raise UsageError(f"--target names a column twice: {reading.target}; name each label's column once")
    for name in labels:
        if name in reading.inputs:
            raise UsageError(f"--inputs names {name!r}, which is the --target: the network would be given the answer")
    for name in _groups(frame, reading, role):
        _require(frame, name, "--sensitive", source)
    if reading.marks is None:
        return
    if reading.marks in labels or reading.marks in reading.inputs:
        raise UsageError(f"--anomalies names column {reading.marks!r}, which is the --target or one of the --inputs, too")
    if role == "test":
        _require(frame, reading.marks, "--anomalies", source)


def _groups(frame: pd.DataFrame, reading: Reading, role: Role) -> list[str]:
    # Groups are compared on the test part alone, so that the others need not have them.
    return [name for name in reading.sensitive if role == "test" or name in frame.columns]


def _marked(frame: pd.DataFrame, reading: Reading, source: str) -> NDArray[np.bool_]:
    if reading.marks is None or reading.marks not in frame.columns:
        return anomaly_marks(None, len(frame), source)
    return anomaly_marks(_labels(frame[reading.marks]), len(frame), f"{source}: column {reading.marks!r} (--anomalies)")


def _target(frame: pd.DataFrame, reading: Reading, marked: NDArray[np.bool_], source: str) -> Any:
    labels = targets(frame.columns, reading.target)
    for name in labels:
        gaps = int(frame[name][~marked].isna().sum())
        if gaps:
            raise DataError(f"{source}: column {name!r} (the target) is missing in {gaps} rows; drop them")
        if len(labels) > 1 and not _is_numeric(frame[name]):
            raise DataError(
                f"{source}: column {name!r} holds text; of several --target columns each should hold 1 in the rows that have "
                "the label and 0 in the others"
            )
    if len(labels) == 1:
        return codes_of_unmarked(_labels(frame[labels[0]]), marked, reading.classes, source)
    marks = np.stack([frame[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in labels], axis=1)
    return codes_of_unmarked(marks, marked, reading.classes, source)


def targets(names: Iterable[Any], target: str | None) -> tuple[str, ...]:
    """Return the columns that hold the labels: the one called `target`, else those that it names with commas between."""
    if target is None or target in set(names):
        return () if target is None else (target,)
    return tuple(name.strip() for name in target.split(",") if name.strip()) or (target,)


def input_columns(frame: pd.DataFrame, reading: Reading) -> list[str]:
    """Return the columns that go into the network.

    Those stated; else all but the target in the file's order, less sensitive columns that hold text (kept for `preprocess`,
    which may encode them).
    """
    if reading.inputs:
        return list(reading.inputs)
    labels = targets(frame.columns, reading.target)
    columns = [name for name in frame.columns if name not in (*labels, reading.marks)]
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
    try:
        x = frame[columns].astype(np.float64).to_numpy()
    except OverflowError:
        raise DataError(f"{source}: a column holds a number of over 300 digits; is it damaged?") from None
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


def _without_gaps(column: pd.Series[Any]) -> Any:
    # pandas has gaps of several types, of which None is the one that every array knows.
    return np.asarray([None if missing else str(v) for v, missing in zip(column, column.isna(), strict=True)], dtype=object)


def _notes(frame: pd.DataFrame, reading: Reading, inputs: list[str]) -> tuple[str, ...]:
    labels = targets(frame.columns, reading.target)
    left_out = [name for name in frame.columns if name not in (*labels, reading.marks, *inputs)]
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
