"""The readers that are fuzzed: real files to begin with, how to damage them, and what is done with the damaged ones."""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from audit.errors import AuditError
from audit.model.load import describe, load
from tests.fuzzing import mutations
from tests.fuzzing.mutations import Mutation
from tests.fuzzing.oracle import accepted
from tests.roundtrip import formats
from tests.roundtrip.architectures import ARCHITECTURES, inputs, made


@dataclass(frozen=True)
class Seed:
    """A real file: its bytes and the shape of the samples that its network takes."""

    content: bytes
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Reader:
    """A reader of one format.

    Attributes
    ----------
    read
        Called with the path of a damaged file and the shape of its network's samples; may raise `AuditError` alone.
    allowed
        Audit events that are no cause for worry.
    """

    name: str
    suffix: str
    seeds: Callable[[bool], list[Seed]]
    structure: Mutation
    read: Callable[[Path, tuple[int, ...]], None]
    allowed: tuple[str, ...] = ()


# --- what is done with a file -----------------------------------------------------------------------------------------


def _network(path: Path, shape: tuple[int, ...]) -> None:
    """Describe the file, load it, and run the network on two samples."""
    with contextlib.suppress(AuditError):
        describe(path)
    model = load(path)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = torch.zeros(2, *shape) + 0.5
        model.resolve(x, np.asarray([0, 1]))
        with torch.no_grad():
            model.predict(x)


def _weights(path: Path, shape: tuple[int, ...]) -> None:
    """Load the weights into the network that they belong to."""
    with contextlib.suppress(AuditError):
        describe(path)
    name = next(name for name in WEIGHTS if ARCHITECTURES[name].shape == shape)
    load(path, arch=ARCHITECTURES[name].build)


def _either(path: Path, shape: tuple[int, ...]) -> None:
    with contextlib.suppress(AuditError):
        _network(path, shape)
    if any(ARCHITECTURES[name].shape == shape for name in WEIGHTS):
        load(path, arch=ARCHITECTURES[next(name for name in WEIGHTS if ARCHITECTURES[name].shape == shape)].build)


def _refused(path: Path, _: tuple[int, ...]) -> None:
    with contextlib.suppress(AuditError):
        describe(path)
    found, _ = describe(path)
    if found.format == "torchscript":
        load(path)
        accepted("a TorchScript archive")


def _data(path: Path, _: tuple[int, ...]) -> None:
    from audit.data.load import load as load_data

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_data(path, target="y" if path.suffix == ".csv" else None)


def _images(path: Path, _: tuple[int, ...]) -> None:
    """Read a folder of images of which one is damaged."""
    from audit.data.load import load as load_data

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_data(path.parents[1])


# --- real files -------------------------------------------------------------------------------------------------------

WEIGHTS = ("vgg", "mlp_batch_norm_elu_softplus")
PLAIN = ("mlp_relu", "mlp_softmax", "vgg", "mobilenet", "convolution_1d", "prelu_leaky_padding", "mlp_sigmoid")
PROGRAMS = ("mlp_softmax", "vgg", "convnext", "lstm", "attention", "shuffle_net", "functional", "mlp_sigmoid")
ONNX = (*PROGRAMS, "gru", "transposed", "unet", "pools", "einsum_attention", "vit")


def _saved(names: tuple[str, ...], *forms: str) -> list[Seed]:
    """Save each network in each format."""
    seeds = []
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        for name in names:
            architecture = ARCHITECTURES[name]
            network = made(architecture)
            for form in forms:
                if (name, form) not in NOT_EXPORTED:
                    path = formats.FORMATS[form](network, inputs(architecture, 2), Path(folder))
                    seeds.append(Seed(path.read_bytes(), architecture.shape))
    return seeds


NOT_EXPORTED = {("vit", "onnx13"), ("vit", "onnx9"), ("einsum_attention", "onnx9")}


def _pickled(short: bool) -> list[Seed]:
    return [*_saved(PLAIN[:3] if short else PLAIN, "pickled"), *_saved(WEIGHTS, "state_dict", "checkpoint")]


