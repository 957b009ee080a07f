"""Ids stay with their samples, draws are stratified and repeatable, and the box holds every input."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.data.base import Dataset, replace_bounds
from audit.data.noise import normal_noise, uniform_noise
from audit.errors import DataError, UsageError


def dataset(counts: list[int], seed: int = 0) -> Dataset:
    y = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    x = np.arange(len(y) * 2.0).reshape(-1, 2)
    return Dataset(x, y, sensitive={"row": np.arange(len(y))})


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=5), n=st.integers(1, 220), seed=st.integers(0, 5))
def test_a_draw_keeps_ids_and_shares_and_can_be_repeated(counts: list[int], n: int, seed: int):
    data = dataset(counts)
    drawn = data.sample(n, seed)
    total = sum(counts)
    assert len(drawn) == min(n, total)
    assert len(set(drawn.test.ids.tolist())) == len(drawn)
    assert np.all(np.diff(drawn.test.ids) > 0)
    assert np.array_equal(drawn.test.x, data.test.x[drawn.test.ids])
    assert np.array_equal(drawn.test.y, data.test.y[drawn.test.ids])
    assert drawn.test.sensitive["row"].tolist() == [str(i) for i in drawn.test.ids]
    assert drawn.rows == total
    assert drawn.test.sha256() == data.sample(n, seed).test.sha256()
    if n >= len(counts):
        for label, count in enumerate(counts):
            assert abs(int((drawn.test.y == label).sum()) - len(drawn) * count / total) < 1
    if len(drawn) < total:
        assert drawn.test.sha256() != data.test.sha256()
        again = drawn.sample(max(1, len(drawn) // 2), seed)
        assert set(again.test.ids) <= set(drawn.test.ids)


def test_draws_differ_by_seed_and_regression_is_drawn_plainly():
    data = dataset([50, 50])
    assert data.sample(20, 0).test.ids.tolist() != data.sample(20, 1).test.ids.tolist()
    assert len(Dataset(np.ones((30, 2)), np.linspace(0, 1, 30)).sample(7, 0)) == 7
    with pytest.raises(UsageError, match="at least 1"):
        data.sample(0, 0)


def test_the_box_is_as_stated_or_settled_by_the_data():
    y = np.zeros(3, int)
    images = np.full((3, 1, 2, 2), 0.5, np.float32)

    def box(x: np.ndarray, **options: object) -> list[list[float]]:
        return [np.asarray(side).tolist() for side in Dataset(x, y, **options).box()]

    assert box(images) == [0.0, 1.0]
    assert box((images * 255).astype(np.uint8)) == [0.0, 255.0]
    assert box(images[:, 0]) == [0.0, 1.0]
    assert box(images, bounds=(-1, 2)) == [-1.0, 2.0]
    for unsettled in (images * 3, images - 1, images[:, 0] * 3):
        with pytest.raises(DataError, match="--bounds"):
            box(unsettled)
    table = np.asarray([[1.0, 5], [2, 6], [3, 7]])
    assert box(table) == [[1.0, 5.0], [3.0, 7.0]]
    assert box(table, reference=(table * 2, y)) == [[1.0, 5.0], [6.0, 14.0]]
    assert box(table, bounds=([0, 5], [9, 8])) == [[0.0, 5.0], [9.0, 8.0]]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=40), st.booleans())
def test_the_box_of_a_table_holds_every_input(values: list[float], with_reference: bool):
    x = np.asarray(values[: len(values) // 2 * 2], np.float32).reshape(-1, 2)
    y = np.zeros(len(x), int)
    low, high = Dataset(x, y, reference=(x[::-1] * 0.5, y) if with_reference else None).box()
    assert bool((x >= low).all())
    assert bool((x <= high).all())


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ((0, 0.5), "12 of 12 samples reach outside 0 to 0.5"),
        ((1, 0), "lower one first"),
        ((0, 0), "lower one first"),
        ((0, float("inf")), "finite"),
        ((0, 1e308), r"-1e\+30 and 1e\+30"),
        ((-1e308, 1e308), r"-1e\+30 and 1e\+30"),
        (([0, -1e31], [1, 1]), r"-1e\+30 and 1e\+30"),
        (([0, 0, 0], 1), "do not fit"),
        (([[0, 0]], 1), "do not fit"),
    ],
)
def test_bounds_must_hold_the_data(bounds: tuple[object, object], words: str):
    data = Dataset(np.linspace(0.6, 1, 24).reshape(12, 2), np.zeros(12, int))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UsageError, match=words):
            replace_bounds(data, bounds)  # type: ignore[arg-type]


def test_one_endless_group_name_does_not_fill_the_memory():
    groups = np.asarray(["a"] * 19 + ["b" * 100_000], object)
    with pytest.raises(DataError, match="'g' holds a value of 100,000 characters"):
        Dataset(np.ones((20, 1)), np.zeros(20), sensitive={"g": groups})
    with pytest.raises(DataError, match="'g' holds a value of 100,000 characters"):
        Dataset.load(pd.DataFrame({"x": 1.0, "g": groups, "y": 0}), target="y", sensitive=["g"])


def test_missing_groups_are_a_group_of_their_own():
    data = Dataset(np.ones((3, 1)), [0, 1, 0], sensitive={"a": np.asarray(["x", None, "y"], object), "b": [1.5, np.nan, 2]})
    assert data.test.sensitive["a"].tolist() == ["x", "(missing)", "y"]
    assert data.test.sensitive["b"].tolist() == ["1.5", "(missing)", "2.0"]


def test_the_hash_covers_ids_inputs_and_labels():
    data = dataset([5, 5])
    x, y = data.test.x, data.test.y
    hashes = {Dataset(x, y).test.sha256(), Dataset(x + 1, y).test.sha256(), Dataset(x, 1 - y).test.sha256()}
    hashes |= {Dataset(x.astype(np.float32), y).test.sha256(), data.test.take(np.arange(1, 10)).sha256()}
    assert len(hashes) == 5
    assert Dataset(x.copy(), y.copy()).test.sha256() == data.test.sha256()


def test_parts_must_fit_each_other():
    with pytest.raises(DataError, match="like the test part"):
        Dataset(np.ones((3, 2)), [0, 1, 0], reference=(np.ones((3, 3)), [0, 1, 0]))
    with pytest.raises(DataError, match="column names"):
        Dataset(np.ones((3, 2)), [0, 1, 0], columns=["a"])
    with pytest.raises(DataError, match="--reference"):
        dataset([3]).tensor(np.asarray([0]), "reference")


@settings(max_examples=25, deadline=None)
@given(ids=st.lists(st.integers(0, 300), min_size=1, max_size=30, unique=True), seed=st.integers(0, 3), draw=st.integers(0, 3))
def test_noise_belongs_to_the_sample(ids: list[int], seed: int, draw: int):
    order = torch.tensor(ids)
    for make in (uniform_noise, normal_noise):
        noise = make(order, (2, 3), seed=seed, purpose="test", draw=draw)
        alone = torch.cat([make(order[i : i + 1], (2, 3), seed=seed, purpose="test", draw=draw) for i in range(len(ids))])
        assert torch.equal(noise, alone)
        assert not torch.equal(noise, make(order, (2, 3), seed=seed + 1, purpose="test", draw=draw))
        assert not torch.equal(noise, make(order, (2, 3), seed=seed, purpose="other", draw=draw))
    assert bool((uniform_noise(order, (5,), seed=seed, purpose="test").abs() <= 1).all())
