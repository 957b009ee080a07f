"""Isolation forest: how few random splits set an input apart from the rest."""

from __future__ import annotations

import numpy as np

from audit.anomaly.base import Detector, Floats


class IsolationForestDetector(Detector):
    """Scikit-learn's isolation forest with a conformal threshold (Liu, Ting & Zhou 2008, ICDM).

    Parameters
    ----------
    trees
        Number of trees, each grown on at most 256 samples.
    alpha, calibration, random_state
        As for `Detector`.
    """

    def __init__(
        self, *, trees: int = 200, alpha: float = 0.05, calibration: float = 0.2, random_state: int | None = None
    ) -> None:
        super().__init__(alpha=alpha, calibration=calibration, random_state=random_state)
        self.trees = trees

    def _fit(self, x: Floats, seed: int) -> None:
        from sklearn.ensemble import IsolationForest

        self.forest_ = IsolationForest(n_estimators=self.trees, random_state=seed).fit(x)

    def _distance(self, x: Floats) -> Floats:
        return np.asarray(-self.forest_.score_samples(x), dtype=np.float64)
