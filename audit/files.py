"""Opens files that may be hostile: regular files only, never more than a limit, and archives whose members add up.

A pipe would hang, a device never ends, and a small archive can unpack to more than the machine has.
"""

from __future__ import annotations

import io
import os
import stat
import zipfile
from pathlib import Path

from audit.errors import AuditError

MAX_BYTES = 16 * 2**30
MAX_MEMBERS = 100_000


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


def archive_members(content: bytes, source: str, error: type[AuditError], max_ratio: int) -> list[zipfile.ZipInfo]:
    """List the members of a zip archive after checking what they claim to unpack to.

    A claim that is too small does no harm: Python's reader stops at the claimed size. So the sum of the claims bounds what can
    be unpacked, also where members overlap in the file.

    Raises
    ------
    AuditError
        The archive is truncated, or made to exhaust memory or to show different readers different content.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as problem:
        raise error(f"{source} is a truncated or damaged archive ({problem}): copy or save it again") from None
    if len(members) > MAX_MEMBERS:
        raise error(f"{source} holds {len(members):,} members; at most {MAX_MEMBERS:,} are read")
    unpacked = sum(member.file_size for member in members)
    if unpacked > min(memory_limit(), max_ratio * len(content)):
        raise error(f"{source} unpacks {len(content):,} bytes to {unpacked:,}: refused as an archive made to exhaust memory")
    if len({member.filename for member in members}) < len(members):
        raise error(f"{source} holds two members of one name, so that readers would see different content; save it again")
    return members
