"""Simulated error rates of bootstraps, rankings, calibration errors, confidence sequences and powers: how often each misses.

    python benchmarks/bootstraps.py [--family sequences] [--sets 2000]

At 95 % an interval that holds misses at most 2.5 % a side, plus three Monte-Carlo standard errors (1.0 % at 2,000 data sets).
Methods that miss more are printed beside those in use, to show why they are not. All take about 12 minutes of one core.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.special import gamma, ndtr
from scipy.stats import binom

from audit import stats
from audit.stats import Interval

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Floats]

TAIL = 0.025
RESAMPLES = 500


class Tally:
    """Counts of limits that miss a truth, and the widths, by method."""

    def __init__(self) -> None:
        self.low: dict[str, int] = defaultdict(int)
        self.high: dict[str, int] = defaultdict(int)
        self.width: dict[str, list[float]] = defaultdict(list)

    def add(self, method: str, low: float | None, high: float | None, truth: float) -> None:
        """Count one interval; one without limits misses nothing and is infinitely wide."""
        low = -math.inf if low is None or math.isnan(low) else low
        high = math.inf if high is None or math.isnan(high) else high
        self.low[method] += low > truth + 1e-9
        self.high[method] += high < truth - 1e-9
        self.width[method].append(high - low)

    def print(self, setting: str) -> None:
        """Print a line a method."""
        for method, widths in self.width.items():
            n = len(widths)
            below, above = 100 * self.high[method] / n, 100 * self.low[method] / n
            print(f"{setting:32} {method:26} {above:6.1f} {below:6.1f} {float(np.median(widths)):9.4f}", flush=True)


def heading(title: str) -> None:
    """Print the head of a table."""
    print(f"\n{title}\n{'setting':32} {'method':26} {'low>':>6} {'high<':>6} {'width':>9}   (% of data sets)")


# --- confidence sequences ---------------------------------------------------------------------------------------------


def sequences(sets: int) -> None:
    """Look after every one of 500 values; and exactly, by enumeration, after every one of 10,000 bits."""
    heading("confidence sequences, looked at after each of 500 values: misses at any look, width at the last")
    for p in (0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99):
        rng = np.random.default_rng(0)
        tally = Tally()
        for _ in range(sets):
            peek(tally, (rng.random(500) < p).astype(float), p)
        tally.print(f"bits, p = {p}")
    for a, b in ((1, 1), (8, 0.5), (0.3, 3)):
        rng = np.random.default_rng(0)
        tally = Tally()
        for _ in range(sets):
            peek(tally, rng.beta(a, b, 500), a / (a + b))
        tally.print(f"beta({a}, {b}) values")
    print("\nexact chance (%) that a limit misses at some look, one after each of n bits")
    print(f"{'p':>6} {'n':>7} {'sequential low':>15} {'high':>6} {'Clopper-Pearson low':>20} {'high':>6} {'both':>6}")
    for p in (0.01, 0.1, 0.5, 0.9, 0.99):
        for n in (100, 1000, 10_000):
            once, many = (exact(p, n, limits) for limits in (stats.clopper_pearson_limits, stats.sequential_limits))
            sides = " ".join(f"{100 * v:6.2f}" for v in (*many[:2], *once))
            print(f"{p:6} {n:7} {sides}", flush=True)


def peek(tally: Tally, values: Floats, truth: float) -> None:
    """Look at every step; limits only ever close in, so those at the end have missed where any did."""
    for method in (stats.betting_sequence, stats.empirical_bernstein_sequence):
        low, high = method(values)
        tally.add(method.__name__, float(low[-1]), float(high[-1]), truth)


def exact(p: float, steps: int, limits: Callable[..., tuple[Floats, Floats]]) -> tuple[float, float, float]:
    """Return the chances that the lower limit, the upper one, either ever misses `p`, by following the walk of k."""
    chances = []
    first, last = np.full(steps + 1, np.iinfo(np.int64).max), np.full(steps + 1, -1)
    n = np.arange(steps + 1)
    first[1:], last[1:] = crossings(p, n[1:], limits)
    for sides in ((first, np.full_like(last, -1)), (np.full_like(first, np.iinfo(np.int64).max), last), (first, last)):
        alive, base = np.ones(1), 0  # the chance of each k from `base` on, not yet missed
        for step in range(1, steps + 1):
            alive = np.r_[alive * (1 - p), 0] + np.r_[0, alive * p]
            k = base + np.arange(len(alive))
            kept = (k < sides[0][step]) & (k > sides[1][step])
            alive = np.where(kept, alive, 0)
            held = np.flatnonzero(alive > 1e-16)
            base, alive = base + int(held[0]), alive[held[0] : held[-1] + 1]
        chances.append(max(0.0, 1 - float(alive.sum())))
    return chances[0], chances[1], chances[2]


def crossings(p: float, n: NDArray[np.int64], limits: Callable[..., tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """Return for each n the smallest k whose lower limit misses p, and the largest k whose upper one does."""

    def halve(misses: Callable[[NDArray[np.int64]], NDArray[np.bool_]]) -> NDArray[np.int64]:
        short, enough = np.full(len(n), -1), n + 1
        for _ in range(int(np.log2(n[-1])) + 2):
            middle = np.clip((short + enough) // 2, 0, n)
            hit = misses(middle) & (middle > short)
            short, enough = np.where(hit, short, np.maximum(short, middle)), np.where(hit, np.minimum(middle, enough), enough)
        return enough

    return halve(lambda k: limits(k, n)[0] > p), n - halve(lambda k: limits(n - k, n)[1] < p)


# --- general bootstraps -----------------------------------------------------------------------------------------------


def mean(rows: Floats) -> Floats:
    """Return the means of resamples of shape (B, n)."""
    return np.asarray(rows.mean(axis=1))


def mean_and_error(rows: Floats) -> tuple[Floats, Floats]:
    """Return the means of resamples and their standard errors."""
    return mean(rows), rows.std(axis=1) / math.sqrt(rows.shape[1])


def log_unexplained(rows: Floats) -> Floats:
    """Return log(1 − R²) of resamples of squared errors and labels, shape (B, n, 2)."""
    return log_unexplained_and_error(rows)[0]


def log_unexplained_and_error(rows: Floats) -> tuple[Floats, Floats]:
    """Return log(1 − R²) and its standard error."""
    squared, y = rows[..., 0], rows[..., 1]
    spread = (y - y.mean(axis=1, keepdims=True)) ** 2
    mse, variance = squared.mean(axis=1), spread.mean(axis=1)
    influence = squared / mse[:, None] - spread / variance[:, None]
    return np.log(mse) - np.log(variance), influence.std(axis=1) / math.sqrt(y.shape[1])


def general(sets: int) -> None:
    """Means of few skewed values."""
    heading("the mean of n values")
    for name, draw, truth in (
        ("normal", lambda rng, n: rng.normal(size=n), 0.0),
        ("exponential", lambda rng, n: rng.exponential(size=n), 1.0),
        ("log-normal", lambda rng, n: rng.lognormal(size=n), math.exp(0.5)),
    ):
        for n in (20, 100):
            rng, tally = np.random.default_rng(0), Tally()
            for seed in range(sets):
                three(tally, draw(rng, n), mean, mean_and_error, truth, seed)
            tally.print(f"{name}, n = {n}")


def three(
    tally: Tally,
    rows: Floats,
    statistic: Callable[[Floats], Floats],
    with_error: Callable[[Floats], tuple[Floats, Floats]],
    truth: float,
    seed: int,
) -> None:
    """Add the three bootstrap intervals of one data set."""
    for method, of in (
        (stats.studentised_bootstrap, with_error),
        (stats.bca_bootstrap, statistic),
        (stats.percentile_bootstrap, statistic),
    ):
        interval = method(rows, of, 0.95, seed, RESAMPLES)
        tally.add(method.__name__, interval.low, interval.high, truth)


def regression(sets: int) -> None:
    """R² of light and heavy tails; the limits are of log(1 − R²), so the lower one is R²'s upper one."""
    heading("log(1 − R²), n = 100 (low> is an upper limit of R² that is too small)")
    e = math.e
    for name, draw, truth in (
        ("normal errors", lambda rng, n: errors_of(rng, rng.normal(size=n)), 0.2),
        ("Laplace errors", lambda rng, n: errors_of(rng, rng.laplace(size=n)), 1 / 3),
        ("exponential^1.5 errors", lambda rng, n: errors_of(rng, rng.exponential(size=n) ** 1.5), 6 / (10 - gamma(2.5) ** 2)),
        ("log-normal errors", lambda rng, n: errors_of(rng, rng.lognormal(size=n), 4), e**2 / (16 + (e - 1) * e)),
        ("Student's t, 3 degrees", lambda rng, n: errors_of(rng, rng.standard_t(3, n)), 3 / 7),
        (
            "log-normal labels",
            lambda rng, n: np.stack(((0.3 * rng.normal(size=n)) ** 2, rng.lognormal(size=n)), -1),
            0.09 / (e * e - e),
        ),
    ):
        rng, tally, told = np.random.default_rng(0), Tally(), 0
        for seed in range(sets):
            rows = draw(rng, 100)
            three(tally, rows, log_unexplained, log_unexplained_and_error, math.log(truth), seed)
            inflated(tally, rows, math.log(truth), seed)
            weights = rows[:, 0], (rows[:, 1] - rows[:, 1].mean()) ** 2
            told += min(map(stats.effective_size, weights)) < stats.enough_of(100)
        tally.print(name)
        print(f"{'':32} told by effective_size: {100 * told / sets:.0f} %")


