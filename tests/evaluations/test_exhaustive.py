"""The rounds of the exhaustive profile: on small networks they leave nothing open, and agree with the exact answer."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import nn

from audit import Model
from audit.attacks.geometry import ThreatModel
from audit.budget import until
from audit.certificates import Network, bounds_of
from audit.certificates.branching import branch
from audit.certificates.certify import margin_rows
from audit.errors import BudgetSpent
from audit.evaluations.base import ARRAYS, Found, Job, Known
from audit.evaluations.exhaustive import Branching, Reader, Walking, exhaustive
from audit.evaluations.pieces import Pieces, Reach, climb


def network(seed: int = 0) -> tuple[Model, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    model = Model(
        nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)),
        task="classification",
        bounds=(0, 1),
    )
    with torch.no_grad():
        for layer in model.module[::2]:
            layer.weight.mul_(3)
            layer.bias.sub_(layer.weight.sum(dim=1) / 4)  # so that more than one class is answered
    x = torch.rand(24, 8)
    model.resolve(x)
    return model, x, model.predict(x)


def breakable(model: Model, x: torch.Tensor, label: int, threat: ThreatModel) -> bool:
    """Tell whether any point of the box is of another class: a mixed-integer program over every unit."""
    read = Network.of(model, x, dtype=torch.float64)
    pieces, root = Pieces.of(read), bounds_of(read, x, threat)
    numbers = [read.nodes[kink.node].inputs[0] for kink in pieces.kinks]
    inside = tuple((root.low[k][0].flatten().numpy(), root.high[k][0].flatten().numpy()) for k in numbers)
    reach = Reach(root.inputs.low[0].numpy(), root.inputs.high[0].numpy(), inside)
    for target in {0, 1, 2} - {label}:
        found = climb(pieces, reach, x[0].double().numpy(), target, label, free=10_000)
        assert found is not None
        logits = pieces.run(found)[2]
        if logits[target] > logits[label]:
            return True
    return False


def run(model, x, y, threat, rounds):
    standing, done = np.ones(len(x), dtype=bool), []
    certified, broken = np.zeros(len(x), dtype=bool), np.zeros(len(x), dtype=bool)
    for one in rounds:
        known = Known.of(standing & ~certified, done)
        at = one.choose(known)
        if not len(at):
            break
        out = one(Job(model, x[at], y[at], torch.from_numpy(at), at, threat), known)
        done.append(Found(at, out))
        certified[at[out["certified"]]] = True
        broken[at[out["broken"]]] = True
        standing &= ~broken
    return broken, certified, done


@pytest.mark.parametrize(("eps", "n"), [(0.05, 6), pytest.param(0.12, 24, marks=pytest.mark.slow)])
def test_every_sample_of_a_small_network_is_broken_or_certified_as_it_should_be(eps, n):
    model, x, y = (part if i == 0 else part[:n] for i, part in enumerate(network()))
    threat = ThreatModel("linf", eps, np.zeros(1), np.ones(1))
    broken, certified, done = run(model, x, y, threat, exhaustive())
    assert not (broken & certified).any()
    assert (broken | certified).all()
    truth = [breakable(model, x[i : i + 1], int(y[i]), threat) for i in range(len(x))]
    assert broken.tolist() == truth
    assert 0 < broken.sum() < len(x) or eps < 0.1
    ball = threat.on(x)
    for rows in done:
        hit = rows.positions[rows["broken"]]
        examples = torch.from_numpy(rows["x_adv"][rows["broken"]])
        assert bool(ball.allows(x[hit], examples).all())
        assert bool((model.predict(examples) != y[hit]).all())


def test_branching_breaks_by_where_its_bounds_are_lowest_and_counts_its_passes():
    model, x, y = network(2)
    threat = ThreatModel("linf", 0.15, np.zeros(1), np.ones(1))
    forwards = model.forwards
    broken, certified, _ = run(model, x[:3], y[:3], threat, [Branching(0, 12, Reader())])
    assert broken.any()
    assert not (broken & certified).any()
    assert model.forwards - forwards > 20 * 80
    again, same, _ = run(model, x[:3].flip(0), y[:3].flip(0), threat, [Branching(0, 12, Reader())])
    assert certified.tolist() == same[::-1].tolist()
    assert broken.tolist() == again[::-1].tolist()


def test_branching_ends_with_the_budget():
    model, x, y = network()
    read, threat = Reader(), ThreatModel("linf", 0.12, np.zeros(1), np.ones(1))
    found = read.of(model, x)[0]
    assert found is not None
    root = bounds_of(found, x[:1], threat)
    rows, constant, own = margin_rows(found, y[:1])
    target = int((~own[0]).nonzero()[0])
    with until(time.monotonic() - 1), pytest.raises(BudgetSpent):
        branch(root, rows[0, target], float(constant[0, target]) - 100.0, most=8)


def test_walks_break_and_certify_nothing_and_rounds_take_no_samples():
    model, x, y = network(1)
    threat = ThreatModel("linf", 0.2, np.zeros(1), np.ones(1))
    walk = Walking(0, 32, 4, 6, Reader())
    broken, certified, _ = run(model, x, y, threat, [walk])
    assert not certified.any()
    assert broken.any()
    nothing = np.zeros(0, dtype=np.int64)
    for one in (walk, Branching(0, 8, Reader())):
        out = one(Job(model, x[:0], y[:0], torch.zeros(0, dtype=torch.long), nothing, threat), Known.of(np.ones(24, bool), []))
        assert {name: len(values) for name, values in out.items()} == dict.fromkeys((*ARRAYS, "certified"), 0)


def test_a_network_without_bounds_is_walked_by_gradients_alone():
    class Squared(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack((x.square().sum(dim=1), x.sum(dim=1)), dim=1)

    model, x = Model(Squared(), task="classification", bounds=(0, 1)), torch.rand(8, 4)
    model.resolve(x)
    y = model.predict(x)
    threat = ThreatModel("linf", 0.9, np.zeros(1), np.ones(1))
    read = Reader()
    broken, certified, _ = run(model, x, y, threat, [Branching(0, 8, read), Walking(0, 32, 2, 0, read)])
    assert not certified.any()
    assert broken.any()
    assert read.why
