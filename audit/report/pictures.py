"""Small pictures for the report: arrays of bytes to PNG data addresses, with the standard library alone."""

from __future__ import annotations

import base64
import binascii
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

MAX_SIDE = 4096


def decode(shape: tuple[int, int, int], pixels: str) -> NDArray[np.uint8]:
    """Return the picture that a gallery holds: base64 of uint8 of `shape` (channels, height, width), 1 or 3 channels.

    Raises
    ------
    ValueError
        The shape is not that of a picture, or the bytes do not fill it.
    """
    channels, height, wide = shape
    if channels not in (1, 3) or not (0 < height <= MAX_SIDE and 0 < wide <= MAX_SIDE):
        raise ValueError(f"a picture has 1 or 3 channels and sides of at most {MAX_SIDE} pixels, got shape {shape}")
    try:
        raw = base64.b64decode(pixels, validate=True)
    except binascii.Error as error:
        raise ValueError(f"the pixels of a picture are base64, got something else: {error}") from None
    if len(raw) != channels * height * wide:
        raise ValueError(f"a picture of shape {shape} has {channels * height * wide} bytes, got {len(raw)}")
    return np.frombuffer(raw, dtype=np.uint8).reshape(shape)


def shrink(picture: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Return the picture at 1/`factor` of its resolution, each pixel the mean of a block."""
    channels, height, wide = picture.shape
    rows, columns = max(1, height // factor), max(1, wide // factor)
    cut = picture[:, : rows * factor, : columns * factor].astype(np.float64)
    if height < factor or wide < factor:
        return picture[:, ::factor, ::factor]
    blocks = cut.reshape(channels, rows, factor, columns, factor).mean(axis=(2, 4))
    shrunk: NDArray[np.uint8] = np.rint(blocks).astype(np.uint8)
    return shrunk


def png(picture: NDArray[np.uint8]) -> bytes:
    """Return a picture of shape (1 or 3, height, width) as a PNG file."""
    channels, height, wide = picture.shape
    rows = np.ascontiguousarray(picture.transpose(1, 2, 0)).reshape(height, wide * channels)
    plain = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)  # 0: no filter on this row
    # Drawings pack best as they are, photographs as differences of neighbours.
    packed = min((zlib.compress(lines.tobytes(), 9) for lines in (plain, _filtered(rows, channels))), key=len)
    header = struct.pack(">IIBBBBB", wide, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, body) for name, body in chunks)


def _filtered(rows: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Return scanlines under whichever filter makes the smallest differences (PNG specification, 9.2 and 12.8)."""
    left = np.zeros_like(rows)
    left[:, channels:] = rows[:, :-channels]
    above = np.zeros_like(rows)
    above[1:] = rows[:-1]
    corner = np.zeros_like(rows)
    corner[1:, channels:] = rows[:-1, :-channels]
    a, b, c = (side.astype(np.int16) for side in (left, above, corner))
    far = np.stack([np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)]).argmin(axis=0)  # Paeth's predictor: nearest wins
    predicted = (np.zeros_like(rows), left, above, ((a + b) // 2).astype(np.uint8), np.choose(far, (left, above, corner)))
    choices = np.stack([rows - guess for guess in predicted])
    best = np.abs(choices.view(np.int8).astype(np.int16)).sum(axis=2).argmin(axis=0)
    chosen = choices[best, np.arange(len(rows))]
    return np.concatenate([best.astype(np.uint8)[:, None], chosen], axis=1)


def address(picture: NDArray[np.uint8]) -> str:
    """Return the picture as a ``data:`` address."""
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode("ascii")


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
