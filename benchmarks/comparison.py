"""How often a comparison of two results accuses a network that is as good, and finds one that is worse.

    OMP_NUM_THREADS=1 python benchmarks/comparison.py

It simulates pairs of results (tests/twins.py) and prints, for each setting, the share of pairs whose verdict is *worse*, by the
primary metric and by any other, with its Monte-Carlo standard error. Whole results hold 50 metrics of five checks: shares,
calibration error, largest gaps, areas under the curve; on the same samples and on other ones.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from audit.compare import compare
from audit.result import Comparison, Result
from tests.twins import World, accuracy, audited, disagreeing

Pair = Callable[[np.random.Generator], tuple[Result, Result]]


def accuracies(n: int, lost: float, gained: float, *, same: bool) -> Pair:
    """Return a maker of two networks that disagree on so large shares of the samples."""

    def pair(rng: np.random.Generator) -> tuple[Result, Result]:
        first, second = disagreeing(n, lost, gained, rng)
        if not same:
            _, second = disagreeing(n, lost, gained, rng)
        return accuracy(first), accuracy(second, model="b", samples="test" if same else "other")

    return pair


def whole(n: int, *, same: bool) -> Pair:
    """Return a maker of two whole results of equally good networks."""

    def pair(rng: np.random.Generator) -> tuple[Result, Result]:
        world = World.drawn(n, rng)
        other = world if same else World.drawn(n, rng)
        return audited(world, rng), audited(other, rng, model="b", samples="test" if same else "other")

    return pair


SETTINGS: dict[str, Pair] = {
    "accuracy, equal, 5 % disagree, n = 2,000": accuracies(2000, 0.025, 0.025, same=True),
    "accuracy, equal, 5 % disagree, n = 200": accuracies(200, 0.025, 0.025, same=True),
    "accuracy, 2 points worse, 5 % disagree, n = 2,000": accuracies(2000, 0.035, 0.015, same=True),
    "accuracy, 2 points worse, 3 % disagree, n = 2,000": accuracies(2000, 0.025, 0.005, same=True),
    "accuracy, equal, other samples, n = 2,000": accuracies(2000, 0.025, 0.025, same=False),
    "accuracy, 2 points worse, other samples, n = 2,000": accuracies(2000, 0.035, 0.015, same=False),
    "50 metrics, equal, same samples, n = 2,000": whole(2000, same=True),
    "50 metrics, equal, other samples, n = 2,000": whole(2000, same=False),
    "50 metrics, equal, same samples, n = 200": whole(200, same=True),
    "50 metrics, equal, other samples, n = 200": whole(200, same=False),
}


def accused(comparison: Comparison) -> tuple[bool, bool, bool, bool]:
    """Return whether the verdict is worse, whether the primary metric is, whether any other is, and whether any is better."""
    primary = [change.primary for change in comparison.changes if change.outcome == "worse"]
    better = any(change.outcome == "better" for change in comparison.changes)
    return comparison.verdict == "worse", any(primary), not all(primary), better


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--pairs", type=int, default=2000)
    options.add_argument("--only", default="", help="settings whose name holds this")
    asked = options.parse_args()
    print(f"{asked.pairs:,} pairs a setting; in %, with the standard error of the first column")
    print(f"{'setting':<52}{'worse':>8}{'±':>6}{'primary':>9}{'others':>8}{'better':>8}{'ms':>7}")
    for name, pair in SETTINGS.items():
        if asked.only in name:
            rng, start = np.random.default_rng(0), time.perf_counter()
            found = np.asarray(
                [accused(compare(old, new, source="", sha256="")) for old, new in (pair(rng) for _ in range(asked.pairs))]
            )
            took = 1000 * (time.perf_counter() - start) / asked.pairs
            worse, primary, others, better = 100 * found.mean(axis=0)
            error = float(np.sqrt(worse * (100 - worse) / asked.pairs))
            print(f"{name:<52}{worse:8.2f}{error:6.2f}{primary:9.2f}{others:8.2f}{better:8.2f}{took:7.0f}", flush=True)


if __name__ == "__main__":
    main()
