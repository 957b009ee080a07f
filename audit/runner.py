"""Plan, execute, collect: turns a model, data and a configuration into a Result.

The plan is a graph of stages; a stage is a list of jobs, each over a block of samples. Jobs share nothing; between stages
their arrays are merged in the order of sample ids. A finished job is stored at once, so that a run that was killed, or whose
budget ran out, goes on where it was.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from audit.budget import Budget, check_deadline, until
from audit.cache import Cache, FinishedJob
from audit.checks import base
from audit.checks.base import Arrays, Block, Check, Merged, Stage
from audit.compare import Stored, compare
from audit.config import Config
from audit.data.base import Dataset
from audit.errors import AuditError, BudgetSpent, OutputError
from audit.model.outputs import right_answers
from audit.model.wrapper import Model
from audit.plan import Plan, Planned, announce, check_limits, describe_error, make_plan, part_size
from audit.policy import judge
from audit.preflight import expect_accuracy, preflight
from audit.progress import Progress
from audit.provenance import data_info, job_key, model_info, spec_of
from audit.result import (
    CheckResult,
    Comparison,
    Cost,
    Finding,
    Passes,
    Result,
    make_folder,
    own_folder,
    undermining,
    write_atomically,
)

BLOCK = 512  # samples a job: a multiple of the 64 that share a noise generator, and small enough to lose little when killed
POSITIONS = "__positions__"


def execute(
    model: Model,
    data: Dataset,
    config: Config,
    *,
    baseline: Stored | None = None,
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
    baseline
        An older result that this one is compared with; limits with ``max_drop`` need it.
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
        behaviour = preflight(model, data)
        check_limits(config.policy, baseline=baseline is not None)
        plan = make_plan(model, data, config, debug=debug)
        cache = Cache(out, job_key(model, data, config, behaviour), fresh=fresh)
        progress.say(announce(model, data, plan))
        progress.plan(plan.passes(data))
        budget = Budget(config.run.budget, clock, kept=out is not None)
        run = _Run(model, data, config, plan, cache, progress, budget, debug)
        with until(budget.deadline):
            results = run.collect(out if config.run.save_samples else None)
    if out is not None:
        _drop_stale_artifacts(out, results)
    result = Result(
        verdict="unjudged",
        exit_code=0,
        started_at=started.strftime("%Y-%m-%dT%H:%M:%SZ"),
        seconds=round(time.monotonic() - clock, 3),
        spec=spec_of(config, model, command, [item.check.id for item in plan.planned]),
        model=model_info(model, data),
        data=data_info(data),
        checks=results,
    )
    if baseline is not None:
        result = result.model_copy(update={"comparison": _compared(baseline, result, config)})
    return judged(result, config)


def judged(result: Result, config: Config, required: Sequence[str] | None = None) -> Result:
    """Return the result with the verdict that a configuration's policy gives it, as of the day on which it started."""
    verdict = judge(
        config.policy,
        result.checks,
        gate=config.run.gate,
        required=(config.run.checks or ()) if required is None else required,
        comparison=result.comparison,
        today=date.fromisoformat(result.started_at[:10]),
    )
    return result.model_copy(
        update={
            "verdict": verdict.word,
            "sentence": verdict.sentence,
            "exit_code": verdict.exit_code,
            "policy": verdict.judgements,
        }
    )


def _compared(baseline: Stored, result: Result, config: Config) -> Comparison:
    confidence = config.policy.confidence
    return compare(baseline.result, result, source=baseline.source, sha256=baseline.sha256, confidence=confidence)


