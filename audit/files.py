"""Opens files that may be hostile: regular files only, and never more than a limit. A pipe would hang, a device never ends."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from audit.errors import AuditError

MAX_BYTES = 16 * 2**30


def read_file(path: Path, what: str, error: type[AuditError], limit: int | None = None) -> bytes:
    """Read a regular file whole.

    Parameters
    ----------
    what
        What the file should be, for messages: ``model file``, say.
    error
        What to raise.
    limit
        Most bytes to read; `memory_limit` where None.

    Raises
    ------
    AuditError
        It is missing, a folder, a pipe or a device, too large, or empty.
    """
    limit = memory_limit() if limit is None else limit
    try:
        # Opening a pipe blocks until somebody writes to it; without blocking it opens at once and fstat tells what it is.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except (OSError, ValueError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) and problem.strerror else problem
        raise error(f"cannot read the {what} {path}: {reason}") from None
    said = os.fstat(descriptor)
    if not stat.S_ISREG(said.st_mode):
        os.close(descriptor)
        if stat.S_ISDIR(said.st_mode):
            raise error(f"expected a {what}, got the folder {path}; name the file inside it")
        raise error(f"expected a {what}, got {path}, a pipe, a socket or a device; copy it to a regular file first")
    with os.fdopen(descriptor, "rb") as stream:
        try:
            content = stream.read(min(limit, said.st_size) + 1) if said.st_size <= limit else None
        except OSError as problem:
            raise error(f"cannot read the {what} {path}: {problem.strerror or problem}") from None
    if content is None or len(content) > limit:
        raise error(f"the {what} {path} is too large: at most {limit:,} bytes are read")
    if not content:
        raise error(f"the {what} {path} is empty: a download or a save that broke off?")
    return content


def memory_limit() -> int:
    """Return the most bytes that one file may take, packed or unpacked: three quarters of the memory, at most 16 GiB."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return MAX_BYTES
    return min(MAX_BYTES, memory * 3 // 4)


def not_a_model_nor_data(content: bytes) -> str | None:
    """Say what came in the place of a download that went wrong; None where it is something else."""
    head = content[:512].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page: the download gave a page instead of the file; fetch it again"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, which only stands for the file: run 'git lfs pull'"
    return None
