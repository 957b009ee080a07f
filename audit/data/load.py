"""Opens data: says what a source is by its name or type and hands it to the reader of that kind."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from audit.data.base import Dataset, Preprocess, Reading, as_array, concatenate, replace_bounds
from audit.errors import DataError, UsageError
from audit.files import not_a_model_nor_data, read_file

if TYPE_CHECKING:
    import pandas as pd

MAX_CLASSES_BYTES = 2**24
MOST_CLASSES = 100_000


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
        ``.npz`` (keys x, y, and optional sensitive_NAME), ``.csv``, ``.csv.gz`` or ``.parquet`` (with `target`),
        ``sklearn:NAME``, a pandas DataFrame, a DataLoader or torch Dataset of (x, y) pairs, or a Dataset.
    reference
        The training part, from a source of any kind.
    anomalies
        Inputs that are none of what the network is for, from a source of any kind; labels in it are ignored and may be
        missing. Rows of `source` whose array or column ``anomaly`` is 1 count as such, too.
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
    UsageError
        A column is named twice.
    """
    _named_once(inputs, "--inputs")
    _named_once(sensitive, "--sensitive")
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
    name = source.lower()
    if not name.endswith((".npz", ".csv", ".csv.gz", ".parquet")) and not Path(source).is_dir():
        raise DataError(f"data should be .npz, .csv, .csv.gz, .parquet or sklearn:NAME, got {source}")
    content = read_file(Path(source), "data file", DataError)
    something_else = not_a_model_nor_data(content)
    if something_else is not None:
        raise DataError(f"{source} {something_else}")
    sha256 = hashlib.sha256(content).hexdigest()
    if name.endswith(".npz"):
        from audit.data.arrays import from_npz

        return from_npz(content, reading, source, sha256)
    from audit.data import tables

    try:
        frame = _frame(name, content, reading)
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    return tables.from_frame(frame, reading, source, sha256, reference=reference)


def _frame(name: str, content: bytes, reading: Reading) -> pd.DataFrame:
    from audit.data import tables

    if name.endswith(".parquet"):
        return tables.read_parquet(content, reading)
    return tables.read_csv_gz(content) if name.endswith(".gz") else tables.read_csv(content)


def _from_pairs(source: Any) -> Dataset:
    """Collect (x, y): from a pair of arrays, a DataLoader (batches) or a torch Dataset (single samples)."""
    import numpy as np
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


def _label(y: Any) -> float:
    label = as_array(y)
    if label.size != 1 or label.dtype.kind not in "fiub":
        raise DataError(f"labels should be one number a sample, got {label.dtype} of shape {label.shape}")
    return float(label.reshape(-1)[0])


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
