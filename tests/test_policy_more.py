"""Waivers, drops since a baseline, and gates that look more than once."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import numpy as np
import pytest

import audit
from audit.config import Limit, PolicySection, Waiver
from audit.errors import UsageError
from audit.plan import check_limits
from audit.policy import describe, judge, judge_again
from audit.result import Change, CheckResult, Comparison, OutcomeTable
from tests.test_policy import GOOD, POOR, atleast, check, share, stored

TODAY = date(2026, 3, 1)
WAIVER = Waiver(metric="performance.accuracy", reason="old test set", owner="Ada", expires=date(2026, 3, 1))


def waived(*limits: Limit, waivers: Any = (WAIVER,)) -> PolicySection:
    return PolicySection(limit=list(limits), waiver=list(waivers))


# --- waivers ----------------------------------------------------------------------------------------------------------


def test_a_waiver_holds_to_its_last_day_and_is_told():
    verdict = judge(waived(atleast(0.9)), [POOR], gate=True, today=TODAY)
    assert (verdict.word, verdict.exit_code) == ("pass", 0)
    assert verdict.judgements[0].outcome == "waived"
    assert verdict.sentence == (
        "No limit is cleared; each that fails is waived; performance.accuracy fails and is waived by Ada until 2026-03-01: "
        "old test set."
    )
    after = judge(waived(atleast(0.9)), [POOR], gate=True, today=date(2026, 3, 2))
    assert (after.word, after.exit_code) == ("fail", 1)
    assert "ran out on 2026-03-01" in after.judgements[0].reason


def test_the_later_of_two_waivers_counts():
    later = WAIVER.model_copy(update={"expires": date(2027, 1, 1), "owner": "Bo"})
    (judgement,) = judge(waived(atleast(0.9), waivers=(later, WAIVER)), [POOR], gate=True, today=date(2026, 6, 1)).judgements
    assert judgement.outcome == "waived"
    assert "Bo" in judgement.reason


@pytest.mark.parametrize(
    ("limits", "checks", "word"),
    [
        # A waiver is for what is known to fail: not for what could not be measured, and for no other limit.
        ([atleast(0.9)], [check("performance", share("performance.accuracy", 9, 10))], "incomplete"),
        ([atleast(0.9)], [], "incomplete"),
        ([atleast(0.9)], [check("performance", share("performance.accuracy", 1, 100), ok=False)], "incomplete"),
        ([atleast(0.9), atleast(0.5, "robustness.linf.accuracy")], [POOR], "incomplete"),
        (
            [atleast(0.9), atleast(0.5, "robustness.linf.accuracy")],
            [POOR, check("robustness", share("robustness.linf.accuracy", 1, 100))],
            "fail",
        ),
        ([atleast(0.9)], [POOR, check("robustness", status="error", reason="boom")], "incomplete"),
        ([atleast(0.9)], [GOOD], "pass"),
    ],
)
def test_a_waiver_covers_a_fail_and_nothing_else(limits, checks, word):
    assert judge(waived(*limits), checks, gate=True, today=TODAY).word == word


def test_a_waiver_of_two_limits_on_one_metric_is_told_once():
    verdict = judge(waived(atleast(0.9), atleast(0.8)), [POOR], gate=True, today=TODAY)
    assert [judgement.outcome for judgement in verdict.judgements] == ["waived", "waived"]
    assert verdict.sentence.count("fails and is waived by Ada") == 1


def test_a_check_that_was_cut_off_says_why_its_metric_is_missing():
    cut = check("robustness", status="incomplete", reason="the budget of 5 s ran out")
    (judgement,) = judge(waived(atleast(0.5, "robustness.linf.accuracy"), waivers=()), [cut], gate=True).judgements
    assert judgement.reason == "the check robustness is incomplete: the budget of 5 s ran out"


@pytest.mark.parametrize(("named", "waived_too"), [(None, False), ("min", False), ("max_drop", True)])
def test_a_waiver_of_a_level_is_none_of_a_further_drop(named, waived_too):
    drop = Limit(metric="performance.accuracy", max_drop=0.02)
    waiver = WAIVER.model_copy(update={"limit": named})
    verdict = judge(waived(drop, waivers=(waiver,)), [POOR], gate=True, today=TODAY, comparison=compared(-0.3, -0.2, -0.1))
    assert verdict.word == ("pass" if waived_too else "fail")
    if not waived_too:
        with pytest.raises(UsageError, match="max_drop"):
            check_limits(waived(drop, waivers=(waiver,)), baseline=True)


@pytest.mark.parametrize("field", ["reason", "owner"])
def test_a_waiver_names_who_and_why(field):
    with pytest.raises(ValueError, match="say something"):
        Waiver(**{**WAIVER.model_dump(), field: "  "})
    with pytest.raises(ValueError, match="say something"):
        Waiver(**{**WAIVER.model_dump(), field: "\u200b\u2060"})  # nobody sees who it is


@pytest.mark.parametrize(
    "expires",
    ["2026-06-01T00:00:00+14:00", "2026-06-01T00:00:00", "4102444800", 4102444800, True, "20260601", datetime(2026, 6, 1)],
)
def test_a_waiver_ends_with_a_day(expires):
    with pytest.raises(ValueError, match="should be a day"):
        Waiver(**{**WAIVER.model_dump(), "expires": expires})
    assert Waiver(**{**WAIVER.model_dump(), "expires": "2026-06-01"}).expires == date(2026, 6, 1)


def test_a_waiver_of_no_limit_is_refused():
    with pytest.raises(UsageError, match=r"performance\.accuracy.*no limit"):
        check_limits(waived(atleast(0.5, "performance.balanced_accuracy")))


def test_a_stored_verdict_is_judged_as_on_the_day_of_its_run():
    policy = waived(atleast(0.9))
    result = stored(policy, [POOR]).model_copy(update={"started_at": "2026-03-01T23:59:59Z"})
    assert judge_again(result).word == "pass"
    assert judge_again(result.model_copy(update={"started_at": "2026-03-02T00:00:00Z"})).word == "fail"
    with pytest.raises(audit.InputError, match="when it ran"):
        judge_again(result.model_copy(update={"started_at": "yesterday"}))


# --- drops since a baseline -------------------------------------------------------------------------------------------


def compared(
    low: float | None,
    value: float | None,
    high: float | None,
    *,
    outcome: str = "unchanged",
    verdict: str = "unchanged",
    **more: Any,
) -> Comparison:
    change = Change(
        metric="performance.accuracy",
        direction=more.pop("direction", "higher"),
        change=value,
        low=low,
        high=high,
        n=1000,
        method="paired",
        outcome=outcome,
        reason=more.pop("reason", ""),
    )
    said = {"sentence": "As before.", "source": "old.json", "sha256": "0" * 64, "started_at": "", "model_sha256": ""}
    return Comparison(verdict=verdict, changes=[change], **{**said, **more})


@pytest.mark.parametrize(
    ("interval", "word"),
    [
        ((-0.015, -0.005, 0.005), "pass"),
        ((-0.02, 0.0, 0.02), "pass"),
        ((-0.03, -0.01, 0.01), "incomplete"),
        ((-0.05, -0.04, -0.03), "fail"),
        ((0.01, 0.02, 0.03), "pass"),
    ],
)
def test_a_drop_is_held_against_its_bound(interval, word):
    limit = Limit(metric="performance.accuracy", max_drop=0.02)
    verdict = judge(PolicySection(limit=[limit]), [GOOD], gate=True, comparison=compared(*interval))
    assert verdict.word == word
    (judgement,) = verdict.judgements
    assert judgement.bound == -interval[0]
    assert "should be at most 0.02 worse than the baseline" in describe(judgement)
    # where lower is better, the same change is turned round
    lower = check("performance", share("performance.accuracy", 950, 1000, direction="lower"))
    turned = compared(-interval[2], -interval[1], -interval[0], direction="lower")
    assert judge(PolicySection(limit=[limit]), [lower], gate=True, comparison=turned).word == word


@pytest.mark.parametrize(
    ("comparison", "reason"),
    [
        (None, "no baseline"),
        (compared(None, None, None, outcome="not_comparable", reason="another radius"), "another radius"),
        (compared(0.0, 0.0, 0.0, outcome="not_comparable", reason="another radius"), "another radius"),
        (compared(0.0, 0.0, 0.0).model_copy(update={"changes": []}), "neither result"),
        (compared(0.0, 0.0, 0.0, confidence=0.9), "confidence of 0.9"),
    ],
)
def test_a_drop_that_was_not_measured_is_incomplete(comparison, reason):
    limit = Limit(metric="performance.accuracy", max_drop=0.02)
    verdict = judge(PolicySection(limit=[limit]), [GOOD], gate=True, comparison=comparison)
    assert verdict.word == "incomplete"
    assert reason in verdict.judgements[0].reason


def test_a_drop_of_an_upper_bound_is_believed_where_the_evidence_is_ok_alone():
    weak = check("performance", share("performance.accuracy", 100, 1000, kind="upper"), ok=False)
    limit = Limit(metric="performance.accuracy", max_drop=0.02)
    verdict = judge(PolicySection(limit=[limit]), [weak], gate=True, comparison=compared(-0.3, -0.2, -0.1))
    assert verdict.word == "incomplete"


def test_a_baseline_that_cannot_be_compared_leaves_the_verdict_open():
    apart = compared(None, None, None, outcome="not_comparable", verdict="not_comparable", sentence="Another task.")
    verdict = judge(PolicySection(limit=[atleast(0.9)]), [GOOD], gate=False, comparison=apart)
    assert (verdict.word, verdict.exit_code) == ("incomplete", 4)
    assert "Another task." in verdict.sentence


@pytest.mark.parametrize("limits", [[], [atleast(0.5)]])
def test_what_became_worse_is_told_where_no_limit_asks(limits):
    worse = compared(-0.12, -0.1, -0.08, outcome="worse", verdict="worse")
    verdict = judge(PolicySection(limit=limits), [GOOD], gate=False, comparison=worse)
    assert verdict.word == ("pass" if limits else "unjudged")
    assert "surely worse than the baseline: performance.accuracy" in verdict.sentence


@pytest.mark.parametrize("limit", [{"max_drop": 0.02, "min": 0.5}, {}, {"max_drop": -0.1}, {"max_drop": float("nan")}])
def test_a_limit_says_one_thing(limit):
    with pytest.raises(ValueError, match=r"one of min, max and max_drop|greater than or equal|finite"):
        Limit(metric="performance.accuracy", **limit)


def test_a_drop_needs_a_baseline_and_a_share_below_one():
    with pytest.raises(UsageError, match="--baseline"):
        check_limits(PolicySection(limit=[Limit(metric="performance.accuracy", max_drop=0.02)]))
    with pytest.raises(UsageError, match="below 1"):
        check_limits(PolicySection(limit=[Limit(metric="performance.accuracy", max_drop=2)]), baseline=True)
    check_limits(PolicySection(limit=[Limit(metric="performance.accuracy", max_drop=0.02)]), baseline=True)


# --- gates that look more than once -----------------------------------------------------------------------------------


def seen(k: int, n: int, *, metric: str = "performance.accuracy", outcome: str = "performance.correct") -> CheckResult:
    bits = np.zeros(n, dtype=np.bool_)
    bits[np.random.default_rng(0).permutation(n)[:k]] = True
    done = check("performance", share(metric, k, n)).model_dump()
    done["metrics"][0]["outcome"] = outcome
    return CheckResult(**{**done, "outcomes": OutcomeTable.pack("0" * 64, n, {"performance.correct": bits})})


@pytest.mark.parametrize(("k", "word"), [(990, "pass"), (905, "incomplete"), (500, "fail")])
def test_a_gate_that_looks_often_holds_limits_against_a_confidence_sequence(k, word):
    once = PolicySection(limit=[atleast(0.9)])
    many = once.model_copy(update={"looks": "many"})
    (first,), (often,) = (judge(policy, [seen(k, 1000)], gate=True).judgements for policy in (once, many))
    assert often.outcome == word
    assert often.bound < first.bound  # the price of looking often


def test_what_is_no_share_has_no_confidence_sequence():
    policy = PolicySection(limit=[atleast(0.5)], looks="many")
    verdict = judge(policy, [GOOD], gate=True)
    assert verdict.word == "incomplete"
    assert "no confidence sequence" in verdict.judgements[0].reason


def test_a_sequence_that_fails_alone_must_fail_among_all_limits():
    """The more limits, the further beyond its limit a sequence must lie."""
    k = next(k for k in range(900, 700, -1) if judge(many(1), [seen(k, 1000)], gate=True).word == "fail")
    among = judge(many(50), [seen(k, 1000)], gate=True).judgements
    assert [j.outcome for j in among] == ["incomplete"] * 50
    assert "not among 50 limits" in among[0].reason


def many(limits: int) -> PolicySection:
    return PolicySection(limit=[atleast(0.9)] * limits, looks="many")
