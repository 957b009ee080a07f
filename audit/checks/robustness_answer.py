"""What the robustness check says of one norm: metrics, outcomes, findings, examples, figures, and a sentence."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from audit import stats
from audit.attacks.examples import Example, feature_changes, gallery
from audit.attacks.geometry import violations
from audit.certificates.certify import FORWARDS
from audit.checks import robustness_figures as figures
from audit.checks.base import Answer, Arrays, Found
from audit.checks.robustness_bracket import absent, notes
from audit.checks.robustness_curve import distances, median
from audit.checks.robustness_evidence import evidence
from audit.checks.robustness_norms import called
from audit.checks.robustness_state import Attacked, Bits, right_at_first, tolerance
from audit.model.outputs import names_of
from audit.result import Figure, Finding, Metric, finite

FEWEST_STANDING, ONE_CLASS = 10, 0.99  # samples that stand, and the share of one class among them, that say something
GALLERY = 6


def conclude(one: Attacked, found: Found, answer: Answer) -> str:
    """Add metrics, evidence, findings and figures to the answer; return its sentence."""
    task, n = one.task, len(one.task.data.test)
    right, certified = right_at_first(task, found), one.certified(found)
    hit = one.broken_by(found, one.finders()) & right
    # The attack's own clean forward can differ from the stored one by a rounding: either makes a sample broken.
    broken = hit | ~right
    params = _params(one, found)
    if one.threat.constraints:
        params["violations"] = _violations(one, found)
    accuracy = _share(one, "accuracy", int((~broken).sum()), n, kind="upper", params={**params, "headline": True}).model_copy(
        update={"outcome": f"not {one.id('broken')}"}
    )
    answer.metrics += [
        accuracy,
        _share(one, "attack_success", int(hit.sum()), int(right.sum()), kind="lower", params=params, direction="lower"),
    ]
    answer.outcomes[one.id("broken")] = broken
    if not absent(one, found):
        answer.metrics.append(_certified(one, found, right & certified, params))
        answer.outcomes[one.id("certified")] = right & certified
    if one.task.options.evaluation == "autoattack":
        left = int((right & ~one.broken_by(found, one.evaluated())).sum())
        own = _share(one, "autoattack_accuracy", left, n, kind="upper", params=params)
        answer.metrics.append(own)
    known = distances(one, found)
    if task.options.curve:
        answer.metrics.append(median(one, known, task.confidence))
    answer.evidence += evidence(one, found, hit)
    if not right.any():
        answer.reasons.append("no sample was right before the attack, so nothing could be broken")
    answer.reasons += _idle_radius(one) + _idle_tolerance(one, found) + _stopped(one, found)
    if hit.any():
        answer.findings.append(_finding(one, hit, right, accuracy))
    answer.findings += _one_class(one, right, ~broken)
    _draw(one, found, answer, known, right, broken)
    answer.figures += _shown(one, found)
    noun = "are right and stay right"
    if task.model.task == "regression":
        noun = f"move by no more than {tolerance(task, found):.4g}"
    return (
        f"Under {one.name} changes of at most {one.radius}, {int((~broken).sum())} of {n} samples "
        f"{noun} as far as this attack found ({_percent(accuracy.value)}, {task.confidence:.0%} interval "
        f"{_percent(accuracy.low)} to {_percent(accuracy.high)}).{_proven(one, found, right & certified)}"
    )


def _proven(one: Attacked, found: Found, certified: Bits) -> str:
    """Say how many samples are certified, where there are bounds at all."""
    if absent(one, found):
        return ""
    k = int(certified.sum())
    return f" Certified, so that no such change breaks them: {k}." if k else " None of them is certified."


def examples(one: Attacked, found: Found) -> Arrays:
    """Return one adversarial example for each sample that was broken: the closest that was found."""
    closest: dict[int, tuple[float, str, int]] = {}
    for part in one.finders():
        rows = found[one.id(part)]
        for row in np.flatnonzero(rows["broken"] & (rows["distance"] > 0)):
            position, distance = int(rows.positions[row]), float(rows["distance"][row])
            if position not in closest or distance < closest[position][0]:
                closest[position] = (distance, part, int(row))
    positions = sorted(closest)
    picked = [(found[one.id(part)], row) for _, part, row in (closest[p] for p in positions)]
    shape = one.task.data.test.x.shape[1:]
    dtype = found[one.id(one.evaluated()[0])]["x_adv"].dtype
    return {
        "ids": one.task.data.test.ids[positions],
        "x_adv": np.asarray([rows["x_adv"][row] for rows, row in picked], dtype=dtype).reshape(-1, *shape),
        "distance": np.asarray([rows["distance"][row] for rows, row in picked], dtype=np.float64),
        "after": np.asarray([rows["after"][row] for rows, row in picked], dtype=np.float64),
        "attack": np.asarray([called(one.norm, closest[p][1]) for p in positions], dtype=np.str_),
        "norm": np.asarray([one.norm] * len(positions), dtype="U8"),
        "eps": np.full(len(positions), one.threat.eps),
    }


def _violations(one: Attacked, found: Found) -> int:
    """Count anew how many rules, of all stored examples together, are broken: none may be."""
    arrays, test = examples(one, found), one.task.data.test
    clean = test.x[np.searchsorted(test.ids, arrays["ids"])]
    return violations(one.threat, clean, arrays["x_adv"])


def _share(
    one: Attacked,
    measure: str,
    k: int,
    n: int,
    *,
    kind: Literal["upper", "lower"],
    params: dict[str, Any],
    direction: Literal["higher", "lower"] = "higher",
) -> Metric:
    interval = stats.clopper_pearson(k, n, one.task.confidence)
    return Metric(
        id=one.id(measure),
        value=interval.value,
        low=interval.low,
        high=interval.high,
        confidence=one.task.confidence,
        n=n,
        method="clopper-pearson",
        kind=kind,
        direction=direction,
        params=params,
        detail="no attack of this run broke these samples; a stronger one might" if kind == "upper" else "",
    )


def _params(one: Attacked, found: Found) -> dict[str, Any]:
    task, options = one.task, one.task.options
    unit = "input units" if one.threat.scale is None else "column standard deviations"
    params: dict[str, Any] = {"eps": one.threat.eps, "norm": one.norm, "unit": unit, "evaluation": options.evaluation}
    for name in ("steps", "restarts"):
        if getattr(options, name) is not None:
            params[name] = getattr(options, name)
    if task.model.task == "regression":
        params["tolerance"] = finite(tolerance(task, found))
    params["attacks"] = [called(one.norm, part) for part in one.finders()]
    return params


def _certified(one: Attacked, found: Found, certified: Bits, params: dict[str, Any]) -> Metric:
    given = {name: params[name] for name in ("eps", "norm", "unit")} | {"forwards_per_bound_pass": FORWARDS}
    metric = _share(one, "certified_accuracy", int(certified.sum()), len(certified), kind="lower", params=given)
    return metric.model_copy(update={"detail": notes(one, found), "outcome": one.id("certified")})


def _draw(one: Attacked, found: Found, answer: Answer, known: NDArray[np.float64], right: Bits, broken: Bits) -> None:
    """Add the bracket, the curve, accuracy by class and the exact threat model."""
    task, threat_ = one.task, one.threat
    why = absent(one, found)
    certified = None if why else one.certified(found) & right
    hit = broken & right
    proven = np.zeros_like(hit) if certified is None else certified
    counts = figures.Counts(
        wrong=int((~right).sum()),
        broken=int(hit.sum()),
        undecided=int((right & ~hit & ~proven).sum()),
        certified=None if certified is None else int((proven & ~hit).sum()),
    )
    answer.figures.append(
        figures.bracket(one.prefix, counts, confidence=task.confidence, norm_name=one.name, radius=one.radius, absent=why)
    )
    image = task.data.kind == "image"
    width = float(np.max(np.asarray(threat_.high) - np.asarray(threat_.low))) if image and one.norm == "linf" else None
    unit = "input units" if threat_.scale is None else "column standard deviations"
    if task.options.curve:
        answer.figures.append(
            figures.curve(
                one.prefix,
                one.name,
                unit,
                known,
                eps=threat_.eps,
                confidence=task.confidence,
                certified=None if certified is None else ([threat_.eps], [float(certified.mean())]),
                width=width,
                broken=broken,
            )
        )
    if task.model.task == "classification":
        by_class = figures.per_class(
            one.prefix,
            task.classes,
            task.data.test.y,
            right,
            broken,
            certified=certified,
            confidence=task.confidence,
            families=len(task.options.norm),
            norm_name=one.name,
        )
        answer.figures.append(by_class.figure)
        answer.tables.append(by_class.table)
    answer.tables.append(figures.threat(one.prefix, _threat_lines(one, found), norm_name=one.name))


def ran(one: Attacked, found: Found) -> list[str]:
    """Return the names of the attacks that looked at any sample: some that are planned run only where evidence asks for it."""
    parts = [part for part in one.finders() if (rows := one.rows(found, part)) is not None and len(rows.positions)]
    return list(dict.fromkeys(called(one.norm, part) for part in parts))


def _threat_lines(one: Attacked, found: Found) -> list[tuple[str, str]]:
    """Return exactly what the attacker may do, and how hard it was tried: word and value."""
    task = one.task
    lines = [("norm", one.name), ("radius", one.radius)]
    lines += [("what may change", line) for line in one.threat.describe(list(task.data.columns))]
    lines += [
        ("evaluation", task.options.evaluation),
        ("profile", task.profile),
        ("attacks", ", ".join(ran(one, found))),
    ]
    why = absent(one, found)
    return [*lines, ("certificate", f"none: {why}" if why else notes(one, found)), ("seed", str(task.seed))]


def _idle_radius(one: Attacked) -> list[str]:
    """Return why the radius cannot change any input that there could be, or nothing."""
    data, eps = one.task.data, one.threat.eps
    if one.threat.constraints and not one.threat.can_change(data.test.x.shape[1:]).any():
        return ["the radius cannot change any column: those that may change hold whole numbers, and it is less than one step"]
    if eps / one.threat.reach(data.test.x.shape[1:]) < 1e-6:
        return [f"the radius ({eps:g}) is next to nothing beside the box, so nothing was attacked"]
    if data.kind == "image" and data.test.x.dtype.kind in "iu" and eps < 0.5 and one.norm != "l0":
        return [
            f"the radius ({eps:g}) cannot change any whole-number pixel: it is in units of the input, whose "
            f"box is {float(np.max(one.threat.high)):g} wide; did you mean {eps * 255:g}?"
        ]
    return []


def _stopped(one: Attacked, found: Found) -> list[str]:
    """Return which attacks that were asked for stopped with an error: what they would have broken is not known."""
    messages = {part: [text for text in np.unique(found[one.id(part)]["failed"]) if text] for part in one.asked_for()}
    return [f"{one.id(part)} stopped with {texts[0]}" for part, texts in messages.items() if texts]


def _idle_tolerance(one: Attacked, found: Found) -> list[str]:
    """Return why an unstated tolerance asks nothing of this network: it grows with the network's own errors."""
    moved = tolerance(one.task, found)
    if moved is None or one.task.options.tolerance is not None or moved <= float(np.std(one.task.data.test.y)):
        return []
    return [
        f"no tolerance was stated, and the residuals' standard deviation ({moved:.4g}) is larger than that of the labels: "
        "a network that wrong is robust to anything; state --set robustness.tolerance=… in units of the target"
    ]


