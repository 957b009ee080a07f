"""Figures that several checks build: differences enlarged alike, and by no more than the range allows."""

from __future__ import annotations

import numpy as np
import pytest

from audit import figures
from audit.attacks.examples import Example, gallery
from audit.report.figures import Gallery, read


@pytest.mark.parametrize(
    ("largest", "times"), [(0.0, 100), (0.01, 100), (8 / 255, 20), (0.1, 10), (0.3, 2), (0.5, 2), (0.6, 1), (1.0, 1)]
)
def test_differences_are_enlarged_as_far_as_they_stay_in_range(largest: float, times: int) -> None:
    changes = [np.array([0.0, largest / 3]), np.array([-largest, 0.0])]
    assert figures.enlargement(changes) == times
    shown = figures.difference(np.zeros(2), changes[1], times)
    assert shown.min() >= 0
    assert shown.max() <= 1


def test_no_difference_at_all() -> None:
    assert figures.enlargement([]) == 100


def test_the_gallery_states_the_scale_of_its_differences() -> None:
    clean = np.full((1, 4, 4), 100.0)
    figure = gallery("a.b", "t", [Example(i, clean, clean + d, "") for i, d in enumerate((51.0, 5.0))], 0.0, 255.0)
    shape = read(figure)
    assert isinstance(shape, Gallery)
    assert shape.panels == ["clean", "adversarial", "difference × 5"]
