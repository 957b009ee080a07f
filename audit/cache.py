"""Stores finished jobs, so that a run that was killed goes on where it stopped. Arrays and numbers only: no pickles."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audit.result import Passes, make_folder, own_folder, write_atomically

COST = "__cost__"
KEY = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class FinishedJob:
    """Arrays that a job returned, and what it cost."""

    arrays: dict[str, NDArray[Any]]
    cost: Passes


def run_key(parts: Mapping[str, Any]) -> str:
    """Hash everything that a job's result depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


class Cache:
    """Finished jobs of one run under ``<out>/.jobs/<key>``; with `out` None nothing is stored.

    Parameters
    ----------
    out
        The run's output folder.
    key
        Hash of what the jobs depend on; jobs under other keys are deleted, since they can never be asked for again by this run.
    fresh
        Forget what is stored.
    """

    def __init__(self, out: Path | None, key: str, *, fresh: bool = False) -> None:
        self.folder: Path | None = None
        if out is None:
            return
        jobs = own_folder(make_folder(out), ".jobs")
        if jobs.is_dir():
            for other in jobs.iterdir():
                # Only what this class makes is deleted: folders named by a key, and never through a link.
                if KEY.fullmatch(other.name) and not other.is_symlink() and (fresh or other.name != key):
                    shutil.rmtree(other, ignore_errors=True)
        self.folder = make_folder(own_folder(jobs, key))

    def get(self, stage: str, start: int) -> FinishedJob | None:
        """Return a stored job; None where it is missing or damaged (it is then done again)."""
        path = self._path(stage, start)
        if path is None or not path.is_file():
            return None
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            cost = arrays.pop(COST)
            return FinishedJob(arrays, Passes(forwards=int(cost[0]), backwards=int(cost[1]), seconds=float(cost[2])))
        except Exception:  # what NumPy and zipfile raise on damaged archives is of every kind, up to MemoryError
            return None

    def put(self, stage: str, start: int, job: FinishedJob) -> None:
        """Store a job at once, beside its place and renamed."""
        path = self._path(stage, start)
        if path is None:
            return
        cost = np.asarray([job.cost.forwards, job.cost.backwards, job.cost.seconds], dtype=np.float64)
        buffer = io.BytesIO()
        np.savez(buffer, **job.arrays, **{COST: cost})  # type: ignore[arg-type]
        write_atomically(path, buffer.getvalue())

    def _path(self, stage: str, start: int) -> Path | None:
        return None if self.folder is None else self.folder / f"{stage}-{start}.npz"
