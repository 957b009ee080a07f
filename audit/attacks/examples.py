"""Adversarial examples that a person can look at: images side by side, or the columns of a row that moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audit import figures
from audit.result import Figure


@dataclass(frozen=True)
class Example:
    """One adversarial example: sample id, clean and changed input, and a caption that says what came of it."""

    id: int
    clean: NDArray[Any]
    changed: NDArray[Any]
    caption: str


def gallery(figure_id: str, title: str, examples: Sequence[Example], low: float, high: float) -> Figure:
    """Show images of 1 or 3 channels: clean, adversarial, and the difference around middle grey, enlarged alike in all."""
    pairs = [(figures.unit(one.clean, low, high), figures.unit(one.changed, low, high)) for one in examples]
    times = figures.enlargement([changed - clean for clean, changed in pairs])
    items = [
        figures.Item(one.id, (clean, changed, figures.difference(clean, changed, times)), one.caption)
        for one, (clean, changed) in zip(examples, pairs, strict=True)
    ]
    return figures.gallery(figure_id, title, ["clean", "adversarial", f"difference × {times}"], items)


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
