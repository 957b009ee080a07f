"""Cuts the weights and constants of a program out of the archive's own bytes: no tensor is larger than what stands there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from audit.archives import archive_members
from audit.errors import ModelError
from audit.model.pickled.records import Allowance
from audit.model.pt2 import schema, strict_json
from audit.model.pt2.archive import MAX_RATIO, Archive
from audit.model.pt2.problems import Executes, Problem, short

MAX_TENSORS = 60_000
# Weights may share memory (tied ones do), but a file of 1 kB does not hold 1,000 networks.
MOST_SHARED = 4
MAX_CONFIG = 64 * 2**20


@dataclass(frozen=True)
class Held:
    """Weights by the name that the live network's state dict gives them, and the constants beside them.

    Attributes
    ----------
    weights, constants
        Tensors; on the meta device where the numbers were not asked for.
    transient
        Names of those that are no part of the state dict.
    """

    weights: Mapping[str, Tensor]
    constants: Mapping[str, Tensor]
    transient: frozenset[str] = field(default=frozenset())


@dataclass(frozen=True)
class Payload:
    """Where the numbers of a tensor stand, and what they are.

    Attributes
    ----------
    path
        The member that holds them.
    is_param
        Whether the network trains it.
    use_pickle
        Whether the member is a pickle, and not plain numbers.
    """

    path: str
    is_param: bool
    use_pickle: bool
    meta: schema.TensorMeta


def read(archive: Archive, numbers: bool = True) -> Held:
    """Read weights and constants.

    Parameters
    ----------
    numbers
        Whether the numbers are wanted; else the tensors are on the meta device.

    Raises
    ------
    Executes
        A constant is an object of a custom class, or a pickle that holds more than a tensor.
    Problem
        A tensor reaches outside its bytes, or the tensors of one file overlap too much.
    """
    found = {}
    for folder in ("weights", "constants"):
        old = f"data/{folder}/{archive.model}.pt"
        config = f"data/{folder}/{archive.model}_{folder}_config.json"
        if old in archive.members and config not in archive.members:
            found[folder] = _pickled_dict(archive, old, numbers)
        else:
            found[folder] = _from_config(archive, folder, numbers)
    both = {**found["weights"], **found["constants"]}
    if len(both) > MAX_TENSORS:
        raise Problem(f"has {len(both):,} weights; at most {MAX_TENSORS:,} are read")
    if len(both) < len(found["weights"]) + len(found["constants"]):
        raise Problem("has a weight and a constant of the same name")
    return Held(found["weights"], found["constants"], frozenset(found["constants"]))


def payloads(archive: Archive, folder: str) -> dict[str, Payload]:
    """Return where each weight (`folder` ``weights``) or constant (``constants``) stands, by name."""
    config = f"data/{folder}/{archive.model}_{folder}_config.json"
    said = schema.fields(strict_json.parse(archive.read(config, MAX_CONFIG), "list of weights"), "list of weights", "config")
    found = {name: _payload(value, folder) for name, value in schema.mapped(said["config"], "list of weights").items()}
    if len(found) > MAX_TENSORS:
        raise Problem(f"has {len(found):,} weights; at most {MAX_TENSORS:,} are read")
    return found


def _from_config(archive: Archive, folder: str, numbers: bool) -> dict[str, Tensor]:
    cutter = _Cutter(archive, numbers)
    return {name: cutter.tensor(name, payload) for name, payload in payloads(archive, folder).items()}


def _payload(value: object, folder: str) -> Payload:
    found = schema.fields(value, "weight", "path_name is_param use_pickle", "tensor_meta")
    path = f"data/{folder}/{schema.text(found['path_name'], 'path of a weight')}"
    if found.get("tensor_meta") is None:
        raise Executes(f"holds an object of a custom class ({short(found['path_name'])}), which torch would unpickle")
    return Payload(path, found["is_param"] is True, found["use_pickle"] is not False, schema.tensor_meta(found["tensor_meta"]))


class _Cutter:
    """Cuts tensors out of members; those of one member share its memory, and the same cut is the same tensor."""

    def __init__(self, archive: Archive, numbers: bool) -> None:
        self.archive, self.numbers = archive, numbers
        self.flat: dict[tuple[str, torch.dtype], Tensor] = {}
        self.raw: dict[str, bytearray] = {}
        self.cut: dict[Payload, Tensor] = {}
        self.pickles: dict[str, object] = {}
        self.handed_out: dict[str, int] = {}

    def tensor(self, name: str, payload: Payload) -> Tensor:
        """Return the tensor that a payload describes: the same one again where it was described before."""
        if payload not in self.cut:
            tensor = self._pickled(name, payload) if payload.use_pickle else self._slice(name, payload)
            differentiable = tensor.is_floating_point() or tensor.is_complex()
            wants = payload.meta.requires_grad and differentiable
            self.cut[payload] = nn.Parameter(tensor, requires_grad=wants) if payload.is_param else tensor
        return self.cut[payload]

    def _slice(self, name: str, payload: Payload) -> Tensor:
        meta = payload.meta
        sizes, strides, offset = placed(name, meta)
        count = _count(sizes)
        size = self.archive.size(payload.path)
        if size < 0:
            raise Problem(f"lacks the numbers of {short(name)} ({short(payload.path)})")
        there = size // meta.dtype.itemsize
        last = offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
        if count and (last >= there or count > there):
            raise Problem(f"should have {count:,} numbers for {short(name)}, of shape {sizes}, but holds {there:,}")
        handed_out = self.handed_out[payload.path] = self.handed_out.get(payload.path, 0) + count * meta.dtype.itemsize
        if handed_out > MOST_SHARED * size and count:
            raise Problem(f"makes {handed_out:,} bytes of weights from the {size:,} in {short(payload.path)}")
        if not self.numbers:
            return torch.empty(sizes, dtype=meta.dtype, device="meta")
        if not count:
            return torch.empty(sizes, dtype=meta.dtype)
        return self._storage(payload.path, meta.dtype, there).as_strided(sizes, strides, offset)

    def _storage(self, path: str, dtype: torch.dtype, count: int) -> Tensor:
        if (path, dtype) not in self.flat:
            if path not in self.raw:
                self.raw[path] = self.archive.read(path)
            if dtype == torch.bool:  # a byte that is neither 0 nor 1 is no truth value that kernels agree on
                self.flat[path, dtype] = torch.frombuffer(self.raw[path], dtype=torch.uint8, count=count) != 0
            else:
                self.flat[path, dtype] = torch.frombuffer(self.raw[path], dtype=dtype, count=count)
        return self.flat[path, dtype]

    def _pickled(self, name: str, payload: Payload) -> Tensor:
        if payload.path not in self.pickles:  # weights of many settings may be said to stand in one
            raw = bytes(self.archive.read(payload.path))
            self.pickles[payload.path] = _pickled(raw, name, self.numbers, self.archive.allowance)
        tensor = self.pickles[payload.path]
        if not isinstance(tensor, Tensor):
            raise Executes(f"holds {short(name)} as a pickle of something else than a tensor")
        if tensor.dtype != payload.meta.dtype or tuple(tensor.shape) != payload.meta.sizes:
            raise Problem(f"should hold {short(name)} of shape {payload.meta.sizes}, got {tuple(tensor.shape)}")
        return tensor


def placed(name: str, meta: schema.TensorMeta) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Return sizes, strides and offset of a tensor; a Problem where they are no whole numbers."""
    numbers = (*meta.sizes, *meta.strides, meta.offset)
    if not all(isinstance(number, int) and 0 <= number < 2**48 for number in numbers):
        raise Problem(f"has a weight {short(name)} whose shape is not made of whole numbers")
    sizes = tuple(size for size in meta.sizes if isinstance(size, int))
    strides = tuple(stride for stride in meta.strides if isinstance(stride, int))
    return sizes, strides, meta.offset if isinstance(meta.offset, int) else 0


