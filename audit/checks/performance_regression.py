"""What the performance check says of a network that returns numbers: R², mean absolute error, and what rules them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from audit import stats
from audit.checks.base import Answer, Found, Task, spread_positions
from audit.checks.performance_measurement import finite_rows, judge_gap, make_metric, report_few, report_non_finite
from audit.result import Evidence, Figure, Finding
from audit.stats import Interval


def conclude_regression(answer: Answer, task: Task, found: Found, values: NDArray[Any]) -> str:
    """Add what the values of the test part say, and return the answer in words."""
    test, n = task.data.test, len(values)
    report_non_finite(answer, test, finite_rows(values), "No error can be computed from them, so none is reported.")
    r2, mae = _errors(task, test.y, values)
    answer.metrics += [
        make_metric(task, "performance.r2", r2, n, "studentised-bootstrap", params={"headline": True}, detail=_why(r2)),
        make_metric(
            task,
            "performance.mae",
            mae,
            n,
            "studentised-bootstrap",
            direction="lower",
            unit="target units",
            detail=_why(mae),
        ),
    ]
    _judge_few(answer, test.y, values)
    report_few(answer, n, "R²", r2)
    merged, reference = found.get("predictions.reference"), task.data.reference
    if merged is not None and reference is not None:
        own, _ = _errors(task, reference.y[merged.positions], merged["values"])
        judge_gap(answer, task, stats.mover([own, r2], [1.0, -1.0]), own, r2, len(merged.positions), "R²")
    if r2.high is not None and r2.high <= 0:
        answer.findings.append(
            Finding(
                severity="high",
                title="The network is no better than always answering the mean",
                detail=f"R² is at most {r2.high:.3f} ({r2.value:.3f} on {n} test samples); the mean of the labels has 0.",
            )
        )
    _scatter(answer, test.y, values)
    if r2.value is None or mae.value is None:
        if n and not finite_rows(values).all():
            return f"No error could be computed: some of the {n:,} outputs are not finite."
        answer.reasons.append("the labels of the test part are all equal: R² does not exist")
        return f"The {n:,} test labels are all equal, so R² does not exist."
    return (
        f"On {n:,} test sample{'s' if n != 1 else ''} R² is {r2.value:.3f} ({_range(r2, task)}), where 1 is perfect and 0 is "
        f"as good as the mean; the network is off by {mae.value:.4g} on average ({_range(mae, task)})."
    )


def _errors(task: Task, y: NDArray[Any], values: NDArray[Any]) -> tuple[Interval, Interval]:
    if not np.isfinite(values).all():
        return Interval(None, None, None), Interval(None, None, None)
    return (
        stats.r_squared(y, values, task.confidence, task.seed),
        stats.mean_absolute_error(y, values, task.confidence, task.seed),
    )


def _why(interval: Interval) -> str:
    known = interval.value is None or interval.low is not None
    few = "so few samples, or so few errors that are not 0 or not all equal"
    return "" if known else f"no interval of this confidence can be stated from {few}"


def _judge_few(answer: Answer, y: NDArray[Any], values: NDArray[Any]) -> None:
    """Ask whether so few samples rule the squared errors, or the spread of the labels, that no interval can be trusted."""
    if not np.isfinite(values).all() or float(np.ptp(y)) == 0.0:
        return  # no metric, and said elsewhere
    errors = (np.asarray(y, dtype=np.float64) - values.astype(np.float64)) ** 2
    spread = (np.asarray(y, dtype=np.float64) - float(np.mean(y))) ** 2
    of_errors, of_labels, needed = stats.effective_size(errors), stats.effective_size(spread), stats.enough_of(len(y))
    smallest = min(of_labels, of_errors) if errors.any() else of_labels
    answer.evidence.append(
        Evidence(
            id="performance.not_ruled_by_few",
            ok=smallest >= needed,
            detail=f"the squared errors weigh as much as {of_errors:.0f} equal ones, the squared deviations of the labels as "
            f"{of_labels:.0f} of {len(y)}; {needed:.0f} are needed for an interval of R² that can be trusted"
            + ("" if smallest >= needed else ": a few samples rule them, and more test samples are needed"),
            value=smallest,
        )
    )


def _range(interval: Interval, task: Task) -> str:
    if interval.low is None or interval.high is None:
        return "no interval can be stated from so few or so equal errors"
    return f"{task.confidence:.0%} interval {interval.low:.4g} to {interval.high:.4g}"


def _scatter(answer: Answer, y: NDArray[Any], values: NDArray[Any]) -> None:
    known = np.flatnonzero(np.isfinite(values))
    shown = known[spread_positions(len(known), 2000)] if len(known) else known
    if len(shown) == 0:
        return
    answer.figures.append(
        Figure(
            id="performance.scatter",
            kind="scatter",
            title="Predictions against labels",
            data={
                "x": y[shown].astype(float).tolist(),
                "y": values[shown].astype(float).tolist(),
                "xlabel": "label",
                "ylabel": "prediction",
                "diagonal": True,
            },
        )
    )
