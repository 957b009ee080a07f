"""Reads ONNX files: parsed by a protobuf reader of our own, rebuilt from our own table of operators, tried on random samples.

The onnx library is not used: what its parser takes is not bounded by the file. Nothing here runs what a file holds; its
external data are read from beside it and from nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from audit.errors import ModelError
from audit.model.description import Description
from audit.model.graph import Graph


def load(content: bytes, source: str, beside: Mapping[str, bytes]) -> Graph:
    """Return the network of an ONNX file.

    Parameters
    ----------
    source
        The file's name, for messages.
    beside
        What `read_beside` found.

    Raises
    ------
    ModelError
        The file is damaged, holds what is not read (each operator named with its count), or was made to exhaust memory.
    """
    from audit.model.onnx.build import build
    from audit.model.onnx.messages import read_model
    from audit.model.onnx.operators import Unsupported
    from audit.model.onnx.wire import Malformed

    try:
        network = build(read_model(content), beside)
        network.try_out()
    except Unsupported as problem:
        raise ModelError(f"{source} {problem}") from None
    except Malformed as problem:
        raise ModelError(f"{source} is not an ONNX file that audit reads: {problem}") from None
    except ModelError as problem:
        raise ModelError(f"{source} cannot be run: {problem}") from None
    return network


def describe(content: bytes, source: str, beside: Mapping[str, bytes]) -> Description:
    """Say what an ONNX file is, without running any of it.

    Raises
    ------
    ModelError
        It is no ONNX file, or damaged.
    """
    from audit.model.onnx.messages import read_model
    from audit.model.onnx.outline import outline
    from audit.model.onnx.wire import Malformed

    try:
        return outline(read_model(content), beside)
    except Malformed as problem:
        raise ModelError(f"{source} is not an ONNX file that audit reads: {problem}") from None


def read_beside(content: bytes, path: Path) -> dict[str, bytes]:
    """Read the files beside an ONNX file that hold its weights; empty where it holds them itself.

    Raises
    ------
    ModelError
        The file is damaged, or a name leads anywhere but to a regular file in its folder.
    """
    from audit.model.onnx.beside import read_files
    from audit.model.onnx.messages import read_model
    from audit.model.onnx.wire import Malformed

    try:
        return read_files(read_model(content).tensors(), path)
    except Malformed as problem:
        raise ModelError(f"{path} is not an ONNX file that audit reads: {problem}") from None
