"""The only door through which the user's own code comes in: ``--arch`` and ``--preprocess``, both ``FILE.py:NAME``.

Nothing else in audit imports a file that was named at run time, and a configuration file can never name one.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audit.errors import UsageError, closest


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
    module = _import_file(Path(place), option) if place.endswith(".py") else _import_module(place, option)
    function: Any = module
    for part in name.split("."):
        if not hasattr(function, part):
            known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
            raise UsageError(f"{option}: {place} has no {name!r}; {closest(name, known)}")
        function = getattr(function, part)
    if not callable(function):
        raise UsageError(f"{option}: {spec} should be a class or a function, got {type(function).__name__}")
    return UserCode(function, spec, _source_hash(module))


def _import_file(path: Path, option: str) -> Any:
    if not path.is_file():
        raise UsageError(f"{option}: expected a Python file, found none at {path}")
    name = f"_audit_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{option}: {path} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    # A file finds its neighbours as it does when it is run as a script.
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UsageError(f"{option}: {path} failed while it was imported: {type(error).__name__}: {error}") from error
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    return module


def _import_module(name: str, option: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:
        hint = f"; for a file write {name}.py" if isinstance(error, ModuleNotFoundError) else ""
        raise UsageError(f"{option}: module {name!r} cannot be imported: {type(error).__name__}: {error}{hint}") from error


def _source_hash(module: Any) -> str:
    file = getattr(module, "__file__", None)
    source = Path(file).read_bytes() if file and Path(file).is_file() else repr(module).encode()
    return hashlib.sha256(source).hexdigest()
