"""TorchScript archives: programs that torch runs on opening them, or whose operators read and write files."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests import hostile
from tests.hostile_files.case import Family, Place, Proof

FAMILY = Family("torchscript")
PYTHON = "__torch__/Net.py"


def scripted() -> bytes:
    """Return an archive of a network, scripted by torch."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 3)

        def forward(self, x):  # type: ignore[no-untyped-def]
            return self.first(x)

    held = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(Net(), torch.zeros(1, 4)), held)
    return held.getvalue()


def with_code(line: str) -> bytes:
    """Return the archive with a line of code before what forward returns."""
    with zipfile.ZipFile(io.BytesIO(scripted())) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name, content in members.items():
        if name.endswith(".py") and b"def forward" in content and b"first" in content:
            before, _, after = content.decode().partition("    first = ")
            members[name] = f"{before}    {line}\n    first = {after}".encode()
    return hostile.zipped(members)


def loaded(file: Path, _: Place) -> Any:
    return torch.jit.load(file)


def ran(file: Path, place: Place) -> Any:
    return loaded(file, place)(torch.zeros(1, 4))


def add(case: str, line: Callable[[Place], str], proof: Proof, *words: str, **more: Any) -> None:
    FAMILY.add(case, lambda place: place.write("hostile.pt", with_code(line(place))), proof, "TorchScript", *words, **more)


def _maps(place: Place) -> str:
    return f'x = torch.add(x, torch.sum(torch.from_file("{place.canary}", True, 4)))'


def _saves(place: Place) -> str:
    return f'torch.save(x, "{place.canary}")'


RUNS = Proof("runs", ran)
add("from_file makes a file", _maps, RUNS, "not opened")
add("save writes a file", _saves, RUNS)


def _reads(place: Place) -> str:
    return f'print(torch.from_file("{place.secret}", False, {place.secret.stat().st_size}, dtype=0))'


def read_and_shown(file: Path, place: Place) -> str:
    """Return what forward of the archive makes of the file outside: its letters as numbers."""
    with zipfile.ZipFile(file) as archive:
        code = next(
            archive.read(name) for name in archive.namelist() if name.endswith(".py") and b"from_file" in archive.read(name)
        )
    assert str(place.secret).encode() in code
    ran(file, place)
    numbers = torch.from_file(str(place.secret), False, place.secret.stat().st_size, dtype=torch.uint8)
    return bytes(numbers.tolist()).decode()


add("from_file reads a file", _reads, Proof("escapes", read_and_shown))
add(
    "a loop without end",
    lambda p: "while True:\n      x = torch.add(x, 1)",
    Proof("exhausts", ran),
)


class SetsState(nn.Module):
    """A module whose state is set by code: torch runs it when the archive is opened."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.kept = torch.zeros(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return (self.path, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        self.kept = torch.from_file(state[0], True, 4)


def _set_state(place: Place) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(SetsState(str(place.canary))), place.at / "hostile.pt")


FAMILY.add("__setstate__ runs on opening", _set_state, Proof("runs", loaded), "TorchScript", quick=True)


def _endless_state(place: Place) -> None:
    _set_state(place)
    file = place.at / "hostile.pt"
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name, content in members.items():
        if name.endswith(".py") and b"from_file" in content:
            lines = content.decode().splitlines(keepends=True)
            at = next(i for i, line in enumerate(lines) if "from_file" in line)
            members[name] = "".join([*lines[:at], "    while True:\n      print(1)\n", *lines[at:]]).encode()
    file.write_bytes(hostile.zipped(members))


FAMILY.add("__setstate__ prints for ever", _endless_state, Proof("exhausts", loaded), "TorchScript")


def _pickle_inside(place: Place) -> None:
    """Hide a pickle that calls where torch.load looks, in an archive that says that it is TorchScript."""
    from tests.hostile_files.assemble import call, name, pickled, text

    with zipfile.ZipFile(io.BytesIO(scripted())) as archive:
        members = {key: archive.read(key) for key in archive.namelist()}
    key = next(key for key in members if key.endswith("/data.pkl"))
    gadget = pickled(call(name("posix", "mkdir"), text(str(place.canary))))
    members = {other: gadget if other == key else content for other, content in members.items() if "constants.pkl" not in other}
    place.write("hostile.pt", hostile.zipped(members))


FAMILY.add(
    "weights that say that they are TorchScript",
    _pickle_inside,
    Proof("runs", lambda f, p: torch.load(f, weights_only=False)),
    "TorchScript",
)
