"""What no file may make a reader do, whatever stands in it: crash, hang, take memory, execute, write, read elsewhere.

A clean error (`AuditError`) is the right answer to a damaged file, and so is a network or a table.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from audit.errors import AuditError

MOST_SECONDS = 2.0  # of this process's own time
STOP_AFTER = 20.0
MOST_GROWTH = 512 * 2**20
LONGEST_MESSAGE = 4000

# Audit events (PEP 578) that no reader has a reason to raise once all of its own modules are imported.
NEVER = (
    "exec", "compile", "pickle.find_class", "marshal.load", "code.__new__", "function.__new__", "import", "os.", "subprocess.",
    "socket.", "shutil.", "ctypes.", "tempfile.", "urllib.", "mmap.", "pty.", "webbrowser.", "sys.addaudithook", "fcntl.",
)  # fmt: skip
HARMLESS = ("os.listdir", "os.scandir")
SYSTEM = ("/proc/", "/sys/", "/dev/null", "/usr/share/zoneinfo")


@dataclass(frozen=True)
class Failure:
    """What a file made a reader do.

    Attributes
    ----------
    kind
        ``crash``, ``slow``, ``memory``, ``executed``, ``state``, ``message`` or ``accepted``.
    where
        The same for failures of one cause.
    """

    kind: str
    where: str
    detail: str


class Stopped(BaseException):
    """The time was over."""


class Watch:
    """Notes suspicious audit events while it is on; a hook cannot be taken off again, so there is one a process."""

    def __init__(self) -> None:
        self.on = False
        self.inside = ""
        self.allowed: tuple[str, ...] = ()
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    @contextmanager
    def over(self, folder: Path, allowed: tuple[str, ...]) -> Iterator[list[str]]:
        """Watch the block, in which files inside `folder` may be read, and events in `allowed` raised."""
        self.seen, self.inside, self.allowed, self.on = [], f"{folder}{os.sep}", (*HARMLESS, *allowed), True
        try:
            yield self.seen
        finally:
            self.on = False

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            said = _odd_open(args, self.inside)
            if said:
                self.seen.append(said)
        elif event.startswith(NEVER) and event not in self.allowed:
            self.seen.append(f"{event}: {str(args[:1])[:100]}")


_WATCH: list[Watch] = []


def check(read: Callable[[Path], None], path: Path, folder: Path, allowed: tuple[str, ...] = ()) -> Failure | None:
    """Read a file and return what was wrong with how that went, or None.

    Parameters
    ----------
    folder
        Whose files may be read.
    allowed
        Audit events that may be raised.

    What looks suspicious is looked at a second time: the first may have imported a module, or met a busy machine.
    """
    failure = _once(read, path, folder, allowed)
    if failure is not None and failure.kind in ("executed", "slow"):
        return _once(read, path, folder, allowed)
    return failure


def _once(read: Callable[[Path], None], path: Path, folder: Path, allowed: tuple[str, ...]) -> Failure | None:
    if not _WATCH:
        _WATCH.append(Watch())
    state, peak, started = _state(), _peak(), time.process_time()
    failure, crash = None, None
    with _stopped(STOP_AFTER), _WATCH[0].over(folder, allowed) as seen:
        try:
            read(path)
        except AuditError as error:
            if len(str(error)) > LONGEST_MESSAGE:
                failure = Failure("message", f"{type(error).__name__}, {str(error)[:40]}", f"{len(str(error)):,} characters")
        except Stopped as stopped:
            crash = stopped
        except Exception as error:
            crash = error
    seconds, grown = time.process_time() - started, _peak() - peak
    if isinstance(crash, Stopped):
        return Failure("slow", _where(crash.__traceback__), f"stopped after {STOP_AFTER:g} s")
    if crash is not None:
        trace = "".join(traceback.format_exception(crash))[-4000:]
        return Failure("crash", f"{type(crash).__name__} in {_where(crash.__traceback__)}", trace)
    if seen:
        return Failure("executed", seen[0].partition(":")[0], "\n".join(seen[:20]))
    if failure is None and grown > MOST_GROWTH:
        return Failure("memory", "growth", f"{grown / 2**20:,.0f} MiB")
    if failure is None and seconds > MOST_SECONDS:
        return Failure("slow", f"over {MOST_SECONDS:g} s", f"{seconds:.1f} s")
    if failure is None and _state() != state:
        return Failure("state", "the process", f"{state} became {_state()}")
    return failure


def accepted(what: str) -> None:
    """Say that a file was accepted that must never be."""
    raise AssertionError(f"accepted: {what}")


@contextmanager
def _stopped(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Stopped

    before = signal.signal(signal.SIGALRM, stop)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    started = time.monotonic()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:  # the test's own limit
            signal.setitimer(signal.ITIMER_REAL, max(0.01, left - (time.monotonic() - started)))


def _odd_open(args: tuple[Any, ...], inside: str) -> str:
    path, mode, flags = args
    if isinstance(path, int):
        return ""
    name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else str(path)
    wanted = flags if isinstance(flags, int) else 0
    if set(mode or "") & set("wax+") or wanted & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        return f"open to write: {name[:100]}"
    if name.startswith((inside, *SYSTEM)) and ".." not in name:
        return ""
    return f"open: {name[:100]}"


def _state() -> tuple[Any, ...]:
    return (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        sys.getrecursionlimit(),
        str(Path.cwd()),
        torch.nn.functional.relu,
        torch.nn.Linear.forward,
        torch.nn.Module.__call__,
        len(os.environ),
    )


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _where(trace: Any) -> str:
    """Return the last line of audit's own in a traceback."""
    frames = [frame for frame in traceback.extract_tb(trace) if f"{os.sep}audit{os.sep}" in frame.filename]
    if not frames:
        return "the test"
    last = frames[-1]
    return f"{last.filename.rpartition(f'{os.sep}audit{os.sep}')[2]}:{last.name}:{last.lineno}"
