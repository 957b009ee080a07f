"""audit.toml as typed, frozen models, and how it meets the command line: the command line wins.

Sections: ``[model]``, ``[data]``, ``[run]``, one for each check, and ``[policy]``. What runs code (``arch``, ``preprocess``,
``trust_model``) is never read from a file. Check sections stay plain here; each check validates its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from audit.errors import UsageError, closest
from audit.files import read_file

PROFILES = ("quick", "standard", "thorough", "exhaustive")
MAX_TOML = 2**18
MOST_DOTS = 500
MAX_SETTING = 2**16
MOST_NESTED = 12
LEAST_CONFIDENCE = 0.8
MOST = 2**63 - 1  # of a whole number: readers of result.json in other languages take no larger one
MOST_SAMPLES = 2**31 - 1  # of a batch
TOO_DEEP = f"its tables or lists are nested more than {MOST_NESTED} deep"
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
BRANCH = re.compile(r"bool|str|int|float|(literal|list|tuple|dict|function-\w+)\[.*\]|[A-Z]\w*Options")
CODE_OPTIONS = {"arch", "arch_args", "preprocess", "trust_model", "trust"}


class Section(BaseModel):
    """Base of all sections: frozen, closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


# What a network returns.
Output = Literal[
    "logits",
    "probabilities",
    "binary_logit",
    "binary_probability",
    "multilabel_logits",
    "multilabel_probabilities",
    "regression",
]


class ModelSection(Section):
    """``[model]``: the network."""

    task: Literal["classification", "multilabel", "regression"] | None = None
    output: Output | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    expect_sha256: str | None = None


class DataSection(Section):
    """``[data]``: the samples."""

    source: str | None = None
    reference: str | None = None
    anomalies: str | None = None
    target: str | None = None
    inputs: list[str] = Field(default_factory=list)
    sensitive: list[str] = Field(default_factory=list)
    classes: str | list[str] | None = None
    bounds: tuple[float | list[float], float | list[float]] | None = None
    expect_accuracy: float | None = Field(default=None, ge=0, le=1)


class RunSection(Section):
    """``[run]``: how to run."""

    checks: list[str] | None = None
    skip: list[str] = Field(default_factory=list)
    profile: Literal["quick", "standard", "thorough", "exhaustive"] = "standard"
    samples: int | None = Field(default=None, ge=1, le=MOST)
    device: str = "auto"
    seed: int = Field(default=0, ge=0, le=MOST)
    batch_size: int = Field(default=256, ge=1, le=MOST_SAMPLES)
    out: str = Field(default="audit-out", min_length=1)  # an empty one would be the current folder
    gate: bool = False
    save_samples: bool = True
    budget: float | None = Field(default=None, gt=0, allow_inf_nan=False)  # seconds
    baseline: str | None = Field(default=None, min_length=1)

    @field_validator("budget", mode="before")
    @classmethod
    def _duration(cls, value: Any) -> Any:
        return seconds(value)


class Limit(Section):
    """One ``[[policy.limit]]``: the confidence bound of a metric must clear it.

    `max_drop` is how much worse than in the baseline (``--baseline``) the metric may be, in its own unit.
    """

    metric: str
    min: float | None = Field(default=None, allow_inf_nan=False)
    max: float | None = Field(default=None, allow_inf_nan=False)
    max_drop: float | None = Field(default=None, allow_inf_nan=False, ge=0)
    required: bool = True

    @model_validator(mode="after")
    def _one_side(self) -> Limit:
        if (self.min, self.max, self.max_drop).count(None) != 2:
            raise ValueError("give one of min, max and max_drop")
        return self