class _Run:
    """One execution of a plan: what was found so far, what it cost, which stages failed, which the budget cut off."""

    def __init__(
        self,
        model: Model,
        data: Dataset,
        config: Config,
        plan: Plan,
        cache: Cache,
        progress: Progress,
        budget: Budget,
        debug: bool,
    ) -> None:
        self.model, self.data, self.config, self.plan = model, data, config, plan
        self.cache, self.progress, self.budget, self.debug = cache, progress, budget, debug
        self.found: dict[str, Merged] = {}
        self.cost: dict[str, Passes] = {}
        self.failed: dict[str, str] = {}
        self.cut: set[str] = set()
        self.shortened: set[str] = set()  # stages that may end early, and did
        self.unfinished: set[str] = set()
        self.made: dict[str, float] = {}

    def collect(self, artifacts: Path | None = None) -> list[CheckResult]:
        """Run all stages, then let each check conclude; its arrays go into folder `artifacts`, where there is one."""
        for stage in self.plan.stages:
            self._try_stage(stage)
            if stage.id == "predictions.test" and stage.id in self.found:
                self._hold_against_stated()
        owners: dict[str, str] = {}
        taken: dict[str, str] = {}
        results = []
        for item in self.plan.planned:
            mark = self._mark()
            # Where the budget ended a stage that may be ended, what is left is to draw the conclusion.
            with until(None if self.shortened and not self.cut else self.budget.deadline):
                result = self._conclude(item, taken)
            if artifacts is not None and result.status in ("measured", "incomplete") and result.id not in self.unfinished:
                result = self._write_artifact(artifacts, item, result)
            results.append(result.model_copy(update={"cost": self._bill(item, self._since(mark), owners)}))
        return results

    def _try_stage(self, stage: Stage) -> None:
        self.cost[stage.id] = Passes()
        blocking = next((other for other in self.failed if stage.needs(other)), None)
        if blocking is not None:
            self.failed[stage.id] = self.failed[blocking]
            return
        if any(stage.waits_for(other) for other in self.cut):
            # Where it would go on without a stage that failed, this one is only late: its result would be another next time.
            self.cut.add(stage.id)
            return
        try:
            self.found[stage.id] = self._run_stage(stage)
        except BudgetSpent:
            self.cut.add(stage.id)
        except OutputError:
            raise  # nothing can be stored, so that going on would only lose more
        except AuditError as error:
            self.failed[stage.id] = str(error)
        except Exception as error:
            if self.debug:
                raise
            self.failed[stage.id] = describe_error(error)

    def _hold_against_stated(self) -> None:
        """Stop where the clean accuracy is not the one that the user stated."""
        expected = self.config.data.expect_accuracy
        if expected is None:
            return
        logits = self.found["predictions.test"]["logits"]
        right = right_answers(logits, self.data.test.y)
        expect_accuracy(int(right.sum()), len(right), expected, self.config.policy.confidence)

    def _run_stage(self, stage: Stage) -> Merged:
        size = part_size(self.data, stage.part)
        positions = np.arange(size) if stage.select is None else _as_positions(stage.select(self.found), size)
        if stage.whole:
            found = self._job(stage, 0, positions)
            self.progress.advance(stage.id, stage.passes * (size - len(positions)), reused=True)
            return Merged(positions, found)
        done = self._jobs(stage, positions)
        positions = positions[: len(done) * (stage.block or BLOCK)]
        # A stage that runs on few of the samples was planned on all of them: what was planned is what counts as done.
        rest = stage.passes * (size - len(positions))
        self.progress.advance(stage.id, rest, reused=True)
        if not done:
            with until(self.budget.deadline if stage.patience is None else None):  # no sample takes no time
                return Merged(positions, self._no_rows(stage))
        if any(part.keys() != done[0].keys() for part in done):
            raise ValueError(f"the job of stage {stage.id} returned other arrays for one block than for another")
        return Merged(positions, {name: np.concatenate([part[name] for part in done]) for name in done[0]})

    def _jobs(self, stage: Stage, positions: NDArray[np.int64]) -> list[Arrays]:
        """Run a stage's jobs in turn: all of them, or those for which its patience and the budget suffice."""
        block = stage.block or BLOCK
        starts = range(0, len(positions), block)
        if stage.patience is None:
            return [self._job(stage, start, positions[start : start + block]) for start in starts]
        ends = [time.monotonic() + stage.patience, self.budget.deadline]
        done: list[Arrays] = []
        with until(min(end for end in ends if end is not None)):
            try:
                for start in starts:
                    done.append(self._job(stage, start, positions[start : start + block]))
            except BudgetSpent:
                self.shortened.add(stage.id)
        return done

    def _job(self, stage: Stage, start: int, positions: NDArray[np.int64]) -> Arrays:
        keep = self.config.run.save_samples or not stage.holds_inputs
        stored = self.cache.get(stage.id, start) if keep else None
        if stored is not None and _is_of(stored, stage, positions):
            self.cost[stage.id] += stored.cost
            self._advance(stage, len(positions), reused=True)
            return {name: array for name, array in stored.arrays.items() if name != POSITIONS}
        arrays, cost = self._work(stage, positions)
        if keep and (self.config.run.save_samples or not self._looks_like_inputs(arrays)):
            self.cache.put(stage.id, start, FinishedJob({**arrays, POSITIONS: positions}, cost))
            self.budget.stored += 1
        self._advance(stage, len(positions))
        return arrays

    def _advance(self, stage: Stage, n: int, *, reused: bool = False) -> None:
        self.made[stage.id] = self.made.get(stage.id, 0.0) + stage.passes * n
        self.progress.advance(stage.id, stage.passes * n, reused=reused)

    def _work(self, stage: Stage, positions: NDArray[np.int64]) -> tuple[Arrays, Passes]:
        check_deadline()
        block, mark = self._block(stage.part, positions), self._mark()
        try:
            arrays = stage.job(block)
        finally:
            cost = self._since(mark)
            self.cost[stage.id] += cost  # of a job that failed, too
        return _checked_arrays(arrays, stage, len(positions)), cost

    def _no_rows(self, stage: Stage) -> Arrays:
        """Return a stage's arrays where no sample was selected: names and types, without rows."""
        try:
            return self._work(stage, np.arange(0))[0]
        except Exception:
            # Many networks cannot take a batch of none (`x.view(len(x), -1)`): what one sample gives has the same types.
            arrays, _ = self._work(stage, np.arange(1))
            return {name: array[:0] for name, array in arrays.items()}

    def _looks_like_inputs(self, arrays: Arrays) -> bool:
        """Tell whether an array has the shape of inputs: where none may be written, a stage need not have said so."""
        shape = self.data.test.x.shape[1:]
        return any(array.shape[1:] == shape and array.dtype.kind != "b" for array in arrays.values())

    def _mark(self) -> tuple[int, int, float]:
        return self.model.forwards, self.model.backwards, time.monotonic()

    def _since(self, mark: tuple[int, int, float]) -> Passes:
        return Passes(
            forwards=self.model.forwards - mark[0],
            backwards=self.model.backwards - mark[1],
            seconds=round(time.monotonic() - mark[2], 4),
        )

    def _block(self, part_name: str, positions: NDArray[np.int64]) -> Block:
        part = self.data.part(part_name)
        if part is None:
            raise ValueError(f"a stage asks for the {part_name} part, but there is none")
        return Block(
            positions=positions,
            ids=torch.from_numpy(part.ids[positions]),
            x=self.model.to_input(self.data.tensor(positions, part_name)),
            y=torch.from_numpy(part.y[positions]).to(self.model.device),
            earlier=self.found,
        )

    def _conclude(self, item: Planned, taken: dict[str, str]) -> CheckResult:
        """Let a check draw its conclusion; `taken` says which check measured which metric so far."""
        check = item.check
        if item.not_applicable is not None:
            return _plain(check, "not_applicable", item.not_applicable)
        broken = [item.error] if item.error else [self.failed[id_] for id_ in self._needed(item) if id_ in self.failed]
        if broken:
            return _plain(check, "error", broken[0])
        if self._was_cut(item):
            return self._unfinished(item)
        try:
            result = _honest(check, check.conclude(item.task, self.found))
            _claim(result, taken)
        except BudgetSpent:
            return self._unfinished(item)
        except Exception as error:
            if self.debug:
                raise
            return _plain(check, "error", describe_error(error))
        return result

    def _needed(self, item: Planned) -> list[str]:
        """Return the ids of the stages that a check cannot do without: its own, and what a stated accuracy is held against."""
        stated = [] if self.config.data.expect_accuracy is None else ["predictions.test"]
        return [*(stage.id for stage in item.stages), *stated]

    def _was_cut(self, item: Planned) -> bool:
        return any(stage_id in self.cut for stage_id in self._needed(item))

    def _unfinished(self, item: Planned) -> CheckResult:
        """Return the result of a check that the budget cut off: incomplete, without a figure."""
        needed = self._needed(item)
        stages = [stage for stage in self.plan.stages if stage.id in needed]
        planned = {stage.id: stage.passes * part_size(self.data, stage.part) for stage in stages}
        made = sum(planned[id_] if id_ in self.found else self.made.get(id_, 0.0) for id_ in planned)
        if not self._was_cut(item):
            what = "what it needs was measured, but not concluded from"
        elif sum(planned.values()) >= 1:
            what = f"{made:,.0f} of about {sum(planned.values()):,.0f} passes were made"
        else:
            what = f"{sum(id_ in self.found for id_ in planned)} of {len(planned)} stages were finished"
        self.unfinished.add(item.check.id)
        return CheckResult(
            id=item.check.id,
            status="incomplete",
            reason=self.budget.reason(what),
            question=item.check.question,
            answer="Nothing was concluded: the budget ran out.",
            not_tested=["all that it asks: the budget ran out"],
        )

    def _write_artifact(self, out: Path, item: Planned, result: CheckResult) -> CheckResult:
        try:
            arrays = item.check.artifact(item.task, self.found)
            if arrays is None:
                return result
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        except BudgetSpent:
            return _without_examples(result, self.budget.reason("what it needs was measured"))
        except Exception as error:
            if self.debug:
                raise
            return _without_examples(result, describe_error(error))
        folder = make_folder(own_folder(out, "artifacts"))
        content = buffer.getvalue()
        write_atomically(folder / f"{result.id}.npz", content)
        sha256 = hashlib.sha256(content).hexdigest()
        return result.model_copy(update={"artifact": f"artifacts/{result.id}.npz", "artifact_sha256": sha256})

    def _bill(self, item: Planned, concluding: Passes, owners: dict[str, str]) -> Cost:
        """Add up what a check cost. A stage that several checks share is paid by the first of them."""
        check, parts = item.check, dict[str, Passes]()
        for stage in item.stages:
            if owners.setdefault(stage.id, check.id) == check.id:
                parts[stage.cost_of] = parts.get(stage.cost_of, Passes()) + self.cost[stage.id]
        if concluding.forwards or concluding.backwards:
            parts[f"{check.id}.conclusion"] = concluding
        parts = {name: part.model_copy(update={"seconds": round(part.seconds, 4)}) for name, part in parts.items()}
        total = sum(parts.values(), Passes())
        return Cost(forwards=total.forwards, backwards=total.backwards, seconds=round(total.seconds, 4), parts=parts)


