"""Rows that could not exist: a network that only these break is not accused, and one that real rows break is found."""

from __future__ import annotations

import numpy as np
import pytest
from torch import Tensor, nn

import audit

COLUMNS = ["base", "bonus", "total", "age"]
RULE = {"constraints": ["total == base + bonus"], "integer": "auto", "immutable": ["age"]}


class Books(nn.Module):
    """Says 1 where a row's books do not add up: no row that could exist makes it say so."""

    def forward(self, x: Tensor) -> Tensor:
        gap = (x[:, 2] - x[:, 0] - x[:, 1]).abs()
        return 10 * (gap - 0.5)


class Threshold(nn.Module):
    """Says 1 where the total is above 20: a row that could exist crosses that."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 2] - 20.5


def audited(net: nn.Module, tmp_path, **options):
    rng = np.random.default_rng(0)
    x = np.zeros((80, 4), dtype=np.float32)
    x[:, :2] = rng.integers(5, 16, (80, 2))
    x[:, 2], x[:, 3] = x[:, 0] + x[:, 1], rng.integers(20, 60, 80)
    y = (x[:, 2] > 20).astype(np.int64) if isinstance(net, Threshold) else np.zeros(80, dtype=np.int64)
    data = audit.Dataset(x, y, columns=COLUMNS, classes=["no", "yes"])
    model = audit.Model(net, task="classification", output="binary_logit", device="cpu")
    robustness = {"eps": [3.0], "eps_unit": "input", **options}
    result = audit.run(
        model, data, config={"robustness": robustness}, checks=["robustness"], profile="quick", device="cpu", out=tmp_path
    )
    with np.load(tmp_path / (result["robustness"].artifact or "")) as stored:
        examples = {name: stored[name] for name in stored.files}
    return result, model, data, examples


@pytest.mark.slow
def test_only_rows_that_could_exist_accuse_a_network(tmp_path):
    free, *_ = audited(Books(), tmp_path / "free")
    assert free["robustness"].metric("robustness.linf.accuracy").value == 0
    kept, *_ = audited(Books(), tmp_path / "kept", **RULE)
    assert kept["robustness"].metric("robustness.linf.accuracy").value == 1


@pytest.mark.slow
def test_rows_that_could_exist_are_found_and_keep_the_rules(tmp_path):
    result, model, data, examples = audited(Threshold(), tmp_path, **RULE)
    x = data.test.x
    # base and bonus move by up to 3 within their ranges, but the total by no more than 3 either.
    near = np.abs(x[:, 2] - 20.5) < 3
    accuracy = result["robustness"].metric("robustness.linf.accuracy").value
    assert accuracy is not None
    assert 0 < near.mean() < 1
    assert accuracy == pytest.approx(1 - near.mean(), abs=0.03)
    clean, changed = x[np.searchsorted(data.test.ids, examples["ids"])], examples["x_adv"]
    assert (changed[:, 2] == changed[:, 0] + changed[:, 1]).all()
    assert (changed == np.round(changed)).all()
    assert (changed[:, 3] == clean[:, 3]).all()
    assert len(changed) == int(near.sum())
    replayed = audit.replay(tmp_path, model, data)
    assert not replayed.failed


@pytest.mark.slow
def test_a_radius_below_one_whole_step_is_never_a_pass(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 9, (60, 3)).astype(np.float32)
    data = audit.Dataset(x, (x[:, 0] > 4).astype(np.int64), columns=["a", "b", "c"], classes=["no", "yes"])

    class Above(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, 0] - 4.5

    model = audit.Model(Above(), task="classification", output="binary_logit", device="cpu")
    result = audit.run(
        model,
        data,
        config={"robustness": {"integer": "auto"}, "policy": {"limit": [{"metric": "robustness.linf.accuracy", "min": 0.5}]}},
        checks=["robustness"],
        profile="quick",
        device="cpu",
    )
    assert result["robustness"].status == "incomplete"
    assert "less than one step" in (result["robustness"].reason or "")
    assert result.verdict == "incomplete"
