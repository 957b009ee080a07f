"""Reads weights from a safetensors file: tensors and nothing else, by construction of the format."""

from __future__ import annotations

import json
import math
from typing import Any

from torch import Tensor

from audit.errors import ModelError
from audit.model.description import Description, Layer

# The names that the format gives to the types of numbers, in torch's words, and their bits.
DTYPES = {
    "BOOL": ("bool", 8),
    "U8": ("uint8", 8),
    "I8": ("int8", 8),
    "I16": ("int16", 16),
    "U16": ("uint16", 16),
    "I32": ("int32", 32),
    "U32": ("uint32", 32),
    "I64": ("int64", 64),
    "U64": ("uint64", 64),
    "F8_E4M3": ("float8_e4m3fn", 8),
    "F8_E5M2": ("float8_e5m2", 8),
    "F16": ("float16", 16),
    "BF16": ("bfloat16", 16),
    "F32": ("float32", 32),
    "F64": ("float64", 64),
    "C64": ("complex64", 64),
}
MOST_HEADER = 16 * 2**20  # bytes: 100,000 tensors take about 10 MB
MOST_DIMENSIONS = 64
MOST_LISTED = 100_000


def load(content: bytes, source: str) -> dict[str, Tensor]:
    """Return the tensors by name.

    Raises
    ------
    ModelError
        The file is truncated or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as parse

    from audit.model.state_dict import strip_prefixes

    _header(content, source)  # the library takes the second of two entries of one name, and has no limit on their number
    try:
        return strip_prefixes(parse(content))
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelError(f"{source} is a truncated or damaged safetensors file ({error}): copy or save it again") from None


def describe(content: bytes, source: str) -> Description:
    """Say what the header lists: tensors with shapes and types, and the metadata; no tensor is made.

    Raises
    ------
    ModelError
        The header is damaged, or claims other bytes than the file has.
    """
    header = _header(content, source)
    metadata = header.pop("__metadata__", {})
    placed = [_tensor(name, said, source) for name, said in header.items()]
    at = 0
    for begin, end, layer in sorted(placed, key=lambda each: each[:2]):
        if begin != at:
            raise _damaged(source, f"tensor {layer.name[:60]!r} overlaps another, or leaves a gap")
        at = end
    if at != len(content) - header_end(content):
        raise _damaged(source, f"{at:,} bytes of numbers are listed, {len(content) - header_end(content):,} are there")
    layers = tuple(layer for _, _, layer in placed)
    notes = []
    if isinstance(metadata, dict) and metadata:
        notes.append("metadata: " + ", ".join(f"{str(k)[:60]}={str(v)[:100]}" for k, v in list(metadata.items())[:20]))
    return Description(
        format="safetensors weights",
        layers=layers,
        parameters=sum(layer.parameters for layer in layers),
        needs_arch=True,
        notes=tuple(notes),
    )


def header_end(content: bytes) -> int:
    """Return where the header ends and the numbers begin."""
    return 8 + int.from_bytes(content[:8], "little")


def _header(content: bytes, source: str) -> dict[str, Any]:
    end = header_end(content)
    if end > min(len(content), MOST_HEADER):
        raise _damaged(source, f"a header of {end - 8:,} bytes")
    try:
        header = json.loads(content[8:end].decode("utf-8"), object_pairs_hook=_named_once)
    except (ValueError, RecursionError) as error:
        raise _damaged(source, str(error)[:100]) from None
    if not isinstance(header, dict) or len(header) > MOST_LISTED:
        raise _damaged(source, f"a header that is no object of at most {MOST_LISTED:,} tensors")
    return header


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    held = dict(pairs)
    if len(held) < len(pairs):
        raise ValueError("two entries of one name")
    return held


def _tensor(name: str, said: Any, source: str) -> tuple[int, int, Layer]:
    """Return where a tensor's bytes begin and end, and what it is."""
    try:
        dtype, bits = DTYPES[said["dtype"]]
        shape, (begin, end) = said["shape"], said["data_offsets"]
        sizes = [*shape, begin, end]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(source, f"tensor {name[:60]!r}: {type(error).__name__} {str(error)[:60]}") from None
    if len(shape) > MOST_DIMENSIONS or not all(type(size) is int and 0 <= size < 2**48 for size in sizes):
        raise _damaged(source, f"tensor {name[:60]!r} has sizes that no tensor has")
    count = math.prod(shape)
    if count * bits != (end - begin) * 8:
        raise _damaged(source, f"tensor {name[:60]!r} has sizes that do not fit the bytes")
    return begin, end, Layer(name, "tensor", f"{'×'.join(map(str, shape)) or 'one number'} {dtype}", count)


def _damaged(source: str, reason: str) -> ModelError:
    return ModelError(f"{source} is a truncated or damaged safetensors file ({reason}): copy or save it again")
