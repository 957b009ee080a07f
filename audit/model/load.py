"""Opens a model file: reads the bytes, hashes them, says what they are, and hands them to the loader of that format.

A model file is a program until proven otherwise. The very bytes that were hashed are the ones that are read; nothing that a
file holds is run unless the caller says ``trust=True``; and no file is first tried safely and then unsafely.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from audit.errors import ModelError, ModelRefused
from audit.files import archive_members, not_a_model_nor_data, read_file
from audit.model import safetensors, state_dict, trusted
from audit.model.arch import Arch, build
from audit.model.wrapper import Model, Origin

MAX_RATIO = 100  # torch stores tensors uncompressed; real checkpoints that were zipped again reach about 3

WAYS_ON = (
    "save the weights (torch.save(model.state_dict(), 'weights.pt')) and give --arch FILE.py:FACTORY, "
    "or, if you trust whoever made the file, give --trust-model"
)


@dataclass(frozen=True)
class ModelFile:
    """The bytes of a model file, their hash, and the format that they are in."""

    path: Path
    content: bytes
    sha256: str
    format: str


def load(
    path: str | os.PathLike[str],
    *,
    arch: str | Callable[..., nn.Module] | None = None,
    arch_args: dict[str, Any] | list[Any] | None = None,
    trust: bool = False,
    expect_sha256: str | None = None,
    **options: Any,
) -> Model:
    """Load a network from a file.

    Parameters
    ----------
    path
        A ``.safetensors`` file, a state dict saved by ``torch.save`` (alone or inside a checkpoint), or, with `trust`,
        anything that ``torch.load`` or ``torch.jit.load`` can open.
    arch
        Class or function that builds the network: a callable, or ``FILE.py:NAME`` or ``MODULE:NAME``.
    arch_args
        Its keyword arguments (a dict) or positional arguments (a list).
    trust
        Allow the file to run its own code.
    expect_sha256
        The hash that the file must have.
    **options
        Passed to `Model`: task, classes, output, bounds, mean, std, device.

    Raises
    ------
    ModelRefused
        The file could execute code, and `trust` was not given.
    ModelError
        The file cannot be read, is damaged, or its weights do not fit the architecture.
    """
    file = open_file(path, expect_sha256)
    built = build(arch, arch_args)
    if file.format in ("torchscript", "pickle", "torch-zip") and trust:
        module = trusted.load(file.content, file.format, str(file.path), built)
    elif file.format == "safetensors":
        module = _fill(safetensors.load(file.content, str(file.path)), built, file)
    elif file.format in ("torch-zip", "pickle"):
        module = _fill(state_dict.load(file.content, str(file.path), WAYS_ON), built, file)
    else:
        raise _refusal(file)
    origin = Origin(
        source=str(file.path),
        sha256=file.sha256,
        format=file.format,
        arch_sha256=built.sha256 if built else "",
        trusted=trust and file.format != "safetensors",
    )
    return Model(module, origin=origin, **options)


def open_file(path: str | os.PathLike[str], expect_sha256: str | None = None) -> ModelFile:
    """Read and hash a file and say what it is, by its content and never by its name."""
    path = Path(path)
    content = read_file(path, "model file", ModelError)
    sha256 = hashlib.sha256(content).hexdigest()
    if expect_sha256 is not None and sha256 != expect_sha256.strip().lower():
        raise ModelError(f"{path} should have SHA-256 {expect_sha256.lower()}, but has {sha256}: it is not the file you mean")
    return ModelFile(path, content, sha256, _format(path, content))


def _format(path: Path, content: bytes) -> str:
    something_else = not_a_model_nor_data(content)
    if something_else is not None:
        raise ModelError(f"{path} {something_else}")
    if content[:4] == b"PK\x03\x04":
        return _zip_format(path, content)
    if len(content) > 9 and content[8:9] == b"{" and int.from_bytes(content[:8], "little") <= len(content) - 8:
        return "safetensors"
    if content[:1] == b"\x80":
        return "pickle"
    if path.suffix == ".safetensors":
        raise ModelError(f"{path} is a truncated or damaged safetensors file: copy or save it again")
    if path.suffix == ".onnx" or (content[:1] == b"\x08" and b"onnx" in content[:4096].lower()):
        return "onnx"
    raise ModelError(
        f"{path} is not a model file that audit knows (safetensors, or a state dict saved by torch.save): "
        f"it begins with {content[:8]!r}"
    )


def _zip_format(path: Path, content: bytes) -> str:
    members = archive_members(content, str(path), ModelError, MAX_RATIO)
    names = [member.filename for member in members]
    leaves = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in leaves or any("/code/" in f"/{name}" for name in names):
        return "torchscript"
    if leaves & {"archive_format", "serialized_exported_program.json"} or any(
        "/models/" in f"/{n}" and n.endswith(".json") for n in names
    ):
        return "pt2"
    if "data.pkl" in leaves:
        return "torch-zip"
    if any(name.endswith(".npy") for name in names):
        raise ModelError(f"{path} is a NumPy archive, not a model: did you mean --data?")
    raise ModelError(f"{path} is a zip archive, but not one that torch.save wrote")


def _refusal(file: ModelFile) -> ModelError:
    if file.format == "torchscript":
        return ModelRefused(
            f"{file.path} is a TorchScript archive, which runs its own code when it is loaded, so it was not opened; {WAYS_ON}"
        )
    if file.format == "pt2":
        return ModelRefused(
            f"{file.path} is a torch.export program (.pt2), whose loader evaluates strings and unpickles what the file holds, "
            "so it was not opened; save the weights (torch.save(program.state_dict, 'weights.pt')) "
            "and give --arch FILE.py:FACTORY"
        )
    return ModelError(
        f"{file.path} is an ONNX file, which this version does not read; "
        "save the weights of the PyTorch network and give --arch FILE.py:FACTORY"
    )


def _fill(weights: dict[str, Any], arch: Arch | None, file: ModelFile) -> nn.Module:
    if arch is None:
        raise ModelError(
            f"{file.path} holds weights only ({state_dict.summary(weights)}): "
            "say which network they belong to with --arch FILE.py:FACTORY (and --arch-args JSON)"
        )
    state_dict.fill(arch.module, weights, str(file.path), arch.name)
    return arch.module
