"""Whether the attacks of the robustness check can be believed: their evidence, and when it calls for other attacks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from audit.attacks import sanity
from audit.attacks.geometry import movable
from audit.attacks.goal import Goal
from audit.checks import robustness_jumps, robustness_random
from audit.checks.base import Found, Merged
from audit.checks.robustness_state import (
    AGAIN,
    LONGER,
    MENDED,
    NOISE,
    REST,
    SQUARE,
    TRANSFER,
    TRANSFERRED,
    Attacked,
    Bits,
    right_at_first,
)
from audit.result import Evidence

FEW_POINTS = 100.0  # noise and Square look at about as many
FEW_COLUMNS = 6  # a ball in so many has up to 64 corners

Floats = NDArray[np.float64]


def suspicious(one: Attacked, found: Found) -> bool:
    """Tell whether anything says that gradients hide what a black-box attack would find."""
    if robustness_random.is_random(one, found):
        return masked(one, found)
    square = one.rows(found, SQUARE)
    if square is not None and bool(square["broken"].any()):
        return True
    weak = [*_noise(one, found), *_again(one, found)]
    return any(not e.ok for e in weak) or masked(one, found)


def unfinished(one: Attacked, found: Found) -> bool:
    """Tell whether a longer attack, on a few samples, or the last doubling found so much more that all that stands needs it."""
    return any(not e.ok for e in [*_again(one, found), *_doubled(one, found)])


def masked(one: Attacked, found: Found) -> bool:
    """Tell whether gradients are missing or false, or attacks that use none of the network's own find more.

    Where outputs are random only a gradient that is missing says so: a loss that does not rise may be that of another draw.
    """
    if robustness_random.is_random(one, found):
        return any(not e.ok for e in _of_gradients(one, found)[:1])
    said = [*_of_gradients(one, found), *_slope(one, found), *_found(one, found)]
    said += [*_square(one, found), *_transfer(one, found)]
    return any(not e.ok for e in said)


def evidence(one: Attacked, found: Found, broken: Bits) -> list[Evidence]:
    """Return all evidence of one norm; `broken` holds every sample that an attack broke."""
    task, prefix = one.task, one.prefix
    out = [_verified(one, found), *robustness_random.evidence(one, found), *_of_gradients(one, found), *_noise(one, found)]
    out += [
        *_doubled(one, found),
        *_again(one, found, (AGAIN, LONGER)),
        *_square(one, found),
        *_transfer(one, found),
        *_mended(one, found),
    ]
    free = found[one.id("unbounded")]
    out += [*_found(one, found), *_slope(one, found), *robustness_jumps.evidence(one, found)]
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
    confirmed = int((right_at_first(one.task, found) & one.broken_by(found, one.finders())).sum())
    return sanity.verified(one.prefix, confirmed, sum(int(found[one.id(part)]["rejected"].sum()) for part in one.evaluated()))


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
        first = _begun(one, found, first)
        ends = np.max([_spread(rows, "loss_end", n, -np.inf) for rows in seen], axis=0)
        broken = one.broken_by(found, one.surveys())
        out.append(sanity.loss_rises(one.prefix, first[steep], ends[steep], broken[steep]))
    return out


def _begun(one: Attacked, found: Found, first: Floats) -> Floats:
    """Return the loss that a climb counts from: where the ball has few corners, that of the sample, too.

    The surveys begin at a random corner, which of two, or of 32, may be the worst point already.
    """
    if int(one.threat.can_change(one.task.data.test.x.shape[1:]).sum()) > FEW_COLUMNS:
        return first
    if one.task.model.task == "regression":
        return first.clip(max=0.0)
    goal = Goal(one.task.model.task or "", torch.as_tensor(one.task.data.test.y).long())
    clean = goal.margin(torch.as_tensor(found["predictions.test"]["logits"])).double().numpy()
    counted: Floats = np.minimum(first, np.nan_to_num(clean, nan=np.inf))
    return counted


def _spread(rows: Merged, name: str, n: int, fill: float) -> Floats:
    return rows.spread(name, n, fill).astype(np.float64)


def _noise(one: Attacked, found: Found) -> list[Evidence]:
    noise = one.rows(found, NOISE)
    if noise is None or not len(noise.positions):
        return []
    rounds = one.broken_by(found, one.evaluated())
    return [sanity.beats_noise(one.prefix, noise["broken"], rounds[noise.positions])]


def _doubled(one: Attacked, found: Found) -> list[Evidence]:
    """Judge the last doubling of the budget: what it broke, further doublings might, too.

    That is the last focus, and the second half of the runs from outside the ball where there are any.
    """
    wide = [each.name for each in one.rounds if each.name.startswith("wide")]
    focus = [each.name for each in one.rounds if each.name.startswith("focus")]
    # The first of its kind is no doubling of what was spent before it.
    last = [*(wide[len(wide) // 2 :] if len(wide) > 1 else []), *(focus[-1:] if len(focus) > 1 else [])]
    if not last:
        return []
    broken = one.broken_by(found, last)
    return [sanity.doubled(one.prefix, int(broken.sum()), len(broken))]


def _again(one: Attacked, found: Found, parts: tuple[str, ...] = (AGAIN,)) -> list[Evidence]:
    """Judge what a longer attack broke of the samples that stood.

    Few samples send it to all that stands. What it found there is judged with theirs: of 32 alone, on which it gains 3 %, two
    or more are broken one time in four.
    """
    # What stood on the few is looked at again among all: each sample counts once.
    seen: dict[int, bool] = {}
    for rows in (one.rows(found, part) for part in parts):
        if rows is not None and len(rows.positions):
            hits = zip(rows.positions.tolist(), rows["broken"].tolist(), strict=True)
            seen |= {at: hit or seen.get(at, False) for at, hit in hits}
    if not seen:
        return []
    stood = float(np.mean(one.standing(found, (*one.evaluated(), NOISE))))
    return [sanity.converged(one.prefix, np.array([*seen.values()]), stood)]


def _square(one: Attacked, found: Found) -> list[Evidence]:
    """Judge what Square broke of the samples that stood; where it was sent to all of them, of all."""
    return _beyond(one, found, (SQUARE, REST), sanity.gradient_free)


def _transfer(one: Attacked, found: Found) -> list[Evidence]:
    return _beyond(one, found, (TRANSFER, TRANSFERRED), sanity.transfer)


def _mended(one: Attacked, found: Found) -> list[Evidence]:
    return _beyond(one, found, (MENDED,), sanity.mended)


def _beyond(
    one: Attacked, found: Found, parts: tuple[str, ...], judge: Callable[[str, Bits, float, float], Evidence]
) -> list[Evidence]:
    """Judge what attacks that follow no gradient of the network's own broke of the samples that the rounds left standing."""
    n = len(one.task.data.test)
    broken, looked = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    for part in parts:
        rows = one.rows(found, part)
        if rows is not None:
            broken |= rows.spread("broken", n, False)
            looked[rows.positions] = True
    if not looked.any():
        return []
    # AutoAttack has a Square of its own: what it broke stood before it.
    stood = float(np.mean(one.standing(found, [part for part in one.evaluated() if part not in parts])))
    return [judge(one.prefix, broken[looked], stood, one.task.confidence)]


