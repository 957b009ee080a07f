"""What the intervals and tests of shares, gaps and pairs miss, beside what they state.

    python benchmarks/intervals.py                       # every family, some minutes
    python benchmarks/intervals.py --family gaps --sets 2000

Nominal is 95 % throughout: 2.5 % on each side. What can be enumerated is, and is exact; the rest is simulated, `--sets` data
sets a setting. Figures are per cent; a star marks a miss beyond nominal by more than three Monte-Carlo standard errors.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln
from scipy.stats import binom, norm

from audit import stats
from audit.stats.differences import mean_limits, miettinen_nurminen_limits, subtracted
from audit.stats.groups import gap_limits, worst_limits
from audit.stats.paired import paired_limits

Floats = NDArray[np.float64]
Limits = Callable[..., tuple[Any, Any]]

ALPHA, SIDE = 0.05, 0.025
SIZES = (20, 50, 100, 300, 1000, 3000, 10_000)
RATES = np.asarray([0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98, 0.99])
CELLS = 1_000_000  # outcomes up to which a setting is enumerated
EDGE = 1e-9


class Tally:
    """The misses of one method over many settings: the worst on each side, the worst and the mean in all."""

    def __init__(self, name: str) -> None:
        self.name, self.below, self.above, self.both, self.width, self.settings = name, 0.0, 0.0, 0.0, 0.0, 0
        self.all = 0.0
        self.at = ""

    def add(self, truth: float, low: Floats, high: Floats, chance: Floats, at: str = "") -> None:
        """Add a setting: limits of every outcome and its chance; `below` is a truth below the lower limit."""
        below, above = float(chance[low > truth + EDGE].sum()), float(chance[high < truth - EDGE].sum())
        if max(below, above) > max(self.below, self.above):
            self.at = at
        self.below, self.above = max(self.below, below), max(self.above, above)
        self.both = max(self.both, below + above)
        self.all += below + above
        self.width += float(((high - low) * chance).sum())
        self.settings += 1

    def row(self, sets: int | None) -> str:
        """Return one line of a table; `sets` is None where the outcomes were enumerated."""
        slack = 3 * math.sqrt(SIDE * (1 - SIDE) / sets) if sets else 1e-9
        star = "*" if max(self.below, self.above) > SIDE + slack else " "
        return (
            f"{self.name:28} {100 * self.below:7.2f} {100 * self.above:7.2f}{star}{100 * self.both:8.2f} "
            f"{100 * self.all / self.settings:8.2f} {self.width / self.settings:8.4f} {self.settings:6d}  {self.at}"
        )


def heading(title: str) -> None:
    print(f"\n{title}\n{'':28} {'below':>7} {'above':>7} {'both':>8} {'mean':>8} {'width':>8} {'cases':>6}  worst at")


def even(count: int) -> Floats:
    return np.full(count, 1 / count)


# --- one share --------------------------------------------------------------------------------------------------------


def shares(_: int) -> None:
    """Clopper–Pearson, Wilson and mid-p, enumerated for every n and 197 rates from 0.01 to 0.99."""
    from audit.stats.proportions import clopper_pearson_limits, mid_p_limits, wilson_limits

    for name, limits in (("Clopper–Pearson", clopper_pearson_limits), ("mid-p", mid_p_limits), ("Wilson", wilson_limits)):
        heading(f"one share, {name} (enumerated)")
        for n in SIZES:
            k, tally = np.arange(n + 1), Tally(f"n = {n}")
            low, high = limits(k, np.full(n + 1, n))
            for p in np.linspace(0.01, 0.99, 197):
                tally.add(p, low, high, binom.pmf(k, n, p), f"p = {p:.3f}")
            print(tally.row(None))


# --- differences ------------------------------------------------------------------------------------------------------


def near(n: int, p: float) -> NDArray[np.int64]:
    """Return the counts that n draws at p give with a chance that is worth adding."""
    return np.arange(max(0, int(binom.ppf(1e-10, n, p)) - 1), min(n, int(binom.isf(1e-10, n, p)) + 1) + 1)


def pairs_of_counts(
    n1: int, p: float, n2: int, q: float, sets: int, rng: np.random.Generator, cells: int = CELLS
) -> tuple[Any, Any, Floats]:
    """Return counts of two samples, which broadcast, and their chances: all where they are few, else `sets` draws."""
    a, b = near(n1, p), near(n2, q)
    if len(a) * len(b) <= cells:
        return a[:, None], b[None, :], np.outer(binom.pmf(a, n1, p), binom.pmf(b, n2, q))
    return rng.binomial(n1, p, sets), rng.binomial(n2, q, sets), even(sets)


def newcombe_limits(k1: Any, n1: Any, k2: Any, n2: Any, confidence: float) -> tuple[Floats, Floats]:
    from audit.stats.proportions import wilson_limits

    (l1, u1), (l2, u2) = wilson_limits(k1, n1, confidence), wilson_limits(k2, n2, confidence)
    p, q = k1 / n1, k2 / n2
    return p - q - np.hypot(p - l1, u2 - q), p - q + np.hypot(u1 - p, q - l2)


def differences(sets: int) -> None:
    """Differences of two independent shares, over all pairs of 13 rates; and `difference` at other confidences."""
    rng = np.random.default_rng(0)
    sizes = [(20, 20), (20, 100), (50, 50), (30, 1000), (100, 100), (100, 3000), (300, 300), (300, 10_000), (10_000, 10_000)]
    methods: dict[str, Limits] = {
        "difference": subtracted,
        "Miettinen–Nurminen": miettinen_nurminen_limits,
        "Newcombe": newcombe_limits,
    }
    for name, limits in methods.items():
        heading(f"difference of two shares, {name} (enumerated or simulated)")
        for n1, n2 in sizes:
            simulated, tally = False, Tally(f"n = {n1}, {n2}")
            for p, q in itertools.product(RATES, RATES):
                # a limit that is found by bisection is dear: it is simulated sooner
                cells = 3000 if limits is miettinen_nurminen_limits else CELLS
                a, b, chance = pairs_of_counts(n1, p, n2, q, sets, rng, cells)
                simulated |= chance.ndim == 1
                low, high = limits(a, np.asarray(n1), b, np.asarray(n2), 1 - ALPHA)
                tally.add(p - q, np.maximum(low, -1), np.minimum(high, 1), chance, f"{p:.2f} − {q:.2f}")
            print(tally.row(sets if simulated else None))
    print("\ndifference at other confidences: worst miss of a side over what is stated (enumerated)")
    for confidence in (0.8, 0.9, 0.95, 0.99, 0.999, 0.99997):
        worst = []
        for n1, n2 in ((5, 5), (10, 10), (10, 200), (20, 100), (30, 30), (37, 37), (75, 75), (100, 100)):
            ratio = 0.0
            for p, q in itertools.product(RATES, RATES):
                a, b, chance = pairs_of_counts(n1, p, n2, q, sets, rng)
                _, high = subtracted(a, np.asarray(n1), b, np.asarray(n2), confidence)
                ratio = max(ratio, float(chance[np.minimum(high, 1) < p - q - EDGE].sum()) / ((1 - confidence) / 2))
            worst.append(f"{n1}, {n2}: {ratio:.2f}")
        print(f"  {100 * confidence:.5g} %   " + "   ".join(worst))


# --- pairs ------------------------------------------------------------------------------------------------------------


def multinomial(n: int, p: float, q: float, sets: int, rng: np.random.Generator) -> tuple[Any, Any, Floats]:
    """Return how many are better, how many worse, and the chances: all outcomes where they are few, else draws."""
    better, worse = near(n, p)[:, None], near(n, q)[None, :]
    if better.size * worse.size > CELLS:
        drawn = rng.multinomial(n, [p, q, 1 - p - q], sets)
        return drawn[:, 0], drawn[:, 1], even(sets)
    same = np.maximum(n - better - worse, 0)
    log = gammaln(n + 1) - gammaln(better + 1) - gammaln(worse + 1) - gammaln(same + 1)
    log = log + better * math.log(p) + worse * math.log(q) + same * math.log(1 - p - q)
    return better, worse, np.where(better + worse <= n, np.exp(log), 0.0)


def paired(sets: int) -> None:
    """`paired_difference`, McNemar's test and the paired bootstrap."""
    rng = np.random.default_rng(0)
    shares_of = (0.002, 0.01, 0.03, 0.1, 0.2, 0.3, 0.45)
    heading("paired difference of two shares (enumerated or simulated)")
    for n in SIZES:
        simulated, tally = False, Tally(f"n = {n}")
        for p, q in itertools.product(shares_of, shares_of):
            better, worse, chance = multinomial(n, p, q, sets, rng)
            simulated |= chance.ndim == 1
            low, high = paired_limits(better, worse, n)
            tally.add(p - q, np.maximum(low, -1), np.minimum(high, 1), chance, f"better {p:g}, worse {q:g}")
        print(tally.row(sets if simulated else None))
    print("\nMcNemar, chance of p <= 5 % where both are equally good, the worst over shares of disagreement (enumerated)")
    for n in (20, 50, 100, 300):
        print(f"  n = {n:<4d}" + "".join(f"   {name} {100 * rate:.2f}" for name, rate in mcnemar_sizes(n).items()))
    heading(f"paired bootstrap, simulated ({sets} data sets)")
    for name, draw, truth in differences_of_figures():
        for n in (20, 50, 200):
            found = [stats.paired_mean(draw(rng, n), seed=i) for i in range(sets)]
            known = [i for i in found if i.low is not None]
            tally = Tally(f"{name}, n = {n}")
            if known:
                low, high = np.asarray([i.low for i in known]), np.asarray([i.high for i in known])
                tally.add(truth, low, high, even(len(known)), f"no limits in {100 - 100 * len(known) / len(found):.0f} %")
                print(tally.row(len(known)))


