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
from audit.report.figures import Bars, Curve, Histogram, Matrix, Paired, Shape, Side, SmallMultiples, data_table, read
from audit.result import Figure

DRAWN = [
    "bars",
    "forest",
    "matrix",
    "reliability",
    "curve",
    "scatter",
    "histogram",
    "signed",
    "ice",
    "paired",
    "small_multiples",
    "bracket",
    "steps",
]


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


def texts(figure: Figure) -> list[str]:
    return re.findall(r">([^<>]+)</text>", draw(figure))


def test_signed_bars_tell_signs_apart_by_color_and_by_word(make_figures: Any) -> None:
    figure = make_figures()["signed"]
    svg = draw(figure)
    assert svg.count("fill: var(--plus)") == svg.count("fill: var(--minus)") == 2
    assert {"+0.310", "+0.080", "−0.020", "−0.240"} <= set(texts(figure))
    assert "marital status: never married, an…" in texts(figure)
    unsigned = figure.model_copy(update={"data": {**figure.data, "signed": False}})
    assert "var(--plus)" not in draw(unsigned)
    assert "+0.310" not in texts(unsigned)


def test_bracket_says_in_words_what_each_part_is() -> None:
    def bracket(**counts: int | None) -> Figure:
        return Figure(id="a.b", kind="bracket", title="t", data={"undecided": 1, "broken": 1, "wrong": 1, **counts})

    both = bracket(certified=830, undecided=396, broken=718, wrong=56)
    words = texts(both)
    for word in ("certified: at least", "under attack: at most", "certified: 830", "wrong unattacked: 56", "0.415", "0.613"):
        assert word in words
    assert {"certified", "undecided", "broken"} <= set(words)  # over their parts of the bar
    assert "wrong unattacked" not in words  # a part too narrow for its word, which stands below
    assert "Certified 0.415 ≤ the truth ≤ 0.613, what no attack broke. Of 2,000 samples: 830 certified" in charts.describe(
        "bracket", shape(both)
    )
    alone = bracket(undecided=2)
    assert "certified: at least" not in texts(alone)
    assert {"unbroken, not proven: 2", "under attack: at most"} <= set(texts(alone))
    table = data_table(both, read(both), 100)
    assert [row[0] for row in table.rows][-2:] == ["the truth is at least", "the truth is at most"]
    assert [row[1] for row in table.rows] == ["830", "396", "718", "56", "830", "1226"]


@pytest.mark.parametrize(
    "wrong", [{"broken": -1}, {"broken": 0.5}, {"broken": 0}, {"broken": 1, "attacked_low": 2}, {"broken": 10**400}]
)
def test_bracket_of_no_counts_is_a_table_alone(wrong: dict[str, Any]) -> None:
    data: dict[str, Any] = {"certified": 0, "undecided": 0, "wrong": 0, **wrong}
    figure = Figure(id="a.b", kind="bracket", title="t", data=data)
    assert read(figure) is None
    assert data_table(figure, None, 100).rows


def test_steps_go_straight_on_and_ticks_show_both_scales(make_figures: Any) -> None:
    figure = make_figures()["steps"]
    words = texts(figure)
    assert {"0.0235", "6/255", "radius 0.03137 = 8/255"} <= set(words)
    assert "0.0" in words  # the axis runs from 0 to 1, though no point lies there
    assert "1.0" in words
    straight = {**figure.data, "series": [{**line, "step": None} for line in figure.data["series"]]}
    lines = [re.findall(r'<path d="([^"]+)"', draw(f)) for f in (figure, figure.model_copy(update={"data": straight}))]
    assert lines[0] != lines[1]
    wrong = {**figure.data, "series": [{**figure.data["series"][0], "step": "sideways"}]}
    assert read(figure.model_copy(update={"data": wrong})) is None


