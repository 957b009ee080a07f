"""Stores a training so that a killed one goes on where it was: one safetensors file, written beside its place and renamed.

Tensors hold weights and the optimiser's moments; the rest is JSON in the file's metadata. Nothing in it is ever executed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from audit.result import make_folder, own_folder, write_atomically

FILE = "checkpoint.safetensors"


@dataclass(frozen=True)
class Stored:
    """What a checkpoint holds: groups of tensors by name, and plain numbers."""

    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class Checkpoint:
    """The checkpoint of one training in a folder; with `folder` None nothing is stored.

    Parameters
    ----------
    folder
        The training's own folder.
    key
        Hash of everything that the training depends on: what was stored under another key is not taken up.
    fresh
        Forget what is stored.
    """

    def __init__(self, folder: Path | None, key: str, *, fresh: bool = False) -> None:
        self.key = key
        self.path = None if folder is None else make_folder(own_folder(folder.parent, folder.name)) / FILE
        if self.path is not None and fresh:
            self.path.unlink(missing_ok=True)

    def load(self) -> Stored | None:
        """Return what is stored; None where nothing is, it is of another training, or damaged."""
        if self.path is None or not self.path.is_file():
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("key") != self.key:
                    return None
                tensors: dict[str, dict[str, Tensor]] = {}
                for name in file.keys():  # noqa: SIM118 - a safetensors file is no dict
                    group, _, rest = name.partition("/")
                    tensors.setdefault(group, {})[rest] = file.get_tensor(name)
            return Stored(tensors, json.loads(metadata["state"]))
        except (OSError, SafetensorError, ValueError, KeyError, RecursionError):
            return None

    def save(self, stored: Stored) -> None:
        """Write a checkpoint in the place of the last one."""
        if self.path is None:
            return
        from safetensors.torch import save

        flat = {
            f"{group}/{name}": tensor.detach().cpu().contiguous().clone()
            for group, tensors in stored.tensors.items()
            for name, tensor in tensors.items()
        }
        write_atomically(self.path, save(flat, metadata={"key": self.key, "state": json.dumps(stored.state)}))
