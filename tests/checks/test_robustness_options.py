"""Rotations, smoothing, one change for all and one patch, as options of the robustness check."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats as distributions
from torch import Tensor, nn

import audit
from audit.checks import robustness
from audit.checks import robustness_fitted as fitted
from audit.checks import robustness_smoothing as smoothing
from audit.checks import robustness_spatial as spatial
from audit.checks.base import Answer, Merged, Task, predictions
from audit.checks.robustness import Robustness, RobustnessOptions
from audit.errors import UsageError
from audit.model.wrapper import Model
from audit.report.words import plain_words
from audit.result import Metric
from tests.checks.test_robustness import pictures
from tests.stagerun import run_stage

MOST = {"eps": [0.01], "curve": False, "certify": False, "steps": 4, "restarts": 1, "queries": 20, "noise_draws": 2}


def answered(net: nn.Module, data: audit.Dataset, *, save: bool = True, **options: Any) -> Answer:
    """Run the stages of these options alone, and return what they add to the check's answer."""
    model = Model(net, device="cpu", output="logits")
    task = Task(model, data, RobustnessOptions(**{**MOST, **options}), profile="quick", keep_samples=save)
    model.resolve(data.test.x[:2], data.test.y)
    threats, found, answer = robustness.threat_models(task), dict[str, Merged](), Answer(Robustness)
    extra = [*spatial.stages(task), *smoothing.stages(task), *fitted.stages(task, threats)]
    for stage in [predictions(task), *extra]:
        found[stage.id] = run_stage(task, stage, found)
    spatial.conclude(task, found, answer)
    smoothing.conclude(task, found, answer)
    fitted.conclude(task, found, answer, threats)
    return answer


def metric(answer: Answer, name: str) -> Metric:
    return next(m for m in answer.metrics if m.id == f"robustness.{name}")


class Middle(nn.Module):
    """Answers 1 while the middle of the picture is bright."""

    def forward(self, x: Tensor) -> Tensor:
        bright = 4 * x[:, 0, 4:6, 4:6].flatten(1).mean(dim=1)
        return torch.stack((torch.full_like(bright, 2.0), bright), dim=1)


