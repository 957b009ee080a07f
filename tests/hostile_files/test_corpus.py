"""No hostile file executes, writes, reads outside, changes another module's behaviour, or takes over 1 GB or 10 s.

Each case of the corpus is tried with ``audit run`` (models with and without ``--arch``) and ``audit inspect``, in a process of
its own that watches what happens. That the files are hostile is shown by test_liveness.py.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import hostile
from tests.hostile_files.case import SECRET, Case, Place
from tests.hostile_files.harness import CASES, MOST_MEMORY, PARAMETERS, Server, made

MOST_SECONDS = 10.0  # of one command, by the processor
# With --arch, the weights are taken out of a file whose network was not read; those of the corpus fit no other network.
TAKEN_ALONE = ("do not fit --arch", "holds its own network")
LITTLE_MEMORY = 300 * 2**20  # enough for each file of the corpus: those that exhaust others take more than three times that


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of honest files: a network's weights, its architecture, its data."""
    folder = tmp_path_factory.mktemp("honest") / "good"
    folder.mkdir()
    (folder / "nets.py").write_text(hostile.NETS)
    torch.save(hostile.net().state_dict(), folder / "good.pt")
    x, y = hostile.rows()
    np.savez(folder / "good.npz", x=x, y=y)
    rows = "\n".join(",".join(f"{v:.3f}" for v in row) + f",{label}" for row, label in zip(x, y, strict=True))
    (folder / "good.csv").write_text("a,b,c,d,label\n" + rows + "\n")
    (folder / "audit.toml").write_text("[run]\nseed = 3\n")
    return folder