def errors_of(rng: np.random.Generator, errors: Floats, signal: float = 2.0) -> Floats:
    """Return squared errors and labels, which are a normal signal plus the errors."""
    return np.stack((errors**2, signal * rng.normal(size=len(errors)) + errors), axis=-1)


def inflated(tally: Tally, rows: Floats, truth: float, seed: int) -> None:
    """Studentised, with the standard error that the sample would have if its most influential row stood in it twice."""
    (value,), (error,) = log_unexplained_and_error(rows[None])
    squared, spread = rows[:, 0], (rows[:, 1] - rows[:, 1].mean()) ** 2
    most = float(((squared / squared.mean() - spread / spread.mean()) ** 2).max())
    factor = math.sqrt(1 + most / (len(rows) * error) ** 2)
    plain = stats.studentised_bootstrap(rows, log_unexplained_and_error, 0.95, seed, RESAMPLES)
    if plain.low is None or plain.high is None:
        tally.add("studentised, inflated", None, None, truth)
    else:
        tally.add("studentised, inflated", value - factor * (value - plain.low), value + factor * (plain.high - value), truth)


# --- ranking ----------------------------------------------------------------------------------------------------------


def ranking(sets: int) -> None:
    """AUROC by DeLong and by bootstrap, and average precision."""
    heading("AUROC and average precision: normal scores, anomalies shifted by d")
    for shift in (0.5, 1.5, 3.0):
        area = float(ndtr(shift / math.sqrt(2)))
        big = np.random.default_rng(1)
        for m, n in ((200, 20), (500, 100)) if shift == 1.5 else ((200, 20),):
            precision = float(np.mean([stats.average_precision(*scores(big, shift, 100 * m, 100 * n)).value for _ in range(3)]))
            rng, tally = np.random.default_rng(0), Tally()
            for seed in range(sets):
                normal, anomalous = scores(rng, shift, m, n)
                tally.add("auroc", *stats.auroc(normal, anomalous)[1:], area)
                tally.add(
                    "auroc_bootstrap", *stats.auroc_bootstrap(normal, anomalous, seed=seed, resamples=RESAMPLES)[1:], area
                )
                tally.add("average_precision", *stats.average_precision(normal, anomalous, seed=seed)[1:], precision)
            tally.print(f"d = {shift}, {m} normal, {n} anomalies")


