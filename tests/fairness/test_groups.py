"""Groups: codes are not mixed into ranges, and no attribute makes more groups than can be compared."""

from __future__ import annotations

import time

import numpy as np
import pytest

from audit.errors import UsageError
from audit.fairness import assess
from audit.fairness.groups import make_attributes

CODES = np.repeat(np.arange(1, 41), 100)


@pytest.mark.parametrize("kind", [int, float, str])
def test_codes_that_enough_people_share_stay_groups_and_their_gap_shows(kind):
    codes = CODES.astype(kind)
    (region,) = make_attributes({"region": codes})
    assert region.groups == tuple(str(kind(code)) for code in range(1, 41))
    assert region.note == ""
    y = np.tile([0, 1], 2000)
    gap = assess(y, CODES % 2, {"region": codes}).metric("fairness.region.demographic_parity_difference")
    assert gap.value == 1.0, "a cut at the quartiles mixes odd and even codes and shows a gap of 0"


def test_codes_are_kept_beside_people_whose_code_is_missing():
    codes = CODES.astype(float)
    codes[:3] = np.nan
    (region,) = make_attributes({"region": codes})
    assert len(region.groups) == 41
    assert np.bincount(region.index).tolist()[-1] == 3


@pytest.mark.parametrize(
    ("values", "options"),
    [
        (np.r_[CODES, 77], {}),
        (CODES, {"min_group_size": 101}),
        (CODES + 0.5, {}),
        (np.r_[CODES.astype(float), np.full(99, np.inf)], {}),
    ],
    ids=["a value of one person", "larger groups wanted", "no whole numbers", "infinity"],
)
def test_other_numbers_are_cut_and_the_note_says_so(values, options):
    (attribute,) = make_attributes({"region": values}, **options)
    assert len(attribute.groups) == 4
    assert "quartiles" in attribute.note


def test_stated_bins_win_over_codes():
    (region,) = make_attributes({"region": CODES}, bins={"region": [20]})
    assert region.groups == ("less than 20", "20 and more")


def test_more_groups_than_can_be_compared_are_refused():
    started = time.monotonic()
    names = [f"person {i}" for i in range(50_000)]
    with pytest.raises(UsageError, match=r"'id' makes 50,000 groups, expected at most 1,000.*fairness\.bins"):
        make_attributes({"id": names})
    with pytest.raises(UsageError, match="'code' makes 1,001 groups"):
        make_attributes({"code": np.repeat(np.arange(1001), 30)})
    assert len(make_attributes({"code": np.repeat(np.arange(1000), 30)})[0].groups) == 1000
    assert len(make_attributes({"age": np.linspace(0, 1, 50_000)})[0].groups) == 4
    assert time.monotonic() - started < 10


def test_more_intersections_than_can_be_compared_are_refused():
    a, b = (np.asarray([f"{i:02}" for i in values]) for values in (np.arange(1600) // 40, np.arange(1600) % 40))
    with pytest.raises(UsageError, match=r"'a' and 'b' together make 1,600 groups.*fairness\.intersections = false"):
        make_attributes({"a": a, "b": b})
    assert [len(attribute.groups) for attribute in make_attributes({"a": a, "b": b}, intersections=False)] == [40, 40]


# --- names ------------------------------------------------------------------------------------------------------------

NAMES = {"sex": {"0": "women", "1": "men"}}


@pytest.mark.parametrize("values", [["0", "1", "1"], ["0.0", "1.0", "1.0"], np.asarray([0, 1, 1]), np.asarray([0.0, 1.0, 1.0])])
def test_codes_are_called_by_their_names_however_the_file_writes_them(values):
    (sex,) = make_attributes({"sex": values}, names=NAMES)
    assert sex.groups == ("women", "men")
    assert sex.index.tolist() == [0, 1, 1]


def test_intersections_and_ranges_have_the_names_and_the_rest_keeps_its_value():
    attributes = make_attributes(
        {"sex": [0, 1, 2, 0], "age": [10, 30, 70, 80]},
        bins={"age": [25, 60]},
        names=NAMES | {"age": {"less than 25": "young"}},
    )
    assert attributes[0].groups == ("women", "men", "2")
    assert attributes[1].groups == ("young", "25 to less than 60", "60 and more")
    assert attributes[2].groups == ("women & young", "women & 60 and more", "men & 25 to less than 60", "2 & 60 and more")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"sexx": {}}, "names are given for 'sexx'.*did you mean 'sex'"),
        ({"sex": {"3": "children"}}, "'3', which is none of its groups"),
        ({"sex": {"0": "people", "1": "people"}}, "call two groups 'people'"),
        ({"sex": {"0": "1"}}, "call two groups '1'"),
        ({"sex": {"0": " "}}, "what '0' is called"),
    ],
)
def test_names_that_do_not_fit_are_errors(names, message):
    with pytest.raises(UsageError, match=message):
        make_attributes({"sex": [0, 1, 1]}, names=names)


def test_values_are_told_apart_as_text():
    values = np.asarray([1, "1.0", True, None, float("nan")], dtype=object)
    (attribute,) = make_attributes({"a": values})
    assert sorted(attribute.groups) == ["1", "1.0", "None", "True", "nan"]
