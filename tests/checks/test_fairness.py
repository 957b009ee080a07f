"""The fairness check: what it needs, what it reports, and what leaves it incomplete."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from audit import stats
from audit.checks.base import Task
from audit.checks.fairness import Fairness
from audit.checks.performance import Performance
from audit.config import Limit, PolicySection
from audit.data.base import Dataset
from audit.errors import UsageError
from audit.model.wrapper import Model
from audit.policy import judge
from tests.checks.test_performance import Broken, Drunk, Herd, Linear
from tests.stagerun import run_check


def task_of(y, predicted, sensitive, module=None, classes=2, class_names=(), **options):
    logits = 4 * np.eye(classes, dtype=np.float32)[predicted] - 1
    data = Dataset(logits, y, sensitive=sensitive, classes=class_names)
    model = Model(module or Linear(), task="classification", output="logits")
    return Task(model=model, data=data, options=Fairness.Options(**options))


def audit(*args, **options):
    return run_check(Fairness(), task_of(*args, **options))


def unfair(n=1500, rates=(0.7, 0.3), seed=0):
    """Labels and groups that have nothing to do with each other; predictions that select one group more."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 2, n)
    y = rng.integers(0, 2, n)
    predicted = (rng.random(n) < np.asarray(rates)[group]).astype(int)
    return y, predicted, np.asarray(["f", "m"])[group]


def severe(result):
    return [f for f in result.findings if f.severity == "high"]


def test_a_sure_gap_is_reported_with_both_groups_and_samples():
    y, p, sex = unfair()
    result = audit(y, p, {"sex": sex})
    assert result.status == "measured"
    assert {f.title.split(" differs")[0] for f in severe(result)} == {
        "Selection rate",
        "True positive rate",
        "False positive rate",
    }
    selection = severe(result)[0]
    assert "f 7" in selection.title
    assert "m 3" in selection.title
    assert 1 <= len(selection.samples) <= 10
    assert all(sex[i] == "m" and y[i] == 1 and p[i] == 0 for i in selection.samples)
    assert (result.outcomes.bits("fairness.selected") == (p == 1)).all()
    assert result.metric("fairness.sex.demographic_parity_difference").low > 0.1
    assert "surely larger than 10%" in result.answer
    result.model_dump_json()


@pytest.mark.slow
def test_even_treatment_is_not_accused_over_many_seeds():
    accused = sum(bool(severe(audit(*_with_groups(*unfair(400, (0.5, 0.5), seed))))) for seed in range(40))
    assert accused == 0


def test_an_accusation_must_outlast_all_the_rates_that_were_compared():
    """With four rates looked at, a gap that one of them alone would call sure is none."""
    low = np.arange(100, 250)
    surely = [stats.pairwise_differences([250, k], [500, 500], 0.95)[0][0, 1] for k in low]
    k = int(low[np.flatnonzero(np.asarray(surely) > 0.1)[-1]])  # the smallest gap that would do alone
    p = np.r_[np.arange(500) < 250, np.arange(500) < k].astype(int)
    sex, y = np.repeat(["f", "m"], 500), np.arange(1000) % 2
    result = audit(y, p, {"sex": sex})
    assert result.metric("fairness.sex.demographic_parity_difference").low > 0.1
    assert not severe(result)


def _with_groups(y, p, sex):
    return y, p, {"sex": sex, "region": np.random.default_rng(1).choice(["n", "s", "w"], len(y))}


def test_a_limit_above_the_gap_is_no_accusation():
    assert not severe(audit(*_with_groups(*unfair()), gap=0.6))


def test_the_finding_on_two_attributes_is_left_out_where_one_shows_it_alone():
    result = audit(*_with_groups(*unfair(4000)))
    assert severe(result)
    assert not [f for f in severe(result) if "sex & region" in f.title]


def test_a_gap_that_only_two_attributes_together_show_is_found():
    rng = np.random.default_rng(0)
    a, b, y = rng.integers(0, 2, 4000), rng.integers(0, 2, 4000), rng.integers(0, 2, 4000)
    p = (rng.random(4000) < np.where(a == b, 0.75, 0.25)).astype(int)
    names = np.asarray(["no", "yes"])
    result = audit(y, p, {"a": names[a], "b": names[b]})
    assert severe(result)
    assert all("a & b" in f.title for f in severe(result))
    alone = audit(y, p, {"a": names[a], "b": names[b]}, intersections=False)
    assert not severe(alone)
    assert any("switched off" in line for line in alone.not_tested)


