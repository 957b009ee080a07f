"""Reads ``.pt2`` programs of ``torch.export.save`` without torch's own loader, which evaluates what the file says."""

from __future__ import annotations

from audit.errors import ModelError, ModelRefused
from audit.model.description import Description
from audit.model.graph import Graph
from audit.model.pt2 import schema, weights
from audit.model.pt2.archive import Archive
from audit.model.pt2.build import build
from audit.model.pt2.problems import Executes, Problem

MAX_PROGRAM = 64 * 2**20


def load(content: bytes, source: str, ways_on: str) -> Graph:
    """Return the network in a ``.pt2`` file.

    Parameters
    ----------
    content
        The file's bytes.
    source
        Its name, for messages.
    ways_on
        What to do where it is refused, for messages.

    Raises
    ------
    ModelRefused
        It holds what torch's loader would run.
    ModelError
        It is damaged, holds operators that are not known, or cannot be audited.
    """
    try:
        archive = Archive(content, source)
        program = schema.program(archive.read(f"models/{archive.model}.json", MAX_PROGRAM))
        return build(program, weights.read(archive))
    except Executes as problem:
        raise ModelRefused(f"{source} {problem}; it was not opened; {ways_on}") from None
    except Problem as problem:
        raise ModelError(f"{source} {problem}") from None


def describe(content: bytes, source: str) -> Description:
    """Say what a ``.pt2`` file is, without reading its numbers."""
    from audit.model.pt2.described import described

    return described(content, source)
