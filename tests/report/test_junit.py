"""junit.xml, read back by junitparser: red exactly where the run does not end with 0, and never green on nothing."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from audit.report import junit
from audit.result import Result
from tests.judged import results


def read(result: Result) -> tuple[TestSuite, dict[tuple[str, str], TestCase]]:
    (suite,) = JUnitXml.fromstring(junit.render(result).encode())
    cases = list(suite)
    named = {(case.classname, case.name): case for case in cases}
    assert len(named) == len(cases), "two testcases of one name are read as one"
    return suite, named


def outcome(case: TestCase) -> str:
    held = [type(entry) for entry in case.result]
    assert len(held) <= 1
    return {Failure: "failure", Error: "error", Skipped: "skipped"}[held[0]] if held else "passed"


@settings(max_examples=50, deadline=None)
@given(results())
def test_red_exactly_where_the_run_does_not_end_with_0(result: Result) -> None:
    suite, cases = read(result)
    counts = Counter(outcome(case) for case in cases.values())
    assert (counts["failure"] + counts["error"] > 0) == (result.exit_code != 0)
    assert (counts["failure"] > 0) == (result.verdict == "fail")
    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == (
        len(cases),
        counts["failure"],
        counts["error"],
        counts["skipped"],
    )
    if result.verdict == "unjudged" and result.exit_code == 0:
        assert counts["passed"] == 0, "nothing was judged, so nothing passed"
    told = {"pass": "passed", "fail": "failure", "incomplete": "error"}.get(result.verdict)
    told = told or ("error" if result.exit_code else "skipped")
    assert outcome(cases["audit.policy", "the verdict"]) == told


@settings(max_examples=50, deadline=None)
@given(results())
def test_each_limit_and_each_piece_of_evidence_has_its_testcase(result: Result) -> None:
    _, cases = read(result)
    limits = [case for (owner, name), case in cases.items() if " should be " in name and owner != "audit.baseline"]
    expected = {"pass": "passed", "fail": "failure", "incomplete": "error", "waived": "skipped"}
    assert len(limits) == len(result.policy)
    for judgement, case in zip(result.policy, limits, strict=True):
        told = outcome(case)
        if judgement.required:
            assert told == expected[judgement.outcome]
        else:
            assert told == ("passed" if judgement.outcome == "pass" and judged(result) else "skipped")
    evidence = [evidence for check in result.checks for evidence in check.evidence]
    told = [outcome(case) for (_, name), case in cases.items() if name.startswith("evidence: ")]
    assert len(told) == len(evidence)
    for one, said in zip(evidence, told, strict=True):
        sound = "passed" if judged(result) else "skipped"
        assert said == (sound if one.ok else "error" if result.exit_code else "skipped")


def judged(result: Result) -> bool:
    return result.verdict != "unjudged" or result.exit_code != 0


@settings(max_examples=50, deadline=None)
@given(results())
def test_checks_in_error_or_not_run_are_errors(result: Result) -> None:
    _, cases = read(result)
    run = result.spec.config["run"]
    wanted = run["checks"] or []  # type: ignore[index,call-overload]
    for check in result.checks:
        case = cases.get((f"audit.{check.id}", f"the check {check.id} runs to its end"))
        assert (case is None) == (check.status == "measured")
        if check.status == "error" or (check.status == "not_applicable" and check.id in wanted):
            assert case is not None
            assert outcome(case) == "error"
    for check_id in set(wanted) - {check.id for check in result.checks}:
        assert outcome(cases[f"audit.{check_id}", f"the check {check_id} runs to its end"]) == "error"


def test_messages_and_properties_hold_the_figures(result: Result) -> None:
    suite, cases = read(result)
    failed = cases["audit.robustness", "robustness.linf.accuracy should be at least 0.7"]
    assert failed.result[0].message.startswith(
        "robustness.linf.accuracy should be at least 0.7; its bound is 0.5912; The whole"
    )
    open_ = cases["audit.robustness", "robustness.linf.certified_accuracy should be at least 0.4"]
    assert open_.result[0].message.endswith("The interval straddles the limit.; plan for 7,431 samples")
    waived = cases["audit.fairness", "fairness.group.demographic_parity_difference should be at most 0.1"]
    assert outcome(waived) == "skipped"
    assert "Until 2031-01-01, by the risk board: new data are being collected." in waived.result[0].message
    assert outcome(cases["audit.policy", "anomaly.autoencoder.auroc should be at least 0.9 (not required)"]) == "skipped"
    unsound = cases["audit.robustness", "evidence: robustness.gradient_free"]
    assert outcome(unsound) == "error"
    assert "broke 12 samples" in unsound.result[0].message
    assert cases["audit.robustness", "robustness.linf.accuracy should be at least 0.7"].time == 60.0
    held = {entry.name: entry.value for entry in suite.properties()}
    assert held["verdict"] == "fail"
    assert held["exit_code"] == "1"
    assert held["model.sha256"] == result.model.sha256
    assert held["data.sha256"] == result.data.sha256
    assert held["policy.sha256"] == result.spec.policy_sha256
    assert held["metric.robustness.linf.accuracy"] == "0.613 low=0.5912 high=0.6344 confidence=0.95 n=2000 kind=upper"
    assert held["metric.robustness.linf.median_distance"].startswith("none low=0.118 high=none")


@pytest.mark.parametrize(("verdict", "exit_code"), [("pass", 4), ("pass", 1), ("fail", 0), ("incomplete", 0)])
def test_a_verdict_and_an_exit_code_that_disagree_are_red(make_result: Any, verdict: str, exit_code: int) -> None:
    suite, _ = read(make_result(verdict, exit_code=exit_code, checks=[], policy=[]))
    assert suite.failures + suite.errors > 0


def test_where_nothing_was_judged_nothing_passed(make_result: Any) -> None:
    result = make_result("unjudged", comparison=None)
    _, cases = read(result)
    assert len(cases) > 3
    assert {outcome(case) for case in cases.values()} <= {"skipped", "error"}
    sound = [check for check in result.checks if check.status == "measured"]
    _, cases = read(result.model_copy(update={"checks": sound}))
    assert {outcome(case) for case in cases.values()} == {"skipped"}
    _, cases = read(result.model_copy(update={"exit_code": 4}))
    assert outcome(cases["audit.policy", "the verdict"]) == "error"


def test_two_limits_of_one_name_stay_two(make_result: Any) -> None:
    result = make_result()
    _, cases = read(result.model_copy(update={"policy": [*result.policy[:1], *result.policy[:1]]}))
    assert ("audit.performance", "performance.accuracy should be at least 0.95 (2)") in cases


def test_the_file_is_the_same_each_time_and_plain_xml(result: Result) -> None:
    text = junit.render(result)
    assert text == junit.render(Result.from_json(result.to_json()))
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>\n<testsuites ')
    tags = {element.tag for element in ET.fromstring(text).iter()}  # noqa: S314 - our own output
    assert tags == {"testsuites", "testsuite", "properties", "property", "testcase", "failure", "error", "skipped"}