def test_a_small_group_leaves_it_incomplete_and_is_named():
    y, p, sex = unfair(rates=(0.5, 0.5))
    sex = sex.astype(object)
    sex[:9] = "other"
    result = audit(y, p, {"sex": sex})
    assert result.status == "incomplete"
    assert "sex = other (9 people, fewer than 30)" in result.reason
    assert audit(y, p, {"sex": sex}, min_group_size=9).status == "measured"


def failed(result):
    return {e.id for e in result.evidence if not e.ok}


def test_a_weak_group_is_laid_to_the_attribute_that_has_it():
    y, p, sex = unfair(rates=(0.5, 0.5))
    region = np.where((np.arange(len(y)) % 40 == 0) | (sex == "m"), "n", "s")
    result = audit(y, p, {"sex": sex, "region": region})
    assert failed(result) == {"fairness.sex__region.group_sizes"}
    assert {e.id for e in result.evidence if e.ok} >= {"fairness.sex.group_sizes", "fairness.region.label_sizes"}


def test_an_error_rate_over_a_few_people_is_not_enough_in_a_large_group():
    y, p, sex = unfair(rates=(0.5, 0.5))
    y = np.where(sex == "f", 0, y)
    y[np.flatnonzero(sex == "f")[:3]] = 1
    result = audit(y, p, {"sex": sex})
    assert failed(result) == {"fairness.sex.label_sizes"}
    assert "sex = f (3 people with the label 1, fewer than 10)" in told(result)
    assert judged(result, "sex.equalized_odds_difference", max=0.999) == "incomplete"
    assert judged(result, "sex.worst_group_accuracy", min=0.01) == "pass", "no error rate"
    assert not failed(audit(y, p, {"sex": sex}, min_labelled=3))
    assert failed(audit(y, p, {"sex": sex}, min_labelled=4)) == {"fairness.sex.label_sizes"}
    assert not failed(audit(y, p, {"sex": sex}, min_group_size=9))  # a third of it is asked for


def test_the_headline_is_the_gap_that_is_proven_not_the_one_of_a_handful_of_people():
    y, p, sex = unfair()
    village = np.full(len(y), "large")
    village[:12] = "small"
    p[:12] = 1  # the wider gap, of twelve people
    result = audit(y, p, {"village": village, "sex": sex}, intersections=False)
    gaps = {name: result.metric(f"fairness.{name}.demographic_parity_difference") for name in ("village", "sex")}
    assert gaps["village"].value > gaps["sex"].value
    assert gaps["village"].low < gaps["sex"].low
    assert f"by sex differ by up to {gaps['sex'].value:.1%}, surely by more than {gaps['sex'].low:.1%}" in result.answer
    assert "which may be chance" in audit(*_with_groups(*unfair(400, (0.5, 0.5)))).answer


def test_groups_are_called_by_their_names_in_all_texts_tables_and_figures():
    y, p, sex = unfair()
    names = {"sex": {"0": "women", "1": "men"}}
    result = audit(y, p, {"sex": (sex == "m").astype(int)}, names=names)
    assert "women 7" in severe(result)[0].title
    assert all(figure.data["labels"] == ["women", "men"] for figure in result.figures)
    assert [[row[0] for row in table.rows] for table in result.tables[:2]] == [["women", "men"]] * 2
    assert "sex = women" in str(audit(y[:40], p[:40], {"sex": (sex == "m")[:40].astype(int)}, names=names).reason)


