"""Tests of the performance check's own measurement: outputs that are numbers, test samples not trained on, enough of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audit import stats
from audit.checks.base import Answer, Task
from audit.data.base import Part
from audit.result import Evidence, Figure, Finding, Metric, finite
from audit.stats import Interval

MOST_SHOWN = 40  # classes or labels in a figure: more cannot be read
FEW = 30  # below it an interval is so wide that a reader should be told what that means
UNSEEN_TOLERANCE = 0.05
REPEATS = 0.1  # share of copies that narrows an interval by about a twentieth
ACCUSE = 0.99  # two comparisons may accuse, and each should seldom do so by chance
MANY_ROWS = 10  # fewer distinct rows of a class may all repeat an even number of times by chance


def make_metric(task: Task, metric_id: str, interval: Interval, n: int, method: str, **more: Any) -> Metric:
    """Return an interval as a metric at the task's confidence."""
    value, low, high = (finite(v) for v in interval)
    return Metric(id=metric_id, value=value, low=low, high=high, confidence=task.confidence, n=n, method=method, **more)


def recall_bars(names: Sequence[str], recalls: Sequence[Interval], support: NDArray[Any], *, one: str, many: str) -> Figure:
    """Return the figure of the recall of each class or label; of the weakest, where there are too many to read."""
    order = np.argsort([1.0 if recall.value is None else recall.value for recall in recalls], kind="stable")
    shown = sorted(order[:MOST_SHOWN].tolist())
    return Figure(
        id="performance.recall",
        kind="bars",
        title=f"Recall of each {one}" if len(shown) == len(names) else f"Recall of the {len(shown)} weakest {many}",
        data={
            "labels": [names[i] for i in shown],
            "values": [recalls[i].value for i in shown],
            "low": [recalls[i].low for i in shown],
            "high": [recalls[i].high for i in shown],
            "n": [int(support[i]) for i in shown],
            "xlabel": "recall",
            "ylabel": one,
        },
    )


