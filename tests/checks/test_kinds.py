"""Recurrent, transformer and regression networks through every check: right where it makes sense, else why it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import audit
from audit.result import CheckResult, Result

CHECKS = ["performance", "robustness", "fairness"]
QUICK = ["robustness.steps=8", "robustness.restarts=1", "robustness.noise_draws=2", "fairness.min_labelled=5"]
SAMPLES = 200

pytestmark = pytest.mark.slow


def with_groups(data: audit.Dataset) -> audit.Dataset:
    """Return the same data with two groups that have to do with neither labels nor inputs."""
    group = np.where(np.random.default_rng(0).random(len(data)) < 0.5, "a", "b")
    assert data.reference is not None
    return audit.Dataset(
        data.test.x,
        data.test.y,
        columns=data.columns or None,
        sensitive={"group": group},
        reference=(data.reference.x, data.reference.y),
        bounds=data.bounds,
    )


def run(network: torch.nn.Module, data: audit.Dataset, **options: Any) -> Result:
    return audit.run(network, data, **{"checks": CHECKS, "settings": QUICK, "samples": SAMPLES, **options})


@pytest.fixture(scope="module", params=["lstm", "transformer"])
def classifier(request: pytest.FixtureRequest) -> tuple[torch.nn.Module, audit.Dataset, Result]:
    network, data = request.getfixturevalue(request.param)
    data = with_groups(data)
    return network, data, run(network, data)


@pytest.fixture(scope="module")
def regression(request: pytest.FixtureRequest) -> tuple[torch.nn.Module, audit.Dataset, Result]:
    network, data = request.getfixturevalue("regressor")
    data = with_groups(data)
    return network, data, run(network, data, samples=None)


def outputs(network: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(torch.from_numpy(x)).numpy()


def broken(check: CheckResult) -> list[str]:
    return [f"{evidence.id}: {evidence.detail}" for evidence in check.evidence if not evidence.ok]


# --- recurrent and transformer networks -------------------------------------------------------------------------------


def test_classifiers_are_measured_by_all(classifier) -> None:
    _, _, result = classifier
    assert {check.id: (check.status, broken(check)) for check in result.checks} == {name: ("measured", []) for name in CHECKS}


def test_their_accuracy_is_what_the_network_itself_gives(classifier) -> None:
    network, data, result = classifier
    samples = data.sample(SAMPLES, 0).test
    right = outputs(network, samples.x).argmax(axis=1) == samples.y
    assert result["performance"].metric("performance.accuracy").value == pytest.approx(right.mean())
    assert right.mean() > 0.8


def test_an_attack_breaks_some_of_what_was_right_and_more_at_a_larger_radius(classifier) -> None:
    network, data, result = classifier
    clean = result["performance"].metric("performance.accuracy").value
    (small, wide) = (
        run(network, data, checks=["robustness"], eps=eps)["robustness"].metric("robustness.linf.accuracy").value
        for eps in (0.02, 0.3)
    )
    standard = result["robustness"].metric("robustness.linf.accuracy").value
    assert wide < standard <= small <= clean
    assert wide < 0.1  # at 0.3 of the range of a pixel these networks, trained on nothing else, answer anything


def test_their_results_do_not_depend_on_the_batch(classifier) -> None:
    network, data, result = classifier
    other = run(network, data, batch_size=17)
    for check in result.checks:
        for metric in check.metrics:
            again = other[check.id].metric(metric.id)
            assert (again.value is None) == (metric.value is None)
            assert again.value == pytest.approx(metric.value, abs=1e-5)


def test_groups_that_mean_nothing_are_not_accused(classifier) -> None:
    _, _, result = classifier
    assert [finding.title for finding in result["fairness"].findings if finding.severity in ("high", "medium")] == []


def test_the_network_comes_back_as_it_was(classifier) -> None:
    network, data, _ = classifier
    assert not network.training
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    run(network, data, samples=50)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not network.training


# --- regression -------------------------------------------------------------------------------------------------------


def test_regression_is_measured_where_it_makes_sense(regression) -> None:
    _, _, result = regression
    assert result.model.task == "regression"
    assert result.model.classes is None
    assert (result["performance"].status, broken(result["performance"])) == ("measured", [])
    assert (result["robustness"].status, broken(result["robustness"])) == ("measured", [])
    assert result["fairness"].status == "not_applicable"
    assert "classification" in str(result["fairness"].reason)


def test_its_errors_are_what_the_network_itself_gives(regression) -> None:
    network, data, result = regression
    residual = outputs(network, data.test.x) - data.test.y
    assert result["performance"].metric("performance.mae").value == pytest.approx(np.abs(residual).mean(), rel=1e-5)
    r2 = 1 - (residual**2).sum() / ((data.test.y - data.test.y.mean()) ** 2).sum()
    assert result["performance"].metric("performance.r2").value == pytest.approx(r2, abs=1e-6)
    assert r2 > 0.2


def test_what_counts_as_broken_follows_the_tolerance_and_the_radius(regression) -> None:
    network, data, _ = regression

    def unmoved(**options: Any) -> float:
        settings = [*QUICK, f"robustness.tolerance={options.pop('tolerance')}"]
        check = run(network, data, samples=None, checks=["robustness"], settings=settings, **options)["robustness"]
        value = check.metric("robustness.linf.accuracy").value
        assert value is not None
        return value

    assert unmoved(tolerance=1e6) == 1.0
    loose, tight = unmoved(tolerance=40), unmoved(tolerance=4)
    assert tight < loose
    assert tight < 0.2  # a tenth of a standard deviation of each column moves the answer by more than 4


def test_an_attack_on_a_regression_network_reaches_what_its_slope_allows(regression) -> None:
    """To first order a point moves the output at most by its slopes times the room that radius and box leave."""
    network, data, _ = regression
    x = torch.from_numpy(data.test.x).requires_grad_()
    (slope,) = torch.autograd.grad(network(x).sum(), x)
    low, high = data.box()
    radius = 0.1 * data.scale()  # of a table, unless stated
    up, down = np.minimum(radius, high - data.test.x), np.minimum(radius, data.test.x - low)
    rise = np.maximum(slope.numpy() * up, -slope.numpy() * down).sum(axis=1)
    fall = np.maximum(-slope.numpy() * up, slope.numpy() * down).sum(axis=1)
    reach = np.maximum(rise, fall)
    tolerance = float(np.median(reach))
    settings = ["robustness.steps=20", "robustness.restarts=2", f"robustness.tolerance={tolerance}"]
    result = run(network, data, samples=None, checks=["robustness"], settings=settings)
    found = result["robustness"].metric("robustness.linf.attack_success").value
    assert found == pytest.approx((reach > tolerance).mean(), abs=0.05)


# --- corruptions, anomalies and explanations ---------------------------------------------------------------------------

PILLARS = ["corruption", "anomaly", "explanation"]


@pytest.fixture(scope="module", params=["lstm", "transformer", "regressor"])
def pillars(request: pytest.FixtureRequest) -> Result:
    network, data = request.getfixturevalue(request.param)
    return run(network, data, checks=PILLARS, settings=["explanation.samples=32"], samples=100, profile="quick")


def test_every_kind_is_corrupted_and_explained(pillars) -> None:
    assert [check.id for check in pillars.checks if check.status in ("measured", "incomplete")] == PILLARS
    # LIME's surrogate may be no better than chance on the few samples of this profile, which the check then says.
    assert [line for check in pillars.checks for line in broken(check) if not line.startswith("explanation.lime.")] == []


def test_corruption_costs_something_and_not_everything(pillars) -> None:
    name = "corruption.mean_kept" if pillars.model.task == "regression" else "corruption.mean_accuracy"
    mean = pillars["corruption"].metric(name)
    assert mean.low is not None
    assert mean.high is not None
    assert 0.3 < mean.low <= mean.value <= mean.high < 0.95


def test_anomalies_are_told_from_what_the_network_is_for(pillars) -> None:
    # without labelled ones, the check makes its own; shuffled rows and columns are no digits and no patients
    auroc = pillars["anomaly"].metric("anomaly.autoencoder.auroc")
    assert auroc.low is not None
    assert auroc.low > 0.7
    false_alarms = pillars["anomaly"].metric("anomaly.autoencoder.false_alarm_rate")
    assert false_alarms.value is not None
    assert false_alarms.value < 0.2


def test_explanations_find_what_matters_better_than_chance(pillars) -> None:
    found = {m.id: m for m in pillars["explanation"].metrics if m.id.endswith("integrated_gradients.faithfulness")}
    (faithful,) = found.values()
    assert faithful.low is not None
    assert faithful.low > 0
    gap = pillars["explanation"].metric("explanation.integrated_gradients.completeness_gap")
    assert gap.value is not None
    assert gap.value < 0.05  # the path integral of a smooth network is what its attributions add up to
