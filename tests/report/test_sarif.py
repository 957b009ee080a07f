"""The SARIF log, held against the specification: an error exactly where the run does not end with 0, and stable alerts."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.report import sarif
from audit.result import Result
from tests.judged import results
from tests.sarif_schema import problems


def read(result: Result) -> dict[str, Any]:
    """Return the one run of a log without problems."""
    log = json.loads(sarif.render(result))
    assert problems(log) == []
    (run,) = log["runs"]
    return run  # type: ignore[no-any-return]


def found(run: dict[str, Any], rule: str) -> dict[str, Any]:
    (one,) = [result for result in run["results"] if result["ruleId"] == rule]
    return one  # type: ignore[no-any-return]


@settings(max_examples=50, deadline=None)
@given(results())
def test_an_error_is_there_exactly_where_the_run_does_not_end_with_0(result: Result) -> None:
    run = read(result)
    levels = {one["level"] for one in run["results"]}
    assert ("error" in levels) == (result.exit_code != 0)
    verdicts = [one["level"] for one in run["results"] if one["ruleId"] == "verdict/verdict"]
    assert verdicts == ([] if result.verdict == "pass" else ["error"] if result.exit_code else ["warning"])
    ended = run["invocations"][0]
    assert ended["exitCode"] == result.exit_code
    assert ended["executionSuccessful"] == (result.exit_code in (0, 1))
    waived = [one for one in run["results"] if one["properties"].get("outcome") == "waived"]
    assert len(waived) == len([judgement for judgement in result.policy if judgement.outcome == "waived"])
    for one in run["results"]:
        assert ("suppressions" in one) == (one["properties"].get("outcome") == "waived")


def test_results_carry_figures_and_words(result: Result) -> None:
    run = read(result)
    failed = found(run, "limit/robustness.linf.accuracy min")
    assert failed["level"] == "error"
    assert failed["message"]["text"].startswith("robustness.linf.accuracy should be at least 0.7; its bound is 0.5912")
    held = failed["properties"]
    assert (held["value"], held["low"], held["high"], held["confidence"], held["n"]) == (0.613, 0.5912, 0.6344, 0.95, 2000)
    assert (held["min"], held["bound"], held["outcome"]) == (0.7, 0.5912, "fail")
    open_ = found(run, "limit/robustness.linf.certified_accuracy min")
    assert (open_["level"], open_["kind"], open_["properties"]["outcome"]) == ("error", "fail", "incomplete")
    waived = found(run, "limit/fairness.group.demographic_parity_difference max")
    assert waived["level"] == "note"
    assert "by the risk board" in waived["suppressions"][0]["justification"]
    assert found(run, "limit/anomaly.autoencoder.auroc min")["level"] == "note"
    assert found(run, "evidence/robustness.gradient_free")["level"] == "error"
    rules = {rule["id"] for rule in run["tool"]["driver"]["rules"]}
    assert "limit/performance.accuracy min" in rules
    assert not [one for one in run["results"] if one["ruleId"] == "limit/performance.accuracy min"], "what passed is no alert"
    high = found(run, "finding/robustness/high")
    assert (high["level"], high["properties"]["severity"], high["properties"]["samples"][:2]) == ("warning", "high", [17, 48])
    artifact = run["artifacts"][0]
    assert artifact["location"]["uri"] == "cnn.safetensors"
    assert artifact["hashes"] == {"sha-256": result.model.sha256}
    assert run["properties"]["metrics"]["robustness.linf.accuracy"]["kind"] == "upper"
    told = [one["message"]["text"] for one in run["invocations"][0]["toolExecutionNotifications"]]
    assert "explanation is error: RuntimeError: the network has no layer that Grad-CAM could use." in told


def test_alerts_keep_their_marks_when_the_figures_change(make_result: Any) -> None:
    first = make_result()
    policy = [judgement.model_copy(update={"bound": 0.1, "reason": "other", "p_fail": 0.2}) for judgement in first.policy]
    data = first.data.model_copy(update={"sha256": "0" * 64, "n": 7})
    second = first.model_copy(update={"policy": policy, "data": data, "started_at": "2031-01-01T00:00:00Z", "seconds": 1.0})
    marks = [{one["ruleId"]: one["partialFingerprints"] for one in read(r)["results"]} for r in (first, second)]
    assert marks[0] == marks[1]
    # of two limits that fail each keeps its own
    assert len({mark["auditItem/v1"] for mark in marks[0].values()}) == len(marks[0])


def test_what_became_worse_is_told(make_result: Any) -> None:
    result = make_result()
    assert result.comparison is not None
    worse = [change.metric for change in result.comparison.changes if change.outcome == "worse"]
    run = read(result)
    for metric in worse:
        told = found(run, f"baseline/{metric}")
        assert told["level"] == "warning"
        assert told["message"]["text"].startswith(f"{metric} went from 0.900 to ") or metric == "performance.mae"
    assert len(worse) == 2


def _without_the_level(run: dict[str, Any]) -> None:
    run["results"][0]["level"] = "fatal"


def _with_a_link(run: dict[str, Any]) -> None:
    run["results"][0]["message"]["text"] += " [x](https://example.invalid)"


def _with_a_brace(run: dict[str, Any]) -> None:
    run["results"][0]["message"]["text"] += " {0}"


def _with_a_host(run: dict[str, Any]) -> None:
    for place in (run["artifacts"][0]["location"], run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]):
        place["uri"] = "//example.invalid/x"


def _with_an_unknown_word(run: dict[str, Any]) -> None:
    run["results"][0]["severity"] = "high"


def _without_success(run: dict[str, Any]) -> None:
    del run["invocations"][0]["executionSuccessful"]


def _with_a_strange_rule(run: dict[str, Any]) -> None:
    run["results"][0]["ruleIndex"] = 1


def _with_an_open_error(run: dict[str, Any]) -> None:
    run["results"][0]["kind"] = "open"


def _with_one_mark_twice(run: dict[str, Any]) -> None:
    run["results"][1]["partialFingerprints"] = run["results"][0]["partialFingerprints"]


BREAKS = [value for name, value in list(globals().items()) if name.startswith(("_with_", "_without_"))]


@pytest.mark.parametrize("breaks", BREAKS, ids=lambda breaks: breaks.__name__)
def test_a_log_that_is_none_is_refused(result: Result, breaks: Any) -> None:
    log = json.loads(sarif.render(result))
    assert problems(log) == []
    breaks(log["runs"][0])
    assert problems(log)


def test_the_log_is_the_same_each_time_and_holds_no_number_that_json_has_not(result: Result) -> None:
    text = sarif.render(result)
    assert text == sarif.render(Result.from_json(result.to_json()))
    json.loads(text, parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        ("model.pt", "model.pt"),
        ("nets/a b.pt", "nets/a%20b.pt"),
        ("../x.pt", "../x.pt"),
        ("/srv/x.pt", "/srv/x.pt"),
        ("//host/x.pt", "/%2Fhost/x.pt"),
        ("///host/x.pt", "/%2F/host/x.pt"),
        ("javascript:alert(1)", "javascript%3Aalert%281%29"),
        ("file:///etc/passwd", "file%3A///etc/passwd"),
        ("C:\\x.pt", "C%3A%5Cx.pt"),
        ("x?a=1#b", "x%3Fa%3D1%23b"),
        ("100%25.pt", "100%2525.pt"),
        ("é.pt", "%C3%A9.pt"),
        ("\udcff.pt", "%FF.pt"),
        ("\ud800.pt", "%ED%A0%80.pt"),
        ("a\n\x00", "a%0A%00"),
        ("", "model"),
    ],
)
def test_paths_are_relative_references(path: str, uri: str) -> None:
    assert sarif.uri(path) == uri


@given(st.text(max_size=60))
def test_a_path_comes_back_from_its_reference(path: str) -> None:
    if path and "\x00" not in path:
        assert unquote_to_bytes(sarif.uri(path)).decode("utf-8", "surrogatepass") == path