def spots(n: int = 12) -> audit.Dataset:
    """Pictures whose middle is bright, and pictures without any light."""
    x = np.zeros((n, 1, 10, 10), dtype=np.float32)
    x[: n // 2, :, 4:6, 4:6] = 1.0
    return audit.Dataset(x, (x[:, 0, 4, 4] > 0.5).astype(np.int64), bounds=(0, 1))


def test_shifts_that_leave_the_middle_are_found_and_smaller_ones_are_not():
    far = answered(Middle(), spots(), spatial={"max_angle": 0, "max_shift": 0.2})
    seen = metric(far, "spatial.accuracy")
    assert (seen.value, seen.n, seen.kind) == (0.5, 12, "upper")
    assert seen.params == {"max_angle": 0.0, "max_shift": 0.2, "angles": 11, "shifts": 3}
    assert far.outcomes["robustness.spatial.broken"].tolist() == [True] * 6 + [False] * 6
    assert any(f.title == "Turning and shifting breaks 50% of the answers" for f in far.findings)
    shown = next(f for f in far.figures if f.id == "robustness.spatial.examples")
    assert "1 is taken for 0, turned by" in shown.data["items"][0]["caption"]
    near = answered(Middle(), spots(), save=False, spatial={"max_angle": 0, "max_shift": 0.04})
    assert metric(near, "spatial.accuracy").value == 1.0
    assert near.figures == near.findings == []
    assert answered(Middle(), spots(), save=False, spatial={"max_angle": 0, "max_shift": 0.2}).figures == []


def test_without_the_options_nothing_of_them_runs():
    net, data = pictures(20)
    settings = [f"robustness.{name}={str(value).lower()}" for name, value in MOST.items() if name != "eps"]
    check = audit.run(net, data, checks=["robustness"], settings=settings, eps=0.01, profile="quick", device="cpu")[
        "robustness"
    ]
    assert not [m.id for m in check.metrics if m.id.split(".")[1] in ("spatial", "smoothed", "universal", "patch")]
    assert any("rotations and shifts (robustness.spatial)" in line for line in check.not_tested)
    assert any("patches (robustness.patch)" in line for line in check.not_tested)


def plane(n: int = 40, distance: float = 0.6) -> tuple[nn.Module, audit.Dataset]:
    """Return a linear network, and pictures of which half lie `distance` from its boundary, and the others twice as far."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    net[1].weight.data = torch.stack((torch.zeros(16), torch.full((16,), 0.25)))
    net[1].bias.data = torch.tensor([2.0, 0.0])
    x = np.full((n, 1, 4, 4), 0.5, dtype=np.float32)
    x += np.where(np.arange(n) % 2, 1.0, 2.0)[:, None, None, None].astype(np.float32) * distance / 4
    return net, audit.Dataset(x, np.ones(n, dtype=np.int64), bounds=(-2, 3))


def test_a_linear_network_is_certified_to_its_distance():
    net, data = plane()
    for radius, share in ((0.3, 1.0), (0.8, 0.5), (1.3, 0.0)):
        check = answered(net, data, smoothing={"sigma": 0.5, "n0": 20, "n": 400, "radius": radius})
        certified = metric(check, "smoothed.certified_accuracy")
        assert (certified.value, certified.n, certified.kind) == (share, 40, "lower")
        assert certified.params["abstained"] == 0
        assert "not of the network itself" in certified.detail
    assert metric(check, "smoothed.accuracy").value == 1.0
    curve = next(f for f in check.figures if f.id == "robustness.smoothed.curve").data["series"][0]
    assert curve["y"] == sorted(curve["y"], reverse=True)
    assert all(share == 0 for radius, share in zip(curve["x"], curve["y"], strict=True) if radius > 1.2)


def test_what_it_abstains_on_counts_as_wrong_and_is_counted():
    net, data = plane(distance=0.0)
    check = answered(net, data, smoothing={"sigma": 0.5, "n0": 20, "n": 200, "samples": 10})
    seen = metric(check, "smoothed.accuracy")
    assert (seen.value, seen.n, seen.params["abstained"]) == (0.0, 10, 10)
    assert any("30 samples beyond the 10" in line for line in check.not_tested)


def test_its_interval_allows_for_alpha():
    low, high = smoothing.interval(40, 50, 0.1, 0.95)
    seen = distributions.beta.ppf([0.025, 0.975], [40, 41], [11, 10])
    assert low == pytest.approx((seen[0] - 0.1) / 0.9)
    assert high == pytest.approx(seen[1])
    assert smoothing.interval(0, 0, 0.1, 0.95)[0] in (None, 0.0)
    # Of 0.6 that hold, and 0.4 that are claimed falsely with probability 0.1, the lower end covers 0.6 nearly always.
    rng, missed, runs = np.random.default_rng(0), 0, 400
    for _ in range(runs):
        claims = int((rng.random(100) < np.where(rng.random(100) < 0.6, 1.0, 0.1)).sum())
        missed += smoothing.interval(claims, 100, 0.1, 0.95)[0] > 0.6
    assert missed / runs <= 0.025 + 3 * np.sqrt(0.025 * 0.975 / runs)


@pytest.mark.parametrize("reference", [False, True])
def test_one_change_for_all_is_fitted_on_other_samples(reference: bool):
    net, data = plane(60, distance=0.3)
    if reference:
        _, other = plane(80, distance=0.3)
        data = audit.Dataset(data.test.x, data.test.y, bounds=(-2, 3), reference=(other.test.x + 0.001, other.test.y))
    # L∞ 0.1 moves the output by 0.1 · 16 · 0.25 = 0.4: enough for 0.3, not for 0.6.
    check = answered(net, data, universal={"steps": 20}, eps=[0.1])
    seen = metric(check, "universal.accuracy")
    assert seen.n == 60 if reference else 15 < seen.n < 45
    assert seen.params["fitted_on"] == (80 if reference else 60 - seen.n)
    assert seen.value == pytest.approx(0.5, abs=0.0 if reference else 0.25)
    assert seen.params["eps"] == 0.1
    assert any(f.title.startswith("One change of all samples breaks") for f in check.findings)


def test_a_patch_that_covers_the_middle_breaks_what_needs_it():
    check = answered(Middle(), spots(40), patch={"share": 0.4, "place": "corner", "steps": 40})
    seen = metric(check, "patch.accuracy")
    # One patch is bright or dark: it breaks the pictures of one kind, and leaves those of the other.
    assert 0.2 < seen.value < 0.8
    assert any(f.title.startswith("One patch breaks") for f in check.findings)
    assert seen.params == {"share": 0.4, "place": "corner", "steps": 40, "fitted_on": 40 - seen.n}


TABLE = audit.Dataset(np.random.default_rng(0).random((20, 3)).astype(np.float32), np.zeros(20, np.int64))


@pytest.mark.parametrize(
    ("option", "norm", "table", "message"),
    [
        ("robustness.spatial=true", "linf", True, "turns and shifts pictures, and this data is a table"),
        ("robustness.smoothing=true", "linf", True, "columns of a table have units of their own"),
        ("robustness.patch=true", "linf", True, "for pictures"),
        ("robustness.universal=true", "l0", False, "for L∞ and L2"),
        ('robustness.attacks=["patch"]', "linf", False, "robustness.patch = true"),
        ('robustness.attacks=["universal"]', "linf", False, "robustness.universal = true"),
    ],
)
def test_what_does_not_fit_is_refused_in_plain_words(option: str, norm: str, table: bool, message: str):
    net, data = pictures(20)
    if table:
        net, data = nn.Linear(3, 2), TABLE
    with pytest.raises(UsageError, match=message):
        audit.run(net, data, checks=["robustness"], settings=[option], norm=norm, eps=1.0 if norm == "l0" else 0.1)


def test_figures_of_other_networks_say_so_in_words():
    assert "not of the network itself" in plain_words("robustness.smoothed.certified_accuracy")
    assert plain_words("robustness.spatial.accuracy") == "accuracy under rotations and shifts"
