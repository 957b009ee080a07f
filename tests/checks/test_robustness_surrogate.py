"""A surrogate that the user gives: its examples are tried on all that stands, and its file is part of what a run depends on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import audit
from audit.checks.robustness import RobustnessOptions
from audit.errors import AuditError, UsageError
from tests.checks.test_robustness import pictures, run

WEAK = ["robustness.steps=1", "robustness.step_size=1e-6", "robustness.noise_draws=1", "robustness.curve=false"]


class Coarse(nn.Module):
    """Answers as the network inside, from outputs that are rounded, which leaves no gradient."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        return torch.round(200 * self.inside(x)) / 200


def setting(path: Path) -> str:
    return f"robustness.surrogate={str(path)!r}"


@pytest.mark.slow
def test_its_examples_break_what_hidden_gradients_do_not(tmp_path: Path):
    net, data = pictures()
    torch.save(net, tmp_path / "other.pt")
    other = setting(tmp_path / "other.pt")
    result = run(Coarse(net), data, *WEAK, "robustness.certify=false", other, eps=0.1, profile="quick", out=tmp_path / "out")
    check = result["robustness"]
    assert check.status == "incomplete"
    assert not next(e for e in check.evidence if e.id == "robustness.linf.transfer").ok
    honest = run(net, data, "robustness.certify=false", eps=0.1, profile="quick")["robustness"]
    assert check.metric("robustness.linf.accuracy").value <= honest.metric("robustness.linf.accuracy").value + 0.05


def test_another_file_under_the_same_name_is_another_run(tmp_path: Path):
    net, data = pictures(20)
    path = tmp_path / "other.pt"
    torch.save(net, path)
    first = RobustnessOptions(surrogate=str(path))
    net[1].weight.data *= -1
    torch.save(net, path)
    second = RobustnessOptions(surrogate={"path": str(path)})
    assert first.surrogate.sha256 != second.surrogate.sha256
    assert RobustnessOptions.model_validate(first.model_dump()).surrogate == first.surrogate
    with pytest.raises(AuditError, match=r"other\.pt"):
        run(net, data, f"robustness.surrogate={{path={str(path)!r}, sha256={first.surrogate.sha256!r}}}", eps=0.1)


def test_what_does_not_fit_is_said_before_any_work(tmp_path: Path):
    net, data = pictures(20)
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), tmp_path / "three.pt")
    with pytest.raises(UsageError, match=r"4 classes.*three\.pt is for 3"):
        run(net, data, setting(tmp_path / "three.pt"), eps=0.1)
    with pytest.raises(AuditError, match=r"none\.pt"):
        run(net, data, setting(tmp_path / "none.pt"), eps=0.1)
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(AuditError):
        run(net, data, setting(tmp_path / "weights.pt"), eps=0.1)


def test_nothing_in_its_file_is_run(tmp_path: Path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save(Evil(), tmp_path / "evil.pt")
    net, data = pictures(20)
    with pytest.raises(audit.AuditError):
        run(net, data, setting(tmp_path / "evil.pt"), eps=0.1)
    assert not (tmp_path / "ran").exists()
