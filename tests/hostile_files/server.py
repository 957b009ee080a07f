"""Runs each case in a process of its own, forked from one that has imported everything: a second of imports is paid once.

Started as ``python -m tests.hostile_files.server``; takes one request a line as JSON, and answers with one line.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import select
import signal
import sys
import time
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

HARD_LIMIT = 4 * 2**30  # of the memory that a case may ask for before it is stopped: what is allowed is measured, and less
EXHAUSTED = 2**30
NEVER_ENDS = 1.0  # seconds after which another reader's process is stopped
RECORDED = (
    "os.",
    "shutil.",
    "subprocess.",
    "socket.",
    "ctypes.dlopen",
    "pickle.find_class",
    "exec",
    "object.__setattr__",
    "pty.",
)
DECLARING = ("/inspect.py", "/typing.py", "/dataclasses.py", "/collections/__init__.py")
# What our own process does on the way to a message: it looks, and starts nothing.
HARMLESS = ("os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.putenv", "os.unsetenv", "os.listxattr", "os.getxattr")


def main() -> None:
    request = json.loads(sys.stdin.readline())
    _prepare(request)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), flush=True)


def _prepare(request: dict[str, Any]) -> None:
    import importlib

    import torch

    torch.set_num_threads(1)
    if request["what"] == "proofs":
        from tests.hostile_files.case import corpus

        global CASES  # noqa: PLW0603 - the processes that are forked off find the cases here
        CASES = {case.id: case for case in corpus()}
        for name in OF_THE_LOADERS:
            importlib.import_module(name)
        return
    import pkgutil

    from PIL import Image

    import audit

    Image.init()  # Pillow imports all its readers where a picture is damaged
    # What honest files make audit import is imported before: what a hostile one imports beyond it, shows.
    for module in pkgutil.walk_packages(audit.__path__, "audit."):
        if not module.name.endswith("__main__"):
            with contextlib.suppress(ImportError):  # extras that are not installed
                importlib.import_module(module.name)
    honest = _forked(partial(_imports, request["honest"]), 120)
    assert honest["value"], honest
    for name in honest["value"]:
        if name not in sys.modules:
            with contextlib.suppress(Exception):
                importlib.import_module(name)


CALLABLE = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType)
OF_THE_LOADERS = ("torch._export.serde.serialize", "torch.export.pt2_archive._package", "onnx", "pandas", "PIL.Image")
CASES: dict[str, Any] = {}


def _imports(commands: list[list[str]]) -> list[str]:
    for argv in commands:
        code = _command(argv)
        assert code in (0, 3), (code, argv)  # TorchScript is inspected and refused
    # In the order in which they were imported.
    return list(sys.modules)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    gc.collect()
    gc.freeze()
    if "commands" in request:
        return _forked(lambda: _audited(request), request["limit"], request)
    return _forked(lambda: _proven(request), NEVER_ENDS if request["exhausts"] else 60, request)


# --- one process a request ----------------------------------------------------------------------------------------------


def _forked(work: Any, limit: float, request: dict[str, Any] | None = None) -> dict[str, Any]:
    """Do `work` in a child; return what it returned, how it ended, and the time and memory that it took."""
    said = os.memfd_create("said")
    returned = os.memfd_create("returned")
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _in_child(work, said, returned, request)
    watched = os.pidfd_open(child)
    in_time = _ended(watched, limit, (request or {}).get("until"))
    os.close(watched)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    _, status, used = os.wait4(child, 0)
    answer = json.loads(_content(returned) or b"{}")
    return {
        "value": answer.get("value"),
        "error": answer.get("error"),
        "said": _content(said).decode(errors="surrogateescape"),
        "seconds": time.monotonic() - started,
        "grew": answer.get("grew", used.ru_maxrss * 1024),
        "late": not in_time,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) and in_time else 0,
    }


def _ended(watched: int, limit: float, until: str | None) -> bool:
    """Wait for the end of a process, or until a file is there; return False where neither comes in time."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        if select.select([watched], [], [], min(limit, 0.1) if until else limit)[0] or (until and os.path.lexists(until)):
            return True
    return False


