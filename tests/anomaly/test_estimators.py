"""Every detector is a scikit-learn estimator: scikit-learn's own suite says so."""

from __future__ import annotations

import pytest
from sklearn.utils.estimator_checks import check_estimator

from audit import anomaly


@pytest.mark.slow
@pytest.mark.parametrize("name", list(anomaly.BUILT_IN))
def test_it_passes_the_suite_of_scikit_learn(name):
    detector = anomaly.get(name)
    check_estimator(
        detector(steps=100) if name == "autoencoder" else detector(trees=20) if name == "isolation_forest" else detector()
    )
