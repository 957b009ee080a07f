"""Walls around a whole command, for a model file that is trusted with running its code but not with the machine: ``--sandbox``.

The command runs again in a child process that has no network, writes below ``--out`` and a private temporary folder alone,
reads Python, the system's libraries and the files that the command names, sees none of the secrets in the environment, and ends
with all that it started. The walls stand before the model is opened:

- files: Landlock;
- the network, other sockets, other processes' memory, the kernel's odd corners: a filter of system calls (seccomp);
- where the system lets us, also namespaces: a network without a cable, and no other process in sight.

Without the first two nothing is run. It is the command line's alone: no library can wall in the process of its caller. It
neither bounds memory and time nor keeps the program from printing. The parts: the process that was called (outside) starts a
child (between), which makes the namespaces and starts the one that goes on with the command (inside).
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from audit.config import parse_setting, read_toml
from audit.errors import AuditError, UsageError
from audit.files import read_file
from audit.plain import plain
from audit.sandbox import landlock, namespaces, paths, seccomp

MARK = "AUDIT_SANDBOX_CHILD"
PAGE, ENDED = "page.html", "ended"
MOST_PAGE = 2**30
INTERRUPTED = 130
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
START = (
    f"import json, os, sys; sys.path[:] = json.loads(os.environ[{MARK!r}])['path']; sys.argv[0] = 'audit'; "
    "from audit.cli import main; main()"
)

_kind = ""


@dataclass(frozen=True)
class Wanted:
    """What a command reads and writes, as it was asked for on the command line.

    Attributes
    ----------
    reads
        Model, data and other files; what is no path (``sklearn:digits``) is passed over.
    code
        ``FILE.py:NAME`` of ``--arch`` and ``--preprocess``.
    config, settings
        audit.toml and ``--set``, which name data, too.
    out
        Folder for results, made where it is missing; what the configuration says where None.
    page
        A single file to write in the place of a folder.
    """

    reads: Sequence[str | None] = ()
    code: Sequence[str | None] = ()
    config: Path | None = None
    settings: Sequence[str] = ()
    out: Path | None = None
    page: Path | None = None


@dataclass
class _Child:
    """Passes signals on to a child, also those that came before it was there."""

    send: Callable[[int], None] | None = None
    early: list[int] = field(default_factory=list)
    before: dict[int, Any] = field(default_factory=dict)

    def listen(self) -> None:
        for number in PASSED_ON:
            self.before[number] = signal.signal(number, self._pass_on)

    def put_back(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def is_there(self, send: Callable[[int], None]) -> None:
        self.send = send
        for number in self.early:
            send(number)

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        if self.send is None:
            self.early.append(number)
        else:
            with contextlib.suppress(ProcessLookupError):
                self.send(number)


def kind() -> str:
    """Return which walls stand around this process, for the report; empty where none do."""
    return _kind


def lacking() -> list[str]:
    """Return what the sandbox needs and this system lacks."""
    if not sys.platform.startswith("linux"):
        return [f"Linux (this is {sys.platform})"]
    missing = [] if landlock.version() else ["file rules (Landlock: Linux 5.13 or newer, with landlock in its list of modules)"]
    return [*missing, *filter(None, [seccomp.lacking()])]


def enter(wanted: Wanted) -> Path | None:
    """Go on inside the walls: the calling process runs the command in a child and ends as that ends; the child returns.

    Returns
    -------
    Path or None
        Where to write the page, inside the walls; None where a folder was asked for.

    Raises
    ------
    UsageError
        The system lacks what the walls are made of, or the output folder is none to let a program write to.
    """
    missing = lacking()
    if missing:
        raise UsageError(
            f"--sandbox cannot be made here: the system lacks {' and '.join(missing)}; nothing was run. "
            "Use another machine, or a container or virtual machine without network"
        )
    said = os.environ.pop(MARK, None)
    if said is None:
        _outside(wanted)
    return _between(wanted, json.loads(said))


# --- outside: the process that was called ------------------------------------------------------------------------------


def _outside(wanted: Wanted) -> NoReturn:
    private = Path(tempfile.mkdtemp(prefix="audit-sandbox-"))
    code = 5
    try:
        code = _end(_run(private))
        if code == 0 and wanted.page is not None:
            _keep_page(private / PAGE, wanted.page)
    except AuditError as error:
        print(f"audit: {plain(str(error))}", file=sys.stderr)
        code = error.exit_code
    finally:
        with contextlib.suppress(OSError, RecursionError):
            shutil.rmtree(private)
    _leave(code)


def _run(private: Path) -> int:
    said = {"private": str(private), "path": [os.path.abspath(entry) for entry in sys.path], "home": str(Path.home())}  # noqa: PTH100
    child = _Child()
    child.listen()
    try:
        process = subprocess.Popen(  # noqa: S603 - this very program, with the arguments that it was given
            [sys.executable, "-P", "-c", START, *sys.argv[1:]],
            env={**paths.environment(private), MARK: json.dumps(said)},
            stdin=subprocess.DEVNULL,
            close_fds=True,
            start_new_session=True,  # a terminal's Ctrl-C comes once, from here; and the child cannot type into the terminal
        )
        child.is_there(process.send_signal)
        return process.wait()
    except OSError as error:
        raise UsageError(f"--sandbox cannot start {sys.executable}: {error.strerror or error}; nothing was run") from None
    finally:
        child.put_back()


def _end(code: int) -> int:
    """Return the exit code for how a child ended, and say so where a signal killed it."""
    if code >= 0:
        return code
    number = -code
    if number in PASSED_ON:
        return INTERRUPTED
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = str(number)
    print(f"audit: the process in the sandbox was killed by signal {name}: nothing was concluded", file=sys.stderr)
    return 5


def _keep_page(page: Path, place: Path) -> None:
    from audit.result import make_folder, write_atomically

    make_folder(place.parent)
    write_atomically(place, read_file(page, "page", AuditError, MOST_PAGE))


def _leave(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the command was run, by the child: nothing of this process's own is left to do


# --- between: makes the namespaces, and waits --------------------------------------------------------------------------


def _between(wanted: Wanted, said: Mapping[str, Any]) -> Path | None:
    private = Path(said["private"])
    writable, reads = [private], [Path(said["private"])]
    if wanted.page is None:
        from audit.result import make_folder

        out = make_folder(_out(wanted))
        paths.check_writable(out, Path(said["home"]), _code_folders(wanted))
        writable.append(out)
    reads += _named(wanted)
    _only_write_terminals()
    namespaces.die_with_parent()
    namespaces.adopt_orphans()
    isolated = namespaces.isolate()
    child = _Child()
    child.listen()
    pid = os.fork()
    if pid:
        child.is_there(lambda number: os.kill(pid, number))
        code = _end(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        namespaces.end_children()
        if code == 0 and not (private / ENDED).exists():
            print("audit: the network or other code of yours ended the process: nothing was concluded", file=sys.stderr)
            code = 5
        _leave(code)
    child.put_back()
    atexit.register((private / ENDED).touch)  # not where code ends the process past Python
    _inside(list(paths.rules(reads, _code_folders(wanted), writable, Path(said["home"]))), isolated)
    return private / PAGE if wanted.page is not None else None


def _out(wanted: Wanted) -> Path:
    return wanted.out if wanted.out is not None else Path(str(_configured(wanted).get("run", {}).get("out", "audit-out")))


def _configured(wanted: Wanted) -> dict[str, dict[str, Any]]:
    """Return the configuration as far as it names files: what is wrong in it is said by the command itself."""
    raw: dict[str, Any] = read_toml(wanted.config) if wanted.config is not None else {}
    found = {name: dict(section) for name, section in raw.items() if isinstance(section, dict)}
    for setting in wanted.settings:
        section, key, value = parse_setting(setting)
        found.setdefault(section, {})[key] = value
    return found


def _named(wanted: Wanted) -> list[Path]:
    said = _configured(wanted)
    data, run = said.get("data", {}), said.get("run", {})
    names = [*wanted.reads, *(data.get(key) for key in ("source", "reference", "anomalies", "classes")), run.get("baseline")]
    found = [Path(name) for name in names if isinstance(name, str) and name and not name.startswith(("sklearn:", "column:"))]
    return [*found, *([wanted.config] if wanted.config is not None else [])]


def _code_folders(wanted: Wanted) -> list[Path]:
    """Return the folders of the user's code, and of ONNX files, whose weights may lie beside them."""
    code = [Path(spec.rpartition(":")[0]) for spec in wanted.code if spec is not None]
    onnx = [Path(name) for name in wanted.reads if name is not None and name.lower().endswith(".onnx")]
    return [path.resolve().parent for path in [*code, *onnx] if path.suffix.lower() in (".py", ".onnx")]


