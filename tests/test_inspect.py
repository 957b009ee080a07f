"""``audit inspect``: it says what a file is, runs nothing that the file holds, and names the line that audits it."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import signal
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import audit
from audit import cli
from audit.errors import DataError, ModelError
from audit.model.description import Layer
from tests import hostile, realdata


@pytest.fixture
def call(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    def called(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["audit", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as end:
                cli.main()
        finally:
            signal.signal(signal.SIGTERM, before)
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    monkeypatch.setattr(type(sys.stdout), "reconfigure", lambda *_, **__: None, raising=False)
    return called


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save(hostile.net().state_dict(), tmp_path / "good.pt")
    return tmp_path / "good.pt"


def the_line(out: str) -> list[str]:
    (line,) = [line for line in out.splitlines() if line.strip().startswith("audit run")]
    return shlex.split(line)


# --- models ------------------------------------------------------------------------------------------------------------


def test_weights_are_said_to_need_arch(call, weights):
    code, out, err = call("inspect", weights)
    assert (code, err) == (0, "")
    assert "67" in out
    for name, tensor in hostile.net().state_dict().items():
        (line,) = [line for line in out.splitlines() if f" {name} " in line]
        assert str(tensor.numel()) in line
    assert "needs --arch" in out
    assert the_line(out) == ["audit", "run", str(weights), "--data", "DATA", "--arch", "FILE.py:FACTORY"]


def test_the_line_works_when_its_placeholders_are_filled_in(call, weights, tmp_path):
    odd = tmp_path / "a folder with 'quotes'"
    odd.mkdir()
    (odd / "nets.py").write_text(hostile.NETS)
    x, y = hostile.rows()
    np.savez(odd / "data.npz", x=x, y=y)
    model = weights.rename(odd / "-my $model.pt")
    _, out, _ = call("inspect", model)
    filled = {"DATA": str(odd / "data.npz"), "FILE.py:FACTORY": f"{odd}/nets.py:Net"}
    words = [filled.get(word, word) for word in the_line(out)]
    sha256 = out.split("--expect-sha256 ")[1].split()[0]
    more = ["--expect-sha256", sha256, "--checks", "performance", "--out", tmp_path / "out", "--quiet"]
    assert call(*words[1:], *more)[0] == 0


def test_a_name_that_begins_with_a_dash_is_no_option(weights, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    weights.rename("--out")
    assert shlex.split(audit.inspect("--out").command)[2] == "./--out"


@pytest.mark.parametrize("kind", ["pickle2", "pickle4", "weights", "legacy", "checkpoint", "module"])
def test_a_malicious_file_is_described_refused_and_not_run(call, tmp_path, kind):
    hostile.malicious(tmp_path)
    path = tmp_path / f"{kind}.pt"
    code, out, _ = call("inspect", path)
    assert code == 3
    assert not list(tmp_path.glob("canary-*")), "something in the file was executed"
    assert "mkdir" in out
    assert "audit refuses it" in out
    assert the_line(out)[-2:] == ["--trust-model", "--sandbox"]
    said = audit.inspect(path)
    assert (said.loads, said.exit_code, said.command) == (False, 3, "")
    assert said.sha256 in out


def test_a_module_of_a_class_of_its_own_gives_its_weights(call, tmp_path, monkeypatch):
    (tmp_path / "own_nets.py").write_text(hostile.NETS)
    monkeypatch.syspath_prepend(tmp_path)
    import own_nets

    torch.save(own_nets.Net(), tmp_path / "own.pt")
    monkeypatch.delitem(sys.modules, "own_nets")
    said = audit.inspect(tmp_path / "own.pt")
    assert (said.loads, said.exit_code, said.parameters) == (False, 3, 67)
    assert "own_nets.Net" in said.refused
    assert shlex.split(said.command)[-2:] == ["--arch", "FILE.py:FACTORY"]
    assert shlex.split(said.trusting)[-2:] == ["--trust-model", "--sandbox"]
    assert "own_nets" not in sys.modules
    audit.Model.load(tmp_path / "own.pt", arch=f"{tmp_path}/own_nets.py:Net")


def test_a_malicious_program_is_refused_and_not_run(call, tmp_path):
    hostile.malicious(tmp_path)
    code, out, _ = call("inspect", tmp_path / "program.pt2")
    assert code == 3
    assert "torch.export program" in out
    assert "audit refuses it" in out
    assert not list(tmp_path.glob("canary-*"))


def test_json_holds_everything(call, weights):
    code, out, _ = call("inspect", weights, "--json")
    said = json.loads(out)
    assert code == 0
    assert [layer["name"] for layer in said["layers"]] == list(hostile.net().state_dict())
    assert (said["parameters"], said["needs_arch"], said["loads"], said["what"]) == (67, True, True, "model")
    assert said == json.loads(json.dumps(audit.inspect(weights).to_dict()))


def test_long_tables_are_cut_with_a_count(call, tmp_path):
    torch.save(nn.Sequential(*(nn.Linear(2, 2) for _ in range(50))).state_dict(), tmp_path / "long.pt")
    _, out, _ = call("inspect", tmp_path / "long.pt")
    assert "tensors (100)" in out
    assert "60 more: --all shows them" in out
    assert " 49.bias" not in out
    _, out, _ = call("inspect", tmp_path / "long.pt", "--all")
    assert "more" not in out
    assert " 49.bias" in out


ESCAPE = "\x1b[2Jgood\r\u202e"


def test_hostile_names_come_out_harmless(call, tmp_path):
    torch.save({f"{ESCAPE}.weight": torch.zeros(2, 3), "n" * 100_000: torch.zeros(1)}, tmp_path / "names.pt")
    _, out, err = call("inspect", tmp_path / "names.pt")
    assert not {"\x1b", "\r", "\u202e"} & {*out, *err}
    assert max(map(len, out.splitlines())) < 1000
    _, out, _ = call("inspect", tmp_path / "names.pt", "--json")
    assert out.isascii()


def test_a_hostile_file_name_comes_out_harmless(call, weights):
    odd = weights.rename(weights.parent / f"{ESCAPE}.pt")
    code, out, _ = call("inspect", odd)
    assert code == 0
    assert not {"\x1b", "\r", "\u202e"} & set(out)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "is empty"),
        (b"<!doctype html>", "web page"),
        (b"\x7fELF" + bytes(100), "not a model file"),
        (hostile.zipped({"a.txt": b"b"}), "not one that torch.save wrote"),
        (b"import torch", "safetensors, torch.save, .pt2, ONNX, TorchScript"),
    ],
)
def test_what_is_no_model_is_3(call, tmp_path, content, word):
    (tmp_path / "odd.pt").write_bytes(content)
    code, out, err = call("inspect", tmp_path / "odd.pt")
    assert (code, out) == (3, "")
    assert word in err


def test_sentences_are_wrapped_and_lines_to_copy_are_not():
    said = audit.inspecting.Inspected(
        *("m.pt", "model", "pickle", 5, "0" * 64), refused="it asks for " + "more " * 30, trusting="audit run " + "m" * 90
    )
    lines = said.text(width=80).splitlines()
    assert max(len(line) for line in lines if "m" * 90 not in line and "--expect" not in line) <= 80
    assert [line for line in lines if line.startswith("    more")]
    assert f"    {said.trusting}" in lines
    assert " ".join(said.text().split()) == " ".join(said.text(width=80).split())


def test_a_long_detail_leaves_the_columns_as_they_are():
    rows = (Layer("0", "Conv2d", "weight " * 9, 160), Layer("a.long.name", "ReLU", ""), Layer("2", "Linear", "bias 10", 2570))
    text = audit.inspecting.Inspected("m.pt", "model", "pickled module", 5, "0" * 64, layers=rows).text()
    first, middle, last = (line for line in text.splitlines() if " Conv2d " in line or "ReLU" in line or " Linear " in line)
    assert first.index("160") + 3 == last.index("2,570") + 5 < 40
    assert middle == "    a.long.name  ReLU"


def test_a_damaged_file_is_still_named(call, weights):
    content = weights.read_bytes()
    at = content.index(b"layers.1.weight")
    weights.write_bytes(content[: at - 10] + b"\xff" * 10 + content[at:])
    code, out, _ = call("inspect", weights)
    assert code == 3
    assert "file saved by torch.save" in out or "torch.save" in out
    assert "audit refuses it" in out


def test_a_missing_file_raises(tmp_path):
    with pytest.raises(ModelError, match="No such file"):
        audit.inspect(tmp_path / "absent.pt")
    with pytest.raises(DataError, match="No such file"):
        audit.inspect(tmp_path / "absent.npz")


def test_third_party_files_are_described():
    for name in ("mnist_lenet5_clntrained.pt", "cifar10_resnet2b.pth", "mnistfc_256x2.onnx", "mnist_opset1.onnx"):
        said = audit.inspect(realdata.shared(f"models/{name}"))
        assert said.loads, said.refused
        assert said.layers
        assert said.parameters


# --- data --------------------------------------------------------------------------------------------------------------


def test_arrays_are_listed(call, tmp_path):
    x, y = hostile.rows()
    np.savez(tmp_path / "good.npz", x=x, y=y, sensitive_group=np.asarray(["a", "b"] * 12))
    code, out, _ = call("inspect", tmp_path / "good.npz")
    assert code == 0
    assert "NumPy archive" in out
    assert "24 × 4" in out
    assert "float32" in out
    assert the_line(out) == ["audit", "run", "MODEL", "--data", str(tmp_path / "good.npz")]


def test_arrays_of_objects_are_named_and_never_read(call, tmp_path):
    hostile.malicious(tmp_path)
    code, out, _ = call("inspect", tmp_path / "objects.npz")
    assert code == 3
    assert "array 'x': a pickle" in out
    assert "only a pickle could restore" in out
    assert not list(tmp_path.glob("canary-*"))


@pytest.mark.parametrize(
    "members",
    [
        {"x.npy": hostile.npz_member("(4000000000, 4000000000)"), "y.npy": hostile.npz_member("(2,)", "<f4", bytes(8))},
        {"x.npy": hostile.npz_member("(-1, 4)"), "y.npy": b""},
        {"x.npy": hostile.npz_member("(" * 3000 + ")" * 3000), "y.npy": b""},
        {"x.npy": hostile.npz_member("-" * 9000 + "1"), "y.npy": b""},
        {"x.npy": hostile.npz_member("(3,)", "O"), "y.npy": hostile.npz_member("(3,)", "O")},
        {"x.npy": b"\x93NUMPY\x09\x00", "y.npy": b"\x93NUMPY"},
        {"x.npy": hostile.npz_member("__import__('os').mkdir('canary')")},
        {},
    ],
)
def test_a_hostile_archive_is_refused(call, tmp_path, members):
    (tmp_path / "odd.npz").write_bytes(hostile.zipped(members))
    code, out, err = call("inspect", tmp_path / "odd.npz")
    assert code == 3, out
    assert "internal error" not in err


def test_an_archive_that_exhausts_memory_is_refused(call, tmp_path):
    (tmp_path / "bomb.npz").write_bytes(hostile.zipped({"x.npy": bytes(300_000_000)}, zipfile.ZIP_DEFLATED))
    code, _, err = call("inspect", tmp_path / "bomb.npz")
    assert code == 3
    assert "exhaust memory" in err


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "parquet"])
def test_columns_are_listed(call, tmp_path, ending):
    frame = pd.DataFrame({"age": [30, 40, 50], "name": ["a", "b", None], "label": [0, 1, 1]})
    path = tmp_path / f"table.{ending}"
    frame.to_parquet(path) if ending == "parquet" else frame.to_csv(path, index=False)
    code, out, _ = call("inspect", path)
    assert code == 0
    for word in ("age", "name", "label", "rows        3", "--target COLUMN"):
        assert word in out
    if ending != "parquet":
        assert "30 to 50" in out
        assert "1 missing" in out


def test_a_folder_of_images_is_counted(call, tmp_path):
    from PIL import Image

    for kind, n in (("cat", 2), ("dog", 3)):
        (tmp_path / "set" / kind).mkdir(parents=True)
        for i in range(n):
            Image.new("L", (4, 4)).save(tmp_path / "set" / kind / f"{i}.png")
    code, out, _ = call("inspect", tmp_path / "set")
    assert code == 0
    assert "images      5" in out
    assert "3 images" in out
    (tmp_path / "empty").mkdir()
    assert call("inspect", tmp_path / "empty")[0] == 3


def test_a_pipe_does_not_hang(call, tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    os.mkfifo(tmp_path / "pipe.npz")
    assert call("inspect", tmp_path / "pipe.pt")[0] == 3
    assert call("inspect", tmp_path / "pipe.npz")[0] == 3


def test_of_a_pickle_that_cannot_be_read_nothing_is_promised(call, tmp_path):
    (tmp_path / "net.joblib").write_bytes(pickle.dumps({"weights": [1.0]}, protocol=4)[:-1] + b"\x94h\x70.")
    code, out, _ = call("inspect", tmp_path / "net.joblib")
    assert code == 3
    assert "it was not read to its end" in out
    assert "--trust-model" not in out
