"""Typed samples with stable ids: a test part, and a reference (training) part where there is one.

Values are kept as they were stored. Nothing is encoded, imputed or scaled here: what the network saw in training is the
user's to state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from audit.errors import DataError, UsageError

if TYPE_CHECKING:
    import os

Kind = Literal["image", "table", "array"]
Role = Literal["test", "reference", "anomalies"]
MOST_EXACT = 2**53  # whole numbers above it are not exact as float64
LONGEST_GROUP = 1000
TENTHS = 10
WIDEST = 1e30  # bounds beyond it leave no room to compute in: float32, which networks compute in, ends at 3.4e38


@dataclass(frozen=True)
class Part:
    """Samples of one part: test, reference (training), or anomalies.

    Attributes
    ----------
    x : array of shape (n, …)
        Inputs in the user's units, in the type that they were stored in.
    y : array of shape (n,), or (n, labels)
        int64 where all labels are whole numbers, else float64; zeros for anomalies, whose labels mean nothing. Of shape
        (n, labels) with 1 for each label that a sample has, else 0, for multi-label networks.
    ids : int64 array of shape (n,)
        Row number in the source: it stays with the sample through every draw and batch.
    sensitive : dict of str arrays of shape (n,)
    """

    x: NDArray[Any]
    y: NDArray[Any]
    ids: NDArray[np.int64]
    sensitive: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, positions: NDArray[np.int64]) -> Part:
        """Return the samples at these positions, with their ids."""
        return Part(
            self.x[positions],
            self.y[positions],
            self.ids[positions],
            {name: values[positions] for name, values in self.sensitive.items()},
        )

    def sha256(self) -> str:
        """Hash ids, inputs and labels, so that rows of different data are never paired."""
        digest = hashlib.sha256()
        for array in (self.ids, self.x, self.y):
            digest.update(f"{array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """Samples to audit with, and what is known about them.

    Parameters
    ----------
    x
        Inputs of shape (n, …): (n, columns) is a table, (n, channels, height, width) are images.
    y
        Labels of shape (n,): classes as whole numbers from 0, or numbers for regression; or of shape (n, labels), 0 or 1,
        where a sample may have any number of labels.
    columns
        Names of a table's columns.
    sensitive
        Attribute name to values of shape (n,), compared as text.
    reference
        The training part: a Dataset, or a pair (x, y).
    anomalies
        Inputs that are known to be none of what the network is for, of shape (m, …): the anomaly check alone sees them.
    classes
        Names of the classes (or labels) in the order of the network's outputs.
    bounds
        Lowest and highest input value: two numbers, or two arrays that broadcast to one sample.
    """

    test: Part
    reference: Part | None = None
    anomalies: Part | None = None
    columns: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    bounds: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    kind: Kind = "array"
    source: str = "arrays"
    sha256: str = ""
    reference_sha256: str = ""
    anomalies_sha256: str = ""
    rows: int = 0
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        x: ArrayLike | Tensor,
        y: ArrayLike | Tensor,
        *,
        columns: Sequence[str] | None = None,
        sensitive: Mapping[str, ArrayLike] | None = None,
        reference: Dataset | tuple[ArrayLike, ArrayLike] | None = None,
        anomalies: Dataset | ArrayLike | Tensor | None = None,
        classes: Sequence[str] | None = None,
        bounds: tuple[ArrayLike, ArrayLike] | None = None,
        source: str = "arrays",
        sha256: str = "",
        notes: Sequence[str] = (),
    ) -> None:
        test = make_part(x, y, sensitive or {}, source)
        kind: Kind = {2: "table", 4: "image"}.get(test.x.ndim, "array")  # type: ignore[assignment]
        if kind == "table" and columns is None:
            columns = [f"x{i}" for i in range(test.x.shape[1])]
        if columns is not None and (kind != "table" or len(columns) != test.x.shape[1]):
            raise DataError(f"{len(columns)} column names do not fit inputs of shape {test.x.shape}")
        if isinstance(reference, tuple):
            reference = Dataset(reference[0], reference[1], source=f"{source} (reference)")
        reference_part = reference.test if reference is not None else None
        if reference_part is not None and reference_part.x.shape[1:] != test.x.shape[1:]:
            raise DataError(
                f"the reference part should have samples of shape {test.x.shape[1:]} like the test part, "
                f"got {reference_part.x.shape[1:]}"
            )
        if reference_part is not None:
            check_units(test.x, reference_part.x, "the reference part")
            check_labels(test.y, reference_part.y)
        values = {
            "test": test,
            "reference": reference_part,
            "anomalies": None if anomalies is None else _anomalies(anomalies, test, source),
            "columns": tuple(str(c) for c in columns or ()),
            "classes": tuple(str(c) for c in classes or ()),
            "bounds": None if bounds is None else _check_bounds(bounds, test.x),
            "kind": kind,
            "source": source,
            "sha256": sha256 or test.sha256(),
            "reference_sha256": "" if reference is None else reference.sha256,
            "anomalies_sha256": anomalies.sha256 if isinstance(anomalies, Dataset) else "",
            "rows": len(test),
            "notes": tuple(notes),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def load(cls, source: str | os.PathLike[str] | Any, **options: Any) -> Dataset:
        """Load data from a file, ``sklearn:NAME``, a DataLoader or a torch Dataset; see `audit.data.load.load`."""
        from audit.data.load import load

        return load(source, **options)

    def __len__(self) -> int:
        return len(self.test)

    def part(self, name: str) -> Part | None:
        """Return the ``test``, the ``reference`` or the ``anomalies`` part; None where there is none."""
        part: Part | None = {"test": self.test, "reference": self.reference, "anomalies": self.anomalies}[name]
        return part

    def sample(self, n: int, seed: int) -> Dataset:
        """Draw `n` test samples by `seed`, each row with the same chance; classes and groups keep their shares. Ids stay.

        The number of samples of each class, and of each group of the first sensitive attribute within it, is its exact share
        rounded down or up, at random so that each row is drawn with a chance of exactly n / rows. A class whose share comes to
        less than one sample is therefore missing from some draws, which a note says: one sample of it in all draws would count
        such a class for more than it is. Where labels are numbers, or there are more classes than `n`, the groups are kept
        first, and within them the tenths of the labels, or the classes. Intervals that take samples for independent are, on
        such a draw, rather too wide than too narrow.

        All of the data comes back where `n` is larger, and a note says so. Source: Madow (1949), Annals of Mathematical
        Statistics 20:333, systematic sampling, on rows in the order of their classes and groups and at random within them.
        """
        if n < 1:
            raise UsageError(f"samples must be at least 1, got {n}")
        if n > len(self.test):
            return self.with_notes(f"{n:,} samples were asked for: these are all {len(self.test):,} that there are")
        if n == len(self.test):
            return self
        drawn = self._with(test=self.test.take(_stratified(self.test, n, np.random.default_rng(seed))))
        return drawn.with_notes(*_missed(self.test.y, drawn.test.y))

    def set_apart(self, marked: NDArray[np.bool_]) -> Dataset:
        """Return the same data with the marked rows out of the test part and in the anomalies part; ids stay.

        Raises
        ------
        DataError
            No row would be left to test.
        """
        if marked.all():
            raise DataError(f"{self.source}: all {len(marked)} rows are marked as anomalies, so that none is left to test")
        if not marked.any():
            return self
        apart = self.test.take(np.flatnonzero(marked))
        unlabelled = Part(apart.x, np.zeros(len(apart), dtype=np.int64), apart.ids)
        note = f"{len(apart):,} of {len(marked):,} rows are marked as anomalies: the anomaly check alone sees them"
        return self._with(test=self.test.take(np.flatnonzero(~marked)), anomalies=unlabelled).with_notes(note)

    def box(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return lowest and highest value of each input, broadcastable to one sample.

        Stated bounds win. Unstated: the range of each column in both parts for tables; else [0, 255] for uint8, and
        [0, 1] where all values lie inside.

        Raises
        ------
        DataError
            Nothing was stated and nothing settles the bounds.
        """
        if self.bounds is not None:
            return self.bounds
        part = self.reference or self.test
        if self.kind == "table":
            x = part.x.astype(np.float64)
            # Rows of the test part may lie outside the reference part's range: the box holds every clean input.
            both = np.concatenate((x, self.test.x.astype(np.float64)))
            return both.min(axis=0), both.max(axis=0)
        if self.test.x.dtype == np.uint8:
            return np.asarray(0.0), np.asarray(255.0)
        low, high = float(self.test.x.min()), float(self.test.x.max())
        if low >= 0 and high <= 1:
            return np.asarray(0.0), np.asarray(1.0)
        raise DataError(
            f"inputs lie between {low:g} and {high:g}, and nothing says which values are allowed: "
            "give --bounds LOW,HIGH (before --mean and --std)"
        )

    def scale(self) -> NDArray[np.float64]:
        """Return the standard deviation of each column of a table in the reference (else the test) part, shape (columns,)."""
        part = self.reference or self.test
        spread: NDArray[np.float64] = part.x.astype(np.float64).std(axis=0)
        return spread

    def tensor(self, positions: NDArray[np.int64], part: str = "test") -> Tensor:
        """Return the inputs at these positions as a CPU tensor in their stored type."""
        samples = self.part(part)
        if samples is None:
            raise DataError(f"there is no {part} part: give --{part}")
        return torch.from_numpy(np.ascontiguousarray(samples.x[positions]))

    def _with(self, **changes: Any) -> Dataset:
        other = object.__new__(Dataset)
        for name in self.__dataclass_fields__:
            object.__setattr__(other, name, changes.get(name, getattr(self, name)))
        return other

    def with_notes(self, *notes: str) -> Dataset:
        """Return the same data with more notes for the report."""
        return self._with(notes=(*self.notes, *notes))