def _only_write_terminals() -> None:
    """Open the terminals behind standard output and error anew, for writing: what is typed into them is not for the child."""
    for number in (1, 2):
        with contextlib.suppress(OSError):
            if os.isatty(number):
                terminal = os.open(os.ttyname(number), os.O_WRONLY | os.O_NOCTTY)
                os.dup2(terminal, number)
                os.close(terminal)


# --- inside ------------------------------------------------------------------------------------------------------------


def _inside(rules: Sequence[tuple[Path, int]], isolated: bool) -> None:
    """Raise the walls around this process, which has one thread yet."""
    global _kind  # noqa: PLW0603 - what stands around the process is a fact of the process
    import resource

    threads = sum(1 for _ in Path("/proc/self/task").iterdir())
    known = landlock.version()
    if threads != 1:
        raise AuditError(f"the sandbox must be made before any thread is started, and there are {threads}")
    namespaces.die_with_parent()
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        landlock.give_up_privileges()
        landlock.restrict(known, rules)
        namespaces.drop_capabilities()
        also = seccomp.Also(truncation=known < 3, signals=not isolated and known < 6, limits=not isolated)
        seccomp.restrict(also, os.getpid())
    except OSError as error:
        raise UsageError(f"--sandbox cannot be made here: {error.strerror or error}; nothing was run") from None
    walls = [f"Landlock {known}", "seccomp", *(["namespaces for network and processes"] if isolated else [])]
    _kind = f"no network, writes below --out alone ({', '.join(walls)})"
