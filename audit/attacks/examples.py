"""Adversarial examples that a person can look at: images side by side, or the columns of a row that moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audit import figures
from audit.result import Figure

PANELS = ["clean", "adversarial", "difference × 10"]


@dataclass(frozen=True)
class Example:
    """One adversarial example: sample id, clean and changed input, and a caption that says what came of it."""

    id: int
    clean: NDArray[Any]
    changed: NDArray[Any]
    caption: str


def gallery(figure_id: str, title: str, examples: Sequence[Example], low: float, high: float) -> Figure:
    """Show images of 1 or 3 channels: clean, adversarial, and the difference times ten around middle grey."""
    items = []
    for example in examples:
        clean, changed = figures.unit(example.clean, low, high), figures.unit(example.changed, low, high)
        items.append(figures.Item(example.id, (clean, changed, figures.difference(clean, changed)), example.caption))
    return figures.gallery(figure_id, title, PANELS, items)


def feature_changes(
    figure_id: str, title: str, examples: Sequence[Example], columns: Sequence[str], scale: NDArray[np.float64]
) -> Figure:
    """Show rows of a table, column by column; `scale` makes changes of columns in different units comparable."""
    items: list[Any] = [
        {
            "id": example.id,
            "caption": example.caption,
            "clean": [float(v) for v in example.clean],
            "adversarial": [float(v) for v in example.changed],
        }
        for example in examples
    ]
    data: dict[str, Any] = {"columns": list(columns), "items": items, "scale": [float(s) for s in scale]}
    return Figure(id=figure_id, kind="feature_change", title=title, data=data)
