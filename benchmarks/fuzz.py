"""Feeds a reader damaged files, a hundred thousand of them, and tells which made it do anything but read or refuse.

    .venv/bin/python benchmarks/fuzz.py READER [--cases 100000] [--seed 0] [--workers 2] [--out fuzz-out]
    .venv/bin/python benchmarks/fuzz.py READER --engine atheris --seconds 600
    .venv/bin/python benchmarks/fuzz.py READER --replay FILE

READER is one of: pickled, pickled_legacy, pt2, onnx, safetensors, torchscript, npz, csv, images, or all.

A case follows from (seed, reader, number) alone. Each is described, loaded and run on two samples in a child process that has
2 GiB to allocate and an audit hook; failures are written to the folder by cause, three of each. Ends with 1 where there is one.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

NAMES = ("pickled", "pickled_legacy", "pt2", "onnx", "safetensors", "torchscript", "npz", "csv", "images")
HUNG = 60.0  # seconds without a sign of life
STOP_AFTER_DEATHS = 50
KEPT = 3
ROOM = 2 * 2**30


def main() -> None:
    """Fuzz, or replay, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", choices=(*NAMES, "all"))
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--engine", choices=("mutate", "atheris"), default="mutate")
    parser.add_argument("--seconds", type=int, default=600, help="for atheris")
    parser.add_argument("--out", type=Path, default=Path("fuzz-out"))
    parser.add_argument("--replay", type=Path, default=None)
    parser.add_argument("--child", type=int, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        _child(arguments, arguments.child)
    elif arguments.replay is not None:
        _replay(arguments.reader, arguments.replay)
    elif arguments.engine == "atheris":
        _atheris(arguments)
    else:
        names = NAMES if arguments.reader == "all" else (arguments.reader,)
        failed = [_fuzz(name, arguments) for name in names]
        raise SystemExit(int(any(failed)))


# --- the parent -------------------------------------------------------------------------------------------------------


class Worker:
    """A child process that goes through every so-manieth case and is started again behind one that kills it."""

    def __init__(self, name: str, arguments: argparse.Namespace, number: int) -> None:
        self.name, self.arguments, self.number = name, arguments, number
        self.at, self.done, self.deaths = number, 0, 0
        self.start()

    def start(self) -> None:
        """Start a child at the case `at`."""
        given = [self.name, "--cases", str(self.arguments.cases), "--seed", str(self.arguments.seed)]
        given += ["--workers", str(self.arguments.workers), "--child", str(self.at)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        words = [sys.executable, str(Path(__file__).resolve()), *given]
        self.child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
        self.heard = time.monotonic() + 120  # importing torch and exporting the real files takes a while
        self.running = True

    def events(self) -> Iterator[dict[str, Any]]:
        """Return what the child says, one line of JSON each; a dead or silent child is an event of its own."""
        assert self.child.stdout is not None  # noqa: S101
        if select.select([self.child.stdout], [], [], 0.2)[0]:
            line = self.child.stdout.readline()
            if line:
                event = json.loads(line)
                self.heard = max(self.heard, time.monotonic())
                self.at = event.get("at", self.at)
                yield event
                return
            code, self.running = self.child.wait(), False
            if code != 0:
                yield self._died(f"the process died with {code}")
        elif time.monotonic() > self.heard + HUNG:
            self.child.kill()
            self.child.wait()
            self.running = False
            yield self._died(f"no sign of life for {HUNG:g} s")

    def _died(self, why: str) -> dict[str, Any]:
        event = {"at": self.at, "kind": "died", "where": why, "detail": why, "case": self.at}
        self.at += self.arguments.workers
        self.deaths += 1
        if self.at < self.arguments.cases and self.deaths < STOP_AFTER_DEATHS:
            self.start()
        return event


def _fuzz(name: str, arguments: argparse.Namespace) -> bool:
    """Fuzz one reader; return whether anything failed."""
    started = time.monotonic()
    workers = [Worker(name, arguments, number) for number in range(min(arguments.workers, arguments.cases))]
    found: dict[tuple[str, str], list[dict[str, Any]]] = collections.defaultdict(list)
    answers: collections.Counter[str] = collections.Counter()
    while any(worker.running for worker in workers):
        for worker in workers:
            for event in worker.events() if worker.running else ():
                if "answers" in event:
                    answers.update(event["answers"])
                elif "kind" in event:
                    found[event["kind"], event["where"]].append(event)
                    if len(found[event["kind"], event["where"]]) <= KEPT:
                        _keep(name, arguments, event)
    seconds = time.monotonic() - started
    said = ", ".join(f"{count:,} {what}" for what, count in answers.most_common(6))
    print(f"{name}: {sum(answers.values()):,} cases in {seconds:,.0f} s ({said}); {sum(map(len, found.values())):,} failed")
    for (kind, where), events in sorted(found.items(), key=lambda entry: -len(entry[1])):
        print(f"  {len(events):>6} {kind}: {where} ({events[0].get('file', '')})", flush=True)
    return bool(found)


def _keep(name: str, arguments: argparse.Namespace, event: dict[str, Any]) -> None:
    """Write a failing case and what it did."""
    folder = arguments.out / name
    folder.mkdir(parents=True, exist_ok=True)
    content, shape = _Cases(name, arguments.seed, all_seeds=True).case(event["case"])
    path = folder / f"{event['kind']}-{event['case']}{_suffix(name)}"
    path.write_bytes(content)
    event["file"] = str(path)
    path.with_suffix(".txt").write_text(f"{event['where']}\nsamples of shape {shape}\n\n{event['detail']}\n")


# --- the child --------------------------------------------------------------------------------------------------------


class _Cases:
    """All cases of a reader: real files and how each number damages one of them."""

    held: dict[str, Any] = {}  # noqa: RUF012 - the parent makes the real files once

    def __init__(self, name: str, seed: int, *, all_seeds: bool) -> None:
        from tests.fuzzing.readers import READERS

        self.reader, self.seed = READERS[name], seed
        if name not in self.held:
            with _quiet():
                self.held[name] = self.reader.seeds(not all_seeds)
        self.seeds = self.held[name]
        self.contents = [each.content for each in self.seeds]

    def case(self, number: int) -> tuple[bytes, tuple[int, ...]]:
        """Return the damaged file, and the shape of the samples that its network took."""
        from tests.fuzzing.mutations import draws, mutate

        rng = draws(f"{self.seed}/{self.reader.name}/{number}")
        chosen = rng.choice(self.seeds)
        return mutate(rng, chosen.content, self.contents, self.reader.structure), chosen.shape


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    import logging

    logging.disable(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _child(arguments: argparse.Namespace, first: int) -> None:
    """Go through the cases of one worker and say what happened, one line of JSON each."""
    import torch

    from tests.fuzzing.oracle import check
    from tests.fuzzing.readers import place

    torch.set_num_threads(1)
    cases = _Cases(arguments.reader, arguments.seed, all_seeds=True)
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))  # noqa: S108 - in memory
    answers: collections.Counter[str] = collections.Counter()
    try:
        path = place(cases.reader, folder)
        for seed in cases.seeds:  # the reader imports what it needs
            path.write_bytes(seed.content)
            with contextlib.suppress(Exception):
                cases.reader.read(path, seed.shape)
        _limit_memory()
        _say(at=first)
        heard = time.monotonic()
        for case in range(first, arguments.cases, arguments.workers):
            if time.monotonic() - heard > 1 or case == first:
                _say(at=case, answers=answers)
                heard, answers = time.monotonic(), collections.Counter()
            content, shape = cases.case(case)
            path.write_bytes(content)
            started = time.monotonic()
            kind = _Kind(cases.reader.read, shape)
            failure = check(kind, path, folder, cases.reader.allowed)
            answers[kind.answer if failure is None else failure.kind] += 1
            if failure is not None:
                _say(at=case, case=case, kind=failure.kind, where=failure.where, detail=failure.detail)
            if time.monotonic() - started > 1:
                heard = 0.0
        _say(at=arguments.cases, answers=answers)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Kind:
    """Reads, and notes which error came of it."""

    def __init__(self, read: Any, shape: tuple[int, ...]) -> None:
        self.read, self.shape, self.answer = read, shape, "read"

    def __call__(self, path: Path) -> None:
        from audit.errors import AuditError

        try:
            self.read(path, self.shape)
        except AuditError as error:
            self.answer = type(error).__name__
            raise


def _limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))


