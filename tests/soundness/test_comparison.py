"""A comparison finds the slightly worse twin, leaves the equal one in peace, and sees no change where there is none."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

import audit
from audit.compare import compare, diff
from tests.twins import World, accuracy, audited, disagreeing

N = 2000


def between(old, new):
    return compare(old, new, source="old.json", sha256="")


def judged(seed, lost, gained):
    """Return what the comparison says of a twin that loses and gains so large shares of 2,000 samples, 5 % together."""
    first, second = disagreeing(N, lost, gained, np.random.default_rng(seed))
    return between(accuracy(first), accuracy(second, model="b")).change("performance.accuracy").outcome


def at_most(rate, draws):
    """Return how many of `draws` a method that errs at `rate` stays below, within three Monte-Carlo standard errors."""
    return draws * rate + 3 * math.sqrt(draws * rate * (1 - rate))


def test_a_slightly_worse_twin_is_found():
    assert sum(judged(seed, 0.035, 0.015) == "worse" for seed in range(100)) >= 90


def test_an_equally_good_twin_is_not_accused():
    assert sum(judged(seed, 0.025, 0.025) == "worse" for seed in range(100)) <= at_most(0.05, 100)


@pytest.mark.slow
def test_of_many_equally_good_twins_few_are_accused_and_as_few_praised():
    found = [judged(seed, 0.025, 0.025) for seed in range(2000)]
    for word in ("worse", "better"):
        assert found.count(word) <= at_most(0.025, 2000)


def test_two_points_exactly_are_enough_wherever_the_disagreement_lies():
    for disagreeing_on in range(40, 101, 10):  # of 2,000: from 2 % to 5 %
        lost = (disagreeing_on + 40) // 2
        gained = disagreeing_on - lost
        first, second = np.ones((2, N), dtype=bool)
        second[:lost] = False
        first[lost : lost + gained] = False
        found = between(accuracy(first), accuracy(second))
        assert found.change("performance.accuracy").change == pytest.approx(-0.02)
        assert found.verdict == "worse"


@pytest.mark.slow
def test_no_metric_of_a_whole_result_accuses_beyond_the_nominal_rate():
    """Other samples are the harder case: on the same ones intervals that are taken as independent are too wide."""
    pairs, rng, accused = 60, np.random.default_rng(1), 0
    for _ in range(pairs):
        old, new = (audited(World.drawn(200, rng), rng, model=name, samples=name) for name in "ab")
        accused += between(old, new).verdict == "worse"
    assert accused <= at_most(0.05, pairs)


def test_a_whole_result_of_a_much_worse_network_is_accused_by_many_metrics():
    rng = np.random.default_rng(2)
    world = World.drawn(2000, rng)
    found = between(audited(world, rng), audited(world, rng, skill=-0.5, model="b"))
    worse = {change.metric for change in found.changes if change.outcome == "worse"}
    assert found.verdict == "worse"
    assert {"performance.accuracy", "performance.balanced_accuracy", "robustness.linf.accuracy"} <= worse
    assert not any(change.outcome == "better" for change in found.changes)


@pytest.mark.slow
def test_two_real_audits_of_one_network_differ_in_nothing_and_a_damaged_one_is_worse(digits_net):
    data = audit.Dataset.load(digits_net / "test.npz", reference=digits_net / "train.npz").sample(200, 0)

    def run(network, **options):
        model = audit.Model(network, task="classification", classes=10, bounds=(0.0, 1.0))
        return audit.run(model, data, checks=["performance", "robustness"], profile="quick", **options)

    network = audit.Model.load(digits_net / "model.pt", arch="audit.demo_nets:DigitsNet").module
    first, again = run(network, batch_size=64), run(network, batch_size=200)
    found = diff(first, again)
    assert found.verdict == "unchanged"
    assert found.paired
    assert {(change.change, change.outcome) for change in found.changes} == {(0.0, "unchanged")}
    assert len(found.changes) >= 10

    damaged = copy.deepcopy(network)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in damaged.parameters():
            weight.add_(0.5 * weight.std() * torch.randn_like(weight) if weight.dim() > 1 else 0.0)
    later = run(damaged)
    worse, better = diff(first, later), diff(later, first)
    assert worse.change("performance.accuracy").method.startswith("paired")
    assert worse.verdict == "worse"
    assert better.change("performance.accuracy").outcome == "better"
