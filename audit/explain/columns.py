"""Asks a table's network about one column at a time: shuffled, flipped, moved along its range, and as the only thing known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.explain.base import Floats
from audit.model.batching import in_batches
from audit.model.wrapper import Model

LEAVES = 16  # of the tree that sees one column: room for a threshold, a band, and a code of a dozen values
FOLDS = 5
FEWEST_ROWS = 60  # with 30 rows of iris or breast cancer, one draw in 25 has an honest column that tells all by luck
GRID = 20  # values of a column that curves go through
LEAK, NEXT_BEST = 0.97, 0.15  # see suspects


def losses(model: Model, x: Tensor, y: Tensor) -> Floats:
    """Return 1 for each wrong answer and 0 for each right one; for regression the absolute error; shape (n,)."""
    if model.task == "regression":
        return np.asarray(np.abs(outputs(model, x) - y.double().cpu().numpy()), dtype=np.float64)
    return (model.predict(x) != y.to(model.device)).double().cpu().numpy()


def outputs(model: Model, x: Tensor, target: int = 0) -> Floats:
    """Return the probability of class `target`, or the value of a regression network, shape (n,)."""

    def forward(batch: Tensor) -> tuple[Tensor, ...]:
        return (model.values(batch) if model.task == "regression" else model.logits(batch).softmax(dim=1)[:, target],)

    with model.session(), torch.no_grad():
        (out,) = in_batches(forward, (x,), model.batch_size)
    return out.double().cpu().numpy()


def permutation_rise(model: Model, x: Tensor, y: Tensor, groups: Sequence[Sequence[int]], *, repeats: int, seed: int) -> Floats:
    """Return how much each sample's loss rises when a group of columns is shuffled among the samples, (groups, n).

    Each is the mean over `repeats` shuffles; the columns of a group go together.

    Source: Breiman (2001), Machine Learning 45:5, section 10; Fisher, Rudin & Dominici (2019), JMLR 20:177.
    """
    clean = losses(model, x, y)
    rises = np.zeros((len(groups), len(x)))
    for index, columns in enumerate(groups):
        for repeat in range(repeats):
            order = np.random.default_rng([seed, *columns, repeat]).permutation(len(x))
            shuffled = x.clone()
            shuffled[:, list(columns)] = x[torch.from_numpy(order).to(x.device)][:, list(columns)]
            rises[index] += (losses(model, shuffled, y) - clean) / repeats
    return rises


def binary_columns(parts: Sequence[NDArray[Any]]) -> dict[int, tuple[float, float]]:
    """Return the columns that hold exactly two values over all parts, with the values."""
    found = {}
    for column in range(parts[0].shape[1]):
        values = np.unique(np.concatenate([np.unique(part[:, column]) for part in parts]))
        if len(values) == 2:
            found[column] = (float(values[0]), float(values[1]))
    return found


def flipped(model: Model, x: Tensor, columns: dict[int, tuple[float, float]]) -> NDArray[np.bool_]:
    """Tell which decisions change when one binary column alone takes its other value, shape (n, columns)."""
    before = model.predict(x)
    out = np.zeros((len(x), len(columns)), dtype=np.bool_)
    for index, (column, (low, high)) in enumerate(columns.items()):
        other = x.clone()
        # Not by equality: a value of a float64 network's input need not be the float32 that `columns` names.
        other[:, column] = torch.where(x[:, column] < (low + high) / 2, high, low)
        out[:, index] = (model.predict(other) != before).cpu().numpy()
    return out


def dependence(model: Model, x: Tensor, column: int, grid: Floats, target: int) -> Floats:
    """Return the output of each sample with one column set to each value of the grid, shape (n, len(grid)).

    Its rows are the ICE curves of Goldstein et al. (2015), their mean the partial dependence of Friedman (2001).
    """
    answers = []
    for value in grid:
        moved = x.clone()
        moved[:, column] = float(value)
        answers.append(outputs(model, moved, target))
    return np.stack(answers, axis=1)


def grid_of(values: Floats) -> Floats:
    """Return the values of a column that curves go through: all of a few, else quantiles."""
    distinct = np.unique(values)
    if len(distinct) <= GRID:
        return distinct
    return np.unique(np.quantile(values, np.linspace(0.02, 0.98, GRID)))


def alone(x: NDArray[Any], y: NDArray[Any], *, regression: bool, seed: int) -> Floats:
    """Return how well a small tree tells the label from each column alone, shape (columns,).

    Balanced accuracy, brought to 0 for guessing and 1 for certain; for regression R². Cross-validated; NaN where there
    are too few samples, in all or of each class.
    """
    from sklearn.metrics import balanced_accuracy_score, r2_score
    from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    scores = np.full(x.shape[1], np.nan)
    if regression:
        if len(y) < 4 * FOLDS or np.ptp(y) == 0:
            return scores
        tree, folds, score = DecisionTreeRegressor, KFold, r2_score
    else:
        kept = np.isin(y, [c for c in np.unique(y) if (y == c).sum() >= FOLDS])
        x, y = x[kept], y[kept]
        if len(np.unique(y)) < 2 or len(y) < FEWEST_ROWS:
            return scores
        tree, folds, score = DecisionTreeClassifier, StratifiedKFold, balanced_accuracy_score
    options = {} if regression else {"class_weight": "balanced"}
    leaves = 8 * LEAVES if regression else max(LEAVES, 2 * len(np.unique(y)))
    for column in range(x.shape[1]):
        predicted = cross_val_predict(
            tree(max_leaf_nodes=leaves, random_state=seed, **options),
            x[:, [column]],
            y,
            cv=folds(FOLDS, shuffle=True, random_state=seed),
        )
        scores[column] = score(y, predicted, **({} if regression else {"adjusted": True}))
    return scores


def suspects(alone: Floats, x: NDArray[Any]) -> list[int]:
    """Return the columns of `x` that each tell the label nearly by themselves while all others are far from it.

    A single column as good as the answer is suspicious where the rest of the table cannot come near: data in which many
    columns are that good are merely easy. Columns that say the same, as the halves of a one-hot code do, count as one.
    """
    known = np.isfinite(alone)
    strong = np.flatnonzero(known & (np.nan_to_num(alone, nan=-1.0) >= LEAK))
    rest = alone[known & ~np.isin(np.arange(len(alone)), strong)]
    few = 0 < len({_partition(x[:, j]) for j in strong}) <= max(1, len(alone) // 4)
    return strong.tolist() if few and len(rest) and float(rest.max()) <= LEAK - NEXT_BEST else []


def _partition(column: NDArray[Any]) -> bytes:
    """Return which rows have equal values, whatever these are."""
    _, first, code = np.unique(column, return_index=True, return_inverse=True)
    return bytes(np.argsort(np.argsort(first))[code].astype(np.int64).tobytes())
