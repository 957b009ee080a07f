"""Networks whose outputs are random: attacked through the mean of many draws, and broken where most fresh draws are wrong.

One forward of a random network is one toss of a coin: a sample that is right nineteen times of twenty is soon seen to be wrong
once. Where two forwards disagree, every stage of the check therefore asks the mean of `DRAWS` forwards, of which the gradient
is that of the expectation (Athalye et al. 2018). A sample counts as right before the attack where at least half of `FRESH`
draws say so, and as broken by it where more of them are wrong, of those that no attack has seen, than chance would explain.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from audit.attacks.base import output_of
from audit.attacks.expectation import Around, Expectation, beyond_chance, seeded, wrong_share
from audit.attacks.geometry import ThreatModel
from audit.attacks.goal import Goal
from audit.attacks.steps import observe, step
from audit.checks.base import Arrays, Block, Found, Stage, Task, answers_twice, spread_positions
from audit.checks.robustness_state import LAYERS, MAJORITY, REPEAT, Attacked, tolerance
from audit.data.noise import block_seed
from audit.model.batching import in_batches
from audit.model.wrapper import Model
from audit.result import Evidence

DRAWS = 10  # forwards whose mean an attack asks for
FRESH = {"quick": 40, "standard": 100, "thorough": 100, "exhaustive": 200}  # draws that decide whether a sample is broken
FURTHER, FURTHER_STEP = 12, 0.3  # steps from the edge of the mean, the first so many radii long
ASKED_TWICE = 64
SHOWN_LAYERS = 8  # samples with which layers are looked at


def shared(task: Task) -> list[Stage]:
    """Return the stages that serve every norm: which samples a random network mostly gets right, and what its layers do."""

    def majority(block: Block) -> Arrays:
        if task.model.task == "regression" or not clean_differ(task, block.earlier):
            return {"right": np.ones(len(block.ids), dtype=np.bool_)}
        share = wrong_share(task.model, block.x, block.y, draws=FRESH[task.profile], **_seeds(task, MAJORITY, block))
        return {"right": (share <= 0.5).cpu().numpy()}

    def everyone(found: Found) -> NDArray[np.int64]:
        return np.arange(len(task.data.test) if clean_differ(task, found) else 0)

    mostly = Stage(
        id=MAJORITY,
        job=majority,
        cost_of="robustness.repeatable",
        select=everyone,
        after=("predictions.test", "repeatability.twice"),
        passes=0.0,  # of few networks
    )
    layers = Stage(
        id=LAYERS,
        job=lambda block: _layers(task, block.x),
        cost_of="robustness.eval_mode",
        select=lambda _: spread_positions(len(task.data.test), SHOWN_LAYERS),
        after=("predictions.test",),
        passes=0.1,
        whole=True,
    )
    return [mostly, layers]


def stage(one: Attacked) -> Stage:
    """Return the stage that asks whether outputs repeat at random points of the ball, too."""

    def job(block: Block) -> Arrays:
        first, second = _twice(one, block)
        return {"first": first, "second": second}

    return Stage(
        id=one.id(REPEAT),
        job=job,
        cost_of=one.id("repeatable"),
        select=lambda _: spread_positions(len(one.task.data.test), ASKED_TWICE),
        after=("predictions.test",),
        passes=0.1,
    )


def clean_differ(task: Task, found: Found) -> bool:
    """Tell whether two forwards over clean samples disagree."""
    twice = found.get("repeatability.twice")
    return twice is not None and not answers_twice(task, twice["first"], twice["second"])[0]


def is_random(one: Attacked, found: Found) -> bool:
    """Tell whether two forwards over the same inputs disagree, at clean samples or at random points of the ball."""
    rows = found.get(one.id(REPEAT))
    if rows is not None and not answers_twice(one.task, rows["first"], rows["second"])[0]:
        return True
    return clean_differ(one.task, found)


def as_attacked(one: Attacked, block: Block, part: str, *, fixed: bool = False) -> Model:
    """Return the Model that a stage asks: the mean over draws where outputs are random, else the network itself.

    With `fixed` draws, the same in every pass, for questions about its gradient.
    """
    task = one.task
    if not len(block.ids) or not is_random(one, block.earlier):
        return Paired(task.model) if _refuses_one(block.earlier) else task.model
    return Expectation(task.model, draws=DRAWS, fixed=fixed, **_seeds(task, one.id(part), block))


class Paired(Around):
    """A Model that hands a lone sample to its network twice: batch statistics refuse a batch of one.

    Attacks go on with what still stands, which may be one sample.
    """

    def logits(self, x: Tensor) -> Tensor:
        """Return logits of shape (n, classes); see `Model.logits`."""
        return super().logits(torch.cat((x, x)))[:1] if len(x) == 1 else super().logits(x)

    def values(self, x: Tensor) -> Tensor:
        """Return a regression network's output of shape (n,); see `Model.values`."""
        return super().values(torch.cat((x, x)))[:1] if len(x) == 1 else super().values(x)


