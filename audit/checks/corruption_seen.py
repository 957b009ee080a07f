"""What the corruption check applies to which samples, what came of it, and whether that can be believed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit import corruptions, stats
from audit.checks.base import Found, Task
from audit.corruptions import ColumnCorruption, Columns, Draws, ImageCorruption
from audit.corruptions.intervals import bounded_mean
from audit.corruptions.patch import Patch, patches
from audit.model.outputs import label_sets, names_of
from audit.result import Evidence, Metric, finite
from audit.stats import Interval

SAMPLES = {"quick": 200, "standard": 1000, "thorough": None, "exhaustive": None}
PICKED_ON = {"quick": 32, "standard": 64, "thorough": 128, "exhaustive": 128}  # samples on which the worst patch is looked for
FRESH = 2  # times as many on which it is then measured
AGAIN_BATCH = 8
SAME_CHANGE, SAME_ANSWERS = 1e-3, 0.98  # other batch sizes take other kernels, and flip an answer that hangs on a rounding
NO_CLASS = -1
IDLE = 1e-5  # a mean change below it, in widths of the box or standard deviations, is a rounding


# --- what is applied to what ------------------------------------------------------------------------------------------


def left_out(task: Task) -> dict[str, str]:
    """Return why each corruption that does not fit the data is left out."""
    shape = task.data.test.x.shape[1:]
    out = {}
    for name, corruption in corruptions.CORRUPTIONS.items():
        if isinstance(corruption, ImageCorruption):
            reason = corruption.left_out(shape) if task.data.kind == "image" else "it is for images"
        elif isinstance(corruption, ColumnCorruption):
            reason = "it is for tables" if task.data.kind == "image" else corruption.left_out(int(np.prod(shape)))
        else:
            reason = "it is for neither images nor tables"
        if reason is not None:
            out[name] = reason
    return out


def names(task: Task) -> list[str]:
    """Return the names of the corruptions to apply, in the order of their registry."""
    out = left_out(task)
    only = task.options.only
    return [name for name in corruptions.CORRUPTIONS if name not in out and (only is None or name in only)]


def headline_severity(task: Task) -> int:
    """Return the severity whose figures are metrics: 3, or the middle one of those chosen."""
    levels: list[int] = task.options.severities
    return 3 if 3 in levels else levels[len(levels) // 2]


def scans(task: Task) -> bool:
    """Tell whether a patch is looked for."""
    return bool(task.options.patch and task.data.kind == "image" and task.model.task == "classification")


def chosen(task: Task) -> NDArray[np.int64]:
    """Return the positions of the test samples that are corrupted: all, or a random draw."""
    n, most = len(task.data.test), task.options.samples or SAMPLES[task.profile]
    if most is None or n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(task.seed).choice(n, size=most, replace=False)).astype(np.int64)


def seed_of(task: Task) -> int:
    """Return the seed of the noise."""
    return int(task.seed if task.options.seed is None else task.options.seed)


def column_spread(data: Any) -> NDArray[np.float64]:
    """Return the standard deviation of each column, in the reference part where there is one."""
    part = data.reference or data.test
    spread: NDArray[np.float64] = part.x.reshape(len(part), -1).astype(np.float64).std(axis=0)
    return spread


class Apply:
    """Applies the corruptions to the samples of a task, whatever their kind, and says how far that moved them."""

    def __init__(self, task: Task) -> None:
        self.task = task

    @cached_property
    def columns(self) -> Columns:
        """What is known of the columns: from the reference part, else from the test part."""
        data = self.task.data
        part = data.reference or data.test
        low, high = data.bounds if data.bounds is not None else (None, None)
        own = None if data.reference is not None else data.test.ids
        return Columns.fit(part.x, low=low, high=high, own_ids=own, seed=seed_of(self.task))

    def draws(self, name: str, x: Tensor, ids: Tensor, turn: int = 0) -> Draws:
        """Return the random numbers of these samples for one corruption."""
        return corruptions.get(name).draws(x, ids, seed_of(self.task), turn)

    def __call__(self, name: str, x: Tensor, severity: int, draws: Draws) -> Tensor:
        """Return a corrupted copy."""
        corruption = corruptions.get(name)
        if isinstance(corruption, ColumnCorruption):
            return corruption(x, severity, columns=self.columns, draws=draws)
        assert isinstance(corruption, ImageCorruption)  # noqa: S101  (`names` lists no other)
        low, high = self.task.data.box()
        return corruption(x, severity, low=low, high=high, draws=draws)

    def change(self, clean: Tensor, changed: Tensor) -> Tensor:
        """Return how far each sample moved: the mean over its values, in widths of the box or columns' standard deviations."""
        if self.task.data.kind == "image":
            low, high = self.task.data.box()
            scale = torch.as_tensor(np.maximum(high - low, 1e-30), dtype=clean.dtype, device=clean.device)
            moved = ((changed - clean) / scale).flatten(1)
        else:
            std = torch.as_tensor(self.columns.std, dtype=clean.dtype, device=clean.device)
            moved = (changed - clean).flatten(1)[:, std > 0] / std[std > 0]
        return moved.abs().double().mean(dim=1)