def test_precision_f1_and_balanced_accuracy_stand_with_intervals_and_all_gaps_beside_them():
    from sklearn.metrics import f1_score

    y, p, sex = unfair()
    _, predictive, gaps = audit(y, p, {"sex": sex}).tables
    rows = {row[0]: dict(zip(predictive.columns, row, strict=True)) for row in predictive.rows}
    for group in ("f", "m"):
        assert rows[group]["F1"] == pytest.approx(f1_score(y[sex == group], p[sex == group]))
        for name in ("precision", "F1", "balanced accuracy"):
            assert rows[group][f"{name}, low"] < rows[group][name] < rows[group][f"{name}, high"]
    by_measure = {row[0]: row[1:] for row in gaps.rows}
    assert len(by_measure) == 10
    assert by_measure["f1"][0] == pytest.approx(abs(rows["f"]["F1"] - rows["m"]["F1"]))
    metric = audit(y, p, {"sex": sex}).metric("fairness.sex.demographic_parity_difference")
    assert by_measure["selection rate"][:3] == [metric.value, metric.low, metric.high]


def told(result):
    return " ".join(e.detail for e in result.evidence if not e.ok)


def judged(result, metric: str, **limit: float) -> str:
    policy = PolicySection(limit=[Limit(metric=f"fairness.{metric}", **limit)])
    return judge(policy, [result], gate=True).word


def test_small_cells_of_intersections_leave_it_incomplete_until_they_are_not_asked():
    y, p, sex = unfair(rates=(0.5, 0.5))
    region = np.where((np.arange(len(y)) % 40 == 0) | (sex == "m"), "n", "s")
    result = audit(y, p, {"sex": sex, "region": region})
    assert "sex & region = f & n" in told(result)
    assert "fairness.intersections = false" in told(result)
    for measure in ("demographic_parity_difference", "equalized_odds_difference"):
        assert judged(result, f"sex__region.{measure}", max=0.999) == "incomplete"
        assert judged(result, f"sex.{measure}", max=0.999) == "pass", "what is known of one attribute is known all the same"
    assert any("sex & region = f & n" in line for line in result.not_tested)
    cell = result.metric("fairness.sex__region.demographic_parity_difference")
    assert cell.high - cell.low > 0.15
    alone = audit(y, p, {"sex": sex, "region": region}, intersections=False)
    assert not failed(alone)
    assert any("switched off" in line for line in alone.not_tested)


@pytest.mark.parametrize("label", [0, 1])
def test_a_group_without_positives_or_negatives_leaves_it_incomplete(label):
    y, p, sex = unfair(rates=(0.5, 0.5))
    result = audit(np.where(sex == "f", label, y), p, {"sex": sex})
    assert "nobody with" in told(result)
    assert judged(result, "sex.equalized_odds_difference", max=0.999) == "incomplete"


def test_one_group_only_leaves_it_incomplete():
    y, p, _ = unfair()
    result = audit(y, p, {"sex": np.full(len(y), "f")})
    assert result.status == "incomplete"
    assert "nothing to compare" in result.reason
    assert "nothing to compare" in result.answer


def test_non_finite_outputs_select_nobody_and_leave_it_incomplete():
    y, p, sex = unfair()
    result = audit(y, p, {"sex": sex}, module=Broken())
    assert result.status == "incomplete"
    assert not (result.outcomes.bits("fairness.selected") & (p == 0)).any()
    assert "NaN" in result.reason


def test_base_rates_that_differ_are_said():
    y, _, sex = unfair()
    y = np.where(sex == "f", 1, y)
    y[::5] = 0
    result = audit(y, y, {"sex": sex})
    assert [f.severity for f in result.findings if f.title == "Base rates differ by sex"] == ["info"]


def test_ranges_are_named():
    y, p, _ = unfair()
    age = np.random.default_rng(0).integers(18, 90, len(y))
    result = audit(y, p, {"age": age})
    (finding,) = (f for f in result.findings if "cut into ranges" in f.title)
    assert "quartiles" in finding.detail
    table = result.tables[0]
    assert "quartiles" in table.title
    assert len(table.rows) == 4
    stated = audit(y, p, {"age": age}, bins={"age": [40, 65]})
    assert [row[0] for row in stated.tables[0].rows] == ["less than 40", "40 to less than 65", "65 and more"]


def test_forests_show_every_rate_of_single_attributes():
    result = audit(*_with_groups(*unfair()))
    assert len(result.figures) == 8
    for figure in result.figures:
        assert figure.kind == "forest"
        rows = zip(figure.data["low"], figure.data["values"], figure.data["high"], strict=True)
        assert all(low <= value <= high for low, value, high in rows)


