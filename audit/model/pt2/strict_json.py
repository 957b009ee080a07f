"""Reads JSON that may be hostile: no duplicate keys, no numbers of a million digits, no text that explodes into objects."""

from __future__ import annotations

import json
from typing import Any

from audit.model.pt2.problems import Problem, short

# An honest program has about 1,600 bytes and 100 values a node, so this is some 40,000 nodes; a value takes about 60 bytes.
MAX_BYTES = 64 * 2**20
MAX_VALUES = 4_000_000
MAX_DIGITS = 20
# Distinct expressions of sizes, all together: reading them takes about a second a megabyte.
MAX_EXPRESSIONS = 2 * 2**20


def parse(raw: bytes | bytearray, what: str) -> Any:
    """Return what the JSON text says.

    Raises
    ------
    Problem
        It is none, nested too deeply, too long, or says a thing twice.
    """
    values = raw.count(b",") + raw.count(b"[") + raw.count(b"{")
    if len(raw) > MAX_BYTES or values > MAX_VALUES:
        raise Problem(f"has a {what} of {len(raw):,} bytes and about {values:,} values; at most {MAX_VALUES:,} are read")
    expressions: set[str] = set()

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        made = _pairs(found)
        if isinstance(made.get("expr_str"), str):
            expressions.add(made["expr_str"])
        return made

    try:
        said = json.loads(
            raw.decode("utf-8"), object_pairs_hook=pairs, parse_int=_integer, parse_float=_float, parse_constant=_constant
        )
    except RecursionError:
        raise Problem(f"has a {what} that is nested too deeply") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise Problem(f"has a {what} that is no JSON ({short(str(error))}): copy or save it again") from None

    if sum(map(len, expressions)) > MAX_EXPRESSIONS:
        raise Problem(f"has a {what} with more than {MAX_EXPRESSIONS:,} characters of sizes that depend on others")
    return said


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is given twice")
    return found


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has {len(digits):,} digits")
    return int(digits)


def _float(digits: str) -> float:
    if len(digits) > 100:
        raise ValueError(f"a number has {len(digits):,} digits")
    return float(digits)


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")
