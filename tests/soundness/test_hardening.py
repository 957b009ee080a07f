"""Planted defects of hardening, and twins: hidden gradients, leaks, rows learnt by heart, vanishing gradients, dead units."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import audit
from audit import demo_nets, workflows
from audit.hardening import Ascent, Method, harden
from audit.hardening.health import FADED, faded, findings
from tests import zoo
from tests.hardening.nets import bare, digits, trained

pytestmark = pytest.mark.slow

TRAINING = {"epochs": 8, "attack_steps": 4, "lr": 0.01, "batch_size": 32, "validation_steps": 10}
AUDIT = {"sections": {"run": {"profile": "quick"}}}


def hardened(network: nn.Module, data: audit.Dataset, method: str | type[Method] = "pgd", **training):
    return workflows.harden(
        audit.Model(network, bounds=(0, 1)), data, method=method, eps=0.1, training={**TRAINING, **training}, **AUDIT
    ).result


def failed(result: audit.Result) -> list[str]:
    return [evidence.id for evidence in result["hardening"].evidence if not evidence.ok]


# --- hidden gradients -------------------------------------------------------------------------------------------------


class Maskable(nn.Module):
    """A network whose weights hold two switches that hide its gradients and make no answer more stable."""

    gain: Tensor
    levels: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = trained()
        self.register_buffer("gain", torch.ones(()))
        self.register_buffer("levels", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.levels > 0:
            x = (x * self.levels).round() / self.levels  # has a gradient of zero everywhere
        return self.layers(x) * self.gain


class OnlyMasks(Method):
    """Trains on clean inputs, and throws a switch."""

    name = "only_masks"
    switch = ("levels", 16.0)

    def maximise(self, network, x: Tensor, y: Tensor, ascend: Ascent) -> Tensor:
        return x

    def loss(self, network, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        name, value = self.switch
        getattr(network.module, name).fill_(value)
        return functional.cross_entropy(network.logits(x), y) + 0 * sum(p.sum() for p in network.module.parameters())


class Sharpens(OnlyMasks):
    """The same with logits times 10,000: cross-entropy then underflows to a gradient of zero."""

    name = "sharpens"
    switch = ("gain", 1e4)


def test_hardening_that_only_hides_gradients_is_never_a_success():
    result = hardened(Maskable(), digits(), OnlyMasks, epochs=6)
    check = result["hardening"]
    assert check.metric("hardening.linf.accuracy_gain").value < 0.1, "what masks hide is found without gradients"
    assert check.status == "incomplete"
    assert "hardening.sound_after" in failed(result)
    assert (result.verdict, result.exit_code) == ("incomplete", 4)
    assert any(f.severity == "high" and "only look robust" in f.title for f in check.findings)
    assert "cannot be relied on" in check.answer


def test_large_logits_do_not_look_like_hardening():
    result = hardened(Maskable(), digits(), Sharpens, epochs=2)
    assert result["hardening"].metric("hardening.linf.accuracy_gain").value < 0.05
    assert result.verdict in ("incomplete", "fail")


@pytest.mark.parametrize("seed", range(2))
def test_its_genuine_twin_is_a_success(seed):
    network = Maskable()
    network.layers = trained(seed)
    result = hardened(network, digits(), epochs=12)
    assert failed(result) == []
    assert result["hardening"].status == "measured"
    assert result["hardening"].metric("hardening.linf.accuracy_gain").low > 0.1
    assert (result.verdict, result.exit_code) == ("unjudged", 0), "that it helped is no verdict on whether it may be used"
    assert not [f for f in result["hardening"].findings if f.severity in ("high", "medium")]


# --- samples that were trained on, or learnt by heart -----------------------------------------------------------------


def test_test_samples_in_the_training_data_are_found():
    clean = digits()
    x = np.concatenate((clean.reference.x, clean.test.x))
    y = np.concatenate((clean.reference.y, clean.test.y))
    leaked = audit.Dataset(clean.test.x, clean.test.y, reference=(x, y), bounds=(0.0, 1.0))
    result = hardened(trained(), leaked, epochs=2)
    assert result["hardening"].status == "incomplete"
    assert "hardening.test_unseen" in failed(result)
    assert result.verdict == "incomplete"


def test_an_epoch_picked_on_samples_that_were_learnt_by_heart_is_found():
    """Copies put the validation samples into the training samples: what is picked there says nothing of new ones."""
    clean = digits()
    few = np.tile(np.arange(60), 10)
    copied = audit.Dataset(
        clean.test.x, clean.test.y, reference=(clean.reference.x[few], clean.reference.y[few]), bounds=(0.0, 1.0)
    )
    result = hardened(bare(), copied)
    assert "hardening.validation_borne_out" in failed(result)
    assert result["hardening"].status == "incomplete"


# --- training health --------------------------------------------------------------------------------------------------


def deep(activation: type[nn.Module], depth: int = 10) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten()]
    for width in [64] + [32] * (depth - 1):
        linear = nn.Linear(width, 32)
        if activation is nn.ReLU:
            nn.init.kaiming_normal_(linear.weight)
            nn.init.zeros_(linear.bias)
        layers += [linear, activation()]
    return nn.Sequential(*layers, nn.Linear(32, 10))


def titles(network: nn.Module, data: audit.Dataset | None = None, **options) -> list[str]:
    settings = {"eps": 0.02, "epochs": 3, "attack_steps": 2, "validation_steps": 3, "batch_size": 64, **options}
    _, history = harden(network, data or digits(), method="pgd", **settings)
    return [finding.title for finding in findings(history)]


def test_vanishing_gradients_are_found():
    assert "Gradients vanish towards the input" in titles(deep(nn.Sigmoid))


def test_their_healthy_twin_is_not_accused():
    assert titles(deep(nn.ReLU)) == []


@pytest.mark.parametrize("network", [bare, trained])
def test_nor_are_small_networks(network):
    assert titles(network()) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lstm", "transformer"])
def test_nor_are_networks_of_other_kinds(kind):
    network, data = getattr(zoo, kind)()
    _, history = harden(network, data, method="pgd", eps=0.02, epochs=2, attack_steps=2, validation_steps=3)
    assert findings(history) == []
    assert min(faded(epoch) for epoch in history.epochs[1:]) > 100 * FADED


def test_dead_units_are_found():
    network = bare()
    with torch.no_grad():
        network[1].bias[:45] = -100.0  # of 48
    (title,) = titles(network)
    assert title == "Many units are dead in 1 of 1 ReLUs"


def test_exploding_gradients_are_found():
    class Explodes(Method):
        name = "explodes"
        calls = 0

        def maximise(self, network, x, y, ascend):
            return x

        def loss(self, network, x, x_adv, y):
            type(self).calls += 1
            return functional.cross_entropy(network.logits(x), y) * (1e5 if self.calls == 50 else 1.0)

    _, history = harden(trained(), digits(), method=Explodes, eps=0.02, epochs=6, validation_steps=3, batch_size=64)
    assert [f.title for f in findings(history)] == ["Gradients exploded in 1 step"]


# --- the same answer to everything ------------------------------------------------------------------------------------


def rare_class(share: float, apart: float, seed: int = 0) -> audit.Dataset:
    """Return images of two classes, the second one rare, whose middles differ by `apart`."""
    generator = np.random.default_rng(seed)
    y = (generator.random(1600) < share).astype(np.int64)
    x = generator.normal(0.5, 0.08, (1600, 1, 8, 8))
    x[y == 1, :, 2:6, 2:6] += apart
    x = x.clip(0, 1).astype(np.float32)
    return audit.Dataset(x[1100:], y[1100:], reference=(x[:1100], y[:1100]), bounds=(0.0, 1.0))


def fitted(data: audit.Dataset) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2))
    demo_nets.fit(network, torch.from_numpy(data.reference.x), torch.from_numpy(data.reference.y), epochs=80)
    return network.eval()


@pytest.mark.parametrize("method", ["pgd", "trades"])
def test_hardening_that_collapses_to_one_class_is_never_a_success(method):
    """Nothing breaks a constant answer: its robust accuracy is the share of the most frequent class."""
    data = rare_class(0.12, apart=0.12)
    result = hardened(fitted(data), data, method)
    gain = result["hardening"].metric("hardening.linf.accuracy_gain")
    assert gain.low > 0.5, "the defect is not there"
    assert "hardening.tells_classes_apart" in failed(result)
    assert result.verdict == "incomplete"
    assert any(f.severity == "high" and "hardly tells classes apart" in f.title for f in result["hardening"].findings)


def test_its_twin_that_tells_a_rare_class_apart_is_not_accused():
    data = rare_class(0.12, apart=0.45)
    result = hardened(fitted(data), data)
    assert failed(result) == []
    assert result["hardening"].status == "measured"
