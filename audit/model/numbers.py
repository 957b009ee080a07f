"""Arrays, lists and data frames as tensors of numbers, or a plain word about what is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from audit.errors import UsageError


def as_numbers(values: Any, what: str) -> Tensor:
    """Return values as a tensor of real numbers.

    Raises
    ------
    UsageError
        They are none: text, complex numbers, objects, rows of unequal length.
    """
    if not isinstance(values, Tensor):
        try:
            array = np.asarray(values)
        except ValueError as error:
            raise UsageError(f"{what} should be an array of numbers, got {type(values).__name__}: {error}") from error
        if array.dtype.kind not in "biuf":
            raise UsageError(
                f"{what} should be numbers, got {type(values).__name__} of type {array.dtype}: encode what is text, and say "
                "values.astype(float) of what are numbers already"
            )
        # Torch warns of arrays that may not be written to, as data frames hand them out.
        return torch.as_tensor(array if array.flags.writeable else array.copy())
    if values.is_complex():
        raise UsageError(f"{what} should be real numbers, got complex ones")
    return values