def _as_positions(chosen: Any, size: int) -> NDArray[np.int64]:
    """Return what a stage selected, in the order of sample ids: positions, or a mask over all samples."""
    array = np.asarray(chosen)
    if array.dtype == np.bool_:
        if array.shape != (size,):
            raise ValueError(f"a mask should have one entry for each of {size} samples, got shape {array.shape}")
        return np.flatnonzero(array)
    positions = np.unique(array.astype(np.int64))
    if len(positions) and (positions[0] < 0 or positions[-1] >= size):
        raise ValueError(f"positions should lie between 0 and {size - 1}, got {positions[0]} to {positions[-1]}")
    return positions


def _checked_arrays(arrays: Any, stage: Stage, n: int) -> Arrays:
    """Hold what a job returned against its block: a row a sample, and numbers or text, which can be stored without pickles."""
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind == "O":
            raise TypeError(f"the job of stage {stage.id} should return NumPy arrays of numbers or text; {name!r} is none")
        if not stage.whole and (array.ndim == 0 or len(array) != n):
            raise ValueError(f"the job of stage {stage.id} should return a row for each of {n} samples; {name!r} does not")
    return dict(arrays)


def _is_of(stored: FinishedJob, stage: Stage, positions: NDArray[np.int64]) -> bool:
    """Tell whether a stored job is of these very samples: those a stage selects can differ by the rounding of a kernel."""
    return np.array_equal(stored.arrays.get(POSITIONS, np.zeros(0)), positions) and (
        stage.whole or all(len(array) == len(positions) for array in stored.arrays.values())
    )


