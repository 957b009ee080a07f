"""Which model files are opened, under which names their weights may stand, and what is refused."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from audit.errors import ModelError, ModelRefused, UsageError
from audit.model import pickled
from audit.model.load import open_file
from audit.model.pickled.archive import Saved
from audit.model.pickled.records import Blocked, Damaged, Made
from audit.model.wrapper import Model
from tests import hostile


class Small(nn.Module):
    """Two layers and a normalisation, so that there are buffers of two types."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU())
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def trained(seed: int = 0) -> Small:
    torch.manual_seed(seed)
    module = Small()
    module(torch.randn(64, 4))  # moves the running statistics
    return module.eval()


X = torch.randn((6, 4), generator=torch.Generator().manual_seed(1))


def same(model: Model, module: nn.Module) -> bool:
    with torch.no_grad():
        return torch.equal(model.logits(X), module(X))


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


# How weights are found in the wild: name -> what is saved.
LAYOUTS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "bare": lambda w: w,
    "plain dict": dict,
    "state_dict": lambda w: {"state_dict": w, "epoch": 3, "best": 0.93},
    "model_state_dict": lambda w: {"model_state_dict": w, "optimizer_state_dict": adam()},
    "model": lambda w: {"model": w, "args": None},
    "twice nested": lambda w: {"model": {"state_dict": w}},
    "DataParallel": lambda w: {f"module.{name}": t for name, t in w.items()},
    "compiled": lambda w: {f"_orig_mod.{name}": t for name, t in w.items()},
    "compiled in DataParallel": lambda w: {f"module._orig_mod.{name}": t for name, t in w.items()},
    "Lightning": lambda w: {
        "state_dict": {**{f"model.{name}": t for name, t in w.items()}, "loss.weight": torch.ones(3)},
        "pytorch-lightning_version": "2.2.0",
        "hyper_parameters": {"lr": 1e-3, "betas": (0.9, 0.999)},
        "lr_schedulers": [{"milestones": Counter([3, 5]), "gamma": 0.1}],
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
    },
    "Lightning compiled": lambda w: {"state_dict": {f"model._orig_mod.{name}": t for name, t in w.items()}},
    "parameters": lambda w: {name: nn.Parameter(t) if t.is_floating_point() else t for name, t in w.items()},
    "beside other things": lambda w: {
        "state_dict": w,
        "score": np.float64(0.5),
        "seen": {1, 2},
        "counts": defaultdict(int, a=1),
        "raw": b"\x00\xff",
        "where": torch.device("cpu"),
        "type": torch.float16,
        "shape": torch.Size([1, 2]),
        "order": OrderedDict(a=1),
    },
    "without batch counts": lambda w: {name: t for name, t in w.items() if not name.endswith("num_batches_tracked")},
    "half precision": lambda w: {name: t.half().float() if t.is_floating_point() else t for name, t in w.items()},
}


def adam() -> dict[str, Any]:
    module = trained()
    optimizer = torch.optim.Adam(module.parameters())
    module(X).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_found(layout: str, legacy: bool, tmp_path: Path):
    module = trained()
    if layout == "half precision":
        module = module.half().float()
    path = saved(tmp_path / "w.pt", LAYOUTS[layout](module.state_dict()), _use_new_zipfile_serialization=not legacy)
    model = Model.load(path, arch=Small)
    assert same(model, module)
    assert not model.origin.trusted
    assert model.origin.format == ("pickle" if legacy else "torch-zip")


@pytest.mark.parametrize("protocol", [2, 4])
def test_weights_of_every_pickle_protocol_are_read(protocol: int, tmp_path: Path):
    path = saved(tmp_path / "w.pt", trained().state_dict(), pickle_protocol=protocol)
    assert same(Model.load(path, arch=Small), trained())


def test_safetensors_are_read(tmp_path: Path):
    from safetensors.torch import save_file

    path = tmp_path / "w.bin"  # the content counts, not the name
    save_file({f"module.{name}": t for name, t in trained().state_dict().items()}, path)
    model = Model.load(path, arch=Small)
    assert same(model, trained())
    assert model.origin.format == "safetensors"


