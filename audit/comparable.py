"""What of two results may be compared at all: the same question put to two networks, soundly measured both times."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from audit.result import CheckResult, Metric, Result

MOST_NAMED = 3
MOST_ROWS = 10**8  # of a file whose rows are counted one by one: a result may state any number

# Params that tell what came out, not what was asked. All others define a metric, those of plugins among them: where one
# differs, two figures answer two questions.
DESCRIPTIVE = {
    "*": {"headline"},
    "performance.overfitting_gap": {"reference", "test", "n_reference"},
    "performance.*.recall": {"index"},
    "calibration.ece": {"bins"},  # a bin goes where scores tie; the option of that name is looked at instead
    "robustness.smoothed.*": {"abstained"},
    "robustness.universal.accuracy": {"fitted_on"},
    "robustness.patch.accuracy": {"fitted_on"},
    "corruption.patch.*": {"top", "left", "bright", "class"},
    "anomaly.*": {"calibration_samples"},
    "explanation.agreement.*": {"*"},
    "fairness.*": {"smallest_group"},
    "hardening.*": {"before", "after", "method"},
}

# Options of a check that leave its metrics what they are: they stand in the params, choose among metrics, set how many samples
# are drawn, or decide what is reported. Any other option changes all metrics of its check, but for those in `_OPTION_ALONE`.
_HARMLESS = {
    "performance": {"max_gap", "recall_gap", "imbalance"},
    "robustness": {"norm", "eps", "steps", "restarts", "tolerance"},
    "corruption": {"only", "severities", "samples", "seed", "tolerance", "patch"},
    "anomaly": {"detectors", "alpha", "held_out_classes"},
    "explanation": {"methods", "samples", "show"},
    "fairness": {"min_group_size", "min_labelled", "names", "positive", "intersections", "attributes", "gap"},
}
_OPTION_ALONE = {
    ("performance", "bins"): "calibration.*",
    ("robustness", "spatial"): "robustness.spatial.*",
    ("robustness", "smoothing"): "robustness.smoothed.*",
    ("robustness", "universal"): "robustness.universal.*",
    ("robustness", "patch"): "robustness.patch.*",
}
# A profile sets what is not stated: the rows that a detector is fitted on, the effort of explainers.
_BY_PROFILE = {"anomaly.*": "rows", "explanation.*": "background"}
_BY_PROFILE_ALONE = (
    "corruption.patch.*",
    "robustness.*",
    "hardening.*",
)  # the budget of an evaluation has no option of its own
_BY_BOUNDS = ("robustness.*", "hardening.*", "corruption.*", "anomaly.*.adversarial_*")


# A default that follows the errors of each network: figures under it answer two questions, however alike the networks are.
_HINTS = {"tolerance": " (state the option tolerance in both runs, so that both networks are held to one)"}


@dataclass(frozen=True)
class Measured:
    """A metric with the check that measured it."""

    metric: Metric
    check: CheckResult


Found = dict[str, list[Measured]]


def measured(result: Result) -> Found:
    """Return all metrics of a result by id; an id that several checks measured has several."""
    found: Found = {}
    for check in result.checks:
        for metric in check.metrics:
            found.setdefault(metric.id, []).append(Measured(metric, check))
    return found


def other_question(old: Result, new: Result) -> str:
    """Return why no metric of the two can be compared, or an empty string."""
    pairs: list[tuple[str, JsonValue, JsonValue]] = [
        ("task", old.model.task, new.model.task),
        ("number of classes", old.model.classes, new.model.classes),
        ("kind of data", old.data.kind, new.data.kind),
        ("shape of an input", [*old.model.input_shape], [*new.model.input_shape]),
        ("columns", [*old.data.columns], [*new.data.columns]),
    ]
    if old.model.class_names and new.model.class_names:
        pairs.insert(2, ("classes", [*old.model.class_names], [*new.model.class_names]))
    return next((f"another {_singular(what)}: {said(a)}, then {said(b)}" for what, a, b in pairs if a != b), "")


def obstacle(metric_id: str, old: Result, new: Result, before: list[Measured], after: list[Measured]) -> str:
    """Return why one metric cannot be compared, or an empty string."""
    for when, found in (("older", before), ("newer", after)):
        if len(found) > 1:
            return f"two checks of the {when} result measured it: {' and '.join(m.check.id for m in found)}"
    if not before or not after:
        when, result = ("older", old) if not before else ("newer", new)
        return f"the {when} result does not hold it{_why_missing(metric_id, result)}"
    first, second = before[0], after[0]
    for when, one in (("older", first), ("newer", second)):
        if doubt := soundness(one):
            return f"in the {when} result {doubt}"
    return _other_metric(first.metric, second.metric) or _other_options(metric_id, first.check.id, old, new)


def same_samples(old: Result, new: Result) -> bool:
    """Tell whether both were measured on the same test samples: ids, inputs and labels."""
    hashes = [{c.outcomes.ids_sha256 for c in result.checks if c.outcomes is not None} for result in (old, new)]
    if hashes[0] and hashes[1]:
        return hashes[0] == hashes[1]
    return (old.data.sha256, old.data.rows, old.data.sampled) == (new.data.sha256, new.data.rows, new.data.sampled)


def notes(old: Result, new: Result) -> list[str]:
    """Say what differs between two runs beside the network: data, seed, options, versions."""
    lines = list(_about_data(old, new))
    pairs: list[tuple[str, JsonValue, JsonValue]] = [
        ("seed", old.spec.seed, new.spec.seed),
        ("profile", _run(old).get("profile"), _run(new).get("profile")),
        ("confidence of the intervals", old.spec.confidence, new.spec.confidence),
        ("device", old.spec.device, new.spec.device),
        ("version of audit", old.spec.audit_version, new.spec.audit_version),
        ("version of torch", old.spec.packages.get("torch"), new.spec.packages.get("torch")),
    ]
    lines += [f"another {what}: {said(a)}, then {said(b)}" for what, a, b in pairs if a != b]
    sections = sorted({c.id for result in (old, new) for c in result.checks})
    for section in sections:
        changed = _changed_options(section, old, new)
        if changed:
            lines.append(f"other options of {section}: {_few([f'{key} {said(a)}, then {said(b)}' for key, a, b in changed])}")
    if old.started_at > new.started_at:
        lines.insert(0, f"the result that was given as the older one is the later one: {old.started_at}, then {new.started_at}")
    if old.model.sha256 == new.model.sha256:
        lines.insert(0, "both audits are of the same network file")
    return lines


def soundness(found: Measured) -> str:
    """Return why a figure is not believed, or an empty string."""
    metric, check = found.metric, found.check
    if check.status != "measured":
        return f"the check {check.id} is {check.status}"
    failed = [evidence.id for evidence in check.evidence if not evidence.ok and evidence.concerns(metric.id)]
    if failed:
        return f"the evidence is not ok: {_few(failed)}"
    if metric.value is None or metric.low is None or metric.high is None or metric.n == 0:
        return "it has no value, no interval or no samples"
    return ""


def definition(metric: Metric) -> str:
    """Return all that defines a metric, as text: two that differ in it answer two questions."""
    params = {key: value for key, value in metric.params.items() if key not in _ignored(metric.id)}
    kept = {} if "*" in _ignored(metric.id) else params
    return json.dumps([metric.direction, metric.unit, metric.kind, kept], sort_keys=True)


def said(value: JsonValue) -> str:
    """Return a value of a result in a few words."""
    if value is None:
        return "unstated"
    if isinstance(value, list):
        shown = ", ".join(said(v) for v in value[:MOST_NAMED])
        return f"{shown} and {len(value) - MOST_NAMED} more" if len(value) > MOST_NAMED else shown or "none"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _singular(what: str) -> str:
    return {"classes": "list of classes", "columns": "list of columns"}.get(what, what)


def _why_missing(metric_id: str, result: Result) -> str:
    family = metric_id.partition(".")[0]
    check = next((c for c in result.checks if c.id == family and c.status != "measured"), None)
    if check is not None:
        return f": its check {check.id} is {check.status}"
    return f": its check {family} was left out" if family in result.spec.not_run else ""


def _ignored(metric_id: str) -> set[str]:
    return {key for pattern, keys in DESCRIPTIVE.items() if fnmatchcase(metric_id, pattern) for key in keys}


def _other_metric(old: Metric, new: Metric) -> str:
    for what, a, b in (
        ("direction", old.direction, new.direction),
        ("unit", old.unit, new.unit),
        ("kind of number", old.kind, new.kind),
    ):
        if a != b:
            return f"another {what}: {said(a)}, then {said(b)}"
    ignored = _ignored(new.id)
    if "*" in ignored:
        return ""
    for key in sorted({*old.params, *new.params} - ignored):
        was, now = old.params.get(key), new.params.get(key)
        if not _same(was, now):
            return f"another {key.replace('_', ' ')}: {said(was)}, then {said(now)}{_HINTS.get(key, '')}"
    return ""


def _same(a: JsonValue, b: JsonValue) -> bool:
    # A radius that was worked out from the data may differ in its last digit.
    return math.isclose(a, b, rel_tol=1e-9) if isinstance(a, float) and isinstance(b, float) else a == b


def _other_options(metric_id: str, check_id: str, old: Result, new: Result) -> str:
    # What hardening says of robustness was measured with the options of that section.
    for section in {check_id, "robustness" if check_id == "hardening" else check_id}:
        harmless = _HARMLESS.get(section, set())
        for key, a, b in _changed_options(section, old, new):
            touched = _OPTION_ALONE.get((section, key), "*")
            if section != "hardening" and key not in harmless and fnmatchcase(metric_id, touched):
                return f"another {section}.{key}: {said(a)}, then {said(b)}"
    profiles = _run(old).get("profile"), _run(new).get("profile")
    if profiles[0] != profiles[1] and _set_by_profile(metric_id, old, new):
        return f"another profile: {said(profiles[0])}, then {said(profiles[1])}"
    if old.data.bounds != new.data.bounds and any(fnmatchcase(metric_id, pattern) for pattern in _BY_BOUNDS):
        return f"other bounds of the inputs: {said(old.data.bounds)}, then {said(new.data.bounds)}"
    return ""


def _set_by_profile(metric_id: str, old: Result, new: Result) -> bool:
    if any(fnmatchcase(metric_id, pattern) for pattern in _BY_PROFILE_ALONE):
        return True
    for pattern, option in _BY_PROFILE.items():
        if fnmatchcase(metric_id, pattern):
            return any(_section(result, pattern.partition(".")[0]).get(option) is None for result in (old, new))
    return False


def _changed_options(section: str, old: Result, new: Result) -> list[tuple[str, JsonValue, JsonValue]]:
    before, after = _section(old, section), _section(new, section)
    pairs = [(key, before.get(key), after.get(key)) for key in sorted({*before, *after})]
    return [(key, a, b) for key, a, b in pairs if _written(a) != _written(b)]


def _written(value: JsonValue) -> list[str] | None:
    """Return an option as text: a file and a command line write the same one as a number, as text or as a list of one."""
    return None if value is None else [str(v) for v in value] if isinstance(value, list) else [str(value)]


def _section(result: Result, check_id: str) -> dict[str, JsonValue]:
    sections = result.spec.config.get("checks")
    held = sections.get(check_id) if isinstance(sections, dict) else None
    return held if isinstance(held, dict) else {}


def _run(result: Result) -> dict[str, JsonValue]:
    held = result.spec.config.get("run")
    return held if isinstance(held, dict) else {}


def _about_data(old: Result, new: Result) -> Iterator[str]:
    if not same_samples(old, new):
        yield _other_samples(old, new)
    for what, a, b in (
        ("reference part", old.data.reference_sha256, new.data.reference_sha256),
        ("labelled anomalies", old.data.anomalies_sha256, new.data.anomalies_sha256),
    ):
        if a != b:
            yield f"other data as {what}: what is fitted to them or measured on them changes with them"


def _other_samples(old: Result, new: Result) -> str:
    counts = f"{old.data.n:,} samples, then {new.data.n:,}"
    if old.data.sha256 != new.data.sha256:
        return f"other test data ({counts}): not paired; a change may be one of the data"
    used = _used(old), _used(new)
    if old.data.rows == new.data.rows and used[0] is not None and used[1] is not None and (used[0] != used[1]).any():
        both = int((used[0] & used[1]).sum())
        return f"other samples of the same file ({counts}, {both:,} in both): not paired, taken as independent"
    return f"the same file, but its samples went in otherwise ({counts}): not paired; a change may be one of the inputs"


def _used(result: Result) -> NDArray[np.bool_] | None:
    """Return which rows of the file were used, shape (rows,); None where the result does not say."""
    rows, packed = result.data.rows, result.data.sampled
    if packed is None:
        return np.ones(rows, dtype=np.bool_) if 0 < rows == result.data.n <= MOST_ROWS else None
    try:
        bits = np.frombuffer(base64.b64decode(packed, validate=True), dtype=np.uint8)
    except ValueError:
        return None
    return np.unpackbits(bits, count=rows).astype(np.bool_) if bits.size == (rows + 7) // 8 else None


def _few(names: list[str]) -> str:
    return ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")
