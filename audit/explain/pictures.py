"""Explanations that a person can look at: heat maps over images and sequences, signed bars for the rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audit import figures
from audit.data.base import Dataset
from audit.explain.base import Floats
from audit.result import Figure

MOST_PANELS = 7
MOST_BARS = 10


@dataclass(frozen=True)
class Told:
    """What one method says of one sample."""

    method: str
    values: Floats
    believed: bool = True
    signed: bool = True


@dataclass(frozen=True)
class Explained:
    """One sample with what the methods say of it; `values` of each are like `x`."""

    id: int
    x: NDArray[Any]
    caption: str
    told: Sequence[Told]


def can_be_drawn(shape: tuple[int, ...]) -> bool:
    """Tell whether samples of this shape can be shown as a picture: images of 1 or 3 channels, and sequences of numbers."""
    return len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))


def value_range(data: Dataset) -> tuple[float, float]:
    """Return the lowest and the highest value that a picture of these data can have: of images the box, else what there is."""
    if data.kind == "image":
        low, high = data.box()
        return float(np.min(low)), float(np.max(high))
    low_seen, high_seen = float(data.test.x.min()), float(data.test.x.max())
    return low_seen, high_seen if high_seen > low_seen else low_seen + 1.0


def heat_maps(figure_id: str, title: str, samples: Sequence[Explained], low: float, high: float) -> Figure:
    """Show each sample with a heat map of each method beside it."""
    methods = [told.method + ("" if told.believed else " (do not believe)") for told in samples[0].told][: MOST_PANELS - 1]
    items = []
    for sample in samples:
        picture = figures.unit(sample.x[None] if sample.x.ndim == 2 else sample.x, low, high).clip(0, 1)
        maps = [figures.heat_map(picture, np.nan_to_num(told.values)) for told in sample.told[: len(methods)]]
        items.append(figures.Item(sample.id, (picture, *maps), sample.caption))
    return figures.gallery(figure_id, title, ["input", *methods], items)


def signed_bars(figure_id: str, title: str, sample: Explained, told: Told, columns: Sequence[str], unit: str) -> Figure:
    """Show what the columns of one row add to the answer, the largest first."""
    order = np.argsort(-np.abs(told.values), kind="stable")[:MOST_BARS]
    data: dict[str, Any] = {
        "labels": [f"{columns[j]} = {sample.x[j]:.4g}" for j in order],
        "values": [float(told.values[j]) for j in order],
        "xlabel": f"adds to the {unit}" if told.signed else f"moves the {unit} by, up or down",
        "ylabel": "column",
        "signed": told.signed,
    }
    return Figure(id=figure_id, kind="bars", title=title, data=data)
