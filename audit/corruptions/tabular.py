"""What happens to tables on their way: noisy columns, missing values filled in, wrong units, exchanged columns.

Noise and imputation stay in each column's range, and noise on a whole-number column gives whole numbers. Shifts, wrong units
and exchanged columns leave a range by nature: only limits that the user stated hold them back.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from audit.corruptions.base import Corruption, Draws, Kind
from audit.errors import UsageError

NEIGHBOURS = 5
MOST_ROWS = 2000  # in which neighbours are looked for
MOST_VALUES = 20_000_000  # of which means and medians are taken: of more, a random draw of rows
MODES_UP_TO = 50  # distinct values of a whole-number column that is taken for codes or counts


@dataclass(frozen=True)
class Columns:
    """What is known of the columns from rows without gaps: what noise is scaled by, and what gaps are filled from.

    Attributes
    ----------
    mean, std, median, frequent
        Of each column, shape (columns,). `frequent` is the most frequent value of a whole-number column with at most 50
        distinct values, the median of any other.
    whole
        Which columns hold whole numbers only.
    low, high
        Range of each column.
    stated
        Whether the user stated that range: then nothing may leave it.
    rows
        At most 2,000 rows to find neighbours in, shape (rows, columns).
    own_ids
        Ids of `rows` where they are test samples, which must not be their own neighbours; None where they are others.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    median: NDArray[np.float64]
    frequent: NDArray[np.float64]
    whole: NDArray[np.bool_]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    stated: bool
    rows: NDArray[np.float64]
    own_ids: NDArray[np.int64] | None = None

    @classmethod
    def fit(
        cls,
        x: ArrayLike,
        *,
        low: ArrayLike | None = None,
        high: ArrayLike | None = None,
        own_ids: NDArray[np.int64] | None = None,
        seed: int = 0,
    ) -> Columns:
        """Look at rows of shape (n, …), flattened to columns.

        Parameters
        ----------
        low, high
            The range that the user stated, broadcastable to one row; the range of `x` where None.
        own_ids
            Ids of the rows, where they are the very samples that will be corrupted.
        """
        given = np.asarray(x)
        shape = given.shape[1:]
        generator = np.random.default_rng(seed)
        most = max(MOST_ROWS, MOST_VALUES // max(1, int(np.prod(shape))))
        if len(given) > most:
            drawn = np.sort(generator.permutation(len(given))[:most])
            given, own_ids = given[drawn], None if own_ids is None else own_ids[drawn]
        rows = given.reshape(len(given), -1).astype(np.float64)
        whole = np.asarray((rows == np.round(rows)).all(axis=0), dtype=np.bool_)
        median = np.median(rows, axis=0)
        some = np.sort(generator.permutation(len(rows))[:MOST_ROWS])
        return cls(
            mean=rows.mean(axis=0),
            std=rows.std(axis=0),
            median=median,
            frequent=np.asarray([_frequent(column, m) for column, m in zip(rows.T, median, strict=True)]),
            whole=whole,
            low=rows.min(axis=0) if low is None else _flat(low, shape),
            high=rows.max(axis=0) if high is None else _flat(high, shape),
            stated=low is not None and high is not None,
            rows=rows[some],
            own_ids=None if own_ids is None else own_ids[some],
        )

    def __len__(self) -> int:
        return len(self.mean)


class ColumnCorruption(Corruption):
    """Base of the corruptions of tables, and of arrays whose values are taken for columns."""

    kind: ClassVar[Kind] = "columns"
    family = "tabular"

    @abstractmethod
    def run(self, x: Tensor, strength: float, columns: Columns, draws: Draws) -> Tensor:
        """Return rows of shape (n, columns), corrupted."""

    def left_out(self, columns: int) -> str | None:  # noqa: ARG002
        """Return why rows of this many columns cannot be corrupted so, or None."""
        return None

    def __call__(self, x: Tensor, severity: int, *, columns: Columns, draws: Draws) -> Tensor:
        """Return a corrupted copy of rows of shape (n, …), at a severity of 0 (unchanged) to 5.

        Raises
        ------
        UsageError
            No such severity, or rows with another number of columns than was looked at.
        """
        flat = x.reshape(len(x), -1)
        if flat.shape[1] != len(columns):
            raise UsageError(f"{self.name}: expected rows of {len(columns)} columns, got {flat.shape[1]}")
        reason = self.left_out(flat.shape[1])
        if reason is not None:
            raise UsageError(f"{self.name}: {reason}")
        if severity == 0:
            return x.clone()
        changed = self.run(flat, self.strength(severity), columns, draws)
        if columns.stated:
            changed = torch.minimum(torch.maximum(changed, _on(columns.low, x)), _on(columns.high, x))
        return changed.reshape(x.shape)


class ColumnNoise(ColumnCorruption):
    """Normal noise in every column, in its own units, cut off at the column's range.

    A whole-number column is rounded up or down at random, in proportion: so that small noise moves a few rows of a column of
    codes or of 0 and 1, which rounding to the nearest would leave as they are. For codes that is a neighbouring code.
    """

    name, title = "column_noise", "noise in all columns"
    strengths = (0.1, 0.2, 0.4, 0.7, 1.0)
    unit = "standard deviations of the column"

    def run(self, x: Tensor, strength: float, columns: Columns, draws: Draws) -> Tensor:
        """Add it."""
        noisy = x + strength * _on(columns.std, x) * draws.normal((x.shape[1],))
        rounded = (noisy + draws.uniform((x.shape[1],), draw=1)).floor()
        noisy = torch.where(_on(columns.whole & (columns.std > 0), x) > 0, rounded, noisy)
        # What was outside the known range before may stay there: it is no noise.
        low, high = torch.minimum(_on(columns.low, x), x), torch.maximum(_on(columns.high, x), x)
        return torch.minimum(torch.maximum(noisy, low), high)


class Missing(ColumnCorruption):
    """Values missing completely at random, filled in one of several ways; the same values are missing in each.

    What is filled in is not rounded: a pipeline's imputer does not do so either.
    """

    strengths = (0.05, 0.1, 0.2, 0.3, 0.5)
    unit = "share of the values that are missing"
    group = "missing"

    def run(self, x: Tensor, strength: float, columns: Columns, draws: Draws) -> Tensor:
        """Drop values and fill them in."""
        gone = draws.uniform((x.shape[1],)) < strength
        return torch.where(gone, self.fill(x, gone, columns, draws), x)

    @abstractmethod
    def fill(self, x: Tensor, gone: Tensor, columns: Columns, draws: Draws) -> Tensor:
        """Return values, broadcastable to `x`, for where `gone` is true; `x` must not be looked at there."""


class MissingMean(Missing):
    """The column's mean."""

    name, title = "missing_mean", "missing: mean"

    def fill(self, x: Tensor, gone: Tensor, columns: Columns, draws: Draws) -> Tensor:  # noqa: ARG002
        """Fill in the mean."""
        return _on(columns.mean, x)


class MissingMedian(Missing):
    """The column's median."""

    name, title = "missing_median", "missing: median"

    def fill(self, x: Tensor, gone: Tensor, columns: Columns, draws: Draws) -> Tensor:  # noqa: ARG002
        """Fill in the median."""
        return _on(columns.median, x)


class MissingFrequent(Missing):
    """The most frequent value of a column of codes or counts; the median of any other."""

    name, title = "missing_frequent", "missing: most frequent"

    def fill(self, x: Tensor, gone: Tensor, columns: Columns, draws: Draws) -> Tensor:  # noqa: ARG002
        """Fill in the most frequent value."""
        return _on(columns.frequent, x)


class MissingNeighbours(Missing):
    """The mean of the five nearest rows, by the columns that are there, in standard deviations.

    As scikit-learn's KNNImputer does on standardised columns with uniform weights, where the rows that it is fitted on have
    no gaps.

    Source: Troyanskaya et al. (2001), Bioinformatics 17:520.
    """

    name, title = "missing_knn", "missing: nearest rows"

    def fill(self, x: Tensor, gone: Tensor, columns: Columns, draws: Draws) -> Tensor:
        """Fill in the neighbours' mean."""
        std = np.where(columns.std > 0, columns.std, 1.0)
        rows = torch.as_tensor((columns.rows - columns.mean) / std, device=x.device)
        here = (~gone).double()
        own = ((x.double() - _on(columns.mean, x).double()) / torch.as_tensor(std, device=x.device)) * here
        # Squared distance over what is there: Σ m·x² − 2·Σ m·x·r + Σ m·r². Its scaling by how much is there does not
        # change the order of the neighbours of one row.
        apart = (own**2).sum(dim=1, keepdim=True) - 2 * own @ rows.T + here @ (rows**2).T
        if columns.own_ids is not None:
            itself = draws.ids.to(x.device)[:, None] == torch.as_tensor(columns.own_ids, device=x.device)[None]
            apart = apart.masked_fill(itself, torch.inf)
        k = min(NEIGHBOURS, len(rows) - (columns.own_ids is not None))
        if k < 1:
            return _on(columns.mean, x)
        nearest = apart.topk(k, dim=1, largest=False).indices
        values = torch.as_tensor(columns.rows, device=x.device)[nearest].mean(dim=1).to(x.dtype)
        return torch.where(gone.all(dim=1, keepdim=True), _on(columns.mean, x), values)


class ShiftedColumns(ColumnCorruption):
    """A sensor off its zero: a random quarter of the columns, at least one, is moved up or down, whole numbers by fractions."""

    name, title = "shifted_columns", "shifted columns"
    strengths = (0.5, 1.0, 2.0, 3.0, 5.0)
    unit = "standard deviations of the column"

    def run(self, x: Tensor, strength: float, columns: Columns, draws: Draws) -> Tensor:
        """Move some columns of each row; which, and which way, is drawn for each row."""
        width = x.shape[1]
        chosen = draws.uniform((width,)).argsort(dim=1).argsort(dim=1) < max(1, width // 4)
        side = torch.where(draws.uniform((width,), draw=1) < 0.5, -1.0, 1.0).to(x)
        moved = x + strength * _on(columns.std, x) * side
        return torch.where(chosen, moved, x)


class WrongUnit(ColumnCorruption):
    """One column of each row, drawn at random, arrives in another unit: multiplied, as metres sent as millimetres."""

    name, title = "wrong_unit", "one column in a wrong unit"
    fault = True
    strengths = (1.5, 2.54, 10.0, 100.0, 1000.0)
    unit = "factor"

    def run(self, x: Tensor, strength: float, columns: Columns, draws: Draws) -> Tensor:  # noqa: ARG002
        """Multiply a column."""
        chosen = draws.uniform((x.shape[1],)).argsort(dim=1).argsort(dim=1) < 1
        return torch.where(chosen, strength * x, x)


class SwappedColumns(ColumnCorruption):
    """Pairs of columns are exchanged, as by a pipeline in which they stand in another order."""

    name, title = "swapped_columns", "swapped columns"
    fault = True
    strengths = (1, 2, 3, 4, 5)
    unit = "pairs of columns"

    def left_out(self, columns: int) -> str | None:
        """Exchange needs two."""
        return None if columns > 1 else "there is one column, so nothing could be exchanged"

    def run(self, x: Tensor, strength: float, columns: Columns, draws: Draws) -> Tensor:  # noqa: ARG002
        """Exchange the first with the second, the third with the fourth … of each row's own random order."""
        pairs = min(int(strength), x.shape[1] // 2)
        order = draws.uniform((x.shape[1],)).argsort(dim=1)
        first, second = order[:, 0 : 2 * pairs : 2], order[:, 1 : 2 * pairs : 2]
        exchanged = x.clone()
        exchanged.scatter_(1, first, x.gather(1, second))
        return exchanged.scatter_(1, second, x.gather(1, first))


def _frequent(column: NDArray[np.float64], median: float) -> float:
    values, counts = np.unique(column, return_counts=True)
    if len(values) > MODES_UP_TO or (column != np.round(column)).any():
        return median
    return float(values[counts.argmax()])


def _flat(side: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return np.broadcast_to(np.asarray(side, dtype=np.float64), shape).reshape(-1).copy()


def _on(values: NDArray[np.floating] | NDArray[np.bool_], like: Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=like.dtype, device=like.device)


FAMILY: tuple[type[Corruption], ...] = (
    ColumnNoise,
    MissingMean,
    MissingMedian,
    MissingFrequent,
    MissingNeighbours,
    ShiftedColumns,
    WrongUnit,
    SwappedColumns,
)
