"""Small pickles that take gigabytes or for ever: what they ask for is never built."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from tests import hostile
from tests.hostile_files.assemble import call, keys, name, pickled, several, text, value, weights_and
from tests.hostile_files.case import Family, Place, Proof

FAMILY = Family("amplification")
GIGABYTES = b"\x8a\x05\x00\x00\x00\x00\x01"  # 2**32
DOUBLED = b")" + b"q\xf0h\xf0\x86" * 60  # a tuple of a tuple twice, sixty deep


def loaded(file: Path, _: Place) -> Any:
    return torch.load(file, weights_only=False)


def loaded_as_weights(file: Path, _: Place) -> Any:
    return torch.load(file, weights_only=True)


def shown(file: Path, place: Place) -> str:
    return str(loaded(file, place))


def copied(file: Path, place: Place) -> Any:
    return copy.deepcopy(loaded(file, place))


EXHAUSTS = Proof("exhausts", loaded)


def add(case: str, body: bytes, proof: Proof, *words: str, **more: Any) -> None:
    FAMILY.add(case, lambda place: place.write("hostile.pt", weights_and(body)), proof, *words, **more)


add(
    "bytearray of 4 GB",
    call(name("builtins", "bytearray"), GIGABYTES),
    Proof("exhausts", loaded_as_weights),
    "builtins.bytearray",
    quick=True,
)
add("list of a range", call(name("builtins", "list"), call(name("builtins", "range"), GIGABYTES)), EXHAUSTS, "range")
add("power of two numbers", call(name("builtins", "pow"), value(10), value(10**9)), EXHAUSTS, "builtins.pow")
add("text times a number", call(name("operator", "mul"), text("x"), GIGABYTES), EXHAUSTS, "operator.mul")
add("tensor of 16 GB", call(name("torch", "FloatTensor"), GIGABYTES), EXHAUSTS, "torch.FloatTensor")
add("storage of 16 GB", call(name("torch", "UntypedStorage"), GIGABYTES), EXHAUSTS, "torch.UntypedStorage")
add("zeros of numpy", call(name("numpy", "ones"), GIGABYTES), EXHAUSTS, "numpy.ones")
add("key of tuples", b"}" + DOUBLED + b"K\x01s", EXHAUSTS, "key")
add("set of tuples", b"\x8f(" + DOUBLED + b"\x90", EXHAUSTS, "a member of a set is neither text nor a number")
add("frozen set of tuples", b"(" + DOUBLED + b"\x91", EXHAUSTS, "a member of a set is neither text nor a number")


def _text_of_tuples(place: Place) -> None:
    """Write tuples whose text is 2**60 characters long, where a message is likely to show them."""
    place.write("hostile.pt", hostile.torch_zip(pickled(DOUBLED)))


FAMILY.add("text of tuples", _text_of_tuples, Proof("exhausts", shown), "tuple")
FAMILY.add(
    "twenty million nested lists",
    hostile.torch_zip(pickled(b"]" * 20_000_000 + b"a" * 19_999_999)),
    EXHAUSTS,
    "operations",
)
FAMILY.add("dicts without end", hostile.torch_zip(pickled(b"(" + b"}" * 16_000_000 + b"l")), EXHAUSTS, "operations")
FAMILY.add(
    "a number of megabytes in digits",
    hostile.torch_zip(b"(L" + b"7" * 4_000_000 + b"L\nl."),
    Proof("fixed", loaded, "Exceeds the limit"),
    "operation or the memory 76",
)
FAMILY.add(
    "a number of a million bytes",
    hostile.torch_zip(pickled(b"\x8b" + (1_000_000).to_bytes(4, "little") + b"\x7f" * 1_000_000)),
    Proof("fixed", shown, "Exceeds the limit"),
    "operation or the memory 139",
)
FAMILY.add(
    "text that claims 4 GB",
    hostile.torch_zip(b"\x80\x04\x8d" + (2**62).to_bytes(8, "little") + b"x."),
    Proof("fixed", loaded, ""),
    "operation or the memory 141",
)
FAMILY.add(
    "a frame that claims 4 GB",
    hostile.torch_zip(b"\x80\x04\x95" + (2**62).to_bytes(8, "little") + b"N."),
    Proof("fixed", loaded, "exceeds|truncated|exhausted"),
    "dict of weights",
)


FAMILY.add(
    "a place in the memo far out",
    hostile.torch_zip(pickled(b"Nr\xff\xff\xff\x3f")),
    EXHAUSTS,
    "dict of weights",
)
add("a regular expression", call(name("re", "match"), text("(a+)+$"), text("a" * 40 + "b")), EXHAUSTS, "re.match")


def _twins(depth: int) -> bytes:
    """Return dicts that hold one dict twice: one step a level to read, 2**depth to walk."""
    body = keys(a=value(1))
    for _ in range(depth):
        body += b"q\xf00" + keys(a=b"h\xf0", b=b"h\xf0")
    return body


def walked(file: Path, place: Place) -> int:
    """Look for tensors as checkpoint readers do: recursively, without remembering where they were."""

    def count(held: Any) -> int:
        return sum(map(count, held.values())) if isinstance(held, dict) else 1

    return count(loaded(file, place))


FAMILY.add(
    "dicts that hold one dict twice",
    hostile.torch_zip(pickled(keys(state_dict=_twins(60), model=several(), net=b"}"))),
    Proof("exhausts", walked),
    "weights",
)
FAMILY.add(
    "a dict inside itself",
    hostile.torch_zip(pickled(b"}q\xf0" + text("state_dict") + b"h\xf0s")),
    Proof("fixed", walked, "recursion"),
    "no weights",
)
FAMILY.add(
    "lists inside each other",
    hostile.torch_zip(pickled(b"]" * 100_000 + b"a" * 99_999)),
    Proof("fixed", shown, "recursion"),
    "dict of weights",
)
