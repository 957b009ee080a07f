"""The stages of the robustness check in one norm: evaluation, tests of the attacks, and what these call for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from audit.attacks import sanity
from audit.attacks.base import Attack, AttackOutput, verify
from audit.attacks.geometry import Norm, ThreatModel
from audit.attacks.noise import UniformNoise
from audit.checks import (
    robustness_bracket,
    robustness_called,
    robustness_curve,
    robustness_jumps,
    robustness_norms,
    robustness_random,
    robustness_surrogate,
)
from audit.checks.base import Arrays, Block, Found, Stage, Task
from audit.checks.robustness_evidence import masked, suspicious, unfinished
from audit.checks.robustness_random import as_attacked, confirmed
from audit.checks.robustness_state import (
    AGAIN,
    CERTIFICATE,
    CURVE,
    DECIDED,
    FEW,
    JUMPS,
    LONGER,
    MAJORITY,
    MENDED,
    NOISE,
    REPEAT,
    REST,
    SQUARE,
    SURROGATE,
    TRANSFER,
    TRANSFERRED,
    Attacked,
    output_spread,
    right_at_first,
    spread_over,
    tolerance,
)
from audit.errors import AuditError
from audit.evaluations.accuracy import rounds_of
from audit.evaluations.base import ARRAYS, Job, Profile, Round
from audit.evaluations.exhaustive import exhaustive
from audit.model.batching import is_out_of_memory
from audit.model.wrapper import Model

QUERIES = {"quick": 100, "standard": 300, "thorough": 1000, "exhaustive": 2000}
# How many samples each test of the attacks looks at. What they find there sends them to all samples, so that few suffice.
LOOKED_AT = {"quick": 32, "standard": 32, "thorough": 32, "exhaustive": 64}
NOISED = SLOPED = 128  # cheap tests: enough to see a share of 5 %
ALONE = 16
ASKED_PASSES = 1000.0  # what an attack that was asked for may cost a sample: unknown beforehand
EXHAUSTIVE_SECONDS = 1800.0  # for the samples that the bracket leaves open, where no budget is stated
MESSAGE = 200  # characters kept of what stopped an attack


def attacked(task: Task, norm: Norm, threat: ThreatModel) -> Attacked:
    """Return the evaluation of one norm, with the names of all that runs."""
    options = task.options
    surveys = options.restarts
    if task.model.task == "regression":
        surveys = max(2, surveys or 2)  # one run up and one down
    profile = cast(Profile, task.profile)
    rounds = rounds_of(
        options.evaluation,
        threat,
        profile=profile,
        classes=task.model.classes,
        steps=options.steps,
        surveys=surveys,
        step_size=options.step_size,
        seed=task.seed,
    )
    more = (NOISE, AGAIN, LONGER, SQUARE, REST, *((CURVE,) if options.curve else ()))
    final = exhaustive(seed=task.seed) if profile == "exhaustive" and norm != "l0" else []
    one = Attacked(task, norm, threat, tuple(rounds), more, tuple(final))
    return replace(one, more=(*more, *robustness_called.names(one)))


def stages(one: Attacked) -> list[Stage]:
    """List the stages of one norm."""
    task, threat = one.task, one.threat
    few = LOOKED_AT[task.profile]
    noise = UniformNoise(threat.norm, threat.eps, draws=task.options.noise_draws, seed=task.seed)
    queries = task.options.queries or QUERIES[task.profile]
    again, square = robustness_norms.longer(one), robustness_norms.by_outputs(one, queries)
    rounds = one.evaluated()
    out = [
        *(robustness_bracket.stages(one) if task.options.certify else []),
        *_rounds(one),
        # Noise is asked of samples that the rounds may have broken, too: how much it breaks is held against what they did.
        attack_stage(one, NOISE, noise, threat, float(noise.draws), after=(), most=NOISED),
        attack_stage(one, AGAIN, again, threat, 4.0 * robustness_norms.LONGER_STEPS, after=(*rounds, NOISE), most=few),
        attack_stage(one, SQUARE, square, threat, float(queries), after=rounds, most=few),
        _flat(one),
        _slope(one),
        robustness_jumps.stage(one),
    ]
    if task.options.curve:
        smallest = robustness_curve.closest(one)
        planned = attack_stage(one, CURVE, smallest, threat, 2.0 * robustness_curve.STEPS[one.profile], after=())
        out.append(robustness_curve.everyone(one, planned))
    looked = (*rounds, NOISE, AGAIN, SQUARE, "flat", "slope", "unbounded")
    out += _called(one, again, square, float(queries), looked)
    before: tuple[str, ...] = (*rounds, *one.more)
    for part, attack in one.asked().items():
        # What was asked for runs on all that stands, for its answer is wanted; our own on enough to test the evaluation.
        out.append(attack_stage(one, part, attack, threat, ASKED_PASSES, after=before))
        before = (*before, part)
    # Radius as wide as the box: a working gradient attack then reaches any corner.
    unbounded, wide = robustness_norms.boundless(one)
    out += _final(one, before)
    out += [
        attack_stage(one, "unbounded", unbounded, wide, 2.0 * robustness_norms.LONGER_STEPS, after=(), most=NOISED),
        _alone(one),
    ]
    return [robustness_random.stage(one), *(_after_repeat(one, stage) for stage in out)]


def _after_repeat(one: Attacked, stage: Stage) -> Stage:
    """Put a stage after those that say whether outputs are random; leave it out then, where it only tests the attacks.

    What the attacks of a random network find is never taken for its robustness, and each of their passes costs ten.
    """
    chosen = stage.select

    def select(found: Found) -> NDArray[np.int64]:
        if chosen is None or robustness_random.is_random(one, found):
            return np.arange(0)
        return chosen(found)

    first = (one.id(REPEAT), MAJORITY, "repeatability.twice", "repeatability.alone")
    # AutoAttack's own Square has the name of the test, and takes its place: a round is never left out.
    tests = {AGAIN, SQUARE, "flat", "slope", JUMPS, "unbounded", "alone"} - {*one.evaluated()}
    moot = stage.id in {one.id(part) for part in tests}
    return replace(stage, after=(*stage.after, *first), select=select if moot else chosen)


def _called(one: Attacked, again: Attack, square: Attack, queries: float, looked: tuple[str, ...]) -> list[Stage]:
    """Return the stages that run only where the evidence of the stages in `looked` calls for them.

    Where a longer attack found more on few samples, that one on all that stands. A surrogate, on few samples, at all profiles
    but the quickest. Where gradients are masked: the attack on mended gradients, Square and transfer on all that stands, and
    decisions alone for what is left.
    """
    threat, out = one.threat, [robustness_surrogate.stage(one, looked)]
    on_surrogate = robustness_surrogate.on_surrogate(one)

    def add(part: str, attack: Attack | None, passes: float, only: Callable[[Found], bool], most: int | None = None) -> None:
        nonlocal looked
        if attack is None:
            return
        made = on_surrogate if part in (TRANSFER, TRANSFERRED) else None
        out.append(attack_stage(one, part, attack, threat, passes, after=looked, only=only, most=most, made=made))
        looked = (*looked, part)

    def hidden(found: Found) -> bool:
        return masked(one, found)

    def fitted(found: Found) -> bool:
        return robustness_surrogate.available(one, found)

    transferred = robustness_called.transferred(one)
    looked = (*looked, SURROGATE)
    add(LONGER, again, 0.0, lambda found: unfinished(one, found))
    # Examples of a network that the user gives are tried on all that stands: their answer is wanted.
    few = LOOKED_AT[one.task.profile] if one.task.options.surrogate is None else None
    add(TRANSFER, transferred, 10.0, fitted, few)
    add(MENDED, robustness_called.through(one), 0.0, hidden)
    add(REST, square, queries, lambda found: suspicious(one, found))
    add(TRANSFERRED, transferred, 0.0, lambda found: fitted(found) and masked(one, found))
    add(DECIDED, robustness_called.decided(one), 0.0, hidden)
    return out


def _rounds(one: Attacked) -> list[Stage]:
    """Return a stage for each round of the evaluation; each knows what the ones before it found."""
    out: list[Stage] = []
    before: tuple[str, ...] = ("predictions.test", one.id(FEW), one.id(CERTIFICATE))
    for each in one.rounds:
        out.append(
            Stage(
                id=one.id(each.name),
                job=_round_job(one, each),
                cost_of=one.id("accuracy"),
                select=_chosen(one, each),
                after=before,
                passes=each.passes,
                holds_inputs=True,
            )
        )
        before = (*before, one.id(each.name))
    return out


def _final(one: Attacked, before: tuple[str, ...]) -> list[Stage]:
    """Return a stage for each round that goes on with what is open, one sample a job, when all else is done."""
    task = one.task
    patience = (task.budget or EXHAUSTIVE_SECONDS) / len(task.options.norm) / max(1, len(one.final))
    out: list[Stage] = []
    for each in one.final:
        planned = Stage(
            id=one.id(each.name),
            job=_round_job(one, each),
            cost_of=one.id("accuracy"),
            select=_chosen(one, each),
            after=("predictions.test", one.id(FEW), one.id(CERTIFICATE), *(one.id(other) for other in before)),
            passes=0.0,  # on few samples, and bounded by the clock
            holds_inputs=True,
            block=1,
            patience=patience,
            last=True,
        )
        out.append(planned)
        before = (*before, each.name)
    return out


def _chosen(one: Attacked, each: Round) -> Callable[[Found], NDArray[np.int64]]:
    return lambda found: np.sort(each.choose(one.known(found, final=each in one.final)))


def _round_job(one: Attacked, each: Round) -> Callable[[Block], Arrays]:
    task, threat = one.task, one.threat

    def job(block: Block) -> Arrays:
        moved, model = tolerance(task, block.earlier), as_attacked(one, block, each.name)
        given = Job(model, block.x, block.y, block.ids, block.positions, threat, moved)
        found = each(given, one.known(block.earlier, final=each in one.final))
        return _with_answers(task, model, confirmed(one, block, model, found, each.name, threat))

    return job


def attack_stage(
    one: Attacked,
    part: str,
    attack: Attack,
    threat: ThreatModel,
    passes: float,
    *,
    after: tuple[str, ...],
    most: int | None = None,
    only: Callable[[Found], bool] | None = None,
    made: Callable[[Attack, Block], Attack] | None = None,
) -> Stage:
    """Plan an attack on what is right, uncertified and unbroken by the stages in `after`: on at most `most` of it, where given.

    Where `only` is given, the attack runs only if it says so of what was found; `made` makes the attack of a block from it.
    """
    task, may_stop = one.task, {*one.asked_for(), MENDED}

    def run(attack: Attack, block: Block, model: Model) -> AttackOutput:
        moved = tolerance(task, block.earlier)
        return attack(model, block.x, block.y, ids=block.ids, threat=threat, tolerance=moved)

    def job(block: Block) -> Arrays:
        failed, model = "", as_attacked(one, block, part)
        own = attack if made is None else made(attack, block)
        try:
            with robustness_called.asked(one, block, part) as mended:
                out = run(own, block, mended)
        except Exception as error:
            # An attack of others, or a network that is run in another way, may stop at anything; what the rest found is kept.
            if part not in may_stop or isinstance(error, AuditError) or is_out_of_memory(error):
                raise
            failed = f"{type(error).__name__}: {error}"[:MESSAGE]
            out = run(UniformNoise(threat.norm, threat.eps, draws=0), block, model)
        arrays = {name: getattr(out, "success" if name == "broken" else name).cpu().numpy() for name in ARRAYS}
        if part == MENDED:
            arrays = _held(one, block, model, arrays)
        arrays = confirmed(one, block, model, arrays, part, threat)
        stopped = np.full(len(block.ids), failed, dtype=f"U{MESSAGE}")
        return {**_with_answers(task, model, arrays), "failed": stopped}

    def select(found: Found) -> NDArray[np.int64]:
        if only is not None and not only(found):
            return np.arange(0)
        finders = one.finders()
        positions = np.flatnonzero(one.standing(found, [p for p in after if p in finders]))
        return positions[spread_over(len(positions), most or len(positions))]

    return Stage(
        id=one.id(part),
        job=job,
        cost_of=one.id("unbounded_breaks" if part == "unbounded" else "accuracy"),
        select=select,
        after=("predictions.test", one.id(FEW), one.id(CERTIFICATE), *(one.id(other) for other in after)),
        passes=passes,
        holds_inputs=True,
    )


def _held(one: Attacked, block: Block, model: Model, arrays: Arrays) -> Arrays:
    """Ask the network as it is of what was found on mended gradients."""
    task = one.task
    if not arrays["broken"].any():
        return arrays
    y = model.predict(block.x) if task.model.task == "regression" else block.y
    points = torch.as_tensor(arrays["x_adv"]).to(block.x)
    held = verify(model, block.x, y, points, one.threat, tolerance(task, block.earlier) or 0.0).cpu().numpy()
    broken = arrays["broken"] & held
    lost = arrays["broken"] & ~held
    return {
        **arrays,
        "broken": broken,
        "distance": np.where(lost, np.inf, arrays["distance"]),
        "rejected": arrays["rejected"] | lost,
    }


def _with_answers(task: Task, model: Model, arrays: Arrays) -> Arrays:
    """Add what the network says of each example."""
    hit = arrays["broken"] & (arrays["distance"] > 0)
    after = np.full((len(hit), *_answer_shape(task)), np.nan)
    if hit.any():
        after[hit] = model.predict(arrays["x_adv"][hit]).cpu().double().numpy()
    return {**arrays, "after": after}


def _answer_shape(task: Task) -> tuple[int, ...]:
    return (task.model.classes or 0,) if task.model.task == "multilabel" else ()


def _flat(one: Attacked) -> Stage:
    """Look closer at the samples whose gradient was zero wherever the surveys looked."""
    task, surveys = one.task, one.surveys()

    def job(block: Block) -> Arrays:
        model = as_attacked(one, block, "flat", fixed=True)
        moved = sanity.outputs_move(model, block.x, block.ids, one.threat, output_spread(block.earlier), seed=task.seed)
        return {"moved": moved.cpu().numpy()}

    def select(found: Found) -> NDArray[np.int64]:
        n = len(task.data.test)
        seen = [found[one.id(part)] for part in surveys]
        zero = np.all([rows.spread("grad_zero", n, True) for rows in seen], axis=0)
        return np.flatnonzero(zero & seen[0].spread("grad_zero", n, False))

    return Stage(
        id=one.id("flat"),
        job=job,
        cost_of=one.id("gradients_nonzero"),
        select=select,
        after=("predictions.test", *(one.id(part) for part in surveys)),
        passes=0.1,
    )


def _slope(one: Attacked) -> Stage:
    """Hold the gradient against what the loss really does."""
    task = one.task

    def job(block: Block) -> Arrays:
        model = as_attacked(one, block, "slope", fixed=True)
        told = sanity.gradient_correlation(model, block.x, block.y, block.ids, one.threat, seed=task.seed)
        unseen = sanity.moves_unseen(model, block.x, block.y, block.ids, one.threat, seed=task.seed)
        return {"correlation": told.cpu().numpy(), "unseen": unseen.cpu().numpy()}

    def select(found: Found) -> NDArray[np.int64]:
        positions = np.flatnonzero(right_at_first(task, found))
        return positions[spread_over(len(positions), SLOPED)]

    return Stage(
        id=one.id("slope"),
        job=job,
        cost_of=one.id("gradient_true"),
        select=select,
        after=("predictions.test",),
        passes=2.0 * sanity.SLOPE_DRAWS * len(sanity.SLOPE_LENGTHS) + 4.0 * sanity.UNSEEN_DRAWS,
    )


def _alone(one: Attacked) -> Stage:
    """Run some of the examples one at a time: what holds in a batch alone is no example."""
    task, finders = one.task, one.finders()

    def job(block: Block) -> Arrays:
        examples = block.x.clone()
        for part in reversed(finders):
            rows = block.earlier[one.id(part)]
            here = np.flatnonzero(np.isin(block.positions, rows.positions[rows["broken"] & (rows["distance"] > 0)]))
            if len(here):
                at = np.searchsorted(rows.positions, block.positions[here])
                examples[torch.from_numpy(here).to(examples.device)] = torch.as_tensor(rows["x_adv"][at]).to(examples)
        model = as_attacked(one, block, "alone")
        moved = tolerance(task, block.earlier) or 0.0
        held = sanity.broken_alone(model, block.x, block.y, examples, one.threat, moved)
        return {"held": held.cpu().numpy()}

    def select(found: Found) -> NDArray[np.int64]:
        positions = np.flatnonzero(right_at_first(task, found) & one.broken_by(found, finders))
        return positions[spread_over(len(positions), ALONE)]

    return Stage(
        id=one.id("alone"),
        job=job,
        cost_of=one.id("holds_alone"),
        select=select,
        after=("predictions.test", *(one.id(part) for part in finders)),
        passes=0.1,
    )
