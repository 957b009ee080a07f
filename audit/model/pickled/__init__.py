"""Reads what ``torch.save`` wrote without doing what the pickle in it says: weights, or a network of ``torch.nn`` layers."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from audit.errors import ModelError, ModelRefused
from audit.model import state_dict
from audit.model.description import Description
from audit.model.pickled import names
from audit.model.pickled.archive import Saved
from audit.model.pickled.layers.schema import UnfitAt
from audit.model.pickled.rebuild import Refused, is_module, rebuild, weights
from audit.model.pickled.records import Blocked, Cut, Damaged, Made, Name, Parameter, PlainDict

MOST_NAMED = 5
MOST_SETS = 200  # entries of a checkpoint, and of a dict in it, that are looked at for other weights
# What people save without meaning to, by how its names begin, and what to save instead.
INSTEAD = {
    "torch._dynamo.": "torch.compile made it, so save the network inside (torch.save(model._orig_mod, 'model.pt')); ",
    "torch.Q": "it is quantised, so save the network that it was made from; ",
}


def load(
    content: bytes, source: str, ways_on: str, *, network_wanted: bool, notes: list[str] | None = None
) -> nn.Module | dict[str, Tensor]:
    """Return the network in a file, or the weights by name.

    Parameters
    ----------
    content
        The bytes of the file: the archive of torch 1.6 and later, or the plain stream before it.
    ways_on
        What to do where the file is refused: ends the message.
    network_wanted
        Rebuild a pickled network of ``torch.nn`` layers where there is one, alone or under a usual name of a checkpoint.
        Otherwise its weights are returned, whatever its class is.
    notes
        Is told what a user should know: other weights in the file, which were not taken.

    Raises
    ------
    ModelRefused
        The file would have to run code; the message names it, and `ways_on`.
    ModelError
        The file is truncated or damaged, contradicts itself, or holds no weights.
    """
    wanted = Wanted()
    try:
        saved = Saved(content, wanted)
        found = network(saved.content)
        wanted.stop(saved, found)
        if notes is not None:
            notes.extend(other_weights(saved.content))
        if found is None:
            named = state_dict.find_weights(mapping(saved.content), source, tensor=(Cut, Parameter))
        elif network_wanted:
            return rebuild(found, saved.tensor)
        else:
            named = weights(found)
            if not named:
                raise ModelError(f"{source} holds a network without weights")
        return state_dict.strip_prefixes({name: saved.tensor(record) for name, record in named.items()})
    except Blocked as blocked:
        raise ModelRefused(
            f"{source} is a pickle that asks for {wanted.and_also(blocked)}, which could execute code, "
            f"so it was not opened; {wanted.instead(blocked)}{ways_on}"
        ) from None
    except Refused as refused:
        raise ModelRefused(
            f"{source} holds a network that only code from elsewhere could rebuild: {refused}. "
            f"Give --arch FILE.py:FACTORY, and the weights are taken from this file; or {ways_on}"
        ) from None
    except UnfitAt as unfit:
        raise ModelError(f"{source} holds a network that contradicts itself: {unfit}; save it again") from None
    except Damaged as damaged:
        if wanted.names:
            raise ModelRefused(
                f"{source} is a damaged pickle that asks for {wanted}, which could execute code, "
                f"so it was not opened; {ways_on}"
            ) from None
        reason = (str(damaged).strip().splitlines() or ["no reason given"])[0][:200]
        raise ModelError(f"{source} is truncated or damaged, or not from torch.save ({reason}): save it again") from None


def describe(content: bytes, source: str) -> Description:
    """Say what a file holds, what loading it with torch would run, and whether it can be audited."""
    from audit.model.pickled.described import describe as said

    return said(content, source)


class Wanted:
    """Collects the names that refuse a file while it is read, so that the refusal names them all and not the first alone."""

    def __init__(self) -> None:
        self.names: dict[str, None] = {}

    def __call__(self, name: Name, called: bool) -> None:
        """Take a name as the pickle mentions it."""
        try:
            names.check(name, called)
        except Blocked as blocked:
            self.names[str(blocked)] = None

    def __str__(self) -> str:
        first = list(self.names)[:MOST_NAMED]
        return ", ".join(first) + (f" and {len(self.names) - len(first)} more" if len(self.names) > len(first) else "")

    def and_also(self, blocked: Blocked) -> str:
        """Name what was collected, and what reading ended at."""
        said = str(blocked)
        return said if not self.names or said.startswith(str(self)) else f"{self}, {said}"

    def instead(self, blocked: Blocked) -> str:
        """Say what to save instead, where it is known what was saved."""
        names = [*self.names, *str(blocked).split(", ")]
        return next((advice for start, advice in INSTEAD.items() if any(name.startswith(start) for name in names)), "")

    def stop(self, saved: Saved, found: Made | None) -> None:
        """Raise `Blocked` where a name refuses the file, with what it does in a network where that is the reason."""
        if found is None:  # in a network they are somebody's layers, and not used
            self.names.update(dict.fromkeys(name[:100] for name in names.odd(saved.seen)))
        if not self.names:
            return
        where = ""
        if found is not None:
            try:
                rebuild(found, shape_of)
            except (Refused, UnfitAt, Damaged) as reason:
                where = f" ({reason})"
        raise Blocked(f"{self}{where}")


def shape_of(record: Cut | Parameter) -> Tensor:
    """Stand in for a tensor with one of its shape and type that has no numbers."""
    cut = record.data if isinstance(record, Parameter) else record
    if cut.numel > 2**60:
        raise Damaged("a tensor has more numbers than any file")
    return torch.empty(cut.size, dtype=cut.storage.dtype, device="meta")


def network(content: Any) -> Made | None:
    """Return the record of a whole network, alone or under a usual name of a checkpoint; None where there is none."""
    if is_module(content):
        return content  # type: ignore[no-any-return]
    held = mapping(content)
    if isinstance(held, PlainDict):
        return next((held[name] for name in state_dict.CONTAINERS if is_module(held.get(name))), None)
    return None


def other_weights(content: Any) -> list[str]:
    """Say so where a checkpoint holds several sets of weights (an average of them beside the last ones, say)."""
    held = mapping(content)
    if not isinstance(held, PlainDict):
        return []
    sets = [name for name, value in islice(held.items(), MOST_SETS) if is_module(value) or _holds_tensors(value)]
    networks = [name for name in state_dict.CONTAINERS if is_module(held.get(name))]
    taken = next((name for name in (*networks, *state_dict.CONTAINERS) if name in sets), None)
    others = ", ".join(repr(str(name)[:60]) for name in sets if name != taken)
    if taken is None or not others:
        return []
    return [f"the file holds several sets of weights: those under {taken!r} were taken, and not those under {others[:300]}"]


def _holds_tensors(value: Any) -> bool:
    value = mapping(value)
    return isinstance(value, PlainDict) and any(isinstance(part, Cut | Parameter) for part in islice(value.values(), MOST_SETS))


def mapping(content: Any) -> Any:
    """Return what a dict of some other class holds (a Lightning ``AttributeDict``); anything else as it is."""
    if isinstance(content, Made) and content.items is not None and content.state is None:
        return content.items
    if isinstance(content, PlainDict):
        inner = {name: mapping(content[name]) for name in state_dict.CONTAINERS if isinstance(content.get(name), Made)}
        return PlainDict([*content.items(), *inner.items()]) if inner else content
    return content
