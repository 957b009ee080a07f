"""Nearest neighbours: how far an input lies from the closest reference samples."""

from __future__ import annotations

import numpy as np

from audit.anomaly.base import Detector, Floats
from audit.anomaly.scaling import RobustScaling


class NeighboursDetector(Detector):
    """Distance to the k-th nearest of the fitted samples, on scaled inputs (Ramaswamy, Rastogi & Shim 2000, SIGMOD).

    Parameters
    ----------
    neighbours
        k.
    rows
        At most so many samples are kept to compare with, drawn at random: time and memory grow with them.
    reach
        As for `RobustScaling`.
    alpha, calibration, random_state
        As for `Detector`.
    """

    def __init__(
        self,
        *,
        neighbours: int = 5,
        rows: int = 10_000,
        reach: float = 10.0,
        alpha: float = 0.05,
        calibration: float = 0.2,
        random_state: int | None = None,
    ) -> None:
        super().__init__(alpha=alpha, calibration=calibration, random_state=random_state)
        self.neighbours = neighbours
        self.rows = rows
        self.reach = reach

    def _fit(self, x: Floats, seed: int) -> None:
        from sklearn.neighbors import NearestNeighbors

        if self.neighbours < 1 or self.rows < 1:
            raise ValueError(f"neighbours and rows should be at least 1, got {self.neighbours} and {self.rows}")
        if len(x) > self.rows:
            x = x[np.sort(np.random.default_rng(seed).choice(len(x), self.rows, replace=False))]
        self.scaling_ = RobustScaling.fit(x, self.sample_shape_, self.reach)
        self.index_ = NearestNeighbors(n_neighbors=min(self.neighbours, len(x))).fit(self.scaling_.apply(x))

    def _distance(self, x: Floats) -> Floats:
        distances, _ = self.index_.kneighbors(self.scaling_.apply(x))
        return np.asarray(distances[:, -1], dtype=np.float64)
