"""Writes a ``.pt2`` file again with other weights in it: the program stays as the file's maker wrote it."""

from __future__ import annotations

import io
import zipfile

import torch

from audit.errors import ModelError
from audit.model.graph import Graph
from audit.model.pt2 import weights
from audit.model.pt2.archive import Archive


def refilled(content: bytes, network: Graph) -> bytes:
    """Return the file with the weights of `network`, which was read from it.

    Raises
    ------
    ModelError
        A weight lies elsewhere than as plain numbers. Whether all were found is for the caller to see, by reading what is
        returned.
    """
    archive = Archive(content, "the file")
    held = network.weights.state_dict()
    written: dict[str, bytearray] = {}
    for name, payload in weights.payloads(archive, "weights").items():
        if payload.use_pickle or name not in held:
            raise ModelError("the file keeps its weights as pickles, which are not written again")
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
