"""The wall around files: what may be read, and the few folders that may be written (Linux's Landlock).

The kernel's own interface, ``linux/landlock.h``; what it covers has grown with its versions (1 in Linux 5.13, 3 in 6.2, 6 in
6.12), and a process can only give up rights, never win them back.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

CREATE, ADD, RESTRICT = 444, 445, 446  # numbers of the calls, the same on every processor
_VERSION = 1
_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38

EXECUTE, WRITE_FILE, READ_FILE, READ_FOLDER, REMOVE_FOLDER, REMOVE_FILE = (1 << n for n in range(6))
MAKE_FOLDER, MAKE_FILE = 1 << 7, 1 << 8
REFER, TRUNCATE, IOCTL = 1 << 13, 1 << 14, 1 << 15
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL
# How many rights of each kind a version knows, as bits from 0.
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
NETWORK_RIGHTS = 0b11  # of version 4: TCP
SCOPES = 0b11  # of version 6: abstract sockets, signals

READ = EXECUTE | READ_FILE | READ_FOLDER
# No links, sockets, pipes or devices: what is left behind must not lead anyone elsewhere.
WRITE = READ | WRITE_FILE | REMOVE_FOLDER | REMOVE_FILE | MAKE_FOLDER | MAKE_FILE | REFER | TRUNCATE
DEVICE = READ_FILE | WRITE_FILE | READ_FOLDER | IOCTL


def version() -> int:
    """Return the version of Landlock that the kernel offers; 0 where it is off or not there."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        return max(0, int(libc.syscall(CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))))
    except (OSError, AttributeError):
        return 0


def give_up_privileges() -> None:
    """Let no program that is started gain rights by its file's owner: what both walls ask for before they stand."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the kernel refuses to give up new privileges")


def restrict(known: int, rules: Iterable[tuple[Path, int]]) -> None:
    """Raise the wall around this thread and all that it starts.

    Parameters
    ----------
    known
        What `version` returned.
    rules
        Paths, with the rights to them and to all below; a path that is not there is passed over.

    Raises
    ------
    OSError
        The kernel refuses a rule or the whole.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    handled = (1 << FILE_RIGHTS.get(known, 16)) - 1
    attributes = struct.pack("=Q", handled)
    if known >= 4:
        attributes += struct.pack("=Q", NETWORK_RIGHTS)
    if known >= 6:
        attributes += struct.pack("=Q", SCOPES)
    ruleset = libc.syscall(CREATE, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    _check(ruleset, "make the file rules")
    try:
        for path, rights in rules:
            _allow(libc, ruleset, path, rights & handled)
        _check(libc.syscall(RESTRICT, ruleset, ctypes.c_uint32(0)), "raise the file rules")
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not path.is_dir():
            rights &= OF_FILES
        rule = struct.pack("=Qi", rights, descriptor)
        if rights:
            _check(libc.syscall(ADD, ruleset, _PATH_BENEATH, rule, ctypes.c_uint32(0)), f"allow {path}")
    finally:
        os.close(descriptor)


def _check(returned: int, what: str) -> None:
    if returned < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot {what}: {os.strerror(code)}")
