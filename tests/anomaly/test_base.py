"""What every detector keeps: a threshold with a stated rate, inputs of any shape, the same scores in any batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit import anomaly
from audit.anomaly.base import conformal_p_values, conformal_threshold, least_calibration
from audit.errors import UsageError

QUICK = {"autoencoder": {"steps": 60}, "isolation_forest": {"trees": 20}, "pca": {}, "knn": {}}


def make(name, **more):
    return anomaly.get(name)(random_state=0, **{**QUICK[name], **more})


def rows(n=200, columns=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 2)) @ rng.normal(size=(2, columns)) + 0.1 * rng.normal(size=(n, columns))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.floats(0.01, 0.49), st.integers(-1, 31))
def test_an_alarm_is_a_p_value_of_at_most_alpha(calibration, alpha, score):
    above = score > conformal_threshold(calibration, alpha)
    assert above == (conformal_p_values([score], calibration)[0] <= alpha + 1e-12)


def test_the_threshold_is_that_of_the_formula():
    assert conformal_threshold(np.arange(1, 20), 0.05) == 19  # ⌈20 · 0.95⌉
    assert conformal_threshold(np.arange(1, 19), 0.05) == np.inf  # 18 samples cannot vouch for one in twenty
    assert conformal_threshold(np.arange(1, 100), 0.1) == 90
    assert least_calibration(0.05) == 19


def test_false_alarms_come_at_the_stated_rate():
    rng, alpha, runs = np.random.default_rng(0), 0.1, 2000
    alarms = [rng.normal() > conformal_threshold(rng.normal(size=39), alpha) for _ in range(runs)]
    assert np.mean(alarms) == pytest.approx(alpha, abs=3 * np.sqrt(alpha * (1 - alpha) / runs))


@pytest.mark.parametrize("name", list(QUICK))
@pytest.mark.parametrize("shape", [(6,), (2, 3), (1, 8, 8)])
def test_samples_of_any_shape_are_scored_alone_as_together(name, shape):
    x = rows(columns=int(np.prod(shape))).reshape(-1, *shape)
    detector = make(name).fit(x)
    together = detector.score_samples(x)
    alone = np.concatenate([detector.score_samples(x[i : i + 1]) for i in range(5)])
    assert together.shape == (len(x),)
    assert alone == pytest.approx(together[:5], rel=1e-4)
    far = detector.score_samples(x[:5] + 50)
    assert (far < together.min()).all()
    assert (detector.predict(x[:5] + 50) == -1).all()
    with pytest.raises(ValueError, match=r"expected samples of shape|features"):
        detector.score_samples(np.zeros((3, 5, 2)) if len(shape) > 1 else np.zeros((3, 5)))


@pytest.mark.parametrize("name", list(QUICK))
def test_the_same_seed_gives_the_same_scores_and_nothing_else_is_touched(name):
    import torch

    torch.manual_seed(7)
    expected, threads = torch.rand(3), torch.get_num_threads()
    torch.manual_seed(7)
    first, second = (make(name).fit(rows()).score_samples(rows(seed=1)) for _ in range(2))
    assert (first == second).all()
    assert (torch.rand(3) == expected).all(), "the global generator of torch was drawn from"
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("name", list(QUICK))
def test_constant_and_binary_columns_do_no_harm(name):
    x = rows()
    x[:, 0], x[:, 1] = 3.0, np.arange(len(x)) % 2
    detector = make(name).fit(x)
    scores = detector.score_samples(x)
    assert np.isfinite(scores).all()
    odd = x.copy()
    odd[:, 1] = 40.0
    if name in ("autoencoder", "knn"):  # a forest never looks beyond a column's range, nor PCA along its components
        assert detector.score_samples(odd).max() < scores.mean()


@pytest.mark.parametrize("name", ["autoencoder", "pca"])
def test_one_value_leaves_no_room_for_a_bottleneck(name):
    with pytest.raises(ValueError, match="n_features=1"):
        make(name).fit(np.arange(30.0)[:, None])


@pytest.mark.parametrize(("options", "message"), [({"alpha": 1.5}, "alpha"), ({"calibration": 0}, "calibration")])
def test_parameters_are_checked_in_fit(options, message):
    with pytest.raises(ValueError, match=message):
        make("pca", **options).fit(rows())


def test_a_name_that_is_none_is_refused_with_a_hint():
    with pytest.raises(UsageError, match="isolation_forest"):
        anomaly.get("isolation_forrest")


def test_the_names_stand_in_the_package():
    for _, cls in anomaly.BUILT_IN.values():
        assert getattr(anomaly, cls).__name__ == cls
    assert list(anomaly.registry()) == anomaly.names()


@pytest.mark.parametrize(("n", "values"), [(40, 60), (300, 60)])
def test_principal_components_are_those_of_the_singular_values_for_few_samples_and_many(n, values):
    from audit.anomaly.pca import _principal

    z = np.random.default_rng(0).normal(size=(n, values)) * np.linspace(0.1, 3, values)
    z -= z.mean(axis=0)
    variances, directions = _principal(z)
    _, singular, right = np.linalg.svd(z, full_matrices=False)
    assert variances[::-1][:20] == pytest.approx(singular[:20] ** 2 / n)
    assert np.abs((directions[:, ::-1][:, :20] * right[:20].T).sum(axis=0)) == pytest.approx(np.ones(20))
