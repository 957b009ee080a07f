"""Corruptions: what a camera, a sensor or a careless data pipeline does to inputs; one file a family.

`corrupt` applies one of them by name. A family lists its classes in `FAMILY`; a new family is one more line in `CORRUPTIONS`.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from audit.corruptions import blur, digital, geometry, noise, tabular, weather
from audit.corruptions.base import SEVERITIES, Corruption, Draws, ImageCorruption
from audit.corruptions.tabular import ColumnCorruption, Columns
from audit.errors import UsageError, closest

CORRUPTIONS: dict[str, Corruption] = {
    cls.name: cls()
    for cls in (*noise.FAMILY, *blur.FAMILY, *weather.FAMILY, *digital.FAMILY, *geometry.FAMILY, *tabular.FAMILY)
}

__all__ = [
    "CORRUPTIONS",
    "SEVERITIES",
    "ColumnCorruption",
    "Columns",
    "Corruption",
    "Draws",
    "ImageCorruption",
    "corrupt",
    "get",
]

Inputs = TypeVar("Inputs", Tensor, NDArray[np.floating])


def get(name: str) -> Corruption:
    """Return the corruption with this name; a UsageError names what is close."""
    if name not in CORRUPTIONS:
        raise UsageError(f"no corruption {name!r}; {closest(name, list(CORRUPTIONS))}")
    return CORRUPTIONS[name]


def corrupt(
    x: Inputs,
    name: str,
    severity: int = 3,
    *,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    seed: int = 0,
    columns: Columns | None = None,
) -> Inputs:
    """Return a corrupted copy of some inputs, of the same kind and on the same device.

    Parameters
    ----------
    x
        Images of shape (n, c, h, w), or rows of shape (n, …) for the corruptions of tables; floating point.
    name
        One of `CORRUPTIONS`.
    severity
        0 (unchanged) to 5.
    low, high
        The box. Unstated: [0, 1] for images, the range of each column for rows.
    ids
        Stable ids of the samples: the same sample gets the same noise in any batch. Unstated: 0 … n − 1.
    columns
        For rows: what is known of the columns, from ``Columns.fit`` on the training part; unstated: from `x` itself.

    Raises
    ------
    UsageError
        No such corruption or severity, inputs of another kind, or inputs that are not floating point.
    """
    corruption = get(name)
    given = torch.as_tensor(x)
    if not given.is_floating_point():
        raise UsageError(f"inputs to corrupt should be floating point, got {given.dtype}: whole numbers cannot take the noise")
    numbers = torch.arange(len(given)) if ids is None else torch.as_tensor(ids, dtype=torch.int64).cpu()
    if len(numbers) != len(given):
        raise UsageError(f"expected one id for each of {len(given)} samples, got {len(numbers)}")
    draws = corruption.draws(given, numbers, seed)
    if isinstance(corruption, ImageCorruption):
        box = (0.0 if low is None else low, 1.0 if high is None else high)
        changed = corruption(given, severity, low=box[0], high=box[1], draws=draws)
    elif isinstance(corruption, ColumnCorruption):
        known = columns or Columns.fit(given.cpu().numpy(), low=low, high=high, own_ids=numbers.numpy(), seed=seed)
        changed = corruption(given, severity, columns=known, draws=draws)
    else:
        raise TypeError(f"{name} should be an ImageCorruption or a ColumnCorruption")
    return changed if isinstance(x, Tensor) else changed.numpy()
