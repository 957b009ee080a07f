"""Names of model files that are no files: links to devices and pipes, folders, paths without end."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Any

from tests.hostile_files.case import Family, Place, Proof

FAMILY = Family("links")


def read(file: Path, _: Place) -> bytes:
    return file.read_bytes()


def _chain(place: Place) -> None:
    (place.at / "zero").symlink_to("/dev/zero")
    (place.at / "hostile.pt").symlink_to("zero")


def _pipe(place: Place) -> None:
    os.mkfifo(place.at / "pipe")
    (place.at / "hostile.pt").symlink_to("pipe")


def _socket(place: Place) -> Any:
    with contextlib.chdir(place.at):  # the path of a socket is at most 107 letters long
        socket.socket(socket.AF_UNIX).bind("hostile.pt")


def _sparse(place: Place) -> None:
    """Write a file of 2**42 bytes that takes no room on the disk."""
    with (place.at / "hostile.pt").open("wb") as stream:
        stream.truncate(2**42)


EXHAUSTS = Proof("exhausts", read)
add = FAMILY.add
add("a link to a device", lambda p: (p.at / "hostile.pt").symlink_to("/dev/zero"), EXHAUSTS, "device", quick=True)
add("a link to a link to a device", _chain, EXHAUSTS, "device")
add("a pipe", lambda p: os.mkfifo(p.at / "hostile.pt"), EXHAUSTS, "pipe")
add("a link to a pipe", _pipe, EXHAUSTS, "pipe")
add(
    "a link to itself",
    lambda p: (p.at / "hostile.pt").symlink_to("hostile.pt"),
    Proof("fixed", read, "symbolic links"),
    "cannot read",
)
add(
    "a link to nowhere", lambda p: (p.at / "hostile.pt").symlink_to("gone"), Proof("fixed", read, "No such file"), "cannot read"
)
add("a socket", _socket, Proof("fixed", read, "No such device"), "hostile.pt")
add("a terminal's noise", lambda p: (p.at / "hostile.pt").symlink_to("/dev/urandom"), EXHAUSTS, "device")
add("a link to a folder", lambda p: (p.at / "hostile.pt").symlink_to(p.at), Proof("fixed", read, "directory"), "folder")
add("a file of holes", _sparse, EXHAUSTS, "too large")


def _named(place: Place) -> None:
    (place.at / NAME).write_bytes(b"x" * 100)


NAME = "\x1b[2J\x1b[31mmodel\u202e.pt"
add(
    "a name that commands the terminal",
    _named,
    Proof("escapes", lambda f, p: f.name),
    "not a model file",
    file=NAME,
    quick=True,
)
