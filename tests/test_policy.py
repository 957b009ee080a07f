"""Limits, verdicts and exit codes: a gate never goes green on nothing, and fail wins over incomplete."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit import stats
from audit.config import Limit, PolicySection
from audit.errors import InputError, PolicyFailed, UsageError
from audit.policy import describe, judge, judge_again, require
from audit.result import CheckResult, DataInfo, Evidence, Judgement, Metric, ModelInfo, Result, Spec


def share(metric_id: str, k: int, n: int, **more: Any) -> Metric:
    interval = stats.clopper_pearson(k, n, more.get("confidence", 0.95))
    values = {"confidence": 0.95, "method": "clopper-pearson"} | more
    return Metric(id=metric_id, value=interval.value, low=interval.low, high=interval.high, n=n, **values)


def check(check_id: str, *metrics: Metric, status: str = "measured", ok: bool = True, reason: str | None = None) -> CheckResult:
    evidence = [Evidence(id=f"{check_id}.sound", ok=ok, detail="as measured", one_sided=True)]
    if status == "measured" and not ok:
        status, reason = "incomplete", "the evidence is not ok"
    return CheckResult(
        id=check_id, status=status, reason=reason, question="?", answer=".", metrics=list(metrics), evidence=evidence
    )


def policy(*limits: Limit | dict[str, Any], confidence: float = 0.95) -> PolicySection:
    return PolicySection(confidence=confidence, limit=[x if isinstance(x, Limit) else Limit(**x) for x in limits])


def atleast(value: float, metric: str = "performance.accuracy", **more: Any) -> Limit:
    return Limit(metric=metric, min=value, **more)


GOOD = check("performance", share("performance.accuracy", 950, 1000))
POOR = check("performance", share("performance.accuracy", 300, 1000))
SMALL = check("performance", share("performance.accuracy", 9, 10))


@pytest.mark.parametrize(
    ("limits", "checks", "gate", "required", "word", "code"),
    [
        ([atleast(0.9)], [GOOD], False, (), "pass", 0),
        ([atleast(0.9)], [GOOD], True, (), "pass", 0),
        ([atleast(0.9)], [POOR], False, (), "fail", 1),
        ([atleast(0.9)], [SMALL], False, (), "incomplete", 4),
        ([], [GOOD], False, (), "unjudged", 0),
        ([], [GOOD], True, (), "unjudged", 4),
        ([], [], True, (), "incomplete", 4),
        ([], [], False, (), "incomplete", 4),
        ([atleast(0.9)], [], False, (), "incomplete", 4),
        ([], [check("fairness", status="not_applicable", reason="no groups")], False, (), "incomplete", 4),
        ([], [GOOD, check("fairness", status="not_applicable", reason="no groups")], False, (), "unjudged", 0),
        ([], [GOOD, check("robustness", status="error", reason="boom")], False, (), "incomplete", 4),
        ([atleast(0.9)], [GOOD, check("robustness", status="error", reason="boom")], False, (), "incomplete", 4),
        ([atleast(0.9)], [GOOD, check("fairness", status="not_applicable")], False, ("fairness",), "incomplete", 4),
        ([atleast(0.9)], [GOOD], False, ("performance", "fairness"), "incomplete", 4),
        ([atleast(0.9)], [GOOD], False, ("performance",), "pass", 0),
        ([atleast(0.1, "fairness.sex.worst_group_accuracy")], [GOOD], False, (), "incomplete", 4),
        ([atleast(0.9, required=False)], [GOOD], True, (), "unjudged", 4),
    ],
)
def test_verdict_and_exit_code(limits, checks, gate, required, word, code):
    verdict = judge(policy(*limits), checks, gate=gate, required=required)
    assert (verdict.word, verdict.exit_code) == (word, code), verdict
    assert verdict.sentence.endswith(".")


def test_fail_wins_over_incomplete():
    poor = check("performance", share("performance.accuracy", 300, 1000))
    straddles = check("robustness", share("robustness.linf.accuracy", 5, 10, kind="upper"))
    broken = check("fairness", status="error", reason="boom")
    limits = policy(atleast(0.9), atleast(0.5, "robustness.linf.accuracy"), atleast(0.5, "fairness.sex.worst_group_accuracy"))
    verdict = judge(limits, [poor, straddles, broken], gate=True, required=("fairness",))
    assert [j.outcome for j in verdict.judgements] == ["fail", "incomplete", "incomplete"]
    assert (verdict.word, verdict.exit_code) == ("fail", 1)


@pytest.mark.parametrize("side", ["min", "max"])
def test_it_is_the_bound_that_must_clear_the_limit(side):
    metric = share("performance.accuracy", 50, 100)
    bound = metric.low if side == "min" else metric.high
    just = [bound, bound + (1e-6 if side == "min" else -1e-6)]
    outcomes = [
        judge(policy({"metric": metric.id, side: limit}), [check("performance", metric)], gate=False).judgements[0]
        for limit in just
    ]
    assert [j.outcome for j in outcomes] == ["pass", "incomplete"]
    assert outcomes[0].bound == bound
    assert outcomes[1].plan_for is None or outcomes[1].plan_for > 0


@given(st.integers(0, 200), st.integers(1, 200), st.integers(1, 99), st.sampled_from(["min", "max"]))
def test_one_limit_alone_is_decided_by_the_interval(k, n, percent, side):
    """Holm over one limit changes nothing: fail exactly where the whole interval lies beyond, pass where the bound clears."""
    metric, limit = share("performance.accuracy", min(k, n), n), percent / 100
    low, high = (metric.low, metric.high) if side == "min" else (-metric.high, -metric.low)
    against = limit if side == "min" else -limit
    word = "pass" if low >= against else "fail" if high < against else "incomplete"
    assert judge(policy({"metric": metric.id, side: limit}), [check("performance", metric)], gate=False).word == word


def test_an_undecided_limit_says_for_how_many_samples_to_plan():
    (judgement,) = judge(policy(atleast(0.8)), [SMALL], gate=False).judgements
    assert judgement.plan_for is not None
    assert judgement.plan_for > 10
    assert "is not a test" in judgement.reason


@pytest.mark.parametrize(
    ("kind", "side", "k", "outcome"),
    [
        # a failed min on an upper bound, a failed max on a lower one: better evidence could only make it worse
        ("upper", "min", 10, "fail"),
        ("lower", "max", 90, "fail"),
        # everything else is worth nothing where the evidence is not ok
        ("upper", "min", 90, "incomplete"),
        ("lower", "min", 10, "incomplete"),
        ("estimate", "min", 10, "incomplete"),
        ("estimate", "max", 90, "incomplete"),
        ("upper", "max", 90, "incomplete"),
        ("lower", "max", 10, "incomplete"),
    ],
)
def test_what_stands_where_evidence_is_not_ok(kind, side, k, outcome):
    metric = share("robustness.linf.accuracy", k, 100, kind=kind)
    for weak in (
        check("robustness", metric, ok=False),
        # a check that says "measured" against its own evidence is not believed
        CheckResult(
            id="robustness",
            status="measured",
            question="?",
            answer=".",
            metrics=[metric],
            evidence=[Evidence(id="robustness.loss_rises", ok=False, detail="flat", one_sided=True)],
        ),
    ):
        verdict = judge(policy({"metric": metric.id, side: 0.5}), [weak], gate=False)
        assert verdict.judgements[0].outcome == outcome
        assert verdict.exit_code == (1 if outcome == "fail" else 4)


def test_nothing_stands_where_the_output_is_a_matter_of_luck():
    """A network that changes its answer from one forward to the next is broken by nothing at all."""
    metric = share("robustness.linf.accuracy", 10, 100, kind="upper")
    evidence = [Evidence(id="robustness.linf.verified", ok=False, detail="1 of 20 held in a fresh forward")]
    random = check("robustness", metric, ok=False).model_copy(update={"evidence": evidence})
    assert judge(policy({"metric": metric.id, "min": 0.5}), [random], gate=False).word == "incomplete"


def test_figures_of_a_check_in_error_prove_nothing():
    broken = check("robustness", share("robustness.linf.accuracy", 1, 100, kind="upper"), status="error", reason="boom")
    verdict = judge(policy(atleast(0.5, "robustness.linf.accuracy")), [broken], gate=False)
    assert verdict.word == "incomplete"
    assert "boom" in verdict.judgements[0].reason


@pytest.mark.parametrize(
    "empty",
    [
        {"value": None, "low": None, "high": None},
        {"value": None, "low": 0.99, "high": 1.0},
        {"value": 1.0, "low": None, "high": None},
        {"value": 1.0, "low": 1.0, "high": 1.0, "n": 0},
    ],
)
def test_a_metric_without_value_interval_or_samples_is_incomplete(empty):
    values = {"id": "performance.accuracy", "confidence": 0.95, "n": 100, "method": "clopper-pearson"} | empty
    verdict = judge(policy(atleast(0.5)), [check("performance", Metric(**values))], gate=False)
    assert (verdict.word, verdict.exit_code) == ("incomplete", 4)


def test_an_interval_of_less_confidence_than_the_policy_asks_for_cannot_pass():
    loose = check("performance", share("performance.accuracy", 95, 100, confidence=0.5))
    verdict = judge(policy(atleast(0.92), confidence=0.99), [loose], gate=False)
    assert verdict.judgements[0].bound >= 0.92
    assert verdict.word == "incomplete"
    assert "0.5" in verdict.judgements[0].reason


def test_a_metric_that_two_checks_measured_is_incomplete():
    good, poor = (check(name, share("performance.accuracy", k, 1000)) for name, k in (("performance", 400), ("mine", 999)))
    for order in ([good, poor], [poor, good]):
        assert judge(policy(atleast(0.9)), order, gate=False).judgements[0].outcome == "incomplete"


def test_holm_keeps_a_limit_from_failing_on_noise_among_many():
    # 41 of 100 lies surely below 0.52 on its own (p = 0.018), not among ten limits.
    noisy = share("performance.accuracy", 41, 100)
    assert judge(policy(atleast(0.52)), [check("performance", noisy)], gate=False).word == "fail"
    others = [share(f"performance.class_{i}.recall", 60, 100) for i in range(9)]
    many = policy(atleast(0.52), *(atleast(0.48, m.id) for m in others))
    verdict = judge(many, [check("performance", noisy, *others)], gate=False)
    assert verdict.judgements[0].outcome == "incomplete"
    assert "Holm" in verdict.judgements[0].reason
    assert verdict.judgements[0].plan_for > 100


def test_limits_that_are_not_required_never_move_the_verdict():
    """They are judged and shown, but neither fail, nor leave open, nor weaken the correction of those that are required."""
    noisy = share("performance.accuracy", 41, 100)
    others = [share(f"performance.class_{i}.recall", k, 100) for i, k in enumerate((1, 50, 60, 60, 60, 60, 60, 60, 60))]
    checks = [check("performance", noisy, *others)]
    optional = [atleast(0.5, m.id, required=False) for m in others]
    for limit, word in ((atleast(0.52), "fail"), (atleast(0.3), "pass"), (atleast(0.4), "incomplete")):
        alone = judge(policy(limit), checks, gate=False)
        beside = judge(policy(*optional, limit), checks, gate=False)
        assert alone.word == beside.word == word
        assert beside.judgements[-1] == alone.judgements[0]
        assert len(beside.judgements) == 10
    outcomes = [j.outcome for j in judge(policy(*optional, atleast(0.3)), checks, gate=False).judgements]
    assert outcomes[:2] == ["fail", "incomplete"]
    assert "performance.class_0.recall" in judge(policy(*optional, atleast(0.3)), checks, gate=False).sentence


def test_an_optional_limit_on_a_missing_metric_leaves_the_verdict_alone():
    limits = policy(atleast(0.9), atleast(0.5, "fairness.sex.worst_group_accuracy", required=False))
    verdict = judge(limits, [GOOD], gate=True)
    assert verdict.word == "pass"
    assert verdict.judgements[1].outcome == "incomplete"
    assert "fairness.sex.worst_group_accuracy" in verdict.sentence


def test_a_limit_with_no_side_or_two_is_refused():
    for sides in ({}, {"min": 0.1, "max": 0.9}):
        limit = Limit.model_construct(metric="performance.accuracy", required=True, **({"min": None, "max": None} | sides))
        with pytest.raises(Exception, match="one of min, max and max_drop"):
            judge(PolicySection.model_construct(confidence=0.95, limit=[limit]), [GOOD], gate=False)


# --- from the result alone --------------------------------------------------------------------------------------------


def stored(verdict_of: PolicySection, checks: list[CheckResult], *, gate: bool = False, required=None) -> Result:
    verdict = judge(verdict_of, checks, gate=gate, required=required or ())
    return Result(
        verdict=verdict.word,
        sentence=verdict.sentence,
        exit_code=verdict.exit_code,
        started_at="2026-01-01T00:00:00Z",
        seconds=1.0,
        spec=Spec(
            audit_version="0",
            config={"run": {"gate": gate, "checks": required}, "policy": verdict_of.model_dump(mode="json")},
            policy_sha256=verdict_of.sha256(),
        ),
        model=ModelInfo(source="m", sha256="0", format="f", task="classification", classes=2, input_shape=[1], parameters=1),
        data=DataInfo(source="d", sha256="0", n=1000),
        checks=checks,
        policy=verdict.judgements,
    )


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("required", [None, ["performance"], ["fairness"]])
@pytest.mark.parametrize("limits", [[], [atleast(0.9)], [atleast(0.99)], [atleast(0.95)], [atleast(0.9, required=False)]])
def test_the_verdict_is_recomputed_from_the_json_alone(gate, required, limits):
    result = Result.from_json(stored(policy(*limits), [GOOD], gate=gate, required=required).to_json())
    again = judge_again(result)
    assert (again.word, again.exit_code, again.sentence, again.judgements) == (
        result.verdict,
        result.exit_code,
        result.sentence,
        result.policy,
    )


def test_a_verdict_that_was_edited_does_not_survive_recomputing():
    forged = stored(policy(atleast(0.9)), [POOR]).model_copy(update={"verdict": "pass", "exit_code": 0})
    assert judge_again(forged).word == "fail"


@pytest.mark.parametrize("config", [{"policy": {"limit": [{"metric": "a.b", "mim": 1}]}}, {"run": 3}, {"policy": 7}])
def test_a_result_whose_policy_cannot_be_read_says_so(config):
    result = stored(policy(), [GOOD])
    broken = result.model_copy(update={"spec": result.spec.model_copy(update={"config": config})})
    with pytest.raises(InputError):
        judge_again(broken)


@pytest.mark.slow
def test_recomputing_imports_no_torch(tmp_path):
    path = tmp_path / "result.json"
    path.write_text(stored(policy(atleast(0.9)), [GOOD]).to_json())
    code = (
        "import sys; from audit.result import Result; from audit.policy import judge_again; "
        f"print(judge_again(Result.load({str(path)!r})).word, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["pass", "False"]


@pytest.mark.parametrize(
    ("limits", "checks", "code"), [([], [GOOD], 4), ([atleast(0.9)], [POOR], 1), ([atleast(0.9)], [SMALL], 4)]
)
def test_require_raises_for_all_but_pass(limits, checks, code):
    with pytest.raises(PolicyFailed) as caught:
        require(stored(policy(*limits), checks))
    assert caught.value.exit_code == code
    if limits:
        assert "performance.accuracy should be at least 0.9" in str(caught.value)


def test_require_believes_no_verdict_that_was_edited():
    forged = stored(policy(atleast(0.9)), [POOR]).model_copy(update={"verdict": "pass", "exit_code": 0, "policy": []})
    with pytest.raises(PolicyFailed, match="was edited") as caught:
        require(forged)
    assert caught.value.exit_code == 1


def test_require_lets_pass_through():
    require(stored(policy(atleast(0.9)), [GOOD]))


def test_describe_names_metric_limit_bound_and_reason():
    judgement = Judgement(metric="a.b", max=0.25, bound=0.3, outcome="incomplete", reason="too few")
    assert describe(judgement) == "a.b should be at most 0.25; its bound is 0.3; too few"


def test_the_policy_hash_shows_a_weaker_gate():
    strict, weak, optional = policy(atleast(0.9)), policy(atleast(0.8)), policy(atleast(0.9, required=False))
    hashes = {p.sha256() for p in (strict, weak, optional, policy(atleast(0.9), confidence=0.9), policy())}
    assert len(hashes) == 5
    assert policy().sha256() is None


# --- limits that no run could decide ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"metric": "performance.acuracy", "min": 0.5}, "did you mean 'performance.accuracy'"),
        ({"metric": "robustness.accuracy", "min": 0.5}, "no check measures"),
        ({"metric": "nonsense", "min": 0.5}, "no check measures"),
        ({"metric": "performance.accuracy", "min": 40}, "between 0 and 1"),
        ({"metric": "performance.accuracy", "min": 0}, "above 0"),
        ({"metric": "fairness.sex.demographic_parity_difference", "max": 10}, "between 0 and 1"),
        ({"metric": "fairness.sex.demographic_parity_difference", "max": 1}, "below 1"),
    ],
)
def test_a_limit_that_nothing_could_decide_is_a_usage_error(limit, message):
    from audit.plan import check_limits

    with pytest.raises(UsageError, match=message):
        check_limits(PolicySection(limit=[Limit(**limit)]))


def test_limits_on_every_documented_metric_are_taken():
    from audit.checks.base import registry
    from audit.plan import check_limits

    for each in registry().values():
        for doc in each.metrics:
            metric, side = (
                doc.id.replace("<norm>", "linf").replace("<", "").replace(">", ""),
                "min" if doc.direction == "higher" else "max",
            )
            check_limits(PolicySection(limit=[Limit(metric=metric, **{side: 0.5})]))
            with pytest.raises(UsageError, match=f"needs {side}"):
                check_limits(PolicySection(limit=[Limit(metric=metric, **{"max" if side == "min" else "min": 0.5})]))


# --- evidence about some metrics --------------------------------------------------------------------------------------


def partly(*about: str) -> CheckResult:
    metrics = [share("fairness.sex.worst_group_accuracy", 950, 1000), share("fairness.age.worst_group_accuracy", 950, 1000)]
    evidence = [Evidence(id="fairness.age.sizes", ok=False, detail="nine people", about=list(about))]
    return CheckResult(id="fairness", status="measured", question="?", answer=".", metrics=metrics, evidence=evidence)


def test_weak_evidence_about_one_metric_leaves_the_others_to_be_judged_and_is_told():
    result = partly("fairness.age.worst_group_accuracy")
    words = [
        judge(policy(atleast(0.9, f"fairness.{name}.worst_group_accuracy")), [result], gate=True) for name in ("sex", "age")
    ]
    assert [verdict.word for verdict in words] == ["pass", "incomplete"]
    assert "weak evidence in fairness" in words[0].sentence
    both = judge(policy(atleast(0.9, "fairness.sex.worst_group_accuracy")), [partly()], gate=True)
    assert both.word == "incomplete", "evidence that names no metric is about all of them"


def test_evidence_is_about_metrics_of_its_own_check():
    with pytest.raises(ValueError, match=r"about metrics of fairness, got \['performance.accuracy'\]"):
        partly("performance.accuracy")
