"""Whether the attacks of the robustness check can be believed: their evidence, and when it calls for other attacks."""

from __future__ import annotations

import numpy as np

from audit.attacks import sanity
from audit.attacks.geometry import movable
from audit.checks.base import Found, Merged
from audit.checks.robustness_state import AGAIN, NOISE, REST, SQUARE, Attacked, Bits
from audit.result import Evidence

FEW_POINTS = 100.0  # noise and Square look at about as many


def suspicious(one: Attacked, found: Found) -> bool:
    """Tell whether anything says that gradients hide what a black-box attack would find."""
    square = one.rows(found, SQUARE)
    if square is not None and bool(square["broken"].any()):
        return True
    return any(not e.ok for e in [*_of_gradients(one, found), *_slope(one, found), *_noise(one, found), *_again(one, found)])


def gradients_failed(one: Attacked, found: Found) -> bool:
    """Tell whether the surveys had no gradient to follow on a share of the samples: zero, hidden, NaN, or leading nowhere."""
    return any(not e.ok for e in _of_gradients(one, found))


def evidence(one: Attacked, found: Found, broken: Bits) -> list[Evidence]:
    """Return all evidence of one norm; `broken` holds every sample that an attack broke."""
    task, prefix = one.task, one.prefix
    out = [_verified(one, found), *_of_gradients(one, found), *_noise(one, found)]
    out += [*_doubled(one, found), *_again(one, found), *_square(one, found)]
    free = found[one.id("unbounded")]
    if len(free.positions):
        out.append(sanity.gradient_found(prefix, free["grad_zero"]))
    out += _slope(one, found)
    if len(free.positions) and all_may_change(one):
        out.append(sanity.unbounded_breaks(prefix, free["broken"]))
    alone = one.rows(found, "alone")
    if alone is not None and len(alone.positions):
        out.append(sanity.holds_alone(prefix, alone["held"]))
    if task.model.task == "classification":
        out.append(sanity.unsaturated(prefix, found["predictions.test"]["logits"]))
    if one.rows(found, "certificate") is not None:
        both = np.flatnonzero(one.certified(found) & broken)
        out.append(sanity.bracket_consistent(prefix, [int(i) for i in task.data.test.ids[both]]))
    return out


def all_may_change(one: Attacked) -> bool:
    """Tell whether every input that varies may change, so that an unlimited radius should break everything."""
    if one.threat.constraints:
        return False
    if one.threat.mutable is None:
        return True
    return bool(one.threat.mutable[one.task.data.scale() > 0].all())


def _able(one: Attacked) -> Bits:
    """Tell which samples have room to climb: among a few whole numbers a random start may be the worst point already."""
    data = one.task.data
    if not one.threat.constraints:
        return np.ones(len(data.test), dtype=bool)
    x = one.task.model.to_input(data.tensor(np.arange(len(data.test))))
    return movable(one.threat, x, FEW_POINTS).cpu().numpy()


def _verified(one: Attacked, found: Found) -> Evidence:
    rows = [found[one.id(part)] for part in one.evaluated()]
    confirmed = sum(int((each["broken"] & np.isfinite(each["loss_start"])).sum()) for each in rows)
    return sanity.verified(one.prefix, confirmed, sum(int(each["rejected"].sum()) for each in rows))


def _of_gradients(one: Attacked, found: Found) -> list[Evidence]:
    """Judge the gradients that the surveys followed: any at all, numbers, and up the loss."""
    seen = [found[one.id(part)] for part in one.surveys()]
    n = len(one.task.data.test)
    first = _spread(seen[0], "loss_start", n, np.nan)
    attacked = np.isfinite(first)
    if not attacked.any() or one.threat.eps <= 0:
        return []
    zero = np.all([rows.spread("grad_zero", n, True) for rows in seen], axis=0) & attacked
    nan = np.any([rows.spread("grad_nan", n, False) for rows in seen], axis=0) & attacked
    flat = one.rows(found, "flat")
    hidden = 0 if flat is None else int(flat["moved"].sum())
    out = [sanity.gradients_nonzero(one.prefix, int(attacked.sum()), int(zero.sum()), hidden, int(nan.sum()))]
    steep = attacked & ~zero & _able(one)
    if steep.any():
        ends = np.max([_spread(rows, "loss_end", n, -np.inf) for rows in seen], axis=0)
        broken = one.broken_by(found, one.surveys())
        out.append(sanity.loss_rises(one.prefix, first[steep], ends[steep], broken[steep]))
    return out


def _spread(rows: Merged, name: str, n: int, fill: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return rows.spread(name, n, fill).astype(np.float64)


def _noise(one: Attacked, found: Found) -> list[Evidence]:
    noise = one.rows(found, NOISE)
    if noise is None or not len(noise.positions):
        return []
    rounds = one.broken_by(found, one.evaluated())
    return [sanity.beats_noise(one.prefix, noise["broken"], rounds[noise.positions])]


def _doubled(one: Attacked, found: Found) -> list[Evidence]:
    """Judge the last doubling of the budget: what it broke, further doublings might, too."""
    # The first focus is no doubling of what was spent before it.
    if sum(each.name.startswith("focus") for each in one.rounds) < 2:
        return []
    before = one.broken_by(found, [one.rounds[-1].name])
    return [sanity.doubled(one.prefix, int(before.sum()), len(before))]


def _again(one: Attacked, found: Found) -> list[Evidence]:
    longer = one.rows(found, AGAIN)
    if longer is None or not len(longer.positions):
        return []
    stood = float(np.mean(one.standing(found, (*one.evaluated(), NOISE))))
    return [sanity.converged(one.prefix, longer["broken"], stood)]


def _square(one: Attacked, found: Found) -> list[Evidence]:
    """Judge what Square broke of the samples that stood; where it was sent to all of them, of all."""
    n = len(one.task.data.test)
    broken, looked = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    for part in (SQUARE, REST):
        rows = one.rows(found, part)
        if rows is not None:
            broken |= rows.spread("broken", n, False)
            looked[rows.positions] = True
    if not looked.any():
        return []
    stood = float(np.mean(one.standing(found, one.evaluated())))
    return [sanity.gradient_free(one.prefix, broken[looked], stood, one.task.confidence)]


def _slope(one: Attacked, found: Found) -> list[Evidence]:
    rows = one.rows(found, "slope")
    if rows is None or one.threat.eps <= 0:
        return []
    correlation = rows["correlation"]
    known = np.isfinite(correlation)
    return [sanity.gradient_true(one.prefix, correlation[known])] if known.any() else []