def make_part(x: ArrayLike | Tensor, y: ArrayLike | Tensor, sensitive: Mapping[str, ArrayLike], source: str) -> Part:
    """Check inputs, labels and sensitive attributes, and number the rows.

    Raises
    ------
    DataError
        No rows, lengths that differ, inputs that are not numbers, NaN or infinity.
    """
    inputs, labels = as_array(x), as_array(y)
    if inputs.ndim < 2:
        raise DataError(f"{source}: x should have shape (samples, …), got {inputs.shape}")
    if len(inputs) == 0:
        raise DataError(f"{source} holds no rows: nothing to audit")
    if inputs.size == 0:
        raise DataError(f"{source}: x should hold values for each sample, got shape {inputs.shape}")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape[:1] != (len(inputs),) or labels.ndim > 2 or labels.size == 0:
        raise DataError(
            f"{source}: y should have shape ({len(inputs)},), one label a sample, or ({len(inputs)}, labels), 0 or 1 for each "
            f"label that a sample may have, got {labels.shape}"
        )
    _check_numbers(inputs, f"{source}: x")
    _check_numbers(labels, f"{source}: y")
    if labels.ndim == 2:
        _check_marks(labels, source)
    numbers = labels.astype(np.float64)
    whole = bool(np.all((numbers == np.round(numbers)) & (np.abs(numbers) < MOST_EXACT)))
    groups = {name: as_groups(as_array(values).reshape(-1), name, source) for name, values in sensitive.items()}
    for name, values in groups.items():
        if len(values) != len(inputs):
            raise DataError(f"{source}: sensitive attribute {name!r} has {len(values)} values for {len(inputs)} samples")
    return Part(
        inputs,
        labels.astype(np.int64 if whole else np.float64),
        np.arange(len(inputs), dtype=np.int64),
        groups,
    )