def _refuses_one(found: Found) -> bool:
    """Tell whether the network failed on samples that were alone in their batch."""
    alone = found.get("repeatability.alone")
    return alone is not None and bool(alone["refused"].any())


def confirmed(one: Attacked, block: Block, model: Model, arrays: Arrays, part: str, threat: ThreatModel) -> Arrays:
    """Keep of what an attack broke what most fresh draws get wrong, beyond chance; all of it where outputs are not random.

    What they get right is attacked further (`_further`), and put to other draws; so is what was seen wrong without any change:
    which samples are right unattacked, other draws have said before it.
    """
    task = one.task
    if not isinstance(model, Expectation):
        return arrays
    distance = arrays["distance"].copy()
    at = np.flatnonzero(np.isfinite(distance) | arrays["rejected"])
    if not len(at):
        return arrays
    here = torch.from_numpy(at).to(block.x.device)
    y = block.y[here]
    if task.model.task == "regression":
        with torch.no_grad():
            y = model.predict(block.x[here])
    points = torch.as_tensor(arrays["x_adv"][at]).to(block.x)
    moved = tolerance(task, block.earlier) or 0.0
    seeds = _seeds(task, f"{one.id(part)}.confirmed", block)
    draws = FRESH[task.profile]
    lost = wrong_share(task.model, points, y, draws=draws, tolerance=moved, **seeds) <= beyond_chance(draws)
    unfit = (distance[at] == 0) | arrays["rejected"][at]
    near = unfit | arrays["broken"][at] | (distance[at] <= threat.eps)
    lost |= torch.from_numpy(unfit).to(lost.device)
    edge = lost & torch.from_numpy(near).to(lost.device)
    x_adv, broken, rejected = (arrays[name].copy() for name in ("x_adv", "broken", "rejected"))
    if bool(edge.any()):
        moved_on, x = at[edge.cpu().numpy()], block.x[here][edge]
        further = _further(model, threat, x, points[edge], y[edge])
        seeds = _seeds(task, f"{one.id(part)}.further", block)
        lost[edge] = wrong_share(task.model, further, y[edge], draws=draws, tolerance=moved, **seeds) <= beyond_chance(draws)
        x_adv[moved_on], distance[moved_on] = further.cpu().numpy(), threat.on(x).distance(x, further).cpu().numpy()
        broken[moved_on] = True
    gone = at[lost.cpu().numpy() | (distance[at] == 0)]
    rejected[at] = False
    rejected[gone] = broken[gone]
    broken[gone], distance[gone] = False, np.inf
    return {**arrays, "x_adv": x_adv, "broken": broken, "distance": distance, "rejected": rejected}


