"""Audit a classifier of table rows for unfairness between groups of people, from Python.

::

    python examples/table_with_fairness.py [FOLDER]

The diabetes data of scikit-learn has 442 people: groups by sex are large enough to be compared, but most differences are not
decided by so few. The answer says so rather than calling the network fair.
"""

from __future__ import annotations

import sys
from pathlib import Path

import audit
from audit.demo_nets import TableNet, make_diabetes

POLICY = {"limit": [{"metric": "fairness.sex.demographic_parity_difference", "max": 0.10}]}


def main(folder: Path) -> audit.Result:
    """Train, save, load from the files, audit, and print the groups."""
    folder.mkdir(parents=True, exist_ok=True)
    make_diabetes(folder)  # writes model.pt, train.csv and test.csv

    model = audit.Model.load(folder / "model.pt", arch=TableNet, classes=["below median", "above median"])
    data = audit.Dataset.load(
        folder / "test.csv", reference=folder / "train.csv", target="progression_above_median", sensitive=["sex"]
    )
    result = audit.run(model, data, policy=POLICY, checks=["performance", "fairness"], out=folder / "audit")

    print(f"{result.verdict}: {result.sentence}")
    for metric in result["fairness"].metrics:
        print(f"{metric.id}: {metric.value:.3f}, 95 % interval {metric.low:.3f} to {metric.high:.3f}, n = {metric.n}")
    print(f"report: {folder / 'audit' / 'report.html'}")
    return result


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "audit-example-table")).exit_code)
