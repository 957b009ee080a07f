r"""Keeps what is printed from becoming a command of the machine that runs a CI job, whatever names it holds.

GitHub's runner takes a line that begins with ``::name …::`` for a command, also behind blanks, and so it takes ``##[name …]``
wherever it stands in a line (Azure's ``##vso[`` likewise): a file of the name ``x\n::add-mask::a`` or a class of the name
``##[stop-commands]x`` would otherwise mask words of the log, end groups, or silence the annotations that follow.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterable
from typing import Any, TextIO

_AT_LINE_START = re.compile(r"(?:^|(?<=[\r\n]))([^\S\r\n]*):(?=:)")  # the runner ends a line at a carriage return, too
LONGEST_COMMAND = 32  # characters that the beginning of one takes
_ANYWHERE = re.compile(r"#(?=#(?:vso|teamcity)?\[)", re.IGNORECASE)


def harmless(text: str) -> str:
    r"""Return `text` with each beginning of a CI command made visible: ``\x3a:error::`` and ``\x23#[error]``.

    ``::`` is one at the start of a line alone; everything else comes back as it is.
    """
    if "::" not in text and "##" not in text:
        return text
    return _ANYWHERE.sub(r"\\x23", _AT_LINE_START.sub(r"\1\\x3a", text))


def harmless_json(text: str) -> str:
    """Return the same JSON in characters that hold no command: lines of JSON begin with none, and ``##`` stands in strings."""
    return text.replace("##", "#\\u0023")


class Guarded:
    """A text stream that writes whole lines `harmless`, and the beginning of one when it is flushed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._waiting = ""
        self._said = ""  # the end of what was written of a line that has none yet

    def write(self, text: str) -> int:
        """Write whole lines; the beginning of one waits for its end or for `flush`."""
        whole, newline, rest = (self._waiting + text).rpartition("\n")
        self._waiting = rest
        if newline:
            self._send(whole + newline)
            self._said = ""
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write one text after another."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write what there is, also of a line that has no end yet."""
        if self._waiting:
            text, self._waiting = self._waiting, ""
            self._send(text)
            self._said += text
            if len(self._said) > LONGEST_COMMAND:
                self._said = "…" + self._said[-LONGEST_COMMAND:]
        self._stream.flush()

    def _send(self, text: str) -> None:
        if not self._said:
            self._stream.write(harmless(text))
            return
        # What was said and what follows may make a command of two halves, neither of which is one.
        shown = harmless("…" + text)[1:]
        first = text.partition("\n")[0]
        if harmless(self._said + first) != self._said + harmless("…" + first)[1:]:
            shown = "\\" + shown
        self._stream.write(shown)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def unguarded(stream: Any) -> Any:
    """Return the stream below the guard, for what is meant as a command."""
    return stream._stream if isinstance(stream, Guarded) else stream


def guard_log() -> None:
    """Guard standard output and error in a CI job, which reads them, or the file that they lead to, as its log."""
    if not (os.environ.get("GITHUB_ACTIONS") or os.environ.get("TF_BUILD") or os.environ.get("TEAMCITY_VERSION")):
        return
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, Guarded):
            setattr(sys, name, Guarded(stream))


def leads_to_file(stream: Any) -> bool:
    """Tell whether a stream writes a file, as after ``>``."""
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError, AttributeError):
        return False