# --- answers ----------------------------------------------------------------------------------------------------------


def answers_of(task: Task, x: Tensor) -> Tensor:
    """Return the predicted class of each sample, −1 where a logit is not finite; or the value of a regression network.

    Of a multi-label network the set of labels counts as the class: the answer is right where all labels are.
    """
    if task.model.task == "regression":
        return task.model.values(x).double()
    logits = task.model.logits(x)
    answers = label_sets(logits > 0) if task.model.task == "multilabel" else logits.argmax(dim=1)
    return torch.where(torch.isfinite(logits).all(dim=1), answers, NO_CLASS)


def patches_of(task: Task) -> list[Patch]:
    """Return the patches that fit the images."""
    return patches(*task.data.test.x.shape[2:])


def patch_samples(task: Task, found: Found) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return samples that are right when clean: some to pick the worst patch on, others to measure it on."""
    right = chosen(task)[clean_answers(task, found)[chosen(task)] == task.data.test.y[chosen(task)]]
    mixed = np.random.default_rng([seed_of(task), 1]).permutation(right)
    first = min(PICKED_ON[task.profile], len(mixed) // 2)
    return np.sort(mixed[:first]), np.sort(mixed[first : first * (1 + FRESH)])


def worst_patch(task: Task, found: Found) -> tuple[Patch, int]:
    """Return the patch and the class into which it turns most of the samples of other classes that it was tried on."""
    pick = found["corruption.patch.pick"]
    labels, answers = task.data.test.y[pick.positions], pick["answers"]
    best, worst = -1.0, (0, 0)
    for k in range(task.model.classes or 0):
        others = labels != k
        hits = (answers[others] == k).sum(axis=0)
        # By the lower limit: three of four samples say less than forty of sixty.
        surely, _ = stats.clopper_pearson_limits(hits, np.full_like(hits, others.sum()), task.confidence)
        place = int(surely.argmax())
        if surely[place] > best:
            best, worst = float(surely[place]), (place, k)
    return patches_of(task)[worst[0]], worst[1]


def clean_answers(task: Task, found: Found) -> NDArray[Any]:
    """Return the answers to clean inputs, as `answers_of` does."""
    clean = found["predictions.test"]
    if task.model.task == "regression":
        return clean["values"].astype(np.float64)
    logits = clean["logits"]
    of = _sets(logits > 0) if task.model.task == "multilabel" else logits.argmax(axis=1)
    answers: NDArray[Any] = np.where(np.isfinite(logits).all(axis=1), of, NO_CLASS)
    return answers


def _sets(marks: NDArray[Any]) -> NDArray[np.int64]:
    codes: NDArray[np.int64] = label_sets(torch.from_numpy(np.ascontiguousarray(marks))).numpy()
    return codes


# --- what was seen ----------------------------------------------------------------------------------------------------


class Seen:
    """Answers of the samples when clean, and under each corruption at each severity.

    Attributes
    ----------
    clean : array of shape (n,)
        Predicted classes, or values.
    answers : dict of arrays of shape (n, severities)
    good : dict of bool arrays of shape (n, severities)
        Right; for regression, moved by no more than the tolerance.
    """

    def __init__(self, task: Task, found: Found) -> None:
        self.task, self.found = task, found
        self.names, self.severities = names(task), list(task.options.severities)
        self.at = self.severities.index(headline_severity(task))
        self.positions = chosen(task)
        self.n = len(self.positions)
        labels = task.data.test.y[self.positions]
        self.y = _sets(labels) if task.model.task == "multilabel" else labels
        self.ids = task.data.test.ids[self.positions]
        self.regression = task.model.task == "regression"
        self.clean = clean_answers(task, found)[self.positions]
        self.answers = {name: found[f"corruption.{name}"]["answers"] for name in self.names}
        self.change = {name: found[f"corruption.{name}"]["change"].mean(axis=0) for name in self.names}
        self.good = {name: self._good(values) for name, values in self.answers.items()}
        self.good_clean = np.isfinite(self.clean) if self.regression else self.clean == self.y

    @cached_property
    def tolerance(self) -> float:
        """How far a regression output may move: as stated, else one standard deviation of the residuals."""
        if self.task.options.tolerance is not None:
            return float(self.task.options.tolerance)
        residuals = self.y - self.clean
        known = residuals[np.isfinite(residuals)]
        return float(np.std(known)) if len(known) else 0.0

    def all_turns(self, name: str) -> NDArray[Any]:
        """Return the answers with all the gaps that were made in each row, of shape (n, turns · severities)."""
        return np.concatenate((self.answers[name], self.found[f"corruption.{name}"]["other_turns"]), axis=1)

    def _good(self, answers: NDArray[Any]) -> NDArray[np.bool_]:
        if not self.regression:
            right: NDArray[np.bool_] = answers == self.y[:, None]
            return right
        with np.errstate(invalid="ignore"):
            kept: NDArray[np.bool_] = np.abs(answers - self.clean[:, None]) <= self.tolerance
        return kept

    def share(self, good: NDArray[np.bool_], confidence: float | None = None) -> Interval:
        """Return the share of good answers."""
        return stats.clopper_pearson(int(good.sum()), len(good), confidence or self.task.confidence)

    def by_group(self) -> NDArray[np.float64]:
        """Return the share of good answers of each sample at each severity, groups of corruptions weighing the same."""
        groups: dict[str, list[NDArray[np.bool_]]] = {}
        for name in self.names:
            groups.setdefault(group_of(name), []).append(self.good[name])
        out: NDArray[np.float64] = np.mean([np.mean(members, axis=0) for members in groups.values()], axis=0)
        return out

    def overall(self) -> Interval:
        """Return the headline: the mean over corruptions and severities."""
        return bounded_mean(self.by_group().mean(axis=1), 0.0, 1.0, self.task.confidence)

    def chance(self) -> float:
        """Return the share of right answers by guessing with the network's own frequencies; 0 for regression."""
        if self.regression or not self.n:
            return 0.0
        classes = np.unique(self.y)
        return float(sum((self.y == k).mean() * (self.clean == k).mean() for k in classes))

    def by_harm(self) -> list[str]:
        """Return the corruptions from the most harmful at the headline severity to the least."""
        return sorted(self.names, key=lambda name: float(self.good[name][:, self.at].mean()))

    @property
    def measure(self) -> str:
        """What is counted, in words."""
        return "share of outputs kept" if self.regression else "accuracy"