def test_hostile_group_names_pass_through_as_text():
    y, p, _ = unfair()
    names = np.asarray(["<script>alert(1)</script>" * 20, "\u202e\x1b[31m\n"])[np.arange(len(y)) % 2]
    result = audit(y, p, {"../<b>": names}, names={"../<b>": {"\u202e\x1b[31m\n": "<img src=x onerror=alert(1)>"}})
    assert all(m.id.startswith("fairness.____b_.") for m in result.metrics)
    result.model_dump_json()


def test_more_classes_are_compared_one_against_the_rest():
    rng = np.random.default_rng(0)
    y, sex = rng.integers(0, 3, 1500), rng.choice(["f", "m"], 1500)
    p = np.where((sex == "f") & (rng.random(1500) < 0.5), 2, y)
    result = audit(y, p, {"sex": sex}, classes=3, class_names=("cat", "dog", "owl"))
    assert any("of class owl" in f.detail for f in severe(result))
    assert result.outcomes is None
    stated = audit(y, p, {"sex": sex}, classes=3, class_names=("cat", "dog", "owl"), positive="owl")
    assert stated.metrics[0].params["positive"] == "owl"
    assert (stated.outcomes.bits("fairness.selected") == (p == 2)).all()


def test_it_does_not_apply_without_attributes_or_to_regression():
    y, p, sex = unfair()
    assert "--sensitive" in Fairness().not_applicable(task_of(y, p, {}))
    regression = Task(
        model=Model(Linear(), task="regression"),
        data=Dataset(np.zeros((4, 1)), np.arange(4) / 3, sensitive={"a": list("ffmm")}),
        options=Fairness.Options(),
    )
    assert "classification only" in Fairness().not_applicable(regression)
    assert Fairness().not_applicable(task_of(y, p, {"sex": sex})) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positive": 2}, "from 0 to 1"),
        ({"positive": "7"}, "from 0 to 1"),
        ({"positive": "aproved"}, "did you mean 'approved'"),
        ({"attributes": ["sexx"]}, "did you mean 'sex'"),
        ({"bins": {"sex": [1, 2]}}, "are not numbers"),
        ({"names": {"sex": {"x": "others"}}}, "none of its groups"),
        ({"names": {"sexx": {}}}, "did you mean 'sex'"),
    ],
)
def test_options_that_do_not_fit_are_errors_before_any_work(options, message):
    y, p, sex = unfair()
    task = task_of(y, p, {"sex": sex}, class_names=("denied", "approved"), **options)
    task.model.resolve(task.data.test.x[:2], task.data.test.y)
    with pytest.raises(UsageError, match=message):
        Fairness().preflight(task)


def test_options_are_closed():
    with pytest.raises(ValidationError):
        Fairness.Options(min_groupsize=3)


def test_every_metric_is_documented():
    result = audit(*_with_groups(*unfair()))
    known = {doc.id.rsplit(".", 1)[1]: doc.direction for doc in Fairness.metrics}
    assert {m.id.rsplit(".", 1)[1]: m.direction for m in result.metrics} == known


@pytest.mark.parametrize(("module", "broken"), [(Drunk(), "deterministic"), (Herd(), "batch_independent")])
def test_selections_that_another_run_would_not_give_leave_it_incomplete(module, broken):
    y, p, sex = unfair(rates=(0.5, 0.5))
    result = audit(y, p, {"sex": sex}, module=module)
    assert result.status == "incomplete"
    assert not next(e for e in result.evidence if e.id == f"fairness.{broken}").ok


def test_the_stages_that_repeat_the_network_are_those_of_performance():
    y, p, sex = unfair()
    task = task_of(y, p, {"sex": sex})
    task.model.resolve(task.data.test.x[:2], y)
    mine, theirs = ({stage.id for stage in check().stages(task)} for check in (Fairness, Performance))
    assert {"repeatability.twice", "repeatability.alone"} <= mine & theirs
    assert all(e.ok for e in audit(y, p, {"sex": sex}).evidence)
