"""Group metrics: fairlearn's own values as the oracle, groups as they should be cut, intervals that few people cannot fool."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from fairlearn.metrics import (
    MetricFrame,
    demographic_parity_difference,
    equalized_odds_difference,
    selection_rate,
    true_positive_rate,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score

from audit.errors import UsageError
from audit.fairness import assess
from audit.fairness.groups import make_attributes


def people(n=1200, seed=0):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"sex": rng.choice(["f", "m"], n), "region": rng.choice(["n", "e", "s"], n, p=[0.2, 0.3, 0.5])})
    y = rng.integers(0, 2, n)
    p = (rng.random(n) < np.where(frame["sex"] == "f", 0.35, 0.55) + 0.2 * (y - 0.5)).astype(int)
    return y, p, frame


def value(result, metric_id):
    return result.metric(metric_id).value


@pytest.mark.parametrize("seed", range(3))
def test_values_equal_fairlearn(seed):
    y, p, frame = people(seed=seed)
    result = assess(y, p, frame)
    for name in frame:
        by = frame[name]
        parity = demographic_parity_difference(y, p, sensitive_features=by)
        odds = equalized_odds_difference(y, p, sensitive_features=by)
        worst = MetricFrame(metrics=accuracy_score, y_true=y, y_pred=p, sensitive_features=by).group_min()
        assert value(result, f"fairness.{name}.demographic_parity_difference") == pytest.approx(parity)
        assert value(result, f"fairness.{name}.equalized_odds_difference") == pytest.approx(odds)
        assert value(result, f"fairness.{name}.worst_group_accuracy") == pytest.approx(worst)
    parity = demographic_parity_difference(y, p, sensitive_features=frame)
    assert value(result, "fairness.sex__region.demographic_parity_difference") == pytest.approx(parity)


def test_the_table_equals_fairlearn_group_by_group():
    y, p, frame = people()
    table = assess(y, p, frame, scores=p * 0.5, intersections=False).groups
    oracle = MetricFrame(
        metrics={"s": selection_rate, "t": true_positive_rate, "a": accuracy_score},
        y_true=y,
        y_pred=p,
        sensitive_features=frame["region"],
    ).by_group
    own = table[table["attribute"] == "region"].set_index("group")
    for group in oracle.index:
        assert own.loc[group, ["selection_rate", "true_positive_rate", "accuracy"]].tolist() == pytest.approx(
            oracle.loc[group].tolist()
        )
        assert own.loc[group, "mean_score"] == pytest.approx(0.5 * oracle.loc[group, "s"])
        assert own.loc[group, "selection_rate_low"] < own.loc[group, "selection_rate"] < own.loc[group, "selection_rate_high"]


def test_metrics_are_marked_as_headline_for_single_attributes_only():
    result = assess(*people())
    assert len(result.metrics) == 9
    for metric in result.metrics:
        assert metric.params.get("headline", False) == ("__" not in metric.id)
        assert metric.low <= metric.value <= metric.high
        assert metric.n == 1200


@pytest.mark.slow
def test_assess_needs_no_torch():
    code = (
        "import sys; from audit.fairness import assess; assess([0, 1, 1, 0], [0, 1, 0, 0], {'a': list('ffmm')});"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- groups of which too little is known ------------------------------------------------------------------------------


def test_a_tiny_group_is_named_and_widens_the_interval_without_being_dropped():
    y, p, frame = people()
    sex = frame["sex"].to_numpy(dtype=object).copy()
    sex[:9] = "x"
    p[:9] = 0
    tiny = assess(y, p, {"sex": sex})
    assert tiny.small_groups == ["sex = x (9 people, fewer than 30)"]
    metric = tiny.metric("fairness.sex.demographic_parity_difference")
    assert metric.value == pytest.approx(demographic_parity_difference(y, p, sensitive_features=sex))
    without = assess(y[9:], p[9:], {"sex": sex[9:]}).metric("fairness.sex.demographic_parity_difference")
    assert metric.high >= without.high
    assert metric.high - metric.low > without.high - without.low


def test_a_group_without_positives_is_named_and_is_not_given_a_rate_of_zero():
    y, p, frame = people()
    y = np.where((frame["region"] == "n"), 0, y)
    result = assess(y, p, frame[["region"]])
    assert result.small_groups == ["region = n (nobody with the label 1)"]
    metric = result.metric("fairness.region.equalized_odds_difference")
    assert metric.high == 1.0
    # fairlearn calls the missing rate 0, which makes a gap of the whole true positive rate
    assert metric.value < equalized_odds_difference(y, p, sensitive_features=frame["region"])
    row = result.groups.set_index("group").loc["n"]
    assert np.isnan(row["true_positive_rate"])


def test_one_group_has_nothing_to_compare_with():
    y, p, _ = people()
    for metric in assess(y, p, np.full(len(y), "all")).metrics:
        assert (metric.value, metric.low, metric.high) == (None, 0.0, 1.0)
        assert "nothing to compare" in metric.detail


# --- classes ----------------------------------------------------------------------------------------------------------


def test_more_classes_are_taken_one_against_the_rest_and_the_largest_gap_counts():
    rng = np.random.default_rng(0)
    y, p, by = rng.integers(0, 3, 900), rng.integers(0, 3, 900), rng.choice(["f", "m"], 900)
    result = assess(y, p, by)
    gaps = [demographic_parity_difference(y == c, p == c, sensitive_features=by) for c in range(3)]
    metric = result.metric("fairness.group.demographic_parity_difference")
    assert metric.value == pytest.approx(max(gaps))
    assert "3 classes" in metric.detail
    one = assess(y, p, by, positive=int(np.argmax(gaps))).metric("fairness.group.demographic_parity_difference")
    assert one.value == pytest.approx(max(gaps))
    assert one.high < metric.high


def test_two_labels_of_any_kind():
    y, p, frame = people()
    words = np.asarray(["no", "yes"])
    named = assess(words[y], words[p], frame)
    assert [m.value for m in named.metrics] == [m.value for m in assess(y, p, frame).metrics]
    assert named.metrics[0].params["positive"] == "yes"
    assert [m.value for m in assess(y == 1, p == 1, frame).metrics] == [m.value for m in named.metrics]


def test_a_class_that_never_occurs_leaves_its_rate_out():
    result = assess(np.zeros(100, dtype=int), np.zeros(100, dtype=int), np.repeat(["a", "b"], 50))
    assert value(result, "fairness.group.equalized_odds_difference") == 0.0
    assert not result.small_groups


# --- groups -----------------------------------------------------------------------------------------------------------


def test_numbers_are_cut_at_quartiles_and_few_values_are_not():
    rng = np.random.default_rng(0)
    ages, sizes = rng.integers(18, 90, 400), rng.integers(1, 12, 400)
    age, size = make_attributes({"age": ages, "size": sizes}, intersections=False)
    assert len(age.groups) == 4
    assert "quartiles" in age.note
    low, high = (int(t) if float(t).is_integer() else float(t) for t in np.quantile(ages, [0.25, 0.5]))
    assert age.groups[:2] == (f"less than {age.groups[0].split()[-1]}", f"{low} to less than {high}")
    assert size.groups == tuple(str(v) for v in sorted(set(sizes.tolist())))
    assert size.note == ""


def test_stated_bins_make_ranges_with_open_ends_and_missing_apart():
    (age,) = make_attributes({"age": [10, 25, 59.9, 60, 99, None, float("nan")]}, bins={"age": [25, 60]})
    assert age.groups == ("less than 25", "25 to less than 60", "60 and more", "missing")
    assert [age.groups[i] for i in age.index] == [
        "less than 25",
        "25 to less than 60",
        "25 to less than 60",
        "60 and more",
        "60 and more",
        "missing",
        "missing",
    ]


@pytest.mark.parametrize(
    ("bins", "message"),
    [
        ({"agee": [1, 2]}, "did you mean 'age'"),
        ({"age": [2, 1]}, "rising numbers"),
        ({"age": []}, "rising numbers"),
        ({"name": [1, 2]}, "are not numbers"),
    ],
)
def test_bins_that_do_not_fit_are_errors(bins, message):
    with pytest.raises(UsageError, match=message):
        make_attributes({"age": [1, 2, 3], "name": ["a", "b", "c"]}, bins=bins)


def test_intersections_are_pairs_with_joined_ids():
    attributes = make_attributes({"a b": list("xxyy"), "a_b": list("uvuv"), "a_b__a_b_2": list("ppqq")})
    slugs = [a.slug for a in attributes]
    assert len(set(slugs)) == len(slugs) == 6
    pair = attributes[3]
    assert pair.name == "a b & a_b"
    assert pair.groups == ("x & u", "x & v", "y & u", "y & v")


def test_names_that_read_the_same_stay_apart():
    (_, _, pair) = make_attributes({"a": ["x", "x & y"], "b": ["y & z", "z"]})
    assert pair.groups == ("x & y & z", "x & y & z")
    assert pair.index.tolist() == [0, 1]


@pytest.mark.slow
@given(st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5)), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_any_text_makes_groups_that_lose_nobody(values):
    first, second = zip(*values, strict=True)
    for attribute in make_attributes({"one": list(first), "<b>": list(second)}):
        assert len(attribute.index) == len(values)
        assert np.bincount(attribute.index, minlength=len(attribute.groups)).min() >= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_true": [0, 1]}, "one value for each"),
        ({"y_true": [], "y_pred": [], "sensitive": {"a": []}}, "n > 0"),
        ({"sensitive": {}}, "at least one"),
        ({"sensitive": {"a": [1, 2, 3, 4], "b": [1]}}, "lengths"),
        ({"sensitive": np.zeros((4, 2))}, "mapping"),
        ({"positive": 7}, "none of the labels"),
        ({"y_pred": ["a", "b", "a", "b"]}, "of one kind"),
        ({"scores": [0.5]}, "scores"),
    ],
)
def test_bad_input_says_what_was_expected(change, message):
    arguments = {"y_true": [0, 1, 1, 0], "y_pred": [0, 1, 0, 0], "sensitive": {"a": list("ffmm")}} | change
    with pytest.raises(UsageError, match=message):
        assess(**arguments)


@pytest.mark.parametrize("missing", ["(missing)", "", "None", "<NA>", "nan"])
def test_one_missing_number_does_not_break_an_attribute_into_single_people(missing):
    ages = [str(v) for v in np.random.default_rng(0).uniform(18, 90, 400)]
    ages[3] = missing
    (attribute,) = make_attributes({"age": ages})
    assert len(attribute.groups) == 5
    assert attribute.groups[-1] == "missing"
    assert np.bincount(attribute.index).tolist()[-1] == 1
    (cut,) = make_attributes({"age": ages}, bins={"age": [25, 60]})
    assert cut.groups == ("less than 25", "25 to less than 60", "60 and more", "missing")
    (few,) = make_attributes({"children": ["10", missing, "2"] * 20})
    assert few.groups == ("2", "10", missing)


def test_a_missing_number_of_a_dataset_is_a_group_beside_the_ranges():
    from audit.data.base import Dataset

    rng = np.random.default_rng(0)
    ages = rng.uniform(18, 90, 400)
    ages[:40] = np.nan
    data = Dataset(rng.random((400, 3)), rng.integers(0, 2, 400), sensitive={"age": ages})
    (attribute,) = make_attributes(data.test.sensitive)
    assert np.bincount(attribute.index).tolist() == [90, 90, 90, 90, 40]
