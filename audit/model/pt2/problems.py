"""What can be wrong with a ``.pt2`` file: each message goes on where the file's name left off."""

from __future__ import annotations

from typing import Any


class Problem(Exception):
    """The file is damaged, or holds a program that cannot be audited."""


class Executes(Problem):
    """The file holds something that torch's own loader would run."""


def short(value: Any) -> str:
    """Return a hostile value as text that is short enough to be read: never more work than its first characters."""
    if isinstance(value, str):
        return repr(value[:100])
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if value.bit_length() < 200 else "a huge number"
    return f"a {type(value).__name__}"
