"""CONTRIBUTING's whole check does what it says: it is taken from the page, registered, and run."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import audit
from audit.checks import base

PAGE = Path(__file__).resolve().parents[1] / "CONTRIBUTING.md"


@pytest.fixture
def check_of_the_page(tmp_path: Path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    file = tmp_path / "sure_and_wrong.py"
    file.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("sure_and_wrong", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sure_and_wrong"] = module
    spec.loader.exec_module(module)
    yield module.SureAndWrong
    base._checks.pop("sure_and_wrong")
    del sys.modules["sure_and_wrong"]


@pytest.mark.usefixtures("check_of_the_page")
def test_the_check_of_the_page_runs_is_judged_and_is_rendered(tmp_path: Path):
    torch.manual_seed(0)
    x = torch.rand(200, 1, 4, 4)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    y = np.arange(200) % 3
    policy = {"limit": [{"metric": "sure_and_wrong.errors.share", "max": 0.5}]}
    result = audit.run(net, audit.Dataset(x, y), checks=["sure_and_wrong"], policy=policy, out=tmp_path)
    found = result["sure_and_wrong"]
    assert found.status == "measured"
    assert found.metrics[0].n > 50
    assert result.verdict == "pass"
    assert found.outcomes is not None
    assert found.outcomes.names() == ["sure_and_wrong.sure"]
    assert "is it sure all the same" in (tmp_path / "report.html").read_text(encoding="utf-8")