def mcnemar_sizes(n: int) -> dict[str, float]:
    disagree = np.asarray([0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0])
    sizes = {}
    for alternative, mid_p in itertools.product(("two-sided", "greater"), (False, True)):
        rejected = np.asarray(
            [
                sum(binom.pmf(b, m, 0.5) for b in range(m + 1) if stats.mcnemar(b, m - b, alternative, mid_p) <= ALPHA)
                for m in range(n + 1)
            ]
        )
        size = max(float(binom.pmf(range(n + 1), n, d) @ rejected) for d in disagree)
        sizes[f"{'mid-p' if mid_p else 'exact'}, {alternative}"] = size
    return sizes


def differences_of_figures() -> Iterator[tuple[str, Callable[[np.random.Generator, int], Floats], float]]:
    yield "normal", lambda rng, n: rng.normal(size=n), 0.0
    yield "exponential", lambda rng, n: rng.exponential(size=n) - 1, 0.0
    yield "log-normal", lambda rng, n: rng.lognormal(size=n) - math.exp(0.5), 0.0
    yield "1 in 20 differs", lambda rng, n: rng.choice([-1.0, 0.0, 1.0], n, p=[0.015, 0.95, 0.035]), 0.02


# --- many groups ------------------------------------------------------------------------------------------------------


