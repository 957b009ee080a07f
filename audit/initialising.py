"""Writes an audit.toml fitted to a network and its data: what was stated stands in it, what was measured beside open limits.

A line that begins with ``#`` and no blank is TOML to uncomment; prose has a blank after the ``#``. Names of files, columns and
classes are whatever somebody made them: in values they are escaped as TOML, and in prose nothing of theirs can end a line.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from audit.checks import base
from audit.config import MAX_TOML, MOST_DOTS, RunSection, resolve
from audit.errors import UsageError
from audit.plain import plain
from audit.result import CheckResult, Metric, write_atomically
from audit.workflows import dry_run, run

WIDE = 100  # characters of a list on one line
BARE = re.compile(r"[A-Za-z0-9_-]+")
ABOUT = {
    "task": "classification or regression",
    "output": "logits, probabilities, binary_logit, binary_probability or regression",
    "mean": "subtracted inside the model: one number in a list, or one a channel or column",
    "std": "divided by inside the model",
    "expect_sha256": "hash that the model file must have",
    "source": "the samples to audit on",
    "reference": "the training part: without it checks that need it do not apply",
    "anomalies": "inputs that the network is not for",
    "target": "column that holds the label",
    "inputs": "input columns",
    "sensitive": "columns to test for fairness",
    "classes": "names in the order of the outputs, or a file with one a line",
    "bounds": "lowest and highest input value, before mean and std",
    "expect_accuracy": "clean accuracy that was stated for the network: the audit stops where it is not met",
    "checks": "checks to run; unstated: all",
    "skip": "checks to leave out",
    "profile": "quick, standard, thorough or exhaustive: how hard it tries",
    "samples": "test samples to draw, by class",
    "device": "auto, cpu or cuda",
    "seed": "of everything drawn",
    "batch_size": "samples a batch",
    "out": "folder for results",
    "gate": "never end with 0 unless limits are set, and cleared or waived",
    "save_samples": "whether inputs may be written",
    "budget": "longest time of a run: '10m', '90s', or seconds",
    "baseline": "older result to compare with; max_drop in a limit needs one",
}


@dataclass(frozen=True)
class Seen:
    """What was found: the configuration by section, what network and data turned out to be, and the checks.

    `checks` holds what was measured; `left_out` says why a check does not apply.
    """

    config: Mapping[str, Any]
    told: Mapping[str, Any]
    kind: str
    checks: Sequence[CheckResult] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)


def init(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    *,
    out: str | os.PathLike[str] = "audit.toml",
    named: str | None = None,
    force: bool = False,
    measure: bool = True,
    **options: Any,
) -> Path:
    """Look at a network and its data, measure, and write an audit.toml that repeats the audit; limits are left open.

    Parameters
    ----------
    model, data, options
        As in `audit.run`, as files, since the configuration names them. The profile is ``quick`` unless stated. What runs code
        stays out of the file, which names it in a comment.
    out
        File to write.
    named
        How it is named in the command that stands in it; as `out` where None.
    force
        Write over a file that is there.
    measure
        Run the checks, so that measured values stand beside the open limits.

    Raises
    ------
    UsageError
        `out` is there already, or a name cannot be written in TOML.
    AuditError
        As in `audit.run`.
    """
    path = Path(out).absolute()  # code of the user's may change the current folder before the file is written
    if os.path.lexists(path) and not force:
        raise UsageError(f"{out} is there already: choose another --out, or write over it with --force")
    if options.get("profile") is None:
        options["profile"] = "quick"
    seen = _measured(model, data, options) if measure else _planned(model, data, options)
    source = os.fspath(model) if isinstance(model, str | os.PathLike) else "MODEL"
    text = written(seen, again(source, named or os.fspath(out), options))
    write_atomically(path, text.encode())
    return path


def _measured(model: Any, data: Any, options: Mapping[str, Any]) -> Seen:
    result = run(model, data, **options)
    info = result.model
    told = {"task": info.task, "output": info.output, "inputs": result.data.columns, "classes": info.class_names}
    left_out = {check.id: check.reason or "" for check in result.checks if check.status == "not_applicable"}
    return Seen(result.spec.config, told, _kind(info.input_shape, result.data.n), result.checks, left_out)


def _planned(model: Any, data: Any, options: Mapping[str, Any]) -> Seen:
    options = {name: value for name, value in options.items() if name != "progress"}
    forecast = dry_run(model, data, **options)
    network, samples = forecast.model, forecast.data
    names = list(samples.classes) or network.class_names
    told = {"task": network.task, "output": network.output, "inputs": list(samples.columns), "classes": names}
    left_out = {item.check.id: item.not_applicable for item in forecast.plan.planned if item.not_applicable}
    kind = _kind(samples.test.x.shape[1:], len(samples))
    return Seen(forecast.config.model_dump(), told, kind, (), left_out)


def _kind(shape: Sequence[int], n: int) -> str:
    return f"{n:,} samples of {' × '.join(str(int(side)) for side in shape)}"


def again(model: str, out: str, options: Mapping[str, Any]) -> str:
    """Return the command that runs an audit by the file, with what runs code and so cannot stand in it."""
    words = ["audit", "run", model, "--config", out]
    for name in ("arch", "arch_args", "preprocess"):
        value = options.get(name)
        if value is not None:
            words += ["--" + name.replace("_", "-"), value if isinstance(value, str) else json.dumps(value, default=str)]
    if options.get("trust_model"):
        words.append("--trust-model")
    return shlex.join(words)


# --- the file ---------------------------------------------------------------------------------------------------------


def written(seen: Seen, command: str) -> str:
    """Return the text of audit.toml.

    Raises
    ------
    UsageError
        A name cannot be written in TOML, or there are so many that the file could not be read again.
    """
    lines = [*_head(seen, command), *_general(seen)]
    for check_id, check in base.registry().items():
        lines += _check(seen, check_id, check)
    lines += _policy(seen)
    text = "\n".join(lines).rstrip("\n") + "\n"
    if len(text.encode()) > MAX_TOML:
        raise UsageError(f"the configuration would be larger than the {MAX_TOML:,} bytes that are read: state fewer names")
    if max(line.count(".") for line in lines) > MOST_DOTS:
        raise UsageError(f"a line of the configuration would have more than {MOST_DOTS} dots and not be read: state less")
    # What is written must be read again as it was meant, whatever names are in it.
    resolve(tomllib.loads(text), [*base.registry(), "hardening"])
    return text


def _head(seen: Seen, command: str) -> list[str]:
    return [
        "# How this network is audited. Written by `audit init`; yours to change.",
        "# A line that begins with # and no blank can be uncommented: it holds the default, or what was found.",
        "#",
        _prose(f"Seen: a network for {seen.told['task']} that returns {seen.told['output']}; {seen.kind}."),
        "# Run it with (what runs code is given there, and never read from this file):",
        *([f"#   {plain(command)}"] if plain(command).count(".") < MOST_DOTS else []),
        "",
    ]


def _general(seen: Seen) -> list[str]:
    defaults: dict[str, dict[str, Any]] = {"run": {k: f.default for k, f in RunSection.model_fields.items() if k != "skip"}}
    lines = []
    for section in ("model", "data", "run"):
        lines.append(f"[{section}]")
        held = seen.config[section]
        for key, value in held.items():
            about = ABOUT.get(key, "")
            if key == "profile" or (value not in (None, []) and value != defaults.get(section, {}).get(key)):
                lines += _assign(key, value, about)
            elif value not in (None, []):
                lines += _assign(key, value, about, comment=True)
            elif seen.told.get(key):
                lines += _assign(key, seen.told[key], f"{about}; told from network and data", comment=True)
            else:
                lines.append(_prose(f"{key}: {about}" if about else key))
        lines.append("")
    return lines


def _check(seen: Seen, check_id: str, check: type[base.Check]) -> list[str]:
    stated = seen.config["checks"].get(check_id, {})
    lines = [_prose(check.question)]
    if check_id in seen.left_out:
        lines.append(_prose(f"It does not apply here: {seen.left_out[check_id]}"))
    lines.append(f"[{check_id}]")
    for name, option in check.Options.model_fields.items():
        default = option.get_default(call_default_factory=True)
        about = option.description or ""
        if name in stated:
            lines += _assign(name, stated[name], about)
        elif default is None:
            lines.append(_prose(f"{name}: {about}"))
        else:
            lines += _assign(name, _as_json(default), about, comment=True)
    return [*lines, ""]


def _policy(seen: Seen) -> list[str]:
    policy = seen.config["policy"]
    lines = [
        "# What the network must keep, so that the audit can end with pass or fail. No limit is set: which one the use of the",
        "# network needs is yours to say, best before looking at what was measured. The confidence bound must clear it,",
        "# not the value: each limit below stands at the measured value, where it cannot be decided, until you change it.",
        "[policy]",
        *_assign("confidence", policy["confidence"], "of all intervals"),
        *_assign("looks", policy["looks"], "many: intervals that hold where samples are added until it passes", comment=True),
        "",
    ]
    for check in seen.checks:
        if check.status == "not_applicable":
            continue
        if check.status != "measured":
            lines += [_prose(f"{check.id} is {check.status}: {check.reason or 'no reason given'}"), ""]
        for metric in check.metrics:
            if metric.params.get("headline") is True:
                lines += _limit(metric)
    if not seen.checks:
        ids = [doc.id for check in base.registry().values() for doc in check.metrics if "<" not in doc.id]
        lines += [
            "# Nothing was measured (--no-measure). A limit is a table [[policy.limit]] with metric, and min or max: on",
            *(_prose(f"  {metric_id}") for metric_id in ids),
            "# audit list metrics says what each of them is.",
        ]
    return lines


def _limit(metric: Metric) -> list[str]:
    """Return an open limit: what was measured in words, and the table, at the measured value."""
    if metric.value is None or metric.low is None or metric.high is None:
        return [_prose(f"{metric.id} has no value or no interval: {metric.detail or 'no reason given'}"), ""]
    kind = {"estimate": "", "upper": "; at most this, since what looked for worse is only a search", "lower": "; at least this"}
    words = (
        f"measured: {metric.value:.4g} ({metric.unit}), {100 * metric.confidence:g} % interval {metric.low:.4g} to "
        f"{metric.high:.4g}, n = {metric.n:,}, {metric.method}{kind[metric.kind]}; {metric.direction} is better"
    )
    side = "min" if metric.direction == "higher" else "max"
    return [_prose(words), "#[[policy.limit]]", f"#metric = {_text(metric.id)}", f"#{side} = {_open(metric, side)!r}", ""]


def _open(metric: Metric, side: str) -> float:
    """Return where a limit can stand undecided: at the value, and inside the interval where no limit may stand there."""
    value, low, high = (float(v) for v in (metric.value or 0.0, metric.low or 0.0, metric.high or 0.0))
    if side == "min" and value == 0:
        return high
    return low if side == "max" and value == 1 else value


# --- TOML -------------------------------------------------------------------------------------------------------------


def _prose(text: str) -> str:
    said = plain(text)
    if len(said) > MOST_DOTS:
        said = said[: MOST_DOTS - 1] + "…"  # a line of more dots would not be read
    return f"# {said}".rstrip()


def _assign(key: str, value: Any, about: str = "", *, comment: bool = False) -> list[str]:
    """Return the lines of ``key = value  # about``; a long list has an item a line."""
    hidden = "#" if comment else ""
    said = f"  # {plain(about)}" if about else ""
    whole = _value(value)
    if not isinstance(value, list | tuple) or len(whole) <= WIDE:
        return [f"{hidden}{_key(key)} = {whole}{said}"]
    items = [f"{hidden}{line}," for item in value for line in [_value(item)]]
    return [f"{hidden}{_key(key)} = [{said}", *items, f"{hidden}]"]


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, Mapping):
        held = ", ".join(f"{_key(str(key))} = {_value(item)}" for key, item in value.items() if item is not None)
        return f"{{ {held} }}" if held else "{}"
    return repr(value)


def _key(name: str) -> str:
    return name if BARE.fullmatch(name) else _text(name)


def _text(text: str) -> str:
    """Return a basic string of TOML: quotes, backslashes and all that is invisible are escaped."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{plain(text)[:200]!r} is not valid Unicode and cannot be written in TOML: rename it") from None
    escaped = "".join(_escaped(c) for c in text)
    # A line with very many dots is refused when the file is read, since a key of so many parts would fill the memory.
    return f'"{escaped.replace(".", _code(".")) if text.count(".") > MOST_DOTS // 10 else escaped}"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    return char if plain(char) == char else _code(char)


def _code(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


def _as_json(value: Any) -> Any:
    """Return a default as TOML can hold it."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return [_as_json(item) for item in value] if isinstance(value, list | tuple) else value
