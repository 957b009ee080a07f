"""Detectors on ADBench beside PyOD's AutoEncoder: AUROC, average precision, training time, and time to equal held-out loss.

    make benchmark        # installs pyod

Each set is drawn down to 10,000 rows; half of its normal rows are for training, the rest and the anomalies for testing; columns
are standardised by the training rows. The second table trains PyOD's architecture in PyOD's loop (10 epochs, defaults) and in
audit's, on the same scaled tensors and the same tenth held out, and times how long audit's loop takes to a held-out loss no
higher than the one that PyOD's loop ends with. It prints the median over pairs of runs, one after the other.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "adbench"
ROWS = 10_000
EPOCHS = 10
LEAST = 40  # training rows: nine tenths of fewer fill no batch of PyOD's
STEPS, BATCH, RATE = 100, 256, 0.03  # of audit's loop on PyOD's architecture; twice the steps where that was not enough

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Split:
    """Scaled training rows (all normal), test rows, and the labels of those (1: anomaly)."""

    train: Floats
    test: Floats
    y: NDArray[np.int64]
    rows: int


def load(file: Path, seed: int) -> Split:
    """Read and split one set."""
    with np.load(file) as stored:
        x, y = stored["X"].astype(np.float64), stored["y"].ravel().astype(np.int64)
    rows, random = len(x), np.random.default_rng(seed)
    if rows > ROWS:
        kept = np.sort(random.permutation(rows)[:ROWS])
        x, y = x[kept], y[kept]
    normal = random.permutation(np.flatnonzero(y == 0))
    train, rest = normal[: len(normal) // 2], normal[len(normal) // 2 :]
    test = np.concatenate((rest, np.flatnonzero(y == 1)))
    mean, std = x[train].mean(axis=0), x[train].std(axis=0)
    std[std == 0] = 1
    return Split((x[train] - mean) / std, (x[test] - mean) / std, y[test], rows)


def pyod(split: Split, seed: int) -> tuple[Floats, float]:
    """Return PyOD's scores of the test rows, and the seconds of its training loop."""
    from pyod.models.auto_encoder import AutoEncoder

    detector = AutoEncoder(epoch_num=EPOCHS, verbose=0, random_state=seed)
    seconds = timed_loop(detector)
    detector.fit(split.train)
    return detector.decision_function(split.test), seconds[0]


def timed_loop(detector: Any) -> list[float]:
    """Make a PyOD detector time its training loop; the seconds stand in the list once it was fitted."""
    loop, seconds = detector.train, [0.0]

    def train(loader: Any) -> None:
        start = time.perf_counter()
        loop(loader)
        seconds[0] = time.perf_counter() - start

    detector.train = train
    return seconds


def ours(name: str) -> Callable[[Split, int], tuple[Floats, float]]:
    """Return a function that fits audit's detector of this name."""
    from audit import anomaly

    def run(split: Split, seed: int) -> tuple[Floats, float]:
        detector = anomaly.get(name)(random_state=seed)
        start = time.perf_counter()
        detector.fit(split.train)
        return -detector.score_samples(split.test), time.perf_counter() - start

    return run