def test_histogram_names_its_groups_and_its_threshold(make_figures: Any) -> None:
    figure = make_figures()["histogram"]
    assert {"test images (n = 900)", "adversarial (n = 90)", "threshold 8.3"} <= set(texts(figure))
    svg = draw(figure)
    dashes = {
        dash
        for i in (2, 3)
        for dash in re.findall(f'stroke-dasharray: ([^;]+);[^"]*var\\(--series-{i}\\); stroke-width: 1.6', svg)
    }
    assert len(dashes) == 2  # lines differ in more than their color
    table = data_table(figure, read(figure), 100)
    assert table.columns == ["from", "to", "test images (n = 900)", "Fashion-MNIST (n = 700)", "adversarial (n = 90)"]
    assert len(table.rows) == 41
    assert table.rows[-1][:2] == ["threshold", "8.3"]
    assert "threshold at 8.3" in charts.describe("histogram", shape(figure))


def test_histogram_built_by_the_figures_module_is_drawn() -> None:
    from audit.figures import histogram

    groups = [("one", [0.1, 0.2, np.nan, 900.0]), ("none", [])]
    figure = histogram("a.b", "Scores", groups, xlabel="score", threshold=0.15, bins=4)
    assert {"one (n = 3)", "none (n = 0)"} <= set(texts(figure))
    assert read(histogram("a.b", "Scores", [("alone", [2.0])], xlabel="score")) is not None


def test_faint_lines_have_no_name_and_are_counted_not_listed(make_figures: Any) -> None:
    figure = make_figures()["ice"]
    svg = draw(figure)
    assert svg.count("stroke-opacity: 0.3") == 40
    assert texts(figure).count("mean") == 1
    table = data_table(figure, read(figure), 100)
    assert len(table.rows) == 20 + 1
    assert table.rows[-1][0] == "40 thin lines: see result.json"
    assert "mean and 40 thin lines" in charts.describe("curve", shape(figure))


def test_lines_drawn_are_few_enough_for_a_page() -> None:
    thin = [{"faint": True, "x": [0.0, 1.0], "y": [0.0, float(i)]} for i in range(500)]
    named = [{"name": f"line {i}", "x": [0.0, 1.0], "y": [0.0, float(i)]} for i in range(30)]
    figure = Figure(id="a", kind="curve", title="t", data={"series": [*thin, *named]})
    assert draw(figure).count("stroke-opacity: 0.3") == charts.MAX_FAINT
    assert sum(word.startswith("line ") for word in texts(figure)) == charts.MAX_SERIES


def test_pairs_show_both_values_and_say_what_changed_most(make_figures: Any) -> None:
    figure = make_figures()["paired"]
    assert {"0.610", "0.940", "0.000", "0.710", "–", "before", "after TRADES"} <= set(texts(figure))
    said = charts.describe("paired", shape(figure))
    assert "changes from −0.012 (clean accuracy) to +0.710 (under PGD, ε 0.3)" in said
    table = data_table(figure, read(figure), 100)
    assert table.columns[1:4] == ["before", "before (low)", "before (high)"]
    assert table.rows[1] == ["under PGD, ε 0.1", "0.6100", "0.5800", "0.6400", "0.9400", "0.9200", "0.9500"]


def test_small_multiples_share_their_axes_and_name_each_panel_once(make_figures: Any) -> None:
    figure = make_figures()["small_multiples"]
    words = texts(figure)
    assert words.count("this network") == 1
    assert words.count("JPEG compression") == 1
    assert words.count("accuracy") == 1
    assert words.count("0.75") == 2  # rows of the grid: the panels in a row share the axis
    assert words.count("3") == 4  # columns
    table = data_table(figure, read(figure), 100)
    assert table.columns == ["panel", "series", "severity", "accuracy", "low", "high"]
    assert table.rows[0][:2] == ["Gaussian noise", "this network"]
    assert len(table.rows) == 7 * 2 * 6


