"""What every detector shares: inputs of any shape, a held-out calibration share, and the threshold with a stated rate.

A detector scores how unlike the reference data an input is. `fit` puts a share of the samples aside, fits on the rest, and
sets the threshold from the scores of those put aside (split conformal): a new sample from the same source is then an alarm
with a chance of at most `alpha`, whatever the detector and the data.

A new detector is one file: a subclass of `Detector` that writes `_fit` and `_distance`, and its name in
``audit/anomaly/__init__.py`` (or under the entry-point group ``audit.detectors``).
"""

from __future__ import annotations

import math
from abc import ABCMeta, abstractmethod
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

Floats = NDArray[np.float64]


def conformal_threshold(scores: ArrayLike, alpha: float) -> float:
    """Return the ⌈(n+1)(1−alpha)⌉-th smallest of n held-out scores; infinity where n is below 1/alpha − 1.

    A new score from the same source lies above it with a chance of at most `alpha`, and of at least alpha − 1/(n+1) where no
    two scores are equal.

    Source: Vovk, Gammerman & Shafer (2005), Algorithmic Learning in a Random World; Lei et al. (2018), JASA 113:1094,
    theorem 2.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    # Without the slack a product such as 20 · 0.95 could come out above 19 by a rounding and cost a rank.
    rank = math.ceil((len(ordered) + 1) * (1 - alpha) - 1e-9)
    return float(ordered[rank - 1]) if rank <= len(ordered) else math.inf


def conformal_p_values(scores: ArrayLike, calibration: ArrayLike) -> Floats:
    """Return (1 + number of calibration scores ≥ score) / (n + 1) for each score.

    Source: Bates, Candès, Lei, Romano & Sesia (2023), Annals of Statistics 51:149, equation 3.
    """
    ordered = np.sort(np.asarray(calibration, dtype=np.float64))
    above = len(ordered) - np.searchsorted(ordered, np.asarray(scores, dtype=np.float64), side="left")
    return np.asarray((1 + above) / (len(ordered) + 1), dtype=np.float64)


def least_calibration(alpha: float) -> int:
    """Return the fewest calibration samples with which a threshold for `alpha` exists."""
    return math.ceil(1 / alpha - 1 - 1e-9)


class Detector(OutlierMixin, BaseEstimator, metaclass=ABCMeta):  # type: ignore[misc]  # scikit-learn has no types
    """Base of all detectors.

    Parameters
    ----------
    alpha
        Chance of a false alarm on a new sample of the kind that it was fitted on.
    calibration
        Share of the samples that is put aside to set the threshold.
    random_state
        Seed, or None.

    Attributes
    ----------
    calibration_scores_ : array of shape (n_calibration,)
        Distances of the samples that were put aside, in ascending order; higher means more anomalous.
    calibration_rows_ : int64 array of shape (n_calibration,)
        The rows of X that were put aside, in ascending order.
    offset_ : float
        ``decision_function`` is ``score_samples`` less this; −infinity where too few samples were put aside for `alpha`, and
        nothing is an alarm then.
    n_features_in_ : int
        Number of values of a sample.
    sample_shape_ : tuple of int
        Shape of a sample.
    """

    calibration_scores_: Floats
    calibration_rows_: NDArray[np.int64]
    offset_: float
    sample_shape_: tuple[int, ...]
    n_features_in_: int

    def __init__(self, *, alpha: float = 0.05, calibration: float = 0.2, random_state: int | None = None) -> None:
        self.alpha = alpha
        self.calibration = calibration
        self.random_state = random_state

    @abstractmethod
    def _fit(self, x: Floats, seed: int) -> None:
        """Fit on samples of shape (n, values)."""

    @abstractmethod
    def _distance(self, x: Floats) -> Floats:
        """Return how unlike the fitted samples each one is, shape (n,); higher means more anomalous."""

    def fit(self, X: ArrayLike, y: Any = None) -> Self:  # noqa: ARG002, N803  (scikit-learn's names)
        """Fit on samples of shape (n, …), and set the threshold from a share that is put aside; `y` is not used.

        Raises
        ------
        ValueError
            A parameter is out of range, or X holds fewer than two samples, NaN or infinity.
        """
        _between("alpha", self.alpha, 0, 1)
        _between("calibration", self.calibration, 0, 1)
        x = self._flat(X, reset=True)
        random = check_random_state(self.random_state)
        order = random.permutation(len(x))
        aside = min(len(x) - 1, max(1, round(self.calibration * len(x))))
        self.calibration_rows_ = np.sort(order[:aside]).astype(np.int64)
        fitted = np.sort(order[aside:])
        self._fit(x[fitted], int(random.randint(2**31 - 1)))
        self.calibration_scores_ = np.sort(self._distance(x[self.calibration_rows_]))
        self.offset_ = -conformal_threshold(self.calibration_scores_, self.alpha)
        return self

    def score_samples(self, X: ArrayLike) -> Floats:  # noqa: N803
        """Return how normal each sample is, shape (n,): higher is more normal."""
        check_is_fitted(self)
        return -self._distance(self._flat(X, reset=False))

    def decision_function(self, X: ArrayLike) -> Floats:  # noqa: N803
        """Return the scores less the threshold, shape (n,): an alarm is below 0."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:  # noqa: N803
        """Return −1 for each alarm, else 1, shape (n,)."""
        return np.where(self.decision_function(X) < 0, -1, 1).astype(np.int64)

    def p_values(self, X: ArrayLike) -> Floats:  # noqa: N803
        """Return conformal p-values, shape (n,): at most `alpha` for an alarm."""
        return conformal_p_values(-self.score_samples(X), self.calibration_scores_)

    def _flat(self, X: Any, *, reset: bool) -> Floats:  # noqa: N803
        """Check samples of any shape and return them as (n, values)."""
        shape = tuple(getattr(X, "shape", ()))
        if len(shape) > 2:
            if not reset and shape[1:] != self.sample_shape_:
                raise ValueError(f"expected samples of shape {self.sample_shape_}, got {shape[1:]}")
            X = np.asarray(X).reshape(shape[0], -1)  # noqa: N806
        x: Floats = validate_data(self, X, dtype=np.float64, reset=reset, ensure_min_samples=2 if reset else 1)
        if reset:
            self.sample_shape_ = shape[1:] if len(shape) > 2 else (x.shape[1],)
        return x


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low < value < high:
        raise ValueError(f"{name} should lie between {low} and {high}, got {value!r}")
