"""The stage that asks whether outputs jump beside points of the ball, and its evidence."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from audit.attacks import jumps
from audit.checks.base import Arrays, Block, Found, Stage
from audit.checks.robustness_random import as_attacked
from audit.checks.robustness_state import JUMPS, Attacked, output_spread, right_at_first, spread_over
from audit.result import Evidence

LOOKED_AT = 128  # samples: enough to see a share of 5 %


def stage(one: Attacked) -> Stage:
    """Return the stage that looks beside the samples, and beside points of the ball on and off the grid of the data."""
    task = one.task

    def job(block: Block) -> Arrays:
        model, grid = as_attacked(one, block, JUMPS, fixed=True), jumps.levels(task.data.test.x)
        spread = output_spread(block.earlier)
        return {"jump": jumps.jumps(model, block.x, block.ids, one.threat, grid, spread, seed=task.seed).cpu().numpy()}

    def select(found: Found) -> NDArray[np.int64]:
        positions = np.flatnonzero(right_at_first(task, found))
        return positions[spread_over(len(positions), LOOKED_AT)]

    return Stage(
        id=one.id(JUMPS),
        job=job,
        cost_of=one.id("continuous"),
        select=select,
        after=("predictions.test",),
        passes=4.0 * jumps.DRAWS + 3,
    )


def evidence(one: Attacked, found: Found) -> list[Evidence]:
    """Judge the jumps that were found; nothing where none were asked for, or nothing may change."""
    rows = one.rows(found, JUMPS)
    if rows is None or not len(rows.positions) or one.threat.eps <= 0:
        return []
    return [jumps.continuous(one.prefix, rows["jump"])]