@pytest.mark.slow
@pytest.mark.parametrize("panels", [1, 2, 5, 9, 12, 40])
def test_any_number_of_panels_fits(panels: int) -> None:
    some = [{"title": f"panel {i}", "series": [{"name": "a", "x": [0, 1], "y": [0, i]}]} for i in range(panels)]
    figure = Figure(id="a", kind="small_multiples", title="t", data={"panels": some})
    assert sum(word.startswith("panel ") for word in texts(figure)) == min(panels, charts.MAX_PANELS)
    boxes = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', draw(figure))
    assert boxes is not None
    assert float(boxes[1]) <= 720


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("histogram", {"edges": [0, 1, 1], "series": [{"share": [1, 0]}]}),
        ("histogram", {"edges": [0], "series": []}),
        ("histogram", {"edges": [0, 1], "series": [{"share": [1, 0]}]}),
        ("histogram", {"edges": [0, 1], "series": [{"share": [None]}]}),
        ("paired", {"labels": ["a"], "before": {"values": [1]}, "after": {"values": [1, 2]}}),
        ("paired", {"labels": ["a"], "before": {"values": [1], "low": []}, "after": {"values": [1]}}),
        ("small_multiples", {"panels": [{"series": [{"x": [1], "y": []}]}]}),
        ("small_multiples", {"panels": [{"title": "no series"}]}),
        ("curve", {"series": [{"x": [1], "y": [1], "faint": "perhaps"}]}),
    ],
)
def test_data_of_another_shape_are_no_chart(kind: str, data: dict[str, Any]) -> None:
    assert read(Figure(id="a", kind=kind, title="t", data=data)) is None


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
    nothing = Side(values=[None])
    assert charts.draw("paired", "t", Paired(labels=["a"], before=nothing, after=nothing), "f") is None
    assert charts.draw("small_multiples", "t", SmallMultiples(panels=[]), "f") is None
    assert charts.draw("histogram", "t", Histogram(edges=[0, 1], series=[]), "f") is None


values = st.lists(st.one_of(st.none(), st.floats(-1e30, 1e30)), min_size=1, max_size=5)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(values=values, labels=st.lists(st.text(max_size=12), min_size=5, max_size=5))
def test_any_values_draw_well_formed_or_not_at_all(values: list[float | None], labels: list[str]) -> None:
    data: dict[str, Any] = {"labels": labels[: len(values)], "values": values, "low": values, "high": values}
    side = {"values": values, "low": values, "high": values}
    line = {"name": labels[0], "x": list(range(len(values))), "y": values}
    shapes: list[tuple[str, Shape]] = [
        ("bars", Bars(**data)),
        ("bars", Bars(**data, signed=True)),
        ("forest", Bars(**data)),
        ("paired", Paired(labels=data["labels"], before=side, after=side, before_name=labels[0])),
        ("small_multiples", SmallMultiples(panels=[{"title": labels[0], "series": [line]}] * 3)),
        ("curve", Curve(series=[{**line, "faint": True}, line])),
        ("histogram", Histogram(edges=list(range(len(values) + 1)), series=[{"share": [v or 0 for v in values]}])),
    ]
    for kind, shape in shapes:
        svg = charts.draw(kind, labels[0], shape, "f")
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


@pytest.mark.parametrize("channels", [1, 3])
def test_photographs_pack_small_and_come_back_whole(channels: int) -> None:
    import io
    import zlib

    image = pytest.importorskip("PIL.Image")
    yy, xx = np.mgrid[0:60, 0:50]
    smooth = np.stack([127 + 90 * np.sin(xx / (7 + c)) * np.cos(yy / 9) for c in range(channels)])
    noisy = np.random.default_rng(0).integers(-1, 2, smooth.shape)
    pixels = (smooth + noisy).round().astype(np.uint8)
    packed = pictures.png(pixels)
    read_back = np.asarray(image.open(io.BytesIO(packed)))
    assert np.array_equal(read_back, pixels[0] if channels == 1 else pixels.transpose(1, 2, 0))
    assert len(packed) < 0.8 * len(zlib.compress(pixels.transpose(1, 2, 0).tobytes(), 9))


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
