"""Opens a model file: reads the bytes, hashes them, says what they are, and hands them to the reader of that format.

A model file is a program until proven otherwise. The very bytes that were hashed are the ones that are read; nothing that a
file holds is run unless the caller says ``trust=True``; and no file is first tried safely and then unsafely.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from audit.archives import archive_members
from audit.errors import ModelError, ModelRefused, UsageError
from audit.files import not_a_model_nor_data, read_file
from audit.model import safetensors, state_dict, trusted
from audit.model.arch import Arch, build
from audit.model.description import Description
from audit.model.graph import Graph
from audit.model.wrapper import Model, Origin

MAX_RATIO = 20  # torch stores tensors uncompressed; real checkpoints that were zipped again reach about 3, pruned ones 10

WAYS_ON = (
    "save the weights (torch.save(model.state_dict(), 'weights.pt')) and give --arch FILE.py:FACTORY, "
    "or, if you trust whoever made the file, give --trust-model (better with --sandbox)"
)

PICKLED_MODULE = "pickled module"  # what a network that was rebuilt from one came from

# Formats whose own loader runs what the file says: with trust they go to it, and to it alone.
RUN_BY_THEIR_LOADER = ("torchscript", "pickle", "torch-zip", "pt2")


@dataclass(frozen=True)
class ModelFile:
    """The bytes of a model file, their hash, and the format that they are in.

    Attributes
    ----------
    sha256
        Of the file; where other files beside it hold part of the network (ONNX), of the hashes of all of them.
    format
        ``safetensors``, ``torch-zip`` or ``pickle`` (what torch.save writes, today and before 1.6), ``pt2``, ``onnx``,
        ``torchscript``.
    beside
        Content of the other files by the name that the model file calls them.
    """

    path: Path
    content: bytes
    sha256: str
    format: str
    beside: Mapping[str, bytes] = field(default_factory=dict)


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
        A module of torch.nn layers saved by ``torch.save``, a ``.pt2`` program of ``torch.export``, an ONNX file; or, with
        `arch`, weights: ``.safetensors``, or a state dict saved by ``torch.save``, alone or inside a checkpoint. With `trust`,
        anything that ``torch.load``, ``torch.export.load`` or ``torch.jit.load`` can open.
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
        The file cannot be read, is damaged, holds operations that are not known, or its weights do not fit the architecture.
    """
    file = open_file(path, expect_sha256)
    built = build(arch, arch_args)
    trusted_now = trust and file.format in RUN_BY_THEIR_LOADER
    notes: list[str] = []
    module = trusted.load(file.content, file.format, str(file.path), built) if trusted_now else _read(file, built, notes)
    network = built is None and not trusted_now  # the network came with the file
    origin = Origin(
        source=str(file.path),
        sha256=file.sha256,
        format=PICKLED_MODULE if network and file.format in ("torch-zip", "pickle") else file.format,
        arch_sha256=built.sha256 if built else "",
        trusted=trusted_now,
    )
    model = Model(module, origin=origin, **options)
    model.notes.extend(notes)
    if origin.format == PICKLED_MODULE:
        from audit.model.pickled import bounded

        model.guard = partial(bounded.check, module)
    if isinstance(module, Graph):
        model.notes = module.notes  # one list: how samples are laid out is known when the first come
    return model


def describe(path: str | os.PathLike[str], expect_sha256: str | None = None) -> tuple[ModelFile, Description]:
    """Read a file without loading it, and say what it is.

    Raises
    ------
    ModelError
        It cannot be read, is damaged, or is no model file.
    """
    from audit.model import onnx, pickled, pt2, torchscript

    file = open_file(path, expect_sha256)
    source = str(file.path)
    if file.format == "safetensors":
        return file, safetensors.describe(file.content, source)
    if file.format == "onnx":
        return file, onnx.describe(file.content, source, file.beside)
    if file.format == "pt2":
        return file, pt2.describe(file.content, source)
    if file.format == "torchscript":
        return file, torchscript.describe(file.content, source)
    return file, pickled.describe(file.content, source)


def open_file(path: str | os.PathLike[str], expect_sha256: str | None = None) -> ModelFile:
    """Read and hash a file and say what it is, by its content and never by its name."""
    path = Path(path)
    content = read_file(path, "model file", ModelError)
    sha256 = hashlib.sha256(content).hexdigest()
    said = _format(path, content)
    beside: Mapping[str, bytes] = {}
    if said == "onnx":
        from audit.model import onnx

        beside = onnx.read_beside(content, path)
        if beside:
            hashes = {name: hashlib.sha256(part).hexdigest() for name, part in sorted(beside.items())}
            sha256 = hashlib.sha256(f"{sha256} {hashes}".encode()).hexdigest()
    if expect_sha256 is not None and sha256 != expect_sha256.strip().lower():
        raise ModelError(f"{path} should have SHA-256 {expect_sha256.lower()}, but has {sha256}: it is not the file you mean")
    return ModelFile(path, content, sha256, said, beside)


def _read(file: ModelFile, built: Arch | None, notes: list[str]) -> nn.Module:
    """Load a file with our own reader of its format; `notes` is told what a user should know of it."""
    from audit.model import onnx, pickled, pt2, torchscript

    source = str(file.path)
    if file.format == "safetensors":
        weights = safetensors.load(file.content, source)
    elif file.format in ("torch-zip", "pickle"):
        found = pickled.load(file.content, source, WAYS_ON, network_wanted=built is None, notes=notes)
        if isinstance(found, nn.Module):
            return found
        weights = found
    elif file.format == "pt2":
        module = pt2.load(file.content, source, WAYS_ON)
        if built is None:
            return module
        weights = dict(module.weights.state_dict())
    elif file.format == "onnx":
        if built is not None:
            raise UsageError(f"{source} is an ONNX file, which holds its own network: leave --arch out")
        return onnx.load(file.content, source, file.beside)
    else:
        raise ModelRefused(f"{source} {torchscript.WHY}, so it was not opened; {WAYS_ON}")
    return _fill(weights, built, source)


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
        f"{path} is not a model file that audit knows (safetensors, torch.save, .pt2, ONNX, TorchScript): "
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
    raise ModelError(f"{path} is a zip archive, but not one that torch.save wrote to its end: copy or save it again")


def _fill(weights: dict[str, Any], arch: Arch | None, source: str) -> nn.Module:
    if arch is None:
        raise ModelError(
            f"{source} holds weights only ({state_dict.summary(weights)}): "
            "say which network they belong to with --arch FILE.py:FACTORY (and --arch-args JSON)"
        )
    state_dict.fill(arch.module, weights, source, arch.name)
    return arch.module
