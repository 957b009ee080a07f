"""The bootstrap from counts: how fast it is beside fairlearn's, and how often the intervals over groups hold the truth.

    python benchmarks/fairness_bootstrap.py speed
    python benchmarks/fairness_bootstrap.py limits      # also: bootstrap, gaps

Speed: 1,000 replicates of ten count metrics over two attributes and their intersection, in seconds of one core, medians of
runs in turns; fairlearn's `n_boot` is timed for one replicate of the same metrics, beside which it computes them once.
Coverage: 2,000 data sets a setting; printed are the settings with the lowest coverage, and how many lie below what is stated
by more than three standard errors.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from audit import stats
from audit.fairness import assess, bootstrap, resample
from audit.fairness.confusion import BALANCED_ACCURACY, F1, MEASURES, PRECISION, Measure

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SETS, CONFIDENCE, N_BOOT = 2000, 0.95, 1000
RATES = (0.01, 0.1, 0.5, 0.9, 0.99)


# --- speed ------------------------------------------------------------------------------------------------------------


def people(n: int) -> tuple[Ints, Ints, dict[str, NDArray[np.str_]]]:
    """Return labels, predictions and two attributes of n people."""
    random = np.random.default_rng(0)
    y = random.integers(0, 2, n)
    p = np.where(random.random(n) < 0.8, y, 1 - y)
    return y, p, {"sex": random.choice(["f", "m"], n), "region": random.choice(list("nesw"), n)}


def fairlearn_frames(n: int, replicates: int) -> Callable[[], None]:
    """Return what draws fairlearn's replicates for each of the three groupings."""
    from fairlearn.metrics import (
        MetricFrame,
        false_negative_rate,
        false_positive_rate,
        selection_rate,
        true_negative_rate,
        true_positive_rate,
    )
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, precision_score

    def negative_predictive_value(y: Ints, p: Ints) -> float:
        return float(precision_score(y, p, pos_label=0))

    metrics = [selection_rate, accuracy_score, true_positive_rate, false_positive_rate, true_negative_rate]
    metrics += [false_negative_rate, precision_score, negative_predictive_value, f1_score, balanced_accuracy_score]
    y, p, sensitive = people(n)
    groupings = [{"sex": sensitive["sex"]}, {"region": sensitive["region"]}, sensitive]

    def run() -> None:
        for groups in groupings:
            MetricFrame(
                metrics={metric.__name__: metric for metric in metrics},
                y_true=y,
                y_pred=p,
                sensitive_features=groups,
                n_boot=replicates,
                ci_quantiles=[0.025, 0.975],
                random_state=0,
            )

    return run


def seconds(call: Callable[[], object]) -> float:
    """Return how long one core was busy with a call."""
    begun = time.process_time()
    call()
    return time.process_time() - begun


