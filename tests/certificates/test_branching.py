"""Branch and bound against the exact minimum, which a mixed-integer program over all units gives on tiny networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from audit import Model
from audit.attacks.geometry import ThreatModel
from audit.certificates import Network, bounds_of
from audit.certificates.branching import branch
from audit.certificates.certify import margin_rows
from audit.evaluations.pieces import Pieces, Reach, climb


def tiny(seed: int, kind: str) -> tuple[Model, torch.Tensor]:
    torch.manual_seed(seed)
    body: list[nn.Module]
    if kind == "clamped":
        body = [nn.Linear(6, 8), nn.Hardtanh(-0.3, 0.4), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)]
        x = torch.rand(1, 6)
    elif kind == "linear":
        body = [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.LeakyReLU(0.1), nn.Linear(8, 3)]
        x = torch.rand(1, 6)
    else:
        body = [
            nn.Conv2d(1, 2, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(2, 2, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8, 3),
        ]
        x = torch.rand(1, 1, 5, 5)
    model = Model(nn.Sequential(*body), task="classification", bounds=(0, 1))
    model.resolve(x)
    return model, x


def exact(network: Network, pieces: Pieces, root, target: int, label: int) -> tuple[float, np.ndarray]:
    """Return the smallest margin of the label over the target, and where it lies, with every unit free."""
    numbers = [network.nodes[kink.node].inputs[0] for kink in pieces.kinks]
    inside = tuple(tuple(side[number][0].flatten().numpy() for side in (root.low, root.high)) for number in numbers)
    reach = Reach(root.inputs.low[0].flatten().numpy(), root.inputs.high[0].flatten().numpy(), inside)
    start = root.inputs.x[0].flatten().numpy()
    found = climb(pieces, reach, start, target, label, free=10_000)
    assert found is not None
    logits = pieces.run(found)[2]
    return float(logits[label] - logits[target]), found


@pytest.mark.parametrize("kind", ["linear", pytest.param("convolution", marks=pytest.mark.slow), "clamped"])
def test_a_bound_is_never_above_the_exact_minimum_and_reaches_it_nearly(kind):
    settled = 0
    for seed in range(5):
        model, x = tiny(seed, kind)
        label = int(model.predict(x))
        threat = ThreatModel("linf", 0.3, np.zeros(1), np.ones(1))
        network = Network.of(model, x, dtype=torch.float64)
        root, pieces = bounds_of(network, x, threat), Pieces.of(network)
        rows, constant, _ = margin_rows(network, torch.tensor([label]))
        for target in {0, 1, 2} - {label}:
            least, _ = exact(network, pieces, root, target, label)
            most = 800 if least > 0 else 100  # what can be broken stays open
            found = branch(root, rows[0, target], float(constant[0, target]), most=most)
            assert found.certified <= (least > 0)
            assert found.lower <= least + 1e-6
            assert branch(root, rows[0, target], float(constant[0, target]), most=9).lower <= least + 1e-6
            if least > 0.01:
                settled += 1
                assert found.certified
    assert settled >= 2


@pytest.mark.parametrize("body", [[nn.Linear(4, 3)], [nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)]], ids=["affine", "tanh"])
def test_without_a_kink_there_is_one_part_and_crowns_bound(body):
    torch.manual_seed(0)
    model, x = Model(nn.Sequential(*body), task="classification", bounds=(0, 1)), torch.rand(1, 4)
    model.resolve(x)
    network = Network.of(model, x)
    root = bounds_of(network, x, ThreatModel("linf", 0.2, np.zeros(1), np.ones(1)))
    rows, constant, own = margin_rows(network, model.predict(x))
    crown, _ = root.lowest(rows)
    for target in (~own[0]).nonzero()[:, 0].tolist():
        for added in (-100.0, 100.0):
            found = branch(root, rows[0, target], float(constant[0, target]) + added, most=50)
            assert found.parts == 1
            assert found.certified == (added > 0)
            assert found.lower == pytest.approx(float(crown[0, target]) + added, abs=1e-9)


@pytest.mark.parametrize("norm", ["l2", "l1", "l0"])
def test_parts_bound_other_norms_and_are_never_above_what_a_point_gives(norm):
    model, x = tiny(2, "linear")
    label = int(model.predict(x))
    threat = ThreatModel(norm, {"l2": 0.4, "l1": 0.8, "l0": 2.0}[norm], np.zeros(1), np.ones(1))
    network = Network.of(model, x)
    root = bounds_of(network, x, threat)
    rows, constant, _ = margin_rows(network, torch.tensor([label]))
    region = threat.on(x).around(x)
    points = torch.cat([x, *(region.random(torch.arange(1), seed=0, purpose="test", draw=k) for k in range(300))])
    with torch.no_grad():
        logits = model.logits(points)
    crown, _ = root.lowest(rows, bisections=16)
    for target in {0, 1, 2} - {label}:
        row, added = rows[0, target], float(constant[0, target]) - float(crown[0, target]) - 1.0
        few, many = (branch(root, row, added, most=most).lower for most in (1, 60))
        assert few >= -1.0 - 1e-9
        assert many > few or few > 0
        assert many <= float((logits[:, label] - logits[:, target]).min()) + added + 1e-9


def test_the_probe_is_shown_inputs_of_the_box_and_ends_the_search():
    model, x = tiny(0, "linear")
    label = int(model.predict(x))
    threat = ThreatModel("linf", 0.9, np.zeros(1), np.ones(1))
    network = Network.of(model, x, dtype=torch.float64)
    root = bounds_of(network, x, threat)
    rows, constant, _ = margin_rows(network, torch.tensor([label]))
    shown = []

    def probe(points: torch.Tensor) -> bool:
        shown.append(points)
        return True

    target = (label + 1) % 3
    found = branch(root, rows[0, target] - 100.0, float(constant[0, target]) - 100.0, most=100, probe=probe)
    assert found.stopped
    assert not found.certified
    assert bool((shown[0] >= root.inputs.low).all() & (shown[0] <= root.inputs.high).all())


def test_linear_pieces_give_what_the_network_gives():
    for kind in ("linear", "convolution", "clamped"):
        model, x = tiny(3, kind)
        pieces = Pieces.of(Network.of(model, x, dtype=torch.float64))
        points = torch.rand(5, *x.shape[1:])
        ours = np.stack([pieces.run(p.double().flatten().numpy())[2] for p in points])
        assert np.allclose(ours, model.logits(points).detach().numpy(), atol=1e-5)


def test_a_region_keeps_its_pattern_and_its_best_point_beats_random_ones():
    model, x = tiny(1, "linear")
    network = Network.of(model, x, dtype=torch.float64)
    pieces = Pieces.of(network)
    root = bounds_of(network, x, ThreatModel("linf", 0.3, np.zeros(1), np.ones(1)))
    inside = tuple(
        tuple(side[network.nodes[k.node].inputs[0]][0].flatten().numpy() for side in (root.low, root.high))
        for k in pieces.kinks
    )
    reach = Reach(root.inputs.low[0].numpy(), root.inputs.high[0].numpy(), inside)
    start = x[0].double().numpy()
    best = climb(pieces, reach, start, 1, 0)
    assert best is not None
    before, after = pieces.run(start)[0], pieces.run(best)[0]
    assert all((((a > 0) == (b > 0)) | (np.abs(b) < 1e-6)).all() for a, b in zip(before, after, strict=True))

    def gain(point: np.ndarray) -> float:
        logits = pieces.run(point)[2]
        return float(logits[1] - logits[0])

    rng = np.random.default_rng(0)
    pattern = np.concatenate([z > 0 for z in before])
    same = [
        p
        for p in rng.uniform(reach.low, reach.high, (3000, len(start)))
        if (np.concatenate([z > 0 for z in pieces.run(p)[0]]) == pattern).all()
    ]
    assert same
    assert gain(best) >= max(map(gain, same)) - 1e-9
