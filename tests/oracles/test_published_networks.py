"""Networks that others trained and published: what audit measures on them equals the figures that are known."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import nn

import audit
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
