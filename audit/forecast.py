"""Says before a run what it will do: which stages on how many samples, about how long, and which limits it can decide."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from audit import stats
from audit.budget import span
from audit.checks import base
from audit.checks.base import MetricDoc, Stage
from audit.config import Config, Limit
from audit.data.base import Dataset
from audit.model.wrapper import Model
from audit.plan import Plan, announce, check_limits, is_of, make_plan, part_size
from audit.policy import asked
from audit.preflight import preflight

REPEATS = 5  # timed passes of each kind
AROUND = 3e-4  # seconds of an attack's own work on each pass, measured on a small network: it hides behind those of large ones
QUICK = 10.0  # seconds of all passes, below which what comes on top of them is the larger part
BETTER = 0.02  # by how much the truth is taken to be on the right side of a limit, for the size to plan for
UNCHANGED = "nothing was measured and nothing was written: this is a plan, and no verdict"


@dataclass(frozen=True)
class Speed:
    """Seconds of a pass: what each call takes, of however few samples, and what each sample in it adds; samples a call."""

    call: float
    sample: float
    batch: int

    def of(self, passes: float, samples: int) -> float:
        """Return the seconds that so many passes take which a stage makes over so many samples, batch by batch."""
        calls = passes / samples * math.ceil(samples / self.batch)
        return calls * (self.call + AROUND) + passes * self.sample


@dataclass(frozen=True)
class Forecast:
    """What a run would do.

    Attributes
    ----------
    stages
        Of each stage: its id, the samples it runs on at most, its passes, and its seconds; None where it makes no passes.
    limits
        Of each limit of the policy: what it asks, and what this run can say of it.
    """

    model: Model
    data: Dataset
    config: Config
    plan: Plan
    speed: Speed
    stages: list[tuple[str, int, float, float | None]]
    limits: list[tuple[str, str]]

    @property
    def seconds(self) -> float:
        """All passes together, roughly; the statistics and the fits of detectors come on top.

        Too long where most samples fall to the first attacks (an undefended network for digits: two to four times), too short
        for the smallest networks, on which a pass takes less than the work around it (a table of 177 rows: a seventh).
        """
        return sum(seconds or 0.0 for _, _, _, seconds in self.stages)

    @property
    def exit_code(self) -> int:
        """4 for a gate, since nothing was measured; else 0."""
        return 4 if self.config.run.gate else 0

    def text(self) -> str:
        """Return the plan as lines for a terminal; names in it are as they came."""
        width = max([len(stage_id) for stage_id, *_ in self.stages] + [5])
        rows = [f"  {'stage':{width}}  {'samples':>9}  {'passes':>12}  time"]
        rows += [
            f"  {stage_id:{width}}  {samples:>9,}  {passes:>12,.0f}  {'not estimated' if seconds is None else about(seconds)}"
            for stage_id, samples, passes, seconds in self.stages
        ]
        total = sum(passes for _, _, passes, _ in self.stages)
        broken = [f"{item.check.id} cannot be planned: {item.error}" for item in self.plan.planned if item.error]
        lines = [announce(self.model, self.data, self.plan), *broken, "plan:", *rows]
        lines.append(
            f"  in all at most about {total:,.0f} passes, roughly {about(self.seconds)}; samples that fall early save passes; "
            "the passes of explainers, statistics and the fits of detectors come on top"
            + (": with a network as quick as this they take most of the time" if self.seconds < QUICK else "")
        )
        budget = self.config.run.budget
        if budget is not None:
            short = self.seconds > budget
            lines.append(
                f"budget: {span(budget)}, "
                + ("less than the passes may take" if short else "enough for the passes, not surely for what comes on top")
            )
        lines += ["limits:", *(f"  {what}: {said}" for what, said in self.limits)] if self.limits else ["limits: none are set"]
        return "\n".join([*lines, UNCHANGED])


def about(seconds: float) -> str:
    """Return a length of time to one or two digits: ``0.3 s``, ``45 s``, ``12 m``, ``3.5 h``."""
    if seconds < 0.1:
        return "below 0.1 s"
    if seconds < 100:
        return f"{float(f'{seconds:.2g}'):g} s"
    return f"{float(f'{seconds / 60:.2g}'):g} m" if seconds < 100 * 60 else f"{float(f'{seconds / 3600:.2g}'):,g} h"


def forecast(model: Model, data: Dataset, config: Config, *, baseline: bool = False, debug: bool = False) -> Forecast:
    """Plan a run and say what is known of it before; it makes a handful of passes to learn how long one takes.

    Raises
    ------
    AuditError
        What would stop the run itself: model and data do not fit, or an option cannot be used.
    """
    if config.run.samples is not None:
        data = data.sample(config.run.samples, config.run.seed)
    with model.session():
        preflight(model, data)
        check_limits(config.policy, baseline=baseline)
        plan = make_plan(model, data, config, debug=debug)
        speed = measure(model, data)
    stages = [_row(stage, data, speed) for stage in plan.stages]
    limits = [(f"{limit.metric} {asked(limit)}", outlook(limit, plan, data, config)) for limit in config.policy.limit]
    return Forecast(model, data, config, plan, speed, stages, limits)


def measure(model: Model, data: Dataset) -> Speed:
    """Time passes of one sample and of one batch through the network: medians of a few, after one that is not counted.

    Which of its passes go backwards a stage does not say: the slower of a pass forwards, and of half of one there and back, is
    taken, so that time is left over rather than short.
    """
    batch = min(model.batch_size.current, len(data.test))
    x = model.to_input(data.tensor(np.arange(batch)))
    one, many = _pass(model, x[:1]), _pass(model, x)
    return Speed(min(one, many), max(0.0, many - one) / max(1, batch - 1), batch)


def _pass(model: Model, x: Tensor) -> float:
    answer = model.values if model.task == "regression" else model.logits

    def forward() -> None:
        with torch.no_grad():
            answer(x)

    def both() -> None:
        model.gradient(lambda out: out.reshape(len(out), -1).sum(dim=1), x)

    one_way = _median(forward)
    try:
        return max(one_way, _median(both) / 2)
    except RuntimeError:  # no gradient: attacks on such a network make forwards alone
        return one_way


def _median(work: Callable[[], None]) -> float:
    work()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _row(stage: Stage, data: Dataset, speed: Speed) -> tuple[str, int, float, float | None]:
    samples = part_size(data, stage.part)
    passes = stage.passes * samples
    return stage.id, samples, passes, speed.of(passes, samples) if passes else None


# --- limits -----------------------------------------------------------------------------------------------------------


def outlook(limit: Limit, plan: Plan, data: Dataset, config: Config) -> str:
    """Say what a run can say of a limit, as far as that is known before it."""
    owner, doc = _owner(limit)
    item = next((item for item in plan.planned if item.check.id == owner), None)
    if item is None:
        return f"cannot be decided: the check {owner} is not in this run"
    if item.not_applicable or item.error:
        return f"cannot be decided: the check {owner} {'does not apply' if item.not_applicable else 'cannot be planned'}: " + (
            item.not_applicable or item.error or ""
        )
    if limit.max_drop is not None:
        return "held against the interval of the change since the baseline"
    if doc.range == "0 to 1" and doc.interval.lower().startswith("clopper"):
        return of_share(limit, len(data.test), config.policy.confidence)
    return "the width of its interval is known once it is measured"


def _owner(limit: Limit) -> tuple[str, MetricDoc]:
    rows = [(check_id, doc) for check_id, check in base.registry().items() for doc in check.metrics]
    return next((check_id, doc) for check_id, doc in rows if is_of(limit.metric, doc.id))


def of_share(limit: Limit, n: int, confidence: float) -> str:
    """Say which shares of `n` samples pass a limit, which fail it, and how many samples a share close to it takes.

    Both are of Clopper–Pearson's interval, and of one limit alone: among several, a fail needs a little more. A metric over
    fewer than `n` samples (those of a group, or of what was right) has a wider interval.
    """
    side, at = ("min", limit.min) if limit.min is not None else ("max", limit.max if limit.max is not None else 0.0)
    assert at is not None  # noqa: S101  (one of them is given)
    shares = np.arange(n + 1) / n
    low, high = stats.clopper_pearson_limits(np.arange(n + 1), n, confidence)
    passing = shares[low >= at] if side == "min" else shares[high <= at]
    failing = shares[high < at] if side == "min" else shares[low > at]
    if not len(passing):
        every = "all" if side == "min" else "none"
        least = _least(side, at, confidence)
        more = f"at least {least:,} are needed" if least else "no number of samples would do"
        return f"cannot be cleared on {n:,} samples, even where {every} of them count for it: {more}"
    edge = float(passing[0] if side == "min" else passing[-1])
    words = f"measured on all {n:,} samples it is cleared {'from' if side == 'min' else 'up to'} {edge:.4g}"
    if len(failing):
        fails = float(failing[-1] if side == "min" else failing[0])
        words += f" and fails {'up to' if side == 'min' else 'from'} {fails:.4g}"
    words += f" (half-width of the interval there {abs(edge - at):.2g})"
    true = at + BETTER if side == "min" else at - BETTER
    if 0 <= true <= 1:
        size = stats.plan_size("clopper-pearson", true, n, float(low[0]), float(high[-1]), confidence, at)
        if size is not None:
            words += f"; where the truth is {true:.4g}, plan for {size:,} samples"
    return words


def _least(side: str, at: float, confidence: float) -> int | None:
    """Return the fewest samples of which the best outcome clears the limit: (α/2)^(1/n) is the bound of n out of n."""
    bound = at if side == "min" else 1 - at
    return math.ceil(math.log((1 - confidence) / 2) / math.log(bound)) if 0 < bound < 1 else None
