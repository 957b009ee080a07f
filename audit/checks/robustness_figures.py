"""The figures and tables of the robustness check, from arrays alone: curve, bracket, accuracy by class, threat model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audit import stats
from audit.result import Figure, Table

Bits = NDArray[np.bool_]
Floats = NDArray[np.float64]

MOST_POINTS = 60  # of a curve: more cannot be told apart in a chart of 400 pixels, and each is a row of its table
MOST_CLASSES = 10  # drawn where there are more than SHOWN_CLASSES; the table holds all
SHOWN_CLASSES = 12
WHOLE = 255.0  # width of a box whose own unit is the 255th
ROUNDING = 1e-5  # relative: an example on the sphere of the radius may lie outside by the rounding of float32


@dataclass(frozen=True)
class Counts:
    """How many samples ended how: each is counted once, and they add up to all that were audited.

    Attributes
    ----------
    wrong
        Wrong before any attack.
    broken
        Right, and broken by a verified example within the radius.
    undecided
        Right, neither broken nor certified.
    certified
        Right, and no change within the radius can break them; None where no certificate was asked for, or none applies.
    """

    wrong: int
    broken: int
    undecided: int
    certified: int | None = None

    @property
    def n(self) -> int:
        """All samples."""
        return self.wrong + self.broken + self.undecided + (self.certified or 0)


@dataclass(frozen=True)
class ByClass:
    """Robust accuracy by class: its figure, the table of all classes, and the worst class in one sentence."""

    figure: Figure
    table: Table
    worst: str


def curve(
    prefix: str,
    norm_name: str,
    radius_unit: str,
    distances: Floats,
    *,
    eps: float,
    confidence: float,
    certified: tuple[Sequence[float], Sequence[float]] | None = None,
    width: float | None = None,
    broken: Bits | None = None,
) -> Figure:
    """Draw robust accuracy against the radius: the share of samples whose smallest known example is farther away.

    A sample broken at distance d counts as broken at every radius from d on, so that the curve falls in steps. It is an upper
    bound at each radius: an example that nobody found would lower it. The band is Clopper and Pearson's interval at each
    radius taken alone, which at the headline radius is the interval of ``accuracy``; it does not hold for the whole curve at
    once. (One that does, by Dvoretzky, Kiefer and Wolfowitz 1956 with the constant of Massart 1990, is a third wider in the
    middle at 300 samples, and would not be the interval of the metric.) About `MOST_POINTS` points are kept, each exact: where
    there are more distances, neighbours share a step, drawn at the largest of them. Between points the line then stands too
    high by less than a step, so that it stays an upper bound and never falls below what is certified, as a line that dropped
    at the smallest of them did; at 0, at `eps` and at every certified radius it is exact.

    Parameters
    ----------
    prefix
        Begins the figure's id, such as ``robustness.linf``.
    norm_name
        How the norm is written, such as ``L∞``.
    radius_unit
        In which the distances are, such as ``input units``.
    distances
        Shape (n,): 0 where the sample is wrong unattacked, its smallest known distance where it was broken, infinity where not.
    eps
        The headline radius, marked.
    confidence
        Of the band, between 0 and 1.
    certified
        Radii, rising, and the share of all samples certified at each. Between two radii the line stands at the share of the
        larger one, which holds there, too.
    width
        Width of the box of an image, whose radii are then written in 255ths of it as well.
    broken
        Shape (n,): what counts as broken at `eps`, where that is known; a distance that rounding put beyond it counts as `eps`.

    Raises
    ------
    ValueError
        A distance is negative or NaN.
    """
    known = _at_most_eps(np.asarray(distances, dtype=np.float64), eps, broken)
    n = len(known)
    proven = [float(r) for r in certified[0]] if certified is not None else []
    end = max([_end(known, eps), *proven])
    radii, standing, joined = _steps(known, [0.0, eps, end, *proven])
    low, high = stats.clopper_pearson_limits(standing, np.full(len(standing), n), confidence)
    series: list[Any] = [
        {
            "name": "no attack found",
            "step": "post",
            "x": [float(r) for r in radii],
            "y": [float(k) / n if n else None for k in standing],
            "low": [float(v) for v in low],
            "high": [float(v) for v in high],
        }
    ]
    if certified is not None and len(certified[0]):
        series.append(_certified_line(*certified))
    data: dict[str, Any] = {
        "series": series,
        "xlabel": f"radius ({norm_name}, {radius_unit})",
        "ylabel": "share of samples",
        "marks": [{"x": float(eps), "label": f"radius {eps:.4g}{_in_255ths(eps, width)}"}],
        "xmin": 0.0,
        "xmax": float(end),
        "ymin": 0.0,
        "ymax": 1.0,
        "note": _said_of_curve(known, end, confidence, joined, certified is not None),
    }
    if width and width != WHOLE:
        data |= {"second_scale": 255.0 / width, "second_unit": "/255"}
    return Figure(
        id=f"{prefix}.curve", kind="curve", title=f"How accuracy falls as the attack may change more ({norm_name})", data=data
    )


def bracket(
    prefix: str, counts: Counts, *, confidence: float, norm_name: str = "", radius: str = "", absent: str = ""
) -> Figure:
    """Draw all samples as one bar, certified | undecided | broken | wrong: certified ≤ true ≤ attacked.

    On these samples the true robust accuracy lies between the share that is certified and the share that no attack broke. Each
    of the two has its Clopper–Pearson interval for samples like these. From the lower end of the one to the upper end of the
    other the truth lies with at least the stated confidence: each end errs with half of what is left of it.

    Parameters
    ----------
    prefix
        Begins the figure's id, such as ``robustness.linf``.
    counts
        How many samples ended how.
    confidence
        Of both intervals, between 0 and 1.
    norm_name, radius
        What the title says of the threat model.
    absent
        Why there is no certificate, where there is none.
    """
    upper = stats.clopper_pearson(counts.n - counts.wrong - counts.broken, counts.n, confidence)
    lower = None if counts.certified is None else stats.clopper_pearson(counts.certified, counts.n, confidence)
    under = f"{norm_name} changes of at most {radius}" if norm_name and radius else "attack"
    data: dict[str, Any] = {
        "certified": counts.certified,
        "undecided": counts.undecided,
        "broken": counts.broken,
        "wrong": counts.wrong,
        "certified_low": None if lower is None else lower.low,
        "certified_high": None if lower is None else lower.high,
        "attacked_low": upper.low,
        "attacked_high": upper.high,
        "confidence": confidence,
        "xlabel": "share of samples",
        "note": _said_of_bracket(lower, upper, confidence, absent),
    }
    title = f"What is certified, what is broken, and what is left between them, under {under}"
    return Figure(id=f"{prefix}.bracket", kind="bracket", title=title, data=data)


def per_class(
    prefix: str,
    classes: Sequence[str],
    y: NDArray[np.int64],
    right: Bits,
    broken: Bits,
    *,
    certified: Bits | None = None,
    confidence: float,
    families: int = 1,
    norm_name: str = "",
) -> ByClass:
    """Draw the robust accuracy of each class, the worst first, and name the worst class.

    The worst of many classes is partly the unluckiest. So the intervals hold for all classes at once (Bonferroni: each has
    confidence 1 − (1 − `confidence`) / (classes · families)), and a class is called worse than the others only where its
    interval lies below that of all others together. Wide for a class of few samples: a bias towards saying nothing.

    Parameters
    ----------
    prefix
        Begins the ids, such as ``robustness.linf``.
    classes
        Names by label.
    y, right, broken
        Shape (n,): the label, whether it is right unattacked, and whether an attack broke it (what is wrong need not be).
    certified
        Shape (n,), or None where there is no certificate.
    confidence
        Of all intervals together, between 0 and 1.
    families
        How many such figures (norms) share that confidence.
    norm_name
        What the titles say of the threat model.
    """
    labels = np.unique(y)
    each = 1 - (1 - confidence) / max(1, len(labels) * families)
    standing = right & ~broken
    rows = [_class_row(classes, int(label), y == label, right, standing, certified, each) for label in labels]
    rows.sort(key=lambda row: (row.value, row.high, row.index))
    shown = rows if len(rows) <= SHOWN_CLASSES else rows[:MOST_CLASSES]
    named = f", {norm_name}" if norm_name else ""
    overall, worst = float(standing.mean()) if len(y) else None, _worst(rows, each)
    which = "each class" if len(shown) == len(rows) else f"the {len(shown)} worst of {len(rows)} classes"
    figure = Figure(
        id=f"{prefix}.by_class",
        kind="forest",
        title=f"Accuracy under attack of {which}{named}",
        data={
            "labels": [row.name for row in shown],
            "values": [row.value for row in shown],
            "low": [row.low for row in shown],
            "high": [row.high for row in shown],
            "n": [row.n for row in shown],
            "xlabel": "accuracy under attack",
            "ylabel": "class",
            "reference": overall,
            "reference_label": "all",
            "note": f"{worst} The intervals hold for {_of(len(rows), families)} at once, at {_percent(confidence)}.".strip(),
        },
    )
    columns = ["class", "samples", "right unattacked", "right under attack", "low", "high"]
    table = Table(
        id=f"{prefix}.by_class",
        title=f"Every class, the worst first{named}",
        columns=columns + ([] if certified is None else ["certified"]),
        rows=[row.cells(certified is not None) for row in rows],
    )
    return ByClass(figure, table, worst)


def threat(prefix: str, lines: Sequence[tuple[str, str]], *, norm_name: str = "") -> Table:
    """List exactly what the attacker may do: one line a fact, such as the norm, the radius, the box and the constraints."""
    named = f" ({norm_name})" if norm_name else ""
    return Table(
        id=f"{prefix}.threat",
        title=f"What the attacks could change, and how hard they tried{named}",
        columns=["what", "value"],
        rows=[[word, value] for word, value in lines if value],
    )


def smallest_first(distances: Floats, ids: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return the rows of the closest examples, at most `most`: the smallest distance first, among equals by sample id."""
    return np.lexsort((ids, distances))[:most]


