"""Reads NumPy's single numbers: ``nn.Linear(np.prod(shape), 10)`` keeps one as its in_features."""

from __future__ import annotations

import struct
from typing import Any

from audit.model.pickled.records import Made, Name

_FORMATS = {
    "i1": "b",
    "i2": "h",
    "i4": "i",
    "i8": "q",
    "u1": "B",
    "u2": "H",
    "u4": "I",
    "u8": "Q",
    "f4": "f",
    "f8": "d",
    "b1": "?",
}
_SCALAR = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")


def unpacked(value: Any) -> Any:
    """Return the Python number of a record of a NumPy number; any other value as it is."""
    if not isinstance(value, Made) or value.name.full not in _SCALAR or len(value.arguments) != 2:
        return value
    kind, raw = value.arguments
    if not isinstance(kind, Made) or kind.name != Name("numpy", "dtype") or not kind.arguments:
        return value
    layout = _FORMATS.get(kind.arguments[0]) if isinstance(kind.arguments[0], str) else None
    order = kind.state[1] if isinstance(kind.state, tuple) and len(kind.state) > 1 else None
    if isinstance(raw, Made) and raw.name.full == "_codecs.encode" and _is_latin(raw.arguments):
        raw = raw.arguments[0].encode("latin1", "replace")
    if layout is None or order not in ("<", "|") or not isinstance(raw, bytes) or len(raw) != struct.calcsize(f"<{layout}"):
        return value
    return struct.unpack(f"<{layout}", raw)[0]


def _is_latin(arguments: tuple[Any, ...]) -> bool:
    return len(arguments) == 2 and isinstance(arguments[0], str) and len(arguments[0]) <= 8 and arguments[1] == "latin1"