def _honest(check: Check, result: Any) -> CheckResult:
    """Return a check's own result: *incomplete* where it says *measured* and its evidence says otherwise."""
    if not isinstance(result, CheckResult) or result.id != check.id:
        raise TypeError(f"conclude should return the CheckResult of {check.id!r}, got {getattr(result, 'id', type(result))!r}")
    failed = [f"{e.id}: {e.detail}" for e in undermining(result.evidence, result.metrics)]
    if result.status == "measured" and failed:
        return result.model_copy(update={"status": "incomplete", "reason": "; ".join(failed)})
    return result


def _claim(result: CheckResult, taken: dict[str, str]) -> None:
    for metric in result.metrics:
        if metric.id in taken:
            raise ValueError(f"it measured {metric.id}, which {taken[metric.id]} measured already")
        taken[metric.id] = result.id


def _without_examples(result: CheckResult, why: str) -> CheckResult:
    reasons = [result.reason] if result.reason else []
    reason = "; ".join([*reasons, f"its examples could not be collected: {why}"])
    return result.model_copy(update={"status": "incomplete", "reason": reason})


def _plain(check: Check, status: str, reason: str) -> CheckResult:
    words = {"not_applicable": "Not applicable", "error": "The check ended in an error, so nothing was measured"}
    return CheckResult(
        id=check.id,
        status=status,  # type: ignore[arg-type]
        reason=reason,
        question=check.question,
        answer=f"{words[status]}: {reason}",
        findings=[Finding(severity="high", title=f"{check.id} was not measured", detail=reason)] if status == "error" else [],
    )


def _drop_stale_artifacts(out: Path, results: Sequence[CheckResult]) -> None:
    """Delete the arrays that an earlier run left in the same folder: they are not of this run, and may hold inputs."""
    written, folder = {result.artifact for result in results}, own_folder(out, "artifacts")
    for check_id in base.registry():
        if f"artifacts/{check_id}.npz" not in written:
            (folder / f"{check_id}.npz").unlink(missing_ok=True)
        for left in folder.glob(f".{check_id}.npz.*.tmp"):
            left.unlink(missing_ok=True)