class Waiver(Section):
    """One ``[[policy.waiver]]``: somebody answers for a limit that fails, until a day.

    The last day on which it holds is `expires`, in UTC. `limit` says which limit on the metric it is for; unstated, ``min`` and
    ``max``: whoever answers for a level does not yet answer for any further drop.
    """

    metric: str
    limit: Literal["min", "max", "max_drop"] | None = None
    reason: str
    owner: str
    expires: date

    def covers(self, limit: Any) -> bool:
        """Tell whether it is for a limit, or for the judgement of one."""
        kind = next(name for name in ("min", "max", "max_drop") if getattr(limit, name) is not None)
        return bool(self.metric == limit.metric and (kind == self.limit or (self.limit is None and kind != "max_drop")))

    @field_validator("reason", "owner")
    @classmethod
    def _says_something(cls, text: str) -> str:
        if not any(char.isalnum() for char in text):  # blanks, or characters that nobody sees
            raise ValueError("should say something")
        return text

    @field_validator("expires", mode="before")
    @classmethod
    def _a_day(cls, value: Any) -> Any:
        # A time would lose its offset, and a number would be read as seconds since 1970.
        written = isinstance(value, str) and re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value)
        if not written and (not isinstance(value, date) or isinstance(value, datetime)):
            raise ValueError("should be a day, such as 2026-12-31, which ends in UTC")
        return value


class PolicySection(Section):
    """``[policy]``: limits, who waived which, and the confidence of all intervals.

    With `looks` = ``many`` limits are held against confidence sequences, which stay valid where a gate looks again and again as
    samples come in, and stops when it likes what it sees.
    """

    confidence: float = 0.95
    looks: Literal["once", "many"] = "once"
    limit: list[Limit] = Field(default_factory=list)
    waiver: list[Waiver] = Field(default_factory=list)

    @field_validator("confidence")
    @classmethod
    def _says_something(cls, confidence: float) -> float:
        if not LEAST_CONFIDENCE <= confidence < 1:
            raise ValueError(
                f"confidence should be at least {LEAST_CONFIDENCE} and below 1, such as 0.95: "
                "an interval that misses the truth more than one time in five says little"
            )
        return confidence

    def sha256(self) -> str | None:
        """Hash of the policy, so that a change that weakens its own gate shows; None without limits."""
        if not self.limit:
            return None
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


class Config(Section):
    """A whole configuration. `checks` holds each check's section as it was written."""

    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    run: RunSection = RunSection()
    policy: PolicySection = PolicySection()
    checks: dict[str, dict[str, Any]] = Field(default_factory=dict)


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read audit.toml into a plain dict.

    Raises
    ------
    UsageError
        The file is missing or is not TOML.
    """
    content = read_file(Path(path), "configuration", UsageError, MAX_TOML)
    try:
        return _parse(content.decode("utf-8"))
    except RecursionError:
        raise UsageError(f"{path} is not a configuration: {TOO_DEEP}") from None
    except ValueError as error:
        raise UsageError(f"{path} is not TOML: {str(error)[:300]}") from None


def parse_setting(text: str) -> tuple[str, str, Any]:
    """Split ``section.key=value``; the value is TOML where it can be, else text."""
    name, equals, value = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not equals or not dot or not section or not key:
        raise UsageError(f"--set needs section.key=value, got {text!r}; for instance --set robustness.steps=100")
    text = value.strip()
    if len(text) > MAX_SETTING:
        raise UsageError(f"--set {section}.{key} has {len(text):,} characters; at most {MAX_SETTING:,} are read")
    try:
        held = _parse(f"value = {text}")
    except RecursionError:
        raise UsageError(f"--set {section}.{key}: {TOO_DEEP}") from None
    except ValueError:
        return section, key, text
    # A line break in the value would make more keys of it: then it is text.
    return section, key, held["value"] if list(held) == ["value"] else text


def seconds(value: Any) -> Any:
    """Return a stated time in seconds (``90s``, ``10m``, ``1.5h``); what is no text is returned as it is.

    Raises
    ------
    ValueError
        It is text, but no time.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", value)
    if match is None:
        raise ValueError("a time is seconds, or a number with s, m or h: 90s, 10m, 1.5h")
    return float(match[1]) * UNITS[match[2] or "s"]


def _parse(text: str) -> dict[str, Any]:
    """Parse TOML; RecursionError where it is nested too deeply, ValueError where it is not TOML."""
    # tomllib keeps each beginning of a dotted key, so that one of 500,000 parts (1 MB of text) fills the memory of a machine.
    if max((line.count(".") for line in text.split("\n")), default=0) > MOST_DOTS:
        raise ValueError(f"a line has more than {MOST_DOTS} dots: break a long list over several lines")
    values = tomllib.loads(text)
    if _depth(values) > MOST_NESTED:
        raise RecursionError
    return values


