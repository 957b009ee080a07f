"""Makes the files that the tests of bad input need: networks, data, and things that only look like them."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=8, classes=3):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(4, width), nn.ReLU(), nn.Linear(width, classes))

    def forward(self, x):
        return self.layers(x)

class AllNaN(Net):
    def forward(self, x):
        return super().forward(x) * float("nan")

class SomeNaN(Net):
    def forward(self, x):
        out = super().forward(x)
        return torch.where(x.flatten(1)[:, :1] > 0.8, float("nan"), out)

def broken(**_):
    raise ZeroDivisionError("no network here")

def quits():
    raise SystemExit(0)

def words():
    return "a network"

def Binary():
    return Net(classes=2)

def double(x):
    return x * 2.0
"""


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def net(width: int = 8, classes: int = 3, seed: int = 0) -> nn.Module:
    """Return the network of NETS as a state dict's owner, with seeded weights."""
    torch.manual_seed(seed)
    module = nn.Module()
    module.layers = nn.Sequential(nn.Flatten(), nn.Linear(4, width), nn.ReLU(), nn.Linear(width, classes))
    return module


def rows(n: int = 24, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random((n, 4)).astype(np.float32), rng.integers(0, 3, n)


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def torch_zip(pickled: bytes, **data: bytes) -> bytes:
    """Return an archive as torch.save writes it, around any pickle."""
    members = {"archive/data.pkl": pickled, "archive/byteorder": b"little", "archive/version": b"3\n"}
    return zipped(members | {f"archive/data/{key}": content for key, content in data.items()})


def npz_member(shape: str, dtype: str = "<f4", body: bytes = b"") -> bytes:
    """Return a .npy whose header claims what it likes."""
    head = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (64 - (len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + body


def malicious(folder: Path) -> dict[str, Path]:
    """Write one pickle of each kind that creates ``folder/canary-<kind>``; return the files by kind."""

    def canary(kind: str) -> Canary:
        return Canary(folder / f"canary-{kind}")

    files = {}
    for kind, protocol in (("pickle2", 2), ("pickle4", 4)):
        files[kind] = folder / f"{kind}.pt"
        files[kind].write_bytes(pickle.dumps(canary(kind), protocol=protocol))
    files["weights"] = folder / "weights.pt"
    torch.save(canary("weights"), files["weights"])
    files["legacy"] = folder / "legacy.pt"
    torch.save({"layers.1.weight": canary("legacy")}, files["legacy"], _use_new_zipfile_serialization=False)
    files["checkpoint"] = folder / "checkpoint.pt"
    torch.save({"state_dict": net().state_dict(), "epoch": 3, "callbacks": [canary("checkpoint")]}, files["checkpoint"])
    files["module"] = folder / "module.pt"
    sequential = nn.Sequential(nn.Linear(4, 3))
    sequential.note = canary("module")  # type: ignore[assignment]
    torch.save(sequential, files["module"])
    files["npz"] = folder / "objects.npz"
    np.savez(files["npz"], x=np.asarray([canary("npz"), 1], dtype=object), y=np.asarray([0, 1]))
    files["pt2"] = folder / "program.pt2"
    inner = io.BytesIO()
    torch.save(canary("pt2"), inner)
    members = {"archive_format": b"pt2", "models/model.json": json.dumps({}).encode(), "data/constants/c.pt": inner.getvalue()}
    members["data/aotinductor/model/program.so"] = b"\x7fELF"
    files["pt2"].write_bytes(zipped({f"program/{name}": content for name, content in members.items()}))
    return files


def set_them_off(folder: Path) -> None:
    """Open each file of `malicious` the unsafe way: run in a process that is thrown away."""
    for kind in ("weights", "legacy", "checkpoint", "module"):
        torch.load(folder / f"{kind}.pt", weights_only=False)
    for kind in ("pickle2", "pickle4"):
        with (folder / f"{kind}.pt").open("rb") as stream:
            pickle.load(stream)
    with np.load(folder / "objects.npz", allow_pickle=True) as arrays:
        arrays["x"]
    with zipfile.ZipFile(folder / "program.pt2") as archive:
        torch.load(io.BytesIO(archive.read("program/data/constants/c.pt")), weights_only=False)
