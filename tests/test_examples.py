"""Each example runs as its first lines say, and what it prints is what it found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.realdata import shared

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run_example(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(EXAMPLES / name), *arguments], capture_output=True, text=True, timeout=200)


@pytest.mark.slow
def test_the_image_classifier_passes_its_gate(tmp_path: Path):
    done = run_example("image_classifier.py", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pass: All 3 limits are cleared" in done.stdout
    assert (tmp_path / "audit" / "report.html").is_file()


@pytest.mark.slow
def test_the_table_is_not_called_fair_on_so_few_people(tmp_path: Path):
    done = run_example("table_with_fairness.py", str(tmp_path))
    assert done.returncode == 4, done.stdout + done.stderr
    assert "incomplete" in done.stdout
    assert "fairness.sex.equalized_odds_difference" in done.stdout


@pytest.mark.slow
def test_dense_weights_become_a_state_dict_that_audits_to_the_published_accuracy(tmp_path: Path):
    """The manifest gives 85.24 % for adult_mlp_1."""
    from audit.result import Result

    weights, table = shared("models/adult_mlp_1.npz"), shared("tables/adult_encoded_test.csv.gz")
    done = run_example("dense_weights.py", str(weights), str(tmp_path / "model.pt"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[13, 16, 8, 1]"
    command = [sys.executable, "-m", "audit", "run", str(tmp_path / "model.pt"), "--data", str(table), "--target", "income"]
    command += ["--arch", f"{EXAMPLES / 'dense_weights.py'}:dense", "--arch-args", '{"widths": [13, 16, 8, 1]}']
    command += ["--sensitive", "sex,race", "--checks", "performance,fairness", "--out", str(tmp_path / "out"), "--quiet"]
    audited = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert audited.returncode == 0, audited.stderr
    result = Result.load(tmp_path / "out")
    accuracy = result["performance"].metric("performance.accuracy")
    assert accuracy.value == pytest.approx(0.8524, abs=5e-5)
    gap = result["fairness"].metric("fairness.sex.demographic_parity_difference")
    assert gap.low > 0.1
