"""Networks that several tests audit, trained once a session."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import audit
from audit import demo_nets
from tests import zoo

# One thread a test process, and in the children that it starts: two workers that spin on two cores are ten times slower.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits_net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with model.pt, train.npz, test.npz and nets.py: the demo's network for handwritten digits."""
    return _made(tmp_path_factory.mktemp("digits"), demo_nets.make_digits)


@pytest.fixture(scope="session")
def diabetes_net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with model.pt, train.csv, test.csv and nets.py: the demo's network for the diabetes table."""
    return _made(tmp_path_factory.mktemp("diabetes"), demo_nets.make_diabetes)


@pytest.fixture(scope="session")
def lstm() -> tuple[torch.nn.Module, audit.Dataset]:
    """Return a recurrent network over sequences of shape (8, 8), and its data."""
    return zoo.lstm()


@pytest.fixture(scope="session")
def transformer() -> tuple[torch.nn.Module, audit.Dataset]:
    """Return a small transformer over images of shape (1, 8, 8), and its data."""
    return zoo.transformer()


@pytest.fixture(scope="session")
def regressor() -> tuple[torch.nn.Module, audit.Dataset]:
    """Return a regression network for the diabetes table, and its data."""
    return zoo.regressor()


def _made(folder: Path, make) -> Path:
    (folder / "nets.py").write_bytes(Path(demo_nets.__file__).read_bytes())
    make(folder)
    return folder
