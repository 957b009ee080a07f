"""One change for all samples, as a part of the robustness check: a universal perturbation, and a patch.

Each is fitted on reference data, or on one half of the test samples where there is none, and judged on test samples that it was
not fitted on.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from audit import stats
from audit.attacks.base import output_of
from audit.attacks.fitted import FittedAttack
from audit.attacks.geometry import Norm, ThreatModel
from audit.attacks.goal import Goal
from audit.attacks.patch import Patch
from audit.attacks.universal import Universal
from audit.checks.base import Answer, Arrays, Block, CheckOptions, Found, MetricDoc, Stage, Task
from audit.checks.robustness_state import right_at_first, spread_over, tolerance
from audit.data.noise import hashed_bits
from audit.errors import UsageError
from audit.model.batching import in_batches
from audit.result import Finding, Metric

MOST = 2000  # samples that a change is fitted on
SIZE = 64  # samples of a step, see `Universal` and `Patch`


class UniversalOptions(CheckOptions):
    """``[robustness.universal]``."""

    steps: int = Field(default=200, ge=2, le=100_000, description="gradient steps, each on 64 samples")


class PatchOptions(CheckOptions):
    """``[robustness.patch]``."""

    share: float = Field(default=0.05, gt=0, lt=1, description="share of the picture's area that the patch covers")
    place: Literal["random", "corner"] = Field(default="random", description="anywhere, or in the upper left corner")
    steps: int = Field(default=300, ge=1, le=100_000, description="gradient steps, each on 64 samples")


KINDS: dict[str, type[UniversalOptions] | type[PatchOptions]] = {"universal": UniversalOptions, "patch": PatchOptions}
BIAS = "an upper bound on the truth: another change may break more"
METRICS = (
    MetricDoc(
        id="robustness.universal.accuracy",
        definition="share of the judged samples that are right with and without one change, the same for all and within the "
        "radius of the first norm of L∞ and L2, which was fitted on other samples",
        unit="fraction",
        range="0 to 1",
        interval="Clopper–Pearson over the judged samples, the change taken as given",
        bias=BIAS,
        source="Moosavi-Dezfooli et al. 2017; Shafahi et al. 2020; Clopper & Pearson 1934",
        kind="upper",
    ),
    MetricDoc(
        id="robustness.patch.accuracy",
        definition="share of the judged samples that are right with and without one patch in the picture, which was fitted on "
        "other samples",
        unit="fraction",
        range="0 to 1",
        interval="Clopper–Pearson over the judged samples, the patch taken as given",
        bias=BIAS,
        source="Brown et al. 2017; Clopper & Pearson 1934",
        kind="upper",
    ),
)


def asked(task: Task, kind: str) -> UniversalOptions | PatchOptions | None:
    """Return what was asked for, or None where nothing was."""
    given = getattr(task.options, kind)
    if given is False:
        return None
    return KINDS[kind]() if given is True else KINDS[kind].model_validate(given, from_attributes=True)


def preflight(task: Task) -> None:
    """Refuse norms and data that these attacks do not know."""
    if asked(task, "universal") and _norm(task) is None:
        raise UsageError("robustness.universal is for L∞ and L2: add one of them to --norm, or leave it out")
    if asked(task, "patch") and task.data.kind != "image":
        raise UsageError(f"robustness.patch is for pictures, and this data is a {task.data.kind}: leave it out")


def _norm(task: Task) -> Norm | None:
    return next((norm for norm in task.options.norm if norm in Universal.norms), None)


def _attack(task: Task, kind: str, threat: ThreatModel | None) -> FittedAttack:
    options = asked(task, kind)
    if isinstance(options, PatchOptions):
        box = task.data.box()
        return Patch(share=options.share, place=options.place, steps=options.steps, box=box, seed=task.seed)
    if not isinstance(options, UniversalOptions) or threat is None:
        raise UsageError(f"robustness.{kind} was not asked for")
    return Universal(threat, steps=options.steps, seed=task.seed)


def stages(task: Task, threats: dict[str, ThreatModel]) -> list[Stage]:
    """Return the stages that fit and judge what was asked for; `threats` are the threat models by norm."""
    return [stage for kind in KINDS if asked(task, kind) for stage in _stages(task, kind, threats)]


def _stages(task: Task, kind: str, threats: dict[str, ThreatModel]) -> list[Stage]:
    attack = _attack(task, kind, threats.get(_norm(task) or ""))
    own = task.data.reference is None
    part = "test" if own else "reference"

    def fit(block: Block) -> Arrays:
        goal, right = _goal(task, block)
        rows = right.nonzero()[:, 0]
        shape = tuple(task.data.test.x.shape[1:])
        if not len(rows):
            return {"change": np.zeros((0, *shape), np.float32)}
        with task.model.session():
            change = attack.fit(task.model, block.x[rows], goal.take(rows), block.ids.to(block.x.device)[rows])
        return {"change": change.cpu().numpy()[None]}

    def judge(block: Block) -> Arrays:
        change = block.earlier[f"robustness.{kind}.fitted"]["change"]
        goal, right = _goal(task, block)
        if not len(change) or not len(block.ids):
            return {"broken": np.zeros(len(block.ids), np.bool_)}
        point = attack.apply(block.x, torch.as_tensor(change[0]).to(block.x), block.ids.to(block.x.device))

        def hit(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (Goal(goal.task, y, goal.tolerance).broken(output_of(task.model, x)),)

        with task.model.session():
            (broken,) = in_batches(hit, (point, goal.y), task.model.batch_size)
        return {"broken": (broken & right).cpu().numpy()}

    def fitted_on(_: Found) -> NDArray[np.int64]:
        positions = np.flatnonzero(~_judged(task)) if own else np.arange(len(task.part(part)))
        chosen: NDArray[np.int64] = positions[spread_over(len(positions), MOST)]
        return chosen

    def judged(found: Found) -> NDArray[np.int64]:
        return np.flatnonzero(_judged(task) & right_at_first(task, found))

    cost_of = f"robustness.{kind}.accuracy"
    steps = getattr(asked(task, kind), "steps", 0)
    per_sample = 2.0 * steps * SIZE / max(1, min(MOST, len(task.part(part))))
    return [
        Stage(
            id=f"robustness.{kind}.fitted",
            job=fit,
            cost_of=cost_of,
            part=part,
            select=fitted_on,
            after=("predictions.test",),
            passes=per_sample,
            whole=True,
            holds_inputs=True,
        ),
        Stage(
            id=f"robustness.{kind}.judged",
            job=judge,
            cost_of=cost_of,
            select=judged,
            after=("predictions.test", f"robustness.{kind}.fitted"),
            passes=2.0,
        ),
    ]


def _judged(task: Task) -> NDArray[np.bool_]:
    """Tell which test samples are judged: all, or, where there is no reference data, the half that nothing is fitted on."""
    test = task.data.test
    if task.data.reference is not None:
        return np.ones(len(test), dtype=np.bool_)
    bits = hashed_bits(torch.from_numpy(test.ids), 1, seed=task.seed, purpose="robustness.fitted.half")
    half: NDArray[np.bool_] = (bits[:, 0] >= 2**31).numpy()
    return half


def _goal(task: Task, block: Block) -> tuple[Goal, torch.Tensor]:
    """Return when samples are broken, and which are right unchanged, (n,)."""
    model = task.model
    if not len(block.ids):
        return Goal(model.task or "", block.y), torch.zeros(0, dtype=torch.bool, device=block.x.device)
    with model.session():
        (clean,) = in_batches(lambda xs: (output_of(model, xs),), (block.x,), model.batch_size)
    y = clean if model.task == "regression" else block.y.long()
    goal = Goal(model.task or "", y, tolerance(task, block.earlier) or 0.0)
    return goal, ~goal.broken(clean)


def conclude(task: Task, found: Found, answer: Answer, threats: dict[str, ThreatModel]) -> str:
    """Add metrics, outcomes and findings to the answer; return its sentences, empty where nothing was asked for."""
    return "".join(_conclude(task, found, answer, kind, threats) for kind in KINDS if asked(task, kind))


def _conclude(task: Task, found: Found, answer: Answer, kind: str, threats: dict[str, ThreatModel]) -> str:
    n, right, judged = len(task.data.test), right_at_first(task, found), _judged(task)
    fitted = found[f"robustness.{kind}.fitted"]
    rows = found[f"robustness.{kind}.judged"]
    what = "one change of all samples" if kind == "universal" else "one patch"
    if not len(fitted["change"]):
        answer.reasons.append(f"no sample was right to fit {what} on (robustness.{kind})")
        return ""
    hit = rows.spread("broken", n, False)
    kept = int((judged & right & ~hit).sum())
    interval = stats.clopper_pearson(kept, int(judged.sum()), task.confidence)
    params = dict((asked(task, kind) or UniversalOptions()).model_dump())
    if kind == "universal":
        threat = threats[_norm(task) or ""]
        params |= {"norm": threat.norm, "eps": threat.eps}
    params["fitted_on"] = len(fitted.positions)
    answer.metrics.append(
        Metric(
            id=f"robustness.{kind}.accuracy",
            value=interval.value,
            low=interval.low,
            high=interval.high,
            confidence=task.confidence,
            n=int(judged.sum()),
            method="clopper-pearson",
            kind="upper",
            params=params,
            detail=f"{what} was fitted on {len(fitted.positions)} other samples, and judged on these",
        )
    )
    asked_of = int((judged & right).sum())
    lost = float(hit.sum() / asked_of) if asked_of else 0.0
    if hit.any():
        answer.findings.append(
            Finding(
                severity="high" if lost >= 0.5 else "medium" if lost >= 0.1 else "low",
                title=f"{what.capitalize()} breaks {lost:.0%} of the answers",
                detail=f"It was fitted on other samples, and turned {int(hit.sum())} of {asked_of} right answers wrong: "
                "whoever has it needs neither the network nor time for each sample.",
                samples=[int(i) for i in task.data.test.ids[np.flatnonzero(hit)[:10]]],
            )
        )
    return f" With {what}, {kept} of {int(judged.sum())} judged samples are right and stay right."
