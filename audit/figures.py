"""Builds the figures that several checks hand to the report: pictures, galleries, heat maps, histograms."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from audit.result import Figure

# Blue, white, red (ends of ColorBrewer's RdBu): told apart with every common colour blindness, and in grey by sign marks.
NEGATIVE, POSITIVE = (33, 102, 172), (178, 24, 43)
GREY_SHARE = 0.35  # of the image under a heat map, so that what is marked can be recognised


@dataclass(frozen=True)
class Item:
    """One sample of a gallery: its id, a caption, and one image a panel, each of shape (1 or 3, height, width) in [0, 1]."""

    id: int
    images: Sequence[NDArray[np.floating[Any]]]
    caption: str = ""


def gallery(figure_id: str, title: str, panels: Sequence[str], items: Sequence[Item]) -> Figure:
    """Show samples as pictures side by side, one panel a column."""
    shown: list[Any] = [
        {"id": item.id, "caption": item.caption, "images": [_picture(image) for image in item.images]} for item in items
    ]
    return Figure(id=figure_id, kind="gallery", title=title, data={"panels": list(panels), "items": shown})


def unit(image: NDArray[Any], low: float, high: float) -> NDArray[np.float64]:
    """Bring an image from the box [low, high] to [0, 1]."""
    return (image.astype(np.float64) - low) / (high - low)


def difference(clean: NDArray[np.float64], changed: NDArray[np.float64], times: float = 10.0) -> NDArray[np.float64]:
    """Return the difference of two images in [0, 1], enlarged, around middle grey."""
    return 0.5 + 0.5 * times * (changed - clean)


def enlargement(differences: Sequence[NDArray[np.floating[Any]]]) -> int:
    """Return the round number of times by which differences of images in [0, 1] are enlarged without leaving the range.

    Twice it would leave the range, or show what is too small to see; one number for all, so that pictures can be compared.
    """
    largest = max((float(np.abs(each).max(initial=0.0)) for each in differences), default=0.0)
    return next((times for times in (100, 50, 20, 10, 5, 2) if times * largest <= 1), 1)


def heat_map(image: NDArray[np.float64], relevance: NDArray[Any]) -> NDArray[np.float64]:
    """Lay signed relevance over an image: red speaks for the answer, blue against it; shape (3, height, width) in [0, 1].

    Parameters
    ----------
    image
        Shape (1 or 3, height, width), values in [0, 1].
    relevance
        Shape (height, width) or (channels, height, width), summed over channels; scaled by its 99th percentile of size, so
        that one pixel far out does not whiten the rest.
    """
    flat = np.asarray(relevance, dtype=np.float64)
    flat = flat.sum(axis=0) if flat.ndim == 3 else flat
    top = float(np.quantile(np.abs(flat), 0.99)) or float(np.abs(flat).max()) or 1.0
    strength = np.clip(np.abs(flat) / top, 0.0, 1.0)
    grey = 1 - GREY_SHARE * (1 - image.mean(axis=0))  # a light copy, on which colours show
    colour = np.where(flat[..., None] >= 0, np.asarray(POSITIVE), np.asarray(NEGATIVE)) / 255
    mixed: NDArray[np.float64] = grey[..., None] * (1 - strength[..., None]) + colour * strength[..., None]
    return np.moveaxis(mixed, -1, 0)


def histogram(
    figure_id: str,
    title: str,
    groups: Sequence[tuple[str, ArrayLike]],
    *,
    xlabel: str,
    bins: int = 40,
    threshold: float | None = None,
    threshold_label: str = "threshold",
) -> Figure:
    """Show how values of several groups are spread, as shares of each group over common bins, with a threshold marked.

    Values beyond the 99.5th percentile of all go into the last bin, so that one far out does not squeeze the rest.
    """
    values = [(name, np.asarray(given, dtype=np.float64)) for name, given in groups]
    values = [(name, given[np.isfinite(given)]) for name, given in values]
    together = np.concatenate([given for _, given in values])
    marks = together if threshold is None else np.append(together, threshold)
    low, high = (float(marks.min()), float(np.quantile(marks, 0.995))) if len(marks) else (0.0, 1.0)
    high = max(high, threshold if threshold is not None else high)
    edges = np.linspace(low, high if high > low else low + 1.0, bins + 1)
    series: list[Any] = []
    for name, given in values:
        counts = np.histogram(np.clip(given, edges[0], edges[-1]), edges)[0]
        series.append({"name": name, "share": [float(c) for c in counts / max(1, len(given))], "n": len(given)})
    data: dict[str, Any] = {
        "edges": [float(e) for e in edges],
        "series": series,
        "threshold": threshold,
        "threshold_label": threshold_label,
        "xlabel": xlabel,
        "ylabel": "share of samples",
    }
    return Figure(id=figure_id, kind="histogram", title=title, data=data)


def _picture(image: NDArray[np.floating[Any]]) -> dict[str, Any]:
    pixels = (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
    return {"shape": list(pixels.shape), "pixels": base64.b64encode(pixels.tobytes()).decode("ascii")}
