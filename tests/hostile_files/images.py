"""Folders of images: pictures that unpack to gigabytes, programs in their place, links and pipes among them."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.hostile_files.case import SECRET, Family, Place, Proof

FAMILY = Family("images", file="hostile", kind="data")


def png(wide: int, high: int, data: bytes, kind: int = 2, bits: int = 8, more: bytes = b"") -> bytes:
    """Return a PNG with any header and any data."""
    head = struct.pack(">2I5B", wide, high, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def small() -> bytes:
    held = io.BytesIO()
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(held, "PNG")
    return held.getvalue()


def folder(place: Place, **images: bytes) -> Path:
    """Write a folder of two classes with good images and others."""
    root = place.at / "hostile"
    for label in ("0", "1"):
        (root / label).mkdir(parents=True)
        (root / label / "good.png").write_bytes(small())
    for name, content in images.items():
        (root / "0" / name.replace("_", ".")).write_bytes(content)
    return root


def opened(name: str) -> Callable[[Path, Place], Any]:
    """Return a reader of one image, as most scripts read one: without the limit that Pillow warns at."""

    def read(file: Path, _: Place) -> Any:
        Image.MAX_IMAGE_PIXELS = None
        with Image.open(file / "0" / name) as image:
            return np.asarray(image.convert("RGB")).sum()

    return read


def add(case: str, name: str, content: bytes | Callable[[Place], bytes], proof: Proof, *words: str, **more: Any) -> None:
    FAMILY.add(
        case,
        lambda p: folder(p, **{name.replace(".", "_"): content(p) if callable(content) else content}),
        proof,
        *words,
        **more,
    )


def _zeros(count: int) -> bytes:
    packer = zlib.compressobj(9)
    block = bytes(10_000_000)
    return b"".join(packer.compress(block) for _ in range(count // len(block) + 1)) + packer.flush()


add(
    "a picture of 30,000 × 30,000",
    "a.png",
    lambda p: png(30_000, 30_000, b""),
    Proof("exhausts", opened("a.png")),
    "decompression bomb",
)
add("a picture of 2**31 × 2**31", "a.png", png(2**31 - 1, 2**31 - 1, b""), Proof("fixed", opened("a.png"), ""), "a.png")
add(
    "a palette of 9 bits",
    "a.png",
    png(2, 2, zlib.compress(bytes(6)), kind=3, bits=9),
    Proof("fixed", opened("a.png"), ""),
    "a.png",
)


def _text(place: Place) -> bytes:
    """Write a small picture with 2 GB of compressed words in it."""
    words = b"Comment\0\0" + _zeros(200_000_000)
    return png(2, 2, zlib.compress(bytes(14)), more=chunk(b"zTXt", words) * 8)


def with_words(file: Path, _: Place) -> Any:
    from PIL import PngImagePlugin

    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**34
    with Image.open(file / "0" / "a.png") as image:
        image.load()
        return len(image.text)


add("2 GB of words in a picture of four pixels", "a.png", _text, Proof("exhausts", with_words), "a.png")


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n%%EndComments\n"


def _script(place: Place) -> bytes:
    return POSTSCRIPT + f"({place.canary}) (w) file closefile showpage\n".encode()


def drawn(file: Path, place: Place) -> Any:
    """Open by content, as Pillow does unless it is told which formats: it takes the picture for a program to run."""
    with Image.open(file / "0" / "a.png") as image:
        return [image.format, "PNG"]


add("a program in PostScript under the name of a picture", "a.png", _script, Proof("differs", drawn), "a.png", quick=True)
add(
    "a drawing that reads a file",
    "a.png",
    lambda p: f'<svg xmlns="http://www.w3.org/2000/svg"><!ENTITY x SYSTEM "{p.secret}"></svg>'.encode(),
    Proof("fixed", opened("a.png"), "cannot identify"),
    "a.png",
)


def _frames(_: Place) -> bytes:
    held = io.BytesIO()
    first = Image.fromarray(np.zeros((2, 2), np.uint8))
    second = Image.fromarray(np.full((2, 2), 255, np.uint8))
    first.save(held, "PNG", save_all=True, append_images=[second])
    return held.getvalue()


def _frames_seen(file: Path, _: Place) -> Any:
    with Image.open(file / "0" / "a.png") as image:
        image.seek(0)
        first = np.asarray(image).tolist()
        image.seek(1)
        return [first, np.asarray(image).tolist()]


add("two pictures in one", "a.png", _frames, Proof("differs", _frames_seen), "2 pictures")


def _tiff(_: Place) -> bytes:
    """Write a TIFF whose description points to itself."""
    entry = struct.pack("<HHIHH", 256, 3, 1, 2, 0)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 1) + entry + struct.pack("<I", 8)


add("a TIFF that points to itself", "a.tiff", _tiff, Proof("fixed", opened("a.tiff"), ""), "a.tiff")


# --- what is no picture at all ------------------------------------------------------------------------------------------


def followed(name: str) -> Callable[[Path, Place], str]:
    def read(file: Path, _: Place) -> str:
        return (file / "0" / name).read_bytes().decode(errors="replace")

    return read


def _link(place: Place) -> None:
    (folder(place) / "0" / "a.png").symlink_to(place.secret)


def _folder_link(place: Place) -> None:
    (place.secret.parent / "elsewhere").mkdir()
    (place.secret.parent / "elsewhere" / "a.png").write_text(SECRET)
    (folder(place) / "2").symlink_to(place.secret.parent / "elsewhere")


FAMILY.add("a link out of the folder", _link, Proof("escapes", followed("a.png")), "is a link", quick=True)
FAMILY.add("a linked class outside", _folder_link, Proof("escapes", lambda f, p: (f / "2" / "a.png").read_text()), "is a link")


def _pipe(place: Place) -> None:
    os.mkfifo(folder(place) / "0" / "a.png")


def waited(file: Path, _: Place) -> Any:
    return (file / "0" / "a.png").read_bytes()


FAMILY.add("a pipe", _pipe, Proof("exhausts", waited), "pipe")


def _device(place: Place) -> None:
    (folder(place) / "0" / "a.png").symlink_to("/dev/zero")


FAMILY.add("a link to a device", _device, Proof("exhausts", waited), "a.png")


def _deep(place: Place) -> None:
    path = folder(place)
    for _ in range(400):
        path = path / "d"
        path.mkdir()
    (path / "a.png").write_bytes(small())


def recursive(file: Path, _: Place) -> Any:
    def down(path: Path) -> int:
        return sum(down(one) for one in path.iterdir() if one.is_dir())

    import sys

    sys.setrecursionlimit(300)
    return down(file)


FAMILY.add("folders 400 deep", _deep, Proof("fixed", recursive, "recursion"), "deep")


def _named(place: Place) -> None:
    root = folder(place)
    (root / "\x1b[2J\x1b[31mclass\u202e").mkdir()
    (root / "\x1b[2J\x1b[31mclass\u202e" / "a.png").write_bytes(b"x")


FAMILY.add(
    "a class whose name commands the terminal",
    _named,
    Proof("escapes", lambda f, p: "".join(sorted(path.name for path in f.iterdir()))),
    "a.png",
)
