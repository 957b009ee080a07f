"""Everything that one run found, as typed and frozen records: their JSON is the truth that every report is drawn from.

The records mirror result.json key for key. Nothing non-finite enters them: `finite` turns NaN and infinity into None, and
the check that meets one adds a finding. Reading a result never imports torch.
"""

from __future__ import annotations

import base64
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from audit.console import harmless_json
from audit.errors import InputError, OutputError
from audit.files import read_file

SCHEMA_VERSION: Literal["1"] = "1"
MAX_BYTES = 2**28  # of a result: one of ten million samples and twenty outcomes is smaller
MOST = 2**63 - 1  # of a whole number: readers in other languages take no larger one
VERDICT_EXIT_CODES = {"pass": 0, "unjudged": 0, "fail": 1, "incomplete": 4}

MetricId = Annotated[str, Field(pattern=r"^[a-z0-9_]+(\.[a-z0-9_]+)+$")]
Number = Annotated[float, Field(allow_inf_nan=False)]
VerdictWord = Literal["pass", "fail", "incomplete", "unjudged"]


class Record(BaseModel):
    """Base of all records: frozen, closed to unknown keys, without NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Metric(Record):
    """A measured value with its interval and with what it takes to judge it.

    `kind` says what the number is of the truth: an estimate, an upper bound (no attack found a lower one) or a lower bound
    (a certificate). `direction` says which way is better. `outcome` names the outcome of the same check whose share the metric
    is, or, with ``not`` before it, the share of whose opposite: then two audits of the same samples are compared in pairs.
    """

    id: MetricId
    value: Number | None
    low: Number | None
    high: Number | None
    confidence: Annotated[float, Field(gt=0, lt=1)]
    n: Annotated[int, Field(ge=0, le=MOST)]
    method: str
    kind: Literal["estimate", "upper", "lower"] = "estimate"
    direction: Literal["higher", "lower"] = "higher"
    unit: str = "fraction"
    params: dict[str, JsonValue] = Field(default_factory=dict)
    detail: str = ""
    outcome: str = ""

    @model_validator(mode="after")
    def _interval_is_one(self) -> Metric:
        # An interval that is turned round would clear every limit.
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"the interval of {self.id} should run from low to high, got {self.low:g} to {self.high:g}")
        return self


class Evidence(Record):
    """A test of the measurement itself: `ok`, or not, with the figure that decided it.

    `one_sided` evidence, where it is not ok, can only have flattered the network: a figure that fails all the same stands.
    `about` lists the metrics that rest on it; where it is empty, all of its check do.
    """

    id: MetricId
    ok: bool
    detail: str
    value: Number | None = None
    one_sided: bool = False
    about: list[MetricId] = Field(default_factory=list)

    def concerns(self, metric_id: str) -> bool:
        """Tell whether a metric of the same check rests on this."""
        return not self.about or metric_id in self.about


def undermining(evidence: Iterable[Evidence], metrics: Iterable[Metric]) -> list[Evidence]:
    """Return the evidence that is not ok, where it leaves no metric of a check to believe; else an empty list."""
    failed = [e for e in evidence if not e.ok]
    for metric in metrics:
        if not any(e.concerns(metric.id) for e in failed):
            return []
    return failed


class Finding(Record):
    """Something that a person must know, with the samples (their ids) that show it."""

    severity: Literal["high", "medium", "low", "info"]
    title: str
    detail: str
    samples: list[int] = Field(default_factory=list)


class Figure(Record):
    """Data of one chart; `kind` names the drawing in `audit.report.charts`."""

    id: str
    kind: str
    title: str
    data: dict[str, JsonValue]


class Table(Record):
    """A table shown beside a figure or on its own; cells are text, numbers or None."""

    id: str
    title: str
    columns: list[str]
    rows: list[list[JsonValue]]


class Passes(Record):
    """What a measurement cost, in samples through the network forwards and backwards, and in seconds."""

    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0

    def __add__(self, other: Passes) -> Passes:
        return Passes(
            forwards=self.forwards + other.forwards,
            backwards=self.backwards + other.backwards,
            seconds=self.seconds + other.seconds,
        )


class Cost(Passes):
    """Cost of a check, and of each of its parts: a metric or a piece of evidence."""

    parts: dict[str, Passes] = Field(default_factory=dict)


class OutcomeTable(BaseModel):
    """What happened to each sample: one row of bits an outcome, in the order of sample ids.

    `ids_sha256` covers the ids, inputs and labels of the samples, so that rows of different data are never paired. In JSON
    each outcome is the base64 of its packed bits (big-endian, as ``numpy.packbits`` gives them), padded with zeros.
    """

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())
    __pydantic_extra__: dict[str, str]

    ids_sha256: str
    n: Annotated[int, Field(ge=0)]

    @classmethod
    def pack(cls, ids_sha256: str, n: int, outcomes: Mapping[str, NDArray[np.bool_]]) -> OutcomeTable:
        """Pack boolean arrays of shape (n,) under their names."""
        packed = {}
        for name, bits in outcomes.items():
            if bits.shape != (n,):
                raise ValueError(f"outcome {name!r} needs one bit for each of {n} samples, got shape {bits.shape}")
            packed[name] = base64.b64encode(np.packbits(bits).tobytes()).decode("ascii")
        return cls(ids_sha256=ids_sha256, n=n, **packed)  # type: ignore[arg-type]

    def names(self) -> list[str]:
        """Names of the outcomes that the table holds."""
        return sorted(self.__pydantic_extra__)

    def bits(self, name: str) -> NDArray[np.bool_]:
        """Return one outcome as a boolean array of shape (n,), in the order of sample ids.

        Raises
        ------
        KeyError
            There is no such outcome.
        InputError
            What the file holds are not the packed bits of n samples.
        """
        if name not in self.__pydantic_extra__:
            raise KeyError(f"no outcome {name!r} in this table; it has {self.names()}")
        try:
            packed = np.frombuffer(base64.b64decode(self.__pydantic_extra__[name], validate=True), dtype=np.uint8)
        except ValueError:
            raise InputError(f"outcome {name!r} should be packed bits in base64, but is not") from None
        if packed.size != (self.n + 7) // 8:
            raise InputError(f"outcome {name!r} should pack {self.n} bits, but holds {packed.size} bytes")
        return np.unpackbits(packed, count=self.n).astype(np.bool_)

    def successes(self, metric: Metric) -> NDArray[np.bool_]:
        """Return for each sample whether it counts for `metric`, which names the outcome; errors as in `bits`."""
        name = metric.outcome.removeprefix("not ")
        bits = self.bits(name)
        return ~bits if name != metric.outcome else bits

    def bears_out(self, metric: Metric) -> bool:
        """Tell whether `metric` is the share of the outcome that it names."""
        try:
            successes = self.successes(metric)
        except (KeyError, InputError):
            return False
        return metric.n == self.n > 0 and metric.value is not None and abs(metric.value - successes.mean()) < 1e-6


class CheckResult(Record):
    """The answer of one check. `status` says whether it was measured soundly; pass and fail belong to the policy."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    status: Literal["measured", "incomplete", "not_applicable", "error"]
    reason: str | None = None
    question: str
    answer: str
    metrics: list[Metric] = Field(default_factory=list)
    evidence: list[Evidence] = Field(default_factory=list)
    findings: list[Finding] = Field(default_factory=list)
    outcomes: OutcomeTable | None = None
    figures: list[Figure] = Field(default_factory=list)
    tables: list[Table] = Field(default_factory=list)
    cost: Cost = Field(default_factory=Cost)
    not_tested: list[str] = Field(default_factory=list)
    artifact: str | None = None
    artifact_sha256: str | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> CheckResult:
        # A metric and the bits that it is the share of are compared in different places: they must be one and the same.
        known = {metric.id for metric in self.metrics}
        for evidence in self.evidence:
            if not known.issuperset(evidence.about):
                raise ValueError(f"{evidence.id} should be about metrics of {self.id}, got {evidence.about}")
        for metric in self.metrics:
            if metric.outcome and (self.outcomes is None or not self.outcomes.bears_out(metric)):
                raise ValueError(f"{metric.id} should be the share of the outcome {metric.outcome!r}, but is not")
        return self

    def metric(self, metric_id: str) -> Metric:
        """Return the metric with this id; the error lists the ids that there are."""
        for metric in self.metrics:
            if metric.id == metric_id:
                return metric
        raise KeyError(f"check {self.id!r} has no metric {metric_id!r}; it has {[m.id for m in self.metrics]}")


