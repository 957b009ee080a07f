"""Damaged files, some hundred of each format: a reader reads them or refuses them, and does nothing else.

``benchmarks/fuzz.py`` does the same with a hundred thousand.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit.errors import ModelError
from tests.fuzzing import mutations, pickles, protobuf
from tests.fuzzing.oracle import MOST_GROWTH, check
from tests.fuzzing.readers import READERS, Reader, Seed, place

CASES = {"pickled": 200, "csv": 200}  # of the others, which are faster, 300


@pytest.fixture(scope="module")
def seeds() -> Callable[[Reader], list[Seed]]:
    """Return real files of a reader, saved once."""
    held: dict[str, list[Seed]] = {}

    def real(reader: Reader) -> list[Seed]:
        if reader.name not in held:
            held[reader.name] = reader.seeds(True)
        return held[reader.name]

    return real


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused_and_nothing_else_happens(name: str, seeds, tmp_path: Path) -> None:
    reader = READERS[name]
    real = seeds(reader)
    path = place(reader, tmp_path)
    for seed in real:  # the reader imports what it needs; a sound file is read, or refused with a reason
        path.write_bytes(seed.content)
        failure = check(partial(_read, reader, seed), path, tmp_path, (*reader.allowed, "import", "exec", "compile", "open"))
        assert failure is None or failure.kind == "executed", failure

    @settings(
        max_examples=CASES.get(name, 300),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**32 - 1))
    def each(number: int) -> None:
        rng = mutations.draws(number)
        seed = rng.choice(real)
        path.write_bytes(mutations.mutate(rng, seed.content, [other.content for other in real], reader.structure))
        failure = check(partial(_read, reader, seed), path, tmp_path, reader.allowed)
        assert failure is None, f"{failure.kind}: {failure.where}\n{failure.detail}"

    each()


def _read(reader: Reader, seed: Seed, path: Path) -> None:
    reader.read(path, seed.shape)


# --- the oracle itself ------------------------------------------------------------------------------------------------


def _crash(_: Path) -> None:
    raise KeyError("x")


def _write(path: Path) -> None:
    path.with_name("other").write_bytes(b"")


def _elsewhere(_: Path) -> None:
    Path(__file__).read_bytes()


def _outside(path: Path) -> None:
    with contextlib.suppress(OSError):
        (path.parent / ".." / "x").read_bytes()


def _run(_: Path) -> None:
    exec("1 + 1")  # noqa: S102 - what the oracle must see


def _shell(_: Path) -> None:
    os.system("true")  # noqa: S605 - what the oracle must see


def _connect(_: Path) -> None:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", 9), timeout=0.1).close()


def _work(_: Path) -> None:
    started = time.process_time()
    while time.process_time() - started < 0.3:
        pass


def _grow(_: Path) -> None:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    used = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    bytearray(b"x" * (peak - used + MOST_GROWTH + 2**27))


def _talk(_: Path) -> None:
    raise ModelError("x" * 10_000)


def _refuse(_: Path) -> None:
    raise ModelError("it is damaged")


def _change(_: Path) -> None:
    os.environ["AUDIT_TEST_FUZZ"] = "1"


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (_crash, "crash"), (_write, "executed"), (_elsewhere, "executed"), (_outside, "executed"), (_run, "executed"),
        (_shell, "executed"), (_connect, "executed"), (_work, "slow"), (_grow, "memory"), (_talk, "message"), (_refuse,
        None), (_change, "executed"),
    ],
)  # fmt: skip
def test_the_oracle_sees_it(read: Callable[[Path], None], kind: str | None, tmp_path: Path, monkeypatch) -> None:
    if kind == "slow":
        monkeypatch.setattr("tests.fuzzing.oracle.MOST_SECONDS", 0.2)
    if kind == "memory":
        Path("/proc/self/clear_refs").write_text("5")  # what earlier tests took would have to be filled anew
    path = tmp_path / "case"
    path.write_bytes(b"x")
    failure = check(read, path, tmp_path)
    os.environ.pop("AUDIT_TEST_FUZZ", None)
    assert (failure and failure.kind) == kind


# --- the damage reaches behind checksums and lengths ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pickled", "pickled_legacy", "pt2", "onnx", "safetensors", "npz"])
def test_some_damaged_files_are_still_read(name: str, seeds, tmp_path: Path) -> None:
    """Damage that no reader gets past would test the first check alone."""
    reader = READERS[name]
    real = seeds(reader)
    path = place(reader, tmp_path)
    read = 0
    for number in range(60):
        rng = mutations.draws(number)
        seed = rng.choice(real)
        path.write_bytes(reader.structure(rng, seed.content, [other.content for other in real]))
        with contextlib.suppress(Exception):
            reader.read(path, seed.shape)
            read += 1
    assert 2 <= read < 60


def test_pickles_and_protocol_buffers_come_apart_and_together_again(seeds) -> None:
    for seed in seeds(READERS["pickled_legacy"]):
        pieces, rest = pickles.operations(seed.content)
        assert b"".join(pieces) + rest == seed.content
        assert len(pieces) > 50
    for seed in seeds(READERS["onnx"]):
        fields = protobuf.parse(seed.content)
        assert fields is not None
        assert protobuf.build(fields) == seed.content


def test_a_case_follows_from_its_number(seeds) -> None:
    reader = READERS["pt2"]
    contents = [seed.content for seed in seeds(reader)]
    a, b = (mutations.mutate(mutations.draws(5), contents[0], contents, reader.structure) for _ in range(2))
    assert a == b != contents[0]
