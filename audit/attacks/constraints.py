"""What a table's rows must keep to when they are changed: whole numbers, categories, directions, linear rules between columns.

`Constraints` says it, `Rules` is the same on a device. A clean row that breaks a rule itself may stay as it is, and may not
be made worse. A rule is written as text, ``"capital_gain - capital_loss >= 0"``, and read by a parser of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.errors import UsageError, closest
from audit.plain import plain

LONGEST, DEEPEST = 10_000, 50  # characters of a rule, and brackets in brackets: more is refused
NEAREST = 0.5
LEAST_CUT = 0.05  # a whole number that was to move by less than this of a step stays
SWEEPS = 12  # over the linear rules before what is left is repaired
INSIDE = 1e-3  # of the radius: how far inside of a linear rule the sweeps aim, so that what they leave over still keeps it


@dataclass(frozen=True)
class Linear:
    """A linear rule: the sum of coefficient times column lies between `low` and `high`.

    Attributes
    ----------
    terms
        Pairs of a column's position and its coefficient.
    text
        The rule as it was written.
    """

    terms: tuple[tuple[int, float], ...]
    low: float
    high: float
    text: str


@dataclass(frozen=True)
class Constraints:
    """What changed rows of a table must keep to, by positions of columns.

    Attributes
    ----------
    integer
        Columns that hold whole numbers.
    one_hot
        Groups of columns of which exactly one is 1, the others 0.
    linear
        Rules between columns.
    increase_only, decrease_only
        Columns that may not fall, or not rise.
    max_category_changes
        How many groups of `one_hot` may change. Where it is given, they are outside the radius, which is about the other
        columns; where None, the columns of a group count in the radius as all others do.
    """

    integer: tuple[int, ...] = ()
    one_hot: tuple[tuple[int, ...], ...] = ()
    linear: tuple[Linear, ...] = ()
    increase_only: tuple[int, ...] = ()
    decrease_only: tuple[int, ...] = ()
    max_category_changes: int | None = None

    def __bool__(self) -> bool:
        """Whether anything is asked at all."""
        return bool(self.integer or self.one_hot or self.linear or self.increase_only or self.decrease_only)

    def free(self, columns: int) -> NDArray[np.bool_]:
        """Tell which columns are outside the radius, shape (columns,)."""
        grouped = [column for group in self.one_hot for column in group]
        return _mask(grouped if self.max_category_changes is not None else [], columns)

    def discrete(self, columns: int) -> NDArray[np.bool_]:
        """Tell which columns hold whole numbers, those of categories among them, shape (columns,)."""
        return _mask([*self.integer, *(column for group in self.one_hot for column in group)], columns)

    def check(self, columns: int) -> None:
        """Raise a UsageError where a position is none of a table of so many columns, or a column has two roles."""
        grouped = [column for group in self.one_hot for column in group]
        named = [*self.integer, *grouped, *self.increase_only, *self.decrease_only]
        named += [column for rule in self.linear for column, _ in rule.terms]
        if any(not 0 <= column < columns for column in named):
            raise UsageError(f"constraints name columns 0 to {max(named)}, but the inputs have {columns}")
        if len(set(grouped)) != len(grouped):
            raise UsageError("a column stands in two one-hot groups, or twice in one: each belongs to one group")
        if any(len(group) < 2 for group in self.one_hot):
            raise UsageError("a one-hot group needs two columns or more: with one, exactly one is 1 only if it is always 1")
        if self.max_category_changes is not None and not self.one_hot:
            raise UsageError("max_category_changes counts changes of one-hot groups, and none is named: one_hot = [[…], …]")

    def on(self, like: Tensor, fixed: Tensor) -> Rules:
        """Return the same on the device of `like`, a batch of rows; `fixed` are the columns that never change."""
        columns = like.shape[1]
        matrix = np.zeros((len(self.linear), columns))
        for row, rule in enumerate(self.linear):
            for column, factor in rule.terms:
                matrix[row, column] += factor
        bounds = np.asarray([[rule.low, rule.high] for rule in self.linear]).reshape(-1, 2)

        def mask(positions: Sequence[int]) -> Tensor:
            return torch.from_numpy(_mask(positions, columns)).to(like.device)

        def numbers(values: NDArray[np.float64]) -> Tensor:
            return torch.from_numpy(values).to(like.device)

        return Rules(
            integer=mask(self.integer),
            increase=mask(self.increase_only),
            decrease=mask(self.decrease_only),
            groups=tuple(torch.as_tensor(group, device=like.device) for group in self.one_hot),
            grouped=mask([column for group in self.one_hot for column in group]),
            most=self.max_category_changes,
            matrix=numbers(matrix),
            low=numbers(bounds[:, 0]),
            high=numbers(bounds[:, 1]),
            free=mask(np.flatnonzero(self.free(columns)).tolist()) & ~fixed,
            pivots=tuple(tuple(column for column, _ in rule.terms) for rule in self.linear),
        )

    def broken_by(self, x: NDArray[np.floating], columns: Sequence[str]) -> dict[str, int]:
        """Count for each rule the rows of `x`, (n, columns), that break it; rules that all rows keep are left out."""
        x = np.asarray(x, dtype=np.float64)
        counts = {f"whole numbers in {columns[c]}": int((x[:, c] != np.round(x[:, c])).sum()) for c in self.integer}
        for group in self.one_hot:
            names = ", ".join(columns[c] for c in group)
            counts[f"exactly one of {names}"] = int((~_is_one_hot(torch.from_numpy(x[:, list(group)]))).sum())
        for rule in self.linear:
            parts = np.stack([factor * x[:, column] for column, factor in rule.terms])
            total, room = parts.sum(axis=0), 1e-6 * np.abs(parts).sum(axis=0)
            counts[rule.text] = int(np.count_nonzero((total < rule.low - room) | (total > rule.high + room)))
        return {plain(name): count for name, count in counts.items() if count}

    def describe(self, columns: Sequence[str]) -> list[str]:
        """Say in plain words what changed rows keep to."""

        def named(positions: Sequence[int]) -> str:
            return ", ".join(columns[c] for c in positions)

        out = [f"whole numbers: {named(self.integer)}"] if self.integer else []
        out += [f"may only rise: {named(self.increase_only)}"] if self.increase_only else []
        out += [f"may only fall: {named(self.decrease_only)}"] if self.decrease_only else []
        out += [f"exactly one is 1: {named(group)}" for group in self.one_hot]
        if self.max_category_changes is not None:
            out.append(f"of these groups at most {self.max_category_changes} may change, whatever the radius")
        return [plain(line) for line in [*out, *(f"between columns: {rule.text}" for rule in self.linear)]]


@dataclass(frozen=True)
class Filling:
    """The radius that whole numbers share.

    Attributes
    ----------
    rows : bool Tensor (n,)
        Samples whose whole numbers fill it; those of the others are rounded.
    length : float64 Tensor (n, columns)
        Distance of a change by 1.
    eps, power
        The powers of all distances sum up to that of `eps` at most.
    """

    rows: Tensor
    length: Tensor
    eps: float
    power: int


@dataclass(frozen=True)
class Rules:
    """`Constraints` on a device.

    Attributes
    ----------
    integer, increase, decrease, grouped, free : bool Tensor (columns,)
        Whole numbers; may only rise; may only fall; in a one-hot group; outside the radius.
    groups
        Positions of each one-hot group.
    matrix, low, high : float64 Tensors (rules, columns), (rules,), (rules,)
        Linear rules.
    pivots
        For each linear rule the columns in it.
    """

    integer: Tensor
    increase: Tensor
    decrease: Tensor
    groups: tuple[Tensor, ...]
    grouped: Tensor
    most: int | None
    matrix: Tensor
    low: Tensor
    high: Tensor
    free: Tensor
    pivots: tuple[tuple[int, ...], ...]

    @property
    def discrete(self) -> bool:
        """Whether points lie apart from each other, so that small steps would be rounded away."""
        return len(self.groups) > 0 or bool(self.integer.any())

    def limits(self, x: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Narrow lowest and highest values around `x` to directions, and to whole numbers; `x` stays inside."""
        low, high = torch.where(self.increase, x, low), torch.where(self.decrease, x, high)
        ulp = torch.finfo(x.dtype).eps
        least = torch.minimum((low - ulp * low.abs()).ceil(), x)
        most = torch.maximum((high + ulp * high.abs()).floor(), x)
        return torch.where(self.integer, least, low), torch.where(self.integer, most, high)

    def kept(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Tell which rows keep all rules but for rounding, shape (n,); where `x` breaks one it may stay, and grow no worse."""
        same = x_adv == x
        ok = (same | ~self.integer | (x_adv == x_adv.round())).all(dim=1)
        ok &= (~self.increase | (x_adv >= x)).all(dim=1) & (~self.decrease | (x_adv <= x)).all(dim=1)
        changes = torch.zeros(len(x), dtype=torch.long, device=x.device)
        for group in self.groups:
            still = same[:, group].all(dim=1)
            ok &= still | _is_one_hot(x_adv[:, group])
            changes += ~still
        if self.most is not None:
            ok &= changes <= self.most
        if len(self.low):
            over = self._excess(x, x_adv.double())
            room = self._rounding(x, x_adv, 4.0)
            ok &= (over.abs() <= room).all(dim=1)
        return ok

    def towards(self, point: Tensor, x: Tensor, weight: Tensor, radius: float) -> Tensor:
        """Go over the linear rules `SWEEPS` times, each time to the nearest point that keeps the rule.

        `weight`, (n, columns), is the unit of distance of each column, 0 where it cannot move. That is the method of
        alternating projections (von Neumann 1950; Bregman 1965): it converges to a point that keeps all rules, if not to the
        nearest.
        """
        z, square = point.double(), weight.double() ** 2
        low, high = self._bounds(x)
        for _ in range(SWEEPS if len(self.low) > 1 else 1):
            sums = z @ self.matrix.T
            if not bool(((sums < low) | (sums > high)).any()):
                break
            for k in range(len(self.low)):
                row = self.matrix[k]
                length = (row**2 * square).sum(dim=1)
                aim = torch.minimum(INSIDE * radius * length.sqrt(), (high[:, k] - low[:, k]) / 2)
                total = (z * row).sum(dim=1)
                over = total - total.clamp(min=low[:, k], max=high[:, k])
                over = over + torch.where(over != 0, over.sign() * aim, 0.0)
                z = z - (over / length.clamp_min(1e-300))[:, None] * row * square
        return z.to(point)

    def settle(
        self, x: Tensor, z: Tensor, low: Tensor, high: Tensor, *, up: float, change: bool, fill: Filling | None = None
    ) -> Tensor:
        """Return rows near `z` with whole numbers and categories, the linear rules repaired as far as that goes.

        `up` is the fraction from which a whole number moves away from the clean one; `change` whether categories may change.
        """
        point = self._categories(x, z, low, high) if change else torch.where(self.grouped, x, z)
        moved = z - x
        whole = x + moved.sign() * (moved.abs() + (1.0 - up)).floor()
        odd = torch.where(moved.abs() < up, x, z.round())
        whole = torch.where(x == x.round(), whole, odd)
        point = torch.where(self.integer, torch.minimum(torch.maximum(whole, low), high), point)
        if fill is not None:
            point = torch.where(fill.rows[:, None], self._filled(x, z, point, low, high, fill), point)
        return self._repaired(x, point, low, high) if len(self.low) else point

    def direction(self, gradient: Tensor) -> Tensor:
        """Return the sign of the gradient; in a one-hot group its size beside the others of the group, for there one wins."""
        out, between = gradient.sign(), self.between(gradient)
        for group in self.groups:
            part = between[:, group]
            out[:, group] = part / part.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(part.dtype).tiny)
        return out

    def between(self, gradient: Tensor) -> Tensor:
        """Return the gradient, measured in each one-hot group from the middle between its highest column and the others' mean.

        A group keeps its sum, so that only differences count: the highest column rises, what is far below it falls. Measured
        from 0, a clean category whose own slope is 0 would stay, and the highest come level with it at most.
        """
        if not self.groups:
            return gradient
        out = gradient.clone()
        for group in self.groups:
            part = gradient[:, group]
            best = part.amax(dim=1, keepdim=True)
            others = (part.sum(dim=1, keepdim=True) - best) / (len(group) - 1)
            out[:, group] = part - (best + others) / 2
        return out

    def _filled(self, x: Tensor, z: Tensor, point: Tensor, low: Tensor, high: Tensor, fill: Filling) -> Tensor:
        """Return `point` with whole numbers cut towards `x`, then moved on by 1, the most cut first, as far as it goes."""
        moved = z - x
        short = moved.sign() * (moved.abs() + 1e-5).floor()
        cut = moved.abs() - short.abs()
        least = torch.where(self.integer & (x == x.round()), x + short, point)
        further = least + moved.sign()
        can = self.integer & (x == x.round()) & (cut > LEAST_CUT) & (further >= low) & (further <= high)
        before, after = (((each - x).abs().double() * fill.length) ** fill.power for each in (least, further))
        order = torch.where(can, cut, -1.0).argsort(dim=1, descending=True, stable=True)
        cost = torch.where(can, after - before, 0.0).gather(1, order).cumsum(dim=1)
        paid = (cost <= fill.eps**fill.power - before.sum(dim=1, keepdim=True)).gather(1, order.argsort(dim=1))
        return torch.where(can & paid, further, least)

    def _categories(self, x: Tensor, z: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Return `z` with each group at its highest column of those that may be reached, the clean one where that is higher."""
        out, gains, wins = z.clone(), [], []
        for group in self.groups:
            old, value = x[:, group], z[:, group]
            own = old == old.amax(dim=1, keepdim=True)
            # Any other of the group must be able to fall to 0, and the new one to rise to 1.
            falls, rises = low[:, group] <= 0, high[:, group] >= 1
            stuck = (~falls).sum(dim=1, keepdim=True) - (~falls).long()
            reached = rises & (stuck == 0)
            now = torch.where(own, value, -torch.inf).amax(dim=1)
            best = torch.where(reached & ~own, value, -torch.inf).max(dim=1)
            gains.append(best.values - now)
            wins.append(torch.nn.functional.one_hot(best.indices, len(group)).to(x))
        gain = torch.stack(gains, dim=1) if gains else x[:, :0]
        keep = gain >= 0  # a column that has come level with the clean one has moved its way, or the clean one down
        if self.most is not None and self.most < len(self.groups):
            order = gain.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)
            keep &= order < self.most
        for k, group in enumerate(self.groups):
            out[:, group] = torch.where(keep[:, k, None], wins[k], x[:, group])
        return out

    def _repaired(self, x: Tensor, point: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Move one column after the other of each broken linear rule by what it takes, whole numbers by whole ones."""
        z, low, high = point.double(), low.double(), high.double()
        least, most = self._bounds(x)
        room = self._rounding(x, point, 1.0)
        for _ in range(2):
            sums = z @ self.matrix.T
            broken = ((sums < least - room) | (sums > most + room)).any(dim=0).tolist()
            if not any(broken):
                break
            for k, columns in enumerate(self.pivots):
                for column in columns if broken[k] else ():
                    factor = self.matrix[k, column]
                    total = (z * self.matrix[k]).sum(dim=1)
                    over = total - torch.minimum(torch.maximum(total, least[:, k]), most[:, k])
                    over = torch.where(over.abs() <= room[:, k], 0.0, over)
                    move = -over / factor
                    both = self.low[k] == self.high[k]
                    outward = torch.where(both, move.round(), move.sign() * (move.abs() - 1e-9).ceil())
                    move = torch.where(self.integer[column], outward, move)
                    move = torch.where(self.grouped[column] | (factor == 0), 0.0, move)
                    to = torch.minimum(torch.maximum(z[:, column] + move, low[:, column]), high[:, column])
                    z[:, column] = torch.where(over == 0, z[:, column], to)
        return z.to(point)

    def _bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return for each row and rule what it may be between: a row that breaks a rule keeps its own value as the limit."""
        own = x.double() @ self.matrix.T
        return torch.minimum(self.low, own), torch.maximum(self.high, own)

    def _excess(self, x: Tensor, z: Tensor) -> Tensor:
        """Return by how much each row misses each linear rule, signed, (n, rules)."""
        low, high = self._bounds(x)
        total = z.double() @ self.matrix.T
        return total - torch.minimum(torch.maximum(total, low), high)

    def _rounding(self, x: Tensor, z: Tensor, ulps: float) -> Tensor:
        """Return what rounding of the columns can do to each rule, (n, rules)."""
        size = torch.maximum(x.abs(), z.abs()).double() @ self.matrix.abs().T
        return ulps * torch.finfo(x.dtype).eps * size


def _mask(positions: Sequence[int], columns: int) -> NDArray[np.bool_]:
    out = np.zeros(columns, dtype=bool)
    out[list(positions)] = True
    return out


def _is_one_hot(part: Tensor) -> Tensor:
    return ((part == 0) | (part == 1)).all(dim=1) & ((part == 1).sum(dim=1) == 1)


# --- rules as text ----------------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_NAME = re.compile(r"[^\W\d][\w.]*")
_SIGNS = re.compile(r"<=|>=|==|[-+*/()<>=]")
_QUOTES = "'\"`"


def parse(text: str, columns: Sequence[str]) -> Linear:
    """Read a linear rule between columns: ``a + 2*b <= 3``, ``total == x + y``, ``"capital gain" - loss >= 0``.

    Sums, differences, products with and quotients by numbers, brackets; compared by ``<=``, ``>=`` or ``==``. A name in
    quotes or backticks is taken as it is; outside them the longest column name that stands there is, so that
    ``capital-gain`` is one column where there is one of that name. Nothing is ever evaluated.

    Raises
    ------
    UsageError
        It is no such rule, or names no column of the data.
    """
    if len(text) > LONGEST:
        raise UsageError(f"a constraint is at most {LONGEST:,} characters long, got {len(text):,}")
    reader = _Reader(_tokens(text, columns), text)
    left = reader.sum(0)
    sign = reader.next()
    if sign not in ("<=", ">=", "=="):
        raise reader.error(
            f"expected <=, >= or ==, got {sign or 'the end'}" + ("" if sign not in ("<", ">", "=") else _INSTEAD)
        )
    right = reader.sum(0)
    if (rest := reader.next()) is not None:
        raise reader.error(f"expected one comparison and then the end, got {_shown(rest)}: write two constraints for two")
    return _linear(left, right, sign, text)


_INSTEAD = "; write <= for <, >= for >, and == for ="


def _linear(left: _Form, right: _Form, sign: str, text: str) -> Linear:
    terms = dict(left.terms)
    for column, factor in right.terms.items():
        terms[column] = terms.get(column, 0.0) - factor
    terms = {column: factor for column, factor in sorted(terms.items()) if factor != 0}
    bound = right.number - left.number
    if not terms:
        raise UsageError(f"constraint {_shown(text)}: it names no column that does not cancel out, so it asks nothing")
    if not all(math.isfinite(value) for value in (*terms.values(), bound)):
        raise UsageError(f"constraint {_shown(text)}: a number in it is too large")
    low = bound if sign in (">=", "==") else -math.inf
    high = bound if sign in ("<=", "==") else math.inf
    return Linear(tuple(terms.items()), low, high, text)


@dataclass(frozen=True)
class _Form:
    """A linear form: coefficients of columns, and a number."""

    terms: dict[int, float]
    number: float

    def times(self, factor: float) -> _Form:
        return _Form({column: value * factor for column, value in self.terms.items()}, self.number * factor)

    def plus(self, other: _Form) -> _Form:
        terms = dict(self.terms)
        for column, value in other.terms.items():
            terms[column] = terms.get(column, 0.0) + value
        return _Form(terms, self.number + other.number)


_Token = str | float | int  # a sign, a number, or a column's position


def _tokens(text: str, columns: Sequence[str]) -> list[_Token]:
    """Split a rule into signs, numbers (float) and columns (int)."""
    known = sorted((name for name in set(columns) if _NAME.match(name)), key=len, reverse=True)
    places = {name: place for place, name in reversed(list(enumerate(columns)))}
    out: list[_Token] = []
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
        elif text[at] in _QUOTES:
            end = text.find(text[at], at + 1)
            if end < 0:
                raise UsageError(f"constraint {_shown(text)}: a quote is opened and never closed")
            out.append(_place(text[at + 1 : end], places, text))
            at = end + 1
        elif found := _NUMBER.match(text, at):
            out.append(float(found[0]))
            at = found.end()
        elif found := _SIGNS.match(text, at):
            out.append(found[0])
            at = found.end()
        elif _NAME.match(text, at):
            name = next((each for each in known if _stands(each, text, at)), None) or _word(text, at)
            out.append(_place(name, places, text))
            at += len(name)
        else:
            raise UsageError(f"constraint {_shown(text)}: {_shown(text[at])} means nothing here; put odd names in quotes")
    return out


def _word(text: str, at: int) -> str:
    found = _NAME.match(text, at)
    return found[0] if found else text[at]


def _stands(name: str, text: str, at: int) -> bool:
    after = text[at + len(name) : at + len(name) + 1]
    return text.startswith(name, at) and not (after.isalnum() or after == "_")


def _place(name: str, places: dict[str, int], text: str) -> int:
    if name not in places:
        raise UsageError(f"constraint {_shown(text)}: no input column {_shown(name)}; {plain(closest(name, list(places)))}")
    return places[name]


def _shown(text: _Token) -> str:
    return repr(plain(str(text)[:80]))


class _Reader:
    """Reads sums of products from tokens."""

    def __init__(self, tokens: list[_Token], text: str) -> None:
        self.tokens, self.text, self.at = tokens, text, 0

    def error(self, message: str) -> UsageError:
        return UsageError(f"constraint {_shown(self.text)}: {message}")

    def peek(self) -> _Token | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def next(self) -> _Token | None:
        token = self.peek()
        self.at += token is not None
        return token

    def sum(self, depth: int) -> _Form:
        total = self.product(depth)
        while self.peek() in ("+", "-"):
            sign = 1.0 if self.next() == "+" else -1.0
            total = total.plus(self.product(depth).times(sign))
        return total

    def product(self, depth: int) -> _Form:
        out = self.factor(depth)
        while self.peek() in ("*", "/"):
            by = self.next()
            other = self.factor(depth)
            if by == "/":
                if other.terms or other.number == 0:
                    raise self.error("a constraint divides by numbers other than 0 alone, since it is linear")
                out = out.times(1.0 / other.number)
            elif out.terms and other.terms:
                raise self.error("two columns are multiplied, and a constraint is linear: numbers times columns, summed")
            else:
                out = other.times(out.number) if not out.terms else out.times(other.number)
        return out

    def factor(self, depth: int) -> _Form:
        if depth > DEEPEST:
            raise self.error(f"more than {DEEPEST} brackets or signs in each other")
        part = self.next()
        if part in ("+", "-"):
            return self.factor(depth + 1).times(1.0 if part == "+" else -1.0)
        if part == "(":
            inner = self.sum(depth + 1)
            if self.next() != ")":
                raise self.error("a bracket is opened and never closed")
            return inner
        if isinstance(part, float):
            return _Form({}, part)
        if isinstance(part, int):
            return _Form({part: 1.0}, 0.0)
        raise self.error(f"expected a column or a number, got {'the end' if part is None else _shown(part)}")
