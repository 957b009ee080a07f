"""What the two tests of the corpus share: the cases as parameters, their files, and the process that forks for each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hostile_files.case import SECRET, Case, Place, corpus

ROOT = Path(__file__).resolve().parents[2]
CASES = corpus()
PARAMETERS = [pytest.param(case, id=case.id, marks=[] if case.quick else pytest.mark.slow) for case in CASES]
MOST_MEMORY = 2**30


class Server:
    """A process that has imported everything, and forks for each request."""

    def __init__(self, what: str, honest: list[list[str]]) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "MPLBACKEND": "agg",
        }
        environment |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile_files.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        self._say({"what": what, "honest": honest})
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, **request: Any) -> dict[str, Any]:
        self._say(request)
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def _say(self, request: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(20)


def made(case: Case, folder: Path) -> Place:
    """Make a case's files in a folder of its own."""
    folder.mkdir(exist_ok=True)
    place = Place(folder / "file", folder / "canary", folder / "secret")
    place.at.mkdir()
    (folder / "cwd").mkdir()
    place.secret.write_text(SECRET)
    case.make(place)
    return place
