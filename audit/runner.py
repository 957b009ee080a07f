"""Plan, execute, collect: turns a model, data and a configuration into a Result.

The plan is a graph of stages; a stage is a list of jobs, each over a block of samples. Jobs share nothing; between stages
their arrays are merged in the order of sample ids. A finished job is stored at once, so that a killed run goes on where it was.
"""

from __future__ import annotations

import base64
import io
import platform
import subprocess
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue

from audit.cache import Cache, FinishedJob, run_key
from audit.checks import base
from audit.checks.base import Arrays, Block, Check, Found, Merged, Stage, Task
from audit.config import Config, Limit, validate
from audit.data.base import Dataset
from audit.errors import AuditError, UsageError, closest
from audit.model.wrapper import Model
from audit.policy import judge
from audit.preflight import expect_accuracy, preflight
from audit.progress import Progress
from audit.result import (
    CheckResult,
    Cost,
    DataInfo,
    Finding,
    ModelInfo,
    Passes,
    Result,
    Spec,
    make_folder,
    write_atomically,
)

BLOCK = 512  # samples a job: a multiple of the 64 that share a noise generator, and small enough to lose little when killed
PACKAGES = ("torch", "numpy", "scipy", "pandas", "scikit-learn", "fairlearn")


@dataclass
class Planned:
    """One check in the plan: its task and stages, or the reason why it is not applicable."""

    check: Check
    task: Task
    stages: list[Stage] = field(default_factory=list)
    not_applicable: str | None = None


@dataclass(frozen=True)
class Plan:
    """All checks, and their stages in the order in which they can run."""

    planned: list[Planned]
    stages: list[Stage]

    def passes(self, data: Dataset) -> float:
        """Return the expected forwards plus backwards of the whole run, as far as they can be known before it."""
        return sum(stage.passes * _size(data, stage.part) for stage in self.stages)