def rates_of(groups: int, gap: float, level: str) -> Floats:
    """Return shares `gap` apart: half of the groups at either end, which is where most pairs can err."""
    start = {"low": 0.01, "middle": 0.5 - gap / 2, "high": 0.99 - gap}[level]
    return start + gap * (np.arange(groups) % 2)


def percentile(k: NDArray[np.int64], n: NDArray[np.int64], rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return a percentile bootstrap of the gap, the method that misleads."""
    drawn = rng.binomial(n, k / n, size=(400, *k.shape)) / n
    gaps = drawn.max(axis=-1) - drawn.min(axis=-1)
    return np.quantile(gaps, SIDE, axis=0), np.quantile(gaps, 1 - SIDE, axis=0)


def gaps(sets: int) -> None:
    """`max_min_gap` and `worst_of` for 2 to 8 groups and 40, beside a percentile bootstrap of the gap."""
    rng = np.random.default_rng(0)
    few = max(50, sets // 10)
    for gap in (0.0, 0.05, 0.2):
        heading(f"gap of {gap:g} (simulated; three levels of rates, groups of 30, of 500, of 30 to 5,000; one star a side)")
        for groups in (2, 3, 4, 5, 6, 7, 8, 40):
            ours, worst, naive = (
                Tally(f"{groups} groups, gap"),
                Tally(f"{groups} groups, worst"),
                Tally(f"{groups} groups, bootstrap"),
            )
            sizes = [np.full(groups, 30), np.full(groups, 500), np.geomspace(30, 5000, groups).astype(np.int64)]
            for n, level in itertools.product(sizes, ("low", "middle", "high")):
                p, at = rates_of(groups, gap, level), f"{level}, n = {n[0]} to {n[-1]}"
                k = rng.binomial(n, p, size=(sets, groups))
                truth = float(p.max() - p.min())
                ours.add(truth, *gap_limits(k, n), even(sets), at)
                worst.add(float(p.min()), *worst_limits(k, n), even(sets), at)
                if groups in (2, 8, 40):
                    naive.add(truth, *percentile(k[:few], n, rng), even(few), at)
            print(ours.row(sets), worst.row(sets), *([naive.row(few)] if naive.settings else []), sep="\n")


def means(sets: int) -> None:
    """`mean_of_proportions`: parts alike and mixed."""
    rng = np.random.default_rng(0)
    heading("mean of shares (simulated; 60 settings a row: equal and mixed sizes and rates)")
    for parts in (2, 3, 5, 10, 40, 100):
        tally = Tally(f"{parts} parts")
        for setting in range(60):
            n = rng.choice([1, 2, 5, 10, 30, 100, 1000], parts if setting % 3 else 1) * np.ones(parts, dtype=np.int64)
            p = rng.choice([0.01, 0.05, 0.3, 0.5, 0.9, 0.95, 0.99], parts if setting % 2 else 1) * np.ones(parts)
            k = rng.binomial(n, p, size=(sets, parts))
            low, high = mean_limits(k, n)
            at = f"n = {n[:3].tolist()}…, p = {p[:3].tolist()}…"
            tally.add(float(p.mean()), np.maximum(low, 0), np.minimum(high, 1), even(sets), at)
        print(tally.row(sets))
    heading("mean of shares, one sample a part (enumerated)")
    for parts in (2, 4, 7, 16, 36, 100, 1000):
        tally, right = Tally(f"{parts} parts"), np.arange(parts + 1)
        low, high = mean_limits((np.arange(parts) < right[:, None]).astype(np.int64), np.ones(parts, dtype=np.int64))
        for p in RATES:
            tally.add(p, np.maximum(low, 0), np.minimum(high, 1), binom.pmf(right, parts, p), f"p = {p:g}")
        print(tally.row(None))


# --- tests ------------------------------------------------------------------------------------------------------------


def figures(kind: str, shape: tuple[int, int], rng: np.random.Generator) -> Floats:
    """Return standard normal figures, a row a data set, that depend on each other in one of four ways."""
    own, common = rng.normal(size=shape), rng.normal(size=(shape[0], 1))
    if kind == "independent":
        return own
    if kind == "opposed":  # pairs that mirror each other
        return np.where(np.arange(shape[1]) % 2, -np.roll(own, 1, axis=1), own)
    weight = {"alike 0.5": 0.5, "alike 0.95": 0.95}[kind]
    return math.sqrt(weight) * common + math.sqrt(1 - weight) * own


def multiple(sets: int) -> None:
    """Family-wise error of Holm and false discovery rate of Benjamini and Hochberg, at 5 %."""
    rng = np.random.default_rng(0)
    slack = 3 * math.sqrt(ALPHA * (1 - ALPHA) / sets)
    print("\nseveral tests at 5 %: any false rejection without correction and with Holm; false discoveries with BH and BY")
    for kind in ("independent", "alike 0.5", "alike 0.95", "opposed"):
        for tests, true in ((2, 0), (10, 0), (10, 5), (50, 40)):
            for sided in (1, 2):
                z = figures(kind, (sets, tests), rng) + np.where(np.arange(tests) < true, 3.0, 0.0)
                p = norm.sf(z) if sided == 1 else 2 * norm.sf(np.abs(z))
                false = np.arange(tests) >= true
                holm = np.asarray([stats.holm(row) for row in p.tolist()]) <= ALPHA
                discovered = [
                    np.asarray([stats.benjamini_hochberg(row, d) for row in p.tolist()]) <= ALPHA for d in ("positive", "any")
                ]
                rates = [(p <= ALPHA)[:, false].any(1).mean(), holm[:, false].any(1).mean()]
                rates += [float(((d & false).sum(1) / np.maximum(1, d.sum(1))).mean()) for d in discovered]
                stars = ["*" if i and rate > ALPHA + slack else " " for i, rate in enumerate(rates)]
                print(
                    f"  {kind:12} {tests:3d} tests, {true:2d} true effects, {sided}-sided   "
                    + "  ".join(
                        f"{label} {100 * r:6.2f}{s}"
                        for label, r, s in zip(("none", "Holm", "BH", "BY"), rates, stars, strict=True)
                    )
                )


def permutation(sets: int) -> None:
    """How often the permutation tests err at 5 %, with equal and with unlike distributions of one mean."""
    rng, sets = np.random.default_rng(0), min(sets, 2000)
    print(f"\npermutation tests at 5 %, how often p <= 5 % where the means are equal ({sets} data sets, 199 resamples)")
    two: dict[str, tuple[Callable[[int], Floats], Callable[[int], Floats]]] = {
        "exponential, alike": (lambda n: rng.exponential(size=n), lambda n: rng.exponential(size=n)),
        "bits, alike": (lambda n: rng.binomial(1, 0.2, n).astype(float), lambda n: rng.binomial(1, 0.2, n).astype(float)),
        "normal, spread 4 to 1": (lambda n: rng.normal(0, 4, n), lambda n: rng.normal(0, 1, n)),
    }
    for (name, (first, second)), (m, n) in itertools.product(two.items(), ((4, 5), (20, 80), (80, 20))):
        found = [stats.permutation_test(first(m), second(n), resamples=199, seed=i) for i in range(sets)]
        plain = [plain_test(first(m), second(n), i) for i in range(sets)]
        rates = [100 * np.mean(np.asarray(p) <= ALPHA) for p in (found, plain)]
        print(f"  {name:24} {m:3d} and {n:3d}   {rates[0]:6.2f}   by the plain difference of means {rates[1]:6.2f}")
    for (name, draw, _), n in itertools.product(list(differences_of_figures())[:3], (8, 30, 200)):
        found = [stats.sign_flip_test(draw(rng, n), resamples=199, seed=i) for i in range(sets)]
        print(f"  sign flips, {name:12} {n:3d}           {100 * np.mean(np.asarray(found) <= ALPHA):6.2f}")


def plain_test(a: Floats, b: Floats, seed: int) -> float:
    """Return the p-value of a permutation test whose statistic is not divided by its standard error."""
    both, rng = np.concatenate((a, b)), np.random.default_rng(seed)
    drawn = rng.permuted(np.broadcast_to(both, (199, len(both))), axis=1)
    apart = np.abs(drawn[:, : len(a)].mean(axis=1) - drawn[:, len(a) :].mean(axis=1))
    return float((1 + (apart >= abs(a.mean() - b.mean()) - EDGE).sum()) / 200)


FAMILIES: dict[str, Callable[[int], None]] = {
    f.__name__: f for f in (shares, differences, paired, gaps, means, multiple, permutation)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, help="one of them; without it, all")
    parser.add_argument("--sets", type=int, default=2000, help="data sets a setting")
    given = parser.parse_args()
    for name, family in FAMILIES.items():
        if given.family in (None, name):
            started = time.perf_counter()
            family(given.sets)
            print(f"({time.perf_counter() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
