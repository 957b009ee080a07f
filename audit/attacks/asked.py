"""Attacks that a user asks for by name, with their own parameters: ours, those of plugins, and ART's."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from audit.attacks.art import ArtAttack
from audit.attacks.base import Attack
from audit.attacks.geometry import Norm
from audit.errors import UsageError, closest

Source = Literal["attacks", "art"]
OWN_OPTION = ("spatial", "universal", "patch")


class Asked(BaseModel):
    """One attack as it was asked for: its name, and the parameters that were stated."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    params: dict[str, Any] = Field(default_factory=dict)


def as_asked(item: Any) -> Asked:
    """Read ``"HopSkipJump"`` or ``{name = "HopSkipJump", max_iter = 10}``; a ValueError where it is neither."""
    if isinstance(item, Asked):
        return item
    if isinstance(item, str):
        return Asked(name=item)
    if isinstance(item, Mapping) and isinstance(item.get("name"), str):
        return Asked(name=item["name"], params={key: value for key, value in item.items() if key != "name"})
    raise ValueError('an attack is a name, or a table with a name, for instance {name = "HopSkipJump", max_iter = 10}')


def make_attack(source: Source, asked: Asked, norm: Norm, eps: float, seed: int) -> Attack:
    """Return the attack, ready to run.

    Raises
    ------
    UsageError
        There is no such attack, or it has no such parameter, or refuses its value.
    """
    if source == "art":
        return ArtAttack(asked.name, norm, eps, seed=seed, **_plain(asked))
    from audit.attacks import registry

    known = registry()
    if asked.name in OWN_OPTION:
        raise UsageError(
            f"robustness.attacks: {asked.name} has no radius or no example for each sample alone, and so an option of its own: "
            f"robustness.{asked.name} = true"
        )
    if asked.name not in known:
        near = closest(asked.name, list(known))
        raise UsageError(f"robustness.attacks: no attack {asked.name!r}; {near}; ART's belong in robustness.art")
    allowed = [name for name in inspect.signature(known[asked.name].__init__).parameters if name not in ("self", "norm", "eps")]
    for name in asked.params:
        if name in ("norm", "eps"):
            raise UsageError(f"robustness.attacks: {name!r} of {asked.name} is set from the run itself, so leave it out")
        if name not in allowed:
            raise UsageError(f"robustness.attacks: {asked.name} has no parameter {name!r}; {closest(name, allowed)}")
    try:
        attack: Attack = known[asked.name](norm, eps, **{"seed": seed, **asked.params})
    except (TypeError, ValueError) as error:
        raise UsageError(f"robustness.attacks: {asked.name} cannot be set up: {error}") from None
    return attack


def _plain(asked: Asked) -> dict[str, Any]:
    """Return the parameters, less names that are the bridge's own."""
    for name in ("attack", "seed", "norm", "eps"):
        if name in asked.params:
            raise UsageError(f"robustness.art: {name!r} of {asked.name} is set from the run itself, so leave it out")
    return asked.params