def scores(rng: np.random.Generator, shift: float, m: int, n: int) -> tuple[Floats, Floats]:
    """Draw scores of normal samples and of anomalies."""
    return rng.normal(size=m), rng.normal(shift, 1, n)


# --- calibration error and maxima -------------------------------------------------------------------------------------

NETWORKS: dict[str, tuple[Draw, Callable[[Floats], Floats]]] = {
    "calibrated": (lambda rng, n: rng.beta(5, 1, n) / 2 + 0.5, lambda c: c),
    "over-confident": (lambda rng, n: rng.beta(8, 1, n) / 2 + 0.5, lambda c: c - 0.1),
    "saturated": (lambda _, n: np.ones(n), lambda c: c - 0.004),
    "one bad half": (lambda rng, n: rng.uniform(0.5, 1, n), lambda c: 0.5 + 0.4 * (c > 0.75)),
    "under-confident": (lambda rng, n: rng.uniform(0.8, 0.9, n), lambda c: 0 * c + 0.97),
    "very under-confident": (lambda rng, n: rng.uniform(0.5, 0.7, n), lambda c: 0 * c + 0.95),
}


def calibration(sets: int) -> None:
    """ECE over its bins: the limits in use beside three bootstraps that draw anew within each bin."""
    heading("ECE: error over its bins, given the confidences")
    for name, (draw, chance) in NETWORKS.items():
        for n in (60, 300, 2000):
            rng, tally = np.random.default_rng(0), Tally()
            for _ in range(sets):
                confidence = draw(rng, n)
                p = chance(confidence)
                correct = rng.random(n) < p
                bins = stats.reliability_bins(confidence, correct)
                ends = np.cumsum(bins.n)
                order = np.argsort(confidence, kind="stable")
                truth = float(np.abs(np.add.reduceat((p - confidence)[order], np.r_[0, ends[:-1]])).sum() / n)
                tally.add("ece", *stats.ece(confidence, correct)[1:], truth)
                for method, low, high in of_bins(bins, rng):
                    tally.add(method, max(0.0, low), min(1.0, high), truth)
            tally.print(f"{name}, n = {n}")


