"""The only door through which the user's own code comes in: ``--arch`` and ``--preprocess``, both ``FILE.py:NAME``.

Nothing else in audit imports a file that was named at run time, and a configuration file can never name one.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from audit.errors import UsageError, closest
from audit.files import read_file


@dataclass(frozen=True)
class UserCode:
    """A callable that the user named, and the hash of the source that it came from."""

    function: Callable[..., Any]
    spec: str
    sha256: str


def load_code(spec: str, option: str) -> UserCode:
    """Import ``MODULE:NAME`` or ``FILE.py:NAME`` and return the callable.

    Parameters
    ----------
    spec
        What the user wrote, for instance ``nets.py:SmallCNN`` or ``mypackage.nets:SmallCNN``.
    option
        The option that it came from, named in errors, for instance ``--arch``.

    Raises
    ------
    UsageError
        The file or module is missing, fails to import, or has no such callable.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise UsageError(f"{option} needs FILE.py:NAME or MODULE:NAME, got {spec!r}; for instance nets.py:SmallCNN")
    module, sha256 = _import_file(Path(place), option) if place.endswith(".py") else _import_module(place, option)
    function: Any = module
    for part in name.split("."):
        if not hasattr(function, part):
            known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
            raise UsageError(f"{option}: {place} has no {name!r}; {closest(name, known)}")
        function = getattr(function, part)
    if not callable(function):
        raise UsageError(f"{option}: {spec} should be a class or a function, got {type(function).__name__}")
    return UserCode(function, spec, sha256)


def _import_file(path: Path, option: str) -> tuple[Any, str]:
    if not path.is_file():
        raise UsageError(f"{option}: expected a Python file, found none at {path}")
    source = read_file(path, "Python file", UsageError)
    sha256 = hashlib.sha256(source).hexdigest()
    name = f"_audit_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    # A file finds its neighbours as it does when it is run as a script.
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        # The very bytes that were hashed are run: Python's importer would take a stale .pyc that looks as old as the file.
        exec(compile(source, str(path), "exec"), module.__dict__)  # noqa: S102
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UsageError(f"{option}: {path} failed while it was imported: {_short(error)}") from error
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    return module, sha256


def _import_module(name: str, option: str) -> tuple[Any, str]:
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        hint = f"; for a file write {name}.py" if isinstance(error, ModuleNotFoundError) else ""
        raise UsageError(f"{option}: module {name!r} cannot be imported: {_short(error)}{hint}") from error
    file = getattr(module, "__file__", None)
    source = Path(file).read_bytes() if file and Path(file).is_file() else repr(module).encode()
    return module, hashlib.sha256(source).hexdigest()


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0][:300]}"