def _check_marks(labels: NDArray[Any], source: str) -> None:
    odd = np.argwhere((labels != 0) & (labels != 1))
    if len(odd):
        row, column = odd[0]
        raise DataError(
            f"{source}: y of shape {labels.shape} should hold 1 for each label that a sample has and 0 for each that it has "
            f"not, got {labels[row, column]:g} in row {row}, column {column}; where each sample has one class, save its number "
            f"({len(labels)} of them), and where it has several numbers to predict, audit one at a time"
        )


def check_labels(y: NDArray[Any], other: NDArray[Any]) -> None:
    """Refuse a reference part whose samples have another number of labels than the test part's.

    Raises
    ------
    DataError
        One has labels of shape (n,) and the other of (n, labels), or another number of them.
    """
    if y.shape[1:] != other.shape[1:]:
        raise DataError(
            f"the reference part should have labels like the test part, {_kind_of(y)}, got {_kind_of(other)}: save both in the "
            "same way"
        )


def _kind_of(y: NDArray[Any]) -> str:
    return f"0 or 1 for each of {y.shape[1]} labels" if y.ndim == 2 else "one a sample"


def _anomalies(anomalies: Dataset | ArrayLike | Tensor, test: Part, source: str) -> Part:
    part = anomalies.test if isinstance(anomalies, Dataset) else None
    if part is None:
        x = as_array(anomalies)  # type: ignore[arg-type]
        part = make_part(x, np.zeros(len(x), dtype=np.int64), {}, f"{source} (anomalies)")
    if part.x.shape[1:] != test.x.shape[1:]:
        raise DataError(f"anomalies should have samples of shape {test.x.shape[1:]} like the data, got {part.x.shape[1:]}")
    check_units(test.x, part.x, "the anomalies")
    return Part(part.x, np.zeros(len(part), dtype=np.int64), part.ids)


