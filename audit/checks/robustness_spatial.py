"""Rotations and shifts of pictures as a part of the robustness check: a threat model of its own, beside those of the norms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from audit import stats
from audit.attacks.examples import Example, gallery
from audit.attacks.spatial import Spatial
from audit.checks.base import Answer, Arrays, Block, CheckOptions, Found, MetricDoc, Stage, Task
from audit.checks.robustness_state import right_at_first, tolerance
from audit.errors import UsageError
from audit.model.outputs import names_of
from audit.result import Finding, Metric

STAGE = "robustness.spatial"
GRIDS = {"quick": (11, 3), "standard": (31, 5), "thorough": (31, 5), "exhaustive": (61, 9)}  # angles, shifts along each axis
SHOWN = 6


class SpatialOptions(CheckOptions):
    """``[robustness.spatial]``."""

    max_angle: float = Field(default=30.0, ge=0, le=180, description="degrees, either way")
    max_shift: float = Field(default=0.1, ge=0, le=1, description="share of height and width, either way")
    angles: int | None = Field(default=None, ge=1, le=1000, description="angles of the grid; unstated: by profile")
    shifts: int | None = Field(default=None, ge=1, le=100, description="shifts along each axis; unstated: by profile")


METRICS = (
    MetricDoc(
        id="robustness.spatial.accuracy",
        definition="share of all samples that are right and that no rotation and shift of a grid broke",
        unit="fraction",
        range="0 to 1",
        interval="Clopper–Pearson over samples",
        bias="an upper bound on the truth: a finer grid can only lower it",
        source="Engstrom et al. 2019; Clopper & Pearson 1934",
        kind="upper",
    ),
)


def asked(task: Task) -> SpatialOptions | None:
    """Return what was asked for, or None where nothing was."""
    given = task.options.spatial
    if isinstance(given, bool):
        return SpatialOptions() if given else None
    return SpatialOptions.model_validate(given, from_attributes=True)


def preflight(task: Task) -> None:
    """Refuse data that cannot be turned."""
    if asked(task) is not None and task.data.kind != "image":
        raise UsageError(f"robustness.spatial turns and shifts pictures, and this data is a {task.data.kind}: leave it out")


def attack(task: Task, options: SpatialOptions) -> Spatial:
    """Return the attack, its grid by profile where it is not stated."""
    angles, shifts = GRIDS[task.profile]
    return Spatial(
        max_angle=options.max_angle,
        max_shift=options.max_shift,
        angles=options.angles or angles,
        shifts=options.shifts or shifts,
        black=task.data.box()[0],
        seed=task.seed,
    )


def stages(task: Task) -> list[Stage]:
    """Return the stage that turns and shifts all samples that are right, or nothing where it was not asked for."""
    options = asked(task)
    if options is None:
        return []
    ours = attack(task, options)

    def job(block: Block) -> Arrays:
        moved = tolerance(task, block.earlier)
        out = ours(task.model, block.x, block.y, ids=block.ids, tolerance=moved)
        after = task.model.predict(out.x_adv) if len(block.ids) else block.y
        named = {"broken": out.success, "angle": out.angle, "down": out.down, "right": out.right}
        return {name: value.cpu().numpy() for name, value in {**named, "x_adv": out.x_adv, "after": after}.items()}

    return [
        Stage(
            id=STAGE,
            job=job,
            cost_of="robustness.spatial.accuracy",
            select=lambda found: np.flatnonzero(right_at_first(task, found)),
            after=("predictions.test",),
            passes=float(ours.angles * ours.shifts**2),
            holds_inputs=True,
        )
    ]


def limits(options: SpatialOptions) -> str:
    """Say what may be done to a picture."""
    return f"rotations by at most {options.max_angle:g}° and shifts by at most {options.max_shift:.0%} of the side"


def conclude(task: Task, found: Found, answer: Answer) -> str:
    """Add metric, outcome, finding and pictures to the answer; return its sentence, empty where nothing was asked for."""
    options = asked(task)
    if options is None:
        return ""
    rows, right, n = found[STAGE], right_at_first(task, found), len(task.data.test)
    hit = rows.spread("broken", n, False) & right
    standing = int((right & ~hit).sum())
    interval = stats.clopper_pearson(standing, n, task.confidence)
    ours = attack(task, options)
    metric = Metric(
        id="robustness.spatial.accuracy",
        value=interval.value,
        low=interval.low,
        high=interval.high,
        confidence=task.confidence,
        n=n,
        method="clopper-pearson",
        kind="upper",
        outcome="not robustness.spatial.broken",
        params={
            "max_angle": options.max_angle,
            "max_shift": options.max_shift,
            "angles": ours.angles,
            "shifts": ours.shifts,
        },
        detail="no rotation and shift of the grid broke these samples; one between its points might",
    )
    answer.metrics.append(metric)
    answer.outcomes["robustness.spatial.broken"] = hit | ~right
    if hit.any():
        lost = float(hit.sum() / right.sum())
        answer.findings.append(
            Finding(
                severity="high" if lost >= 0.5 else "medium" if lost >= 0.1 else "low",
                title=f"Turning and shifting breaks {lost:.0%} of the answers",
                detail=f"Of {int(right.sum())} samples that are right, {int(hit.sum())} are not under some of the "
                f"{limits(options)}, where nobody need know the network to find one. "
                "Whether a picture so turned still shows the same is for "
                "you to say: a 6 turned far enough is a 9.",
                samples=[int(i) for i in task.data.test.ids[np.flatnonzero(hit)[:10]]],
            )
        )
    _show(task, found, answer, hit)
    return f" Under {limits(options)}, {standing} of {n} samples are right and stay right on a grid."


def _show(task: Task, found: Found, answer: Answer, hit: NDArray[np.bool_]) -> None:
    data, rows = task.data, found[STAGE]
    if not task.keep_samples or data.test.x.shape[1] not in (1, 3):
        return
    at = [int(row) for row in np.flatnonzero(hit[rows.positions] & np.isfinite(rows["angle"]))[:SHOWN]]
    items = [
        Example(
            int(data.test.ids[rows.positions[i]]),
            data.test.x[rows.positions[i]],
            rows["x_adv"][i],
            f"{_answered(task, int(rows.positions[i]), rows['after'][i])}, turned by {rows['angle'][i]:.0f}°, shifted "
            f"{_by(rows['down'][i], 'down', 'up')}, {_by(rows['right'][i], 'right', 'left')}",
        )
        for i in at
    ]
    if items:
        low, high = data.box()
        title = "Pictures that a rotation and a shift broke"
        answer.figures.append(gallery("robustness.spatial.examples", title, items, float(np.min(low)), float(np.max(high))))


def _by(shift: float, onward: str, back: str) -> str:
    return f"{abs(shift):.1f} {onward if shift >= 0 else back}"


def _answered(task: Task, position: int, after: NDArray[np.generic]) -> str:
    if task.model.task == "regression":
        return f"output moves to {float(after):.4g}"
    y = task.data.test.y[position]
    if task.model.task == "multilabel":
        return f"{names_of(y, task.classes)} is taken for {names_of(after, task.classes)}"
    return f"{task.classes[int(y)]} is taken for {task.classes[int(after)]}"
