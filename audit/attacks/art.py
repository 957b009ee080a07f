"""Runs the evasion attacks of the adversarial-robustness-toolbox (ART), by class name, under our box, radius and re-check."""

from __future__ import annotations

import inspect
import io
import random
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from audit.attacks.base import Attack, AttackOutput, Candidates, output_of
from audit.attacks.geometry import Ball, Norm, ThreatModel
from audit.attacks.given import ids_of, samples_of
from audit.attacks.goal import Goal
from audit.data.noise import BLOCK, block_seed
from audit.errors import UsageError, closest
from audit.model.batching import is_out_of_memory
from audit.model.wrapper import Model

INSTALL = "pip install 'adversarial-robustness-toolbox>=1.20' multiprocess"
# Set here, from the threat model and the network; a user who could set them would attack something else.
OURS = frozenset(
    [
        "norm",
        "eps",
        "targeted",
        "verbose",
        "batch_size",
        "summary_writer",
        "estimator_orig",
        "attacks",
        "adv_criterion",
        "loss",
        "mask",
        "parallel_pool_size",
        "attacker",
        "attacker_params",
    ]
)


@dataclass(frozen=True)
class Known:
    """One of ART's evasion attacks: what it aims at, what it takes, and how it is set up here.

    Attributes
    ----------
    aims
        What it keeps small, or keeps to, by itself. Whatever it finds is pulled back onto the radius and checked again.
    inputs
        ``any``, or ``images`` of shape (c, h, w).
    note
        What a user should know.
    defaults
        Its own parameters that have other values here than in ART.
    step
        Its `eps_step` unless stated: ``path`` for 2.5 · eps / max_iter (Madry et al. 2018), or a multiple of eps.
    at_least
        Fewest classes.
    scalar_box
        Whether it takes one lowest and one highest value only: then those of the widest input.
    probabilities
        Whether it asks for probabilities in place of logits.
    one_by_one
        Whether it takes one sample at a time.
    targets
        Whether the labels that it takes are targets: then it is given none, and draws some.
    masks
        Whether it can be told which inputs may change; others then run one sample at a time, on a network whose fixed inputs
        are held.
    writes
        Whether it writes files by bare names.
    package
        A package beyond ART that it needs.
    """

    aims: str
    note: str = ""
    inputs: Literal["any", "images"] = "any"
    defaults: Mapping[str, Any] | None = None
    step: Literal["path"] | float | None = None
    at_least: int = 2
    scalar_box: bool = False
    probabilities: bool = False
    one_by_one: bool = False
    targets: bool = False
    masks: bool = False
    writes: bool = False
    package: str = ""


SMALLEST = {"linf": 2, "l2": 10}  # pixels a side: in smaller ones the tiles of ART's Square are empty
GRADIENT, DECISION, QUERY = "uses gradients", "asks for decisions alone", "asks for outputs alone"
KNOWN: dict[str, Known] = {
    "AutoAttack": Known(
        "L∞, L2", "APGD with two losses, DeepFool, Square; slow", "images", step=2.0, at_least=3, package="multiprocess"
    ),
    "AutoConjugateGradient": Known("L∞, L2", GRADIENT, step=2.0, masks=True),
    "AutoProjectedGradientDescent": Known("L∞, L2", GRADIENT, step=2.0, masks=True),
    "BasicIterativeMethod": Known("L∞", GRADIENT, step="path", masks=True),
    "BoundaryAttack": Known("L2", DECISION),
    "BrendelBethgeAttack": Known(
        "L∞, L2", f"{GRADIENT}; compiles for half a minute first", one_by_one=True, scalar_box=True, package="numba"
    ),
    "CarliniL0Method": Known("the number of inputs", GRADIENT, "images"),
    "CarliniL2Method": Known("L2", GRADIENT),
    "CarliniLInfMethod": Known("L∞", f"{GRADIENT}; slow"),
    "DeepFool": Known("L2", GRADIENT, defaults={"epsilon": 0.02}),
    "ElasticNet": Known("L1 and L2", GRADIENT),
    "FastGradientMethod": Known("L∞, L2", f"{GRADIENT}; one step", step=1.0, masks=True),
    "GeoDA": Known("L∞, L2", f"{DECISION}; max_iter counts queries, at least some 500", "images", writes=True),
    "HopSkipJump": Known("L∞, L2", DECISION, masks=True),
    "MomentumIterativeMethod": Known("L∞, L2", GRADIENT, step="path", masks=True),
    "NewtonFool": Known("nothing", GRADIENT, probabilities=True),
    "PixelAttack": Known("the number of inputs", f"{QUERY}; slow", "images", {"es": 1, "th": 10}, scalar_box=True),
    "ProjectedGradientDescent": Known("L∞, L2", GRADIENT, step="path", masks=True),
    "ProjectedGradientDescentNumpy": Known("L∞, L2", GRADIENT, step="path", masks=True),
    "ProjectedGradientDescentPyTorch": Known("L∞, L2", GRADIENT, step="path", masks=True),
    "RescalingAutoConjugateGradient": Known("L∞, L2", GRADIENT, step=2.0, masks=True),
    "SaliencyMapMethod": Known(
        "the number of inputs", f"{GRADIENT}; towards a class drawn at random", targets=True, scalar_box=True
    ),
    "SignOPTAttack": Known("L2", DECISION, at_least=3),
    "SimBA": Known("L2", f"{QUERY}, one sample at a time", "images", probabilities=True, one_by_one=True),
    "SquareAttack": Known("L∞, L2", QUERY, "images"),
    "ThresholdAttack": Known("L∞", f"{QUERY}; slow", "images", {"es": 1}, scalar_box=True),
    "UniversalPerturbation": Known("L∞, L2", "one change for each block of 64 samples, by DeepFool; slow"),
    "VirtualAdversarialMethod": Known("L2", GRADIENT, scalar_box=True, probabilities=True),
    "ZooAttack": Known(
        "L2",
        f"{QUERY}; slow",
        defaults={"use_resize": False, "use_importance": False},
        scalar_box=True,
        one_by_one=True,
    ),
}

