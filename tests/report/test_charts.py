"""Charts: each kind draws, in colors of the style sheet, with real text, and the same each time."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.report import charts, pictures
from audit.report.figures import Bars, Curve, Matrix, Shape, data_table, read
from audit.result import Figure

DRAWN = ["bars", "forest", "matrix", "reliability", "curve", "scatter"]


def draw(figure: Figure, prefix: str = "f0") -> str:
    shape = read(figure)
    assert shape is not None
    svg = charts.draw(figure.kind, figure.title, shape, prefix)
    assert svg is not None
    return svg


@pytest.mark.parametrize("kind", DRAWN)
def test_each_kind_draws_the_same_each_time(make_figures: Any, kind: str) -> None:
    figure = make_figures()[kind]
    svg = draw(figure)
    assert svg == draw(figure)
    assert svg.startswith('<svg class="chart" role="img" aria-label="')
    ET.fromstring(svg)  # noqa: S314 - our own output


@pytest.mark.parametrize("kind", DRAWN)
def test_colors_come_from_the_style_sheet_and_nothing_reaches_beyond_the_chart(make_figures: Any, kind: str) -> None:
    svg = draw(make_figures()[kind], "f7")
    assert not re.search(r"#[0-9a-fA-F]{6}\b", svg)
    assert "var(--" in svg
    assert "<style" not in svg
    assert "font-family" not in svg
    assert all(name.startswith("f7-") for name in re.findall(r' id="([^"]+)"', svg))
    assert "http" not in svg


def test_labels_values_and_counts_are_text(make_figures: Any) -> None:
    words = re.findall(r">([^<>]+)</text>", draw(make_figures()["forest"]))
    for word in ("women 25 to 60", "0.930", "1,204", "all 0.921", "not stated", "accuracy"):
        assert word in words


def test_matrix_writes_its_counts_up_to_fifteen_classes() -> None:
    def words(classes: int) -> list[str]:
        names = [f"c{i}" for i in range(classes)]
        values = (1000 + np.arange(classes * classes)).reshape(classes, classes).tolist()
        data = {"rows": names, "columns": names, "values": values}
        return re.findall(r">([^<>]+)</text>", draw(Figure(id="a", kind="matrix", title="t", data=data)))

    assert "1,000" in words(15)
    assert "1,000" not in words(16)


def test_large_matrix_stays_small() -> None:
    names = [str(i) for i in range(100)]
    values = np.random.default_rng(0).integers(0, 50, (100, 100)).tolist()
    figure = Figure(id="a", kind="matrix", title="t", data={"rows": names, "columns": names, "values": values})
    assert len(draw(figure)) < 600_000
    table = data_table(figure, read(figure), 50)
    assert table.left_out > 9000
    assert table.rows[0][0] != table.rows[0][1]  # the largest confusion stands first, not the diagonal


def test_missing_values_leave_gaps() -> None:
    data = {"series": [{"name": "a", "x": [0, 1, 2, 3, 4], "y": [1, None, 1, 2, None]}]}
    assert "nan" not in draw(Figure(id="a", kind="curve", title="t", data=data)).lower()


def test_screen_reader_hears_the_extremes(make_figures: Any) -> None:
    figure = make_figures()["bars"]
    assert "lowest 0.440 (fog), highest 0.955 (JPEG)" in charts.describe("bars", shape(figure))


def test_nothing_is_drawn_where_nothing_is_known() -> None:
    assert charts.draw("bars", "t", Bars(labels=[], values=[]), "f") is None
    assert charts.draw("curve", "t", Curve(series=[]), "f") is None
    assert charts.draw("matrix", "t", Matrix(rows=[], columns=[], values=[]), "f") is None


values = st.lists(st.one_of(st.none(), st.floats(-1e30, 1e30)), min_size=1, max_size=5)


@settings(max_examples=20, deadline=None)
@given(values=values, labels=st.lists(st.text(max_size=12), min_size=5, max_size=5))
def test_any_values_draw_well_formed_or_not_at_all(values: list[float | None], labels: list[str]) -> None:
    data: dict[str, Any] = {"labels": labels[: len(values)], "values": values, "low": values, "high": values}
    for kind in ("bars", "forest"):
        svg = charts.draw(kind, labels[0], Bars(**data), "f")
        assert svg is None or ET.fromstring(svg) is not None  # noqa: S314 - our own output


def shape(figure: Figure) -> Shape:
    found = read(figure)
    assert found is not None
    return found


@pytest.mark.parametrize("channels", [1, 3])
def test_png_holds_the_pixels(channels: int) -> None:
    import io

    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (channels, 5, 7), dtype=np.uint8)
    read_back = np.asarray(image.open(io.BytesIO(pictures.png(pixels))))
    expected = pixels[0] if channels == 1 else pixels.transpose(1, 2, 0)
    assert np.array_equal(read_back, expected)


def test_shrinking_takes_the_mean_of_blocks() -> None:
    pixels = np.array([[[0, 100, 7], [100, 200, 7], [7, 7, 7]]], dtype=np.uint8)
    assert pictures.shrink(pixels, 2).tolist() == [[[100]]]


@pytest.mark.parametrize(
    ("shape", "pixels", "message"),
    [
        ((2, 1, 1), "AAA=", "1 or 3 channels"),
        ((1, 0, 1), "", "1 or 3 channels"),
        ((1, 2, 2), "AAAA", "has 4 bytes, got 3"),
        ((1, 1, 1), "*", "base64"),
    ],
)
def test_what_is_no_picture_is_refused(shape: tuple[int, int, int], pixels: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pictures.decode(shape, pixels)
