"""Damages the operations of a pickle: each stays whole, so that the stack machine goes on behind the damage."""

from __future__ import annotations

import io
import pickletools
import random
import struct
from collections.abc import Sequence

NAMES = (
    ("os", "system"), ("posix", "system"), ("builtins", "eval"), ("builtins", "getattr"), ("collections", "OrderedDict"),
    ("torch", "FloatStorage"), ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_from_type_v2"), ("torch.nn.modules.linear", "Linear"), ("torch.nn.modules.activation", "ReLU"),
    ("torch.nn.modules.container", "Sequential"), ("torch.nn.modules.conv", "Conv2d"), ("torch.nn.modules.rnn", "LSTM"),
    ("torch.nn.modules.batchnorm", "BatchNorm2d"), ("torch.nn.modules.module", "Module"), ("torch.nn.parameter", "Parameter"),
    ("__builtin__", "set"), ("builtins", "set"), ("torch", "float32"), ("torch", "device"), ("torch", "Size"),
    ("functools", "partial"), ("copyreg", "_reconstructor"),
)  # fmt: skip
NUMBERS = (0, 1, 2, 3, 255, 65535, 2**31 - 1, -1, -(2**31))
BUILD = (
    b"N", b"\x88", b"\x89", b")", b"]", b"}", b"(", b"0", b"1", b"2", b"t", b"\x85", b"\x86", b"\x87", b"a", b"e", b"s", b"u",
    b"b", b"R", b"\x81", b"\x93", b"Q", b".", b"\x94", b"K\x05", b"\x8f", b"\x90", b"\x91", b"\x92",
)  # fmt: skip


def mutate(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Return the pickles at the beginning of `content` with some operations changed, and what follows as it was."""
    pieces, rest = operations(content)
    if len(pieces) < 3:
        at = rng.randrange(len(content) + 1)
        return content[:at] + rng.choice(BUILD) + content[at:]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        _one(rng, pieces, others)
    return b"".join(pieces) + rest


def operations(content: bytes) -> tuple[list[bytes], bytes]:
    """Split the pickles at the beginning of `content` into operations, and what follows them."""
    pieces: list[bytes] = []
    stream = io.BytesIO(content)
    whole = 0
    while True:
        start = stream.tell()
        places: list[int] = []
        try:
            for _, _, position in pickletools.genops(stream):
                places.append(int(position or 0))
        except Exception:
            return pieces, content[whole:]
        whole = stream.tell()
        if not places or whole == start:
            return pieces, content[whole:]
        pieces += [content[a:b] for a, b in zip(places, [*places[1:], whole], strict=True)]


def _one(rng: random.Random, pieces: list[bytes], others: Sequence[bytes]) -> None:
    at = rng.randrange(len(pieces))
    kind = rng.randrange(14)
    if kind == 0:
        del pieces[at]
    elif kind == 1:
        pieces.insert(at, rng.choice(pieces))
    elif kind == 2:
        other = rng.randrange(len(pieces))
        pieces[at], pieces[other] = pieces[other], pieces[at]
    elif kind == 3:
        pieces.insert(at, rng.choice(BUILD))
    elif kind == 4:
        start = rng.randrange(len(pieces))
        pieces[at:at] = pieces[start : start + rng.choice((2, 8, 40))]
    elif kind == 5:
        foreign, _ = operations(rng.choice(others))
        start = rng.randrange(len(foreign) + 1)
        pieces[at:at] = foreign[start : start + rng.choice((1, 4, 40))]
    else:
        _argument(rng, pieces)
    if not pieces:
        pieces.append(b".")


def _argument(rng: random.Random, pieces: list[bytes]) -> None:
    """Change the argument of an operation that has one."""
    candidates = [i for i, piece in enumerate(pieces) if piece[:1] in b"KMJG\x8aXcU\x8c\x93hqjr\x95T"]
    if not candidates:
        return
    at = rng.choice(candidates)
    piece = pieces[at]
    code = piece[:1]
    if code in b"KMJ\x8a":
        number = rng.choice(NUMBERS) if rng.random() < 0.7 else int.from_bytes(piece[1:], "little") + rng.choice((-1, 1, 2))
        pieces[at] = b"J" + struct.pack("<i", max(-(2**31), min(2**31 - 1, number)))
        if rng.random() < 0.2:
            wide = rng.choice((2**31, 2**62, 2**63, 2**64, -(2**63), 10**60)).to_bytes(32, "little", signed=True)
            pieces[at] = b"\x8a" + bytes([32]) + wide
    elif code == b"G":
        pieces[at] = b"G" + struct.pack(">d", rng.choice((0.0, -1.0, 1e308, float("inf"), float("nan"), 0.5)))
    elif code in b"c\x93":
        module, name = rng.choice(NAMES)
        pieces[at] = f"c{module}\n{name}\n".encode()
    elif code in b"XU\x8cT":
        said = rng.choice(
            (
                "",
                "weight",
                "bias",
                "training",
                "forward",
                "_modules",
                "_parameters",
                "_buffers",
                "0",
                "storage",
                "cpu",
                "x" * 999,
                "\x1b[0m",
                "__class__",
            )
        )
        pieces[at] = b"X" + struct.pack("<I", len(said)) + said.encode()
    elif code in b"hq":
        pieces[at] = code + bytes([rng.randrange(256)])
    else:
        pieces[at] = code + rng.randbytes(len(piece) - 1)
