"""What a check is: a question put to a Model and a Dataset, as stages of jobs and a conclusion drawn from what they found.

A new check is one file: a subclass of `Check` under ``@check``, with

* `id`, `question`, `Options` (its section of audit.toml) and `metrics` (the rows it adds to docs/metrics.md),
* `stages`, which lists the work: each stage is one function that is called on blocks of samples, in any order, and
* `conclude`, which turns the merged arrays into metrics, evidence, findings and figures.

The runner does the rest: batches, cache, resume, progress, cost.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from audit.data.base import Dataset, Part
from audit.errors import UsageError, closest
from audit.model.batching import in_batches, is_out_of_memory
from audit.model.wrapper import Model
from audit.result import CheckResult, Evidence, finite

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Arrays = dict[str, NDArray[Any]]

REPEATED, ALONE = 128, 16  # samples that are run again, and one at a time
SAME_CALL, OTHER_BATCH = 1e-5, 1e-3  # tolerated share of an output's spread: other batch sizes take other kernels
ULPS, TIE_ULPS = 16, 4  # float rounding that is allowed for beyond it, in outputs and between two classes that tie
FLOAT32 = 2.0**-23


class CheckOptions(BaseModel):
    """Base of a check's section in audit.toml: frozen, closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class MetricDoc:
    """One row of docs/metrics.md. ``<name>`` in `id` stands for any one part of an id."""

    id: str
    definition: str
    unit: str
    range: str
    interval: str
    bias: str
    source: str
    kind: str = "estimate"
    direction: str = "higher"


@dataclass(frozen=True)
class Task:
    """What a check works on.

    Attributes
    ----------
    options
        The check's own options, validated.
    profile
        ``quick``, ``standard``, ``thorough`` or ``exhaustive``.
    keep_samples
        False where no input may be written anywhere.
    budget
        Seconds that the whole run may take; None where there is no limit.
    """

    model: Model
    data: Dataset
    options: Any
    seed: int = 0
    confidence: float = 0.95
    profile: str = "standard"
    keep_samples: bool = True
    budget: float | None = None

    def part(self, name: str) -> Part:
        """Return the ``test``, the ``reference`` or the ``anomalies`` part."""
        part = self.data.part(name)
        if part is None:
            raise ValueError(f"stage over the {name} part, but there is none")
        return part

    @property
    def classes(self) -> list[str]:
        """Names of the classes: as stated, else their numbers."""
        return list(self.data.classes) or self.model.class_names or [str(k) for k in range(self.model.classes or 0)]


@dataclass(frozen=True)
class Block:
    """The samples that one job works on: positions in their part, stable ids, inputs and labels on the model's device.

    `earlier` holds what the stages before this one found.
    """

    positions: NDArray[np.int64]
    ids: Tensor
    x: Tensor
    y: Tensor
    earlier: Mapping[str, Merged] = field(default_factory=dict)


@dataclass(frozen=True)
class Merged:
    """What a stage found: one row a sample that it ran on, in the order of sample ids; a whole stage's arrays as they are."""

    positions: NDArray[np.int64]
    arrays: Arrays

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.arrays[name]

    def spread(self, name: str, n: int, fill: Any) -> NDArray[Any]:
        """Return array `name` for all `n` samples of the part, with `fill` where the stage did not run."""
        values = self.arrays[name]
        out = np.full((n, *values.shape[1:]), fill, dtype=np.result_type(values.dtype, type(fill)))
        out[self.positions] = values
        return out


Found = Mapping[str, Merged]


@dataclass(frozen=True)
class Stage:
    """One step of the plan: `job` is called on blocks of samples, in any order; the arrays it returns have a row a sample.

    Attributes
    ----------
    id
        Unique in the plan; a stage that several checks list under one id runs once.
    job
        Must depend on nothing but the block, so that blocks may run anywhere.
    cost_of
        The metric or evidence whose cost this is.
    select
        Positions to run on, from what the stages in `after` found; all samples where None.
    after
        Ids of the stages that must be complete first. Those not in the plan are left out. A pattern such as
        ``robustness.*`` waits for every stage that it fits, of whatever check, and goes on where one of them failed.
    block
        Samples a job; the runner's own number where None.
    patience
        Longest wall clock in seconds. Where it, or the run's budget, ends, what the finished jobs found is taken, and the
        check goes on with that. None: the stage runs to its end, and a budget that ends before leaves the check unfinished.
    last
        Whether it runs once nothing else is left but what waits for it.
    whole
        Whether `job` is called once, on all samples that it runs on, and returns arrays of any shape: to fit a detector,
        say. Else it is called block by block.
    passes
        Expected forwards plus backwards a sample, for the plan and the time left.
    holds_inputs
        Whether the arrays hold inputs, which are then kept off the disk where no input may be written.
    """

    id: str
    job: Callable[[Block], Arrays]
    cost_of: str
    part: str = "test"
    select: Callable[[Found], NDArray[np.int64]] | None = None
    after: tuple[str, ...] = ()
    passes: float = 1.0
    holds_inputs: bool = False
    whole: bool = False
    block: int | None = None
    patience: float | None = None
    last: bool = False

    def waits_for(self, other: str) -> bool:
        """Tell whether the stage with id `other` must be complete, or have failed, before this one starts."""
        return other != self.id and any(fnmatchcase(other, pattern) for pattern in self.after)

    def needs(self, other: str) -> bool:
        """Tell whether this stage cannot run where the one with id `other` failed."""
        return other in self.after


