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
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from audit.data.base import Dataset, Part
from audit.errors import UsageError, closest
from audit.model.batching import in_batches
from audit.model.wrapper import Model
from audit.result import CheckResult

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Arrays = dict[str, NDArray[Any]]


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
    stated
        Dotted names of the options that the user stated: the others are defaults, and the report names them.
    keep_samples
        False where no input may be written anywhere.
    """

    model: Model
    data: Dataset
    options: Any
    seed: int = 0
    confidence: float = 0.95
    profile: str = "standard"
    stated: frozenset[str] = frozenset()
    keep_samples: bool = True

    def part(self, name: str) -> Part:
        """Return the ``test`` or the ``reference`` part."""
        part = self.data.test if name == "test" else self.data.reference
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
    """What a stage found: one row a sample that it ran on, in the order of sample ids."""

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
        Ids of the stages that must be complete first. Those not in the plan are left out.
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
        """Close the answer: *incomplete* where any evidence is not ok or a reason was given, else *measured*."""
        from audit.result import OutcomeTable

        failed = [f"{e.id}: {e.detail}" for e in self.evidence if not e.ok]
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
