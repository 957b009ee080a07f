"""Reads the sizes in a program: whole numbers, and expressions over free sizes such as ``Add(Symbol('s0'), Integer(-1))``.

torch hands these strings to sympy, which evaluates them as Python. Here a small grammar is parsed into a tree of our own, whose
functions are those of a table; a string outside the grammar is refused. Both ways in which torch has written them are read:
``2*s0 + 1`` and ``Add(Mul(Integer(2), Symbol('s0', positive=True, integer=True)), Integer(1))``.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from audit.model.pt2.problems import Executes, Problem, short

MAX_LENGTH = 4000
MAX_DEPTH = 40
LARGEST = 2**63 - 1

_TOKEN = re.compile(r"\s*(?:(\d{1,19})(?![\w.])|([A-Za-z_]\w{0,63})|'([\w.+\-]{1,64})'|(\*\*|//|<=|>=|==|!=|[-+*%(),=<>]))")


@dataclass(frozen=True)
class Expression:
    """A size that depends on free sizes.

    Attributes
    ----------
    text
        As it stands in the file.
    tree
        A number, the name of a free size, or a function with its arguments.
    """

    text: str
    tree: Any

    @property
    def symbol(self) -> str | None:
        """Name of the free size that this is; None where it is computed from others."""
        return self.tree if isinstance(self.tree, str) else None

    def value(self, sizes: Mapping[str, int]) -> int:
        """Compute the size.

        Parameters
        ----------
        sizes
            The free sizes by name.

        Raises
        ------
        Problem
            It is no whole number, or depends on a size that is not given.
        """
        try:
            found = _value(self.tree, sizes)
        except (ZeroDivisionError, OverflowError):
            found = None
        if found is None or found != int(found):
            raise Problem(f"has a size {short(self.text)} that is no whole number for {dict(sizes)}")
        return int(found)


@lru_cache(maxsize=4096)
def parse(text: str) -> Expression:
    """Return the expression that a string stands for.

    Raises
    ------
    Executes
        It is not in the grammar: torch would have evaluated it.
    """
    if len(text) > MAX_LENGTH:
        raise Executes(f"has a size of {len(text):,} characters, which torch would evaluate as Python: {short(text)}")
    parser = _Parser(text)
    tree = parser.comparison(0)
    if parser.peek() is not None:
        raise parser.refusal()
    return Expression(text, tree)


class _Parser:
    """Recursive descent over at most `MAX_LENGTH` characters and `MAX_DEPTH` levels."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[int, str]] = []  # (which alternative of _TOKEN, text)
        position, stripped = 0, text.rstrip()
        while position < len(stripped):
            match = _TOKEN.match(stripped, position)
            if match is None or match.lastindex is None:
                raise self.refusal()
            self.tokens.append((match.lastindex, match[match.lastindex]))
            position = match.end()
        self.at = 0

    def refusal(self) -> Executes:
        """Return the error that says that the text is not in the grammar."""
        return Executes(f"has a size that is no arithmetic, and that torch would evaluate as Python: {short(self.text)}")

    def peek(self) -> str | None:
        """Return the sign or parenthesis that comes next; ``""`` for anything else, None at the end."""
        if self.at >= len(self.tokens):
            return None
        kind, text = self.tokens[self.at]
        return text if kind == 4 else ""

    def take(self, sign: str | None = None) -> tuple[int, str]:
        """Return the next token and go on; where `sign` is given, it must be that."""
        if self.at >= len(self.tokens) or (sign is not None and self.tokens[self.at] != (4, sign)):
            raise self.refusal()
        self.at += 1
        return self.tokens[self.at - 1]

    def comparison(self, depth: int) -> Any:
        """Read ``a < b``, or a sum."""
        left = self.sum(depth)
        names = {"<": "StrictLessThan", "<=": "LessThan", ">": "StrictGreaterThan", ">=": "GreaterThan"}
        names |= {"==": "Equality", "!=": "Unequality"}
        if (sign := self.peek()) in names:
            self.take()
            return (names[sign], (left, self.sum(depth)))
        return left

    def sum(self, depth: int) -> Any:
        """Read ``a + b - c``."""
        if depth > MAX_DEPTH:
            raise self.refusal()
        terms = [self.product(depth)]
        while (sign := self.peek()) in ("+", "-"):
            self.take()
            right = self.product(depth)
            terms.append(right if sign == "+" else ("Mul", (-1, right)))
        return terms[0] if len(terms) == 1 else ("Add", tuple(terms))

    def product(self, depth: int) -> Any:
        """Read ``a*b//c``."""
        left, factors = self.power(depth), 1
        names = {"*": "Mul", "//": "FloorDiv", "%": "Mod"}
        while (sign := self.peek()) in names:
            factors += 1
            if factors > MAX_DEPTH:
                raise self.refusal()
            self.take()
            left = (names[sign], (left, self.power(depth)))
        return left

    def power(self, depth: int) -> Any:
        """Read ``-a``, ``a**b``."""
        if depth > MAX_DEPTH:
            raise self.refusal()
        if self.peek() == "-":
            self.take()
            return ("Mul", (-1, self.power(depth + 1)))
        base = self.atom(depth)
        if self.peek() == "**":
            self.take()
            return ("Pow", (base, self.power(depth + 1)))
        return base

    def atom(self, depth: int) -> Any:
        """Return a number, a name, a call or something in parentheses."""
        if self.peek() == "(":
            self.take()
            inner = self.comparison(depth + 1)
            self.take(")")
            return inner
        kind, text = self.take()
        if kind == 1:
            return int(text)
        if kind != 2:
            raise self.refusal()
        if self.peek() != "(":
            return {"true": True, "false": False, "True": True, "False": False}.get(text, text)
        self.take("(")
        return self.symbol() if text == "Symbol" else self.float() if text == "Float" else self.call(text, depth)

    def symbol(self) -> str:
        """Read ``Symbol('s0', positive=True, integer=True)``."""
        kind, name = self.take()
        if kind != 3 or not name.isidentifier():
            raise self.refusal()
        self.assumptions()
        return name

    def float(self) -> Any:
        """Read ``Float('2.0', precision=53)``."""
        kind, digits = self.take()
        if kind != 3 or not re.fullmatch(r"-?\d{1,19}(\.\d{1,19})?", digits):
            raise self.refusal()
        self.assumptions()
        return Fraction(digits)

    def assumptions(self) -> None:
        """Read ``, positive=True)``: it says nothing that matters here."""
        while self.peek() == ",":
            self.take()
            if self.take()[0] != 2:
                raise self.refusal()
            self.take("=")
            if self.take()[0] not in (1, 2):
                raise self.refusal()
        self.take(")")

    def call(self, name: str, depth: int) -> Any:
        """Return a function of the table with its arguments, up to the closing parenthesis."""
        if name not in FUNCTIONS:
            raise self.refusal()
        arguments = []
        while self.peek() != ")":
            arguments.append(self.comparison(depth + 1))
            if self.peek() == ",":
                self.take()
            elif self.peek() != ")":
                raise self.refusal()
        self.take(")")
        fewest, most, _ = FUNCTIONS[name]
        if not fewest <= len(arguments) <= most:
            raise self.refusal()
        return (name, tuple(arguments))


