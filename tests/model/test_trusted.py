"""Files that the caller trusts go to torch's own loader, and the report says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import audit
from audit.errors import ModelError
from audit.model.load import load
from tests import hostile

SHAPE = (1, 8, 8)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(144, 10))


@pytest.fixture
def program(tmp_path: Path) -> Path:
    exported = torch.export.export(
        net().eval(), (torch.rand(3, *SHAPE),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
    )
    torch.export.save(exported, tmp_path / "net.pt2")
    return tmp_path / "net.pt2"


@pytest.mark.slow
def test_a_trusted_program_answers_as_the_network_does(program):
    model, live, x = load(program, trust=True, device="cpu", output="logits"), net().eval(), torch.rand(5, *SHAPE)
    assert model.origin.trusted
    assert model.origin.format == "pt2"
    torch.testing.assert_close(model.logits(x), live(x))
    gradient, _ = model.gradient(lambda logits: logits[:, 0], x)
    expected = x.clone().requires_grad_(True)
    live(expected)[:, 0].sum().backward()
    torch.testing.assert_close(gradient, expected.grad)
    assert all(parameter.grad is None for parameter in model.module.parameters())


@pytest.mark.slow
def test_the_weights_of_a_trusted_program_fill_the_network_that_arch_builds(program):
    model, x = load(program, trust=True, arch=lambda: net().eval(), device="cpu", output="logits"), torch.rand(5, *SHAPE)
    torch.testing.assert_close(model.logits(x), net().eval()(x))


def saved_by_script(folder: Path, text: str) -> None:
    subprocess.run([sys.executable, "-c", text], cwd=folder, check=True)


@pytest.mark.slow
def test_a_class_that_cannot_be_imported_is_named_with_the_way_on(tmp_path):
    (tmp_path / "lost_nets.py").write_text(hostile.NETS)
    saved_by_script(tmp_path, "import lost_nets, torch; torch.save(lost_nets.Net(), 'net.pt')")
    with pytest.raises(ModelError, match=r"module 'lost_nets'.*lost_nets\.py, with PYTHONPATH=\."):
        load(tmp_path / "net.pt", trust=True)


@pytest.mark.slow
def test_a_class_of_a_script_is_said_to_be_one(tmp_path):
    saved_by_script(tmp_path, hostile.NETS + "\ntorch.save(Net(), 'net.pt')")
    with pytest.raises(ModelError, match="defined in the script that saved it"):
        load(tmp_path / "net.pt", trust=True)


def test_the_report_says_that_the_file_was_trusted(tmp_path):
    x, y = hostile.rows()
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), tmp_path / "net.pt")
    result = audit.run(
        tmp_path / "net.pt", {"x": x, "y": y}, checks=["performance"], trust_model=True, out=tmp_path / "out", device="cpu"
    )
    assert result.model.trusted
    assert '"trusted": true' in (tmp_path / "out" / "result.json").read_text()
    for file in ("report.html", "summary.md"):
        assert "loaded as a program" in (tmp_path / "out" / file).read_text()
    again = audit.run(tmp_path / "net.pt", {"x": x, "y": y}, checks=["performance"], out=tmp_path / "own", device="cpu")
    assert not again.model.trusted
    assert "loaded as a program" not in (tmp_path / "own" / "summary.md").read_text()