class Judgement(Record):
    """One limit of the policy held against its metric.

    `bound` is the confidence bound that was held against the limit: of the metric, or for ``max_drop`` of how much worse it
    became than in the baseline.
    """

    metric: str
    min: Number | None = None
    max: Number | None = None
    max_drop: Number | None = None
    bound: Number | None = None
    p_fail: Number | None = None
    outcome: Literal["pass", "fail", "incomplete", "waived"]
    required: bool = True
    reason: str = ""
    plan_for: int | None = None

    @model_validator(mode="after")
    def _one_side(self) -> Judgement:
        if (self.min, self.max, self.max_drop).count(None) != 2:
            raise ValueError(f"the limit on {self.metric} should have min, max or max_drop, one of them")
        return self


class Change(Record):
    """How one metric differs between two results.

    Attributes
    ----------
    old, new
        Its values.
    change, low, high
        New less old, with its interval; None where the two cannot be compared.
    p_worse
        One-sided p-value against the claim that it became no worse.
    method
        How the interval was made; it begins with ``paired`` where both hold the same samples.
    n
        Samples of the new result; for a paired comparison, of both.
    outcome
        ``better`` or ``worse`` where the change is beyond noise, also after correction for the number of comparisons (that of
        the primary metric is tested alone), ``unchanged`` within noise, or ``not_comparable``.
    reason
        Why it cannot be compared, or what must be known of the comparison.
    """

    metric: MetricId
    direction: Literal["higher", "lower"]
    unit: str = "fraction"
    old: Number | None = None
    new: Number | None = None
    change: Number | None = None
    low: Number | None = None
    high: Number | None = None
    p_worse: Number | None = None
    method: str = ""
    n: int = 0
    primary: bool = False
    outcome: Literal["better", "worse", "unchanged", "not_comparable"]
    reason: str = ""


