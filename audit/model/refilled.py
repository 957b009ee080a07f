"""Writes a ``.pt2`` or ONNX file again with other weights in it: the network in it stays as the file's maker wrote it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator

import torch
from torch import Tensor

from audit.model.graph import Graph

FREE = (4, 5, 7, 9, 10, 11, 13, 14)  # fields of ONNX's TensorProto that hold numbers, or say where they stand
INITIALIZER, GRAPH, NAME, RAW = 5, 7, 8, 9


class CannotRefill(Exception):
    """The file keeps its weights in a way that cannot be written."""


def refilled(content: bytes, form: str, network: Graph) -> bytes:
    """Return the file with the weights of `network`, which was read from it.

    Parameters
    ----------
    form
        ``pt2`` or ``onnx``.

    Raises
    ------
    CannotRefill
        The weights lie elsewhere than in tensors of their own. Whether all were found is for the caller to see, by reading
        what is returned.
    """
    return _pt2(content, network) if form == "pt2" else _onnx(content, network)


def _pt2(content: bytes, network: Graph) -> bytes:
    from audit.model.pt2 import weights
    from audit.model.pt2.archive import Archive

    archive = Archive(content, "the file")
    held = network.weights.state_dict()
    written: dict[str, bytearray] = {}
    for name, payload in weights.payloads(archive, "weights").items():
        if payload.use_pickle or name not in held:
            raise CannotRefill("its weights are pickles")
        raw = written.setdefault(payload.path, archive.read(payload.path))
        tensor, meta = held[name].detach().cpu(), payload.meta
        if tensor.numel():
            flat = torch.frombuffer(raw, dtype=meta.dtype, count=len(raw) // meta.dtype.itemsize)
            sizes, strides, offset = weights.placed(name, meta)
            flat.as_strided(sizes, strides, offset).copy_(tensor)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as new:
        for member in old.infolist():
            entry = zipfile.ZipInfo(member.filename, member.date_time)
            changed = written.get(member.filename.partition("/")[2])
            new.writestr(entry, old.read(member) if changed is None else bytes(changed))
    return buffer.getvalue()


def _onnx(content: bytes, network: Graph) -> bytes:
    graphs = [piece for number, piece, _ in _fields(content) if number == GRAPH]
    if len(graphs) != 1:
        raise CannotRefill("it holds several graphs")
    held = {value: network.weights.get_parameter(name) for value, name in network.named.items() if _is_parameter(network, name)}
    graph = bytearray()
    for number, piece, whole in _fields(graphs[0]):
        name = _text(piece) if number == INITIALIZER else ""
        graph += _field(INITIALIZER, _tensor(piece, held[name])) if name in held else whole
    out = bytearray()
    for number, _, whole in _fields(content):
        out += _field(GRAPH, bytes(graph)) if number == GRAPH else whole
    return bytes(out)


def _is_parameter(network: Graph, name: str) -> bool:
    return any(name == known for known, _ in network.weights.named_parameters(remove_duplicate=False))


def _text(proto: bytes) -> str:
    return next((piece.decode("utf-8", "replace") for number, piece, _ in _fields(proto) if number == NAME), "")


def _tensor(proto: bytes, tensor: Tensor) -> bytes:
    """Return a TensorProto with the numbers of `tensor` in the place of its own, wherever those stood."""
    kept = b"".join(whole for number, _, whole in _fields(proto) if number not in FREE)
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return kept + _field(RAW, raw)


# --- protocol buffers: a field is its number and wire type, then a number or a length and bytes --------------------------


def _fields(content: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield number, content (empty for a number) and the whole of each field; the file was read before, so it is sound."""
    at = 0
    while at < len(content):
        start = at
        key, at = _varint(content, at)
        wire, begin = key & 7, at
        if wire == 2:
            length, begin = _varint(content, at)
            at = begin + length
            yield key >> 3, content[begin:at], content[start:at]
            continue
        at = _varint(content, at)[1] if wire == 0 else at + (8 if wire == 1 else 4)
        yield key >> 3, b"", content[start:at]


def _field(number: int, content: bytes) -> bytes:
    return _encoded(number << 3 | 2) + _encoded(len(content)) + content


def _varint(content: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = content[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at


def _encoded(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
