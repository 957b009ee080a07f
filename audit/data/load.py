"""Opens data: says what a source is by its name or type and hands it to the reader of that kind."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from audit.data.base import (
    Dataset,
    Part,
    Preprocess,
    Reading,
    Role,
    as_array,
    check_labels,
    check_units,
    concatenate,
    replace_bounds,
)
from audit.errors import DataError, UsageError
from audit.files import not_a_model_nor_data, read_file

if TYPE_CHECKING:
    import pandas as pd

MAX_CLASSES_BYTES = 2**24
MOST_CLASSES = 100_000
COLUMN = "column:"


def load(
    source: str | os.PathLike[str] | Any,
    *,
    reference: str | os.PathLike[str] | Any | None = None,
    anomalies: str | os.PathLike[str] | Any | None = None,
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
        ``.npz`` (keys x, y, and optional anomaly and sensitive_NAME), ``.csv``, ``.csv.gz`` or ``.parquet`` (with `target`),
        a folder with one folder of images a class, ``sklearn:NAME``, a pandas DataFrame, a DataLoader or torch Dataset of
        (x, y) pairs, or a Dataset.
    reference
        The training part, from a source of any kind.
    anomalies
        Inputs that are none of what the network is for, from a source of any kind, or an array of inputs; labels in it are
        ignored and may be missing. For a table ``column:NAME`` marks them in `source` itself: its rows that have a 1 there.
        Rows of an ``.npz`` whose array ``anomaly`` is 1 count as anomalies, too, with ids behind those of `source`'s rows
        where there are both.
    target
        Column that holds the label; or several with commas between, each 1 in the rows that have one of the labels of a
        multi-label network and 0 in the others.
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
    UsageError
        A column is named twice.
    """
    _named_once(inputs, "--inputs")
    _named_once(sensitive, "--sensitive")
    marks = anomalies.removeprefix(COLUMN) if isinstance(anomalies, str) and anomalies.startswith(COLUMN) else None
    reading = Reading(
        marks=marks,
        target=target,
        inputs=tuple(inputs),
        sensitive=tuple(sensitive),
        classes=class_names(classes),
        preprocess=preprocess,
    )
    data = _read(source, reading)
    if marks is not None and not _is_table(source):
        raise UsageError(f"--anomalies {anomalies}: {data.source} is not read as a table, so that it has no column {marks!r}")
    # The classes that a folder of images names by its folders hold for the other parts, too.
    reading = replace(reading, classes=reading.classes or data.classes)
    if reference is not None:
        data = _join(data, _read(reference, reading, "reference"))
    if anomalies is not None and marks is None:
        data = _with_anomalies(data, _read_anomalies(anomalies, data, reading))
    return replace_bounds(data, bounds) if bounds is not None else data