def _value(tree: Any, sizes: Mapping[str, int]) -> Any:
    if isinstance(tree, str):
        if tree not in sizes:
            raise Problem(f"has a size {short(tree)} that depends on what is computed, not on the shape of the input")
        return sizes[tree]
    if not isinstance(tree, tuple):
        return tree
    name, arguments = tree
    found = FUNCTIONS[name][2](*(_value(argument, sizes) for argument in arguments))
    if abs(found.numerator) > LARGEST or found.denominator > LARGEST:
        raise OverflowError(name)
    return found


def _product(*values: Any) -> Any:
    found: Any = 1
    for value in values:
        found *= value
        if abs(found.numerator) > LARGEST:
            raise OverflowError("Mul")
    return found


def _power(base: Any, exponent: Any) -> Any:
    if exponent != int(exponent) or abs(exponent) > 64:
        raise OverflowError("Pow")
    return Fraction(base) ** int(exponent)


def _exactly(a: Any, b: Any) -> Any:
    if a % b:
        raise ZeroDivisionError("CleanDiv")
    return a // b


def _same(value: Any) -> Any:
    return value


# Fewest and most arguments, and what is computed. Values are int or Fraction: nothing is rounded.
_MANY = 200
FUNCTIONS: dict[str, tuple[int, int, Callable[..., Any]]] = {
    "Integer": (1, 1, _same),
    "Rational": (2, 2, lambda a, b: Fraction(a) / Fraction(b)),
    "Add": (2, _MANY, lambda *values: sum(values)),
    "Mul": (2, _MANY, _product),
    "Pow": (2, 2, _power),
    "PowByNatural": (2, 2, _power),
    "FloorDiv": (2, 2, operator.floordiv),
    "CleanDiv": (2, 2, _exactly),
    "CeilDiv": (2, 2, lambda a, b: -(-a // b)),
    "IntTrueDiv": (2, 2, lambda a, b: Fraction(a) / Fraction(b)),
    "FloatTrueDiv": (2, 2, lambda a, b: Fraction(a) / Fraction(b)),
    "ModularIndexing": (3, 3, lambda a, b, c: (a // b) % c),
    "Mod": (2, 2, operator.mod),
    "PythonMod": (2, 2, operator.mod),
    "Max": (1, _MANY, max),
    "Min": (1, _MANY, min),
    "Abs": (1, 1, abs),
    "ToFloat": (1, 1, _same),
    "Identity": (1, 1, _same),
    "FloorToInt": (1, 1, math.floor),
    "CeilToInt": (1, 1, math.ceil),
    "TruncToInt": (1, 1, math.trunc),
    "floor": (1, 1, math.floor),
    "ceiling": (1, 1, math.ceil),
    "Equality": (2, 2, operator.eq),
    "Eq": (2, 2, operator.eq),
    "Unequality": (2, 2, operator.ne),
    "Ne": (2, 2, operator.ne),
    "StrictLessThan": (2, 2, operator.lt),
    "LessThan": (2, 2, operator.le),
    "StrictGreaterThan": (2, 2, operator.gt),
    "GreaterThan": (2, 2, operator.ge),
    "And": (1, _MANY, lambda *values: all(values)),
    "Or": (1, _MANY, lambda *values: any(values)),
    "Not": (1, 1, operator.not_),
}
