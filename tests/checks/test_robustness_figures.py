"""Figures of the robustness check against enumeration: curves that stay bounds, bounds in order, classes named fairly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from audit.checks import robustness_figures as rf
from audit.report import figures
from audit.result import Figure

PREFIX = "robustness.linf"


def drawn(distances: Any, eps: float = 0.3, **more: Any) -> tuple[Figure, figures.Curve]:
    given_ = np.asarray(distances, dtype=np.float64)
    figure = rf.curve(PREFIX, "L∞", "input units", given_, eps=eps, confidence=0.95, **more)
    shape = figures.read(figure)
    assert isinstance(shape, figures.Curve)
    return figure, shape


def at(line: figures.Series, radius: float) -> float:
    """Return the height of a line that goes straight on from each point."""
    value = line.y[max(i for i, x in enumerate(line.x) if x <= radius)]
    assert value is not None
    return value


def standing(distances: Any, radius: float) -> float:
    """Return the share of samples that no known example within the radius breaks."""
    return sum(1 for d in distances if d > radius) / len(distances)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(st.just(0.0), st.just(np.inf), st.floats(1e-4, 5.0), st.sampled_from([0.1, 0.3, 2.0])),
        min_size=1,
        max_size=400,
    ),
    st.sampled_from([0.05, 0.3, 3.0]),
)
@example([0.0], 0.3)
@example([np.inf] * 3, 0.3)
@example(list(np.linspace(0.001, 0.9, 400)), 0.3)
def test_curve_is_an_upper_bound_everywhere_and_exact_at_its_points(distances: list[float], eps: float) -> None:
    _, shape = drawn(distances, eps)
    (line,) = shape.series
    assert len(line.x) <= rf.MOST_POINTS
    assert line.x == sorted(set(line.x))
    assert line.y == sorted(line.y, reverse=True)
    rounded = [eps if eps < d <= eps * (1 + rf.ROUNDING) else d for d in distances]
    assert {0.0, eps} <= set(line.x)
    for radius in line.x:
        assert at(line, radius) == pytest.approx(standing(rounded, radius))
    for radius in np.linspace(0, line.x[-1], 101):
        assert at(line, radius) >= standing(rounded, radius) - 1e-12


def test_what_is_certified_never_stands_above_what_no_attack_broke() -> None:
    """Joined steps that dropped at their smallest distance did this: 4 of 200 samples shared one on an MNIST network."""
    distances = np.random.default_rng(2).uniform(0.02, 0.4, 1000)
    for count in (1, 4, 19):
        radii = list(np.linspace(0.05, 0.39, count))
        _, shape = drawn(distances, certified=(radii, [standing(distances, r) for r in radii]))  # as tight as can be
        attacked, proven = shape.series
        assert set(radii) <= set(attacked.x)
        for radius in np.linspace(0, radii[-1], 200):
            here = min(i for i, x in enumerate(proven.x) if x >= radius)
            assert proven.y[here] is not None
            assert proven.y[here] <= at(attacked, radius) + 1e-12


def test_few_distances_are_drawn_exactly_and_many_nearly() -> None:
    few = np.array([0.0, 0.1, 0.2, 0.2, 0.4, np.inf])
    _, shape = drawn(few)
    for radius in np.linspace(0, 0.44, 45):
        assert at(shape.series[0], radius) == pytest.approx(standing(few, radius))
    many = np.random.default_rng(0).uniform(0, 1, 3000)
    figure, shape = drawn(many)
    worst = max(at(shape.series[0], r) - standing(many, r) for r in np.linspace(0, 1, 500))
    assert 0 < worst <= 3 / rf.MOST_POINTS
    assert "neighbouring distances share a step" in figure.data["note"]
    assert "share a step" not in drawn(np.repeat([0.1, 0.2, 0.5], 100))[0].data["note"]  # equal distances are joined exactly


def test_band_is_the_interval_of_each_radius() -> None:
    distances = np.array([0.0] * 10 + [0.2] * 30 + [np.inf] * 60)
    _, shape = drawn(distances)
    (line,) = shape.series
    index = line.x.index(0.3)
    assert line.low is not None
    assert line.high is not None
    assert (line.low[index], line.high[index]) == pytest.approx((beta.ppf(0.025, 60, 41), beta.ppf(0.975, 61, 40)))


def test_an_example_that_rounding_put_outside_counts_at_the_radius() -> None:
    line = drawn([0.3 * (1 + 2e-7), np.inf])[1].series[0]
    assert at(line, 0.3) == 0.5
    assert at(drawn([0.3003, np.inf])[1].series[0], 0.3) == 1.0
    counted = drawn([0.3003, np.inf], broken=np.array([True, False]))[1].series[0]
    assert at(counted, 0.3) == 0.5


def test_what_was_never_broken_is_said_and_nothing_of_it_where_all_is() -> None:
    assert "2 of 3 samples have no known example" in drawn([0.1, np.inf, np.inf])[0].data["note"]
    assert "no known example at any distance" not in drawn([0.1, 0.2])[0].data["note"]
    far = drawn([0.1] * 99 + [40.0])[0]
    assert "1 sample broke only beyond" in far.data["note"]
    assert far.data["xmax"] < 1


def test_certified_holds_at_every_smaller_radius() -> None:
    _, shape = drawn([0.1, 0.5, np.inf], certified=([0.3, 0.9], [0.4, 0.1]))
    line = shape.series[1]
    assert (line.step, line.x, line.y) == ("pre", [0.0, 0.3, 0.9], [0.4, 0.4, 0.1])
    assert shape.xmax is not None
    assert shape.xmax >= 0.9
    assert shape.series[0].x[-1] >= 0.9
    assert len(drawn([0.1], certified=([], []))[1].series) == 1


def test_radius_of_an_image_is_said_in_255ths() -> None:
    assert drawn([0.1], 8 / 255, width=1.0)[1].marks[0].label == "radius 0.03137 = 8/255"
    assert drawn([0.1], 8.0, width=255.0)[1].marks[0].label == "radius 8"
    assert drawn([0.1], 8 / 255, width=1.0)[1].second_scale == 255
    assert drawn([0.1])[1].second_scale is None


@pytest.mark.parametrize("wrong", [np.nan, -0.1])
def test_distances_that_are_none_are_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="distances should be at least 0"):
        drawn([0.1, wrong])


def test_no_sample_at_all_draws_nothing_and_crashes_nothing() -> None:
    assert drawn([])[1].series[0].y == [None] * len(drawn([])[1].series[0].y)
    assert figures.read(rf.bracket(PREFIX, rf.Counts(0, 0, 0), confidence=0.95)) is None
    empty = np.array([], dtype=np.int64)
    assert rf.per_class(PREFIX, ["a"], empty, empty > 0, empty > 0, confidence=0.95).table.rows == []


@settings(max_examples=60, deadline=None)
@given(*[st.integers(0, 300) for _ in range(3)], st.one_of(st.none(), st.integers(0, 300)))
def test_bracket_adds_up_and_its_bounds_stand_in_order(wrong: int, broken: int, undecided: int, certified: int | None) -> None:
    counts = rf.Counts(wrong, broken, undecided, certified)
    if not counts.n:
        return
    shape = figures.read(rf.bracket(PREFIX, counts, confidence=0.95))
    assert isinstance(shape, figures.Bracket)
    assert sum(size for _, size in shape.segments()) == shape.total == counts.n
    assert shape.attacked_low is not None
    assert shape.attacked_high is not None
    assert shape.attacked_low <= shape.attacked + 1e-12
    assert shape.attacked <= shape.attacked_high + 1e-12
    if certified is None:
        assert shape.certified_low is None
        assert "no certificate" in shape.sentence()
    else:
        assert shape.certified_low is not None
        assert certified / counts.n <= shape.attacked + 1e-12
        assert shape.certified_low <= shape.attacked_high
        assert "≤ the truth ≤" in shape.sentence()


def test_bracket_claims_no_more_than_it_has() -> None:
    figure = rf.bracket(PREFIX, rf.Counts(0, 1, 0, 19_999), confidence=0.95, norm_name="L∞", radius="0.3")
    shape = figures.read(figure)
    assert isinstance(shape, figures.Bracket)
    assert "Certified 0.9999" in shape.sentence()  # not 1.000, nor 100.0 %
    assert "between 0.999 and 1.000" in figure.data["note"]
    assert figure.title.endswith("under L∞ changes of at most 0.3")


def by_class(y: Any, right: Any, broken: Any, names: int = 10, **more: Any) -> rf.ByClass:
    arrays = np.asarray(y), np.asarray(right, dtype=bool), np.asarray(broken, dtype=bool)
    return rf.per_class(PREFIX, [f"c{i}" for i in range(names)], *arrays, confidence=0.95, **more)


def test_worst_class_is_named_as_sure_only_where_it_is() -> None:
    y = np.repeat(np.arange(5), 60)
    alike = by_class(y, np.ones(300), np.arange(300) % 3 == 0)
    assert "not surely below the others" in alike.worst
    weak = by_class(y, np.ones(300), (np.arange(300) % 3 == 0) | (y == 3))
    assert weak.worst.startswith("Class c3 is right under attack on 0.0% of its 60 samples, surely below the others")
    assert weak.figure.data["labels"][0] == "c3"
    # three samples of a class, all broken, are bad luck as much as a bad class
    few = by_class([0] * 100 + [1] * 3, np.ones(103), [i % 2 == 0 for i in range(100)] + [True] * 3)
    assert few.worst.startswith("Class c1 ")
    assert "not surely" in few.worst


def test_among_alike_classes_hardly_one_is_ever_called_worse() -> None:
    rng, runs = np.random.default_rng(0), 400
    y = np.repeat(np.arange(10), 30)
    called = sum("not surely" not in by_class(y, np.ones(300), rng.random(300) < 0.4).worst for _ in range(runs))
    assert called / runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)


def test_a_hundred_classes_show_the_worst_ten_and_a_table_of_all() -> None:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 100, 3000)
    shown = by_class(y, np.ones(3000), rng.random(3000) < y / 100, names=100)
    assert len(shown.figure.data["labels"]) == rf.MOST_CLASSES
    assert len(shown.table.rows) == 100
    assert shown.figure.data["values"] == sorted(row[3] for row in shown.table.rows)[: rf.MOST_CLASSES]
    assert shown.figure.title.startswith("Accuracy under attack of the 10 worst of 100 classes")
    assert isinstance(figures.read(shown.figure), figures.Bars)


def test_table_by_class_counts_what_is_right_under_attack_and_certified() -> None:
    y = np.array([0, 0, 0, 0, 1, 1])
    right = np.array([1, 1, 1, 0, 1, 1], dtype=bool)
    broken = np.array([1, 0, 0, 1, 0, 0], dtype=bool)
    certified = np.array([0, 1, 0, 1, 1, 1], dtype=bool)  # of a wrong answer, too: it does not count
    table = by_class(y, right, broken, certified=certified).table
    assert table.columns[-1] == "certified"
    assert [row[:4] + row[6:] for row in table.rows] == [["c0", 4, 0.75, 0.5, 0.25], ["c1", 2, 1.0, 1.0, 1.0]]
    assert by_class(y, right, broken, names=1).table.rows[1][0] == "1"  # a label without a name


def test_more_classes_or_norms_make_wider_intervals() -> None:
    y = np.repeat([0, 1], 50)
    alone = by_class(y, np.ones(100), y == 1).figure.data["low"][1]
    shared = by_class(y, np.ones(100), y == 1, families=4).figure.data["low"][1]
    assert shared < alone
    assert alone == pytest.approx(beta.ppf(0.05 / 2 / 2, 50, 1))


def test_threat_lists_its_lines_and_leaves_out_empty_ones() -> None:
    table = rf.threat(PREFIX, [("norm", "L∞"), ("constraints", ""), ("seed", "0")], norm_name="L∞")
    assert table.rows == [["norm", "L∞"], ["seed", "0"]]


def test_closest_examples_come_first_and_say_how_far() -> None:
    order = rf.smallest_first(np.array([0.3, 0.1, 0.3, 0.2]), np.array([9, 8, 2, 4]), 3)
    assert list(order) == [1, 3, 2]
    assert rf.caption("4", "9", 2 / 255, "L∞", "apgd", 1.0) == "4 is taken for 9, L∞ distance 0.00784 = 2/255, by apgd"
