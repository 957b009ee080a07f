"""Certified accuracy, milliseconds a sample, and what a bound pass costs in forwards, on networks with published figures.

    python benchmarks/certificates.py --samples 64 --threads 2

A bound pass is one of `Certificate.passes`; a forward is timed at the same batch. It prints the medians of several runs.

Seen on the first 300 test images, by CROWN on every layer (per cent; the published figure beside it, for CIFAR-10 that of all
10,000 images):

    fashion_kw, 0.1        66.33   65.5, Wong & Kolter's own bound
    mnist_cnn_a_adv, 0.1   91.67   -
    mnist_cnn_a_adv, 0.3    2.67   -
    mnistfc_256x2, 0.03    32.33   -
    mnistfc_256x4, 0.03    35.33   -
    cifar10_resnet2b, 1/255   54.00   57.16, CROWN/DeepPoly
    cifar10_resnet2b, 2/255   20.67   26.88, likewise

What parts the last one from what was published is the images, not the bounds (per cent certified at 2/255):

    18.00        with bounds computed in float32 (``--float32``; 51.00 at 1/255): their own rounding takes 0.2 off a margin
    20.67        in float64, the default on a CPU
    21.00        without any term for rounding: the network's own takes 0.015 off a margin (median)
    24.0 ± 2.5   every 33rd image in place of the first 300, in float64
    24.9 ± 0.9   all 10,000, estimated: a logistic regression on the margins of the image itself and after 6 steps of PGD and on
                 the gradient's norm, fitted to these 600. The first 300 are hard: PGD leaves 51.0 % of them, 54.9 % of all
    26 to 27     all 10,000 before JPEG, estimated. It moves pixels by 8/255 (root mean square), four times the radius: on 131
                 images that VNN-COMP 2021 published unharmed the bounds of margins are higher by 0.05 (83 images) and 0.18
                 (48), and the regression foresees 5 and 7 % more of them certified (measured: 23 and 23, 27 and 23)

Of the 48 images that VNN-COMP 2021 drew from those that PGD leaves, 27 are certified without terms for rounding, 56 ± 7 %; the
published figures say 26.88 / 54.82 = 49 %. No other slope of the lower line would do better: 0 certifies 10 of them, 1 one, the
upper line's 16, and the best of all four no image more than the adaptive one. With terms for rounding, slopes optimised in 20
steps (``--alpha 20``) certify 28, branching into up to 32 parts (``--parts 32``) 32.

In float64, two threads, 48 images: 38.4 ms a sample (fashion_kw), 14.8 and 43.3 (mnist_cnn_a_adv), 2.8 and 13.9 (mnistfc),
327 and 421 (cifar10_resnet2b).

Branching into up to 32 parts (``--parts 32``), after the bounds of hidden neurons are tightened, took mnist_cnn_a_adv at 0.3
from 0 to 12 of the first 60 images (9 without tightening), at about twice the time, and fashion_kw from 31 to 33 (32), at a
quarter more.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator

import numpy as np
import torch
from networks import CIFAR_MEAN, CIFAR_STD, SHARED, ResNet2B, cifar, cnn_a, digits, weights
from torch import Tensor

import audit
from audit.attacks.geometry import ThreatModel
from audit.certificates import Network, certify


def rows(n: int) -> Iterator[tuple[str, audit.Model, Tensor, Tensor, float, str]]:
    """Yield name, network, samples, labels, radius, published figure."""
    common = {"output": "logits", "bounds": (0, 1), "device": "cpu"}
    mnist = digits("mnist", n)
    fashion = audit.Model(weights(cnn_a(), "fashion_kw.pth"), **common)  # type: ignore[arg-type]
    yield "fashion_kw", fashion, *digits("fashion_mnist", n), 0.1, "65.5 (Wong & Kolter's own bound)"
    digit = audit.Model(weights(cnn_a(), "mnist_cnn_a_adv.pth"), **common)  # type: ignore[arg-type]
    yield "mnist_cnn_a_adv", digit, *mnist, 0.1, "-"
    yield "mnist_cnn_a_adv", digit, *mnist, 0.3, "-"
    for name in ("mnistfc_256x2", "mnistfc_256x4"):
        yield name, audit.Model.load(SHARED / "models" / f"{name}.onnx", **common), *mnist, 0.03, "-"  # type: ignore[arg-type]
    residual = audit.Model(weights(ResNet2B(), "cifar10_resnet2b.pth"), mean=CIFAR_MEAN, std=CIFAR_STD, **common)  # type: ignore[arg-type]
    yield "cifar10_resnet2b", residual, *cifar(n), 1 / 255, "57.16"
    yield "cifar10_resnet2b", residual, *cifar(n), 2 / 255, "26.88"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--alpha", type=int, default=0, help="steps in which free slopes are optimised")
    parser.add_argument("--parts", type=int, default=0, help="parts that branching may bound for a nearly certified sample")
    parser.add_argument("--float32", action="store_true", help="compute bounds in the networks' own type")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"{'network':18}{'radius':>8}{'clean':>8}{'ibp':>8}{'crown':>8}  {'published':34}"
        f"{'ms a sample':>12}{'passes':>8}{'forwards':>10}"
    )
    for name, model, x, y, eps, published in rows(options.samples):
        threat = ThreatModel("linf", eps, np.array(0.0), np.array(1.0))
        clean = float((model.predict(x) == y).float().mean())
        network = Network.of(model, x, dtype=torch.float32 if options.float32 else None)
        ibp = certify(model, x, y, threat, method="ibp", network=network)
        budget = {"alpha_steps": options.alpha, "parts": options.parts}
        found = [certify(model, x, y, threat, network=network, **budget) for _ in range(options.runs)]
        seconds = statistics.median(c.seconds for c in found) / len(x)
        forwards = []
        with model.session(), torch.no_grad():
            for _ in range(20):
                began = time.perf_counter()
                model.logits(x[:16])
                forwards.append((time.perf_counter() - began) / len(x[:16]))
        one = seconds / (found[0].passes / len(x)) / statistics.median(forwards)
        shares = f"{clean:8.2%}{float(ibp.certified.float().mean()):8.2%}{float(found[0].certified.float().mean()):8.2%}"
        print(
            f"{name:18}{eps:8.4f}{shares}  {published:34}{1000 * seconds:12.1f}{found[0].passes / len(x):8.1f}{one:10.2f}",
            flush=True,
        )
        if found[0].note:
            print(f"  {found[0].note}")


if __name__ == "__main__":
    main()