def class_names(classes: str | os.PathLike[str] | Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the classes, read from a file with one name a line where `classes` is a path."""
    if classes is None:
        return ()
    if not isinstance(classes, str | os.PathLike):
        return _distinct(tuple(str(name) for name in classes), "classes")
    try:
        lines = read_file(Path(classes), "list of classes", DataError, MAX_CLASSES_BYTES).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"--classes should be a text file with one class a line: {classes}: {error}") from None
    return _distinct(tuple(line.strip() for line in lines if line.strip()), f"--classes {classes}")


def _distinct(names: tuple[str, ...], what: str) -> tuple[str, ...]:
    if len(names) > MOST_CLASSES:
        raise DataError(f"{what} names {len(names):,} classes; at most {MOST_CLASSES:,} are read: is it another file's name?")
    twice = _twice(names)
    if twice is not None or len(names) < 2:
        got = f"{twice!r} twice" if twice is not None else f"{len(names)} names"
        raise DataError(f"{what} should name at least 2 classes, each once, in the order of the outputs; got {got}")
    return names


def _named_once(names: Sequence[str], option: str) -> None:
    twice = _twice(names)
    if twice is not None:
        raise UsageError(f"{option} should name each column once, got {twice!r} twice: remove one of them")


def _twice(names: Sequence[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _read(source: Any, reading: Reading, role: Role = "test") -> Dataset:
    if isinstance(source, Dataset):
        return source
    if isinstance(source, str | os.PathLike):
        return _read_path(str(source), reading, role)
    if hasattr(source, "columns") and hasattr(source, "to_numpy"):
        from audit.data.tables import from_frame

        return from_frame(source, reading, "DataFrame", "", role)
    if isinstance(source, Mapping):
        from audit.data.arrays import from_mapping

        return from_mapping(source, reading, "arrays", "", role)
    return _from_pairs(source)


def _is_table(source: Any) -> bool:
    if isinstance(source, str | os.PathLike):
        name = str(source).lower()
        return name.endswith((".csv", ".csv.gz", ".parquet")) or (name.startswith("sklearn:") and name != "sklearn:digits")
    return hasattr(source, "columns") and hasattr(source, "to_numpy")


def _read_anomalies(source: Any, data: Dataset, reading: Reading) -> Dataset:
    """Read anomalies; inputs alone will do."""
    import torch

    if isinstance(source, np.ndarray | torch.Tensor):
        bare = Dataset(source, np.zeros(len(source), dtype=np.int64), source="array")
        return bare._with(columns=data.columns)  # an array names no columns: their number is checked by its shape
    return _read(source, reading, "anomalies")


def _read_path(source: str, reading: Reading, role: Role) -> Dataset:
    if source.startswith("sklearn:"):
        from audit.data.sklearn import load_bundled

        return load_bundled(source.removeprefix("sklearn:"), reading)
    name = source.lower()
    if Path(source).is_dir():
        from audit.data.images import from_folder

        return from_folder(Path(source), reading, role)
    if not name.endswith((".npz", ".csv", ".csv.gz", ".parquet")):
        raise DataError(f"data should be .npz, .csv, .csv.gz, .parquet, a folder of images or sklearn:NAME, got {source}")
    content = read_file(Path(source), "data file", DataError)
    something_else = not_a_model_nor_data(content)
    if something_else is not None:
        raise DataError(f"{source} {something_else}")
    sha256 = hashlib.sha256(content).hexdigest()
    if name.endswith(".npz"):
        from audit.data.arrays import from_npz

        return from_npz(content, reading, source, sha256, role)
    from audit.data import tables

    try:
        frame = _frame(name, content, reading)
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    return tables.from_frame(frame, reading, source, sha256, role)


def _frame(name: str, content: bytes, reading: Reading) -> pd.DataFrame:
    from audit.data import tables

    if name.endswith(".parquet"):
        return tables.read_parquet(content, reading)
    return tables.read_csv_gz(content) if name.endswith(".gz") else tables.read_csv(content)


def _from_pairs(source: Any) -> Dataset:
    """Collect (x, y): from a pair of arrays, a DataLoader (batches) or a torch Dataset (single samples)."""
    from torch import Tensor
    from torch.utils.data import DataLoader

    if isinstance(source, tuple) and len(source) == 2 and all(isinstance(part, np.ndarray | Tensor) for part in source):
        return Dataset(source[0], source[1])
    if isinstance(source, DataLoader):
        return _from_loader(source)
    if isinstance(source, np.ndarray | Tensor) or not (hasattr(source, "__getitem__") and hasattr(source, "__len__")):
        raise DataError(
            "data should be a path, a dict of arrays x and y, a pair (x, y), a DataFrame, a DataLoader or a torch Dataset, "
            f"got {type(source).__name__}"
        )
    pairs = [_pair(source[i]) for i in range(len(source))]
    if not pairs:
        raise DataError("the dataset holds no rows: nothing to audit")
    shapes = sorted({as_array(x).shape for x, _ in pairs})
    if len(shapes) > 1:
        raise DataError(f"the dataset's samples should have one shape, got {shapes[0]} and {shapes[1]}")
    lengths = sorted({as_array(y).size for _, y in pairs})
    if len(lengths) > 1:
        raise DataError(f"the dataset's samples should have labels of one shape, got {lengths[0]} and {lengths[1]} of them")
    return Dataset(np.stack([as_array(x) for x, _ in pairs]), np.asarray([_label(y) for _, y in pairs]), source="torch Dataset")


def _from_loader(loader: Any) -> Dataset:
    from torch.utils.data import IterableDataset

    stream = isinstance(loader.dataset, IterableDataset)
    if not stream and _shuffles(loader):
        raise DataError(
            "the DataLoader draws its samples in random order, so that they have no stable ids: "
            "pass one with shuffle=False, or its dataset"
        )
    x, y = concatenate([_pair(batch) for batch in loader])
    data = Dataset(x, y, source="DataLoader")
    left_out = 0 if stream else len(loader.dataset) - len(data)
    return data.with_notes(f"the DataLoader left out {left_out} of its {len(loader.dataset)} samples") if left_out > 0 else data


def _pair(item: Any) -> tuple[Any, Any]:
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise DataError(f"the data should give (x, y) pairs, got {type(item).__name__}")
    return item[0], item[1]


def _label(y: Any) -> float | list[float]:
    """Return a sample's label, or 0 and 1 for each label that it may have."""
    label = as_array(y)
    if label.size == 0 or label.ndim > 1 or label.dtype.kind not in "fiub":
        raise DataError(
            "labels should be one number a sample, or 0 or 1 for each of several labels, got "
            f"{label.dtype} of shape {label.shape}"
        )
    values = [float(value) for value in label.reshape(-1)]
    return values if len(values) > 1 else values[0]


def _shuffles(loader: Any) -> bool:
    """Tell whether the order of samples is random: by the sampler's type, and by asking it twice."""
    from torch.utils.data import RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler

    samplers = [sampler for sampler in (loader.batch_sampler, loader.sampler) if sampler is not None]
    inner = [getattr(sampler, "sampler", sampler) for sampler in samplers]
    if any(isinstance(sampler, RandomSampler | SubsetRandomSampler | WeightedRandomSampler) for sampler in inner):
        return True
    if all(isinstance(sampler, SequentialSampler) for sampler in inner):
        return False
    return list(samplers[0]) != list(samplers[0])


def _join(data: Dataset, part: Dataset) -> Dataset:
    _check_fits(data, part, "the reference part")
    check_labels(data.test.y, part.test.y)
    joined = data._with(reference=part.test, reference_sha256=part.sha256)
    if part.anomalies is not None:
        joined = joined.with_notes(
            f"{len(part.anomalies):,} rows of the reference part are marked as anomalies and were left out of it"
        )
    if (part.test.x.shape == data.test.x.shape) and part.test.sha256() == data.test.sha256():
        joined = joined.with_notes("the reference part is the same as the test part: no overfitting can show")
    return joined


def _with_anomalies(data: Dataset, part: Dataset) -> Dataset:
    _check_fits(data, part, "the anomalies")
    x, ids = part.test.x, part.test.ids
    if data.anomalies is not None:
        # Noise is keyed by ids, so that no two samples of a part may share one.
        x, ids = np.concatenate((data.anomalies.x, x)), np.concatenate((data.anomalies.ids, ids + data.rows))
    joined = data._with(anomalies=Part(x, np.zeros(len(x), dtype=np.int64), ids), anomalies_sha256=part.sha256)
    return joined.with_notes(*(f"anomalies: {note}" for note in part.notes), *_shared_rows(data, part))


def _shared_rows(data: Dataset, part: Dataset) -> list[str]:
    """Say so where anomalies are rows of the other parts: no detector can tell a row from itself."""
    held = {hash(row.tobytes()) for other in (data.test, data.reference) if other is not None for row in other.x}
    shared = sum(hash(row.tobytes()) in held for row in part.test.x.astype(data.test.x.dtype, copy=False))
    if not shared:
        return []
    return [
        f"{shared:,} of {len(part.test):,} anomalies are rows of the test or the reference part, too: nothing tells those apart"
    ]


def _check_fits(data: Dataset, part: Dataset, what: str) -> None:
    if part.columns != data.columns and part.test.x.ndim == 2:
        odd = sorted(set(part.columns) ^ set(data.columns))
        raise DataError(
            f"{what} should have the columns of the data in the same order; these differ: {', '.join(odd[:8]) or 'the order'}"
        )
    if part.test.x.shape[1:] != data.test.x.shape[1:]:
        raise DataError(f"{what} should have samples of shape {data.test.x.shape[1:]}, got {part.test.x.shape[1:]}")
    check_units(data.test.x, part.test.x, what)
