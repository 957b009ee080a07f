"""TorchScript archives are described by the text of their code, which is never compiled; safetensors by their header."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
import tracemalloc
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from audit.errors import ModelError
from audit.model import safetensors, torchscript
from tests import hostile

EVIL = """class Net(Module):
  __parameters__ = []
  __buffers__ = []
  training : bool
  layer : __torch__.torch.nn.modules.linear.Linear
  {place}def forward(self: __torch__.Net, x: Tensor) -> Tensor:
    _0 = torch.from_file({path!r}, True, 16)
    _1 = ops.evil.format_disk(x)
    return x
  def __setstate__(self: __torch__.Net, state: Tuple[int, bool]) -> NoneType:
    torch.save(state, {path!r})
    return None
"""


@pytest.fixture
def script(tmp_path: Path) -> bytes:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sequential(nn.ReLU(), nn.Flatten()), nn.Linear(144, 10))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(net).save(str(tmp_path / "net.pt"))
    return (tmp_path / "net.pt").read_bytes()


def archive(**members: str | bytes) -> bytes:
    held = {f"net/{name}": text.encode() if isinstance(text, str) else text for name, text in members.items()}
    return hostile.zipped({"net/constants.pkl": b"\x80\x02).", **held})


def test_layers_are_told_from_the_classes(script):
    said = torchscript.describe(script, "net.pt")
    assert [(layer.name, layer.kind) for layer in said.layers] == [
        ("0", "Conv2d"),
        ("1.0", "ReLU"),
        ("1.1", "Flatten"),
        ("2", "Linear"),
    ]
    assert said.layers[0].detail == "1 → 4, kernel (3, 3)"
    assert "code" in said.executes[0]
    assert "program" in said.refused
    assert "4 tensors" in said.notes[0]


def test_a_layer_with_a_kernel_alone_says_it_alone():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        stream = io.BytesIO()
        torch.jit.save(torch.jit.script(nn.Sequential(nn.MaxPool2d(2))), stream)
    assert [layer.detail for layer in torchscript.describe(stream.getvalue(), "net.pt").layers] == ["kernel 2"]


def test_what_opens_files_and_what_runs_on_opening_is_named(tmp_path):
    evil = EVIL.format(place="", path=str(tmp_path / "canary"))
    said = torchscript.describe(archive(**{"code/__torch__.py": evil}), "net.pt")
    joined = "\n".join(said.executes)
    for word in ("__torch__.Net.__setstate__", "torch.from_file", "torch.save", "ops.evil.format_disk"):
        assert word in joined
    assert not (tmp_path / "canary").exists()
    assert [(layer.name, layer.kind) for layer in said.layers] == [("layer", "Linear")]


@pytest.mark.slow
def test_an_archive_that_runs_code_on_opening_is_live_and_named(tmp_path):
    """``torch.jit.load`` does run it: a shared file of 1 kB appears where the archive says."""
    canary = tmp_path / "canary"
    maker = f"""
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.kept = torch.zeros(1)
    def forward(self, x):
        return x
    @torch.jit.export
    def __getstate__(self):
        return (3, self.training)
    @torch.jit.export
    def __setstate__(self, state: tuple[int, bool]):
        self.training = state[1]
        self.kept = torch.from_file({str(canary)!r}, True, 256)
