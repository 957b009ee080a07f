"""Puts explanations to the test: they change when the network's weights do, and stay when only the draws do.

Source: the model parameter randomisation test of Adebayo et al. (2018), NeurIPS, section 3, with the weights of each tensor
shuffled, so that their distribution stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from audit.data.base import Kind
from audit.explain.base import Floats, by_segment, segments
from audit.model.wrapper import Model


@contextmanager
def shuffled_weights(model: Model, seed: int) -> Iterator[None]:
    """Shuffle each parameter of the network within itself, and put all back after, bit for bit."""
    with model.session(), torch.no_grad():
        kept = [(parameter, parameter.detach().clone()) for parameter in model.module.parameters()]
        try:
            for index, (parameter, values) in enumerate(kept):
                generator = torch.Generator().manual_seed((seed << 20) + index)
                order = torch.randperm(values.numel(), generator=generator).to(values.device)
                parameter.copy_(values.reshape(-1)[order].reshape(values.shape))
            yield
        finally:
            for parameter, values in kept:
                parameter.copy_(values)


def can_shuffle(model: Model) -> bool:
    """Tell whether there is any weight to shuffle."""
    return any(bool((p != p.reshape(-1)[0]).any()) for p in model.module.parameters() if p.numel() > 1)


def rank_agreement(a: Floats, b: Floats, kind: Kind) -> Floats:
    """Return Spearman's rank correlation of two attributions of each sample, shape (n,); NaN where one is all equal.

    Pixels are compared over all channels together.
    """
    unit = segments(tuple(a.shape[1:]), kind)
    first, second = by_segment(np.asarray(a, dtype=np.float64), unit), by_segment(np.asarray(b, dtype=np.float64), unit)
    out = np.full(len(first), np.nan)
    for row, (x, y) in enumerate(zip(first, second, strict=True)):
        if np.isfinite(x).all() and np.isfinite(y).all() and np.ptp(x) > 0 and np.ptp(y) > 0:
            out[row] = round(
                float(np.corrcoef(scipy_stats.rankdata(x), scipy_stats.rankdata(y))[0, 1]), 9
            )  # 1, not 0.9999999999
    return out


def left_over(gap: NDArray[np.floating], change: NDArray[np.floating]) -> float | None:
    """Return the share of the output's change that the values leave over: mean gap / mean |change|; None without change."""
    whole = float(np.abs(change).mean()) if len(change) else 0.0
    return float(gap.mean()) / whole if np.isfinite(whole) and whole > 0 and np.isfinite(gap).all() else None
