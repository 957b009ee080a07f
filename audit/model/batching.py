"""Runs a function over samples in batches, and halves the batch when memory runs out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from audit.errors import UsageError


class BatchSize:
    """A batch size that several callers share; it only ever shrinks, and never below 1."""

    def __init__(self, start: int = 256) -> None:
        if start < 1:
            raise UsageError(f"batch_size must be at least 1, got {start}")
        self.current = start

    def halve(self, tried: int) -> None:
        """Set to half of the batch that did not fit, at least to 1."""
        self.current = max(1, min(self.current, tried) // 2)


def in_batches(
    function: Callable[..., tuple[Tensor, ...]], tensors: tuple[Tensor, ...], batch_size: BatchSize
) -> tuple[Tensor, ...]:
    """Call `function` on slices of `tensors` along dimension 0 and concatenate what it returns.

    When memory runs out, the batch size is halved and the same slice is tried again; with one sample a batch the error is
    the caller's.
    """
    total = len(tensors[0])
    parts: list[tuple[Tensor, ...]] = []
    start = 0
    while start < total or not parts:
        stop = min(total, start + batch_size.current)
        try:
            parts.append(function(*(tensor[start:stop] for tensor in tensors)))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or stop - start <= 1:
                raise
            batch_size.halve(stop - start)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        start = stop
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether `error` says that the memory of the device or of the host ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