def detection(files: list[Path], seeds: int) -> None:
    """Print AUROC, average precision and seconds of every detector on every set."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    detectors = {name: ours(name) for name in ("autoencoder", "knn", "isolation_forest", "pca")} | {"pyod": pyod}
    print(f"mean of {seeds} splits; AUROC / average precision / seconds to fit")
    print(f"{'set':18}{'train':>6}{'cols':>6}  " + "".join(f"{name:>22}" for name in detectors), flush=True)
    table, whole = [], []
    for file in files:
        found = []
        for seed in range(seeds):
            split = load(file, seed)
            row = []
            for run in detectors.values():
                scores, seconds = run(split, seed)
                row.append((roc_auc_score(split.y, scores), average_precision_score(split.y, scores), seconds))
            found.append(row)
        table.append(np.mean(found, axis=0))
        whole.append(split.rows <= ROWS)
        cells = "".join(f"{a:9.3f} {p:5.3f} {s:6.2f}" for a, p, s in table[-1])
        print(f"{file.stem:18}{len(split.train):6}{split.train.shape[1]:6}  {cells}", flush=True)
    subsets = {f"mean of all {len(files)}": np.ones(len(files), dtype=bool), "mean of those not drawn down": np.asarray(whole)}
    for label, chosen in subsets.items():
        means = np.asarray(table)[chosen].mean(axis=0)
        print(f"{label:30}  " + "".join(f"{a:9.4f} {p:5.3f} {s:6.2f}" for a, p, s in means), flush=True)


def equal_loss(files: list[Path], pairs: int) -> None:
    """Print the seconds of either loop to the held-out loss that PyOD's ends with."""
    print(f"\nseconds to equal held-out loss, median of {pairs} pairs, PyOD's architecture, scaling and split")
    print(f"{'set':18}{'rows':>6}{'loss':>9}{'PyOD':>9}{'audit':>9}{'ratio':>8}   reached", flush=True)
    totals = np.zeros(2)
    for file in files:
        split = load(file, 0)
        if len(split.train) < LEAST:
            print(
                f"{file.stem:18}{len(split.train):6}   left out: PyOD's loop drops a batch that is not full, and has no other"
            )
            continue
        runs = [one_pair(split.train, seed) for seed in range(pairs)]
        theirs, mine = (statistics.median(run[i] for run in runs) for i in (0, 1))
        reached = sum(run[2] for run in runs)
        totals += theirs, mine
        loss = statistics.median(run[3] for run in runs)
        line = f"{file.stem:18}{len(split.train):6}{loss:9.4f}{theirs:9.3f}{mine:9.3f}{theirs / mine:8.1f}"
        print(f"{line}   {reached} of {pairs}", flush=True)
    print(f"{'in all':18}{'':15}{totals[0]:9.2f}{totals[1]:9.2f}{totals[0] / totals[1]:8.1f}", flush=True)


def one_pair(x: Floats, seed: int) -> tuple[float, float, bool, float]:
    """Train PyOD's network in both loops; return the seconds of each, whether ours reached the loss, and that loss."""
    from pyod.models.auto_encoder import AutoEncoder, AutoEncoderModel

    from audit.anomaly.autoencoder import train

    order = np.random.default_rng(seed).permutation(len(x))
    aside = max(1, len(x) // 10)
    held_out = torch.from_numpy(x[order[:aside]]).float()
    fitted = x[order[aside:]]
    detector = AutoEncoder(epoch_num=EPOCHS, verbose=0, random_state=seed, preprocessing=False)
    seconds = timed_loop(detector)
    detector.fit(fitted)
    detector.model.eval()
    with torch.no_grad():
        goal = float(((detector.model(held_out) - held_out) ** 2).mean())
    start, lowest, steps = time.perf_counter(), np.inf, STEPS
    while lowest > goal and steps <= 4 * STEPS:
        torch.manual_seed(seed)
        network = AutoEncoderModel(x.shape[1])
        history = train(
            network,
            torch.from_numpy(fitted).float(),
            held_out,
            steps=steps,
            batch_size=BATCH,
            learning_rate=RATE,
            seed=seed,
            until=goal,
        )
        lowest, steps = float(history.held_out.min()), 2 * steps
    return seconds[0], time.perf_counter() - start, lowest <= goal, goal


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="", help="names of sets, comma between; unstated: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only-loss", action="store_true", help="print the second table alone")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    files = sorted(SHARED.glob("*.npz"), key=lambda file: int(file.stem.split("_")[0]))
    if not files:
        print(f"no sets in {SHARED}")
        return
    if options.sets:
        files = [file for file in files if file.stem in options.sets.split(",")]
    if not options.only_loss:
        detection(files, options.seeds)
    equal_loss(files, options.pairs)


if __name__ == "__main__":
    main()