def group_of(name: str) -> str:
    """Return the group that a corruption belongs to: its own name where it stands alone."""
    return corruptions.get(name).group or name


def title_of(name: str) -> str:
    """Return the name of a corruption in plain words."""
    return corruptions.get(name).title


def metric_of(seen: Seen, metric_id: str, interval: Interval, method: str, **more: Any) -> Metric:
    """Return an interval over the samples seen as a metric."""
    value, low, high = (finite(v) for v in interval)
    given = {"n": seen.n, **more}
    return Metric(id=metric_id, value=value, low=low, high=high, confidence=seen.task.confidence, method=method, **given)


# --- evidence ---------------------------------------------------------------------------------------------------------


def evidence(seen: Seen) -> list[Evidence]:
    """Return what would make the figures lie, each tested."""
    return [_changed(seen), _repeatable(seen), _better_than_chance(seen), _falls(seen)]


def _changed(seen: Seen) -> Evidence:
    """Ask whether each corruption changed the inputs, and more at a higher severity: else its accuracy flatters."""
    idle = [name for name in seen.names if not (seen.change[name] > IDLE).all()]
    # Not from each severity to the next, nor at the highest: a shift by the period of a pattern changes less than half of it,
    # and blocks of a pattern's own size change nothing. Pairs of columns run out in narrow tables, so that as much as at the
    # lowest severity is enough.
    shrinking = [
        name for name, change in seen.change.items() if len(change) > 1 and change[1:].max() < change[0] * (1 - SAME_CHANGE)
    ]
    wrong = idle or shrinking
    detail = "each corruption changed the inputs at each severity, and at some higher one no less than at the lowest"
    if idle:
        detail = f"{titles(idle)} left the inputs as they were at some severity"
    elif shrinking:
        detail = f"{titles(shrinking)} changed the inputs less at every higher severity than at the lowest"
    return Evidence(id="corruption.inputs_changed", ok=not wrong, detail=detail, value=float(len(wrong)), one_sided=True)


