"""Ten measures by group: fairlearn and scikit-learn as oracles, limits at the edges, replicates beside those of rows."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest
from fairlearn.metrics import (
    MetricFrame,
    false_negative_rate,
    false_positive_rate,
    selection_rate,
    true_negative_rate,
    true_positive_rate,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, precision_score

from audit import stats
from audit.errors import UsageError
from audit.fairness import assess, bootstrap, resample
from audit.fairness.confusion import ACCURACY, BALANCED_ACCURACY, F1, FOUND, MEASURES, MISSED, PRECISION, SELECTION_RATE, count
from audit.fairness.groups import make_attributes
from tests.fairness.test_assess import people


def negative_predictive_value(y, p):
    return precision_score(y, p, pos_label=0)


ORACLES = {
    "selection rate": selection_rate,
    "accuracy": accuracy_score,
    "true positive rate": true_positive_rate,
    "false positive rate": false_positive_rate,
    "true negative rate": true_negative_rate,
    "false negative rate": false_negative_rate,
    "positive predictive value": precision_score,
    "negative predictive value": negative_predictive_value,
    "f1": f1_score,
    "balanced accuracy": balanced_accuracy_score,
}


def of(table, **where):
    for name, value in where.items():
        table = table[table[name] == value]
    return table


@pytest.mark.parametrize("seed", range(2))
def test_values_differences_and_ratios_equal_fairlearn_and_scikit_learn(seed):
    y, p, frame = people(seed=seed)
    found = bootstrap(y, p, frame, n_boot=50)
    assert [measure.name for measure in MEASURES] == list(ORACLES)
    for name, by in {"sex": frame["sex"], "region": frame["region"], "sex & region": frame}.items():
        oracle = MetricFrame(metrics=ORACLES, y_true=y, y_pred=p, sensitive_features=by)
        between = of(found.between, attribute=name).set_index("measure")
        assert between["difference"].to_dict() == pytest.approx(oracle.difference(method="between_groups").to_dict())
        assert between["ratio"].to_dict() == pytest.approx(oracle.ratio(method="between_groups").to_dict())
        for measure in ORACLES:
            own = of(found.by_group, attribute=name, measure=measure)["value"].tolist()
            assert own == pytest.approx(oracle.by_group[measure].tolist())


def test_the_table_of_assess_holds_the_same_values_and_intervals():
    y, p, frame = people()
    found, table = bootstrap(y, p, frame, n_boot=50).by_group, assess(y, p, frame).groups
    for measure in MEASURES:
        own = of(found, measure=measure.name)
        for column, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
            assert own[column].tolist() == pytest.approx(table[f"{measure.slug}{suffix}"].tolist())


def test_more_classes_each_against_the_rest_and_accuracy_over_all_of_them():
    random = np.random.default_rng(0)
    y, by = random.integers(0, 3, 600), random.choice(["f", "m"], 600)
    p = np.where(random.random(600) < 0.6, y, random.integers(0, 3, 600))
    found = bootstrap(y, p, by, n_boot=50).by_group
    for positive in range(3):
        for group in ("f", "m"):
            own = of(found, positive=positive, group=group).set_index("measure")["value"]
            here = by == group
            assert own["f1"] == pytest.approx(f1_score(y[here] == positive, p[here] == positive))
            assert own["balanced accuracy"] == pytest.approx(balanced_accuracy_score(y[here] == positive, p[here] == positive))
            assert own["accuracy"] == pytest.approx((y[here] == p[here]).mean())


# --- limits -----------------------------------------------------------------------------------------------------------

CELLS = arrays.arrays(np.int64, (4, 5), elements=st.integers(0, 30))


@pytest.mark.slow
@given(CELLS)
@settings(max_examples=80, deadline=None)
def test_limits_hold_the_value_and_never_collapse(cells):
    for measure in MEASURES:
        value, (low, high) = measure.values(cells), measure.limits(cells)
        known = np.isfinite(value)
        assert ((low <= value + 1e-12) & (value <= high + 1e-12))[known].all()
        assert (low < high).all()
        assert (low[~known] == 0).all()
        assert (high[~known] == 1).all()
        for found in (measure.gap(cells), measure.ratio(cells)):
            assert 0 <= found.low <= found.high <= 1
            assert found.value is None or found.low - 1e-12 <= found.value <= found.high + 1e-12


def test_f1_has_the_limits_of_a_share():
    """Of 40 who hold the label or are selected 30 do both: F* = 0.75, and F1 = 2F*/(1 + F*)."""
    cells = np.asarray([[30, 4, 6, 500, 0]])
    share = stats.clopper_pearson(30, 40)
    low, high = F1.limits(cells)
    assert F1.values(cells)[0] == pytest.approx(2 * 30 / (2 * 30 + 4 + 6))
    assert (low[0], high[0]) == pytest.approx(tuple(2 * s / (1 + s) for s in (share.low, share.high)))


def test_balanced_accuracy_has_the_limits_of_a_difference_of_shares():
    cells = np.asarray([[30, 10, 5, 55, 0]])
    youden = stats.difference(30, 40, 5, 60)
    assert [*BALANCED_ACCURACY.limits(cells)] == pytest.approx([(1 + youden.low) / 2, (1 + youden.high) / 2])


def test_the_gap_of_a_share_is_that_of_the_metrics():
    y, p, frame = people()
    between = of(bootstrap(y, p, frame, n_boot=50).between, measure="selection rate", attribute="region").iloc[0]
    metric = assess(y, p, frame).metric("fairness.region.demographic_parity_difference")
    assert (between["difference"], between["difference_low"], between["difference_high"]) == pytest.approx(
        (metric.value, metric.low, metric.high)
    )


def test_a_group_without_a_value_leaves_the_gap_open():
    cells = np.asarray([[30, 10, 5, 55, 0], [0, 0, 0, 40, 0], [25, 10, 5, 55, 0]])
    assert np.isnan(PRECISION.values(cells)[1])
    for measure in (PRECISION, F1, BALANCED_ACCURACY):
        assert measure.gap(cells).high == 1
        assert measure.ratio(cells).low == 0


@pytest.mark.slow
@pytest.mark.parametrize("measure", [F1, BALANCED_ACCURACY], ids=lambda measure: measure.name)
@pytest.mark.parametrize(("groups", "n", "rates"), [(2, 20, (0.9, 0.1)), (6, 60, (0.5, 0.5)), (2, 200, (0.99, 0.01))])
def test_the_limits_of_a_gap_and_of_a_ratio_miss_no_more_than_stated(measure, groups, n, rates):
    sets, random = 300, np.random.default_rng(0)
    tpr, fpr = rates
    chances = np.stack(
        [np.asarray([0.5 * t, 0.5 * (1 - t), 0.5 * fpr, 0.5 * (1 - fpr), 0]) for t in np.linspace(tpr - 0.2, tpr, groups)]
    )
    truth = measure.values(chances)
    missed = np.zeros(4)
    for _ in range(sets):
        counts = np.stack([random.multinomial(n, row) for row in chances])
        gap, ratio = measure.gap(counts), measure.ratio(counts)
        true_gap, true_ratio = truth.max() - truth.min(), truth.min() / truth.max()
        missed += [gap.low > true_gap, gap.high < true_gap, ratio.low > true_ratio, ratio.high < true_ratio]
    assert (missed / sets <= 0.025 + 3 * np.sqrt(0.025 * 0.975 / sets)).all()


# --- replicates -------------------------------------------------------------------------------------------------------


def test_replicates_are_spread_as_those_of_people_drawn_anew():
    y, p, frame = people(600)
    found = bootstrap(y, p, frame[["sex"]], n_boot=4000)
    random, rows = np.random.default_rng(1), []
    (sex,) = make_attributes(frame[["sex"]])
    by_sex = [np.flatnonzero(sex.index == i) for i in range(2)]
    for _ in range(400):
        drawn = np.concatenate([random.choice(rows_, len(rows_)) for rows_ in by_sex])
        cells = count(y[drawn], p[drawn], make_attributes(frame[["sex"]].iloc[drawn])[0], 1)
        rows.append([measure.values(cells) for measure in MEASURES])
    errors = found.by_group["standard_error"].to_numpy().reshape(len(MEASURES), 2)
    expected = np.std(rows, axis=0, ddof=1)
    # A standard deviation over r draws is known within about 1/sqrt(2r) of itself.
    assert np.abs(errors / expected - 1).max() < 4 * np.sqrt(1 / 800 + 1 / 8000)
    differences = np.ptp(np.asarray(rows), axis=2).std(axis=0, ddof=1)
    assert np.abs(found.between["difference_standard_error"] / differences - 1).max() < 4 * np.sqrt(1 / 800 + 1 / 8000)


def test_what_is_fixed_does_not_vary():
    y, p, frame = people(600)
    counts = assess(y, p, frame[["sex"]]).counts

    def spread(fixed):
        kept = {}

        def labelled(cells):
            kept["labelled"] = cells[..., FOUND] + cells[..., MISSED]
            kept["people"] = cells.sum(axis=-1)
            return np.zeros(cells.shape[:-1])

        from audit.fairness.bootstrap import _drawn

        labelled(_drawn(counts[0].cells, 300, fixed, np.random.default_rng(0)))
        return kept["people"].std(axis=0).max() > 0, kept["labelled"].std(axis=0).max() > 0

    assert spread("groups") == (False, True)
    assert spread("labels") == (False, False)
    assert spread("total") == (True, True)
    with pytest.raises(UsageError, match="'groups', 'labels' or 'total'"):
        resample(counts, fixed="label")


def test_the_same_seed_gives_the_same_replicates_and_another_does_not():
    y, p, frame = people(300)
    first, same, other = (bootstrap(y, p, frame, n_boot=20, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.resampled[0].drawn, same.resampled[0].drawn)
    assert not np.array_equal(first.resampled[0].drawn, other.resampled[0].drawn)
    pd.testing.assert_frame_equal(first.by_group, same.by_group)


def test_replicates_of_each_kind_have_their_shapes():
    y, p, frame = people(300)
    found = bootstrap(y, p, frame, n_boot=20)
    assert [one.drawn.shape for one in found.resampled] == [(20, 2, 10), (20, 3, 10), (20, 6, 10)]
    one = found.resampled[1]
    assert one.differences.shape == one.ratios.shape == (20, 10)
    assert ((one.ratios >= 0) & (one.ratios <= 1)).all()
    assert one.values[:, 0] == pytest.approx(SELECTION_RATE.values(one.counts))
    assert one.counts.sum() == 300


# --- measures of one's own --------------------------------------------------------------------------------------------


def matthews(counts):
    found, missed, accused = counts[..., 0], counts[..., 1], counts[..., 2]
    cleared = counts[..., 3] + counts[..., 4]
    scale = (found + accused) * (found + missed) * (cleared + accused) * (cleared + missed)
    return np.where(scale > 0, (found * cleared - accused * missed) / np.sqrt(scale), np.nan)


def test_a_measure_of_ones_own_has_intervals_by_group_and_between_groups():
    from sklearn.metrics import matthews_corrcoef

    y, p, frame = people()
    found = bootstrap(y, p, frame, also={"matthews": matthews}, bounds=(-1, 1))
    own = of(found.by_group, measure="matthews", attribute="sex").set_index("group")
    for group in ("f", "m"):
        here = frame["sex"] == group
        assert own.loc[group, "value"] == pytest.approx(matthews_corrcoef(y[here], p[here]))
        assert own.loc[group, "low"] < own.loc[group, "value"] < own.loc[group, "high"]
        width = own.loc[group, "high"] - own.loc[group, "low"]
        assert width == pytest.approx(2 * 1.96 * own.loc[group, "standard_error"], rel=0.15)
    gap = of(found.between, measure="matthews", attribute="sex").iloc[0]
    assert gap["difference"] == pytest.approx(abs(own["value"].diff().iloc[1]))
    assert gap["difference_low"] < gap["difference"] < gap["difference_high"]
    assert np.isnan(gap["ratio"])
    assert gap["method"] == "bootstrap-max-t"


def test_a_measure_of_ones_own_that_is_always_right_has_an_interval_all_the_same():
    y = np.tile([0, 1], 40)
    found = bootstrap(y, y, np.repeat(["f", "m"], 40), also={"matthews": matthews}, bounds=(-1, 1))
    assert (of(found.by_group, measure="matthews")["low"] < 0.97).all()
    assert of(found.between, measure="matthews")["difference_high"].iloc[0] > 0.1


@pytest.mark.parametrize(
    ("also", "message"),
    [({"f1": matthews}, "names of their own"), ({"sum": np.sum}, "a value for each table of counts")],
)
def test_measures_that_do_not_fit_are_errors(also, message):
    y, p, frame = people(100)
    with pytest.raises(UsageError, match=message):
        bootstrap(y, p, frame, n_boot=50, also=also)


# --- size -------------------------------------------------------------------------------------------------------------


def test_once_counted_a_million_times_the_people_cost_no_more():
    few = assess(*people()).counts
    many = [type(one)(one.attribute, one.positive, one.cells * 1_000_000) for one in few]
    resample(few)  # imports are no part of it

    def taken(counts):
        begun = time.process_time()
        resample(counts)
        return time.process_time() - begun

    assert min(taken(many) for _ in range(3)) < 3 * min(taken(few) for _ in range(3)) + 0.05


def test_counts_are_of_everybody_once():
    y, p, frame = people()
    for one in assess(y, p, frame).counts:
        assert one.cells.sum() == len(y)
        assert ACCURACY.values(one.cells) == pytest.approx(
            [(y == p)[one.attribute.index == i].mean() for i in range(len(one.attribute.groups))]
        )
