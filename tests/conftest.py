"""Networks that several tests audit, trained once a session."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

import audit
from audit import cli, demo_nets
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


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Call the command line in this process; return exit code, standard output and standard error."""

    def called(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["audit", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    # pytest's own streams stand in for standard output
    monkeypatch.setattr(type(sys.stdout), "reconfigure", lambda *_, **__: None, raising=False)
    return called


def _made(folder: Path, make) -> Path:
    (folder / "nets.py").write_bytes(Path(demo_nets.__file__).read_bytes())
    make(folder)
    return folder