def speed(runs: int) -> None:
    """Print times in turns."""
    few, many = people(50_000), people(10_000_000)
    counted = assess(*few).counts
    begun = time.process_time()
    counted_many = assess(*many).counts
    print(f"counting 10,000,000 people with all intervals of `assess`: {time.process_time() - begun:.2f} s, once")
    calls: dict[str, Callable[[], object]] = {
        "50,000 people, counting included": lambda: bootstrap(*few, n_boot=N_BOOT),
        "50,000 people, once counted": lambda: resample(counted, n_boot=N_BOOT),
        "10,000,000 people, once counted": lambda: resample(counted_many, n_boot=N_BOOT),
        "fairlearn, a replicate": fairlearn_frames(50_000, 1),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    calls["50,000 people, counting included"]()  # imports are no part of it
    for _ in range(runs):
        for name, call in calls.items():
            times[name].append(seconds(call) / (2 if name.startswith("fairlearn") else 1))
    for name, taken in times.items():
        print(f"{name:36s} median {np.median(taken):8.4f} s   {min(taken):.4f} to {max(taken):.4f}")
    theirs, own = times["fairlearn, a replicate"], times["50,000 people, counting included"]
    ratio = float(np.median(N_BOOT * np.asarray(theirs) / np.asarray(own)))
    print(f"{N_BOOT} replicates of fairlearn's over ours, counting included: {ratio:,.0f} times the time")


# --- coverage ---------------------------------------------------------------------------------------------------------


def cells_of(label: float, tpr: Floats | float, fpr: float) -> Floats:
    """Return the chances of the five outcomes, shape (..., 5)."""
    tpr = np.asarray(tpr, dtype=np.float64)
    found, accused = label * tpr, np.full_like(tpr, (1 - label) * fpr)
    return np.stack([found, label - found, accused, 1 - label - accused, np.zeros_like(tpr)], axis=-1)


class Tally:
    """Coverage of one method over settings."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, float, float, float, str]] = []

    def add(self, low: Floats, high: Floats, truth: float, setting: str) -> None:
        """Count how often the truth lies within, and how often it is missed on either side."""
        low, high = np.asarray(low), np.asarray(high)
        above, below = float((low > truth + 1e-9).mean()), float((high < truth - 1e-9).mean())
        self.rows.append((1 - above - below, above, below, float(np.median(high - low)), setting))

    def print(self, name: str) -> None:
        """Print the three worst settings and the share that falls short."""
        error = 3 * (CONFIDENCE * (1 - CONFIDENCE) / SETS) ** 0.5
        short = sum(row[0] < CONFIDENCE - error for row in self.rows)
        head = f"{name}: {len(self.rows)} settings, {short} below {CONFIDENCE - error:.3f}, mean {self._mean():.3f}"
        print(head, flush=True)
        for covered, above, below, width, setting in sorted(self.rows)[:3]:
            print(
                f"    {covered:.3f} (missed {above:.3f} above, {below:.3f} below; median width {width:.3f}) at {setting}",
                flush=True,
            )

    def _mean(self) -> float:
        return float(np.mean([row[0] for row in self.rows]))


def one_group() -> None:
    """Print the coverage of `Measure.limits`."""
    random = np.random.default_rng(1)
    tallies = {measure.name: Tally() for measure in MEASURES}
    for n, label, tpr, fpr in itertools.product((20, 50, 200, 2000), (0.1, 0.5), RATES, RATES):
        chances = cells_of(label, tpr, fpr)
        counts = random.multinomial(n, chances, size=SETS)
        for measure in MEASURES:
            truth = float(measure.values(chances))
            tallies[measure.name].add(*measure.limits(counts, CONFIDENCE), truth, f"n {n}, label {label}, {tpr} / {fpr}")
    for name, tally in tallies.items():
        tally.print(f"limits of {name}")


def one_group_bootstrap() -> None:
    """Print the coverage of `bootstrap_counts` by its methods."""
    random = np.random.default_rng(2)
    measures = (PRECISION, F1, BALANCED_ACCURACY)

    def statistic(counts: Floats) -> Floats:
        return np.stack([measure.values(counts) for measure in measures], axis=-1)

    tallies = {(method, m.name): Tally() for method in ("percentile", "bca", "widest") for m in measures}
    for n, (tpr, fpr) in itertools.product((20, 200, 2000), ((0.01, 0.1), (0.5, 0.5), (0.9, 0.1), (0.99, 0.01))):
        chances = cells_of(0.5, tpr, fpr)
        counts = random.multinomial(n, chances, size=SETS)
        for method in ("percentile", "bca", "widest"):
            found = [
                stats.bootstrap_counts(statistic, row, n_boot=N_BOOT, seed=i, method=method, bounds=(0, 1))
                for i, row in enumerate(counts)
            ]
            low, high = np.stack([f.low for f in found]), np.stack([f.high for f in found])
            for i, measure in enumerate(measures):
                truth = float(measure.values(chances))
                tallies[method, measure.name].add(low[:, i], high[:, i], truth, f"n {n}, {tpr} / {fpr}")
    for (method, name), tally in tallies.items():
        tally.print(f"bootstrap {method} of {name}")


# Groups, people a group, gap in the true positive rate, its mean, and the false positive rate.
GAPS = (
    (8, 20, 0.0, 0.5, 0.5),
    (2, 20, 0.2, 0.89, 0.05),
    (2, 20, 0.98, 0.5, 0.01),
    (8, 20, 0.0, 0.99, 0.01),
    (8, 200, 0.2, 0.5, 0.5),
    (4, 2000, 0.05, 0.5, 0.5),
    (40, 50, 0.0, 0.5, 0.5),
)


def between_groups(measures: Sequence[Measure]) -> None:
    """Print the coverage of gaps and ratios over groups."""
    random = np.random.default_rng(3)
    for groups, n, gap, tpr, fpr in GAPS:
        chances = cells_of(0.5, np.linspace(tpr - gap / 2, tpr + gap / 2, groups), fpr)
        counts = np.stack([random.multinomial(n, row, size=SETS) for row in chances], axis=1)
        setting = f"{groups} groups of {n}, true positive rate {tpr} ± {gap / 2}, false positive rate {fpr}"
        for measure in measures:
            values = measure.values(chances)
            top, ratio = float(values.max() - values.min()), float(values.min() / values.max())
            for name, low, high in _between(measure, counts, max_t=groups < 40):
                tally = Tally()
                tally.add(low, high, ratio if name == "ratio" else top, setting)
                tally.print(f"{name} of {measure.name}")


def _between(measure: Measure, counts: Ints, max_t: bool) -> Iterator[tuple[str, Floats, Floats]]:
    gaps = np.asarray([measure.gap(table)[1:] for table in counts], dtype=np.float64)
    yield "gap by limits", gaps[:, 0], gaps[:, 1]
    ratios = np.asarray([measure.ratio(table)[1:] for table in counts], dtype=np.float64)
    yield "ratio", ratios[:, 0], ratios[:, 1]
    if not max_t:
        return
    found, plain = [], []
    for i, table in enumerate(counts):
        drawn = measure.values(stats.smooth_counts(table, 1.0, N_BOOT, i))
        found.append(stats.gap_by_bootstrap(measure.values(table), drawn, table.sum(axis=1))[1:])
        drawn = measure.values(stats.draw_counts(table, N_BOOT, i))
        plain.append(np.nanquantile(np.fmax.reduce(drawn, axis=1) - np.fmin.reduce(drawn, axis=1), [0.025, 0.975]))
    yield "gap by max-T", *np.asarray(found, dtype=np.float64).T
    yield "gap by percentile", *np.asarray(plain, dtype=np.float64).T


def main() -> None:
    """Read what is asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "limits", "bootstrap", "gaps"))
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--measure", choices=("f1", "balanced accuracy"), help="of the gaps; both where not stated")
    asked = parser.parse_args()
    if asked.what == "speed":
        speed(asked.runs)
    elif asked.what == "limits":
        one_group()
    elif asked.what == "bootstrap":
        one_group_bootstrap()
    else:
        between_groups([measure for measure in (F1, BALANCED_ACCURACY) if asked.measure in (None, measure.name)])


if __name__ == "__main__":
    main()