def _found(one: Attacked, found: Found) -> list[Evidence]:
    """Judge whether a gradient was met anywhere: by the attack without a radius, by the surveys, or where slopes were taken."""
    free = one.rows(found, "unbounded")
    if free is None or not len(free.positions):
        return []
    n = len(one.task.data.test)
    zero = free.spread("grad_zero", n, True)
    for part in one.surveys():
        rows = one.rows(found, part)
        if rows is not None:
            zero &= rows.spread("grad_zero", n, True) | ~np.isfinite(_spread(rows, "loss_start", n, np.nan))
    slope = one.rows(found, "slope")
    if slope is not None:
        # A correlation that is no number or exactly 0 is that of a gradient of zero.
        zero &= np.nan_to_num(_spread(slope, "correlation", n, 0.0)) == 0
    return [sanity.gradient_found(one.prefix, zero[free.positions])]


def _slope(one: Attacked, found: Found) -> list[Evidence]:
    rows = one.rows(found, "slope")
    if rows is None or one.threat.eps <= 0:
        return []
    out: list[Evidence] = []
    for name, judge in (("correlation", sanity.gradient_true), ("unseen", sanity.gradient_whole)):
        known = np.isfinite(rows[name])
        out += [judge(one.prefix, rows[name][known])] if known.any() else []
    return out