def _repeatable(seen: Seen) -> Evidence:
    """Ask whether the same samples come out the same in another order and other batches."""
    again = seen.found["corruption.repeat"]
    at = np.searchsorted(seen.positions, again.positions)
    moved, same = 0.0, []
    for i, name in enumerate(seen.names):
        first = seen.found[f"corruption.{name}"]
        before, after = first["change"][at, seen.at], again["change"][:, i]
        moved = max(moved, float(np.max(np.abs(before - after) / np.maximum(np.abs(before), 1e-6), initial=0.0)))
        a, b = first["answers"][at, seen.at], again["answers"][:, i]
        with np.errstate(invalid="ignore"):
            near = np.abs(a - b) <= SAME_CHANGE * (seen.tolerance + np.abs(a)) if seen.regression else a == b
        same.append(near | (~np.isfinite(a) & ~np.isfinite(b)))
    agree = float(np.mean(same))
    return Evidence(
        id="corruption.repeatable",
        ok=moved <= SAME_CHANGE and agree >= SAME_ANSWERS,
        detail=f"{len(at)} samples were corrupted again, in another order and in batches of {AGAIN_BATCH}: {agree:.1%} of the "
        f"answers agree, and the inputs moved as far as before within {moved:.1g} of it",
        value=agree,
    )


def _better_than_chance(seen: Seen) -> Evidence:
    """Ask whether there is anything to lose: an answer that does not depend on the input survives every corruption."""
    if seen.regression:
        return _follows(seen)
    clean, chance = seen.share(seen.good_clean), seen.chance()
    ok = clean.low is not None and clean.low > chance
    return Evidence(
        id="corruption.better_than_chance",
        ok=ok,
        detail=f"on clean inputs {percent(clean.value)} are right (at least {percent(clean.low)}), and guessing with the "
        f"network's own frequencies gives {percent(chance)}" + ("" if ok else ": there is no skill that could be lost"),
        value=clean.low,
    )


def _follows(seen: Seen) -> Evidence:
    """Ask of a regression network whether its outputs follow the inputs, and whether there are residuals to set a tolerance."""
    low = None
    if not seen.good_clean.all():
        detail = f"{int((~seen.good_clean).sum())} outputs for clean inputs are not finite, so that R² is not known"
    elif seen.tolerance == 0:
        detail = (
            "the labels are met exactly, so that the tolerance is 0 and every move counts: state one (corruption.tolerance)"
        )
    elif seen.tolerance >= float(np.ptp(seen.clean)):
        detail = (
            f"the tolerance ({seen.tolerance:.4g}) is as wide as all clean outputs ({float(np.ptp(seen.clean)):.4g}), so that "
            "no move could count: state a smaller one (corruption.tolerance)"
        )
    else:
        low = stats.r_squared(seen.y, seen.clean, seen.task.confidence, seen.task.seed).low
        detail = (
            "R² on clean inputs is surely above 0"
            if low is not None and low > 0
            else "R² on clean inputs is not surely above 0: outputs that hardly follow the inputs are kept whatever happens to "
            "these"
        )
    return Evidence(
        id="corruption.better_than_chance",
        ok=low is not None and low > 0,
        detail=detail,
        value=finite(low),
        one_sided=True,
    )


def _falls(seen: Seen) -> Evidence:
    """Ask whether answers get worse with severity, on average over the corruptions: better ones would be odd."""
    shares = np.concatenate((seen.good_clean[:, None].astype(np.float64), seen.by_group()), axis=1)
    levels = np.asarray([0, *seen.severities], dtype=np.float64)
    weights = levels - levels.mean()
    weights = weights / np.square(weights).sum()
    most = float(np.abs(weights).sum() / 2)
    slope = bounded_mean(shares @ weights, -most, most, seen.task.confidence)
    rises = slope.low is not None and slope.low > 0
    return Evidence(
        id="corruption.falls_with_severity",
        ok=not rises,
        detail=f"{seen.measure} changes by {100 * (slope.value or 0):+.2f} percentage points a severity "
        f"({100 * (slope.low or 0):+.2f} to {100 * (slope.high or 0):+.2f})"
        + (": it surely rises, so that clean inputs are not what this network works best on" if rises else ""),
        value=slope.value,
    )


# --- names and numbers in words ---------------------------------------------------------------------------------------


def label_of(task: Task, position: int) -> str:
    """Return the label of a test sample in words."""
    label = task.data.test.y[position]
    if task.model.task == "regression":
        return f"{float(label):.4g}"
    if task.model.task == "multilabel":
        return names_of(label, task.classes)
    k = int(label)
    return task.classes[k] if 0 <= k < len(task.classes) else str(k)


def titles(some: Sequence[str]) -> str:
    """Return the names of some corruptions in plain words."""
    return ", ".join(title_of(name) for name in some)


def percent(value: float | None) -> str:
    """Return a share in per cent."""
    return "unknown" if value is None else f"{value:.1%}"