class Check(ABC):
    """One question put to a Model and a Dataset."""

    id: ClassVar[str]
    question: ClassVar[str]
    Options: ClassVar[type[CheckOptions]] = CheckOptions
    metrics: ClassVar[Sequence[MetricDoc]] = ()

    def not_applicable(self, task: Task) -> str | None:  # noqa: ARG002
        """Return why the question makes no sense for this model and data, or None where it does."""
        return None

    def preflight(self, task: Task) -> None:  # noqa: B027
        """Raise an AuditError for what would make the work pointless, before any long work starts."""

    @abstractmethod
    def stages(self, task: Task) -> list[Stage]:
        """List the work."""

    @abstractmethod
    def conclude(self, task: Task, found: Found) -> CheckResult:
        """Turn what the stages found into the answer; the runner adds the cost."""

    def artifact(self, task: Task, found: Found) -> Arrays | None:  # noqa: ARG002
        """Return arrays for ``artifacts/<check>.npz``, or None; never called where inputs may not be written."""
        return None


CheckType = TypeVar("CheckType", bound=type[Check])
_checks: dict[str, type[Check]] = {}


def check(cls: CheckType) -> CheckType:
    """Register a check class under its `id`.

    Raises
    ------
    UsageError
        The id is that of a check of this package: another class must not quietly take its place.
    """
    import audit.checks as package

    if cls.id in package.BUILT_IN and cls.__module__ != f"audit.checks.{cls.id}":
        raise UsageError(f"the check {cls.__module__}.{cls.__qualname__} needs another id: {cls.id!r} is one of audit's own")
    _checks[cls.id] = cls
    return cls


def registry() -> dict[str, type[Check]]:
    """Return all checks by id: those of this package, then those of the entry-point group ``audit.checks``."""
    from importlib.metadata import entry_points

    import audit.checks as package

    for name in package.BUILT_IN:
        __import__(f"audit.checks.{name}")
    for point in entry_points(group="audit.checks"):
        check(_load(point))
    order = {name: i for i, name in enumerate(package.BUILT_IN)}
    return dict(sorted(_checks.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))


def _load(point: EntryPoint) -> type[Check]:
    try:
        loaded = point.load()
    except Exception as error:
        raise UsageError(
            f"the plugin {point.name!r} ({point.value}) cannot be imported: {type(error).__name__}: {error}; "
            "mend or uninstall it"
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Check) and isinstance(getattr(loaded, "id", None), str)):
        raise UsageError(f"the plugin {point.name!r} ({point.value}) should be a subclass of audit.Check with an id")
    return loaded


def get(check_id: str) -> type[Check]:
    """Return the check with this id; a UsageError names what is close."""
    checks = registry()
    if check_id not in checks:
        raise UsageError(f"no check {check_id!r}; {closest(check_id, list(checks))}")
    return checks[check_id]


def predictions(task: Task, part: str = "test", cost_of: str = "performance.accuracy") -> Stage:
    """Return the stage that all checks share: clean logits of shape (n, classes), or values of shape (n,).

    Its array is called ``logits`` for classification and ``values`` for regression.
    """
    name = "values" if task.model.task == "regression" else "logits"

    def job(block: Block) -> Arrays:
        def forward(x: Tensor) -> tuple[Tensor, ...]:
            return (task.model.values(x) if name == "values" else task.model.logits(x),)

        with torch.no_grad():
            (out,) = in_batches(forward, (block.x,), task.model.batch_size)
        return {name: out.cpu().numpy()}

    return Stage(id=f"predictions.{part}", job=job, cost_of=cost_of, part=part, passes=1.0)