torch.jit.script(Net()).save({str(tmp_path / "evil.pt")!r})
"""
    (tmp_path / "maker.py").write_text(maker)
    made = subprocess.run([sys.executable, tmp_path / "maker.py"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert not canary.exists()
    said = torchscript.describe((tmp_path / "evil.pt").read_bytes(), "evil.pt")
    assert not canary.exists()
    joined = "\n".join(said.executes)
    assert "__setstate__: runs when the file is opened" in joined
    assert "torch.from_file" in joined
    subprocess.run([sys.executable, "-c", f"import torch; torch.jit.load({str(tmp_path / 'evil.pt')!r})"], check=True)
    assert canary.stat().st_size == 1024


@pytest.mark.parametrize(
    "code",
    [
        "class A(Module):\n" + "".join(f"  a{i} : __torch__.A\n" for i in range(5000)),
        "".join(
            f"class A{i}(Module):\n" + "".join(f"  a{j} : __torch__.A{j}\n" for j in range(60) if j != i) for i in range(60)
        )
        + "class Top(Module):\n  a : __torch__.A0\n",
        "class A(Module):\n  a : __torch__." + "B" * 5_000_000,
        "torch.from_file(" * 500_000,
        "class A(Module):\n" * 300_000,
        "  " * 5_000_000,
        "\n" * 15_000_000,
    ],
    ids=["holds itself", "thicket", "long line", "many calls", "many classes", "blanks", "lines"],
)
def test_hostile_code_is_searched_in_a_moment(code):
    content = hostile.zipped({"net/constants.pkl": b"", "net/code/__torch__.py": code.encode()})
    begun = time.process_time()
    said = torchscript.describe(content, "net.pt")
    assert time.process_time() - begun < 3
    assert len(said.layers) <= torchscript.MOST_LISTED
    assert len(said.executes) <= 3 * torchscript.MOST_LISTED


@pytest.mark.slow
def test_long_names_are_not_repeated_for_each_class_and_layer():
    chain = "".join(f"class A{i}(Module):\n  {'b' * 1900} : __torch__.A{i + 1}\n" for i in range(30))
    wide = "".join(f"class A{i}(Module):\n" + f"  c : __torch__.A{i + 1}\n" * 1000 for i in range(30, 50))
    many = "".join(f"class B{i}(Module):\n" for i in range(20_000))
    for text, name in ((chain + wide, "__torch__"), (many, "m" * 60_000)):
        content = hostile.zipped({"net/constants.pkl": b"", f"net/code/{name}.py": text.encode()})
        tracemalloc.start()
        try:
            torchscript.describe(content, "net.pt")
            assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
        finally:
            tracemalloc.stop()


def test_a_bomb_of_code_is_refused():
    import zipfile

    content = hostile.zipped({"net/code/a.py": b"\n" * 100_000_000}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ModelError, match="exhaust memory"):
        torchscript.describe(content, "net.pt")


@given(st.binary(max_size=300), st.binary(max_size=100))
def test_any_code_is_described_or_refused_cleanly(text, more):
    said = torchscript.describe(archive(**{"code/__torch__.py": text, "code/b.py": b"class A(Module):\n" + more}), "net.pt")
    assert said.refused


# --- safetensors -------------------------------------------------------------------------------------------------------


def test_a_header_is_described():
    tensors = {"a.weight": torch.zeros(3, 4), "b": torch.tensor(1.0), "c": torch.zeros(2, dtype=torch.int64)}
    said = safetensors.describe(save(tensors, metadata={"made by": "us"}), "w.safetensors")
    assert {layer.name: (layer.detail, layer.parameters) for layer in said.layers} == {
        "a.weight": ("3×4 float32", 12),
        "b": ("one number float32", 1),
        "c": ("2 int64", 2),
    }
    assert (said.parameters, said.needs_arch, said.executes, said.refused) == (15, True, (), "")
    assert said.notes == ("metadata: made by=us",)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.float16, torch.bfloat16, torch.float64])
def test_types_are_those_of_torch(dtype):
    said = safetensors.describe(save({"a": torch.zeros(2, 3).to(dtype)}), "w.safetensors")
    assert said.layers[0].detail == f"2×3 {str(dtype).removeprefix('torch.')}"


def header(text: str, body: bytes = b"") -> bytes:
    return len(text.encode()).to_bytes(8, "little") + text.encode() + body


def entry(**said: object) -> str:
    return json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **said}})


BYTES = '{"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}'


@pytest.mark.parametrize(
    "content",
    [
        header("{"),
        header("[]"),
        header("{" + '"a": {' * 100_000),
        header("[" * 1_000_000),
        header(entry(dtype="F31"), bytes(4)),
        header(entry(shape=[2**62]), bytes(4)),
        header(entry(shape=[-1]), bytes(4)),
        header(entry(shape=["1"]), bytes(4)),
        header(entry(shape=[True]), bytes(4)),
        header(entry(shape=[0] * 100, data_offsets=[0, 0])),
        header(entry(data_offsets=[0, 8]), bytes(8)),
        header(entry(data_offsets=[0, 4, 8]), bytes(4)),
        header(entry(), bytes(3)),
        header(entry(), bytes(5)),
        header('{"a": 3}'),
        header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, ' + "9" * 100_000 + "]}}"),
        header(f'{{"a": {BYTES}, "b": {BYTES}}}', bytes(4)),
        header(f'{{"a": {BYTES}, "a": {BYTES}}}', bytes(4)),
        (2**63).to_bytes(8, "little") + b"{}",
    ],
)
def test_a_hostile_header_is_refused(content):
    with pytest.raises(ModelError, match="damaged safetensors"):
        safetensors.describe(content, "w.safetensors")


@given(st.dictionaries(st.text(max_size=5), st.lists(st.integers(0, 4), max_size=3), max_size=4), st.data())
def test_what_the_library_reads_is_described_and_what_it_refuses_is_refused(shapes, data):
    content = save({name: torch.zeros(shape) for name, shape in shapes.items() if name != "__metadata__"})
    assert len(safetensors.describe(content, "w").layers) == len(safetensors.load(content, "w"))
    at = data.draw(st.integers(0, len(content) - 1))
    changed = content[:at] + bytes([data.draw(st.integers(0, 255))]) + content[at + 1 :]
    try:
        said = safetensors.describe(changed, "w")
    except ModelError:
        return
    assert all(layer.parameters >= 0 for layer in said.layers)