def caption(before: str, after: str, distance: float, norm_name: str, attack: str, width: float | None = None) -> str:
    """Return what stands over an example: what it was, what it is taken for, how far it was moved, and by what."""
    return f"{before} is taken for {after}, {norm_name} distance {distance:.3g}{_in_255ths(distance, width)}, by {attack}"


def _at_most_eps(distances: Floats, eps: float, broken: Bits | None) -> Floats:
    if bool((np.isnan(distances) | (distances < 0)).any()):
        raise ValueError("distances should be at least 0, and infinity where no example is known, got NaN or a negative one")
    rounded = (distances > eps) & (distances <= eps * (1 + ROUNDING))
    counted = rounded if broken is None else broken & (distances > eps)
    return np.where(counted, eps, distances)


def _end(distances: Floats, eps: float) -> float:
    """Return where the axis ends: it holds the headline radius and nearly all distances, but not the last far ones."""
    finite = distances[np.isfinite(distances) & (distances > 0)]
    far = 1.1 * float(np.quantile(finite, 0.95)) if len(finite) else 0.0
    return max(1.25 * eps, far) or 1.0


def _steps(distances: Floats, exact: Sequence[float]) -> tuple[Floats, NDArray[np.int64], int]:
    """Return radii, how many samples stand at each, and the most samples of different distances that share a step.

    The radii in `exact` are among them, and the largest is where the axis ends.
    """
    fixed = np.unique(np.asarray(exact, dtype=np.float64))
    inside = np.unique(distances[(distances > 0) & (distances <= fixed[-1])])
    room = max(MOST_POINTS - len(fixed), MOST_POINTS // 2)
    groups = [group for group in np.array_split(inside, min(len(inside), room)) if len(group)] if len(inside) else []
    radii = np.unique(np.concatenate([fixed, np.array([group[-1] for group in groups])]))
    ordered = np.sort(distances)
    standing = len(distances) - np.searchsorted(ordered, radii, side="right")
    shared = [int(((distances >= group[0]) & (distances <= group[-1])).sum()) for group in groups if len(group) > 1]
    return radii, standing.astype(np.int64), max(shared, default=0)


def _certified_line(radii: Sequence[float], shares: Sequence[float]) -> dict[str, Any]:
    """Return the line of what is certified: what holds at a radius holds at every smaller one, down to 0."""
    x, y = [float(r) for r in radii], [float(s) for s in shares]
    if x[0] > 0:
        x, y = [0.0, *x], [y[0], *y]
    return {"name": "certified", "step": "pre", "x": x, "y": y}


def _said_of_curve(distances: Floats, end: float, confidence: float, joined: int, certified: bool) -> str:
    n, unbroken = len(distances), int(np.isinf(distances).sum())
    far = int((np.isfinite(distances) & (distances > end)).sum())
    words = [
        "An upper bound at every radius: no closer example was found.",
        f"The band is the {_percent(confidence)} interval of each radius taken alone, not of the whole curve.",
    ]
    if unbroken:
        words.append(
            f"{unbroken:,} of {n:,} samples have no known example at any distance, which does not say that none exists."
        )
    if far:
        words.append(f"{far:,} sample{'' if far == 1 else 's'} broke only beyond the end of the axis.")
    if joined:
        words.append(f"Up to {joined:,} samples of neighbouring distances share a step, drawn at the largest.")
    if certified:
        words.append("What is certified at a radius is so at every smaller one.")
    return " ".join(words)


def _said_of_bracket(lower: stats.Interval | None, upper: stats.Interval, confidence: float, absent: str) -> str:
    if upper.high is None or upper.value is None:
        return ""
    if lower is None:
        return (
            f"Nothing bounds the truth from below: {absent or 'there is no certificate'}. For other samples like these it is "
            f"at most {upper.high:.3f}, at {_percent((1 + confidence) / 2)}."
        )
    return (
        "On these samples the truth lies between the two bounds; for other samples like them, "
        f"between {np.floor(1000 * (lower.low or 0.0)) / 1000:.3f} and {upper.high:.3f}, at {_percent(confidence)} at least."
    )


@dataclass(frozen=True)
class _ClassRow:
    index: int
    name: str
    n: int
    standing: int
    clean: float
    value: float
    low: float
    high: float
    certified: float | None

    def cells(self, certified: bool) -> list[Any]:
        cells: list[Any] = [self.name, self.n, self.clean, self.value, self.low, self.high]
        return [*cells, self.certified] if certified else cells


def _class_row(
    classes: Sequence[str], label: int, here: Bits, right: Bits, standing: Bits, certified: Bits | None, each: float
) -> _ClassRow:
    n, k = int(here.sum()), int((standing & here).sum())
    low, high = stats.clopper_pearson_limits(np.asarray(k), np.asarray(n), each)
    return _ClassRow(
        index=label,
        name=classes[label] if 0 <= label < len(classes) else str(label),
        n=n,
        standing=k,
        clean=float(right[here].mean()),
        value=k / n,
        low=float(low),
        high=float(high),
        certified=None if certified is None else float((right & certified)[here].mean()),
    )


def _worst(rows: Sequence[_ClassRow], each: float) -> str:
    """Name the class that is surely below the others, or the lowest, which chance may have made so."""
    if len(rows) < 2:
        return ""
    n, k = sum(row.n for row in rows), sum(row.standing for row in rows)
    surely = [row for row in rows if row.high < stats.clopper_pearson_limits(k - row.standing, n - row.n, each)[0]]
    row = min(surely or rows, key=lambda row: (row.high, row.value, row.index) if surely else (row.value, row.high, row.index))
    others = (k - row.standing) / (n - row.n)
    more = f"; {len(surely) - 1} more surely are" if len(surely) > 1 else ""
    sure = f"surely below the others ({others:.1%}){more}" if surely else f"not surely below the others ({others:.1%})"
    return f"Class {row.name} is right under attack on {row.value:.1%} of its {row.n} samples, {sure}."


def _of(classes: int, families: int) -> str:
    return f"all {classes} classes" if families == 1 else f"all {classes} classes of {families} norms"


def _in_255ths(radius: float, width: float | None) -> str:
    return f" = {radius / width * 255:.3g}/255" if width and width != WHOLE else ""


def _percent(confidence: float) -> str:
    return f"{100 * confidence:.4g} %"
