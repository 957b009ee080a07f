"""Principal components: how far an input lies from the linear subspace that holds most of the reference data."""

from __future__ import annotations

import numpy as np

from audit.anomaly.base import Detector, Floats
from audit.anomaly.scaling import RobustScaling


class PCADetector(Detector):
    """Squared error of the reconstruction from the principal components, on scaled inputs.

    Parameters
    ----------
    variance
        Share of the variance that the components should explain. There is always at least one component, and one fewer than
        there are values: with all of them there is no error.
    reach
        As for `RobustScaling`.
    alpha, calibration, random_state
        As for `Detector`.
    """

    def __init__(
        self,
        *,
        variance: float = 0.9,
        reach: float = 10.0,
        alpha: float = 0.05,
        calibration: float = 0.2,
        random_state: int | None = None,
    ) -> None:
        super().__init__(alpha=alpha, calibration=calibration, random_state=random_state)
        self.variance = variance
        self.reach = reach

    def _fit(self, x: Floats, seed: int) -> None:  # noqa: ARG002  (nothing is drawn)
        if not 0 < self.variance < 1:
            raise ValueError(f"variance should lie between 0 and 1, got {self.variance!r}")
        if x.shape[1] < 2:
            raise ValueError("a subspace smaller than the input needs at least two values a sample, got n_features=1")
        self.scaling_ = RobustScaling.fit(x, self.sample_shape_, self.reach)
        z = self.scaling_.apply(x)
        self.mean_ = z.mean(axis=0)
        values, vectors = _principal(z - self.mean_)
        explained = np.cumsum(values[::-1].clip(min=0))
        enough = int(np.searchsorted(explained, self.variance * explained[-1])) + 1
        self.components_ = vectors[:, ::-1][:, : min(enough, x.shape[1] - 1)].T

    def _distance(self, x: Floats) -> Floats:
        z = self.scaling_.apply(x) - self.mean_
        rest = z - z @ self.components_.T @ self.components_
        return np.asarray((rest**2).mean(axis=1), dtype=np.float64)


def _principal(z: Floats) -> tuple[Floats, Floats]:
    """Return variances, ascending, and directions, as columns, of centred samples of shape (n, values)."""
    n, columns = z.shape
    if columns <= n:
        values, vectors = np.linalg.eigh(z.T @ z / n)
        return values, vectors
    # Fewer samples than values: the smaller matrix of the samples' products has the same variances.
    values, along = np.linalg.eigh(z @ z.T / n)
    return values, z.T @ along / np.sqrt(np.maximum(values, np.finfo(np.float64).tiny) * n)
