"""The autoencoder: its bottleneck, its scaling, its training loop, and the way back from stored arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from audit.anomaly import AutoencoderDetector
from audit.anomaly.autoencoder import build, train
from audit.anomaly.scaling import RobustScaling
from tests.anomaly.test_base import rows


@pytest.mark.parametrize("bottleneck", [0, 6, 100])
def test_a_bottleneck_that_is_none_is_refused(bottleneck):
    with pytest.raises(ValueError, match="bottleneck should be at least 1 and smaller than the 6 values"):
        AutoencoderDetector(bottleneck=bottleneck).fit(rows())


@pytest.mark.parametrize(("name", "value"), [("steps", -1), ("width", 0), ("held_out", 1.0), ("learning_rate", 0.0)])
def test_other_parameters_are_checked(name, value):
    with pytest.raises(ValueError, match=name):
        AutoencoderDetector(**{name: value}).fit(rows())


@pytest.mark.parametrize("shape", [(5,), (8, 8), (1, 8, 8), (3, 28, 28), (1, 9, 13), (1, 3, 4), (2, 40, 33)])
def test_every_network_copies_the_shape_through_the_bottleneck(shape):
    values = int(np.prod(shape))
    network = build(shape, 2, 16)
    assert network(torch.zeros(4, values)).shape == (4, values)
    narrowest = min(m.out_features for m in network.modules() if isinstance(m, nn.Linear))
    assert narrowest == 2


def test_the_loss_falls_and_the_best_weights_are_kept():
    x = torch.from_numpy(rows(400)).float()
    network = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2), nn.Linear(2, 6))
    history = train(network, x[:300], x[300:], steps=200, batch_size=64, learning_rate=0.01)
    assert history.held_out[-1] < 0.1 * history.held_out[0]
    with torch.no_grad():
        assert float(((network(x[300:]) - x[300:]) ** 2).mean()) == pytest.approx(history.held_out.min(), rel=1e-5)
    assert history.step[np.argmin(history.held_out)] == history.best_step


def test_training_stops_early_where_it_only_learns_by_heart():
    rng = np.random.default_rng(0)
    detector = AutoencoderDetector(steps=3000, bottleneck=4, random_state=0).fit(rng.normal(size=(60, 8)))
    assert detector.history_["step"][-1] < 3000
    assert detector.best_step_ < detector.history_["step"][-1]


def test_training_stops_at_the_loss_that_was_asked_for():
    x = torch.from_numpy(rows(400)).float()
    network = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2), nn.Linear(2, 6))
    history = train(network, x[:300], x[300:], steps=2000, batch_size=64, learning_rate=0.01, until=0.5)
    assert history.held_out[-1] <= 0.5
    assert history.step[-1] < 2000


@pytest.mark.parametrize("shape", [(6,), (1, 8, 8)])
def test_what_was_stored_scores_alike(shape):
    x = rows(columns=int(np.prod(shape))).reshape(-1, *shape)
    detector = AutoencoderDetector(steps=30, random_state=0).fit(x)
    state = detector.state()
    assert all(array.dtype.kind in "fi" for array in state.values())
    again = AutoencoderDetector(steps=30, random_state=0).restore(state)
    assert (again.score_samples(x) == detector.score_samples(x)).all()
    assert (again.predict(x) == detector.predict(x)).all()
    assert again.reconstruct(x).shape == x.shape


def test_copies_are_in_the_units_of_the_input():
    x = 1000 + 50 * rows()
    detector = AutoencoderDetector(steps=400, random_state=0).fit(x)
    assert np.abs(detector.reconstruct(x) - x).mean() < 0.3 * x.std()


def test_one_huge_column_does_not_own_the_score():
    x = rows(300)
    detector = AutoencoderDetector(steps=300, random_state=0).fit(x)
    one, all_columns = x[:50].copy(), x[:50] + 30
    one[:, 0] = 1e12
    one_score, all_score, own = (-detector.score_samples(rows).mean() for rows in (one, all_columns, x))
    assert own < 0.01 * one_score
    assert one_score < 3 * all_score, "a value 1e11 times further out, in one column of six"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20), st.floats(-1e9, 1e9))
@example([0.0, 2.2e-309], 1.0)
def test_scaling_goes_back_and_keeps_the_order(values, new):
    x = np.asarray(values)[:, None]
    scaling = RobustScaling.fit(x, (1,), 10.0)
    points = np.sort(np.append(x, new))[:, None]
    scaled = scaling.apply(points)
    assert np.isfinite(scaled).all()
    assert (np.diff(scaled[:, 0]) >= 0).all()
    size = np.abs(points).max() + 1
    assert scaling.undo(scaled) == pytest.approx(points, rel=1e-6, abs=1e-6 * size)


def test_outliers_hardly_move_the_scale_and_pixels_share_theirs():
    x = np.random.default_rng(0).normal(size=(1000, 1))
    dirty = x.copy()
    dirty[:3] = 1e6
    assert RobustScaling.fit(dirty, (1,), 10).scale == pytest.approx(RobustScaling.fit(x, (1,), 10).scale, rel=0.05)
    image = np.zeros((100, 16))
    image[:, 5] = np.arange(100)
    shared = RobustScaling.fit(image, (1, 4, 4), 10).scale
    assert (shared == shared[0]).all()
