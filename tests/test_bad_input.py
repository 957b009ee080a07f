"""Each kind of bad input ends with its exit code and a short message that says what was expected, got, and how to mend it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests import hostile

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        return "\n".join(line for line in self.err.splitlines() if line.startswith("audit:"))


@pytest.fixture
def audit_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run the command line's own entry point in this process."""
    from audit import cli

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["audit", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main()
        finally:
            signal.signal(signal.SIGTERM, before)
        said = capsys.readouterr()
        return Ended(ended.value.code if isinstance(ended.value.code, int) else -1, said.out, said.err)

    return run


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write good and bad files side by side; no test writes here."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "nets.py").write_text(hostile.NETS)
    (folder / "syntax.py").write_text("def Net(:\n")
    (folder / "quits.py").write_text("raise SystemExit(0)\n")
    torch.save(hostile.net().state_dict(), folder / "good.pt")
    good = (folder / "good.pt").read_bytes()
    torch.save(hostile.net(classes=2).state_dict(), folder / "binary.pt")
    _models(folder, good)
    _data(folder)
    _configurations(folder)
    hostile.malicious(folder)
    return folder


def _models(folder: Path, good: bytes) -> None:
    from safetensors.torch import save_file

    save_file(hostile.net().state_dict(), folder / "good.safetensors")
    (folder / "cut.pt").write_bytes(good[: len(good) // 2])
    (folder / "cut.safetensors").write_bytes((folder / "good.safetensors").read_bytes()[:-40])
    (folder / "headless.safetensors").write_bytes((folder / "good.safetensors").read_bytes()[:60])
    (folder / "empty.pt").touch()
    (folder / "page.pt").write_text("<!DOCTYPE html><html><body>404</body></html>")
    (folder / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (folder / "noise.pt").write_bytes(np.random.default_rng(0).bytes(999))
    (folder / "folder.pt").mkdir()
    os.mkfifo(folder / "pipe.pt")
    os.mkfifo(folder / "pipe.npz")
    torch.save([1, 2, 3], folder / "list.pt")
    torch.save({"epoch": 3}, folder / "nothing.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript itself is deprecated; files of it remain
        torch.jit.script(nn.Sequential(nn.Linear(4, 3))).save(str(folder / "script.pt"))


def _data(folder: Path) -> None:
    x, y = hostile.rows()
    np.savez(folder / "good.npz", x=x, y=y, sensitive_group=np.where(x[:, 0] > 0.5, "a", "b"))
    np.savez(folder / "wide.npz", x=np.ones((8, 7), np.float32), y=np.zeros(8, int))
    np.savez(folder / "images.npz", x=np.ones((8, 3, 5, 5), np.float32), y=np.arange(8) % 3)
    np.savez(folder / "labels.npz", x=x, y=y + 1)
    np.savez(folder / "negative.npz", x=x, y=y - 1)
    np.savez(folder / "fractions.npz", x=x, y=y + 0.5)
    np.savez(folder / "one_class.npz", x=x, y=np.zeros(len(x), int))
    np.savez(folder / "no_rows.npz", x=x[:0], y=y[:0])
    np.savez(folder / "one_row.npz", x=x[:1], y=y[:1])
    np.savez(folder / "gaps.npz", x=np.where(x > 0.95, np.nan, x), y=y)
    np.savez(folder / "lengths.npz", x=x, y=y[:-1])
    np.savez(folder / "no_labels.npz", x=x)
    np.savez(folder / "texts.npz", x=x, y=np.asarray(["cat", "dog"] * 12))
    (folder / "cut.npz").write_bytes((folder / "good.npz").read_bytes()[:-200])
    (folder / "page.npz").write_text("<html><body>Sign in</body></html>")
    (folder / "page.csv").write_text("<!doctype html><html></html>")
    (folder / "data.xlsx").write_bytes(b"PK\x03\x04")
    (folder / "empty.npz").touch()
    head = "a,b,c,d,sex,label\n"
    lines = [
        ",".join(f"{v:.3f}" for v in row) + f",{'fm'[i % 2]},{label}" for i, (row, label) in enumerate(zip(x, y, strict=True))
    ]
    (folder / "table.csv").write_text(head + "\n".join(lines) + "\n")
    (folder / "text.csv").write_text(head + "\n".join(lines) + "\n0.1,low,0.2,0.3,f,1\n")
    (folder / "missing.csv").write_text(head + "\n".join(lines) + "\n0.1,,0.2,0.3,f,1\n")
    (folder / "no_rows.csv").write_text(head)
    (folder / "surplus.csv").write_text(head + "\n".join(f"{line},9" for line in lines) + "\n")
    (folder / "classes.txt").write_text("cat\ndog\ncat\n")


def _configurations(folder: Path) -> None:
    written = {
        "section": "[robustnes]\nsteps = 3\n",
        "key": "[run]\nsede = 3\n",
        "option": "[robustness]\nstep = 3\n",
        "type": "[run]\nseed = 'many'\n",
        "syntax": "[run\nseed = 3\n",
        "arch": "[model]\narch = 'nets.py:Net'\n",
        "preprocess": "[data]\npreprocess = 'nets.py:double'\n",
        "trust": "[model]\ntrust_model = true\n",
        "nested": "a = " + "[" * 50_000 + "]" * 50_000,
        "tables": "a = " + "{b = " * 20 + "1" + "}" * 20,
        "dotted": ".".join(["a"] * 100_000) + " = 1",
        "large": "#" * 300_000,
        "metric": "[[policy.limit]]\nmetric = 'robustness.linf.acuracy'\nmin = 0.1\n",
        "both": "[[policy.limit]]\nmetric = 'performance.accuracy'\nmin = 0.1\nmax = 0.2\n",
        "limit": "[[policy.limit]]\nmetric = 'performance.accuracy'\nmin = 0.01\n",
    }
    for name, text in written.items():
        (folder / f"{name}.toml").write_text(text)


NET = ["--arch", "{f}/nets.py:Net"]
GOOD = ["{f}/good.pt", *NET, "--data", "{f}/good.npz", "--checks", "performance"]
TABLE = ["{f}/good.pt", *NET, "--target", "label", "--sensitive", "sex", "--inputs", "a,b,c,d", "--checks", "performance"]


def model(name: str, *more: str) -> list[str]:
    return [f"{{f}}/{name}", "--data", "{f}/good.npz", *(more or NET)]


def data(name: str, *more: str) -> list[str]:
    return ["{f}/good.pt", *NET, "--data", f"{{f}}/{name}", "--checks", "performance", *more]


# Arguments, exit code, and words that the message must hold.
REFUSED = {
    "model missing": (model("absent.pt"), 3, ["cannot read", "absent.pt", "No such file"]),
    "model empty": (model("empty.pt"), 3, ["empty.pt", "is empty"]),
    "model is a folder": (model("folder.pt"), 3, ["folder", "name the file inside"]),
    "model is a pipe": (model("pipe.pt"), 3, ["pipe", "regular file"]),
    "model is a device": (["/dev/zero", "--data", "{f}/good.npz", *NET], 3, ["device", "regular file"]),
    "model truncated": (model("cut.pt"), 3, ["truncated or damaged", "again"]),
    "safetensors truncated": (model("cut.safetensors"), 3, ["truncated or damaged safetensors"]),
    "safetensors cut in its head": (model("headless.safetensors"), 3, ["truncated or damaged safetensors"]),
    "model is a web page": (model("page.pt"), 3, ["web page", "fetch it again"]),
    "model is a pointer": (model("pointer.pt"), 3, ["Git LFS pointer", "git lfs pull"]),
    "model is noise": (model("noise.pt"), 3, ["not a model file", "safetensors"]),
    "model is data": (model("good.npz"), 3, ["NumPy archive", "--data"]),
    "model holds a list": (model("list.pt"), 3, ["dict of weights", "list", "state_dict"]),
    "model holds no weights": (model("nothing.pt"), 3, ["no weights", "'epoch'"]),
    "no arch": (["{f}/good.pt", "--data", "{f}/good.npz"], 3, ["weights only", "layers.1.weight (8, 4)", "--arch"]),
    "arch without a name": (model("good.pt", "--arch", "{f}/nets.py"), 2, ["--arch", "FILE.py:NAME"]),
    "arch file missing": (model("good.pt", "--arch", "{f}/absent.py:Net"), 2, ["--arch", "absent.py"]),
    "arch module missing": (model("good.pt", "--arch", "no_such_module:Net"), 2, ["no_such_module", "no_such_module.py"]),
    "arch name missing": (model("good.pt", "--arch", "{f}/nets.py:Nett"), 2, ["no 'Nett'", "did you mean 'Net'"]),
    "arch file does not parse": (model("good.pt", "--arch", "{f}/syntax.py:Net"), 2, ["syntax.py", "SyntaxError"]),
    "arch file ends the process": (model("good.pt", "--arch", "{f}/quits.py:Net"), 2, ["quits.py", "SystemExit"]),
    "arch raises": (model("good.pt", "--arch", "{f}/nets.py:broken"), 2, ["ZeroDivisionError: no network here"]),
    "arch ends the process": (model("good.pt", "--arch", "{f}/nets.py:quits"), 2, ["SystemExit"]),
    "arch returns text": (model("good.pt", "--arch", "{f}/nets.py:words"), 2, ["torch.nn.Module", "got str"]),
    "arch does not fit": (
        model("good.pt", *NET, "--arch-args", '{"width": 5}'),
        3,
        ["do not fit", "wrong shape 3", "layers.1.weight (8, 4) instead of (5, 4)", "architecture"],
    ),
    "arch arguments unknown": (model("good.pt", *NET, "--arch-args", '{"widht": 5}'), 2, ["widht", "--arch-args"]),
    "arch arguments are no JSON": (model("good.pt", *NET, "--arch-args", "{width: 5}"), 2, ["--arch-args", "JSON"]),
    "hash differs": ([*GOOD, "--expect-sha256", "ab" * 32], 3, ["SHA-256", "abab", "not the file you mean"]),
    "TorchScript": (model("script.pt"), 3, ["TorchScript", "not opened", "--arch", "--trust-model"]),
    "data missing": (data("absent.npz"), 3, ["cannot read", "absent.npz"]),
    "data empty": (data("empty.npz"), 3, ["is empty"]),
    "data is a pipe": (data("pipe.npz"), 3, ["pipe", "regular file"]),
    "data is a folder without images": (data("folder.pt"), 3, ["folder.pt holds no images", ".png"]),
    "no such column marks anomalies": (data("table.csv", "--target", "label", "--anomalies", "column:odd"), 3, ["'odd'"]),
    "anomalies missing": (data("good.npz", "--anomalies", "{f}/absent.npz"), 3, ["cannot read", "absent.npz"]),
    "data truncated": (data("cut.npz"), 3, ["truncated or damaged", "again"]),
    "data is a web page": (data("page.npz"), 3, ["web page"]),
    "table is a web page": (data("page.csv", "--target", "y"), 3, ["web page"]),
    "data of unknown kind": (data("data.xlsx"), 3, [".npz, .csv", "data.xlsx"]),
    "no data": (["{f}/good.pt", *NET], 2, ["no data", "--data"]),
    "too many columns": (data("wide.npz"), 3, ["7 input columns", "--inputs"]),
    "images for a table network": (data("images.npz"), 3, ["(3, 5, 5)", "NCHW"]),
    "labels from 1": (data("labels.npz"), 3, ["between 0 and 2", "got 3", "start at 1"]),
    "labels below 0": (data("negative.npz"), 3, ["between 0 and 2", "got -1"]),
    "labels are fractions": (data("fractions.npz"), 3, ["one number a sample", "--task classification"]),
    "labels are text": (data("texts.npz"), 3, ["labels are text", "'cat'", "--classes"]),
    "classes twice": (data("texts.npz", "--classes", "{f}/classes.txt"), 3, ["each once", "'cat' twice"]),
    "all outputs NaN": (
        ["{f}/good.pt", "--arch", "{f}/nets.py:AllNaN", "--data", "{f}/good.npz"],
        3,
        ["NaN or infinity", "--mean"],
    ),
    "no rows": (data("no_rows.npz"), 3, ["no rows"]),
    "table without rows": ([*TABLE, "--data", "{f}/no_rows.csv"], 3, ["no rows"]),
    "NaN in the data": (data("gaps.npz"), 3, ["NaN or infinity", "of 24 rows", "--preprocess"]),
    "lengths differ": (data("lengths.npz"), 3, ["(24,)", "got (23,)"]),
    "no labels": (data("no_labels.npz"), 3, ["x and y", "got x"]),
    "text in a column": ([*TABLE, "--data", "{f}/text.csv"], 3, ["column 'b'", "'low'", "--preprocess"]),
    "gap in a column": ([*TABLE, "--data", "{f}/missing.csv"], 3, ["column 'b'", "missing in 1 of 25 rows"]),
    "more fields than names": ([*TABLE, "--data", "{f}/surplus.csv"], 3, ["more fields than its header"]),
    "no target": (data("table.csv"), 2, ["--target", "columns: a, b"]),
    "target unknown": (data("table.csv", "--target", "lable"), 3, ["no column 'lable'", "did you mean 'label'"]),
    "target as input": (data("table.csv", "--target", "label", "--inputs", "a,label"), 2, ["'label'", "the answer"]),
    "input unknown": (data("table.csv", "--target", "label", "--inputs", "a,bb"), 3, ["--inputs", "'bb'"]),
    "sensitive unknown": (data("table.csv", "--target", "label", "--sensitive", "sexx"), 3, ["'sexx'", "did you mean 'sex'"]),
    "sensitive array unknown": (data("good.npz", "--sensitive", "grup"), 3, ["sensitive_grup", "did you mean 'group'"]),
    "preprocess raises": (data("good.npz", "--preprocess", "{f}/nets.py:broken"), 3, ["--preprocess failed"]),
    "bounds do not hold the data": ([*GOOD, "--bounds", "0,0.5"], 2, ["bounds", "outside 0 to 0.5"]),
    "bounds swapped": ([*GOOD, "--bounds", "1,0"], 2, ["lower one first"]),
    "check unknown": ([*GOOD, "--skip", "robustnes"], 2, ["no check 'robustnes'", "did you mean 'robustness'"]),
    "all checks skipped": ([*GOOD, "--skip", "performance"], 2, ["no check is left", "--skip"]),
    "metric unknown": ([*GOOD, "--config", "{f}/metric.toml"], 2, ["robustness.linf.acuracy", "did you mean"]),
    "section unknown": ([*GOOD, "--config", "{f}/section.toml"], 2, ["[robustnes]", "did you mean 'robustness'"]),
    "key unknown": ([*GOOD, "--config", "{f}/key.toml"], 2, ["'run.sede'", "did you mean 'seed'"]),
    "option unknown": (
        [*GOOD, "--config", "{f}/option.toml", "--checks", "robustness"],
        2,
        ["robustness.step", "did you mean"],
    ),
    "value of the wrong type": ([*GOOD, "--config", "{f}/type.toml"], 2, ["run.seed", "integer", "'many'"]),
    "limit with two sides": ([*GOOD, "--config", "{f}/both.toml"], 2, ["one of min, max and max_drop"]),
    "configuration missing": ([*GOOD, "--config", "{f}/absent.toml"], 2, ["configuration", "absent.toml"]),
    "configuration is no TOML": ([*GOOD, "--config", "{f}/syntax.toml"], 2, ["not TOML", "line 1"]),
    "configuration names code": ([*GOOD, "--config", "{f}/arch.toml"], 2, ["'arch' in [model] runs code", "--arch"]),
    "configuration preprocesses": ([*GOOD, "--config", "{f}/preprocess.toml"], 2, ["runs code", "--preprocess"]),
    "configuration trusts": ([*GOOD, "--config", "{f}/trust.toml"], 2, ["runs code", "--trust-model"]),
    "setting trusts": ([*GOOD, "--set", "model.trust_model=true"], 2, ["runs code", "--trust-model"]),
    "configuration nested": ([*GOOD, "--config", "{f}/nested.toml"], 2, ["nested more than"]),
    "configuration of tables": ([*GOOD, "--config", "{f}/tables.toml"], 2, ["nested more than"]),
    "configuration dotted": ([*GOOD, "--config", "{f}/dotted.toml"], 2, ["dots"]),
    "configuration large": ([*GOOD, "--config", "{f}/large.toml"], 2, ["too large"]),
    "setting without value": ([*GOOD, "--set", "robustness.steps"], 2, ["section.key=value"]),
    "setting unknown": ([*GOOD, "--set", "run.sede=3"], 2, ["run.sede", "did you mean 'seed'"]),
    "setting of an unknown check": ([*GOOD, "--set", "robustnes.steps=3"], 2, ["[robustnes]", "did you mean"]),
    "radius above the box": (
        [*GOOD, "--checks", "robustness", "--bounds", "0,1", "--eps", "8"],
        2,
        ["eps", "width of the box (1)", "8/255"],
    ),
    "radius is text": ([*GOOD, "--eps", "small"], 2, ["radius", "8/255"]),
    "device unknown": ([*GOOD, "--device", "abacus"], 2, ["auto, cpu or cuda", "abacus"]),
    "option of no command": ([*GOOD, "--epsilon", "8"], 2, ["--epsilon"]),
    "accuracy is not the one stated": ([*GOOD, "--expect-accuracy", "0.99"], 4, ["expected a clean accuracy of 99", "--mean"]),
    "output below a file": ([*GOOD, "--out", "{f}/good.pt/out"], 2, ["folder that can be written", "--out"]),
    "output in /proc": ([*GOOD, "--out", "/proc/audit-out"], 2, ["folder that can be written", "--out"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_message_and_exit_code(case: str, files: Path, tmp_path: Path, audit_cli: Callable[..., Ended]):
    arguments, code, words = REFUSED[case]
    given = [argument.replace("{f}", str(files)) for argument in arguments]
    out = [] if "--out" in given else ["--out", str(tmp_path / "out")]
    ended = audit_cli("run", *given, *out, "--device", "cpu") if "--device" not in given else audit_cli("run", *given, *out)
    assert ended.code == code, ended.err
    for word in words:
        assert word in ended.message, ended.message
    assert "Traceback" not in ended.err
    assert ended.message.count("\n") <= 1, "one or two lines"
    assert len(ended.message) < 700
    assert not (tmp_path / "out" / "report.html").exists()
    assert not (tmp_path / "out" / "result.json").exists()


# --- malicious pickles --------------------------------------------------------------------------------------------------

BLOCKED = dict.fromkeys(("pickle2", "pickle4", "weights", "legacy", "checkpoint", "module"), "posix.mkdir")
BLOCKED |= {"pt2": "program.so"}


@pytest.mark.parametrize("kind", BLOCKED)
def test_a_malicious_model_is_refused_by_the_name_of_what_blocked_it(
    kind: str, files: Path, tmp_path: Path, audit_cli: Callable[..., Ended]
):
    file = files / ("program.pt2" if kind == "pt2" else f"{kind}.pt")
    ended = audit_cli("run", file, "--arch", f"{files}/nets.py:Net", "--data", files / "good.npz", "--out", tmp_path / "out")
    assert ended.code == 3
    assert BLOCKED[kind] in ended.message
    assert "not opened" in ended.message
    assert "--arch" in ended.message
    assert "Traceback" not in ended.err
    assert not list(files.glob("canary-*")), "something in the file was executed"


def test_a_malicious_array_is_refused(files: Path, tmp_path: Path, audit_cli: Callable[..., Ended]):
    arguments = [files / "good.pt", "--arch", f"{files}/nets.py:Net", "--data", files / "objects.npz"]
    ended = audit_cli("run", *arguments, "--out", tmp_path / "out")
    assert ended.code == 3
    assert "array 'x' holds Python objects" in ended.message
    assert "astype" in ended.message
    assert not list(files.glob("canary-*"))


@pytest.mark.slow
def test_the_malicious_files_are_live(tmp_path: Path):
    """Otherwise the tests above would prove nothing: opened the unsafe way, each does create its canary."""
    kinds = hostile.malicious(tmp_path)
    child = (
        f"from tests import hostile, test_bad_input; from pathlib import Path; hostile.set_them_off(Path({str(tmp_path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", child], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.glob("canary-*")) == sorted(f"canary-{kind}" for kind in kinds)


# --- files made to exhaust memory or time -------------------------------------------------------------------------------

BOMBS = """
import resource, sys
from pathlib import Path
import audit
from tests import test_bad_input
folder = Path(sys.argv[1])
net = test_bad_input.hostile.net()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(folder.iterdir()):
    try:
        if path.suffix == ".pt":
            audit.Model.load(path, arch=test_bad_input.hostile.net)
        else:
            audit.Dataset.load(path, target="y")
    except audit.AuditError as error:
        print(path.name, "|", error)
    else:
        print(path.name, "| loaded")
print("grew", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def _bombs(folder: Path) -> dict[str, str]:
    import gzip
    import zipfile

    import pandas as pd

    def write(name: str, content: bytes, word: str) -> None:
        (folder / name).write_bytes(content)
        words[name] = word

    words: dict[str, str] = {}
    four_gigabytes = b"\x8a\x05\x00\x00\x00\x00\x01"
    mark, storage = b"\x80\x02", b"ctorch\nFloatStorage\n"
    write(
        "bytearray.pt", hostile.torch_zip(mark + b"cbuiltins\nbytearray\n" + four_gigabytes + b"\x85R."), "builtins.bytearray"
    )
    write("storage.pt", hostile.torch_zip(mark + b"ctorch\nFloatStorage\n" + four_gigabytes + b"\x85R."), "damaged")
    write("tensor.pt", hostile.torch_zip(mark + b"ctorch\nFloatTensor\n" + four_gigabytes + b"\x85R."), "torch.FloatTensor")
    pid = b"(X\x07\x00\x00\x00storage" + storage + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + four_gigabytes + b"tQ"
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + b"K\x00" + four_gigabytes + b"\x85K\x01\x85\x89}tR"
    write("claims.pt", hostile.torch_zip(mark + b"}X\x01\x00\x00\x00w" + rebuilt + b"s.", **{"0": b"1234"}), "4 bytes")
    write("absent.pt", hostile.torch_zip(mark + b"}X\x01\x00\x00\x00w" + rebuilt + b"s."), "not there")
    doubling = b")" + b"q\x00h\x00\x86" * 60
    write("keys.pt", hostile.torch_zip(mark + b"}" + doubling + b"K\x01s."), "dictionary key")
    write("many.pt", hostile.torch_zip(mark + b"(" + b"}" * 4_000_000 + b"l."), "operations")
    loop = b"}q\x00X\x0a\x00\x00\x00state_dicth\x00s."
    write("loop.pt", hostile.torch_zip(mark + loop), "no weights")
    lying = bytearray(hostile.zipped({"archive/data.pkl": b"\0" * 40_000_000}, zipfile.ZIP_DEFLATED))
    at = lying.rfind(b"PK\x01\x02") + 24
    write("ratio.pt", bytes(lying), "exhaust memory")
    lying[at : at + 4] = (100).to_bytes(4, "little")
    write("lies.pt", bytes(lying), "headers differ")
    write("shape.npz", hostile.zipped({"x.npy": hostile.npz_member("(4000000000, 1)"), "y.npy": b""}), "claims shape")
    write("negative.npz", hostile.zipped({"x.npy": hostile.npz_member("(-1, 4)"), "y.npy": b""}), "claims shape")
    big = hostile.npz_member("(1000000, 40)", body=b"\0" * 160_000_000)
    lying = bytearray(hostile.zipped({"x.npy": big}, zipfile.ZIP_DEFLATED))
    del big
    at = lying.rfind(b"PK\x01\x02") + 24
    lying[at : at + 4] = (1000).to_bytes(4, "little")
    write("lies.npz", bytes(lying), "headers differ")
    write("table.csv.gz", gzip.compress(b"x,y\n" + b"1,0\n" * 18_000_000, compresslevel=9), "exhaust memory")
    pd.DataFrame({"x": np.zeros(1), "y": 0}).to_parquet(folder / "fine.parquet")
    words["fine.parquet"] = "loaded"
    return words


@pytest.mark.slow
def test_small_files_do_not_exhaust_memory_or_time(tmp_path: Path):
    words = _bombs(tmp_path)
    child = [sys.executable, "-c", BOMBS, str(tmp_path)]
    done = subprocess.run(child, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    said = dict(line.split(" | ", 1) for line in done.stdout.splitlines() if " | " in line)
    assert set(said) == set(words)
    for name, word in words.items():
        assert word in said[name], (name, said[name])
    assert int(done.stdout.split("grew")[1]) < 600, done.stdout


# --- runs that end, but not well ----------------------------------------------------------------------------------------


def read(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def good(files: Path, out: Path, *more: object) -> list[object]:
    base = [files / "good.pt", "--arch", f"{files}/nets.py:Net", "--data", files / "good.npz", "--checks", "performance"]
    return ["run", *base, "--out", out, "--device", "cpu", *more]


def test_some_outputs_NaN_leave_the_check_incomplete(files: Path, tmp_path: Path, audit_cli: Callable[..., Ended]):  # noqa: N802
    arguments = good(files, tmp_path, "--config", files / "limit.toml")
    arguments[arguments.index(f"{files}/nets.py:Net")] = f"{files}/nets.py:SomeNaN"
    ended = audit_cli(*arguments)
    assert ended.code == 4
    check = read(tmp_path)["checks"][0]
    assert check["status"] == "incomplete"
    assert "NaN" in check["reason"]
    assert read(tmp_path)["verdict"] == "incomplete"


@pytest.mark.parametrize(("gate", "code"), [([], 0), (["--gate"], 4)])
def test_one_class_only_is_found(gate: list[str], code: int, files: Path, tmp_path: Path, audit_cli: Callable[..., Ended]):
    arguments = good(files, tmp_path, *gate)
    arguments[arguments.index(files / "good.npz")] = files / "one_class.npz"
    ended = audit_cli(*arguments)
    assert ended.code == code, ended.err
    check = read(tmp_path)["checks"][0]
    assert check["status"] == "incomplete"
    assert "labels of 1 class" in check["reason"]


def test_one_row_runs(files: Path, tmp_path: Path, audit_cli: Callable[..., Ended]):
    arguments = good(files, tmp_path, "--profile", "quick", "--bounds", "0,1")
    del arguments[arguments.index("--checks") : arguments.index("--checks") + 2]
    arguments[arguments.index(files / "good.npz")] = files / "one_row.npz"
    assert audit_cli(*arguments).code == 0
    checks = {check["id"]: check for check in read(tmp_path)["checks"]}
    assert checks["robustness"]["status"] == "not_applicable"
    assert "no column varies" in checks["robustness"]["reason"]
    accuracy = next(m for m in checks["performance"]["metrics"] if m["id"] == "performance.accuracy")
    assert accuracy["n"] == 1
    assert accuracy["high"] - accuracy["low"] > 0.9, "one sample says next to nothing"


@pytest.mark.parametrize(("gate", "code"), [([], 0), (["--gate"], 4)])
def test_a_gate_without_limits_is_not_green(
    gate: list[str], code: int, files: Path, tmp_path: Path, audit_cli: Callable[..., Ended]
):
    ended = audit_cli(*good(files, tmp_path, *gate))
    assert ended.code == code
    assert read(tmp_path)["verdict"] == "unjudged"
    assert read(tmp_path)["exit_code"] == code


@pytest.mark.parametrize("where", ["stages", "conclude"])
@pytest.mark.parametrize("limit", [True, False])
def test_a_check_that_raises_is_an_error_and_not_green(
    where: str, limit: bool, files: Path, tmp_path: Path, audit_cli: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
):
    from audit.checks import base, performance

    def raises(*_: object) -> None:
        raise KeyError("a defect of the check")

    if where == "conclude":
        monkeypatch.setattr(performance.Performance, "conclude", raises)
    else:
        monkeypatch.setattr(base, "_one_at_a_time", lambda task: raises)
    ended = audit_cli(*good(files, tmp_path, *(["--config", files / "limit.toml"] if limit else ["--gate"])))
    assert ended.code == 4, ended.err
    check = read(tmp_path)["checks"][0]
    assert check["status"] == "error"
    assert "a defect of the check" in check["reason"]
    assert "Traceback" not in ended.err


def test_user_code_that_ends_the_process_does_not_end_it_green(
    files: Path, tmp_path: Path, audit_cli: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
):
    nets = tmp_path / "leaver.py"
    leaver = "class Leaver(Net):\n    def forward(self, x):\n        raise SystemExit(0)\n"
    nets.write_text(hostile.NETS + leaver)
    arguments = good(files, tmp_path / "out")
    arguments[arguments.index(f"{files}/nets.py:Net")] = f"{nets}:Leaver"
    ended = audit_cli(*arguments)
    assert ended.code not in (0, 1), ended.err
    assert "SystemExit" in ended.message


@pytest.mark.slow
def test_a_full_disk_leaves_no_half_report(
    files: Path, tmp_path: Path, audit_cli: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
):
    written = Path.write_bytes

    for seed, stops_at in enumerate(("result.json", "report.html", "summary.md", ".npz"), start=2):
        assert audit_cli(*good(files, tmp_path, "--seed", "1")).code == 0
        assert (tmp_path / "result.json").exists()

        def full(path: Path, content: bytes, stops_at: str = stops_at) -> int:
            if stops_at in path.name:
                written(path, content[:10])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return written(path, content)

        monkeypatch.setattr(Path, "write_bytes", full)
        ended = audit_cli(*good(files, tmp_path, "--seed", seed))
        monkeypatch.undo()
        assert ended.code == 2, (stops_at, ended.err)
        assert "No space left" in ended.message
        assert "--out" in ended.message
        assert not [path.name for path in tmp_path.iterdir() if path.is_file()], "neither half a report nor an older one"


# --- the same in real processes -----------------------------------------------------------------------------------------


def spawn(*arguments: object, cwd: Path, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "audit", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts what runs in the background with Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  (one call, no lock)
    )


@pytest.mark.slow
def test_a_process_ends_with_code_and_message(files: Path, tmp_path: Path):
    expected = {"absent.pt": 3, "weights.pt": 3, "good.pt": 0}
    children = {
        name: spawn(*good(files, tmp_path / name, "--quiet")[:1], files / name, *good(files, tmp_path / name)[2:], cwd=tmp_path)
        for name in expected
    }
    for name, child in children.items():
        _, err = child.communicate(timeout=120)
        assert child.returncode == expected[name], err
        assert "Traceback" not in err
        assert err.count("audit:") == (1 if expected[name] else 0)
    assert not list(files.glob("canary-*"))


SLOW_NET = """
import os, time
from nets import Net

class Slow(Net):
    def forward(self, x):
        time.sleep(float(os.environ.get("PAUSE", "0")))
        return super().forward(x)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_with_130_and_goes_on_where_it_stopped(number: signal.Signals, files: Path, tmp_path: Path):
    (tmp_path / "nets.py").write_text(hostile.NETS)
    (tmp_path / "slow.py").write_text(SLOW_NET)
    x, y = hostile.rows(1200)
    np.savez(tmp_path / "many.npz", x=x, y=y)
    arguments = ["run", files / "good.pt", "--arch", "slow.py:Slow", "--data", "many.npz", "--out", "out", "--device", "cpu"]
    arguments += ["--checks", "performance", "--batch-size", "64"]
    child = spawn(*arguments, cwd=tmp_path, PAUSE="0.2")
    jobs = tmp_path / "out" / ".jobs"
    deadline = time.monotonic() + 60
    while not list(jobs.glob("*/*.npz")) and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.05)
    child.send_signal(number)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert "interrupted" in err
    assert "goes on where it stopped" in err
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "result.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in jobs.glob("*/*.npz")}
    assert kept
    again = spawn(*arguments, cwd=tmp_path)
    _, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    now = {path.name: path.stat().st_mtime_ns for path in jobs.glob("*/*.npz")}
    assert kept.items() < now.items(), "finished jobs were taken over, the others made"
    assert read(tmp_path / "out")["checks"][0]["status"] == "measured"