class Comparison(Record):
    """What changed between an older result and this one.

    Attributes
    ----------
    verdict
        The outcome of the primary comparison, or ``worse`` where any other metric surely is.
    source, sha256, started_at, model_sha256
        Of the older result: where it was read, the hash of its file, when it ran, and the hash of its network.
    paired
        Whether both hold the same samples.
    notes
        What differs between the two runs beside the network: data, radius, seed of sampling, versions.
    """

    verdict: Literal["better", "worse", "unchanged", "not_comparable"]
    sentence: str
    source: str
    sha256: str
    started_at: str
    model_sha256: str
    confidence: float = 0.95
    paired: bool = False
    changes: list[Change] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)

    def change(self, metric_id: str) -> Change | None:
        """Return the change of a metric, None where neither result measured it."""
        return next((change for change in self.changes if change.metric == metric_id), None)


class Spec(Record):
    """What was asked, and with which software; `not_run` names checks that were left out, `sandbox` the walls that stood."""

    audit_version: str
    config: dict[str, JsonValue] = Field(default_factory=dict)
    policy_sha256: str | None = None
    confidence: float = 0.95
    seed: int = 0
    device: str = "cpu"
    packages: dict[str, str] = Field(default_factory=dict)
    python: str = ""
    platform: str = ""
    git: dict[str, JsonValue] = Field(default_factory=dict)
    sandbox: str = ""
    command: str = ""
    not_run: list[str] = Field(default_factory=list)


class ModelInfo(Record):
    """The network that was audited."""

    source: str
    sha256: str
    format: str
    task: str
    classes: int | None
    class_names: list[str] = Field(default_factory=list)
    input_shape: list[int]
    parameters: int
    trusted: bool = False
    output: str = ""
    notes: list[str] = Field(default_factory=list)


class DataInfo(Record):
    """The data that it was audited on. `sampled` packs one bit for each row of the file where not all were used."""

    source: str
    sha256: str
    reference_sha256: str = ""
    anomalies_sha256: str = ""
    n: int
    n_reference: int = 0
    n_anomalies: int = 0
    columns: list[str] = Field(default_factory=list)
    sensitive: list[str] = Field(default_factory=list)
    kind: str = ""
    bounds: list[JsonValue] | None = None
    rows: int = 0
    sampled: str | None = None
    notes: list[str] = Field(default_factory=list)


