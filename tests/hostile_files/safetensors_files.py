"""Safetensors files whose header lies: the format runs nothing, so that its readers can only be exhausted or misled."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests import hostile
from tests.hostile_files.case import Family, Place, Proof

FAMILY = Family("safetensors", file="hostile.safetensors")


def written(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(head) if length is None else length) + head + body


def loaded(file: Path, _: Place) -> Any:
    from safetensors.torch import load_file

    return load_file(file)


def fixed(words: str = "") -> Proof:
    return Proof("fixed", loaded, words)


def naively(file: Path, _: Place) -> Any:
    """Read the header as a few lines of Python do."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return {key: torch.zeros(said["shape"]) for key, said in header.items() if key != "__metadata__"}


def entry(shape: list[Any], offsets: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def good() -> tuple[dict[str, Any], bytes]:
    """Return header and body of the network's weights."""
    header, body = {}, b""
    for key, held in hostile.net().state_dict().items():
        raw = held.numpy().tobytes()
        header[key] = entry(list(held.shape), [len(body), len(body) + len(raw)])
        body += raw
    return header, body


HEADER, BODY = good()
FIRST = next(iter(HEADER))


def changed(**said: Any) -> bytes:
    return written({**HEADER, FIRST: {**HEADER[FIRST], **said}}, BODY)


add: Callable[..., None] = FAMILY.add
add("a header of 2**63 bytes", written(HEADER, BODY, length=2**63), fixed(), "safetensors", quick=True)
add("a header longer than the file", written(HEADER, BODY, length=2**20), fixed(), "safetensors")
add(
    "numbers that two weights share",
    changed(data_offsets=[0, 128]).replace(b"[128, 160]", b"[0, 32]    "[:10]),
    fixed(),
    "safetensors",
    quick=True,
)
add("numbers that no weight has", written(HEADER, BODY + bytes(64)), fixed(), "safetensors")
add("a shape of 2**62", changed(shape=[2**31, 2**31]), fixed(), "safetensors")
add("a shape that overflows to what is there", changed(shape=[2**62, 4, 2]), fixed(), "safetensors")
add("a negative shape", changed(shape=[-8, -4]), fixed(), "safetensors")
add("offsets that run backwards", changed(data_offsets=[128, 0]), fixed(), "safetensors")
add("a kind of number that nobody knows", changed(dtype="PICKLE"), fixed(), "safetensors")
add(
    "a shape from a header that claims 16 GB",
    written({"w": entry([2**16, 2**16], [0, 2**34])}, bytes(64)),
    Proof("exhausts", naively),
    "safetensors",
)
add("JSON nested 100,000 deep", written(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), fixed(), "safetensors")


def _twice() -> bytes:
    other = json.dumps({FIRST: HEADER[FIRST]})[1:-1]
    text = json.dumps(HEADER)[:-1] + ", " + other.replace("[8, 4]", "[4, 8]") + "}"
    return written(text.encode(), BODY)


def first_and_last(file: Path, _: Place) -> list[Any]:
    content = file.read_bytes()
    text = content[8 : 8 + int.from_bytes(content[:8], "little")]
    first = json.loads(text, object_pairs_hook=lambda pairs: dict(reversed(pairs)))
    return [first[FIRST], json.loads(text)[FIRST]]


add("keys twice", _twice(), Proof("differs", first_and_last), "safetensors")


def _many(place: Place) -> None:
    said = ",".join(f'"w{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(1_000_000))
    place.write("hostile.safetensors", written(f"{{{said}}}".encode()))


add("a million weights of no numbers", _many, Proof("exhausts", loaded), "a header of")
add(
    "names that command the terminal",
    written({"\x1b[2J\x1b[31mlayers.1.weight\u202e": HEADER[FIRST]}, BODY[:128]),
    Proof("escapes", lambda f, p: str(next(iter(loaded(f, p))))),
    "layers.1.weight",
    bare_words=("weights only",),
)
