"""The result as SARIF 2.1.0, the format of code scanning: a rule for each limit, piece of evidence and kind of finding.

=====================================  =========================  ====================================================
what                                   level                      kind
=====================================  =========================  ====================================================
a required limit that failed           error                      fail
whatever leaves the verdict            error                      fail: ``open`` would be the word, but SARIF gives it
incomplete, or unjudged with a gate                               no level, so that code scanning would go green on it
an unjudged verdict without a gate     warning                    fail
a limit that failed and is waived      note                       fail, with an accepted suppression that says why
what does not move the verdict         warning (failed),          fail
                                       note (undecided)
a finding                              warning (high, medium),    fail; its severity stands in ``properties``
                                       note (low, info)
=====================================  =========================  ====================================================

So an error is there exactly where the run ends with another exit code than 0. What passed has its rule, and no result: code
scanning shows each result as an alert. Metrics with their intervals stand in the properties of the run.

Source: OASIS, Static Analysis Results Interchange Format (SARIF) Version 2.1.0 (2020, errata 2023), sections named below.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import quote

from audit.console import harmless_json
from audit.report import gate, view
from audit.report.text import clip
from audit.result import CheckResult, Result, slug

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
LONGEST, LONGEST_NAME = 1000, 250  # of code scanning: 1,024 characters of a description, 255 of a name
MOST_RESULTS = 5000  # code scanning shows no more
LEVELS = {"high": "warning", "medium": "warning", "low": "note", "info": "note"}
RANKS = {"high": 90.0, "medium": 60.0, "low": 30.0, "info": 10.0}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_VERSION = re.compile(r"\d+\.\d+\.\d+")

Level = Literal["error", "warning", "note"]


def render(result: Result) -> str:
    """Return the SARIF log: one run with its rules, its results, what it was run on, and how it ended."""
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [_Run(result).run()]}
    return harmless_json(json.dumps(log, indent=1, ensure_ascii=False, allow_nan=False)) + "\n"  # it may be printed in a log


def uri(path: str) -> str:
    """Return a path as a relative reference (RFC 3986): no part of it becomes a scheme, a host, a query or a fragment."""
    try:
        raw = path.encode("utf-8", "surrogateescape")  # the very bytes of a file name that is not UTF-8
    except UnicodeEncodeError:
        raw = path.encode("utf-8", "surrogatepass")
    quoted = quote(raw[:LONGEST], safe="/")
    return f"/%2F{quoted[2:]}" if quoted.startswith("//") else quoted or "model"


class _Run:
    """One run, while its rules are being gathered from its results."""

    def __init__(self, result: Result) -> None:
        self.result = result
        self.rules: dict[str, dict[str, Any]] = {}
        self.places: dict[str, int] = {}
        self.taken: Counter[str] = Counter()

    def run(self) -> dict[str, Any]:
        result, spec = self.result, self.result.spec
        results = [*self._items(), *self._findings()][:MOST_RESULTS]
        driver: dict[str, Any] = {"name": "audit", "version": _string(spec.audit_version, 100) or "unknown"}
        if _VERSION.fullmatch(spec.audit_version):
            driver["semanticVersion"] = spec.audit_version
        return {
            "tool": {"driver": {**driver, "rules": list(self.rules.values())}},
            "automationDetails": {"id": f"audit/{slug(PurePosixPath(result.model.source).stem)[:100]}/"},
            "invocations": [self._invocation()],
            "artifacts": self._artifacts(),
            "results": results,
            "columnKind": "unicodeCodePoints",
            "properties": {
                "verdict": result.verdict,
                "sentence": _string(view.sentence(result)),
                "policySha256": spec.policy_sha256 and _string(spec.policy_sha256, 64),
                "confidence": spec.confidence,
                "seed": spec.seed,
                "metrics": _safe({name: gate.metric_figures(metric) for name, metric in result.metrics().items()}),
            },
        }

    def _items(self) -> Iterator[dict[str, Any]]:
        for item in gate.items(self.result):
            # A rule is the same from run to run: what depends on this one is the level of its result.
            optional = item.kind == "limit" and not item.binding
            rule = self._rule(f"{item.kind}/{item.key}", item.name, _HELP[item.kind], "warning" if optional else "error")
            level = _level(item)
            if level is None:
                continue
            figures = {"outcome": item.outcome, "binding": item.binding, **item.figures}
            found = self._result(rule, level, item.message, figures)
            if item.outcome == "waived":
                waived = {"kind": "external", "status": "accepted", "justification": _string(item.message)}
                found["suppressions"] = [waived]
            yield found

    def _findings(self) -> Iterator[dict[str, Any]]:
        for flaw in view.worst_findings(self.result):
            severity = flaw.finding.severity
            what = f"what {flaw.check} found, of {severity} severity"
            rule = self._rule(f"finding/{flaw.check}/{severity}", what, _HELP["finding"], LEVELS[severity])
            samples: list[Any] = flaw.finding.samples[:20]
            message = f"{flaw.finding.title.rstrip('. ')}. {flaw.finding.detail}"
            properties = {"severity": severity, "samples": samples, "sampleCount": len(flaw.finding.samples)}
            yield {
                **self._result(rule, LEVELS[severity], message, properties, told_by=flaw.finding.title),
                "rank": RANKS[severity],
            }

    def _rule(self, rule_id: str, name: str, help_text: str, level: str) -> str:
        shown = _string(rule_id, LONGEST_NAME)
        if shown not in self.rules:
            self.places[shown] = len(self.rules)
            self.rules[shown] = {
                "id": shown,
                "shortDescription": {"text": _message(name, LONGEST // 2)},  # a brace is written twice
                "fullDescription": {"text": _message(name, LONGEST // 2)},
                "help": {"text": help_text},
                "defaultConfiguration": {"level": level},
            }
        return shown

    def _result(self, rule: str, level: str, message: str, figures: dict[str, Any], told_by: str = "") -> dict[str, Any]:
        key = f"{rule}\n{told_by}"
        self.taken[key] += 1
        # No figure is part of it: the same limit keeps its alert from one run to the next.
        mark = hashlib.sha256(f"{key}\n{self.taken[key]}".encode("utf-8", "backslashreplace")).hexdigest()
        place = {"artifactLocation": {"uri": uri(self.result.model.source), "index": 0}, "region": {"startLine": 1}}
        return {
            "ruleId": rule,
            "ruleIndex": self.places[rule],
            "kind": "fail",
            "level": level,
            "message": {"text": _message(message) or "no more is known"},
            "locations": [{"physicalLocation": place, "logicalLocations": [{"fullyQualifiedName": rule, "kind": "member"}]}],
            # code scanning reads the first alone, section 3.27.17 asks for names of one's own with a version
            "partialFingerprints": {"primaryLocationLineHash": f"{mark[:16]}:1", "auditItem/v1": mark},
            "properties": _safe(figures),
        }

    def _artifacts(self) -> list[dict[str, Any]]:
        model, data = self.result.model, self.result.data
        files = [(model.source, model.sha256, ["analysisTarget"], f"network, {model.format}")]
        files += [(data.source, data.sha256, ["referencedOnCommandLine"], f"data, {data.n} samples")]
        return [
            {
                "location": {"uri": uri(source)},
                "roles": roles,
                "hashes": {"sha-256": _string(sha256, 64)},
                "description": {"text": _message(what)},
            }
            for source, sha256, roles, what in files
        ]

    def _invocation(self) -> dict[str, Any]:
        result = self.result
        unfinished = [check for check in result.checks if check.status in ("error", "incomplete")]
        found: dict[str, Any] = {
            # Section 3.20.14: whether the tool did its work. Where it reached no verdict that it owed, it did not.
            "executionSuccessful": not (gate.ends_red(result) and result.verdict != "fail"),
            "exitCode": result.exit_code,
            "exitCodeDescription": gate.EXIT_CODES.get(result.exit_code, "not one of the codes of audit"),
            "toolExecutionNotifications": [_notification(check) for check in unfinished],
        }
        if result.spec.command:
            found["commandLine"] = _string(result.spec.command)
        if _TIME.fullmatch(result.started_at):
            found["startTimeUtc"] = result.started_at
        return found


_HELP = {
    "verdict": "The verdict over all required limits. A verdict that is incomplete or unjudged is no pass.",
    "limit": "A limit of the policy. It passes where the confidence bound on the unfavourable side clears it, and fails where "
    "the whole interval lies beyond it; everything else is incomplete.",
    "evidence": "A test of the measurement itself. Where it does not hold, no figure of its check can pass a limit.",
    "check": "A check that was to run. Where it did not run to its end, the verdict is incomplete.",
    "baseline": "The comparison with an older result.",
    "finding": "Something that a person must know. Findings do not move the verdict; limits do.",
}


def _level(item: gate.Item) -> Level | None:
    if item.outcome in ("pass", "not_applicable"):
        return None
    if item.red:
        return "error"
    if item.kind == "verdict":
        return "warning"
    return "warning" if item.outcome == "fail" else "note"


def _notification(check: CheckResult) -> dict[str, Any]:
    level = "error" if check.status == "error" else "warning"
    why = check.reason or "no reason was recorded"
    return {"level": level, "message": {"text": _message(f"{check.id} is {check.status}: {why}")}}


def _string(text: str, limit: int = LONGEST) -> str:
    return clip(text, limit)


def _message(text: str, limit: int = LONGEST) -> str:
    # Sections 3.11.5 and 3.11.6: braces name arguments, and "[text](address)" is a link; both must come out as they are.
    return clip(text, limit).replace("{", "{{").replace("}", "}}").replace("](", "] (")


def _safe(value: Any) -> Any:
    if isinstance(value, dict):
        return {_string(str(key), LONGEST_NAME): _safe(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_safe(entry) for entry in value]
    return _string(value) if isinstance(value, str) else value
