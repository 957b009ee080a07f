"""Robust accuracy by a named evaluation, alone: no check, no report, one call."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from audit.attacks.base import Attack
from audit.attacks.geometry import Norm, ThreatModel
from audit.attacks.given import samples_of, threat_of
from audit.errors import UsageError
from audit.evaluations.adaptive import adaptive
from audit.evaluations.base import AttackRound, Evaluated, Profile, Round, evaluate
from audit.evaluations.nearest import nearest
from audit.model.wrapper import Model

EvaluationName = Literal["adaptive", "autoattack"]
EVALUATIONS: tuple[EvaluationName, ...] = ("adaptive", "autoattack")
AUTOATTACK_PASSES = 3000.0  # of each of its attacks, for the time left only


def robust_accuracy(
    model: Model,
    x: Tensor | NDArray[Any],
    y: Tensor | NDArray[Any],
    *,
    norm: Norm = "linf",
    eps: float = 8 / 255,
    evaluation: EvaluationName = "adaptive",
    profile: Profile = "standard",
    threat: ThreatModel | None = None,
    ids: NDArray[np.int64] | None = None,
    tolerance: float | None = None,
    certified: NDArray[np.bool_] | None = None,
    seed: int = 0,
) -> Evaluated:
    """Attack samples by an evaluation and return the share that nothing broke, with an example for each that something did.

    Parameters
    ----------
    model
        The network. Its `bounds` are the box, unless `threat` states one.
    x, y
        Inputs of shape (n, …) and labels of shape (n,).
    norm, eps
        Threat model, where `threat` is None.
    evaluation
        ``adaptive``, or ``autoattack`` for the four attacks of Croce & Hein 2020 with their budgets.
    profile
        Budget of the adaptive evaluation: ``quick``, ``standard``, ``thorough`` or ``exhaustive``.
    ids
        Stable sample ids, which noise belongs to; row numbers where None.
    tolerance
        Regression: how far the output must move.
    certified
        Samples that are not attacked, (n,).

    Returns
    -------
    Evaluated
        Its `accuracy` is an upper bound on the truth: a stronger attack can only lower it.
    """
    inputs, labels = samples_of(model, x, y)
    if threat is None:
        threat = threat_of(model, norm, eps, inputs)
    rounds = rounds_of(evaluation, threat, profile=profile, classes=model.classes, seed=seed)
    return evaluate(model, inputs, labels, rounds, threat, ids=ids, tolerance=tolerance, certified=certified)


def rounds_of(
    evaluation: str,
    threat: ThreatModel,
    *,
    profile: Profile = "standard",
    classes: int | None = None,
    steps: int | None = None,
    surveys: int | None = None,
    step_size: float | None = None,
    seed: int = 0,
) -> list[Round]:
    """Return the rounds of an evaluation; `steps` and `surveys` are for the adaptive one, `step_size` for it in L∞ and L2."""
    if profile not in get_args(Profile):
        raise UsageError(f"profile must be one of {', '.join(get_args(Profile))}, got {profile!r}")
    if evaluation == "adaptive" and threat.norm in ("l1", "l0"):
        return nearest(threat.norm, profile, steps=steps, surveys=surveys, seed=seed)
    if evaluation == "adaptive":
        rules = threat.constraints
        discrete = rules is not None and bool(rules.integer or rules.one_hot)
        return adaptive(
            profile, norm=threat.norm, steps=steps, surveys=surveys, step_size=step_size, discrete=discrete, seed=seed
        )
    if evaluation != "autoattack":
        raise UsageError(f"evaluation must be one of {', '.join(EVALUATIONS)}, got {evaluation!r}")
    if threat.norm == "l0":
        raise UsageError("AutoAttack is for L∞, L2 and L1: in L0 take the adaptive evaluation")
    from audit.evaluations.autoattack import autoattack

    attacks: list[tuple[str, Attack]] = autoattack(threat.norm, threat.eps, classes=classes, seed=seed)
    return [AttackRound(name, attack, AUTOATTACK_PASSES) for name, attack in attacks]
