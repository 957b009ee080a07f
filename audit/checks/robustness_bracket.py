"""The lower side of the bracket: which samples no change within the radius can break, by bounds of the network."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from audit.checks.base import Arrays, Block, Found, Stage
from audit.checks.robustness_state import CERTIFICATE, FEW, Attacked, right_at_first, spread_over, tolerance
from audit.errors import UsageError
from audit.plain import plain

# Coefficients that the bounds of one layer may take for one sample: above, its inputs have interval bounds, and a note says so.
MOST = {"quick": 2**22, "standard": 2**22, "thorough": 2**24, "exhaustive": 2**26}
TRIED = 16  # samples whose bounds say whether it is worth bounding the others
# Parts that branching may bound for a sample that CROWN nearly certifies, on small networks: at most a fifth of a second.
PARTS = {"quick": 0, "standard": 32, "thorough": 64, "exhaustive": 64}
NOTE = 300
ABSENT = "none: "


def stages(one: Attacked) -> list[Stage]:
    """Return the stages that bound margins: of a few samples, and of all others that are right where that was of use.

    Bounds cost hundreds of forwards a sample, and on many networks certify nothing at all at a radius that matters. Samples
    that were left out count as not certified, so that the share stays a lower bound.
    """
    task = one.task

    def job(block: Block) -> Arrays:
        n = len(block.ids)
        certified, note = _bounded(one, block) if n else (np.zeros(0, dtype=bool), "")
        return {"certified": certified, "note": np.full(n, note[:NOTE], dtype=f"U{NOTE}")}

    def few(found: Found) -> NDArray[np.int64]:
        right = np.flatnonzero(right_at_first(task, found))
        return right[spread_over(len(right), TRIED)]

    def others(found: Found) -> NDArray[np.int64]:
        tried = found[one.id(FEW)]
        if task.profile != "exhaustive" and not tried["certified"].any():
            return np.arange(0)
        return np.setdiff1d(np.flatnonzero(right_at_first(task, found)), tried.positions)

    cost_of, after = one.id("certified_accuracy"), ("predictions.test",)
    return [
        Stage(id=one.id(FEW), job=job, cost_of=cost_of, select=few, after=after),
        Stage(id=one.id(CERTIFICATE), job=job, cost_of=cost_of, select=others, after=(*after, one.id(FEW)), passes=30.0),
    ]


def _bounded(one: Attacked, block: Block) -> tuple[NDArray[np.bool_], str]:
    """Return which samples of a block are certified; none and the reason where the network has a layer without a bound."""
    from audit.certificates import Network, NoBound, certify
    from audit.certificates.certify import FORWARDS

    task, model = one.task, one.task.model
    try:
        network = Network.of(model, block.x[:4])
        y = model.values(block.x).detach() if model.task == "regression" else block.y
        found = certify(
            model,
            block.x,
            y,
            one.threat,
            tolerance=tolerance(task, block.earlier),
            network=network,
            most=MOST[task.profile],
            parts=PARTS[task.profile],
        )
    except (NoBound, UsageError) as problem:
        return np.zeros(len(block.ids), dtype=bool), f"{ABSENT}{plain(str(problem))}"
    # Passes of bounds are no forwards of the network: they count by the time that they take, as measured once for all, since a
    # clock would make each run's count another.
    model.forwards += round(FORWARDS * found.passes)
    return found.certified.cpu().numpy(), "; ".join(part for part in (found.method, found.note) if part)


def absent(one: Attacked, found: Found) -> str:
    """Return why there is no certificate, or nothing where there is one."""
    rows = one.rows(found, FEW)
    if rows is None:
        return "it was not asked for (robustness.certify)"
    reasons = [str(note).removeprefix(ABSENT) for note in np.unique(rows["note"]) if str(note).startswith(ABSENT)]
    return reasons[0] if reasons else "" if len(rows.positions) else "no sample was right"


def notes(one: Attacked, found: Found) -> str:
    """Return what the certificate says of itself: its method, layers with interval bounds, what a pass costs."""
    rows, others = one.rows(found, FEW), one.rows(found, CERTIFICATE)
    if rows is None or not len(rows["note"]):
        return ""
    left = (
        ""
        if others is None or len(others.positions) or rows["certified"].any()
        else (f"none of {len(rows.positions)} samples was certified, so that no more were tried; ")
    )
    return left + str(rows["note"][0])
