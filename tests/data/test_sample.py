"""A draw stands for its data: shares are kept, no row is preferred, and whatever is missing from it is said."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from audit.data.base import Dataset
from audit.errors import UsageError

DRAWS = 2500


def data(y: list[float], **sensitive: list[str]) -> Dataset:
    return Dataset(np.arange(len(y) * 2.0).reshape(-1, 2), y, sensitive=sensitive)


def chances(dataset: Dataset, n: int, draws: int = DRAWS) -> np.ndarray:
    """Return how often each row is drawn."""
    counts = np.zeros(len(dataset))
    for seed in range(draws):
        counts[dataset.sample(n, seed).test.ids] += 1
    return counts / draws


def assert_all_alike(dataset: Dataset, n: int) -> None:
    """Hold each row's chance against n / rows: three standard errors, widened for the number of rows that are looked at."""
    rows = len(dataset)
    share = n / rows
    error = np.sqrt(share * (1 - share) / DRAWS)
    assert np.abs(chances(dataset, n) - share).max() < (3 + np.sqrt(2 * np.log(rows))) * error


@pytest.mark.parametrize(
    ("y", "n"),
    [
        ([0] * 30 + [1] * 9 + [2], 7),  # a class whose share is a sixth of a sample
        ([0] * 6 + [1] * 7, 6),  # both shares end in a half, or near it
        (list(range(20)), 20 // 2),  # more labels than samples
        (list(range(12)) + [3] * 8, 13),  # whole numbers that are no classes: as many as samples
        (list(np.linspace(0, 1, 23)), 9),  # numbers
        ([0.5] * 15 + [1.5] * 5, 3),
    ],
)
def test_each_row_has_the_same_chance(y, n):
    assert_all_alike(data(y), n)


def test_each_row_has_the_same_chance_among_groups():
    y = [0] * 25 + [1] * 8
    assert_all_alike(data(y, sex=["a", "b", "b"] * 11, age=["x"] * 30 + ["y"] * 3), 10)


def test_the_mean_over_draws_is_that_of_the_data():
    # Whole-number labels of a regression: the smallest ones must not come first where shares tie.
    y = list(range(60))
    dataset = data(y)
    means = [dataset.sample(30, seed).test.y.mean() for seed in range(500)]
    assert abs(np.mean(means) - np.mean(y)) <= 3 * np.std(means) / np.sqrt(len(means)) + 1e-9


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from("ab"), st.sampled_from("xyz")), min_size=2, max_size=150),
    st.integers(1, 150),
    st.integers(0, 10),
)
def test_classes_and_groups_keep_their_shares_within_rounding(rows, n, seed):
    y, sex, age = (list(column) for column in zip(*rows, strict=True))
    dataset = data(y, a_sex=sex, b_age=age)
    drawn = dataset.sample(n, seed).test
    n = len(drawn)
    assert n == min(n, len(rows))
    share = n / len(rows)
    if n < len(set(y)):  # too few for all classes: then the groups come first
        for group in "ab":
            assert abs((drawn.sensitive["a_sex"] == group).sum() - share * sex.count(group)) < 1
        return
    for label in set(y):
        assert abs((drawn.y == label).sum() - share * y.count(label)) < 1
        for group in "ab":
            held = sum(row[:2] == (label, group) for row in rows)
            found = ((drawn.y == label) & (drawn.sensitive["a_sex"] == group)).sum()
            assert abs(found - share * held) < 1
    for group in "xyz":  # within the cells of what comes before it
        cells = len({row[:2] for row in rows if row[2] == group})
        assert abs((drawn.sensitive["b_age"] == group).sum() - share * age.count(group)) < max(1, cells)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-1, 1), st.sampled_from("ab")), min_size=2, max_size=80), st.integers(1, 80))
def test_groups_keep_their_shares_where_labels_are_numbers(rows, n):
    y, sex = (list(column) for column in zip(*[(label + 0.123, group) for label, group in rows], strict=True))
    dataset = data(y, sex=sex)
    drawn = dataset.sample(n, 0).test
    if dataset.test.y.dtype.kind == "f":
        for group in "ab":
            assert abs((drawn.sensitive["sex"] == group).sum() - len(drawn) / len(rows) * sex.count(group)) < 1


