"""What a case of the corpus is: a hostile file, the proof that it is one, and the reason that audit must give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

SECRET = "the-secret-that-stands-outside"  # noqa: S105 - the content of a file that nothing may read
Kind = Literal["model", "data", "config"]
ProofKind = Literal["runs", "changes", "exhausts", "escapes", "differs", "fixed"]


@dataclass(frozen=True)
class Place:
    """Where a case makes its files.

    Attributes
    ----------
    at
        Folder of the hostile file and of what lies beside it.
    canary
        A path that does not exist: a file that executes creates it.
    secret
        A file outside `at` that holds `SECRET`: nothing may read it.
    """

    at: Path
    canary: Path
    secret: Path

    def write(self, name: str, content: bytes | str) -> Path:
        path = self.at / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path


@dataclass(frozen=True)
class Proof:
    """That a file is hostile, shown by what another reader does with it in a process that is thrown away.

    Attributes
    ----------
    kind
        ``runs``: `open` creates the canary. ``changes``: it changes functions or classes of the process. ``exhausts``: it takes
        more than 1 GB, or does not end. ``escapes``: what it returns holds `SECRET`, or commands to a terminal. ``differs``: it
        returns two readings of one file that are not the same. ``fixed``: the library now raises an error that holds `words`.
    open
        Called with the path of the file and the place.
    """

    kind: ProofKind
    open: Callable[[Path, Place], Any]
    words: str = ""


@dataclass(frozen=True)
class Case:
    """One hostile file.

    Attributes
    ----------
    make
        Writes the file and what lies beside it.
    file
        Its name in the folder.
    words
        One of them stands in the message: the reason.
    options
        More arguments of the command.
    bare_words
        The same where no ``--arch`` is given, if those are others; `arch_words` where it is.
    arch_codes
        Exit codes that are right with ``--arch``: where weights alone can be taken out of a file, 0 may be among them.
    bare_codes
        The same without ``--arch``: 0 is among them where what is hostile is never opened.
    quick
        Whether it is among those that also the fast tests try.
    """

    family: str
    name: str
    make: Callable[[Place], Any]
    proof: Proof
    words: tuple[str, ...]
    file: str = "hostile.pt"
    kind: Kind = "model"
    options: tuple[str, ...] = ()
    bare_words: tuple[str, ...] | None = None
    arch_words: tuple[str, ...] | None = None
    arch_codes: tuple[int, ...] = (3,)
    bare_codes: tuple[int, ...] = (3,)
    inspect_codes: tuple[int, ...] = (0, 3)
    quick: bool = False

    @property
    def id(self) -> str:
        return f"{self.family}: {self.name}"

    @property
    def code(self) -> int:
        return 2 if self.kind == "config" else 3


@dataclass
class Family:
    """The cases of one kind of file."""

    name: str
    file: str = "hostile.pt"
    kind: Kind = "model"
    cases: list[Case] = field(default_factory=list)

    def add(
        self, name: str, make: Callable[[Place], Any] | bytes | str, proof: Proof, *words: str, file: str = "", **more: Any
    ) -> None:
        """Add a case; where `make` is the content of the file, it is written as it is."""
        chosen = file or self.file
        content = make

        def write(place: Place) -> None:
            place.write(chosen, content)  # type: ignore[arg-type]

        made = content if callable(content) else write
        more.setdefault("kind", self.kind)
        self.cases.append(Case(self.name, name, made, proof, words, file=chosen, **more))


def corpus() -> list[Case]:
    """Return all cases, family by family."""
    from importlib import import_module

    cases: list[Case] = []
    for family in FAMILIES:
        cases += import_module(f"tests.hostile_files.{family}").FAMILY.cases
    ids = [case.id for case in cases]
    assert len(set(ids)) == len(ids), "two cases have one name"
    return cases


FAMILIES: tuple[str, ...] = (
    "opcodes",
    "gadgets",
    "amplification",
    "tensors",
    "streams",
    "modules",
    "archives",
    "exported",
    "onnx_files",
    "torchscript",
    "safetensors_files",
    "arrays",
    "tables",
    "images",
    "configurations",
    "links",
)