class Result(Record):
    """Everything that one run found; ``result.json`` is its JSON."""

    schema_version: Literal["1"] = SCHEMA_VERSION
    verdict: VerdictWord
    sentence: str = ""
    exit_code: int
    started_at: str
    seconds: float
    spec: Spec
    model: ModelInfo
    data: DataInfo
    checks: list[CheckResult] = Field(default_factory=list)
    policy: list[Judgement] = Field(default_factory=list)
    comparison: Comparison | None = None

    def __getitem__(self, check_id: str) -> CheckResult:
        for check in self.checks:
            if check.id == check_id:
                return check
        raise KeyError(f"no check {check_id!r} in this result; it has {[c.id for c in self.checks]}")

    def metrics(self) -> dict[str, Metric]:
        """All metrics of all checks by id."""
        return {metric.id: metric for check in self.checks for metric in check.metrics}

    def to_json(self) -> str:
        """Return result.json's text: keys in the order of the schema, no NaN, no infinity."""
        text = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)
        return harmless_json(text) + "\n"  # people print it in the logs of CI jobs

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "result.json") -> Result:
        """Read result.json's text.

        Raises
        ------
        InputError
            The text is not JSON, or not a result of this schema version.
        """
        try:
            # Not pydantic's own JSON parser: it lets NaN and infinity through where any JSON value may stand.
            return cls.model_validate(json.loads(text))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole file"
            problem = f"{where}: {first['msg']}"
        except (ValueError, RecursionError) as error:
            problem = f"it is not JSON: {error}"
        raise InputError(f"{source} is not a result of schema version {SCHEMA_VERSION}: {problem}")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Result:
        """Read ``result.json``, or the one in a folder that ``audit run`` wrote."""
        file = Path(path)
        file = file / "result.json" if file.is_dir() else file
        return cls.from_json(read_file(file, "result", InputError, MAX_BYTES), str(file))

    def save(self, out: str | os.PathLike[str]) -> Path:
        """Write result.json, report.html, summary.md and junit.xml into folder `out`; return the folder.

        All files are written beside their places, then renamed, so that there is never half a report.

        Raises
        ------
        OutputError
            The folder cannot be made or written.
        """
        folder = make_folder(out)
        texts = {"result.json": self.to_json(), **{name: render(self) for name, render in _renderers().items()}}
        # A file name need not be valid Unicode; a lone surrogate is then written as the escape that JSON reads back.
        write_together({folder / name: text.encode(errors="backslashreplace") for name, text in texts.items()})
        return folder

    def _repr_html_(self) -> str:
        import html

        page = html.escape(_renderers()["report.html"](self), quote=True)
        return f'<iframe srcdoc="{page}" sandbox="" style="width:100%;height:48em;border:1px solid #8888"></iframe>'


def _renderers() -> dict[str, Callable[[Result], str]]:
    import audit

    return audit._renderers()


def finite(value: float | None) -> float | None:
    """Return `value` as a float, or None where it is NaN or infinite."""
    return float(value) if value is not None and math.isfinite(value) else None


def slug(name: str) -> str:
    """Return `name` as a part of a metric id: lower case, anything outside [a-z0-9_] as ``_``."""
    return "".join(c if c in "abcdefghijklmnopqrstuvwxyz0123456789_" else "_" for c in name.lower()) or "_"


def slugs(names: Iterable[str]) -> dict[str, str]:
    """Return a slug for each name, made unique with a number where two names share one."""
    taken: dict[str, str] = {}
    for name in names:
        base = candidate = slug(name)
        count = 1
        while candidate in taken.values():
            count += 1
            candidate = f"{base}_{count}"
        taken[name] = candidate
    return taken


def own_folder(out: Path, name: str) -> Path:
    """Return folder `name` inside `out`; an OutputError where it is a link, which could lead anywhere."""
    folder = out / name
    if folder.is_symlink():
        raise OutputError(
            f"expected a folder of this program's own at {folder}, got a link: remove it, or choose another --out"
        )
    return folder


def make_folder(out: str | os.PathLike[str]) -> Path:
    """Make folder `out` where it is missing; an OutputError says why it cannot be written."""
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"expected a folder that can be written for the results, got {folder}: {error.strerror or error}; "
            "choose another with --out"
        ) from None
    return folder


def drop_reports(out: Path) -> None:
    """Delete what an earlier run wrote into `out`: one that ends early must leave no older verdict there as if it were its own.

    An OutputError says what cannot be deleted.
    """
    for name in ("result.json", *_renderers()):
        try:
            (out / name).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot replace {out / name}: {error.strerror or error}; choose another folder with --out"
            ) from None


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` beside `path` and rename it there; an OutputError says why not."""
    write_together({path: content})


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Write files beside their places and rename them only when all are written; an OutputError says why not."""
    beside = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in contents}
    path = next(iter(contents))
    try:
        for path, content in contents.items():
            beside[path].write_bytes(content)
        for path in contents:
            beside[path].replace(path)
    except OSError as error:
        for left in beside.values():
            left.unlink(missing_ok=True)
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another folder with --out"
        ) from None


def schema() -> dict[str, Any]:
    """Return the JSON schema of result.json."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"audit result, schema version {SCHEMA_VERSION}",
        **Result.model_json_schema(mode="serialization"),
    }
