"""Devices: those that the audit was made for, and what others are told."""

from __future__ import annotations

import pytest
import torch

from audit.errors import UsageError
from audit.model.wrapper import pick_device


@pytest.mark.parametrize("name", ["meta", "mps", "xpu", "vulkan", "hip", "cpuu", "", "cpu:x"])
def test_other_devices_are_refused_in_words(name: str):
    with pytest.raises(UsageError, match="device must be auto, cpu or cuda"):
        pick_device(name)


def test_devices_that_are_there_are_taken(monkeypatch: pytest.MonkeyPatch):
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type in ("cpu", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="sees no GPU"):
        pick_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(UsageError, match="sees 1 GPUs"):
        pick_device("cuda:1")
