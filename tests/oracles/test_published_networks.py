"""Networks that others trained and published: what audit measures on them equals the figures that are known."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import audit
from audit.attacks import Square, ThreatModel
from audit.attacks.constraints import Constraints
from audit.attacks.geometry import violations
from tests.realdata import cnn_a, mnist, shared

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
from dense_weights import convert, dense


def fashion_mnist() -> tuple[np.ndarray, np.ndarray]:
    images = gzip.decompress(shared("fashion_mnist/t10k-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress(shared("fashion_mnist/t10k-labels-idx1-ubyte.gz").read_bytes())
    x = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28).astype(np.float32) / 255
    return x, np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)


def mnist_2_20() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.ReLU(), nn.Linear(20, 10))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "arch", "data", "accuracy"),
    [
        ("mnist_cnn_a_adv.pth", cnn_a, mnist, 0.9633),
        ("mnist_2_20.pth", mnist_2_20, mnist, 0.8839),
        ("fashion_kw.pth", cnn_a, fashion_mnist, 1 - 0.2173),
    ],
)
def test_image_networks(file: str, arch: Callable[[], nn.Module], data, accuracy: float):
    model = audit.Model.load(shared(f"models/{file}"), arch=arch, bounds=(0, 1), device="cpu")
    x, y = data()
    result = audit.run(model, audit.Dataset(x, y), checks=["performance"], expect_accuracy=accuracy)
    found = result["performance"].metric("performance.accuracy")
    assert found.value == pytest.approx(accuracy, abs=5e-5)
    assert found.low < accuracy < found.high
    assert result["performance"].status == "measured"


@pytest.mark.parametrize(("number", "accuracy"), [(1, 0.8524), (2, 0.8470), (3, 0.8452), (4, 0.8486), (11, 0.8103)])
def test_adult_networks(number: int, accuracy: float, tmp_path: Path):
    widths = convert(shared(f"models/adult_mlp_{number}.npz"), tmp_path / "model.pt")
    table = shared("tables/adult_encoded_test.csv.gz")
    result = audit.run(
        tmp_path / "model.pt",
        str(table),
        arch=dense,
        arch_args={"widths": widths},
        target="income",
        sensitive=["sex", "race"],
        checks=["performance", "fairness"],
    )
    assert result["performance"].metric("performance.accuracy").value == pytest.approx(accuracy, abs=5e-5)
    assert result.model.output == "binary_logit"
    assert result["fairness"].metric("fairness.sex.demographic_parity_difference").low > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 4])
def test_square_attack_breaks_hardly_a_row_of_whole_numbers_that_the_adaptive_evaluation_leaves(number: int, tmp_path: Path):
    """No gradient tells what a whole step does: without blocks of columns it broke 13 and 6 rows more."""
    widths = convert(shared(f"models/adult_mlp_{number}.npz"), tmp_path / "model.pt")
    model = audit.Model.load(tmp_path / "model.pt", arch=dense, arch_args={"widths": widths}, device="cpu", batch_size=600)
    frames = [pd.read_csv(shared(f"tables/adult_encoded_{part}.csv.gz")).to_numpy(np.float32) for part in ("test", "train")]
    x, y = torch.as_tensor(frames[0][:600, :-1]), torch.as_tensor(frames[0][:600, -1]).long()
    every = np.concatenate(frames)[:, :-1]
    rules = Constraints(integer=tuple(range(13)))
    threat = ThreatModel("linf", 1.0, every.min(axis=0), every.max(axis=0), every.std(axis=0), constraints=rules)
    found = audit.robust_accuracy(model, x, y, threat=threat)
    square = Square("linf", 1.0, queries=1000)(model, x, y, threat=threat)
    assert (square.success.numpy() & ~found.broken & (model.predict(x) == y).numpy()).sum() <= 3
    assert violations(threat, x[found.broken], found.x_adv[found.broken]) == 0
