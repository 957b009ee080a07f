"""Every error that audit raises on purpose, each with the exit code that the command line ends with.

::

    AuditError
     ├─ UsageError          2    an option, a configuration or an output folder that cannot be used
     │   └─ OutputError     2    results cannot be written
     ├─ InputError          3    the model or the data could not be loaded, or do not fit
     │   ├─ ModelError      3
     │   │   └─ ModelRefused  3  the file could execute code: refused before anything in it ran
     │   └─ DataError       3
     ├─ IncompleteError     4    the evidence is too weak to go on (clean accuracy is not the one that was stated)
     └─ PolicyFailed        1 or 4   raised by ``audit.require``: a limit failed, or was not decided

`BudgetSpent` stands apart: it stops the work of a run inside a run, which then ends as incomplete.

A message says what was expected, what was got, and how to mend it.
"""

from __future__ import annotations


class AuditError(Exception):
    """Base of all errors that audit raises on purpose."""

    exit_code = 5


class UsageError(AuditError):
    """An option or a configuration value cannot be used."""

    exit_code = 2


class OutputError(UsageError):
    """The output folder cannot be written."""


class InputError(AuditError):
    """The model or the data could not be loaded, or do not fit each other."""

    exit_code = 3


class ModelError(InputError):
    """The model file could not be loaded, or the network cannot be audited."""


class ModelRefused(ModelError):
    """The model file could execute code, so it was refused before anything in it ran."""


class DataError(InputError):
    """The data could not be loaded, or hold something that the network cannot take."""


class IncompleteError(AuditError):
    """What was measured contradicts what was stated, so that nothing that follows could be believed."""

    exit_code = 4


class PolicyFailed(AuditError):
    """The verdict is not *pass*: at least one limit failed, was not decided, or there were none."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class BudgetSpent(BaseException):
    """The wall clock of a run is spent (``--budget``).

    No Exception: where a check or an explainer takes any exception of the network's for an answer, this must not be one.
    """


def closest(name: str, known: list[str]) -> str:
    """Return ``"; did you mean …?"`` where something like `name` is known, else the list of what is known."""
    import difflib

    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {match[0]!r}?" if match else f"known: {', '.join(sorted(known)) or 'none'}"