def _in_child(work: Any, said: int, returned: int, request: dict[str, Any] | None) -> None:
    answer: dict[str, Any] = {}
    before = 0
    try:
        before = _own_memory("VmRSS")
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(said, 1)
        os.dup2(said, 2)
        # What the process has mapped already counts, too.
        extra = EXHAUSTED if request is not None and request.get("exhausts") else HARD_LIMIT
        resource.setrlimit(resource.RLIMIT_AS, (_mapped() + extra,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if request is not None:
            os.chdir(request["cwd"])
            os.environ.update(HOME=request["cwd"], TMPDIR=request["cwd"])
            sys.path[0] = request["cwd"]
        answer = {"value": work()}
    except BaseException as error:
        text = "".join(str(error).splitlines(keepends=True)[:4])[:500]
        answer = {"error": f"{type(error).__name__}: {text}"}
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
            answer["grew"] = _own_memory("VmHWM") - before
        os.write(returned, json.dumps(answer, default=str).encode("utf-8", "replace"))
        os._exit(0)


def _content(file: int) -> bytes:
    os.lseek(file, 0, os.SEEK_SET)
    content = os.read(file, 2**24)
    os.close(file)
    return content


def _own_memory(kind: str) -> int:
    """Return what the process holds of its own now, or held at most: pages of files come and go with what is looked at."""
    said = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return (int(said[kind].split()[0]) - int(said["RssFile"].split()[0])) * 1024


def _mapped() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


# --- the work -----------------------------------------------------------------------------------------------------------


def _command(argv: list[str]) -> int:
    from audit import cli

    sys.argv = ["audit", *argv]
    try:
        cli.main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else -1
    return -2


def _audited(request: dict[str, Any]) -> dict[str, Any]:
    """Run commands one after another and say what each did besides."""
    events: list[str] = []
    allowed = tuple(request["reads"])
    out = request["out"]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        said = _remark(event, arguments, allowed, out)
        if said is not None:
            events.append(said)

    sys.addaudithook(watch)
    found = {}
    for way, argv in request["commands"].items():
        found[way] = _one_command(argv, events)
        events.clear()
    return found


def _one_command(argv: list[str], events: list[str]) -> dict[str, Any]:
    marks, modules = fingerprint(), set(sys.modules)
    with suppressed_events(events):
        Path("/proc/self/clear_refs").write_text("5")  # the most memory that was held is counted from here
        memory, at = _own_memory("VmRSS"), os.lseek(1, 0, os.SEEK_END)
    started = time.process_time()  # a busy machine makes no file hostile; what waits without end is stopped by the clock
    code = _command(argv)
    seconds = time.process_time() - started
    seen = list(events)
    sys.stdout.flush()
    sys.stderr.flush()
    return {
        "code": code,
        "seconds": seconds,
        "grew": _own_memory("VmHWM") - memory,
        "said": os.pread(1, 2**20, at).decode(errors="backslashreplace"),
        "events": seen[:20],
        "changed": _differences(marks, fingerprint()),
        "modules": sorted(name for name in set(sys.modules) - modules if not _ours(name)),
    }


@contextlib.contextmanager
def suppressed_events(events: list[str]) -> Iterator[None]:
    """Forget what was recorded meanwhile: it is our own."""
    held = list(events)
    yield
    events[:] = held


def _ours(name: str) -> bool:
    return name.split(".", maxsplit=1)[0] in ("audit", "torch", "numpy") or name.startswith("_audit_user_")


def _remark(event: str, arguments: tuple[Any, ...], reads: tuple[str, ...], out: str) -> str | None:
    """Return what is odd about an event of the interpreter; None where audit itself does such things."""
    if event == "open":
        return _opened(arguments, reads, out)
    if not event.startswith(RECORDED) or event in HARMLESS or (event == "subprocess.Popen" and arguments[0] == "git"):
        return None  # the version of audit is asked of git
    if event == "exec" and (_is_installed(getattr(arguments[0], "co_filename", "")) or _declares()):
        return None
    if event == "object.__setattr__" and not isinstance(arguments[0], type) and not callable(arguments[0]):
        return None
    if event == "exec":
        return f"exec {getattr(arguments[0], 'co_filename', arguments[0])} {getattr(arguments[0], 'co_name', '')}"[:300]
    shown = [os.fsdecode(part) if isinstance(part, str | bytes | os.PathLike) else type(part).__name__ for part in arguments]
    if shown and event.startswith(("os.", "shutil.")) and all(part.startswith(out) for part in shown if part.startswith("/")):
        return None
    return f"{event} {' '.join(shown)}"[:300]


def _declares() -> bool:
    """Tell whether a declaration of a class or of the command line is what evaluates a text now."""
    frame = sys._getframe(3)
    return frame.f_code.co_filename.endswith(DECLARING)


def _opened(arguments: tuple[Any, ...], reads: tuple[str, ...], out: str) -> str | None:
    path, _, flags = arguments
    if not isinstance(path, str | bytes | os.PathLike):
        return None
    where = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - a link is to be seen as what it is
    writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    if where.startswith((out, "/dev/null")) or (not writes and (_is_installed(where) or where.startswith(reads))):
        return None
    if not writes and where.startswith(("/proc/", "/sys/", "/usr/", "/etc/")):
        return None  # the machine's memory, time zones, file types
    return f"open {where} {'to write' if writes else 'to read'}"


def _is_installed(where: str) -> bool:
    return where.startswith((sys.prefix, sys.base_prefix, "<frozen", str(ROOT / "audit"), str(ROOT / "reports"))) or (
        where.endswith("/nets.py") and "/good/" in where
    )


ROOT = Path(__file__).resolve().parents[2]


def _proven(request: dict[str, Any]) -> dict[str, Any]:
    """Open the file as its proof says."""
    from tests.hostile_files.case import Place

    case = CASES[request["case"]]
    place = Place(Path(request["at"]), Path(request["canary"]), Path(request["secret"]))
    before = fingerprint() if case.proof.kind == "changes" else {}
    error, value = "", None
    try:
        value = case.proof.open(place.at / case.file, place)
    except MemoryError:
        raise
    except Exception as problem:
        error = f"{type(problem).__name__}: {problem}"[:2000]
    changed = _differences(before, fingerprint()) if before else []
    shown = value if isinstance(value, list | tuple) else [value]
    return {"error": error, "value": [str(part)[:2000] for part in shown][:2], "changed": changed}


# --- what a file must not change ----------------------------------------------------------------------------------------


def fingerprint() -> dict[str, Any]:
    """Return what the functions and classes of torch.nn and of Python are now: each by its identity and its insides."""
    import builtins
    import copyreg
    import functools
    import operator

    import torch
    from torch.nn.modules import module as base

    marks: dict[str, Any] = {}
    functions = torch.nn.functional
    owners = [
        functions,
        torch,
        torch._utils,
        torch.serialization,
        builtins,
        os,
        sys.modules["pickle"],
        functools,
        operator,
        copyreg,
    ]
    for owner in (*owners, base, json, sys.modules["zipfile"], Path):
        _mark(marks, owner)
    for name, cls in vars(torch.nn).items():
        if isinstance(cls, type):
            _mark(marks, cls, name)
    marks["hooks"] = [len(held) for name, held in vars(base).items() if name.startswith("_global_") and isinstance(held, dict)]
    marks["registries"] = (len(copyreg.dispatch_table), len(copyreg._extension_registry))  # type: ignore[attr-defined]
    marks["defaults"] = (str(torch.get_default_dtype()), torch.is_grad_enabled(), torch.get_num_threads())
    marks["process"] = (tuple(sys.meta_path and map(str, sys.path)), sorted(os.environ), os.umask(os.umask(0)))
    return marks


def _mark(marks: dict[str, Any], owner: Any, name: str = "") -> None:
    name = name or getattr(owner, "__name__", repr(owner))
    for key, held in list(vars(owner).items()):
        if key in ("__doc__", "__builtins__", "__warningregistry__", "__annotations__", "_abc_impl"):
            continue
        inside: tuple[Any, ...] = ()
        if isinstance(held, types.FunctionType):
            inside = (id(held.__code__), str(held.__defaults__), str(held.__kwdefaults__), sorted(map(str, vars(held))))
        # Lazily loaded parts of torch appear as new names: a name that was there must stay what it is.
        marks[f"{name}.{key}"] = (id(held), type(held).__name__, inside) if isinstance(held, CALLABLE) else type(held).__name__


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    changed = [key for key in before if key in after and before[key] != after[key]]
    gone = [key for key in before if key not in after]
    # A class has all its attributes from the beginning, a module of torch gains submodules.
    new = [key for key in after if key not in before and key.split(".")[0][:1].isupper()]
    return (changed + gone + new)[:10]


if __name__ == "__main__":
    main()