def _say(**event: Any) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


# --- one file, and the other engine -----------------------------------------------------------------------------------


def _suffix(name: str) -> str:
    from tests.fuzzing.readers import READERS

    return READERS[name].suffix


def _replay(name: str, path: Path) -> None:
    """Read one file as the fuzzing does, for samples of each shape."""
    from tests.fuzzing.oracle import check
    from tests.fuzzing.readers import place

    cases = _Cases(name, 0, all_seeds=True)
    with tempfile.TemporaryDirectory() as scratch:
        put = place(cases.reader, Path(scratch))
        put.write_bytes(path.read_bytes())
        for shape in sorted({seed.shape for seed in cases.seeds}):
            kind = _Kind(cases.reader.read, shape)
            failure = check(kind, put, Path(scratch), cases.reader.allowed)
            print(f"shape {shape}: {kind.answer if failure is None else f'{failure.kind}: {failure.where}'}")
            if failure is not None:
                print(failure.detail)


def _atheris(arguments: argparse.Namespace) -> None:
    """Let coverage guide the damage, for a bounded time; needs the extra ``fuzz``."""
    import atheris
    import numpy  # noqa: F401 - not to be instrumented
    import torch  # noqa: F401

    with atheris.instrument_imports(include=["audit.model", "audit.data", "audit.archives", "audit.files"]):
        import audit.data.arrays
        import audit.data.images
        import audit.data.tables
        import audit.model.onnx
        import audit.model.pickled
        import audit.model.pickled.described
        import audit.model.pt2
        import audit.model.pt2.described
        import audit.model.torchscript  # noqa: F401 - instrumented here, imported by the readers later
        from tests.fuzzing.readers import place
    from tests.fuzzing.mutations import draws, mutate
    from tests.fuzzing.oracle import check

    cases = _Cases(arguments.reader, arguments.seed, all_seeds=True)
    scratch = Path(tempfile.mkdtemp())
    corpus = scratch / "corpus"
    corpus.mkdir()
    for number, content in enumerate(cases.contents):
        (corpus / str(number)).write_bytes(content)
    path = place(cases.reader, scratch)
    shapes = {len(seed.shape): seed.shape for seed in cases.seeds}
    seen: set[str] = set()

    def one(content: bytes) -> None:
        path.write_bytes(content)
        for shape in shapes.values():
            failure = check(_Kind(cases.reader.read, shape), path, scratch, cases.reader.allowed)
            if failure is not None and failure.where not in seen:
                seen.add(failure.where)
                folder = arguments.out / arguments.reader
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"atheris-{len(seen)}{cases.reader.suffix}").write_bytes(content)
                print(f"{failure.kind}: {failure.where}\n{failure.detail}", flush=True)

    def damage(content: bytes, most: int, seed: int) -> bytes:
        rng = draws(seed)
        if rng.random() < 0.3:
            return bytes(atheris.Mutate(content, most))
        return mutate(rng, content, cases.contents, cases.reader.structure)[:most]

    given = [
        sys.argv[0],
        str(corpus),
        f"-max_total_time={arguments.seconds}",
        "-max_len=262144",
        "-timeout=60",
        "-rss_limit_mb=4096",
    ]
    atheris.Setup(given, one, custom_mutator=damage)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