def _finding(one: Attacked, hit: Bits, right: Bits, accuracy: Metric) -> Finding:
    task = one.task
    lost = float(hit.sum() / right.sum())
    changed = "moved the output too far" if task.model.task == "regression" else "turned a right answer wrong"
    return Finding(
        severity="high" if lost >= 0.5 else "medium" if lost >= 0.1 else "low",
        title=f"{one.name} changes of at most {one.radius} break {lost:.0%} of the answers",
        detail=f"Such a change {changed} on {int(hit.sum())} of {int(right.sum())} samples; every example was verified "
        f"again. What remains ({_percent(accuracy.value)}) is what this attack did not break, not what cannot be broken.",
        samples=[int(i) for i in task.data.test.ids[np.flatnonzero(hit)[:10]]],
    )


def _one_class(one: Attacked, right: Bits, standing: Bits) -> list[Finding]:
    """Say it where nearly all that stands is of one class: an answer that is always the same is never broken."""
    task, n = one.task, int(standing.sum())
    y = task.data.test.y
    if task.model.task != "classification" or n < FEWEST_STANDING or len(np.unique(y)) < 2:
        return []
    top = int(np.bincount(y[standing]).argmax())
    held, share = int((y[standing] == top).sum()), float(np.mean(y[right] == top))
    more = (stats.clopper_pearson(held, n, task.confidence).low or 0.0) > share
    if held < ONE_CLASS * n or not (more or share == 1):
        return []
    name, most = task.classes[top], float(np.bincount(y).max() / len(y))
    return [
        Finding(
            severity="high" if share == 1 else "medium",
            title=f"Nearly all that withstands {one.name} changes is of class {name}",
            detail=f"{held} of the {n} samples that stay right are, and {share:.0%} of those that are right unattacked. "
            f"Always giving one answer, which nothing breaks, is right on {most:.1%}: what stands may be no robustness.",
        )
    ]


