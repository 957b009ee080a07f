"""Each file of the corpus is hostile: other readers execute it, are exhausted by it, or have learnt to refuse it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hostile_files.case import SECRET, Case, Place
from tests.hostile_files.harness import MOST_MEMORY, PARAMETERS, Server, made

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def loaders() -> Iterator[Server]:
    server = Server("proofs", [])
    yield server
    server.end()


@pytest.mark.parametrize("case", PARAMETERS)
def test_the_file_is_hostile(case: Case, loaders: Server, tmp_path: Path):
    """Otherwise the test above would prove nothing: another reader executes it, is exhausted by it, or refuses it itself."""
    place = made(case, tmp_path)
    request = {"case": case.id, "at": str(place.at), "canary": str(place.canary), "secret": str(place.secret)}
    until = str(place.canary) if case.proof.kind == "runs" else None
    found = loaders.ask(**request, until=until, cwd=str(tmp_path / "cwd"), exhausts=case.proof.kind == "exhausts")
    done = found["value"] or {"error": found["error"] or "", "value": [], "changed": []}
    assert _is_proven(case, place, found, done), f"{case.proof.kind}: {found}"


def _is_proven(case: Case, place: Place, found: dict[str, Any], done: dict[str, Any]) -> bool:
    kind, error = case.proof.kind, done["error"]
    if kind == "runs":
        return os.path.lexists(place.canary)
    if kind == "changes":
        return bool(done["changed"])
    if kind == "exhausts":
        refused = re.search("MemoryError|bad_alloc|not enough memory|allocate|bad allocation|realloc", error)
        return bool(refused or found["late"] or found["signal"] or found["grew"] > MOST_MEMORY)
    if kind == "escapes":
        return any(SECRET in part or "\x1b" in part for part in done["value"])
    if kind == "differs":
        return len(set(done["value"])) == 2
    return (
        bool(error)
        and bool(re.search(case.proof.words, error + found["said"]))
        and not found["late"]
        and not os.path.lexists(place.canary)
    )