def _count(sizes: tuple[int, ...]) -> int:
    count = 1
    for size in sizes:
        count *= size
    return count


def _pickled_dict(archive: Archive, member: str, numbers: bool) -> dict[str, Tensor]:
    """Weights as torch 2.8 wrote them: a state dict saved by torch.save inside the archive."""
    found = _pickled(bytes(archive.read(member)), member, numbers, archive.allowance)
    if not isinstance(found, dict) or not all(isinstance(k, str) and isinstance(t, Tensor) for k, t in found.items()):
        raise Executes(f"holds {short(member)}, a pickle of something else than weights")
    return found


def _pickled(content: bytes, name: str, numbers: bool, allowance: Allowance) -> object:
    """Return the tensor, or the dict of tensors, in what torch.save wrote, by the reader of weights."""
    from audit.model.pickled.archive import Saved
    from audit.model.pickled.records import Blocked, Cut, Damaged, Parameter

    if not content:
        return {}

    def tensor(record: Cut | Parameter) -> Tensor:
        cut = record.data if isinstance(record, Parameter) else record
        if cut.numel > cut.storage.numel:
            raise Problem(f"holds {short(name)}, a tensor of {cut.numel:,} numbers of which {cut.storage.numel:,} are there")
        found = saved.tensor(record)
        return found if numbers else found.to("meta")

    try:
        if content[:2] == b"PK":
            archive_members(content, name, ModelError, MAX_RATIO)
        saved = Saved(content, allowance=allowance)
        held = saved.content
        if isinstance(held, Cut | Parameter):
            return tensor(held)
        if isinstance(held, dict) and all(isinstance(part, Cut | Parameter) for part in held.values()):
            return {key: tensor(part) for key, part in held.items()}
    except ModelError as error:
        raise Problem(f"holds {short(name)}, and that archive {short(str(error).removeprefix(name).strip())}") from None
    except Blocked as error:
        raise Executes(f"holds {short(name)}, a pickle that asks for {short(str(error))}") from None
    except Damaged as error:
        raise Problem(f"holds {short(name)}, which is damaged: {short(str(error))}") from None
    return None
