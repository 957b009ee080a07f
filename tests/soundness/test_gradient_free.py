"""Networks that hide their gradients, not their weakness: Square breaks what gradients cannot; the twins are not accused."""

from __future__ import annotations

import numpy as np
import pytest

from tests.soundness.test_gradients import Digits, WrongBackward, quantised, robustness, same, thermometer, trained

__all__ = ["trained"]  # the fixture


@pytest.mark.slow
@pytest.mark.parametrize("before", [quantised, thermometer, WrongBackward.apply], ids=["rounded", "cut", "shifted"])
def test_what_gradients_miss_a_gradient_free_attack_breaks(trained, before):
    net, data = trained
    check = robustness(Digits(net, before, same), data, settings=["robustness.queries=300"])["robustness"]
    evidence = {e.id: e for e in check.evidence}["robustness.linf.gradient_free"]
    assert not evidence.ok, evidence.detail
    assert check.status == "incomplete"
    assert evidence.id in (check.reason or "")


@pytest.mark.slow
def test_its_examples_count(trained):
    """Where PGD is blind, the robust accuracy falls by what Square finds on the samples that it looked at."""
    net, data = trained
    masked = robustness(Digits(net, thermometer, same), data, settings=["robustness.queries=300"])["robustness"]
    broken = masked.outcomes.bits("robustness.linf.broken")
    assert np.mean(broken) > 0.2
    assert masked.metric("robustness.linf.accuracy").value == pytest.approx(1 - np.mean(broken))
    assert "square" in masked.metric("robustness.linf.accuracy").params["attacks"]


@pytest.mark.slow
@pytest.mark.parametrize("eps", [0.05, 0.1, 0.15])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_clean_twins_are_not_accused(trained, eps: float, norm: str):
    net, data = trained
    radius = eps if norm == "linf" else 5 * eps
    settings = ["robustness.queries=300"]
    check = robustness(Digits(net, same, same), data, settings=settings, eps=radius, norm=norm)["robustness"]
    evidence = {e.id: e for e in check.evidence}
    found = evidence.get(f"robustness.{norm}.gradient_free")
    assert found is None or found.ok, found.detail
    assert check.status == "measured", check.reason