PATCH = "it puts an object of its own into the picture: there is no radius"
OTHER_NETWORK = "it is for another kind of network"
OTHER_INPUT = "it needs inputs of its own beside the samples"
REFUSED: dict[str, str] = {
    "AdversarialPatch": PATCH,
    "AdversarialPatchNumpy": PATCH,
    "AdversarialPatchPyTorch": PATCH,
    "AdversarialPatchTensorFlowV2": PATCH,
    "AdversarialTexturePyTorch": PATCH,
    "CarliniWagnerASR": f"{OTHER_NETWORK}: speech recognition",
    "CompositeAdversarialAttackPyTorch": "it changes hue and rotates, beyond any radius, and needs kornia",
    "DPatch": f"{OTHER_NETWORK}: object detection",
    "DecisionTreeAttack": f"{OTHER_NETWORK}: decision trees",
    "FeatureAdversariesNumpy": f"{OTHER_INPUT}: guides",
    "FeatureAdversariesPyTorch": f"{OTHER_INPUT}: guides",
    "FeatureAdversariesTensorFlowV2": f"{OTHER_INPUT}: guides",
    "FrameSaliencyAttack": "it is for video, and needs another attack",
    "GRAPHITEBlackbox": PATCH,
    "GRAPHITEWhiteboxPyTorch": PATCH,
    "HighConfidenceLowUncertainty": f"{OTHER_NETWORK}: Gaussian processes",
    "ImperceptibleASR": f"{OTHER_NETWORK}: speech recognition",
    "ImperceptibleASRPyTorch": f"{OTHER_NETWORK}: speech recognition",
    "LaserAttack": PATCH,
    "LowProFool": f"it is targeted only, and {OTHER_INPUT.removeprefix('it ')}: importances",
    "MalwareGDTensorFlow": f"{OTHER_NETWORK}: malware, in TensorFlow",
    "OverTheAirFlickeringPyTorch": "it is for video",
    "OverloadPyTorch": f"{OTHER_NETWORK}: object detection",
    "ProjectedGradientDescentTensorFlowV2": "it is for TensorFlow; ProjectedGradientDescentPyTorch is the same",
    "RobustDPatch": f"{OTHER_NETWORK}: object detection",
    "SNAL": f"{OTHER_NETWORK}: object detection",
    "ShadowAttack": "it shades whole pictures, beyond any radius",
    "SpatialTransformation": "it rotates and shifts, beyond any radius: see the corruption check",
    "TargetedUniversalPerturbation": "it is targeted only",
    "Wasserstein": "it moves mass between pixels, in a ball of another kind than the radius",
}