def of_bins(b: stats.ReliabilityBins, rng: np.random.Generator) -> Iterator[tuple[str, float, float]]:
    """Yield percentile, BCa and studentised limits of ECE, by binomial draws within the bins."""
    weight = b.n / b.n.sum()

    def error_of(accuracy: Floats) -> Floats:
        return np.asarray(np.abs(accuracy - b.confidence) @ weight)

    def spread_of(accuracy: Floats) -> Floats:
        return np.asarray(np.sqrt((accuracy * (1 - accuracy) / b.n) @ weight**2))

    value = float(error_of(b.accuracy))
    accuracy = rng.binomial(b.n, b.accuracy, size=(RESAMPLES, len(b.n))) / b.n
    drawn = error_of(accuracy)
    yield "percentile", *np.quantile(drawn, (TAIL, 1 - TAIL))
    moved = []
    for right, count in ((1, b.k), (0, b.n - b.k)):
        left = np.abs((b.k - right) / np.maximum(b.n - 1, 1) - b.confidence) - np.abs(b.accuracy - b.confidence)
        moved.append(np.repeat(value + weight * left, count))
    lower, upper = stats.bca_levels(value, drawn, np.concatenate(moved))
    yield "BCa", *((math.nan, math.nan) if math.isnan(lower) else np.quantile(drawn, (lower, upper)))
    spread = float(spread_of(b.accuracy))
    with np.errstate(divide="ignore", invalid="ignore"):
        pivots = (drawn - value) / spread_of(accuracy)
    high = np.quantile(np.where(np.isnan(pivots), np.inf, pivots), 1 - TAIL, method="higher")
    low = np.quantile(np.where(np.isnan(pivots), -np.inf, pivots), TAIL, method="lower")
    yield "studentised", *((value - high * spread, value - low * spread) if spread else (value, value))


def maxima(sets: int) -> None:
    """Print the worst of K recalls: the limits in use beside bootstraps of the smallest."""
    heading("the smallest of K shares of n samples each")
    for shares, n in (((0.9,) * 10, 50), ((0.9,) * 40, 50), ((0.99,) * 10, 30), ((0.5, *(0.9,) * 9), 50), ((0.97,) * 10, 1000)):
        rng, tally = np.random.default_rng(0), Tally()
        total = np.full(len(shares), n)
        for _ in range(sets):
            k = rng.binomial(n, shares)
            tally.add("worst_of", *stats.worst_of(k, total)[1:], min(shares))
            drawn = (rng.binomial(n, k / n, size=(RESAMPLES, len(k))) / n).min(axis=1)
            value = float((k / n).min())
            tally.add("percentile", *np.quantile(drawn, (TAIL, 1 - TAIL)), min(shares))
            # one sample left out of a class moves its recall alone
            left = [
                (np.repeat((k - right) / (n - 1), count), np.repeat(np.arange(len(k)), count))
                for right, count in ((1, k), (0, n - k))
            ]
            others = np.asarray([np.delete(k / n, c).min() for c in range(len(k))])
            moved = np.concatenate([np.minimum(value_of, others[c]) for value_of, c in left])
            lower, upper = stats.bca_levels(value, drawn, moved)
            limits = (math.nan, math.nan) if math.isnan(lower) else np.quantile(drawn, (lower, upper))
            tally.add("BCa", *limits, min(shares))
        tally.print(f"K = {len(shares)}, n = {n}, {min(shares)} to {max(shares)}")


