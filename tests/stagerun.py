"""Runs one check in a test without the runner: every stage as a single job over all samples that it selects."""

from __future__ import annotations

import numpy as np
import torch

from audit.checks.base import Block, Check, Merged, Stage, Task
from audit.result import CheckResult


def run_stage(task: Task, stage: Stage, found: dict[str, Merged]) -> Merged:
    part = task.part(stage.part)
    positions = np.arange(len(part)) if stage.select is None else np.sort(stage.select(found))
    x = task.model.to_input(part.x[positions])
    block = Block(positions, torch.from_numpy(part.ids[positions]), x, torch.from_numpy(part.y[positions]), found)
    return Merged(positions, stage.job(block))


def run_check(check: Check, task: Task) -> CheckResult:
    """Run the stages in their order, then conclude; `task.model` is resolved first."""
    task.model.resolve(task.data.test.x[:2], task.data.test.y)
    assert check.not_applicable(task) is None
    check.preflight(task)
    found: dict[str, Merged] = {}
    for stage in check.stages(task):
        found[stage.id] = run_stage(task, stage, found)
    return check.conclude(task, found)