def _pickled_legacy(short: bool) -> list[Seed]:
    return [*_saved(PLAIN[:3] if short else PLAIN, "pickled_legacy"), *_saved(WEIGHTS, "state_dict_legacy")]


def _programs(short: bool) -> list[Seed]:
    return _saved(PROGRAMS[:2], "pt2") if short else [*_saved(PROGRAMS, "pt2"), *_saved(("vgg", "lstm"), "pt2_decomposed")]


def _onnx(short: bool) -> list[Seed]:
    if short:
        return _saved(ONNX[:4], "onnx13")
    return [*_saved(ONNX, "onnx9", "onnx18"), *_saved(("vgg", "attention"), "onnx_dynamo")]


def _safetensors(short: bool) -> list[Seed]:
    return _saved(WEIGHTS, "safetensors")


def _torchscript(short: bool) -> list[Seed]:
    seeds = []
    for name in PLAIN[: 2 if short else 4]:
        architecture = ARCHITECTURES[name]
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.trace(made(architecture), inputs(architecture, 2)), buffer)
        seeds.append(Seed(buffer.getvalue(), architecture.shape))
    return seeds


def _npz(short: bool) -> list[Seed]:
    rng = np.random.default_rng(0)
    seeds = []
    for x, more in (
        (rng.random((12, 4), dtype=np.float32), {"sensitive_sex": np.asarray(["a", "b"] * 6)}),
        (rng.random((6, 1, 5, 5)), {"anomaly": np.asarray([0, 0, 1, 0, 0, 1])}),
        (rng.integers(0, 255, (6, 5, 5, 3), dtype=np.uint8), {}),
    ):
        for save in (np.savez, np.savez_compressed):
            buffer = io.BytesIO()
            save(buffer, x=x, y=np.arange(len(x)) % 3, **more)
            seeds.append(Seed(buffer.getvalue()))
    return seeds


def _csv(short: bool) -> list[Seed]:
    rows = "\n".join(f"{i},{i * 0.25},{-i * 7},{i % 2}" for i in range(20))
    quoted = "\n".join(f'"{i}","{-i}e-2",{i},"{i % 3}"' for i in range(9))
    return [
        Seed(f"age,b,c,y\n{rows}\n".encode()),
        Seed(f'"a b",b,"c ""q""",y\r\n{quoted}'.encode()),
        Seed(b"a,b,y\n1,2.5,0\n2,3.5,1\n3,,0\n"),
    ]


def _pictures(short: bool) -> list[Seed]:
    from PIL import Image

    rng = np.random.default_rng(0)
    seeds = []
    for mode, form in (
        ("RGB", "png"),
        ("L", "png"),
        ("RGB", "jpeg"),
        ("RGB", "gif"),
        ("RGB", "bmp"),
        ("RGB", "tiff"),
        ("P", "png"),
        ("RGB", "webp"),
    ):
        image = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, form)
        seeds.append(Seed(buffer.getvalue()))
    return seeds


def place(reader: Reader, folder: Path) -> Path:
    """Return where a damaged file goes: for images, into a folder beside sound ones."""
    if reader.name != "images":
        return folder / f"case{reader.suffix}"
    from PIL import Image

    for name in ("cat", "dog"):
        (folder / "set" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(folder / "set" / name / "0.png")
    return folder / "set" / "cat" / "case.png"


READERS = {
    reader.name: reader
    for reader in (
        Reader("pickled", ".pt", _pickled, mutations.archive, _either),
        Reader("pickled_legacy", ".pth", _pickled_legacy, mutations.pickle_stream, _either),
        Reader("pt2", ".pt2", _programs, mutations.archive, _network),
        Reader("onnx", ".onnx", _onnx, mutations.protocol_buffer, _network),
        Reader("safetensors", ".safetensors", _safetensors, mutations.safetensors, _weights),
        Reader("torchscript", ".pt", _torchscript, mutations.archive, _refused),
        # NumPy parses the headers of arrays as Python literals; nothing compiled is run, which would raise "exec".
        Reader("npz", ".npz", _npz, mutations.archive, _data, allowed=("compile",)),
        Reader("csv", ".csv", _csv, mutations.text, _data),
        Reader("images", ".png", _pictures, mutations.blind, _images),
    )
}
