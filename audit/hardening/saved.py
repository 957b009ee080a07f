"""Writes a hardened network in the way in which the given one was saved, so that it opens as that one does.

Nothing is believed of what is written before it was read again and holds the same numbers.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from audit.errors import AuditError, ModelError
from audit.model.graph import Graph
from audit.model.load import PICKLED_MODULE, open_file
from audit.model.wrapper import Model

NAME = "hardened"


@dataclass(frozen=True)
class Saved:
    """A file that holds the hardened network.

    Attributes
    ----------
    name
        Of the file.
    format
        As `audit.model.load` calls it.
    opens
        How it is opened again, for people.
    """

    name: str
    content: bytes
    format: str
    opens: str


def saved(hardened: Model, given: Model) -> Saved:
    """Return the file: network and weights where the given file held both, else the weights.

    Raises
    ------
    ModelError
        The file would not hold what was trained.
    """
    whole = _network(hardened, given)
    if whole is not None:
        return whole
    content = _torch_saved(hardened.module.state_dict())
    _check_weights(content, hardened, given)
    trusted = given.origin.trusted and not given.origin.arch_sha256
    alone = isinstance(given.module, Graph) or given.origin.format == PICKLED_MODULE or trusted
    opens = "its weights alone: they need --arch FILE.py:FACTORY" if alone else "loads with the same --arch"
    return Saved(f"{NAME}.pt", content, "torch-zip", opens)


def _network(hardened: Model, given: Model) -> Saved | None:
    """Return a file that needs no ``--arch``; None where the given one did, or where writing it fails."""
    if given.origin.trusted or given.origin.arch_sha256:
        return None
    form = given.origin.format
    try:
        if form == PICKLED_MODULE:
            name, content, again = f"{NAME}.pt", *_pickled(hardened.module)
        elif form in ("pt2", "onnx") and isinstance(hardened.module, Graph):
            name, content, again = f"{NAME}.{form}", *_refilled(hardened.module, given)
        else:
            return None
    except (AuditError, OSError, ValueError, RuntimeError):
        return None
    if not _same(again, hardened.module):
        return None
    return Saved(name, content, form, "opens without --arch, as the given one does")


def _pickled(module: nn.Module) -> tuple[bytes, nn.Module]:
    from audit.model import pickled

    content = _torch_saved(module)
    again = pickled.load(content, NAME, "", network_wanted=True)
    if not isinstance(again, nn.Module):
        raise ModelError("it is read as weights")
    return content, again


def _refilled(network: Graph, given: Model) -> tuple[bytes, nn.Module]:
    from audit.model import onnx, pt2
    from audit.model.onnx import refill as onnx_refill
    from audit.model.pt2 import refill as pt2_refill

    content = open_file(given.origin.source, given.origin.sha256).content
    if given.origin.format == "pt2":
        again = pt2_refill.refilled(content, network)
        return again, pt2.load(again, NAME, "")
    again = onnx_refill.refilled(content, network)
    return again, onnx.load(again, NAME, {})


def _torch_saved(held: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(held, buffer)
    return buffer.getvalue()


def _same(again: nn.Module, module: nn.Module) -> bool:
    return _equal(dict(again.named_parameters()), dict(module.named_parameters())) and _equal(
        dict(again.named_buffers()), dict(module.named_buffers())
    )


def _equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(_same_numbers(found[name], wanted[name]) for name in wanted)


def _same_numbers(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.cpu().nan_to_num())


def _check_weights(content: bytes, hardened: Model, given: Model) -> None:
    from audit.model import pickled

    again = pickled.load(content, NAME, "", network_wanted=False)
    assert isinstance(again, dict)  # noqa: S101  (weights were asked for)
    for name, tensor in hardened.module.state_dict().items():
        if isinstance(tensor, Tensor) and not torch.equal(again[name].nan_to_num(), tensor.cpu().nan_to_num()):
            raise ModelError(f"{NAME}.pt would not hold what was trained: {name} differs when it is read again")
    was = dict(given.module.named_buffers())
    for name, tensor in hardened.module.named_buffers():
        if name not in again and not torch.equal(tensor.cpu().nan_to_num(), was[name].cpu().nan_to_num()):
            raise ModelError(
                f"{NAME}.pt would not hold what was trained: training changed the buffer {name}, which is not persistent; "
                "register it with persistent=True"
            )
