"""Asks whether the network still works on inputs as they really arrive: noisy, blurred, incomplete, in the wrong unit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor

from audit import corruptions
from audit.checks.base import (
    Answer,
    Arrays,
    Block,
    Check,
    CheckOptions,
    Found,
    MetricDoc,
    Stage,
    Task,
    check,
    predictions,
    repeatability,
    repeatability_evidence,
)
from audit.checks.corruption_seen import (
    AGAIN_BATCH,
    FRESH,
    PICKED_ON,
    Apply,
    Seen,
    answers_of,
    chosen,
    column_spread,
    evidence,
    group_of,
    headline_severity,
    left_out,
    names,
    patch_samples,
    patches_of,
    percent,
    scans,
    title_of,
    titles,
    worst_patch,
)
from audit.checks.corruption_shown import (
    conclude_imputations,
    conclude_patch,
    figures_of_all,
    galleries,
    report_harm,
    report_non_finite,
    rows_shown,
)
from audit.corruptions import SEVERITIES
from audit.corruptions.base import SMALLEST
from audit.corruptions.patch import Patch
from audit.errors import UsageError, closest
from audit.model.batching import in_batches
from audit.result import CheckResult, Finding

TURNS_OF_GAPS = 4  # other gaps in the same rows, to compare imputations: which values are missing is most of the noise
AGAIN = 64  # samples that are corrupted again


class CorruptionOptions(CheckOptions):
    """``[corruption]``."""

    only: list[str] | None = Field(
        default=None, description="names of the corruptions to apply; unstated: all that fit the data"
    )
    severities: list[int] = Field(default_factory=lambda: list(SEVERITIES), description="which of 1 to 5")
    samples: int | None = Field(default=None, ge=1, description="at most so many test samples; unstated: by profile")
    seed: int | None = Field(default=None, ge=0, description="seed of the noise; unstated: the run's")
    tolerance: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="regression: a larger move of the output counts; unstated: one sd of the residuals",
    )
    patch: bool = Field(default=True, description="images: look for one small patch that turns all inputs into one class")

    @field_validator("only")
    @classmethod
    def _known(cls, value: list[str] | None) -> list[str] | None:
        for name in value or ():
            if name not in corruptions.CORRUPTIONS:
                raise ValueError(f"no corruption {name!r}; {closest(name, list(corruptions.CORRUPTIONS))}")
        if value is not None and (not value or len(set(value)) != len(value)):
            raise ValueError("name each corruption once, and at least one")
        return value

    @field_validator("severities")
    @classmethod
    def _levels(cls, value: list[int]) -> list[int]:
        if not value or sorted(set(value)) != value or not set(value) <= set(SEVERITIES):
            raise ValueError("severities are some of 1, 2, 3, 4, 5, in that order")
        return value


@check
class CorruptionCheck(Check):
    """Every corruption that fits the data at five severities, imputations compared, and a scan for one patch that rules all."""

    id = "corruption"
    question = "Does it still work on inputs as they really arrive: noisy, blurred, incomplete, in the wrong unit?"
    Options = CorruptionOptions
    metrics: ClassVar = (
        MetricDoc(
            id="corruption.mean_accuracy",
            definition="accuracy, as the mean over all corruptions and severities; the imputations of missing values share "
            "one place",
            unit="fraction",
            range="0 to 1",
            interval="Student's over the samples' own means, at least as wide as with two samples at 0 and two at 1 added "
            "(Agresti & Coull)",
            bias="none of the value; each limit misses up to 3.3 % where 2.5 % are meant (simulated, 3 to 1,000 samples)",
            source="Hendrycks & Dietterich 2019; Agresti & Coull 1998",
        ),
        MetricDoc(
            id="corruption.<name>.accuracy",
            definition="accuracy under one corruption at the headline severity (3, where it is among those chosen)",
            unit="fraction",
            range="0 to 1",
            interval="Clopper–Pearson over samples",
            bias="none; it is of one draw of the noise a sample",
            source="Hendrycks & Dietterich 2019; Clopper & Pearson 1934",
        ),
        MetricDoc(
            id="corruption.<name>.drop",
            definition="accuracy on the same samples when clean, less that under one corruption at the headline severity",
            unit="fraction",
            range="-1 to 1",
            interval="paired: MOVER over the Clopper–Pearson limits of the answers lost and of those won",
            bias="none; the interval is wider than it need be",
            source="Clopper & Pearson 1934",
            direction="lower",
        ),
        MetricDoc(
            id="corruption.mean_kept",
            definition="regression: share of outputs that move by no more than the tolerance, as the mean over all corruptions "
            "and severities; the imputations of missing values share one place",
            unit="fraction",
            range="0 to 1",
            interval="as corruption.mean_accuracy",
            bias="as corruption.mean_accuracy",
            source="Hendrycks & Dietterich 2019; Agresti & Coull 1998",
        ),
        MetricDoc(
            id="corruption.<name>.kept",
            definition="regression: share of outputs that one corruption moves by no more than the tolerance (one standard "
            "deviation of the residuals, unless stated) at the headline severity",
            unit="fraction",
            range="0 to 1",
            interval="Clopper–Pearson over samples",
            bias="none; a network with large errors has a large tolerance unless one is stated",
            source="Clopper & Pearson 1934",
        ),
        MetricDoc(
            id="corruption.imputation.<name>.lost",
            definition="accuracy lost where values are missing completely at random and filled in so: clean less filled, mean "
            "over the severities",
            unit="fraction",
            range="-1 to 1",
            interval="paired: Student's over the samples' own differences, at least as wide as with two at each end of the "
            "range added",
            bias="of missing at random or not at random it says nothing",
            source="Agresti & Coull 1998",
            direction="lower",
        ),
        MetricDoc(
            id="corruption.imputation.gap",
            definition="accuracy under the imputation that hurts least, less that under the one that hurts most, mean over "
            "the severities",
            unit="fraction",
            range="0 to 1",
            interval="paired and simultaneous over all ordered pairs (Bonferroni): the largest lower, the largest upper limit",
            bias="upward: of several noisy figures some two lie apart by chance; the interval is not misled by that",
            source="Agresti & Coull 1998",
            direction="lower",
        ),
        MetricDoc(
            id="corruption.imputation.<name>.error_growth",
            definition="regression: mean absolute error where values are missing completely at random and filled in so, less "
            "the clean one, mean over the severities",
            unit="target units",
            range="any number",
            interval="paired: Student's over the samples' own differences",
            bias="too narrow for heavy-tailed errors in small samples",
            source="Student 1908",
            direction="lower",
        ),
        MetricDoc(
            id="corruption.patch.worst_share",
            definition="share of the samples of other classes, right when clean, that one small patch turns into one class: "
            "the worst place, brightness and class found on one half of the samples, measured on the other",
            unit="fraction",
            range="0 to 1",
            interval="Clopper–Pearson over samples that had no part in picking the patch",
            bias="a lower bound on the worst: other sizes, places, colours and patterns were not tried",
            source="Gu, Dolan-Gavitt & Garg 2017; Clopper & Pearson 1934",
            kind="lower",
            direction="lower",
        ),
    )

    def not_applicable(self, task: Task) -> str | None:
        """Return why nothing can be corrupted, or None."""
        data = task.data
        if data.kind == "image" and min(data.test.x.shape[2:]) < SMALLEST:
            return f"the images are smaller than {SMALLEST}×{SMALLEST} pixels, on which corruptions cannot be told apart"
        if data.kind != "image" and not column_spread(data).any():
            return "no column varies, so that noise has no scale"
        if not names(task):
            return "none of the corruptions asked for fits this data: " + "; ".join(left_out(task).values())
        return None

    def preflight(self, task: Task) -> None:
        """Check that there is a box, and that every corruption that was asked for fits the data."""
        if task.data.kind == "image":
            task.data.box()
        wrong = [name for name in task.options.only or () if name not in names(task)]
        if wrong:
            raise UsageError(f"corruption.only: {wrong[0]} does not fit this data: {left_out(task)[wrong[0]]}")

    def stages(self, task: Task) -> list[Stage]:
        """List a stage a corruption, one that repeats them in another way, and the two of the patch."""
        headline = "mean_kept" if task.model.task == "regression" else "mean_accuracy"
        out = [predictions(task, cost_of=f"corruption.{headline}"), *repeatability(task, self.id)]
        out += [_measure(task, name) for name in names(task)]
        out.append(_repeat(task))
        return out + (_patch_stages(task) if scans(task) else [])

    def conclude(self, task: Task, found: Found) -> CheckResult:
        """Turn answers under corruption into metrics, evidence, findings and figures."""
        answer = Answer(type(self))
        seen = Seen(task, found)
        figures_of_all(answer, seen)
        answer.evidence += [*evidence(seen), *repeatability_evidence(self.id, task, found)]
        report_harm(answer, seen)
        report_non_finite(answer, seen)
        text = sentence(seen) + conclude_imputations(answer, seen)
        if scans(task):
            text += conclude_patch(answer, seen)
        answer.findings += unstated(task)
        answer.figures += galleries(seen)
        answer.tables += rows_shown(seen)
        answer.not_tested = not_tested(task)
        return answer.result(task, text)


# --- stages -----------------------------------------------------------------------------------------------------------


def _measure(task: Task, name: str) -> Stage:
    apply, severities = Apply(task), task.options.severities
    turns = 1 + (TURNS_OF_GAPS if group_of(name) == "missing" else 0)

    def run(x: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        answers, changes = [], []
        for turn in range(turns):
            draws = apply.draws(name, x, ids, turn)
            for severity in severities:
                changed = apply(name, x, severity, draws)
                answers.append(answers_of(task, changed))
                changes.append(apply.change(x, changed))
        return torch.stack(answers, dim=1), torch.stack(changes, dim=1)

    def job(block: Block) -> Arrays:
        with task.model.session(), torch.no_grad():
            answers, changes = in_batches(run, (block.x, block.ids), task.model.batch_size)
        first = len(severities)
        arrays = {"answers": answers[:, :first], "change": changes[:, :first], "other_turns": answers[:, first:]}
        return {key: value.cpu().numpy() for key, value in arrays.items()}

    measure = "kept" if task.model.task == "regression" else "accuracy"
    return Stage(
        id=f"corruption.{name}",
        job=job,
        cost_of=f"corruption.{name}.{measure}",
        select=lambda _: chosen(task),
        passes=len(severities) * turns * len(chosen(task)) / len(task.data.test),
    )


def _repeat(task: Task) -> Stage:
    """Corrupt some samples again at the headline severity, in another order and in small batches."""
    apply, severity, listed = Apply(task), headline_severity(task), names(task)

    def run(x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        answers, changes = [], []
        for name in listed:
            changed = apply(name, x, severity, apply.draws(name, x, ids))
            answers.append(answers_of(task, changed))
            changes.append(apply.change(x, changed))
        return torch.stack(answers, dim=1), torch.stack(changes, dim=1)

    def job(block: Block) -> Arrays:
        parts = max(1, len(block.x) // AGAIN_BATCH)
        pairs = zip(block.x.flip(0).tensor_split(parts), block.ids.flip(0).tensor_split(parts), strict=True)
        with task.model.session(), torch.no_grad():
            done = [run(x, ids) for x, ids in pairs]
        answers, changes = (torch.cat(column).flip(0).cpu().numpy() for column in zip(*done, strict=True))
        return {"answers": answers, "change": changes}

    def select(_: Found) -> NDArray[np.int64]:
        positions = chosen(task)
        return positions[np.linspace(0, len(positions) - 1, min(len(positions), AGAIN)).round().astype(np.int64)]

    passes = len(listed) * min(AGAIN, len(chosen(task))) / len(task.data.test)
    return Stage(id="corruption.repeat", job=job, cost_of="corruption.repeatable", select=select, passes=passes)


def _patch_stages(task: Task) -> list[Stage]:
    tried = patches_of(task)
    low, high = task.data.box()

    def under(each: Callable[[], Sequence[Patch]]) -> Callable[[Tensor], tuple[Tensor]]:
        def run(x: Tensor) -> tuple[Tensor]:
            return (torch.stack([answers_of(task, patch.stamp(x, low, high)) for patch in each()], dim=1),)

        return run

    def pick(block: Block) -> Arrays:
        with task.model.session(), torch.no_grad():
            (answers,) = in_batches(under(lambda: tried), (block.x,), task.model.batch_size)
        return {"answers": answers.cpu().numpy()}

    def measure(block: Block) -> Arrays:
        patch, _ = worst_patch(task, block.earlier)
        with task.model.session(), torch.no_grad():
            (answers,) = in_batches(under(lambda: [patch]), (block.x,), task.model.batch_size)
        return {"answers": answers[:, 0].cpu().numpy()}

    cost, clean = "corruption.patch.worst_share", "predictions.test"
    n, most = len(task.data.test), min(PICKED_ON[task.profile], len(chosen(task)) // 2)
    return [
        Stage(
            "corruption.patch.pick",
            pick,
            cost,
            select=lambda f: patch_samples(task, f)[0],
            after=(clean,),
            passes=len(tried) * most / n,
        ),
        Stage(
            "corruption.patch.measure",
            measure,
            cost,
            select=lambda f: patch_samples(task, f)[1],
            after=(clean, "corruption.patch.pick"),
            passes=most * FRESH / n,
        ),
    ]


# --- in words ---------------------------------------------------------------------------------------------------------


def sentence(seen: Seen) -> str:
    """Return the answer in words, but for imputations and the patch."""
    overall, clean = seen.overall(), seen.share(seen.good_clean)
    worst = seen.by_harm()[0]
    share = seen.share(seen.good[worst][:, seen.at])
    level = f"{seen.task.confidence:.0%} interval"
    if seen.regression:
        start = (
            f"Over {len(seen.names)} corruptions at {len(seen.severities)} severities, {percent(overall.value)} of the "
            f"outputs move by no more than {seen.tolerance:.4g} ({level} {percent(overall.low)} to {percent(overall.high)}, "
            f"{seen.n:,} samples)."
        )
    else:
        start = (
            f"Over {len(seen.names)} corruptions at {len(seen.severities)} severities the network is right "
            f"{percent(overall.value)} of the time ({level} {percent(overall.low)} to {percent(overall.high)}), against "
            f"{percent(clean.value)} on the same {seen.n:,} samples when clean."
        )
    return (
        f"{start} Most harmful at severity {seen.severities[seen.at]}: {title_of(worst)}, which leaves {percent(share.value)} "
        f"({percent(share.low)} to {percent(share.high)})."
    )


def unstated(task: Task) -> list[Finding]:
    """Return a finding on the defaults that were used, where something was not stated."""
    notes = []
    if task.data.bounds is None:
        what = "box of the pixel values" if task.data.kind == "image" else "range of each column"
        notes.append(f"no bounds were stated, so the {what} was taken from the data")
    if task.data.kind != "image" and task.data.reference is None:
        notes.append("there is no reference part, so columns were scaled and missing values filled by the test part itself")
    if task.model.task == "regression" and task.options.tolerance is None:
        notes.append("no tolerance was stated, so a move of the output by one standard deviation of the residuals counts")
    return [Finding(severity="info", title="Unstated defaults", detail="; ".join(notes) + ".")] if notes else []


def not_tested(task: Task) -> list[str]:
    """Say what the figures do not cover."""
    out = ["the severities are conventions: whether inputs arrive so, and how often, is yours to know"]
    if task.data.kind == "image":
        out += [
            "other corruptions: darkness, snow, frost, glass, zoom, elastic distortion, colour casts; and several at once",
            "patches of other sizes, colours and patterns" if scans(task) else "patches that turn many inputs into one class",
        ]
    else:
        if task.data.kind == "array":
            out.append(
                "what happens to neighbouring values together: each value of the array was taken for a column of its own"
            )
        out += [
            "values missing for a reason: they are missing completely at random here",
            "wrong categories: a column of codes is disturbed like a number, to a neighbouring code",
        ]
    fitting = {name: reason for name, reason in left_out(task).items() if not reason.startswith("it is for")}
    out += [f"{title_of(name)}: {reason}" for name, reason in fitting.items()]
    if task.options.only is not None:
        rest = [name for name in corruptions.CORRUPTIONS if name not in left_out(task) and name not in task.options.only]
        out += [f"corruptions that were not asked for: {titles(rest)}"] if rest else []
    n = len(chosen(task))
    if n < len(task.data.test):
        out.append(f"{len(task.data.test) - n:,} of the {len(task.data.test):,} test samples: {n:,} were drawn at random")
    return out