def _further(model: Model, threat: ThreatModel, x: Tensor, points: Tensor, y: Tensor) -> Tensor:
    """Go on up the margin of the mean, within the radius.

    An attack stops where the mean of few draws is wrong for the first time: at the edge, or in a lucky draw. Half of the
    answers there are right; farther in fewer are.
    """

    def climb(x: Tensor, point: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        region, goal = threat.on(x).around(x), Goal(model.task or "", y)

        def margin(output: Tensor) -> Tensor:
            return (output - y).abs() if goal.task == "regression" else goal.margin(output)

        for k in range(FURTHER):
            gradient, _, _ = observe(model, point, margin)
            length = FURTHER_STEP * (1 - k / FURTHER) * region.ball.eps
            point = step(point, gradient.nan_to_num(0.0, 0.0, 0.0), region, length * region.ball.unit())
        return (point,)

    with model.session():
        return in_batches(climb, (x, points, y), model.batch_size)[0]


def evidence(one: Attacked, found: Found) -> list[Evidence]:
    """Return whether outputs repeat at random points of the ball, and how the network was attacked where they do not."""
    rows = found[one.id(REPEAT)]
    ok, words = answers_twice(one.task, rows["first"], rows["second"])
    how = ""
    if is_random(one, found):
        draws = FRESH[one.task.profile]
        how = (
            f"; outputs are random, so that attacks followed the mean of {DRAWS} forwards, and a sample counts as broken where "
            f"more than {beyond_chance(draws):.1%} of {draws} fresh ones are wrong, which chance alone does not explain"
        )
    return [
        Evidence(
            id=one.id("repeatable"),
            ok=ok,
            detail=f"{len(rows.positions)} samples were run twice at a random point of the ball: {words}{how}",
        )
    ]


def modes(found: Found) -> list[Evidence]:
    """Return whether any layer works as in training: stays in that mode, or draws at random, or mixes samples."""
    layers = found.get(LAYERS)
    if layers is None:
        return []
    said = []
    for name, what in (
        ("training", "stay in training mode when the network is put into evaluation mode (they were put into it one by one)"),
        ("random", "give another output for the same input"),
        ("mixing", "give a sample another output beside other samples"),
    ):
        names = [str(each) for each in layers[name]]
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            said.append(f"{', '.join(names[:5])}{more} {what}")
    return [
        Evidence(
            id="robustness.eval_mode",
            ok=not said,
            value=float(sum(len(layers[name]) for name in ("training", "random", "mixing"))),
            detail="; ".join(said) or "no layer works as in training",
        )
    ]


def _seeds(task: Task, purpose: str, block: Block) -> dict[str, Any]:
    # Blocks begin at another sample each, whoever runs them.
    return {"seed": block_seed(task.seed, purpose, 0), "block": int(block.ids[0])}


def _twice(one: Attacked, block: Block) -> tuple[NDArray[Any], NDArray[Any]]:
    """Run the network twice at one random point of the ball around each sample."""
    model, seed = one.task.model, one.task.seed

    def ask(x: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        region = one.threat.on(x).around(x)
        point = region.random(ids, seed=seed, purpose="repeat")
        return output_of(model, point), output_of(model, point)

    with model.session(), seeded(block_seed(seed, one.id(REPEAT), int(block.ids[0]) if len(block.ids) else 0), model.device):
        first, second = in_batches(ask, (block.x, block.ids), model.batch_size)
    return first.cpu().numpy(), second.cpu().numpy()


# --- layers -----------------------------------------------------------------------------------------------------------


def _layers(task: Task, x: Tensor) -> Arrays:
    """Name the layers that work as in training."""
    model = task.model
    found: dict[str, list[str]] = {"training": [], "random": [], "mixing": []}
    with model.session(), torch.no_grad(), seeded(block_seed(task.seed, LAYERS, 0), model.device):
        found["training"] = _left_training(model.module)
        if len(x):
            _ask_layers(model, x, found)
    return {name: np.asarray(names, dtype=np.str_) for name, names in found.items()}


def _left_training(module: nn.Module) -> list[str]:
    """Name the layers that the network's own ``eval()`` leaves in training mode; all are back in evaluation mode after."""
    try:
        module.eval()
        return [_called(name, each) for name, each in module.named_modules() if each.training]
    finally:
        for each in module.modules():
            each.training = False


def _ask_layers(model: Model, x: Tensor, found: dict[str, list[str]]) -> None:
    """Ask each layer twice, and once with half of its samples, with the inputs that it gets in a forward."""
    inside: list[str] = []
    busy = False

    def hook(name: str) -> Any:
        def ask(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            nonlocal busy
            # The innermost layers come first: what lies around one that was named is not to blame for it.
            if busy or len(inputs) != 1 or any(each.startswith(f"{name}." if name else "") for each in inside):
                return
            if not (_is_batch(inputs[0], len(x)) and _is_batch(output, len(x))):
                return
            busy = True
            try:
                kind = _kind(module, inputs[0], output)
            finally:
                busy = False
            if kind:
                inside.append(name or "the network")
                found[kind].append(_called(name, module))

        return ask

    layers = [(name, each) for name, each in model.module.named_modules() if not isinstance(each, torch.jit.ScriptModule)]
    handles = [module.register_forward_hook(hook(name)) for name, module in layers]
    try:
        model.outputs(x)
    finally:
        for handle in handles:
            handle.remove()


def _kind(module: nn.Module, inputs: Tensor, output: Tensor) -> str:
    """Return what a layer does that it does in training only: "random", "mixing", or nothing."""
    try:
        again = module(inputs.clone())
        half = module(inputs[: max(1, len(inputs) // 2)].clone())
    except Exception:
        return ""  # a layer that cannot be asked alone, or with fewer samples, is judged by what it lies in
    if not _close(again, output):
        return "random"
    return "" if _close(half, output[: len(half)]) else "mixing"


def _close(a: Any, b: Tensor) -> bool:
    if not isinstance(a, Tensor) or a.shape != b.shape:
        return True
    size = float(b.detach().abs().nan_to_num(0.0, 0.0, 0.0).amax()) if b.numel() else 0.0
    return bool(torch.allclose(a, b, rtol=1e-3, atol=1e-3 * size, equal_nan=True))


def _is_batch(value: Any, n: int) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 0 and len(value) == n


def _called(name: str, module: nn.Module) -> str:
    return f"{name or 'the network'} ({type(module).__name__})"
