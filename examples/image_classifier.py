"""Audit an image classifier from Python and gate on it: train a small network on digits, attack it, demand limits.

::

    python examples/image_classifier.py [FOLDER]

Ends with 0 where every limit is cleared by its confidence bound, with 1 where one failed, with 4 where the evidence is weak.
"""

from __future__ import annotations

import sys
from pathlib import Path

import audit
from audit.demo_nets import DigitsNet, make_digits

POLICY = {
    "limit": [
        {"metric": "performance.accuracy", "min": 0.95},
        {"metric": "calibration.ece", "max": 0.10},
        {"metric": "robustness.linf.accuracy", "min": 0.85},
    ]
}


def main(folder: Path) -> audit.Result:
    """Train, save, load from the files, audit, and demand."""
    folder.mkdir(parents=True, exist_ok=True)
    make_digits(folder)  # writes model.pt, train.npz and test.npz

    model = audit.Model.load(folder / "model.pt", arch=DigitsNet, bounds=(0, 1))
    data = audit.Dataset.load(folder / "test.npz", reference=folder / "train.npz")
    result = audit.run(model, data, policy=POLICY, norm="linf", eps="8/255", out=folder / "audit")

    robust = result["robustness"].metric("robustness.linf.accuracy")
    print(f"{result.verdict}: {result.sentence}")
    print(f"robust accuracy {robust.value:.3f}, 95 % interval {robust.low:.3f} to {robust.high:.3f}")
    print(f"report: {folder / 'audit' / 'report.html'}")
    return result


if __name__ == "__main__":
    outcome = main(Path(sys.argv[1] if len(sys.argv) > 1 else "audit-example-images"))
    try:
        audit.require(outcome)
    except audit.PolicyFailed as failed:
        print(failed, file=sys.stderr)
        sys.exit(failed.exit_code)
