"""Tensors whose pickles claim numbers that are not there, or reach outside those that are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests import hostile
from tests.hostile_files.amplification import loaded, loaded_as_weights
from tests.hostile_files.assemble import call, good_weights, keys, members, name, pickled, several, storage, tensor, text, value
from tests.hostile_files.case import Family, Place, Proof

FAMILY = Family("tensors")
NUMBERS = bytes(16)


def add(case: str, pushed: bytes, proof: Proof, *words: str, **more: Any) -> None:
    """Add a file whose only weight is what `pushed` pushes, with one storage of 4 numbers."""
    FAMILY.add(case, hostile.torch_zip(pickled(keys(w=pushed)), **{"0": NUMBERS, "1": NUMBERS}), proof, *words, **more)


def written(file: Path, place: Place) -> Any:
    """Copy each tensor, as filling a network does."""
    return {key: held.clone(memory_format=torch.contiguous_format) for key, held in loaded(file, place).items()}


def fixed(words: str, opened: Any = loaded) -> Proof:
    return Proof("fixed", opened, words)


OUTSIDE = "reaches outside|out of bounds"
HUGE = 2**40
add("size beyond the storage", tensor((5,), (1,)), fixed("not resizable"), "outside", quick=True)
add("offset beyond the storage", tensor((1,), (1,), 2**50), fixed("not resizable"), "outside")
add("negative offset", tensor((1,), (1,), -1), fixed("offset"), "whole numbers")
add("negative stride", tensor((2,), (-1,), 1), fixed("overflowed"), "whole numbers")
add("stride beyond the storage", tensor((2, 2), (3, 1), 1), fixed("not resizable"), "outside")
add("product of sizes that overflows", tensor((2**33, 2**33), (0, 0)), fixed(""), "overflow")
add("strides of zero", tensor((HUGE,), (0,)), Proof("exhausts", written), "(1099511627776,)", quick=True)
add("strides of zero in two dimensions", tensor((2**20, 2**20), (0, 0)), Proof("exhausts", written), "(1048576, 1048576)")
add("a size of a million digits", tensor((10**1000,), (1,)), fixed(""), "operation or the memory 139")
add("a size that is a truth value", tensor((True, 2**62), (1, 1)), fixed(""), "whole numbers")
add("storage of 2**60 numbers", tensor((2**60,), (1,), held=storage(numel=2**60)), fixed(""), "storage")
add("storage of a negative count", tensor((1,), (1,), held=storage(numel=-1)), fixed("", loaded_as_weights), "storage")
add(
    "storage described twice",
    tensor((1,), (1,)) + b"0" + tensor((1,), (1,), held=storage(kind="DoubleStorage")),
    fixed("", loaded_as_weights),
    "two ways",
)
add("storage that is not there", tensor((1,), (1,), held=storage("77")), fixed("not found"), "not there")
add("storage named by a path", tensor((1,), (1,), held=storage("../../data.pkl")), fixed(""), "not there")
add(
    "persistent id that is no storage",
    several(text("module"), name("torch", "FloatStorage"), text("0"), text("cpu"), value(4)) + b"Q",
    fixed("Unknown typename"),
    "storage",
)
add(
    "persistent id without an end",
    several(text("storage")) + b"Q",
    fixed("", loaded_as_weights),
    "not enough values",
)
add(
    "view metadata",
    tensor(
        (1,),
        (1,),
        held=several(
            text("storage"),
            name("torch", "FloatStorage"),
            text("0"),
            text("cpu"),
            value(4),
            several(text("v"), value(0), value(4)),
        )
        + b"Q",
    ),
    fixed("", lambda f, p: _viewed(f)),
    "storage",
)
add(
    "sparse with wild indices",
    call(
        name("torch._utils", "_rebuild_sparse_tensor"),
        name("torch.serialization", "_get_layout") + several(text("torch.sparse_coo")) + b"R",
        several(
            tensor((1, 1), (1, 1), held=storage("1", 2, "LongStorage")),
            tensor((1,), (1,)),
            call(name("torch", "Size"), value([2**40])),
        ),
    ),
    Proof("exhausts", lambda f, p: loaded(f, p)["w"].to_dense()),
    "_rebuild_sparse_tensor",
)
add(
    "quantized with wild strides",
    call(
        name("torch._utils", "_rebuild_qtensor"),
        storage("0", 16, "QInt8Storage"),
        value(0),
        value((2**33,)),
        value((1,)),
        value((torch.per_tensor_affine is None, 1.0, 0)),
        b"\x89",
        b"}",
    ),
    fixed("", loaded_as_weights),
    "QInt8Storage",
)
add(
    "on the meta device",
    call(
        name("torch._utils", "_rebuild_meta_tensor_no_storage"), name("torch", "float32"), value((HUGE,)), value((1,)), b"\x89"
    ),
    Proof("exhausts", lambda f, p: torch.empty_like(loaded(f, p)["w"], device="cpu").fill_(1)),
    "_rebuild_meta_tensor_no_storage",
)
add(
    "a wrapper's subclass",
    call(
        name("torch._utils", "_rebuild_wrapper_subclass"),
        name("torch", "Tensor"),
        name("torch", "float32"),
        value((HUGE,)),
        value((1,)),
        value(0),
        call(name("torch.serialization", "_get_layout"), text("torch.strided")),
        call(name("torch", "device"), text("cpu")),
        b"\x89",
    ),
    fixed("must define __torch_dispatch__"),
    "_rebuild_wrapper_subclass",
)
add(
    "from numpy",
    call(
        name("torch._utils", "_rebuild_device_tensor_from_numpy"),
        call(name("numpy", "ones"), value(2**32)),
        name("torch", "float32"),
        text("cpu"),
        b"\x89",
    ),
    Proof("exhausts", loaded),
    "numpy.ones",
)


def _viewed(file: Path) -> Any:
    return torch.load(file, weights_only=True)


def _big_endian() -> bytes:
    held = members(good_weights())
    return hostile.zipped({key: b"big" if key.endswith("/byteorder") else content for key, content in held.items()})


def read_as_it_lies(file: Path, _: Place) -> Any:
    """Return the first weight as torch swaps its bytes, and as a reader that ignores the byte order sees it."""
    ignored = {key: content for key, content in members(file.read_bytes()).items() if not key.endswith("/byteorder")}
    import io

    raw = torch.load(io.BytesIO(hostile.zipped(ignored)), weights_only=True)
    return [torch.load(file, weights_only=True)["layers.1.weight"].sum(), raw["layers.1.weight"].sum()]


FAMILY.add("another byte order", _big_endian(), Proof("differs", read_as_it_lies), "byte order")
