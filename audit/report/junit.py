"""The result as JUnit XML, which every CI reads: a testcase for the verdict, each limit, each piece of evidence.

=====================================  ==============================================================================
what                                   becomes
=====================================  ==============================================================================
a required limit that failed           ``<failure>``
a required limit that is undecided,    ``<error>``: readers count it as failing, so that nothing that could not be
evidence that does not hold where      decided turns green
the run does not end with 0, a check
in error or not run, a verdict that is
incomplete, or unjudged with a gate
a limit that failed and is waived      ``<skipped>`` with who answers for it, until when, and why
what does not move the verdict         ``<skipped>`` with what came of it
a result without limits (no gate)      all its testcases are ``<skipped>``: nothing was judged, so nothing passed
=====================================  ==============================================================================
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET  # builds only: nothing is parsed here
from collections import Counter
from collections.abc import Iterator

from audit.report import gate
from audit.report.text import clip
from audit.result import Metric, Result

LONGEST = 2000
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")


def render(result: Result) -> str:
    """Return junit.xml. Characters that XML cannot hold, or that could hide or reorder text, come out as visible escapes."""
    suites, suite = ET.Element("testsuites", name="audit"), ET.Element("testsuite", name="audit")
    suites.append(suite)
    suite.append(_properties(result))
    judged = result.verdict != "unjudged" or gate.ends_red(result)
    taken: Counter[tuple[str, ...]] = Counter()
    for item in gate.items(result):
        case = _case(item, judged=judged)
        name = case.attrib["name"]
        key = (case.attrib["classname"], name)
        taken[key] += 1
        if taken[key] > 1:  # readers take two testcases of one name for one that ran twice
            case.set("name", f"{name} ({taken[key]})")
        suite.append(case)
    counts = {
        "tests": len(suite.findall("testcase")),
        "failures": len(suite.findall("testcase/failure")),
        "errors": len(suite.findall("testcase/error")),
        "skipped": len(suite.findall("testcase/skipped")),
    }
    for element in (suites, suite):
        for name, count in counts.items():
            element.set(name, str(count))
        element.set("time", _seconds(result.seconds))
    started = _TIME.match(result.started_at)
    if started:
        suite.set("timestamp", started[0])
    ET.indent(suites)
    # "##[" is how a log of GitHub or Azure says a command, wherever it stands in a line; this file may be printed there.
    text = ET.tostring(suites, encoding="unicode").replace("##", "#&#35;")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _properties(result: Result) -> ET.Element:
    found = ET.Element("properties")
    for name, value in _facts(result):
        if value:
            ET.SubElement(found, "property", name=clip(name, 200), value=clip(value, LONGEST))
    return found


def _facts(result: Result) -> Iterator[tuple[str, str]]:
    spec = result.spec
    yield "verdict", result.verdict
    yield "exit_code", str(result.exit_code)
    yield "audit_version", spec.audit_version
    yield "confidence", f"{spec.confidence:g}"
    yield "seed", str(spec.seed)
    yield "model", result.model.source
    yield "model.sha256", result.model.sha256
    yield "data", result.data.source
    yield "data.sha256", result.data.sha256
    yield "data.reference_sha256", result.data.reference_sha256
    yield "data.n", str(result.data.n)
    yield "policy.sha256", spec.policy_sha256 or ""
    if result.comparison is not None:
        yield "baseline.sha256", result.comparison.sha256
        yield "baseline.verdict", result.comparison.verdict
    for metric_id, metric in result.metrics().items():
        yield f"metric.{metric_id}", _figures(metric)


def _figures(metric: Metric) -> str:
    parts = {"low": metric.low, "high": metric.high, "confidence": metric.confidence, "n": metric.n}
    shown = " ".join(f"{name}={'none' if value is None else format(value, '.6g')}" for name, value in parts.items())
    return f"{'none' if metric.value is None else format(metric.value, '.6g')} {shown} kind={metric.kind}"


def _case(item: gate.Item, *, judged: bool) -> ET.Element:
    case = ET.Element("testcase", classname=f"audit.{clip(item.group, 100)}", name=clip(item.name, 300))
    case.set("time", _seconds(item.seconds))
    message = clip(item.message, LONGEST)
    if item.outcome == "pass":
        if not judged:
            ET.SubElement(case, "skipped", message=clip(f"nothing was judged, so nothing passed: {item.message}", LONGEST))
        return case
    if not item.red:
        prefix = f"{item.outcome}, and not what decides: " if item.outcome in ("fail", "incomplete") else ""
        told = clip(prefix + item.message, LONGEST)
        ET.SubElement(case, "skipped", message=told)
        return case
    kind, said = ("failure", "failed") if item.outcome == "fail" else ("error", "incomplete")
    ET.SubElement(case, kind, message=message, type=said).text = message
    return case


def _seconds(seconds: float) -> str:
    return f"{max(0.0, seconds):.3f}"