def execute(
    model: Model,
    data: Dataset,
    config: Config,
    *,
    out: Path | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
    command: str = "",
    debug: bool = False,
) -> Result:
    """Run the checks of a configuration and judge what they found.

    Parameters
    ----------
    model, data, config
        What to audit, with what, and how.
    out
        Folder for finished jobs and artifacts; nothing is written where None.
    fresh
        Do every job again.
    progress
        Where to say how far the run is.
    command
        The command that reproduces the run, for the report.
    debug
        Let an unexpected error in a check through, with its traceback.

    Raises
    ------
    AuditError
        Model and data do not fit, an option cannot be used, or the accuracy is not the one that was stated.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    progress = progress or Progress(quiet=True)
    if config.run.samples is not None:
        data = data.sample(config.run.samples, config.run.seed)
    with model.session():
        preflight(model, data)
        plan = make_plan(model, data, config)
        check_limits(config.policy.limit)
        cache = Cache(out, _key(model, data, config), fresh=fresh)
        progress.plan(plan.passes(data))
        run = _Run(model, data, config, plan, cache, progress, debug)
        results = run.collect()
        if out is not None and config.run.save_samples:
            results = [_write_artifact(out, p, r, run.found) for p, r in zip(plan.planned, results, strict=True)]
    verdict = judge(config.policy, results, gate=config.run.gate, required=config.run.checks or ())
    return Result(
        verdict=verdict.word,
        sentence=verdict.sentence,
        exit_code=verdict.exit_code,
        started_at=started.strftime("%Y-%m-%dT%H:%M:%SZ"),
        seconds=round(time.monotonic() - clock, 3),
        spec=_spec(config, model, command),
        model=_model_info(model, data),
        data=_data_info(data),
        checks=results,
        policy=verdict.judgements,
    )


def make_plan(model: Model, data: Dataset, config: Config) -> Plan:
    """Decide which checks run, with which stages, in which order."""
    planned = []
    for check_id in chosen_checks(config):
        check = base.get(check_id)()
        options = validate(check.Options, config.checks.get(check_id, {}), check_id)
        task = Task(
            model=model,
            data=data,
            options=options,
            seed=config.run.seed,
            confidence=config.policy.confidence,
            profile=config.run.profile,
            stated=config.stated(),
            keep_samples=config.run.save_samples,
        )
        reason = check.not_applicable(task)
        if reason is None:
            check.preflight(task)
        planned.append(Planned(check, task, [] if reason else check.stages(task), reason))
    unique: dict[str, Stage] = {}
    for item in planned:
        for stage in item.stages:
            unique.setdefault(stage.id, stage)
    return Plan(planned, _in_order(unique))


def chosen_checks(config: Config) -> list[str]:
    """Return the ids of the checks to run: those asked for, else all, less those to skip."""
    known = list(base.registry())
    for check_id in (*(config.run.checks or ()), *config.run.skip):
        if check_id not in known:
            raise UsageError(f"no check {check_id!r}; {closest(check_id, known)}")
    asked = config.run.checks if config.run.checks is not None else known
    chosen = [check_id for check_id in known if check_id in asked and check_id not in config.run.skip]
    if not chosen:
        raise UsageError("no check is left to run: nothing would be measured; look at --checks and --skip")
    return chosen


def check_limits(limits: Sequence[Limit]) -> None:
    """Raise a UsageError for a limit on a metric that no check could ever measure."""
    patterns = [doc.id for check in base.registry().values() for doc in check.metrics]
    for limit in limits:
        if not any(_matches(limit.metric, pattern) for pattern in patterns):
            raise UsageError(f"no check measures {limit.metric!r}; {closest(limit.metric, patterns)}; see audit list metrics")


def _matches(metric: str, pattern: str) -> bool:
    parts, wanted = metric.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(w.startswith("<") or w == p for p, w in zip(parts, wanted, strict=True))


def _in_order(stages: Mapping[str, Stage]) -> list[Stage]:
    ordered: list[Stage] = []
    placed: set[str] = set()
    waiting = dict(stages)
    while waiting:
        ready = [s for s in waiting.values() if all(a in placed or a not in stages for a in s.after)]
        if not ready:
            raise UsageError(f"these stages wait for each other: {', '.join(waiting)}")
        for stage in ready:
            ordered.append(stage)
            placed.add(stage.id)
            del waiting[stage.id]
    return ordered


class _Run:
    """One execution of a plan: what was found so far, what it cost, which stages failed."""

    def __init__(
        self, model: Model, data: Dataset, config: Config, plan: Plan, cache: Cache, progress: Progress, debug: bool
    ) -> None:
        self.model, self.data, self.config, self.plan = model, data, config, plan
        self.cache, self.progress, self.debug = cache, progress, debug
        self.found: dict[str, Merged] = {}
        self.cost: dict[str, Passes] = {}
        self.failed: dict[str, str] = {}

    def collect(self) -> list[CheckResult]:
        """Run all stages, then let each check conclude."""
        for stage in self.plan.stages:
            blocking = next((a for a in stage.after if a in self.failed), None)
            if blocking is not None:
                self.failed[stage.id] = self.failed[blocking]
                continue
            try:
                self.found[stage.id] = self._run_stage(stage)
            except AuditError as error:
                self.failed[stage.id] = str(error)
            except Exception as error:
                if self.debug:
                    raise
                self.failed[stage.id] = _describe(error)
            if stage.id == "predictions.test" and stage.id in self.found:
                self._hold_against_stated()
        owners: dict[str, str] = {}
        return [self._conclude(item, owners) for item in self.plan.planned]

    def _hold_against_stated(self) -> None:
        """Stop where the clean accuracy is not the one that the user stated."""
        expected = self.config.data.expect_accuracy
        if expected is None:
            return
        if self.model.task != "classification":
            raise UsageError("--expect-accuracy is for classification, but the network is a regression network")
        logits = self.found["predictions.test"]["logits"]
        right = (logits.argmax(axis=1) == self.data.test.y) & np.isfinite(logits).all(axis=1)
        expect_accuracy(int(right.sum()), len(right), expected, self.config.policy.confidence)

    def _run_stage(self, stage: Stage) -> Merged:
        size = _size(self.data, stage.part)
        positions = np.arange(size) if stage.select is None else np.asarray(stage.select(self.found), dtype=np.int64)
        self.cost[stage.id] = Passes()
        done: list[Arrays] = []
        for start in range(0, max(len(positions), 1), BLOCK):
            here = positions[start : start + BLOCK]
            job = self._job(stage, start, here)
            self.cost[stage.id] += job.cost
            done.append(job.arrays)
        # A stage that runs on few of the samples was planned on all of them: what was planned is what counts as done.
        rest = stage.passes * (size - len(positions))
        self.progress.advance(stage.id, rest, reused=True)
        return Merged(positions, {name: np.concatenate([part[name] for part in done]) for name in done[0]})

    def _job(self, stage: Stage, start: int, positions: NDArray[np.int64]) -> FinishedJob:
        keep = self.config.run.save_samples or not stage.holds_inputs
        stored = self.cache.get(stage.id, start) if keep else None
        if stored is not None and all(len(a) == len(positions) for a in stored.arrays.values()):
            self.progress.advance(stage.id, stage.passes * len(positions), reused=True)
            return stored
        block = self._block(stage.part, positions)
        forwards, backwards, clock = self.model.forwards, self.model.backwards, time.monotonic()
        arrays = stage.job(block)
        cost = Passes(
            forwards=self.model.forwards - forwards,
            backwards=self.model.backwards - backwards,
            seconds=round(time.monotonic() - clock, 4),
        )
        job = FinishedJob(arrays, cost)
        if keep:
            self.cache.put(stage.id, start, job)
        self.progress.advance(stage.id, stage.passes * len(positions))
        return job

    def _block(self, part_name: str, positions: NDArray[np.int64]) -> Block:
        part = self.data.test if part_name == "test" else self.data.reference
        if part is None:
            raise ValueError(f"a stage asks for the {part_name} part, but there is none")
        return Block(
            positions=positions,
            ids=torch.from_numpy(part.ids[positions]),
            x=self.model.to_input(self.data.tensor(positions, part_name)),
            y=torch.from_numpy(part.y[positions]).to(self.model.device),
            earlier=self.found,
        )

    def _conclude(self, item: Planned, owners: dict[str, str]) -> CheckResult:
        check = item.check
        if item.not_applicable is not None:
            return _plain(check, "not_applicable", item.not_applicable)
        broken = [self.failed[stage.id] for stage in item.stages if stage.id in self.failed]
        if broken:
            return _plain(check, "error", broken[0])
        try:
            result = check.conclude(item.task, self.found)
        except Exception as error:
            if self.debug:
                raise
            return _plain(check, "error", _describe(error))
        parts: dict[str, Passes] = {}
        for stage in item.stages:
            # A stage that several checks share is paid by the first of them.
            if owners.setdefault(stage.id, check.id) == check.id:
                parts[stage.cost_of] = parts.get(stage.cost_of, Passes()) + self.cost[stage.id]
        total = sum(parts.values(), Passes())
        cost = Cost(forwards=total.forwards, backwards=total.backwards, seconds=total.seconds, parts=parts)
        return result.model_copy(update={"cost": cost})


def _plain(check: Check, status: str, reason: str) -> CheckResult:
    words = {"not_applicable": "Not applicable", "error": "The check ended in an error, so nothing was measured"}
    return CheckResult(
        id=check.id,
        status=status,  # type: ignore[arg-type]
        reason=reason,
        question=check.question,
        answer=f"{words[status]}: {reason}",
        findings=[Finding(severity="high", title=f"{check.id} was not measured", detail=reason)] if status == "error" else [],
        not_tested=[f"{check.question} ({reason})"],
    )


def _describe(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({Path(last[0].filename).name}:{last[0].lineno})" if last else ""
    return f"{type(error).__name__}: {error}{where}"


def _write_artifact(out: Path, item: Planned, result: CheckResult, found: Found) -> CheckResult:
    if result.status not in ("measured", "incomplete"):
        return result
    arrays = item.check.artifact(item.task, found)
    if arrays is None:
        return result
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    folder = make_folder(out / "artifacts")
    write_atomically(folder / f"{result.id}.npz", buffer.getvalue())
    return result.model_copy(update={"artifact": f"artifacts/{result.id}.npz"})


def _size(data: Dataset, part: str) -> int:
    if part == "test":
        return len(data.test)
    return 0 if data.reference is None else len(data.reference)


def _key(model: Model, data: Dataset, config: Config) -> str:
    origin = model.origin
    return run_key(
        {
            "model": [origin.sha256, origin.arch_sha256, origin.format, str(model.module)],
            "reading": [model.task, model.output, _listed(model.mean), _listed(model.std), str(model.device)],
            "data": [data.test.sha256(), data.reference.sha256() if data.reference else None],
            "bounds": None if data.bounds is None else [side.tolist() for side in data.bounds],
            "config": config.model_dump(mode="json", exclude={"policy": {"limit"}, "run": {"gate", "out", "checks", "skip"}}),
            "versions": [_version("audit"), torch.__version__, np.__version__],
            "plugins": sorted(base.registry()),
        }
    )


def _listed(tensor: torch.Tensor | None) -> list[float] | None:
    return None if tensor is None else tensor.tolist()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _spec(config: Config, model: Model, command: str) -> Spec:
    raw: dict[str, JsonValue] = config.model_dump(mode="json", exclude={"policy": True})
    raw["policy"] = config.policy.model_dump(mode="json")
    return Spec(
        audit_version=_version("audit"),
        config=raw,
        policy_sha256=config.policy.sha256(),
        confidence=config.policy.confidence,
        seed=config.run.seed,
        device=str(model.device),
        packages={name: _version(name) for name in PACKAGES},
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        git=_git(),
        command=command,
    )


def _git() -> dict[str, JsonValue]:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": done.stdout.strip()} if done.returncode == 0 else {}


def _model_info(model: Model, data: Dataset) -> ModelInfo:
    origin = model.origin
    return ModelInfo(
        source=origin.source,
        sha256=origin.sha256,
        format=origin.format,
        task=model.task or "",
        classes=model.classes if model.task == "classification" else None,
        class_names=list(data.classes) or model.class_names,
        input_shape=[int(d) for d in data.test.x.shape[1:]],
        parameters=model.parameters,
        trusted=origin.trusted,
        output=model.output or "",
        notes=list(model.notes),
    )


def _data_info(data: Dataset) -> DataInfo:
    bounds: list[JsonValue] | None = None
    if data.bounds is not None:
        bounds = [side.tolist() for side in data.bounds]
    sampled = None
    if len(data.test) < data.rows:
        used = np.zeros(data.rows, dtype=np.bool_)
        used[data.test.ids] = True
        sampled = base64.b64encode(np.packbits(used).tobytes()).decode("ascii")
    x = data.test.x
    return DataInfo(
        source=data.source,
        sha256=data.sha256,
        n=len(data.test),
        n_reference=0 if data.reference is None else len(data.reference),
        columns=list(data.columns),
        sensitive=sorted(data.test.sensitive),
        kind=data.kind,
        bounds=bounds,
        rows=data.rows,
        sampled=sampled,
        notes=[f"inputs went in as {x.dtype}, from {float(x.min()):.6g} to {float(x.max()):.6g}", *data.notes],
    )
