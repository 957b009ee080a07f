"""Tests of an attack itself: whether the robustness that it found can be believed, or something kept it from looking.

Each takes what the attacks of a run returned and gives one piece of evidence. None can lower a robust accuracy; each can keep
it from being taken for more than it is.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit import stats
from audit.attacks.base import output_of
from audit.attacks.geometry import Ball, ThreatModel, l2_norm, per_sample, random_in_ball
from audit.attacks.goal import Goal, as_columns, fixed_loss
from audit.model.batching import in_batches
from audit.model.wrapper import Model
from audit.result import Evidence

FLAT_DRAWS = 10
# Activations rounded to eight bits, straight through, make steps that only long directions average: an honest such network had
# a median of 0.84 where the longest was 0.2, and has 0.96 where it is 0.5.
SLOPE_DRAWS, SLOPE_LENGTHS = 20, (0.5, 0.2, 0.05, 0.01)
# Honest networks of seven kinds had medians from 0.91 (adversarially trained, at its own radius) to 1.00; backwards that were
# shifted, transposed, random, noisy, partly detached, or of a blurred or other network from -0.9 to 0.85.
TRUE_MEDIAN, TRUE_SHARE = 0.88, 0.9
UNSEEN_DRAWS, UNSEEN_LENGTH = 10, 0.01
# Max pooling of the input itself, whose values tie at the edge of the box: up to 23 % of the samples; other honest networks up
# to 3 %; a fifth of the inputs cut off 88 %, and an eighth of them, at the edge of the picture, 53 %.
UNSEEN, UNSEEN_SHARE = 0.2, 0.4
HIDDEN = 0.01  # share of samples whose gradient something may hide: the robust accuracy is off by no more than that
SOMEWHERE = 0.5  # share of samples that must meet a gradient somewhere: hard labels 0 to 3 %, dead units 90 %, others all
FOLLOWED = 0.95  # share of samples on which following the gradient must lead somewhere; a few sit on a ridge
FEWEST = 5  # samples among which a single one may be an exception
FALLS = 0.05  # of all samples
MASKED = 0.02  # of all samples: what a gradient-free attack may break for sure, and gradients not
MISSED = 0.01  # share of samples that noise may break and the attack not: a few lie on the boundary itself
DOUBLED = 0.01  # of all samples: what the last doubling of the budget may break; it must be more than one sample, too
FURTHER = (0.0, 1e-4, 1e-2)  # share of its change by which an example may be moved on to hold at batch size 1
SATURATED = 0.01  # share of samples whose probability may be exactly 1

Bits = NDArray[np.bool_]
Floats = NDArray[np.floating]


def outputs_move(model: Model, x: Tensor, ids: Tensor, threat: ThreatModel, spread: Floats, *, seed: int) -> Tensor:
    """Tell for which inputs the output differs from the clean one at a random point without a gradient, shape (n,).

    Asked of inputs without a gradient: where the output does not move either, the network is flat there, as dead units make
    it, and a gradient of zero tells the truth. Where it moves and still has no gradient, something hides it; units that wake
    at the edge of the ball have one there.

    Parameters
    ----------
    spread
        Standard deviation of each output over the clean samples, shape (classes,) or (1,): what counts as a move is measured
        by it, so that outputs of any size can be asked.
    """
    still = 1e-6 * torch.as_tensor(spread, dtype=x.dtype, device=x.device)

    def moves(inputs: Tensor, batch_ids: Tensor) -> tuple[Tensor, ...]:
        ball = threat.on(inputs)
        low, high = ball.limits(inputs)
        clean = as_columns(output_of(model, inputs))
        moved = torch.zeros(len(inputs), dtype=torch.bool, device=inputs.device)
        for draw in range(FLAT_DRAWS):
            noise = random_in_ball(batch_ids, tuple(inputs.shape[1:]), ball, seed=seed, purpose="flat", draw=draw).to(inputs)
            # Every second point lies at a corner of the L∞ ball, where a coarse quantiser is the likeliest to switch.
            noise = noise.sign() * ball.eps if threat.norm == "linf" and draw % 2 else noise
            point = torch.minimum(torch.maximum(inputs + noise * ball.unit(), low), high)
            output = as_columns(output_of(model, point))
            elsewhere = ~((output - clean).abs() <= 1e-5 * clean.abs() + still).all(dim=1)
            if bool(elsewhere.any()):
                moved |= elsewhere & _flat_at(model, point, (output - clean).sign())
        return (moved,)

    with model.session():
        return in_batches(moves, (x, ids), model.batch_size)[0]


def _flat_at(model: Model, point: Tensor, sign: Tensor) -> Tensor:
    """Tell where the sum of the outputs, each with its sign, has a gradient of zero, shape (n,)."""
    gradient, _ = model.gradient(lambda output: (as_columns(output) * sign).sum(dim=1), point)
    return ~gradient.flatten(1).any(dim=1)


def gradient_correlation(model: Model, x: Tensor, y: Tensor, ids: Tensor, threat: ThreatModel, *, seed: int) -> Tensor:
    """Correlate the gradient with what the loss really does, (n,); NaN where neither moves.

    At a random point of the ball, the change of the loss from ``−u`` to ``+u`` is held against ``gradient · u`` for random
    directions u of four lengths, from half to a hundredth of the radius: long ones show a gradient that is true only
    within a hair's breadth, short ones follow the kinks of an honest network. Each sample counts at its best length.
    """

    def correlate(inputs: Tensor, labels: Tensor, batch_ids: Tensor) -> tuple[Tensor, ...]:
        ball = threat.on(inputs)
        point = ball.around(inputs).random(batch_ids, seed=seed, purpose="slope.start")
        loss = fixed_loss(Goal(model.task or "", labels), output_of(model, point))
        gradient = model.gradient(loss, point)[0].nan_to_num(0.0, 0.0, 0.0)
        best = torch.full((len(inputs),), torch.nan, dtype=torch.float64, device=inputs.device)
        for length in SLOPE_LENGTHS:
            moved, told = [], []
            for draw in range(SLOPE_DRAWS):
                u = _direction(ball, inputs, batch_ids, seed, draw) * length
                moved.append(_moved(model, loss, point, u))
                told.append((gradient * u).flatten(1).sum(dim=1).double())
            a, b = torch.stack(moved), torch.stack(told)
            size = a.norm(dim=0) * b.norm(dim=0)
            flat = (a == 0).all(dim=0) & (b == 0).all(dim=0)
            found = torch.where(flat, torch.nan, (a * b).sum(dim=0) / size.clamp_min(1e-300))
            best = torch.fmax(best, found)
        return (best,)

    with model.session():
        return in_batches(correlate, (x, y, ids), model.batch_size)[0]


def moves_unseen(model: Model, x: Tensor, y: Tensor, ids: Tensor, threat: ThreatModel, *, seed: int) -> Tensor:
    """Return how much of the loss's moves comes by inputs whose gradient is exactly 0, float64 (n,); NaN where none moves it.

    At a random point of the ball, random small steps of these inputs alone are held against steps of all inputs: the ratio of
    the root mean squares of what they do to the loss. Inputs that a network ignores move nothing; where a gradient was cut off,
    the ratio is about the root of the share of the inputs that it was cut off for.
    """

    def compare(inputs: Tensor, labels: Tensor, batch_ids: Tensor) -> tuple[Tensor, ...]:
        ball = threat.on(inputs)
        point = ball.around(inputs).random(batch_ids, seed=seed, purpose="unseen.start")
        loss = fixed_loss(Goal(model.task or "", labels), output_of(model, point))
        unseen = model.gradient(loss, point)[0] == 0
        steps = [_direction(ball, inputs, batch_ids, seed, draw) * UNSEEN_LENGTH for draw in range(UNSEEN_DRAWS)]
        by_all = torch.stack([_moved(model, loss, point, u) for u in steps]).norm(dim=0)
        by_unseen = torch.stack([_moved(model, loss, point, torch.where(unseen, u, 0.0)) for u in steps]).norm(dim=0)
        # Without any gradient at all the question is another one: `gradients_nonzero`.
        asked = (by_all > 0) & ~unseen.flatten(1).all(dim=1)
        return (torch.where(asked, by_unseen / by_all.clamp_min(1e-300), torch.nan),)

    with model.session():
        return in_batches(compare, (x, y, ids), model.batch_size)[0]


def _direction(ball: Ball, inputs: Tensor, ids: Tensor, seed: int, draw: int) -> Tensor:
    """Return a random direction for each input, as long as the radius."""
    u = random_in_ball(ids, tuple(inputs.shape[1:]), ball, seed=seed, purpose="slope", draw=draw).to(inputs)
    if ball.norm == "linf":
        u = u.sign() * ball.eps
    elif ball.norm == "l2":
        u = u / per_sample(l2_norm(u), u) * ball.eps
    u = u * ball.unit()
    # Between whole numbers a network says nothing.
    return u if ball.rules is None else torch.where(ball.rules.integer | ball.rules.grouped, 0.0, u)


def _moved(model: Model, loss: Callable[[Tensor], Tensor], point: Tensor, u: Tensor) -> Tensor:
    """Return half of the change of the loss from ``−u`` to ``+u``, float64 (n,)."""
    return (loss(output_of(model, point + u)) - loss(output_of(model, point - u))).double() / 2


def gradient_whole(prefix: str, unseen: Floats) -> Evidence:
    """Ask whether inputs without a gradient leave the loss alone: what moves it unseen, no step up the loss ever uses."""
    share = float(np.mean(unseen >= UNSEEN))
    return Evidence(
        id=f"{prefix}.gradient_whole",
        ok=share <= UNSEEN_SHARE,
        value=share,
        detail=f"on {share:.0%} of {len(unseen)} samples inputs whose gradient is exactly 0 move the loss, small steps of them "
        f"at least {UNSEEN:.0%} as much as small steps of all ({UNSEEN_SHARE:.0%} of the samples may)",
        one_sided=True,
    )


def gradient_true(prefix: str, correlation: Floats) -> Evidence:
    """Ask whether the gradient says what the loss does: a wrong backward, or one that leaves inputs out, leads nowhere."""
    median, share = float(np.median(correlation)), float(np.mean(correlation >= 0.5))
    return Evidence(
        id=f"{prefix}.gradient_true",
        ok=median >= TRUE_MEDIAN and share >= TRUE_SHARE,
        value=median,
        detail=f"the gradient's slope and the loss's own change along random directions correlate by {median:.2f} in the "
        f"median of {len(correlation)} samples ({TRUE_MEDIAN} expected), and by 0.5 or more on {share:.0%} of them "
        f"({TRUE_SHARE:.0%} expected)",
        one_sided=True,
    )


def gradients_nonzero(prefix: str, attacked: int, zero: int, hidden: int, nan: int) -> Evidence:
    """Ask whether the attack had a gradient to follow: `hidden` samples had none though their output moves."""
    flatness = (
        f"; on {hidden} of them the output moves under random noise all the same, to where it is zero, too, as where something "
        f"hides it ({HIDDEN:.0%} of the samples may)"
    )
    broken = f"; it was NaN or infinite somewhere on {nan}" if nan else ""
    return Evidence(
        id=f"{prefix}.gradients_nonzero",
        ok=hidden + nan <= HIDDEN * attacked,
        value=max(0.0, 1 - (hidden + nan) / attacked),
        detail=f"the gradient was zero on {zero} of {attacked} attacked samples{flatness if hidden else ''}{broken}",
        one_sided=True,
    )


def gradient_found(prefix: str, zero: Bits) -> Evidence:
    """Ask whether the network has a gradient anywhere: hard labels and saturated outputs have next to none.

    Such a network moves under no small noise and breaks under large noise, as a robust one does; only here does it show.
    A gradient counts wherever one was met, near the sample or far out: many an honest network is flat far out, where all
    units are at rest, and others are so near the samples that nothing within the radius moves.
    """
    share = 1 - float(zero.mean())
    return Evidence(
        id=f"{prefix}.gradient_found",
        ok=share >= SOMEWHERE,
        value=share,
        detail=f"within the radius, or one as wide as the box, a gradient was met on {share:.1%} of {len(zero)} samples "
        f"({SOMEWHERE:.0%} expected)",
        one_sided=True,
    )


def loss_rises(prefix: str, start: Floats, end: Floats, broken: Bits) -> Evidence:
    """Ask whether following the gradient raised the loss; a sample that its random start broke had nothing left to raise."""
    rises = float(np.mean((end > start) | broken))
    return Evidence(
        id=f"{prefix}.loss_rises",
        ok=rises >= FOLLOWED or _but_one((end > start) | broken),
        value=rises,
        detail=f"the attack raised its loss on, or broke, {rises:.1%} of the samples with a gradient ({FOLLOWED:.0%} expected)",
        one_sided=True,
    )


def verified(prefix: str, confirmed: int, rejected: int) -> Evidence:
    """Ask whether successes held in a fresh forward; where they do not, the output is random or depends on the batch."""
    claimed = confirmed + rejected
    return Evidence(
        id=f"{prefix}.verified",
        ok=rejected <= MISSED * claimed,
        value=confirmed / claimed if claimed else 1.0,
        detail=f"{confirmed} of {claimed} adversarial examples held in a fresh forward (label, radius, box)",
    )


def beats_noise(prefix: str, by_noise: Bits, by_attack: Bits) -> Evidence:
    """Ask whether random noise, which needs no gradient, broke samples that the attack missed."""
    missed = by_noise & ~by_attack
    return Evidence(
        id=f"{prefix}.beats_noise",
        ok=int(missed.sum()) <= MISSED * len(missed) or _but_one(~missed),
        value=float(missed.mean()),
        detail=f"noise broke {int(by_noise.sum())} of {len(missed)} samples, the attack missed {int(missed.sum())} of them",
        one_sided=True,
    )


def unbounded_breaks(prefix: str, broken: Bits) -> Evidence:
    """Ask whether the attack breaks everything where the radius is as wide as the box: a gradient that works lets it."""
    share = float(broken.mean())
    return Evidence(
        id=f"{prefix}.unbounded_breaks",
        ok=share >= FOLLOWED or _but_one(broken),
        value=share,
        detail=f"with a radius as wide as the box the attack broke {share:.1%} of {len(broken)} samples "
        f"({FOLLOWED:.0%} expected)",
        one_sided=True,
    )


def _but_one(held: Bits) -> bool:
    """Tell whether all samples but one are as they should be: among few a single one is no share that says something."""
    return len(held) >= FEWEST and int((~held).sum()) <= 1


def converged(prefix: str, broken: Bits, standing: float) -> Evidence:
    """Ask whether a longer attack with two losses breaks samples that the run's own attack left standing.

    `standing` is the share of all samples that stood: what was missed counts by how far the robust accuracy would fall.
    """
    fall = float(broken.mean()) * standing
    return Evidence(
        id=f"{prefix}.converged",
        ok=fall <= FALLS,
        value=1 - float(broken.mean()),
        detail=f"a longer attack broke {int(broken.sum())} of {len(broken)} samples that still stood: on all of them the "
        f"robust accuracy would fall by {fall:.1%} (at most {FALLS:.0%} expected of an attack that was strong enough)",
        one_sided=True,
    )


def gradient_free(prefix: str, broken: Bits, standing: float, confidence: float) -> Evidence:
    """Ask whether an attack that needs no gradient breaks samples that the gradient attack left standing.

    `standing` is the share of all samples that stood. The fall of the robust accuracy must be shown, and not by chance: it is
    the lower end of its interval that counts, so that, where all samples stood, 2 of 20 accuse nobody and 7 of 128 do.
    """
    search = "a random search over few inputs" if prefix.endswith((".l1", ".l0")) else "Square"
    return _missed(f"{prefix}.gradient_free", f"{search}, which asks for outputs alone,", broken, standing, confidence)


def transfer(prefix: str, broken: Bits, standing: float, confidence: float) -> Evidence:
    """Ask whether examples made on a surrogate break samples that the gradient attack left standing; see `gradient_free`.

    A surrogate's gradients say nothing of the target's own, so that they find less, unless the target hides its own
    (Athalye et al. 2018, "Obfuscated Gradients", section 3.1).
    """
    return _missed(f"{prefix}.transfer", "examples that were made on a surrogate network", broken, standing, confidence)


def mended(prefix: str, broken: Bits, standing: float, confidence: float) -> Evidence:
    """Ask whether gradients through approximations of what cuts them break more than the true ones; see `gradient_free`."""
    return _missed(f"{prefix}.mended", "an attack with the backward pass approximated", broken, standing, confidence)


def _missed(name: str, who: str, broken: Bits, standing: float, confidence: float) -> Evidence:
    k, n = int(broken.sum()), len(broken)
    fall = (stats.clopper_pearson(k, n, confidence).low or 0.0) * standing
    return Evidence(
        id=name,
        ok=fall <= MASKED,
        value=1 - k / n,
        detail=f"{who} broke {k} of {n} samples that attacks by gradient left standing: on all of them the robust accuracy "
        f"would fall by at least {fall:.1%} (at most {MASKED:.0%} expected where gradients are true)",
        one_sided=True,
    )


def doubled(prefix: str, broken: int, n: int) -> Evidence:
    """Ask whether the last doubling of the budget still broke samples, so that another might."""
    fall = broken / n
    return Evidence(
        id=f"{prefix}.doubled",
        ok=broken <= 1 or fall <= DOUBLED,
        value=fall,
        detail=f"the last doubling of the budget broke {broken} more of {n} samples ({fall:.1%}; at most {DOUBLED:.0%} "
        "expected where yet another would change nothing)",
        one_sided=True,
    )


def broken_alone(model: Model, x: Tensor, y: Tensor, examples: Tensor, threat: ThreatModel, tolerance: float) -> Tensor:
    """Tell which examples break their samples when each is the only one in its batch, shape (n,).

    Attacks of minimum norm end on the boundary itself, where another kernel may round to the other side. So an example holds,
    too, where one that lies a little further the same way does, and is allowed.
    """
    held = torch.zeros(len(examples), dtype=torch.bool, device=examples.device)
    with model.session():
        for i in range(len(examples)):
            clean, example = x[i : i + 1], examples[i : i + 1]
            label = output_of(model, clean) if model.task == "regression" else y[i : i + 1].long()
            goal, region = Goal(model.task or "", label, tolerance), threat.on(clean).around(clean)
            for further in FURTHER:
                point = region.clip(example + further * (example - clean)) if further else example
                held[i] = goal.broken(output_of(model, point))[0] & region.ball.allows(clean, point)[0]
                if bool(held[i]):
                    break
    return held


def holds_alone(prefix: str, held: Bits) -> Evidence:
    """Ask whether examples break their samples at batch size 1, too: what holds in a batch alone is rounding, or a leak."""
    lost = int((~held).sum())
    return Evidence(
        id=f"{prefix}.holds_alone",
        # One example may lie on the boundary itself, where another kernel rounds to the other side.
        ok=lost <= 1,
        value=float(held.mean()),
        detail=f"{int(held.sum())} of {len(held)} adversarial examples broke their samples when run one at a time, too",
    )


def unsaturated(prefix: str, logits: Floats) -> Evidence:
    """Ask whether outputs that are probabilities were rounded to 0 and 1, where no gradient is left."""
    z = logits[np.isfinite(logits).all(axis=1)].astype(np.float64)
    top = z.max(axis=1, initial=-np.inf)
    given = bool(len(z)) and bool((z >= 0).all()) and np.allclose(z.sum(axis=1), 1, atol=1e-4)
    logged = bool(len(z)) and bool((z <= 1e-6).all()) and np.allclose(np.exp(z).sum(axis=1), 1, atol=1e-4)
    share = float(np.mean((top if given else np.exp(top)) >= 1)) if given or logged else 0.0
    kind = "probabilities" if given else "logarithms of probabilities" if logged else "no probabilities"
    return Evidence(
        id=f"{prefix}.unsaturated",
        ok=share <= SATURATED,
        value=1 - share,
        detail=f"the outputs are {kind}"
        + (f", and exactly 0 and 1 on {share:.1%} of the samples ({SATURATED:.0%} expected)" if given or logged else ""),
        one_sided=True,
    )


def bracket_consistent(prefix: str, both: list[int]) -> Evidence:
    """Ask whether no sample is certified and broken at once: either the bound or the attack would be wrong."""
    named = f" (samples {', '.join(map(str, both[:5]))})" if both else ""
    return Evidence(
        id=f"{prefix}.bracket_consistent",
        ok=not both,
        value=float(len(both)),
        detail=f"{len(both)} samples are certified and broken at once{named}: none may be",
    )
