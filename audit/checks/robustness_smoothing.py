"""Randomised smoothing as a part of the robustness check: what the network under noise, by vote, can be certified for.

Every figure here is of the *smoothed* network (Cohen et al. 2019), which answers with the class that the network gives most
often under Gaussian noise. Whoever deploys the network without noise and votes has none of these guarantees.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from audit import stats
from audit.checks.base import Answer, Arrays, Block, CheckOptions, Found, Merged, MetricDoc, Stage, Task
from audit.checks.robustness_norms import default_radius
from audit.checks.robustness_state import spread_over
from audit.errors import UsageError
from audit.result import Figure, Metric

STAGE = "robustness.smoothed"
LOOKED_AT = {"quick": 50, "standard": 100, "thorough": 300, "exhaustive": 500}  # samples, each of n0 + n forwards
POINTS = 40  # of the curve
SIGMA = 0.25  # of the width of the box
INTERVAL = "Clopper–Pearson over samples; its lower end allows for alpha, the share of claims that noise may make falsely"
BIAS = "a lower bound of the smoothed network's, of which more votes can certify more; it says nothing of the network itself"


class SmoothingOptions(CheckOptions):
    """``[robustness.smoothing]``."""

    sigma: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="standard deviation of the noise; unstated: 0.25 of the box"
    )
    n0: int = Field(default=100, ge=1, le=10**6, description="votes that choose the class")
    n: int = Field(default=1000, ge=1, le=10**7, description="other votes, which bound its share")
    alpha: float = Field(default=0.001, gt=0, lt=1, description="probability that a claim about a sample is false")
    samples: int | None = Field(default=None, ge=1, description="at most so many test samples; unstated: by profile")
    radius: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="L2 radius of certified_accuracy; unstated: that of l2"
    )


METRICS = (
    MetricDoc(
        id="robustness.smoothed.accuracy",
        definition="share of the samples looked at that the smoothed network (a vote of the network's answers under Gaussian "
        "noise) gets right; a sample on which it abstains counts as wrong",
        unit="fraction",
        range="0 to 1",
        interval=INTERVAL,
        bias=BIAS,
        source="Cohen, Rosenfeld & Kolter 2019; Clopper & Pearson 1934",
        kind="lower",
    ),
    MetricDoc(
        id="robustness.smoothed.certified_accuracy",
        definition="share of the samples looked at that the smoothed network gets right under every change within an L2 "
        "radius; a sample on which it abstains counts as not certified",
        unit="fraction",
        range="0 to 1",
        interval=INTERVAL,
        bias=BIAS,
        source="Cohen, Rosenfeld & Kolter 2019, theorem 1; Clopper & Pearson 1934",
        kind="lower",
    ),
)


def asked(task: Task) -> SmoothingOptions | None:
    """Return what was asked for, sigma and radius filled in; None where nothing was."""
    given = task.options.smoothing
    if given is False:
        return None
    options = SmoothingOptions() if given is True else SmoothingOptions.model_validate(given, from_attributes=True)
    low, high = task.data.box()
    width = float(np.max(high - low))
    radius = options.radius
    if radius is None and task.options.eps is not None and "l2" in task.options.norm:
        radius = float(task.options.eps[task.options.norm.index("l2")])
    if radius is None:
        radius = default_radius("l2", task.data.kind, 0, width)
    return options.model_copy(update={"sigma": options.sigma or SIGMA * width, "radius": radius})


def preflight(task: Task) -> None:
    """Refuse data and tasks for which the noise or the vote makes no sense."""
    if task.options.smoothing is False:
        return
    if task.data.kind == "table":
        raise UsageError(
            "robustness.smoothing adds the same noise to every input, and the columns of a table have units of their own: "
            "leave it out"
        )
    if task.model.task not in (None, "classification"):
        raise UsageError(f"robustness.smoothing takes votes for classes, and this is a {task.model.task} network: leave it out")


def stages(task: Task) -> list[Stage]:
    """Return the stage that takes the votes, or nothing where it was not asked for."""
    options = asked(task)
    if options is None:
        return []
    most = options.samples or LOOKED_AT[task.profile]

    def job(block: Block) -> Arrays:
        from audit.certificates import smooth

        if not len(block.ids):
            return {"predicted": np.zeros(0, np.int64), "radius": np.zeros(0)}
        out = smooth(
            task.model,
            block.x,
            block.ids,
            sigma=options.sigma or 0.0,
            n0=options.n0,
            n=options.n,
            alpha=options.alpha,
            seed=task.seed,
        )
        return {"predicted": out.predicted.cpu().numpy(), "radius": out.radius.cpu().numpy()}

    return [
        Stage(
            id=STAGE,
            job=job,
            cost_of="robustness.smoothed.certified_accuracy",
            select=lambda _: spread_over(len(task.data.test), most),
            passes=float(options.n0 + options.n),
        )
    ]


def interval(k: int, n: int, alpha: float, confidence: float) -> tuple[float | None, float | None]:
    """Return the interval of a share of samples, `k` of `n` claimed, where each claim may be false with probability `alpha`.

    Claims come at a rate q of at most p + alpha (1 − p), where p is the share of which they are true: so p is at least
    (q − alpha) / (1 − alpha). The lower end is that of Clopper and Pearson's lower limit of q. The upper end is the upper limit
    of q itself: more may be true than votes can show.
    """
    seen = stats.clopper_pearson(k, n, confidence)
    if seen.low is None:
        return None, None
    return max(0.0, (seen.low - alpha) / (1 - alpha)), seen.high


def conclude(task: Task, found: Found, answer: Answer) -> str:
    """Add metrics and the curve to the answer; return its sentence, empty where nothing was asked for."""
    options = asked(task)
    if options is None:
        return ""
    rows = found[STAGE]
    radii, n = _proven(task, rows), len(rows.positions)
    at = options.radius or 0.0
    abstained = int((rows["predicted"] < 0).sum())
    params: dict[str, Any] = {"norm": "l2", **options.model_dump(exclude={"samples", "radius"}), "abstained": abstained}
    kept = {"accuracy": int((radii >= 0).sum()), "certified_accuracy": int((radii > at).sum())}
    detail = f"of the smoothed network, not of the network itself; it abstained on {abstained} of {n} samples"
    for name, k in kept.items():
        low, high = interval(k, n, options.alpha, task.confidence)
        answer.metrics.append(
            Metric(
                id=f"robustness.smoothed.{name}",
                value=k / n if n else None,
                low=low,
                high=high,
                confidence=task.confidence,
                n=n,
                method="clopper-pearson, less alpha",
                kind="lower",
                params={**params, "eps": at} if name == "certified_accuracy" else params,
                detail=detail,
            )
        )
    answer.figures.append(_curve(radii, options))
    if n < len(task.data.test):
        answer.not_tested.append(f"smoothing of the {len(task.data.test) - n} samples beyond the {n} that were looked at")
    return (
        f" Under noise of standard deviation {options.sigma:.4g}, by vote, a smoothed network would be right on "
        f"{kept['accuracy']} of {n} samples, on {kept['certified_accuracy']} of them whatever changes by at most {at:.4g} in "
        "L2; the network itself has no such guarantee."
    )


def _proven(task: Task, rows: Merged) -> NDArray[np.float64]:
    """Return the radius within which each sample is proven right; −1 where it is wrong, or the smoothed network abstains."""
    right = rows["predicted"] == task.data.test.y[rows.positions]
    out: NDArray[np.float64] = np.where(right, rows["radius"], -1.0)
    return out


def _curve(radii: NDArray[np.float64], options: SmoothingOptions) -> Figure:
    at, n = options.radius or 0.0, max(1, len(radii))
    end = max(float(radii.max(initial=0.0)), 1.25 * at) or 1.0
    # The line stands at what holds at the end of each step: below the truth inside it, and never above.
    points = np.unique(np.append(np.linspace(0.0, end, POINTS), at))
    series = {
        "name": "certified, smoothed network",
        "step": "pre",
        "x": [float(r) for r in points],
        "y": [float((radii > r).sum() / n) for r in points],
    }
    data: dict[str, Any] = {
        "series": [series],
        "xlabel": "radius (L2, input units)",
        "ylabel": "share of samples",
        "marks": [{"x": float(at), "label": f"radius {at:.4g}"}],
        "xmin": 0.0,
        "xmax": float(end),
        "ymin": 0.0,
        "ymax": 1.0,
        "note": f"Of the smoothed network (noise {options.sigma:.4g}, {options.n:,} votes), not of the network itself. Each "
        f"sample's claim is false with probability {options.alpha:g} at most. More votes certify more, up to larger radii.",
    }
    return Figure(id="robustness.smoothed.curve", kind="curve", title="What noise and a vote would certify", data=data)
