"""Says how far a run is and how long it will take: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, TextIO

from audit.plain import plain


class Progress:
    """Counts passes done of passes planned and says so on stderr.

    Parameters
    ----------
    quiet
        Say nothing.
    stream
        Where to write; stderr where None.
    every
        Seconds between two plain lines.
    """

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None, every: float = 10.0) -> None:
        self.stream = stream or sys.stderr
        self.quiet, self.every = quiet, every
        self.total = self.done = self.reused = 0.0
        self.started = self.said = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if not self.quiet and self.stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeRemainingColumn(),
                console=Console(file=self.stream),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("planning", total=None)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def plan(self, passes: float) -> None:
        """State the expected passes of the whole run."""
        self.total, self.started = passes, time.monotonic()
        self.done = self.reused = 0.0  # one Progress serves several runs, as in the demo
        if self._bar is not None:
            self._bar.update(self._task, total=max(passes, 1.0))

    def say(self, text: str) -> None:
        """Write lines, above the bar where there is one; hostile characters in them are made visible."""
        if self.quiet:
            return
        text = plain(text, newlines=True)
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self.stream, flush=True)

    def advance(self, stage: str, passes: float, *, reused: bool = False) -> None:
        """Count a finished job; `reused` ones cost no time and do not speed up the estimate."""
        self.done += passes
        self.reused += passes if reused else 0.0
        if self._bar is not None:
            self._bar.update(self._task, completed=min(self.done, self.total), description=stage)
            return
        now = time.monotonic()
        if self.quiet or now - self.said < self.every:
            return
        self.said = now
        print(f"  {self._share():.0%} done, {stage}, about {self.left():.0f} s left", file=self.stream, flush=True)

    def left(self) -> float:
        """Estimate the seconds that are left, from the passes that this process made itself."""
        worked = self.done - self.reused
        return (time.monotonic() - self.started) / worked * max(0.0, self.total - self.done) if worked else 0.0

    def _share(self) -> float:
        return min(1.0, self.done / self.total) if self.total else 0.0