def spread_positions(n: int, at_most: int) -> NDArray[np.int64]:
    """Return at most `at_most` positions that lie evenly over `n` samples."""
    return np.unique(np.linspace(0, n - 1, min(n, at_most)).round().astype(np.int64))


# --- can the network be measured twice? -------------------------------------------------------------------------------


def repeatability(task: Task, check_id: str = "performance") -> list[Stage]:
    """Return the stages, shared by all checks, that run some test samples twice, in another order, and one at a time.

    A check that lists them draws `repeatability_evidence` from them; it lists `predictions`, too. `check_id` says whose
    evidence they cost.
    """
    n = len(task.data.test)
    return [
        Stage(
            id="repeatability.twice",
            job=_twice(task),
            cost_of=f"{check_id}.deterministic",
            select=lambda _: spread_positions(n, REPEATED),
            passes=3.0,
        ),
        Stage(
            id="repeatability.alone",
            job=_one_at_a_time(task),
            cost_of=f"{check_id}.batch_independent",
            select=lambda _: spread_positions(n, ALONE),
        ),
    ]


def repeatability_evidence(check_id: str, task: Task, found: Found) -> list[Evidence]:
    """Judge whether the network gives a sample the same answer again, and whatever else is in the batch.

    Returns evidence ``<check_id>.deterministic`` and ``<check_id>.batch_independent``. A network that fails the first, or
    the second, was measured on answers that another run would not give.
    """
    twice, alone, batch = found["repeatability.twice"], found["repeatability.alone"], found["predictions.test"]
    outputs = batch.spread("values" if task.model.task == "regression" else "logits", len(task.data.test), np.nan)
    rounding = max(FLOAT32, float(torch.finfo(task.model.dtype).eps))
    labels = task.model.task == "multilabel"
    again = _compare(twice["first"], twice["second"], SAME_CALL, rounding, labels=labels)
    shuffled = _compare(twice["shuffled"], outputs[twice.positions], OTHER_BATCH, rounding, labels=labels)
    single = _compare(alone["alone"], outputs[alone.positions], OTHER_BATCH, rounding, labels=labels)
    refused = int(alone["refused"].sum())
    if refused:
        apart = f"the network cannot take one sample alone (tried on {len(alone.positions)}, failed on {refused})"
    else:
        apart = f"{len(alone.positions)} samples were run one at a time and inside a batch: {single}"
    return [
        Evidence(
            id=f"{check_id}.deterministic",
            ok=again.ok,
            detail=f"{len(twice.positions)} samples were run twice: {again}",
            value=finite(again.worst),
        ),
        Evidence(
            id=f"{check_id}.batch_independent",
            ok=shuffled.ok and single.ok and not refused,
            detail=f"{apart}; {len(twice.positions)} were run in another order and other batches: {shuffled}",
            value=finite(max(shuffled.worst, single.worst)),
        ),
    ]


def answers_twice(task: Task, first: NDArray[Any], second: NDArray[Any]) -> tuple[bool, str]:
    """Tell whether two forwards over the same inputs agree but for rounding, and say so in words."""
    rounding = max(FLOAT32, float(torch.finfo(task.model.dtype).eps))
    again = _compare(first, second, SAME_CALL, rounding, labels=task.model.task == "multilabel")
    return again.ok, str(again)


def _forward(task: Task, x: Tensor) -> Tensor:
    return task.model.values(x) if task.model.task == "regression" else task.model.logits(x)


def _twice(task: Task) -> Callable[[Block], Arrays]:
    def twice(x: Tensor) -> tuple[Tensor, ...]:
        return _forward(task, x), _forward(task, x)

    def once(x: Tensor) -> tuple[Tensor, ...]:
        return (_forward(task, x),)

    def job(block: Block) -> Arrays:
        n = len(block.x)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
        with task.model.session(), torch.no_grad():
            first, second = in_batches(twice, (block.x,), task.model.batch_size)
            (mixed,) = in_batches(once, (block.x[order.to(block.x.device)],), task.model.batch_size)
        shuffled = torch.empty_like(mixed)
        shuffled[order.to(mixed.device)] = mixed
        return {"first": first.cpu().numpy(), "second": second.cpu().numpy(), "shuffled": shuffled.cpu().numpy()}

    return job


