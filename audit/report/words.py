"""Plain words for the ids of metrics, of evidence and of what they cost: what a reader meets beside the id itself."""

from __future__ import annotations

import re

_NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}
_FAMILIES = {"robustness", "performance", "corruption", "anomaly", "explanation", "fairness", "hardening", "calibration"}
# Evidence says what should be so, metrics what is measured; both by the last part of the id.
_COMMON = {
    "deterministic": "the same input gives the same output twice",
    "batch_independent": "an output does not depend on the other samples of its batch",
    "conclusion": "drawing the conclusion",
}
_ROBUSTNESS = {
    "verified": "adversarial examples hold in a fresh forward",
    "gradients_nonzero": "the attack has a gradient to follow",
    "gradient_found": "the network has a gradient somewhere in the box",
    "gradient_true": "the gradient says what the loss does",
    "gradient_whole": "inputs without a gradient do not move the loss",
    "continuous": "outputs do not jump beside what was attacked",
    "loss_rises": "the loss rises along the attack",
    "beats_noise": "the attack does better than random noise",
    "unbounded_breaks": "without a radius the attack breaks everything",
    "converged": "a longer attack finds no more",
    "doubled": "twice the budget finds no more",
    "gradient_free": "an attack without gradients finds no more",
    "transfer": "examples made on another network break no more",
    "mended": "mending the gradient finds no more",
    "repeatable": "the same input gives the same output twice, near the samples, too",
    "eval_mode": "no layer works as in training",
    "holds_alone": "examples break their sample at batch size 1, too",
    "unsaturated": "outputs are not rounded to 0 and 1",
    "bracket_consistent": "no sample is both certified and broken",
    "accuracy": "accuracy under attack",
    "attack_success": "right answers that the attack breaks",
    "autoattack_accuracy": "accuracy under AutoAttack's own four attacks",
    "certified_accuracy": "certified accuracy",
    "median_distance": "median distance to the closest known example",
}
# Of threat models that are no norm, and of another network than the one that was given.
_WHOLE = {
    "robustness.spatial.accuracy": "accuracy under rotations and shifts",
    "robustness.universal.accuracy": "accuracy under one change for all samples",
    "robustness.patch.accuracy": "accuracy under one patch for all samples",
    "robustness.smoothed.accuracy": "accuracy of the smoothed network, not of the network itself",
    "robustness.smoothed.certified_accuracy": "certified accuracy of the smoothed network, not of the network itself",
}


def plain_words(identifier: str) -> str:
    """Return an id in plain words, the norm or the method in brackets; an id that is not known as its own last words.

    Parameters
    ----------
    identifier
        Of a metric, a piece of evidence or a part of the cost: ``<check>.<part>.<measure>``. Free text comes back as it is.
    """
    if not re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)+", identifier):
        return identifier
    if identifier in _WHOLE:
        return _WHOLE[identifier]
    family, *between, last = identifier.split(".")
    known = _COMMON | _ROBUSTNESS if family == "robustness" else _COMMON
    words = known.get(last) or last.replace("_", " ")
    given = [_NORMS.get(part, part.replace("_", " ")) for part in between]
    given += [] if family in _FAMILIES else [family.replace("_", " ")]
    return f"{words} ({', '.join(given)})" if given else words
