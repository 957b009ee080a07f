"""Opens data: says what a source is by its name or type and hands it to the reader of that kind."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from audit.data.base import Dataset, Preprocess, concatenate, replace_bounds
from audit.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

MAX_BYTES = 16 * 2**30


@dataclass(frozen=True)
class Reading:
    """How rows become inputs, labels and groups: what the user stated, the same for the test and the reference part."""

    target: str | None = None
    inputs: tuple[str, ...] = ()
    sensitive: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    preprocess: Preprocess | None = None


def load(
    source: str | os.PathLike[str] | Any,
    *,
    reference: str | os.PathLike[str] | Any | None = None,
    target: str | None = None,
    inputs: Sequence[str] = (),
    sensitive: Sequence[str] = (),
    classes: str | os.PathLike[str] | Sequence[str] | None = None,
    preprocess: Preprocess | None = None,
    bounds: tuple[ArrayLike, ArrayLike] | None = None,
) -> Dataset:
    """Load data to audit with.

    Parameters
    ----------
    source
        ``.npz`` (keys x, y, and optional sensitive_NAME), ``.csv``, ``.csv.gz`` or ``.parquet`` (with `target`),
        ``sklearn:NAME``, a pandas DataFrame, a DataLoader or torch Dataset of (x, y) pairs, or a Dataset.
    reference
        The training part, from a source of any kind.
    target
        Column that holds the label.
    inputs
        Columns that go into the network, in this order; unstated, all but the target in the file's order, less sensitive
        columns that hold text.
    sensitive
        Columns (or sensitive_NAME keys) to test for fairness. They may, but need not, be inputs.
    classes
        Names of the classes in the order of the network's outputs: a list, or a file with one a line.
    preprocess
        Called with the raw rows (a frame of the inputs, or the x array); returns what the network takes.
    bounds
        Lowest and highest input value.

    Raises
    ------
    DataError
        The source cannot be read, or holds something that nobody said how to encode.
    """
    reading = Reading(
        target=target,
        inputs=tuple(inputs),
        sensitive=tuple(sensitive),
        classes=class_names(classes),
        preprocess=preprocess,
    )
    data = _read(source, reading)
    if reference is not None:
        # Groups are compared on the test part only, so the reference part need not have the sensitive columns.
        part = _read(reference, reading, reference=True)
        data = _join(data, part)
    return replace_bounds(data, bounds) if bounds is not None else data


def class_names(classes: str | os.PathLike[str] | Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the classes, read from a file with one name a line where `classes` is a path."""
    if classes is None:
        return ()
    if not isinstance(classes, str | os.PathLike):
        return tuple(str(name) for name in classes)
    try:
        lines = Path(classes).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--classes should be a text file with one class a line: {classes}: {error}") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if len(set(names)) != len(names) or len(names) < 2:
        raise DataError(f"--classes {classes} should name at least 2 classes, each once, got {len(names)} lines")
    return names


def _read(source: Any, reading: Reading, *, reference: bool = False) -> Dataset:
    if isinstance(source, Dataset):
        return source
    if isinstance(source, str | os.PathLike):
        return _read_path(str(source), reading, reference=reference)
    if hasattr(source, "columns") and hasattr(source, "to_numpy"):
        from audit.data.tables import from_frame

        return from_frame(source, reading, "DataFrame", "", reference=reference)
    if isinstance(source, Mapping):
        from audit.data.arrays import from_mapping

        return from_mapping(source, reading, "arrays", "")
    return _from_pairs(source)


def _read_path(source: str, reading: Reading, *, reference: bool) -> Dataset:
    if source.startswith("sklearn:"):
        from audit.data.sklearn import load_bundled

        return load_bundled(source.removeprefix("sklearn:"), reading)
    path = Path(source)
    readers: dict[str, Callable[[bytes], Any]] = {}
    name = path.name.lower()
    content = read_bytes(path)
    sha256 = hashlib.sha256(content).hexdigest()
    if name.endswith(".npz"):
        from audit.data.arrays import from_npz

        return from_npz(content, reading, source, sha256)
    from audit.data import tables

    readers = {".csv": tables.read_csv, ".csv.gz": tables.read_csv_gz, ".parquet": tables.read_parquet}
    for ending, reader in readers.items():
        if name.endswith(ending):
            frame: pd.DataFrame = reader(content)
            return tables.from_frame(frame, reading, source, sha256, reference=reference)
    raise DataError(f"data should be .npz, .csv, .csv.gz, .parquet or sklearn:NAME, got {source}")


def read_bytes(path: Path) -> bytes:
    """Read a data file whole; a DataError says why it cannot be."""
    if path.is_dir():
        raise DataError(f"expected a data file, got the folder {path}; name the file inside it")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} is larger than {MAX_BYTES:,} bytes")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the data file {path}: {error.strerror or error}") from None
    if not content:
        raise DataError(f"{path} is empty: a download or a save that broke off?")
    return content


def _from_pairs(source: Any) -> Dataset:
    """Collect (x, y) pairs from a DataLoader (batches) or a torch Dataset (single samples)."""
    import numpy as np
    from torch.utils.data import DataLoader

    if isinstance(source, DataLoader):
        if _shuffles(source):
            raise DataError(
                "the DataLoader draws its samples in random order, so that they have no stable ids: "
                "pass one with shuffle=False, or its dataset"
            )
        x, y = concatenate([_pair(batch) for batch in source])
        return Dataset(x, y, source="DataLoader")
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        pairs = [_pair(source[i]) for i in range(len(source))]
        if not pairs:
            raise DataError("the dataset holds no rows: nothing to audit")
        return Dataset(
            np.stack([np.asarray(x) for x, _ in pairs]),
            np.asarray([float(y) for _, y in pairs]),
            source="torch Dataset",
        )
    raise DataError(f"data should be a path, arrays, a DataFrame, a DataLoader or a torch Dataset, got {type(source).__name__}")


def _pair(item: Any) -> tuple[Any, Any]:
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise DataError(f"the data should give (x, y) pairs, got {type(item).__name__}")
    return item[0], item[1]


def _shuffles(loader: Any) -> bool:
    from torch.utils.data import RandomSampler

    return isinstance(loader.sampler, RandomSampler)


def _join(data: Dataset, part: Dataset) -> Dataset:
    if part.columns != data.columns and part.test.x.ndim == 2:
        odd = sorted(set(part.columns) ^ set(data.columns))
        raise DataError(
            "the reference part should have the columns of the data in the same order; "
            f"these differ: {', '.join(odd[:8]) or 'the order'}"
        )
    if part.test.x.shape[1:] != data.test.x.shape[1:]:
        raise DataError(f"the reference part should have samples of shape {data.test.x.shape[1:]}, got {part.test.x.shape[1:]}")
    joined = data._with(reference=part.test, sha256=hashlib.sha256(f"{data.sha256} {part.sha256}".encode()).hexdigest())
    if (part.test.x.shape == data.test.x.shape) and part.test.sha256() == data.test.sha256():
        joined = joined.with_notes("the reference part is the same as the test part: no overfitting can show")
    return joined