class ArtAttack(Attack):
    """Any of ART's evasion attacks that can be held to a box and a radius.

    ART runs on blocks of 64 sample ids, in coordinates in which the radius is the same in every input, with all random
    generators seeded by (seed, name, block) and put back afterwards. What it finds is pulled back into box and radius, fixed
    inputs are put back, and a fresh forward confirms it. Networks are asked in their own floating-point type.

    Parameters
    ----------
    attack
        Name of a class in ``art.attacks.evasion``; see `KNOWN`.
    norm, eps, seed
        See `Attack`. They are handed to attacks that take them, along with a fitting `eps_step` unless stated.
    params
        The attack's own keyword arguments.

    Raises
    ------
    UsageError
        ART is missing, there is no such attack or keyword, or the attack cannot be held to a radius.
    """

    name = "art"

    def __init__(self, attack: str, norm: Norm = "linf", eps: float = 8 / 255, *, seed: int = 0, **params: Any) -> None:
        super().__init__(norm, eps, seed=seed)
        self.attack, self.params = attack, params
        self.known = _known(attack)
        self.art_class = _art_class(attack, self.known)
        self.keywords = list(inspect.signature(self.art_class.__init__).parameters)[2:]
        self._points = torch.zeros(0)
        _check_keywords(attack, params, [name for name in self.keywords if name not in OURS])

    def __call__(
        self,
        model: Model,
        x: Tensor | ArrayLike,
        y: Tensor | ArrayLike,
        *,
        ids: Tensor | ArrayLike | None = None,
        threat: ThreatModel | None = None,
        tolerance: float | None = None,
    ) -> AttackOutput:
        """Let ART attack the samples that are right; see `Attack.__call__`."""
        inputs, labels = samples_of(model, x, y)
        threat = self._threat(model, inputs) if threat is None else threat
        threat.check(tuple(inputs.shape[1:]))
        forwards, backwards = model.forwards, model.backwards
        with model.session():
            if len(inputs) == 0:
                self._points = inputs
            else:
                self.check(model, threat, tuple(inputs.shape[1:]))
                sample_ids = ids_of(ids, len(inputs))
                self._points = self._generate(model, inputs, labels.long(), sample_ids, threat.on(inputs))
            out = super().__call__(model, inputs, labels, ids=torch.arange(len(inputs)), threat=threat, tolerance=tolerance)
        self._points = torch.zeros(0)
        return replace(out, forwards=model.forwards - forwards, backwards=model.backwards - backwards)

    def run(self, model: Model, x: Tensor, goal: Goal, ball: Ball, ids: Tensor) -> Candidates:
        """Look at the points that ART found; here `ids` are row numbers."""
        found = Candidates.start(x)
        found.grad_zero.fill_(False)
        point = pull_back(self._points.to(x.device)[ids], x, ball)
        rows = torch.arange(len(x), device=x.device)
        found.loss_start.copy_(goal.loss(output_of(model, x), kind="margin"))
        output = output_of(model, point)
        found.note(rows, point, goal.loss(output, kind="margin"), goal.broken(output), last=True)
        return found

    def check(self, model: Model, threat: ThreatModel, shape: tuple[int, ...]) -> None:
        """Raise a UsageError where this attack cannot run on this network, or refuses its parameters."""
        known = self.known
        if model.task != "classification":
            raise UsageError(f"{self.attack} attacks classifiers, and this is a {model.task} network: leave robustness.art out")
        if known.inputs == "images" and len(shape) != 3:
            raise UsageError(f"{self.attack} takes images of shape (channels, height, width), and these samples have {shape}")
        if self.attack in ("SquareAttack", "AutoAttack") and min(shape[1:]) < SMALLEST[threat.norm]:
            raise UsageError(f"{self.attack} needs {SMALLEST[threat.norm]} pixels a side, and these images have {shape[1:]}")
        if (model.classes or 2) < known.at_least:
            raise UsageError(f"{self.attack} needs at least {known.at_least} classes, and this network has {model.classes}")
        if threat.eps > 0:
            like = torch.zeros((1, *shape), dtype=torch.float32, device=model.device)
            # Some of ART's attacks ask the network as they are set up, and draw numbers as they do.
            with model.session(), _seeded(self.seed):
                self._built(model, threat.on(like), like)

    def _generate(self, model: Model, x: Tensor, y: Tensor, ids: Tensor, ball: Ball) -> Tensor:
        """Return one point a sample, in input units: ART's, or the clean input where it was not asked."""
        points = x.clone()
        if ball.eps == 0:
            return points
        right = (model.predict(x) == y).cpu()
        blocks = torch.div(ids, BLOCK, rounding_mode="floor")
        for block in sorted(set(blocks[right].tolist())):
            rows = (right & (blocks == block)).nonzero()[:, 0]
            rows = rows[ids[rows].argsort(stable=True)].to(x.device)
            points[rows] = self._on_block(model, x[rows], y[rows], ball, block)
        return points

    def _on_block(self, model: Model, x: Tensor, y: Tensor, ball: Ball, block: int) -> Tensor:
        unit = _unit(ball, x)
        inputs, labels = (x / unit).cpu().numpy(), np.eye(model.classes or 2, dtype=np.float32)[y.cpu().numpy()]
        fixed = ball.scale is not None and bool((ball.scale == 0).any())
        while True:
            try:
                with _seeded(block_seed(self.seed, f"art.{self.attack}", block)), _elsewhere(self.known):
                    if fixed and not self.known.masks:
                        found = self._each_alone(model, ball, x, inputs, labels)
                    else:
                        found = self._ask(
                            self._built(model, ball, x), inputs, labels, {"mask": _mask(ball, x)} if fixed else {}
                        )
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or model.batch_size.current == 1:
                    raise
                model.batch_size.halve(min(len(x), model.batch_size.current))
                continue
            return torch.as_tensor(found).to(x) * unit

    def _each_alone(self, model: Model, ball: Ball, x: Tensor, inputs: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
        """Attack one sample at a time on a network that does not see its fixed inputs change, whatever ART does to them."""
        rows = [slice(i, i + 1) for i in range(len(x))]
        return np.concatenate([self._ask(self._built(model, ball, x[i], x[i]), inputs[i], labels[i], {}) for i in rows])

    def _ask(self, attack: Any, x: NDArray[Any], y: NDArray[Any], extra: dict[str, Any]) -> NDArray[Any]:
        if self.known.targets:
            return np.asarray(attack.generate(x.copy(), **extra))
        if not self.known.one_by_one:
            return np.asarray(attack.generate(x.copy(), y, **extra))
        rows = []
        for i in range(len(x)):
            try:
                rows.append(np.asarray(attack.generate(x[i : i + 1].copy(), y[i : i + 1], **extra)))
            except AssertionError:
                # BrendelBethgeAttack asserts that it found a start: where it did not, this sample stands.
                rows.append(x[i : i + 1])
        return np.concatenate(rows)

    def _built(self, model: Model, ball: Ball, x: Tensor, held: Tensor | None = None) -> Any:
        """Return ART's attack, ready to run, on the network as ART sees it; its fixed inputs are those of `held`, if given."""
        estimator = _estimator(model, ball, x, self.known, held)
        settings = {name: value for name, value in self._settings(model, ball, x).items() if name in self.keywords}
        try:
            built = self.art_class(estimator, **{**settings, **self.params})
        except (ValueError, TypeError, AssertionError) as error:
            raise UsageError(
                f"{self.attack} cannot be set up: {str(error).splitlines()[0] if str(error) else error!r}"
            ) from None
        for part in (built, *(getattr(built, "attacks", None) or ())):
            if hasattr(part, "verbose"):
                part.verbose = False
            if hasattr(part, "p_init"):
                part.p_init = min(part.p_init, self._widest_window(tuple(x.shape[2:])))
        return built

    def _settings(self, model: Model, ball: Ball, x: Tensor) -> dict[str, Any]:
        eps, known = float(ball.eps), self.known
        settings: dict[str, Any] = {
            "norm": np.inf if ball.norm == "linf" else 2,
            "eps": eps,
            "targeted": False,
            "verbose": False,
            "batch_size": 1 if known.one_by_one else min(BLOCK, model.batch_size.current),
            "attacker_params": {"verbose": False},
            "nb_grads": min(10, model.classes or 2),
            **(known.defaults or {}),
        }
        if known.step is not None:
            steps = self.params.get("max_iter", 100)
            settings["eps_step"] = min(eps, 2.5 * eps / max(1, steps)) if known.step == "path" else known.step * eps
        settings |= self._own_sizes(eps, ball, x)
        return settings

    def _widest_window(self, sides: tuple[int, ...]) -> float:
        """Return the share of a picture that ART's Square can change: it fails where its window is as high or wide as that."""
        room = min(sides) - (1 if self.norm == "linf" else 2)
        return room**2 / (sides[0] * sides[1])

    def _own_sizes(self, eps: float, ball: Ball, x: Tensor) -> dict[str, Any]:
        """Return the sizes of attacks that have names of their own for them, in the radius's units."""
        linf = ball.norm == "linf"
        square = x.ndim == 4 and x.shape[2] == x.shape[3]
        if self.attack == "SimBA":
            return {"epsilon": eps if linf else eps / 4, "attack": "dct" if square else "px"}
        if self.attack == "SaliencyMapMethod":
            return {"theta": eps if linf else eps / 4}
        if self.attack == "VirtualAdversarialMethod":
            return {"eps": eps * sqrt(x[0].numel()) if linf else eps}
        if self.attack == "ThresholdAttack":
            low, high = _box(ball, x)
            return {"th": max(1, round(eps / float((high - low).max()) * 255))}
        return {}


def pull_back(point: Tensor, x: Tensor, ball: Ball) -> Tensor:
    """Return `point` inside box and radius: the nearest allowed point (L2: towards `x`); fixed and NaN inputs as in `x`."""
    point = torch.where(torch.isfinite(point), point, x)
    if ball.scale is not None:
        point = torch.where(ball.scale > 0, point, x)
    return ball.around(x).project(point)


def names() -> list[str]:
    """Return the names of the attacks that can be run from here."""
    return sorted(KNOWN)


def page() -> str:
    """Return docs/art.md: all of ART's evasion attacks, which can be run from here, and why the others cannot."""
    lines = [
        "# ART's evasion attacks",
        "",
        "The robustness check runs any of these on the samples that its own attacks left standing:",
        "",
        "```bash",
        "audit run model.pt --data test.npz --set 'robustness.art=[\"HopSkipJump\"]'",
        "```",
        "",
        "In `audit.toml` an attack may bring its own parameters, under ART's names:",
        "",
        "```toml",
        "[robustness]",
        'art = ["SquareAttack", {name = "HopSkipJump", max_iter = 10}]',
        "```",
        "",
        f"They need ART: `{INSTALL}`. Norm, radius, box, batch size and seed are set from the run, `eps_step` unless it is",
        "stated. Every attack may change the inputs that the threat model lets it change, and no others: what ART finds is",
        "pulled back into box and radius, columns that must not change are put back, and a fresh forward confirms it. An",
        "attack that aims at another norm than the run's, or at a small change rather than at a given radius, finds less",
        "for it. Regression networks cannot be attacked by ART. This page is written by `audit list attacks --markdown`; a",
        "test keeps the two equal, and another runs each attack that works.",
        "",
        "## These work",
        "",
        "| attack | keeps small | what it sees of the network | inputs | needs |",
        "|---|---|---|---|---|",
    ]
    for name, known in sorted(KNOWN.items()):
        inputs = "images (c, h, w)" if known.inputs == "images" else "any"
        needs = [f"{known.at_least} classes"] * (known.at_least > 2) + [f"`{known.package}`"] * bool(known.package)
        lines.append(f"| `{name}` | {known.aims} | {known.note} | {inputs} | {', '.join(needs) or '–'} |")
    lines += ["", "## These do not", "", "| attack | why |", "|---|---|"]
    lines += [f"| `{name}` | {reason} |" for name, reason in sorted(REFUSED.items())]
    return "\n".join(lines)


def _known(attack: str) -> Known:
    if attack in REFUSED:
        raise UsageError(f"robustness.art: {attack} cannot be run from here: {REFUSED[attack]}")
    if attack not in KNOWN:
        raise UsageError(f"robustness.art: no attack {attack!r}; {closest(attack, [*KNOWN, *REFUSED])}; see docs/art.md")
    return KNOWN[attack]


def _art_class(attack: str, known: Known) -> type[Any]:
    from importlib.util import find_spec

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from art.attacks import evasion
    except ImportError as error:
        raise UsageError(f"robustness.art needs ART: {INSTALL} ({error})") from None
    if known.package and find_spec(known.package) is None:
        raise UsageError(f"{attack} needs {known.package}: pip install {known.package}")
    found: type[Any] | None = getattr(evasion, attack, None)
    if found is None:
        raise UsageError(f"the ART that is installed has no {attack}; {INSTALL} brings the one that has")
    return found


def _check_keywords(attack: str, params: Mapping[str, Any], allowed: list[str]) -> None:
    for name in params:
        if name in OURS:
            raise UsageError(f"robustness.art: {name!r} of {attack} is set from the run itself, so leave it out")
        if name not in allowed:
            raise UsageError(f"robustness.art: {attack} has no parameter {name!r}; {closest(name, allowed)}")


class _InUnits(nn.Module):
    """The network in coordinates in which the radius has the same length in every input.

    It returns probabilities where they are asked for; where a sample is `held`, the inputs in `fixed` are always that sample's.
    """

    def __init__(
        self, inner: nn.Module, unit: Tensor, *, probabilities: bool, held: Tensor | None, fixed: Tensor | None
    ) -> None:
        super().__init__()
        self.inner, self._unit, self._probabilities = inner, unit, probabilities
        self._held, self._fixed = held, fixed

    def forward(self, x: Tensor) -> Tensor:
        # ART hands over float64 here and there; the network's own type is the inner module's affair.
        x = x * self._unit
        if self._held is not None and self._fixed is not None:
            x = torch.where(self._fixed, self._held.to(x), x)
        output: Tensor = self.inner(x)
        return output.softmax(dim=1) if self._probabilities else output


def _estimator(model: Model, ball: Ball, x: Tensor, known: Known, held: Tensor | None) -> Any:
    from art.estimators.classification import PyTorchClassifier

    from audit.model.art import as_art

    low, high = _box(ball, x)
    if known.scalar_box or (len(set(low.ravel().tolist())) == 1 and len(set(high.ravel().tolist())) == 1):
        clip: tuple[Any, Any] = (float(low.min()), float(high.max()))
    else:
        clip = (low, high)
    fixed = None if ball.scale is None else ball.scale == 0
    seen = _InUnits(as_art(model).model, _unit(ball, x), probabilities=known.probabilities, held=held, fixed=fixed)
    return PyTorchClassifier(
        model=seen,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(x.shape[1:]),
        nb_classes=model.classes,
        clip_values=clip,
        device_type="gpu" if model.device.type == "cuda" else "cpu",
    )


def _unit(ball: Ball, x: Tensor) -> Tensor:
    """Return the length of one unit of the radius in each input, and 1 where nothing may change."""
    scale = torch.ones((), dtype=x.dtype, device=x.device) if ball.scale is None else ball.scale
    return torch.where(scale > 0, scale, torch.ones_like(scale)).expand(x.shape[1:])


def _box(ball: Ball, x: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the box in ART's coordinates; a column without width gets one, since ART refuses it, and is put back later."""
    unit = _unit(ball, x)
    low, high = ((side.expand(x.shape[1:]) / unit).float().cpu().numpy() for side in (ball.low, ball.high))
    return low, np.where(high > low, high, low + 1).astype(np.float32)


def _mask(ball: Ball, x: Tensor) -> NDArray[np.float32]:
    assert ball.scale is not None  # noqa: S101  (whoever calls has looked)
    mask: NDArray[np.float32] = (ball.scale > 0).expand(x.shape).float().cpu().numpy()
    return mask


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's generators, with ART's own unseeded ones, and put them back afterwards.

    For as long, NumPy has `mat`, which GeoDA uses and NumPy 2 dropped.
    """
    has_mat = "mat" in vars(np)
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  (ART draws from NumPy's global generator)
    try:
        with torch.random.fork_rng(), _quiet():
            np.random.RandomState = _RandomState  # type: ignore[misc]
            vars(np).setdefault("mat", np.asmatrix)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            torch.manual_seed(seed)
            yield
    finally:
        np.random.RandomState = _Original  # type: ignore[misc]
        if not has_mat:
            vars(np).pop("mat", None)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def _elsewhere(known: Known) -> Iterator[None]:
    """Keep an attack that reads and writes files by bare names (GeoDA's basis) away from the user's current folder."""
    if not known.writes:
        yield
        return
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep ART's progress bars from the terminal, and its warnings: what its divisions by zero lead to is checked again."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


_Original = np.random.RandomState


class _AnyRandomState(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _Original)


class _RandomState(_Original, metaclass=_AnyRandomState):
    """A RandomState that, unseeded, takes its seed from the global generator: ART makes some that would take the clock's."""

    def __init__(self, seed: Any = None) -> None:
        super().__init__(np.random.randint(2**31 - 1) if seed is None else seed)  # noqa: NPY002


def _tensor(values: Any) -> Tensor:
    return values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
