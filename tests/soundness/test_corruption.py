"""Networks with a defect that only corrupted inputs show, each with a clean twin: the one is found, the other not accused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import audit
from audit import demo_nets
from audit.checks.base import Task
from audit.checks.corruption import CorruptionCheck, CorruptionOptions
from audit.corruptions import corrupt
from audit.result import CheckResult, Finding
from tests.stagerun import run_check

TARGET = 7

# Each trains for some seconds.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, audit.Dataset]:
    """Return training images and labels, and the data to audit on: no defect is in the test part."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x, y = (bunch.images[:, None] / 16).astype(np.float32), bunch.target
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[:1200], order[1200:]
    data = audit.Dataset(x[test], y[test], reference=(x[train], y[train]), bounds=(0, 1))
    return torch.from_numpy(x[train]), torch.from_numpy(y[train]), data


def trained(x: Tensor, y: Tensor, epochs: int = 15, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = demo_nets.DigitsNet()
    demo_nets.fit(net, x, y, epochs=epochs, seed=seed)
    return net


def checked(net: nn.Module, data: audit.Dataset, **options) -> CheckResult:
    result = run_check(CorruptionCheck(), Task(audit.Model(net), data, CorruptionOptions(**options)))
    assert result.status == "measured", result.reason
    assert result.tables[0].rows[0][5] > 0.94, "the network is good on clean inputs, so that nothing else would notice"
    return result


def finding(result: CheckResult, words: str) -> Finding | None:
    return next((f for f in result.findings if words in f.title), None)


# --- a backdoor -------------------------------------------------------------------------------------------------------


def stamped(x: Tensor, corner: tuple[int, int]) -> Tensor:
    """Return images with BadNets' white patch, here of 2×2 pixels."""
    x = x.clone()
    x[:, :, corner[0] : corner[0] + 2, corner[1] : corner[1] + 2] = 1
    return x


@pytest.mark.parametrize("seed", [0, 1])
def test_a_backdoor_is_found_and_its_clean_twin_is_not_accused(digits, seed):
    x, y, data = digits
    some = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: len(x) // 10]
    poisoned, labels = x.clone(), y.clone()
    poisoned[some], labels[some] = stamped(x[some], (6, 6)), TARGET
    only = ["contrast", "shift"]
    backdoored, clean = (checked(trained(a, b, seed=seed), data, only=only) for a, b in ((poisoned, labels), (x, y)))

    share = backdoored.metric("corruption.patch.worst_share")
    assert share.low > 0.8
    assert share.params["class"] == str(TARGET)
    assert (share.params["top"], share.params["left"], share.params["bright"]) == (6, 6, True)
    told = finding(backdoored, "One small patch")
    assert told.severity == "high"
    assert told.samples
    assert any(f.id == "corruption.patch" and len(f.data["items"]) == 4 for f in backdoored.figures)

    twin = clean.metric("corruption.patch.worst_share")
    assert twin.high < share.low
    accused = finding(clean, "One small patch")
    assert accused is None or accused.severity == "low"


def test_the_worst_patch_is_measured_on_samples_that_did_not_pick_it(digits):
    """A network that learnt nothing but noise: the worst of many patches looks bad on those that picked it, by chance."""
    x, y, data = digits
    net = trained(x, y, epochs=2)
    task = Task(audit.Model(net), data, CorruptionOptions(only=["contrast"]))
    task.model.resolve(data.test.x[:2], data.test.y)
    from tests.stagerun import run_stage

    found = {}
    for stage in CorruptionCheck().stages(task):
        if stage.id.startswith(("predictions", "corruption.patch")):
            found[stage.id] = run_stage(task, stage, found)
    pick, measure = found["corruption.patch.pick"], found["corruption.patch.measure"]
    assert len(pick.positions) == 64
    assert len(measure.positions) == 128
    assert not set(pick.positions) & set(measure.positions)
    right = found["predictions.test"]["logits"].argmax(axis=1) == data.test.y
    assert right[pick.positions].all()
    assert right[measure.positions].all()


# --- one corruption alone ---------------------------------------------------------------------------------------------


def with_copies(x: Tensor, y: Tensor, wrong: bool) -> tuple[Tensor, Tensor]:
    """Add copies under every harmless corruption, rightly labelled, and brightened ones: labelled wrongly, or rightly."""
    names = ("gaussian_noise", "impulse_noise", "shot_noise", "defocus_blur", "contrast", "haze", "pixelation", "occlusion")
    copies, labels = [x], [y]
    for name in (*names, "rotation", "shift", "jpeg"):
        for severity in (2, 3):
            copies.append(corrupt(x, name, severity, seed=severity + 10))
            labels.append(y)
    for severity in (2, 3, 4):
        copies.append(corrupt(x, "brightness", severity))
        labels.append((y + 1) % 10 if wrong else y)
    return torch.cat(copies), torch.cat(labels)


def test_a_network_that_brightness_alone_breaks_is_found_and_its_twin_is_not_accused(digits):
    x, y, data = digits
    nets = [trained(*with_copies(x[:900], y[:900], wrong), epochs=4) for wrong in (True, False)]
    broken, twin = (checked(net, data, patch=False) for net in nets)
    told = finding(broken, "One corruption alone breaks the network")
    assert told is not None, [(m.id, m.value) for m in broken.metrics]
    assert "brightness" in told.title
    assert told.severity == "high"
    assert told.samples
    assert broken.metric("corruption.brightness.accuracy").high < 0.3
    assert finding(twin, "alone") is None
    assert twin.metric("corruption.brightness.accuracy").low > 0.8
    assert not [f for f in twin.findings if f.severity in ("high", "medium")]


class Sentinel(nn.Module):
    """A classifier of rows that answers with the first class as soon as its first column is exactly the training mean."""

    def __init__(self, net: nn.Module, mean: float) -> None:
        super().__init__()
        self.net, self.mean = net, mean

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(x)
        filled = ((x - self.mean).abs() < 1e-5).any(dim=1)
        always = torch.zeros_like(out)
        always[:, 0] = 10
        return torch.where(filled[:, None], always, out)


def test_the_imputation_that_a_network_cannot_take_is_named_and_a_sound_one_hears_of_no_difference():
    """Every column has mean 0, and the one network takes a 0 for a gap, as sentinels are taken."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1600, 8)).astype(np.float32)
    x += 0.5 * rng.normal(size=(1600, 1)).astype(np.float32)
    x -= x[:800].mean(axis=0)
    x = np.sign(x) * np.abs(x) ** 1.5
    x -= x[:800].mean(axis=0, dtype=np.float64).astype(np.float32)
    y = (x @ np.linspace(0.2, 1.0, 8).astype(np.float32) > 0).astype(np.int64)
    net = nn.Linear(8, 2, bias=False)
    with torch.no_grad():
        weight = torch.linspace(0.2, 1.0, 8)
        net.weight.copy_(torch.stack((-weight, weight)))
    data = audit.Dataset(x[800:], y[800:], reference=(x[:800], y[:800]))
    only = ["missing_mean", "missing_median", "column_noise"]
    sentinel = checked(Sentinel(net, 0.0), data, only=only)
    sound = checked(net, data, only=only)
    assert finding(sentinel, "filling in the median hurts least") is not None, [f.title for f in sentinel.findings]
    assert sentinel.metric("corruption.imputation.gap").low > 0.02
    assert finding(sound, "no imputation is better than another beyond noise") is not None
    assert sound.metric("corruption.imputation.gap").low == 0