def _shown(one: Attacked, found: Found) -> list[Figure]:
    """Return a figure of the closest examples, where inputs may be shown and are of a kind that can be."""
    task, data = one.task, one.task.data
    if not task.keep_samples:
        return []
    arrays = examples(one, found)
    order = np.lexsort((arrays["ids"], arrays["distance"]))[:GALLERY]
    items = [
        Example(int(arrays["ids"][i]), data.test.x[p], arrays["x_adv"][i], _caption(one, arrays, int(i), int(p)))
        for i, p in zip(order, np.searchsorted(data.test.ids, arrays["ids"][order]), strict=True)
    ]
    if items and data.kind == "image" and data.test.x.shape[1] in (1, 3):
        low, high = data.box()
        title = "Inputs that the attack broke, the smallest change first"
        return [gallery(one.id("examples"), title, items, float(np.min(low)), float(np.max(high)))]
    if items and data.kind == "table":
        title = "Rows that the attack broke, the smallest change first"
        return [feature_changes(one.id("examples"), title, items, data.columns, data.scale())]
    return []


def _caption(one: Attacked, arrays: Arrays, row: int, position: int) -> str:
    task = one.task
    after, how = arrays["after"][row], f"distance {arrays['distance'][row]:.3g}, by {arrays['attack'][row]}"
    if task.model.task == "regression":
        return f"output moves to {float(after):.4g}, {how}"
    if task.model.task == "multilabel":
        return f"{names_of(task.data.test.y[position], task.classes)} is taken for {names_of(after, task.classes)}, {how}"
    return f"{task.classes[int(task.data.test.y[position])]} is taken for {task.classes[int(after)]}, {how}"


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"