def finite_rows(outputs: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which samples have an output that is neither NaN nor infinite."""
    rows: NDArray[np.bool_] = np.isfinite(outputs.reshape(len(outputs), -1)).all(axis=1)
    return rows


def judge_outputs(answer: Answer, outputs: NDArray[Any]) -> None:
    """Add the evidence that all outputs are numbers."""
    bad = int((~finite_rows(outputs)).sum())
    answer.evidence.append(
        Evidence(
            id="performance.finite_outputs",
            ok=bad == 0,
            detail=f"{bad} of {len(outputs)} samples have an output that is NaN or infinite",
            value=bad / len(outputs),
        )
    )


def report_non_finite(answer: Answer, part: Part, known: NDArray[np.bool_], meaning: str) -> None:
    """Report samples whose output is NaN or infinite."""
    if known.all():
        return
    bad = ~known
    answer.findings.append(
        Finding(
            severity="high",
            title=f"The network returns NaN or infinity for {int(bad.sum())} of {len(part)} samples",
            detail=f"{meaning} Look for overflow, a division by zero, or inputs outside the range it was trained on.",
            samples=part.ids[bad][:10].tolist(),
        )
    )


def report_few(answer: Answer, n: int, what: str, interval: Interval) -> None:
    """Report that there are so few samples that only the intervals should be read."""
    if n >= FEW:
        return
    span = (
        f"the true value may lie anywhere from {interval.low:.3g} to {interval.high:.3g}"
        if interval.low is not None and interval.high is not None
        else "no interval can be stated"
    )
    answer.findings.append(
        Finding(
            severity="low",
            title=f"Only {n} test sample{'s' if n != 1 else ''}",
            detail=f"With so few samples {span} ({what}). Read the intervals, not the values.",
        )
    )


def judge_gap(answer: Answer, task: Task, gap: Interval, reference: Interval, test: Interval, n: int, measure: str) -> Interval:
    """Add how much better the network is on the reference part, and report it where it is surely too much."""
    answer.metrics.append(
        make_metric(
            task,
            "performance.overfitting_gap",
            gap,
            len(task.data.test),
            "mover",
            direction="lower",
            params={"reference": reference.value, "test": test.value, "n_reference": n, "measure": measure},
            detail=f"{measure} on the reference part less that on the test part",
        )
    )
    if gap.low is not None and gap.low > task.options.max_gap:
        answer.findings.append(
            Finding(
                severity="medium",
                title=f"Over-fitting: {measure} is {gap.value:.3f} higher on the reference part than on the test part",
                detail=f"{measure} is {reference.value:.3f} on {n} reference samples and {test.value:.3f} on "
                f"{len(task.data.test)} test samples; the gap is surely more than {gap.low:.3f}, and "
                f"{task.options.max_gap:g} is the limit. The network has learnt its samples by heart, or the two parts differ.",
            )
        )
    return gap


# --- were the test samples trained on? --------------------------------------------------------------------------------


def judge_overlap(answer: Answer, task: Task) -> None:
    """Ask whether more test samples stand in the reference part than rows that repeat by nature explain.

    Two comparisons say what a fresh sample would show by chance, and either may accuse. The first takes the share of
    reference samples with a twin in the reference part; a part that was oversampled, each row twice, hides a leak from it.
    The second looks at the test part alone: the share of test samples with a twin among the other test samples, against the
    share with a twin in as large a draw from the reference part. It can see little where the test part is small beside it.
    """
    reference, test = task.data.reference, task.data.test
    if reference is None:
        answer.not_tested.append("over-fitting, and whether test samples were trained on: no reference part was given")
        return
    seen, fresh = Counter(_row_keys(reference)), _row_keys(test)
    overlap = np.asarray([key in seen for key in fresh])
    share = float(overlap.mean())
    own, whole = _natural(seen)
    beyond = stats.difference(int(overlap.sum()), len(test), own, whole, ACCUSE)
    leaked = _surely(beyond, UNSEEN_TOLERANCE)
    drawn, repeated, effective, size = _like_with_like(seen, fresh)
    k = min(effective, int(np.ceil(repeated * effective)))
    excess = stats.difference(int(drawn * effective), effective, k, effective, ACCUSE)
    # A draw of `size` finds that share of the leaked samples only.
    leaked |= _surely(excess, UNSEEN_TOLERANCE * min(1.0, size / len(reference)))
    answer.evidence.append(
        Evidence(
            id="performance.test_unseen",
            ok=not leaked,
            detail=f"{int(overlap.sum())} of {len(test)} test samples also stand in the reference part; {own} of {whole} "
            f"reference samples have a twin there; in draws of {size} samples, {drawn:.2%} of the test samples have a twin in "
            f"the reference part and {repeated:.2%} among the other test samples",
            value=share,
        )
    )
    if leaked:
        answer.findings.append(
            Finding(
                severity="high",
                title=f"{int(overlap.sum())} of {len(test)} test samples were in the training data",
                detail="The same inputs with the same label stand in the reference part, far more often than chance repeats "
                "would explain. Accuracy on samples that were trained on says little about new ones: use a test part "
                "that was held out.",
                samples=test.ids[overlap][:10].tolist(),
            )
        )


def judge_repeats(answer: Answer, task: Task) -> None:
    """Ask whether the test samples are draws of their own: copies of a few rows narrow every interval for nothing.

    Rows of few-valued columns repeat by nature. Where one column alone tells half of the distinct rows apart, as a measured
    number or any picture does, they do not.
    """
    test = task.data.test
    x = test.x.reshape(len(test), -1)
    distinct = len(set(_row_keys(test)))
    repeated = 1 - distinct / len(test)
    telling = max((len(np.unique(column)) for column in x.T), default=0) if repeated > REPEATS else 0
    by_nature = task.data.kind != "image" and (x.shape[1] < 2 or telling < distinct / 2)
    answer.evidence.append(
        Evidence(
            id="performance.distinct_samples",
            ok=repeated <= REPEATS or by_nature,
            value=1 - repeated,
            detail=f"{distinct} of {len(test)} test samples are distinct"
            + (
                ""
                if repeated <= REPEATS or by_nature
                else ": copies count as draws of their own, so every interval is too narrow"
            ),
        )
    )


Label = float | tuple[float, ...]
Key = tuple[Label, int]


def _row_keys(part: Part) -> list[Key]:
    """Return the label and a hash of input and label of each sample; types are evened out so that 1 and 1.0 are the same."""
    x = np.ascontiguousarray(part.x.reshape(len(part), -1), dtype=np.float32)
    labels: list[Label] = [tuple(map(float, y)) if part.y.ndim == 2 else float(y) for y in part.y]
    return [(label, hash((row.tobytes(), label))) for row, label in zip(x, labels, strict=True)]


def _natural(seen: Counter[Key]) -> tuple[int, int]:
    """Return how many reference samples have a twin there, and of how many.

    A class whose rows all stand there an even number of times (or three, or more) was repeated as a whole: each row of it
    counts that much less.
    """
    by_label: dict[Label, list[int]] = {}
    for (label, _), count in seen.items():
        by_label.setdefault(label, []).append(count)
    twins = total = 0
    for counts in by_label.values():
        fold = int(np.gcd.reduce(counts)) if len(counts) >= MANY_ROWS else 1
        once = np.asarray(counts) // fold
        twins += int(once[once > 1].sum())
        total += int(once.sum())
    return twins, total


def _like_with_like(seen: Counter[Key], fresh: list[Key]) -> tuple[float, float, int, int]:
    """Return the shares of test samples with a twin in draws of one size from the reference and from the other test samples.

    Each share is the mean over all draws without replacement. With them come the number of samples that they are worth,
    since equal rows stand or fall together, and the size of the draws.
    """
    from scipy.special import gammaln

    own, total = Counter(fresh), sum(seen.values())
    size = min(len(fresh) - 1, total)

    def hit(copies: NDArray[np.float64], of: int) -> NDArray[np.float64]:
        """Chance that a draw of `size` from `of` holds one of the copies."""
        fits = of - copies >= size
        left = np.where(fits, of - copies, size)
        log = gammaln(left + 1) - gammaln(left - size + 1) - gammaln(of + 1) + gammaln(of - size + 1)
        missed: NDArray[np.float64] = np.where(fits & (copies > 0), np.exp(log), np.where(copies > 0, 0.0, 1.0))
        return 1 - missed

    copies = np.asarray([seen.get(key, 0) for key in fresh], dtype=np.float64)
    twins = np.asarray([own[key] - 1 for key in fresh], dtype=np.float64)
    effective = int(len(fresh) ** 2 / sum(count**2 for count in own.values()))
    return float(hit(copies, total).mean()), float(hit(twins, len(fresh) - 1).mean()), effective, size


def _surely(excess: Interval, tolerance: float) -> bool:
    return excess.low is not None and excess.value is not None and excess.low > 0 and excess.value > tolerance