def check_units(x: NDArray[Any], other: NDArray[Any], what: str) -> None:
    """Refuse parts in other units: what tells bytes from fractions would be taken for what tells samples apart.

    Raises
    ------
    DataError
        One holds whole numbers as bytes do, the other fractions from 0 to 1.
    """
    held, got = _units(x), _units(other)
    if held is not None and got is not None and held != got:
        said = {"bytes": "whole numbers from 0 to 255, as bytes are", "fractions": "fractions from 0 to 1"}
        raise DataError(
            f"the data holds {said[held]}, but {what} {said[got]}: save both in the units that the network takes, "
            "or let --preprocess bring them there"
        )


def _units(x: NDArray[Any]) -> Literal["bytes", "fractions"] | None:
    """Tell bytes from fractions, where the values leave no doubt."""
    low, high = float(x.min()), float(x.max())
    if low < 0 or high > 255 or x.dtype.kind == "b":
        return None
    some = x[:: max(1, len(x) // 256)]
    whole = x.dtype.kind in "ui" or bool((some == np.round(some)).all())
    if high <= 1:
        return None if whole else "fractions"
    # A table of small counts holds whole numbers, too: there only the type says that they are bytes.
    return "bytes" if whole and (x.dtype == np.uint8 or x.ndim > 2) else None


def as_groups(values: Iterable[Any], name: str, source: str) -> NDArray[np.str_]:
    """Return a sensitive attribute as an array of text.

    Raises
    ------
    DataError
        One value is so long that the array, in which all take as much room as the longest, would fill the memory.
    """
    texts = [_group(value) for value in values]
    longest = max(map(len, texts), default=0)
    if longest > LONGEST_GROUP:
        raise DataError(
            f"{source}: sensitive attribute {name!r} holds a value of {longest:,} characters; a group's name should have at "
            f"most {LONGEST_GROUP:,}: is it the right column?"
        )
    return np.asarray(texts, dtype=np.str_)


def _group(value: Any) -> str:
    # A missing attribute is a group of its own: dropping the rows would hide whoever did not answer.
    missing = value is None or (isinstance(value, float | np.floating) and np.isnan(value))
    return "(missing)" if missing else str(value)


def concatenate(batches: Sequence[tuple[Any, Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Join (x, y) batches of arrays or tensors."""
    if not batches:
        raise DataError("the loader gave no batch: nothing to audit")
    return (
        np.concatenate([as_array(x) for x, _ in batches]),
        np.concatenate([_one_row_each(as_array(y)) for _, y in batches]),
    )


def _one_row_each(y: NDArray[Any]) -> NDArray[Any]:
    return y if y.ndim == 2 and y.shape[1] > 1 else y.reshape(-1)


Preprocess = Callable[[Any], ArrayLike]


@dataclass(frozen=True)
class Reading:
    """How rows become inputs, labels and groups: what the user stated, the same for all parts.

    `marks` is the column of a table that is 1 for anomalies, and no input.
    """

    target: str | None = None
    inputs: tuple[str, ...] = ()
    sensitive: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    preprocess: Preprocess | None = None
    marks: str | None = None


def preprocessed(function: Preprocess, raw: Any, n: int) -> NDArray[np.float64]:
    """Apply the user's preprocessing to raw rows and check what comes back."""
    try:
        x = function(raw)
    except (Exception, SystemExit) as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0][:300]
        raise DataError(f"--preprocess failed on the data: {type(error).__name__}: {reason}") from error
    array = as_array(x)
    if array.ndim < 2 or len(array) != n or array.dtype.kind not in "fiub":
        raise DataError(f"--preprocess should return numbers of shape ({n}, …), got {array.dtype} of shape {array.shape}")
    return array.astype(np.float32) if array.dtype.kind != "f" else array


def replace_bounds(data: Dataset, bounds: tuple[ArrayLike, ArrayLike]) -> Dataset:
    """Return the same data with these bounds."""
    return data._with(bounds=_check_bounds(bounds, data.test.x))


def as_array(values: ArrayLike | Tensor) -> NDArray[Any]:
    """Return values as a NumPy array in this machine's byte order.

    Raises
    ------
    DataError
        Rows have different shapes.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    to_numpy = getattr(values, "to_numpy", None)
    try:
        array = np.asarray(to_numpy() if to_numpy is not None else values)
    except ValueError as error:
        raise DataError(f"expected an array, all rows of one shape, got something else ({error})") from None
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _check_numbers(array: NDArray[Any], what: str) -> None:
    if array.dtype.kind not in "fiub":
        raise DataError(
            f"{what} should be numbers, got {array.dtype}; encode it as the network saw it (--preprocess, --classes)"
        )
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        raise DataError(f"{what} has type {array.dtype}, which torch does not know; save it as float64 or float32")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int((~np.isfinite(array.reshape(len(array), -1)).all(axis=1)).sum())
        raise DataError(
            f"{what} holds NaN or infinity in {bad} of {len(array)} rows; impute as in training (--preprocess) or drop them"
        )


def _check_bounds(bounds: tuple[ArrayLike, ArrayLike], x: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    low, high = (np.asarray(side, dtype=np.float64) for side in bounds)
    try:
        fits = np.broadcast_shapes(low.shape, high.shape, x.shape[1:]) == x.shape[1:]
    except ValueError:
        fits = False
    if not fits:
        raise UsageError(f"bounds of shapes {low.shape} and {high.shape} do not fit samples of shape {x.shape[1:]}")
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low <= high).all() and (low < high).any()):
        raise UsageError(f"bounds should be two finite numbers, the lower one first, got {low.tolist()} and {high.tolist()}")
    if max(np.abs(low).max(), np.abs(high).max()) > WIDEST:
        raise UsageError(
            f"bounds should lie between {-WIDEST:g} and {WIDEST:g}, got {float(low.min()):g} to {float(high.max()):g}: "
            "give the lowest and highest value that an input can have"
        )
    # Radii are fractions of the box: one that the data does not lie in means a radius in other units than the data's.
    slack = 1e-6 * (high - low)
    if x.min() >= np.max(low - slack) and x.max() <= np.min(high + slack):
        return low, high
    outside = ((x < low - slack) | (x > high + slack)).reshape(len(x), -1).any(axis=1)
    if outside.any():
        raise UsageError(
            f"the bounds should hold every input, but {int(outside.sum())} of {len(x)} samples reach outside "
            f"{float(low.min()):g} to {float(high.max()):g}: inputs lie between {float(x.min()):g} and {float(x.max()):g}; "
            "give the bounds in the units of the data, before --mean and --std"
        )
    return low, high


def _stratified(part: Part, n: int, generator: np.random.Generator) -> NDArray[np.int64]:
    rows = len(part)
    codes, classes = _classes(part.y)
    groups = [np.unique(values, return_inverse=True)[1] for _, values in sorted(part.sensitive.items())]
    keys = [codes, *groups]
    if classes > n:
        keys = [*groups, codes]
    elif classes == 0:
        tenths = np.argsort(np.argsort(_ordered(part.y), kind="stable"), kind="stable") * TENTHS // rows
        keys = [*groups, tenths]
    order = np.lexsort((generator.permutation(rows), *reversed(keys)))
    # Whole numbers: among the `rows` possible starts exactly n draw each row.
    points = (int(generator.integers(rows)) + rows * np.arange(n, dtype=np.int64)) // n
    return np.sort(order[points]).astype(np.int64)


def _classes(y: NDArray[Any]) -> tuple[NDArray[np.int64], int]:
    """Return a number for each sample's class, and how many classes there are; 0 of them where labels are no whole numbers.

    Each set of labels that occurs counts as a class.
    """
    if y.dtype.kind == "f":
        return np.zeros(len(y), dtype=np.int64), 0
    names, codes = np.unique(y, return_inverse=True, axis=0)
    return codes.reshape(-1).astype(np.int64), len(names)


def _ordered(y: NDArray[Any]) -> NDArray[Any]:
    """Return a number by which samples are put in order: their label, or how many labels they have."""
    return y if y.ndim == 1 else y.sum(axis=1)


def _missed(y: NDArray[Any], drawn: NDArray[Any]) -> list[str]:
    """Say which classes are missing from a draw, where labels are classes rather than numbers."""
    if y.dtype.kind == "f":
        return []
    if y.ndim == 2:
        return _missed_labels(y, drawn)
    names, counts = np.unique(y, return_counts=True)
    missed = ~np.isin(names, drawn)
    if not missed.any() or len(names) > len(drawn):
        return []
    few = ", ".join(str(name) for name in names[missed][:5]) + (", …" if missed.sum() > 5 else "")
    size = int(np.ceil(len(y) / counts[missed].min()))
    return [f"the {len(drawn):,} samples drawn hold none of class {few}: {size:,} or more hold one of each"]


def _missed_labels(y: NDArray[Any], drawn: NDArray[Any]) -> list[str]:
    """Say which labels no sample of a draw has."""
    counts = y.sum(axis=0)
    missed = np.flatnonzero((counts > 0) & (drawn.sum(axis=0) == 0))
    if not len(missed):
        return []
    few = ", ".join(str(label) for label in missed[:5]) + (", …" if len(missed) > 5 else "")
    return [f"of the {len(drawn):,} samples drawn none has label {few}, counted from 0: draw more"]