def honest_commands(good: Path, out: Path) -> list[list[str]]:
    """Return commands on honest files, after which all is imported that audit has a use for."""
    import pandas as pd
    from PIL import Image
    from safetensors.torch import save_file

    from tests.hostile_files import exported
    from tests.hostile_files.torchscript import scripted

    pd.read_csv(good / "good.csv").to_parquet(good / "good.parquet")
    for i in range(12):
        (good / "images" / f"{i % 3}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((2, 2), i, np.uint8)).save(good / "images" / f"{i % 3}" / f"{i}.png")
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    torch.save(network, good / "network.pt")
    (good / "network.pt2").write_bytes(exported.archive())
    (good / "network.torchscript").write_bytes(scripted())
    save_file(hostile.net().state_dict(), good / "good.safetensors")
    onnx_network(good / "network.onnx")
    weights = [str(good / "good.pt"), "--arch", f"{good}/nets.py:Net"]
    table = ["--target", "label"]
    sources = [[f"{good}/good.npz"], [f"{good}/good.csv", *table], [f"{good}/good.parquet", *table], [f"{good}/images"]]
    commands = [["run", *weights, "--data", *source] for source in sources]
    commands[0] += ["--config", f"{good}/audit.toml"]
    commands.append(["run", f"{good}/good.safetensors", *weights[1:], "--data", f"{good}/good.npz"])
    files = [good / "network.pt", good / "network.pt2", good / "network.onnx"]
    others = ("good.pt", "good.safetensors", "network.torchscript", "good.npz", "good.csv", "good.parquet", "images")
    inspected = [["inspect", str(good / name)] for name in (*others, *files)]
    return [[*command, *ENDING, "--out", str(out)] for command in commands] + inspected


def onnx_network(path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", n]) for name, n in (("x", 4), ("y", 3))]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ports[:1], ports[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


ENDING = ["--checks", "performance", "--device", "cpu", "--quiet"]


@pytest.fixture(scope="module")
def auditor(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server("audits", honest_commands(good, tmp_path_factory.mktemp("out")))
    yield server
    server.end()


def listing(folder: Path) -> dict[str, Any]:
    """Return what lies in a folder: names, kinds, sizes and times."""
    found = {}
    for where, folders, files in os.walk(folder, followlinks=False):
        for name in [*folders, *files]:
            path = Path(where, name)
            said = path.lstat()
            found[os.fspath(path.relative_to(folder))] = (said.st_mode, said.st_size if name in files else 0, said.st_mtime_ns)
        folders[:] = [name for name in folders if (where, name) != (str(folder), "out")]
    return {name: said for name, said in found.items() if name != "out" and name != "cwd"}


def commands(case: Case, place: Place, good: Path, out: Path) -> dict[str, list[str]]:
    """Return the commands that are tried on a case."""
    file, network = str(place.at / case.file), ["--arch", f"{good}/nets.py:Net"]
    weights = [f"{good}/good.pt", *network]
    run = ["--out", str(out), *ENDING, *case.options]
    if case.kind == "config":
        return {"run": ["run", *weights, "--data", f"{good}/good.npz", "--config", file, *run]}
    if case.kind == "data":
        return {"run": ["run", *weights, "--data", file, *run], "inspect": ["inspect", file]}
    data = ["--data", f"{good}/good.npz"]
    return {"arch": ["run", file, *network, *data, *run], "bare": ["run", file, *data, *run], "inspect": ["inspect", file]}


@pytest.mark.parametrize("case", PARAMETERS)
def test_a_hostile_file_is_refused_and_does_nothing(case: Case, auditor: Server, good: Path, tmp_path: Path):
    place, out = made(case, tmp_path), tmp_path / "out"
    tried = commands(case, place, good, out)
    before = listing(tmp_path)
    reads = [str(place.at), str(good)]
    found = auditor.ask(commands=tried, cwd=str(tmp_path / "cwd"), out=str(out), reads=reads, limit=6 * MOST_SECONDS)
    assert (found["late"], found["signal"], found["error"]) == (False, 0, None), found
    written = sorted(set(listing(tmp_path).items()) ^ set(before.items()))
    assert not written, "it wrote"
    for way, argv in tried.items():
        problems = _problems(case, way, found["value"][way])
        assert not problems, "\n".join([f"{way}: {' '.join(argv)}", *problems, found["value"][way]["said"][-1500:]])
    assert not (out / "result.json").exists() or 0 in (*case.arch_codes, *case.bare_codes)


def _problems(case: Case, way: str, did: dict[str, Any]) -> list[str]:
    """Return what went wrong in one command."""
    problems = [f"it did: {event}" for event in did["events"]]
    problems += [f"it changed {name}" for name in did["changed"]]
    problems += [f"it imported {name}" for name in did["modules"]]
    if did["seconds"] > MOST_SECONDS:
        problems.append(f"it took {did['seconds']:.1f} s")
    if did["grew"] > MOST_MEMORY or (case.proof.kind == "exhausts" and did["grew"] > LITTLE_MEMORY):
        problems.append(f"it took {did['grew'] >> 20} MB")
    if SECRET in did["said"]:
        problems.append("it shows the secret")
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", did["said"]):
        problems.append("it prints control characters")
    if "Traceback" in did["said"] or "internal error" in did["said"]:
        problems.append("it ends with a traceback")
    return problems + _misjudged(case, way, did["code"], did["said"])


def _misjudged(case: Case, way: str, code: int, said: str) -> list[str]:
    codes = {"inspect": case.inspect_codes, "arch": case.arch_codes, "bare": case.bare_codes}.get(way, (case.code,))
    if code not in codes:
        return [f"exit code {code}, expected {codes}"]
    if way == "inspect" and case.proof.kind == "runs" and not any(word in said for word in case.words):
        return ["what would execute is not named"]
    if way == "inspect" or code == 0:
        return []
    words = {"bare": case.bare_words, "arch": case.arch_words}.get(way) or case.words
    message = "\n".join(line for line in said.splitlines() if line.startswith("audit:"))
    alone = way == "arch" and any(part in message for part in TAKEN_ALONE)
    problems = [] if alone or any(word in message for word in words) else [f"the message has none of {words}"]
    if len(message) > 1000:
        problems.append(f"a message of {len(message):,} characters")
    return problems


def test_the_corpus_is_as_large_as_was_asked():
    assert len(CASES) >= 120
    assert len({case.family for case in CASES}) >= 15
    assert sum(case.quick for case in CASES) >= 30
    assert all(callable(case.proof.open) for case in CASES)
    assert all(case.words and all(case.words) for case in CASES)
    kinds = Counter(case.proof.kind for case in CASES)
    assert kinds["runs"] >= 60
