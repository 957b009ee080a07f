"""What SARIF 2.1.0 asks of a log, for the objects that audit writes: a JSON schema in short form, and what no schema can say.

Written from the specification (OASIS, errata 01, sections 3.4 to 3.58): names of properties, their types and choices. An object
has no property beside those listed. The rules that relate one part to another are in `problems`.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

import jsonschema

TEXT: dict[str, Any] = {"type": "string"}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
INDEX: dict[str, Any] = {"type": "integer", "minimum": -1}
FLAG: dict[str, Any] = {"type": "boolean"}
BAG: dict[str, Any] = {"type": "object"}
TEXTS: dict[str, Any] = {"type": "object", "additionalProperties": TEXT}
TIME: dict[str, Any] = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$"}
LEVEL: dict[str, Any] = {"enum": ["none", "note", "warning", "error"]}
KIND: dict[str, Any] = {"enum": ["notApplicable", "pass", "fail", "review", "open", "informational"]}
ROLES = ["analysisTarget", "attachment", "responseFile", "resultFile", "referencedOnCommandLine", "memoryContents", "directory"]


def a(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}"}


def some(item: dict[str, Any], *, unique: bool = False) -> dict[str, Any]:
    return {"type": "array", "items": item, "uniqueItems": unique}


def of(required: str = "", **properties: dict[str, Any]) -> dict[str, Any]:
    every = {**properties, "properties": BAG}
    return {"type": "object", "required": required.split(), "properties": every, "additionalProperties": False}


DEFINITIONS = {
    "run": of(
        "tool",
        tool=a("tool"),
        invocations=some(a("invocation")),
        artifacts=some(a("artifact"), unique=True),
        results=some(a("result")),
        automationDetails=a("automation"),
        columnKind={"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
    ),
    "tool": of("driver", driver=a("component")),
    "component": of(
        "name", name=TEXT, version=TEXT, semanticVersion=TEXT, rules=some(a("rule"), unique=True), notifications=some(a("rule"))
    ),
    "rule": of(
        "id",
        id=TEXT,
        name=TEXT,
        shortDescription=a("words"),
        fullDescription=a("words"),
        help=a("words"),
        defaultConfiguration=of(level=LEVEL, rank={"type": "number", "minimum": -1, "maximum": 100}, enabled=FLAG),
    ),
    "words": of("text", text=TEXT, markdown=TEXT),
    "message": of("text", text=TEXT, markdown=TEXT),
    "result": of(
        "message",
        ruleId=TEXT,
        ruleIndex=INDEX,
        kind=KIND,
        level=LEVEL,
        message=a("message"),
        locations=some(a("location")),
        partialFingerprints=TEXTS,
        suppressions=some(a("suppression"), unique=True),
        rank={"type": "number", "minimum": -1, "maximum": 100},
    ),
    "location": of(physicalLocation=a("physical"), logicalLocations=some(a("logical"), unique=True)),
    "physical": of(
        "artifactLocation", artifactLocation=a("where"), region=of("startLine", startLine={"type": "integer", "minimum": 1})
    ),
    "logical": of(name=TEXT, fullyQualifiedName=TEXT, kind=TEXT),
    "where": of(uri=TEXT, uriBaseId=TEXT, index=INDEX),
    "suppression": of(
        "kind",
        kind={"enum": ["inSource", "external"]},
        status={"enum": ["accepted", "underReview", "rejected"]},
        justification=TEXT,
    ),
    "artifact": of(
        location=a("where"), roles=some({"enum": ROLES}, unique=True), hashes=TEXTS, description=a("message"), length=INDEX
    ),
    "automation": of(id=TEXT, description=a("message")),
    "invocation": of(
        "executionSuccessful",
        executionSuccessful=FLAG,
        exitCode={"type": "integer"},
        exitCodeDescription=TEXT,
        commandLine=TEXT,
        startTimeUtc=TIME,
        toolExecutionNotifications=some(of("message", message=a("message"), level=LEVEL)),
    ),
}
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$defs": DEFINITIONS,
    "type": "object",
    "required": ["version", "runs"],
    "properties": {"$schema": TEXT, "version": {"const": "2.1.0"}, "runs": some(a("run"))},
    "additionalProperties": False,
}
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def problems(log: dict[str, Any]) -> list[str]:
    """Return all that is wrong with a log, against the schema and against what it cannot say."""
    found = [f"{error.json_path}: {error.message[:200]}" for error in VALIDATOR.iter_errors(log)]
    return found or [problem for run in log["runs"] for problem in _related(run)]


def _related(run: dict[str, Any]) -> list[str]:
    found = []
    rules = run["tool"]["driver"].get("rules", [])
    if len({rule["id"] for rule in rules}) != len(rules):
        found.append("two rules share an id")
    for rule in rules:
        # code scanning asks for all three, takes no empty one, and none of more than 1,024 characters
        for words in ("shortDescription", "fullDescription", "help"):
            found += _message(rule.get(words, {"text": ""}), 1024)
    marks = [tuple(result["partialFingerprints"].values()) for result in run["results"]]
    if len(set(marks)) != len(marks):
        found.append("two results share their fingerprints")
    found += [problem for result in run["results"] for problem in _result(run, rules, result)]
    for artifact in run["artifacts"]:
        found += _reference(artifact["location"]["uri"])
    for notification in run["invocations"][0]["toolExecutionNotifications"]:
        found += _message(notification["message"])
    return found


def _result(run: dict[str, Any], rules: list[dict[str, Any]], result: dict[str, Any]) -> list[str]:
    found = _message(result["message"])
    if not 0 <= result["ruleIndex"] < len(rules) or rules[result["ruleIndex"]]["id"] != result["ruleId"]:
        found.append(f"ruleIndex {result['ruleIndex']} is not the rule {result['ruleId']}")
    if result.get("kind", "fail") != "fail" and result.get("level", "none") != "none":
        found.append("section 3.27.10: a level with a kind that is not fail")
    if len(result["locations"]) != 1:
        found.append("code scanning shows a result with one location")
    for location in result["locations"]:
        place = location["physicalLocation"]["artifactLocation"]
        if run["artifacts"][place["index"]]["location"]["uri"] != place["uri"]:
            found.append("the index of a location is of another artifact")
    return found


def _message(message: dict[str, str], limit: int = 10**6) -> list[str]:
    text = message["text"]
    found = [] if text.strip() and len(text) <= limit else [f"a text of {len(text)} characters"]
    if re.search(r"[{}]", text.replace("{{", "").replace("}}", "")):
        found.append(f"section 3.11.5: a brace that would name an argument: {text[:80]!r}")
    if re.search(r"\](?=\()", text):
        found.append(f"section 3.11.6: an embedded link: {text[:80]!r}")
    return found


def _reference(uri: str) -> list[str]:
    if not re.fullmatch(r"(?:[A-Za-z0-9\-._~/]|%[0-9A-F]{2})+", uri):
        return [f"characters that RFC 3986 has escaped in a path: {uri[:80]!r}"]
    split = urlsplit(uri)
    return [f"more than a path: {uri[:80]!r}"] if split.scheme or split.netloc or split.query or split.fragment else []
