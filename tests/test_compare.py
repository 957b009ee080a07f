"""What became better, worse, or cannot be compared between two results: methods against closed forms, and what is refused."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import audit
from audit import compare as comparing
from audit.compare import compare, diff, within, worst_case
from audit.errors import InputError, UsageError
from audit.result import Change, Metric, Result
from audit.stats import Interval
from tests.twins import World, accuracy, audited, check, disagreeing, estimate, ids_of, result, share, unsound


def bits(n, k):
    return np.arange(n) < k


def pairs(n, lost, gained, right=0):
    """Return what two networks get right: `right` both, `lost` the first alone, `gained` the second alone."""
    rows = [(True, True)] * right + [(True, False)] * lost + [(False, True)] * gained
    rows += [(False, False)] * (n - len(rows))
    return np.asarray(rows).T


def between(old, new, **options):
    return compare(old, new, source="old.json", sha256="0" * 64, **options)


def change_of(old, new, metric="performance.accuracy", **options):
    return between(old, new, **options).change(metric)


def two(metric_id, old, new, method="mover", **more):
    """Compare two intervals of one metric that is no share."""
    sides = [
        result(check("performance", [estimate(metric_id, Interval(*side), 100, method, **more)], "test", {}), samples=name)
        for side, name in ((old, "test"), (new, "test"))
    ]
    return change_of(*sides, metric_id, primary=metric_id)


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_pairs_are_tested_by_the_binomial_on_the_samples_that_disagree():
    first, second = pairs(200, 15, 4, 170)
    change = change_of(accuracy(first), accuracy(second))
    exact = sum(Fraction(math.comb(19, k), 2**19) for k in range(15, 20))
    assert change.p_worse == pytest.approx(float(exact), rel=1e-12)
    assert change.change == pytest.approx(-11 / 200)
    assert change.method.startswith("paired")
    assert change.outcome == "worse"
    assert (change.old, change.new, change.n) == (185 / 200, 174 / 200, 200)


def test_what_disagrees_is_found_sample_by_sample_and_not_by_counts():
    first, second = bits(100, 80), np.roll(bits(100, 80), 20)  # as many right, but 20 others
    assert change_of(accuracy(first), accuracy(second)).reason.startswith("20 samples")


def test_of_a_metric_that_should_be_low_fewer_is_better():
    def made(broken, model):
        metric = share("explanation.sex.flip_share", broken, "flipped", direction="lower")
        return result(check("explanation", [metric], "test", {"flipped": broken}), model=model)

    few, many = bits(300, 20), bits(300, 60)
    better = change_of(made(many, "a"), made(few, "b"), "explanation.sex.flip_share", primary="explanation.sex.flip_share")
    worse = change_of(made(few, "a"), made(many, "b"), "explanation.sex.flip_share", primary="explanation.sex.flip_share")
    assert (better.outcome, worse.outcome) == ("better", "worse")
    assert better.change < 0 < worse.change
    assert worse.p_worse == pytest.approx(0.5**40)
    assert better.p_worse == 1


def test_the_share_of_the_opposite_of_an_outcome_is_paired_too():
    def made(broken, model):
        metric = share("robustness.linf.accuracy", ~broken, "not robustness.linf.broken")
        return result(check("robustness", [metric], "test", {"robustness.linf.broken": broken}), model=model)

    change = change_of(
        made(bits(300, 20), "a"), made(bits(300, 60), "b"), "robustness.linf.accuracy", primary="robustness.linf.accuracy"
    )
    assert change.method.startswith("paired")
    assert change.outcome == "worse"
    assert change.change == pytest.approx(-40 / 300)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 40), st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_turned_round_a_comparison_says_the_opposite(lost, gained, right, wrong):
    first, second = pairs(lost + gained + right + wrong, lost, gained, right)
    forth, back = change_of(accuracy(first), accuracy(second)), change_of(accuracy(second), accuracy(first))
    assert forth.change == pytest.approx(-back.change)
    assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low))
    opposite = {"better": "worse", "worse": "better", "unchanged": "unchanged"}
    assert back.outcome == opposite[forth.outcome]


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_an_accusation_needs_the_test_and_the_interval(lost, gained, right):
    first, second = pairs(lost + gained + right + 1, lost, gained, right)
    change = change_of(accuracy(first), accuracy(second))
    assert (change.outcome == "worse") == (change.high < 0 and change.p_worse <= 0.025)
    assert change.low <= change.change <= change.high


@pytest.mark.parametrize("field", ["ids", "outcome", "n"])
def test_nothing_is_paired_with_other_samples_or_another_outcome(field):
    first, second = pairs(200, 15, 4, 170)
    old = accuracy(first)
    if field == "ids":
        new = accuracy(second, samples="other")
    elif field == "outcome":
        metric = share("performance.accuracy", second, "performance.right")
        new = result(check("performance", [metric], "test", {"performance.right": second}))
    else:
        new = accuracy(second[:199])
    change = change_of(old, new)
    assert change.method == "independent, difference of two shares"
    assert change.outcome == "unchanged"


# --- intervals -------------------------------------------------------------------------------------------------------


def test_shares_of_other_samples_get_the_interval_of_two_independent_shares():
    change = change_of(accuracy(bits(400, 380)), accuracy(bits(300, 240), samples="other"))
    expected = audit.stats.difference(240, 300, 380, 400)
    assert (change.change, change.low, change.high) == pytest.approx(expected)
    assert change.outcome == "worse"
    tail = change.p_worse  # the smallest at which the interval still leaves out 0
    assert audit.stats.difference(240, 300, 380, 400, 1 - 2 * tail * 1.001).high < 0
    assert audit.stats.difference(240, 300, 380, 400, 1 - 2 * tail * 0.999).high > 0


def test_other_metrics_get_the_interval_that_their_own_give():
    change = two("performance.mae", (0.02, 0.01, 0.05), (0.10, 0.07, 0.14), "studentised-bootstrap", direction="lower")
    assert change.change == pytest.approx(0.08)
    assert change.low == pytest.approx(0.08 - math.hypot(0.03, 0.03))
    assert change.high == pytest.approx(0.08 + math.hypot(0.04, 0.01))
    assert change.p_worse == pytest.approx(0.025 ** (0.08 / math.hypot(0.03, 0.03)))
    assert change.outcome == "worse"
    assert change.method == "independent, MOVER of the two intervals"


@pytest.mark.parametrize(
    ("metric", "method"),
    [
        ("calibration.ece", "mover"),
        ("fairness.sex.demographic_parity_difference", "bonferroni-mover"),
        ("corruption.imputation.gap", "agresti-coull-t-bonferroni"),
        ("plugin.figure", "made otherwise"),
    ],
)
def test_figures_that_noise_pushes_one_way_are_compared_end_by_end(metric, method):
    change = two(metric, (0.02, 0.01, 0.05), (0.10, 0.07, 0.14), method, direction="lower")
    assert (change.low, change.high) == pytest.approx((0.07 - 0.05, 0.14 - 0.01))
    assert change.method == "independent, the two intervals subtracted"
    assert change.outcome == "worse"


def gaps_of(rates, n, data_sets, generator):
    counts = generator.binomial(n, rates, (data_sets, len(rates)))
    return [audit.stats.max_min_gap(k, [n] * len(rates)) for k in counts]


def test_a_gap_that_opened_is_not_taken_for_a_smaller_one():
    generator, sets, method = np.random.default_rng(0), 400, "bonferroni-mover"
    befores, afters = (gaps_of(*group, sets, generator) for group in (((0.5, 0.5), 50), ((0.05, 0.01), 200)))
    missed = 0
    for before, after in zip(befores, afters, strict=True):
        change = two("fairness.sex.gap", before, after, method, direction="lower")
        missed += change.high < 0.04  # MOVER, whose middle the older gap's noise pushes down: 22 %
    assert missed / sets <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / sets)


@pytest.mark.parametrize("n", [10, 10**6])
def test_a_share_of_other_samples_than_it_states_is_no_counted_one(n):
    value = Interval(0.5 + 0.5 / n, 0.4, 0.6)  # half a sample too many
    sides = [result(check("performance", [estimate("performance.x", value, n, "clopper-pearson")], "test", {})) for _ in "ab"]
    change = change_of(*sides, "performance.x", primary="performance.x")
    assert change.method == "independent, MOVER of the two intervals"


def test_intervals_that_overlap_a_little_may_still_differ_and_touching_ones_do_not_accuse():
    assert two("performance.r2", (0.9, 0.88, 0.92), (0.865, 0.845, 0.885)).outcome == "worse"
    assert two("performance.r2", (0.9, 0.88, 0.92), (0.875, 0.855, 0.895)).outcome == "unchanged"


def test_a_figure_without_a_width_is_not_compared_unless_nothing_changed():
    assert two("performance.r2", (0.9, 0.9, 0.9), (0.9, 0.9, 0.9)).outcome == "unchanged"
    moved = two("performance.r2", (0.9, 0.9, 0.9), (0.8, 0.8, 0.8))
    assert moved.outcome == "not_comparable"
    assert "width" in moved.reason


def test_a_difference_too_large_for_a_number_is_not_compared():
    assert two("performance.mae", (1e308, 9e307, 1.1e308), (-1e308, -1.1e308, -9e307)).outcome == "not_comparable"


# --- several metrics -------------------------------------------------------------------------------------------------


def many(p, n=400):
    """Return two results whose `p` other metrics each lose 10 of the samples that disagree, and the accuracy none."""
    first, second = pairs(n, 10, 0, n // 2)
    sides = []
    for k, correct in enumerate((first, second)):
        outcomes = {"performance.correct": bits(n, n // 2), **{f"corruption.c{i}": correct for i in range(p)}}
        metrics = [share("performance.accuracy", outcomes["performance.correct"], "performance.correct")]
        metrics += [share(f"corruption.c{i}.accuracy", correct, f"corruption.c{i}") for i in range(p)]
        sides.append(result(check("performance", metrics, "test", outcomes), model="ab"[k]))
    return sides


def test_other_metrics_are_corrected_for_their_number_and_the_primary_one_is_not():
    p = 2.0**-10  # of ten samples that all disagree one way
    for number, outcome in ((int(0.025 / p), "worse"), (int(0.025 / p) + 1, "unchanged")):
        found = between(*many(number))
        assert {c.outcome for c in found.changes if not c.primary} == {outcome}
        assert found.verdict == outcome
        assert found.change("performance.accuracy").outcome == "unchanged"
    alone = between(*many(40), primary="corruption.c7.accuracy")
    assert alone.change("corruption.c7.accuracy").outcome == "worse"
    assert alone.verdict == "worse"


def test_the_verdict_is_worse_if_anything_surely_is_and_better_only_with_the_primary_metric():
    def made(correct, robust, model):
        metrics = [share("performance.accuracy", correct, "c"), share("robustness.linf.accuracy", robust, "r")]
        return result(check("performance", metrics, "test", {"c": correct, "r": robust}), model=model)

    low, high = bits(500, 200), bits(500, 300)
    for (before, after), (robust, later) in product([(low, high), (high, low), (low, low)], repeat=2):
        found = between(made(before, robust, "a"), made(after, later, "b"))
        accuracy_better, worse = after.sum() > before.sum(), after.sum() < before.sum() or later.sum() < robust.sum()
        assert found.verdict == ("worse" if worse else "better" if accuracy_better else "unchanged")


def test_where_another_metric_decides_the_sentence_begins_with_it():
    found = between(*many(3))
    assert found.sentence.startswith("3 of 3 other metrics surely became worse: corruption.c0.accuracy")
    assert "performance.accuracy is unchanged within noise" in found.sentence


# --- what cannot be compared -----------------------------------------------------------------------------------------


def robust(k=150, *, status="measured", params=None, **changes):
    broken = ~bits(200, k)
    params = params if params is not None else {"eps": 0.1, "steps": 20}
    metric = share("robustness.linf.accuracy", ~broken, "not broken", kind=changes.pop("kind", "upper"), params=params)
    measured = check(
        "robustness", [metric], "test", {"broken": broken}, status=status, reason="weak" if status != "measured" else None
    )
    correct = bits(200, 180)
    performance = check("performance", [share("performance.accuracy", correct, "c")], "test", {"c": correct})
    return result(performance, measured, n=200, **changes)


def options(**section):
    return {"run": {"profile": "standard"}, "policy": {}, "checks": section}


APART = {
    "another radius": (robust(params={"eps": 0.2, "steps": 20}), "another eps: 0.1, then 0.2"),
    "a stronger attack": (robust(params={"eps": 0.1, "steps": 40}), "another steps: 20, then 40"),
    "a param that only one has": (robust(params={"eps": 0.1}), "another steps: 20, then unstated"),
    "another kind of number": (robust(kind="estimate"), "another kind of number: upper, then estimate"),
    "an incomplete check": (robust(status="incomplete"), "in the newer result the check robustness is incomplete"),
    "evidence that is not ok": (unsound(robust(), "robustness"), "in the newer result the evidence is not ok: robustness"),
    "a check that was left out": (
        result(robust().checks[0], spec__not_run=["robustness"], n=200),
        "the newer result does not hold it: its check robustness was left out",
    ),
    "an option that is no param": (
        robust(spec__config=options(robustness={"queries": 7})), "another robustness.queries: unstated, then 7",
    ),
    "another profile": (
        robust(spec__config={"run": {"profile": "quick"}, "policy": {}, "checks": {}}), "another profile: standard, then quick",
    ),
    "other bounds": (robust(data__bounds=[0.0, 255.0]), "other bounds of the inputs: unstated, then 0, 255"),
}  # fmt: skip


@pytest.mark.parametrize("name", APART)
def test_what_is_not_the_same_question_is_not_compared(name):
    new, reason = APART[name]
    for old, newer, said in ((robust(120), new, reason), (new, robust(120), None)):
        change = change_of(old, newer, "robustness.linf.accuracy")
        assert change.outcome == "not_comparable"
        assert (change.change, change.low, change.high, change.p_worse) == (None, None, None, None)
        assert said is None or change.reason.startswith(said)
        assert change_of(old, newer).outcome == "unchanged", "the accuracy has nothing to do with it"


def test_a_tolerance_that_follows_the_network_is_named_as_one_to_state():
    change = change_of(robust(params={"tolerance": 0.5}), robust(params={"tolerance": 0.6}), "robustness.linf.accuracy")
    assert change.reason.startswith("another tolerance: 0.5, then 0.6 (state the option tolerance")
    same = change_of(robust(params={"eps": 0.1}), robust(params={"eps": 0.1 * (1 + 1e-12)}), "robustness.linf.accuracy")
    assert same.outcome == "unchanged"


def test_options_that_only_choose_or_report_leave_metrics_comparable():
    harmless = options(robustness={"norm": ["linf", "l2"]}, performance={"max_gap": 0.2})
    found = between(robust(), robust(spec__config=harmless))
    assert {c.outcome for c in found.changes} == {"unchanged"}
    assert any("other options of robustness: norm unstated, then linf, l2" in note for note in found.notes)


def test_an_option_that_is_only_written_otherwise_is_the_same():
    written = robust(spec__config=options(robustness={"queries": 7, "mutable": ["age"]}))
    otherwise = robust(spec__config=options(robustness={"queries": "7", "mutable": "age"}))
    found = between(written, otherwise)
    assert {c.outcome for c in found.changes} == {"unchanged"}
    assert found.notes == ["both audits are of the same network file"]


def test_an_option_of_the_calibration_error_leaves_the_accuracy_alone():
    rng = np.random.default_rng(0)
    world = World.drawn(300, rng)
    old, new = audited(world, rng), audited(world, rng, model="b")
    new = new.model_copy(update={"spec": new.spec.model_copy(update={"config": options(performance={"bins": 5})})})
    found = between(old, new)
    assert found.change("calibration.ece").reason == "another performance.bins: unstated, then 5"
    assert found.change("performance.accuracy").outcome != "not_comparable"


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("model__task", "regression", "another task: classification, then regression"),
        ("model__classes", 3, "another number of classes: 10, then 3"),
        ("data__columns", ["age"], "another list of columns: none, then age"),
        ("data__kind", "image", "another kind of data: table, then image"),
        ("model__input_shape", [5], "another shape of an input: 4, then 5"),
    ],
)
def test_another_question_altogether_compares_nothing(field, value, reason):
    first, second = pairs(200, 30, 0, 150)
    found = between(accuracy(first), accuracy(second, **{field: value}))
    assert found.verdict == "not_comparable"
    assert found.change("performance.accuracy").reason == reason
    assert reason in found.sentence


def test_classes_in_another_order_are_another_question():
    first, second = pairs(200, 30, 0, 150)
    one = {"model__class_names": ["cat", "dog"], "model__classes": 2}
    two_ = {"model__class_names": ["dog", "cat"], "model__classes": 2}
    assert between(accuracy(first, **one), accuracy(second, **two_)).verdict == "not_comparable"
    assert between(accuracy(first, **one), accuracy(second, model__classes=2)).verdict == "worse"


def test_where_the_primary_metric_was_not_measured_the_verdict_says_so():
    old = result(check("robustness", [], "test", {}))
    found = between(old, old)
    assert found.verdict == "not_comparable"
    assert found.change("performance.accuracy").primary
    assert "cannot be compared" in found.sentence


def test_two_checks_with_one_metric_are_not_compared():
    correct = bits(100, 90)
    one = check("performance", [share("performance.accuracy", correct)], "test", {"c": correct})
    twice = result(one, one.model_copy(update={"id": "plugin"}))
    assert "two checks of the newer result" in change_of(accuracy(correct), twice).reason


def test_intervals_of_another_confidence_are_not_mixed_but_shares_are_computed_anew():
    def made(confidence):
        metric = Metric(id="performance.r2", value=0.9, low=0.8, high=0.95, confidence=confidence, n=50, method="bootstrap")
        return result(check("performance", [metric], "test", {}), spec__confidence=confidence)

    assert change_of(made(0.95), made(0.99), "performance.r2").reason == "intervals of another confidence: 0.95, then 0.99"
    assert "0.99 is asked for" in change_of(made(0.95), made(0.95), "performance.r2", confidence=0.99).reason
    assert change_of(made(0.99), made(0.99), "performance.r2", confidence=0.95).outcome == "unchanged"
    first, second = pairs(200, 15, 4, 170)
    wide, narrow = (change_of(accuracy(first), accuracy(second), confidence=c) for c in (0.999, 0.9))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_a_primary_metric_that_nobody_measured_is_an_error_that_names_what_is_close():
    with pytest.raises(UsageError, match=r"performance\.acuracy.*performance\.accuracy"):
        between(accuracy(bits(10, 9)), accuracy(bits(10, 9)), primary="performance.acuracy")


@pytest.mark.parametrize("confidence", [0.0, 0.4, 1.0, 2.0])
def test_a_confidence_that_is_none_is_refused(confidence):
    with pytest.raises(UsageError, match="confidence"):
        between(accuracy(bits(10, 9)), accuracy(bits(10, 9)), confidence=confidence)


# --- what else differs -----------------------------------------------------------------------------------------------


def packed(rows):
    import base64

    return base64.b64encode(np.packbits(rows).tobytes()).decode()


def test_another_sample_of_the_same_file_is_told_with_its_overlap():
    def drawn(rows, seed):
        return accuracy(
            bits(100, 90),
            samples=f"seed{seed}",
            data__sha256=ids_of("file"),
            data__rows=300,
            data__sampled=packed(rows),
            spec__seed=seed,
        )

    rows = np.arange(300)
    found = between(drawn(rows < 100, 0), drawn((rows >= 60) & (rows < 160), 1))
    assert "other samples of the same file (100 samples, then 100, 40 in both): not paired, taken as independent" in found.notes
    assert "another seed: 0, then 1" in found.notes
    assert not found.paired


@pytest.mark.parametrize("sampled", ["!", "", "AAAA" * 100])
def test_bits_of_rows_that_are_none_are_no_error(sampled):
    new = accuracy(bits(100, 90), samples="other", data__sha256=ids_of("test"), data__rows=300, data__sampled=sampled)
    assert any("went in otherwise" in note for note in between(accuracy(bits(100, 90)), new).notes)


def test_a_number_of_rows_that_no_memory_holds_is_no_error():
    sides = [accuracy(bits(9, 8), samples=s, data__sha256=ids_of("f"), data__rows=10**15, data__n=10**15) for s in "ab"]
    assert between(*sides).verdict == "unchanged"


def test_other_data_versions_and_order_of_time_are_told():
    old = accuracy(bits(100, 90)).model_copy(update={"started_at": "2027-01-01T00:00:00Z"})
    new = accuracy(bits(100, 90), samples="other", spec__audit_version="9", data__reference_sha256="x")
    notes = " / ".join(between(old, new).notes)
    for said in (
        "same network file",
        "later one",
        "other test data",
        "reference part",
        "another version of audit: 0.1.0, then 9",
    ):
        assert said in notes


def test_the_same_result_twice_differs_in_nothing():
    rng = np.random.default_rng(1)
    made = audited(World.drawn(400, rng), rng)
    found = between(made, made)
    assert {(c.change, c.outcome) for c in found.changes} == {(0.0, "unchanged")}
    assert len(found.changes) == len(made.metrics())
    assert found.notes == ["both audits are of the same network file"]
    assert found.paired


# --- what was allowed ------------------------------------------------------------------------------------------------


def test_a_drop_is_the_change_for_the_worse_in_either_direction():
    higher = Change(metric="a.b", direction="higher", change=-0.1, low=-0.15, high=-0.05, outcome="worse")
    lower = Change(metric="a.b", direction="lower", change=0.1, low=0.05, high=0.15, outcome="worse")
    assert worst_case(higher) == worst_case(lower) == (0.05, 0.15)


def test_an_allowance_is_kept_only_where_the_bound_shows_it():
    first, second = pairs(2000, 60, 20, 1800)
    found = between(accuracy(first), accuracy(second))
    least, most = worst_case(found.change("performance.accuracy"))
    assert 0 < least < 0.02 < most
    assert within(found, most) == "pass"
    assert within(found, most - 1e-9) == "incomplete"
    assert within(found, least) == "incomplete"
    assert within(found, least - 1e-9) == "fail"


def test_an_allowance_for_one_metric_excuses_no_other():
    assert within(between(*many(3)), 0.5) == "fail"


def test_an_allowance_on_what_cannot_be_compared_is_never_kept():
    first, second = pairs(200, 0, 30, 150)
    found = between(accuracy(first), accuracy(second, model__classes=3))
    assert within(found, 0.5) == "incomplete"


# --- files -----------------------------------------------------------------------------------------------------------


def test_results_are_read_from_files_and_folders(tmp_path):
    import hashlib

    first, second = pairs(200, 30, 4, 150)
    old, new = accuracy(first), accuracy(second, model="b")
    for name, made in (("old", old), ("new", new)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(made.to_json())
    found = audit.diff(tmp_path / "old", tmp_path / "new" / "result.json")
    assert found.verdict == "worse"
    assert found.source == str(tmp_path / "old" / "result.json")
    assert found.sha256 == hashlib.sha256((tmp_path / "old" / "result.json").read_bytes()).hexdigest()
    assert found.changes == diff(old, new).changes
    assert found.model_sha256 == ids_of("a")


def test_an_edited_result_is_refused(tmp_path):
    made = accuracy(bits(100, 90))
    edited = made.model_copy(update={"verdict": "pass"})
    with pytest.raises(InputError, match="was edited: it says 'pass', but what it holds is judged 'unjudged'"):
        diff(edited, made)
    with pytest.raises(InputError, match="was edited"):
        diff(made, edited)
    with pytest.raises(InputError, match="result"):
        diff(tmp_path / "none.json", made)


def test_a_comparison_is_stored_with_a_result_and_read_back():
    first, second = disagreeing(500, 0.05, 0.01, np.random.default_rng(0))
    new = accuracy(second, model="b")
    whole = new.model_copy(update={"comparison": between(accuracy(first), new)})
    again = Result.from_json(whole.to_json())
    assert again.comparison == whole.comparison
    assert json.loads(whole.to_json())["comparison"]["verdict"] == "worse"


def test_comparing_imports_no_torch():
    assert "torch" not in vars(comparing)