# --- power ------------------------------------------------------------------------------------------------------------


def power(sets: int) -> None:
    """Power as stated, and as simulated with the intervals and tests themselves."""
    print(f"\npower: stated, simulated on {sets} data sets, and the difference in standard errors")
    cases: list[tuple[str, float, Callable[[np.random.Generator], bool]]] = []
    for p, n, limit in ((0.9, 371, 0.85), (0.97, 500, 0.95), (0.5, 2000, 0.53)):
        cases.append(
            (f"share {p}, n = {n}, limit {limit}", stats.power_of_share(p, n, limit), partial(share_shown, p, n, limit))
        )
    for better, worse, n, limit in (
        (0.01, 0.03, 843, 0.0),
        (0.01, 0.03, 2000, 0.0),
        (0.02, 0.02, 2000, -0.01),
        (0.02, 0.03, 500, -0.03),
    ):
        stated = stats.power_of_pairs(better, worse, n, limit)
        cases.append((f"pairs {better}/{worse}, n = {n}, limit {limit}", stated, partial(pairs_shown, better, worse, n, limit)))
    for p, q, n, limit in ((0.9, 0.85, 700, 0.0), (0.9, 0.9, 2000, -0.03), (0.99, 0.95, 200, 0.0)):
        stated = stats.power_of_difference(p, n, q, n, limit)
        cases.append((f"{p} less {q}, n = {n}, limit {limit}", stated, partial(difference_shown, p, q, n, limit)))
    for name, stated, shown in cases:
        rng = np.random.default_rng(0)
        realised = float(np.mean([shown(rng) for _ in range(sets)]))
        error = math.sqrt(stated * (1 - stated) / sets)
        print(f"{name:48} {stated:7.4f} {realised:7.4f} {(realised - stated) / error:6.2f}", flush=True)


def share_shown(p: float, n: int, limit: float, rng: np.random.Generator) -> bool:
    """Draw one sample and say whether its interval lies on the side of the truth."""
    return on_side(stats.clopper_pearson(int(rng.binomial(n, p)), n), limit, p > limit)


def pairs_shown(better: float, worse: float, n: int, limit: float, rng: np.random.Generator) -> bool:
    """Draw one set of pairs and say whether its test, or its interval, shows the side of the truth."""
    gained, lost, _ = rng.multinomial(n, (better, worse, 1 - better - worse))
    if limit == 0:
        against, favour = (lost, gained) if worse > better else (gained, lost)
        return bool(binom.sf(against - 1, against + favour, 0.5) <= TAIL)
    return on_side(stats.paired_difference(int(gained), int(lost), n), limit, better - worse > limit)


def difference_shown(p: float, q: float, n: int, limit: float, rng: np.random.Generator) -> bool:
    """Draw two samples and say whether the interval of their difference lies on the side of the truth."""
    first, second = int(rng.binomial(n, p)), int(rng.binomial(n, q))
    return on_side(stats.difference(first, n, second, n), limit, p - q > limit)


def on_side(interval: Interval, limit: float, above: bool) -> bool:
    """Say whether an interval lies above, or below, a limit."""
    low, high = interval.low, interval.high
    return bool(low is not None and high is not None and (low > limit if above else high < limit))


FAMILIES: dict[str, Callable[[int], None]] = {
    f.__name__: f for f in (sequences, general, regression, ranking, calibration, maxima, power)
}


def main() -> None:
    """Print the tables asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--family", choices=FAMILIES, action="append", help="which tables; all unless stated")
    parser.add_argument("--sets", type=int, default=2000, help="data sets a setting")
    asked = parser.parse_args()
    for name in asked.family or FAMILIES:
        started = time.perf_counter()
        FAMILIES[name](asked.sets)
        print(f"({name}: {time.perf_counter() - started:.0f} s)")


if __name__ == "__main__":
    main()