class Tied(nn.Module):
    """An output layer that shares its weight with the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu())


def test_tied_weights_that_safetensors_stores_once_are_whole(tmp_path: Path):
    from safetensors.torch import save_model

    module = Tied()
    save_model(module, str(tmp_path / "w.safetensors"))
    assert same(Model.load(tmp_path / "w.safetensors", arch=Tied), module)


def test_checkpoints_saved_on_cuda_load_on_the_cpu(tmp_path: Path):
    path = saved(tmp_path / "w.pt", trained().state_dict())
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    on_cuda = members[name].replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
    assert on_cuda != members[name]
    (tmp_path / "cuda.pt").write_bytes(hostile.zipped(members | {name: on_cuda}))
    model = Model.load(tmp_path / "cuda.pt", arch=Small, device="cpu")
    assert same(model, trained())


def test_archives_that_were_zipped_again_or_have_no_checksums_load(tmp_path: Path):
    path = saved(tmp_path / "w.pt", trained().state_dict())
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (tmp_path / "again.pt").write_bytes(hostile.zipped(members, zipfile.ZIP_DEFLATED))
    assert same(Model.load(tmp_path / "again.pt", arch=Small), trained())
    torch.serialization.set_crc32_options(False)
    try:
        saved(tmp_path / "unchecked.pt", trained().state_dict())
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(Model.load(tmp_path / "unchecked.pt", arch=Small), trained())


# --- our reader against torch's own -------------------------------------------------------------------------------------

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8]
DTYPES += [torch.uint8, torch.bool, torch.complex64, torch.complex128]


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(0, 4), max_size=4),
    dtype=st.sampled_from(DTYPES),
    view=st.sampled_from(["whole", "transposed", "cut", "strided", "expanded"]),
    legacy=st.booleans(),
    seed=st.integers(0, 9),
)
def test_the_reader_agrees_with_torch(shape: list[int], dtype: torch.dtype, view: str, legacy: bool, seed: int):
    tensor = (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 100).to(dtype)
    if tensor.ndim and tensor.shape[0]:
        tensor = {
            "whole": lambda t: t,
            "transposed": lambda t: t.transpose(0, -1),
            "cut": lambda t: t[1:],
            "strided": lambda t: t[::2],
            "expanded": lambda t: t[None].expand(3, *t.shape),
        }[view](tensor)
    buffer = io.BytesIO()
    torch.save({"a": tensor, "b": {"c": [tensor]}, "n": 3}, buffer, _use_new_zipfile_serialization=not legacy)
    theirs = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    reader = Saved(buffer.getvalue())
    for cut, other in ((reader.content["a"], theirs["a"]), (reader.content["b"]["c"][0], theirs["b"]["c"][0])):
        ours = reader.tensor(cut)
        assert (ours.dtype, ours.shape, ours.stride()) == (other.dtype, other.shape, other.stride())
        assert torch.equal(ours, other)
    assert reader.content["n"] == 3


GOOD: dict[bool, bytes] = {}
for new in (True, False):
    held = io.BytesIO()
    torch.save({"state_dict": trained().state_dict(), "epoch": 3}, held, _use_new_zipfile_serialization=new)
    GOOD[new] = held.getvalue()


@settings(max_examples=150, deadline=None)
@given(new=st.booleans(), at=st.integers(0, 10**6), byte=st.integers(0, 255), cut=st.one_of(st.none(), st.integers(1, 10**6)))
@example(new=False, at=0, byte=0x80, cut=20)
def test_a_damaged_file_is_an_error_of_ours_or_loads(new: bool, at: int, byte: int, cut: int | None, tmp_path_factory: Any):
    content = bytearray(GOOD[new])
    content[at % min(len(content), 2000)] = byte
    path = tmp_path_factory.mktemp("damaged", numbered=True) / "w.pt"
    path.write_bytes(bytes(content if cut is None else content[: cut % len(content) or 1]))
    with contextlib.suppress(ModelError):
        Model.load(path, arch=Small)


class Calls:
    """Pickles as a call of anything with anything."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (Calls(os.system, "true"), "posix.system"),
        (Calls(eval, "1"), "builtins.eval"),
        (Calls(getattr, "a", "upper"), "builtins.getattr"),
        (Calls(torch.load, "x"), "torch.serialization.load"),
        (Calls(torch.Tensor, 3), "torch.Tensor"),
        (torch.eye(3).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
        (Calls(torch._utils._rebuild_qtensor), "torch._utils._rebuild_qtensor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "inside"])
def test_what_is_not_weights_is_refused_by_name(content: Any, name: str, legacy: bool, inside: bool, tmp_path: Path):
    path = tmp_path / "w.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of sources that it cannot keep
        whole = {"state_dict": trained().state_dict(), "more": content} if inside else content
        saved(path, whole, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ModelRefused) as refused:
        Model.load(path, arch=Small)
    assert name in str(refused.value)
    assert "--arch" in str(refused.value)
    assert "--trust-model" in str(refused.value)


def test_a_network_beside_the_weights_is_left_alone_and_its_own_must_fit(tmp_path: Path):
    for beside in (nn.Linear(2, 2), Small()):
        path = saved(tmp_path / "w.pt", {"state_dict": trained().state_dict(), "more": beside})
        assert same(Model.load(path, arch=Small), trained())
    with pytest.raises(ModelError, match="do not fit"):
        Model.load(saved(tmp_path / "w.pt", nn.Linear(2, 2)), arch=Small)


def test_nothing_is_called_however_a_pickle_asks():
    """A call is an inert record: what it is called with, and what its state is set to, is kept and not used."""
    for opcodes in (
        b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
        b"ccollections\nCounter\n)R}(X\x05\x00\x00\x00itemsK\x01ub.",
        b"cpathlib\nPosixPath\n)R.",
    ):
        assert isinstance(Saved(hostile.torch_zip(b"\x80\x02" + opcodes)).content, Made)
    defaults = b"}(X\x0c\x00\x00\x00__defaults__)u\x86b."
    with pytest.raises(Blocked, match=r"torch\._utils\._rebuild_tensor_v2"):
        Saved(hostile.torch_zip(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN" + defaults))
    assert pickled.records._tensor.__defaults__ == (False, None, None)
    with pytest.raises(Damaged, match="sets the state of a StorageType"):
        Saved(hostile.torch_zip(b"\x80\x02ctorch\nFloatStorage\n}(X\x05\x00\x00\x00dtypeK\x01ub."))
    with pytest.raises(Damaged):
        Saved(hostile.torch_zip(b"\x80\x02\x82\x01."))  # an extension code, looked up in a registry of the process
    with pytest.raises(Blocked, match=r"os\.system"):
        Saved(hostile.torch_zip(b"\x80\x04\x8c\x02os\x8c\x06system\x93."))


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [((5,), (1,), 0), ((2, 2), (3, 1), 1), ((1,), (1,), 4), ((2**40, 2**40), (1, 1), 0), ((2,), (-1,), 1), ((2,), (1, 1), 0)],
)
def test_a_tensor_cannot_reach_outside_its_numbers(size: tuple[int, ...], stride: tuple[int, ...], offset: int):
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + _int(offset) + _ints(size) + _ints(stride) + b"\x89}tR."
    with pytest.raises(Damaged):
        _first_tensor(hostile.torch_zip(b"\x80\x02" + call, **{"0": bytes(16)}))


def _first_tensor(file: bytes) -> Tensor:
    reader = Saved(file)
    return reader.tensor(reader.content)


def _int(value: int) -> bytes:
    return pickle.dumps(value, protocol=2)[2:-1]


def _ints(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_int, values)) + b"t"


# --- what does not fit --------------------------------------------------------------------------------------------------


def test_weights_that_do_not_fit_are_named(tmp_path: Path):
    weights = trained().state_dict()
    weights["extra.weight"] = torch.ones(2)
    del weights["head.bias"]
    weights["head.weight"] = torch.ones(3, 9)
    with pytest.raises(ModelError) as error:
        Model.load(saved(tmp_path / "w.pt", weights), arch=Small)
    message = str(error.value)
    assert "missing 1 (head.bias)" in message
    assert "unexpected 1 (extra.weight)" in message
    assert "wrong shape 1 (head.weight (3, 9) instead of (3, 5))" in message


def test_the_hash_must_be_the_one_stated(tmp_path: Path):
    path = saved(tmp_path / "w.pt", trained().state_dict())
    sha256 = open_file(path).sha256
    assert Model.load(path, arch=Small, expect_sha256=f" {sha256.upper()}").origin.sha256 == sha256
    with pytest.raises(ModelError, match="not the file you mean"):
        Model.load(path, arch=Small, expect_sha256="0" * 64)


def test_links_are_followed_to_regular_files_only(tmp_path: Path):
    path = saved(tmp_path / "w.pt", trained().state_dict())
    (tmp_path / "link.pt").symlink_to(path)
    assert same(Model.load(tmp_path / "link.pt", arch=Small), trained())
    for name, target in {"zero": "/dev/zero", "loop": tmp_path / "loop", "nowhere": tmp_path / "gone"}.items():
        (tmp_path / name).symlink_to(target)
        with pytest.raises(ModelError):
            Model.load(tmp_path / name, arch=Small)


def test_two_members_of_one_name_are_refused(tmp_path: Path):
    buffer = io.BytesIO(GOOD[True])
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "a") as archive:
        warnings.simplefilter("ignore", UserWarning)
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        archive.writestr(name, b"\x80\x02N.")
    (tmp_path / "w.pt").write_bytes(buffer.getvalue())
    with pytest.raises(ModelError, match="two members of one name"):
        Model.load(tmp_path / "w.pt", arch=Small)


# --- code of the user's own ---------------------------------------------------------------------------------------------


def test_arch_takes_a_file_a_module_a_class_and_arguments(tmp_path: Path):
    (tmp_path / "helper.py").write_text("WIDTH = 5\n")
    source = (
        "from helper import WIDTH\nfrom tests.model.test_loading import Small\ndef make(width=WIDTH): return Small(width)\n"
    )
    (tmp_path / "nets.py").write_text(source)
    path = saved(tmp_path / "w.pt", trained().state_dict())
    for arch, arguments in (
        (f"{tmp_path}/nets.py:make", None),
        (f"{tmp_path}/nets.py:make", {"width": 5}),
        (f"{tmp_path}/nets.py:make", [5]),
        ("tests.model.test_loading:Small", None),
        (Small, None),
        (Small(), None),
    ):
        assert same(Model.load(path, arch=arch, arch_args=arguments), trained())
    assert not (tmp_path / "__pycache__" / "nets.cpython-311.pyc").exists()
    with pytest.raises(UsageError, match="without --arch"):
        Model.load(path, arch_args={"width": 5})


def test_the_source_that_is_hashed_is_the_one_that_runs(tmp_path: Path):
    from audit.usercode import load_code

    file = tmp_path / "nets.py"
    hashes = []
    for value in (1, 2):  # the same length and, often, the same second: Python's own cache would give the first one again
        file.write_text(f"def make(): return {value}\n")
        code = load_code(f"{file}:make", "--arch")
        assert code.function() == value
        hashes.append(code.sha256)
    assert hashes[0] != hashes[1]


# --- trusted files ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated:DeprecationWarning")
def test_trusted_files_open_whatever_torch_opens(tmp_path: Path):
    module = trained()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is; files of it remain
        torch.jit.script(module).save(str(tmp_path / "script.pt"))
    saved(tmp_path / "whole.pt", module)
    saved(tmp_path / "old.pt", module, _use_new_zipfile_serialization=False)
    saved(tmp_path / "inside.pt", {"model": module, "epoch": 3})
    for name in ("script", "whole", "old", "inside"):
        with pytest.raises(ModelRefused):
            Model.load(tmp_path / f"{name}.pt")
        model = Model.load(tmp_path / f"{name}.pt", trust=True, device="cpu")
        assert model.origin.trusted
        assert same(model, module)
        assert torch.equal(model.predict(X), module(X).argmax(dim=1))
    path = saved(tmp_path / "weights.pt", {"state_dict": module.state_dict(), "path": tmp_path})
    assert same(Model.load(path, arch=Small, trust=True), module)
    with pytest.raises(ModelError, match="--arch"):
        Model.load(path, trust=True)


def test_trust_does_not_open_what_torch_cannot(tmp_path: Path):
    files = hostile.malicious(tmp_path)
    with pytest.raises(ModelError, match="trusted, but torch cannot open"):
        Model.load(files["pt2"], trust=True)
    (tmp_path / "cut.pt").write_bytes(pickle.dumps(1)[:-1])
    with pytest.raises(ModelError, match="trusted, but torch cannot open"):
        Model.load(tmp_path / "cut.pt", trust=True)
    assert not list(tmp_path.glob("canary-*"))


def test_no_unsafe_reader_is_reached_without_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def unsafe(*_: Any, **__: Any) -> None:
        raise AssertionError("an unsafe reader was called")

    files = hostile.malicious(tmp_path)
    good = saved(tmp_path / "good.pt", trained().state_dict())
    for owner, name in ((torch, "load"), (torch.jit, "load"), (torch.export, "load"), (pickle, "loads"), (pickle, "load")):
        monkeypatch.setattr(owner, name, unsafe)
    assert same(Model.load(good, arch=Small), trained())
    for kind, path in files.items():
        if kind != "npz":
            with pytest.raises(ModelError if kind == "pt2" else ModelRefused):
                Model.load(path, arch=Small)
    assert not list(tmp_path.glob("canary-*"))


def test_the_package_and_its_help_import_no_heavy_library():
    heavy = ("torch", "numpy", "pandas", "sklearn")
    code = f"import audit, sys; from audit import cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_several_sets_of_weights_in_one_file_are_told(tmp_path: Path):
    last, average = trained(0), trained(1)
    path = saved(tmp_path / "w.pt", {"state_dict_ema": average.state_dict(), "state_dict": last.state_dict(), "epoch": 3})
    model = Model.load(path, arch=Small)
    assert same(model, last)
    assert any("'state_dict_ema'" in note and "under 'state_dict' were taken" in note for note in model.notes)
    whole = {"model": nn.Sequential(nn.Linear(4, 3)), "state_dict": nn.Sequential(nn.Linear(4, 3)).state_dict()}
    model = Model.load(saved(tmp_path / "m.pt", whole))
    assert any("under 'model' were taken, and not those under 'state_dict'" in note for note in model.notes)
    one = {"state_dict": last.state_dict(), "optimizer": adam()}
    assert not Model.load(saved(tmp_path / "o.pt", one), arch=Small).notes


def test_a_flipped_bit_in_the_weights_is_noticed(tmp_path: Path):
    path = saved(tmp_path / "w.pt", trained().state_dict())
    content = bytearray(path.read_bytes())
    numbers = trained().head.weight.detach().numpy().tobytes()
    content[content.index(numbers) + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="checksum"):
        Model.load(path, arch=Small)
