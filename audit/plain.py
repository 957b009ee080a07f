"""Makes hostile text visible: nothing that a model, label or file name says can move the cursor or reorder its neighbours."""

from __future__ import annotations

import unicodedata

# Categories with no glyph of their own: controls, formats (all bidi overrides are among them), surrogates, private use,
# unassigned, line and paragraph separators.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Joiners shape Persian and Indic words and emoji; they neither move nor hide their neighbours.
_JOINERS = frozenset("\u200c\u200d")
_SHORT_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def plain(text: str, *, newlines: bool = False) -> str:
    r"""Return `text` with each character that could move, hide or reorder its neighbours written as an escape.

    Safe to print on a terminal: ESC comes out as ``\x1b``, a right-to-left override as ``\u202e``.

    Parameters
    ----------
    text : str
        Any string, from any file.
    newlines : bool
        Keep line feeds, for prose of several lines.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if newlines and c == "\n" else _visible(c) for c in text)


def _visible(char: str) -> str:
    if char in _SHORT_ESCAPES:
        return _SHORT_ESCAPES[char]
    if char in _JOINERS or unicodedata.category(char) not in _INVISIBLE:
        return char
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