def _depth(value: Any) -> int:
    """Return how many tables and lists stand inside each other; without recursion, which is what a hostile file counts on."""
    deepest, waiting = 0, [(value, 1)]
    while waiting:
        item, depth = waiting.pop()
        deepest = max(deepest, depth)
        if isinstance(item, dict | list):
            waiting += [(below, depth + 1) for below in (item.values() if isinstance(item, dict) else item)]
    return deepest


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested dicts; a later layer wins, and None in a later layer leaves the earlier value."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, Mapping):
                below = merged.get(key, {})
                merged[key] = merge(below if isinstance(below, Mapping) else {}, value)
            elif value is not None:
                merged[key] = value
    return merged


def resolve(raw: Mapping[str, Any], check_ids: list[str]) -> Config:
    """Validate a merged configuration.

    Raises
    ------
    UsageError
        An unknown section or key, a value of the wrong type, or a key that would run code.
    """
    known = ["model", "data", "run", "policy", *check_ids]
    for section, values in raw.items():
        if section not in known:
            raise UsageError(f"no section [{section}] in the configuration; {closest(section, known)}")
        if not isinstance(values, Mapping):
            raise UsageError(f"[{section}] should be a section with keys, got {type(values).__name__}")
    for section in ("model", "data", "run"):
        for key in CODE_OPTIONS & set(raw.get(section, {})):
            option = "--" + key.replace("_", "-")
            raise UsageError(
                f"{key!r} in [{section}] runs code, so it is not taken from a file; give {option} on the command line"
            )
    general = {section: raw[section] for section in known[:4] if section in raw}
    checks = {section: dict(raw[section]) for section in check_ids if section in raw}
    config: Config = validate(Config, {**general, "checks": checks}, "")
    return config


def validate(model: type[Any], values: Mapping[str, Any], section: str) -> Any:
    """Validate values under a pydantic model; a UsageError names the key, what was got and what is close."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first, alternatives = _told(error.errors())
        end = len(first["loc"]) - 1 if first["type"] == "extra_forbidden" else 0  # the user's own word, whatever it is
        kept = [str(part) for i, part in enumerate(first["loc"]) if i in (0, end) or not _is_branch(part)]
        where = [*([section] if section else []), *kept]
        name = ".".join(where)
        if first["type"] == "extra_forbidden":
            fields = _fields_at(model, first["loc"][:-1])
            raise UsageError(f"no option {name!r}; {closest(where[-1], fields)}") from None
        if first["type"] == "missing":
            raise UsageError(f"{name!r} is missing: it has no default") from None
        said = ", or ".join(one["msg"].removeprefix("Value error, ") for one in alternatives)
        what = re.sub(r"dictionary or instance of \w+", "table", said)
        raise UsageError(f"{name or 'the configuration'}: {what}, got {str(first.get('input'))[:80]!r}") from None


def _told(errors: Sequence[Any]) -> tuple[Any, list[Any]]:
    """Return the error to tell, and those that are as near: of an option that is one thing or another, each says what it lacks.

    The one that got furthest into the value is meant: of ``true`` or a table, a table with a wrong key was meant as a table.
    """
    same = [one for one in errors if one["loc"][:1] == errors[0]["loc"][:1]]
    told = max(same, key=lambda one: len(one["loc"]))
    if len(told["loc"]) < 2 or not _is_branch(told["loc"][-1]):
        return told, [told]
    return told, [one for one in same if one["loc"][:-1] == told["loc"][:-1] and _is_branch(one["loc"][-1])]


def _is_branch(part: int | str) -> bool:
    """Tell whether a part of an error's place is pydantic's name for a kind of value, and no key of the user's."""
    return isinstance(part, str) and BRANCH.fullmatch(part) is not None


def _fields_at(model: Any, path: tuple[int | str, ...]) -> list[str]:
    annotation: Any = None
    for part in path:
        if _is_branch(part):
            model = next((kind for kind in get_args(annotation) if getattr(kind, "__name__", "") == part), model)
            continue
        field = getattr(model, "model_fields", {}).get(part)
        annotation = field.annotation if field is not None else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
        elif part in ("limit", "waiver"):
            model = {"limit": Limit, "waiver": Waiver}[part]
    return list(getattr(model, "model_fields", {}))
