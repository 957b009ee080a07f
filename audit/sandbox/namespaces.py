"""The second line of walls: a network with no cable, no other process in sight (Linux's namespaces), and no capabilities."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

NEW_USER, NEW_IPC, NEW_NETWORK, NEW_PROCESSES = 0x10000000, 0x08000000, 0x40000000, 0x20000000
ISOLATED = NEW_IPC | NEW_NETWORK | NEW_PROCESSES
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_CAPBSET_DROP = 1, 36, 24
_SIGKILL = 9
_CAPABILITIES_3 = 0x20080522
_LAST_CAPABILITY = 63
_PASS_FILE_MODES = 1 << 1  # CAP_DAC_OVERRIDE: root in a container owns few of the files that it is given


def isolate() -> bool:
    """Leave network, shared memory and processes of the system behind; False where the system does not let us.

    Processes that are started from now on stand in the new one; the first of them is its root, with which all the others end.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    if user == 0 and libc.unshare(ISOLATED) == 0:
        return True
    if libc.unshare(NEW_USER | ISOLATED) != 0:
        return False
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    except OSError:
        pass  # the walls stand; files then merely seem to belong to nobody
    return True


def drop_capabilities() -> None:
    """Give up what root may do, but for reading and writing files against their modes: the file rules hold all the same."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(_LAST_CAPABILITY + 1):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # fails for one that is not there, or not ours to drop
    header = struct.pack("=Ii", _CAPABILITIES_3, 0)
    kept = _PASS_FILE_MODES if os.geteuid() == 0 else 0
    if libc.capset(header, struct.pack("=6I", kept, kept, 0, 0, 0, 0)) != 0 and libc.capset(header, bytes(24)) != 0:
        raise OSError(ctypes.get_errno(), "the kernel refuses to drop capabilities")


def die_with_parent() -> None:
    """Ask for SIGKILL when the process that started this one ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of all that descendants leave behind, so that it can be ended."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_children() -> None:
    """Kill what descendants left running, until nothing is left."""
    for _ in range(1000):
        children = _children()
        if not children:
            return
        for pid in children:
            try:
                os.kill(pid, _SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                continue


def _children() -> list[int]:
    own, found = os.getpid(), []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                said = Path(entry.path, "stat").read_text(errors="replace")
            except OSError:
                continue
            if int(said.rpartition(")")[2].split()[1]) == own:
                found.append(int(entry.name))
    return found