def _one_at_a_time(task: Task) -> Callable[[Block], Arrays]:
    def alone(x: Tensor, rest: int) -> NDArray[Any] | None:
        try:
            row: NDArray[Any] = _forward(task, x).cpu().numpy()
        except Exception as error:
            # What a batch can do and a single sample cannot (batch statistics, a squeezed axis) is what is looked for here.
            if is_out_of_memory(error) or rest < 2:
                raise
            return None
        return row

    def job(block: Block) -> Arrays:
        n = len(block.x)
        with task.model.session(), torch.no_grad():
            rows = [alone(block.x[i : i + 1], n) for i in range(n)]
            known = [row for row in rows if row is not None]
            like = known[0] if known else _forward(task, block.x[:2]).cpu().numpy()[:1]
        return {
            "alone": np.concatenate([np.full_like(like, np.nan) if row is None else row for row in rows] or [like]),
            "refused": np.asarray([row is None for row in rows], dtype=np.bool_),
        }

    return job


@dataclass(frozen=True)
class _Agreement:
    """How far two runs over the same samples lie apart; `worst` is a multiple of what is tolerated."""

    worst: float
    flipped: int
    same_kind: bool

    @property
    def ok(self) -> bool:
        return self.worst <= 1 and self.flipped == 0 and self.same_kind

    def __str__(self) -> str:
        text = f"outputs differ by at most {self.worst:.2g} times what rounding explains"
        text += f", and {self.flipped} get another class" if self.flipped else ""
        return text if self.same_kind else f"{text}, and some are finite in one run only"


def _compare(a: NDArray[Any], b: NDArray[Any], tolerance: float, rounding: float, *, labels: bool = False) -> _Agreement:
    """Compare two runs, each output with its own spread over the samples.

    One scale for all would let a masked class at −1e9, or one sample far out, hide any randomness in the others. The class
    must agree, too, but where two classes tie within float rounding; or, where each output is a label's, all signs but those
    of outputs that are 0 within it.
    """
    a, b = (np.asarray(v, dtype=np.float64).reshape(len(v), -1) for v in (a, b))
    same_kind = bool((np.isfinite(a) == np.isfinite(b)).all())
    known = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    a, b = a[known], b[known]
    if not len(a):
        return _Agreement(0.0, 0, same_kind)
    low, high, large = np.quantile(a, 0.05, axis=0), np.quantile(a, 0.95, axis=0), np.quantile(np.abs(a), 0.9, axis=0)
    spread = tolerance * np.where(high > low, high - low, np.ptp(a, axis=0))
    size = rounding * np.maximum(np.maximum(np.abs(a), np.abs(b)), large)
    apart, allowed = np.abs(a - b), spread + ULPS * size
    worst = float(np.divide(apart, allowed, out=np.where(apart > 0, np.inf, 0.0), where=allowed > 0).max())
    if a.shape[1] < 2:
        return _Agreement(worst, 0, same_kind)
    rows, first, second = np.arange(len(a)), a.argmax(axis=1), b.argmax(axis=1)
    slack = spread + TIE_ULPS * size
    if labels:
        turned = ((a > 0) != (b > 0)) & (apart > slack)
        return _Agreement(worst, int(turned.any(axis=1).sum()), same_kind)
    room = slack[rows, first] + slack[rows, second]
    margin = np.maximum(a[rows, first] - a[rows, second], b[rows, second] - b[rows, first])
    return _Agreement(worst, int((margin > room).sum()), same_kind)


@dataclass
class Answer:
    """Collects the pieces of a CheckResult while `conclude` works."""

    check: type[Check]
    metrics: list[Any] = field(default_factory=list)
    evidence: list[Any] = field(default_factory=list)
    findings: list[Any] = field(default_factory=list)
    figures: list[Any] = field(default_factory=list)
    tables: list[Any] = field(default_factory=list)
    not_tested: list[str] = field(default_factory=list)
    outcomes: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    def result(self, task: Task, answer: str) -> CheckResult:
        """Close the answer: *incomplete* where a reason was given or evidence leaves no metric to believe, else *measured*."""
        from audit.result import OutcomeTable, undermining

        failed = [f"{e.id}: {e.detail}" for e in undermining(self.evidence, self.metrics)]
        reasons = [*self.reasons, *failed]
        test = task.data.test
        return CheckResult(
            id=self.check.id,
            status="incomplete" if reasons else "measured",
            reason="; ".join(reasons) or None,
            question=self.check.question,
            answer=answer,
            metrics=self.metrics,
            evidence=self.evidence,
            findings=self.findings,
            outcomes=OutcomeTable.pack(test.sha256(), len(test), self.outcomes) if self.outcomes else None,
            figures=self.figures,
            tables=self.tables,
            not_tested=self.not_tested,
        )
