"""Certificates beside answers known from elsewhere: exact minima by enumeration, verifiers' outcomes, published figures."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

import audit
from audit.attacks.geometry import ThreatModel
from audit.certificates import Network, bounds_of, certify
from audit.certificates.certify import margins
from audit.certificates.optimise import tighten
from audit.evaluations.base import Job, Known
from audit.evaluations.exhaustive import Branching, Reader
from tests.realdata import cnn_a, mnist, shared


def _exact(model: nn.Sequential, x: np.ndarray, c: np.ndarray, eps: float) -> float:
    """Return the minimum of c · output over the box of radius eps in [0, 1]: a linear program for each pattern of ReLUs."""
    (w1, b1), (w2, b2), (w3, b3) = (
        (layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy())
        for layer in model
        if isinstance(layer, nn.Linear)
    )
    box = list(zip(np.maximum(x - eps, 0), np.minimum(x + eps, 1), strict=True))
    best = np.inf
    for first in itertools.product((0, 1), repeat=len(b1)):
        d1 = np.array(first)
        rows1, side1 = np.where(d1[:, None], -w1, w1), np.where(d1, b1, -b1)
        a2, k2 = w2 @ (d1[:, None] * w1), w2 @ (d1 * b1) + b2
        if linprog(np.zeros(len(x)), A_ub=rows1, b_ub=side1, bounds=box).status != 0:
            continue
        for second in itertools.product((0, 1), repeat=len(b2)):
            d2 = np.array(second)
            a3, k3 = w3 @ (d2[:, None] * a2), w3 @ (d2 * k2) + b3
            rows = np.vstack((rows1, np.where(d2[:, None], -a2, a2)))
            found = linprog(c @ a3, A_ub=rows, b_ub=np.concatenate((side1, np.where(d2, k2, -k2))), bounds=box)
            if found.status == 0:
                best = min(best, found.fun + c @ k3)
    return float(best)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("eps", [0.05, 0.2])
def test_bounds_are_never_tighter_than_the_exact_minimum(seed: int, eps: float) -> None:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3))
    model = audit.Model(net, output="logits", bounds=(0, 1), device="cpu")
    x = torch.rand(1, 3)
    y = model.predict(x)
    threat = ThreatModel("linf", eps, np.array(0.0), np.array(1.0))
    exact = [_exact(net, x[0].double().numpy(), np.eye(3)[y[0]] - np.eye(3)[j], eps) for j in range(3)]
    found = [
        certify(model, x, y, threat, method=m, alpha_steps=a).lower[0] for m, a in (("ibp", 0), ("crown", 0), ("crown", 20))
    ]
    for bound in found:
        for j in set(range(3)) - {int(y[0])}:
            # The slack is that of float32: the bound is about the network's own arithmetic, the program about exact numbers.
            assert float(bound[j]) <= exact[j] + 2e-6
    assert bool((found[1] >= found[0]).all())
    assert bool((found[2] >= found[1]).all())
    root = bounds_of(Network.of(model, x), x, threat)
    tighten(root, 10)
    with torch.no_grad():
        tight = margins(root, y)[0]
    for j in set(range(3)) - {int(y[0])}:
        assert float(found[1][j]) - 1e-9 <= float(tight[j]) <= exact[j] + 2e-6
    worst = min(exact[j] for j in range(3) if j != int(y[0]))
    assert float(found[2][torch.arange(3) != y[0]].min()) >= worst - 0.6 * (1 + abs(worst))


def _accuracy(model: audit.Model, x: np.ndarray, y: np.ndarray, eps: float, **options: object) -> tuple[float, Tensor]:
    labels = torch.tensor(y)
    threat = ThreatModel("linf", eps, np.array(0.0), np.array(1.0))
    certified = certify(model, torch.tensor(x), labels, threat, **options).certified  # type: ignore[arg-type]
    assert not bool((certified & (model.predict(x) != labels)).any())
    return float(certified.float().mean()), certified


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnistfc_256x2", "mnistfc_256x4"])
def test_outcomes_on_which_verifiers_agreed(name: str) -> None:
    known = np.load(shared("models/mnistfc_known_outcomes.npz"))
    mine = known["network"] == f"{name}.onnx"
    assert mine.any()
    model = audit.Model.load(shared(f"models/{name}.onnx"), output="logits", bounds=(0, 1), device="cpu")
    held = 0
    for lowest, highest, label, outcome in zip(*(known[key][mine] for key in ("low", "high", "label", "outcome")), strict=True):
        low, high = (np.asarray(side, dtype=np.float64).reshape(1, 28, 28) for side in (lowest, highest))
        middle = torch.tensor(((low + high) / 2)[None], dtype=torch.float32)
        threat = ThreatModel("linf", float((high - low).max()), low, high)
        certificate = certify(model, middle, torch.tensor([int(label)]), threat, network=None, alpha_steps=10)
        if str(outcome) == "violated":
            assert not bool(certificate.certified[0])
        held += bool(certificate.certified[0])
    assert held > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnistfc_256x2", "mnistfc_256x4"])
def test_branching_agrees_with_the_outcomes_on_which_verifiers_agreed(name: str) -> None:
    known = np.load(shared("models/mnistfc_known_outcomes.npz"))
    model = audit.Model.load(shared(f"models/{name}.onnx"), output="logits", bounds=(0, 1), device="cpu")
    read, broken, certified, violated = Reader(), 0, 0, 0
    for i in np.flatnonzero(known["network"] == f"{name}.onnx"):
        low, high = (torch.tensor(known[side][i]).view(1, 1, 28, 28) for side in ("low", "high"))
        eps = float(known["eps"][i])
        # The image is so far from one side of the box at least.
        x = (torch.where(low <= 0, high - eps, low + eps) * 255).round() / 255
        threat = ThreatModel("linf", eps, np.zeros(1), np.ones(1))
        assert bool(threat.on(x).allows(x, low)[0])
        assert bool(threat.on(x).allows(x, high)[0])
        job = Job(model, x, torch.tensor([int(known["label"][i])]), torch.tensor([int(i)]), np.array([0]), threat)
        found = Branching(0, 32, read)(job, Known.of(np.array([True]), []))
        if str(known["outcome"][i]) == "violated":
            violated += 1
            assert not found["certified"][0]
            inside = torch.tensor(found["x_adv"]).clamp(low, high)
            broken += bool(found["broken"][0]) and bool(model.predict(inside) != job.y)
        else:
            assert not found["broken"][0]
            certified += bool(found["certified"][0])
    assert broken >= 0.5 * violated
    assert certified >= {"mnistfc_256x2": 10, "mnistfc_256x4": 5}[name]


@pytest.mark.slow
def test_fashion_network_trained_with_a_provable_bound() -> None:
    """Wong & Kolter report a bound of about 34.5 % on the error at 0.1; CROWN's is at least as tight as theirs."""
    import gzip

    images = gzip.decompress(shared("fashion_mnist/t10k-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress(shared("fashion_mnist/t10k-labels-idx1-ubyte.gz").read_bytes())
    x = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28)[:300].astype(np.float32) / 255
    y = np.frombuffer(labels, np.uint8, offset=8)[:300].astype(np.int64)
    net = cnn_a()
    net.load_state_dict(torch.load(shared("models/fashion_kw.pth"), weights_only=True, map_location="cpu"))
    accuracy, _ = _accuracy(audit.Model(net, output="logits", bounds=(0, 1), device="cpu"), x, y, 0.1)
    error = (0.655 * 0.345 / 300) ** 0.5
    assert 0.655 - 3 * error <= accuracy <= 0.7827 + 3 * error


@pytest.mark.slow
def test_no_certified_digit_is_broken() -> None:
    from audit.attacks import PGD

    x, y = (part[:48] for part in mnist())
    net = cnn_a()
    net.load_state_dict(torch.load(shared("models/mnist_cnn_a_adv.pth"), weights_only=True))
    model = audit.Model(net, output="logits", bounds=(0, 1), device="cpu")
    for eps in (0.05, 0.12):
        accuracy, certified = _accuracy(model, x, y, eps)
        broken = PGD("linf", eps, steps=40)(model, x, y).success
        assert not bool((certified & broken).any())
        assert accuracy > 0.3


def test_a_network_is_read_once_and_used_again() -> None:
    torch.manual_seed(0)
    model = audit.Model(nn.Sequential(nn.Linear(4, 3)), output="logits", bounds=(0, 1), device="cpu")
    network = Network.of(model, torch.rand(2, 4))
    assert [node.shape for node in network.nodes] == [(4,), (3,), (3,)]
