"""The package as its users get it: built, installed outside the checkout, run and rendered with the templates of the wheel."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from audit import __version__

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
MARK = "<!-- drawn with the templates of the wheel -->"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    # Without isolation where the build backend is at hand: nothing is then fetched.
    here = ["--no-isolation"] if importlib.util.find_spec("hatchling") else []
    command = [sys.executable, "-m", "build", "--wheel", *here, "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=out)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    return folder


@pytest.fixture
def call(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run Python outside the checkout with the installed package before all others."""
    monkeypatch.chdir(tmp_path)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(installed)}

    def called(*words: str | Path) -> str:
        done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = Path(called("-c", "import audit; print(audit.__file__)").strip())
    assert where == installed / "audit" / "__init__.py"
    return called


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (about,) = (name for name in names if name.endswith("METADATA"))
        metadata = archive.read(about).decode()
    info = about.partition("/")[0]
    assert {name.partition("/")[0] for name in names} == {"audit", info}
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".npz", ".pt"))]
    for path in (ROOT / "audit").rglob("*.py"):
        assert str(path.relative_to(ROOT)) in names
    for path in (ROOT / "reports" / "templates").iterdir():
        assert f"audit/_templates/{path.name}" in names
    assert "audit/py.typed" in names
    assert any(name.endswith("/LICENSE") for name in names)
    assert f"\nVersion: {__version__}\n" in metadata


def test_the_installed_command_says_its_version(call, installed):
    assert call(installed / "bin" / "audit", "--version") == f"audit {__version__}\n"


def test_installed_outside_the_checkout_it_audits_and_renders(call, installed, tmp_path):
    assert "robustness" in call("-m", "audit", "list", "checks").splitlines()

    generator = np.random.default_rng(0)
    x = generator.uniform(size=(60, 1, 4, 4)).astype(np.float32)
    np.savez(tmp_path / "test.npz", x=x, y=(x.mean(axis=(1, 2, 3)) > 0.5).astype(int))
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))\n"
    )
    torch.manual_seed(0)
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).state_dict(), tmp_path / "model.pt")
    run = ["run", "model.pt", "--arch", "nets.py:net", "--data", "test.npz", "--out", "out", "--profile", "quick"]
    assert "report: out/report.html" in call("-m", "audit", *run)
    document = json.loads((tmp_path / "out" / "result.json").read_text())
    assert {check["id"]: check["status"] for check in document["checks"]}["performance"] == "measured"

    page = call("-m", "audit", "render", "out")
    assert page.encode() == (tmp_path / "out" / "report.html").read_bytes()
    # Change the template of the installed package: if the page changes, it was drawn with it and not with the checkout's.
    template = installed / "audit" / "_templates" / "report.html"
    original = template.read_text()
    try:
        template.write_text(original.replace("</body>", f"{MARK}</body>"))
        assert MARK in call("-m", "audit", "render", "out")
    finally:
        template.write_text(original)
    assert MARK not in page
