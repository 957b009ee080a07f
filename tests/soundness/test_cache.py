"""Finished jobs that are not of this network, and folders that are not this program's: neither is touched or believed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import audit
from audit.errors import OutputError

NETS = """
import torch
from torch import nn
from signs import SIGN

class Net(nn.Module):
    def __init__(self, flip=False):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.flip = flip
    def forward(self, x):
        return self.linear(x) * (-SIGN if self.flip else SIGN)
"""


@pytest.fixture
def folder(tmp_path: Path):
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "signs.py").write_text("SIGN = 1.0\n")
    torch.manual_seed(0)
    linear = nn.Linear(4, 2)
    torch.save({f"linear.{name}": value for name, value in linear.state_dict().items()}, tmp_path / "model.pt")
    x = torch.rand(200, 4) - 0.5
    with torch.no_grad():
        y = linear(x).argmax(dim=1)
    np.savez(tmp_path / "test.npz", x=x.numpy(), y=y.numpy())
    yield tmp_path
    sys.modules.pop("signs", None)


def accuracy(folder: Path, **options) -> float:
    result = audit.run(
        folder / "model.pt",
        folder / "test.npz",
        arch=f"{folder}/nets.py:Net",
        checks=["performance"],
        out=folder / "out",
        **options,
    )
    return result["performance"].metric("performance.accuracy").value


def test_arguments_of_the_factory_make_another_network(folder: Path):
    assert accuracy(folder) == 1.0
    assert accuracy(folder, arch_args={"flip": True}) == 0.0


def test_a_module_that_the_factory_imports_makes_another_network(folder: Path):
    assert accuracy(folder) == 1.0
    (folder / "signs.py").write_text("SIGN = -1.0  # another\n")
    sys.modules.pop("signs")
    assert accuracy(folder) == 0.0


@pytest.mark.parametrize("wrapped", [True, False])
def test_weights_that_changed_in_place_make_another_network(folder: Path, wrapped: bool):
    torch.manual_seed(0)
    net = nn.Linear(4, 2)
    data = audit.Dataset.load(folder / "test.npz")
    model = audit.Model(net) if wrapped else net
    first = audit.run(model, data, checks=["performance"], out=folder / "live")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.neg_()
    second = audit.run(model, data, checks=["performance"], out=folder / "live")
    assert first["performance"].metric("performance.accuracy").value == 1.0
    assert second["performance"].metric("performance.accuracy").value == 0.0
    assert first.model.sha256 != second.model.sha256


@pytest.mark.parametrize("name", [".jobs", "artifacts"])
def test_a_link_in_the_output_folder_leads_nowhere(folder: Path, name: str):
    victim = folder / "victim"
    (victim / "precious").mkdir(parents=True)
    (victim / "robustness.npz").write_bytes(b"mine")
    (folder / "out").mkdir()
    (folder / "out" / name).symlink_to(victim)
    with pytest.raises(OutputError, match="got a link"):
        accuracy(folder)
    assert sorted(path.name for path in victim.iterdir()) == ["precious", "robustness.npz"]


def test_what_others_keep_among_the_finished_jobs_stays(folder: Path):
    kept = folder / "out" / ".jobs" / "notes"
    kept.mkdir(parents=True)
    accuracy(folder)
    accuracy(folder, fresh=True)
    assert kept.is_dir()