@settings(max_examples=60, deadline=None)
@example(counts=[1, 1, 40, 1, 54, 60], n=4, seed=1)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(1, 200), st.integers(0, 5))
def test_a_class_with_a_share_of_one_sample_or_more_is_never_missing(counts, n, seed):
    dataset = data(list(np.repeat(np.arange(len(counts)), counts)))
    drawn = dataset.sample(n, seed)
    here = set(drawn.test.y.tolist())
    for label, count in enumerate(counts):
        assert label in here or count * len(drawn) < sum(counts)
    said = [note for note in drawn.notes if "hold none of class" in note]
    assert bool(said) == (len(here) < len(counts) and len(counts) <= len(drawn))
    if said:
        enough = int(said[0].split(": ")[1].split(" ")[0].replace(",", ""))
        missing = set(range(len(counts))) - here
        assert missing <= set(dataset.sample(enough, seed).test.y.tolist())


def test_tenths_of_a_number_keep_their_share():
    y = list(np.random.default_rng(0).normal(size=500))
    order = np.argsort(np.argsort(y))
    drawn = data(y).sample(50, 3).test
    assert np.bincount(order[drawn.ids] // 50, minlength=10).tolist() == [5] * 10


def test_the_draw_within_a_class_is_at_random():
    # Neighbours in the file must be drawn together as often as two that are far apart: nothing follows the order of the rows.
    dataset = data([0] * 12)
    together = np.zeros((12, 12))
    for seed in range(DRAWS):
        chosen = np.zeros(12)
        chosen[dataset.sample(4, seed).test.ids] = 1
        together += np.outer(chosen, chosen)
    pairs = together[np.triu_indices(12, 1)] / DRAWS
    expected = 4 / 12 * 3 / 11
    assert np.abs(pairs - expected).max() < (3 + np.sqrt(2 * np.log(66))) * np.sqrt(expected * (1 - expected) / DRAWS)


def test_a_seed_gives_one_draw_and_ids_stay_row_numbers():
    dataset = data([0, 1] * 20, sex=list("ab") * 20)
    one, two = dataset.sample(11, 5), dataset.sample(11, 5)
    assert one.test.ids.tolist() == two.test.ids.tolist()
    assert dataset.sample(11, 6).test.ids.tolist() != one.test.ids.tolist()
    assert np.array_equal(one.test.x, dataset.test.x[one.test.ids])
    assert one.sample(5, 0).test.ids.tolist() == [i for i in one.test.ids if i in one.sample(5, 0).test.ids]
    assert np.array_equal(one.sample(5, 0).test.x, dataset.test.x[one.sample(5, 0).test.ids])


def test_more_than_there_is_is_all_of_it_and_said():
    dataset = data([0, 1, 1])
    drawn = dataset.sample(1000, 0)
    assert drawn.test.ids.tolist() == [0, 1, 2]
    assert any("1,000 samples were asked for: these are all 3" in note for note in drawn.notes)
    assert dataset.sample(3, 0).notes == dataset.notes
    with pytest.raises(UsageError, match="at least 1"):
        dataset.sample(0, 0)


def test_the_variance_is_at_most_that_of_an_unstratified_draw():
    # Half of a class is answered right: the share of right answers of a draw must not spread more than a plain draw's.
    rng = np.random.default_rng(1)
    y = rng.integers(0, 4, 400)
    right = rng.random(400) < np.array([0.9, 0.2, 0.6, 0.99])[y]
    dataset = data(list(y))
    found = [right[dataset.sample(80, seed).test.ids].mean() for seed in range(1000)]
    plain = right.mean() * (1 - right.mean()) / 80 * (320 / 399)
    assert np.var(found) < plain * (1 + 3 * np.sqrt(2 / 1000))
    assert abs(np.mean(found) - right.mean()) < 3 * np.std(found) / np.sqrt(1000)
