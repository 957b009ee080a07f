"""Results of two networks on simulated samples: as a run would write them, without a run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audit import stats
from audit.result import CheckResult, DataInfo, Evidence, Metric, ModelInfo, OutcomeTable, Result, Spec

Bits = NDArray[np.bool_]

CLASSES, CORRUPTIONS, DETECTORS = 10, 12, 3


def ids_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def share(metric_id: str, bits: Bits, outcome: str = "", **more: Any) -> Metric:
    k = int(bits.sum())
    interval = stats.clopper_pearson(k, len(bits))
    return Metric(
        id=metric_id, value=interval.value, low=interval.low, high=interval.high, confidence=0.95, n=len(bits),
        method="clopper-pearson", outcome=outcome, **more,
    )  # fmt: skip


def estimate(metric_id: str, interval: stats.Interval, n: int, method: str = "mover", **more: Any) -> Metric:
    return Metric(
        id=metric_id, value=interval.value, low=interval.low, high=interval.high, confidence=0.95, n=n, method=method, **more
    )


def check(check_id: str, metrics: list[Metric], samples: str, outcomes: Mapping[str, Bits], **more: Any) -> CheckResult:
    n = len(next(iter(outcomes.values()))) if outcomes else 0
    more = {"status": "measured", "question": "?", "answer": ".", **more}
    return CheckResult(
        id=check_id, metrics=metrics, outcomes=OutcomeTable.pack(ids_of(samples), n, outcomes) if outcomes else None, **more
    )


def result(*checks: CheckResult, model: str = "a", samples: str = "test", n: int = 0, **changes: Any) -> Result:
    """Return a result with these checks and no limits; `changes` name fields of the result, `model__x` those of its model."""
    spec = {"audit_version": "0.1.0", "config": {"run": {"profile": "standard"}, "policy": {}, "checks": {}}}
    network = {"source": f"{model}.pt", "sha256": ids_of(model), "format": "torch-zip", "task": "classification", "classes": 10,
               "input_shape": [4], "parameters": 12}  # fmt: skip
    data = {"source": f"{samples}.npz", "sha256": ids_of(samples), "n": n, "rows": n, "kind": "table"}
    for name, value in changes.items():
        section, _, key = name.partition("__")
        {"spec": spec, "model": network, "data": data}[section][key] = value
    return Result(
        verdict="unjudged", sentence="No limits were set.", exit_code=0, started_at="2026-01-01T00:00:00Z", seconds=1.0,
        spec=Spec(**spec), model=ModelInfo(**network), data=DataInfo(**data), checks=list(checks),
    )  # fmt: skip


def accuracy(correct: Bits, *, model: str = "a", samples: str = "test", **changes: Any) -> Result:
    """Return a result that holds the accuracy of a network alone."""
    metric = share("performance.accuracy", correct, "performance.correct")
    performance = check("performance", [metric], samples, {"performance.correct": correct})
    return result(performance, model=model, samples=samples, n=len(correct), **changes)


def disagreeing(n: int, lost: float, gained: float, rng: np.random.Generator, base: float = 0.9) -> tuple[Bits, Bits]:
    """Return which samples two networks get right: the second loses each with chance `lost`, and gains it with `gained`."""
    u = rng.random(n)
    both = (base - (lost + gained) / 2) if base < 1 else 0.0
    first = (u < lost) | ((u >= lost + gained) & (u < lost + gained + both))
    second = (u >= lost) & (u < lost + gained + both)
    return first, second


@dataclass(frozen=True)
class World:
    """Samples that networks answer: labels, groups, how hard each is, and anomalies beside them."""

    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    hardness: NDArray[np.float64]
    anomalies: int

    @classmethod
    def drawn(cls, n: int, rng: np.random.Generator) -> World:
        return cls(rng.integers(0, CLASSES, n), rng.choice(4, n, p=[0.5, 0.3, 0.15, 0.05]), rng.normal(size=n), n // 4)


def audited(
    world: World, rng: np.random.Generator, *, own: float = 0.35, skill: float = 0.0, model: str = "a", samples: str = "test"
) -> Result:
    """Return a result of about 60 metrics of a network that is as good as any other with this `skill`.

    `own` is the standard deviation of what is the network's alone in how hard it finds a sample, beside that sample's hardness
    for all: two networks disagree on more samples where it is large.
    """
    n = len(world.labels)
    hard = (world.hardness + own * rng.normal(size=n)) / np.hypot(1, own) - skill
    correct: Bits = hard < 1.3
    robust: Bits = hard < 0.2
    scores = np.clip(0.92 - 0.1 * hard + 0.03 * rng.normal(size=n), 0.1, 0.999)
    hits, support = (np.bincount(world.labels[m], minlength=CLASSES) for m in (correct, np.ones(n, dtype=bool)))
    performance = check(
        "performance",
        [
            share("performance.accuracy", correct, "performance.correct", params={"headline": True}),
            estimate("performance.balanced_accuracy", stats.mean_of_proportions(hits, support), n),
            *(share(f"performance.{c}.recall", correct[world.labels == c], params={"class": str(c)}) for c in range(CLASSES)),
            estimate("calibration.ece", stats.ece(scores, correct), n, direction="lower"),
        ],
        samples,
        {"performance.correct": correct},
    )
    broken = ~robust
    robustness = check(
        "robustness",
        [
            share("robustness.linf.accuracy", robust, "not robustness.linf.broken", kind="upper", params={"eps": 0.1}),
            share("robustness.linf.attack_success", broken[correct], kind="lower", direction="lower", params={"eps": 0.1}),
        ],
        samples,
        {"robustness.linf.broken": broken},
    )
    return result(
        performance, robustness, _corruption(hard, correct, rng, samples), _fairness(world, correct, samples),
        _anomaly(world, hard, rng, samples), model=model, samples=samples, n=n,
    )  # fmt: skip


def _corruption(hard: NDArray[np.float64], correct: Bits, rng: np.random.Generator, samples: str) -> CheckResult:
    metrics, outcomes = [], {}
    for i in range(CORRUPTIONS):
        name = f"corruption.c{i}"
        good = hard + 0.4 * rng.normal(size=len(hard)) < 1.2 - 0.1 * i
        drop = stats.paired_difference(int((correct & ~good).sum()), int((good & ~correct).sum()), len(good))
        metrics += [
            share(f"{name}.accuracy", good, name, params={"severity": 3}),
            estimate(f"{name}.drop", drop, len(good), "mover-paired", direction="lower", params={"severity": 3}),
        ]
        outcomes[name] = good
    return check("corruption", metrics, samples, outcomes)


def _fairness(world: World, correct: Bits, samples: str) -> CheckResult:
    n = len(correct)
    k, size = (np.bincount(world.groups[m], minlength=4) for m in (correct, np.ones(n, dtype=bool)))
    more = {"method": "bonferroni-pairs", "direction": "lower"}
    metrics = [
        estimate("fairness.g.demographic_parity_difference", stats.max_min_gap(k, size), n, **more),
        estimate("fairness.g.worst_group_accuracy", stats.worst_of(k, size), n, "bonferroni"),
    ]
    return check("fairness", metrics, samples, {"fairness.correct": correct})


def _anomaly(world: World, hard: NDArray[np.float64], rng: np.random.Generator, samples: str) -> CheckResult:
    metrics = []
    for i in range(DETECTORS):
        normal = 0.3 * hard + rng.normal(size=len(hard))
        strange = 1.5 + rng.normal(size=world.anomalies)
        area = stats.auroc(normal, strange)
        metrics.append(estimate(f"anomaly.d{i}.auroc", area, world.anomalies, "delong-clopper-pearson"))
        metrics.append(share(f"anomaly.d{i}.detection_rate", strange > 1.6))
        metrics.append(share(f"anomaly.d{i}.false_alarm_rate", normal > 1.6, direction="lower"))
    return check("anomaly", metrics, samples, {"anomaly.alarm": hard > 2})


def unsound(made: Result, check_id: str) -> Result:
    """Return a result one of whose checks has evidence that is not ok."""
    bad = Evidence(id=f"{check_id}.deterministic", ok=False, detail="it changed")
    checks = [c.model_copy(update={"evidence": [bad]}) if c.id == check_id else c for c in made.checks]
    return made.model_copy(update={"checks": checks})
