"""On real images: garments are no digits, and the autoencoder notices."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from audit import stats
from audit.anomaly import AutoencoderDetector
from tests.realdata import mnist, shared


@pytest.mark.slow
def test_garments_are_told_from_digits():
    packed = gzip.decompress(shared("fashion_mnist/t10k-images-idx3-ubyte.gz").read_bytes())
    garments = np.frombuffer(packed, np.uint8, offset=16).reshape(-1, 1, 28, 28)[:1000].astype(np.float32) / 255
    digits, unseen = mnist("train")[0][:4000], mnist()[0][:1000]
    detector = AutoencoderDetector(random_state=0).fit(digits)
    area = stats.auroc(-detector.score_samples(unseen), -detector.score_samples(garments))
    assert area.value >= 0.99
    assert (detector.predict(garments) == -1).mean() > 0.9
    assert (detector.predict(unseen) == -1).mean() < 0.09
